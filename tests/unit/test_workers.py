"""The lives of the workers: graces, limits, the words for a death, and the children behind them."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest
from fakes.bench import Sink
from fakes.drive import Drive
from virtagent.agent.api.methods import RPCS
from virtagent.agent.api.states import Phase, Unlisted, WorkerEvent, WorkerState
from virtagent.agent.worker import messages
from virtagent.agent.worker.context import Job
from virtagent.supervisor.core import events
from virtagent.supervisor.core.turn import Turn
from virtagent.supervisor.core.workers import Worker, Workers, signal_name, while_clause
from virtagent.supervisor.io import process
from virtagent.supervisor.io.children import Child, Children
from virtagent.supervisor.io.log import Log
from virtagent.supervisor.io.poller import READ, Poller
from virtagent.supervisor.io.process import Ended, System
from virtagent.supervisor.io.timers import Timers
from virtagent.supervisor.io.troubles import Troubles

NOW = 100.0
POLLER = Poller()


class Home:
    """Workers with their surroundings."""

    def __init__(self) -> None:
        self.out: list[Any] = []
        self.deadlines = Timers()
        self.workers = Workers()
        self.workers.configure(1.0, 2.0)

    def turn(self, now: float = NOW) -> Turn:
        turn = Turn(now, now, self.deadlines)
        turn.effects = self.out
        return turn

    def spawn(self, rpc: str = "va.getfile", limit: float = 30) -> Worker:
        return self.workers.spawn(self.turn(), RPCS[rpc], {}, 1, limit)


@pytest.fixture
def home() -> Home:
    return Home()


def test_numbers_are_never_used_again(home: Home) -> None:
    first = home.spawn()
    home.workers.change(home.turn(), first, WorkerEvent.EXIT)
    assert home.workers.get(first.id) is None
    assert home.spawn().id == first.id + 1
    assert [e.worker for e in home.out if isinstance(e, events.Spawn)] == [1, 2]


def test_the_limit_is_armed_at_the_fork_and_replaced_by_a_phase(home: Home) -> None:
    worker = home.spawn(limit=5)
    assert home.deadlines.nearest() == NOW + 5
    home.workers.enter_phase(home.turn(NOW + 1), worker, Phase.SYNC, 600)
    assert home.deadlines.nearest() == NOW + 601
    home.workers.enter_phase(home.turn(NOW + 2), worker, Phase.HOLD, 0)
    assert home.deadlines.nearest() is None
    assert (worker.phase, worker.phase_since) == (Phase.HOLD, NOW + 2)


def test_a_kill_is_one_signal_with_a_grace_and_then_stuck(home: Home) -> None:
    worker = home.spawn()
    home.workers.change(home.turn(), worker, WorkerEvent.STARTED)
    worker.doing = "freezing /srv/a"
    home.workers.kill(home.turn(), worker, WorkerEvent.LIMIT, ": its limit passed")
    assert home.out[-1] == events.Kill(worker.id)
    assert home.deadlines.nearest() == NOW + 2
    home.workers.kill(home.turn(), worker, WorkerEvent.RUBBISH, ": it reported rubbish")
    assert [type(e) for e in home.out].count(events.Kill) == 1
    home.workers.change(home.turn(NOW + 2), worker, WorkerEvent.GRACE)
    assert worker.state is WorkerState.STUCK
    assert home.deadlines.nearest() is None
    text = home.out[-1].text
    assert "stuck" in text
    assert "/srv/a" in text
    assert ": its limit passed" in text
    home.workers.change(home.turn(NOW + 9), worker, WorkerEvent.EXIT)
    assert list(home.workers) == []


def test_after_the_report_there_is_a_grace(home: Home) -> None:
    worker = home.spawn()
    assert home.workers.receive(home.turn(), worker, messages.Started(1)) == ""
    assert home.workers.receive(home.turn(), worker, messages.Done(5)) == ""
    assert (worker.state, worker.outcome) == (WorkerState.REPORTED, messages.Done(5))
    assert home.deadlines.nearest() == NOW + 1
    home.workers.kill(home.turn(NOW + 1), worker, WorkerEvent.GRACE, ": it did not end")
    assert worker.state is WorkerState.KILLED


def test_what_its_kind_or_state_does_not_allow_is_wrong(home: Home) -> None:
    worker = home.spawn()
    assert "SPAWNED" in home.workers.receive(home.turn(), worker, messages.Done(5))
    home.workers.receive(home.turn(), worker, messages.Started(1))
    for message in (messages.Plan({}), messages.Frozen(1, 0, 0), messages.Held(0), messages.Thawing("", 0)):
        assert home.workers.receive(home.turn(), worker, message)
    assert worker.state is WorkerState.RUNNING
    freezer = home.spawn("va.fsfreeze")
    home.workers.receive(home.turn(), freezer, messages.Started(1))
    assert home.workers.receive(home.turn(), freezer, messages.Plan({})) == ""
    with pytest.raises(Unlisted):
        home.workers.change(home.turn(), freezer, WorkerEvent.GRACE)


def test_every_change_is_counted(home: Home) -> None:
    before = home.workers.changes
    worker = home.spawn()
    counts = [home.workers.changes]
    for event in (WorkerEvent.STARTED, WorkerEvent.DONE, WorkerEvent.GRACE, WorkerEvent.GRACE, WorkerEvent.EXIT):
        home.workers.change(home.turn(), worker, event)
        counts.append(home.workers.changes)
    assert [before, *counts] == sorted({before, *counts})


def test_a_death_has_a_name(home: Home) -> None:
    worker = home.spawn("va.fsfreeze")
    worker.doing = "freezing /srv/db"
    worker.why_killed = ": the freeze limit of 30 s passed"
    assert home.workers.death(home.turn(NOW + 30), worker, 9, 0) == (
        "worker 1 va.fsfreeze killed by SIGKILL after 30.0 s while freezing /srv/db: the freeze limit of 30 s passed"
    )
    quiet = home.spawn()
    assert home.workers.death(home.turn(), quiet, 0, 3) == "worker 2 va.getfile ended with exit code 3 after 0.0 s"
    assert while_clause(quiet) == ""
    assert [signal_name(n) for n in (15, 64, 200)] == ["SIGTERM", "SIGRTMAX", "signal 200"]


# -- the children behind them


class NoProcesses:
    """Children without processes."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def fork(self) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def open_pidfd(self, pid: int) -> int:
        raise AssertionError

    def kill(self, pidfd: int) -> None:
        self.killed.append(pidfd)

    def reap(self, pidfd: int) -> Ended | None:
        return Ended(9, 0)

    def state(self, pid: int) -> str:
        return "gone"

    def dying(self, pid: int) -> bool:
        return False


