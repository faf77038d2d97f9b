"""Can this guest be frozen safely now? What is in the way, how long it would take, and what to do. No I/O.

What the agent says is checked by the functions here; what the guest's own /proc and /sys say by `guest_checks`, if the
command runs in the guest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..agent.api import forecast, summary
from ..agent.api.bounds import not_shown
from ..agent.api.errors import Fault
from ..agent.api.records import LeftOut, PastFreeze, Plan, PlannedWriter, Status
from ..agent.api.states import Outcome
from ..agent.api.text import brief, listed, took
from ..agent.api.writers import WriterState
from . import calls, text
from .errors import HostError, Unsupported
from .holding import ours

REHEARSED_HOLD = 1.0  # seconds
_RECENT, _HOLD_SHARE = 20, 0.8  # of so many freezes the longest hold may take this share of the limit
_INCONSISTENT = ("unsupported", "damaged", "unreachable", "fuse", "zfs", "busy")


class Level(Enum):
    """How bad a finding is; the value is the word that is shown."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding, and what to do about it, "" if nothing."""

    level: Level
    found: str
    to_do: str = ""

    def line(self) -> str:
        """Return it as a line of the screen."""
        return f"  {self.level.value:<5} {self.found}" + (f": {self.to_do}" if self.to_do else "")


Examination = Generator["calls.Call[Any]", Any, list[Check]]


def ok(found: str) -> Check:
    return Check(Level.OK, found)


def info(found: str) -> Check:
    return Check(Level.INFO, found)


def warn(found: str, to_do: str = "") -> Check:
    return Check(Level.WARN, found, to_do)


def fail(found: str, to_do: str = "") -> Check:
    return Check(Level.FAIL, found, to_do)


def of_status(status: Status) -> Iterator[Check]:
    """Check the state, the audit and the last freeze."""
    match status.state:
        case "THAWED":
            yield ok("nothing is frozen, and no freeze is under way")
        case "ERROR":
            yield fail(f"the state is ERROR: {status.error}", "mend or detach the disk that it names")
        case state:
            by = f" for {took(status.since)}" if status.since >= 0 else ""
            yield fail(f"a freeze is under way already (freeze {status.freeze_id}, {state}{by})", "wait, or thaw")
    if status.audit.dropped:
        yield warn(f"{text.count(status.audit.dropped, 'audit record')} lost since the agent started")
    for writer in status.writers:
        if writer.state == WriterState.STUCK.value:
            yield fail(
                f"writer {writer.name} could not be let go, and each freeze is refused until it is: {writer.error}"
            )
    last = status.last
    if last is None:
        yield info("no freeze yet since the agent started: nothing is known of how long one takes")
    elif last.outcome == "thawed":
        yield ok(f"the last freeze was {text.ended(last)}")
    else:
        yield warn(f"the last freeze was not good: {text.ended(last)}")


def of_history(past: Sequence[PastFreeze], hold_limit: float) -> Iterator[Check]:
    """Check whether the hold limit (seconds; 0: none, -1: unknown) is long enough for the last freezes."""
    recent = past[-_RECENT:]
    expired = [one for one in recent if one.outcome == Outcome.EXPIRED.value]
    longest = max((one.held_seconds for one in recent), default=-1.0)
    to_do = "hold longer with --hold, extend it (--extend), or raise `hold-limit`"
    if expired:
        yield warn(f"{len(expired)} of the last {text.count(len(recent), 'freeze')} ended at the hold limit", to_do)
    elif 0 < hold_limit * _HOLD_SHARE <= longest <= hold_limit:  # a longer one had a limit of its own
        held = f"of the last {text.count(len(recent), 'freeze')} one was held for {took(longest)}"
        yield warn(f"the hold limit is {took(hold_limit)}, and {held}", to_do)


def of_plan(plan: Plan) -> Iterator[Check]:
    """Check what a freeze would take, and what it would leave out."""
    if not plan.mounts:
        yield fail("a freeze would freeze nothing", "see --include and --exclude of the daemon")
    else:
        points = [brief(mount.mountpoint) for mount in plan.mounts]
        disks = {disk for mount in plan.mounts for disk in mount.disks}
        levels = len({mount.level for mount in plan.mounts})
        where = f" on {text.count(len(disks), 'disk')}" if disks else ""
        yield ok(f"{text.count(len(points))}{where} in {text.count(levels, 'level')}: {listed(points)}")
    by_reason: dict[str, list[LeftOut]] = {}
    for left in plan.left_out:
        by_reason.setdefault(left.reason, []).append(left)
    for reason, those in sorted(by_reason.items()):
        more = not_shown(those, {reason: plan.left_out_counts.get(reason, 0)}).get(reason, 0)
        named = listed((f"{brief(left.mountpoint)} ({left.fstype})" for left in those), more=more)
        if reason in _INCONSISTENT:
            yield warn(
                f"left out as {reason}: {named}; a snapshot of its disk is not consistent",
                "exclude it from the snapshot, or freeze with --strict to fail instead",
            )
        elif reason in ("excluded", "not-included"):
            yield info(f"left out as {reason}: {named}")
    for note in plan.notes:
        yield info(note)
    if said := forecast.sentence(plan.estimate):
        yield info(f"if run now: {said}")
    for writer in plan.writers:
        yield from of_writer(writer)
    if not plan.writers:
        yield info("no application takes part: of a database it is as if the power had failed (databases.md)")


