"""report.html: one file that shows what a run made, from what, and what it cost; opens from ``file://``.

Takes finished values only. Everything is inside the file (pictures as data URIs, style, a short script), a content
security policy forbids any outside resource, and every text is escaped.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipeline.errors import InvalidInputError
from pipeline.write import durable

Value = str | int | float | None
"""A cell: numbers get thousands separators, None is shown as 'unknown'."""

MAX_ROWS = 500
"""Rows of a table that are shown; a country has tens of thousands of tiles, and their receipts are files anyway."""
_PNG = b"\x89PNG\r\n\x1a\n"
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_STATES = {
    "done": "good",
    "empty": "quiet",
    "pending": "quiet",
    "degraded": "warn",
    "failed": "bad",
    "running": "quiet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture over the whole area; all pictures of a page have the same ground under the same pixel.

    Attributes:
        name: Short title.
        png: PNG file (``preview.png_bytes``), transparent where nodata.
        caption: One sentence: what the colours mean.
        legend: (class, ``#rrggbb``) pairs.
    """

    name: str
    png: bytes
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of any content, e.g. the scores of a probe.

    Attributes:
        title: Heading.
        columns: Column names; a column called ``status`` or ``state`` is shown as coloured badges.
        rows: Cells, one tuple per row.
        note: A sentence below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamSection:
    """The seam scores of a run.

    Attributes:
        table: Scores per lattice and axis.
        picture: The ground around the worst line.
        profile: From ``seam_picture.profile_svg``: the only markup that a value of this page may hold.
        caption: Of the profile.
    """

    table: Table
    picture: Picture | None = None
    profile: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """Everything the page shows; empty parts are left out.

    Attributes:
        title: Name of the run or store.
        subtitle: Area, dates, model in one line.
        warnings: What makes the result less than it looks (untrained weights, provisional calibration, degraded tiles).
        facts: (label, value, unit) shown large at the top: area, tiles, device-hours, cost.
        pictures: The quicklook first, then class maps.
        tiles: Status of tiles.
        cost: (label, value, unit) of the ledger.
        estimates: (label, estimate, actual, unit).
        seams: The seam scores.
        tables: Further tables.
        provenance: (key, value).
        notes: Sentences at the end.
        made: When and by what the page was made.
    """

    title: str
    subtitle: str = ""
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, Value, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    tiles: Table | None = None
    cost: tuple[tuple[str, Value, str], ...] = ()
    estimates: tuple[tuple[str, Value, Value, str], ...] = ()
    seams: SeamSection | None = None
    tables: tuple[Table, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    made: str = ""


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
    parts = (
        _warnings(c.warnings),
        _facts(c.facts),
        _pictures(c.pictures),
        _section("Estimate and actual", _estimates(c.estimates)),
        _section("Cost and usage", _values(c.cost)),
        _tiles(c.tiles),
        *(_section(t.title, _table(t)) for t in c.tables),
        _seams(c.seams),
        _section("Provenance", _pairs(c.provenance)),
        _section("Notes", _list(c.notes)),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(c.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(c.title)}</h1>{_paragraph(c.subtitle, 'subtitle')}</header>\n"
        f"{''.join(parts)}"
        f"<footer>{escape(c.made)}</footer>\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _warnings(warnings: tuple[str, ...]) -> str:
    if not warnings:
        return ""
    head = "Read this first" if len(warnings) > 1 else "Warning"
    return f'<aside class="alarm" role="alert"><h2>{head}</h2>{_list(warnings)}</aside>\n'


def _facts(facts: tuple[tuple[str, Value, str], ...]) -> str:
    cards = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_shown(value)} <small>{escape(unit)}</small></dd></div>"
        for label, value, unit in facts
    )
    return f'<dl class="facts">{cards}</dl>\n' if cards else ""


def _pictures(pictures: tuple[Picture, ...]) -> str:
    if not pictures:
        return ""
    figures = "".join(_figure(picture) for picture in pictures)
    viewer = _viewer(pictures) if len(pictures) > 1 else ""
    return f'<section><h2>Pictures</h2>{viewer}<div class="figures">{figures}</div></section>\n'


def _figure(picture: Picture) -> str:
    if not picture.png.startswith(_PNG):
        raise InvalidInputError(f"picture {picture.name!r} is not a PNG file")
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.name)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(picture.name)}</b> {escape(picture.caption)}{_legend(picture.legend)}"
        "</figcaption></figure>"
    )


