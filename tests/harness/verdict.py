"""What hosts were told, freeze by freeze, compared with what the writers saw. Pure.

When the agent gave an answer is known only to lie between `sent_at` and `answered_at`, and threads of the driver may
note two answers the wrong way round. So one call came before another only if it was answered before the other was
sent. Where the order decides what an answer means and is not known, the freeze is unclear and nothing is claimed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtagent.agent.api.errors import Code

from .hosts import GONE, code_of

DEFECTS = (Code.PARSE, Code.REQUEST, Code.METHOD, Code.INTERNAL, Code.AUDIT_FULL)
_GOES_ON = (Code.IN_PROGRESS, Code.FAILED)
"""A thaw that is answered so goes on, and how the freeze ended is for the next one."""
AGAIN = 1.5  # seconds for which news may be told again: the harness's news-limit, and what a busy machine needs
_NUMBERED = re.compile(r"freeze (\d+) was broken")


@dataclass(frozen=True)
class Call:
    """One call of a host. `answer` is a value, a Fault or GONE; a host that vanished has GONE at once.

    `counts` are the writers', when the host knew of its freeze or was about to ask for the thaw; `scope` the file
    systems that the freeze is about, `hold` its hold limit in seconds.
    """

    method: str
    sent_at: float
    answered_at: float
    answer: Any
    params: tuple[Any, ...] = ()
    counts: Sequence[int] = ()
    scope: Sequence[int] = ()
    hold: float = 0.0
    daemon_pid: int = 0
    vanished: bool = False

    def crosses(self, other: Call) -> bool:
        """Tell whether neither is known to have come before the other.

        Of one whose host vanished it is known that the agent took it after whatever was answered before.
        """
        if self.vanished:
            return other.sent_at < self.sent_at < other.answered_at
        return self.sent_at < other.answered_at and self.answered_at > other.sent_at


@dataclass(frozen=True)
class Meddling:
    """Someone else froze or thawed a file system (`what`), or may have, between two moments."""

    what: str
    number: int
    begun: float
    ended: float = math.inf


@dataclass
class Verdict:
    """How many freezes hosts were told of, how they ended, and what was not true."""

    freezes: int = 0
    held: int = 0
    broken: int = 0
    unclear: int = 0
    told: int = 0
    violations: list[str] = field(default_factory=list)


def judge(
    calls: Sequence[Call],
    *,
    played: Container[int] = (),
    meddlings: Sequence[Meddling] = (),
    continued: Sequence[float] = (),
    disturbed: bool = True,
) -> Verdict:
    """Judge all calls of one storm, each of which has ended.

    `played`: file systems whose mounts were tampered with; `continued`: when a stopped supervisor went on;
    `disturbed`: anything was done that may break a freeze.
    """
    verdict = Verdict()
    for call in calls:
        code = code_of(call.answer)
        if code in DEFECTS:
            verdict.violations.append(f"{call.method}{call.params}: {call.answer}")
    _judge_told(calls, continued, verdict)
    for freeze in calls:
        if freeze.method == "va.fsfreeze" and is_count(freeze.answer):
            verdict.freezes += 1
            _judge_freeze(freeze, calls, verdict, played, meddlings, disturbed)
    return verdict


def _judge_told(calls: Sequence[Call], continued: Sequence[float], verdict: Verdict) -> None:
    """A broken freeze is told again for a while after it was first told; one that dies as it tells may begin again.

    A supervisor that was stopped meanwhile may have learnt only then that a host has taken the news.
    """
    told: dict[tuple[int, str], float] = {}
    for call in sorted(calls, key=lambda call: call.answered_at):
        if call.method != "va.fsthaw" or code_of(call.answer) != Code.FREEZE_BROKEN:
            continue
        verdict.told += 1
        for number in _NUMBERED.findall(call.answer.faultString):
            first = told.setdefault((call.daemon_pid, number), call.answered_at)
            learnt = max((at for at in continued if first <= at), default=first)
            if call.sent_at > learnt + AGAIN:
                verdict.violations.append(f"told too long: {call.answer}")


def _judge_freeze(
    freeze: Call,
    calls: Sequence[Call],
    verdict: Verdict,
    played: Container[int],
    meddlings: Sequence[Meddling],
    disturbed: bool,
) -> None:
    # Another freeze that may have succeeded is what the next va.fsthaw is about.
    rivals = [c for c in calls if c.method == "va.fsfreeze" and c is not freeze and _may_freeze(c)]
    end = min((r.sent_at for r in rivals if r.sent_at >= freeze.answered_at), default=math.inf)
    thaws = [c for c in calls if c.method == "va.fsthaw"]
    after = [t for t in thaws if freeze.answered_at <= t.sent_at < end]
    heard = [t for t in after if t.answered_at <= end and _tells(t)]
    if not heard or any(r.crosses(freeze) for r in rivals) or any(t.crosses(freeze) for t in thaws):
        verdict.unclear += 1
        return
    first = min(heard, key=lambda t: t.answered_at)
    together = [t for t in heard if t.sent_at <= first.answered_at]
    counts = [t for t in together if is_count(t.answer)]
    broken = [t for t in together if code_of(t.answer) == Code.FREEZE_BROKEN]
    told = f"va.fsfreeze answered {freeze.answer}, va.fsthaw {', '.join(repr(t.answer) for t in together)}"
    asked = min(after, key=lambda t: t.sent_at)
    written = []
    for number in freeze.scope:
        wrote = asked.counts[number] - freeze.counts[number]
        # One record may have been on its way from the disk to the writer's count.
        if wrote > 1 and number not in played and not _restored(number, freeze, first, meddlings):
            written.append(f"{wrote} records were written to file system {number} meanwhile")
    silent = [t for t in after if t.sent_at <= first.answered_at and t not in heard]
    if counts and broken:
        verdict.violations.append(told)
    elif counts:
        verdict.held += 1
        if any(t.answer != freeze.answer for t in counts):
            verdict.violations.append(told)
        verdict.violations += [f"{told}, but {words}" for words in written]
    elif broken:
        verdict.broken += 1
        # The hold cannot have passed if less time lies between the moments that are known to lie outside of it.
        passed = first.answered_at - freeze.sent_at > freeze.hold
        if not (disturbed or passed or any(c.method == "va.fshold" for c in calls)):
            verdict.violations.append(f"{told}, though nothing broke it")
    elif any(t.answer is GONE or _tells(t) for t in silent):
        verdict.unclear += 1  # that one may have had the answer, or the news
    elif not any(code_of(t.answer) in _GOES_ON for t in silent):
        verdict.violations.append(f"{told}: a broken freeze is not told")
    elif written:
        verdict.violations += [f"{told}, and nobody is told that {words}" for words in written]
    else:
        verdict.unclear += 1  # it went well, but nobody was told


def _restored(number: int, freeze: Call, thaw: Call, meddlings: Sequence[Meddling]) -> bool:
    """Tell whether someone else may have thawed and frozen it again meanwhile, which nobody can see afterwards."""
    what = {m.what for m in meddlings if m.number == number and m.begun < thaw.answered_at and m.ended > freeze.sent_at}
    return what == {"freeze", "thaw"}


def is_count(answer: Any) -> bool:
    """Tell whether the answer is a number of file systems over 0."""
    return isinstance(answer, int) and answer > 0


def _tells(call: Call) -> bool:
    return isinstance(call.answer, int) or code_of(call.answer) == Code.FREEZE_BROKEN


def _may_freeze(call: Call) -> bool:
    return call.answer is GONE or is_count(call.answer) or code_of(call.answer) == Code.IN_PROGRESS
