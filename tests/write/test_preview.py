"""Pictures: repeatable colours, transparent nodata, shrinking that fits tiles together, readable frames."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from pipeline import codes as quantisers
from pipeline.errors import InvalidInputError, OutputError
from pipeline.write.contact_sheet import contact_sheet
from pipeline.write.preview import (
    Basis,
    brightened,
    factor_for,
    opaque,
    pca_basis,
    png_bytes,
    ramp,
    render,
    render_classes,
    render_coded,
    save_png,
    shrink_classes,
    shrink_rgba,
)
from tests.quantisers import METHODS, calibration_of

DIMS = 16
SCALE = np.linspace(0.01, 0.03, DIMS, dtype=np.float32)
COLOURS = ("#3b7dd8", "#1f7a3d", "#e3b23c")


@pytest.fixture(scope="module")
def field():
    """int8 codes (dim, row, col) of three smooth sources and a validity mask."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:70, :90]
    sources = np.stack([np.sin(rows / 9.0), np.cos(cols / 13.0), np.sin((rows + cols) / 7.0)]) * [[[3]], [[2]], [[1]]]
    values = np.tensordot(rng.normal(size=(DIMS, 3)), sources, 1) + rng.normal(scale=0.05, size=(DIMS, 70, 90))
    codes = np.clip(np.rint(values / SCALE[:, None, None] / 10), -127, 127).astype(np.int8)
    valid = np.ones((70, 90), dtype=bool)
    valid[:20, :30] = False
    codes[:, ~valid] = -128
    return codes, valid


def _sample(field) -> np.ndarray:
    codes, valid = field
    return (codes[:, valid].T * SCALE).astype(np.float32)


def test_basis_spans_the_components_of_scikit_learn(field):
    sample = _sample(field)
    got, want = pca_basis(sample), PCA(n_components=3).fit(sample.astype(np.float64))
    np.testing.assert_allclose(np.abs(np.sum(got.components * want.components_, axis=1)), 1, atol=1e-9)
    np.testing.assert_allclose(got.explained, want.explained_variance_ratio_, rtol=1e-9)


def test_the_largest_loading_of_every_component_is_positive(field):
    sample = _sample(field)
    for basis in (pca_basis(sample), pca_basis(-sample)):
        components = np.array(basis.components)
        assert (components[np.arange(3), np.abs(components).argmax(axis=1)] > 0).all()


def test_the_same_sample_gives_the_same_basis_in_any_order(field):
    sample = _sample(field)
    first, second = pca_basis(sample), pca_basis(sample.copy())
    assert first == second
    shuffled = pca_basis(sample[np.random.default_rng(1).permutation(len(sample))])
    np.testing.assert_allclose(shuffled.components, first.components, atol=1e-9)


def test_two_percent_of_the_sample_lie_beyond_each_end(field):
    sample = _sample(field)
    basis = pca_basis(sample)
    scores = (sample - np.array(basis.mean)) @ np.array(basis.components).T
    np.testing.assert_allclose((scores < basis.low).mean(axis=0), 0.02, atol=0.003)
    np.testing.assert_allclose((scores > basis.high).mean(axis=0), 0.02, atol=0.003)


def test_a_basis_survives_json(field):
    basis = pca_basis(_sample(field))
    assert Basis.from_json(basis.to_json()) == basis


@pytest.mark.parametrize("key", ["mean", "components", "low", "explained"])
def test_a_damaged_basis_is_refused(field, key):
    data = json.loads(pca_basis(_sample(field)).to_json())
    for value in (None, data[key][:-1], "abc"):
        with pytest.raises(InvalidInputError, match=r"Basis|basis"):
            Basis.from_json(json.dumps(data | {key: value}))
    with pytest.raises(InvalidInputError):
        Basis.from_json(json.dumps(data | {"low": [float("nan")] * 3}))


def test_samples_without_spread_are_mid_grey():
    basis = pca_basis(np.full((50, DIMS), 0.25, dtype=np.float32))
    codes = np.rint(0.25 / SCALE).astype(np.int8)[:, None, None]
    grey = render(codes, SCALE, np.ones((1, 1), dtype=bool), basis)[0, 0]
    assert np.abs(grey[:3].astype(int) - 128).max() < 10


@pytest.mark.parametrize("sample", [np.zeros((3, 8)), np.zeros((8, 0)), np.zeros(8), np.full((8, 8), np.nan)])
def test_samples_that_make_no_basis_are_refused(sample):
    with pytest.raises(InvalidInputError):
        pca_basis(sample.astype(np.float32))


def test_colours_are_the_stretched_scores_of_dequantised_vectors(field):
    codes, valid = field
    basis = pca_basis(_sample(field))
    low, high = np.array(basis.low), np.array(basis.high)
    vectors = (codes * SCALE[:, None, None].astype(np.float64)).reshape(DIMS, -1).T - np.array(basis.mean)
    want = np.clip((vectors @ np.array(basis.components).T - low) / (high - low), 0, 1) * 255
    got = render(codes, SCALE, valid, basis)
    assert np.abs(got[..., :3].reshape(-1, 3) - want)[valid.ravel()].max() <= 0.51


