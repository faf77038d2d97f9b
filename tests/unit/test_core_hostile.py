"""The core against workers that say anything at any time: whatever comes, it goes on, forgets no file system, and ends.

Every message that there is, from every worker, in every situation; then random walks. A hostile worker may lie about
what it has done, and is believed; what it may not bring about is an end of the supervisor, a state THAWED without proof
or with a worker left that could freeze, an answer twice, or a call that is never answered.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from fakes.drive import Drive, plan_of
from hypothesis import HealthCheck, example, given, settings
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.states import FreezeState, MountState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

LIMITS: dict[str, Any] = {"sync_limit": 50, "freeze_limit": 20, "hold_limit": 30, "thaw_limit": 5}


class Watched(Drive):
    """A drive that keeps its own account of what may be frozen, by the events alone, and holds the core to it.

    `doubtful` are the mounts that the freeze worker announced, or all that it planned if it was killed for rubbish, and
    that nothing proved thawed since; `proves` says for each worker whether its EINVAL is a proof.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.doubtful: set[int] = set()
        self.announced: set[int] = set()
        self.attempted: set[int] = set()
        self.freezer = 0
        self.planned: int | None = None
        self.reaped_at: int | None = None
        self.seen = FreezeState.THAWED

    def feed(self, *happened: events.Event) -> list[events.Effect]:
        for event in happened:
            self._account(event)
        done = super().feed(*happened)
        for effect in done:
            match effect:
                case events.Spawn(worker, "va.fsfreeze"):
                    self.freezer, self.planned, self.reaped_at = worker, None, None
                    self.doubtful, self.announced, self.attempted = set(), set(), set()
                case events.Log(_, text) if " -> " in text and text.partition(" -> ")[0] in FreezeState.__members__:
                    self._entered(FreezeState[text.partition(" -> ")[2].partition(":")[0]])
                case events.Answer(connection, token, value):
                    self._answered(next(a for a in self.asked if (a.connection, a.token) == (connection, token)), value)
        return done

    def _account(self, event: events.Event) -> None:
        match event:
            case events.Reported(worker, messages.Started()):
                self.started.add(worker)
            case events.Reported(worker, messages.Plan({"mounts": list(mounts), "left_out": list()})) if (
                worker == self.freezer and self.planned is None
            ):
                # Before Started it is rubbish: not taken, not journaled, and the worker is never told to go on.
                if worker in self.started | self.killed:
                    self.planned = len(mounts)
            case events.Reported(worker, messages.Step(mount, state, error)) if mount in range(self.planned or 0):
                self._step(worker, mount, state, error)
            case events.Reported(worker, messages.Done() | messages.Failed()) if worker in self.started - self.killed:
                self.ended.add(worker)
            case events.Exited(worker) if worker == self.freezer:
                self.reaped_at = self.newest
                # One that has told its end has no call in the kernel any more, however it then dies.
                proceeds = self._proceeds(worker)
                if proceeds and (worker in self.killed or worker not in self.ended):
                    self.doubtful |= self.attempted

    def _proceeds(self, worker: int) -> bool:
        """Return whether the worker may freeze: it was told to, or has lied, and the core knows."""
        return (worker, messages.Proceed()) in self.told or self.seen is not FreezeState.THAWED

    def _step(self, worker: int, mount: int, state: str, error: int) -> None:
        freezer = worker == self.freezer
        if freezer and not self._proceeds(worker):
            return  # what is left of a freeze that was called off: it does not freeze, whatever it says
        if freezer and state in ("freezing", "frozen"):
            self.doubtful.add(mount)
            self.attempted.add(mount)
            self.announced = self.announced - {mount} | ({mount} if state == "freezing" else set())
        elif freezer and mount in self.announced:
            self.announced.discard(mount)
            self.doubtful.discard(mount)
            self.attempted.discard(mount)
        elif state == "thawed" and freezer:
            # It announces each FIFREEZE before it begins, so until the next announcement this one stays thawed.
            self.doubtful.discard(mount)
            self.attempted.discard(mount)
        elif state == "thawed" and (error == 0 or (self.reaped_at is not None and worker > self.reaped_at)):
            self.doubtful.discard(mount)

    def _entered(self, state: FreezeState) -> None:
        self.seen = state
        if state is FreezeState.THAWED:
            told = {worker for worker, message in self.told if message == messages.Proceed()}
            left = [*(told & self.live), *self.workers("thaw")]
            assert not left, f"THAWED with workers {left} that are not reaped"
            assert not self.doubtful, f"THAWED with {self.doubtful} not proved thawed"

    def _answered(self, call: Any, value: Any) -> None:
        if call.method == "va.fsthaw" and not isinstance(value, Fault):
            assert self.seen is FreezeState.THAWED, f"va.fsthaw answered {value} in {self.seen.name}"
        if call.method == "va.fsfreeze" and self.seen is not FreezeState.FROZEN:
            assert isinstance(value, Fault) or value == 0, f"va.fsfreeze answered {value} in {self.seen.name}"

    def finish(self) -> None:
        """Let everything end as it does in the end: workers die of their limits, thaw workers thaw."""
        for _ in range(40):
            for worker in sorted(self.live):
                if worker in self.killed or self.spawned[worker].rpc != "thaw":
                    self.die(worker)
                else:
                    self._thaw(worker)
            self.wait(31)
            if not self.live and self.seen is FreezeState.THAWED:
                break
        thaw = self.ask("va.fsthaw")
        assert thaw.answered
        assert self.idle(), f"{self.state.name}, workers {self.live}, {[a for a in self.asked if not a.answered]}"

    def _thaw(self, worker: int) -> None:
        """Have a thaw worker do what it was forked for, if it has not told its end yet."""
        self.report(worker, messages.Started(1))
        for index in self.spawned[worker].args["mounts"]:
            self.report(worker, messages.Step(index, "thawing"), messages.Step(index, "thawed"))
        self.report(worker, messages.Done(0))
        self.exit(worker)


