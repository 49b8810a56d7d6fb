"""report.html: one file that shows what a run made, from what, and what it cost; opens from ``file://``.

Takes finished values only. Everything is inside the file (pictures as data URIs, styles, scripts, the map library), a
content security policy forbids any outside resource and any script but those written here, and every text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from pipeline.errors import InvalidInputError
from pipeline.write import durable, page_map, page_tables
from pipeline.write.page_tables import MAX_ROWS
from pipeline.write.page_values import MapTile, MapView, PageContent, Picture, Ring, SeamSection, Table, Value

__all__ = [
    "MAX_ROWS",
    "MapTile",
    "MapView",
    "PageContent",
    "Picture",
    "Ring",
    "SeamSection",
    "Table",
    "Value",
    "render_page",
    "write_page",
]

_PNG = b"\x89PNG\r\n\x1a\n"


def write_page(path: str, content: PageContent) -> None:
    """Write the page; atomic.

    Raises:
        InvalidInputError: A picture is not a PNG, or a colour not ``#rrggbb``.
        OutputError: The file cannot be written.
    """
    durable.replace(Path(path), render_page(content).encode("utf-8"))


def render_page(content: PageContent) -> str:
    """The page as HTML text."""
    c = content
    mapped = bool(page_map.on_map(c.pictures))
    body = (
        _warnings(c.warnings),
        _facts(c.facts),
        page_map.section(c.pictures, c.view or MapView()) if mapped else "",
        _pictures(c.pictures, folded=mapped),
        _columns(
            _section("Cost and usage", page_tables.values(c.cost)),
            _section("Estimate and actual", page_tables.estimates(c.estimates))
            + _section("Storage", page_tables.values(c.storage)),
        ),
        _tiles(c.tiles, mapped=mapped),
        *(_section(t.title, page_tables.table(t)) for t in c.tables),
        _seams(c.seams),
        _section("Provenance", page_tables.pairs(c.provenance)),
        _section("Notes", page_tables.bullets(c.notes)),
    )
    return _document(c, "".join(body), mapped=mapped)


def _document(content: PageContent, body: str, *, mapped: bool) -> str:
    """The frame. The order of scripts matters: the first one counts the errors of all later ones."""
    library = page_map.leaflet() if mapped else None
    scripts = [page_map.asset("page.js")]
    style = page_map.asset("page.css")
    if library:
        scripts += [library.script, page_map.asset("map.js")]
        style = library.style + style + page_map.asset("map.css")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(_hashed(script) for script in scripts)}; base-uri 'none'; form-action 'none'"
    )
    thanks = f"<p>Map viewer: Leaflet {escape(library.version)}, BSD 2-Clause License</p>" if library else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(content.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(content.title)}</h1>{page_tables.paragraph(content.subtitle, 'subtitle')}</header>\n"
        f"{body}<footer><p>{escape(content.made)}</p>{thanks}</footer>\n</main>\n"
        f"{''.join(f'<script>{script}</script>{chr(10)}' for script in scripts)}</body>\n</html>\n"
    )


def _hashed(script: str) -> str:
    """A source of the policy: this script and no other (Content Security Policy Level 3, 2.3.1)."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _warnings(warnings: tuple[str, ...]) -> str:
    if not warnings:
        return ""
    head = "Read this first" if len(warnings) > 1 else "Warning"
    return f'<aside class="alarm" role="alert"><h2>{head}</h2>{page_tables.bullets(warnings)}</aside>\n'


def _facts(facts: tuple[tuple[str, Value, str], ...]) -> str:
    cards = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{page_tables.shown(value)} <small>{escape(unit)}</small></dd></div>"
        for label, value, unit in facts
    )
    return f'<dl class="facts-row">{cards}</dl>\n' if cards else ""


def _pictures(pictures: tuple[Picture, ...], *, folded: bool) -> str:
    """Every picture once, in order: what is printed, and where the map takes its pictures from."""
    if not pictures:
        return ""
    figures = f'<div class="figures">{"".join(_figure(picture) for picture in pictures)}</div>'
    if folded:
        return f"<section><details><summary>Pictures one by one</summary>{figures}</details></section>\n"
    return _section("Pictures", figures)


def _figure(picture: Picture) -> str:
    if not picture.png.startswith(_PNG):
        raise InvalidInputError(f"picture {picture.name!r} is not a PNG file")
    data = base64.b64encode(picture.png).decode("ascii")
    name = f"{picture.name} {picture.step}".strip()
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(name)}</b> {escape(picture.caption)}{page_map.legend(picture)}"
        "</figcaption></figure>"
    )


def _tiles(table: Table | None, *, mapped: bool) -> str:
    if table is None or not table.rows:
        return ""
    return _section(table.title, page_tables.tally(table) + page_tables.table(table, mapped=mapped))


def _seams(seams: SeamSection | None) -> str:
    if seams is None:
        return ""
    parts = [] if seams.picture is None else [_figure(seams.picture)]
    if seams.profile:
        parts.append(f"<figure>{seams.profile}<figcaption>{escape(seams.caption)}</figcaption></figure>")
    figures = f'<div class="seam">{"".join(parts)}</div>' if parts else ""
    return _section(seams.table.title, figures + page_tables.table(seams.table))


def _columns(*sections: str) -> str:
    """Sections beside each other where there is room."""
    filled = [section for section in sections if section]
    if len(filled) < 2:
        return "".join(filled)
    return f'<div class="columns">{"".join(f"<div>{section}</div>" for section in filled)}</div>\n'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""
