"""Promise 9: what is not known to be good is broken. Evidence that died with a worker counts against the freeze."""

from __future__ import annotations

import errno

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import ended, keeper_died, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

NOBODY = "nobody saw that /srv/0 was frozen until it was thawed"
UNCOUNTED = "nobody knows what was written while it was held"


def told_to_thaw(drive: Drive, count: int = 1) -> tuple[Asked, int]:
    """Play a freeze up to the keeper's word that it thaws because the host asked; return that call and the keeper."""
    _, keeper = drive.hold(count)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    return thaw, keeper


def finds_nothing_frozen(drive: Drive, keeper: int) -> None:
    """Let thaw workers find that nothing is frozen, and the keeper be reaped, until THAWED is reached."""
    for _ in range(5):
        for thawer in drive.workers("thaw"):
            drive.compensates(thawer, dict.fromkeys(drive.suspected(thawer), errno.EINVAL))
        if keeper in drive.live:
            drive.die(keeper)
        drive.wait(1)
    assert drive.state is FreezeState.THAWED


def test_a_keeper_that_dies_in_its_fithaw_proves_nothing_of_what_is_then_found_thawed(drive: Drive) -> None:
    """H8: someone else had thawed it, or the keeper's FITHAW did. Nobody knows."""
    thaw, keeper = told_to_thaw(drive)
    drive.report(keeper, messages.Step(0, "thawing"))
    drive.die(keeper)
    drive.compensates(refused={0: errno.EINVAL})
    thaw.refused(Code.FREEZE_BROKEN, NOBODY)
    ended(drive, "broken")


@pytest.mark.parametrize("reaped", ["first", "later"])
def test_one_that_is_killed_in_its_fithaw_proves_nothing_either(drive: Drive, reaped: str) -> None:
    thaw, keeper = told_to_thaw(drive)
    drive.report(keeper, messages.Step(0, "thawing"))
    drive.feed(events.RubbishReported(keeper, "not msgpack"))
    if reaped == "first":
        drive.die(keeper)
    finds_nothing_frozen(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN, "freeze 1 was broken")
    ended(drive, "broken")


