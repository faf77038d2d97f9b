"""The log: a reader that does not read never blocks the daemon, and nothing is lost without a count."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtagent.supervisor.io import log as module
from virtagent.supervisor.io.log import Datagrams, Log, Stderr, syslog
from virtagent.supervisor.io.system_journal import SystemJournal


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def to(fd: int, level: str = "info", *, prefixed: bool = False) -> Log:
    return Log(Stderr(fd, prefixed=prefixed), level)


def close(log: Log) -> None:
    sock = getattr(log.sink, "_socket")  # noqa: B009
    if sock is not None:
        sock.close()


def drained(fd: int, log: Log) -> bytes:
    """Read and write in turn until nothing waits any more."""
    found = b""
    os.set_blocking(fd, False)
    while True:
        more = log.write()
        while True:
            try:
                data = os.read(fd, 1 << 20)
            except BlockingIOError:
                break
            if not data:
                return found
            found += data
        if not more:
            return found


def test_lines_come_in_order_with_their_prefix(pipe: tuple[int, int]) -> None:
    log = to(pipe[1], prefixed=True)
    log.add("err", "one")
    log.add("debug", "not asked for")
    log.add("audit", "always")
    log.add("info", "two")
    assert drained(pipe[0], log) == b"<3>virtagentd: one\n<5>virtagentd: always\n<6>virtagentd: two\n"


@pytest.mark.parametrize(("level", "count"), [("err", 1), ("warning", 2), ("notice", 3), ("info", 4), ("debug", 5)])
def test_levels(pipe: tuple[int, int], level: str, count: int) -> None:
    log = to(pipe[1], level)
    for name in ("err", "warning", "notice", "info", "debug"):
        log.add(name, name)
    assert drained(pipe[0], log).count(b"\n") == count


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[31m", "\udcff", "\0", "\u2028", "\x85"])
def test_one_line_stays_one(pipe: tuple[int, int], text: str) -> None:
    log = to(pipe[1])
    log.add("info", text)
    found = drained(pipe[0], log)
    assert len(found.decode().splitlines()) == 1
    assert b"\x1b" not in found


def test_a_full_pipe_never_blocks_and_nothing_is_lost(pipe: tuple[int, int]) -> None:
    log = to(pipe[1])
    done = threading.Event()

    def write() -> None:
        for i in range(5000):
            log.add("info", f"line {i} " + "x" * 100)
            log.write()
        done.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert done.wait(20), "the log blocks"
    lines = drained(pipe[0], log).decode().splitlines()
    assert [int(line.split()[2]) for line in lines] == list(range(5000))


def test_what_does_not_fit_into_memory_is_counted(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 100)
    log = to(pipe[1])
    while not log.write():
        log.add("info", "x" * 4000)
    begun = len(log.waiting)
    for i in range(1000):
        log.add("info", f"line {i}")
    assert begun < len(log.waiting) <= 101
    found = drained(pipe[0], log)
    log.add("info", "the next")
    lines = (found + drained(pipe[0], log)).decode().splitlines()
    numbers = [int(line.split()[2]) for line in lines if "line " in line]
    lost = [int(line.split()[2]) for line in lines if "lost" in line]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + sum(lost) == 1000


def test_a_reader_that_is_gone_costs_nothing_and_is_counted(pipe: tuple[int, int]) -> None:
    log = to(pipe[1])
    os.close(pipe[0])
    for _ in range(10):
        log.add("info", "into the void")
        assert not log.write()
    assert len(log.waiting) + log._dropped == 10


def test_the_flag_of_the_shared_descriptor_stays_as_it_was(pipe: tuple[int, int]) -> None:
    to(pipe[1])
    assert os.get_blocking(pipe[1])


def test_a_socket_is_never_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = to(ours.fileno())
        for i in range(3000):
            log.add("info", f"line {i} " + "x" * 500)
        assert log.write()
        assert ours.gettimeout() is None
        found = drained(theirs.fileno(), log).decode().splitlines()
        assert [int(line.split()[2]) for line in found] == list(range(3000))
        close(log)


def test_a_socket_whose_reader_is_gone_raises_no_signal() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        log = to(ours.fileno())
        theirs.close()
        log.add("info", "x")
        assert not log.write()
        close(log)


def test_a_file_waits_while_frozen(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with open(tmp_path / "log", "w") as file:
        log = to(file.fileno())
        assert log.sink.waits_while_frozen
        log.add("info", "x")
        assert not log.write()
    assert (tmp_path / "log").read_text() == "virtagentd: x\n"
    assert not to(pipe[1]).sink.waits_while_frozen


@pytest.mark.parametrize("form", [syslog, SystemJournal], ids=["syslog", "journal"])
def test_datagrams_survive_a_reader_that_comes_late_and_one_that_is_replaced(
    tmp_path: Path, form: Callable[[str], Datagrams]
) -> None:
    path = str(tmp_path / "log")
    log = Log(form(path), "info")
    log.add("info", "one")
    assert not log.write(), "nobody is there to wait for"
    for words in (["one", "two"], ["three"]):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as reader:
            reader.bind(path)
            log.add("warning", words[-1])
            assert not log.write()
            found = [reader.recv(9999).decode() for _ in words]
        os.unlink(path)
        for datagram, word in zip(found, words, strict=True):
            assert word in datagram
            assert "virtagentd" in datagram
    close(log)


def test_a_full_syslog_never_blocks_and_nothing_is_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as reader:
        reader.bind(path)
        log = Log(syslog(path), "info")
        for i in range(2000):
            log.add("info", f"line {i}")
            log.write()
        assert log.write(), "it waits"
        found = []
        while log.waiting or log.write():
            log.write()
            try:
                while True:
                    found.append(int(reader.recv(9999).split()[-1]))
            except BlockingIOError:
                continue
        try:
            while True:
                found.append(int(reader.recv(9999).split()[-1]))
        except BlockingIOError:
            pass
        assert found == list(range(2000))
    close(log)
