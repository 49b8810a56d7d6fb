"""The map of the report: published files of several zones as layers, tiles with their states, the area."""

import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from PIL import Image
from pyproj import Transformer

from pipeline.run import page_layers, page_view
from pipeline.run.published import Published
from pipeline.run.status import TileStatus
from pipeline.types import Area, Box, GridSpec, Period, Receipt, Tile, Usage, canonical_json
from pipeline.write import geotiff
from pipeline.write.mercator import RADIUS_M

CLASSES = ((0, "bare", "#c0a080"), (1, "water <b>", "#2060e0"))
GRID = GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=512)


def plan_of(folder, *, zone=31, tasks=(), area=None):
    """What the page asks of a plan."""
    tile = Tile(zone=zone, row=-1000, col=97, tile_px=512)
    return SimpleNamespace(
        output=str(folder),
        grid=GRID,
        tasks=tasks or (SimpleNamespace(tile=tile),),
        periods=(
            Period(index=0, start=datetime(2024, 3, 1, tzinfo=UTC), end=datetime(2024, 4, 1, tzinfo=UTC)),
            Period(index=1, start=datetime(2024, 4, 1, tzinfo=UTC), end=datetime(2024, 5, 1, tzinfo=UTC)),
        ),
        area=Area(wkb=shapely.to_wkb(area or shapely.box(3, 45, 3.1, 45.1), hex=True), km2=1.0),
    )


def published(**paths):
    named = {name: tuple(str(path) for path in found) for name, found in paths.items()}
    return Published(store="", page="", ledger="", **named)


def class_file(path, box, values, *, further=()):
    def read(rows, cols):
        return [layer[rows, cols] for layer in (values, *(layer for _, layer in further))]

    geotiff.write_classes(
        path,
        read,
        box=box,
        colours=tuple((value, colour) for value, _, colour in CLASSES),
        class_names=tuple((value, name) for value, name, _ in CLASSES),
        tags=((geotiff.CLASSES_TAG, canonical_json(CLASSES)),),
        further=tuple(geotiff.Further(name=name, title=name) for name, _ in further),
    )
    return path


def box_at(lon, lat, zone, *, side=512):
    x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
    row, col = (round(place / 2560) * 256 for place in (-y, x))
    return Box(zone=zone, res_m=10, row=row, col=col, height=side, width=side)


def colour_at(picture, lon, lat):
    """RGBA of a picture at a place, as the page puts it on the map."""
    with Image.open(io.BytesIO(picture.png)) as opened:
        rgba = np.asarray(opened.convert("RGBA"))
    x_min, y_min, x_max, y_max = picture.bounds
    x, y = RADIUS_M * np.radians(lon), RADIUS_M * np.arcsinh(np.tan(np.radians(lat)))
    row, col = int((y_max - y) / (y_max - y_min) * len(rgba)), int((x - x_min) / (x_max - x_min) * len(rgba[0]))
    return tuple(rgba[row, col].tolist())


def lonlat(box, row, col):
    west, _, _, north = box.bounds_m
    x, y = west + (col + 0.5) * box.res_m, north - (row + 0.5) * box.res_m
    return Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)


@pytest.mark.parametrize(("lon", "lat", "zone"), [(5.5, 47, 31), (150.2, -33.5, 56), (-70.0, -53.0, 19)])
def test_a_class_stands_where_it_lies_on_the_ground(tmp_path, lon, lat, zone):
    box = box_at(lon, lat, zone)
    values = np.zeros(box.shape, np.uint8)
    values[100:200, 300:400] = 1
    values[:, :50] = 255
    path = class_file(tmp_path / f"crops_utm{zone:02d}_r0_c0.tif", box, values)
    (picture,) = page_layers.pictures(plan_of(tmp_path, zone=zone), published(maps=[path]))
    assert (picture.name, picture.kind) == ("Map crops", "class")
    assert picture.legend == (("bare", "#c0a080"), ("water <b>", "#2060e0"))
    for row, col, want in [(103, 303, (0x20, 0x60, 0xE0, 255)), (197, 397, (0x20, 0x60, 0xE0, 255)),
                           (97, 350, (0xC0, 0xA0, 0x80, 255)), (203, 350, (0xC0, 0xA0, 0x80, 255)),
                           (300, 20, (0, 0, 0, 0))]:  # fmt: skip
        assert colour_at(picture, *lonlat(box, row, col)) == want


