"""The plug-in point for cloud masks of other models, and OmniCloudMask behind it.

A mask looks at red, green and near infrared of a whole ranking cell at 20 m. What it says ranks the scenes
(``composite: omnicloudmask``); pixels are composited as with the scene classification. Its package brings torch and
weights of its own, so it is imported when it is asked for and never fetches anything.
"""

from __future__ import annotations

import csv
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.read.scores import MASK_NODATA
from pipeline.read.windows import pixels_centred_in
from pipeline.types import DN_OFFSET, Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.read.reads import Reads
    from pipeline.types import Cell, Scene

BANDS = ("B04", "B03", "B8A")
"""Red, green, near infrared: rslearn's choice for Sentinel-2, and what OmniCloudMask's own loader reads at 20 m."""
RES_M = 20
MODEL_VERSION = 4.0
"""Weights that the package lists as its newest (1.8); fixed, so that two machines rank alike."""
PATCH_PX, OVERLAP_PX = 512, 128
"""The package's 1000 px patches shrink where a cell (1024 px) has little data, and warn of it; these never do."""
GET_WEIGHTS = (
    f'python -c "from omnicloudmask.download_models import get_models; get_models(model_version={MODEL_VERSION})"'
)


class CloudMask(Protocol):
    """Tells cloud from ground."""

    @property
    def name(self) -> str:
        """Model and version, letters, digits, ``.`` and ``-``: part of the key of what it ranks."""

    def classes(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(row, col): 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow.

        Args:
            image: (red, green, near infrared; row, col) reflectance x 10000 at 20 m, 0 is nodata.
        """


class OmniCloudMask:
    """DPIRD-DMA's OmniCloudMask (extra ``cloudmask``), with weights that were fetched beforehand.

    Args:
        device: Where it runs; ``""``: what the package chooses. One cell at a time.

    Raises:
        ConfigError: The package or its weights are missing; the message says how to get them.
    """

    def __init__(self, device: str = "") -> None:
        if find_spec("omnicloudmask") is None:
            raise ConfigError(
                "composite omnicloudmask needs the package omnicloudmask: pip install 'earthpress[cloudmask]', or use "
                "inputs.sentinel2.composite=scl_first_valid"
            )
        package: Any = import_module("omnicloudmask")
        download_models: Any = import_module("omnicloudmask.download_models")
        with download_models.model_index_path.open() as file:
            wanted = [row["file_name"] for row in csv.DictReader(file) if float(row["version"]) == MODEL_VERSION]
        folder = download_models.get_model_data_dir()
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing or not wanted:
            raise ConfigError(
                f"the weights of OmniCloudMask {MODEL_VERSION} are missing from {folder}; where the internet can be "
                f"reached, run {GET_WEIGHTS} and copy that folder, or use inputs.sentinel2.composite=scl_first_valid"
            )
        self._predict: Any = package.predict_from_array
        self._device = device or None
        self._turn = threading.Lock()
        self.name = f"omnicloudmask-{package.__version__}-{MODEL_VERSION}"

    def classes(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See ``CloudMask``."""
        with self._turn:
            found = self._predict(
                image,
                patch_size=PATCH_PX,
                patch_overlap=OVERLAP_PX,
                inference_device=self._device,
                model_version=MODEL_VERSION,
            )
        classes: NDArray[np.uint8] = np.asarray(found, np.uint8)[0]
        return classes


def masked_cell(scene: Scene, cell: Cell, *, mask: CloudMask, reads: Reads) -> tuple[NDArray[np.uint8], int]:
    """What a mask says of a whole cell.

    Returns:
        ((row, col) classes at 20 m, ``MASK_NODATA`` where the scene has no data in one of the bands; bytes decoded).

    Raises:
        DataError: A band cannot be read, or the mask gave something else than classes.
        InvalidInputError, TransientError: As reading does.
    """
    box = pixels_centred_in(cell.box, RES_M)
    assert box is not None  # noqa: S101 - a cell has 1024
    bands = [_band(scene, name, box, reads) for name in BANDS]
    image = np.stack(bands)
    empty = (image == 0).any(axis=0)
    if empty.all():
        return np.full(box.shape, MASK_NODATA, np.uint8), image.nbytes // 2
    classes = mask.classes(image)
    if classes.shape != box.shape or classes.max(initial=0) > 3:
        raise DataError(
            f"item {scene.id}: cloud mask {mask.name} gave {classes.shape} up to {classes.max()}, want {box.shape} of "
            "classes 0 to 3"
        )
    return np.where(empty, np.uint8(MASK_NODATA), classes), image.nbytes // 2  # bands are uint16 in the file


def _band(scene: Scene, name: str, box: Box, reads: Reads) -> NDArray[np.float32]:
    """Reflectance x 10000, at least 1 where there is data; 10 m bands come through the warper, bilinear."""
    values = reads.band(scene, name, box).values.astype(np.float32)
    return np.where(values > 0, np.maximum(values - DN_OFFSET, 1), 0).astype(np.float32)
