"""Whether a Sentinel-2 scene's numbers hold the +1000 of baseline 04.00, asked of its pixels where the item may lie.

Earth Search's ``sentinel-2-l2a`` says of items, in both directions, that the offset was applied when it was not
(Element84/earth-search #66, #71, #9, #24; cirrus-earth-search #33). Taken wrongly it shifts every reflectance by 0.1.

What pixels can tell: with the offset inside, nothing valid lies much below 1000, for reflectance is hardly negative;
once it is removed, the darkest ground (water, shadow, forest in blue or in short-wave infrared) lies near 0. So dark
pixels prove that it was removed. That they are missing proves little where all ground is bright: of a real Sahara scene
WITHOUT offset (S2A_29RKH_20200219) the first percentile of B02 is 1012. There the other band decides where it can:
ground that is bright in short-wave infrared is not black in blue, which it would have to be if 1000 of those 1012 were
offset. Where neither rule speaks, the item's word stands, and the note says that it was not confirmed.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import DataError
from pipeline.read.overviews import read_coarsest
from pipeline.types import DN_OFFSET, canonical_json, content_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from pipeline.read.access import Access
    from pipeline.types import Scene

log = logging.getLogger(__name__)

BANDS = ("B02", "B12")
"""Blue is dark over forest and water, short-wave infrared over water and snow."""
DARK_DN = 800
"""A first percentile below this means that the offset was removed, unless the other band contradicts it: with the
offset inside, one pixel in a hundred would have a reflectance below -0.02."""
BLACK_DN = 600
"""Below this nothing contradicts: reflectance -0.04 is beyond what over-corrected shadow has."""
CLEAN_DN = 900
"""The offset can be inside from this first percentile on: reflectance -0.01, as over-corrected water has."""
BRIGHT_DN = 2000
"""Below this in both bands, and above ``CLEAN_DN``, the offset is inside: without it the darkest hundredth of a whole
granule would reflect 0.09 to 0.2 in both bands. Deserts reflect as much in blue but more in B12, clouds more."""
BLACK_RATIO = 0.05
"""Least reflectance in B02 relative to B12 of ground with B12 above 0.06: red sand has 0.13."""
DIM_DN = 1600
"""From here to ``BRIGHT_DN`` in B12 a black B02 is doubtful only: a dark forest may be over-corrected in blue."""
CLOUDY_PCT = 95.0
"""Above this cloud cover missing dark pixels prove nothing."""
LEAST_PX = 1000
"""Valid pixels without which a percentile means nothing."""
OFFSET_VERSION = 2
"""Part of the key; goes up when the rules change."""


class OffsetMemory(Protocol):
    """Remembers texts by key, the first writer wins; a ``RankStore`` is one."""

    def get(self, key: str) -> str | None:
        """What is stored under ``key``."""

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored."""


def offset_of(scene: Scene, *, access: Access, memory: OffsetMemory | None = None) -> tuple[int, str]:
    """What must be added to the DN of a scene's own files (not of its alternates) to reach the Stack's encoding.

    A function of the scene, never of a tile. Scenes whose catalogue can be trusted are not looked at.

    Args:
        scene: ``boa_offset`` is what the item says; pixels are read if ``check_offset``.
        access: Opens files.
        memory: Where decisions are kept; None: nowhere.

    Returns:
        (0 or ``DN_OFFSET``, note for people; "" when nothing was checked).

    Raises:
        DataError: B02 or B12 cannot be read: nothing is guessed then, the scene counts as broken.
        InvalidInputError: The location is not allowed.
        TransientError: No token.
        OutputError: The memory fails.
    """
    if not scene.check_offset:
        return scene.boa_offset, ""
    key = offset_key(scene)
    known = _parse(memory.get(key)) if memory is not None else None
    if known is None:
        known = decide(scene, percentiles(scene, access=access))
        log.info("%s", known[1])
        if memory is not None:
            known = _parse(memory.put(key, canonical_json({"offset": known[0], "note": known[1]}))) or known
    return known