def test_the_files_of_one_zone_are_one_picture_and_those_of_two_are_two(tmp_path):
    first = box_at(5.7, 47, 31)
    second = Box(zone=31, res_m=10, row=first.row, col=first.col + 512, height=512, width=512)
    other = box_at(6.2, 47, 32)
    paths = [
        class_file(tmp_path / f"crops_utm{box.zone}_r0_c{n}.tif", box, np.full(box.shape, n % 2, np.uint8))
        for n, box in enumerate((first, second, other))
    ]
    found = page_layers.pictures(plan_of(tmp_path), published(maps=[*paths, tmp_path / "crops_utm31_all.vrt"]))
    assert [(picture.name, picture.kind) for picture in found] == [("Map crops", "class")] * 2
    assert colour_at(found[0], *lonlat(first, 250, 250))[:3] == (0xC0, 0xA0, 0x80)
    assert colour_at(found[0], *lonlat(second, 250, 250))[:3] == (0x20, 0x60, 0xE0)
    assert colour_at(found[1], *lonlat(other, 250, 250))[:3] == (0xC0, 0xA0, 0x80)
    assert found[0].bounds[2] < found[1].bounds[0]


def test_bands_beside_classes_are_ramps_and_probabilities_of_single_classes_are_not_shown(tmp_path):
    box = box_at(5.5, 47, 31)
    half = np.full(box.shape, 50, np.uint8)
    bands = (("instability", half), ("spread", half), ("confidence", half), ("p0", half), ("p1", half))
    path = class_file(tmp_path / "crops_utm31_r0_c0.tif", box, np.zeros(box.shape, np.uint8), further=bands)
    found = page_layers.pictures(plan_of(tmp_path), published(maps=[path]))
    assert [(picture.name, picture.unit) for picture in found[1:]] == [
        ("Instability of crops", "%"), ("Spread of crops", "code steps"), ("Confidence of crops", "%"),
    ]  # fmt: skip
    assert [picture.ramp[-1][0] for picture in found[1:]] == [100, 10, 100]
    assert found[2].legend[-1][0] == "10 and more"


def test_a_map_of_numbers_is_a_ramp_over_its_range_with_its_unit(tmp_path):
    box = box_at(5.5, 47, 31)
    values = np.full(box.shape, 30, np.float32)
    values[:100] = np.nan
    path = tmp_path / "height_utm31_r0_c0.tif"
    geotiff.write_values(path, values, box=box, units="m", title="canopy height", valid_range=(0.0, 40.0))
    (picture,) = page_layers.pictures(plan_of(tmp_path), published(maps=[path]))
    assert (picture.name, picture.kind, picture.unit) == ("Map height", "ramp", "m")
    assert (picture.ramp[0][0], picture.ramp[-1][0]) == (0, 40)
    ends = [np.array(list(bytes.fromhex(colour[1:]))) for value, colour in picture.ramp if 26 < value < 34]
    shown = np.array(colour_at(picture, *lonlat(box, 300, 300))[:3])
    assert (np.min(ends, axis=0) - 1 <= shown).all()
    assert (shown <= np.max(ends, axis=0) + 1).all()
    assert colour_at(picture, *lonlat(box, 50, 300))[3] == 0


def test_true_colours_are_steps_in_the_order_of_the_dates(tmp_path):
    box = box_at(5.5, 47, 31)
    rgba = np.full((4, *box.shape), 255, np.uint8)
    paths = []
    for day in ("2024-04-01", "2024-03-01"):
        paths.append(tmp_path / f"true_colour_{day}_utm31.tif")
        geotiff.write_cog(paths[-1], rgba, box=box, nodata=None, overview="average")
    found = page_layers.pictures(plan_of(tmp_path), published(true_colours=[*paths, tmp_path / "true_colours.png"]))
    assert [picture.step for picture in found] == ["2024-03-01 to 2024-04-01", "2024-04-01 to 2024-05-01"]
    assert {picture.kind for picture in found} == {"period"}


