"""The plug-in point for cloud masks: what it is shown, how it ranks, and what is said when the package is missing."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from files import CORNER, ZONE, candidates, make_scene, periods, region_around

from pipeline.errors import ConfigError, DataError
from pipeline.read.access import Access
from pipeline.read.cloudmask import OmniCloudMask, masked_cell
from pipeline.read.rank import MemoryRanks, rank_key
from pipeline.read.reads import Reads
from pipeline.read.rules import ReadRule
from pipeline.read.scores import MASK_NODATA, by_mask
from pipeline.read.stacks import needed_cells, read_stacks
from pipeline.types import NO_CLEAR, Box, Cell

LOCAL = Access(allow_local=True)
REGION = region_around(*CORNER)
CELL = Cell(zone=ZONE, row=CORNER[0] // 2048, col=CORNER[1] // 2048)
INSIDE = Box(zone=ZONE, res_m=10, row=CORNER[0] + 20, col=CORNER[1] + 20, height=30, width=30)


class RedIsCloud:
    """Calls everything thick cloud that is red above a limit; remembers what it was shown."""

    name = "red-is-cloud-1"

    def __init__(self, above=3000):
        self.above, self.shown = above, []

    def classes(self, image):
        self.shown.append(image)
        return (image[0] > self.above).astype(np.uint8)


def read(made, mask):
    rules = (ReadRule(composite="omnicloudmask"),)
    cells, ids = needed_cells(INSIDE, rules=rules), {0: tuple(m.scene.id for m in made)}
    with ThreadPoolExecutor(4) as pool:
        return read_stacks(
            box=INSIDE,
            periods=periods(1),
            candidates=candidates(cells, ids),
            scenes={m.scene.id: m.scene for m in made},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
            rules=rules,
            mask=mask,
        )[0]


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
    """A dark and a bright scene; their classification says the opposite of what a mask by red says."""
    folder = tmp_path_factory.mktemp("masked")
    return [
        make_scene(folder, "bright", region=REGION, seed=1, classes=4, only=dict.fromkeys(("B03", "B04", "B8A"), 9000)),
        make_scene(folder, "dark", region=REGION, seed=2, classes=9, only=dict.fromkeys(("B03", "B04", "B8A"), 2000)),
    ]


def test_a_mask_ranks_instead_of_the_classification(made):
    stack = read(made, RedIsCloud())
    (source,) = {(s.selected, s.scores) for s in stack.sources}
    assert source[0] == ("dark",)
    assert source[1][0] < source[1][1]


def test_a_mask_sees_reflectance_of_the_whole_cell_at_20_m(made):
    mask = RedIsCloud()
    classes, bytes_read = masked_cell(made[0].scene, CELL, mask=mask, reads=Reads(LOCAL, MemoryRanks()))
    (image,) = mask.shown
    inside = (
        made[0]
        .boxes[20]
        .intersect(Box(zone=ZONE, res_m=20, row=CELL.row * 1024, col=CELL.col * 1024, height=1024, width=1024))
    )
    assert (image.shape, image.dtype) == ((3, 1024, 1024), np.float32)
    seen = image[0, : inside.height - 1, : inside.width - 1]
    assert (seen == 9000 - 1000).all()
    assert not image[:, inside.height + 2 :].any()
    assert (classes[: inside.height - 1, : inside.width - 1] == 1).all()
    assert classes[-1, -1] == MASK_NODATA
    assert bytes_read == 3 * 1024 * 1024 * 2


def test_thick_cloud_counts_five_and_nodata_one():
    classes = np.zeros((16, 16), np.uint8)
    classes[:4], classes[4:6], classes[6:7], classes[8:] = 1, 2, 3, MASK_NODATA
    looked = by_mask(classes)
    assert looked.score == (5 * 4 + 2 + 1 + 8) / 16
    assert looked.clear[:8] == bytes(8)
    assert looked.clear[24:32] == bytes([50] * 8)
    assert looked.clear[32:] == bytes([NO_CLEAR] * 32)


def test_masks_are_remembered_by_name():
    (group,) = candidates((CELL,), {0: ("a",)})
    assert rank_key(group, by="one-1") != rank_key(group, by="one-2")


@pytest.mark.parametrize("wrong", [np.full((1024, 1024), 4, np.uint8), np.zeros((3, 3), np.uint8)])
def test_a_mask_that_gives_no_classes_is_refused(made, wrong):
    mask = RedIsCloud()
    mask.classes = lambda _image: wrong
    with pytest.raises(DataError, match="red-is-cloud-1"):
        masked_cell(made[0].scene, CELL, mask=mask, reads=Reads(LOCAL, MemoryRanks()))


def test_a_missing_package_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    with pytest.raises(ConfigError, match=r"earthpress\[cloudmask\].*scl_first_valid"):
        OmniCloudMask()


PACKAGE = """
from . import download_models
__version__ = "1.8.1"
def predict_from_array(image, *, patch_size, patch_overlap, inference_device, model_version):
    assert (patch_size, patch_overlap, model_version) == (512, 128, 4.0)
    return (image[:1] > 5).astype("uint8")
"""
MODELS = """
from pathlib import Path
model_index_path = Path(__file__).with_name("links.csv")
def get_model_data_dir():
    return Path(__file__).with_name("weights")
def get_models(**_):
    raise AssertionError("nothing may be downloaded")
"""


@pytest.fixture(name="package")
def _package(tmp_path, monkeypatch):
    """The package's interface, as of omnicloudmask 1.8.1, without torch."""
    folder = tmp_path / "site" / "omnicloudmask"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "download_models.py").write_text(MODELS)
    (folder / "links.csv").write_text("file_name,version\nold.safetensors,3\nnew.safetensors,4\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in ("omnicloudmask", "omnicloudmask.download_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("omnicloudmask", "omnicloudmask.download_models"):
        sys.modules.pop(name, None)


def test_missing_weights_are_said_and_never_fetched(package):
    (package / "weights" / "old.safetensors").write_text("")
    with pytest.raises(ConfigError, match="get_models"):
        OmniCloudMask()


def test_the_package_is_asked_for_classes(package):
    (package / "weights" / "new.safetensors").write_text("")
    mask = OmniCloudMask()
    image = np.full((3, 64, 64), 9, np.float32)
    assert mask.name == "omnicloudmask-1.8.1-4.0"
    assert mask.classes(image).shape == (64, 64)
    assert mask.classes(image).max() == 1
