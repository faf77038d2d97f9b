"""The result of a snapshot: the report, one sentence if it is not good, and the exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..agent.api import records, summary
from ..agent.api.errors import Code, Fault
from ..agent.api.states import Outcome
from ..agent.api.text import printable, took
from . import exits, hosts_report, text
from .errors import Unsendable, Unsupported
from .holding import Freeze
from .snapshot import Report, Snapshot

RETRY_FIRST, RETRY_MAX = 1.0, 60.0  # seconds
_ALL_THAWED = "all is thawed: throw away what it made"


def tried(make: Callable[[], Snapshot], retries: int, on_end: Callable[[Report, str], None] | None = None) -> Report:
    """Run a snapshot, and again up to `retries` times, a little later each time, while its freeze fails or is broken.

    `on_end` is called after each with its report, and what is wrong with it. A command that failed, was late or was
    interrupted is not run again. Raises ValueError as `Snapshot` does.
    """
    pause = RETRY_FIRST
    while True:
        report = make().run()
        if on_end is not None:
            on_end(report, verdict(report)[0])
        if not retries or report.interrupted or report.late or not may_try_again(report):
            return report
        wrong, _ = verdict(report)
        exits.complain(
            f"{wrong}; trying again in {took(pause)}, at most {text.count(retries, 'more time')}", exits.FAILED
        )
        threading.Event().wait(pause)
        retries, pause = retries - 1, min(pause * 2, RETRY_MAX)


def may_try_again(report: Report) -> bool:
    """Return whether another try may help: the freeze failed or was broken, and the command is not at fault."""
    match report.error:
        case None | OSError() | Unsendable() | Unsupported():
            return False
        case Fault(code=code):
            return code not in (Code.PARAMS, Code.METHOD, Code.BLOCKED, Code.REQUEST)
    return True


def tell(
    report: Report, *, as_json: bool, events: bool = False, file: str | None = None, notify: str | None = None
) -> int:
    """Print the report, and what is wrong; return the exit code.

    The report is also written to `file`; the shell command `notify` is run if the snapshot is not good.
    """
    wrong, code = verdict(report)
    if file is not None:
        try:
            keep(file, page(report, wrong) if file.endswith(".txt") else _json(report, wrong, code))
        except OSError as error:
            wrong = "; ".join(filter(None, (wrong, f"the report cannot be written to {file} ({error.strerror})")))
            code = code or exits.FAILED
    if as_json or events:
        try:
            exits.put_document(document(report, wrong, code), code, events=events)
        except OSError:
            # The reader of the report is gone; the sentence and the exit code still give the result.
            if not wrong:
                raise
    else:
        # The standard output belongs to the command.
        with contextlib.suppress(OSError):
            for line in lines(report):
                exits.say(line, sys.stderr)
    if wrong:
        exits.complain(wrong, code)
    if wrong and notify is not None:
        env = os.environ | {"VIRTAGENT_ERROR": printable(wrong), "VIRTAGENT_EXIT": str(code)}
        try:
            ended = subprocess.run(["/bin/sh", "-c", notify], env=env, stdout=sys.stderr, check=False).returncode
        except OSError as error:
            exits.complain(f"--notify cannot be run ({error.strerror})", code)
        else:
            if ended:
                exits.complain(f"--notify ended with {ended}", code)
    return code


def _json(report: Report, wrong: str, code: int) -> str:
    return text.to_json(document(report, wrong, code), indent=2) + "\n"


def page(report: Report, wrong: str) -> str:
    """Return the report as a page to read: what is said on the screen, and who asked for it, and when."""
    who = hosts_report.document(report)
    head = list(lines(report)) or ["nothing was frozen"]
    asked = f"asked for by {who['by']}" + (f", frozen at {who['frozen_at_text']}" if who["frozen_at_text"] else "")
    return "".join(f"{printable(line)}\n" for line in [*head, asked, *([wrong] if wrong else [])])


def not_writable(file: str) -> str:
    """Return why `keep` would fail, "" if it would not: better known before a freeze than after it."""
    try:
        if os.path.isdir(file):
            return os.strerror(errno.EISDIR)
        fresh = f"{file}.new"
        with open(fresh, "w", encoding="utf-8"):
            pass
        os.unlink(fresh)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def keep(file: str, words: str) -> None:
    """Write a file as a whole: it is never half there. Raises OSError."""
    fresh = f"{file}.new"
    with open(fresh, "w", encoding="utf-8", errors="backslashreplace") as out:
        out.write(words)
    os.rename(fresh, file)


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
            f"the command took longer than --timeout and was ended after {took(report.seconds)}; "
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
            return f"{words}{_longer(report)}; besides, the command {_ended(report.status)}", code
        case error:
            words, code = exits.sentence(error)
            return f"{words}{_longer(report)}", code
    if report.status:
        return f"the command {_ended(report.status)}; {_ALL_THAWED}", exits.FAILED
    if there := hosts_report.wrong(report):
        return f"{there}; {_ALL_THAWED}", exits.FAILED
    return "", exits.DONE


def _longer(report: Report) -> str:
    """Return what to do if the hold limit ended a freeze."""
    freezes = report.freeze.guests.values() if report.freeze else ()
    passed = any(one.last and one.last.outcome == Outcome.EXPIRED.value for one in freezes)
    return "; use a longer --hold, or --extend" if passed else ""


def lines(report: Report) -> Iterator[str]:
    """Say what became of the freeze, and of the command: one line for one guest, of several one more for each."""
    freeze = report.freeze
    if freeze is None:
        return
    guests = freeze.guests
    ended = f"; the command {_ended(report.status)} after {took(report.seconds)}" if report.seconds >= 0 else ""
    if len(guests) == 1:
        yield from (f"{_of_guest(one, freeze.window)}{ended}" for one in guests.values())
    else:
        how = "good" if freeze.broken is None and report.broken is None else "BROKEN"
        mounts = text.count(sum(one.count for one in guests.values()))
        skew = f"frozen within {took(freeze.skew)}"
        by_agents = f" ({took(freeze.skew_by_agents)} by their own figures)" if freeze.skew_by_agents >= 0 else ""
        held = f"{mounts} of {len(guests)} guests held {took(freeze.window)} at one point, {skew}{by_agents}"
        yield f"{how}: {held}{ended}"
        yield from text.table([(url, f"freeze {one.freeze_id}", _of_guest(one, -1)) for url, one in guests.items()])
    yield from hosts_report.lines(report)
    for url, one in guests.items():
        for writer in (one.last or one.status).writers:
            yield "writer " + "  ".join(cell for cell in text.writer_row(writer) if cell)
        if one.cannot_wait:
            yield f"{url} was not made ready before the others were let go: {one.cannot_wait}"
        if one.not_extended:
            yield f"the hold of {url} could not be extended ({one.not_extended})"


def _of_guest(one: Freeze, window: float) -> str:
    last = one.last
    if last is not None and last.freeze_id == one.freeze_id and last.held_continuously == (one.broken is None):
        return summary.sentence(last)
    # The agent is a stock qemu-ga, cannot be reached any more, or is not believed.
    how = "good" if one.broken is None else "BROKEN"
    return f"{how}: {text.count(one.count)} held" + (f" {took(window)}" if window >= 0 else "")


def document(report: Report, wrong: str, code: int) -> dict[str, Any]:
    """Return the report for programs. Numbers that are not known are -1."""
    freeze = report.freeze
    return {
        "good": report.good,
        "exit": code,
        "error": wrong,
        "summary": next(lines(report), ""),
        "skew": freeze.skew if freeze else -1,
        "skew_by_agents": freeze.skew_by_agents if freeze else -1,
        "window": freeze.window if freeze else -1,
        **hosts_report.document(report),
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
                "cannot_wait": one.cannot_wait,
                "last": records.dump(one.last) if one.last else {},
                "writers": [records.dump(writer) for writer in (one.last or one.status).writers],
                "summary": _of_guest(one, freeze.window if freeze else -1),
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
