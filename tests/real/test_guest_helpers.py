"""Guest commands that start a program of the machine, with programs that only say what they are told."""

from __future__ import annotations

import errno
import os
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import accounts, machine


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


@pytest.mark.parametrize(("mode", "flag"), [(None, "-P"), ("powerdown", "-P"), ("halt", "-H"), ("reboot", "-r")])
def test_shutdown(mode: str | None, flag: str, program: Program, tmp_path: Path) -> None:
    command = (str(program("shutdown")), "--dry")
    assert machine.shutdown(WORKER, {"mode": mode, "command": command}) == {}
    assert called(tmp_path) == [f"shutdown --dry {flag} now"]


def test_shutdown_fails(program: Program, tmp_path: Path) -> None:
    with refused("child process has failed to shutdown: failed to exec '/nope': No such file or directory"):
        machine.shutdown(WORKER, {"mode": None, "command": ("/nope",)})
    bad = str(program("shutdown", says="Access denied", code=1))
    with refused("child process has failed to shutdown: Access denied"):
        machine.shutdown(WORKER, {"mode": None, "command": (bad,)})
    assert len(called(tmp_path)) == 1


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


@pytest.fixture
def chpasswd(tmp_path: Path) -> str:
    path = tmp_path / "chpasswd"
    path.write_text(f'#!/bin/sh\necho "$#$*" >{tmp_path}/args\ncat >{tmp_path}/given\n')
    path.chmod(0o755)
    return str(path)


def set_password(program: str, password: bytes, username: str = "ann", crypted: bool = False) -> dict[str, Any]:
    args = {"username": username, "password": b64encode(password).decode(), "crypted": crypted}
    return accounts.set_user_password(WORKER, args, program=program)


def test_the_password_goes_through_a_pipe(chpasswd: str, tmp_path: Path) -> None:
    assert set_password(chpasswd, b"secret: \xff'$(x)") == {}
    assert (tmp_path / "given").read_bytes() == b"ann:secret: \xff'$(x)\n"
    assert (tmp_path / "args").read_text() == "0\n"
    assert set_password(chpasswd, b"$6$secret", crypted=True) == {}
    assert (tmp_path / "given").read_bytes() == b"ann:$6$secret\n"
    assert (tmp_path / "args").read_text() == "1-e\n"


def test_chpasswd_fails(tmp_path: Path) -> None:
    with refused("cannot find '/nope/chpasswd' program in PATH"):
        set_password("/nope/chpasswd", b"secret")
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho \"chpasswd: line 1: user 'ann' does not exist\" >&2\nexit 1\n")
    bad.chmod(0o755)
    with refused("child process has failed to set user password: chpasswd: line 1: user 'ann' does not exist"):
        set_password(str(bad), b"secret")
    bad.write_text("#!/bin/sh\nexit 3\n")
    with refused("child process has failed to set user password: exit status 3"):
        set_password(str(bad), b"secret")
    bad.write_text("#!/bin/sh\nkill -15 $$\n")
    with refused("child process has terminated abnormally: signal 15"):
        set_password(str(bad), b"secret")
