"""A store in an object store: the same pixels, growth by metadata, one writer of metadata, no secret in any message."""

from __future__ import annotations

import errno
import http.server
import json
import sys
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import xarray as xr

from pipeline.errors import ConfigError, OutputError
from pipeline.types import Tile
from pipeline.write import durable, place_object, steps
from pipeline.write.place import LocalPlace, place_of
from pipeline.write.store import (
    check_objects,
    check_store,
    create_store,
    open_store,
    read_map,
    read_tile,
    time_index,
    times,
    write_tile,
    zones,
)

YEAR = (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC))


class KilledError(Exception):
    """Stands for the death of the process."""


@pytest.fixture
def url(s3):
    return f"s3://maps/{uuid.uuid4().hex}/store.zarr"


@pytest.fixture
def filled(url, spec, tile, data_of):
    """A store with one of its four tiles; gives (url, objects)."""
    create_store(url, spec)
    data, crops = data_of(tile)
    return url, write_tile(url, tile, data, maps=(("crops", crops),))


def check_pixels(url, tile, objects, data_of):
    data, crops = data_of(tile)
    codes, reason, n_obs = read_tile(url, tile)
    np.testing.assert_array_equal(codes, data.codes)
    np.testing.assert_array_equal(n_obs, data.n_obs)
    np.testing.assert_array_equal(reason, 0)
    np.testing.assert_array_equal(read_map(url, tile, "crops"), crops)
    check_objects(url, objects, tile=tile)


def test_what_was_written_is_read_back_and_checks(filled, tile, data_of):
    url, objects = filled
    check_pixels(url, tile, objects, data_of)
    sizes = dict(place_of(url).list())
    assert check_objects(url, objects) == sum(sizes[key] for key, digest in objects if digest)


def test_objects_have_the_names_and_bytes_of_a_local_store(filled, spec, tile, data_of, tmp_path):
    url, objects = filled
    local = tmp_path / "store.zarr"
    create_store(local, spec)
    data, crops = data_of(tile)
    assert write_tile(local, tile, data, maps=(("crops", crops),)) == objects
    remote, here = place_of(url), place_of(local)
    assert {k for k, _ in remote.list()} == {k for k, _ in here.list()}
    for key, _ in here.list():
        if key.endswith("zarr.json"):
            assert json.loads(remote.read(key)) == json.loads(here.read(key))
        else:
            assert remote.read(key) == here.read(key)


def test_a_changed_object_is_found(filled):
    url, objects = filled
    key = next(key for key, digest in objects if digest)
    place_of(url).put(key, b"nonsense")
    with pytest.raises(OutputError, match="1 objects are not as written"):
        check_objects(url, objects)


def test_creating_twice_changes_nothing(filled, spec):
    url, _ = filled
    before = {key: place_of(url).digest(key) for key, _ in place_of(url).list()}
    create_store(url, spec)
    assert {key: place_of(url).digest(key) for key, _ in place_of(url).list()} == before


def test_another_calibration_is_refused_and_both_hashes_are_named(filled, spec, changed):
    other = replace(spec.calibration, scale=tuple(2 * s for s in spec.calibration.scale))
    with pytest.raises(OutputError, match=f"calibration is {spec.calibration.hash}, the run has {other.hash}"):
        create_store(filled[0], changed(calibration=other))


def test_a_new_time_step_is_appended(filled, changed, tile, data_of):
    url, objects = filled
    create_store(url, changed(times=(YEAR,)))
    assert (len(times(url)), time_index(url, *YEAR)) == (2, 1)
    data, crops = data_of(tile)
    write_tile(url, tile, data, time_index=1, maps=(("crops", np.zeros_like(crops)),))
    check_pixels(url, tile, objects, data_of)
    ds = open_store(url)
    assert list(ds.time.dt.year.values) == [2024, 2025]
    np.testing.assert_array_equal(ds.map_crops[1, :256, :256], 0)


@pytest.mark.parametrize(("rows", "cols"), [((-2000, -1997), (200, 202)), ((-2000, -1998), (200, 204))])
def test_growth_to_south_and_east_keeps_every_pixel(filled, changed, extent_of, tile, data_of, rows, cols):
    url, objects = filled
    create_store(url, changed(extents=(extent_of(31, rows=rows, cols=cols),)))
    check_pixels(url, tile, objects, data_of)
    corner = Tile(zone=31, row=rows[1] - 1, col=cols[1] - 1, tile_px=256)
    data, crops = data_of(corner)
    write_tile(url, corner, data, maps=(("crops", crops),))
    ds = open_store(url)
    x_min, y_min, x_max, y_max = corner.box.bounds_m
    found = ds.embeddings.sel(x=slice(x_min, x_max), y=slice(y_max, y_min))
    np.testing.assert_array_equal(found[0].values, data.codes)
    assert zones(url)[0] == extent_of(31, rows=rows, cols=cols)


