"""How virtagentctl ends: the exit codes, and one sentence that says what went wrong and what to do next."""

from __future__ import annotations

import contextlib
import signal
import sys

from ..agent.api.errors import Code, Fault
from ..agent.api.text import printable
from .errors import FreezeBroken, GroupFailed, HostError, Lost, NothingFrozen, TimedOut, Unreachable
from .holding import notes
from .options import PROG

DONE, FAILED, USAGE, UNREACHABLE, TIMED_OUT, BROKEN = range(6)
INTERRUPTED = 128 + signal.SIGINT

_SENTENCE_MAX = 1000
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
_EXIT = {Code.IN_PROGRESS: TIMED_OUT, Code.FREEZE_BROKEN: BROKEN}


def sentence(error: Fault | HostError, *, may_be_frozen: bool = False) -> tuple[str, int]:
    """Return what went wrong and what to do next, in one sentence, and the exit code."""
    words, ending = _sentence(error, may_be_frozen)
    return "; ".join([words, *notes(error)]), ending


def _sentence(error: Fault | HostError, may_be_frozen: bool) -> tuple[str, int]:
    match error:
        case Fault(code=code):
            advice = _ADVICE.get(code, "")
            return (f"{error}; {advice}" if advice else str(error)), _EXIT.get(code, FAILED)
        case GroupFailed(causes=causes):
            first = next(iter(causes.values()), TimedOut())
            return str(error), _sentence(first, False)[1] if isinstance(first, Fault | HostError) else FAILED
    ending = {Unreachable: UNREACHABLE, Lost: UNREACHABLE, TimedOut: TIMED_OUT}.get(type(error), FAILED)
    if isinstance(error, FreezeBroken):
        ending = BROKEN
    unsure = may_be_frozen and type(error) not in (Unreachable, NothingFrozen)
    return (f"{error}; {MAY_BE_FROZEN}" if unsure else str(error)), ending


def complain(words: str, code: int) -> int:
    """Print the sentence; return the exit code."""
    with contextlib.suppress(OSError):  # if the terminal is gone, the exit code has to do
        print(f"{PROG}: {printable(words)[:_SENTENCE_MAX]}", file=sys.stderr, flush=True)
    return code