def thawed(_drive: Watched) -> None:
    pass


def spawned(drive: Watched) -> None:
    drive.ask("va.fsfreeze")


def started(drive: Watched) -> None:
    drive.ask("va.fsfreeze")
    drive.report(drive.newest, messages.Started(1))


def planned(drive: Watched) -> None:
    drive.begin()


def unjournaled(drive: Watched) -> None:
    drive.journal_error = OSError(errno.ENOSPC, "No space left on device")
    drive.sync(drive.begin()[1])


def syncing(drive: Watched) -> None:
    drive.report(drive.begin()[1], messages.Progress("sync", 1), messages.Step(0, "syncing"))


def synced(drive: Watched) -> None:
    drive.sync(drive.begin()[1])


def called_off(drive: Watched) -> None:
    """A worker that hangs in a sync, was killed for it, and is still there while the next freeze is held."""
    syncing(drive)
    drive.ask("va.fsthaw")
    drive.hold()


def freezing(drive: Watched) -> None:
    _, worker = drive.begin()
    drive.sync(worker)
    drive.freezes(worker, 0, 1)
    drive.frozen(worker, 0)


def frozen(drive: Watched) -> None:
    drive.hold()


def hold_asked(drive: Watched) -> None:
    drive.hold()
    drive.ask("va.fshold", 100.0)


def told_to_thaw(drive: Watched) -> None:
    drive.hold()
    drive.ask("va.fsthaw")


def thawing(drive: Watched) -> None:
    _, keeper = drive.hold()
    drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"))


def gave_up(drive: Watched) -> None:
    freezing(drive)
    drive.report(drive.newest, messages.Thawing("/srv/1: FIFREEZE: bad", drive.now))


def nothing_to_freeze(drive: Watched) -> None:
    _, worker = drive.begin(0)
    drive.report(worker, messages.Synced(), messages.Done(0))


def nothing_held(drive: Watched) -> None:
    """A worker that says Frozen of nothing, since the boot."""
    _, worker = drive.begin(0)
    drive.report(worker, messages.Synced(), messages.Frozen(0, 0, 30.0))


def failed(drive: Watched) -> None:
    freezing(drive)
    drive.report(drive.newest, messages.Failed(int(Code.FREEZE_FAILED), "bad"))


def cancelled(drive: Watched) -> None:
    freezing(drive)
    drive.ask("va.fsthaw")


def stuck(drive: Watched) -> None:
    freezing(drive)
    drive.ask("va.fsthaw")
    drive.wait(10)


def two_thaw_workers(drive: Watched) -> None:
    freezing(drive)
    freezer = drive.newest
    drive.ask("va.fsthaw")
    first = drive.newest
    drive.in_kernel.add(first)
    drive.report(first, messages.Started(1), messages.Step(0, "thawing"), messages.Step(1, "thawed"))
    drive.die(freezer)
    assert len(drive.workers("thaw")) == 2


