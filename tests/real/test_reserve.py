"""No descriptors or processes are left: what a dead keeper froze is thawed all the same, and a host can ask for it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import Unmet
from harness.daemon import Daemon
from harness.hosts import call, code_of
from harness.processes import kill, until
from harness.questions import assert_well
from harness.rig import Rig
from virtagent.agent.api.errors import Code

BOUND = 5


def titled(daemon: Daemon, word: str) -> list[int]:
    return [pid for pid, title in daemon.titles().items() if word in title]


def standby(daemon: Daemon) -> int:
    """Wait until the process that stands by has its title, which it sets itself; return its pid."""
    until(lambda: len(titled(daemon, "standby")) == 1, BOUND, "it stands by")
    return titled(daemon, "standby")[0]


def limit_descriptors(pid: int, most: int) -> Callable[[], None]:
    """Let a running process have no descriptor from that number on; return what undoes it."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    return lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, before) and None


@pytest.mark.parametrize("most", [0, 3, 8, None])
def test_keeper_dies_when_no_descriptor_can_be_had(rig: Rig, most: int | None) -> None:
    every = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon(every, ["--hold-limit", "30"])
    assert call(daemon, "va.fsfreeze") == 2
    [keeper] = titled(daemon, "keeper")
    standby(daemon)
    used = [int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")]
    restore = limit_descriptors(daemon.pid, max(used) + 1 if most is None else most)
    kill(keeper)
    try:
        for fs in every:
            until(lambda fs=fs: not fs.is_frozen(), BOUND, f"{fs} is thawed")
    finally:
        restore()
    assert daemon.wait_state("THAWED", BOUND)["last"]["outcome"] == "broken"
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert most is None or "no other process can be had, so the one that stood by thaws" in daemon.log()
    assert_well(rig, daemon, every)


@pytest.fixture
def few_processes() -> Iterator[Callable[[list[int]], None]]:
    """Return what confines these processes to as many as they are (pids.max)."""
    for folder in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = folder / f"virtagent-test-{os.getpid()}"
        try:
            group.mkdir()
            if (group / "pids.max").exists():
                break
            group.rmdir()
        except OSError:
            continue
    else:
        raise Unmet("no cgroup in which the number of processes can be limited")

    def confine(pids: list[int]) -> None:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())

    yield confine
    for pid in (group / "cgroup.procs").read_text().split():
        (folder / "cgroup.procs").write_text(pid)
    group.rmdir()


def test_keeper_dies_when_no_process_can_be_had(rig: Rig, few_processes: Callable[[list[int]], None]) -> None:
    """The dead keeper's threads make room for others; those are taken by someone else."""
    every = [rig.fs("ext4"), rig.fs("btrfs")]
    daemon = rig.daemon(every, ["--hold-limit", "30"])
    assert call(daemon, "va.fsfreeze") == 2
    [keeper] = titled(daemon, "keeper")
    few_processes([pid for pid in daemon.titles() if pid != keeper])
    said = call(daemon, "va.getdmesg")
    assert "no more threads or processes" in said.faultString
    kill(keeper)
    for fs in every:
        until(lambda fs=fs: not fs.is_frozen(), BOUND, f"{fs} is thawed")
    assert daemon.wait_state("THAWED", BOUND)["last"]["outcome"] == "broken"
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN


def test_freeze_is_refused_where_nobody_could_thaw(rig: Rig, few_processes: Callable[[list[int]], None]) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    few_processes([daemon.pid])
    refused = call(daemon, "va.fsfreeze")
    assert code_of(refused) in (Code.FREEZE_FAILED, Code.WORKER_DIED)
    assert "no more threads or processes" in refused.faultString
    fs.assert_thawed()


def test_what_stands_by_is_replaced_when_it_dies_and_ends_with_the_freeze(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert titled(daemon, "standby") == []
    assert call(daemon, "va.fsfreeze") == 1
    first = standby(daemon)
    kill(first)
    until(lambda: [pid for pid in titled(daemon, "standby") if pid != first], BOUND, "another stands by")
    assert call(daemon, "va.fsthaw") == 1
    until(lambda: not daemon.children(), BOUND, "no process is left")
    assert_well(rig, daemon, [fs])


def test_what_stands_by_ends_with_the_supervisor(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze") == 1
    stands_by = standby(daemon)
    kill(daemon.pid)
    until(
        lambda: not psutil.pid_exists(stands_by) or psutil.Process(stands_by).status() == "zombie",
        BOUND,
        "it has ended",
    )
    until(lambda: not fs.is_frozen(), BOUND, "the keeper has thawed")


def test_a_host_can_thaw_when_no_descriptor_can_be_had(rig: Rig) -> None:
    """The only connection waits for news, and is not idle: it is answered, with the present record if it makes room."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze") == 1
    standby(daemon)
    sock = daemon.raw()
    sock.sendall(b'{"execute": "guest-sync", "arguments": {"id": 7}}')
    assert b"7" in sock.recv(4096)
    seq = daemon.status()["seq"]
    sock.sendall(b'{"execute": "va.fsstatus", "arguments": {"since": %d, "wait": 60}}' % seq)
    until(lambda: daemon.status()["seq"] == seq, BOUND, "it waits")
    used = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}
    restore = limit_descriptors(daemon.pid, next(n for n in range(1024) if n not in used))
    try:
        assert call(daemon, "va.fsthaw") == 1
    finally:
        restore()
    fs.assert_thawed()
    with sock.makefile() as lines:
        assert json.loads(lines.readline())["return"]["freeze_id"] == 1