def test_what_a_keeper_said_before_it_spoke_rubbish_proves_nothing(drive: Drive) -> None:
    thaw, keeper = told_to_thaw(drive)
    drive.report(keeper, messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.feed(events.RubbishReported(keeper, "not msgpack"))
    finds_nothing_frozen(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN, "freeze 1 was broken")
    ended(drive, "broken")


def test_what_a_thaw_worker_undid_was_frozen_till_then_but_what_was_written_meanwhile_died_with_the_keeper(
    drive: Drive,
) -> None:
    thaw, keeper = told_to_thaw(drive)
    drive.feed(events.RubbishReported(keeper, "not msgpack"))
    drive.compensates()
    drive.feed(events.RubbishReported(keeper, "not msgpack"))
    finds_nothing_frozen(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN, UNCOUNTED, "thawed 1 of 1")
    ended(drive, "broken")


@pytest.mark.parametrize("death", ["killed", "stopped", "rubbish", "exits"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_keeper_that_dies_before_it_says_that_it_thaws_takes_its_counters_with_it(
    drive: Drive, count: int, death: str
) -> None:
    """Each FITHAW finds its file system frozen: that it was so all the time, only the counters could say."""
    _, keeper = drive.hold(count)
    thaw = drive.ask("va.fsthaw")
    if death == "stopped":
        drive.wait(2)
        assert drive.killed == {keeper}
    if death == "rubbish":
        drive.feed(events.RubbishReported(keeper, "not msgpack"))
    if death == "exits":
        drive.exit(keeper)
    if death == "killed":
        drive.die(keeper)
    drive.compensates()
    finds_nothing_frozen(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN, UNCOUNTED, f"thawed {count} of {count}")
    last = drive.status().last
    assert last is not None
    assert (last.held_continuously, last.written_while_frozen, last.verdict) == (False, -1, "bad")
    ended(drive, "broken")


@pytest.mark.parametrize("written", [-1, 0])
def test_a_keeper_that_dies_once_it_has_said_what_its_counters_show_has_left_the_proof(
    drive: Drive, written: int
) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now, written=written))
    drive.die(keeper)
    drive.compensates()
    assert thaw.value == 2
    ended(drive, "thawed")


def test_a_thaw_worker_that_dies_in_its_fithaw_proves_nothing(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    thaw = drive.ask("va.fsthaw")
    drive.die(keeper)
    drive.report(drive.newest, messages.Started(1), messages.Step(0, "thawing"))
    drive.die(drive.newest)
    thaw.refused(Code.FAILED, "not yet thawed: /srv/0")
    finds_nothing_frozen(drive, keeper)
    ended(drive, "broken", tells=["/srv/0"])


def test_a_keeper_that_is_done_without_a_word_of_each_proves_nothing(drive: Drive) -> None:
    thaw, keeper = told_to_thaw(drive, 2)
    drive.undo(keeper, 1)
    drive.report(keeper, messages.Done(2))
    drive.exit(keeper)
    drive.compensates(refused={0: errno.EINVAL})
    thaw.refused(Code.FREEZE_BROKEN, "/srv/0")
    ended(drive, "broken")


@pytest.mark.parametrize(("before", "good"), [(-0.1, True), (0.0, False), (0.1, False)])
def test_a_keeper_that_gave_up_when_the_thaw_was_asked_held_to_the_end_only_if_it_was_later(
    drive: Drive, before: float, good: bool
) -> None:
    """H8: a tie is not known to be good."""
    _, keeper = drive.hold(1)
    drive.wait(10)
    thaw = drive.ask("va.fsthaw")
    asked = drive.now
    drive.wait(1)
    reason = "va.fsfreeze worker 1 got SIGTERM"
    drive.report(keeper, messages.Thawing(reason, asked - before))
    drive.undo(keeper, 0)
    drive.report(keeper, messages.Failed(int(Code.FREEZE_BROKEN), reason))
    drive.exit(keeper)
    if good:
        assert thaw.value == 1
    else:
        thaw.refused(Code.FREEZE_BROKEN, "SIGTERM")
    ended(drive, "thawed" if good else "broken")


def test_why_a_keeper_thaws_counts_although_it_was_killed_before_that_was_read(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(10)
    thaw = drive.ask("va.fsthaw")
    asked = drive.now
    drive.wait(2)
    assert drive.killed == {keeper}, "it did not say that it thaws"
    drive.report(keeper, messages.Thawing("va.fsfreeze worker 1 got SIGTERM", asked - 1))
    drive.undo(keeper, 0)
    finds_nothing_frozen(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN, "SIGTERM")
    ended(drive, "broken")


def test_a_keeper_that_finds_the_hold_broken_is_believed_whatever_its_steps_say(drive: Drive) -> None:
    thaw, keeper = told_to_thaw(drive)
    drive.undo(keeper, 0)
    drive.report(keeper, messages.Failed(int(Code.FREEZE_BROKEN), "48 KiB were written to /dev/vdb1 while frozen"))
    drive.exit(keeper)
    thaw.refused(Code.FREEZE_BROKEN, "48 KiB were written to /dev/vdb1")
    ended(drive, "broken")


@pytest.mark.parametrize("state", ["thawing", "thawed"])
def test_a_keeper_that_thaws_and_does_not_say_why_breaks_the_freeze(drive: Drive, state: str) -> None:
    _, keeper = drive.hold(1)
    drive.report(keeper, messages.Step(0, state))
    assert drive.killed == {keeper}
    assert drive.state is FreezeState.THAWINPROGRESS
    while drive.workers("thaw"):
        drive.compensates()
    drive.die(keeper)
    drive.compensates()
    ended(drive, "broken", tells=["freeze 1 was broken"])


def test_a_freeze_that_failed_needs_no_proof_of_a_hold(drive: Drive) -> None:
    call, worker = played(drive, "freezing", frozen=(0,))
    drive.die(worker)
    drive.compensates(refused={0: errno.EINVAL, 1: errno.EINVAL})
    assert call.code is Code.WORKER_DIED
    ended(drive, "failed")
    keeper_died(drive)
    drive.compensates()
    ended(drive, "broken", tells=["SIGKILL"])


def test_what_was_written_hides_not_who_had_thawed(drive: Drive) -> None:
    """The first cause stays, and what is found after it is said, too: an operator looks for the mount point."""
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now, 0, 1024, "1 KiB were written to /dev/x while frozen"))
    for index, error in ((0, errno.EINVAL), (1, 0)):
        drive.report(keeper, messages.Step(index, "thawing"))
        drive.report(keeper, messages.Step(index, "thawed", error))
    drive.report(keeper, messages.Done(2))
    drive.die(keeper)
    (told,) = thaw.answers
    assert told.code is Code.FREEZE_BROKEN
    assert "1 KiB were written to /dev/x while frozen; someone else had thawed /srv/0; thawed 1 of 2" in told.text
