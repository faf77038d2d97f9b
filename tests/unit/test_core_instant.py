"""A freeze with `at`: it plans and syncs at once, waits in phase ready, and goes on at the instant that a host sets."""

from __future__ import annotations

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import ended, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

WALL = 1.7e9  # the time of day of every request here
PROCEED = messages.Proceed()


def ready(drive: Drive, ahead: float = 30) -> tuple[Asked, int]:
    """Play a freeze until it is ready, its instant that many seconds ahead."""
    call, worker = played(drive, "synced", 2, options={"at": WALL + ahead})
    assert drive.status().phase == "ready"
    return call, worker


def test_nothing_is_frozen_before_the_instant(drive: Drive) -> None:
    call, worker = ready(drive)
    status = drive.status()
    assert (status.state, status.limit_left) == ("INPROGRESS", pytest.approx(30))
    drive.wait(29.9)
    assert (worker, PROCEED) not in drive.told
    drive.wait(0.2)
    assert drive.told.count((worker, PROCEED)) == 1
    status = drive.status()
    assert (status.phase, status.limit_left) == ("freeze", pytest.approx(30, abs=0.2)), (
        "the limit begins at the instant"
    )
    drive.freezes(worker, 0, 1)
    drive.frozen(worker, 0, 1)
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert call.value == 2


@pytest.mark.parametrize(("ahead", "waits"), [(None, 0), (-2.0, 0), (5.0, 5), (40.0, 40)])
def test_a_host_sets_the_instant(drive: Drive, ahead: float | None, waits: float) -> None:
    _, worker = ready(drive)
    assert drive.ask("va.fsgo", *([] if ahead is None else [WALL + ahead])).value == 1
    if waits:
        drive.wait(waits - 0.1)
        assert (worker, PROCEED) not in drive.told
        drive.wait(0.2)
    assert drive.told.count((worker, PROCEED)) == 1


def test_the_instant_may_be_set_again(drive: Drive) -> None:
    _, worker = ready(drive)
    drive.ask("va.fsgo", WALL + 200)
    drive.wait(100)
    assert (worker, PROCEED) not in drive.told
    assert drive.ask("va.fsgo").value == 1
    assert (worker, PROCEED) in drive.told
    drive.ask("va.fsgo").refused(Code.WRONG_STATE, "phase freeze")


def test_an_instant_that_has_passed_means_now(drive: Drive) -> None:
    _, worker = played(drive, "synced", 2, options={"at": WALL - 1})
    assert (worker, PROCEED) in drive.told


@pytest.mark.parametrize("until", ["spawned", "planning", "planned", "syncing"])
def test_none_waits_yet(drive: Drive, until: str) -> None:
    _, worker = played(drive, until, options={"at": WALL + 30})
    drive.ask("va.fsgo").refused(Code.WRONG_STATE, "needs a freeze that waits in phase ready")
    assert (worker, PROCEED) not in drive.told


@pytest.mark.parametrize("options", [None, {}])
def test_one_without_an_instant_does_not_wait(drive: Drive, options: dict[str, object] | None) -> None:
    _, worker = played(drive, "synced", options=options)
    assert (worker, PROCEED) in drive.told
    drive.ask("va.fsgo").refused(Code.WRONG_STATE, "phase ready")


def test_none_is_under_way(drive: Drive) -> None:
    drive.ask("va.fsgo").refused(Code.WRONG_STATE, "the state is THAWED")
    drive.hold(2)
    drive.ask("va.fsgo").refused(Code.WRONG_STATE, "the state is FROZEN")


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (WALL + 301, "301 s ahead"),
        (WALL - 301, "301 s ago"),
        (5, "expected at most 300 s ahead"),
        (0, "expected seconds since 1970"),
        (-1.0, "expected seconds since 1970"),
        (float("nan"), "expected seconds since 1970"),
        (float("inf"), "expected seconds since 1970"),
        ("now", "expected time of day"),
        (True, "expected time of day"),
    ],
)
def test_an_instant_that_is_none(drive: Drive, at: object, words: str) -> None:
    drive.ask("va.fsfreeze", {"at": at}).refused(Code.PARAMS, "va.fsfreeze: at is", words)
    assert drive.state is FreezeState.THAWED
    _, worker = ready(drive)
    drive.ask("va.fsgo", at).refused(Code.PARAMS, "va.fsgo: at is", words)
    assert (worker, PROCEED) not in drive.told
    assert drive.status().limit_left == pytest.approx(30), "it waits as before"


