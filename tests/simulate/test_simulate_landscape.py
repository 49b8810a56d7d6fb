"""The landscape: a pure function of place, date and seed that looks like land in its numbers."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.errors import InvalidInputError
from pipeline.simulate.landscape import (
    BUILT,
    CLASSES,
    CROP,
    FOREST,
    WATER,
    Biome,
    reflectance,
    reflectance_of,
    survey,
    truth,
)
from pipeline.simulate.noise import grid_noise, hashed, unit, value_noise
from pipeline.simulate.sample import AREA
from pipeline.simulate.spectra import BANDS, COVERS, code, spectrum
from pipeline.types import Box

APRIL, JULY = datetime(2024, 4, 12, 10, 30, tzinfo=UTC), datetime(2024, 7, 19, 10, 30, tzinfo=UTC)
BIOMES: tuple[Biome, ...] = ("temperate", "city", "desert", "snow", "sea")


def box_at(row: int, col: int, *, height: int = 70, width: int = 90, zone: int = 32) -> Box:
    return Box(zone=zone, res_m=10, row=row, col=col, height=height, width=width)


@pytest.fixture(scope="module")
def area():
    return survey(AREA)


@pytest.mark.parametrize("biome", BIOMES)
def test_two_windows_of_the_same_ground_agree_in_every_bit(biome: Biome) -> None:
    large, small = box_at(-552313, 50021, height=150, width=170), box_at(-552290, 50063, height=61, width=77)
    cut = small.slices_in(large)
    whole, part = survey(large, biome=biome), survey(small, biome=biome)
    for name in ("truth", "cover", "shift", "gain"):
        np.testing.assert_array_equal(getattr(whole, name)[cut], getattr(part, name), err_msg=name)
    seen, seen_part = reflectance(large, JULY, biome=biome), reflectance(small, JULY, biome=biome)
    for band in BANDS:
        np.testing.assert_array_equal(seen[band][cut], seen_part[band], err_msg=band)


def test_windows_agree_across_the_equator() -> None:
    large, small = box_at(-40, 50000, height=80), box_at(-7, 50011, height=20, width=30)
    np.testing.assert_array_equal(truth(large)[small.slices_in(large)], truth(small))


def test_one_pixel_can_be_asked_for() -> None:
    area = truth(box_at(-552300, 50100))
    assert truth(box_at(-552300 + 33, 50100 + 44, height=1, width=1))[0, 0] == area[33, 44]


@pytest.mark.parametrize("other", [{"seed": 8}, {"zone": 31}])
def test_another_seed_or_zone_is_other_ground(other: dict[str, int]) -> None:
    box = box_at(-552300, 50100, height=200, width=200, zone=other.get("zone", 32))
    here = truth(box_at(-552300, 50100, height=200, width=200))
    assert (truth(box, other.get("seed", 7)) != here).mean() > 0.2


def test_the_sample_ground_is_pinned_so_that_a_change_raises_the_sample_version() -> None:
    digest = hashlib.sha256(truth(box_at(-552300, 50000, height=256, width=256)).tobytes()).hexdigest()
    assert digest[:16] == "4249761f462a8197"


def test_hashed_numbers_are_the_same_on_every_platform() -> None:
    bits = hashed(np.array([-1, 0, 2**40]), np.array([5, -7, 11]), salt=42)
    assert [int(b) for b in bits] == [5898296220386554397, 17053347485461511935, 9116263809934241191]


def test_hashed_numbers_fill_the_unit_interval_evenly() -> None:
    bits = hashed(np.arange(300)[:, None], np.arange(300)[None, :], salt=1)
    for lane in range(4):
        counts, _ = np.histogram(unit(bits, lane=lane), bins=10, range=(0, 1))
        assert np.abs(counts / counts.sum() - 0.1).max() < 0.005


def test_noise_on_a_grid_equals_noise_at_positions() -> None:
    y, x = np.meshgrid(np.arange(-50.5, 60.0), np.arange(-20.5, 80.0), indexing="ij")
    kwargs = {"wave_px": 23.0, "salt": 3}
    np.testing.assert_allclose(grid_noise(y, x, **kwargs), value_noise(y, x, **kwargs), atol=1e-12)


def test_every_class_covers_a_useful_share_of_the_sample_area(area) -> None:
    shares = {land.name: float((area.truth == land.code).mean()) for land in CLASSES}
    assert all(0.02 < share < 0.6 for share in shares.values()), shares


def test_crops_are_several_types_and_forest_two(area) -> None:
    def covers(land: int) -> set[str]:
        codes, counts = np.unique(area.cover[area.truth == land], return_counts=True)
        return {COVERS[c] for c, n in zip(codes, counts, strict=True) if n > 500}

    assert covers(CROP) >= {"cereal", "rape", "maize", "beet", "grass"}
    assert covers(FOREST) == {"broadleaf", "conifer"}


def ndvi(seen: dict[str, np.ndarray], where: np.ndarray) -> float:
    return float(np.median((seen["B08"][where] - seen["B04"][where]) / (seen["B08"][where] + seen["B04"][where])))


def test_crop_types_have_opposite_calendars(area) -> None:
    april, july = reflectance_of(area, APRIL), reflectance_of(area, JULY)
    cereal, maize = (area.cover == code(name) for name in ("cereal", "maize"))
    assert ndvi(july, maize) - ndvi(april, maize) > 0.4
    assert ndvi(april, cereal) - ndvi(july, cereal) > 0.2


def test_classes_reflect_as_their_kind_does(area) -> None:
    seen = reflectance_of(area, JULY)
    assert np.median(seen["B08"][area.truth == WATER]) < 0.04
    assert ndvi(seen, area.truth == FOREST) > 0.75
    assert np.median(seen["B12"][area.truth == BUILT]) > 0.08
    for band in BANDS:
        assert seen[band].dtype == np.float32
        assert seen[band].min() >= 1e-4
        assert seen[band].max() <= 1.0


def test_parcels_differ_more_than_pixels_of_one_parcel(area) -> None:
    cereal = area.cover == code("cereal")
    brightness = area.gain * np.where(cereal, 1.0, np.nan)
    steps = np.abs(np.diff(brightness, axis=1))
    assert np.nanstd(brightness) > np.nanmedian(steps)


def test_a_calendar_is_a_circle() -> None:
    for cover in COVERS:
        np.testing.assert_allclose(spectrum(cover, 366.0), spectrum(cover, 1.0), atol=1e-12)
        assert np.abs(np.subtract(spectrum(cover, 365.999), spectrum(cover, 1.0))).max() < 0.01


def test_a_box_of_other_pixels_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="10 m"):
        truth(Box(zone=32, res_m=20, row=0, col=0, height=4, width=4))


def test_an_unknown_biome_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="temperate"):
        survey(box_at(0, 0), biome="moon")  # type: ignore[arg-type]