def refused(drive: Watched) -> None:
    _, keeper = drive.hold()
    drive.die(keeper)
    drive.refuses()
    assert drive.seen is FreezeState.ERROR


def retried(drive: Watched) -> None:
    refused(drive)
    drive.wait(0.02)


def thaw_in_kernel(drive: Watched) -> None:
    _, keeper = drive.hold()
    drive.die(keeper)
    drive.in_kernel.add(drive.newest)
    drive.report(drive.newest, messages.Started(1), messages.Step(0, "thawing"))
    drive.wait(6)
    assert drive.seen is FreezeState.ERROR


def orphan(drive: Watched) -> None:
    found = events.JournalFound(7, plan_of(2), "freeze 7 was broken: the agent died", (123, 5))
    drive.doubtful, drive.attempted, drive.planned, drive.freezer = {0, 1}, {0, 1}, 2, 1
    drive.feed(found)


def stopping(drive: Watched) -> None:
    drive.hold()
    drive.feed(events.Stopped("SIGTERM"))


def resources(drive: Watched) -> None:
    drive.ask_by_name("guest-file-open", {"path": "/x"})
    drive.report(drive.newest, messages.Started(1), messages.Acquired(1000, 1000))
    drive.ask_by_name("guest-file-flush", {"handle": 1000})
    drive.ask("va.fssync")
    drive.report(drive.newest, messages.Started(1))
    drive.ask("va.getfile", "/etc/x")


SITUATIONS: tuple[Callable[[Watched], None], ...] = (
    thawed,
    spawned,
    started,
    planned,
    unjournaled,
    syncing,
    synced,
    called_off,
    freezing,
    frozen,
    hold_asked,
    told_to_thaw,
    thawing,
    gave_up,
    nothing_to_freeze,
    nothing_held,
    failed,
    cancelled,
    stuck,
    two_thaw_workers,
    refused,
    retried,
    thaw_in_kernel,
    orphan,
    stopping,
    resources,
)
REPORTS: tuple[Callable[[Drive], messages.Report], ...] = (
    lambda d: messages.Started(1),
    lambda d: messages.Plan(plan_of(0).dump(), 1),
    lambda d: messages.Plan(plan_of(3).dump(), 1),
    lambda d: messages.Plan({"mounts": [], "left_out": {}}),
    lambda d: messages.Synced(),
    *(
        lambda d, s=state.value, i=index, e=error: messages.Step(i, s, e)
        for state in MountState
        for index, error in ((0, 0), (1, errno.EINVAL if state is MountState.THAWED else errno.EIO))
    ),
    lambda d: messages.Step(2, "frozen"),
    lambda d: messages.Step(-1, "thawed"),
    lambda d: messages.Step(0, "odd"),
    *(lambda d, p=phase: messages.Progress(p, 1) for phase in ("plan", "sync", "freeze", "hold", "thaw", "odd")),
    *(lambda d, n=count: messages.Frozen(n, d.now, d.now + 30) for count in (0, 1, 2)),
    lambda d: messages.Frozen(0, 0, 30.0),
    lambda d: messages.Frozen(2, d.now + 1e9, 1e300),
    lambda d: messages.Held(d.now + 100),
    lambda d: messages.Held(-1),
    *(
        lambda d, r=reason, a=ago: messages.Thawing(r, d.now - a)
        for reason in ("", "it gave up")
        for ago in (0, 1, 1e6, -1e6)
    ),
    lambda d: messages.Acquired(1000, "x"),
    lambda d: messages.Replied(1, "x"),
    lambda d: messages.Declined(2, -99, "no"),
    lambda d: messages.Releasable(),
    lambda d: messages.Done(None),
    lambda d: messages.Done("text"),
    lambda d: messages.Failed(7, "bad"),
    lambda d: messages.Failed(-99, ""),
)


def happenings(drive: Watched, worker: int) -> Iterator[Callable[[], object]]:
    """Yield all that one worker can bring about."""
    for report in REPORTS:
        yield lambda r=report: drive.report(worker, r(drive))
    yield lambda: drive.feed(events.RubbishReported(worker, "not msgpack"))
    yield lambda: drive.feed(events.ReportEnded(worker))
    yield lambda: drive.exit(worker)
    yield lambda: drive.exit(worker, code=1)
    yield lambda: drive.die(worker)
    yield lambda: drive.in_kernel.add(worker)


