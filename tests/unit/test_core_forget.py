"""va.fsforget: an operator says that a file system counts as thawed, when nothing else leads out of ERROR."""

from __future__ import annotations

import errno

import pytest
from fakes.drive import Drive
from fakes.scenarios import attempts, brought_to, ended, keeper_died, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages


def refused_once(drive: Drive, count: int = 2) -> None:
    """Bring about an ERROR: the keeper is dead, and no thaw worker can thaw any of these."""
    keeper_died(drive, count)
    drive.refuses()
    assert drive.state is FreezeState.ERROR


@pytest.mark.parametrize("name", ["/srv/1", "dev:8:1"])
def test_the_others_are_tried_again_without_it(drive: Drive, name: str) -> None:
    refused_once(drive)
    devices = [mount.device for mount in drive.status().mounts]
    assert drive.ask("va.fsforget", name if name[0] == "/" else f"dev:{devices[1]}").value == 1
    assert drive.state is FreezeState.ERROR
    assert "may be frozen still" in drive.status().mounts[1].error
    drive.wait(1)
    assert drive.suspected(drive.newest) == {0}
    drive.compensates()
    ended(drive, "broken", tells=())


def test_when_nothing_else_is_left_the_guest_is_thawed(drive: Drive) -> None:
    refused_once(drive, 1)
    assert drive.ask("va.fsforget", "/srv/0").value == 0
    assert drive.state is FreezeState.THAWED
    assert drive.logged("va.fsforget: /srv/0 (")
    assert drive.timers.nearest() is None
    mounts = drive.status().mounts
    assert [(mount.state, mount.error) for mount in mounts] == [
        ("failed", "forgotten by an operator: it may be frozen still")
    ]
    drive.ask("va.fsthaw").refused(Code.FREEZE_BROKEN)
    _, keeper = drive.hold(1)
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    ended(drive)


def test_it_is_recorded_and_logged_loudly(drive: Drive) -> None:
    refused_once(drive, 1)
    drive.ask("va.fsforget", "/srv/0")
    assert any('method="va.fsforget"' in line and "/srv/0" in line for line in drive.logged("audit:"))
    (line,) = drive.logged("counts as thawed, and may be frozen still; only")
    assert "only a thaw by hand or a boot would end that" in line


@pytest.mark.parametrize("state", ["THAWED", "INPROGRESS", "FROZEN", "THAWINPROGRESS"])
def test_only_in_error(state: str) -> None:
    drive, _ = brought_to(state)
    drive.ask("va.fsforget", "/srv/0").refused(Code.WRONG_STATE, "needs state ERROR", state)
    assert drive.state.name == state


@pytest.mark.parametrize("name", ["/", "/srv/9", "/srv/*", "*", "", "dev:9:9", "\udcff"])
def test_what_is_not_suspect_is_not_forgotten(drive: Drive, name: str) -> None:
    refused_once(drive)
    drive.ask("va.fsforget", name).refused(Code.PARAMS, "/srv/0 (dev:", "/srv/1 (dev:")
    assert drive.state is FreezeState.ERROR


def test_one_that_is_thawed_is_not_forgotten(drive: Drive) -> None:
    thawer = keeper_died(drive, 2)
    drive.report(thawer, messages.Started(1))
    drive.undo(thawer, 0)
    drive.undo(thawer, 1, refused=errno.EIO)
    drive.report(thawer, messages.Failed(int(Code.FAILED), "no"))
    drive.exit(thawer)
    drive.ask("va.fsforget", "/srv/0").refused(Code.PARAMS, "/srv/1")


def test_a_thaw_worker_that_never_returns_is_not_waited_for(drive: Drive) -> None:
    """Its disk does not answer, ever; it can freeze nothing."""
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), messages.Step(0, "thawing"))
    drive.wait(11)
    assert drive.state is FreezeState.ERROR
    assert drive.ask("va.fsforget", "/srv/0").value == 0
    assert drive.state is FreezeState.THAWED
    _, keeper = drive.hold(1)
    # Now the disk answers.
    drive.report(thawer, messages.Step(0, "thawed"), messages.Done(1))
    drive.exit(thawer)
    assert drive.state is FreezeState.FROZEN
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    ended(drive)
    assert attempts(drive) == 1


def test_a_freeze_worker_that_may_still_freeze_is_waited_for(drive: Drive) -> None:
    """What it froze in the end is not suspected again, since that was said."""
    _, worker = played(drive, "freezing", 1)
    drive.wait(30)
    drive.refuses()
    drive.wait(2)
    assert drive.state is FreezeState.ERROR
    assert drive.ask("va.fsforget", "/srv/0").value == 0
    assert drive.state is FreezeState.ERROR, "promise 6"
    drive.ask("va.fsforget", "/srv/0").refused(Code.PARAMS, "nothing, but a worker is stuck")
    count, thawer = attempts(drive), drive.newest
    drive.die(worker)
    assert drive.state is FreezeState.THAWED
    assert attempts(drive) == count
    drive.report(thawer, messages.Started(1), messages.Failed(int(Code.FAILED), "no"))
    drive.exit(thawer)
    ended(drive)
