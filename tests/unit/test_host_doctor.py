"""virtagentctl doctor: what it finds in an agent's answers and in a machine's /proc and /sys, and how it ends."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import LAST, run_virtagentctl, status_record
from virtagent.host import cli, guest_checks
from virtagent.host.doctor import Check, Level
from virtagent.host.transports import parse

Run = Callable[..., tuple[int, str, str]]
MOUNT = {"mountpoint": "/srv/db", "device": "8:1", "fstype": "ext4", "disks": ["sda"]}
REST = {"state": "THAWED", "code": 0, "phase": "", "hold_left": -1, "mounts": [], "workers": []}
GOOD = LAST | {"outcome": "thawed", "held_continuously": True}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_virtagentctl, tmp_path / "a")


def agent(status: dict[str, Any], plan: dict[str, Any], asked: list[str] | None = None, **refused: str) -> Any:
    def answer(method: str, params: list[Any]) -> Any:
        if asked is not None:
            asked.append(method)
        if method in refused:
            raise xmlrpc.Fault(7, refused[method])
        match method:
            case "va.fsstatus":
                return status
            case "va.fsplan":
                return {"mounts": [], "left_out": []} | plan
            case "va.capabilities":
                return {"version": "9", "methods": []}
            case "va.ping":
                return "dummy"
        return 1

    return answer


def test_a_guest_in_which_all_is_well(run: Run) -> None:
    code, out, err = run("doctor", answer=agent(status_record(**REST, last=GOOD), {"mounts": [MOUNT]}))
    assert (code, err) == (0, "")
    first, *checks, last = out.splitlines()
    assert "virtagentd 9" in first
    *checks, writers = checks
    assert all(line.startswith("  ok ") for line in checks)
    assert writers.startswith("  info  no application takes part")
    assert any("1 file system on 1 disk in 1 level: /srv/db" in line for line in checks)
    assert last == "0 failures, 0 warnings: a backup now would work"


@pytest.mark.parametrize(
    ("status", "plan", "said"),
    [
        (
            {"state": "ERROR", "code": -1, "error": "/srv/db hangs"},
            {"mounts": [MOUNT]},
            "FAIL  the state is ERROR: /srv/db",
        ),
        ({"state": "FROZEN", "code": 2}, {"mounts": [MOUNT]}, "FAIL  a freeze is under way already"),
        ({}, {}, "FAIL  a freeze would freeze nothing"),
    ],
)
def test_what_would_make_a_backup_fail(run: Run, status: dict[str, Any], plan: dict[str, Any], said: str) -> None:
    answer = agent(status_record(**(REST | status), last=GOOD), plan)
    code, out, err = run("doctor", "--rehearse", answer=answer)
    assert code == 1
    assert said in out
    assert "info  no rehearsal: mend first what fails" in out
    assert err == "virtagentctl: 1 failure, 0 warnings: a backup now would fail\n"
    found = json.loads(run("--json", "doctor", answer=answer)[1])
    assert found["fine"] is False
    assert [check["level"] for check in found["checks"]].count("fail") == 1
    assert found["error"]["exit"] == 1


def test_warnings_let_a_backup_pass(run: Run) -> None:
    left = [
        {"mountpoint": "/boot/efi", "device": "8:2", "fstype": "vfat", "reason": "unsupported"},
        {"mountpoint": "/old", "device": "8:3", "fstype": "ext4", "reason": "damaged"},
        {"mountpoint": "/x", "device": "8:4", "fstype": "ext4", "reason": "excluded"},
        {"mountpoint": "/proc", "device": "0:4", "fstype": "proc", "reason": "pseudo"},
    ]
    broken = LAST | {"outcome": "expired", "held_continuously": False, "error": "the hold limit passed"}
    record = status_record(**REST, last=broken, audit={"waiting": 0, "dropped": 2})
    plan = {"mounts": [MOUNT], "left_out": left, "notes": ["loop7 is not understood"]}
    code, out, _ = run("doctor", answer=agent(record, plan))
    assert code == 0
    assert "warn  left out as unsupported: /boot/efi (vfat)" in out
    assert "warn  left out as damaged: /old (ext4)" in out
    assert "info  left out as excluded: /x (ext4)" in out
    assert "/proc" not in out
    assert "info  loop7 is not understood" in out
    assert "warn  2 audit records lost" in out
    assert "warn  the last freeze was not good" in out
    assert out.endswith("0 failures, 4 warnings: a backup now would work\n")


@pytest.mark.parametrize(
    ("holds", "limit", "said"),
    [
        (
            [(48.5, "thawed"), (2.0, "thawed")],
            60,
            "warn  the hold limit is 1 min, and of the last 2 freezes one was held for 48.5 s",
        ),
        ([(47.0, "thawed")], 60, ""),
        ([(300.0, "thawed")], 60, ""),
        ([(48.5, "thawed")], 0, ""),
        ([(48.5, "thawed")], -1, ""),
        (
            [(60.0, "expired"), (2.0, "thawed")],
            60,
            "1 of the last 2 freezes ended at the hold limit: hold longer with",
        ),
    ],
)
def test_a_hold_limit_that_the_last_freezes_came_near(
    run: Run, holds: list[tuple[float, str]], limit: float, said: str
) -> None:
    past = [{"freeze_id": n, "held_seconds": held, "outcome": how} for n, (held, how) in enumerate(holds, 1)]
    plan = {"mounts": [MOUNT], "estimate": {"hold_limit": limit, "dirty_bytes": 1 << 20}}
    out = run("doctor", answer=agent(status_record(**REST, last=GOOD, history=past), plan))[1]
    assert said in out
    assert ("hold limit" in out.replace("hold-limit", "")) == bool(said)
    assert "info  if run now: 1 MiB to write" in out


def test_more_that_is_left_out_than_the_agent_names_is_counted(run: Run) -> None:
    left = [{"mountpoint": f"/x{n}", "device": f"8:{n}", "fstype": "ext4", "reason": "excluded"} for n in range(50)]
    plan = {"mounts": [MOUNT], "left_out": left, "left_out_counts": {"excluded": 6000}}
    out = run("doctor", answer=agent(status_record(**REST, last=GOOD), plan))[1]
    assert "/x4 (ext4), 5995 more" in out


def test_a_rehearsal_freezes_for_a_second_and_thaws(run: Run) -> None:
    asked: list[str] = []
    code, out, _ = run(
        "doctor",
        "--rehearse",
        answer=agent(status_record(**REST, last=GOOD | {"freeze_id": 17}), {"mounts": [MOUNT]}, asked),
    )
    assert code == 0
    assert asked[-5:] == ["va.fssync", "va.fsfreeze", "va.fsstatus", "va.fsthaw", "va.fsstatus"]
    assert re.search(
        r"ok    rehearsed: 1 synced, 1 frozen, 1 thawed; the first sync took [0-9.]+ m?s; good: .*, stood still ", out
    )


def test_a_rehearsal_thaws_its_own_freeze_only(run: Run) -> None:
    named: list[Any] = []
    answered = agent(status_record(**REST, last=GOOD), {"mounts": [MOUNT]})

    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.fsthaw":
            named.append(params[0].get("freeze_id"))
            if len(named) == 1:
                raise xmlrpc.Fault(1, "not yet")
        return answered(method, params)

    assert run("doctor", "--rehearse", answer=answer)[0] == 1
    assert named == [17, 17]


@pytest.mark.parametrize("method", ["va.fssync", "va.fsfreeze", "va.fsthaw"])
def test_a_rehearsal_that_fails_thaws(run: Run, method: str) -> None:
    asked: list[str] = []
    answer = agent(status_record(**REST, last=GOOD), {"mounts": [MOUNT]}, asked, **{method: "EIO on /srv/db"})
    code, out, _ = run("doctor", "--rehearse", answer=answer)
    assert code == 1
    assert asked[-1] == "va.fsthaw"
    assert "FAIL  the rehearsal failed: EIO on /srv/db" in out


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--agent", f"unix:{tmp_path}/none", "doctor"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "no connection" in err


class Machine:
    """A /proc and a /sys of the test's own, of a machine on which all is well."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys, self.root = folder / "proc", folder / "sys", folder / "root"
        self.log = folder / "agent.log"
        folder.mkdir(exist_ok=True)
        self.log.touch()
        for pid in ("1", "700"):
            self.write(f"{pid}/comm", "virtagentd\n")
            self.write(f"{pid}/task/{pid}/wchan", "do_epoll_wait")
            (self.proc / pid / "ns").mkdir()
            (self.proc / pid / "ns/mnt").symlink_to("mnt:[1]")
        self.write("700/status", "Name:\tvirtagentd\nUid:\t0\t0\t0\t0\nVmLck:\t   9000 kB\n")
        self.write("700/limits", "Max open files            524288               524288               files\n")
        self.write("700/mountinfo", "1 1 8:1 / / rw - ext4 /dev/sda rw\n")
        self.write("swaps", "Filename\t\t\tType\t\tSize\n/dev/sdb partition 1 0 -2\n")
        self.write("700/fdinfo/3", f"pos:\t0\nflags:\t{os.O_WRONLY | os.O_APPEND:o}\n")
        (self.proc / "700/fd").mkdir()
        (self.sys / "kernel").mkdir(parents=True)
        (self.sys / "kernel/rcu_expedited").write_text("0\n", encoding="ascii")

    def write(self, name: str, text: str) -> None:
        (self.proc / name).parent.mkdir(parents=True, exist_ok=True)
        (self.proc / name).write_text(text, encoding="utf-8")

    def found(self, *writers: str) -> list[Check]:
        checks = guest_checks.examine(700, writers, self.proc, self.sys, self.root)
        return [check for check in checks if check.level is not Level.OK]

    def hook(self, path: str, mode: int = 0o755) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).touch()
        (self.root / path).chmod(mode)


