"""News of a broken freeze: told to every fsthaw, from when it is taken, until a later freeze is held (promise 9)."""

from __future__ import annotations

import errno

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import NEWS_LIMIT, ended, keeper_died, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

BROKEN = "freeze 1 was broken"


def broken(drive: Drive) -> None:
    """Play a freeze that breaks in the hold, up to THAWED."""
    keeper_died(drive)
    drive.compensates()


def thaw(drive: Drive, *, reads: bool = True) -> Asked:
    return drive.ask("va.fsthaw", reads=reads)


def test_each_thaw_is_told_for_a_minute_from_the_first(drive: Drive) -> None:
    broken(drive)
    drive.wait(1000)
    for _ in range(3):
        thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
        drive.wait(NEWS_LIMIT / 3 - 0.1)
    assert drive.journal is not None
    drive.wait(0.4)
    assert drive.journal is None
    assert thaw(drive).value == 0
    ended(drive, "broken")


def test_a_reply_that_was_not_taken_has_told_nothing(drive: Drive) -> None:
    """H6."""
    broken(drive)
    deaf = thaw(drive, reads=False)
    assert deaf.code is Code.FREEZE_BROKEN
    drive.hang_up(deaf)
    drive.wait(10 * NEWS_LIMIT)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    ended(drive, "broken")


def test_a_reply_that_was_left_unread_has_told_nothing(drive: Drive) -> None:
    """H6: the kernel has it, but the host closed its end without reading."""
    broken(drive)
    drive.hang_up(thaw(drive), unread=True)
    drive.wait(10 * NEWS_LIMIT)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    ended(drive, "broken")


@pytest.mark.parametrize("first", ["read", "unread"])
def test_one_who_has_read_it_is_enough(drive: Drive, first: str) -> None:
    broken(drive)
    calls = [thaw(drive), thaw(drive)]
    drive.hang_up(calls[0], unread=first == "unread")
    drive.hang_up(calls[1], unread=first == "read")
    drive.wait(NEWS_LIMIT)
    assert thaw(drive).value == 0
    ended(drive, "broken")


def test_one_that_is_taken_later_counts_from_then(drive: Drive) -> None:
    broken(drive)
    slow = thaw(drive, reads=False)
    drive.wait(5 * NEWS_LIMIT)
    drive.take(slow)
    drive.wait(NEWS_LIMIT - 1)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    drive.wait(1)
    assert thaw(drive).value == 0


def test_a_later_freeze_that_is_held_ends_it(drive: Drive) -> None:
    broken(drive)
    call, worker = played(drive, "synced")
    drive.ask("va.fsthaw")
    drive.die(worker)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    assert call.code is Code.FREEZE_FAILED
    _, keeper = drive.hold()
    good = thaw(drive)
    drive.thaws(keeper)
    assert good.value == 2
    assert thaw(drive).value == 0


def test_a_thaw_that_waits_is_told_and_the_next_too(drive: Drive) -> None:
    keeper_died(drive)
    waits = thaw(drive)
    drive.compensates()
    waits.refused(Code.FREEZE_BROKEN, BROKEN)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    ended(drive, "broken")


