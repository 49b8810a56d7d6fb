"""Native windows: bit-equal to rasterio where the file is on the lattice, GDAL's warper elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import rasterio
from affine import Affine
from files import scene_of, write_cog
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from pipeline.errors import DataError
from pipeline.read.access import Access
from pipeline.read.windows import pixels_centred_in, read_native
from pipeline.types import Asset, Box

LOCAL = Access(allow_local=True)


def noise(shape, *, seed=0, high=12000, dtype=np.uint16):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def read(path, box, **options):
    asset = Asset(band="B02", href=str(path))
    return read_native(scene_of("S", asset), asset, box=box, access=LOCAL, **options)


def smooth(shape):
    rows, cols = np.indices(shape)
    return (3000 + 1500 * np.sin(rows / 17) + 1200 * np.cos(cols / 23)).astype(np.uint16)


@pytest.mark.parametrize("res_m", [10, 20, 60])
@pytest.mark.parametrize("offset", [(10, 17), (-30, -12), (250, 240), (-400, 0), (-20, -20)])
def test_a_window_equals_rasterio_inside_across_and_outside_the_file(tmp_path, res_m, offset):
    file_box = Box(zone=32, res_m=res_m, row=-550_000 * 10 // res_m, col=40_000 * 10 // res_m, height=300, width=280)
    path = write_cog(tmp_path / "b.tif", noise(file_box.shape), box=file_box)
    side = 400 if offset == (-20, -20) else 90
    box = Box(zone=32, res_m=res_m, row=file_box.row + offset[0], col=file_box.col + offset[1], height=side, width=side)
    with rasterio.open(path) as dataset:
        window = Window(offset[1], offset[0], side, side)
        inside = window.col_off < 280 and window.row_off + side > 0
        want = dataset.read(1, window=window, boundless=True, fill_value=0) if inside else np.zeros((side, side))
    np.testing.assert_array_equal(read(path, box), want)


@pytest.mark.parametrize("res_m", [10, 20, 60])
def test_a_window_equals_a_warped_vrt_on_the_same_grid(tmp_path, res_m):
    file_box = Box(zone=32, res_m=res_m, row=-90_000, col=8000, height=200, width=200)
    path = write_cog(tmp_path / "b.tif", noise(file_box.shape), box=file_box)
    box = Box(zone=32, res_m=res_m, row=file_box.row - 20, col=file_box.col + 31, height=130, width=220)
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset, crs="EPSG:32632", transform=box.transform, width=220, height=130, resampling=Resampling.bilinear
        ) as vrt,
    ):
        want = vrt.read(1)
    np.testing.assert_array_equal(read(path, box), want)


def test_a_southern_file_is_read_without_warping_in_the_shifted_plane(tmp_path):
    file_box = Box(zone=33, res_m=60, row=58_333, col=10_000, height=100, width=100)
    values = noise(file_box.shape)
    path = write_cog(tmp_path / "b.tif", values, box=file_box, epsg=32733)
    with rasterio.open(path) as dataset:
        assert dataset.transform.f == 10_000_000 - 58_333 * 60
    box = Box(zone=33, res_m=60, row=file_box.row + 40, col=file_box.col + 30, height=50, width=50)
    np.testing.assert_array_equal(read(path, box), values[40:90, 30:80])


def test_real_southern_granules_lie_on_the_60_m_lattice_of_the_shifted_plane():
    # Upper left northing of granule 07HFE, S2A_MSIL2A_20190212T192651: 6500020; not a multiple of 60 by itself.
    assert (6_500_020 - 10_000_000) % 60 == 0
    assert 6_500_020 % 60 != 0


def neighbour_file(tmp_path, values, *, nodata=0):
    """A file of zone 31 whose ground lies near the border to zone 32."""
    file_box = Box(zone=31, res_m=10, row=-549_200, col=74_000, height=values.shape[0], width=values.shape[1])
    return write_cog(tmp_path / "z31.tif", values, box=file_box, nodata=nodata), file_box


def box_in_zone_32(*, row=0, col=0, height=400, width=380):
    x, y = rasterio.warp.transform("EPSG:32631", "EPSG:32632", [743_000], [5_489_000])
    return Box(zone=32, res_m=10, row=int(-y[0] // 10) + row, col=int(x[0] // 10) + col, height=height, width=width)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_file_of_another_zone_equals_an_exact_warped_vrt(tmp_path, nearest):
    path, _ = neighbour_file(tmp_path, smooth((700, 700)))
    box = box_in_zone_32()
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs="EPSG:32632",
            transform=box.transform,
            width=box.width,
            height=box.height,
            nodata=0,
            src_nodata=0,
            resampling=Resampling.nearest if nearest else Resampling.bilinear,
            tolerance=1e-9,
            XSCALE=1,
            YSCALE=1,
        ) as vrt,
    ):
        want = vrt.read(1).astype(int)
    got = read(path, box, nearest=nearest).astype(int)
    assert (want > 0).mean() > 0.5
    # A thousandth of a pixel of a slope of at most 140 DN per pixel flips a rounding here and there.
    assert (want == got).mean() > (0.998 if nearest else 0.95)
    assert nearest or np.abs(want - got).max() <= 1


def test_a_warped_pixel_does_not_depend_on_the_box(tmp_path):
    path, _ = neighbour_file(tmp_path, noise((700, 700), seed=3) + np.uint16(1))
    one, two = read(path, box_in_zone_32()), read(path, box_in_zone_32(row=33, col=71, height=300, width=290))
    np.testing.assert_array_equal(one[33:333, 71:361], two)
    assert one.any()


def test_plain_warping_of_two_boxes_would_disagree(tmp_path):
    # The reason for warping whole lattice chunks; if GDAL changes, this tells.
    path, _ = neighbour_file(tmp_path, noise((700, 700), seed=3) + np.uint16(1))
    got = []
    for box in (box_in_zone_32(), box_in_zone_32(row=33, col=71, height=300, width=290)):
        with (
            rasterio.open(path) as dataset,
            WarpedVRT(
                dataset,
                crs="EPSG:32632",
                transform=box.transform,
                width=box.width,
                height=box.height,
                nodata=0,
                resampling=Resampling.bilinear,
            ) as vrt,
        ):
            got.append(vrt.read(1))
    assert (got[0][33:333, 71:361] != got[1]).mean() > 0.1


def test_a_file_off_the_lattice_is_warped_onto_it(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=200, width=200)
    transform = Affine.translation(5, 0) * file_box.transform
    values = np.tile(np.arange(200, dtype=np.uint16) * 100 + 100, (200, 1))
    path = write_cog(tmp_path / "b.tif", values, box=file_box, transform=transform)
    box = Box(zone=32, res_m=10, row=-549_950, col=40_050, height=20, width=20)
    # Half a pixel to the east: the mean of two neighbours.
    np.testing.assert_array_equal(read(path, box), (values[50:70, 49:69] + values[50:70, 50:70]) // 2)


def test_a_rotated_file_is_warped(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=300, width=300)
    transform = file_box.transform * Affine.rotation(10)
    path = write_cog(tmp_path / "b.tif", np.full((300, 300), 7, np.uint16), box=file_box, transform=transform)
    got = read(path, Box(zone=32, res_m=10, row=-549_900, col=40_050, height=60, width=60))
    assert (got == 7).all()


def test_a_southern_file_of_another_zone_lands_at_negative_northings(tmp_path):
    file_box = Box(zone=31, res_m=10, row=500_000, col=74_000, height=300, width=300)
    rows = np.repeat(np.arange(1, 301, dtype=np.uint16)[:, None] * 10, 300, axis=1)
    path = write_cog(tmp_path / "s.tif", rows, box=file_box, epsg=32731)
    x, y = rasterio.warp.transform("EPSG:32731", "EPSG:32632", [741_505], [10_000_000 - 5_001_505])
    box = Box(zone=32, res_m=10, row=int(-y[0] // 10), col=int(x[0] // 10), height=1, width=1)
    assert y[0] < 0
    assert abs(int(read(path, box)[0, 0]) - 1510) <= 12


def test_a_coarser_file_is_resampled_never_misplaced(tmp_path):
    file_box = Box(zone=32, res_m=20, row=-275_000, col=20_000, height=100, width=100)
    path = write_cog(tmp_path / "b.tif", smooth((100, 100)), box=file_box)
    got = read(path, Box(zone=32, res_m=10, row=-549_950, col=40_050, height=40, width=40)).astype(int)
    assert np.abs(got[::2, ::2] - smooth((100, 100))[25:45, 25:45]).max() < 80


@pytest.mark.parametrize("nodata", [65535, 7])
def test_a_declared_nodata_value_becomes_0(tmp_path, nodata):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
    values = np.full((64, 64), 500, np.uint16)
    values[:10] = nodata
    path = write_cog(tmp_path / "b.tif", values, box=file_box, nodata=nodata)
    got = read(path, file_box)
    assert (got[:10] == 0).all()
    assert (got[10:] == 500).all()


def test_scale_and_offset_tags_are_never_applied(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
    path = write_cog(tmp_path / "b.tif", np.full((64, 64), 500, np.uint16), box=file_box, driver="GTiff")
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001,), (-0.1,)
    assert (read(path, file_box) == 500).all()


def test_float_pixels_are_refused(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
    path = write_cog(tmp_path / "b.tif", np.full((64, 64), 0.5, np.float32), box=file_box, driver="GTiff")
    with pytest.raises(DataError, match=r"item S, band B02.*float32"):
        read(path, file_box)


def test_signed_integers_pass_when_they_fit_and_are_refused_when_not(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
    values = np.full((64, 64), 500, np.int16)
    good = write_cog(tmp_path / "good.tif", values, box=file_box, driver="GTiff")
    assert (read(good, file_box) == 500).all()
    values[3, 3] = -4
    bad = write_cog(tmp_path / "bad.tif", values, box=file_box, driver="GTiff")
    with pytest.raises(DataError, match="from -4 to 500"):
        read(bad, file_box)


def test_a_truncated_file_is_a_data_error_that_names_item_and_band(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=512, width=512)
    path = write_cog(tmp_path / "b.tif", noise((512, 512)), box=file_box)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match="item S, band B02"):
        read(path, file_box)


def test_a_truncated_file_of_another_zone_is_a_data_error_not_nodata(tmp_path):
    path, _ = neighbour_file(tmp_path, noise((700, 700)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match="item S, band B02"):
        read(path, box_in_zone_32())


@pytest.mark.parametrize("text", ["", "not a tiff at all"])
def test_a_file_that_is_no_raster_is_a_data_error(tmp_path, text):
    path = tmp_path / "b.tif"
    path.write_text(text)
    with pytest.raises(DataError, match="item S, band B02"):
        read(path, Box(zone=32, res_m=10, row=0, col=0, height=4, width=4))


def test_a_band_index_that_the_file_lacks_is_a_data_error(tmp_path):
    file_box = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
    path = write_cog(tmp_path / "b.tif", noise((64, 64)), box=file_box)
    asset = Asset(band="B02", href=str(path), band_index=3)
    with pytest.raises(DataError, match="has 1 bands, band 3"):
        read_native(scene_of("S", asset), asset, box=file_box, access=LOCAL)


@pytest.mark.parametrize("res_m", [10, 20, 60])
def test_every_native_pixel_belongs_to_exactly_one_tile(res_m):
    n = 256
    boxes = [Box(zone=31, res_m=10, row=r * n, col=0, height=n, width=n) for r in range(-9, 9)]
    parts = [pixels_centred_in(b, res_m) for b in boxes]
    assert all(a.row_stop == b.row for a, b in itertools.pairwise(parts))
    for box, part in zip(boxes, parts, strict=True):
        assert box.row * 10 <= (part.row + 0.5) * res_m < box.row_stop * 10
        assert box.row * 10 <= (part.row_stop - 0.5) * res_m < box.row_stop * 10
