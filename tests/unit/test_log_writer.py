"""The log writer and the log where the system refuses a call: the supervisor goes on, and one writer writes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.bench import Sink
from virtagent.supervisor.config import Config
from virtagent.supervisor.io import log_writer, loop
from virtagent.supervisor.io.log import Log
from virtagent.supervisor.io.log_writer import LogFile
from virtagent.supervisor.io.notify import Notify
from virtagent.supervisor.io.process import Ended
from virtagent.supervisor.io.timers import Timers

NO_MORE = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
NO_WATCHES = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Processes:
    """Processes that are not there; `refused` is raised by the next call of that name."""

    def __init__(self) -> None:
        self.refused: dict[str, OSError] = {}
        self.forked = 1 << 30  # no process has such a number
        self.ends: list[int] = []

    def fork(self) -> int:
        self.forked += 1
        return self.forked

    def open_pidfd(self, pid: int) -> int:
        if "open_pidfd" in self.refused:
            raise self.refused.pop("open_pidfd")
        pidfd, end = os.pipe()
        self.ends.append(end)
        return pidfd

    def reap(self, pidfd: int) -> Ended:
        return Ended(signal.SIGKILL, 0)


class Idle:
    """A core with nothing to do."""

    thawed = True

    def handle(self, event: object, now: float) -> list[object]:
        return []


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    for end in made.ends:
        os.close(end)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append(pid))
    return found


def looped(log: Log, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> tuple[loop.Loop, Timers]:
    for name in ("signal", "set_wakeup_fd"):
        monkeypatch.setattr(signal, name, lambda *_: None)
    timers = Timers()
    parts = cast("Any", (Idle(), timers, object(), log, processes, lambda: 0.0, Notify({})))
    return loop.Loop(Config(), *parts), timers


def test_a_writer_that_cannot_be_watched_is_killed(tmp_path: Path, processes: Processes, killed: list[int]) -> None:
    file = LogFile(str(tmp_path / "log"), cast("Any", processes))
    first = file.pid
    file.reap()
    processes.refused["open_pidfd"] = NO_MORE
    with pytest.raises(OSError, match="Too many"):
        file.start()
    assert killed == [first + 1], "else one more writes each time that it is tried"
    assert file.pid == -1
    file.start()
    assert (file.pid, killed) == (first + 2, [first + 1])


def test_a_writer_that_the_epoll_refuses_writes_alone_and_is_watched_later(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LogFile(str(tmp_path / "log"), cast("Any", processes))
    log = Log(file, "debug")
    made, timers = looped(log, processes, monkeypatch)
    os.close(processes.ends.pop())  # it ends
    made._poller.turn(0)
    register = made._poller.register
    monkeypatch.setattr(made._poller, "register", refuses(NO_WATCHES))
    for _ in range(2):
        assert timers.take_due(log_writer.AGAIN) == ("log-writer",)
        made._start_writer(("log-writer",))
    second = file.pid
    monkeypatch.setattr(made._poller, "register", register)
    assert timers.take_due(log_writer.AGAIN) == ("log-writer",)
    made._start_writer(("log-writer",))
    assert file.pid == second == processes.forked, "one and the same"
    os.close(processes.ends.pop())
    made._poller.turn(0)
    assert file.pid == -1, "its end was seen"


def refuses(error: OSError) -> Any:
    def refused(*_: object) -> None:
        raise error

    return refused


def test_a_log_that_is_full_and_cannot_be_waited_for_waits_for_the_next_turn(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink()
    monkeypatch.setattr(sink, "write", refuses(BlockingIOError()))
    log = Log(sink, "debug")
    made, _ = looped(log, processes, monkeypatch)
    monkeypatch.setattr(made._poller, "register", refuses(NO_WATCHES))
    log.add("notice", "a line")
    made.feed()
    assert len(log.waiting) == 1
    monkeypatch.setattr(sink, "write", len)
    made.feed()
    assert not log.waiting
