"""What may be opened: paths, schemes, hosts, addresses, redirects, buckets that charge."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from files import scene_of, write_cog
from range_server import serving
from remote_files import BOX, FAST, HTTP, VALUES, classes_of, far, read, read_href, with_tail_overviews

from pipeline.errors import DataError, InvalidInputError
from pipeline.read import allow, guard
from pipeline.read.access import Access
from pipeline.read.allow import Allowed, lookup, public
from pipeline.read.windows import read_native
from pipeline.types import Asset
from tests.servers.ranges import Fault


@pytest.fixture(autouse=True)
def _own_network(monkeypatch):
    """No proxy of the environment and no kept answers of the resolver."""
    for name in (*guard.PROXY_VARIABLES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allow, "_KEPT", {})
    monkeypatch.setattr(guard, "_SAID", set())
    monkeypatch.setattr(guard, "_GUARDS", {})
    monkeypatch.setattr(guard, "_start", guard.Guard)


@pytest.fixture(name="server")
def _server(tmp_path):
    write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(name="inner")
def _inner(tmp_path):
    """Another server, which must never be asked."""
    with serving(tmp_path) as server:
        yield server


@pytest.mark.parametrize(
    "href",
    [
        "http://127.0.0.1/x.tif",
        "http://localhost:80/x.tif",
        "http://[::1]/x.tif",
        "http://2130706433/x.tif",
        "http://0x7f.1/x.tif",
        "http://169.254.169.254/latest",
        "http://0.0.0.0/x.tif",
        "http://LOCALHOST./x.tif",
        "http://[::ffff:127.0.0.1]/x.tif",
        "http://metadata.google.internal/x",
        "http://[fe80::1%25eth0]/x.tif",
        "http://10.1.2.3/x.tif",
        "http://172.16.0.1/x.tif",
        "https://192.168.0.1/x.tif",
        "http://100.64.0.1/x.tif",
        "http://100.100.100.200/latest",
        "http://168.63.129.16/metadata",
        "http://192.0.0.192/x.tif",
        "http://224.0.0.1/x.tif",
        "http://255.255.255.255/x.tif",
        "http://[fd00:ec2::254]/x.tif",
        "http://[fec0::1]/x.tif",
        "http://[ff02::1]/x.tif",
        "http://[::]/x.tif",
        "http://[64:ff9b::7f00:1]/x.tif",
        "http://[2002:7f00:1::]/x.tif",
    ],
)
def test_addresses_that_are_not_public_are_refused(href):
    with pytest.raises(InvalidInputError, match="not a public address"):
        Access().check(href)
    assert Access(allow_private=True).check(href) in ("http", "https")


@pytest.mark.parametrize("href", ["http://8.8.8.8/x.tif", "https://[2606:4700::1111]/x.tif"])
def test_public_addresses_are_allowed(href):
    assert Access().check(href) in ("http", "https")


@pytest.mark.parametrize(
    "href",
    [
        "/vsicurl/http://example.org/x.tif",
        "/vsizip/x.zip/a.tif",
        "file:///vsizip/x.zip/a.tif",
        "//vsis3/bucket/x.tif",
        "ftp://h.org/x.tif",
        "http://user:pw@h.org/x.tif",
        "http://h.org/a b.tif",
        "http:///x.tif",
        "http://[x/y.tif",
        "gopher://h.org/x",
        "vrt:///x.tif",
        "file:///%76sicurl/http://h.org/x.tif",
        "GTIFF_DIR:1:/data/x.tif",
        "GTIFF_RAW:/data/x.tif",
        "NETCDF:/data/x.nc:band",
        "/data/x.tif|cat",
        "<VRTDataset></VRTDataset>",
        '{"type": "gdal_streamed_alg"}',
    ],
)
def test_detours_and_foreign_schemes_are_refused_even_where_local_files_are_allowed(href):
    with pytest.raises(InvalidInputError):
        Access(allow_local=True, allow_private=True).check(href)


@pytest.mark.parametrize("href", ["/data/x.tif", "data/x.tif", "file:///data/x.tif"])
def test_local_files_are_refused_unless_asked_for(href):
    with pytest.raises(InvalidInputError, match="local file"):
        Access().check(href)
    assert Access(allow_local=True).check(href) == "file"


def test_hosts_can_be_limited():
    access = Access(hosts=(".blob.core.windows.net", "bucket"))
    assert access.check("https://a.blob.core.windows.net/x.tif") == "https"
    assert access.check("s3://bucket/x.tif") == "s3"
    for href in ("https://blob.core.windows.net.evil.org/x.tif", "s3://other/x.tif"):
        with pytest.raises(InvalidInputError, match="not among the allowed"):
            access.check(href)


def test_a_vrt_that_points_at_a_local_file_is_not_opened(tmp_path):
    target = write_cog(tmp_path / "secret.tif", VALUES, box=BOX)
    trap = tmp_path / "trap.tif"
    trap.write_text(
        f'<VRTDataset rasterXSize="200" rasterYSize="200"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{target}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    asset = Asset(band="B02", href=str(trap))
    with pytest.raises(DataError):
        read_native(scene_of("S", asset), asset, box=BOX, access=Access(allow_local=True))


def resolving(monkeypatch, **addresses):
    """Names (``_`` for ``.``) that the resolver knows; returns the list of those asked for."""
    known, asked = {name.replace("_", "."): found for name, found in addresses.items()}, []
    real = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if host not in known:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0)) for found in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("8.8.8.8", "10.0.0.1")])
def test_a_name_that_stands_for_a_private_address_is_refused(monkeypatch, addresses):
    asked = resolving(monkeypatch, archive_example=addresses)
    for _ in range(3):
        with pytest.raises(InvalidInputError, match=r"archive.example stands for (127.0.0.1|10.0.0.1)"):
            read_href("https://archive.example/x.tif", Access())
    assert len(asked) == 1


def test_a_resolver_that_hangs_holds_nobody_up_for_long(monkeypatch):
    monkeypatch.setattr(allow, "LOOKUP_S", 0.05)
    monkeypatch.setattr(allow, "resolve", lambda _: time.sleep(0.5))
    start = time.monotonic()
    assert lookup("slow.example") == ()
    assert time.monotonic() - start < 0.4


def test_private_addresses_cost_no_lookup_where_they_are_allowed(monkeypatch, server):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the resolver"))
    np.testing.assert_array_equal(read(server, HTTP), VALUES)


def test_a_redirect_to_a_host_that_is_not_allowed_never_arrives(server, inner):
    server.http_faults = [Fault(kind="redirect", to=f"http://localhost:{inner.server_port}/b.tif")]
    with pytest.raises(InvalidInputError, match="leads to localhost"):
        read(server, replace(HTTP, hosts=("127.0.0.1",)))
    assert server.log
    assert inner.connections == 0


def test_a_redirect_of_a_later_request_never_arrives_either(server, inner):
    server.http_faults = [Fault(kind="redirect", to=f"http://localhost:{inner.server_port}/b.tif", ranges=True)]
    with pytest.raises((InvalidInputError, DataError)):
        read(server, replace(HTTP, hosts=("127.0.0.1",)))
    assert any(entry.range for entry in server.log)
    assert inner.connections == 0


def test_a_redirect_to_an_allowed_host_is_followed(server, inner):
    server.http_faults = [Fault(kind="redirect", to=inner.url("b.tif"))]
    np.testing.assert_array_equal(read(server, replace(HTTP, hosts=("127.0.0.1",))), VALUES)
    assert inner.log


def outside(monkeypatch, server):
    """The name archive.example with a public address, behind which ``server`` answers."""
    resolving(monkeypatch, archive_example=("8.8.8.8",))
    real = guard.dial
    monkeypatch.setattr(guard, "dial", lambda a, port: real("127.0.0.1" if a == "8.8.8.8" else a, port))
    return f"http://archive.example:{server.server_port}/b.tif"


def test_a_public_archive_is_read_through_the_guard(monkeypatch, server):
    np.testing.assert_array_equal(read_href(outside(monkeypatch, server), Access(gdal=FAST)), VALUES)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1"])
def test_a_redirect_from_a_public_archive_into_this_network_never_arrives(monkeypatch, server, inner, host):
    server.http_faults = [Fault(kind="redirect", to=f"http://{host}:{inner.server_port}/b.tif")]
    with pytest.raises(InvalidInputError, match="leads to"):
        read_href(outside(monkeypatch, server), Access(gdal=FAST))
    assert server.log
    assert inner.connections == 0


def test_a_name_that_changes_its_address_after_the_check_is_not_dialled(monkeypatch, inner):
    answers = iter([("8.8.8.8",)])
    monkeypatch.setattr(allow, "lookup", lambda _: tuple(ipaddress.ip_address(a) for a in next(answers)))
    resolving(monkeypatch, rebinding_example=("127.0.0.1",))
    with pytest.raises(InvalidInputError, match=r"leads to rebinding.example"):
        read_href(f"http://rebinding.example:{inner.server_port}/b.tif", Access(gdal=FAST))
    assert inner.connections == 0


@pytest.mark.parametrize(
    "href",
    [
        "https://sentinel2l2a01.blob.core.windows.net/c/x.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/x.tif",
        "https://s3.amazonaws.com/b/x.tif",
        "https://s3-us-west-2.amazonaws.com/b/x.tif",
        "https://storage.googleapis.com/b/x.tif",
    ],
)
def test_object_storage_needs_no_guard(href):
    assert not Allowed().needs_guard(href)


@pytest.mark.parametrize(
    "href",
    [
        "https://archive.example/x.tif",
        "http://a.blob.core.windows.net/c/x.tif",
        "https://b.s3-website-us-west-2.amazonaws.com/x.tif",
        "https://s3.us-west-2.amazonaws.com.evil.org/x.tif",
        "https://evils3.amazonaws.com/x.tif",
        "https://a.web.core.windows.net/x.tif",
    ],
)
def test_everything_else_is_guarded(href):
    assert Allowed().needs_guard(href)
    assert Allowed(private=True, hosts=("x",)).needs_guard(href)
    assert not Allowed(private=True).needs_guard(href)


def test_a_proxy_of_the_environment_is_left_in_charge_and_said_once(monkeypatch, caplog):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert guard.proxy_for(Allowed()) is None
    assert guard.proxy_for(Allowed()) is None
    assert len([r for r in caplog.records if "proxy is used" in r.message]) == 1


def ask_guard(request, rules):
    """The guard's answer to raw bytes after the greeting."""
    watch = guard.Guard(rules)
    port = int(watch.url.rpartition(":")[2])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"\x05\x01\x00" + request)
            got = b""
            while part := client.recv(64):
                got += part
            return got
    finally:
        watch.close()


