"""How each sensor of a run is read: which composite, which mask, which resampling.

Values and one table; no pixels. A composite is an order of the candidates and a way to make pixels of them in that
order: ``COMPOSITES`` names the pairs that can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.errors import InvalidInputError
from pipeline.read.sensors import SENTINEL2_L2A, sensor

if TYPE_CHECKING:
    from pipeline.config import InputSettings
    from pipeline.read.sensors import SensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """How the candidates of a period become one image.

    Attributes:
        order: ``scl``: least cloud, shadow and snow over the cell first; ``clear``: most vegetation, soil and water
            over the cell first; ``mask``: by a cloud mask of its own; ``given``: as the candidates come.
        fill: ``first_valid``: each pixel from the first scene with data; ``one_scene``: only from the first scene;
            ``first_clear``: from the first scene that is clear there, else from the first with data; ``median``: per
            band, of the clear values, else of all.
    """

    order: Literal["scl", "clear", "mask", "given"]
    fill: Literal["first_valid", "one_scene", "first_clear", "median"]


COMPOSITES: dict[str, Composite] = {
    "scl_first_valid": Composite(order="scl", fill="first_valid"),
    "scl_best_clear": Composite(order="clear", fill="one_scene"),
    "first_clear": Composite(order="scl", fill="first_clear"),
    "omnicloudmask": Composite(order="mask", fill="first_valid"),
    "rslearn_mosaic": Composite(order="given", fill="first_valid"),
    "first_valid": Composite(order="given", fill="first_valid"),
    "median": Composite(order="given", fill="median"),
}
"""By the names of the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRule:
    """How one sensor is read.

    Attributes:
        sensor: As ``Scene.sensor`` spells it.
        composite: A name of ``COMPOSITES``.
        dilate_px: ``first_clear`` and ``median``: pixels of the classification that clouds and shadows are grown by.
        resampling: ``inputs.resampling``; decides what layers Landsat has.
    """

    sensor: str = SENTINEL2_L2A.name
    composite: str = "scl_first_valid"
    dilate_px: int = 2
    resampling: str = "bilinear"

    def __post_init__(self) -> None:
        spec, how = sensor(self.sensor, self.resampling), COMPOSITES.get(self.composite)
        if how is None:
            raise InvalidInputError(f"composite {self.composite!r} is unknown; known: {', '.join(COMPOSITES)}")
        if not spec.class_band and (how.order != "given" or how.fill == "first_clear"):
            raise InvalidInputError(f"{self.sensor} has no scene classification: composite {self.composite} needs one")
        if self.dilate_px < 0:
            raise InvalidInputError(f"ReadRule.dilate_px is {self.dilate_px}, must not be negative")

    @property
    def spec(self) -> SensorSpec:
        """The sensor's layers."""
        return sensor(self.sensor, self.resampling)

    @property
    def how(self) -> Composite:
        """The composite."""
        return COMPOSITES[self.composite]

    @property
    def masked(self) -> bool:
        """Whether pixels are told apart by the scene classification at full resolution."""
        return bool(self.spec.class_band) and self.how.fill in ("first_clear", "median")


def rules_of(inputs: InputSettings) -> tuple[ReadRule, ...]:
    """One rule per sensor of a configuration, in its order."""
    return tuple(
        ReadRule(
            sensor=name,
            composite=inputs.of(name).composite,
            dilate_px=getattr(inputs.of(name), "dilate_px", 0),
            resampling=inputs.resampling,
        )
        for name in inputs.sensors
    )
