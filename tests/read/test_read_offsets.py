"""Whether the +1000 is in the pixels: scenes of known truth, real pixels, bright ground, what is remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from files import scene_of, write_cog

from pipeline.errors import DataError
from pipeline.read.access import Access
from pipeline.read.offsets import decide, offset_key, offset_of, percentiles
from pipeline.read.rank_store import FolderRanks, MemoryRanks
from pipeline.read.windows import read_band
from pipeline.simulate.clouds import Weather
from pipeline.simulate.landscape import survey
from pipeline.simulate.scenes import Datatake, Granule, OrbitEdge, observe
from pipeline.simulate.spectra import RES_M
from pipeline.types import Asset, Box

LOCAL = Access(allow_local=True)
DATA = Path(__file__).resolve().parents[2] / "../shared/data"
GRANULE = Granule(name="32UMA", box=Box(zone=32, res_m=10, row=-552_300, col=49_860, height=600, width=600))
SAYS = {"still in": 0, "removed": 1000}
"""What an item says, as ``Scene.boa_offset``: what would have to be added."""


def doubtful(scene_id: str, hrefs: dict[str, tuple[str, int]], *, says: str, cloud: float | None = 10.0):
    """A scene of Earth Search's old collection, whose flag says something about its pixels."""
    assets = [Asset(band=band, href=href, band_index=index) for band, (href, index) in hrefs.items()]
    scene = scene_of(scene_id, *assets, boa_offset=SAYS[says])
    return replace(scene, check_offset=True, cloud_pct=cloud, version="05.09")


def simulated(folder, *, biome: str = "temperate", inside: bool, says: str, edge: OrbitEdge | None = None, **options):
    """B02 and B12 of a simulated scene in files, with the offset inside or removed."""
    weather = Weather(salt=11, level=options.pop("level", 0.7), veil=0.05)
    take = Datatake(
        acquired=datetime(2024, 6, 14, 10, 26, 1, tzinfo=UTC),
        platform="S2A",
        relative_orbit=65,
        absolute_orbit=46_000,
        baseline="05.09" if inside else "02.14",  # what the processor does to the pixels
        weather=weather,
        edge=edge,
    )
    image, hrefs = observe(survey(GRANULE.box, biome=biome), GRANULE, take), {}
    for band, pixels in image.bands:
        if band in ("B02", "B12"):
            path = folder / f"{biome}_{inside}_{band}.tif"
            hrefs[band] = (str(write_cog(path, pixels, box=GRANULE.box.cover(RES_M[band]))), 1)
    return doubtful("SIM", hrefs, says=says, **options)


@pytest.mark.parametrize("says", list(SAYS))
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("biome", ["temperate", "sea", "city"])
def test_pixels_decide_whatever_the_item_says(tmp_path, biome, inside, says):
    offset, note = offset_of(simulated(tmp_path, biome=biome, inside=inside, says=says), access=LOCAL)
    assert offset == (0 if inside else 1000)
    assert note.startswith(f"SIM: offset {'still in' if inside else 'removed'} by its pixels")
    assert ("AGAINST the item" in note) == (inside != (says == "still in"))


@pytest.mark.parametrize("says", list(SAYS))
@pytest.mark.parametrize("biome", ["desert", "snow"])
def test_bright_ground_without_the_offset_is_recognised(tmp_path, biome, says):
    offset, _ = offset_of(simulated(tmp_path, biome=biome, inside=False, says=says), access=LOCAL)
    assert offset == 1000


@pytest.mark.parametrize("says", list(SAYS))
@pytest.mark.parametrize("biome", ["desert", "snow"])
def test_of_bright_ground_with_the_offset_the_item_is_believed_and_the_note_says_so(tmp_path, biome, says):
    offset, note = offset_of(simulated(tmp_path, biome=biome, inside=True, says=says), access=LOCAL)
    assert offset == SAYS[says]
    assert f"offset {says} as the item says, pixels do not tell (p1: B02 " in note


def flat(tmp_path, *, blue: int, swir: int, says: str, cloud: float | None = 10.0):
    """A scene of two grey values."""
    box, hrefs = GRANULE.box, {}
    for band, dn, res in (("B02", blue, 10), ("B12", swir, 20)):
        native = box.cover(res)
        values = np.full(native.shape, dn, np.uint16)
        values[::2, ::2] += 40
        hrefs[band] = (str(write_cog(tmp_path / f"{band}.tif", values, box=native)), 1)
    return doubtful("FLAT", hrefs, says=says, cloud=cloud)


