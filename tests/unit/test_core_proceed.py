"""A freeze that ends before its worker may freeze (ADR 0024): nothing is frozen, and whatever its disk does, no later
freeze has to wait for it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fakes.drive import Drive, plan_of
from fakes.scenarios import ended, played
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

BEFORE = ("spawned", "planning", "planned", "syncing")
PROCEED = messages.Proceed()


def hang(drive: Drive, count: int = 2, **options: object) -> int:
    """Play a freeze whose sync of /srv/0 hangs until a host cancels it; return its worker, which does not end."""
    _, worker = played(drive, "syncing", count, options=options or None)
    drive.report(worker, messages.Step(0, "syncing"))
    assert drive.ask("va.fsthaw").value == 0
    return worker


@pytest.mark.parametrize("until", BEFORE)
def test_a_thaw_cancels_at_once(drive: Drive, until: str) -> None:
    call, worker = played(drive, until)
    thaw = drive.ask("va.fsthaw")
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWED
    call.refused(Code.FREEZE_FAILED, "the freeze was cancelled: va.fsthaw; nothing was frozen")
    assert thaw.value == 0
    assert drive.journal is None
    assert not drive.workers("thaw")
    drive.die(worker)
    ended(drive, "cancelled")


@pytest.mark.parametrize("until", BEFORE)
def test_the_agent_stops_at_once(drive: Drive, until: str) -> None:
    call, _ = played(drive, until)
    drive.feed(events.Stopped("SIGTERM"))
    assert len(drive.of(events.Quit)) == 1
    call.refused(Code.FREEZE_FAILED, "SIGTERM", "nothing was frozen")


@pytest.mark.parametrize("until", BEFORE)
def test_a_shutdown_begins_at_once(drive: Drive, until: str) -> None:
    played(drive, until)
    drive.ask("va.shutdown", "halt")
    assert drive.workers("va.shutdown")


@pytest.mark.parametrize("until", BEFORE)
def test_a_worker_that_dies_has_frozen_nothing(drive: Drive, until: str) -> None:
    call, worker = played(drive, until)
    drive.die(worker)
    call.refused(Code.WORKER_DIED, "SIGKILL", "nothing was frozen")
    assert not drive.workers("thaw")
    ended(drive, "failed")


@pytest.mark.parametrize("until", ["planned", "syncing"])
def test_a_worker_that_fails_or_gives_up_is_not_waited_for(drive: Drive, until: str) -> None:
    call, worker = played(drive, until)
    drive.report(worker, messages.Thawing("/srv/1: syncfs: Input/output error", drive.now))
    call.refused(Code.FREEZE_FAILED, "/srv/1: syncfs: Input/output error; nothing was frozen")
    assert drive.state is FreezeState.THAWED
    drive.die(worker)
    ended(drive, "failed")
    call, worker = played(drive, until)
    drive.report(worker, messages.Failed(int(Code.FREEZE_FAILED), "strict: no; nothing was frozen"))
    assert call.fault.text == "strict: no; nothing was frozen"
    drive.exit(worker)
    ended(drive, "failed")


def test_one_that_cannot_be_forked_has_frozen_nothing(drive: Drive) -> None:
    drive.fork_error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    call = drive.ask("va.fsfreeze")
    call.refused(Code.WORKER_DIED, "could not be forked", "nothing was frozen")
    drive.fork_error = None
    ended(drive, "failed")


def test_the_sync_limit_says_where_and_that_nothing_was_frozen(drive: Drive) -> None:
    call, worker = played(drive, "syncing")
    drive.report(worker, messages.Step(0, "syncing"))
    drive.wait(600)
    call.refused(Code.OVERRUN, "the sync limit of 600 s passed while syncing /srv/0; nothing was frozen")
    last = drive.status().last
    assert last is not None
    assert (last.outcome, last.stall_seconds) == ("overran", 0)
    assert drive.state is FreezeState.THAWED
    drive.die(worker)
    ended(drive, "overran")


def test_a_host_that_is_gone_is_told_by_the_next_thaw(drive: Drive) -> None:
    call, worker = played(drive, "syncing")
    drive.hang_up(call)
    drive.wait(600)
    drive.die(worker)
    ended(drive, "overran", tells=["the sync limit of 600 s passed", "nothing was frozen"])


def test_the_journal_is_written_at_the_end_of_the_sync_and_not_left_behind(drive: Drive) -> None:
    _, first = played(drive, "syncing", 2)
    assert drive.journal is None
    drive.ask("va.fsthaw")
    _, second = played(drive, "synced", 1)
    assert drive.journal is not None
    assert (drive.journal["freeze"], drive.journal["plan"]) == (2, plan_of(1).dump())
    assert drive.told == [(second, PROCEED)]
    drive.report(first, messages.Step(0, "synced"), messages.Synced())
    drive.die(first)
    assert drive.journal["freeze"] == 2
    assert drive.told == [(second, PROCEED)]


def test_a_journal_that_is_written_too_late_lets_nobody_proceed(drive: Drive) -> None:
    _, worker = played(drive, "syncing")
    drive.ask("va.fsthaw")
    drive.feed(events.Journaled(1))
    played(drive, "syncing")
    drive.feed(events.Journaled(1))
    assert not drive.told
    assert worker in drive.killed


def test_one_that_asks_before_its_plan_or_twice_speaks_rubbish(drive: Drive) -> None:
    _, worker = played(drive, "planning")
    drive.report(worker, messages.Synced())
    assert drive.killed == {worker}
    drive.die(worker)
    ended(drive)
    _, worker = played(drive, "synced")
    drive.report(worker, messages.Synced())
    assert worker in drive.killed


@pytest.mark.parametrize("state", ["freezing", "frozen"])
def test_one_that_says_that_it_freezes_unasked_is_not_believed_to_have_frozen_nothing(drive: Drive, state: str) -> None:
    _, worker = played(drive, "syncing")
    drive.report(worker, messages.Step(0, state))
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWINPROGRESS
    assert drive.suspected(drive.newest) == {0, 1}
    drive.compensates()
    drive.die(worker)
    drive.compensates()
    ended(drive, "failed")


LATE: dict[str, Callable[[Drive], messages.Report]] = {
    "Plan": lambda d: messages.Plan(plan_of(1).dump()),
    "Step": lambda d: messages.Step(0, "synced"),
    "freezing": lambda d: messages.Step(0, "freezing"),
    "thawed": lambda d: messages.Step(0, "thawed", errno.EINVAL),
    "Progress": lambda d: messages.Progress("freeze"),
    "Synced": lambda d: messages.Synced(),
    "Frozen": lambda d: messages.Frozen(2, d.now, d.now + 60),
    "Held": lambda d: messages.Held(d.now + 60),
    "Thawing": lambda d: messages.Thawing("it gave up", d.now),
    "Done": lambda d: messages.Done(2),
    "Failed": lambda d: messages.Failed(int(Code.FREEZE_FAILED), "it failed"),
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("moment", ["thawed", "syncing", "synced", "frozen", "held"])
def test_what_is_left_of_it_harms_no_later_freeze(drive: Drive, moment: str, name: str) -> None:
    old = hang(drive)
    drive.wait(10)
    assert drive.logged(f"worker {old} va.fsfreeze is stuck in the kernel while syncing /srv/0")
    call, keeper = None, 0
    if moment != "thawed":
        call, keeper = played(drive, moment)
    before = (drive.state, drive.status().mounts, drive.status().last)
    drive.report(old, LATE[name](drive))
    drive.feed(events.ReportEnded(old))
    drive.die(old)
    assert (drive.state, drive.status().mounts, drive.status().last) == before
    assert not drive.workers("thaw")
    if call is not None:
        assert keeper not in drive.killed
        assert call.answered == (moment == "held")
        thaw = drive.ask("va.fsthaw")
        if moment == "held":
            drive.thaws(keeper)
            assert thaw.value == 2


def test_what_is_left_of_it_is_listed_and_named(drive: Drive) -> None:
    old = hang(drive)
    drive.wait(10)
    (found,) = drive.status().workers
    assert (found.id, found.rpc, found.phase) == (old, "va.fsfreeze", "sync")
    assert drive.of(events.SetTitle)[-1].text == f"thawed; worker {old} va.fsfreeze is stuck while syncing /srv/0"
    drive.die(old)
    assert drive.of(events.SetTitle)[-1].text == "thawed"


def test_eight_of_them_are_enough(drive: Drive) -> None:
    old = [hang(drive) for _ in range(8)]
    drive.wait(10)
    drive.ask("va.fsfreeze").refused(Code.BUSY, "8 workers", "hang", "while syncing /srv/0")
    assert drive.ask("va.fsplan").answers == []
    drive.die(old[3])
    _, keeper = drive.hold()
    assert keeper not in old


def test_they_take_nobody_elses_place(drive: Drive) -> None:
    for _ in range(8):
        hang(drive)
    running = [drive.ask("va.fsplan") for _ in range(8)]
    assert not any(call.answered for call in running)
    assert drive.ask("va.fsplan").code is Code.BUSY


def test_others_that_hang_do_not_keep_a_freeze_out(drive: Drive) -> None:
    for _ in range(8):
        drive.ask("va.fssync", {"sync_limit": 5})
        drive.report(drive.newest, messages.Started(1), messages.Progress("sync"))
        drive.wait(7)
    assert len(drive.killed) == 8
    drive.ask("va.fssync").refused(Code.BUSY, "8 workers were killed and still hang in the kernel", "va.fssync")
    call, _ = drive.hold()
    assert call.value == 2
