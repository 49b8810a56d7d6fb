"""What may be opened: schemes, hosts, addresses. Pure text, except ``lookup``, which asks the resolver.

Item hrefs come from catalogues of strangers: without these rules an href could read a file of this machine, or send
requests into the network that this machine stands in (server-side request forgery).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pipeline.errors import InvalidInputError

VSI = {"http": "/vsicurl/", "https": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "file": ""}
"""GDAL's file system by URL scheme."""
STORAGE = re.compile(
    r"[a-z0-9]+\.blob\.core\.windows\.net|([a-z0-9.-]+\.)?s3([.-][a-z]{2,3}(-[a-z]+)+-\d)?\.amazonaws\.com|storage\.googleapis\.com"
)
"""Object storage interfaces, which send nobody to a place that a customer names: redirects need no watch there. (A
website endpoint can: s3-website-*, *.web.core.windows.net, which therefore do not match.)"""
PAID_BUCKETS = ("usgs-landsat", "sentinel-s1-l1c", "sentinel-s2-l1c", "sentinel-s2-l2a")
"""Requester-pays buckets by https://registry.opendata.aws."""
METADATA_HOSTS = ("metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal")
METADATA_ADDRESSES = (ipaddress.IPv4Address("168.63.129.16"),)
"""Azure's wire server has a public address; 169.254.169.254, fd00:ec2::254, 100.100.100.200 (Alibaba) lie in ranges
that are refused as a whole."""
SPECIAL = ipaddress.IPv4Network("192.0.0.0/24")  # RFC 6890; Oracle's metadata at .192; ``is_global`` misses part of it
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
LOOKUP_S = 5.0
KEEP_S, KEEP_FAILURE_S = 300.0, 60.0
MAX_KEPT = 4096

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The rules; hashable.

    Attributes:
        local: Plain paths and file:// URLs.
        private: Addresses that are not public: loopback, link-local, private, shared, metadata services.
        schemes: URL schemes.
        hosts: Hosts (for s3, gs, az: buckets); ``.example.org`` also allows every host below; empty: all.
        requester_pays: Buckets that charge the reader.
    """

    local: bool = False
    private: bool = False
    schemes: tuple[str, ...] = ("https", "http", "s3", "gs", "az")
    hosts: tuple[str, ...] = ()
    requester_pays: bool = False

    def check(self, href: str) -> str:
        """The scheme of ``href`` (``file`` for a plain path) when its text is allowed; asks no resolver.

        Raises:
            InvalidInputError: Scheme, host or path is not allowed.
        """
        shown = redact(href)
        try:
            parts = urlsplit(href)
            host = (parts.hostname or "").rstrip(".").lower()
        except ValueError as err:
            raise InvalidInputError(f"{shown} is not a URL: {err}") from None
        if re.search(r"[\x00-\x20\x7f\\]", href) and parts.scheme not in ("", "file"):
            raise InvalidInputError(f"{shown} is not a URL: it holds blanks, control characters or backslashes")
        if parts.scheme in ("", "file") or (parts.scheme not in VSI and "://" not in href):
            self._check_local(href, shown)
            return "file"
        if parts.scheme not in self.schemes or parts.scheme not in VSI:
            raise InvalidInputError(f"{shown}: scheme {parts.scheme!r} is not allowed; allowed: {self.schemes}")
        if not host or "@" in parts.netloc:
            raise InvalidInputError(f"{shown}: URLs need a host and must not hold a user name")
        if why := self.why_not(host, name=parts.scheme not in ("http", "https")):
            raise InvalidInputError(f"{shown}: {why}")
        if parts.scheme == "s3" and host in PAID_BUCKETS and not self.requester_pays:
            raise InvalidInputError(
                f"{shown}: every request to bucket {host} is charged to the reader's AWS account; to pay, give AWS "
                "credentials and allow it (inputs.landsat.requester_pays=true, or AWS_REQUEST_PAYER=requester in the "
                "environment)"
            )
        return parts.scheme

    def why_not(self, host: str, *, name: bool = False) -> str:
        """Why a host must not be asked, by its text alone; empty: it may.

        Args:
            host: Lower case, without port.
            name: It is only a name (a bucket), no host.
        """
        if not name and not self.private and _internal(host):
            return (
                f"{host} is not a public address: loopback, link-local and private addresses are not allowed (without "
                "inputs.allow_private_hosts=true)"
            )
        if self.hosts and not any(host == h or (h.startswith(".") and host.endswith(h)) for h in self.hosts):
            return f"host {host} is not among the allowed ones (inputs.allowed_hosts): {', '.join(self.hosts)}"
        return ""

    def check_address(self, href: str) -> None:
        """Resolve the host of an http(s) ``href`` and refuse it when any address is not public.

        A host that does not resolve in time is left to the reader, which then fails or is stopped by the guard.

        Raises:
            InvalidInputError: The host stands for an address that is not allowed.
        """
        host = (urlsplit(href).hostname or "").rstrip(".").lower()
        if self.private:
            return
        for address in lookup(host):
            if not public(address):
                raise InvalidInputError(
                    f"{redact(href)}: host {host} stands for {address}, which is not a public address: loopback, "
                    "link-local and private addresses are not allowed (without inputs.allow_private_hosts=true)"
                )

    def needs_guard(self, href: str) -> bool:
        """Whether connections for an http(s) ``href`` must be watched, because a redirect could leave the rules."""
        parts = urlsplit(href)
        if self.private and not self.hosts:
            return False
        return not (parts.scheme == "https" and STORAGE.fullmatch((parts.hostname or "").lower()))

    def _check_local(self, href: str, shown: str) -> None:
        path = local_path(href)
        if re.match(r"/+vsi\w+([/?]|$)", path):
            raise InvalidInputError(f"{shown}: /vsi paths are not allowed; give the URL itself")
        plain = unquote(urlsplit(href).path) if href.lower().startswith("file:") else href
        if re.match(r"[A-Za-z]\w+:", plain) or plain.lstrip().startswith(("<", "{")) or re.search(r"[|\x00]", plain):
            raise InvalidInputError(f"{shown} is not the path of a file: driver prefixes and pipes are not allowed")
        if not self.local:
            raise InvalidInputError(f"{shown} is a local file and local files are not allowed here (allow_local)")


_SECRET = re.compile(r"\?[^\s'\"<>]*|//[^/\s'\"@]*@")


def redact(text: str) -> str:
    """``text`` without URL queries and user names: what may be logged or raised.

    >>> redact("https://a.example/x.tif?sig=1 failed")
    'https://a.example/x.tif failed'
    """
    return _SECRET.sub(lambda m: "//" if m.group().startswith("//") else "", text)


def local_path(href: str) -> str:
    """Absolute path of a plain path or a file:// URL."""
    return os.path.abspath(unquote(urlsplit(href).path) if href.lower().startswith("file:") else href)  # noqa: PTH100


