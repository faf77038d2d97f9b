"""The threads of a freeze worker: the loop waits for their results without limit, so each comes whatever happens."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtagent.agent.api.records import Mount
from virtagent.agent.worker import context, held, mount_threads, private_mounts
from virtagent.agent.worker.mount_threads import THREADS, CallThreads, MountCall, WorkerLoop
from virtagent.agent.worker.open_fs import FileSystemOpener, Opened
from virtagent.agent.worker.steps import Alone, Gone, Operation, Order, Result, Start, Wait

SYNC = Operation.SYNC


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    found = (*os.pipe(), *os.pipe())
    yield found
    for fd in found:
        os.close(fd)


@pytest.fixture
def loop(pipes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> WorkerLoop:
    """Return the loop of a worker with one file system, whose calls do nothing, and whose supervisor reads."""
    report_w, control_r = pipes[1], pipes[2]
    monkeypatch.setattr(context.setproctitle, "setproctitle", lambda _: None)
    monkeypatch.setattr(FileSystemOpener, "open", lambda *_: Opened(5))
    monkeypatch.setattr(mount_threads, "_CALLS", dict.fromkeys(Operation, lambda fd: None))
    made = WorkerLoop(context.Worker(context.Job(1, "va.fssync", {}), report_w, control_r, os.getpid()))
    made.do(Start(((0, Mount("/srv", device="8:1")),), obeys=False))
    return made


def result_of(loop: WorkerLoop) -> Result:
    loop.do(Order((0,), SYNC))
    result = loop.do(Wait())
    assert isinstance(result, Result)
    return result


def end_of(loop: WorkerLoop) -> tuple[int, str]:
    result = result_of(loop)
    assert (result.mount, result.operation) == (0, SYNC)
    return result.error, result.said


def test_a_call_that_is_done_is_reported(loop: WorkerLoop) -> None:
    assert end_of(loop) == (0, "")


@pytest.mark.parametrize(
    ("error", "number", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "No space left on device"),
        (OSError("without a number"), errno.EIO, "Input/output error"),
        (KeyError("x"), errno.EIO, "a defect of the agent: KeyError: 'x'"),
        (MemoryError(), errno.EIO, "a defect of the agent: MemoryError: "),
    ],
    ids=repr,
)
def test_whatever_a_call_raises_is_its_result(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch, error: Exception, number: int, said: str
) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(FileSystemOpener, "open", fail)
    assert end_of(loop) == (number, said)
    assert end_of(loop) == (number, said), "the thread is still there"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EBADF, errno.EPIPE, errno.ENOMEM])
def test_a_report_that_cannot_be_written_holds_up_no_result(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_fd: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        assert end_of(loop) == (0, "")
    assert loop.worker.reporter.closed, "nothing more is to be frozen: nobody would be told"
    assert isinstance(loop.do(Wait()), Gone)
    assert end_of(loop) == (0, "")


def test_a_defect_in_reporting_holds_up_no_result(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("x")

    with monkeypatch.context() as patched:
        patched.setattr(loop.worker.reporter, "post", fail)
        assert end_of(loop) == (0, "")
    assert end_of(loop) == (0, "")
    assert "/srv: what was done could not be reported: KeyError('x')" in capsys.readouterr().err


def test_whether_the_supervisor_is_gone_is_found_when_it_is_asked(
    loop: WorkerLoop, pipes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it was waited for last: else a worker whose FITHAW was refused would leave the thaw to a dead one."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_: -1)
    loop.do(Start(((0, Mount("/srv", device="8:1")),), obeys=True))
    assert loop.do(Alone()) is False
    os.dup2(pipes[0], pipes[3])  # so its end of the control pipe is closed
    assert loop.do(Alone()) is True
    assert isinstance(loop.do(Wait()), Gone)


def test_a_wake_up_that_is_refused_is_tried_again(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = os.eventfd_write, [errno.EINVAL, errno.EINVAL, errno.ENOMEM]
    monkeypatch.setattr(mount_threads, "_WAKE_AGAIN", 0.0)

    def failing(fd: int, value: int) -> None:
        if refusals:
            raise OSError(refusals.pop(), "that")
        real(fd, value)

    monkeypatch.setattr(os, "eventfd_write", failing)
    assert end_of(loop) == (0, "")
    assert not refusals


def test_a_title_that_is_refused_holds_up_nothing(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ValueError("x")

    monkeypatch.setattr(mount_threads.setproctitle, "setthreadtitle", fail)
    assert end_of(loop) == (0, "")


def test_a_thaw_of_a_superblock_that_is_gone_finds_nothing_frozen(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENODEV, "not mounted any more")

    def refuse(*_: Any) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(FileSystemOpener, "open", fail)
    for gone, expected in (("", errno.EINVAL), ("/dev/sda1", errno.EPERM)):
        monkeypatch.setattr(held, "device_in_use", lambda _, gone=gone: gone)
        monkeypatch.setattr(private_mounts, "mounted_by", refuse)
        loop.do(Order((0,), Operation.THAW))
        result = loop.do(Wait())
        assert result.error == expected
    assert result_of(loop).error == errno.ENODEV, "only of a thaw"


def test_no_more_threads_is_one_sentence(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(mount_threads._thread, "start_new_thread", refuse)
    with pytest.raises(OSError, match="no more threads or processes"):
        loop.do(Start(((0, Mount("/srv", device="8:1")),), obeys=True))


# How many threads there are

MANY = 3 * THREADS


class Disks:
    """The disks of many file systems: the calls on those that are `stuck` hang until they are let go."""

    def __init__(self, loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stuck: set[str] = set()
        self.released = threading.Event()
        self.started = self.refused = 0
        self.calls: list[tuple[int, str]] = []
        self._start = mount_threads._thread.start_new_thread
        monkeypatch.setattr(mount_threads._thread, "start_new_thread", self.start)
        monkeypatch.setattr(FileSystemOpener, "open", lambda _self, device: Opened(int(device)))
        monkeypatch.setattr(mount_threads, "_CALLS", dict.fromkeys(Operation, self.call))
        self.most = MANY
        self.loop = loop

    def start(self, run: Callable[[], None], _args: tuple[()]) -> None:
        if self.started >= self.most:
            self.refused += 1
            raise RuntimeError("can't start new thread")
        self.started += 1
        self._start(run, ())

    def call(self, fd: int) -> None:
        self.calls.append((threading.get_ident(), str(fd)))
        if str(fd) in self.stuck:
            self.released.wait()

    def take(self, *, obeys: bool = False) -> None:
        mounts = tuple((index, Mount(f"/srv/{index}", device=str(index))) for index in range(MANY))
        self.loop.do(Start(mounts, obeys=obeys))

    def order(self, *indices: int) -> None:
        self.loop.do(Order(indices, SYNC))

    def results(self, count: int) -> set[int]:
        return {self.loop.do(Wait()).mount for _ in range(count)}


@pytest.fixture
def disks(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    found = Disks(loop, monkeypatch)
    yield found
    found.released.set()


def test_a_few_threads_do_the_calls_of_many_file_systems(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_threads, "GROWS_AFTER", 1000.0)  # a machine may stop for any time
    disks.take()
    for _ in range(3):
        disks.order(*range(MANY))
        assert disks.results(MANY) == set(range(MANY))
    assert disks.started == THREADS


def test_no_more_threads_than_file_systems(disks: Disks) -> None:
    disks.loop.do(Start(((0, Mount("/srv", device="0")), (1, Mount("/two", device="1"))), obeys=False))
    assert disks.started == 2


def test_disks_that_are_stuck_delay_no_other_however_many_they_are(disks: Disks) -> None:
    disks.take()
    disks.stuck = {str(index) for index in range(2 * THREADS)}
    disks.order(*range(MANY))
    assert disks.results(THREADS) == set(range(2 * THREADS, MANY)), "the others' results, with all of the first stuck"
    assert 2 * THREADS < disks.started <= MANY
    disks.released.set()
    assert disks.results(2 * THREADS) == set(range(2 * THREADS))


def test_one_call_is_in_flight_for_a_file_system(disks: Disks) -> None:
    disks.take()
    disks.stuck = {"0"}
    disks.order(0)
    with pytest.raises(AssertionError, match=r"/srv/0: Operation\.SYNC is in flight"):
        disks.order(0)


def test_a_keeper_that_gets_no_more_threads_goes_on_when_a_call_returns(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_: -1)
    monkeypatch.setattr(mount_threads, "GROWS_AGAIN", 0.0)
    disks.most = THREADS
    disks.take(obeys=True)
    disks.stuck = {str(index) for index in range(THREADS)}
    disks.order(*range(MANY))
    while not disks.refused or len(disks.calls) < THREADS:  # a thread may run late
        disks.loop.do(Wait(time.monotonic() + mount_threads.GROWS_AFTER))
    assert len(disks.calls) == THREADS, "the main thread does no call: it watches the supervisor"
    disks.released.set()
    assert disks.results(MANY) == set(range(MANY))


@pytest.mark.parametrize("most", [0, 1])
def test_a_thaw_worker_that_gets_no_threads_does_the_calls_in_turn(disks: Disks, most: int) -> None:
    disks.most = most
    disks.take()
    disks.stuck = {"0"} if most else set()
    disks.order(*range(MANY))
    assert disks.results(MANY - most) == set(range(most, MANY))
    assert disks.started == most
    if not most:
        assert {thread for thread, _ in disks.calls} == {threading.get_ident()}


def test_results_are_reported_together(loop: WorkerLoop, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[int] = []
    monkeypatch.setattr(loop.worker.reporter, "post", lambda *reports: posted.append(len(reports)))
    for index in range(MANY):
        call = loop._calls[index] = MountCall(loop, index, Mount(f"/srv/{index}"), index)
        call.doing = SYNC
        loop.post(call.do())
    assert disks.results(MANY) == set(range(MANY))
    assert posted == [MANY]


def test_nobody_looks_at_threads_while_nothing_waits_for_one() -> None:
    threads = CallThreads(lambda _: None, alone=False)
    assert threads.look_at == math.inf
    threads.order([], SYNC)
    threads.look(threads.look_at, [])
    assert threads.look_at == math.inf
