"""Tables and cells of the report page as HTML; every text is escaped here."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.write.page_values import Table, Value

MAX_ROWS = 500
"""Rows of a table that are shown; a country has tens of thousands of tiles, and their receipts are files anyway."""
SORT_ROWS = 2
"""Tables with fewer rows need no sorting."""
_STATES = {
    "done": "good",
    "empty": "quiet",
    "pending": "quiet",
    "degraded": "warn",
    "interrupted": "warn",
    "failed": "bad",
    "running": "quiet",
}


def table(content: Table, *, mapped: bool = False) -> str:
    """A table with its note; cut after ``MAX_ROWS``.

    Args:
        content: What it holds.
        mapped: Whether names in a column ``tile`` lead to their place on the map.
    """
    states = _states(content)
    columns = range(len(content.columns))
    numeric = {n for n in columns if content.rows and all(_is_number(row[n]) for row in content.rows)}
    sortable = len(content.rows) >= SORT_ROWS
    tiles = {n for n in columns if mapped and content.columns[n] == "tile"}
    head = "".join(_head(name, numeric=n in numeric, sortable=sortable) for n, name in enumerate(content.columns))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_align(numeric=n in numeric)}>{_cell(cell, state=n in states, tile=n in tiles)}</td>"
            for n, cell in enumerate(row)
        )
        + "</tr>"
        for row in content.rows[:MAX_ROWS]
    )
    cut = len(content.rows) - MAX_ROWS
    more = f"{cut:,} further rows are not shown." if cut > 0 else ""
    return scroll(head, body) + paragraph(f"{content.note} {more}".strip(), "hint")


def tally(content: Table) -> str:
    """How many rows of each state."""
    states = _states(content)
    counts = Counter(str(row[n]) for row in content.rows for n in states)
    chips = "".join(f"<span>{badge(state)} {count:,}</span>" for state, count in sorted(counts.items()))
    return f'<p class="chips">{chips}</p>' if chips else ""


def values(rows: tuple[tuple[str, Value, str], ...]) -> str:
    """(label, value, unit) as a table without a head."""
    if not rows:
        return ""
    body = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{shown(value)}</td><td class="unit">{escape(unit)}</td></tr>'
        for label, value, unit in rows
    )
    return scroll("", body, style="values")


def estimates(rows: tuple[tuple[str, Value, Value, str], ...]) -> str:
    """(label, estimate, actual, unit) with their ratio."""
    if not rows:
        return ""
    head = '<th></th><th class="n">estimate</th><th class="n">actual</th><th>unit</th><th>actual / estimate</th>'
    body = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{shown(estimate)}</td><td class="n">{shown(actual)}</td>'
        f'<td class="unit">{escape(unit)}</td><td>{_ratio(estimate, actual)}</td></tr>'
        for label, estimate, actual, unit in rows
    )
    return scroll(head, body)


def pairs(rows: tuple[tuple[str, str], ...]) -> str:
    """(key, value) as a list of definitions."""
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    return f'<dl class="pairs">{items}</dl>' if items else ""


def bullets(items: tuple[str, ...]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def paragraph(text: str, style: str) -> str:
    """A paragraph of a class, none for no text."""
    return f'<p class="{style}">{escape(text)}</p>' if text else ""


def badge(state: str) -> str:
    """A state in its colour."""
    return f'<span class="badge {_STATES.get(state.lower(), "quiet")}">{escape(state)}</span>'


def shown(value: Value) -> str:
    """A cell as text: whole numbers in full, others with 4 significant digits."""
    if value is None:
        return '<span class="unit">unknown</span>'
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def scroll(head: str, body: str, *, style: str = "") -> str:
    """A table inside a box that scrolls by itself."""
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    name = f' class="{style}"' if style else ""
    # tabindex: else a box that scrolls cannot be scrolled with the keyboard.
    return f'<div class="scroll" tabindex="0"><table{name}>{top}<tbody>{body}</tbody></table></div>'


def _cell(value: Value, *, state: bool, tile: bool) -> str:
    if state:
        return badge(str(value))
    if tile:
        return f'<button type="button" class="link" data-tile="{escape(str(value))}">{shown(value)}</button>'
    return shown(value)


def _states(content: Table) -> set[int]:
    return {n for n, name in enumerate(content.columns) if name.lower() in {"status", "state"}}


def _head(name: str, *, numeric: bool, sortable: bool) -> str:
    text = f'<button type="button" class="sort">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{_align(numeric=numeric)}>{text}</th>'


def _ratio(estimate: Value, actual: Value) -> str:
    """The ratio with a bar; a mark stands where actual equals estimate."""
    if not isinstance(estimate, (int, float)) or not isinstance(actual, (int, float)) or estimate <= 0:
        return '<span class="unit">-</span>'
    ratio = actual / estimate
    return f'<span class="ratio"><i style="width:{min(ratio, 2) * 50:.1f}%"></i></span> {ratio:.2f}'


def _align(*, numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _is_number(value: Value) -> bool:
    return value is None or isinstance(value, (int, float))