def _legend(legend: tuple[tuple[str, str], ...]) -> str:
    items = []
    for name, colour in legend:
        if not _HEX.fullmatch(colour):
            raise InvalidInputError(f"colour {colour!r} of class {name!r} is not of the form #rrggbb")
        items.append(f'<li><i style="background:{colour}"></i>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _viewer(pictures: tuple[Picture, ...]) -> str:
    """The comparison viewer; the script takes its pictures from the figures, so that each is in the file once."""
    options = "".join(f'<option value="{n}">{escape(p.name)}</option>' for n, p in enumerate(pictures) if n)
    return (
        '<div class="viewer" hidden><div class="bar">'
        f'<label>Over {escape(pictures[0].name)}: <select id="over">{options}</select></label>'
        '<label><input type="radio" name="how" value="swipe" checked> swipe</label>'
        '<label><input type="radio" name="how" value="fade"> fade</label>'
        '<input id="amount" type="range" min="0" max="100" value="50" aria-label="share of the upper picture">'
        '<button id="flip" type="button" title="or press space">flip</button>'
        '<button id="fit" type="button">fit</button></div>'
        '<div class="stage" tabindex="0"><div class="sheet"><img class="below" alt=""><img class="above" alt=""></div>'
        '<span class="edge"></span></div><p class="hint">Wheel to zoom, drag to move, drag the line to swipe.</p></div>'
    )


def _tiles(table: Table | None) -> str:
    if table is None or not table.rows:
        return ""
    states = [n for n, name in enumerate(table.columns) if name.lower() in {"status", "state"}]
    counts = Counter(str(row[n]) for row in table.rows for n in states)
    chips = "".join(f"<span>{_badge(state)} {count:,}</span>" for state, count in sorted(counts.items()))
    return _section(table.title, f'<p class="chips">{chips}</p>{_table(table)}')


def _seams(seams: SeamSection | None) -> str:
    if seams is None:
        return ""
    parts = [] if seams.picture is None else [_figure(seams.picture)]
    if seams.profile:
        parts.append(f"<figure>{seams.profile}<figcaption>{escape(seams.caption)}</figcaption></figure>")
    figures = f'<div class="seam">{"".join(parts)}</div>' if parts else ""
    return _section(seams.table.title, figures + _table(seams.table))


def _table(table: Table) -> str:
    states = {n for n, name in enumerate(table.columns) if name.lower() in {"status", "state"}}
    numeric = {n for n in range(len(table.columns)) if table.rows and all(_is_number(row[n]) for row in table.rows)}
    head = "".join(f"<th{_align(n in numeric)}>{escape(name)}</th>" for n, name in enumerate(table.columns))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_align(n in numeric)}>{_badge(str(cell)) if n in states else _shown(cell)}</td>"
            for n, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows[:MAX_ROWS]
    )
    cut = len(table.rows) - MAX_ROWS
    more = f"{cut:,} further rows are not shown." if cut > 0 else ""
    return _scroll(head, body) + _paragraph(f"{table.note} {more}".strip(), "hint")


def _values(rows: tuple[tuple[str, Value, str], ...]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{_shown(value)}</td><td class="unit">{escape(unit)}</td></tr>'
        for label, value, unit in rows
    )
    return _scroll("", body, style="values")


def _estimates(rows: tuple[tuple[str, Value, Value, str], ...]) -> str:
    if not rows:
        return ""
    head = '<th></th><th class="n">estimate</th><th class="n">actual</th><th>unit</th><th>actual / estimate</th>'
    body = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{_shown(estimate)}</td><td class="n">{_shown(actual)}</td>'
        f'<td class="unit">{escape(unit)}</td><td>{_ratio(estimate, actual)}</td></tr>'
        for label, estimate, actual, unit in rows
    )
    return _scroll(head, body)


