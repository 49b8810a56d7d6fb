"""``serve``: map tiles of files and stores show what lies there, and nothing else can be asked for."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyproj import Transformer

from pipeline.errors import ConfigError, InvalidInputError, OutputError
from pipeline.run import ground, quicklooks, served
from pipeline.run.folder import store_of
from pipeline.run.serve import MapServer, is_loopback, server_of
from pipeline.run.served import Square, zooms
from pipeline.run.stored import Stored
from pipeline.types import Box, canonical_json
from pipeline.write import geotiff, preview, store
from tests.run.two_dates import CLASSES, small_store, tiles_around

MEADOW, WATER = (2, "meadow", "#77aa33"), (5, "water", "#2244ee")


@pytest.fixture
def served_at():
    """Serve places until the test ends; gives a function that asks for an address: (status, type, bytes, headers)."""
    servers = []

    def start(*places, layers=None):
        server = server_of(places, port=0) if layers is None else MapServer(layers, port=0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return lambda address, method="GET", headers=None: ask(server.url + address, method, headers)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url, method="GET", headers=None):
    try:
        request = urllib.request.Request(url, method=method, headers=headers or {})
        with urllib.request.urlopen(request, timeout=30) as got:
            return got.status, got.headers["Content-Type"], got.read(), got.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read(), error.headers


def layers_at(get):
    return {layer["name"]: layer for layer in json.loads(get("layers.json")[2])}


def tile_at(lon, lat, z):
    """(x, y) of the tile and (row, col) of the pixel under a place."""
    across = (lon + 180) / 360 * 2**z
    down = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**z
    return (int(across), int(down)), (int(down % 1 * 256), int(across % 1 * 256))


def colour_at(get, layer, lon, lat, z):
    (x, y), (row, col) = tile_at(lon, lat, z)
    status, kind, data, _ = get(f"{layer}/{z}/{x}/{y}.png")
    assert (status, kind) == (200, "image/png")
    return tuple(int(v) for v in np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[row, col])


def rgba(colour):
    return (*(int(colour[k : k + 2], 16) for k in (1, 3, 5)), 255)


def write_map(path, box, values, *, further=()):
    tags = ((geotiff.CLASSES_TAG, canonical_json([MEADOW, WATER])),)
    colours = tuple((value, colour) for value, _, colour in (MEADOW, WATER))
    geotiff.write_cog(path, values, box=box, colours=colours, tags=tags, further=further)


def lonlat(box, row, col):
    """The place of the middle of a pixel of an array over ``box``."""
    x, y = (box.col + col + 0.5) * box.res_m, -(box.row + row + 0.5) * box.res_m
    return Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)


NORTH = Box(zone=32, res_m=10, row=-552000, col=50000, height=300, width=300)
SOUTH = Box(zone=32, res_m=10, row=330000, col=50000, height=300, width=300)


@pytest.mark.parametrize("box", [NORTH, SOUTH], ids=["north", "south"])
@pytest.mark.parametrize("z", [13, 15])
def test_a_tile_shows_the_class_of_the_map_at_every_place(served_at, tmp_path, box, z):
    values = np.full(box.shape, 255, np.uint8)
    values[40:160, 30:130], values[160:260, 30:250] = 2, 5
    write_map(tmp_path / "fields_utm32_r0_c0.tif", box, values)
    get = served_at(str(tmp_path / "fields_utm32_r0_c0.tif"))
    for (row, col), want in {
        (100, 80): rgba("#77aa33"),
        (200, 200): rgba("#2244ee"),
        (100, 200): (0, 0, 0, 0),
        (10, 10): (0, 0, 0, 0),
    }.items():
        assert colour_at(get, "fields", *lonlat(box, row, col), z) == want
    lon, lat = lonlat(box, 200, 200)
    found = json.loads(get(f"fields/point?lon={lon}&lat={lat}")[2])
    assert found["found"] == {"value": 5, "class": "water"}
    assert layers_at(get)["fields"]["legend"][1] == {"text": "water", "colour": "#2244ee"}


@pytest.mark.parametrize("z", [0, 4, 8])
def test_a_village_is_read_as_fast_on_a_map_of_the_world(tmp_path, z):
    values = np.full(NORTH.shape, 2, np.uint8)
    write_map(tmp_path / "fields_utm32_r0_c0.tif", NORTH, values, further=(("how unsure", values),))
    layer = served.files_layers("fields", "fields", [str(tmp_path / "fields_utm32_r0_c0.tif")])[0]
    (x, y), (row, col) = tile_at(*lonlat(NORTH, 150, 150), z)
    began = time.perf_counter()
    picture = layer.tile(Square(z=z, x=x, y=y))
    assert time.perf_counter() - began < 3  # minutes, where all of the tile is made at full resolution
    assert tuple(picture[row, col].tolist()) == rgba("#77aa33")
    assert np.count_nonzero(picture[..., 3]) < 200


@pytest.mark.parametrize(("z", "side"), [(1, "west"), (10, "west"), (10, "east")])
def test_a_file_over_the_antimeridian_is_seen_on_both_of_its_sides(tmp_path, z, side):
    box = Box(zone=60, res_m=10, row=-200_000, col=80_760, height=64, width=2_000)
    values = np.full(box.shape, 2, np.uint8)
    write_map(tmp_path / "m_utm60_r0_c0.tif", box, values)
    layer = served.files_layers("m", "m", [str(tmp_path / "m_utm60_r0_c0.tif")])[0]
    assert len(layer.files) == 2
    lon, lat = lonlat(box, 32, 10 if side == "west" else 1_990)
    assert (lon > 0) == (side == "west")
    (x, y), (row, col) = tile_at(lon, lat, z)
    began = time.perf_counter()
    picture = layer.tile(Square(z=z, x=x, y=y))
    assert time.perf_counter() - began < 3
    assert tuple(picture[row, col].tolist()) == rgba("#77aa33")
    assert layer.point(lon, lat)["class"]


def test_further_bands_of_a_map_are_layers_of_their_own(served_at, tmp_path):
    values, doubt = np.full(NORTH.shape, 2, np.uint8), np.full(NORTH.shape, 255, np.uint8)
    doubt[:150], doubt[150:200] = 10, 90
    write_map(tmp_path / "m_utm32_r0_c0.tif", NORTH, values, further=(("how unsure", doubt),))
    get = served_at(str(tmp_path / "m_utm32_r0_c0.tif"))
    assert set(layers_at(get)) == {"m", "m.band2"}
    lon, lat = lonlat(NORTH, 180, 100)
    assert colour_at(get, "m.band2", lon, lat, 15) == rgba(preview.ramp(4)[-1])
    assert json.loads(get(f"m.band2/point?lon={lon}&lat={lat}")[2])["found"] == {"value": 90.0}
    assert colour_at(get, "m.band2", *lonlat(NORTH, 250, 100), 15) == (0, 0, 0, 0)


def test_numbers_have_a_ramp_a_unit_and_no_colour_where_they_are_missing(served_at, tmp_path):
    values = np.tile(np.linspace(0, 8, 300, dtype=np.float32), (300, 1))
    values[:100] = np.nan
    geotiff.write_values(tmp_path / "yield.tif", values, box=NORTH, units="t/ha", title="Yield", valid_range=(0, 8))
    get = served_at(str(tmp_path / "yield.tif"))
    assert colour_at(get, "yield", *lonlat(NORTH, 200, 299), 15) == rgba(preview.ramp(4)[-1])
    assert colour_at(get, "yield", *lonlat(NORTH, 50, 150), 15) == (0, 0, 0, 0)
    lon, lat = lonlat(NORTH, 200, 150)
    found = json.loads(get(f"yield/point?lon={lon}&lat={lat}")[2])["found"]
    assert found == {"value": pytest.approx(values[200, 150], rel=1e-6), "units": "t/ha"}
    assert layers_at(get)["yield"]["legend"][-1]["text"] == "8 t/ha"


@pytest.fixture(scope="module")
def late(shared_store):
    """The later plan of a shared store, with its quicklooks."""
    plan = shared_store["late"]
    quicklooks.publish_looks(plan, [tile for tile, _ in ground.committed(plan)])
    return plan


def test_a_tile_of_the_store_has_the_colours_of_the_quicklook(served_at, late):
    get = served_at(late.output)
    layer = "embeddings_2024-05-31"
    (extent,) = ground.extents(late)
    tiles = [tile for tile, _ in ground.committed(late)]
    picture = quicklooks.canvas(late, extent, tiles=tiles, basis=quicklooks.basis_of(late), factor=1)
    rng = np.random.default_rng(0)
    for row, col in rng.integers(0, extent.shape, (6, 2)):
        assert colour_at(get, layer, *lonlat(extent, row, col), 15) == tuple(picture[row, col].tolist())
        assert colour_at(get, layer, *lonlat(extent, row, col), 18)[3] == picture[row, col, 3]


def test_a_point_of_the_store_gives_its_vector(served_at, late):
    get = served_at(late.output)
    (extent,) = ground.extents(late)
    lon, lat = lonlat(extent, 70, 90)
    want = Stored.of(late).vectors(extent)[:, 70, 90]
    found = json.loads(get(f"embeddings_2024-05-31/point?lon={lon}&lat={lat}")[2])["found"]["embedding"]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    seen = json.loads(get(f"observations_2024-05-31/point?lon={lon}&lat={lat}")[2])["found"]
    assert seen == {"observations": 2, "of": 2, "reason": "valid"}
    assert set(json.loads(get(f"true_colour_2024-05-31/point?lon={lon}&lat={lat}")[2])["found"]["reflectance"]) == {
        "red", "green", "blue"
    }  # fmt: skip


def test_small_zooms_come_from_the_quicklook_and_read_no_vector(served_at, late, monkeypatch):
    get = served_at(late.output)
    info = layers_at(get)["embeddings_2024-05-31"]
    assert info["minzoom"] == 0
    (extent,) = ground.extents(late)
    lon, lat = lonlat(extent, extent.height // 2, extent.width // 2)

    def never(*_args, **_options):
        raise OutputError("the store was read")

    monkeypatch.setattr(store, "read_box", never)
    assert colour_at(get, "embeddings_2024-05-31", lon, lat, 10)[3] == 255
    status, _, body, _ = get("embeddings_2024-05-31/15/{}/{}.png".format(*tile_at(lon, lat, 15)[0]))
    assert (status, json.loads(body)) == (500, {"error": "the store was read"})


def test_a_store_alone_has_the_colours_that_are_kept_beside_it(served_at, late):
    (extent,) = ground.extents(late)
    lon, lat = lonlat(extent, 70, 90)
    colours = [
        colour_at(served_at(place), "embeddings_2024-05-31", lon, lat, 15) for place in (late.output, store_of(late))
    ]
    assert colours[0] == colours[1]


def test_every_date_of_a_store_is_a_layer(served_at, late):
    names = set(layers_at(served_at(store_of(late))))
    assert {"embeddings_2024-04-01", "embeddings_2024-05-31", "true_colour_2024-04-01"} <= names
    assert len([name for name in names if name.startswith("true_colour_")]) == 4


@pytest.mark.parametrize(("lat", "token_px"), [(-31.003, 1), (46.993, 4)], ids=["south", "tokens"])
def test_two_zones_are_one_picture(served_at, tmp_path, lat, token_px):
    tiles = tiles_around(6.0, lat, (31, 32), side=0)
    small_store(tmp_path / "s.zarr", tiles, middle_lon=6.0, token_px=token_px)
    get = served_at(str(tmp_path / "s.zarr"))
    (x, y), (row, col) = tile_at(6.0, lat, 16)
    assert 20 <= min(row, col) <= max(row, col) < 236
    for name in ("sides", "embeddings"):
        picture = np.asarray(Image.open(io.BytesIO(get(f"{name}/16/{x}/{y}.png")[2])))
        assert (picture[row - 20 : row + 20, col - 20 : col + 20, 3] == 255).all()
    assert colour_at(get, "sides", 6.0 - 5e-4, lat, 16) == rgba(CLASSES[0][2])
    assert colour_at(get, "sides", 6.0 + 5e-4, lat, 16) == rgba(CLASSES[1][2])
    assert json.loads(get(f"sides/point?lon=6.0005&lat={lat}")[2])["found"] == {"value": 1, "class": "east"}
    assert colour_at(get, "true_colour_2024-03-01", 6.0005, lat, 14)[3] == 255


def test_a_store_in_an_object_store_is_shown(served_at, s3):
    url = f"s3://maps/{uuid.uuid4().hex}/store.zarr"
    small_store(url, tiles_around(9.0, 47.0, (32,), side=0), middle_lon=9.0)
    get = served_at(url)
    tile = tiles_around(9.0, 47.0, (32,), side=0)[0]
    lon, lat = lonlat(tile.box, 100, 100)
    assert colour_at(get, "sides", lon, lat, 15) == rgba(CLASSES[int(lon > 9.0)][2])
    assert colour_at(get, "embeddings", lon, lat, 15)[3] == 255
    assert s3  # the server that speaks S3


@pytest.fixture(scope="module")
def one_map(tmp_path_factory):
    """A GeoTIFF with one class, and a secret beside it."""
    path = tmp_path_factory.mktemp("maps") / "all_utm32.tif"
    write_map(path, NORTH, np.full(NORTH.shape, 2, np.uint8))
    (path.parent / "secret.txt").write_text("secret")
    return str(path)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("nothing/1/0/0.png", 404),
        ("all", 404),
        ("all/1/0/0.jpg", 404),
        ("all/a/0/0.png", 400),
        ("all/1/0/0.5.png", 400),
        ("all/1/2/0.png", 404),
        ("all/-1/0/0.png", 404),
        ("all/25/0/0.png", 404),
        ("all/99999999999999/0/0.png", 400),
        ("all/point", 400),
        ("all/point?lon=9", 400),
        ("all/point?lon=nan&lat=1", 400),
        ("all/point?lon=9&lat=91", 400),
        ("../secret.txt", 404),
        ("%2e%2e/secret.txt", 404),
        ("..%2fsecret.txt", 404),
        ("all/../../secret.txt", 404),
        ("%00", 404),
        ("all/1/..%2f..%2fsecret.txt%00/0.png", 400),
    ],
)
def test_what_is_not_there_is_refused_in_json(served_at, one_map, address, status):
    got, kind, body, _ = served_at(one_map)(address)
    assert (got, kind) == (status, "application/json")
    assert set(json.loads(body)) == {"error"}
    assert b"secret" not in body


def test_other_methods_are_refused_in_json(served_at, one_map):
    status, kind, body, _ = served_at(one_map)("layers.json", "POST")
    assert (status, kind) == (501, "application/json")
    assert json.loads(body) == {"error": "Not Implemented"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", "[", ""])
def test_a_foreign_name_that_points_here_reads_nothing(served_at, one_map, host):
    status, _, body, _ = served_at(one_map)("layers.json", headers={"Host": host})
    assert status == 421
    assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:80", "[::1]:9000"])
def test_a_tunnel_from_this_machine_may_use_any_port(served_at, one_map, host):
    assert served_at(one_map)("layers.json", headers={"Host": host})[0] == 200


def test_head_gives_the_headers_of_get(served_at, one_map):
    get = served_at(one_map)
    status, kind, body, headers = get("all/3/4/2.png", "HEAD")
    assert (status, kind, body) == (200, "image/png", b"")
    assert int(headers["Content-Length"]) == len(get("all/3/4/2.png")[2])


def test_tiles_beside_the_map_are_transparent(served_at, one_map):
    picture = np.asarray(Image.open(io.BytesIO(served_at(one_map)("all/8/0/0.png")[2])))
    assert picture.shape == (256, 256, 4)
    assert not picture.any()


def test_a_broken_file_is_an_error_and_no_traceback(served_at, tmp_path, caplog):
    path = tmp_path / "broken_utm32.tif"
    write_map(path, NORTH, np.random.default_rng(0).integers(0, 2, NORTH.shape).astype(np.uint8) * 3 + 2)
    get = served_at(str(path))
    path.write_bytes(path.read_bytes()[:4000])
    (x, y), _ = tile_at(*lonlat(NORTH, 100, 100), 14)
    status, _, body, _ = get(f"broken/14/{x}/{y}.png")
    assert (status, json.loads(body)) == (500, {"error": "this could not be read; the server's log says why"})
    assert "broken/14" in caplog.text


def test_many_threads_get_what_one_gets(served_at, tmp_path):
    small_store(tmp_path / "s.zarr", tiles_around(9.0, 47.0, (32,), side=0), middle_lon=9.0)
    write_map(tmp_path / "m_utm32.tif", NORTH, np.full(NORTH.shape, 5, np.uint8))
    get = served_at(str(tmp_path / "s.zarr"), str(tmp_path / "m_utm32.tif"))
    names = [name for name in layers_at(get) if name.endswith(("embeddings", "m", "sides"))]
    addresses = []
    for name in names:
        place = lonlat(NORTH, 150, 150) if name == "m" else (9.0, 47.0)
        addresses.append("{}/14/{}/{}.png".format(name, *tile_at(*place, 14)[0]))
    alone = [get(address)[2] for address in addresses]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda address: get(address)[2], addresses * 8))
    assert together == alone * 8


def test_layers_are_told_as_tilejson(served_at, late):
    get = served_at(late.output)
    for layer in layers_at(get).values():
        assert layer["tilejson"] == "3.0.0"
        west, south, east, north = layer["bounds"]
        assert west < east
        assert south < north
        assert 0 <= layer["minzoom"] <= layer["maxzoom"] <= served.MAX_ZOOM
        assert layer["tiles"][0].endswith(layer["name"] + "/{z}/{x}/{y}.png")
    assert "UNTRAINED" in layers_at(get)["embeddings_2024-05-31"]["warning"]


def test_the_page_and_all_it_needs_come_from_the_server(served_at, one_map):
    get = served_at(one_map)
    status, kind, body, headers = get("")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"http" not in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in ("leaflet.js", "leaflet.css", "page.js", "page.css"):
        assert name.encode() in body
        status, _, text, _ = get(name)
        assert status == 200
        assert len(text) > 500
    assert b"url(" not in get("leaflet.css")[2]


def test_zooms_keep_what_a_tile_reads_below_the_limit():
    bounds = (9.0, 47.0, 9.1, 47.1)
    first, native = zooms(bounds, 10, pixel_bytes=768)
    for z in range(first, native + 1):
        around = Square(z=z, x=0, y=0).bounds_m
        side_px = (around[2] - around[0]) * math.cos(math.radians(47.0)) / 10
        assert side_px**2 * 768 <= served.WINDOW_BYTES
    assert zooms(bounds, 10) == (0, 16)


def test_places_under_a_tile_are_those_of_the_projection():
    at = Square(z=12, x=2150, y=1440)
    rows, cols = at.lattice(32, 10)
    west, south, east, north = at.bounds_m
    across, down = west + (east - west) * (77 + 0.5) / 256, north - (north - south) * (201 + 0.5) / 256
    x, y = Transformer.from_crs(3857, 32632, always_xy=True).transform(across, down)
    assert (rows[201, 77], cols[201, 77]) == (math.floor(-y / 10), math.floor(x / 10))


@pytest.mark.parametrize("place", ["nowhere", "README.md"])
def test_other_places_are_refused(place):
    with pytest.raises(InvalidInputError, match="not an output folder, a store or a GeoTIFF"):
        server_of([place], port=0)


def test_a_port_that_is_taken_is_named(served_at, one_map):
    get = served_at(one_map)
    port = int(layers_at(get)["all"]["tiles"][0].split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1 port {port}.*--port"):
        server_of([one_map], port=port)


def test_only_this_machines_own_addresses_are_private():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.1.7", "example.org", "::")] == [False] * 4


def test_the_command_serves_until_it_is_interrupted(one_map):
    command = [sys.executable, "-m", "pipeline.cli", "serve", one_map, "--port", "0", "--json"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        started = json.loads(process.stdout.readline())
        assert started["layers"] == ["all"]
        assert ask(started["url"] + "all/3/4/2.png")[0] == 200
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in told
