"""What each sensor delivers: bands by native resolution, in the order the model reads them.

Frozen tables, no behaviour beyond look-ups; knows nothing of files or scenes' pixels. Only Sentinel-2 L2A is filled;
the fields are wide enough for Sentinel-1 (one layer, no classification) and Landsat (offset lattice).
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
    """The bands that share one native resolution.

    Attributes:
        res_m: Native resolution, metres.
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
        margin_px: Native pixels a layer keeps around the 10 m box, by layer: what upsampling to 10 m reads.
    """

    name: str
    layers: tuple[LayerSpec, ...]
    class_band: str
    class_res_m: int
    margin_px: tuple[int, ...]


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

SENSORS: tuple[SensorSpec, ...] = (SENTINEL2_L2A,)


def sensor(name: str) -> SensorSpec:
    """The table of sensor ``name``.

    Raises:
        InvalidInputError: No such sensor, or none that can be read yet.
    """
    for spec in SENSORS:
        if spec.name == name:
            return spec
    known = ", ".join(s.name for s in SENSORS)
    raise InvalidInputError(f"sensor {name!r} cannot be read; known: {known}")


def sensor_of(scenes: Iterable[Scene]) -> SensorSpec:
    """The one sensor of ``scenes``; Sentinel-2 when there is no scene at all.

    Raises:
        InvalidInputError: Scenes of several sensors, or of an unknown one.
    """
    names = sorted({s.sensor for s in scenes})
    if len(names) > 1:
        raise InvalidInputError(f"scenes of several sensors in one stack: {', '.join(names)}; read them one by one")
    return sensor(names[0]) if names else SENTINEL2_L2A


def present(spec: SensorSpec, scenes: Iterable[Scene]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The bands that any scene has, by layer, in model order.

    Args:
        spec: The sensor.
        scenes: ALL scenes of the run, not a tile's: the answer must not depend on the place.

    Returns:
        One (index of the layer in ``spec.layers``, bands) per layer that keeps a band. Without scenes, everything.
    """
    given = tuple(scenes)
    have = {a.band for s in given for a in s.assets}
    kept = ((i, tuple(b for b in layer.bands if not given or b in have)) for i, layer in enumerate(spec.layers))
    return tuple((i, bands) for i, bands in kept if bands)
