"""Every figure of the status record is true: what goes on has lasted since it began, and what is unknown is -1."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from fakes.drive import BEGIN, Drive, plan_of
from fakes.scenarios import played
from hypothesis import given, settings
from hypothesis import strategies as st
from virtagent.agent.api.records import Last, Status
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.config import Config
from virtagent.supervisor.core import events
from virtagent.supervisor.core.engine import Engine
from virtagent.supervisor.core.inline import HANDLERS
from virtagent.supervisor.io.timers import Timers

GOING = ("syncing", "freezing", "thawing")
COUNT = 2
LIMITS = {"plan": 5, "prepare": 60, "sync": 600, "quiesce": 10, "freeze": 30, "hold": 60, "thaw": 10, "release": 10}
"""The limit of each phase by default, in seconds."""
LIE = {"dirty_bytes": 1 << 20, "flushed_bytes": 5, "bytes_per_second": 1024.0, "eta": 1024.0}


class Watched:
    """A drive, and when each thing that goes on was first seen: at the moment when it began."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.began: dict[Any, float] = {}
        self.look()

    def passes(self, seconds: float) -> None:
        """Let time pass, with a look whenever something is due."""
        end = self.drive.now + seconds
        while (due := self.drive.timers.nearest()) is not None and due < end:
            self.drive.wait(max(0.0, due - self.drive.now))
            self.look()
        self.drive.wait(end - self.drive.now)
        self.look()

    def look(self) -> Status:
        """Hold the record against what was seen."""
        record, now = self.drive.present(), self.drive.now
        going: dict[Any, float] = {("phase", record.phase, record.freeze_id): record.since}
        for mount in record.mounts:
            if mount.state in GOING:
                going["mount", mount.mountpoint, mount.state] = mount.seconds
            if mount.state == "syncing":
                assert mount.sync_seconds >= mount.seconds - 1e-6
            if mount.state == "freezing":
                assert mount.freeze_seconds >= mount.seconds - 1e-6
            if mount.state in ("freezing", "frozen"):
                going["still", mount.mountpoint] = mount.still_seconds
            assert mount.eta == -1 or (record.phase == "sync" and mount.state == "syncing")
            assert all(value == -1 or value >= 0 for value in (mount.seconds, mount.sync_seconds, mount.freeze_seconds))
        going |= {("worker", worker.id): worker.seconds for worker in record.workers}
        self.began = {key: self.began.get(key, now) for key in going}
        short = {key: said for key, said in going.items() if said < now - self.began[key] - 1e-6}
        assert not short, f"these have lasted longer: {short}, seen since {self.began} at {now}"
        progress = record.progress
        assert progress.eta == -1 or record.phase == "sync"
        assert progress.eta == -1 or progress.eta * progress.bytes_per_second >= progress.dirty_bytes * (1 - 1e-9)
        assert record.limit_left <= LIMITS.get(record.phase, -1), "no more is left than there was"
        assert record.limit_left == -1 or record.state != "ERROR", "no limit ends that"
        assert record.hold_left <= LIMITS["hold"]
        assert record.since <= now - BEGIN + 1e-6, "nothing lasts longer than the agent"
        return record


