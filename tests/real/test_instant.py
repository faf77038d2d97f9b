"""A freeze with `at` on real file systems: nothing stands still before the instant, whoever dies while it waits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.many_agents import ManyAgents
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hosts import Asking, call, code_of
from harness.processes import kill
from harness.questions import assert_frozen, assert_well, assert_writable
from harness.rig import Rig
from virtagent.agent.api.errors import Code
from virtagent.host import Agent

pytestmark = pytest.mark.timeout(60)
CTL = [sys.executable, "-m", "virtagent.host.main"]


def ready(rig: Rig, ahead: float = 200) -> tuple[Daemon, list[LoopFs], Asking]:
    """Begin a freeze of two file systems; return when it is ready."""
    those = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon(those)
    asking = Asking(daemon, "va.fsfreeze", {"at": time.time() + ahead})
    record = daemon.wait_status(lambda r: r["phase"] == "ready")
    assert record["state"] == "INPROGRESS"
    assert {m["state"] for m in record["mounts"] if m["level"] >= 0} == {"synced"}
    assert any("ready" in title for title in daemon.titles().values())
    assert_writable(those)
    return daemon, those, asking


def test_a_host_lets_it_go_on(rig: Rig) -> None:
    daemon, those, asking = ready(rig)
    with Agent(daemon.url) as agent:
        assert agent.go() == 1
        assert asking.wait() == 2
        assert_frozen(those)
        assert agent.thaw() == 2
    assert_well(rig, daemon, those)


def test_it_goes_on_at_the_instant_and_not_before(rig: Rig) -> None:
    daemon, those, asking = ready(rig)
    at = time.time() + 1.5
    assert call(daemon, "va.fsgo", at) == 1
    assert asking.wait() == 2
    assert time.time() >= at
    assert call(daemon, "va.fsthaw") == 2
    assert daemon.wait_state("THAWED")["last"]["held_continuously"]
    assert_well(rig, daemon, those)


def test_a_thaw_cancels(rig: Rig) -> None:
    daemon, those, asking = ready(rig)
    assert call(daemon, "va.fsthaw") == 0
    answer = asking.wait()
    assert code_of(answer) == Code.FREEZE_FAILED
    assert "nothing was frozen" in answer.faultString
    assert code_of(call(daemon, "va.fsgo")) == Code.WRONG_STATE
    assert_well(rig, daemon, those)


def test_the_worker_dies(rig: Rig) -> None:
    daemon, those, asking = ready(rig)
    (worker,) = [pid for pid, title in daemon.titles().items() if "fsfreeze" in title]
    kill(worker)
    assert code_of(asking.wait()) == Code.WORKER_DIED
    assert_well(rig, daemon, those)


def test_the_supervisor_dies(rig: Rig) -> None:
    daemon, those, _ = ready(rig)
    daemon.kill()
    daemon.wait_orphans()
    assert_writable(those)


def test_one_without_an_instant_does_not_wait(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert code_of(call(daemon, "va.fsfreeze", {"at": time.time() + 400})) == Code.PARAMS
    assert call(daemon, "va.fsfreeze", {"at": time.time() - 1}) == 1
    assert code_of(call(daemon, "va.fsgo")) == Code.WRONG_STATE
    assert call(daemon, "va.fsthaw") == 1
    assert_well(rig, daemon, [fs])


def test_a_coordinator_that_is_killed_while_its_guests_are_ready(rig: Rig, tmp_path: Path) -> None:
    """It waits for another guest, which never is; ADR 0039: what it has made ready does not freeze for nobody."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with ManyAgents(tmp_path, 1, lambda n, method: ... if method == "va.fsfreeze" else None) as others:
        words = [*CTL, "--agent", daemon.url, "--agent", others.urls[0], "snapshot", "--", "true"]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as coordinator:
            record = daemon.wait_status(lambda r: r["phase"] == "ready")
            coordinator.kill()
            coordinator.wait(30)
            last = daemon.wait_state("THAWED")["last"]
    assert (last["freeze_id"], last["outcome"]) == (record["freeze_id"], "cancelled")
    assert "its host has left before va.fsgo; nothing was frozen" in last["error"]
    assert_well(rig, daemon, [fs])


def test_one_whose_place_is_needed_still_attends(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    attends = daemon.raw()
    at = time.time() + 200
    ask = {"execute": "va.fsfreeze", "arguments": [{"at": at, "attended": True, "wait": 0.01}]}
    attends.sendall(json.dumps(ask).encode() + b"\n")
    assert b"still in progress" in attends.recv(1 << 16)
    daemon.wait_status(lambda r: r["phase"] == "ready")
    for _ in range(17):
        daemon.raw().sendall(b'{"execute": "guest-ping"}\n')
    assert attends.recv(1) == b"", "its place was needed"
    assert daemon.status()["phase"] == "ready"
    assert call(daemon, "va.fsgo") == 1
    daemon.wait_state("FROZEN")
    assert call(daemon, "va.fsthaw") == 1
    assert_well(rig, daemon, [fs])
