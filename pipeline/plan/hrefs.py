"""Where the files of an item lie: hrefs are resolved, checked and stripped of signatures.

An href is the most dangerous text of an item, because it is what gets opened. A remote catalogue may name remote files
only; a local one may name plain files too. Nobody may name GDAL's virtual file systems or drivers. What leaves this
module may be stored and shown: it holds no password, no signature and no token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from pipeline.errors import DataError
from pipeline.plan.item_values import hostname_of, mapping, name_of, quoted, sequence

if TYPE_CHECKING:
    from urllib.parse import SplitResult

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "abfss")
_SAS_KEYS = frozenset([
    "sv", "ss", "srt", "st", "se", "sr", "sp", "sip", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv", "sdd",
    "si", "ses", "saoid", "suoid", "scid", "rscc", "rscd", "rsce", "rscl", "rsct",
])  # fmt: skip
"""Azure shared access signatures (Microsoft, Create a service SAS / user delegation SAS)."""
_SIGNED_KEYS = frozenset([
    "awsaccesskeyid", "googleaccessid", "signature", "expires", "key-pair-id", "policy", "hash-algorithm",
    "token", "access_token", "auth", "authorization", "jwt", "apikey", "api_key", "api-key", "key", "subscription-key",
    "password", "ossaccesskeyid", "security-token",
])  # fmt: skip
"""AWS version 2, Google version 2, CloudFront, Alibaba, and the usual names of tokens and keys."""
_SIGNED_STARTS = ("x-amz-", "x-goog-", "x-oss-")


def redact(text: str) -> str:
    """Text without passwords and query strings of URLs."""
    return re.sub(r"\?[^\s'\")>]+", "?...", re.sub(r"://[^/\s@]*@", "://", text))


def href_of(asset: dict[str, Any], *, item: dict[str, Any], base: str | None, band: str, prefer: str = "") -> str:
    """The place of an asset: resolved, checked, unsigned.

    Args:
        asset: The asset; hrefs of the alternate-assets extension count after its own.
        item: Its item; a remote self link wins over ``base``.
        base: Where the item comes from: URL, local file, or None for an unknown remote place.
        band: For messages.
        prefer: Scheme to take before an ``http(s)`` href, e.g. ``s3``; other hrefs of its own, like those of a local
            copy, stay first.

    Returns:
        URL, or absolute path.

    Raises:
        DataError: No href, or none that this catalogue may name; the message is about the first.
    """
    found = [asset.get("href"), *_alternates(asset)]
    if prefer and _starts(found[0], "http"):
        found.sort(key=lambda h: not _starts(h, f"{prefer}://"))
    refused: DataError | None = None
    for href in found:
        try:
            return _resolve(href, item=item, base=base, name=f"{name_of(item)}, asset {band}")
        except DataError as err:
            refused = refused or err
    raise refused or DataError(f"{name_of(item)}, asset {band} has no href")


def is_local(place: str) -> bool:
    """Whether a place is a file on this machine (a path or ``file://``)."""
    parts = _split(place)
    return parts is not None and parts.scheme.lower() in {"", "file"}


def local_path(place: str) -> str:
    """The path of a local place."""
    return unquote(urlsplit(place).path) if place.lower().startswith("file:") else place


def unsigned(href: str) -> str:
    """A URL without user, password and signature: what may be stored and shown.

    SAS parameters (Azure) are dropped only beside ``sig``, because ``se`` or ``sp`` alone may mean something else.
    """
    parts = urlsplit(href)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = _harmless(pairs)
    query = parts.query if len(kept) == len(pairs) else urlencode(kept)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _harmless(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    sas = any(k.lower() == "sig" for k, _ in pairs)
    return [(k, v) for k, v in pairs if not _secret(k.lower(), sas=sas)]


def _secret(key: str, *, sas: bool) -> bool:
    return key in _SIGNED_KEYS or key.startswith(_SIGNED_STARTS) or (sas and key in _SAS_KEYS)


def _starts(href: Any, start: str) -> bool:
    return isinstance(href, str) and href.strip().lower().startswith(start)


def _alternates(asset: dict[str, Any]) -> list[Any]:
    """Hrefs of https://github.com/stac-extensions/alternate-assets, in the order of their names."""
    alternates = mapping(asset.get("alternate"))
    return [mapping(alternates[key]).get("href") for key in sorted(alternates, key=str)]


def _resolve(href: Any, *, item: dict[str, Any], base: str | None, name: str) -> str:
    if not isinstance(href, str) or not href.strip():
        raise DataError(f"{name} has no href")
    href = href.strip()
    if not (href + unquote(href)).isprintable() or "\\" in href or href.startswith("<"):
        raise DataError(f"{name}: the href holds characters that no file name of an archive has; correct the item")
    parts = _split(href)
    scheme = None if parts is None else parts.scheme.lower()
    if scheme in REMOTE_SCHEMES:
        return _remote(href, name=name)
    if scheme not in {"", "file"} or href.lower().startswith("/vsi"):
        shown = href[:8] if not scheme else f"{scheme[:20]}:"
        raise DataError(f"{name}: href {shown}... is refused; allowed are {', '.join(REMOTE_SCHEMES)} and plain files")
    if base is not None and is_local(base):
        return _local(href, base=base, name=name)
    if scheme == "file" or (href.startswith("/") and not href.startswith("//")):
        raise DataError(
            f"{name}: a remote catalogue names the local path {quoted(href, 120)}: refused; use a file catalogue"
        )
    own = _self_link(item) or base
    if own is None:
        raise DataError(
            f"{name}: href {quoted(href, 120)} is relative and the item has no self link to resolve it against"
        )
    return _remote(_join(own, href), name=name)


def _remote(href: str, *, name: str) -> str:
    parts = _split(href)
    if parts is None or parts.scheme.lower() not in REMOTE_SCHEMES or not hostname_of(href):
        raise DataError(
            f"{name}: href {quoted(href, 120)} is not the URL of a file (scheme://host/path); correct the item"
        )
    return unsigned(href)


def _self_link(item: dict[str, Any]) -> str | None:
    links = [mapping(link) for link in sequence(item.get("links"))]
    own = [str(link.get("href")) for link in links if link.get("rel") == "self"]
    return next((h for h in own if (parts := _split(h)) is not None and parts.scheme in REMOTE_SCHEMES), None)


def _join(base: str, href: str) -> str:
    """``urljoin`` for all remote schemes (it leaves alone those that it does not know, e.g. s3)."""
    scheme, _, rest = base.partition(":")
    try:
        joined = urljoin(f"https:{rest}", href)
    except ValueError:
        return ""
    return f"{scheme}:{joined.partition(':')[2]}"


def _local(href: str, *, base: str, name: str) -> str:
    if href.lower().startswith("file:"):
        parts = urlsplit(href)
        if parts.netloc not in {"", "localhost"}:
            raise DataError(f"{name}: {quoted(href, 120)} names a host; only file:///path is allowed")
        href = unquote(parts.path)
    # A signed relative href in a copy of a remote catalogue; "?" and "#" alone may be part of a file name.
    pairs = parse_qsl(href.partition("?")[2], keep_blank_values=True)
    href = href.partition("?")[0] if len(_harmless(pairs)) < len(pairs) else href
    folder = Path(local_path(base)).absolute().parent
    path = Path(*_squeeze((folder / href).parts))
    if str(path).lower().startswith("/vsi"):
        raise DataError(f"{name}: href {quoted(href, 120)} leads to {str(path)[:8]}...: refused")
    return str(path)


def _squeeze(parts: tuple[str, ...]) -> list[str]:
    """Drop ``.`` and resolve ``..`` by name: links on the disk are left to the reader."""
    kept: list[str] = []
    for part in parts:
        if part == ".." and len(kept) > 1:
            kept.pop()
        elif part not in {".", ".."}:
            kept.append(part)
    return kept


def _split(href: str) -> SplitResult | None:
    """The parts of a URL; None when it is malformed (``http://[x``)."""
    try:
        return urlsplit(href)
    except ValueError:
        return None