@pytest.mark.parametrize("says", list(SAYS))
@pytest.mark.parametrize(
    ("ground", "blue", "swir", "want"),
    [
        ("forest, offset in", 1190, 1450, 0),
        ("water a little over-corrected, offset in", 950, 985, 0),
        ("forest, removed", 190, 450, 1000),
        ("dark rock desert, removed", 900, 1700, None),
        ("grey desert, removed", 1012, 2695, 1000),  # the Sahara scene below
        ("Sahara sand, removed", 1500, 4500, None),
        ("red sand, offset in", 1600, 5500, None),
        ("thick cloud, removed", 3500, 2200, None),
        ("fresh snow, removed", 7000, 500, 1000),
    ],
)
def test_the_rules_over_kinds_of_ground(tmp_path, ground, blue, swir, want, says):
    offset, _ = offset_of(flat(tmp_path, blue=blue, swir=swir, says=says), access=LOCAL)
    assert offset == (SAYS[says] if want is None else want)


@pytest.mark.parametrize("says", list(SAYS))
def test_under_a_closed_cloud_cover_missing_dark_pixels_prove_nothing(tmp_path, says):
    scene = flat(tmp_path, blue=1500, swir=1700, says=says, cloud=99.0)
    assert offset_of(scene, access=LOCAL)[0] == SAYS[says]
    assert offset_of(replace(scene, cloud_pct=60.0), access=LOCAL)[0] == 0
    assert offset_of(replace(scene, cloud_pct=None), access=LOCAL)[0] == 0


def test_pixels_at_the_edge_of_the_swath_do_not_count(tmp_path):
    # Overviews that mix the last pixels with nodata look dark there.
    box = GRANULE.box
    hrefs = {}
    for band, res in (("B02", 10), ("B12", 20)):
        native = box.cover(res)
        values = np.full(native.shape, 1300, np.uint16)
        values[:, : native.width // 2] = 0
        values[:, native.width // 2] = 650
        hrefs[band] = (str(write_cog(tmp_path / f"{band}.tif", values, box=native)), 1)
    narrow = doubtful("EDGE", hrefs, says="removed")
    assert percentiles(narrow, access=LOCAL) == {"B02": 1300, "B12": 1300}
    assert offset_of(narrow, access=LOCAL)[0] == 0


def test_a_sliver_of_a_scene_is_not_enough_to_overrule_the_item(tmp_path):
    edge = OrbitEdge(x_m=GRANULE.box.col * 10 + 60.0, y_m=-GRANULE.box.row * 10.0, slope=0.0)
    scene = simulated(tmp_path, inside=True, says="removed", edge=edge)
    offset, note = offset_of(scene, access=LOCAL)
    assert offset == 1000
    assert "too few valid pixels" in note


def test_one_band_alone_can_prove_that_the_offset_was_removed_but_not_that_it_is_in(tmp_path):
    for blue, want in ((300, 1000), (1200, 1000)):
        scene = flat(tmp_path, blue=blue, swir=1200, says="removed")
        alone = replace(scene, assets=tuple(a for a in scene.assets if a.band == "B02"))
        assert offset_of(alone, access=LOCAL)[0] == want


def test_scenes_that_can_be_trusted_are_not_looked_at():
    scene = scene_of("S", Asset(band="B02", href="/nowhere/B02.tif"), boa_offset=1000)
    assert offset_of(scene, access=LOCAL) == (1000, "")


def test_a_scene_whose_pixels_cannot_be_read_is_broken_not_guessed(tmp_path):
    scene = doubtful("S", {"B02": (str(tmp_path / "gone.tif"), 1)}, says="removed")
    memory = MemoryRanks()
    with pytest.raises(DataError, match="item S, band B02"):
        offset_of(scene, access=LOCAL, memory=memory)
    assert memory.get(offset_key(scene)) is None


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemoryRanks, FolderRanks])
def test_a_decision_is_made_once_per_scene_and_kept(tmp_path, kind):
    memory = kind(tmp_path / "ranks") if kind is FolderRanks else kind()
    scene = flat(tmp_path, blue=1190, swir=1450, says="removed")
    first = offset_of(scene, access=LOCAL, memory=memory)
    for asset in scene.assets:
        Path(asset.href).unlink()
    assert offset_of(scene, access=LOCAL, memory=memory) == first
    assert first[0] == 0


def test_a_decision_is_of_the_scene_and_what_its_item_says(tmp_path):
    scene = flat(tmp_path, blue=1190, swir=1450, says="removed")
    others = (replace(scene, id="S2"), replace(scene, version="05.10"), replace(scene, boa_offset=0))
    assert len({offset_key(s) for s in (scene, *others)}) == 4
    assert offset_key(scene) == offset_key(replace(scene, alternates=(scene,)))


def test_a_torn_memory_is_decided_again(tmp_path):
    scene = flat(tmp_path, blue=1190, swir=1450, says="removed")
    memory = MemoryRanks({offset_key(scene): '{"offset": 10'})
    assert offset_of(scene, access=LOCAL, memory=memory)[0] == 0