def child_with_pipes() -> tuple[Child, int, int]:
    """Return a child, the worker's end of its report pipe and that of its control pipe."""
    report_r, report_w = os.pipe()
    control_r, control_w = os.pipe()
    os.set_blocking(report_r, False)
    os.set_blocking(control_w, False)
    return Child(7, 1, os.eventfd(0), report_r, control_w), report_w, control_r


def children_of(processes: NoProcesses, fed: list[events.Event] | None = None) -> Children:
    """Return children whose events go to `fed`."""
    troubles = Troubles(Log(Sink(), "info"))
    return Children(
        processes, POLLER, Timers(), lambda: 0.0, ([] if fed is None else fed).append, lambda: None, troubles
    )


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_fork_that_is_refused_leaves_nothing_over() -> None:
    before = len(descriptors())
    with pytest.raises(BlockingIOError):
        children_of(NoProcesses()).spawn(Job(1, "va.getfile", {}))
    assert len(descriptors()) == before


def test_reports_are_read_and_after_rubbish_nothing_is_believed() -> None:
    child, report_w, control_r = child_with_pipes()
    assert child.read() is None
    for frame in messages.encode(messages.Done(b"x" * 9000)):
        os.write(report_w, frame)
    assert child.read() == ([messages.Done(b"x" * 9000)], "", False)
    os.write(report_w, b"\xc1")
    taken, wrong, end = child.read()
    assert (taken, end) == ([], False)
    assert wrong
    os.write(report_w, messages.encode(messages.Started(1))[0])
    assert child.read() == ([], "", False)
    os.close(report_w)
    assert child.read() == ([], "", True)
    child.close_report()
    child.close()
    os.close(control_r)


