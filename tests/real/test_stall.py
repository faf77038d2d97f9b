"""A disk that stalls: the agent answers all the while, thaws whatever can be thawed, and says what is stuck."""

from __future__ import annotations

import os
import signal
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import KINDS, LoopFs
from harness.processes import until
from harness.rig import Rig
from harness.stall import Stall
from virtagent.agent.api.errors import Code
from virtagent.supervisor.io.process import System

KIND = pytest.mark.parametrize("kind", KINDS)
OVER = ("THAWINPROGRESS", "ERROR")


class Asking(threading.Thread):
    """A host that waits in one call; `answer` is the value or the fault."""

    def __init__(self, daemon: Daemon, method: str, *params: Any) -> None:
        super().__init__()
        self._call = getattr(daemon.proxy(timeout=60), method)
        self._params = params
        self._answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._call(*self._params)
        except xmlrpc.client.Fault as fault:
            self._answer = fault

    def answer(self) -> Any:
        self.join(30)
        assert not self.is_alive(), "no answer within 30 s"
        return self._answer


class Scene:
    """A stalling file system beside two that are well, and a daemon for the three."""

    def __init__(self, rig: Rig, kind: str, *options: str) -> None:
        self.stall: Stall = rig.stall(kind)
        self.well: list[LoopFs] = [rig.fs("ext4"), rig.fs("xfs")]
        self.every = [self.stall.fs, *self.well]
        self.stuck = str(self.stall.fs.path)
        self._flag = rig.area.fresh("stall")
        order = f"{self.stall.disk.path}|{self.stuck}|{self._flag}"
        self.daemon = rig.daemon(self.every, options, module="harness.stalling", env={"VIRTAGENT_STALL": order})

    def stall_in_freeze(self) -> None:
        """Have the disk stall when the next freeze has synced and begins to freeze."""
        self._flag.touch()

    def mount(self, record: dict[str, Any]) -> dict[str, Any]:
        (found,) = [m for m in record["mounts"] if m["mountpoint"] == self.stuck]
        return dict(found)

    def wait_mount(self, state: str) -> dict[str, Any]:
        return self.daemon.wait_status(
            lambda r: any(m["mountpoint"] == self.stuck and m["state"] == state for m in r["mounts"])
        )

    def wait_in_freeze(self) -> None:
        """Wait until only FIFREEZE of the stuck one is under way, in the kernel: no kill can prevent it any more."""
        well = {str(fs.path) for fs in self.well}
        begun = ("pending", "syncing", "synced", "freezing")
        self.wait_mount("freezing")
        self.daemon.wait_status(lambda r: not any(m["mountpoint"] in well and m["state"] in begun for m in r["mounts"]))
        self.wait_stuck_in_d()

    def wait_well_thawed(self) -> dict[str, Any]:
        """Wait until the agent says that those on the other disks are thawed, while the stuck one is not; see it."""
        paths = {str(fs.path) for fs in self.well}
        record = self.daemon.wait_status(
            lambda r: r["state"] in OVER and {m["state"] for m in r["mounts"] if m["mountpoint"] in paths} == {"thawed"}
        )
        for fs in self.well:
            fs.assert_thawed()
        return record

    def wait_stuck_in_d(self) -> dict[str, Any]:
        """Wait until the record shows a worker in D; its state is read when the record is asked for, so ask again."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            record = self.daemon.status()
            if "disk-sleep" in {w["process_state"] for w in record["workers"]}:
                return record
        raise AssertionError("no worker in D")

    def recovers(self) -> dict[str, Any]:
        """Release the disk; return the record when all is thawed, and show that the next freeze works."""
        self.stall.release()
        record = self.daemon.wait_status(lambda r: r["state"] == "THAWED" and not r["workers"])
        for fs in self.every:
            fs.assert_thawed()
            fs.assert_writable()
        return record

    def works(self) -> None:
        host = self.daemon.proxy()
        assert host.va.fsfreeze() == 3
        assert host.va.fsthaw() == 3


@pytest.fixture
def scene(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Scene]:
    kind, options = request.param
    made = Scene(rig, kind, *options)
    yield made
    made.stall.release()


def with_options(*options: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [(kind, options) for kind in KINDS], indirect=True, ids=KINDS)


@with_options("--freeze-limit", "0.5", "--kill-grace", "0.3", "--thaw-limit", "1")
def test_stalled_freeze_overruns(scene: Scene) -> None:
    scene.stall_in_freeze()
    daemon = scene.daemon
    asking = Asking(daemon, "va.fsfreeze")
    scene.wait_mount("freezing")
    assert daemon.proxy().va.ping() == "dummy"
    assert daemon.proxy().va.fsstatus() == 1
    scene.wait_well_thawed()
    for fs in scene.well:
        fs.assert_writable()
    fault = asking.answer()
    assert fault.faultCode == Code.OVERRUN
    assert f"freeze limit of 0.5 s passed while freezing {scene.stuck}" in fault.faultString
    record = daemon.wait_state("ERROR")
    assert scene.stuck in record["error"]
    assert scene.stuck in daemon.titles()[daemon.pid]
    assert "disk-sleep" in {w["process_state"] for w in record["workers"]}
    assert len(record["workers"]) <= 2
    assert daemon.proxy().va.ping() == "dummy"
    again = Asking(daemon, "va.fsthaw").answer()
    assert again.faultCode == Code.FAILED
    assert scene.stuck in again.faultString
    assert scene.recovers()["last"]["outcome"] == "overran"
    assert daemon.proxy().va.fsthaw() == 0
    scene.works()


@with_options("--sync-limit", "0.5", "--kill-grace", "0.3")
def test_stalled_sync_overruns_with_nothing_frozen(scene: Scene) -> None:
    scene.stall.stall()
    asking = Asking(scene.daemon, "va.fsfreeze")
    record = scene.wait_mount("syncing")
    assert record["phase"] == "sync"
    for fs in scene.well:
        fs.assert_writable()
        fs.assert_thawed()
    fault = asking.answer()
    assert fault.faultCode == Code.OVERRUN
    assert f"sync limit of 0.5 s passed while syncing {scene.stuck}; nothing was frozen" in fault.faultString
    assert scene.daemon.proxy().va.fsstatus() == 0
    scene.recovers()
    scene.works()


@with_options("--kill-grace", "0.3")
def test_a_disk_that_hangs_in_sync_keeps_no_later_freeze_out(scene: Scene) -> None:
    """H22: nothing is frozen before Proceed, so a freeze that is cancelled or overruns there is over at once."""
    scene.stall.stall()
    daemon = scene.daemon
    asking = Asking(daemon, "va.fsfreeze")
    scene.wait_mount("syncing")
    scene.wait_stuck_in_d()
    assert daemon.proxy().va.fsthaw() == 0
    fault = asking.answer()
    assert fault.faultCode == Code.FREEZE_FAILED
    assert "cancelled: va.fsthaw; nothing was frozen" in fault.faultString
    assert daemon.proxy().va.fsstatus() == 0
    record = daemon.wait_status(lambda r: bool(r["workers"]) and r["workers"][0]["process_state"] == "disk-sleep")
    assert [worker["rpc"] for worker in record["workers"]] == ["va.fsfreeze"]
    until(lambda: f"stuck while syncing {scene.stuck}" in daemon.titles()[daemon.pid], 5, "the stuck one in ps")
    for _ in range(3):
        assert daemon.proxy().va.fsfreeze({"exclude": [scene.stuck]}) == 2
        assert daemon.proxy().va.fsthaw() == 2
    held = daemon.proxy()
    assert held.va.fsfreeze({"exclude": [scene.stuck]}) == 2
    scene.stall.release()
    daemon.wait_status(lambda r: [worker["phase"] for worker in r["workers"]] == ["hold"])
    assert held.va.fsstatus() == 2, "the end of the dead worker is nothing to the freeze that is held"
    assert held.va.fsthaw() == 2
    scene.recovers()
    scene.works()


@with_options("--kill-grace", "0.3")
def test_stalled_freeze_cancelled(scene: Scene) -> None:
    scene.stall_in_freeze()
    daemon = scene.daemon
    asking = Asking(daemon, "va.fsfreeze")
    scene.wait_in_freeze()  # of one that was killed before its FIFREEZE, nothing is proved until its worker ends
    record = scene.wait_stuck_in_d()
    assert record["state"] == "INPROGRESS"
    assert any(scene.stuck in title and "freezing" in title for title in daemon.titles().values())
    thaw = Asking(daemon, "va.fsthaw")
    scene.wait_well_thawed()
    assert thaw.answer().faultCode == Code.FAILED
    fault = asking.answer()
    assert fault.faultCode == Code.FREEZE_FAILED
    assert "cancelled: va.fsthaw" in fault.faultString
    assert scene.recovers()["last"]["outcome"] == "cancelled"
    scene.works()


@with_options("--thaw-limit", "0.5", "--kill-grace", "0.3")
def test_stalled_thaw(scene: Scene) -> None:
    """FITHAW of a file system whose disk stalled after the freeze blocks; the others are thawed, the retry succeeds."""
    daemon = scene.daemon
    assert daemon.proxy().va.fsfreeze() == 3
    scene.stall.stall(dirty=0)
    thaw = Asking(daemon, "va.fsthaw")
    record = daemon.wait_status(lambda r: r["state"] in ("ERROR", "THAWED"))
    for fs in scene.well:
        fs.assert_thawed()
    if record["state"] == "ERROR":
        assert thaw.answer().faultCode == Code.FAILED
        assert scene.stuck in record["error"]
        # What hangs is named, however many were done meanwhile.
        named = f"[thawing {scene.stuck} 2/3]"
        until(lambda: any(named in title for title in daemon.titles().values()), 5, f"{named} in ps")
    scene.recovers()
    assert daemon.status()["last"]["outcome"] == "thawed"
    scene.works()


@with_options("--kill-grace", "0.3")
def test_a_worker_that_somebody_killed_in_the_kernel_is_seen_to_be_dying(scene: Scene) -> None:
    """Its other threads are gone, so it does no more than it is doing (ADR 0030)."""
    scene.stall_in_freeze()
    freeze = Asking(scene.daemon, "va.fsfreeze")
    scene.wait_in_freeze()
    (pid,) = [w["pid"] for w in scene.wait_stuck_in_d()["workers"] if w["rpc"] == "va.fsfreeze"]
    processes = System()
    assert not processes.dying(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.dying(pid), 5, "its first thread to end")
    assert processes.state(pid) == "disk-sleep"
    scene.recovers()
    assert freeze.answer().faultCode == Code.WORKER_DIED
    assert not processes.dying(pid)
    assert not processes.dying(os.getpid())


@with_options("--kill-grace", "0.3")
def test_released_before_any_limit(scene: Scene) -> None:
    scene.stall_in_freeze()
    asking = Asking(scene.daemon, "va.fsfreeze")
    scene.wait_mount("freezing")
    scene.stall.release()
    assert asking.answer() == 3
    assert scene.daemon.proxy().va.fsthaw() == 3


@with_options("--kill-grace", "0.3")
def test_call_that_waits_no_longer(scene: Scene) -> None:
    """`wait` is the call's, the limit is the job's: the host gets IN_PROGRESS, the freeze goes on and succeeds."""
    scene.stall_in_freeze()
    daemon = scene.daemon
    fault = Asking(daemon, "va.fsfreeze", {"wait": 0.2}).answer()
    assert fault.faultCode == Code.IN_PROGRESS
    assert daemon.proxy().va.fsstatus() == 1
    scene.stall.release()
    assert daemon.wait_state("FROZEN")["code"] == 2
    assert daemon.proxy().va.fsthaw() == 3


@with_options("--kill-grace", "0.3")
def test_stopped_while_stalled(scene: Scene) -> None:
    """SIGTERM ends the daemon only when nothing is frozen any more."""
    scene.stall_in_freeze()
    daemon = scene.daemon
    asking = Asking(daemon, "va.fsfreeze")
    scene.wait_in_freeze()
    daemon.process.terminate()
    daemon.wait_state("ERROR")
    assert asking.answer().faultCode == Code.FREEZE_FAILED
    scene.wait_well_thawed()
    assert daemon.is_running()
    scene.stall.release()
    assert daemon.process.wait(20) == 0
    scene.stall.fs.assert_thawed()


@with_options("--freeze-limit", "0.5", "--kill-grace", "0.3", "--thaw-limit", "1")
def test_supervisor_killed_while_stuck(scene: Scene, rig: Rig) -> None:
    """The worker that is stuck in FIFREEZE thaws what it froze when the disk recovers, though nobody tells it."""
    scene.stall_in_freeze()
    scene.daemon.proxy(timeout=60)
    Asking(scene.daemon, "va.ping").answer()
    asking = threading.Thread(target=lambda: _ignore(scene.daemon))
    asking.start()
    scene.wait_mount("freezing")
    scene.daemon.kill()
    asking.join(10)
    scene.stall.release()
    scene.daemon.wait_orphans()
    for fs in scene.every:
        fs.assert_thawed()


@with_options("--freeze-limit", "0.5", "--kill-grace", "0.2")
def test_grace_periods_are_expedited_while_it_freezes_and_put_back_for_a_killed_worker(
    grace_periods: Path, scene: Scene
) -> None:
    scene.stall_in_freeze()
    asking = Asking(scene.daemon, "va.fsfreeze")
    well = {str(fs.path) for fs in scene.well}
    scene.daemon.wait_status(lambda r: {m["state"] for m in r["mounts"] if m["mountpoint"] in well} == {"frozen"})
    assert linux.expedited() == "1"
    scene.wait_well_thawed()
    assert linux.expedited() == "0", "the worker is stuck, and was killed: who thaws for it puts this back first"
    assert asking.answer().faultCode == Code.OVERRUN
    scene.stall.release()
    scene.daemon.wait_state("THAWED")


@with_options("--freeze-limit", "0.5", "--kill-grace", "0.2")
def test_grace_periods_that_someone_else_expedites_stay_so(grace_periods: Path, scene: Scene) -> None:
    grace_periods.write_text("1\n")
    assert scene.daemon.proxy().va.fsfreeze() == 3
    assert scene.daemon.proxy().va.fsthaw() == 3
    scene.stall_in_freeze()
    assert Asking(scene.daemon, "va.fsfreeze").answer().faultCode == Code.OVERRUN
    scene.wait_well_thawed()
    assert linux.expedited() == "1"
    scene.stall.release()
    scene.daemon.wait_state("THAWED")
    assert linux.expedited() == "1"


def _ignore(daemon: Daemon) -> None:
    """Ask for a freeze of which the daemon dies."""
    with pytest.raises((OSError, xmlrpc.client.Error, EOFError)):
        daemon.proxy(timeout=60).va.fsfreeze()
