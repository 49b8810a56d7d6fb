"""Scores in words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table


def shown(score: float | None) -> str:
    """A score, ``-`` where nothing could be validated.

    >>> shown(None), shown(0.98765)
    ('-', '0.988')
    """
    return "-" if score is None else f"{score:.3f}"


def score_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, notes: Sequence[str]) -> Table:
    """A table for the terminal: the first column is what is scored, numbers stand right of it, notes below.

    Args:
        title: Above the table.
        heads: Of the columns.
        rows: Cells, as many as ``heads``.
        notes: What a reader of the scores must know.
    """
    from rich.table import Table  # noqa: PLC0415

    caption = "\n".join(notes) or None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table