def test_growth_to_north_and_west_is_refused_with_a_way_out(filled, changed, extent_of):
    with pytest.raises(OutputError, match="cannot grow to the north and west.*another store.path"):
        create_store(filled[0], changed(extents=(extent_of(31, rows=(-2001, -1998), cols=(199, 202)),)))


def test_a_new_zone_is_added(filled, changed, extent_of, tile, data_of):
    url, objects = filled
    create_store(url, changed(extents=(extent_of(32, rows=(5, 6), cols=(180, 181)),)))
    check_pixels(url, tile, objects, data_of)
    assert open_store(url, zone=32).rio.crs.to_epsg() == 32632


def test_a_reader_of_the_old_metadata_still_reads_right_after_growth(filled, changed, extent_of, tile, data_of):
    url, _ = filled
    old = open_store(url)
    create_store(url, changed(extents=(extent_of(31, rows=(-2000, -1996), cols=(200, 205)),), times=(YEAR,)))
    np.testing.assert_array_equal(old.embeddings[0, :, :256, :256], data_of(tile)[0].codes)
    fresh = open_store(url)
    np.testing.assert_array_equal(fresh.x[:512], old.x)
    np.testing.assert_array_equal(fresh.y[:512], old.y)


def test_a_growth_killed_after_any_put_misplaces_nothing_and_is_finished(
    filled, changed, extent_of, tile, data_of, monkeypatch
):
    url, objects = filled
    # Nobody waits for the lease of the dead: it is as old as it must be.
    monkeypatch.setattr(place_object, "LEASE_S", 0.0)
    monkeypatch.setattr(place_object._Lease, "check", lambda _self: None)
    wanted = changed(extents=(extent_of(31, rows=(-2000, -1997), cols=(200, 203)),), times=(YEAR,))
    puts = []
    while True:
        seen = []

        def die(step, *, seen=seen):
            seen.append(step)
            if len(seen) == 3:
                raise KilledError(step)

        try:
            create_store(url, wanted, at=die)
        except KilledError:
            puts += seen
            ds = open_store(url)
            assert ds.sizes["y"] in (512, 768)
            np.testing.assert_array_equal(ds.embeddings[0, :, :256, :256], data_of(tile)[0].codes)
            x_min, y_min, x_max, y_max = tile.box.bounds_m
            found = ds.embeddings.sel(x=slice(x_min, x_max), y=slice(y_max, y_min))
            np.testing.assert_array_equal(found[0].values, data_of(tile)[0].codes)
            continue
        break
    assert len(puts) > 9
    check_pixels(url, tile, objects, data_of)
    with xr.open_zarr(place_of(url).zarr(), group="utm31", decode_coords="all") as ds:
        assert dict(ds.sizes) | {"band": 4} == dict(ds.sizes)
        assert (ds.sizes["time"], ds.sizes["y"], ds.sizes["x"]) == (2, 768, 768)


def test_a_store_whose_making_was_killed_is_none(url, spec):
    def die(step):
        raise KilledError(step)

    with pytest.raises(KilledError):
        create_store(url, spec, at=die)
    with pytest.raises(OutputError, match="no store at"):
        zones(url)
    assert not check_store(url, spec)
    create_store(url, spec)
    assert zones(url)[0].shape == (512, 512)


def test_a_place_with_other_objects_is_refused(url, spec):
    place_of(url).put("notes.txt", b"mine")
    with pytest.raises(OutputError, match="holds other objects"):
        create_store(url, spec)


def test_a_held_lease_is_waited_for_and_then_named(url, spec, monkeypatch):
    monkeypatch.setattr(place_object, "POLL_S", 0.01)
    held = threading.Event()
    order = []

    def hold():
        with place_of(url).exclusive():
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    create_store(url, spec)
    order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_who_waits_too_long_hears_who_holds_the_lease(url, monkeypatch):
    monkeypatch.setattr(place_object, "POLL_S", 0.01)
    record = {"owner": "machine seven, process 7", "expires": time.time() + 100}
    place_of(url).sibling(".lock").put("00000003.json", json.dumps(record).encode())
    monkeypatch.setattr(place_object, "LEASE_S", 0.05)
    with pytest.raises(OutputError, match="held by machine seven, process 7"), place_of(url).exclusive():
        pass


def test_the_lease_of_a_dead_process_is_taken_over_when_its_time_is_over(url):
    lock = place_of(url).sibling(".lock")
    lock.put("00000003.json", json.dumps({"owner": "dead", "expires": time.time() - 1}).encode())
    with place_of(url).exclusive() as still:
        still()
        assert [key for key, _ in lock.list()] == ["00000004.json"]


def test_a_lease_that_was_lost_stops_the_last_step(url):
    with place_of(url).exclusive() as still:
        place_of(url).sibling(".lock").put("00000002.json", b"{}")
        with pytest.raises(OutputError, match="lease was lost"):
            still()


