"""Periods: half-open, touching, covering the range exactly, however they are asked for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import MAX_PERIODS, Settings
from pipeline.errors import InvalidInputError
from pipeline.plan.periods import periods_of

TODAY = date(2026, 11, 21)


def periods(start=None, end=None, **inputs):
    return periods_of(Settings(start=start, end=end, inputs=inputs), today=TODAY)


def spans(*dates, **inputs):
    got = periods(*dates, **inputs)
    midnights = [t for p in got for t in (p.start, p.end)]
    assert all(t == datetime(t.year, t.month, t.day, tzinfo=UTC) for t in midnights)
    return [(p.start.date().isoformat(), p.end.date().isoformat()) for p in got]


def test_periods_are_half_open_and_the_last_one_may_be_shorter():
    assert spans(date(2024, 1, 1), date(2024, 3, 10)) == [
        ("2024-01-01", "2024-01-31"),
        ("2024-01-31", "2024-03-01"),
        ("2024-03-01", "2024-03-10"),
    ]


def test_anchored_at_the_end_the_first_one_is_shorter():
    assert spans(date(2024, 1, 1), date(2024, 3, 10), anchor="end") == [
        ("2024-01-01", "2024-01-10"),
        ("2024-01-10", "2024-02-09"),
        ("2024-02-09", "2024-03-10"),
    ]


@pytest.mark.parametrize("anchor", ["start", "end"])
def test_a_range_that_divides_has_no_shorter_period(anchor):
    assert spans(date(2024, 1, 1), date(2024, 1, 21), period_days=10, anchor=anchor) == [
        ("2024-01-01", "2024-01-11"),
        ("2024-01-11", "2024-01-21"),
    ]


@pytest.mark.parametrize("anchor", ["start", "end"])
def test_calendar_months_begin_on_the_first_whatever_the_anchor(anchor):
    assert spans(date(2023, 11, 20), date(2024, 2, 10), period_days="month", anchor=anchor) == [
        ("2023-11-20", "2023-12-01"),
        ("2023-12-01", "2024-01-01"),
        ("2024-01-01", "2024-02-01"),
        ("2024-02-01", "2024-02-10"),
    ]


def test_a_calendar_year_has_twelve_whole_months():
    got = spans(date(2024, 1, 1), date(2025, 1, 1), period_days="month")
    assert len(got) == 12
    assert got[1] == ("2024-02-01", "2024-03-01")
    assert got[-1] == ("2024-12-01", "2025-01-01")


def test_days_within_one_month_are_one_period():
    assert spans(date(2024, 2, 3), date(2024, 2, 5), period_days="month") == [("2024-02-03", "2024-02-05")]


def test_a_number_of_periods_from_the_start():
    assert spans(date(2024, 1, 1), period_days=10, periods=2) == [
        ("2024-01-01", "2024-01-11"),
        ("2024-01-11", "2024-01-21"),
    ]


def test_a_number_of_periods_back_from_the_end():
    assert spans(None, date(2024, 3, 1), period_days=10, periods=2) == [
        ("2024-02-10", "2024-02-20"),
        ("2024-02-20", "2024-03-01"),
    ]


def test_a_number_of_months_from_the_start_has_a_partial_first_one():
    assert spans(date(2023, 12, 20), period_days="month", periods=2) == [
        ("2023-12-20", "2024-01-01"),
        ("2024-01-01", "2024-02-01"),
    ]


def test_a_number_of_months_back_from_the_end_has_a_partial_last_one():
    assert spans(None, date(2024, 1, 10), period_days="month", periods=2) == [
        ("2023-12-01", "2024-01-01"),
        ("2024-01-01", "2024-01-10"),
    ]
    assert spans(None, date(2024, 2, 1), period_days="month", periods=1) == [("2024-01-01", "2024-02-01")]


def test_equal_parts_are_whole_days_where_they_divide():
    assert spans(date(2024, 1, 1), date(2024, 1, 13), periods=3, period_days=30) == [
        ("2024-01-01", "2024-01-05"),
        ("2024-01-05", "2024-01-09"),
        ("2024-01-09", "2024-01-13"),
    ]


def test_equal_parts_are_exact_times_where_they_do_not():
    got = periods(date(2024, 1, 1), date(2024, 1, 2), periods=7)
    assert [p.start for p in got[:2]] == [
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, 3, 25, 42, 857142, tzinfo=UTC),
    ]
    assert got[-1].end == datetime(2024, 1, 2, tzinfo=UTC)
    assert len({round((p.end - p.start).total_seconds(), 4) for p in got}) == 1


@pytest.mark.parametrize(
    ("start", "end", "inputs", "message"),
    [
        (date(2024, 2, 1), date(2024, 1, 1), {}, "not after start"),
        (date(2024, 2, 1), date(2024, 2, 1), {"periods": 2}, "not after start"),
        (date(2024, 2, 1), date(2024, 2, 1), {"period_days": "month"}, "not after start"),
        (date(2027, 1, 1), date(2027, 3, 1), {}, "future"),
        (date(2027, 1, 1), None, {"periods": 2}, "start 2027-01-01 lies in the future"),
        (date(2026, 10, 1), date(2026, 12, 24), {}, "use --end 2026-11-21"),
        (None, date(2026, 12, 24), {"periods": 2}, "use --end 2026-11-21"),
        (date(2026, 10, 1), None, {"periods": 2}, "end on 2026-11-30.*smaller inputs.periods"),
        (date(2026, 11, 1), None, {"periods": 1, "period_days": "month"}, "1 calendar months.*end on 2026-12-01"),
        (None, date(2024, 1, 1), {}, "start and end are needed"),
        (date(2024, 1, 1), None, {"period_days": "month"}, "start and end are needed"),
        (None, None, {"periods": 3}, "start or end is needed beside inputs.periods=3"),
        (date(2024, 1, 1), date(2024, 3, 1), {"periods": 13}, "13, models take at most 12: use inputs.periods=12"),
        (date(2022, 1, 1), date(2024, 1, 1), {}, "25 periods of 30 days.*use --end 2022-12-27"),
        (date(2022, 1, 1), date(2024, 1, 1), {"anchor": "end"}, "use --start 2023-01-06"),
        (date(2022, 1, 15), date(2024, 1, 1), {"period_days": "month"}, "24 calendar months.*use --end 2023-01-01"),
        (date(2024, 1, 1), date(2025, 1, 1), {"period_days": "month", "periods": 6}, "touches 12.*periods is 6"),
        (None, date(1, 2, 1), {"periods": 12}, "before year 1"),
        (None, date(1, 2, 1), {"periods": 12, "period_days": "month"}, "before year 1"),
        (None, date(1, 1, 1), {"periods": 1, "period_days": "month"}, "before year 1"),
    ],
)
def test_impossible_dates_are_refused_with_the_way_out(start, end, inputs, message):
    with pytest.raises(InvalidInputError, match=message):
        periods(start, end, **inputs)


def test_twelve_periods_are_the_limit():
    assert len(periods(date(2024, 1, 1), date(2024, 12, 26))) == 12
    with pytest.raises(InvalidInputError, match="13 periods"):
        periods(date(2024, 1, 1), date(2024, 12, 27))


@pytest.mark.parametrize(
    ("inputs", "dates"),
    [
        ({}, (date(2022, 1, 1), date(2022, 12, 27))),
        ({"anchor": "end"}, (date(2023, 1, 6), date(2024, 1, 1))),
        ({"period_days": "month"}, (date(2022, 1, 15), date(2023, 1, 1))),
        ({"periods": 12}, (date(2022, 1, 1), date(2024, 1, 1))),
    ],
)
def test_the_way_out_of_too_many_periods_gives_twelve(inputs, dates):
    assert len(periods(*dates, **inputs)) == 12


def test_the_range_may_end_with_today():
    assert periods(date(2026, 11, 1), TODAY + timedelta(days=1))[-1].end.date() == TODAY + timedelta(days=1)
    assert len(periods(TODAY, periods=1, period_days=1)) == 1


def test_a_number_that_agrees_with_the_calendar_months_is_taken():
    assert len(periods(date(2024, 1, 1), date(2024, 7, 1), period_days="month", periods=6)) == 6


DATES = st.dates(min_value=date(2015, 6, 23), max_value=date(2026, 11, 20))


@given(
    start=DATES,
    days=st.integers(1, 400),
    step=st.one_of(st.integers(1, 366), st.just("month")),
    anchor=st.sampled_from(["start", "end"]),
    count=st.one_of(st.none(), st.integers(1, 12)),
)
@settings(max_examples=300, deadline=None)
def test_periods_touch_cover_the_range_exactly_and_count_from_zero(start, days, step, anchor, count):
    end = min(start + timedelta(days=days), TODAY)
    try:
        got = periods(start, end, period_days=step, anchor=anchor, periods=count)
    except InvalidInputError as err:
        refusal = str(err)
        assert "at most 12" in refusal or "calendar months" in refusal
        return
    check(got)
    assert (got[0].start, got[-1].end) == (midnight(start), midnight(end))
    if step == "month":
        assert all(p.start.day == 1 for p in got[1:])
        assert len({(p.start.year, p.start.month) for p in got}) == len(got)
    elif count is None:
        lengths = [(p.end - p.start).days for p in got]
        short, rest = (lengths[-1], lengths[:-1]) if anchor == "start" else (lengths[0], lengths[1:])
        assert 0 < short <= step
        assert set(rest) <= {step}
    else:
        assert len(got) == count
        lengths = [p.end - p.start for p in got]
        assert max(lengths) - min(lengths) <= timedelta(microseconds=1)
        assert (end - start).days % count or {t.seconds for t in lengths} == {0}


@given(
    day=DATES, forwards=st.booleans(), step=st.one_of(st.integers(1, 60), st.just("month")), count=st.integers(1, 12)
)
@settings(max_examples=200, deadline=None)
def test_a_number_of_periods_touches_its_date(day, forwards, step, count):
    dates = (day, None) if forwards else (None, day)
    try:
        got = periods(*dates, period_days=step, periods=count)
    except InvalidInputError as err:
        refusal = str(err)
        assert forwards and "future" in refusal  # noqa: PT018
        return
    check(got)
    assert len(got) == count
    assert (got[0].start if forwards else got[-1].end) == midnight(day)
    if step != "month":
        assert {(p.end - p.start).days for p in got} == {step}


def check(got):
    assert 1 <= len(got) <= MAX_PERIODS
    assert [p.index for p in got] == list(range(len(got)))
    assert all(p.start < p.end for p in got)
    assert all(a.end == b.start for a, b in pairwise(got))
    assert all(p.start.tzinfo == UTC for p in got)


def midnight(day):
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
