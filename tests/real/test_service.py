"""The daemon as a service: what it depends on, its signals, its log and audit, its journal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import xmlrpc.client
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import linux
from harness.daemon import Daemon
from harness.peer import Talk
from harness.processes import kill, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code
from virtagent.supervisor.io.process import System

Fault = xmlrpc.client.Fault


def fault_of(call: Any, *params: Any) -> Fault:
    with pytest.raises(Fault) as raised:
        call(*params)
    return raised.value


def keeper(daemon: Daemon) -> int:
    (found,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return found


def test_supervisor_imports_nothing_and_opens_nothing_on_a_disk(rig: Rig) -> None:
    """Promise 1, over everything that a host and a death can make it do."""
    fs, plain = rig.fs("ext4", name="odd\n\x1b\udcff"), rig.fs("ext4")
    notes = rig.area.fresh("notes")
    program = "/bin/true"
    daemon = rig.daemon(
        [rig.everywhere],
        ["--shutdown-command", program, "--message-age", "0.2"],
        module="harness.watched",
        env={"VIRTAGENT_WATCH": str(notes)},
    )
    host = daemon.proxy()
    for method in host.system.listMethods():
        host.system.methodHelp(method)
    assert host.va.fsfreeze() == 2
    daemon.status()
    host.va.fshold(10)
    host.va.getfile("/proc/version")
    host.va.getdmesg()
    host.va.fsplan()
    assert fault_of(host.va.getfile, "/no/\x1f such").faultCode in (Code.FAILED, Code.PARSE)
    assert host.va.fsthaw() == 2
    assert host.va.fsfreeze() == 2
    kill(keeper(daemon))
    daemon.wait_state("THAWED")
    assert fault_of(host.va.fsthaw).faultCode == Code.FREEZE_BROKEN
    assert host.va.shutdown("reboot") == "dummy"
    for rubbish in (b"\x00", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n<a>", b"GET / HTTP/1.1\r\n\r\n", b"P"):
        sock = daemon.raw()
        sock.sendall(rubbish)
        while sock.recv(4096) and rubbish == b"P":
            pass
    talk = Talk(rig.area, str(daemon.socket))
    for command in ("nope", "guest-info", "guest-get-fsinfo", "guest-get-osinfo", "guest-fsfreeze-status"):
        talk.ask(command, id="\u00e9\ud83d\ude00")
    assert talk.replies_to(b"{'nonsense': [1, '\\q']}")
    handle = talk.ask("guest-file-open", {"path": f"{plain.path}/f", "mode": "w"})["return"]
    talk.ask("guest-file-write", {"handle": handle, "buf-b64": "eA=="})
    talk.ask("guest-file-close", {"handle": handle})
    talk.ask("guest-exec", {"path": program})
    talk.ask("guest-exec", {"path": "/bin/sleep", "arg": ["1000"]})
    talk.close()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.process.send_signal(signal.SIGUSR1)
    until(lambda: "status: {" in daemon.log(), 5, "the status record in the log")
    daemon.stop()
    fs.assert_thawed()
    # Relative names are those of the state folder, which is open (dir_fd is not told to the hook).
    allowed = (
        "/proc/",
        str(daemon.state_dir),
        *(f"{name}{new}" for name in ("journal", "handles", "freeze") for new in ("", ".new")),
    )
    lines = notes.read_text().splitlines() if notes.exists() else []
    assert [line for line in lines if line.startswith("import")] == []
    assert [line for line in lines if line.startswith("open") and not line.split()[1].startswith(allowed)] == []
    assert [line for line in lines if line.split()[0] not in ("import", "open")] == []


def test_nothing_wakes_an_idle_daemon(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")])
    host = daemon.proxy()
    assert host.va.fsfreeze({"hold_limit": 100}) == 1
    assert host.va.fsthaw() == 1
    daemon.wait_status(lambda r: not r["workers"])
    process = psutil.Process(daemon.pid)
    before = process.num_ctx_switches().voluntary
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(1.0)  # an end that does not come
    assert process.num_ctx_switches().voluntary - before <= 1, "it woke though nothing happened"


def test_sighup_reads_the_configuration_again(rig: Rig) -> None:
    fs = rig.fs("ext4")
    conf = rig.area.fresh("conf")
    conf.write_text("hold-limit-max 100\nblock-rpcs va.getdmesg\n")
    daemon = rig.daemon([fs], ["--config", str(conf)])
    host = daemon.proxy()
    assert fault_of(host.va.getdmesg).faultCode == Code.BLOCKED
    assert host.va.fsfreeze() == 1
    assert host.va.fshold(1000) <= 100
    daemon.process.send_signal(signal.SIGHUP)
    for _ in range(2):  # a signal may come in the turn of the loop in which the next request is read, but not later
        assert host.va.ping() == "dummy"
    assert host.va.fsthaw() == 1
    until(lambda: "was read again" in daemon.log(), 5, "the configuration to be read after the thaw")
    conf.write_text("hold-limit-max 50\nhold-limit 40\nsync-limit 7\nfreeze-limit = 8\n")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log().count("was read again") == 2, 5, "the configuration to be read")
    assert isinstance(host.va.getdmesg(), str)
    assert fault_of(host.va.fsfreeze, {"sync_limit": 9}).faultCode == Code.PARAMS
    conf.write_text("no-such-option 3\n")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "there is no option 'no-such-option'" in daemon.log(), 5, "the mistake to be named")
    assert fault_of(host.va.fsfreeze, {"sync_limit": 9}).faultCode == Code.PARAMS


def test_sigusr1_logs_the_status_record(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("xfs")])
    daemon.process.send_signal(signal.SIGUSR1)
    until(lambda: "status: {" in daemon.log(), 5, "the status record")
    line = next(line for line in daemon.log().splitlines() if "status: {" in line)
    assert json.loads(line.partition("status: ")[2])["state"] == "THAWED"


def test_recover_thaws_what_both_left_and_keeps_what_is_to_be_told(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert daemon.proxy().va.fsfreeze() == 1
    holder = keeper(daemon)
    psutil.Process(holder).suspend()
    daemon.kill()
    kill(holder)
    fs.assert_frozen()
    recovery = rig.daemon([fs], ["--recover"], state_dir=daemon.state_dir, wait_ready=False)
    assert recovery.process.wait(10) == 0
    fs.assert_thawed()
    again = rig.daemon([fs], state_dir=daemon.state_dir)
    assert fault_of(again.proxy().va.fsthaw).faultCode == Code.FREEZE_BROKEN
    nothing = rig.daemon([fs], ["--recover"], wait_ready=False)
    assert nothing.process.wait(10) == 0


def test_recover_despite_a_bad_configuration(rig: Rig) -> None:
    fs = rig.fs("ext4")
    conf = rig.area.fresh("conf")
    conf.write_text("nonsense\n")
    daemon = rig.daemon([fs])
    assert daemon.proxy().va.fsfreeze() == 1
    holder = keeper(daemon)
    psutil.Process(holder).suspend()
    daemon.kill()
    kill(holder)
    recovery = rig.daemon([fs], ["--recover", "--config", str(conf)], state_dir=daemon.state_dir, wait_ready=False)
    assert recovery.process.wait(10) == 0
    assert "there is no option 'nonsense'" in recovery.log()
    fs.assert_thawed()


@pytest.mark.parametrize("text", ["", '{"version": 1, "boot', '{"version": 0}', "[]", "\x00\xff"])
def test_a_journal_that_cannot_be_read_thaws_whatever_is_included(rig: Rig, text: str) -> None:
    fs = rig.fs("ext4")
    state = rig.area.fresh("state")
    state.mkdir(mode=0o700)
    (state / "journal").write_text(text)
    assert fs.freeze() == "ok"
    daemon = rig.daemon([fs], state_dir=state)
    daemon.wait_state("THAWED")
    fs.assert_thawed()
    told = fault_of(daemon.proxy().va.fsthaw)
    assert told.faultCode == Code.FREEZE_BROKEN
    assert "journal cannot be read" in told.faultString
    (kept,) = state.glob("journal.bad-*")
    assert kept.read_text() == text
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1


@pytest.mark.usefixtures("grace_periods")
def test_supervisor_and_stuck_worker_killed(rig: Rig) -> None:
    """A worker stuck in FIFREEZE outlives its supervisor, though SIGKILLed: the next start waits for it, and thaws."""
    stall = rig.stall("ext4")
    flag = rig.area.fresh("flag")
    order = f"{stall.disk.path}|{stall.fs.path}|{flag}"
    daemon = rig.daemon([stall.fs], module="harness.stalling", env={"VIRTAGENT_STALL": order})
    flag.touch()
    sock = daemon.raw()
    body = xmlrpc.client.dumps((), "va.fsfreeze").encode()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    record = daemon.wait_status(lambda r: any(m["state"] == "freezing" for m in r["mounts"]))
    (worker,) = record["workers"]
    until(lambda: linux.expedited() == "1", 5, "it freezes")
    daemon.kill()
    kill(worker["pid"])
    again = rig.daemon([stall.fs], ["--kill-grace", "0.2"], state_dir=daemon.state_dir)
    stuck = again.wait_state("ERROR")
    assert str(stall.fs.path) in stuck["error"] or str(stall.fs.path) in str(stuck["mounts"])
    stall.release()
    again.wait_state("THAWED")
    stall.fs.assert_thawed()
    assert linux.expedited() == "0", "the journal says that grace periods are to be put back"
    daemon.wait_orphans()
    assert fault_of(again.proxy().va.fsthaw).faultCode == Code.FREEZE_BROKEN


def audits(log: str) -> list[str]:
    return [line for line in log.splitlines() if "virtagentd: audit: time=" in line]


@pytest.mark.timeout(120)
def test_ten_thousand_calls_while_frozen_with_a_small_ring(rig: Rig) -> None:
    ring = 500
    daemon = rig.daemon([rig.fs("ext4")], ["--audit-ring", str(ring)])
    host = daemon.proxy(60)
    assert host.va.fsfreeze({"hold_limit": 100}) == 1
    start = len(audits(daemon.log()))
    for number in range(10_000):
        # The freeze's own record is the first in the ring, so it is full after ring - 1 more.
        if number < ring - 1:
            assert "va.ping" in host.system.listMethods()
        elif number % 2:
            assert host.va.ping() == "dummy"
        else:
            assert fault_of(host.system.listMethods).faultCode == Code.AUDIT_FULL
    record = daemon.status()
    assert record["audit"]["waiting"] == ring
    assert record["audit"]["dropped"] == 10_000 - (ring - 1)
    assert fault_of(host.va.fshold, 5).faultCode == Code.AUDIT_FULL
    assert len(audits(daemon.log())) == start, "nothing is written while frozen"
    assert host.va.fsthaw() == 1
    until(lambda: "records dropped" in daemon.log(), 5, "the records")
    written = audits(daemon.log())[start:]
    assert len(written) == ring
    times = [re.search(r"time=(\S+)", line)[1] for line in written]  # type: ignore[index]
    assert times[1:] == sorted(times[1:]), "in order"
    assert [re.search(r'method="(\S+)"', line)[1] for line in written] == ["va.fsfreeze"] + ["system.listMethods"] * (
        ring - 1
    )  # type: ignore[index]
    dropped = re.search(r"audit: (\d+) records dropped", daemon.log())
    assert dropped
    assert int(dropped[1]) >= 10_000 - (ring - 1)


def test_audit_record_says_who_what_and_how_it_went(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")], ["--log-level", "err"])
    host = daemon.proxy()
    assert fault_of(host.va.getfile, "/no/such\nthing" + "x" * 500).faultCode == Code.FAILED
    sock = daemon.raw()
    sock.sendall(b"\x01")
    assert sock.recv(4096)
    until(lambda: len(audits(daemon.log())) == 2, 5, "the records")
    first, second = audits(daemon.log())
    assert f'channel={daemon.url} peer=pid:{os.getpid()},uid:0 method="va.getfile"' in first
    assert "outcome=fault fault=12 ms=" in first
    assert re.search(r"worker=\d+$", first)
    assert len(re.search(r'params="(.*?)" outcome', first)[1]) < 280  # type: ignore[index]
    assert "outcome=refused fault=-32700" in second


@pytest.mark.timeout(120)
def test_a_log_that_nobody_reads_blocks_nothing(rig: Rig) -> None:
    """stderr is a pipe that is full; then somebody reads, and gets all, or how much was lost."""
    fs = rig.fs("ext4")
    unread_r, unread_w = os.pipe()
    blocked = rig.daemon([fs], stderr=unread_w)
    os.close(unread_w)
    host = blocked.proxy(30)
    for _ in range(2000):
        assert host.va.ping() == "dummy"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    text = b""
    while b'method="va.fsthaw"' not in text:
        text += os.read(unread_r, 1 << 20)
    os.close(unread_r)
    assert text.count(b'method="va.ping"') == 2000
    assert text.count(b'method="va.fsfreeze"') == 1


def test_log_to_syslog_that_stops_and_starts(rig: Rig) -> None:
    path = rig.area.fresh("devlog")
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.bind(str(path))
    reader.settimeout(10)
    daemon = rig.daemon(
        [rig.fs("ext4")], ["--log-target", "syslog"], module="harness.syslogging", env={"VIRTAGENT_SYSLOG": str(path)}
    )
    host = daemon.proxy()
    assert reader.recv(4096).startswith(b"<")
    for _ in range(3000):  # more than its queue holds: nobody reads
        assert host.va.ping() == "dummy"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    pings = thaws = 0
    while not thaws:
        line = reader.recv(4096)
        assert re.match(rb"<\d+>virtagentd\[\d+\]: ", line)
        pings += b'method="va.ping"' in line
        thaws += b'method="va.fsthaw"' in line
    assert pings == 3000
    reader.close()
    path.unlink()
    assert host.va.ping() == "dummy"
    again = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    again.bind(str(path))
    again.settimeout(10)
    assert host.va.hello() == "dummy"
    assert b"va.ping" in again.recv(4096), "what came while nobody listened was kept"
    assert b"va.hello" in again.recv(4096)
    again.close()


@pytest.mark.timeout(300)
def test_memory_and_descriptors_stay_level(rig: Rig) -> None:
    """A hundred freezes here; scripts/chaos runs for as long as wanted."""
    daemon = rig.daemon([rig.fs("ext4"), rig.fs("xfs")])
    host = daemon.proxy()

    def rounds(count: int) -> int:
        for _ in range(count):
            assert host.va.fsfreeze() == 2
            assert host.va.fsthaw() == 2
        daemon.wait_status(lambda r: not r["workers"])
        return psutil.Process(daemon.pid).memory_info().rss

    memory = rounds(30)
    before = rig.footprint(daemon)
    later = rounds(100)
    rig.assert_unchanged(before, daemon)
    assert later - memory < 2 << 20


def test_ready_is_said_once_and_watchdog_is_fed(rig: Rig) -> None:
    address = rig.area.fresh("notify")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(address))
    manager.settimeout(10)
    env = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
    daemon = rig.daemon([rig.fs("ext4")], env=env, wait_ready=False)
    said = [manager.recv(100) for _ in range(4)]
    assert said.count(b"READY=1") == 1
    assert said.count(b"WATCHDOG=1") == 3
    daemon.process.send_signal(signal.SIGTERM)
    while manager.recv(100) != b"STOPPING=1":
        pass
    assert daemon.process.wait(10) == 0
    manager.close()


def test_the_title_is_shown_whatever_the_service_manager_says_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to the daemon alone is taken out of the environment, behind which the title has its place."""
    monkeypatch.setattr(os, "environ", {"WATCHDOG_PID": "1", **os.environ})
    daemon = rig.daemon([rig.fs("ext4")])
    assert daemon.titles()[daemon.pid] == "virtagentd: supervisor [thawed]"


def test_stderr_on_a_disk_is_warned_of(rig: Rig) -> None:
    fs = rig.fs("ext4")
    with open(fs.path / "log", "wb") as log:
        daemon = rig.daemon([fs], ["--log-level", "debug"], stderr=log.fileno())
        assert daemon.proxy().va.fsfreeze() == 1
        assert daemon.proxy().va.fsthaw() == 1
        daemon.stop()
    text = Path(fs.path / "log").read_text()
    assert "stderr is a file on ext4, which may be frozen" in text
    assert "FROZEN -> THAWINPROGRESS" in text


def test_the_state_of_a_process() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"x")
    child.stdout.read(1)  # it has begun
    system = System()
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert system.state(child.pid) == psutil.STATUS_STOPPED
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert system.state(child.pid) == psutil.STATUS_ZOMBIE
    child.communicate()
    assert system.state(child.pid) == "gone"
    assert system.state(os.getpid()) == psutil.STATUS_RUNNING