def test_large_ground_is_shown_small(tmp_path):
    box = box_at(5.5, 47, 31, side=2048)
    path = class_file(tmp_path / "crops_utm31_r0_c0.tif", box, np.zeros(box.shape, np.uint8))
    (picture,) = page_layers.pictures(plan_of(tmp_path), published(maps=[path]))
    with Image.open(io.BytesIO(picture.png)) as opened:
        assert max(opened.size) <= page_layers.PAGE_PX
    assert picture.pixel_m == 20


def receipt_of(tile, **fields):
    base = {
        "tile_id": tile.id, "fingerprint": "f", "status": "done", "blocks": ((0, 0),), "objects": (), "sources": (),
        "usage": Usage(busy_s=2.5), "attempt": 2, "calibration": "c", "valid_px": 32768, "clipped": 0.001,
    }  # fmt: skip
    return Receipt(**base | fields)


def test_every_tile_is_drawn_with_its_state_and_facts(tmp_path):
    tiles = [Tile(zone=31, row=-1000, col=col, tile_px=512) for col in range(97, 101)]
    tasks = tuple(SimpleNamespace(tile=tile) for tile in tiles[:3])
    rows = tuple(
        TileStatus(tile_id=tile.id, state=state, attempts=attempts, blocks=1, reason=reason)
        for tile, state, attempts, reason in (
            (tiles[0], "done", 0, ""),
            (tiles[1], "done", 0, "no valid pixel"),
            (tiles[2], "failed", 3, "ReadError: <x>"),
        )
    )
    held = (
        (tiles[0], receipt_of(tiles[0])),
        (tiles[1], receipt_of(tiles[1], status="empty", valid_px=0)),
        (tiles[3], receipt_of(tiles[3])),
    )
    view = page_view.view(plan_of(tmp_path, tasks=tasks), held, rows, label="UNTRAINED")
    assert [tile.state for tile in view.tiles] == ["done", "empty", "failed", "done"]
    assert ("valid", "50.0%") in view.tiles[0].facts
    assert ("device", "2.5 s") in view.tiles[0].facts
    assert ("reason", "ReadError: <x>") in view.tiles[2].facts
    assert ("attempts since", "3") in view.tiles[2].facts
    assert ("asked for", "by an earlier request") in view.tiles[3].facts
    assert (view.tile_m, view.label) == (5120, "UNTRAINED")


def test_the_area_keeps_its_parts_and_holes_and_is_thinned_when_huge(tmp_path):
    ring = shapely.Point(3, 45).buffer(0.5, quad_segs=20_000)
    area = shapely.MultiPolygon([shapely.box(3.6, 45, 3.7, 45.1), ring.difference(shapely.Point(3, 45).buffer(0.1))])
    view = page_view.view(plan_of(tmp_path, area=area), (), (), label="")
    assert len(view.area) == 3
    assert 100 < sum(map(len, view.area)) <= page_view.AREA_POINTS
    drawn = shapely.Polygon(max(view.area, key=len))
    assert drawn.symmetric_difference(ring).area / ring.area < 0.005


def test_an_area_over_the_antimeridian_is_drawn_in_one_piece(tmp_path):
    area = shapely.MultiPolygon([shapely.box(179.5, -17, 180, -16), shapely.box(-180, -17, -179.5, -16)])
    view = page_view.view(plan_of(tmp_path, zone=60, area=area), (), (), label="")
    lons = [lon for ring in view.area for lon, _ in ring]
    assert max(lons) - min(lons) == pytest.approx(1.0)


def test_there_is_no_picture_without_files(tmp_path):
    assert page_layers.pictures(plan_of(tmp_path), published()) == ()
    assert not list(Path(tmp_path).iterdir())