def connect(host, port=80, command=1):
    return bytes((5, command, 0, 3, len(host))) + host.encode() + struct.pack("!H", port)


def test_the_guard_refuses_what_the_rules_forbid():
    assert ask_guard(connect("127.0.0.1"), Allowed())[3] == guard.NOT_ALLOWED
    assert ask_guard(connect("Localhost."), Allowed())[3] == guard.NOT_ALLOWED
    assert ask_guard(connect("10.0.0.1"), Allowed(hosts=("h",), private=True))[3] == guard.NOT_ALLOWED
    assert ask_guard(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", Allowed())[3] == guard.NOT_ALLOWED
    v6 = ipaddress.ip_address("::1").packed
    assert ask_guard(b"\x05\x01\x00\x04" + v6 + b"\x00\x50", Allowed())[3] == guard.NOT_ALLOWED


def test_the_guard_only_makes_connections():
    assert ask_guard(connect("127.0.0.1", command=2), Allowed(private=True))[3] == guard.WRONG


def test_the_guard_says_when_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert ask_guard(connect("127.0.0.1", port), Allowed(private=True))[3] == guard.UNREACHABLE


def test_wrapped_addresses_are_judged_by_what_they_wrap():
    assert public(ipaddress.ip_address("64:ff9b::808:808"))
    assert not public(ipaddress.ip_address("64:ff9b::a00:1"))
    assert not public(ipaddress.ip_address("::ffff:169.254.169.254"))


class _S3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.payers.append(self.headers.get("x-amz-request-payer"))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@contextmanager
def s3(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _S3)
    server.payers = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.server_port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "none",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_REQUEST_PAYER", raising=False)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_bucket_that_charges_is_not_asked_without_consent(monkeypatch):
    with s3(monkeypatch) as server:
        with pytest.raises(InvalidInputError, match="requester_pays"):
            read_href("s3://usgs-landsat/x.tif", Access(gdal=FAST))
        assert server.payers == []


def test_with_consent_every_request_says_who_pays(monkeypatch):
    with s3(monkeypatch) as server:
        with pytest.raises(DataError):
            read_href("s3://usgs-landsat/x.tif", Access(gdal=FAST, requester_pays=True))
        assert set(server.payers) == {"requester"}


def test_consent_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert Access()._allowed().check("s3://usgs-landsat/x.tif") == "s3"


def test_nobody_pays_by_accident(monkeypatch):
    with s3(monkeypatch) as server:
        with pytest.raises(DataError):
            read_href("s3://open-bucket/x.tif", Access(gdal=FAST))
        assert set(server.payers) == {None}


def test_the_payer_is_named_to_s3_only(monkeypatch, server):
    monkeypatch.delenv("AWS_REQUEST_PAYER", raising=False)
    from pipeline.read.gdal import environment

    assert "AWS_REQUEST_PAYER" not in environment((), scheme="https", pays=True, proxy=None)
    assert environment((), scheme="s3", pays=True, proxy=None)["AWS_REQUEST_PAYER"] == "requester"


# --- the guard as it runs: a process of its own -----------------------------------------------------------------------


@pytest.fixture
def guard_process(monkeypatch):
    monkeypatch.setattr(guard, "_start", guard.GuardProcess)
    yield
    for watch in guard._GUARDS.values():
        watch.close()


@pytest.fixture(scope="module")
def tail_overviews(tmp_path_factory):
    """(folder, box) of a classification whose overviews lie behind its pixels."""
    folder = tmp_path_factory.mktemp("far")
    return folder, with_tail_overviews(folder / "SCL.tif")


def test_overviews_are_listed_through_the_guard_as_without_it(guard_process, tail_overviews):
    folder, box = tail_overviews
    access = Access(allow_private=True, hosts=("127.0.0.1",))
    with far(folder) as port:
        there = classes_of(f"http://127.0.0.1:{port}/SCL.tif", box, access)
    here = classes_of(str(folder / "SCL.tif"), box, Access(allow_local=True))
    assert len(guard._GUARDS) == 1
    np.testing.assert_array_equal(there, here)


def test_the_guard_process_ends_with_its_parent_and_is_started_again_after_a_kill(guard_process):
    rules = Allowed(hosts=("h",), private=True)
    first = guard.proxy_for(rules)
    (watch,) = guard._GUARDS.values()
    watch._process.kill()
    watch._process.wait()
    second = guard.proxy_for(rules)
    assert second != first
    (watch,) = guard._GUARDS.values()
    watch._process.stdin.close()
    assert watch._process.wait(timeout=10) == 0