def test_a_thaw_cancels_what_waits(drive: Drive) -> None:
    call, worker = ready(drive)
    thaw = drive.ask("va.fsthaw")
    call.refused(Code.FREEZE_FAILED, "the freeze was cancelled: va.fsthaw; nothing was frozen")
    assert thaw.value == 0
    assert drive.killed == {worker}
    drive.wait(60)
    assert (worker, PROCEED) not in drive.told
    drive.die(worker)
    ended(drive, "cancelled")


def test_a_worker_that_dies_while_it_waits_has_frozen_nothing(drive: Drive) -> None:
    call, worker = ready(drive)
    drive.die(worker)
    call.refused(Code.WORKER_DIED, "nothing was frozen")
    ended(drive, "failed")


def test_late_figures_of_the_sync_do_not_end_the_wait(drive: Drive) -> None:
    _, worker = ready(drive, 200)
    drive.report(worker, messages.Progress("sync", 1))
    assert drive.status().phase == "ready"
    assert drive.status().limit_left == pytest.approx(200)


def attended(drive: Drive, until: str = "synced", ahead: float = 30) -> tuple[int, int]:
    """Play a freeze that its host is to let go; return the connection of that and the worker."""
    call, worker = played(drive, until, options={"at": WALL + ahead, "attended": True, "wait": 0.001})
    drive.wait(0.01)
    call.refused(Code.IN_PROGRESS)
    return call.connection, worker


@pytest.mark.parametrize("until", ["spawned", "planning", "planned", "syncing", "synced"])
def test_a_host_that_leaves_before_it_lets_go_has_frozen_nothing(drive: Drive, until: str) -> None:
    host, worker = attended(drive, until)
    drive.feed(events.Disconnected(host + 1))
    assert drive.state is FreezeState.INPROGRESS, "another host left"
    drive.feed(events.Disconnected(host, evicted=True))
    assert drive.state is FreezeState.INPROGRESS, "the agent has hung up, not the host"
    drive.feed(events.Disconnected(host))
    assert drive.state is FreezeState.THAWED
    assert drive.killed == {worker}
    drive.wait(300)
    assert (worker, PROCEED) not in drive.told
    last = drive.status().last
    assert last is not None
    assert last.error == "the freeze was cancelled: its host has left before va.fsgo; nothing was frozen"
    drive.die(worker)
    ended(drive, "cancelled")


def test_one_that_is_not_let_go_in_time_is_called_off(drive: Drive) -> None:
    _, worker = attended(drive)
    drive.wait(29.9)
    assert drive.status().phase == "ready"
    drive.wait(0.2)
    last = drive.status().last
    assert last is not None
    assert last.error == "the freeze was cancelled: va.fsgo did not come by its instant; nothing was frozen"
    assert (worker, PROCEED) not in drive.told
    drive.die(worker)
    ended(drive, "cancelled", tells=["va.fsgo did not come by its instant"])


def test_a_sync_that_outlasts_its_instant_does_not_freeze_for_nobody(drive: Drive) -> None:
    _, worker = attended(drive, "syncing")
    drive.wait(31)
    assert drive.state is FreezeState.INPROGRESS
    drive.sync(worker)
    assert drive.state is FreezeState.THAWED, drive.status()
    assert (worker, PROCEED) not in drive.told


def test_what_was_let_go_stays_though_its_host_leaves(drive: Drive) -> None:
    host, worker = attended(drive)
    assert drive.ask("va.fsgo", WALL + 20).value == 1
    drive.feed(events.Disconnected(host))
    assert drive.status().phase == "ready", "it goes at the instant that was set, as any freeze"
    drive.wait(20.1)
    assert drive.told.count((worker, PROCEED)) == 1
    drive.feed(events.Disconnected(host))
    assert drive.state is FreezeState.INPROGRESS


def test_one_that_is_not_attended_does_not_mind_who_leaves(drive: Drive) -> None:
    call, worker = ready(drive)
    drive.hang_up(call)
    assert drive.status().phase == "ready"
    drive.wait(30.1)
    assert (worker, PROCEED) in drive.told


def test_to_attend_needs_an_instant(drive: Drive) -> None:
    drive.ask("va.fsfreeze", {"attended": True}).refused(Code.PARAMS, "attended needs at")
    assert drive.state is FreezeState.THAWED
    assert not drive.spawned