def test_a_scene_that_is_broken_for_the_check_is_read_from_its_alternate(tmp_path):
    other = flat(tmp_path, blue=190, swir=450, says="still in")
    broken = doubtful("S", {"B02": (other.href("B02").href, 1), "B12": (str(tmp_path / "gone.tif"), 1)}, says="removed")
    notes = []
    box = Box(zone=32, res_m=10, row=GRANULE.box.row, col=GRANULE.box.col, height=8, width=8)
    got = read_band(replace(broken, alternates=(other,)), "B02", box=box, access=LOCAL, note=notes.append)
    assert set(np.unique(got)) == {1190, 1230}
    assert "B02 of S read from its alternate FLAT (sentinel-2-l2a)" in notes


def test_a_band_is_read_with_the_offset_of_its_pixels(tmp_path):
    scene, notes = flat(tmp_path, blue=190, swir=450, says="still in"), []
    box = Box(zone=32, res_m=10, row=GRANULE.box.row, col=GRANULE.box.col, height=8, width=8)
    got = read_band(scene, "B02", box=box, access=LOCAL, note=notes.append)
    assert set(np.unique(got)) == {1190, 1230}
    assert len(notes) == 1


def test_an_alternate_is_asked_about_its_own_offset(tmp_path):
    other = flat(tmp_path, blue=190, swir=450, says="still in")
    scene = scene_of("OWN", Asset(band="B02", href=str(tmp_path / "gone.tif")))
    box = Box(zone=32, res_m=10, row=GRANULE.box.row, col=GRANULE.box.col, height=8, width=8)
    got = read_band(replace(scene, alternates=(other,)), "B02", box=box, access=LOCAL)
    assert set(np.unique(got)) == {1190, 1230}


# --- real pixels -----------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"real pixels are not at hand: there is no shared/data/{name} beside the project")
    return (DATA / name).resolve()


def multiband(path: Path, blue: int, swir: int, *, says: str):
    return doubtful("REAL", {"B02": (str(path), blue), "B12": (str(path), swir)}, says=says)


@pytest.mark.parametrize("says", list(SAYS))
def test_real_amazon_pixels_have_the_offset_inside(says):
    path = real("rstoolbox-sen2") / "sen2_dn.tif"
    with rasterio.open(path) as dataset:
        blue, swir = (dataset.descriptions.index(band) + 1 for band in ("B02", "B12"))
    assert offset_of(multiband(path, blue, swir, says=says), access=LOCAL)[0] == 0


@pytest.mark.parametrize("says", list(SAYS))
def test_real_sahara_pixels_have_none_although_the_darkest_hundredth_of_blue_is_above_1000(says):
    folder = real("rio-tiler-pds-s2-l2a") / "S2A_29RKH_20200219_0_L2A"
    scene = doubtful("RKH", {b: (str(folder / f"{b}.tif"), 1) for b in ("B02", "B12")}, says=says)
    first = percentiles(scene, access=LOCAL)
    assert first["B02"] > 1000
    assert offset_of(scene, access=LOCAL)[0] == 1000


@pytest.mark.parametrize("says", list(SAYS))
def test_real_flemish_fields_have_none(tmp_path, says):
    h5py = pytest.importorskip("h5py")
    folder = real("worldcereal-patches") / "00002806639B424A"
    tail = "_00002806639B424A_32631_2017-08-01_2018-11-30.nc"
    hrefs = {}
    for band, res in (("B02", 10), ("B12", 20)):
        with h5py.File(folder / f"S2_L2A_{res}m{tail}") as file:
            day = int(np.argmax((file[band][:] > 0).sum(axis=(1, 2)) - (file[band][:] > 1500).sum(axis=(1, 2))))
            values = file[band][day]
        box = Box(zone=31, res_m=res, row=-5_629_680 // res, col=501_360 // res, height=len(values), width=len(values))
        hrefs[band] = (str(write_cog(tmp_path / f"{band}.tif", values, box=box, driver="GTiff")), 1)
    assert offset_of(doubtful("UDS", hrefs, says=says), access=LOCAL)[0] == 1000


@pytest.mark.parametrize("says", list(SAYS))
def test_real_pixels_around_an_alpine_lake_have_none(says):
    path = real("sen2r-barbellino") / "S2A2A_20170703_022_Barbellino_BOA_10.tif"
    assert offset_of(multiband(path, 2, 11, says=says), access=LOCAL)[0] == 1000


@pytest.mark.parametrize("offset", [0, 1000])
def test_one_dark_band_that_the_other_contradicts_leaves_the_item_its_word(offset):
    made = scene_of("S", boa_offset=offset)
    assert decide(made, {"B02": 790, "B12": 1050})[0] == offset  # over-corrected shadow, or bright dry ground
    assert decide(made, {"B02": 590, "B12": 1050})[0] == 1000  # nothing is that dark with the offset inside
    assert decide(made, {"B02": 790, "B12": 850})[0] == 1000
