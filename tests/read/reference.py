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
    classes = made.pixels["SCL"][part.slices_in(made.boxes[20])]
    outside = 1024 * 1024 - classes.size
    return (outside + sum(w * int((classes == c).sum()) for c, w in WEIGHTS.items())) / (1024 * 1024)


def layer(box: Box, made_by_period, cells, bands):
    """(time, band, row, col) of one native resolution.

    Args:
        box: The layer's box.
        made_by_period: Per period the MadeScenes in the candidates' order.
        cells: All cells around.
        bands: Of the layer.
    """
    out = np.zeros((len(made_by_period), len(bands), *box.shape), dtype=np.int64)
    y = (np.arange(box.height) + box.row + 0.5) * box.res_m
    x = (np.arange(box.width) + box.col + 0.5) * box.res_m
    for cell in cells:
        rows, cols = np.floor(y / 20480) == cell.row, np.floor(x / 20480) == cell.col
        mine = rows[:, None] & cols[None, :]
        for t, made_scenes in enumerate(made_by_period):
            for made in sorted(made_scenes, key=lambda m: score(m, cell), reverse=True):  # best drawn last
                raw = np.stack(
                    [
                        cut(made.pixels[b], made.boxes[box.res_m], box)
                        if b in made.pixels
                        else np.zeros(box.shape, int)
                        for b in bands
                    ]
                )
                shifted = np.where(raw > 0, np.minimum(raw + made.scene.boa_offset, 65535), 0)
                take = mine & (raw > 0).any(axis=0)
                out[t][:, take] = shifted[:, take]
    return out


def bands_of(res_m):
    return next(layer.bands for layer in SENTINEL2_L2A.layers if layer.res_m == res_m)