def of_writer(writer: PlannedWriter) -> Iterator[Check]:
    """Check whether an application could take part, and whether all its data would be frozen."""
    named = f"writer {writer.name} ({writer.type})"
    if writer.error:
        found = f"{named} would refuse the freeze: {writer.error}"
        yield fail(found, "mend it, or set `required no`") if writer.required else warn(found)
    if writer.not_frozen:
        yield warn(
            f"{named} has data on what is not frozen: {listed(map(brief, writer.not_frozen))}; a snapshot of it is not "
            "consistent",
            "include that file system, or set its `paths`",
        )
    if not writer.error and not writer.not_frozen:
        yield ok(f"{named}: {listed(map(brief, writer.paths)) or 'its paths are not known'}")


def examine(rehearse: bool, guest_checks: Callable[[Collection[str]], Iterable[Check]]) -> Examination:
    """Ask the agent, and return all findings; a rehearsal only if nothing fails.

    `guest_checks` is told the types of the writers that there are. Raises HostError if there is no answer at all.
    """
    found: list[Check] = []
    yield calls.ping()
    status: Status = yield calls.status()
    if status.stock:
        found.append(
            warn(
                "a stock qemu-ga answers: no plan, no limits, and a guest stays frozen if it dies", "install virtagent"
            )
        )
        return [*found, *guest_checks(())]
    found.extend(of_status(status))
    types: set[str] = set()
    try:
        plan: Plan = yield calls.plan()
        found.extend(of_plan(plan))
        types.update(writer.type for writer in plan.writers)
        found.extend(of_history((yield calls.history()), plan.estimate.hold_limit))
    except (Fault, Unsupported) as error:
        found.append(fail(f"there is no plan: {error}"))
    found.extend(guest_checks(types))
    if rehearse and any(check.level is Level.FAIL for check in found):
        found.append(info("no rehearsal: mend first what fails"))
    elif rehearse:
        found.extend((yield from _rehearse()))
    return found


def _rehearse() -> Examination:
    """Sync, freeze for at most a second, thaw; say what it took."""
    freeze_id: int | None = None
    began = time.monotonic()
    try:
        synced: int = yield calls.sync()
        seconds = time.monotonic() - began
        frozen: int = yield calls.freeze(hold_limit=REHEARSED_HOLD)
        held: Status = yield calls.status()
        freeze_id = ours(held)
        thawed: int = yield calls.thaw(freeze_id=freeze_id)
        status: Status = yield calls.status()
    except (Fault, HostError) as error:
        try:
            yield calls.thaw(freeze_id=freeze_id)
        except (Fault, HostError) as worse:
            return [fail(f"the rehearsal failed: {error}; and the thaw: {worse}")]
        return [fail(f"the rehearsal failed: {error}")]
    last = status.last
    words = f"rehearsed: {synced} synced, {frozen} frozen, {thawed} thawed; the first sync took {took(seconds)}"
    if last is None or last.freeze_id != freeze_id:
        return [fail(f"{words}; what became of the freeze is not known")]
    words += f"; {summary.sentence(last)}"
    return [ok(words) if last.held_continuously else fail(words)]


def verdict(found: Sequence[Check]) -> str:
    """Return the last line: what was found, and whether a backup now would work."""
    number = Counter(check.level for check in found)
    failures, warnings = number[Level.FAIL], number[Level.WARN]
    counted = f"{text.count(failures, 'failure')}, {text.count(warnings, 'warning')}"
    return f"{counted}: a backup now would {'fail' if failures else 'work'}"


def document(found: Sequence[Check]) -> Mapping[str, Any]:
    """Return the findings for programs."""
    return {
        "fine": not any(check.level is Level.FAIL for check in found),
        "checks": [{"level": check.level.value.lower(), "found": check.found, "to_do": check.to_do} for check in found],
    }
