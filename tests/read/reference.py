"""What a Stack must hold, pixel by pixel and without any of the readers: slow, obvious numpy."""

from __future__ import annotations

import numpy as np

from pipeline.read.sensors import SENTINEL2_L2A
from pipeline.types import Box

WEIGHTS = {0: 1, 3: 1, 8: 1, 9: 5, 10: 1, 11: 1}


def cut(values, own: Box, box: Box):
    """``values`` over ``own`` as seen through ``box``; 0 outside."""
    out = np.zeros(box.shape, dtype=np.int64)
    part = own.intersect(box)
    if part is not None:
        out[part.slices_in(box)] = values[part.slices_in(own)]
    return out


def score(made, cell) -> float:
    box = Box(zone=cell.zone, res_m=20, row=cell.row * 1024, col=cell.col * 1024, height=1024, width=1024)
    part = made.boxes[20].intersect(box)
    if part is None:
        return 1.0
    classes = made.pixels["SCL"][part.slices_in(made.boxes[20])]  # constant over 80 m: the share is the same there
    outside = 1024 * 1024 - classes.size
    return (outside + sum(w * int((classes == c).sum()) for c, w in WEIGHTS.items())) / (1024 * 1024)


def raw_of(made, bands, box: Box):
    """(band, row, col) DN of a scene in the Stack's encoding, over a box."""
    raw = np.stack(
        [
            cut(made.pixels[b], made.boxes[box.res_m], box) if b in made.pixels else np.zeros(box.shape, int)
            for b in bands
        ]
    )
    return np.where(raw > 0, np.minimum(raw + made.scene.boa_offset, 65535), 0)


def cells_over(box: Box, cells):
    """(cell, (row, col) bool: whose centres lie in it)."""
    y = (np.arange(box.height) + box.row + 0.5) * box.res_m
    x = (np.arange(box.width) + box.col + 0.5) * box.res_m
    for cell in cells:
        yield cell, (np.floor(y / 20480) == cell.row)[:, None] & (np.floor(x / 20480) == cell.col)[None, :]


def layer(box: Box, made_by_period, cells, bands):
    """(time, band, row, col) of one native resolution.

    Args:
        box: The layer's box.
        made_by_period: Per period the MadeScenes in the candidates' order.
        cells: All cells around.
        bands: Of the layer.
    """
    out = np.zeros((len(made_by_period), len(bands), *box.shape), dtype=np.int64)
    for cell, mine in cells_over(box, cells):
        for t, made_scenes in enumerate(made_by_period):
            for made in sorted(made_scenes, key=lambda m: score(m, cell))[::-1]:  # best drawn last, ties too
                values = raw_of(made, bands, box)
                take = mine & (values > 0).any(axis=0)
                out[t][:, take] = values[:, take]
    return out


def clear(made, box: Box, grow: int):
    """(row, col) bool over a box of any resolution: asked of the 20 m pixel under each centre."""
    under = box.cover(20).pad(grow + 3)
    classes = cut(made.pixels["SCL"], made.boxes[20], under)
    bad = np.isin(classes, (3, 8, 9, 10))
    near = np.zeros_like(bad)
    for i, j in zip(*np.nonzero(bad), strict=True):
        near[max(0, i - grow) : i + grow + 1, max(0, j - grow) : j + grow + 1] = True
    good = ~near & ~np.isin(classes, (0, 1))
    rows = ((np.arange(box.height) + box.row + 0.5) * box.res_m // 20).astype(int) - under.row
    cols = ((np.arange(box.width) + box.col + 0.5) * box.res_m // 20).astype(int) - under.col
    return good[np.ix_(rows, cols)]


def first_clear(box: Box, made_by_period, cells, bands, grow):
    """As ``layer``, of the first clear scene in rank order, else the first with data."""
    out = np.zeros((len(made_by_period), len(bands), *box.shape), dtype=np.int64)
    for cell, mine in cells_over(box, cells):
        for t, made_scenes in enumerate(made_by_period):
            ranked = sorted(made_scenes, key=lambda m: score(m, cell))
            for only_clear in (False, True):  # clear ones are drawn over the others
                for made in reversed(ranked):
                    values = raw_of(made, bands, box)
                    take = mine & (values > 0).any(axis=0) & (clear(made, box, grow) if only_clear else True)
                    out[t][:, take] = values[:, take]
    return out


def median(box: Box, made_by_period, bands, grow):
    """(time, band, row, col) medians, pixel by pixel with Python's own sort."""
    out = np.zeros((len(made_by_period), len(bands), *box.shape), dtype=np.int64)
    for t, made_scenes in enumerate(made_by_period):
        values = np.stack([raw_of(m, bands, box) for m in made_scenes])
        masks = np.stack([clear(m, box, grow) for m in made_scenes])
        for band, row, col in np.ndindex(out.shape[1:]):
            here, ok = values[:, band, row, col], masks[:, row, col]
            found = sorted(here[ok & (here > 0)]) or sorted(here[here > 0])
            if found:
                low, high = found[(len(found) - 1) // 2], found[len(found) // 2]
                out[t, band, row, col] = (low + high + 1) // 2
    return out


def bands_of(res_m):
    return next(layer.bands for layer in SENTINEL2_L2A.layers if layer.res_m == res_m)
