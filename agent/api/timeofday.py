"""Times of day as words, always with their zone: the reader may be on another machine than the writer. ISO 8601."""

from __future__ import annotations

import time

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def clock(at: float) -> str:
    """Return 08:59:12+01:00 in this machine's zone; `at` is in seconds since the epoch."""
    return moment(at).rpartition("T")[2]


def moment(at: float, *, milliseconds: bool = False) -> str:
    """Return 2026-11-27T08:59:12+01:00, or 08:59:12.345+01:00, in this machine's zone."""
    try:
        local = time.localtime(at)
    except (OverflowError, OSError, ValueError):
        return f"second {at:g}"
    below = f".{int(at % 1 * 1000):03}" if milliseconds else ""
    # Not by strftime, which may read the zone's file again, as the supervisor may not; datetime knows no year 10000.
    day = f"{local.tm_year:04}-{local.tm_mon:02}-{local.tm_mday:02}"
    return f"{day}T{_hms(local)}{below}{_zone(local.tm_gmtoff)}"


def day_utc(at: float) -> str:
    """Return 27 Nov 08:59:12 in UTC, for a column whose head says so."""
    try:
        then = time.gmtime(at)
    except (OverflowError, OSError, ValueError):
        return f"second {at:g}"
    return f"{then.tm_mday:02} {_MONTHS[then.tm_mon - 1]} {_hms(then)}"


def _zone(offset: int) -> str:
    hours, minutes = divmod(abs(offset) // 60, 60)
    return f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}" if offset else "Z"


def _hms(then: time.struct_time) -> str:
    return f"{then.tm_hour:02}:{then.tm_min:02}:{then.tm_sec:02}"
