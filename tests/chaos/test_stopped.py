"""SIGSTOP for each process, at each report message: whoever is left thaws; and whoever goes on later does no harm."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hooks import Hooks
from harness.hosts import GONE, Asking, call, code_of
from harness.processes import kill, process_state, until, wait_gone
from harness.questions import assert_well, assert_writable, orphans, resting, wait_orphans
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(300)

LIMITS = [
    *("--plan-limit", "0.5", "--sync-limit", "0.5", "--freeze-limit", "0.5", "--hold-limit", "0.5"),
    *("--thaw-limit", "0.5", "--kill-grace", "0.3", "--exit-grace", "0.3"),
]
BROKEN = Code.FREEZE_BROKEN


def nested(rig: Rig) -> list[LoopFs]:
    outer = rig.fs("ext4")
    return [outer, rig.fs("ext4", outer=outer)]


def start(rig: Rig, hooks: Hooks, *options: str, **more: Any) -> Daemon:
    return rig.daemon([rig.everywhere], options or LIMITS, module="harness.hooked", env=hooks.env, **more)


def points(rig: Rig, hooks: Hooks, daemon: Daemon) -> list[str]:
    """Return the messages of the freeze worker in a clean run."""
    hooks.list_points()
    assert call(daemon, "va.fsfreeze") == 2
    assert call(daemon, "va.fsthaw") == 2
    return [point for point in hooks.points() if point.startswith("before va.fsfreeze ")]


def keeper(daemon: Daemon) -> int:
    (found,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return found


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return process_state(pid) == "T"


def told(freeze: Asking, thaw: Any) -> bool:
    """Return whether the answers agree: a freeze that failed has nothing to thaw, one that ended is called broken."""
    if isinstance(freeze.wait(), int):
        return thaw == freeze.answer or code_of(thaw) == BROKEN
    return thaw == 0


@pytest.mark.parametrize("fill", [False, True], ids=["", "pipe-full"])
def test_supervisor_stopped_at_each_message(rig: Rig, hooks: Hooks, fill: bool) -> None:
    """The worker ends the freeze by itself while nobody reads what it reports, also if the pipe takes no more."""
    every = nested(rig)
    daemon = start(rig, hooks)
    listed = points(rig, hooks, daemon)
    rest = resting(rig, daemon)
    for point in listed[fill:]:  # before Started nothing may be said
        hooks.at(point, "stop:supervisor", *(["fill"] if fill else []))
        freeze = Asking(daemon, "va.fsfreeze")
        thaw = None
        if listed.index(point) > listed.index("before va.fsfreeze Frozen"):
            assert freeze.wait() == 2
            thaw = Asking(daemon, "va.fsthaw")
        until(lambda: hooks.spent and is_stopped(daemon.pid), 10, f"stopped at {point}")
        try:
            until(lambda: all(fs.is_writable(0.3) for fs in every), 8, f"thawed, the supervisor stopped {point}")
        finally:
            go_on(daemon.pid)
        freeze.wait()
        answer = thaw.wait() if thaw else call(daemon, "va.fsthaw")
        assert told(freeze, answer), f"{point}: {freeze.answer}, {answer}"
        assert_well(rig, daemon, every, rest)


def test_worker_stopped_at_each_message(rig: Rig, hooks: Hooks) -> None:
    """A limit passes: it is killed, and what it froze is thawed."""
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    listed = points(rig, hooks, daemon)
    for point in listed:
        hooks.at(point, "stop:va.fsfreeze")
        freeze = Asking(daemon, "va.fsfreeze")
        freeze.wait()
        thaw = call(daemon, "va.fsthaw")
        assert hooks.spent, f"nothing stopped at {point}"
        assert told(freeze, thaw), f"{point}: {freeze.answer}, {thaw}"
        if listed.index(point) <= listed.index("before va.fsfreeze Frozen"):
            assert code_of(freeze.answer) == Code.OVERRUN, point
        assert_well(rig, daemon, every, rest)


@pytest.mark.parametrize("message", ["Started", "Step 0 thawing", "Step 1 thawed", "Done"])
def test_thaw_worker_stopped(rig: Rig, hooks: Hooks, message: str) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze", {"hold_limit": 30}) == 2
    hooks.at(f"before thaw {message}", "stop:thaw")
    kill(keeper(daemon))
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    assert hooks.spent
    assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    assert_well(rig, daemon, every, rest)


def test_supervisor_stopped_and_keeper_killed(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    holder = keeper(daemon)
    os.kill(daemon.pid, signal.SIGSTOP)
    kill(holder)
    assert not wait_gone([holder], 10)  # the death of its first thread alone would be none yet
    go_on(daemon.pid)
    assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    assert_well(rig, daemon, every, rest)


def test_keeper_stopped_and_supervisor_killed(rig: Rig, hooks: Hooks) -> None:
    """The next supervisor thaws; the old keeper, when it goes on, touches nothing that was frozen since."""
    every = nested(rig)
    daemon = start(rig, hooks)
    assert call(daemon, "va.fsfreeze", {"hold_limit": 0.5}) == 2
    holder = keeper(daemon)
    os.kill(holder, signal.SIGSTOP)
    until(lambda: is_stopped(holder), 10, "the keeper stopped")
    daemon.kill()
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
    again.wait_state("THAWED")
    assert_writable(every)
    assert code_of(call(again, "va.fsthaw")) == BROKEN
    assert call(again, "va.fsfreeze") == 2
    if psutil.pid_exists(holder) and process_state(holder) == "T":
        go_on(holder)
        wait_orphans(rig)
    assert call(again, "va.fsthaw") == 2, "a keeper of the past thawed a freeze that was not its own"
    assert_well(rig, again, every)


def test_both_stopped(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    holder = keeper(daemon)
    for pid in (daemon.pid, holder):
        os.kill(pid, signal.SIGSTOP)
    thaw = Asking(daemon, "va.fsthaw")
    until(lambda: is_stopped(holder) and is_stopped(daemon.pid), 10, "both stopped")
    go_on(daemon.pid)
    go_on(holder)
    assert thaw.wait() == 2 or code_of(thaw.answer) == BROKEN
    assert_well(rig, daemon, every, rest)


def test_stopped_supervisor_is_killed(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    assert call(daemon, "va.fsfreeze", {"hold_limit": 30}) == 2
    os.kill(daemon.pid, signal.SIGSTOP)
    daemon.kill()
    wait_orphans(rig)
    assert not orphans(rig)
    assert_writable(every)
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
    assert code_of(call(again, "va.fsthaw")) == BROKEN
    assert call(daemon, "va.ping") is GONE
    assert_well(rig, again, every)