def test_a_host_that_does_not_take_how_its_freeze_failed_leaves_it_to_the_next_thaw(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze", reads=False)
    drive.die(drive.newest)
    assert call.code is Code.WORKER_DIED
    assert thaw(drive).value == 0, "it may still read it"
    drive.hang_up(call)
    assert drive.journal is not None
    ended(drive, "failed", tells=["SIGKILL", "nothing was frozen"])


def test_a_host_that_gave_up_just_before_its_freeze_failed_leaves_that_to_its_next_thaw(drive: Drive) -> None:
    """A deadline comes before what the host said; its answer is dropped by the session, which has heard it."""
    call = drive.ask("va.fsfreeze", reads=False)
    drive.die(drive.newest)
    drive.feed(events.GivenUp(call.connection, call.token))
    told = drive.ask("va.fsthaw", connection=call.connection)
    told.refused(Code.FREEZE_BROKEN, "nothing was frozen")


def test_a_thaw_whose_host_gave_up_before_its_turn_leaves_nothing_behind(drive: Drive) -> None:
    """A host may send as many on a port as it likes, and its connection does not end."""
    for _ in range(3):
        drive.ask_unheard("va.fsthaw", {"freeze_id": 9})
    assert not drive.core.freeze.news._on_its_way
    drive.ask("va.fsthaw", {"freeze_id": 9}, reads=False)
    assert len(drive.core.freeze.news._on_its_way) == 1


def test_a_host_that_leaves_unread_how_its_freeze_failed_leaves_it_to_the_next_thaw(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze")
    drive.die(drive.newest)
    assert drive.journal is None
    assert thaw(drive).value == 0
    drive.hang_up(call, unread=True)
    assert drive.journal is not None
    ended(drive, "failed", tells=["SIGKILL", "nothing was frozen"])


def test_a_host_that_has_read_how_its_freeze_failed_is_enough(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze")
    drive.die(drive.newest)
    drive.hang_up(call)
    assert thaw(drive).value == 0
    ended(drive, "failed")


def test_the_journal_of_a_freeze_under_way_is_left_alone(drive: Drive) -> None:
    broken(drive)
    slow = thaw(drive, reads=False)
    _, keeper = played(drive, "freezing")
    plan = drive.journal
    drive.take(slow)
    drive.wait(NEWS_LIMIT / 2.5)
    assert drive.journal == plan
    drive.hang_up(slow, unread=True)
    assert drive.journal == plan
    drive.frozen(keeper, 0, 1)


@pytest.mark.parametrize("until", ["planning", "syncing", "synced"])
@pytest.mark.parametrize("what", ["broken", "failed"])
def test_the_journal_has_what_is_left_unread_while_the_next_freeze_begins(drive: Drive, until: str, what: str) -> None:
    """Found by storm 120088576: it said that this was told, and an agent that died then forgot it."""
    if what == "broken":
        broken(drive)
        call, text = thaw(drive), BROKEN
    else:
        call, text = drive.ask("va.fsfreeze"), "SIGKILL"
        drive.die(drive.newest)
    _, worker = played(drive, until, options={"at": 1.7e9 + 100})
    drive.hang_up(call, unread=True)
    assert drive.journal is not None
    assert text in drive.journal["untold"]
    assert not drive.journal["told_at"]
    assert bool(drive.journal["plan"]["mounts"]) is (until == "synced")
    assert (worker, messages.Proceed()) not in drive.told, "that journal is not the one that the freeze waits for"
    if until == "synced":
        number = drive.core.freeze.current.id
        drive.feed(events.JournalFailed(number, OSError(errno.ENOSPC, "No space left on device")))
        assert drive.status().phase == "ready", "the journal that it needs is there"
        assert drive.ask("va.fsgo").value == 1
        assert drive.told.count((worker, messages.Proceed())) == 1
        assert drive.journal["freeze"] == number


@pytest.mark.parametrize("other", [False, True])
def test_the_plan_stays_in_the_journal_if_news_are_over_while_it_is_written(drive: Drive, other: bool) -> None:
    """It was removed, or replaced by other news, and the worker was told to proceed without it (promise 4)."""
    broken(drive)
    thaw(drive)
    told = drive.now
    if other:
        drive.hang_up(call := drive.ask("va.fsfreeze"))
        drive.die(drive.newest)
        assert not call.answered
    _, worker = played(drive, "syncing")
    drive.wait(told + NEWS_LIMIT - 0.001 - drive.now)
    drive.writing_takes = 0.002
    drive.sync(worker, 2)
    assert drive.told.count((worker, messages.Proceed())) == 1
    assert drive.journal is not None
    assert len(drive.journal["plan"]["mounts"]) == 2
    assert BROKEN not in drive.journal["untold"]
    assert ("SIGKILL" in drive.journal["untold"]) is other
    drive.freezes(worker, 0, 1)
    drive.frozen(worker, 0, 1)
    assert len(drive.journal["plan"]["mounts"]) == 2


def test_no_limit_means_until_the_next_freeze() -> None:
    drive = Drive(news_limit=0)
    broken(drive)
    thaw(drive)
    drive.wait(1e6)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    assert not drive.timers.nearest()


def reconfigure(drive: Drive, text: str) -> None:
    drive.feed(events.Reload())
    (reload,) = drive.workers("reload")
    drive.report(reload, messages.Started(1), messages.Done({"options": text, "writers": {}}))
    drive.exit(reload)


@pytest.mark.parametrize(("before", "after"), [(60, 0), (60, 600), (600, 60), (0, 60), (600, 5)])
def test_another_limit_holds_from_when_it_is_read(before: float, after: float) -> None:
    drive = Drive(news_limit=before)
    broken(drive)
    thaw(drive)
    drive.wait(20)
    reconfigure(drive, f"news-limit {after}\n")
    left = after - 20 if after else 1e6
    if left > 0:
        drive.wait(left - 0.1)
        assert drive.journal is not None
    if after:
        drive.wait(0.2)
        assert drive.journal is None
        assert thaw(drive).value == 0
    else:
        thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)


def test_it_goes_on_after_a_restart(drive: Drive) -> None:
    broken(drive)
    thaw(drive)
    told = drive.journal
    assert told is not None
    again = Drive()
    again.now = drive.now + 40
    again.feed(events.JournalFound(1, Plan((), ()), told["untold"], told_at=told["told_at"]))
    thaw(again).refused(Code.FREEZE_BROKEN, BROKEN)
    again.wait(19)
    thaw(again).refused(Code.FREEZE_BROKEN, BROKEN)
    again.wait(1)
    assert thaw(again).value == 0
    assert again.journal is None


def test_news_without_end_is_bounded(drive: Drive) -> None:
    for _ in range(40):
        call = drive.ask("va.fsfreeze")
        drive.hang_up(call)
        drive.die(drive.newest)
    assert len(drive.core._freeze.news._items) <= 16
    assert len(thaw(drive).fault.text) < 4000
    assert drive.logged("nobody was told")


@pytest.mark.parametrize("told", ["told", "untold"])
@pytest.mark.parametrize("reads", ["read", "unread"])
def test_failed_tries_do_not_wear_out_the_news_of_a_broken_freeze(drive: Drive, reads: str, told: str) -> None:
    """Each of these hosts is answered how its own freeze failed: that is news for nobody else."""
    broken(drive)
    if told == "told":
        thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    for _ in range(40):
        call = drive.ask("va.fsfreeze", connection=77, reads=reads == "read")
        drive.die(drive.newest)
        assert call.code is Code.WORKER_DIED
    assert drive.journal is not None
    assert BROKEN in drive.journal["untold"]
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    assert not drive.logged("nobody was told: ")
    if reads == "read":
        ended(drive, "failed", tells=[BROKEN])


def test_what_was_told_is_forgotten_before_what_was_not(drive: Drive) -> None:
    broken(drive)
    thaw(drive).refused(Code.FREEZE_BROKEN, BROKEN)
    for _ in range(16):
        call = drive.ask("va.fsfreeze")
        drive.hang_up(call)
        drive.die(drive.newest)
    assert not drive.logged("nobody was told")
    assert BROKEN not in thaw(drive).fault.text


def test_what_its_host_has_yet_to_take_outlasts_what_was_taken(drive: Drive) -> None:
    for reads in (False, *[True] * 16):
        call = drive.ask("va.fsfreeze", reads=reads)
        drive.report(drive.newest, messages.Started(1), messages.Failed(12, "no"))
        drive.exit(drive.newest)
        if not reads:
            first = call
    drive.hang_up(first)
    thaw(drive).refused(Code.FREEZE_BROKEN, "no; nothing was frozen")
