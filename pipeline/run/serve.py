"""``serve``: stores and maps as map tiles over HTTP, with a page that shows them.

    /                          the page
    /layers.json               every layer, in the words of TileJSON
    /{layer}/{z}/{x}/{y}.png   a tile; also QGIS and other GIS take this address as an XYZ layer
    /{layer}/point?lon=&lat=   what lies at a place

Only what is in the dictionary of layers and in the one of the page's files can be asked for: no part of an address ever
becomes a path. Nothing is written. A server of this machine alone answers to names of this machine alone: a web page
elsewhere whose name is made to point here (DNS rebinding) could read everything otherwise.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.errors import ConfigError, EarthpressError, OutputError
from pipeline.run.serve_layers import layers_of
from pipeline.run.serve_page import PAGE, SCRIPT, STYLE
from pipeline.run.served import MAX_ZOOM, Square
from pipeline.write import page_map, preview

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.run.served import Layer

log = logging.getLogger(__name__)

PORT = 8765
HOST = "127.0.0.1"
TILE_AGE_S = 60
"""How long a browser may show a tile without asking again: maps are made anew while they are looked at."""
_TILE = re.compile(r"(?P<y>[^/]+)\.png")
_WHOLE = re.compile(r"-?\d{1,12}")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
"""The page loads nothing from elsewhere. Leaflet sets the places of tiles as inline styles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back."""

    status: HTTPStatus
    kind: str
    body: bytes
    max_age_s: int = 0


class MapServer(ThreadingHTTPServer):
    """Serves layers until it is closed; every request has a thread of its own.

    Args:
        layers: What is shown, by name.
        host: Address to listen at.
        port: 0 takes any that is free.

    Raises:
        ConfigError: The address cannot be used.
    """

    daemon_threads = True

    def __init__(self, layers: Sequence[Layer], *, host: str = HOST, port: int = PORT) -> None:
        # Once, before there are threads: two that import it at the same time find it half made.
        import pyproj  # noqa: F401, PLC0415
        import rio_tiler.io  # noqa: F401, PLC0415

        self.layers: Mapping[str, Layer] = {layer.info.name: layer for layer in layers}
        self.files = page_files()
        self.own_names_only = is_loopback(host)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as err:
            text = getattr(err, "strerror", None) or err
            raise ConfigError(f"cannot listen at {host} port {port}: {text}; choose another with --port") from err

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: browsers drop connections all the time, and what a request did wrong was answered."""


