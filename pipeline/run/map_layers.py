"""The layers of a map: classes or numbers, and how sure they are; the same from a run and from stored codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.maps.probe import Probe
from pipeline.maps.scores import VERSION
from pipeline.write import layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.codes import Coded
    from pipeline.config import MapSettings
    from pipeline.maps.heads import Head
    from pipeline.types import Calibration

PROBABILITY, CONFIDENCE = "probability", "confidence"
BANDS = (PROBABILITY, CONFIDENCE)
"""What may stand beside the classes of a map and follows from the stored codes alone."""
PER_CENT = "%"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapHead:
    """A map to compute: what computes it, and what is wanted beside its classes.

    Attributes:
        name: Name of the map.
        head: Probe of classes or regressor.
        bands: Some of ``BANDS``; only for classes.
    """

    name: str
    head: Head
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bands and not isinstance(self.head, Probe):
            raise ConfigError(no_classes(self.name, self.bands))

    @property
    def has_classes(self) -> bool:
        """Whether it is a map of classes, not of numbers."""
        return isinstance(self.head, Probe)

    @property
    def layers(self) -> tuple[layout.MapLayer, ...]:
        """The map itself, then the probability of every class, then the confidence."""
        head = self.head
        if not isinstance(head, Probe):
            title = head.name if self.name == head.name else f"{self.name}: {head.name}"
            numbers = layout.MapLayer(
                name=self.name, title=title, dtype="float32", units=head.units, fitted_range=(head.low, head.high)
            )
            return (numbers,)
        classes = tuple(zip(head.values, head.names, head.colours, strict=True))
        found = [layout.MapLayer(name=self.name, classes=classes)]
        if PROBABILITY in self.bands:
            found += [
                layout.MapLayer(
                    name=layout.probability_of(self.name, value),
                    title=f"probability of class {name} of {self.name}, per cent",
                    units=PER_CENT,
                )
                for value, name, _ in classes
            ]
        if CONFIDENCE in self.bands:
            title = f"how far the best class of {self.name} is ahead of the second, per cent"
            found.append(layout.MapLayer(name=layout.confidence_of(self.name), title=title, units=PER_CENT))
        return tuple(found)

    @property
    def fingerprints(self) -> tuple[tuple[str, str], ...]:
        """(layer, hash of what decides it) of all layers: what a tile is asked for."""
        own, *bands = self.layers
        return ((own.name, self.head.hash), *((layer.name, VERSION) for layer in bands))

    def values(self, coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """(row, col) arrays of ``layers``, in their order: uint8 with 255 or float32 with NaN where not valid.

        Args:
            coded: (band, row, col) codes.
            calibration: How to read them.
            valid: (row, col) bool: pixels that are wanted.
        """
        head = self.head
        if not isinstance(head, Probe):
            return (head.predict(coded, calibration, valid),)
        if not self.bands:
            return (head.classify(coded, calibration, valid),)
        graded = head.graded(coded, calibration, valid)
        probability = tuple(graded.probability) if PROBABILITY in self.bands else ()
        confidence = (graded.confidence,) if CONFIDENCE in self.bands else ()
        return (graded.classes, *probability, *confidence)


def wanted_bands(settings: MapSettings) -> tuple[str, ...]:
    """The bands that settings ask for."""
    return tuple(band for band in BANDS if getattr(settings, band))


def no_classes(name: str, bands: tuple[str, ...]) -> str:
    """Why a map of numbers has no such bands."""
    return (
        f"map {name} is a regression: {' and '.join(bands)} compare classes, and it has none; leave "
        f"{'it' if len(bands) == 1 else 'them'} out"
    )