def asks(drive: Watched) -> Iterator[Callable[[], object]]:
    """Yield all that hosts, deadlines and the machine can bring about in a freeze."""
    yield lambda: drive.ask("va.fsthaw")
    yield lambda: drive.ask("va.fsfreeze", {"wait": 1.0})
    yield lambda: drive.ask("va.fshold", 50.0)
    yield lambda: drive.ask("va.shutdown", "halt")
    yield lambda: drive.ask_by_name("guest-fsfreeze-status", {})
    yield lambda: drive.ask_unheard("va.fsstatus", {"since": drive.status().seq})
    yield lambda: drive.feed(events.Stopped("SIGTERM"))
    yield lambda: setattr(drive, "journal_error", OSError(errno.EIO, "Input/output error"))
    yield lambda: setattr(drive, "fork_error", None if drive.fork_error else OSError(errno.EAGAIN, "no"))
    for seconds in (0.001, 0.05, 2.5, 6.0, 21.0, 60.0):
        yield lambda s=seconds: drive.wait(s)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
def test_whatever_one_worker_does_all_is_thawed_and_everybody_answered(situation: Callable[[Watched], None]) -> None:
    first = Watched(**LIMITS)
    situation(first)
    for worker in sorted(first.live):
        for number in range(len(list(happenings(first, worker)))):
            drive = Watched(**LIMITS)
            situation(drive)
            list(happenings(drive, worker))[number]()
            drive.wait(60)  # every limit, every grace
            drive.journal_error = None
            if not drive.of(events.Quit):
                drive.finish()


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@example(SITUATIONS[1], [(1, 2), (1, 10)])
@given(st.sampled_from(SITUATIONS), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 16)), max_size=30))
def test_whatever_they_do_in_any_order(situation: Callable[[Watched], None], script: list[tuple[int, int]]) -> None:
    drive = Watched(**LIMITS)
    situation(drive)
    for who, what in script:
        drive.now += 1e-4
        live = sorted(drive.live)
        choices = list(happenings(drive, live[who % len(live)]) if live and who else asks(drive))
        choices[what % len(choices)]()
        if drive.of(events.Quit):
            return
    drive.fork_error = drive.journal_error = None
    drive.finish()


def test_one_that_says_that_it_thaws_and_then_syncs_is_killed_for_it() -> None:
    drive = Watched(**LIMITS)
    gave_up(drive)
    drive.report(1, messages.Progress("sync", 2))
    drive.wait(LIMITS["sync_limit"])
    assert drive.killed == {1}
    drive.die(1)
    drive.finish()


def test_a_hold_of_nothing_that_ends_unasked_is_a_broken_freeze() -> None:
    drive = Watched(**LIMITS)
    nothing_held(drive)
    assert drive.state is FreezeState.FROZEN
    drive.report(1, messages.Done(0))
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.exit(1)
    assert drive.ask("va.fsthaw").code is Code.FREEZE_BROKEN


def test_what_nobody_waits_for_is_not_kept() -> None:
    drive = Watched(**LIMITS)
    drive.ask_unheard("va.fsstatus", {"since": drive.status().seq})
    assert not drive.due
    assert not drive.core._pending._since
    drive.finish()


def test_a_hold_that_was_extended_and_had_ended_when_that_was_heard_says_how_long_it_was() -> None:
    drive = Watched(**LIMITS)
    _, keeper = drive.hold()
    drive.ask("va.fshold", 40.0)
    until = drive.now + 40
    drive.now += 10
    drive.timers.cancel(("core", "worker", keeper))  # what a supervisor that was stopped meanwhile has not looked at
    drive.now += 100
    drive.report(keeper, messages.Held(until))
    drive.wait(0.01)
    assert drive.logged("the hold limit of 40 s passed")
    drive.exit(keeper, signal.SIGKILL)
    drive.finish()


def test_one_that_ends_with_nothing_frozen_and_then_freezes_leaves_the_host_told_of_nothing_frozen() -> None:
    drive = Watched(**LIMITS)
    call, worker = drive.begin()
    drive.report(worker, messages.Synced(), messages.Done(None))
    drive.wait(60)
    assert drive.killed == {worker}, "it did not end after its report"
    drive.report(worker, messages.Step(0, "freezing"))
    drive.finish()
    assert call.value == 0