def children_with_pipes() -> tuple[Children, Child, int, int]:
    children = children_of(NoProcesses())
    child, report_w, control_r = child_with_pipes()
    children._by_id[child.id] = child
    return children, child, report_w, control_r


def test_telling_a_worker_that_is_gone_is_nothing() -> None:
    children, child, report_w, control_r = children_with_pipes()
    children.tell(child.id, messages.Thaw())
    assert os.read(control_r, 100) == messages.encode(messages.Thaw())[0]
    os.close(control_r)
    children.tell(child.id, messages.Thaw())
    assert not child.unsent
    assert not child.waits
    os.close(report_w)
    child.close()


def test_telling_a_worker_that_does_not_listen_does_not_block() -> None:
    children, child, report_w, control_r = children_with_pipes()
    long = messages.Ask(1, "guest-file-write", {"buf-b64": "x" * (3 << 20)})
    children.tell(child.id, long)
    children.tell(child.id, messages.Hold(1.0))
    assert child.waits
    decoder, told = messages.Decoder(messages.CONTROLS), []
    while len(told) < 2:
        told += decoder.feed(os.read(control_r, 1 << 16))
        POLLER.turn(0)
    assert told == [long, messages.Hold(1.0)]
    assert not child.waits
    assert POLLER.turn(0) == 0
    for fd in (report_w, control_r):
        os.close(fd)
    child.close()


@pytest.mark.parametrize("what", ["kill", "tell"])
def test_killing_or_telling_a_child_that_was_just_reaped_is_nothing(what: str) -> None:
    processes = NoProcesses()
    fed: list[events.Event] = []
    children = children_of(processes, fed)
    child, report_w, control_r = child_with_pipes()
    children._by_id[child.id] = child
    for fd in (child.report_fd, child.pidfd):
        POLLER.register(fd, 0, READ, lambda: None)
    os.write(report_w, messages.encode(messages.Started(1))[0])
    children._reap(child)
    assert fed == [events.Reported(child.id, messages.Started(1)), events.Exited(child.id, 9, 0)], "reports come first"
    os.close(report_w)
    os.close(control_r)
    if what == "kill":
        children.kill(child.id)
    else:
        children.tell(child.id, messages.Proceed())
    assert processes.killed == []


def test_a_worker_is_reaped_in_the_turn_in_which_its_grace_passes() -> None:
    drive = Drive()
    drive.ask("va.getfile", "/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Done(b""))
    drive.now += 5  # the daemon was stopped, or the machine paused
    drive.exit(worker)
    assert drive.idle()


def test_any_thread_in_the_kernel_makes_a_process_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"/proc/7/task/7/stat": "Z", "/proc/7/task/8/stat": "S", "/proc/7/task/9/stat": "D"}
    monkeypatch.setattr(process.os, "listdir", lambda folder: ["7", "8", "9"])
    monkeypatch.setattr(process, "_thread_state", states.__getitem__)
    assert System().state(7) == psutil.STATUS_DISK_SLEEP
    states["/proc/7/task/9/stat"] = ""
    assert System().state(7) == psutil.STATUS_ZOMBIE
    states.update(dict.fromkeys(states, ""))
    assert System().state(7) == "gone"
