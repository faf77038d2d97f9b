"""Each system call made for one connection answers each errno of its manual page, and nobody else notices.

test_isolation.py does that for sockets, the epoll and workers; here are devices, whose calls no host can see, and the
list of all calls: a new one in the channels or in children.py fails here until a test has it fail.
"""

from __future__ import annotations

import ast
import errno
import os
import select
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import virtagent.supervisor.channels as channels
from fakes.bench import Bench
from virtagent.agent.worker import kernel
from virtagent.supervisor.channels import char_device, path_watch
from virtagent.supervisor.channels.char_device import CharDevice
from virtagent.supervisor.channels.listener import Listener
from virtagent.supervisor.io import ours, process

SUPERVISOR = Path(channels.__path__[0]).parent
SYNC = b'\xff{"execute": "guest-sync", "arguments": {"id": 7}}\n'
NO_ROOM = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]
DEVICE = [errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.EINVAL, errno.EBADF]
PATH = [errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOMEM, errno.ENOTDIR]

# module, call, errnos: each once while the device is opened, used or closed
OPENING: list[tuple[Any, str, list[int]]] = [
    (os, "stat", [*PATH, errno.EOVERFLOW]),
    (os, "open", [*NO_ROOM, *DEVICE, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINTR]),
    (select, "epoll", [*NO_ROOM, errno.EINVAL]),
    (termios, "tcgetattr", [errno.EIO, errno.ENOTTY, errno.EBADF]),
    (termios, "tcsetattr", [errno.EIO, errno.ENOTTY, errno.EINVAL, errno.EINTR]),
    (kernel, "inotify_open", NO_ROOM),
    (kernel, "inotify_watch", [errno.ENOSPC, errno.ENOMEM, errno.EINVAL, errno.ENAMETOOLONG]),
    (os, "lstat", PATH),
]
USING: list[tuple[Any, str, list[int]]] = [
    (os, "read", [*DEVICE, errno.EISDIR]),
    (os, "write", [*DEVICE, errno.EPIPE, errno.ENOSPC, errno.EDQUOT]),
]


class Once:
    """A function that fails once, as the system or termios does; then it is the real one."""

    def __init__(self, module: Any, name: str, number: int) -> None:
        self.real, self.number, self.left = getattr(module, name), number, 1
        self.kind = termios.error if module is termios else OSError

    def __call__(self, *arguments: Any, **names: Any) -> Any:
        if self.left:
            self.left = 0
            raise self.kind(self.number, os.strerror(self.number))
        return self.real(*arguments, **names)


