"""The main job on real file systems: freeze, tell, thaw; and what ends a freeze otherwise."""

from __future__ import annotations

import signal
import xmlrpc.client
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemon import Daemon
from harness.filesystems import KINDS, LoopFs
from harness.processes import kill, until
from harness.questions import forgets
from harness.rig import Rig
from virtagent.agent.api.errors import Code

Fault = xmlrpc.client.Fault


def fault_of(call: Any, *params: Any) -> Fault:
    with pytest.raises(Fault) as raised:
        call(*params)
    return raised.value


def frozen(daemon: Daemon, **options: Any) -> Any:
    """Freeze, and return the proxy that asked."""
    host = daemon.proxy()
    assert host.va.fsfreeze(options) > 0
    return host


def keeper(daemon: Daemon) -> psutil.Process:
    (found,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return psutil.Process(found)


@pytest.fixture
def three(rig: Rig) -> list[LoopFs]:
    return [rig.fs(kind) for kind in KINDS]


@pytest.mark.timeout(120)
def test_twenty_times_without_a_leak(rig: Rig, three: list[LoopFs]) -> None:
    outer = three[0]
    inner = rig.fs("ext4", outer=outer)
    three[1].bind()
    subvolume = three[2].subvolume()
    daemon = rig.daemon([rig.everywhere])
    host = daemon.proxy()
    every = [*three, inner]
    assert host.va.fsfreeze() == 4
    assert host.va.fsthaw() == 4
    assert host.va.fsstatus() == 0
    before = rig.footprint(daemon)
    memory = psutil.Process(daemon.pid).memory_info().rss
    for _ in range(20):
        for fs in every:
            fs.fill(1 << 20)
        assert host.va.fsfreeze() == 4
        assert host.va.fsstatus() == 2
        for fs in every:
            fs.assert_frozen()
        write = outer.write()
        write.wait_blocked()
        assert host.va.fsthaw() == 4
        assert write.answer() == "ok"
        assert host.va.fsstatus() == 0
    for fs in every:
        fs.assert_thawed()
        fs.assert_writable()
    assert subvolume.is_dir()
    rig.assert_unchanged(before, daemon)
    assert psutil.Process(daemon.pid).memory_info().rss - memory < 1 << 20


def test_plan_tells_what_the_freeze_does(rig: Rig, three: list[LoopFs]) -> None:
    inner = rig.fs("ext4", outer=three[0])
    alias = three[1].bind()
    daemon = rig.daemon([rig.everywhere])
    plan = daemon.proxy().va.fsplan()
    found = {m["mountpoint"]: m for m in plan["mounts"]}
    assert set(found) == {str(fs.path) for fs in (*three, inner)}
    assert found[str(three[1].path)]["aliases"] == [str(alias)]
    assert found[str(inner.path)]["level"] == 0
    assert found[str(three[0].path)]["level"] == 1
    reasons = {m["mountpoint"]: m["reason"] for m in plan["left_out"]}
    assert reasons["/proc"] == "pseudo"
    for fs in three:
        fs.assert_thawed()


def test_record_while_frozen(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    frozen(daemon, hold_limit=30)
    record = daemon.status()
    assert (record["state"], record["code"], record["phase"]) == ("FROZEN", 2, "hold")
    assert 25 < record["hold_left"] <= 30
    assert {m["mountpoint"] for m in record["mounts"] if m["state"] == "frozen"} == {str(fs.path) for fs in three}
    (worker,) = record["workers"]
    assert worker["rpc"] == "va.fsfreeze"
    assert worker["pid"] == keeper(daemon).pid
    titles = list(daemon.titles().values())
    assert titles[0].startswith("virtagentd: supervisor [frozen 3/3, thaws at ")
    assert titles[1].startswith(f"virtagentd: keeper {worker['id']} fsfreeze [3 frozen, ")
    assert daemon.proxy().va.fsthaw() == 3
    last = daemon.status()["last"]
    assert (last["outcome"], last["held_continuously"]) == ("thawed", True)
    assert 0 < last["held_seconds"] <= last["stall_seconds"]


def test_hold_limit_thaws_and_the_host_is_told(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    host = frozen(daemon, hold_limit=0.3)
    record = daemon.wait_state("THAWED")
    assert record["last"]["outcome"] == "expired"
    assert not record["last"]["held_continuously"]
    for fs in three:
        fs.assert_thawed()
    told = fault_of(host.va.fsthaw)
    assert told.faultCode == Code.FREEZE_BROKEN
    assert "hold limit of 0.3 s passed" in told.faultString
    forgets(daemon)


def test_hold_is_extended(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    host = frozen(daemon, hold_limit=2)
    assert 99 < host.va.fshold(100) <= 100
    assert daemon.status()["hold_left"] > 98
    assert any("100 s left" in title or "99 s left" in title for title in daemon.titles().values())
    assert host.va.fshold(10**6) == pytest.approx(600, abs=1), "bounded by hold-limit-max"
    fs.assert_frozen()
    assert host.va.fsthaw() == 1
    assert fault_of(host.va.fshold, 5).faultCode == Code.WRONG_STATE


def test_host_that_disconnects_changes_nothing(rig: Rig) -> None:
    fs = rig.fs("xfs")
    daemon = rig.daemon([fs])
    host = frozen(daemon)
    host("close")()
    fs.assert_frozen()
    assert daemon.proxy().va.fsthaw() == 1


def test_refused_while_frozen(rig: Rig) -> None:
    fs = rig.fs("ext4")
    (fs.path / "text").write_bytes(b"before\n")
    daemon = rig.daemon([fs])
    host = frozen(daemon)
    assert fault_of(host.va.fsfreeze).faultCode == Code.WRONG_STATE
    assert host.va.ping() == "dummy"
    assert host.va.getfile(str(fs.path / "text")).data == b"before\n"
    assert isinstance(host.va.getdmesg(), str)
    assert len(host.va.fsplan()["mounts"]) == 1
    assert host.va.fsthaw() == 1


def test_one_frozen_by_someone_else_fails_the_freeze_and_is_left_alone(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    assert three[1].freeze() == "ok"
    failed = fault_of(daemon.proxy().va.fsfreeze)
    assert failed.faultCode == Code.FREEZE_FAILED
    assert str(three[1].path) in failed.faultString
    assert "EBUSY" in failed.faultString
    three[0].assert_thawed()
    three[2].assert_thawed()
    three[1].assert_frozen()
    record = daemon.status()
    assert record["state"] == "THAWED"
    assert {m["mountpoint"]: m["state"] for m in record["mounts"]}[str(three[1].path)] == "busy"


def test_one_thawed_by_someone_else_breaks_the_freeze(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    host = frozen(daemon)
    assert three[2].thaw() == "ok"
    told = fault_of(host.va.fsthaw)
    assert told.faultCode == Code.FREEZE_BROKEN
    assert str(three[2].path) in told.faultString
    forgets(daemon)


def test_keeper_killed(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    host = frozen(daemon)
    kill(keeper(daemon).pid)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    for fs in three:
        fs.assert_thawed()
    told = fault_of(host.va.fsthaw)
    assert told.faultCode == Code.FREEZE_BROKEN
    assert "killed by SIGKILL" in told.faultString
    assert host.va.fsfreeze() == 3
    assert host.va.fsthaw() == 3


def test_keeper_stopped_is_killed_and_the_thaw_says_what_nobody_knows_then(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    host = frozen(daemon)
    keeper(daemon).suspend()
    fault = fault_of(host.va.fsthaw)
    assert fault.faultCode == Code.FREEZE_BROKEN
    assert "nobody knows what was written while it was held" in fault.faultString
    for fs in three:
        fs.assert_thawed()


def test_keeper_asked_to_end_thaws(rig: Rig) -> None:
    fs = rig.fs("btrfs")
    daemon = rig.daemon([fs])
    host = frozen(daemon)
    keeper(daemon).send_signal(signal.SIGTERM)
    daemon.wait_state("THAWED")
    fs.assert_thawed()
    assert "SIGTERM" in fault_of(host.va.fsthaw).faultString


def test_supervisor_stopped_while_the_hold_ends(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    host = frozen(daemon)
    holder = keeper(daemon)
    supervisor = psutil.Process(daemon.pid)
    assert host.va.fshold(0.5) <= 0.5
    supervisor.suspend()
    try:
        until(lambda: not fs.is_frozen(), 10, "the keeper thaws by itself")
    finally:
        supervisor.resume()
    assert fault_of(host.va.fsthaw).faultCode == Code.FREEZE_BROKEN
    until(lambda: not holder.is_running(), 10, "the keeper ends")


def test_supervisor_killed(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    frozen(daemon)
    daemon.kill()
    daemon.wait_orphans()
    for fs in three:
        fs.assert_thawed()
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
    host = again.proxy()
    again.wait_state("THAWED")
    told = fault_of(host.va.fsthaw)
    assert told.faultCode == Code.FREEZE_BROKEN
    assert "the agent died" in told.faultString
    forgets(again)
    assert host.va.fsfreeze() == 3
    assert host.va.fsthaw() == 3


def test_both_killed(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    frozen(daemon)
    holder = keeper(daemon)
    psutil.Process(daemon.pid).suspend()
    kill(holder.pid)
    daemon.kill()
    for fs in three:
        fs.assert_frozen()
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
    again.wait_state("THAWED")
    for fs in three:
        fs.assert_thawed()
    assert fault_of(again.proxy().va.fsthaw).faultCode == Code.FREEZE_BROKEN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_frozen(rig: Rig, three: list[LoopFs], number: signal.Signals) -> None:
    daemon = rig.daemon([rig.everywhere])
    frozen(daemon)
    daemon.process.send_signal(number)
    assert daemon.process.wait(10) == 0
    for fs in three:
        fs.assert_thawed()
    assert not daemon.socket.exists()
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
    assert fault_of(again.proxy().va.fsthaw).faultCode == Code.FREEZE_BROKEN


@pytest.mark.parametrize(("mode", "flag"), [("halt", "-H"), ("powerdown", "-P"), ("reboot", "-r")])
def test_shutdown_thaws_first(rig: Rig, mode: str, flag: str) -> None:
    fs = rig.fs("ext4")
    note = fs.path / "called"
    program = rig.area.fresh("shutdown")
    program.write_text(f'#!/bin/sh\necho "$@" > {note}\n')
    program.chmod(0o755)
    daemon = rig.daemon([fs], ["--shutdown-command", str(program)])
    host = frozen(daemon)
    assert daemon.proxy().va.shutdown(mode) == "dummy"
    assert note.read_text() == f"{flag} now\n"
    assert fault_of(host.va.fsthaw).faultCode == Code.FREEZE_BROKEN
    assert fault_of(host.va.shutdown, "explode").faultCode == Code.PARAMS


def test_shutdown_program_that_fails(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")], ["--shutdown-command", "/bin/sh -c 'echo no >&2; exit 3' x"])
    failed = fault_of(daemon.proxy().va.shutdown, "halt")
    assert failed.faultCode == Code.FAILED
    assert "ended with 3: no" in failed.faultString


def test_nothing_to_freeze(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--exclude", str(fs.path)])
    host = daemon.proxy()
    assert host.va.fsfreeze() == 0
    assert host.va.fsstatus() == 0
    assert host.va.fsthaw() == 0
    nowhere = fault_of(host.va.fsfreeze, {"include": ["/no/such/*"]})
    assert nowhere.faultCode == Code.PARAMS
    assert "/no/such/*" in nowhere.faultString


def test_request_narrows_the_daemons_choice(rig: Rig, three: list[LoopFs]) -> None:
    daemon = rig.daemon([rig.everywhere])
    host = daemon.proxy()
    assert host.va.fsfreeze({"include": [rig.everywhere], "exclude": [str(fs.path) for fs in three[1:]]}) == 1
    three[0].assert_frozen()
    three[1].assert_thawed()
    three[2].assert_thawed()
    assert host.va.fsthaw() == 1


def test_mount_point_with_spaces_and_bytes_that_are_no_text(rig: Rig) -> None:
    fs = rig.fs("ext4", name="a b\tc\\d\ne\udcff")
    daemon = rig.daemon([rig.everywhere])
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    fs.assert_frozen()
    assert daemon.status()["mounts"][0]["state"] == "frozen"
    assert host.va.fsthaw() == 1


def test_mounted_over_while_frozen(rig: Rig) -> None:
    """The keeper thaws through the descriptor that it holds, whatever the path leads to meanwhile."""
    below, above = rig.fs("ext4"), rig.fs("ext4")
    daemon = rig.daemon([below])
    host = frozen(daemon)
    from harness import linux

    linux.mount(str(above.path), str(below.path), flags=linux.MS_BIND)
    assert host.va.fsthaw() == 1
    linux.umount(str(below.path))
    below.assert_thawed()


def test_journal_is_gone_after_the_thaw(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")])
    host = frozen(daemon)
    journal = Path(daemon.state_dir) / "journal"
    assert journal.exists()
    assert host.va.fsthaw() == 1
    assert not journal.exists()
