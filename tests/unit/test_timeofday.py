"""A time of day is shown and written with its zone: whoever reads it may be on another machine, months later."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtagent.agent.api import timeofday
from virtagent.agent.api.text import left

ROOM = Path(timeofday.__file__).parents[2]
AT = 1_795_766_399.25  # 2026-11-27T07:59:59.25Z


@pytest.fixture(params=["UTC0", "CET-1", "NST3:30"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """Set the zone of this process, as TZ tells it (tzset(3))."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_the_zone_is_said(zone: str) -> None:
    clock, moment, to_the_millisecond = {
        "UTC0": ("07:59:59Z", "2026-11-27T07:59:59Z", "2026-11-27T07:59:59.250Z"),
        "CET-1": ("08:59:59+01:00", "2026-11-27T08:59:59+01:00", "2026-11-27T08:59:59.250+01:00"),
        "NST3:30": ("04:29:59-03:30", "2026-11-27T04:29:59-03:30", "2026-11-27T04:29:59.250-03:30"),
    }[zone]
    assert timeofday.clock(AT) == clock
    assert timeofday.moment(AT) == moment
    assert timeofday.moment(AT, milliseconds=True) == to_the_millisecond
    assert timeofday.day_utc(AT) == "27 Nov 07:59:59", "the head of its column says UTC"


@pytest.mark.parametrize("at", [1e300, float("inf"), float("nan"), -1e300])
def test_a_time_that_no_calendar_has(at: float) -> None:
    assert {timeofday.clock(at), timeofday.moment(at), timeofday.day_utc(at)} == {f"second {at:g}"}


def test_nothing_else_makes_a_time_of_day_for_people() -> None:
    """`frozen_at_text` was local time without a zone. What says UTC itself is counted here."""
    makers = {"strftime", "ctime", "asctime"}
    found = {
        str(path.relative_to(ROOM)): name
        for room in ("agent", "supervisor", "host", "kube")
        for path in sorted((ROOM / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and (name := node.attr) in makers
    }
    # The log and the audit write UTC and its Z, and a snapshot of Kubernetes is named by UTC.
    utc = ["kube/main.py", "supervisor/core/audit.py", "supervisor/core/transaction.py"]
    assert sorted(found) == utc


def test_a_countdown_is_said_in_whole_seconds() -> None:
    said = {seconds: left(seconds) for seconds in (0.0, 0.4, 0.987, 1.4, 41.2, 59.6, 60, 599.9)}
    assert list(said.values()) == ["less than 1 s", "less than 1 s", "1 s", "1 s", "41 s", "1 min", "1 min", "10 min"]
