"""Native windows and our upsampling against WarpedVRT and odc-stac, on simulated and on real pixels.

In the scene's own zone: bit-equal at 10 and 20 m, within 1 DN at 60 m (float32 weights in GDAL, whole numbers here),
nodata edges equal. Where a window itself must be warped: as WarpedVRT warps onto the native lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from files import scene_of, write_cog
from pyproj import Geod
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline.encode.assemble import upsampled
from pipeline.read.access import Access
from pipeline.read.sensors import SENTINEL2_L2A
from pipeline.read.windows import read_band, read_native
from pipeline.simulate.clouds import Weather
from pipeline.simulate.landscape import survey
from pipeline.simulate.scenes import Datatake, Granule, OrbitEdge, observe
from pipeline.simulate.spectra import RES_M
from pipeline.types import Asset, Box, Layer, Scene

LOCAL = Access(allow_local=True)
DATA = Path(__file__).resolve().parents[2] / "../shared/data"
OF = {10: ("B02", "B08"), 20: ("B8A", "B12"), 60: ("B01", "B09")}
"""Two bands of every resolution, one of them with its own holes."""


@dataclass(frozen=True)
class Files:
    """A scene in files, and a 10 m box that crosses its edges."""

    scene: Scene
    target: Box
    epsg: int


def ours(files: Files, band: str) -> np.ndarray:
    """(row, col) at 10 m: native window with the layer's margin, then the device's upsampling."""
    res_m = RES_M[band]
    place = [layer.res_m for layer in SENTINEL2_L2A.layers].index(res_m)
    native = files.target.cover(res_m, pad_px=SENTINEL2_L2A.margin_px[place])
    pixels = read_band(files.scene, band, box=native, access=LOCAL)
    layer = Layer(res_m=res_m, bands=(band,), pixels=pixels[None, None], valid=(pixels > 0)[None], box=native)
    return upsampled(layer, files.target, period=0)[0].numpy()


def target_transform(files: Files) -> Affine:
    """Of the 10 m box in the plane of the files (EPSG:327NN has a false northing)."""
    return Affine.translation(0, 10_000_000 if files.epsg > 32700 else 0) * files.target.transform


def vrt(files: Files, band: str) -> np.ndarray:
    asset, (height, width) = files.scene.href(band), files.target.shape
    with (
        rasterio.open(asset.href) as dataset,
        WarpedVRT(
            dataset,
            crs=f"EPSG:{files.epsg}",
            transform=target_transform(files),
            width=width,
            height=height,
            nodata=0,
            resampling=Resampling.bilinear,
        ) as warper,
    ):
        return warper.read(asset.band_index)


def by_odc_stac(files: Files, bands: tuple[str, ...]) -> dict[str, np.ndarray]:
    import odc.stac
    import pystac
    from odc.geo.geobox import GeoBox

    item = pystac.Item(
        id=files.scene.id,
        geometry=None,
        bbox=[-180, -90, 180, 90],
        datetime=datetime(2024, 6, 14, tzinfo=UTC),
        properties={},
        stac_extensions=[
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
    )
    for band in bands:
        with rasterio.open(files.scene.href(band).href) as dataset:
            extra = {
                "proj:epsg": files.epsg,
                "proj:shape": list(dataset.shape),
                "proj:transform": list(dataset.transform)[:6],
                "raster:bands": [{"data_type": "uint16", "nodata": 0}],
            }
        asset = pystac.Asset(href=files.scene.href(band).href, media_type="image/tiff", roles=["data"])
        asset.extra_fields = extra
        item.add_asset(band, asset)
    geobox = GeoBox(files.target.shape, target_transform(files), f"EPSG:{files.epsg}")
    loaded = odc.stac.load([item], bands=list(bands), geobox=geobox, resampling="bilinear", nodata=0, dtype="uint16")
    return {band: loaded[band].values[0] for band in bands}


def agrees(got: np.ndarray, want: np.ndarray, band: str) -> None:
    want = want.astype(np.float32)
    assert 0.05 < (want > 0).mean() <= 1
    np.testing.assert_array_equal(got == 0, want == 0)
    if RES_M[band] < 60:
        np.testing.assert_array_equal(got, want)
    else:
        assert np.abs(got - want).max() <= 1
        assert (got != want).mean() < 0.05


# --- simulated scenes, north and south -------------------------------------------------------------------------------


def simulated(folder: Path, *, south: bool) -> Files:
    """An orbit edge through the middle, holes of single pixels, and a target that leaves the granule."""
    row = 380_400 if south else -552_300
    granule = Granule(name="32UMA", box=Box(zone=32, res_m=10, row=row, col=49_860, height=240, width=300))
    box = granule.box
    edge = OrbitEdge(x_m=(box.col + 200) * 10.0, y_m=-(box.row + 120) * 10.0, slope=0.4)
    take = Datatake(
        acquired=datetime(2024, 6, 14, 10, 26, 1, tzinfo=UTC),
        platform="S2A",
        relative_orbit=65,
        absolute_orbit=46_000,
        baseline="05.10",
        weather=Weather(salt=11, level=0.55, veil=0.12),
        edge=edge,
    )
    rng, assets = np.random.default_rng(4), []
    for band, pixels in observe(survey(box), granule, take).bands:
        if band not in sum(OF.values(), ()):
            continue
        if band == OF[RES_M[band]][1]:
            pixels[rng.random(pixels.shape) < 0.03] = 0
        path = write_cog(folder / f"{band}.tif", pixels, box=box.cover(RES_M[band]), epsg=32732 if south else None)
        assets.append(Asset(band=band, href=str(path)))
    target = Box(zone=32, res_m=10, row=box.row - 13, col=box.col + 31, height=200, width=280)
    return Files(scene_of("SIM", *assets), target, 32732 if south else 32632)


# --- real pixels -----------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"real pixels are not at hand: there is no shared/data/{name} beside the project")
    return (DATA / name).resolve()


def sahara(out: Path) -> Files:
    """A quarter of scene 29RKH, whose fixture has pixels of 100, 200 and 600 m: laid down at a tenth of that."""
    folder = real("rio-tiler-pds-s2-l2a") / "S2A_29RKH_20200219_0_L2A"
    assets = []
    for band in sum(OF.values(), ()):
        with rasterio.open(folder / f"{band}.tif") as dataset:
            assert dataset.transform.a == 10 * RES_M[band]
            pixels = dataset.read(1)[: 5400 // RES_M[band], : 5400 // RES_M[band]]
        if band == OF[RES_M[band]][1]:
            pixels[np.tril_indices(len(pixels), -len(pixels) // 3)] = 0  # the scene itself has no nodata
        box = Box(zone=29, res_m=RES_M[band], row=-2_800_020 // RES_M[band], col=199_980 // RES_M[band],
                  height=len(pixels), width=len(pixels))  # fmt: skip
        assets.append(Asset(band=band, href=str(write_cog(out / f"{band}.tif", pixels, box=box))))
    target = Box(zone=29, res_m=10, row=-280_002 - 7, col=19_998 + 101, height=430, width=461)
    return Files(scene_of("RKH", *assets), target, 32629)


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["simulated north", "simulated south", "real Sahara"])
def made(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("parity")
    if request.param == "real Sahara":
        return sahara(folder)
    return simulated(folder, south=request.param == "simulated south")


@pytest.mark.parametrize("band", sum(OF.values(), ()))
def test_pixels_equal_warped_vrt(made, band):
    agrees(ours(made, band), vrt(made, band), band)


@pytest.mark.filterwarnings("ignore")  # of pystac, odc-geo and xarray
def test_pixels_equal_odc_stac(made):
    bands = sum(OF.values(), ())
    for band, want in by_odc_stac(made, bands).items():
        agrees(ours(made, band), want, band)


@pytest.mark.parametrize(
    ("name", "file", "index", "zone"),
    [
        ("sen2r-barbellino", "S2A2A_20170703_022_Barbellino_BOA_10.tif", 8, 32),  # strips, nodata 65535
        ("ftw-s2", "inference-img.tif", 6, 33),  # strips, no nodata
    ],
)
def test_real_files_in_their_own_place_equal_warped_vrt(name, file, index, zone):
    path = real(name) / file
    with rasterio.open(path) as dataset:
        west, north, (height, width) = dataset.transform.c, dataset.transform.f, dataset.shape
    box = Box(zone=zone, res_m=10, row=round(-north / 10) - 5, col=round(west / 10) + 3, height=height, width=width)
    files = Files(scene_of("R", Asset(band="B08", href=str(path), band_index=index)), box, 32600 + zone)
    agrees(ours(files, "B08"), vrt(files, "B08"), "B08")


# --- windows that must be warped -------------------------------------------------------------------------------------

LATTICE = Box(zone=32, res_m=20, row=-275_000, col=20_000, height=150, width=140)


def holed(shape: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(1, 12_000, shape).astype(np.uint16)
    values[:, 40:43] = 0
    values[np.tril_indices(min(shape), -min(shape) // 2)] = 0
    return values


AWAY = {
    "half a pixel off": Affine.translation(10, -10) * LATTICE.transform,
    "a third of a pixel off": Affine.translation(7, 3) * LATTICE.transform,
    "rotated": LATTICE.transform * Affine.rotation(20),
    "tall pixels": Affine.translation(3, 0) * LATTICE.transform * Affine.scale(1, 1.5),
    "wide pixels": Affine.translation(3, 4) * LATTICE.transform * Affine.scale(1.4, 1),
    "finer": Affine.translation(3, 4) * LATTICE.transform * Affine.scale(0.6),
    "a sphere": Affine(0.00018, 0, 9.0, 0, -0.00018, 49.7),
}


def sides_m(dataset) -> tuple[float, float]:
    """Width and height of the file's central pixel."""
    t = dataset.transform
    if dataset.crs.is_projected:
        return np.hypot(t.a, t.d), np.hypot(t.b, t.e)
    lon, lat = t * (dataset.width / 2, dataset.height / 2)
    geod = Geod(ellps="WGS84")
    return geod.inv(lon, lat, lon + t.a, lat)[2], geod.inv(lon, lat, lon, lat + t.e)[2]


