"""One conversation's trouble is that conversation's: what a host sends, how it leaves, what a system call answers."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.bench import Bench, Sink
from virtagent.agent.api.records import Mount
from virtagent.agent.worker import context, messages, standby
from virtagent.supervisor.channels import connection, transport
from virtagent.supervisor.channels.listener import Listener
from virtagent.supervisor.config import Config
from virtagent.supervisor.core import events
from virtagent.supervisor.io import children, descriptors
from virtagent.supervisor.io.children import Child, Children
from virtagent.supervisor.io.log import Log
from virtagent.supervisor.io.poller import Poller
from virtagent.supervisor.io.process import Ended
from virtagent.supervisor.io.timers import Timers
from virtagent.supervisor.io.troubles import Troubles, reason


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a bench that listens at a unix socket."""
    made = Bench()
    made.hosts.listen(Listener.open(f"unix:{tmp_path}/socket"))
    yield made
    made.hosts.close()
    made.poller.close()


def client(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(f"{tmp_path}/socket")
    return sock


SLOW = b'{"execute": "guest-get-host-name"}'
SYNC = b'{"execute": "guest-sync", "arguments": {"id": 7}}'


def test_a_host_that_leaves_with_much_asked_is_told_nothing_while_it_is_closed(bench: Bench, tmp_path: Path) -> None:
    """One thing more was said than a turn takes, and the last of them is answered on the spot."""
    bench.answered_methods = ("guest-sync",)
    with client(tmp_path) as sock:
        sock.sendall(SLOW + b"no" + SLOW * 62 + SYNC)
    bench.turn()
    assert bench.gone() == [1]
    assert [method for _, method in bench.methods()] == ["guest-get-host-name"] * 63 + ["guest-sync"]
    assert [e.unheard for e in bench.fed if isinstance(e, events.Requested)] == [False] + [True] * 63
    with client(tmp_path) as other:
        other.sendall(SYNC)
        bench.turn()
        assert b"to 2" in other.recv(4096)


# -- what a system call answers for one connection


class Failing:
    """Something whose method `call` fails `times` times from now on; all else is the real thing's."""

    def __init__(self, real: Any, call: str = "", error: Exception | None = None, times: int = 1) -> None:
        self.real, self.call, self.error, self.times = real, call, error, times

    def __getattr__(self, name: str) -> Any:
        if name == self.call and self.error is not None:
            return self._fail
        return getattr(self.real, name)

    def _fail(self, *arguments: Any) -> Any:
        if not self.times:
            return getattr(self.real, self.call)(*arguments)
        self.times -= 1
        assert self.error is not None
        raise type(self.error)(*self.error.args)


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Door:
    """A listening socket; `spoil` is done to each socket that it accepts."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.spoil: Callable[[Any], Any] = lambda sock: sock

    def accept(self) -> Any:
        sock, address = self.real.accept()
        return self.spoil(sock), address

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


Opened = tuple[Bench, Door, Path]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Return a bench, the door of its listener, and the path."""
    bench = Bench()
    listener = Listener.open(f"unix:{tmp_path}/socket")
    door = Door(listener.sock)
    listener.sock = cast(socket.socket, door)
    bench.hosts.listen(listener)
    yield bench, door, tmp_path
    bench.hosts.close()
    bench.poller.close()


EPOLL_CTL = [
    errno.ENOSPC,
    errno.ENOMEM,
    errno.EBADF,
    errno.EEXIST,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENOENT,
    errno.EPERM,
]
SOCKOPT = [errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOPROTOOPT, errno.ENOTSOCK, errno.ENOMEM]
READ = [errno.EBADF, errno.ECONNREFUSED, errno.EFAULT, errno.EINVAL, errno.ENOMEM, errno.ENOTCONN, errno.ENOTSOCK]
SEND = [*READ, errno.EACCES, errno.ECONNRESET, errno.EMSGSIZE, errno.ENOBUFS, errno.EPIPE]
CLOSE = [errno.EBADF, errno.EIO, errno.ENOSPC, errno.EDQUOT]
POLL = [errno.EFAULT, errno.EINVAL, errno.ENOMEM]
OF_A_SOCKET: dict[str, list[int]] = {
    "getsockopt": SOCKOPT,
    "setblocking": [errno.EBADF, errno.EINVAL, errno.ENOMEM],
    "fileno": [errno.EBADF],
    "recv": READ,
    "send": SEND,
    "close": CLOSE,
}
OF_THE_EPOLL: dict[str, list[int]] = {"register": EPOLL_CTL, "modify": EPOLL_CTL, "unregister": EPOLL_CTL}
UNEXPECTED = [MemoryError(), KeyError(5), ValueError("x")]


def errors(calls: dict[str, list[int]]) -> list[Any]:
    listed = [(call, failing(number)) for call, numbers in calls.items() for number in numbers]
    listed += [(call, error) for call in calls if call != "unregister" for error in UNEXPECTED]
    return [pytest.param(call, error, id=f"{call}-{reason(error).split(' in ')[0][:40]}") for call, error in listed]


def is_served(bench: Bench, tmp_path: Path) -> None:
    """Another host comes and is answered, and nothing keeps the loop awake."""
    with client(tmp_path) as other:
        other.sendall(SYNC)
        bench.turn()
        assert b"to " in other.recv(4096)
    bench.turn()
    assert bench.hosts.same_channel(f"unix:{tmp_path}/socket") == 0
    assert bench.turn() == 0


@pytest.mark.parametrize(("call", "error"), errors(OF_A_SOCKET))
def test_a_call_for_one_connection_fails(opened: Opened, call: str, error: Exception) -> None:
    bench, door, tmp_path = opened
    with client(tmp_path) as steady:
        steady.sendall(SYNC)
        bench.turn()
        spoilt: list[Failing] = []
        door.spoil = lambda sock: spoilt.append(Failing(sock, call, error)) or spoilt[-1]
        with client(tmp_path) as sock:
            sock.sendall(SYNC)
            bench.turn()
        bench.turn()
        door.spoil = lambda sock: sock
        assert spoilt[0].times == 0, "it was not called"
        spoilt[0].real.close()
        is_served_beside(bench, steady, tmp_path)
    told = [line for line in bench.lines() if "since the start" in line]
    if call not in ("recv", "send"):  # a host that is gone is no news
        assert len(told) == bench.hosts.troubles.count == 1


def is_served_beside(bench: Bench, steady: socket.socket, tmp_path: Path) -> None:
    steady.sendall(SYNC)
    bench.turn()
    assert b"to " in steady.recv(4096)
    steady.close()
    bench.turn()
    is_served(bench, tmp_path)


@pytest.mark.parametrize(("call", "error"), errors(OF_THE_EPOLL))
def test_the_epoll_refuses_one_connection(opened: Opened, call: str, error: Exception) -> None:
    bench, _, tmp_path = opened
    real = bench.poller._epoll
    with client(tmp_path) as steady:
        steady.sendall(SYNC)
        bench.turn()
        spoilt = Failing(real, call, error)
        bench.poller._epoll = cast(Any, spoilt)
        bench.answers = call != "modify"
        with client(tmp_path) as sock:
            sock.settimeout(0)
            if call == "modify":
                sock.sendall(SYNC)
                bench.turn()
                (asked,) = [e for e in bench.fed if isinstance(e, events.Requested)][1:]
                bench.hosts.answer(asked.connection, asked.token, "x" * 2_000_000)  # more than the socket takes
            bench.turn()
            bench.answers = True
        bench.turn()
        assert spoilt.times == 0, "it was not called"
        bench.poller._epoll = real
        is_served_beside(bench, steady, tmp_path)
    if call != "unregister":
        assert bench.hosts.troubles.count == 1


@pytest.mark.parametrize("number", POLL)
def test_the_poll_of_a_hang_up_fails(opened: Opened, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    bench, _, tmp_path = opened

    def fail(_sock: socket.socket) -> bool:
        raise failing(number)

    with monkeypatch.context() as patched:
        patched.setattr(transport, "hung_up", fail)
        client(tmp_path).close()
        bench.turn()
    assert bench.hosts.troubles.count == 1
    is_served(bench, tmp_path)


def lent(number: int) -> int:
    """Return how many descriptors are lent before that errno of accept(2) is taken for good."""
    return descriptors.COUNT if number in (errno.EMFILE, errno.ENFILE) else 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_descriptor_in_reserve_lets_a_host_in(opened: Opened, number: int) -> None:
    bench, door, tmp_path = opened
    real = door.real
    door.real = cast(socket.socket, Failing(real, "accept", failing(number)))
    with client(tmp_path) as sock:
        sock.sendall(SYNC)
        bench.turn()
        assert b"to " in sock.recv(4096)
        assert len(bench.hosts.descriptors._kept) == descriptors.COUNT - 1
    bench.turn()
    assert len(bench.hosts.descriptors._kept) == descriptors.COUNT
    is_served(bench, tmp_path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_an_idle_connection_gives_its_descriptor(opened: Opened, number: int) -> None:
    bench, door, tmp_path = opened
    real = door.real
    with client(tmp_path) as idle:
        bench.turn()
        door.real = cast(socket.socket, Failing(real, "accept", failing(number)))
        with client(tmp_path) as sock:
            sock.sendall(SYNC)
            bench.turn()
            assert b"to " in sock.recv(4096)
            assert is_over(idle)
        assert len(bench.hosts.descriptors._kept) == descriptors.COUNT
    bench.turn()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_nobody_can_be_accepted_for_a_while(opened: Opened, number: int) -> None:
    bench, door, tmp_path = opened
    real = door.real
    door.real = cast(socket.socket, Failing(real, "accept", failing(number), times=1 + lent(number)))
    with client(tmp_path) as sock:
        sock.sendall(SYNC)
        bench.turn()
        assert any("accept" in line for line in bench.lines())
        bench.now += 1
        bench.due()
        bench.turn()
        assert b"to " in sock.recv(4096)
    is_served(bench, tmp_path)


def test_a_listener_that_the_epoll_refuses_tries_again(opened: Opened) -> None:
    bench, door, tmp_path = opened
    real, listening = bench.poller._epoll, door.real
    door.real = cast(socket.socket, Failing(listening, "accept", failing(errno.ENOBUFS)))
    with client(tmp_path):
        bench.turn()
    bench.poller._epoll = cast(Any, Failing(real, "register", failing(errno.ENOSPC)))
    bench.now += 1
    bench.due()
    assert "raise fs.epoll.max_user_watches" in bench.lines()[-1]
    bench.now += 1
    bench.due()
    bench.turn()
    is_served(bench, tmp_path)


def test_a_defect_of_the_core_is_not_caught(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _, tmp_path = opened

    def defect(_event: events.Event) -> None:
        raise AssertionError("a defect")

    with client(tmp_path) as sock, monkeypatch.context() as patched:
        patched.setattr(bench.hosts, "_feed", defect)
        sock.sendall(SYNC)
        with pytest.raises(AssertionError, match="a defect"):
            bench.turn()


# -- what a system call answers for one worker


class Processes:
    """Processes that are not there: a pidfd is the reading end of a pipe, and an exit closes the other."""

    def __init__(self) -> None:
        self.error: dict[str, Exception] = {}
        self.killed: list[int] = []
        self.alive: list[int] = []

    def _call(self, name: str) -> None:
        if name in self.error:
            raise self.error.pop(name)

    def fork(self) -> int:
        self._call("fork")
        return 1 << 30  # no process has such a number

    def open_pidfd(self, pid: int) -> int:
        self._call("open_pidfd")
        pidfd, end = os.pipe()
        self.alive.append(end)
        return pidfd

    def kill(self, pidfd: int) -> None:
        self._call("kill")
        self.killed.append(pidfd)

    def reap(self, pidfd: int) -> Ended | None:
        self._call("reap")
        return Ended(0, 0)

    def state(self, pid: int) -> str:
        return "sleeping"

    def dying(self, pid: int) -> bool:
        return False

    def end(self) -> None:
        while self.alive:
            os.close(self.alive.pop())


class Nursery:
    """Children whose processes are not there, and what they fed."""

    def __init__(self) -> None:
        self.fed: list[events.Event] = []
        self.sink = Sink()
        self.log = Log(self.sink, "debug")
        self.poller = Poller()
        self.processes = Processes()
        self.troubles = Troubles(self.log)
        self.now, self.timers = 0.0, Timers()
        feed, ended = self.fed.append, lambda: None
        self.children = Children(self.processes, self.poller, self.timers, lambda: self.now, feed, ended, self.troubles)

    def spawn(self) -> Child:
        return self.children.spawn(context.Job(1, "va.getdmesg", {}))

    def turn(self) -> None:
        for _ in range(10):
            if not self.poller.turn(0):
                return
        raise AssertionError("it is ready all the time: the loop would spin")

    def kinds(self) -> list[type]:
        return [type(event) for event in self.fed]


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    made = Nursery()
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: None if pid == 1 << 30 else kill(pid, number))
    yield made
    made.processes.end()
    made.turn()
    made.poller.close()


FORK = [errno.EAGAIN, errno.ENOMEM, errno.ENOSYS]
PIDFD = [errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM, errno.EINVAL, errno.ESRCH]
PIPE = [errno.EMFILE, errno.ENFILE, errno.EFAULT, errno.EINVAL]
FCNTL = [errno.EBADF, errno.EINVAL, errno.ENOMEM, errno.EBUSY, errno.EPERM]


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *[("fork", number) for number in FORK],
        *[("open_pidfd", number) for number in PIDFD],
        *[("pipe2", number) for number in PIPE],
        *[("set_blocking", number) for number in FCNTL],
        *[("register", number) for number in EPOLL_CTL],
        *[("register the second", number) for number in EPOLL_CTL],
    ],
)
def test_a_worker_that_cannot_be_had_leaves_nothing_over(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    real, error = nursery.poller._epoll, failing(number)

    def fail(*_arguments: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        if call in ("fork", "open_pidfd"):
            nursery.processes.error[call] = error
        elif call == "register":
            nursery.poller._epoll = cast(Any, Failing(real, "register", error))
        elif call == "register the second":
            spoilt = Failing(real)
            spoilt.register = lambda *a: (real.register(*a), setattr(spoilt, "register", fail))  # type: ignore[attr-defined]
            nursery.poller._epoll = cast(Any, spoilt)
        else:
            patched.setattr(os, call, fail)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            nursery.spawn()
    nursery.poller._epoll = real
    nursery.processes.end()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert nursery.poller._entries == {}
    nursery.spawn()  # the next one is had
    assert nursery.fed == []


@pytest.mark.parametrize(
    "error", [*map(failing, [errno.EIO, errno.EINVAL, errno.ENOMEM, errno.EBADF]), *UNEXPECTED], ids=repr
)
def test_a_worker_whose_reports_cannot_be_read_is_killed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    child = nursery.spawn()

    def fail(_self: Child) -> None:
        raise type(error)(*error.args)

    report = child.report_fd
    with monkeypatch.context() as patched:
        patched.setattr(Child, "read", fail)
        nursery.poller._entries[report].call()
    assert nursery.kinds() == [events.RubbishReported, events.ReportEnded]
    assert nursery.troubles.count == 1
    nursery.turn()
    nursery.processes.end()
    nursery.turn()
    assert nursery.kinds()[2:] == [events.Exited]


@pytest.mark.parametrize(
    "error", [*map(failing, [errno.EIO, errno.EINVAL, errno.ENOMEM, errno.EBADF]), *UNEXPECTED], ids=repr
)
def test_a_worker_that_cannot_be_told_is_killed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    child = nursery.spawn()

    def fail(_self: Child) -> None:
        raise type(error)(*error.args)

    with monkeypatch.context() as patched:
        patched.setattr(Child, "write", fail)
        nursery.children.tell(child.id, messages.Thaw())
    assert nursery.kinds() == [events.RubbishReported]
    assert nursery.troubles.count == 1
    assert not child.unsent


@pytest.mark.parametrize("number", EPOLL_CTL)
def test_a_control_pipe_that_is_full_and_cannot_be_waited_for(nursery: Nursery, number: int) -> None:
    child = nursery.spawn()
    reader = os.open(f"/proc/self/fd/{child.control_fd}", os.O_RDONLY | os.O_NONBLOCK)  # else it is a broken pipe
    nursery.poller._epoll = cast(Any, Failing(nursery.poller._epoll, "register", failing(number)))
    while not child.unsent and not nursery.fed:
        nursery.children.tell(child.id, messages.Thaw())
    assert nursery.kinds() == [events.RubbishReported]
    os.close(reader)


@pytest.mark.parametrize("number", [errno.ECHILD, errno.EINVAL, errno.EBADF, errno.EINTR])
def test_how_a_worker_ended_cannot_be_known(nursery: Nursery, number: int) -> None:
    nursery.spawn()
    nursery.processes.error["reap"] = failing(number)
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed[-1] == events.Exited(1, signal.SIGKILL, 0)
    assert nursery.troubles.count == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EBADF])
def test_a_worker_that_cannot_be_killed_is_waited_for(nursery: Nursery, number: int) -> None:
    nursery.spawn()
    nursery.processes.error["kill"] = failing(number)
    nursery.children.kill(1)
    assert nursery.troubles.count == 1
    nursery.log.write()
    assert "cannot be killed" in nursery.sink.lines[-1]
    nursery.processes.end()
    nursery.turn()
    assert nursery.kinds()[-1] is events.Exited


# -- the process that stands by for a thaw


def thaw_job(number: int = 7) -> context.Job:
    return context.Job(number, "thaw", {"mounts": {2: Mount("/srv/\udcff", device="8:1")}, "expedited": True})


def test_one_that_stands_by_thaws_where_no_other_can_be_had(nursery: Nursery) -> None:
    nursery.children.stand_by()
    spare = nursery.children._standby
    assert spare is not None
    nursery.children.stand_by()
    assert nursery.children._standby is spare, "one is enough"
    reader = os.open(f"/proc/self/fd/{spare.control_fd}", os.O_RDONLY | os.O_NONBLOCK)
    for call in ("fork", "open_pidfd"):
        nursery.processes.error[call] = failing(errno.EAGAIN)
        with pytest.raises(OSError, match="temporarily"):
            nursery.spawn()  # it is not for others
    nursery.processes.error["fork"] = failing(errno.EAGAIN)
    assert nursery.children.spawn(thaw_job()) is spare
    (asked,) = messages.Decoder(messages.CONTROLS).feed(os.read(reader, 65536))
    os.close(reader)
    assert standby.job_of(asked) == thaw_job()
    assert nursery.children.pid(7) == 1 << 30
    assert nursery.troubles.count == 1
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed[-1] == events.Exited(7, 0, 0)
    nursery.now += children.AGAIN
    key = nursery.timers.take_due(nursery.now)
    assert key is not None
    nursery.children.stand_by_again(key)
    assert nursery.children._standby is not None, "there is another by now"


def test_one_that_stands_by_and_dies_is_replaced_until_none_is_needed(nursery: Nursery) -> None:
    nursery.children.stand_by()
    nursery.processes.end()
    nursery.turn()
    assert (nursery.fed, nursery.children._standby) == ([], None)
    nursery.now += children.AGAIN
    for refused in (True, False):
        key = nursery.timers.take_due(nursery.now)
        assert key is not None
        if refused:
            nursery.processes.error["fork"] = failing(errno.EAGAIN)
        nursery.children.stand_by_again(key)
        nursery.now += children.AGAIN
    assert nursery.children._standby is not None
    spare = nursery.children._standby
    nursery.children.dismiss()
    nursery.children.stand_by()
    assert nursery.children._standby is spare, (
        "it is dismissed in the next turn, and nothing is forked for another freeze"
    )
    nursery.children.dismiss()
    assert nursery.processes.killed == []
    due = nursery.timers.take_due(nursery.now)
    assert due is not None
    nursery.children.stand_by_again(due)
    assert len(nursery.processes.killed) == 1
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed == []
    assert nursery.timers.nearest() is None
    assert nursery.poller._entries == {}


def test_one_that_cannot_be_had_is_said_so(nursery: Nursery) -> None:
    nursery.processes.error["fork"] = failing(errno.EAGAIN)
    with pytest.raises(events.NoStandby, match="temporarily"):
        nursery.children.stand_by()


def replaced(nursery: Nursery) -> Child:
    """Require that another one is forked a second after trouble with the one that stood by; return it."""
    assert nursery.children._standby is None
    nursery.turn()
    assert nursery.children._standby is None, "not at once: that would loop without bound"
    nursery.now += children.AGAIN
    key = nursery.timers.take_due(nursery.now)
    assert key is not None
    nursery.children.stand_by_again(key)
    assert nursery.timers.nearest() is None
    assert nursery.children._standby is not None
    return nursery.children._standby


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("error", [failing(errno.EIO), failing(errno.ENOMEM), *UNEXPECTED], ids=repr)
def test_one_that_stands_by_and_cannot_be_read_is_replaced(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, error: Exception, ended: bool
) -> None:
    def fail(_self: Child) -> None:
        raise type(error)(*error.args)

    nursery.children.stand_by()
    for count in (1, 2, 3):
        if ended:
            nursery.processes.end()
        with monkeypatch.context() as patched:
            patched.setattr(Child, "read", fail)
            nursery.turn()
        assert (len(nursery.processes.killed), nursery.troubles.count) == (count, count)
        nursery.processes.error["fork"] = failing(errno.EAGAIN)
        with pytest.raises(OSError, match="temporarily"):
            nursery.children.spawn(thaw_job())  # one that is killed does not thaw
        replaced(nursery)
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed == []


@pytest.mark.parametrize("said", [b"\xc1\xc1\xc1", *messages.encode(messages.Started(1))])
@pytest.mark.parametrize("ended", [False, True])
def test_one_that_stands_by_and_says_anything_is_replaced(nursery: Nursery, said: bytes, ended: bool) -> None:
    nursery.children.stand_by()
    spare = nursery.children._standby
    assert spare is not None
    writer = os.open(f"/proc/self/fd/{spare.report_fd}", os.O_WRONLY)
    os.write(writer, said)
    os.write(writer, said)
    if ended:
        nursery.processes.end()
    nursery.turn()
    assert nursery.troubles.count == len(nursery.processes.killed) == 1
    os.write(writer, said) if not ended else None
    nursery.processes.end()
    nursery.turn()
    os.close(writer)
    replaced(nursery)
    assert nursery.fed == []
    assert nursery.troubles.count == 1


def test_a_freeze_has_another_at_once_where_one_that_stands_by_is_killed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    nursery.children.stand_by()
    with monkeypatch.context() as patched:
        patched.setattr(Child, "read", lambda _: 1 // 0)
        nursery.turn()
    nursery.children.stand_by()
    spare = nursery.children._standby
    assert spare is not None
    nursery.now += children.AGAIN
    key = nursery.timers.take_due(nursery.now)
    assert key is not None
    nursery.children.stand_by_again(key)
    assert nursery.children._standby is spare


# -- the worker that a dead supervisor left


@pytest.fixture
def orphan(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Return the pids of orphans that live: 4711 does."""
    alive = {4711}
    monkeypatch.setattr(children, "is_our_worker", lambda pid, started: pid in alive and started == 99)
    yield alive
    alive.clear()


def again(nursery: Nursery) -> None:
    """Let the second pass after which it is looked at again."""
    nursery.now += children.AGAIN
    key = nursery.timers.take_due(nursery.now)
    assert key is not None
    nursery.children.adopt_again(key)


def test_an_orphan_is_watched_and_killed(nursery: Nursery, orphan: set[int]) -> None:
    nursery.children.adopt(5, 4711, 99)
    assert nursery.fed == []
    assert nursery.children.pid(5) == 4711
    nursery.children.kill(5)
    assert len(nursery.processes.killed) == 1
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed == [events.Exited(5, signal.SIGKILL, 0)]
    assert nursery.timers.nearest() is None


def test_an_orphan_that_is_gone_or_a_stranger_has_ended(nursery: Nursery, orphan: set[int]) -> None:
    nursery.processes.error["open_pidfd"] = ProcessLookupError(errno.ESRCH, "No such process")
    nursery.children.adopt(5, 4711, 99)
    nursery.children.adopt(6, 4711, 98)
    nursery.children.adopt(7, 4712, 99)
    assert nursery.fed == [events.Exited(number, signal.SIGKILL, 0) for number in (5, 6, 7)]
    assert nursery.poller._entries == {}
    assert nursery.timers.nearest() is None


@pytest.mark.parametrize("call", ["open_pidfd", "register"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM])
def test_an_orphan_that_cannot_be_watched_is_not_taken_for_dead(
    nursery: Nursery, orphan: set[int], call: str, number: int
) -> None:
    """It may still freeze. Killed meanwhile, it dies as soon as it can be reached."""
    real = nursery.poller._epoll

    def refuse() -> None:
        nursery.processes.error = {"open_pidfd": failing(number)} if call == "open_pidfd" else {}
        nursery.poller._epoll = cast(Any, Failing(real, call, failing(number)))

    refuse()
    nursery.children.adopt(5, 4711, 99)
    nursery.children.kill(5)
    refuse()
    again(nursery)
    assert (nursery.fed, nursery.processes.killed) == ([], [])
    assert nursery.troubles.count == 1, "it is told once"
    nursery.poller._epoll = real
    again(nursery)
    assert len(nursery.processes.killed) == 1
    assert nursery.timers.nearest() is None
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed == [events.Exited(5, signal.SIGKILL, 0)]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
def test_an_orphan_of_which_nothing_can_be_read_is_not_taken_for_dead(
    nursery: Nursery, orphan: set[int], monkeypatch: pytest.MonkeyPatch, number: int, watched: bool
) -> None:
    """H15: with no descriptor left neither its pidfd nor /proc can be opened. The start goes on, and looks again."""

    def refused(*_: Any) -> bool:
        raise failing(number)

    if not watched:
        nursery.processes.error["open_pidfd"] = failing(number)
    with monkeypatch.context() as patched:
        patched.setattr(children, "is_our_worker", refused)
        nursery.children.adopt(5, 4711, 99)
        again(nursery)
    assert (nursery.fed, nursery.troubles.count) == ([], 1)
    nursery.processes.error.clear()
    again(nursery)
    assert nursery.timers.nearest() is None
    nursery.processes.end()
    nursery.turn()
    assert nursery.fed == [events.Exited(5, signal.SIGKILL, 0)]


def test_an_orphan_that_ends_unwatched_is_found_gone(nursery: Nursery, orphan: set[int]) -> None:
    nursery.processes.error["open_pidfd"] = failing(errno.EMFILE)
    nursery.children.adopt(5, 4711, 99)
    orphan.clear()
    again(nursery)
    assert nursery.fed == [events.Exited(5, signal.SIGKILL, 0)]
    assert nursery.timers.nearest() is None


# -- a lot of it, in slices


def test_a_run_of_garbage_is_one_line_and_others_have_their_turn(opened: Opened) -> None:
    bench, _, tmp_path = opened
    count = 50_000
    with client(tmp_path) as noisy, client(tmp_path) as other:
        bench.turn()
        noisy.setblocking(False)
        data = memoryview(b"no " * count)
        most = 0
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[noisy.send(data) :]
            with contextlib.suppress(BlockingIOError):
                noisy.recv(1 << 20)
            other.sendall(SYNC)
            bench.poller.turn(0)
            bench.hosts.take_turns()
            assert b"to " in other.recv(4096), "it waits for the noise"
            most = max(most, *(each.session.input_size for each in bench.hosts._by_id.values()))
        assert most <= 2 * connection.READ, "more is read than is looked at"
    bench.turn()
    for _ in range(count):
        if not bench.hosts.take_turns():
            break
    assert len([e for e in bench.fed if isinstance(e, events.Malformed)]) == 1
    assert any("more in a row that were no requests" in line for line in bench.lines())


def test_a_run_ends_with_a_request_or_a_pause(opened: Opened) -> None:
    bench, _, tmp_path = opened
    with client(tmp_path) as sock:
        for said, pause in ((b"no " * 3 + SYNC, 0), (b"no ", 0), (b"no ", 0), (b"no ", connection.RUN_AGE)):
            bench.now += pause
            sock.sendall(said)
            bench.turn()
    assert len([e for e in bench.fed if isinstance(e, events.Malformed)]) == 3


# -- a full house


FREEZE = b'{"execute": "guest-fsfreeze-freeze"}'
STATUS = b'{"execute": "va.fsstatus", "arguments": {"options": {"since": 1}}}'


def full(bench: Bench, tmp_path: Path, said: list[bytes]) -> list[socket.socket]:
    """Return as many clients as have room, each of which has said one of these, a second after the one before."""
    bench.hosts.config = Config(message_age=5, max_clients=len(said))
    bench.answered_methods = ("guest-sync",)
    socks = []
    for data in said:
        socks.append(client(tmp_path))
        socks[-1].sendall(data)
        bench.turn()
        bench.now += 1
    return socks


def is_over(sock: socket.socket) -> bool:
    sock.settimeout(0)
    try:
        return sock.recv(1 << 16) == b"" or sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_one_that_is_idle_the_longest_gives_way(opened: Opened) -> None:
    bench, _, tmp_path = opened
    socks = full(bench, tmp_path, [FREEZE, b"", SYNC, b""])
    socks[1].sendall(SYNC)
    bench.turn()  # the second has spoken last
    socks.append(client(tmp_path))
    socks[-1].sendall(SYNC)
    bench.turn()
    assert [is_over(sock) for sock in socks] == [False, False, True, False, False]
    for sock in socks:
        sock.close()


def test_then_the_longest_waiting_status_call_is_answered_and_closed(opened: Opened) -> None:
    bench, _, tmp_path = opened
    socks = full(bench, tmp_path, [FREEZE, STATUS, STATUS])
    feed = bench.hosts._feed

    def cut(event: events.Event) -> None:
        if isinstance(event, events.NewsCut):
            for asked in bench.fed:
                if isinstance(asked, events.Requested) and asked.connection == event.connection:
                    bench.hosts.answer(asked.connection, asked.token, {"seq": 1})
        feed(event)

    bench.hosts._feed = cut
    socks.append(client(tmp_path))
    socks[-1].sendall(SYNC)
    bench.turn()
    assert b'"seq": 1' in socks[1].recv(4096)
    assert [is_over(sock) for sock in socks] == [False, True, False, False]
    for sock in socks:
        sock.close()


def test_then_two_more_are_served_what_is_essential_and_others_are_told_busy(opened: Opened) -> None:
    bench, _, tmp_path = opened
    socks = full(bench, tmp_path, [FREEZE, FREEZE])
    bench.answered_methods = ("guest-sync", "guest-ping")
    thaw = b'{"execute": "guest-fsfreeze-thaw"}'
    third = client(tmp_path)
    third.sendall(SYNC + SLOW + thaw)
    bench.turn()
    said = third.recv(4096)
    assert said.count(b"\n") == 2
    assert b"too many clients on this channel" in said
    assert bench.methods()[-1] == (3, "guest-fsfreeze-thaw")
    fourth = client(tmp_path)
    fourth.sendall(thaw)
    bench.turn()
    assert bench.methods()[-1] == (4, "guest-fsfreeze-thaw")
    fifth = client(tmp_path)
    fifth.sendall(SYNC + thaw)
    bench.turn()
    said = fifth.recv(4096)
    assert b"to 5" in said, "it learns who is there"
    assert b"too many clients on this channel" in said
    socks[0].close()
    socks[1].close()
    fifth.close()
    bench.turn()
    third.sendall(SLOW)
    bench.turn()
    assert bench.methods()[-1] == (3, "guest-get-host-name"), "there is room by now"
    third.close()
    fourth.close()