def _play(watched: Watched, data: st.DataObject) -> None:
    """Play freezes with pauses between any two reports, and whatever may come between them."""
    drive = watched.drive
    pause = st.floats(0, 20)

    def between(worker: int, *reports: messages.Report) -> None:
        for report in reports:
            watched.passes(data.draw(pause))
            if worker in drive.live:
                drive.report(worker, report)
            watched.look()

    _, worker = drive.begin(COUNT)
    row = [0, 4096, 1 << 20, 1024.0, 1024.0]
    between(worker, messages.Progress("sync", 1), messages.Step(0, "syncing"), messages.Step(1, "syncing"))
    between(worker, messages.Progress("sync", 1, *LIE.values(), [row]), messages.Step(0, "synced", 0, "", 0.5))
    end = data.draw(st.sampled_from(["thaw", "expire", "die", "cancel", "killed supervisor's worker", "stop"]))
    if end == "cancel":
        drive.ask("va.fsthaw")
        watched.look()
        drive.die(worker)
        return
    between(
        worker, messages.Step(1, "synced", 0, "", 0.7), messages.Synced(), messages.Progress("freeze", 0, *LIE.values())
    )
    between(worker, messages.Step(0, "freezing"), messages.Step(1, "freezing"), messages.Step(0, "frozen", 0, "", 0.01))
    if end == "die" and worker in drive.live:
        drive.die(worker)
    elif worker in drive.live and worker not in drive.killed and drive.state is FreezeState.INPROGRESS:
        between(worker, messages.Step(1, "frozen", 0, "", 0.02))
        if drive.state is FreezeState.INPROGRESS:
            drive.report(worker, messages.Frozen(COUNT, drive.now, drive.now + 60))
            watched.passes(data.draw(st.floats(0, 50)))
            {"thaw": lambda: drive.ask("va.fsthaw"), "stop": lambda: drive.feed(events.Stopped("SIGTERM"))}.get(
                end, lambda: watched.passes(61)
            )()
            watched.look()
            between(worker, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
            between(worker, messages.Step(0, "thawed"), messages.Step(1, "thawed"), messages.Done(COUNT))
    for _ in range(6):
        if worker in drive.live:
            watched.passes(data.draw(pause))
            drive.die(worker)
            watched.look()
        for thawer in drive.workers("thaw"):
            drive.compensates(
                thawer,
                data.draw(st.sampled_from([{}, {0: errno.EINVAL}, {0: errno.EIO}]))
                if 0 in drive.suspected(thawer)
                else {},
            )
            watched.look()
        watched.passes(40)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_duration_of_what_goes_on_is_shorter_than_since_it_began(data: st.DataObject) -> None:
    watched = Watched(Drive())
    for _ in range(data.draw(st.integers(1, 2))):
        if watched.drive.state is FreezeState.THAWED and not watched.drive.of(events.Quit):
            _play(watched, data)
        watched.passes(data.draw(st.floats(0, 100)))


def test_the_disk_that_all_wait_for_shows_for_how_long(drive: Drive) -> None:
    """U5: "d syncing 0 s" after 10 s; and once frozen the 10.6 s were gone."""
    _, worker = drive.begin(2)
    drive.report(worker, messages.Progress("sync", 1), messages.Step(0, "syncing"), messages.Step(1, "syncing"))
    drive.report(worker, messages.Step(1, "synced", 0, "", 0.068))
    drive.wait(10)
    slow, fast = drive.status().mounts
    assert (slow.state, slow.seconds, slow.sync_seconds) == ("syncing", 10, 10)
    assert (fast.state, fast.seconds, fast.sync_seconds) == ("synced", 0.068, 0.068)
    drive.wait(0.6)
    drive.report(worker, messages.Step(0, "synced", 0, "", 10.6))
    drive.report(worker, messages.Step(0, "syncing"), messages.Step(0, "synced", 0, "", 0.4), messages.Synced())
    drive.freezes(worker, 0, 1)
    drive.report(worker, messages.Step(0, "frozen", 0, "", 0.002), messages.Step(1, "frozen", 0, "", 0.001))
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    drive.wait(3)
    slow, fast = drive.status().mounts
    assert (slow.seconds, slow.freeze_seconds, slow.sync_seconds) == (0.002, 0.002, 11.0)
    assert slow.still_seconds == fast.still_seconds == 3
    assert slow.source == "/dev/loop0"
    drive.ask("va.fsthaw")
    drive.thaws(worker)
    last = drive.status().last
    assert last is not None
    assert (last.file_systems, last.slowest) == (2, "/srv/0")
    assert (last.sync_seconds, last.freeze_seconds) == (pytest.approx(10.6), 0)


def test_the_seconds_of_an_error_are_those_since_the_thaw_began(drive: Drive) -> None:
    """U7: "ERROR: thaw for 7.115 s" a second after the limit."""
    _, worker = played(drive, "freezing", frozen=(0,))
    drive.in_kernel.add(worker)
    drive.wait(30)
    assert drive.killed == {worker}
    drive.compensates(refused={1: errno.EINVAL})
    drive.wait(1.5)
    record = drive.status()
    assert record.state == "ERROR"
    assert record.since == pytest.approx(1.5)
    assert record.limit_left == -1, "the limit of one try was shown, which ends nothing"


def test_at_the_start_nothing_lasts_longer_than_the_agent() -> None:
    """U7: since was 4260, the uptime of the machine."""
    drive = Drive()
    drive.now += 1.6
    record = drive.status()
    assert record.since == record.uptime == pytest.approx(1.6)


def recovered(seconds: float, *refused: int, since: float = BEGIN - 600) -> Last:
    """Start an agent on a journal of another one, and return how the freeze ended; `refused` were not frozen."""
    drive = Drive()
    drive.core = Engine(Config(), "1.2", BEGIN, 1000, Timers(), HANDLERS, wall=1.7e9)
    drive.timers = drive.core._deadlines  # type: ignore[assignment]
    drive.feed(events.JournalFound(9, plan_of(2), "freeze 9 was broken: the agent died", since=since))
    drive.now += seconds
    drive.compensates(refused=dict.fromkeys(refused, errno.EINVAL))
    last = drive.status().last
    assert last is not None
    return last


def test_after_a_recovery_the_standstill_is_that_of_the_journal() -> None:
    """U6: a writer hung for 10 minutes, and "writers stood still 0 s" was told."""
    last = recovered(8)
    assert (last.outcome, last.stall_seconds, last.held_seconds) == ("broken", 608, -1)
    assert last.at == pytest.approx(1.7e9 + 8)
    assert recovered(8, 0).stall_seconds == 608, "the other one stood still until now"


def test_after_a_recovery_what_nobody_knows_is_unknown() -> None:
    assert recovered(8, 0, 1).stall_seconds == -1, "it had thawed before this agent came, at a time that nobody knows"
    assert recovered(8, since=0.0).stall_seconds == -1, "a journal of an older agent says not since when"


def test_the_journal_says_since_when_something_may_be_frozen(drive: Drive) -> None:
    drive.now += 77
    drive.hold(1)
    assert drive.journal is not None
    assert drive.journal["since"] == BEGIN + 77


def test_a_freeze_that_failed_was_held_for_no_time(drive: Drive) -> None:
    """U6: "held 0 s with a break" of one that no host was told of."""
    _, worker = played(drive, "freezing", frozen=(0,))
    drive.wait(2)
    drive.report(worker, messages.Step(1, "busy", errno.EBUSY, "frozen by someone else"))
    drive.report(worker, messages.Thawing("/srv/1: FIFREEZE: busy (EBUSY)", drive.now, 7))
    drive.undo(worker, 0)
    drive.report(worker, messages.Failed(7, "/srv/1: FIFREEZE: busy (EBUSY)"))
    drive.exit(worker)
    last = drive.status().last
    assert last is not None
    assert (last.outcome, last.held_seconds, last.file_systems) == ("failed", 0, 0)
    assert last.stall_seconds == pytest.approx(2)


def test_what_a_sync_does_is_shown_while_nothing_is_frozen(drive: Drive) -> None:
    """U8: for 4 s a group's picture said THAWED and nothing else, and that of `sync` was empty."""
    drive.ask("va.fssync")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Plan(plan_of(2).dump()), messages.Progress("sync", 1))
    before = drive.status().seq
    drive.report(worker, messages.Step(0, "syncing"))
    drive.wait(3)
    drive.report(worker, messages.Progress("sync", 1, *LIE.values(), [[0, 4096, 1 << 20, 1024.0, 1024.0]]))
    record = drive.status()
    assert record.seq > before, "whoever waits for news gets them"
    assert (record.state, record.phase, record.since, record.progress.eta) == ("THAWED", "sync", 3, 1024)
    first, second = record.mounts
    assert (first.state, first.seconds, first.written_bytes, first.eta) == ("syncing", 3, 4096, 1024)
    assert (second.state, second.seconds, second.sync_seconds) == ("pending", -1, -1)
    assert record.limit_left == pytest.approx(600 - 3)
    drive.report(worker, messages.Step(0, "synced", 0, "", 3.0), messages.Done(2))
    record = drive.status()
    assert (record.phase, record.mounts, record.progress.dirty_bytes) == ("", (), -1)


