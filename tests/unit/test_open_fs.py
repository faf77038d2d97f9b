"""Opening all file systems of a plan: one whose opening hangs keeps no other waiting, and no descriptor is lost."""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtagent.agent.worker import open_fs, probe
from virtagent.agent.worker.mountinfo import MountInfo
from virtagent.agent.worker.namespaces import Namespace
from virtagent.agent.worker.open_fs import FileSystemOpener, Opened
from virtagent.agent.worker.view import View

COUNT = 5
HANGS = "7:1"


class Root:
    """Five file systems, each a folder, and of one the opening for reading hangs until `go_on`."""

    def __init__(self, root: Path) -> None:
        self.go_on = threading.Event()
        self.handles: set[int] = set()
        self.late = threading.Event()
        self.points = {f"7:{number}": str(root / str(number)) for number in range(COUNT)}
        for point in self.points.values():
            os.mkdir(point)
        lines = [f"{20 + n} 1 {d} / {p} rw - xfs /dev/loop{n} rw" for n, (d, p) in enumerate(self.points.items())]
        self.view = View(text="\n".join(["1 0 8:1 / / rw - ext4 /dev/sda1 rw", *lines, ""]))

    def open_path(self, path: str) -> int:
        handle = os.open(path, os.O_PATH)
        self.handles.add(handle)
        return handle

    def if_proved(self, handle: int, device: str, _view: object) -> int:
        try:
            if device == HANGS:
                self.go_on.wait(30)
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
        finally:
            os.close(handle)
            self.handles.remove(handle)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    made = Root(tmp_path)
    monkeypatch.setattr(open_fs, "open_path", made.open_path)
    monkeypatch.setattr(open_fs, "_if_proved", made.if_proved)
    yield made
    made.go_on.set()


def test_one_that_hangs_may_be_opened_later_and_the_others_are_open(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[object] = []

    def drop(late: Opened | int | OSError) -> None:
        dropped.append(late)
        real(late)
        root.late.set()

    real = open_fs._drop
    monkeypatch.setattr(open_fs, "_drop", drop)
    until = time.monotonic() + 0.2
    opened, unreachable = FileSystemOpener((), root.view).open_all(root.points, until)
    assert {device: one.point for device, one in opened.items()} == {
        device: point for device, point in root.points.items() if device != HANGS
    }
    assert unreachable == set()
    for one in opened.values():
        os.close(one.fd)
    root.go_on.set()
    assert root.late.wait(30)
    assert len(dropped) == 1
    assert root.handles == set()


def test_those_that_nobody_has_begun_to_open_are_closed(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """As no more threads can be had, and the only one hangs."""
    started: list[object] = []

    def start(*thread: object) -> int:
        if len(started) == 2:  # one that opens all paths, and the one that hangs
            raise RuntimeError("can't start new thread")
        started.append(thread)
        return real(*thread)  # type: ignore[arg-type]

    real = probe._thread.start_new_thread
    monkeypatch.setattr(probe._thread, "start_new_thread", start)
    closed: list[int] = []
    close = os.close

    def note(fd: int) -> None:
        closed.append(fd)
        close(fd)

    monkeypatch.setattr(os, "close", note)
    devices = [HANGS, *(device for device in root.points if device != HANGS)]
    opened, unreachable = FileSystemOpener((), root.view).open_all(devices, time.monotonic() + 0.2)
    assert (opened, unreachable) == ({}, set())
    assert len(root.handles) == COUNT
    assert len(root.handles & {*closed}) == COUNT - 1


def test_no_answer_is_waited_for_when_the_time_is_over(root: Root) -> None:
    opened, unreachable = FileSystemOpener((), root.view).open_all(root.points, time.monotonic() - 1)
    assert (opened, unreachable) == ({}, set())
    assert probe.ask({"one": root.go_on.wait}, until=time.monotonic() - 1) == {}


# Ways that are only in other namespaces, behind servers

HERE = View([MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", "rw")])


def behind_a_server(pid: int, ways: int = 1) -> Namespace:
    """Return a namespace in which so many paths below a FUSE lead to 7:0, the first of them to its root."""
    fuse = [
        MountInfo(1, 0, f"0:{pid}", "/", "/", "ext4", "x", "rw"),
        MountInfo(2, 1, f"0:9{pid}", "/", "/f", "fuse", "x", "rw"),
    ]
    binds = [MountInfo(3 + n, 2, "7:0", "/", f"/f/{n}", "ext4", "/dev/loop0", "rw") for n in range(ways)]
    return Namespace(pid, View([*fuse, *binds]))


def behind_servers(monkeypatch: pytest.MonkeyPatch, opens: Callable[[str], int], *namespaces: Namespace) -> Opened:
    monkeypatch.setattr(open_fs, "open_path", opens)
    monkeypatch.setattr(open_fs, "_if_proved", lambda handle, *_: handle)
    return FileSystemOpener(namespaces)._behind_servers("7:0", HERE)


def test_a_server_that_hangs_hides_no_way_in_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    other_opened = threading.Event()

    def opens(path: str) -> int:
        if path == "/proc/101/root/f/0":
            other_opened.wait(30)
            raise OSError(errno.ENOTCONN, "hung")
        assert path == "/proc/102/root/f/0"
        fd = os.open("/", os.O_PATH)
        other_opened.set()
        return fd

    found = behind_servers(monkeypatch, opens, behind_a_server(101), behind_a_server(102))
    os.close(found.fd)
    assert found.point == ""


def test_of_what_several_namespaces_led_to_one_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[int] = []

    def opens(_path: str) -> int:
        handles.append(os.open("/", os.O_PATH))
        return handles[-1]

    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
    found = behind_servers(monkeypatch, opens, behind_a_server(101), behind_a_server(102), behind_a_server(103, 2))
    os.close(found.fd)
    assert len({*handles}) == 4
    assert sorted(closed) == sorted(handles)
    assert closed[-1] == found.fd


def test_whether_a_server_did_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def opens(path: str) -> int:
        if path.startswith("/proc/101/"):
            go_on.wait(30)
        raise OSError(errno.ENOENT, "no")

    monkeypatch.setattr(open_fs, "ask", functools.partial(probe.ask, patience=0.05))
    with pytest.raises(OSError, match="not mounted any more"):
        behind_servers(monkeypatch, opens, behind_a_server(102), behind_a_server(103))
    with pytest.raises(OSError, match="does not answer"):
        behind_servers(monkeypatch, opens, behind_a_server(101), behind_a_server(102))
    go_on.set()


def test_a_namespace_of_many_ways_takes_no_turn_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def opens(path: str) -> int:
        asked.append(path)
        raise OSError(errno.ENOENT, "no")

    with pytest.raises(OSError, match="not mounted any more"):
        behind_servers(monkeypatch, opens, behind_a_server(101, 500), behind_a_server(102, 2))
    assert len(asked) == open_fs.WAYS_MAX
    assert {"/proc/101/root/f/0", "/proc/102/root/f/0", "/proc/102/root/f/1"} <= {*asked}
