"""What the report of a group says of the other hosts: for programs, in lines, and what went wrong there. Pure."""

from __future__ import annotations

import getpass
import math
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..agent.api import timeofday
from ..agent.api.text import took
from . import text
from .group import GroupFreeze
from .hypervisor import Hypervisor, Ran
from .snapshot import Report

_LINE = 200  # characters of what a command wrote


def document(report: Report) -> dict[str, Any]:
    """Return what is said of who asked, of the skew over hosts, and of each other host. Unknown numbers are -1."""
    freeze = report.freeze
    begun = min((one.frozen_at for one in freeze.guests.values()), default=-1.0) if freeze else -1.0
    return {
        "by": f"{_user()}@{socket.gethostname()}",
        "frozen_at": begun,
        "frozen_at_text": _moment(begun),
        "skew_by_clocks": freeze.skew_by_clocks if freeze else -1,
        "skew_by_round_trip": freeze.skew_by_round_trip if freeze else -1,
        "skew_error": freeze.skew_error if freeze else -1,
        "hosts": {url: _host(freeze, host, report.ran.get(url)) for url, host in freeze.hosts.items()}
        if freeze
        else {},
    }


def _host(freeze: GroupFreeze, host: Hypervisor, ran: Ran | None) -> dict[str, Any]:
    clock = host.clock
    broken = [url for url in host.guests if freeze.guests[url].broken is not None]
    return {
        "guests": len(host.guests),
        "broken": broken,
        "window": host.window,
        "round_trip": clock.round_trip if clock else -1,
        "clock_ahead": clock.ahead if clock else 0,
        "clock_differs": bool(clock and clock.differs),
        "command": {"status": ran.code, "output": ran.output, "error": ran.error} if ran else {},
    }


def lines(report: Report) -> Iterator[str]:
    """Say of each other host how many guests it has, and what is wrong: its clock, its guests, its command."""
    freeze = report.freeze
    if freeze is None or not freeze.hosts:
        return
    skews = f"by their clocks {took(freeze.skew_by_clocks)}, by round trips {took(freeze.skew_by_round_trip)}"
    yield f"skew over {len(freeze.hosts)} hosts: {skews} (within {took(freeze.skew_error)})"
    rows = []
    for url, host in freeze.hosts.items():
        broken = sum(freeze.guests[guest].broken is not None for guest in host.guests)
        state = f"{broken} BROKEN" if broken else "all held"
        clock = host.clock
        trip = f"round trip {took(clock.round_trip)}" if clock else ""
        rows.append((url, f"{len(host.guests)} guests", state, trip, _said(report.ran.get(url))))
    yield from text.table(rows)
    yield from clocks(freeze)


def clocks(freeze: GroupFreeze) -> Iterator[str]:
    """Say which clocks differ from this host's by more than a round trip explains."""
    for url, host in freeze.hosts.items():
        if (clock := host.clock) is not None and clock.differs:
            how = "ahead of" if clock.ahead > 0 else "behind"
            yield (
                f"the clock of {url} is {took(abs(clock.ahead))} {how} this host's (to within "
                f"{took(clock.round_trip / 2)}); the skew is counted without that"
            )


def wrong(report: Report) -> str:
    """Return what is wrong with the commands on other hosts, "" if nothing is."""
    failed = report.failed_there
    if not failed:
        return ""
    url, ran = next(iter(failed.items()))
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    last = next((line for line in reversed(ran.output.splitlines()) if line.strip()), "")
    words = f": {last[:_LINE]}" if last and not ran.error else ""
    return f"on {url}{more} the command {_said(ran)}{words}"


def _said(ran: Ran | None) -> str:
    if ran is None:
        return ""
    if ran.error:
        return f"failed ({ran.error})"
    return f"ended with {ran.code}" if ran.code >= 0 else f"was killed by signal {-ran.code}"


def _moment(at: float) -> str:
    if at < 0 or not math.isfinite(at):
        return ""
    return timeofday.moment(at, milliseconds=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