def test_a_machine_on_which_all_is_well(tmp_path: Path) -> None:
    assert Machine(tmp_path).found() == []


def test_what_is_in_the_way_on_a_machine(tmp_path: Path) -> None:
    def one(change: Callable[[Machine], object], level: Level, said: str) -> None:
        machine = Machine(tmp_path / said.replace("/", "_").replace(" ", "_")[:20])
        change(machine)
        (check,) = machine.found()
        assert check.level is level
        assert said in check.found

    def own_namespace(machine: Machine) -> None:
        (machine.proc / "700/ns/mnt").unlink()
        (machine.proc / "700/ns/mnt").symlink_to("mnt:[2]")

    user = "Uid:\t0\t1000\t0\t0\nVmLck:\t   9000 kB\n"
    one(lambda m: m.write("700/status", user), Level.FAIL, "does not run as root")
    one(lambda m: m.write("700/status", "Uid:\t0\t0\t0\t0\nVmLck:\t0 kB\n"), Level.WARN, "memory is not locked")
    one(own_namespace, Level.WARN, "mount namespace of its own")
    one(lambda m: m.write("700/limits", "Max open files   50   50   files\n"), Level.WARN, "50 open files are allowed")
    one(lambda m: (m.proc / "700/fd/3").symlink_to(m.log), Level.WARN, f"writes to {tmp_path}"[:20])
    one(lambda m: m.write("swaps", "Filename Type\n/srv/swap file 1 0 -2\n"), Level.INFO, "swap in /srv/swap")
    one(lambda m: m.write("812/comm", "qemu-ga\n"), Level.FAIL, "qemu-ga runs (pid 812)")
    one(lambda m: m.write("1/task/12/wchan", "percpu_rwsem_wait"), Level.FAIL, "frozen already")
    one(lambda m: (m.sys / "kernel/rcu_expedited").unlink(), Level.INFO, "no rcu_expedited")


