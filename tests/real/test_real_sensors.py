"""Real Landsat Level-2, which the models were not trained on: refused with the reason, whichever way it comes.

The scene is LC08 path 8 row 59 (surface reflectance, decimated), with the USGS' own item; the other one is surface
temperature cut to a Sentinel-2 tile by WorldCereal. Files are named where they lie; nothing is copied.
"""

from __future__ import annotations

import json

import pytest
import rasterio
from rasterio.warp import transform_bounds

from tests.real import archive
from tests.real.archive import earthpress

LANDSAT = "inputs.sensors=[landsat]"
PRODUCT = "LC08_L2SP_008059_20191201_20200825_02_T1"
BBOX = "-75.2,1.40,-75.19,1.41"
DATES = {"start": "2019-11-15", "end": "2019-12-15"}


@pytest.fixture(scope="module")
def usgs():
    """The USGS' own item, its bands as local files."""
    folder = archive.real("landsat-c2-l2")
    item = json.loads((folder / f"{PRODUCT}_SR_stac.json").read_text(encoding="utf-8"))
    for asset in item["assets"].values():
        path = folder / asset["href"].rsplit("/", 1)[-1]
        asset["href"] = str(path) if path.is_file() else asset["href"]
    assert sum(str(folder) in asset["href"] for asset in item["assets"].values()) >= 7
    return item


def plan(items, tmp_path, *, bbox=BBOX, dates=DATES):
    catalog = archive.write_catalog(tmp_path / "items.json", items)
    return earthpress("plan", *archive.request(catalog, tmp_path / "out", LANDSAT, bbox=bbox, **dates))


def assert_refused(answer, tmp_path):
    assert answer.code not in (0, 1)  # said, not crashed
    assert "Level-2" in answer.err
    assert "without B8, B9 and B11" in answer.err
    assert "landsat-c2l1" in answer.err  # the way out
    assert not (tmp_path / "out").exists()


def test_the_item_of_the_usgs_is_refused_with_the_reason(usgs, tmp_path):
    assert_refused(plan([usgs], tmp_path), tmp_path)


def test_pixels_of_level_2_are_refused_by_their_names_when_the_item_is_someone_elses(usgs, tmp_path):
    """All eleven bands are claimed, under an id that says nothing."""
    files = {key.removeprefix("SR_").removesuffix(".TIF"): asset for key, asset in usgs["assets"].items()}
    assets = {f"B{n}": {"href": files[f"B{min(n, 7)}"]["href"], "type": archive.COG_TYPE} for n in range(1, 12)}
    own = usgs | {"id": "my-scene-17", "collection": "landsat-mine", "assets": assets}
    own["properties"] = {"datetime": usgs["properties"]["datetime"], "platform": "landsat-8"}
    assert_refused(plan([own], tmp_path), tmp_path)


def test_an_item_recorded_from_planetary_computer_is_refused_with_the_reason(tmp_path):
    path = archive.real("stac") / "stac-geoparquet" / "decoded" / "test_smoke_landsat-c2-l2_.0.json"
    (item,) = json.loads(path.read_text(encoding="utf-8"))["response"]["features"]
    west, south, east, north = item["bbox"]
    x, y = (west + east) / 2, (south + north) / 2
    bbox, dates = f"{x},{y},{x + 0.01},{y + 0.01}", {"start": "2025-03-01", "end": "2025-03-31"}
    assert_refused(plan([item], tmp_path, bbox=bbox, dates=dates), tmp_path)


def test_a_tile_of_surface_temperature_is_no_scene(tmp_path, caplog):
    """One band and a quality band, under a name that no Landsat product has."""
    files = sorted(archive.real("worldcereal-landsat-tile").glob("*.tif"))
    with rasterio.open(files[0]) as file:
        west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    ring = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": files[0].stem.removesuffix("_B10"),
        "collection": "landsat-tiles",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [[list(p) for p in ring]]},
        "properties": {"datetime": "2019-08-12T10:58:00Z", "platform": "landsat-8"},
        "links": [],
        "assets": {path.stem.rsplit("_", 1)[-1]: archive.asset(str(path), gsd=30) for path in files},
    }
    x, y = (west + east) / 2, (south + north) / 2
    dates = {"start": "2019-08-01", "end": "2019-08-31"}
    answer = plan([item], tmp_path, bbox=f"{x},{y},{x + 0.01},{y + 0.01}", dates=dates)
    assert answer.code == 65
    assert "no usable scene" in answer.err
    assert "does not say which Landsat product it is" in caplog.text
    assert not (tmp_path / "out").exists()


def test_planetary_computer_is_not_asked_for_landsat_at_all(tmp_path):
    """No network: the preset knows that the archive has Level-2 only."""
    options = archive.request("planetary-computer", tmp_path / "out", LANDSAT, bbox=BBOX, **DATES)
    answer = earthpress("plan", *options)
    assert answer.code not in (0, 1)
    assert "Level-2" in answer.err
    assert "landsatlook.usgs.gov" in answer.err