class Through:
    """A module of which one function is another."""

    def __init__(self, module: Any, name: str, function: Any) -> None:
        self._module = module
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def spoil(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> Once:
    once = Once(module, name, number)
    for user in (char_device, path_watch):
        if hasattr(user, module.__name__.rpartition(".")[2]):
            monkeypatch.setattr(user, module.__name__.rpartition(".")[2], Through(module, name, once))
    return once


@pytest.fixture
def line() -> Iterator[tuple[int, str]]:
    """Return the host's end of a serial line, and the path of the guest's."""
    host, guest = os.openpty()
    tty.setraw(guest)
    os.set_blocking(host, False)
    yield host, os.ttyname(guest)
    os.close(host)
    os.close(guest)


PASSES = (*NO_ROOM, errno.ENOSPC, errno.EAGAIN, errno.EINTR)


def served(bench: Bench, host: int, changing: str = "") -> bool:
    """Return whether a request on the line is answered within some looks at it, while the path `changing` changes."""
    for turn in range(5):
        if changing:
            os.chmod(changing, 0o620 - turn % 2)
            bench.turn()
        os.write(host, SYNC)
        said = b""
        for _ in range(3):
            # The kernel hands the bytes of a terminal over a moment later.
            select.select([bench.poller._epoll, host], [], [], 0.1)
            bench.turn()
            try:
                said += os.read(host, 4096)
            except BlockingIOError:
                continue
        if b"to " in said:
            return True
        bench.now += 10
        bench.due()
    return False


def cases(calls: list[tuple[Any, str, list[int]]]) -> list[Any]:
    return [
        pytest.param(module, name, number, id=f"{name}-{errno.errorcode[number]}")
        for module, name, numbers in calls
        for number in numbers
    ]


@pytest.mark.parametrize(("module", "name", "number"), cases([*OPENING, *USING]))
def test_a_device_that_is_refused_a_call_is_served_later(
    line: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int
) -> None:
    host, path = line
    bench = Bench()
    before = len(os.listdir("/proc/self/fd"))
    bench.hosts.listen(Listener.open(f"unix:{tmp_path}/socket"))
    using = module is os and name in ("read", "write")
    once = None if using else spoil(monkeypatch, module, name, number)
    bench.hosts.listen(CharDevice(f"serial:{path}"))
    if using:
        bench.turn()
        once = spoil(monkeypatch, module, name, number)
    assert served(bench, host, "" if number in PASSES else path), bench.lines()
    assert once is not None
    assert not once.left, "it was not called"
    assert served(bench, host), "and again"
    bench.hosts.close()
    bench.poller.close()
    # The poller's epoll and the two of the descriptors' reserve were there before the count.
    assert len(os.listdir("/proc/self/fd")) <= before


# -- the list

WALKED = {
    "channels/transport.py": "fileno ioctl poll recv send close getsockopt register",
    "channels/listener.py": "bind close getsockopt listen setblocking socket stat umask unlink",
    "channels/char_device.py": "stat open isatty close read write tcflush tcgetattr tcsetattr",
    "channels/path_watch.py": "read close lstat readlink inotify_open inotify_watch inotify_unwatch",
    "io/children.py": "pipe2 set_blocking fcntl read write close kill getpid pthread_sigmask",
    "io/process.py": "fork pidfd_open pidfd_send_signal waitid waitpid listdir open read close",
    "io/ours.py": "open stat fstat readlink geteuid",
    "io/poller.py": "",
    "io/descriptors.py": "eventfd fcntl close",
}
"""The calls of the modules that work for one connection or one worker, each of which a test has fail."""
FOR_ALL = {
    *("io/journal.py", "io/log.py", "io/log_writer.py", "io/system_journal.py", "io/notify.py", "io/loop.py"),
    *("io/effects.py", "io/timers.py", "io/troubles.py", "io/__init__.py"),
}
"""The modules of `io` that make no call for one of many."""
_MODULES = {"os", "fcntl", "termios", "kernel", "signal"}
_PURE = {
    *("path", "strerror", "fspath", "fsencode", "inotify_events", "valid_signals", "Inotify", "error"),
    *("S_ISCHR", "S_ISLNK", "S_ISDIR", "basename", "join", "dirname"),
}


def calls_of(path: Path) -> set[str]:
    """Return the functions of modules of system calls that a file calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            if isinstance(of, ast.Name) and of.id in _MODULES:
                found.add(node.func.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.add("open")
    return found - _PURE


@pytest.mark.parametrize("name", WALKED)
def test_every_call_for_one_connection_or_worker_is_made_to_fail(name: str) -> None:
    assert calls_of(SUPERVISOR / name) <= set(WALKED[name].split())


def test_every_file_of_the_channels_is_in_the_list() -> None:
    files = {f"channels/{path.name}" for path in (SUPERVISOR / "channels").glob("*.py") if calls_of(path)}
    assert files <= set(WALKED)


def test_every_file_of_io_is_in_the_list_or_works_for_all() -> None:
    files = {f"io/{path.name}" for path in (SUPERVISOR / "io").glob("*.py")}
    assert files == {name for name in {*WALKED, *FOR_ALL} if name.startswith("io/")}
    assert not set(WALKED) & FOR_ALL


# -- the state of a worker, and whether a process is one of ours

PROC = [errno.EACCES, errno.EPERM, errno.EIO, *NO_ROOM, errno.EINTR, errno.EINVAL]
GONE = [errno.ENOENT, errno.ESRCH]
READING: list[tuple[Any, str, list[int]]] = [(os, "listdir", PROC), (os, "open", PROC), (os, "read", PROC)]


@pytest.mark.parametrize(("module", "name", "number"), cases(READING))
def test_a_worker_whose_state_cannot_be_read_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int
) -> None:
    """As one in the kernel: it is not killed for that (ADR 0015)."""
    monkeypatch.setattr(process, "os", Through(os, name, Once(module, name, number)))
    assert process.System().state(os.getpid()) == "unknown"
    assert process.System().state(os.getpid()) in ("running", "sleeping")
    if name != "listdir":
        monkeypatch.setattr(process, "os", Through(os, name, Once(module, name, number)))
        assert not process.System().dying(os.getpid())


@pytest.mark.parametrize("number", GONE)
@pytest.mark.parametrize("name", ["listdir", "open", "read"])
def test_a_worker_that_ends_while_its_state_is_read_is_gone(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    monkeypatch.setattr(process, "os", Through(os, name, Once(os, name, number)))
    monkeypatch.setattr(process.os, "listdir" if name != "listdir" else "none", lambda _: ["1"], raising=False)
    assert process.System().state(os.getpid()) == "gone"


@pytest.mark.parametrize("call", ["open", "stat"])
@pytest.mark.parametrize("number", [*PROC, *GONE])
def test_a_process_is_not_taken_for_a_stranger_because_nothing_can_be_read_of_it(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Only if it does not exist; else it may be a worker that still freezes (`Children.adopt` looks again)."""
    started = ours.start_time(os.getpid())

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    if call == "open":
        monkeypatch.setattr(ours, "open", refused, raising=False)
    else:
        monkeypatch.setattr(ours, "os", Through(os, "stat", refused))
    if number in GONE:
        assert not ours.is_our_worker(os.getpid(), started)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            ours.is_our_worker(os.getpid(), started)