def public(address: Address) -> bool:
    """Whether an address is one of the open Internet, also when it is wrapped into an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return public(inner)
        if address.is_site_local:  # fec0::/10, deprecated and yet routed
            return False
    if isinstance(address, ipaddress.IPv4Address) and address in SPECIAL:
        return False
    return address.is_global and not address.is_multicast and address not in METADATA_ADDRESSES


def parse_address(host: str) -> Address | None:
    """The address that ``host`` writes, also in the forms only curl understands; None: it is a name.

    >>> parse_address("0x7f.1")
    IPv4Address('127.0.0.1')
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # 2130706433, 0x7f.1, 127.1
        except (OSError, UnicodeError, ValueError):
            return None


def _internal(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost") or host in METADATA_HOSTS:
        return True
    address = parse_address(host)
    return address is not None and not public(address)


_KEPT: dict[str, tuple[float, tuple[Address, ...]]] = {}
_LOCK = threading.Lock()


def lookup(host: str) -> tuple[Address, ...]:
    """Every address of a host, asked once and then kept for 5 minutes; empty: it does not resolve within 5 s."""
    now = time.monotonic()
    with _LOCK:
        until, found = _KEPT.get(host, (0.0, ()))
    if now < until:
        return found
    found = _ask(host)
    with _LOCK:
        if len(_KEPT) >= MAX_KEPT:
            _KEPT.clear()
        _KEPT[host] = (time.monotonic() + (KEEP_S if found else KEEP_FAILURE_S), found)
    return found


def _ask(host: str) -> tuple[Address, ...]:
    answer: list[tuple[Address, ...]] = []

    def ask() -> None:
        answer.append(resolve(host))

    thread = threading.Thread(target=ask, daemon=True, name="earthpress-lookup")  # getaddrinfo has no time limit
    thread.start()
    thread.join(LOOKUP_S)
    return answer[0] if answer else ()


def resolve(host: str) -> tuple[Address, ...]:
    """Every address of a host now; empty: it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
