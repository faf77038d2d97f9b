"""Two hosts and one guest: a thaw that names a freeze, one that comes by another channel, and what was taken of it."""

from __future__ import annotations

import pytest
from fakes.drive import Asked, Drive, plan_of
from fakes.scenarios import NEWS_LIMIT, ended, keeper_died, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Plan
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

A = events.Peer("unix:/run/a", "pid:1,uid:0")
B = events.Peer("vsock:9000", "cid:2")
ELSEWHERE = ("freeze 1 was ended by another host, cid:2 on vsock:9000, at 2023-11-14T22:13:20Z",)


def frozen(drive: Drive, by: events.Peer, count: int = 2) -> int:
    """Have a host freeze; return the keeper."""
    call = drive.ask("va.fsfreeze", peer=by)
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Progress("plan"), messages.Plan(plan_of(count).dump()))
    drive.sync(worker, count)
    drive.freezes(worker, *range(count))
    drive.frozen(worker, *range(count))
    drive.report(worker, messages.Frozen(count, drive.now, drive.now + 60))
    assert call.value == count
    return worker


def thaw(drive: Drive, by: events.Peer, **options: object) -> Asked:
    return drive.ask("va.fsthaw", options, peer=by)


# -- a thaw that names a freeze


def test_the_one_that_names_the_present_freeze_thaws_it(drive: Drive) -> None:
    keeper = frozen(drive, A)
    call = thaw(drive, B, freeze_id=drive.status().freeze_id)
    drive.thaws(keeper)
    assert call.value == 2


@pytest.mark.parametrize("until", ["spawned", "syncing", "synced", "freezing", "held"])
@pytest.mark.parametrize("named", [1, 7])
def test_one_that_names_another_is_told_so_and_thaws_nothing(drive: Drive, until: str, named: int) -> None:
    """H7."""
    _, keeper = drive.hold()
    drive.ask("va.fsthaw")
    drive.thaws(keeper)
    _, worker = played(drive, until)
    state = drive.state
    words = ("freeze 1 is over", "the last one is freeze 2") if named == 1 else ("freeze 7 is not known",)
    thaw(drive, A, freeze_id=named).refused(Code.FREEZE_BROKEN, *words, "nothing was thawed")
    assert drive.state is state
    assert worker not in drive.killed
    assert (worker, messages.Thaw()) not in drive.told


def test_one_that_names_the_last_is_told_how_that_ended_as_often_as_it_asks(drive: Drive) -> None:
    keeper_died(drive)
    drive.compensates()
    thaw(drive, A)
    drive.wait(10 * NEWS_LIMIT)
    assert thaw(drive, A).value == 0
    thaw(drive, A, freeze_id=1).refused(Code.FREEZE_BROKEN, "freeze 1 was broken")
    keeper = frozen(drive, A)
    good = thaw(drive, A, freeze_id=2)
    drive.thaws(keeper)
    assert good.value == 2
    assert thaw(drive, A, freeze_id=2).value == 0, "asked again, since the reply was lost"


def test_numbers_go_on_after_a_restart(drive: Drive) -> None:
    frozen(drive, A)
    assert drive.of(events.KeepFreeze) == [events.KeepFreeze(1)]
    again = Drive(last_freeze=1)
    again.feed(events.JournalFound(1, Plan((), ()), "freeze 1 was broken: the agent died"))
    thaw(again, A, freeze_id=1).refused(Code.FREEZE_BROKEN, "the agent died")
    frozen(again, A)
    assert again.status().freeze_id == 2
    without = Drive(last_freeze=41)
    frozen(without, A)
    assert without.status().freeze_id == 42


# -- one that comes by another channel


