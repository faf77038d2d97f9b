"""What is frozen is unmounted, covered, moved or bound elsewhere meanwhile, or frozen and thawed by someone else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import KINDS, LoopFs
from harness.hooks import Hooks
from harness.hosts import Asking, call, code_of
from harness.moving import move
from harness.processes import kill, until
from harness.questions import assert_frozen, assert_well, assert_writable, resting, stopped_worker
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(120)
BROKEN = Code.FREEZE_BROKEN
KIND = pytest.mark.parametrize("kind", KINDS)


def lose_keeper(daemon: Daemon) -> None:
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    kill(keeper)


def cover(rig: Rig, fs: LoopFs) -> Callable[[], None]:
    linux.mount("cover", str(fs.path), "tmpfs")
    return lambda: linux.umount(str(fs.path))


def detach(rig: Rig, fs: LoopFs) -> Callable[[], None]:
    linux.umount(str(fs.path), linux.MNT_DETACH)
    return fs.mount


def bind(rig: Rig, fs: LoopFs) -> Callable[[], None]:
    fs.bind()
    return lambda: None


def bind_and_detach(rig: Rig, fs: LoopFs) -> Callable[[], None]:
    fs.bind()
    return detach(rig, fs)


GAMES = pytest.mark.parametrize("game", [cover, detach, bind, bind_and_detach], ids=lambda game: game.__name__)


@KIND
@GAMES
def test_keeper_thaws_what_was_played_with(
    rig: Rig, kind: str, game: Callable[[Rig, LoopFs], Callable[[], None]]
) -> None:
    """It holds the descriptor, wherever the mount has gone."""
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere])
    assert call(daemon, "va.fsfreeze") == 2
    undo = game(rig, fs)
    assert call(daemon, "va.fsthaw") == 2
    assert daemon.wait_state("THAWED")["last"]["held_continuously"]
    undo()
    assert_well(rig, daemon, [other, fs])


@KIND
@GAMES
def test_keeper_dies_after_the_game(rig: Rig, kind: str, game: Callable[[Rig, LoopFs], Callable[[], None]]) -> None:
    """What can be found is thawed at once; what cannot be reached keeps the state from THAWED until it can."""
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere])
    assert call(daemon, "va.fsfreeze") == 2
    undo = game(rig, fs)
    lose_keeper(daemon)
    until(lambda: not other.is_frozen(), 5, "the other one thaws")
    record = daemon.wait_status(lambda r: r["state"] in ("THAWED", "ERROR"))
    if record["state"] == "ERROR":
        assert str(fs.path) in record["error"] or any(
            m["mountpoint"] == str(fs.path) and m["error"] for m in record["mounts"]
        )
        undo()
        call(daemon, "va.fsthaw")
        daemon.wait_state("THAWED")
    else:
        undo()
    assert_writable([fs])
    call(daemon, "va.fsthaw")
    assert_well(rig, daemon, [other, fs])


@KIND
@pytest.mark.parametrize("dies", [False, True], ids=["", "keeper-dies"])
def test_moved(rig: Rig, kind: str, dies: bool) -> None:
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere])
    assert call(daemon, "va.fsfreeze") == 2
    move(daemon.pid, rig.area.root, fs.path, rig.area.fresh("moved"))
    if dies:
        lose_keeper(daemon)
        daemon.wait_state("THAWED")
        assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    else:
        assert call(daemon, "va.fsthaw") == 2
    assert_well(rig, daemon, [other, fs])


@KIND
def test_unmounted_before_the_freeze_and_after_the_plan(rig: Rig, hooks: Hooks, kind: str) -> None:
    """What the plan promises is open already, and is frozen; nothing stays frozen."""
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere], module="harness.hooked", env=hooks.env)
    hooks.at("before va.fsfreeze Plan", "stop:va.fsfreeze")
    freeze = Asking(daemon, "va.fsfreeze")
    worker = stopped_worker(daemon)
    linux.umount(str(fs.path), linux.MNT_DETACH)
    worker.resume()
    assert freeze.wait() == 2
    assert call(daemon, "va.fsthaw") == 2
    fs.mount()
    assert_well(rig, daemon, [other, fs])


@KIND
def test_someone_freezes_between_plan_and_freeze(rig: Rig, hooks: Hooks, kind: str) -> None:
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere], module="harness.hooked", env=hooks.env)
    rest = resting(rig, daemon)
    hooks.at("before va.fsfreeze Progress freeze", "stop:va.fsfreeze")
    freeze = Asking(daemon, "va.fsfreeze")
    worker = stopped_worker(daemon)
    assert fs.freeze() == "ok"
    worker.resume()
    failed = freeze.wait()
    assert code_of(failed) == Code.FREEZE_FAILED
    assert "EBUSY" in failed.faultString
    assert_frozen([fs])
    assert_writable([other])
    assert call(daemon, "va.fsthaw") == 0
    assert_frozen([fs])
    assert fs.thaw() == "ok"
    assert_well(rig, daemon, [other, fs], rest)


@KIND
def test_someone_thaws_while_frozen(rig: Rig, kind: str) -> None:
    other, fs = rig.fs("ext4"), rig.fs(kind)
    daemon = rig.daemon([rig.everywhere])
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    assert fs.thaw() == "ok"
    told = call(daemon, "va.fsthaw")
    assert code_of(told) == BROKEN
    assert f"someone else had thawed {fs.path}" in told.faultString
    assert_well(rig, daemon, [other, fs], rest)


@KIND
def test_someone_thaws_all_and_the_keeper_dies(rig: Rig, kind: str) -> None:
    every = [rig.fs("ext4"), rig.fs(kind)]
    daemon = rig.daemon([rig.everywhere])
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    for fs in every:
        assert fs.thaw() == "ok"
    lose_keeper(daemon)
    daemon.wait_state("THAWED")
    assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    assert_well(rig, daemon, every, rest)


def test_covered_before_the_freeze(rig: Rig) -> None:
    """A file system whose only mount point is covered is frozen, or said to be unreachable: never only left out."""
    other, fs = rig.fs("ext4"), rig.fs("xfs")
    daemon = rig.daemon([rig.everywhere])
    undo = cover(rig, fs)
    try:
        answer = call(daemon, "va.fsfreeze")
        told = {(m["mountpoint"], m["state"], m["reason"]) for m in daemon.status()["mounts"]}
        thawed = call(daemon, "va.fsthaw")
    finally:
        undo()
    assert answer == thawed
    assert (str(fs.path), *(("frozen", "") if answer == 2 else ("left-out", "unreachable"))) in told
    assert_well(rig, daemon, [other, fs])