@pytest.mark.parametrize("expires", [False, True])
def test_what_was_held_has_stood_still_for_as_long(drive: Drive, *, expires: bool) -> None:
    """On a busy machine the steps are read late: "held 51 ms, stood still 47 ms"."""
    _, worker = drive.begin(1)
    drive.sync(worker, 1)
    frozen_at = drive.now
    drive.wait(0.25)
    drive.freezes(worker, 0)
    drive.frozen(worker, 0)
    drive.report(worker, messages.Frozen(1, frozen_at, frozen_at + 60))
    if expires:
        drive.wait(60)
        drive.thaws(worker, 1, "the hold limit of 60 s passed")
    else:
        drive.wait(1)
        drive.ask("va.fsthaw")
        drive.thaws(worker, 1)
    last = drive.status().last
    assert last is not None
    assert last.held_seconds >= (59 if expires else 1.25)
    assert last.stall_seconds >= last.held_seconds


def test_a_worker_that_was_killed_says_what_it_was_doing(drive: Drive) -> None:
    _, worker = drive.begin(2)
    drive.report(worker, messages.Progress("sync", 1), messages.Step(0, "syncing"))
    assert [one.doing for one in drive.status().workers] == [""], "its file systems tell that"
    drive.ask("va.fsthaw")
    assert drive.state is FreezeState.THAWED
    assert [one.doing for one in drive.status().workers] == ["syncing /srv/0"]


