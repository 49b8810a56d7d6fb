"""One calibration of every quantiser."""

from __future__ import annotations

import numpy as np

from pipeline.types import METHODS, Calibration

__all__ = ["METHODS", "PCA", "calibration_of"]

PCA = "pca"


def calibration_of(method: str, dims: int, *, bands: int | None = None, seed: int = 0) -> Calibration:
    """A calibration for standard normal vectors of ``dims`` numbers; scores of half as many for ``pca``."""
    rest = {"provisional": False, "source": "test", "model_sha256": "ab" * 32, "patch_px": 4, "method": method}
    if method == "linear":
        return Calibration(scale=tuple(round(0.01 + 0.001 * (k % 7), 4) for k in range(dims)), **rest)
    if method != PCA:
        return Calibration(scale=(), dims=dims, **rest)
    bands = bands or max(1, dims // 2)
    rng = np.random.default_rng(seed)
    rows = np.linalg.qr(rng.standard_normal((dims, dims)))[0][:bands]
    mean = tuple(rng.normal(0, 0.1, dims).tolist())
    return Calibration(scale=(0.03,) * bands, mean=mean, components=tuple(map(tuple, rows.tolist())), **rest)
