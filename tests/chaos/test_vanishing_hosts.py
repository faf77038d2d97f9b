"""A host that vanishes: before the reply, while frozen, while thawing. The guest thaws, and the next host is told."""

from __future__ import annotations

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hooks import Hooks
from harness.hosts import Vanishing, call, code_of
from harness.questions import assert_well, assert_writable, resting, stopped_worker
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(300)
BROKEN = Code.FREEZE_BROKEN


def nested(rig: Rig) -> list[LoopFs]:
    outer = rig.fs("ext4")
    return [outer, rig.fs("ext4", outer=outer)]


def start(rig: Rig, hooks: Hooks, *options: str) -> Daemon:
    return rig.daemon([rig.everywhere], options, module="harness.hooked", env=hooks.env)


def messages(rig: Rig, hooks: Hooks, daemon: Daemon) -> list[str]:
    hooks.list_points()
    assert call(daemon, "va.fsfreeze") == 2
    assert call(daemon, "va.fsthaw") == 2
    return [point for point in hooks.points() if point.startswith("before va.fsfreeze ")]


def test_asks_and_vanishes_at_each_message(rig: Rig, hooks: Hooks) -> None:
    """The worker is held at the message while the host hangs up; the freeze goes on, for the next host to thaw."""
    every = nested(rig)
    daemon = start(rig, hooks)
    listed = messages(rig, hooks, daemon)
    rest = resting(rig, daemon)
    for point in listed[: listed.index("before va.fsfreeze Frozen") + 1]:
        hooks.at(point, "stop:va.fsfreeze")
        host = Vanishing(daemon, "va.fsfreeze", {"hold_limit": 30})
        worker = stopped_worker(daemon)
        host.vanish()
        assert call(daemon, "va.fsstatus") == 1
        worker.resume()
        daemon.wait_state("FROZEN")
        assert call(daemon, "va.fsthaw") == 2, point
        assert_well(rig, daemon, every, rest)


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
def test_vanishes_and_the_hold_ends(rig: Rig, hooks: Hooks, told: bool) -> None:
    """Whether it has its answer or not: the hold limit thaws, and the next to ask learns that the freeze was broken."""
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    if told:
        assert call(daemon, "va.fsfreeze", {"hold_limit": 0.3}) == 2
    else:
        Vanishing(daemon, "va.fsfreeze", {"hold_limit": 0.3}).vanish()
        daemon.wait_status(lambda record: record["last"])
    daemon.wait_state("THAWED")
    assert_writable(every)
    assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    assert_well(rig, daemon, every, rest)


def test_asks_to_thaw_and_vanishes_at_each_message(rig: Rig, hooks: Hooks) -> None:
    """It is thawed; the next host finds nothing to do."""
    every = nested(rig)
    daemon = start(rig, hooks)
    listed = messages(rig, hooks, daemon)
    rest = resting(rig, daemon)
    for point in listed[listed.index("before va.fsfreeze Thawing") :]:
        assert call(daemon, "va.fsfreeze") == 2
        hooks.at(point, "stop:va.fsfreeze")
        host = Vanishing(daemon, "va.fsthaw")
        worker = stopped_worker(daemon)
        host.vanish()
        assert call(daemon, "va.fsstatus") == 3
        worker.resume()
        daemon.wait_state("THAWED")
        assert_writable(every)
        assert_well(rig, daemon, every, rest)


def test_asks_vanishes_and_another_cancels(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    hooks.at("before va.fsfreeze Progress freeze", "stop:va.fsfreeze")
    host = Vanishing(daemon, "va.fsfreeze")
    stopped_worker(daemon)
    host.vanish()
    assert call(daemon, "va.fsthaw") == 0
    assert_well(rig, daemon, every, rest)


def test_sixteen_vanish_at_once(rig: Rig, hooks: Hooks) -> None:
    every = nested(rig)
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    hosts = [Vanishing(daemon, "va.fsfreeze", {"hold_limit": 0.5}) for _ in range(15)]
    for host in hosts:
        host.vanish()
    daemon.wait_status(lambda record: record["last"])
    daemon.wait_state("THAWED")
    assert code_of(call(daemon, "va.fsthaw")) == BROKEN
    assert_well(rig, daemon, every, rest)
