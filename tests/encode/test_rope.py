"""Time coordinates by the reference's rule; the two ways to rotate agree; only differences of positions matter."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn import encodings

from pipeline.encode import rope


def test_time_follows_the_references_day_count():
    dates = [date(2019, 12, 30), date(2020, 2, 29), date(2020, 3, 1), date(2021, 1, 1)]
    ours = rope.time_coordinates(dates, 1.0)
    stamps = torch.tensor([[d.day, d.month - 1, d.year] for d in dates])[None]
    theirs = encodings.timestamps_to_days(stamps)[0].double().numpy()
    np.testing.assert_allclose(ours, theirs - theirs[0], atol=2e-3)


def test_halves_with_permuted_rows_rotate_like_interleaved_pairs():
    generator = torch.Generator().manual_seed(0)
    heads, dim, tokens = 3, 16, 12
    x = torch.randn(2, tokens, 2, heads, dim, generator=generator)
    coords = rope.coordinates([date(2022, 1, 1), date(2022, 5, 3)], (2, 3), step=4.0, scale=1 / 30)
    cos, sin = rope.tables(torch.randn(3, heads, dim // 2, generator=generator), coords)
    pairs = rope.rotate_pairs(x, torch.complex(cos, sin).flatten(1).unsqueeze(1))
    order = rope.half_split_order(heads, dim)
    permuted = x.flatten(-2)[..., order].unflatten(-1, (heads, dim))
    halves = rope.rotate_halves(permuted, cos.unsqueeze(1), sin.unsqueeze(1))
    torch.testing.assert_close(halves.flatten(-2), pairs.flatten(-2)[..., order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_products_of_rotated_vectors_depend_on_differences_alone(axis):
    generator = torch.Generator().manual_seed(1)
    frequencies = torch.randn(3, 2, 4, generator=generator)
    x = torch.randn(1, 6, 2, 2, 8, generator=generator)
    coords = rope.coordinates([date(2022, 1, 1)], (2, 3), step=8.0, scale=1.0)
    moved = coords.copy()
    moved[:, axis] += 37.0
    scores = []
    for place in (coords, moved):
        cos, sin = rope.tables(frequencies, place)
        q, k = rope.rotate_pairs(x, torch.complex(cos, sin).flatten(1).unsqueeze(1)).unbind(2)
        scores.append(torch.einsum("bnhd,bmhd->bhnm", q, k))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=0)
