"""Calls that wait for what becomes of a freeze: freezes of the QEMU protocol (H9), and a shutdown, which ends it."""

from __future__ import annotations

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import ended, keeper_died, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events
from virtagent.supervisor.core.waiting import WAITS_MAX

METHODS = ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list")


def second(drive: Drive, method: str = METHODS[0]) -> Asked:
    return drive.ask_by_name(method, {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("until", ["spawned", "syncing", "synced", "freezing", "frozen"])
def test_one_that_comes_before_the_hold_is_refused_when_all_is_frozen(drive: Drive, until: str, method: str) -> None:
    call, worker = played(drive, until)
    waits = second(drive, method)
    assert not waits.answered, "nothing is frozen yet"
    if until != "frozen":
        drive.ask("va.fsthaw")
        drive.die(worker)
        while drive.workers("thaw"):
            drive.compensates()
        assert call.answered
        assert drive.workers("va.fsfreeze"), "nothing is frozen, so the other is admitted"
        assert not waits.answered
    else:
        drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
        waits.refused(Code.REFUSED_WHILE_FROZEN, "the agent is in frozen state")


def test_it_is_admitted_when_the_other_has_failed(drive: Drive) -> None:
    _, worker = played(drive, "syncing")
    waits = second(drive)
    drive.die(worker)
    assert drive.state is FreezeState.INPROGRESS
    keeper = drive.newest
    drive.report(keeper, messages.Started(1))
    drive.die(keeper)
    assert waits.code is Code.WORKER_DIED
    ended(drive, "failed")


def test_it_waits_for_a_thaw_and_is_then_admitted(drive: Drive) -> None:
    _, keeper = drive.hold()
    thaw = drive.ask("va.fsthaw")
    waits = second(drive)
    assert not waits.answered
    drive.thaws(keeper)
    assert thaw.value == 2
    assert drive.state is FreezeState.INPROGRESS
    assert not waits.answered


def test_it_is_refused_where_thawing_does_not_succeed(drive: Drive) -> None:
    keeper_died(drive)
    waits = second(drive)
    assert not waits.answered
    drive.refuses()
    waits.refused(Code.REFUSED_WHILE_FROZEN, "frozen state")


def test_of_two_that_wait_the_second_waits_for_the_first(drive: Drive) -> None:
    _, worker = played(drive, "syncing")
    first, later = second(drive), second(drive)
    drive.die(worker)
    assert not first.answered
    assert not later.answered
    assert len(drive.workers("va.fsfreeze")) == 1


def test_one_whose_host_has_gone_freezes_nothing(drive: Drive) -> None:
    _, worker = played(drive, "syncing")
    drive.hang_up(second(drive))
    drive.die(worker)
    assert drive.state is FreezeState.THAWED
    ended(drive, "failed")


def test_it_is_refused_at_once_for_any_other_reason() -> None:
    drive = Drive(block_rpcs=("guest-fsfreeze-freeze",))
    played(drive, "syncing") if drive.core.allows("va.fsfreeze") else None
    assert second(drive).code is Code.BLOCKED
    other = Drive()
    played(other, "freezing")
    other.feed(events.Stopped("SIGTERM"))
    assert second(other).code is Code.WRONG_STATE


def test_its_arguments_are_checked_before_it_waits(drive: Drive) -> None:
    played(drive, "syncing")
    assert drive.ask_by_name("guest-fsfreeze-freeze-list", {"mountpoints": 5}).code is Code.PARAMS


def test_the_end_of_the_agent_answers_it(drive: Drive) -> None:
    _, worker = played(drive, "freezing")
    waits = second(drive)
    drive.feed(events.Stopped("SIGTERM"))
    while drive.workers("thaw"):
        drive.compensates()
    drive.die(worker)
    drive.compensates()
    assert waits.code is Code.WRONG_STATE
    assert drive.of(events.Quit)


def test_at_the_end_those_who_act_are_answered_before_those_who_watch(drive: Drive) -> None:
    """Promise 12, found by simulation."""
    played(drive, "syncing")
    watcher = drive.ask("va.fsstatus", {"since": drive.status().seq, "wait": 60.0})
    acts = second(drive)
    drive.feed(events.Stopped("SIGTERM"))
    tokens = [answer.token for answer in drive.of(events.Answer)]
    assert tokens.index(acts.token) < tokens.index(watcher.token)
    assert acts.code is Code.WRONG_STATE
    assert watcher.value.state == "THAWED"


# -- a shutdown, which ends a freeze first: whatever refuses it does that before


SHUTDOWNS = ("va.shutdown", "guest-shutdown")


def overrun(drive: Drive, method: str, *params: str) -> None:
    """Have eight workers overrun that a dead disk does not let end."""
    before = len(drive.killed)
    for _ in range(8):
        drive.ask(method, *params)
    drive.wait(40)
    assert len(drive.killed) == before + 8


@pytest.mark.parametrize("method", SHUTDOWNS)
@pytest.mark.parametrize("frozen", ["frozen", "thawed"])
def test_a_guest_with_a_dead_disk_can_be_shut_down(method: str, frozen: str) -> None:
    drive = Drive()
    overrun(drive, "va.getfile", "/dead/file")
    keeper = drive.hold(1)[1] if frozen == "frozen" else 0
    call = drive.ask_by_name(method, {"mode": "halt"})
    if keeper:
        drive.thaws(keeper, 1)
    assert not call.answered
    assert drive.workers(method)


@pytest.mark.parametrize("method", SHUTDOWNS)
@pytest.mark.parametrize("workers", ["run", "hang"])
def test_a_shutdown_for_which_there_is_no_room_thaws_nothing(method: str, workers: str) -> None:
    drive = Drive()
    if workers == "hang":
        overrun(drive, "va.shutdown", "halt")
    _, keeper = drive.hold(1)
    if workers == "run":
        for _ in range(8):
            drive.ask("va.getdmesg")
    told = list(drive.told)
    drive.ask_by_name(method, {"mode": "halt"}).refused(Code.BUSY, f"{method}: 8 workers")
    assert (drive.state, drive.told) == (FreezeState.FROZEN, told)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert thaw.value == 1


@pytest.mark.parametrize("method", SHUTDOWNS)
@pytest.mark.parametrize("meanwhile", ["all places are taken", "the ring is full", "it is blocked"])
def test_a_shutdown_that_has_ended_a_freeze_is_not_refused_any_more(method: str, meanwhile: str) -> None:
    drive = Drive(audit_ring=4)
    if meanwhile == "it is blocked":
        drive.feed(events.Reload())
    _, keeper = drive.hold(1)
    call = drive.ask_by_name(method, {"mode": "halt"})
    drive.die(keeper)
    if meanwhile == "all places are taken":
        for _ in range(8):
            drive.ask("va.getdmesg")
        assert drive.ask("va.getdmesg").code is Code.BUSY
    elif meanwhile == "the ring is full":
        for _ in range(4):
            drive.ask("va.nothing")
        assert drive.ask("va.getdmesg").code is Code.AUDIT_FULL
    else:
        options = {"options": "block-rpcs va.shutdown\n", "writers": {}}
        drive.report(*drive.workers("reload"), messages.Started(1), messages.Done(options))
    drive.compensates(*drive.workers("thaw"))
    assert not call.answered
    assert drive.workers(method)


def test_no_more_wait_than_there_is_room_for(drive: Drive) -> None:
    """Those whose host has given up take none: a host may ask again and again."""
    _, worker = played(drive, "syncing")
    given_up = [drive.ask_by_name(METHODS[0], {}, 7) for _ in range(WAITS_MAX)]
    for call in given_up:
        drive.give_up(call)
    waits = [second(drive) for _ in range(WAITS_MAX)]
    assert not any(call.answered for call in waits)
    second(drive).refused(Code.BUSY, f"{WAITS_MAX} calls wait already")
    drive.hang_up(waits[0])
    assert not second(drive).answered
    assert not drive.ask_by_name("guest-shutdown", {}).answered, "it ends the freeze, and needs none"
    drive.die(worker)


def test_syncs_that_wait_for_a_freeze_to_be_over_are_not_without_end(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now, 0, 0))
    drive.undo(keeper, 0, 1)
    drive.report(keeper, messages.Done(2))
    for _ in range(WAITS_MAX):
        drive.hang_up(drive.ask("va.fssync"))
    drive.ask("va.fssync").refused(Code.BUSY, f"{WAITS_MAX} calls wait already")