def _ratio(estimate: Value, actual: Value) -> str:
    """The ratio with a bar; a mark stands where actual equals estimate."""
    if not isinstance(estimate, (int, float)) or not isinstance(actual, (int, float)) or estimate <= 0:
        return '<span class="unit">-</span>'
    ratio = actual / estimate
    return f'<span class="ratio"><i style="width:{min(ratio, 2) * 50:.1f}%"></i></span> {ratio:.2f}'


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def _list(items: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def _scroll(head: str, body: str, *, style: str = "") -> str:
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="{style}">{top}<tbody>{body}</tbody></table></div>'


def _paragraph(text: str, style: str) -> str:
    return f'<p class="{style}">{escape(text)}</p>' if text else ""


def _badge(state: str) -> str:
    return f'<span class="badge {_STATES.get(state.lower(), "quiet")}">{escape(state)}</span>'


def _align(numeric: bool) -> str:  # noqa: FBT001
    return ' class="n"' if numeric else ""


def _is_number(value: Value) -> bool:
    return value is None or isinstance(value, (int, float))


def _shown(value: Value) -> str:
    """A cell as text: whole numbers in full, others with 4 significant digits."""
    if value is None:
        return '<span class="unit">unknown</span>'
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


_STYLE = """
:root{--ink:#17212b;--soft:#5b6875;--line:#dfe4e9;--page:#f6f7f9;--card:#fff;--accent:#0b6e75;--alarm:#b3261e;
--alarm-page:#fdecea;--good:#1b7a43;--warn:#9a5b00;--check:#e9edf1}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#98a5b3;--line:#2c3640;--page:#10161c;--card:#18212a;
--accent:#5cc4cb;--alarm:#ff8a80;--alarm-page:#3a1a19;--good:#6fd39a;--warn:#f0b35a;--check:#222c36}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:72rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:0 0 .9rem;letter-spacing:-.005em}
.subtitle{color:var(--soft);margin:.35rem 0 0;font-size:1.05rem}
section,.alarm{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem 1.4rem;
margin:1.25rem 0}
.alarm{background:var(--alarm-page);border:2px solid var(--alarm);color:var(--ink);font-weight:600}
.alarm h2{color:var(--alarm);font-size:1.2rem;margin-bottom:.4rem}
ul{margin:0;padding-left:1.2rem}li+li{margin-top:.25rem}
.facts{display:flex;flex-wrap:wrap;gap:1px;margin:1.25rem 0;
background:var(--line);border:1px solid var(--line);border-radius:12px;overflow:hidden}
.facts div{flex:1 1 9.5rem;background:var(--card);padding:1rem 1.2rem}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:.1rem 0 0;font-size:1.6rem;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.facts small{font-size:.9rem;font-weight:400;color:var(--soft);letter-spacing:0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1.25rem}
figure{margin:0}
figure img{display:block;width:100%;border-radius:8px;border:1px solid var(--line)}
figure img,.stage{background:repeating-conic-gradient(var(--check) 0 25%,transparent 0 50%) 0 0/20px 20px}
figcaption{margin-top:.6rem;color:var(--soft);font-size:.92rem}figcaption b{color:var(--ink)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1rem;padding:0;margin:.5rem 0 0}
.legend li{display:flex;align-items:center;gap:.45rem;margin:0;color:var(--ink)}
.legend i{width:1rem;height:1rem;border-radius:4px;border:1px solid rgba(128,128,128,.5);flex:none}
.viewer{margin-bottom:1.5rem}
.bar{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:center;margin-bottom:.75rem;font-size:.92rem}
.bar input[type=range]{flex:1;min-width:9rem}
.bar input{accent-color:var(--accent)}
.bar button,.bar select{font:inherit;color:inherit;background:var(--page);border:1px solid var(--line);
border-radius:7px;padding:.25rem .8rem;cursor:pointer}
.stage{position:relative;overflow:hidden;border:1px solid var(--line);border-radius:8px;touch-action:none;cursor:grab;
margin:0 auto}
.stage:focus-visible,.bar :focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.sheet{position:absolute;inset:0;transform-origin:0 0}
.sheet img{position:absolute;inset:0;width:100%;height:100%;user-select:none;pointer-events:none}
.close .sheet img{image-rendering:pixelated}
.edge{position:absolute;top:0;bottom:0;width:3px;margin-left:-1px;background:#fff;
box-shadow:0 0 0 1px rgba(0,0,0,.55);cursor:ew-resize}
.edge::after{content:"";position:absolute;top:50%;left:50%;width:26px;height:26px;margin:-13px;border-radius:50%;
background:#fff;box-shadow:0 0 0 1px rgba(0,0,0,.55)}
.scroll{overflow-x:auto;max-height:34rem;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:.94rem}
.values{width:auto;min-width:min(34rem,100%)}
th,td{text-align:left;padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:500;font-size:.85rem;position:sticky;top:0;background:var(--card);z-index:1}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.unit,.unit{color:var(--soft)}
.badge{display:inline-block;border-radius:99px;padding:0 .6rem;font-size:.85rem;font-weight:600;border:1px solid}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--alarm)}.quiet{color:var(--soft)}
.chips{display:flex;flex-wrap:wrap;gap:.4rem 1.1rem;margin:0 0 .6rem}
.ratio{display:inline-block;position:relative;width:7rem;height:.55rem;border-radius:4px;background:var(--check);
margin-right:.5rem}
.ratio i{display:block;height:100%;border-radius:4px;background:var(--accent)}
.ratio::after{content:"";position:absolute;left:50%;top:-3px;bottom:-3px;border-left:2px solid var(--ink)}
.pairs{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.35rem 1.5rem;margin:0;font-size:.94rem}
.pairs dt{color:var(--soft)}.pairs dd{margin:0;overflow-wrap:anywhere;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.87rem}
.seam{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1.25rem;
margin-bottom:1.25rem;align-items:start}
.seam img{width:auto;max-width:100%;border:0;border-radius:0;background:none;image-rendering:pixelated}
.profile{width:100%;font-size:12px}.profile text{fill:var(--soft)}
.profile path{fill:none;stroke:var(--line)}.profile .one{stroke:var(--soft)}
.profile .own{stroke:var(--accent);opacity:.45}
.profile .limit{stroke:var(--alarm);stroke-dasharray:6 5}.profile .bar{stroke:var(--alarm);stroke-width:1.5}
.profile .worst{fill:var(--alarm)}.profile .dot{fill:var(--ink)}.profile .run{fill:none;stroke:var(--ink)}
.hint{color:var(--soft);font-size:.87rem;margin:.5rem 0 0}
footer{color:var(--soft);font-size:.87rem;text-align:center}
@media(max-width:40rem){.pairs{grid-template-columns:1fr;gap:0}.pairs dd{margin-bottom:.6rem}
section,.alarm{padding:1rem}}
@media print{.viewer{display:none}.scroll{max-height:none}section{break-inside:avoid}}
"""

_SCRIPT = """
(() => {
  const $ = (s) => document.querySelector(s), viewer = $('.viewer');
  if (!viewer) return;
  const images = [...document.querySelectorAll('.figures img')];
  const stage = $('.stage'), sheet = $('.sheet'), above = $('.above'), edge = $('.edge'), amount = $('#amount');
  let x = 0, y = 0, k = 1, held = null;
  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  function draw() {
    const w = stage.clientWidth, h = stage.clientHeight, share = amount.value / 100;
    const swipe = $('[name=how]:checked').value === 'swipe';
    x = clamp(x, w - w * k, 0); y = clamp(y, h - h * k, 0);
    sheet.style.transform = `translate(${x}px,${y}px) scale(${k})`;
    stage.classList.toggle('close', k > 1.5);
    above.style.clipPath = swipe ? `inset(0 0 0 ${clamp((w * share - x) / k, 0, w)}px)` : 'none';
    above.style.opacity = swipe ? 1 : share;
    edge.hidden = !swipe; edge.style.left = share * 100 + '%';
  }
  function size() {
    const {naturalWidth: w, naturalHeight: h} = images[0];
    stage.style.width = Math.min(viewer.clientWidth, innerHeight * 0.8 * w / h) + 'px';
    stage.style.aspectRatio = w + ' / ' + h;
    draw();
  }
  const flip = () => { amount.value = amount.value > 50 ? 0 : 100; draw(); };
  const fit = () => { x = y = 0; k = 1; draw(); };
  const choose = () => { above.src = images[$('#over').value].src; };
  stage.addEventListener('wheel', (e) => {
    e.preventDefault();
    const box = stage.getBoundingClientRect(), px = e.clientX - box.left, py = e.clientY - box.top;
    const next = clamp(k * Math.exp(-e.deltaY / 400), 1, 40);
    x = px - (px - x) * next / k; y = py - (py - y) * next / k; k = next; draw();
  }, {passive: false});
  stage.addEventListener('pointerdown', (e) => {
    stage.setPointerCapture(e.pointerId);
    held = {x: e.clientX - x, y: e.clientY - y, edge: e.target === edge};
  });
  stage.addEventListener('pointermove', (e) => {
    if (!held) return;
    if (held.edge) amount.value = (e.clientX - stage.getBoundingClientRect().left) / stage.clientWidth * 100;
    else { x = e.clientX - held.x; y = e.clientY - held.y; }
    draw();
  });
  for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, () => { held = null; });
  stage.addEventListener('keydown', (e) => { if (e.key === ' ') { e.preventDefault(); flip(); } });
  for (const input of document.querySelectorAll('.bar input')) input.addEventListener('input', draw);
  $('#over').addEventListener('change', choose); $('#flip').addEventListener('click', flip);
  $('#fit').addEventListener('click', fit); addEventListener('resize', size);
  $('.below').src = images[0].src; viewer.hidden = false; choose();
  Promise.all(images.map((i) => i.decode())).then(size, size);
})();
"""