def test_a_sync_never_has_more_left_than_its_limit(drive: Drive) -> None:
    """It was 601 s at first for a limit of 600: the supervisor's second for a worker that does not keep it counted."""
    drive.ask("va.fssync")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Plan(plan_of(2).dump()))
    assert drive.status().limit_left == 600
    drive.wait(0.4)
    drive.report(worker, messages.Progress("sync", 1))
    assert drive.status().limit_left == pytest.approx(600), "it counts from when the sync began, as its worker does"
    drive.wait(600.2)
    assert drive.status().limit_left == 0, "its worker is about to say so"


@pytest.mark.parametrize(
    "wrong",
    [
        messages.Plan({}),
        messages.Step(2, "syncing"),
        messages.Step(0, "frozen"),
        messages.Progress("sync", 1, mounts=[[9, 1, 1, 1.0, 1.0]]),
    ],
)
def test_a_worker_that_syncs_is_believed_nothing_that_cannot_be(drive: Drive, wrong: messages.Report) -> None:
    drive.ask("va.fssync")
    drive.report(drive.newest, messages.Started(1), messages.Plan(plan_of(2).dump()), wrong)
    assert drive.killed == {drive.newest}


def test_it_says_that_it_is_stopping(drive: Drive) -> None:
    """U16: after SIGTERM with a stuck disk nothing said that it was stopping."""
    assert drive.status().stopping == ""
    _, worker = played(drive, "freezing", frozen=(0,))
    before = drive.status().seq
    drive.feed(events.Stopped("SIGTERM"))
    record = drive.status()
    assert record.seq > before
    assert "SIGTERM" in record.stopping
    assert worker in drive.killed