def test_nodata_is_transparent_and_everything_else_opaque(field):
    codes, valid = field
    rgba = render(codes, SCALE, valid, pca_basis(_sample(field)))
    np.testing.assert_array_equal(rgba[..., 3], np.where(valid, 255, 0))
    assert not rgba[~valid].any()


def test_a_tile_rendered_alone_has_the_colours_of_the_whole(field):
    codes, valid = field
    basis = pca_basis(_sample(field))
    whole = render(codes, SCALE, valid, basis).astype(int)
    part = render(codes[:, 15:40, 10:60], SCALE, valid[15:40, 10:60], basis)
    assert np.abs(whole[15:40, 10:60] - part).max() <= 1


def test_codes_of_another_width_are_refused(field):
    codes, valid = field
    with pytest.raises(InvalidInputError, match="16 dimensions"):
        render(codes[1:], SCALE[1:], valid, pca_basis(_sample(field)))


def test_classes_have_their_colours_and_nodata_none():
    rgba = render_classes(np.array([[0, 1], [2, 255]], dtype=np.uint8), COLOURS)
    assert rgba.tolist() == [[[59, 125, 216, 255], [31, 122, 61, 255]], [[227, 178, 60, 255], [0, 0, 0, 0]]]


def test_a_class_without_a_colour_is_refused():
    with pytest.raises(InvalidInputError, match="class 3"):
        render_classes(np.array([[3]], dtype=np.uint8), COLOURS)
    with pytest.raises(InvalidInputError, match="red"):
        render_classes(np.array([[0]], dtype=np.uint8), ("red",))


@pytest.mark.parametrize(("side", "factor"), [(1, 1), (2000, 1), (2001, 2), (8000, 4), (8001, 8)])
def test_the_factor_is_the_smallest_power_of_two_that_fits(side, factor):
    assert factor_for(side, 10) == factor_for(10, side) == factor


def test_shrinking_averages_what_is_opaque():
    rgba = np.zeros((2, 4, 4), dtype=np.uint8)
    rgba[0, 0], rgba[1, 1], rgba[0, 1] = (10, 20, 30, 255), (30, 40, 50, 255), (99, 99, 99, 0)
    assert shrink_rgba(rgba, factor=2).tolist() == [[[20, 30, 40, 255], [0, 0, 0, 0]]]


def test_tiles_shrunk_one_by_one_fit_together(field):
    codes, valid = field
    rgba = render(codes, SCALE, valid, pca_basis(_sample(field)))[:64, :64]
    parts = [[shrink_rgba(rgba[r : r + 32, c : c + 32], factor=8) for c in (0, 32)] for r in (0, 32)]
    joined = np.concatenate([np.concatenate(row, axis=1) for row in parts], axis=0)
    np.testing.assert_array_equal(joined, shrink_rgba(rgba, factor=8))


def test_shrunk_classes_are_the_commonest_of_their_square():
    rng = np.random.default_rng(4)
    classes = rng.choice(np.array([0, 1, 7, 255], dtype=np.uint8), size=(21, 34), p=[0.3, 0.2, 0.2, 0.3])
    got = shrink_classes(classes, factor=4)
    assert got.shape == (6, 9)
    for row in range(6):
        for col in range(9):
            square = classes[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].ravel()
            known = square[square != 255]
            assert got[row, col] == (np.bincount(known).argmax() if len(known) else 255)


def test_png_bytes_are_the_picture_exactly(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, size=(9, 7, 4), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(rgba))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), rgba)


def test_a_plain_png_keeps_transparent_nodata(field, tmp_path):
    codes, valid = field
    rgba = render(codes, SCALE, valid, pca_basis(_sample(field)))
    wide = np.tile(rgba, (1, 8, 1))
    save_png(str(tmp_path / "a.png"), wide)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), wide)


def test_label_and_legend_are_drawn_below_an_unchanged_picture(tmp_path):
    rgba = np.full((50, 700, 4), (1, 2, 3, 255), dtype=np.uint8)
    legend = tuple(zip(("water", "forest", "crops"), COLOURS, strict=True))
    save_png(str(tmp_path / "a.png"), rgba, legend=legend, label="UNTRAINED random weights")
    with Image.open(tmp_path / "a.png") as image:
        got = np.asarray(image)
    np.testing.assert_array_equal(got[:50], rgba)
    below = {tuple(p) for p in got[50:].reshape(-1, 4).tolist()}
    assert {(59, 125, 216, 255), (31, 122, 61, 255), (227, 178, 60, 255), (179, 38, 30, 255)} <= below
    assert (got[50:, :, 3] == 255).all()


