"""What dies with a worker counts against the freeze, on real file systems that give no other evidence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.filesystems import KINDS, LoopFs
from harness.hooks import Hooks
from harness.hosts import Asking, call, code_of
from harness.peer import Talk
from harness.processes import kill, process_state, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(120)
NOBODY_SAW = "nobody saw that {} was frozen until it was thawed"
UNCOUNTED = "nobody knows what was written while it was held"


@pytest.fixture
def uncounted() -> Iterator[list[LoopFs]]:
    """Take away the counters of these file systems' devices: what was written while frozen is not known."""
    those: list[LoopFs] = []
    yield those
    for fs in those:
        _count(fs, "1")


def _count(fs: LoopFs, value: str) -> None:
    try:
        Path(f"/sys/class/block/{os.path.basename(fs.device)}/queue/iostats").write_text(value, encoding="ascii")
    except OSError as error:
        pytest.skip(f"needs a writable sysfs: {error}")


def in_kernel(process: psutil.Process) -> bool:
    """Return whether one of its threads is in state D."""
    return any(process_state(thread.id) == "D" for thread in process.threads())


def test_keeper_killed_inside_its_fithaw_after_somebody_else_had_thawed(rig: Rig, uncounted: list[LoopFs]) -> None:
    """H8: the FITHAW waits for the lock of a superblock that is not frozen, the keeper dies, EINVAL dies with it."""
    stall = rig.stall("ext4")
    fs = stall.fs
    uncounted.append(fs)
    _count(fs, "0")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze") == 1
    (keeper,) = (child for child in daemon.children() if "keeper" in daemon.titles().get(child.pid, ""))
    assert fs.thaw() == "ok"
    stall.stall()
    sync = fs.ioctl("sync")
    sync.wait_blocked()
    thaw = Asking(daemon, "va.fsthaw")
    until(lambda: in_kernel(keeper), 10, "the keeper in FITHAW")
    kill(keeper.pid)
    stall.release()
    told = thaw.wait()
    assert code_of(told) == Code.FREEZE_BROKEN
    assert NOBODY_SAW.format(fs) in told.faultString
    assert sync.answer(10) == "ok"
    last = daemon.wait_state("THAWED")["last"]
    assert (last["outcome"], last["held_continuously"], last["written_while_frozen"]) == ("broken", False, -1)
    fs.assert_thawed()
    assert call(daemon, "va.fsfreeze") == 1
    assert call(daemon, "va.fsthaw") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["va", "guest"])
def test_keeper_killed_before_it_could_say_what_its_counters_show(
    rig: Rig, hooks: Hooks, kind: str, protocol: str
) -> None:
    """The file system is found frozen; that nobody had thawed it, written to it and frozen it again is not known."""
    fs = rig.fs(kind)
    daemon = rig.daemon([fs], module="harness.hooked", env=hooks.env)
    talk = Talk(rig.area, str(daemon.socket))
    assert call(daemon, "va.fsfreeze") == 1
    hooks.at("before va.fsfreeze Thawing", "kill:va.fsfreeze")
    if protocol == "va":
        told = call(daemon, "va.fsthaw")
        assert code_of(told) == Code.FREEZE_BROKEN
        assert UNCOUNTED in told.faultString
    else:
        assert UNCOUNTED in talk.ask("guest-fsfreeze-thaw")["error"]["desc"]
    assert hooks.spent
    talk.close()
    last = daemon.status()["last"]
    assert (last["outcome"], last["held_continuously"], last["written_while_frozen"]) == ("broken", False, -1)
    fs.assert_thawed()
    assert call(daemon, "va.fsfreeze") == 1
    assert call(daemon, "va.fsthaw") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dies", ["before va.fsfreeze Step 0 thawing", "before va.fsfreeze Step 0 thawed"])
@pytest.mark.parametrize("stolen", [False, True], ids=["held", "thawed by another"])
def test_keeper_killed_before_it_could_say_what_its_fithaw_found(
    rig: Rig, hooks: Hooks, uncounted: list[LoopFs], kind: str, dies: str, stolen: bool
) -> None:
    """H8: only a thaw worker that undoes the freeze itself proves that it was held until then."""
    fs = rig.fs(kind)
    uncounted.append(fs)
    _count(fs, "0")
    daemon = rig.daemon([fs], module="harness.hooked", env=hooks.env)
    assert call(daemon, "va.fsfreeze") == 1
    if stolen:
        assert fs.thaw() == "ok"
    hooks.at(dies, "kill:va.fsfreeze")
    told = call(daemon, "va.fsthaw")
    assert hooks.spent
    good = not stolen and dies.endswith("thawing")
    if good:
        assert told == 1
    else:
        assert code_of(told) == Code.FREEZE_BROKEN
        found = dies.endswith("thawing")  # by the thaw worker that took over
        assert (f"someone else had thawed {fs}" if found else NOBODY_SAW.format(fs)) in told.faultString
    assert daemon.status()["last"]["held_continuously"] is good
    fs.assert_thawed()
    assert call(daemon, "va.fsfreeze") == 1
    assert call(daemon, "va.fsthaw") == 1
