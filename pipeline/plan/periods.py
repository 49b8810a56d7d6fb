"""The periods of a request: half-open UTC intervals, each one time step of the model.

They touch, do not overlap and cover the range exactly; a period's model date is its start. Three ways to cut:

* by length: ``period_days`` counted from the anchor, what is left over makes a shorter period at the other end (with
  anchor ``end`` that is the first one);
* by calendar month: boundaries at the first of every month, so the first and the last may be partial; nothing is
  counted, so the anchor decides nothing;
* by number: ``periods`` of that length, or that many calendar months, from start or back from end when only one date is
  given; equal parts of the range when both are (whole days where the number divides them, else exact to the
  microsecond).

Knows nothing of scenes.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.config import MAX_PERIODS
from pipeline.errors import InvalidInputError
from pipeline.types import Period

if TYPE_CHECKING:
    from pipeline.config import Settings

MONTHS = 12


def periods_of(settings: Settings, *, today: date) -> tuple[Period, ...]:
    """The periods that ``start``, ``end`` and ``inputs`` ask for.

    Args:
        settings: The configuration: ``start``, ``end`` (exclusive), ``inputs.period_days``, ``inputs.periods`` and
            ``inputs.anchor``.
        today: UTC date of now; the range may end with today, that is at the start of tomorrow.

    Returns:
        At least one and at most ``MAX_PERIODS`` periods, in order, indices from 0.

    Raises:
        InvalidInputError: Dates missing, reversed or in the future, more than ``MAX_PERIODS`` periods, or a number of
            periods that contradicts the calendar months of the range; each with the way out.
    """
    inputs = settings.inputs
    start, end, count = settings.start, settings.end, inputs.periods
    if count is not None and count > MAX_PERIODS:
        raise InvalidInputError(
            f"inputs.periods is {count}, models take at most {MAX_PERIODS}: use inputs.periods={MAX_PERIODS}, or "
            "several runs"
        )
    _refuse_future_start(start, today)
    if start is not None and end is not None:
        _refuse_range(start, end, today)
        edges = _edges_of_range(start, end, settings)
    elif count is not None and start is not None:
        edges = _edges_from(start, count=count, step=inputs.period_days, today=today)
    elif count is not None and end is not None:
        edges = _edges_until(end, count=count, step=inputs.period_days, today=today)
    else:
        raise InvalidInputError(_missing(count))
    return tuple(Period(index=i, start=a, end=b) for i, (a, b) in enumerate(pairwise(edges)))


def _missing(count: int | None) -> str:
    if count is not None:
        return f"start or end is needed beside inputs.periods={count}: --start 2024-03-01 (or --end, exclusive)"
    return (
        "start and end are needed: --start 2024-03-01 --end 2024-09-01 (end is exclusive); one of them is enough "
        "beside inputs.periods"
    )


def _refuse_future_start(start: date | None, today: date) -> None:
    if start is not None and start > today:
        raise InvalidInputError(f"start {start} lies in the future (today is {today}): no scene exists yet")


def _refuse_range(start: date, end: date, today: date) -> None:
    if end <= start:
        raise InvalidInputError(f"end {end} is not after start {start}; the end is exclusive")
    _refuse_future_end(end, today)


def _refuse_future_end(end: date, today: date) -> None:
    if end > today + timedelta(days=1):
        raise InvalidInputError(f"end {end} lies in the future (today is {today}): use --end {today}")


def _edges_of_range(start: date, end: date, settings: Settings) -> list[datetime]:
    """Both dates are given."""
    inputs = settings.inputs
    step, count = inputs.period_days, inputs.periods
    if step == "month":
        return _month_edges(start, end, count=count)
    if count is not None:
        first, span = _midnight(start), _midnight(end) - _midnight(start)
        return [first + span * i // count for i in range(count + 1)]
    return _day_edges(start, end, step=step, anchor=inputs.anchor)


def _day_edges(start: date, end: date, *, step: int, anchor: str) -> list[datetime]:
    count = math.ceil((end - start).days / step)
    if count > MAX_PERIODS:
        most = timedelta(days=step * MAX_PERIODS)
        instead = f"--end {start + most}" if anchor == "start" else f"--start {end - most}"
        raise InvalidInputError(
            f"{start} to {end} makes {count} periods of {step} days, models take at most {MAX_PERIODS}: use {instead} "
            "or a longer inputs.period_days"
        )
    if anchor == "start":
        return [*(_midnight(start) + timedelta(days=step * i) for i in range(count)), _midnight(end)]
    return [_midnight(start), *(_midnight(end) - timedelta(days=step * i) for i in range(count - 1, -1, -1))]


def _month_edges(start: date, end: date, *, count: int | None) -> list[datetime]:
    """Firsts of months between the dates, and the dates themselves."""
    last = end - timedelta(days=1)
    months = MONTHS * (last.year - start.year) + last.month - start.month + 1
    if months > MAX_PERIODS:
        raise InvalidInputError(
            f"{start} to {end} touches {months} calendar months, models take at most {MAX_PERIODS}: use "
            f"--end {_first_of_month(start, MAX_PERIODS)}"
        )
    if count not in {None, months}:
        raise InvalidInputError(
            f"{start} to {end} touches {months} calendar months, but inputs.periods is {count}: leave out "
            "inputs.periods, or one of the dates, or inputs.period_days=month for equal parts"
        )
    return [_midnight(start), *(_midnight(_first_of_month(start, i)) for i in range(1, months)), _midnight(end)]


def _edges_from(start: date, *, count: int, step: int | str, today: date) -> list[datetime]:
    if step == "month":
        edges = [start, *(_first_of_month(start, i) for i in range(1, count + 1))]
    else:
        edges = [start + timedelta(days=int(step) * i) for i in range(count + 1)]
    if edges[-1] > today + timedelta(days=1):
        length = "calendar months" if step == "month" else f"periods of {step} days"
        raise InvalidInputError(
            f"{count} {length} from {start} end on {edges[-1]}, which lies in the future (today is {today}): use a "
            "smaller inputs.periods, an earlier start, or --end instead of --start"
        )
    return [_midnight(edge) for edge in edges]


def _edges_until(end: date, *, count: int, step: int | str, today: date) -> list[datetime]:
    _refuse_future_end(end, today)
    try:
        if step == "month":
            last = end - timedelta(days=1)
            edges = [*(_first_of_month(last, i) for i in range(1 - count, 1)), end]
        else:
            edges = [end - timedelta(days=int(step) * i) for i in range(count, -1, -1)]
    except (OverflowError, ValueError) as err:
        raise InvalidInputError(f"{count} periods back from end {end} begin before year 1: give a later end") from err
    return [_midnight(edge) for edge in edges]


def _first_of_month(day: date, months: int) -> date:
    """First of the month that lies ``months`` after the one of ``day``.

    Raises:
        ValueError: Before year 1.
    """
    year, month = divmod(MONTHS * day.year + day.month - 1 + months, MONTHS)
    return date(year, month + 1, 1)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
