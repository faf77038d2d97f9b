"""How virtagentctl ends: the exit codes, and one sentence that says what went wrong and what to do next."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import textwrap
from typing import Any, TextIO

from ..agent.api.errors import Code, Fault, VirtagentError
from ..agent.api.text import printable
from . import text
from .errors import (
    FreezeBroken,
    GroupFailed,
    HostError,
    Lost,
    NothingFrozen,
    TimedOut,
    TooSkewed,
    Unreachable,
    Unsendable,
)
from .events import result
from .holding import notes
from .options import PROG

DONE, FAILED, USAGE, UNREACHABLE, TIMED_OUT, BROKEN, NOTHING_TO_THAW = range(7)
INTERRUPTED = 128 + signal.SIGINT
LEFT = 0  # instead of a signal's number: somebody has typed q

_SENTENCE_MAX = 1000
_NARROW = 20  # columns; no sentence can be broken well for less
MAY_BE_FROZEN = f"a freeze may go on in the guest: `{PROG} thaw` ends it"
_ADVICE = {
    Code.IN_PROGRESS: f"`{PROG} watch` follows it, `{PROG} thaw` cancels it",
    Code.WRONG_STATE: f"see `{PROG} status`",
    Code.REFUSED_WHILE_FROZEN: f"`{PROG} thaw` first, then call again",
    Code.METHOD: f"`{PROG} capabilities` lists the methods",
    Code.FREEZE_BROKEN: "throw the snapshot away",
    Code.BUSY: "call again when one has ended",
    Code.AUDIT_FULL: f"`{PROG} thaw` first",
    Code.INTERNAL: "report it with the agent's log",
}
_LEAVE_OUT = "or leave it out with --exclude"
_BY_PHASE = (
    (Code.OVERRUN, "sync limit", f"no application stood still: raise --sync-limit, mend the disk, {_LEAVE_OUT}"),
    (Code.OVERRUN, "freeze limit", f"see `{PROG} status` for the disk: mend it, {_LEAVE_OUT}"),
    (Code.OVERRUN, "hold limit", "the writers took too long to confirm: raise --hold"),
    (Code.FREEZE_BROKEN, "nothing was thawed", f"see `{PROG} history`, and throw away the snapshot of that freeze"),
    (Code.FREEZE_BROKEN, "hold limit", "throw the snapshot away, and hold longer with --hold"),
    (Code.FAILED, "not yet thawed", f"`{PROG} status` says what is frozen, and what to do"),
)
"""What to do where the code alone does not say it: words of the fault's text, the first that is there."""
_BUSY = re.compile(r"(/.*?): frozen by someone else")
_NEEDS = re.compile(r"va\.(\w+) needs state (\w+), the state is (\w+)")
_WORDS = {
    ("fshold", "FROZEN"): "nothing is frozen, so nothing can be held longer",
    ("fsforget", "ERROR"): "only what cannot be thawed (state ERROR) can be forgotten",
    ("fsfreeze", "THAWED"): "the guest cannot be frozen now",
    ("fssync", "THAWED"): "the guest cannot be synced now",
}
_NAMES = {USAGE: "USAGE", NOTHING_TO_THAW: "NOTHING_TO_THAW", INTERRUPTED: "INTERRUPTED"}
_ENDING = {
    Unreachable: UNREACHABLE,
    Lost: UNREACHABLE,
    TimedOut: TIMED_OUT,
    FreezeBroken: BROKEN,
    TooSkewed: BROKEN,
}
_EXIT = {Code.IN_PROGRESS: TIMED_OUT, Code.FREEZE_BROKEN: BROKEN}


def sentence(error: VirtagentError, *, may_be_frozen: bool = False) -> tuple[str, int]:
    """Return what went wrong and what to do next, in one sentence, and the exit code."""
    words, advice, ending = _explained(error, may_be_frozen)
    return "; ".join([*filter(None, (words, advice)), *notes(error)]), ending


def document(wrong: str, code: int, error: VirtagentError | None = None) -> dict[str, Any]:
    """Return what went wrong for programs: the sentence, the exit code, and of a fault its code and name."""
    name, number = _NAMES.get(code, "FAILED"), None
    match error:
        case Fault(code=fault):
            name, number = fault.name, fault.value
        case HostError():
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).upper()
    return {"error": {"code": number, "name": name, "text": wrong, "exit": code}}


def _explained(error: VirtagentError, may_be_frozen: bool) -> tuple[str, str, int]:
    match error:
        case Fault(code=code):
            return _plain(str(error)), advice(error), _EXIT.get(code, FAILED)
        case GroupFailed(causes=causes):
            first = next(iter(causes.values()), TimedOut())
            return str(error), "", _explained(first, False)[2]
        case Unsendable():
            return str(error), f"see `{PROG} --help`", USAGE
    ending = next((code for kind, code in _ENDING.items() if isinstance(error, kind)), FAILED)
    unsure = may_be_frozen and type(error) not in (Unreachable, NothingFrozen)
    return str(error), MAY_BE_FROZEN if unsure else "", ending


def advice(fault: Fault) -> str:
    """Return what to do about a fault, by its code and by what its text says of the phase; "" if nothing."""
    words = _ADVICE.get(fault.code, "")
    if fault.code is Code.FREEZE_FAILED and (found := _BUSY.match(fault.text)):
        return f"`fsfreeze -u {shlex.quote(found[1])}` if nobody needs it, then try again"
    for code, said, advised in _BY_PHASE:
        if code is fault.code and said in fault.text:
            return advised
    return words


def _plain(words: str) -> str:
    """Say the refusal of a method in words for who typed a command."""

    def said(found: re.Match[str]) -> str:
        method, needed, state = found.groups()
        return f"{plain}: the state is {state}" if (plain := _WORDS.get((method, needed))) else found.group()

    return _NEEDS.sub(said, words)


def put_document(data: Any, code: int, *, events: bool) -> None:
    """Print a document for programs: as the last of the events, or by itself."""
    if events:
        result(sys.stdout, data, code)
    else:
        print(text.to_json(data, indent=2), flush=True)


def tell_wrong(
    words: str, code: int, error: VirtagentError | None = None, *, as_json: bool, events: bool = False
) -> int:
    """Print the sentence, and with --json or --events also a document for programs; return the exit code."""
    if as_json or events:
        found = document(words, code, error)
        if events:
            result(sys.stdout, found, code)
        else:
            print(text.to_json(found), flush=True)
    return complain(words, code)


def complain(words: str, code: int) -> int:
    """Print the sentence; return the exit code."""
    with contextlib.suppress(OSError):  # if the terminal is gone, the exit code has to do
        say(f"{PROG}: {printable(words)[:_SENTENCE_MAX]}", sys.stderr)
    return code


def _broken(line: str, columns: int) -> str:
    """Break a line between words; what follows is set in by two more than the line is."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    parts = textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(parts)


def say(line: str, stream: TextIO | None) -> None:
    """Print a line; one that is too long for a terminal is broken between words. Raises OSError."""
    line = printable(line)
    if stream is not None and stream.isatty():
        with contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(stream.fileno()).columns
            if len(line) > columns > _NARROW:
                line = _broken(line, columns)
    print(line, file=stream, flush=True)