@pytest.mark.parametrize(
    ("syscall", "named"),
    [
        ("257 0xffffff9c 0x8 0x241 0x1b6", "/srv/db is frozen already"),  # openat, by a path
        ("1 0x5 0x8 0x3", "/srv/web is frozen already"),  # write, by a descriptor
        ("1 0x77 0x0 0x3", "a file system is frozen already"),
        ("running", "a file system is frozen already"),
    ],
)
def test_what_is_frozen_already_is_named(tmp_path: Path, syscall: str, named: str) -> None:
    machine = Machine(tmp_path)
    mounts = "21 1 8:1 / / rw - ext4 /dev/vda rw\n22 21 8:2 / /srv/db rw - ext4 /dev/vdb rw\n"
    task = "812/task/813"
    machine.write("812/comm", "nginx\n")
    machine.write(f"{task}/wchan", "percpu_rwsem_wait")
    machine.write(f"{task}/mountinfo", f"{mounts}23 21 8:3 / /srv/web rw - ext4 /dev/vdc rw\n")
    machine.write(f"{task}/fdinfo/5", "pos:\t0\nflags:\t0100001\nmnt_id:\t23\n")
    machine.write(f"{task}/mem", "\0" * 8 + "/srv/db/data/x\0rest")
    machine.write(f"{task}/syscall", syscall)
    (check,) = machine.found()
    assert named in check.found
    assert "1 of its writers wait (nginx 812)" in check.found
    assert check.to_do.startswith("`fsfreeze -u /srv/" if "/srv/" in named else "`fsfreeze -u MOUNTPOINT`")


def test_hooks_that_no_writer_calls(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for name in ("etc/qemu/fsfreeze-hook.d/a.sh.sample", "etc/qemu/fsfreeze-hook.d/.a"):
        machine.hook(name)
    machine.hook("etc/qemu/fsfreeze-hook.d/not-executable", 0o644)
    assert machine.found() == []
    machine.hook("etc/qemu/fsfreeze-hook.d/orders.sh")
    machine.hook("etc/vmware-tools/backupScripts.d/db")
    hook, vmware = machine.found()
    assert (hook.level, vmware.level) == (Level.WARN, Level.WARN)
    assert hook.found.startswith("hooks that no writer calls: ")
    assert hook.found.endswith("/fsfreeze-hook.d/orders.sh")
    assert machine.found("hook") == [vmware]
    assert machine.found("hook-dir", "vmware") == []


def test_databases_that_no_writer_holds(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("812/comm", "mysqld\n")
    machine.write("813/comm", "valkey-server\n")
    mysql, valkey = machine.found()
    assert mysql.level is Level.INFO
    assert mysql.found.startswith("mysqld runs, and no writer holds it")
    assert machine.found("mariadb") == [valkey]
    assert machine.found("mysql", "redis") == []
    assert machine.found("live") == [], "nobody knows which application it holds"


def test_which_socket_belongs_to_an_agent_of_this_machine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a"))
        listener.listen()
        endpoint = parse(f"unix:{tmp_path}/a")
        proc = tmp_path / "proc" / str(os.getpid())
        proc.mkdir(parents=True)
        for title, pid in (("virtagentd: supervisor [thawed]", os.getpid()), ("qemu-system-x86_64", 0), ("", 0)):
            (proc / "cmdline").write_text(title, encoding="utf-8")
            assert guest_checks.agent_of(endpoint, tmp_path / "proc") == pid
    assert guest_checks.agent_of(endpoint) == 0
    assert guest_checks.agent_of(parse("libvirt:vm1")) == 0
