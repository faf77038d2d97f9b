"""What virtagentd.service leaves to the agent is enough for the commands of qemu-ga, and no more than that."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import confined, linux
from harness.peer import Talk
from harness.processes import Child, until
from harness.rig import Rig

UNIT = Path(__file__).resolve().parents[2] / "packaging/virtagentd.service"
NOBODY = 65534
USER = "no-such-user-here"  # there is one only in the /etc of these tests
# Refused after the capability was looked for, so the clock stays: EPERM (1) without it, EINVAL (22) with it.
ADJTIMEX = """
import ctypes
timex = (ctypes.c_char * 512)(0x00, 0x40)  # ADJ_TICK, of 0 microseconds
print(ctypes.CDLL(None, use_errno=True).adjtimex(timex), ctypes.get_errno())
"""


@pytest.fixture
def etc(rig: Rig) -> Iterator[Path]:
    """A copy of /etc over /etc, for this process and its daemons only, with a user whose home is in the area."""
    copy, home = rig.area.fresh("etc"), rig.area.fresh("home")
    shutil.copytree("/etc", copy, symlinks=True)
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    with open(copy / "passwd", "a") as passwd:
        passwd.write(f"{USER}:x:{NOBODY}:{NOBODY}::{home}:/bin/sh\n")
    with open(copy / "shadow", "a") as shadow:
        shadow.write(f"{USER}:!:20000:0:99999:7:::\n")
    os.chown(copy / "shadow", 0, os.stat("/etc/shadow").st_gid)
    linux.mount(str(copy), "/etc", flags=linux.MS_BIND)
    yield copy
    linux.umount("/etc")


@pytest.fixture
def talk(rig: Rig, etc: Path, program: str) -> Iterator[Talk]:
    """A host of an agent that runs confined as the unit says."""
    made = Talk(rig.area, str(rig.daemon([rig.fs("ext4")], ["--exec-limit", "0.2"], program=program).socket))
    yield made
    made.close()


@pytest.fixture
def program(rig: Rig) -> str:
    """A daemon that runs confined as the unit says."""
    daemon, program = rig.area.fresh("daemon"), rig.area.fresh("confined")
    daemon.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtagent.supervisor.main "$@"\n')
    daemon.chmod(0o755)
    python = Path(sys.executable)
    confined.make(program, UNIT.read_text(encoding="utf-8"), python, daemon, may_raise=confined.may_raise())
    return str(program)


def value(reply: dict[str, Any]) -> Any:
    assert "return" in reply, reply
    return reply["return"]


def ran(talk: Talk, *command: str) -> dict[str, Any]:
    """Run a program by guest-exec and return its record."""
    asked = {"path": command[0], "arg": list(command[1:]), "capture-output": True}
    pid = value(talk.ask("guest-exec", asked))["pid"]
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(value(talk.ask("guest-exec-status", {"pid": pid})))
        return bool(found["exited"])

    until(over, 20, f"the end of {command}")
    return found


def test_facts(talk: Talk) -> None:
    interfaces = value(talk.ask("guest-network-get-interfaces"))
    assert {one["name"] for one in interfaces} == set(os.listdir("/sys/class/net"))
    assert any(one.get("ip-addresses") for one in interfaces)
    for command in ("network-get-route", "get-fsinfo", "get-disks", "get-vcpus", "get-osinfo", "get-users"):
        value(talk.ask(f"guest-{command}"))


def test_any_file(talk: Talk, rig: Rig) -> None:
    """A set-user-id program of another user, in a folder that is closed to all others, keeps what it is."""
    folder = rig.area.fresh("folder")
    folder.mkdir(mode=0o700)
    file, fresh = folder / "program", folder / "fresh"
    file.write_bytes(b"old")
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o4700)
    os.chown(folder, NOBODY, NOBODY)
    for path, mode in ((file, "r+"), (fresh, "w")):
        handle = value(talk.ask("guest-file-open", {"path": str(path), "mode": mode}))
        data = base64.b64encode(b"new").decode()
        assert value(talk.ask("guest-file-write", {"handle": handle, "buf-b64": data}))["count"] == 3
        value(talk.ask("guest-file-close", {"handle": handle}))
        assert path.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o4700


def test_the_password_and_the_keys_of_a_user(talk: Talk, etc: Path) -> None:
    before, group = (etc / "shadow").read_text(), (etc / "shadow").stat().st_gid
    password = base64.b64encode(b"Correct-horse-9").decode()
    asked = {"username": USER, "password": password, "crypted": False}
    assert value(talk.ask("guest-set-user-password", asked)) == {}
    changed = set((etc / "shadow").read_text().splitlines()) - set(before.splitlines())
    assert [line.split(":")[0] for line in changed] == [USER]
    assert (etc / "shadow").stat().st_gid == group != 0
    value(talk.ask("guest-ssh-add-authorized-keys", {"username": USER, "keys": ["ssh-ed25519 AAAA"]}))
    assert value(talk.ask("guest-ssh-get-authorized-keys", {"username": USER})) == {"keys": ["ssh-ed25519 AAAA"]}


def test_the_clock_may_be_set(talk: Talk) -> None:
    said = ran(talk, sys.executable, "-I", "-c", ADJTIMEX)
    assert base64.b64decode(said["out-data"]) == b"-1 22\n"


def test_a_program_that_has_become_another_user_ends_at_its_limit(talk: Talk) -> None:
    command = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sleep", "30")
    assert ran(talk, *command) == {"exited": True, "signal": 15}


def test_programs_of_the_host_are_confined_too(talk: Talk) -> None:
    status = base64.b64decode(ran(talk, "cat", "/proc/self/status")["out-data"]).decode()
    facts = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNew", "Seccomp:")))
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert int(facts["CapBnd"], 16).bit_count() == len(
        confined.words(UNIT.read_text(encoding="utf-8"), "CapabilityBoundingSet")
    )
    assert ran(talk, sys.executable, "-I", "-c", "import socket; socket.socket(socket.AF_INET)")["exitcode"] == 1
    assert ran(talk, "unshare", "--net", "true")["exitcode"] == 1
    assert ran(talk, "unshare", "--mount", "true")["exitcode"] == 0, "what the agent itself needs"


def test_a_covered_file_system_is_frozen(rig: Rig, program: str) -> None:
    fs = rig.fs("ext4")
    number = fs.number
    linux.mount("cover", str(fs), "tmpfs")
    try:
        host = rig.daemon([fs], program=program).proxy()
        assert [m["device"] for m in host.va.fsplan()["mounts"]] == [number]
        assert (host.va.fsfreeze(), host.va.fsthaw()) == (1, 1)
    finally:
        linux.umount(str(fs))


def test_what_another_user_has_mounted_is_frozen(rig: Rig, program: str) -> None:
    """Its process may only be looked at with CAP_SYS_PTRACE."""
    fs = rig.fs("ext4")
    device = os.stat(fs.device).st_rdev
    script = 'mount --make-rprivate / && echo ready && exec setpriv --reuid="$1" --clear-groups sleep 600'
    child = Child(["unshare", "--mount", "sh", "-ec", script, "sh", str(NOBODY)], "holder")
    rig.area.guard(child.pid)
    try:
        assert child.line(20) == "ready"
        until(lambda: os.stat(f"/proc/{child.pid}").st_uid == NOBODY, 20, "another user")
        linux.umount(str(fs))
        host = rig.daemon([f"dev:{os.major(device)}:{os.minor(device)}"], program=program).proxy()
        assert (host.va.fsfreeze(), host.va.fsthaw()) == (1, 1)
    finally:
        child.close()
        fs.mount()
