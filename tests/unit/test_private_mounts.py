"""The thread with mounts of its own: whatever is refused to it, its question is answered and nothing is left."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.worker import kernel, open_fs, private_mounts
from virtagent.agent.worker.open_fs import FileSystemOpener
from virtagent.agent.worker.view import View

COVERED = (
    "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "21 20 7:0 / /srv rw - ext4 /dev/loop0 rw\n"
    "22 21 0:50 / /srv rw - tmpfs tmpfs rw\n"
)
BARE = COVERED.rpartition("22 21")[0]
ASKED = {
    "uncover": lambda: private_mounts.uncover("7:0"),
    "mounted_by": lambda: private_mounts.mounted_by("/dev/loop0", "ext4", "7:0"),
}
CALLS: dict[str, list[int]] = {
    "unshare_mounts": [errno.EINVAL, errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EUSERS, errno.ENOSYS],
    "mount": [
        *(errno.EACCES, errno.EBUSY, errno.EINVAL, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENODEV, errno.ENOENT),
        *(errno.ENOMEM, errno.ENOTBLK, errno.ENXIO, errno.EPERM, errno.EROFS),
    ],
    "detach": [errno.EAGAIN, errno.EBUSY, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOMEM, errno.EPERM],
    "open_path": [
        *(errno.EACCES, errno.EINTR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE, errno.ENOENT),
        *(errno.ENOMEM, errno.ENOTDIR, errno.ENXIO, errno.EPERM),
    ],
    "read_text": [errno.EACCES, errno.EINVAL, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ENOMEM],
    "mount_id": [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ENOMEM],
}
"""What such a thread calls, and the errnos of their manual pages (unshare, mount, umount2, open, read)."""
OF = {
    "uncover": ("unshare_mounts", "detach", "open_path", "read_text", "mount_id"),
    "mounted_by": ("unshare_mounts", "mount", "open_path", "read_text", "mount_id"),
}
REFUSED = [(ask, call, number) for ask, calls in OF.items() for call in calls for number in CALLS[call]]


class Calls:
    """What the thread calls: all goes well, but for what is set to be refused at its `at`th call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: dict[str, BaseException] = {}
        self.at = 1
        self.counts: dict[str, int] = {}
        self.covered = True

    def of(self, name: str, done: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name in self.refused and self.counts[name] >= self.at:
                raise self.refused[name]
            return done(*arguments)

        return call

    def uncover(self, _path: object) -> None:
        self.covered = False

    def open(self, _path: str) -> int:
        return os.open(self.folder, os.O_PATH | os.O_CLOEXEC)

    def text(self, _path: str) -> str:
        return COVERED if self.covered else BARE


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    calls = Calls(tmp_path)
    monkeypatch.setattr(kernel, "unshare_mounts", calls.of("unshare_mounts", lambda: None))
    monkeypatch.setattr(kernel, "mount", calls.of("mount", lambda *_: calls.uncover("")))
    monkeypatch.setattr(kernel, "detach", calls.of("detach", calls.uncover))
    monkeypatch.setattr(private_mounts, "open_path", calls.of("open_path", calls.open))
    monkeypatch.setattr(private_mounts, "read_text", calls.of("read_text", calls.text))
    monkeypatch.setattr(private_mounts, "mount_id", calls.of("mount_id", lambda _: 21))
    before = open_descriptors()
    yield calls
    assert open_descriptors() == before, "a descriptor is left"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("ask", OF)
def test_all_goes_well(called: Calls, ask: str) -> None:
    os.close(ASKED[ask]())
    assert called.counts.keys() == set(OF[ask])


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize(
    ("ask", "call", "number"), REFUSED, ids=lambda v: errno.errorcode.get(v) if type(v) is int else v
)
def test_a_refused_call_is_the_answer_and_nothing_is_left(
    called: Calls, ask: str, call: str, number: int, at: int
) -> None:
    called.refused[call], called.at = OSError(number, os.strerror(number)), at
    try:
        handle = ASKED[ask]()
    except OSError as error:
        assert error.errno in (number, errno.ENODEV)  # noqa: PT017 - it may also go well, if it was called once
        assert called.counts[call] >= at
    else:
        assert called.counts[call] < at
        os.close(handle)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError(5), MemoryError()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("ask", "call"), [(ask, call) for ask, calls in OF.items() for call in calls])
def test_a_defect_is_the_answer_too(
    called: Calls, monkeypatch: pytest.MonkeyPatch, ask: str, call: str, error: Exception
) -> None:
    """And stderr has it."""
    told = threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", lambda _: told.set())
    called.refused[call] = error
    with pytest.raises(OSError, match=type(error).__name__):
        ASKED[ask]()
    assert told.wait(30)


@pytest.mark.parametrize("number", CALLS["unshare_mounts"])
def test_one_that_cannot_be_uncovered_is_unreachable_or_tried_later(
    called: Calls, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It is left out by name if no way leads to it; where the system is short of something, it may be opened later."""
    called.refused["unshare_mounts"] = OSError(number, os.strerror(number))
    monkeypatch.setattr(open_fs, "_read_view", lambda _: View(text=COVERED))
    opener = FileSystemOpener((), View(text=COVERED))
    opened, unreachable = opener.open_all(["7:0"])
    assert opened == {}
    assert called.counts == {"unshare_mounts": 1}
    assert unreachable == (set() if number in open_fs._SCARCE else {"7:0"})


def test_what_comes_too_late_is_closed(called: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, over = threading.Event(), threading.Event()

    def wait(_path: str) -> int:
        go_on.wait(30)
        return called.open("")

    def close(fd: int) -> None:
        real(fd)
        if threading.current_thread() is not threading.main_thread():
            over.set()

    real = os.close
    monkeypatch.setattr(private_mounts, "open_path", wait)
    monkeypatch.setattr(private_mounts, "PATIENCE", 0.01)
    with pytest.raises(OSError, match="took too long"):
        ASKED["uncover"]()
    monkeypatch.setattr(os, "close", close)
    go_on.set()
    assert over.wait(30)