def server_of(places: Sequence[str], *, host: str = HOST, port: int = PORT) -> MapServer:
    """A server of output folders, stores and GeoTIFFs, listening and not serving yet.

    Raises:
        ConfigError: The address cannot be used, or the packages of the viewer are missing.
        InvalidInputError: A place that cannot be shown.
        OutputError: A store that cannot be read, or nothing to show yet.
    """
    missing = [name for name in ("rio_tiler", "xstatic.pkg.leaflet") if _spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {' and '.join(missing)}: pip install rio-tiler XStatic-Leaflet")
    layers = layers_of(places)
    if not layers:
        raise OutputError(f"{', '.join(places)}: nothing to show yet, run it first")
    return MapServer(layers, host=host, port=port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_name(host: str) -> bool:
    """Whether the ``Host`` of a request names this machine; a browser sends the name that stands in its address bar.

    >>> [is_own_name(host) for host in ("localhost:8765", "127.0.0.1", "[::1]:80", "evil.example", "[", "")]
    [True, True, True, False, False, False]
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name.removesuffix("."))


def page_files() -> dict[str, tuple[str, bytes]]:
    """(type, bytes) of every file of the page, by its address."""
    library = page_map.leaflet()
    return {
        "": ("text/html; charset=utf-8", PAGE.encode()),
        "page.css": ("text/css; charset=utf-8", STYLE.encode()),
        "page.js": ("text/javascript; charset=utf-8", SCRIPT.encode()),
        "leaflet.js": ("text/javascript; charset=utf-8", library.script.encode()),
        "leaflet.css": ("text/css; charset=utf-8", library.style.encode()),
    }


class _RefusedError(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: MapServer
    protocol_version = "HTTP/1.1"
    server_version = "earthpress"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        self._send(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the standard library)
        log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses as everything else: JSON, and no word of the request."""
        del message, explain
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(_told(status, status.phrase), with_body=getattr(self, "command", None) != "HEAD")

    def _answer(self) -> Answer:
        host = self.headers.get("Host")
        if self.server.own_names_only and host is not None and not is_own_name(host):
            return _told(HTTPStatus.MISDIRECTED_REQUEST, "this server answers at localhost only; --host opens it")
        try:
            parts = urlsplit(self.path)
            return answer(self.server, [unquote(part) for part in parts.path[1:].split("/")], parse_qs(parts.query))
        except _RefusedError as refused:
            return _told(refused.status, str(refused))
        except EarthpressError as error:
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except Exception:  # a broken file must not take the server down, and its traceback is not for browsers
            log.exception("%s failed", self.path.split("?")[0][:200])
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, "this could not be read; the server's log says why")

    def _send(self, given: Answer, *, with_body: bool) -> None:
        try:
            self.send_response(given.status)
            self.send_header("Content-Type", given.kind)
            self.send_header("Content-Length", str(len(given.body)))
            age = f"private, max-age={given.max_age_s}" if given.max_age_s else "no-store"
            self.send_header("Cache-Control", age)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Security-Policy", _POLICY)
            self.end_headers()
            if with_body:
                self.wfile.write(given.body)
        except ConnectionError:  # the browser moved on
            self.close_connection = True


def answer(server: MapServer, parts: Sequence[str], query: Mapping[str, Sequence[str]]) -> Answer:
    """What an address gives.

    Args:
        server: Layers and files of the page.
        parts: Of the path.
        query: Of the address.
    """
    if len(parts) == 1 and parts[0] in server.files:
        kind, body = server.files[parts[0]]
        return Answer(status=HTTPStatus.OK, kind=kind, body=body, max_age_s=TILE_AGE_S)
    if list(parts) == ["layers.json"]:
        return _json([_tilejson(layer, server.url) for layer in server.layers.values()])
    layer = server.layers.get(parts[0])
    if layer is None:
        raise _RefusedError(HTTPStatus.NOT_FOUND, "no such layer; /layers.json lists them")
    if list(parts[1:]) == ["point"]:
        return _point(layer, query)
    named = _TILE.fullmatch(parts[3]) if len(parts) == 4 else None
    if named is None:
        raise _RefusedError(HTTPStatus.NOT_FOUND, "a layer has /{z}/{x}/{y}.png and /point?lon=&lat=")
    picture = layer.tile(_square(parts[1], parts[2], named["y"]))
    body = preview.png_bytes(picture)
    return Answer(status=HTTPStatus.OK, kind="image/png", body=body, max_age_s=TILE_AGE_S)


def _square(z: str, x: str, y: str) -> Square:
    if not all(_WHOLE.fullmatch(text) for text in (z, x, y)):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "z, x and y of a tile are whole numbers")
    at = Square(z=int(z), x=int(x), y=int(y))
    if not 0 <= at.z <= MAX_ZOOM or not 0 <= at.x < 2**at.z or not 0 <= at.y < 2**at.z:
        raise _RefusedError(HTTPStatus.NOT_FOUND, f"there is no such tile: z is 0..{MAX_ZOOM}, x and y 0..2^z-1")
    return at


def _point(layer: Layer, query: Mapping[str, Sequence[str]]) -> Answer:
    try:
        lon, lat = (float(query[name][0]) for name in ("lon", "lat"))
    except (KeyError, ValueError, IndexError):
        lon = lat = math.nan
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "a point has lon= -180..180 and lat= -90..90, in degrees")
    return _json({"layer": layer.info.name, "lon": lon, "lat": lat, "found": layer.point(lon, lat)})


def _tilejson(layer: Layer, url: str) -> dict[str, Any]:
    """TileJSON 3.0.0, and what the page needs beside it."""
    info = layer.info
    return {
        "tilejson": "3.0.0",
        "name": info.name,
        "description": info.title,
        "tiles": [f"{url}{info.name}/{{z}}/{{x}}/{{y}}.png"],
        "bounds": list(info.bounds),
        "minzoom": info.min_zoom,
        "maxzoom": info.max_zoom,
        "legend": [{"text": text, "colour": colour} for text, colour in info.legend],
        "warning": info.warning,
    }


def _told(status: HTTPStatus, text: str) -> Answer:
    body = json.dumps({"error": text}).encode()
    return Answer(status=status, kind="application/json", body=body)


def _json(value: Any) -> Answer:
    body = json.dumps(_finite(value), allow_nan=False).encode()
    return Answer(status=HTTPStatus.OK, kind="application/json", body=body)


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def _spec(name: str) -> Any:
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # of a package above it
        return None