def test_the_freezers_channel_hears_that_another_host_has_ended_its_freeze(drive: Drive) -> None:
    """H7: A freezes, B thaws, B freezes, A thaws."""
    first = frozen(drive, A)
    other = thaw(drive, B)
    drive.thaws(first)
    assert other.value == 2
    second = frozen(drive, B)
    late = thaw(drive, A)
    drive.thaws(second)
    late.refused(Code.FREEZE_BROKEN, *ELSEWHERE)
    assert drive.state is FreezeState.THAWED
    thaw(drive, B).refused(Code.FREEZE_BROKEN, "freeze 2 was ended by another host, pid:1,uid:0 on unix:/run/a")
    drive.wait(NEWS_LIMIT)
    assert thaw(drive, A).value == 0
    assert thaw(drive, B).value == 0


def test_nobody_else_hears_it(drive: Drive) -> None:
    keeper = frozen(drive, A)
    other = thaw(drive, B)
    drive.thaws(keeper)
    assert other.value == 2
    assert thaw(drive, B).value == 0
    assert drive.journal is None
    thaw(drive, A).refused(Code.FREEZE_BROKEN, *ELSEWHERE)


def test_one_that_names_its_freeze_hears_it_too(drive: Drive) -> None:
    keeper = frozen(drive, A)
    thaw(drive, B)
    drive.thaws(keeper)
    frozen(drive, B)
    thaw(drive, A, freeze_id=1).refused(Code.FREEZE_BROKEN, "freeze 1 is over", *ELSEWHERE)
    assert drive.state is FreezeState.FROZEN


def test_a_later_freeze_by_the_same_channel_ends_that_news(drive: Drive) -> None:
    keeper = frozen(drive, A)
    thaw(drive, B)
    drive.thaws(keeper)
    keeper = frozen(drive, A)
    good = thaw(drive, A)
    drive.thaws(keeper)
    assert good.value == 2
    assert thaw(drive, A).value == 0


def test_both_ask_and_the_first_has_ended_it(drive: Drive) -> None:
    keeper = frozen(drive, A)
    other, own = thaw(drive, B), thaw(drive, A)
    drive.thaws(keeper)
    assert other.value == 2
    own.refused(Code.FREEZE_BROKEN, *ELSEWHERE)
    keeper = frozen(drive, A)
    own, other = thaw(drive, A), thaw(drive, B)
    drive.thaws(keeper)
    assert (own.value, other.value) == (2, 2)


def test_a_freezer_that_no_longer_waits_hears_that_another_host_has_cancelled(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze", {"wait": 1}, peer=A)
    drive.wait(1)
    assert call.code is Code.IN_PROGRESS
    assert thaw(drive, B).value == 0
    thaw(drive, A).refused(Code.FREEZE_BROKEN, "freeze 1 was ended by another host, cid:2 on vsock:9000")


# -- the verdict


@pytest.mark.parametrize(("said", "stands"), [("", "good"), ("good", "good"), ("bad", "bad")])
def test_the_verdict_stands_in_the_record(drive: Drive, said: str, stands: str) -> None:
    keeper = frozen(drive, A)
    call = thaw(drive, A, **({"verdict": said} if said else {}))
    drive.thaws(keeper)
    assert call.value == 2
    last = drive.status().last
    assert last is not None
    assert (last.verdict, last.held_continuously) == (stands, True)


def test_one_bad_verdict_is_enough(drive: Drive) -> None:
    keeper = frozen(drive, A)
    thaw(drive, A, verdict="bad")
    thaw(drive, A, verdict="good")
    drive.thaws(keeper)
    last = drive.status().last
    assert last is not None
    assert last.verdict == "bad"


def test_a_broken_freeze_is_bad_whatever_is_said(drive: Drive) -> None:
    keeper_died(drive)
    thaw(drive, A, verdict="good")
    drive.compensates()
    last = drive.status().last
    assert last is not None
    assert last.verdict == "bad"
    ended(drive, "broken")


@pytest.mark.parametrize("options", [{"verdict": "so so"}, {"verdict": 1}, {"freeze_id": "1"}, {"freeze_id": True}])
def test_bad_options_are_refused_and_thaw_nothing(drive: Drive, options: dict[str, object]) -> None:
    frozen(drive, A)
    assert thaw(drive, A, **options).code is Code.PARAMS
    assert drive.state is FreezeState.FROZEN
