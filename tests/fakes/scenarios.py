"""How the scenarios of the core begin and end: a freeze played up to a moment, and what must hold when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fakes.drive import Asked, Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages

NEWS_LIMIT = 60.0  # seconds
MOMENTS = ("spawned", "planning", "planned", "syncing", "synced", "freezing", "frozen", "held")
"""Of a freeze, in order; each is the moment after the last report that its name tells of."""


def played(
    drive: Drive,
    until: str,
    count: int = 2,
    *,
    options: dict[str, Any] | None = None,
    freezing: Sequence[int] | None = None,
    frozen: Sequence[int] | None = None,
) -> tuple[Asked, int]:
    """Play a freeze of `count` file systems up to a moment; return its call and its worker.

    `freezing` are those whose FIFREEZE began (all if not given), `frozen` those of them whose FIFREEZE returned.
    """
    moment = MOMENTS.index(until)
    if until in ("spawned", "planning"):
        call = drive.ask("va.fsfreeze", *([] if options is None else [options]))
        if until == "planning":
            drive.report(drive.newest, messages.Started(1))
        return call, drive.newest
    if until == "held":
        return drive.hold(count, options)
    call, worker = drive.begin(count, options)
    if until == "syncing":
        drive.report(worker, messages.Progress("sync", 1))
    elif moment >= MOMENTS.index("synced"):
        drive.sync(worker, count)
    if moment >= MOMENTS.index("freezing"):
        begun = range(count) if freezing is None else freezing
        drive.freezes(worker, *begun)
        returned = begun if until == "frozen" else ()
        drive.frozen(worker, *(returned if frozen is None else frozen))
    return call, worker


def keeper_died(drive: Drive, count: int = 2) -> int:
    """Play a freeze whose keeper dies in the hold; return the thaw worker."""
    _, keeper = drive.hold(count)
    drive.die(keeper)
    return drive.newest


def brought_to(state: str, **config: Any) -> tuple[Drive, int]:
    """Return a core in that state of the freeze, and its freeze worker (0 if there is none); it may freeze."""
    drive, worker = Drive(**config), 0
    if state == "INPROGRESS":
        _, worker = played(drive, "synced", 1)
    elif state != "THAWED":
        _, worker = drive.hold(1)
    if state in ("THAWINPROGRESS", "ERROR"):
        drive.die(worker)
    if state == "ERROR":
        drive.refuses()
    assert drive.state is FreezeState[state]
    return drive, worker


def settled(drive: Drive, worker: int, seconds: float = 1.0) -> None:
    """Let thaw workers do what they were forked for, and the freeze worker die, until THAWED is reached.

    `seconds` pass before the next look at what was forked.
    """
    for _ in range(5):
        for thawer in drive.workers("thaw"):
            drive.compensates(thawer)
        if worker in drive.live:
            drive.die(worker)
        drive.wait(seconds)
    assert drive.state is FreezeState.THAWED


def seconds_to_the_next(drive: Drive) -> float:
    """Return how long it is until the nearest deadline."""
    due = drive.timers.nearest()
    assert due is not None
    return due - drive.now


def attempts(drive: Drive) -> int:
    """Return how many thaw workers were forked."""
    return sum(spawn.rpc == "thaw" for spawn in drive.spawned.values())


def ended(drive: Drive, outcome: str = "", *, tells: Sequence[str] | None = None) -> None:
    """Require that a freeze is over, whatever became of it: nothing is left of it, and the next one works.

    `outcome` is what the record of the last freeze must say. `tells` are words of the fault that the next fsthaw, and
    each until it was told for long enough, must be told; None if that was told already.
    """
    if tells is None:
        drive.wait(NEWS_LIMIT)
    last = drive.status().last
    if outcome:
        assert last is not None
        assert (last.outcome, last.held_continuously) == (outcome, outcome == "thawed")
    assert drive.state is FreezeState.THAWED
    assert (drive.journal is None) == (tells is None), "the next start must tell what no host was told"
    if tells is not None:
        assert drive.journal is not None
        assert drive.journal["plan"]["mounts"] == []
        for _ in range(2):
            drive.ask("va.fsthaw").refused(Code.FREEZE_BROKEN, *tells)
        drive.wait(NEWS_LIMIT)
    assert drive.ask("va.fsthaw").value == 0
    assert drive.journal is None
    assert drive.idle()
    call, keeper = drive.hold(1)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert (call.value, thaw.value) == (1, 1)
    assert drive.journal is None
    assert drive.idle()
