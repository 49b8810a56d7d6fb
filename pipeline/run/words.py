"""Numbers in words for people."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes with a unit.

    >>> size_text(999), size_text(1_540_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
