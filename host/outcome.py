"""The result of a snapshot: the report, one sentence if it is not good, and the exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from ..agent.api.text import printable
from . import exits, text
from .snapshot import Report

_ALL_THAWED = "all is thawed: throw away what it made"


def tell(report: Report, as_json: bool) -> int:
    """Print the report, and what is wrong; return the exit code."""
    wrong, code = verdict(report)
    if as_json:
        try:
            print(text.to_json(document(report, wrong, code), indent=2), flush=True)
        except OSError:
            # The reader of the report is gone; the sentence and the exit code still give the result.
            if not wrong:
                raise
    else:
        # The standard output belongs to the command.
        with contextlib.suppress(OSError):
            for line in lines(report):
                print(printable(line), file=sys.stderr, flush=True)
    return exits.complain(wrong, code) if wrong else code


def verdict(report: Report) -> tuple[str, int]:
    """Return what is wrong, "" if nothing is, and the exit code."""
    broken = f"; {report.broken}" if report.broken else ""
    if report.interrupted:
        name = signal.Signals(report.interrupted).name
        more = f"; {report.failed_then}" if report.failed_then else ""
        what = {
            "freezing": f"nothing was run, and what may have frozen was told to thaw{more}",
            "running": f"the command was ended, and {_ALL_THAWED}",
        }.get(report.interrupted_at, f"the command had ended with {report.status}, and all is thawed")
        return f"interrupted by {name}; {broken[2:] or what}", exits.INTERRUPTED
    if report.late:
        code = exits.BROKEN if broken else exits.TIMED_OUT
        return (
            f"the command took longer than --timeout and was ended after {text.duration(report.seconds)}; "
            f"{broken[2:] or _ALL_THAWED}",
            code,
        )
    match report.error:
        case None:
            pass
        case OSError() as error:
            return f"the command cannot be started ({error.strerror or error}); all is thawed", exits.FAILED
        case error if report.status:
            words, code = exits.sentence(error)
            return f"{words}; besides, the command {_ended(report.status)}", code
        case error:
            return exits.sentence(error)
    if report.status:
        return f"the command {_ended(report.status)}; {_ALL_THAWED}", exits.FAILED
    return "", exits.DONE


def lines(report: Report) -> Iterator[str]:
    """Say how long all were frozen, and the number of each guest's freeze."""
    freeze = report.freeze
    if freeze is None:
        return
    guests = freeze.guests
    mounts = text.count(sum(one.count for one in guests.values()))
    of = "" if len(guests) == 1 else f" of {len(guests)} guests at one point"
    how = "without a break" if freeze.broken is None and report.broken is None else "with a break"
    yield f"held {mounts}{of} for {text.duration(freeze.window)} {how}"
    if len(guests) > 1:
        skew = f"frozen within {text.duration(freeze.skew)}"
        by_agents = f", within {text.duration(freeze.skew_by_agents)} by their own figures"
        yield skew + (by_agents if freeze.skew_by_agents >= 0 else "")
    rows = [
        (url, f"freeze {one.freeze_id}", text.count(one.count), f"held {text.known(one.held_seconds)}")
        for url, one in guests.items()
    ]
    yield from text.table(rows)
    for url, one in guests.items():
        if one.not_extended:
            yield f"the hold of {url} could not be extended ({one.not_extended})"
    if report.seconds >= 0:
        yield f"the command {_ended(report.status)} after {text.duration(report.seconds)}"


def document(report: Report, wrong: str, code: int) -> dict[str, Any]:
    """Return the report for programs. Numbers that are not known are -1."""
    freeze = report.freeze
    return {
        "good": report.good,
        "exit": code,
        "error": wrong,
        "skew": freeze.skew if freeze else -1,
        "skew_by_agents": freeze.skew_by_agents if freeze else -1,
        "window": freeze.window if freeze else -1,
        "command": {
            "started": report.seconds >= 0,
            "status": -1 if report.status is None else report.status,
            "seconds": report.seconds,
        },
        "guests": {
            url: {
                "frozen": one.count,
                "freeze_id": one.freeze_id,
                "mounts": list(one.mounts),
                "held_seconds": one.held_seconds,
                "broken": str(one.broken or ""),
                "not_extended": one.not_extended,
            }
            for url, one in (freeze.guests.items() if freeze else ())
        },
    }


def _ended(status: int | None) -> str:
    if status is None:
        return "has not ended"
    if status >= 0:
        return f"ended with {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