def test_who_loses_the_lease_while_growing_leaves_the_zone_alone(filled, changed):
    """Else the index that another run was given would mean other dates."""
    url, _ = filled
    before = place_of(url).read("utm31/zarr.json")

    def overtaken(_step):
        place_of(url).sibling(".lock").put("00000099.json", b"{}")

    with pytest.raises(OutputError, match="lease was lost"):
        create_store(url, changed(times=(YEAR,)), at=overtaken)
    assert place_of(url).read("utm31/zarr.json") == before


def test_only_one_of_many_takes_the_lease(url, monkeypatch):
    monkeypatch.setattr(place_object, "POLL_S", 0.01)
    inside, most = [], []

    def work():
        with place_of(url).exclusive():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


class Careless(http.server.BaseHTTPRequestHandler):
    """An object store that overwrites whatever the condition says."""

    held: dict[str, bytes]

    def do_PUT(self):
        self.held[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"", etag='"1"')

    def do_GET(self):
        data = self.held.get(self.path)
        self._answer(404 if data is None else 200, data or b"", etag='"1"')

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        key = body.split("<Key>")[1].split("</Key>")[0]
        self.held.pop(f"/maps/{key}", None)
        self._answer(200, f"<DeleteResult><Deleted><Key>{key}</Key></Deleted></DeleteResult>".encode())

    def do_DELETE(self):
        self.held.pop(self.path, None)
        self._answer(204, b"")

    def _answer(self, status, data, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 10:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_service_without_conditional_create_is_refused(s3, spec, monkeypatch):
    handler = type("Own", (Careless,), {"held": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(OutputError, match="no conditional create"):
            create_store("s3://maps/a/store.zarr", spec)
        assert handler.held == {}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_missing_bucket_is_named_without_the_request(s3, spec):
    with pytest.raises(OutputError, match="no such bucket") as caught:
        create_store("s3://nowhere/store.zarr", spec)
    assert "http" not in str(caught.value)
    assert "wordless" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/store.zarr", "local folder, s3://, gs:// or az://"),
        ("s3://bucket", "s3://bucket/folder/name.zarr"),
        ("s3://bucket/../x", "s3://bucket/folder/name.zarr"),
        ("s3://key:hush@bucket/store.zarr", "must not hold credentials"),
        ("s3://bucket/store.zarr?X-Amz-Signature=hush", "must not hold credentials"),
    ],
)
def test_urls_that_are_no_places_are_refused_without_their_secrets(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        place_of(text)
    assert "hush" not in str(caught.value)


def test_without_obstore_the_message_says_how_to_get_it(monkeypatch, spec):
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'earthpress\[cloud\]'"):
        create_store("s3://maps/store.zarr", spec)


@pytest.fixture(params=["folder", "url"])
def beside(request, tmp_path):
    """A store's place, of both kinds."""
    if request.param == "folder":
        return tmp_path / "store.zarr"
    request.getfixturevalue("s3")
    return f"s3://maps/{uuid.uuid4().hex}/store.zarr"


def test_small_objects_beside_a_store_are_made_once(beside):
    basis = place_of(beside).sibling(".basis.json")
    assert basis.read() is None
    assert basis.create("", b"one")
    assert not basis.create("", b"two")
    assert basis.read() == b"one"
    basis.put("", b"three")
    assert (basis.read(), basis.size("")) == (b"three", 5)
    basis.delete()
    basis.delete()
    assert basis.size("") is None


def test_lists_name_what_lies_below(beside):
    place = place_of(beside)
    for key in ("a/1", "a/b/2", "c"):
        place.put(key, b"xy")
    assert place.list("a") == (("a/1", 2), ("a/b/2", 2))
    assert place.list() == (("a/1", 2), ("a/b/2", 2), ("c", 2))
    assert place.list("none") == ()


def test_a_time_step_belongs_to_the_output_that_came_first(beside):
    start, end = YEAR
    steps.claim(beside, start, end, owner="a", output="/maps/a")
    steps.claim(beside, start, end, owner="a", output="/moved/a")
    with pytest.raises(
        OutputError, match="2025-03-01 belongs to the output /maps/a.*delete.*2025-03-01.json"
    ) as caught:
        steps.claim(beside, start, end, owner="b", output="/maps/b")
    assert caught.value.exit_code == 73
    steps.claim(beside, start.replace(year=2024), end.replace(year=2024), owner="b", output="/maps/b")


def test_a_folder_that_cannot_be_written_is_read_without_a_lock(tmp_path, monkeypatch):
    """A read-only file system, which has an error of its own."""

    def refused(*_args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(durable.os, "open", refused)
    with place_of(tmp_path / "store.zarr").shared():
        pass


def test_local_places_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_of("store.zarr") == place_of(f"file://{tmp_path}/store.zarr") == LocalPlace(tmp_path / "store.zarr")