def expected(path: Path, box: Box, *, nearest: bool = False) -> np.ndarray:
    """GDAL's warper with an exact transform and a kernel of the pixels' own size."""
    with rasterio.open(path) as dataset:
        width, height = sides_m(dataset)
        scale = {"XSCALE": min(1, width / 20), "YSCALE": min(1, height / 20)}
        with WarpedVRT(
            dataset,
            crs=f"EPSG:{box.epsg}",
            transform=box.transform,
            width=box.width,
            height=box.height,
            src_nodata=0,
            nodata=0,
            resampling=Resampling.nearest if nearest else Resampling.bilinear,
            tolerance=1e-9,
            **scale,
        ) as warper:
            return warper.read(1)


def place(path: Path) -> Box:
    """A 20 m box in zone 32 over the middle of a file."""
    with rasterio.open(path) as dataset:
        west, south, east, north = rasterio.warp.transform_bounds(dataset.crs, "EPSG:32632", *dataset.bounds)
    row, col = round(-(north + south) / 2 / 20) - 70, round((east + west) / 2 / 20) - 60
    return Box(zone=32, res_m=20, row=row, col=col, height=140, width=120)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("where", [*AWAY, "another zone", "another zone, south"])
def test_windows_of_other_grids_equal_warped_vrt(tmp_path, where, nearest):
    epsg = {"another zone": 32631, "another zone, south": 32731, "a sphere": 4326}.get(where, 32632)
    transform = AWAY.get(where)
    if "zone" in where:
        transform = Affine(20, 0, 741_000, 0, -20, 5_490_000 if epsg == 32631 else 6_400_000)
    path = write_cog(tmp_path / "b.tif", holed((150, 140)), box=LATTICE, transform=transform, epsg=epsg)
    box = place(path)
    scene = scene_of("S", Asset(band="B11", href=str(path)))
    got = read_native(scene, scene.assets[0], box=box, access=LOCAL, nearest=nearest).astype(int)
    want = expected(path, box, nearest=nearest).astype(int)
    assert 0.2 < (want > 0).mean() < 1
    # A thousandth of a pixel moves noise of 12000 DN by at most a few DN, and here and there the nearest pixel; the
    # kernel for degrees is the reference's up to the scale of UTM, 0.04 %.
    close = np.abs(got - want) <= (0 if nearest else 100 if epsg == 4326 else 30)
    assert close.mean() > 0.995
    assert ((got == 0) == (want == 0)).mean() > 0.998


