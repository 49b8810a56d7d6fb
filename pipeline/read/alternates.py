"""The same product in several archives: the first copy that can be read.

Knows scenes and errors; nothing of pixels.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import DataError, InvalidInputError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.errors import EarthpressError
    from pipeline.types import Asset, Scene

log = logging.getLogger(__name__)

T = TypeVar("T")


def first_readable(
    scene: Scene, band: str, read: Callable[[Scene, Asset], T], *, note: Callable[[str], None] | None = None
) -> T:
    """What ``read`` makes of the scene's own file, or else of the first alternate that it can read.

    Args:
        scene: With its alternates, which are tried in their order.
        band: Which file.
        read: Reads one copy; gets the copy's own scene (offset, signing).
        note: Told when an alternate was used.

    Raises:
        InvalidInputError: The location of the scene's own file is not allowed (an alternate that is not is left out).
        DataError, TransientError: What was wrong with the scene's own file, when no alternate can be read either; or
            none of them has the band.
    """
    first: EarthpressError | None = None
    for source in (scene, *scene.alternates):
        asset = source.href(band)
        if asset is None:
            continue
        try:
            found = read(source, asset)
        except (DataError, TransientError, InvalidInputError) as err:
            if source is scene and isinstance(err, InvalidInputError):
                raise
            log.info("%s of %s (%s): %s", band, source.id, source.collection, err)
            first = first or err
            continue
        if source is not scene:
            _tell(f"{band} of {scene.id} read from its alternate {source.id} ({source.collection})", note)
        return found
    if first is not None:
        raise first
    raise DataError(f"item {scene.id}, band {band}: the item has no such file")


def _tell(text: str, note: Callable[[str], None] | None) -> None:
    log.info("%s", text)
    if note is not None:
        note(text)
