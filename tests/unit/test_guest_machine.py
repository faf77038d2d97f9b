"""The handlers that act on the machine, on folders that look like sysfs and on programs that only say what they do."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import machine
from virtagent.agent.worker.plan import MountInfo


class _Worker:
    def __init__(self) -> None:
        self.titles: list[str] = []

    def title(self, doing: str) -> None:
        self.titles.append(doing)


WORKER: Any = _Worker()
Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return the function that makes a program, the only ones in PATH: it notes its arguments, speaks and exits."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, *, says: str = "", code: int | dict[str, int] = 0, then: str = "") -> Path:
        codes = code if isinstance(code, dict) else {"*": code}
        cases = "".join(f"{words}) exit {number};;\n" for words, number in codes.items())
        path = folder / name
        path.write_text(
            f"#!/bin/sh\necho {name} $* >>{tmp_path}/called\necho '{says}' >&2\n{then}\ncase $1 in\n{cases}esac\n"
        )
        path.chmod(0o755)
        return path

    return make


def called(tmp_path: Path) -> list[str]:
    log = tmp_path / "called"
    return log.read_text().splitlines() if log.exists() else []


def refused(text: str, code: Code = Code.FAILED) -> Any:
    return pytest.raises(Fault, match=rf"^{text} \[{code.name} ")


# time


def test_set_time(program: Program, tmp_path: Path) -> None:
    set_to: list[tuple[int, int]] = []
    hwclock = str(program("hwclock"))

    def set_clock(clock: int, nanoseconds: int) -> None:
        set_to.append((clock, nanoseconds))

    now = 1_700_000_000_123_456_789
    assert machine.set_time(WORKER, {"time": now}, hwclock=hwclock, set_clock=set_clock) == {}
    assert set_to == [(time.CLOCK_REALTIME, now)]
    assert called(tmp_path) == ["hwclock -w"]
    assert machine.set_time(WORKER, {"time": None}, hwclock=hwclock, set_clock=set_clock) == {}
    assert len(set_to) == 1
    assert called(tmp_path)[1:] == ["hwclock -s"]


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (-1, "Failed to set time to guest: Invalid argument"),
        (-(1 << 63), "Failed to set time to guest: Invalid argument"),
        (3155760000 * 10**9, "Invalid time"),
        ((1 << 63) - 1, "Invalid time"),
    ],
)
def test_set_time_to_a_year_that_no_clock_has(now: int, text: str, program: Program, tmp_path: Path) -> None:
    with refused(text, Code.PARAMS):
        machine.set_time(WORKER, {"time": now}, hwclock=str(program("hwclock")), set_clock=pytest.fail)
    assert called(tmp_path) == []


def test_set_time_fails(program: Program, tmp_path: Path) -> None:
    def forbidden(clock: int, nanoseconds: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with refused("this feature or command is not currently supported: there is no /nope"):
        machine.set_time(WORKER, {"time": 1}, hwclock="/nope", set_clock=pytest.fail)
    bad = str(program("hwclock", says="no rtc", code=1))
    with refused("Failed to set time to guest: Operation not permitted"):
        machine.set_time(WORKER, {"time": 1}, hwclock=bad, set_clock=forbidden)
    assert called(tmp_path) == []
    with refused("child process has failed to set hardware clock to system time: no rtc"):
        machine.set_time(WORKER, {"time": 1}, hwclock=bad, set_clock=lambda _clock, _time: None)
    killed = str(program("killed", then="kill -9 $$"))
    with refused("child process has terminated abnormally: signal 9"):
        machine.set_time(WORKER, {"time": None}, hwclock=killed, set_clock=pytest.fail)


# processors


@pytest.fixture
def cpus(tmp_path: Path) -> Path:
    root = tmp_path / "cpu"
    for number, state in enumerate((None, "1", "1", "0")):
        (root / f"cpu{number}").mkdir(parents=True)
        if state is not None:
            (root / f"cpu{number}/online").write_text(f"{state}\n")
    return root


def set_vcpus(root: Path, *wanted: tuple[int, bool]) -> int:
    vcpus = [{"logical-id": number, "online": online, "can-offline": None} for number, online in wanted]
    return machine.set_vcpus(WORKER, {"vcpus": vcpus}, root=str(root))


def states(root: Path) -> str:
    return "".join((root / f"cpu{n}/online").read_text()[0] for n in (1, 2, 3))


def test_set_vcpus(cpus: Path) -> None:
    assert set_vcpus(cpus) == 0
    assert set_vcpus(cpus, (0, True), (1, False), (2, True), (3, True)) == 4
    assert states(cpus) == "011"


def test_set_vcpus_stops_at_the_first_that_fails(cpus: Path) -> None:
    assert set_vcpus(cpus, (1, False), (0, False), (2, False)) == 1
    assert states(cpus) == "010"


def test_set_vcpus_fails_if_the_first_does(cpus: Path) -> None:
    with refused("logical processor #0 can't be offlined"):
        set_vcpus(cpus, (0, False), (1, False))
    with refused(f'open."{cpus}/cpu9/".: No such file or directory'):
        set_vcpus(cpus, (9, True))
    with refused(f'open."{cpus}/cpu-1/".: No such file or directory'):
        set_vcpus(cpus, (-1, True))
    (cpus / "cpu1/online").write_text("")
    with refused(f'pread."{cpus}/cpu1//online".: unexpected EOF'):
        set_vcpus(cpus, (1, False))
    (cpus / "cpu2/online").unlink()
    (cpus / "cpu2/online").mkdir()
    with refused(f'open."{cpus}/cpu2//online".: Is a directory'):
        set_vcpus(cpus, (2, False))
    assert (cpus / "cpu3/online").read_text() == "0\n"


def test_set_vcpus_refused_by_the_kernel(cpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "pwrite", busy)
    assert set_vcpus(cpus, (1, True)) == 1
    with refused(f'pwrite."{cpus}/cpu1//online".: Device or resource busy'):
        set_vcpus(cpus, (1, False))


# memory


def test_set_memory_blocks(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    args = {"mem-blks": [{"phys-index": n, "online": online} for n, online in ((0, True), (1, False), (7, True))]}
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": n, "response": "operation-not-supported", "error-code": errno.ENOENT} for n in (0, 1, 7)
    ]
    for n in (0, 1, 2, 3):
        (root / f"memory{n}").mkdir(parents=True)
    (root / "memory0/state").write_text("offline\n")
    (root / "memory1/state").write_text("online\n")
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": 0, "response": "success"},
        {"phys-index": 1, "response": "success"},
        {"phys-index": 7, "response": "not-found", "error-code": errno.ENOENT},
    ]
    assert (root / "memory0/state").read_text() == "online"
    assert (root / "memory1/state").read_text() == "offline"

    (root / "memory3/state").mkdir()
    args = {"mem-blks": [{"phys-index": n, "online": online} for n, online in ((2, True), (2, False), (3, True))]}
    assert machine.set_memory_blocks(WORKER, args, root=str(root)) == [
        {"phys-index": 2, "response": "success"},
        {"phys-index": 2, "response": "operation-not-supported", "error-code": errno.ENOENT},
        {"phys-index": 3, "response": "operation-failed", "error-code": errno.EISDIR},
    ]


# trim


def test_what_is_trimmed() -> None:
    def mount(number: int, device: str, fstype: str, point: str) -> MountInfo:
        return MountInfo(number, 1, device, "/", point, fstype, "/dev/x", "rw")

    mounts = [
        mount(901, "0:901", "tmpfs", "/run"),
        mount(902, "990:1", "ext4", "/nowhere/a"),
        mount(903, "990:1", "ext4", "/nowhere/bind"),
        mount(904, "0:904", "btrfs", "/nowhere/b"),
        mount(905, "0:905", "nfs4", "/nowhere/n"),
        mount(906, "990:2", "fuseblk", "/nowhere/f"),
        mount(907, "0:907", "overlay", "/nowhere/o"),
    ]
    answer = machine.fstrim(WORKER, {"minimum": None}, read_mounts=lambda: mounts)
    assert answer == {
        "paths": [
            {"path": "/nowhere/f", "error": "trim not supported"},
            {"path": "/nowhere/b", "error": "failed to open: not mounted any more"},
            {"path": "/nowhere/a", "error": "failed to open: not mounted any more"},
        ]
    }


# shutdown


@pytest.mark.parametrize(("mode", "flag"), [(None, "-P"), ("powerdown", "-P"), ("halt", "-H"), ("reboot", "-r")])
def test_shutdown(mode: str | None, flag: str, program: Program, tmp_path: Path) -> None:
    command = (str(program("shutdown")), "--dry")
    assert machine.shutdown(WORKER, {"mode": mode, "command": command}) == {}
    assert called(tmp_path) == [f"shutdown --dry {flag} now"]


def test_shutdown_fails(program: Program, tmp_path: Path) -> None:
    with refused("mode is invalid .valid values are: halt.powerdown.reboot", Code.PARAMS):
        machine.shutdown(WORKER, {"mode": "off", "command": ("/nope",)})
    with refused("child process has failed to shutdown: failed to exec '/nope': No such file or directory"):
        machine.shutdown(WORKER, {"mode": None, "command": ("/nope",)})
    bad = str(program("shutdown", says="Access denied", code=1))
    with refused("child process has failed to shutdown: Access denied"):
        machine.shutdown(WORKER, {"mode": None, "command": (bad,)})
    assert len(called(tmp_path)) == 1


# suspend


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.write_text("freeze\n")
    return path


def suspend(mode: str, state: Path) -> dict[str, Any]:
    return machine.suspend(WORKER, mode, state=str(state))


@pytest.mark.parametrize(
    ("mode", "unit", "verb"),
    [
        ("disk", "systemd-hibernate", "hibernate"),
        ("ram", "systemd-suspend", "suspend"),
        ("hybrid", "systemd-hybrid-sleep", "hybrid-sleep"),
    ],
)
def test_suspend_through_systemctl(
    mode: str, unit: str, verb: str, program: Program, tmp_path: Path, state: Path
) -> None:
    program("systemctl", code={"status": 3, "*": 0})
    assert suspend(mode, state) == {}
    assert called(tmp_path) == [f"systemctl status {unit}", f"systemctl {verb}"]


@pytest.mark.parametrize(
    ("mode", "option", "name"),
    [
        ("disk", "--hibernate", "pm-hibernate"),
        ("ram", "--suspend", "pm-suspend"),
        ("hybrid", "--suspend-hybrid", "pm-suspend-hybrid"),
    ],
)
def test_suspend_through_pm_utils(
    mode: str, option: str, name: str, program: Program, tmp_path: Path, state: Path
) -> None:
    program("systemctl", code=4)
    program("pm-is-supported")
    program(name)
    assert suspend(mode, state) == {}
    assert called(tmp_path)[1:] == [f"pm-is-supported {option}", name]


@pytest.mark.parametrize(("mode", "word"), [("disk", "disk"), ("ram", "mem")])
def test_suspend_through_the_kernel(mode: str, word: str, program: Program, state: Path) -> None:
    state.write_text("freeze mem disk\n")
    assert suspend(mode, state) == {}
    assert state.read_text() == word


@pytest.mark.parametrize("mode", ["disk", "ram", "hybrid"])
def test_suspend_that_nothing_supports(mode: str, program: Program, state: Path) -> None:
    with refused("the requested suspend mode is not supported by the guest"):
        suspend(mode, state)
    program("systemctl", code=4)
    program("pm-is-supported", code=1)
    state.write_text("freeze mem disk\n" if mode == "hybrid" else "freeze\n")
    with refused("the requested suspend mode is not supported by the guest"):
        suspend(mode, state)
    state.unlink()
    with refused("the requested suspend mode is not supported by the guest"):
        suspend(mode, state)


def test_suspend_that_fails(program: Program, tmp_path: Path, state: Path) -> None:
    program("systemctl", says="Sleep verb not supported", code={"status": 3, "*": 1})
    text = r"the helper program 'systemctl suspend' returned an unexpected exit status code \(1\)"
    with refused(f"{text}: Sleep verb not supported"):
        suspend("ram", state)
    program("pm-is-supported")
    with refused("the helper program 'pm-suspend' was not found"):
        suspend("ram", state)
    state.write_text("mem\n")
    assert suspend("ram", state) == {}
    assert state.read_text() == "mem"