def offset_key(scene: Scene) -> str:
    """Name of the decision in a memory: of the scene as its catalogue describes it, and of the rules."""
    about = [scene.collection, scene.id, scene.version, scene.boa_offset, scene.cloud_pct, OFFSET_VERSION]
    return f"offset_{content_hash(about)}"


def percentiles(scene: Scene, *, access: Access) -> dict[str, int]:
    """First percentile of the valid DN of the whole scene, by band; bands with too few valid pixels are left out.

    Raises:
        DataError: A band cannot be read.
        InvalidInputError: The location is not allowed.
        TransientError: No token.
    """
    found = {}
    for band in BANDS:
        asset = scene.href(band)
        if asset is None:
            continue
        index = asset.band_index

        def work(dataset: DatasetReader, index: int = index) -> tuple[NDArray[Any], float | None]:
            if not 1 <= index <= dataset.count:
                raise DataError(f"item {scene.id}: the file has {dataset.count} bands, band {index} is asked for")
            return read_coarsest(dataset, index), dataset.nodata

        values, nodata = access.read(asset, work, sign=scene.sign, item=scene.id)
        valid = values[_inner((values != 0) & (values != (nodata or 0)))]
        if valid.size >= LEAST_PX:
            place = valid.size // 100
            found[band] = int(np.partition(valid, place)[place])  # an element: no interpolation, no rounding
    return found


def decide(scene: Scene, first: dict[str, int]) -> tuple[int, str]:
    """(offset to add, note) from the first percentiles of B02 and B12.

    Args:
        scene: Its id, cloud cover and what its item says (``boa_offset`` 0: the +1000 is inside).
        first: DN by band; a missing band does not speak.
    """
    seen = ", ".join(f"{band} {value}" for band, value in first.items()) or "too few valid pixels"
    inside = _inside(first, cloud_pct=scene.cloud_pct)
    if inside is None:
        what = "still in" if scene.boa_offset == 0 else "removed"
        return scene.boa_offset, f"{scene.id}: offset {what} as the item says, pixels do not tell (p1: {seen})"
    offset = 0 if inside else DN_OFFSET
    agrees = "as the item says" if offset == scene.boa_offset else "AGAINST the item"
    return offset, f"{scene.id}: offset {'still in' if inside else 'removed'} by its pixels, {agrees} (p1: {seen})"


def _inside(first: dict[str, int], *, cloud_pct: float | None) -> bool | None:
    """Whether the offset is in the pixels; None: they do not tell."""
    if not first:
        return None
    if min(first.values()) < BLACK_DN:
        return False
    if min(first.values()) < DARK_DN:
        return None if CLEAN_DN <= max(first.values()) < BRIGHT_DN else False
    if len(first) < len(BANDS):
        return None
    blue, swir = (first[band] for band in BANDS)
    if swir >= DIM_DN and blue - DN_OFFSET < BLACK_RATIO * (swir - DN_OFFSET):
        return False if swir >= BRIGHT_DN else None
    clear_enough = cloud_pct is None or cloud_pct <= CLOUDY_PCT
    return True if clear_enough and min(blue, swir) >= CLEAN_DN and max(blue, swir) < BRIGHT_DN else None


def _inner(have: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``have`` without the pixels beside a missing one: an overview may have mixed the edge of the swath with 0."""
    inner = have.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            moved = np.roll(have, step, axis=axis)
            moved[(slice(None),) * axis + (0 if step > 0 else -1,)] = True  # outside the file nothing is known
            inner &= moved
    return inner


def _parse(text: str | None) -> tuple[int, str] | None:
    """The decision in ``text``; None (decide again) when there is none or it is torn."""
    try:
        data = json.loads(text or "")
        return int(data["offset"]), str(data["note"])
    except (ValueError, KeyError, TypeError):
        return None
