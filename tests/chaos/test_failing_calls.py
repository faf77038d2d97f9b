"""Calls that the kernel refuses: fork, pidfd_open, pipe in the supervisor; open, threads, pidfd_open in workers."""

from __future__ import annotations

import itertools
import os
import signal

import pytest
from harness.daemon import Daemon
from harness.faults import CALLS
from harness.filesystems import LoopFs
from harness.hooks import Hooks
from harness.hosts import call, code_of
from harness.processes import kill, until
from harness.questions import assert_well, resting
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(120)

REFUSALS = [(name, number) for name, numbers in CALLS.items() for number in numbers]
IN_SUPERVISOR = [(name, number) for name, number in REFUSALS if name in ("fork", "pidfd_open", "pipe")]


def nested(rig: Rig) -> list[LoopFs]:
    outer = rig.fs("ext4")
    return [outer, rig.fs("ext4", outer=outer)]


def start(rig: Rig, hooks: Hooks, *options: str) -> Daemon:
    return rig.daemon([rig.everywhere], options, module="harness.hooked", env=hooks.env)


def lose_keeper(daemon: Daemon, what: str = "keeper") -> None:
    def found() -> list[int]:
        return [pid for pid, title in daemon.titles().items() if what in title]

    until(lambda: bool(found()), 10, f"a process shows that it is the {what}")
    (keeper,) = found()
    kill(keeper)


def test_freeze_refused(rig: Rig, hooks: Hooks) -> None:
    """The freeze fails with one sentence, nothing stays frozen or open, and the next one works."""
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    for name, number in REFUSALS:
        hooks.fail(name, number)
        failed = call(daemon, "va.fsfreeze")
        assert not hooks.faults_left(), name
        if name == "worker_open":  # refused once in the plan, it is tried again
            assert failed == 2
            assert call(daemon, "va.fsthaw") == 2
            continue
        assert code_of(failed) in (Code.WORKER_DIED, Code.FREEZE_FAILED, Code.FAILED), (name, failed)
        assert "Errno" not in failed.faultString
        assert call(daemon, "va.fsthaw") == 0
        daemon.wait_state("THAWED")
        assert_well(rig, daemon, every, rest)


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize(("name", "number"), [*IN_SUPERVISOR, ("worker_open", "EMFILE")])
def test_compensation_refused(rig: Rig, hooks: Hooks, name: str, number: str, times: int) -> None:
    """The keeper is dead and no thaw worker can be had: the one that stands by thaws.

    If that is dead, too, it is tried again until one thaws.
    """
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    hooks.fail(name, number, times)
    if times > 1:
        lose_keeper(daemon, "standby")
    lose_keeper(daemon)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    assert not hooks.faults_left()
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, daemon, every, rest, log=False)


def test_compensation_without_threads(rig: Rig, hooks: Hooks) -> None:
    """The keeper is dead and the thaw worker gets no thread: it does without, there and then."""
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze") == 2
    hooks.fail("worker_thread", "EAGAIN")
    lose_keeper(daemon)
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "broken"
    assert not hooks.faults_left()
    assert "thaw again" not in daemon.log()
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, daemon, every, rest, log=False)


@pytest.mark.parametrize(("name", "number"), IN_SUPERVISOR)
def test_recovery_refused(rig: Rig, hooks: Hooks, name: str, number: str) -> None:
    """The start that finds a journal cannot fork at first."""
    every = nested(rig)
    daemon = start(rig, hooks)
    assert call(daemon, "va.fsfreeze") == 2
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    os.kill(daemon.pid, signal.SIGSTOP)
    kill(keeper)
    daemon.kill()
    hooks.fail(name, number, 3)
    again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir, module="harness.hooked", env=hooks.env)
    again.wait_state("THAWED")
    until(lambda: not hooks.faults_left(), 5, "all that was to fail has failed")
    assert code_of(call(again, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, again, every)


def test_journal_refused_when_a_broken_freeze_is_noted(rig: Rig, hooks: Hooks) -> None:
    """Not written, it is still told: the supervisor knows it."""
    every = nested(rig)
    daemon = start(rig, hooks)
    assert call(daemon, "va.fsfreeze") == 2
    hooks.fail("journal", "ENOSPC")
    lose_keeper(daemon)
    daemon.wait_state("THAWED")
    assert not hooks.faults_left()
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, daemon, every)


def test_other_rpcs_refused(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    for (name, number), method in itertools.product(IN_SUPERVISOR, ("va.getdmesg", "va.fsplan")):
        hooks.fail(name, number)
        assert code_of(call(daemon, method)) == Code.WORKER_DIED
    assert not isinstance(call(daemon, "va.fsplan"), int)
    assert_well(rig, daemon, every, rest)