def test_a_title_is_drawn_above(tmp_path):
    rgba = np.full((50, 700, 4), (1, 2, 3, 255), dtype=np.uint8)
    save_png(str(tmp_path / "a.png"), rgba, title_lines=("A <title>", "and a second line"))
    with Image.open(tmp_path / "a.png") as image:
        got = np.asarray(image)
    np.testing.assert_array_equal(got[-50:], rgba)
    assert got.shape[0] > 100
    assert (got[:-50, :, 0] < 100).any()


def test_small_pictures_are_enlarged_and_big_ones_shrunk(tmp_path):
    for side, width in [(64, 640), (5000, 1250)]:
        save_png(str(tmp_path / "a.png"), np.full((side, side, 4), 255, dtype=np.uint8))
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (width, width)


def test_a_long_label_and_name_stay_inside_the_picture(tmp_path):
    rgba = np.full((64, 64, 4), 255, dtype=np.uint8)
    save_png(str(tmp_path / "a.png"), rgba, label="word " * 80, legend=(("x" * 400, "#123456"), ("b", "#654321")))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 640
        strip = np.asarray(image)[640:, -8:, :3].reshape(-1, 3)
    assert {tuple(p) for p in strip.tolist()} <= {(179, 38, 30), (255, 255, 255)}


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_png(str(tmp_path / "file" / "a.png"), np.zeros((4, 4, 4), dtype=np.uint8))
    with pytest.raises(InvalidInputError, match="uint8"):
        save_png(str(tmp_path / "a.png"), np.zeros((4, 800, 3), dtype=np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_vectors_of_two_dimensions_have_colours_too():
    basis = pca_basis(np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    assert len(basis.mean) == 2
    codes = np.array([[[-90, 90]], [[5, -5]]], np.int8)
    picture = render(codes, np.full(2, 0.02, np.float32), np.ones((1, 2), bool), basis)
    assert (picture[0, 0, :2] != picture[0, 1, :2]).all()
    assert picture[0, :, 2].tolist() == [128, 128]


@pytest.mark.parametrize("method", METHODS)
def test_every_quantiser_gives_the_colours_of_its_decoded_vectors(method):
    calibration = calibration_of(method, DIMS)
    vectors = np.random.default_rng(3).normal(scale=0.2, size=(DIMS, 40, 30)).astype(np.float32)
    vectors[:, 3, 5] = np.nan
    coded = quantisers.encode(vectors, calibration)
    decoded = quantisers.decode(coded, calibration)
    basis = pca_basis(decoded[:, coded.valid].T)
    found = render_coded(coded, calibration, basis)
    plain = render(np.nan_to_num(decoded), np.ones(len(decoded), np.float32), coded.valid, basis)
    assert np.abs(found.astype(int) - plain).max() <= 1
    assert found[3, 5].tolist() == [0, 0, 0, 0]


def test_true_colours_are_brightened_alike_and_stay_transparent():
    picture = brightened(opaque(np.array([[[0, 1, 26, 255]]] * 3, np.uint8)))
    assert picture[0, :, 3].tolist() == [0, 255, 255, 255]
    assert picture[0, :, 0].tolist() == [0, 0, round(255 * (25 / 254) ** (1 / 1.6)), 255]


def test_a_ramp_gets_lighter_with_every_step():
    light = [sum(w * int(c[k : k + 2], 16) for w, k in ((0.21, 1), (0.72, 3), (0.07, 5))) for c in ramp(12)]
    assert len(light) == 13
    assert np.all(np.diff(light) > 3)
    assert ramp(0) == (ramp(4)[-1],)


@pytest.mark.parametrize("count", [1, 3, 24])
def test_a_sheet_shows_every_period_once_and_stays_readable(count):
    pictures = [(f"2024-{n:02d}", np.full((50, 40, 4), (n + 1, 90, 7, 255), np.uint8)) for n in range(count)]
    sheet = contact_sheet(pictures)
    shown = np.where((sheet[..., 1] == 90) & (sheet[..., 2] == 7), sheet[..., 0], 0)
    numbers, first, size = np.unique(shown, return_index=True, return_counts=True)
    assert numbers[numbers > 0].tolist() == list(range(1, count + 1))
    assert size[numbers > 0].min() >= 50 * 40
    assert np.all(np.diff(first[numbers > 0]) > 0)
    assert max(sheet.shape) <= 2000


def test_a_period_without_observations_is_grey_on_the_sheet():
    seen, empty = np.full((60, 60, 4), 255, np.uint8), np.zeros((60, 60, 4), np.uint8)
    sheet = contact_sheet([("a", seen), ("b", empty)])
    assert (sheet == (232, 236, 241, 255)).all(axis=-1).sum() >= 3600


def test_a_sheet_of_different_pictures_is_refused():
    with pytest.raises(InvalidInputError, match="one shape"):
        contact_sheet([("a", np.zeros((4, 4, 4), np.uint8)), ("b", np.zeros((4, 5, 4), np.uint8))])