@pytest.mark.parametrize("where", list(AWAY))
def test_a_warped_pixel_does_not_depend_on_the_box(tmp_path, where):
    epsg = 4326 if where == "a sphere" else 32632
    path = write_cog(tmp_path / "b.tif", holed((150, 140)), box=LATTICE, transform=AWAY[where], epsg=epsg)
    scene = scene_of("S", Asset(band="B11", href=str(path)))
    whole = place(path)
    large = read_native(scene, scene.assets[0], box=whole, access=LOCAL)
    for row, col, height, width in ((17, 23, 100, 90), (60, 1, 3, 119)):
        part = replace(whole, row=whole.row + row, col=whole.col + col, height=height, width=width)
        small = read_native(scene, scene.assets[0], box=part, access=LOCAL)
        np.testing.assert_array_equal(large[part.slices_in(whole)], small)


def test_a_declared_nodata_value_is_not_blended_into_its_neighbours(tmp_path):
    values = np.where(holed((150, 140)) == 0, 65535, 500).astype(np.uint16)
    path = write_cog(tmp_path / "b.tif", values, box=LATTICE, transform=AWAY["half a pixel off"], nodata=65535)
    scene = scene_of("S", Asset(band="B11", href=str(path)))
    got = read_native(scene, scene.assets[0], box=place(path), access=LOCAL)
    assert set(np.unique(got)) == {0, 500}
