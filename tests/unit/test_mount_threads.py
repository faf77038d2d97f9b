"""The threads of a freeze worker: the loop waits for their results without limit, so each comes whatever happens."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from virtagent.agent.api.records import Mount
from virtagent.agent.worker import context, held, mount_threads, private_mounts
from virtagent.agent.worker.mount_threads import MountThread, WorkerLoop
from virtagent.agent.worker.open_fs import FileSystemOpener, Opened
from virtagent.agent.worker.steps import Alone, Gone, Operation, Result, Start, Wait

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
    loop._threads[0].order(SYNC)
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
    assert "/srv: syncfs could not be reported: KeyError('x')" in capsys.readouterr().err


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
    thread = loop._threads[0] = MountThread(loop, 0, Mount("/srv", device="8:1"))
    thread.start()
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
        loop._threads[0].order(Operation.THAW)
        result = loop.do(Wait())
        assert result.error == expected
    assert result_of(loop).error == errno.ENODEV, "only of a thaw"


def test_no_more_threads_is_one_sentence(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(mount_threads._thread, "start_new_thread", refuse)
    with pytest.raises(OSError, match="no more threads or processes"):
        MountThread(loop, 0, Mount("/srv")).start()
