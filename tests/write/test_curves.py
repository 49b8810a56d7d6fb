"""Charts: curves stand where their numbers say, and nothing is drawn of nothing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InvalidInputError
from pipeline.write.curves import Chart, Curve, save_charts

RED = "#d02020"


def drawn(path, *, logarithmic=False, points=((0.0, 0.2), (50.0, 0.2), (100.0, 0.9)), dashed=False):
    """(row, col) bool: where the curve is."""
    curve = Curve(name="curve", points=points, colour=RED, dashed=dashed)
    save_charts(path, [Chart(title="t", x_label="x", y_label="y", curves=(curve,), logarithmic=logarithmic)], title="T")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    found = (pixels[..., 0] > 180) & (pixels[..., 1] < 90)
    found[:90] = False  # the legend
    return found


def test_a_curve_rises_where_its_numbers_do(tmp_path):
    rows, cols = np.nonzero(drawn(tmp_path / "a.png"))
    level = rows[cols < cols.min() + 300]
    assert np.ptp(level) < 10
    assert rows[cols > cols.max() - 8].mean() < level.mean() - 100


def test_powers_of_ten_are_equal_distances(tmp_path):
    found = drawn(tmp_path / "a.png", logarithmic=True, points=((0.0, 0.001), (50.0, 0.01), (100.0, 0.1)))
    rows, cols = np.nonzero(found)
    middle = rows[abs(cols - (cols.min() + cols.max()) / 2) < 3].mean()
    assert middle == pytest.approx((rows.min() + rows.max()) / 2, abs=3)


def test_a_dashed_curve_has_gaps(tmp_path):
    whole, broken = (drawn(tmp_path / "a.png", dashed=dashed).any(axis=0) for dashed in (False, True))
    assert 0.3 < broken.sum() / whole.sum() < 0.8


def test_values_too_small_for_an_axis_stand_at_its_end(tmp_path):
    assert drawn(tmp_path / "a.png", logarithmic=True, points=((0.0, 0.5), (10.0, 0.0))).any()


def test_the_same_numbers_give_the_same_file(tmp_path):
    drawn(tmp_path / "a.png")
    drawn(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("curves", [(), (Curve(name="none", points=(), colour=RED),)])
def test_nothing_is_drawn_of_nothing(tmp_path, curves):
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        save_charts(tmp_path / "a.png", [Chart(title="t", x_label="x", y_label="y", curves=curves)], title="T")
