"""What each sensor delivers: the bands of every layer of a Stack, in the order the model reads them.

Frozen tables, no behaviour beyond look-ups; knows nothing of files or scenes' pixels. Sentinel-2 is kept at native
resolutions and reaches 10 m on the device. Sentinel-1 is at 10 m by nature (other products are warped to it when
read). Landsat's grid has its corner at 15 m, off our lattice, so it is always resampled when read: straight to 10 m, or
with ``resampling: pretrain`` to what pretraining stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.types import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """The bands that a Stack keeps at one resolution.

    Attributes:
        res_m: Resolution on the lattice, metres: the native one where the sensor's grid is the lattice.
        bands: Model order.
    """

    res_m: int
    bands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSpec:
    """One sensor.

    Attributes:
        name: As ``Scene.sensor`` spells it.
        layers: Finest first.
        class_band: Scene classification that ranks scenes; "" when the sensor has none.
        class_res_m: Its resolution, metres; 0 when there is none.
        margin_px: Pixels a layer keeps around the 10 m box, by layer: what upsampling to 10 m reads.
        dtype: Of a Stack's pixels: ``uint16`` (0 is nodata) or ``float32`` (NaN is).
    """

    name: str
    layers: tuple[LayerSpec, ...]
    class_band: str
    class_res_m: int
    margin_px: tuple[int, ...]
    dtype: str = "uint16"


SENTINEL2_L2A = SensorSpec(
    name="sentinel2_l2a",
    # Native sampling: ESA, Sentinel-2 Products Specification Document, table of spectral bands. B10 is not in L2A.
    layers=(
        LayerSpec(res_m=10, bands=("B02", "B03", "B04", "B08")),
        LayerSpec(res_m=20, bands=("B05", "B06", "B07", "B8A", "B11", "B12")),
        LayerSpec(res_m=60, bands=("B01", "B09")),
    ),
    class_band="SCL",
    class_res_m=20,
    margin_px=(0, 2, 2),
)

SENTINEL1 = SensorSpec(
    name="sentinel1",
    layers=(LayerSpec(res_m=10, bands=("vv", "vh")),),
    class_band="",
    class_res_m=0,
    margin_px=(0,),
    dtype="float32",
)
"""Radiometrically terrain-corrected backscatter (Planetary Computer ``sentinel-1-rtc``: 10 m, UTM), as decibels."""

# Band order of olmoearth_pretrain's Landsat modality: panchromatic first.
_LANDSAT_COARSE = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11")

LANDSAT = SensorSpec(
    name="landsat",
    layers=(LayerSpec(res_m=10, bands=("B8", *_LANDSAT_COARSE)),),
    class_band="",
    class_res_m=0,
    margin_px=(0,),
)
"""Collection 2 Level-1, 15 m (B8) and 30 m, each bilinear to 10 m: how rslearn reads it for fine-tuned heads."""

LANDSAT_PRETRAIN = SensorSpec(
    name="landsat",
    layers=(LayerSpec(res_m=10, bands=("B8",)), LayerSpec(res_m=20, bands=_LANDSAT_COARSE)),
    class_band="",
    class_res_m=0,
    margin_px=(0, 0),
)
"""As pretraining stored it (olmoearth_pretrain ``config_*.json``): B8 bilinear to 10 m, the others bilinear to
20 m and then repeated."""

SENSORS: tuple[SensorSpec, ...] = (SENTINEL2_L2A, SENTINEL1, LANDSAT)


def sensor(name: str, resampling: str = "bilinear") -> SensorSpec:
    """The table of sensor ``name``.

    Args:
        name: As ``Scene.sensor`` spells it.
        resampling: ``inputs.resampling``: ``bilinear`` or ``pretrain``; it changes Landsat's layers only.

    Raises:
        InvalidInputError: No such sensor.
    """
    if name == LANDSAT.name and resampling == "pretrain":
        return LANDSAT_PRETRAIN
    for spec in SENSORS:
        if spec.name == name:
            return spec
    known = ", ".join(s.name for s in SENSORS)
    raise InvalidInputError(f"sensor {name!r} cannot be read; known: {known}")


def present(spec: SensorSpec, scenes: Iterable[Scene]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The bands that any scene or alternate has, by layer, in model order.

    Args:
        spec: The sensor.
        scenes: ALL scenes of the run, not a tile's: the answer must not depend on the place.

    Returns:
        One (index of the layer in ``spec.layers``, bands) per layer that keeps a band. Without scenes, everything.
    """
    given = tuple(scenes)
    have = {a.band for s in given for source in (s, *s.alternates) for a in source.assets}
    kept = ((i, tuple(b for b in layer.bands if not given or b in have)) for i, layer in enumerate(spec.layers))
    return tuple((i, bands) for i, bands in kept if bands)
