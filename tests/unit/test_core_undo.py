"""The way back to THAWED: stuck workers, thaws that fail, back-off, and no piling up."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from fakes.drive import Drive, plan_of
from fakes.scenarios import attempts, ended, keeper_died, played, seconds_to_the_next, settled
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Plan
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

# -- stuck


def test_a_freeze_worker_that_is_stuck_makes_an_error_that_names_the_mount(drive: Drive) -> None:
    call, worker = played(drive, "freezing", 2, frozen=(0,))
    drive.wait(30)
    thawer = drive.newest
    drive.report(thawer, messages.Started(1))
    drive.undo(thawer, 0)
    drive.report(thawer, messages.Step(1, "thawing"))
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.wait(1)
    assert drive.state is FreezeState.ERROR
    assert "/srv/1" in drive.status().error
    assert f"worker {worker}" in drive.status().error
    assert any(f"worker {worker}" in line and "while freezing /srv/1" in line for line in drive.logged("stuck"))
    assert "thawing /srv/1" not in drive.status().error, "that is what the thaw worker does"
    title = drive.of(events.SetTitle)[-1].text
    assert "/srv/1" in title
    assert call.code is Code.OVERRUN, "the host learns at once, not when the disk recovers"
    assert "/srv/1" in call.fault.text

    drive.wait(100)
    assert drive.state is FreezeState.ERROR
    assert attempts(drive) == 1, "the mount of the stuck thaw worker is not tried again"
    assert thawer in drive.killed
    assert not drive.due, "nothing to do until the disk recovers, so no ticking"

    # The disk recovers: the freeze takes effect, the queued thaw after it, both die.
    before = drive.newest
    drive.die(worker)
    drive.die(thawer)
    assert drive.state in (FreezeState.ERROR, FreezeState.THAWINPROGRESS)
    drive.wait(1)
    fresh = drive.workers("thaw")
    assert set().union(*map(drive.suspected, fresh)) == {0, 1}
    assert min(fresh) > before, "what was forked before the death proves nothing"
    for again in fresh:
        drive.compensates(again)
    assert drive.state is FreezeState.THAWED
    assert drive.ask("va.fsthaw").value == 0, "the caller was told already"
    ended(drive)


def test_the_others_are_thawed_while_one_is_stuck(drive: Drive) -> None:
    played(drive, "freezing", 3, frozen=(0, 2))
    drive.wait(30)
    assert drive.suspected(drive.newest) == {0, 1, 2}
    states = [m.state for m in drive.status().mounts]
    assert states == ["frozen", "freezing", "frozen"]


def test_thaw_while_a_worker_is_stuck_says_so_at_once(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 1)
    drive.wait(31)
    assert drive.state is FreezeState.ERROR
    thaw = drive.ask("va.fsthaw")
    thaw.refused(Code.FAILED, "/srv/0", "stuck")
    assert drive.state is FreezeState.ERROR
    drive.compensates()
    drive.die(worker)
    drive.compensates()
    ended(drive)


def test_a_stuck_thaw_worker_is_waited_for_and_then_tried_again(drive: Drive) -> None:
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), messages.Step(0, "thawing"))
    drive.wait(10)
    assert thawer in drive.killed
    drive.wait(1)
    assert drive.state is FreezeState.ERROR
    assert "/srv/0" in drive.status().error
    drive.wait(1000)
    assert attempts(drive) == 1
    assert not drive.due
    drive.die(thawer)
    drive.wait(1)
    assert attempts(drive) == 2
    drive.compensates()
    ended(drive, "broken", tells=())


def test_a_mount_is_tried_again_though_another_is_stuck(drive: Drive) -> None:
    thawer = keeper_died(drive, 2)
    drive.report(thawer, messages.Started(1))
    drive.undo(thawer, 0, refused=errno.EIO)
    drive.report(thawer, messages.Step(1, "thawing"))
    drive.wait(11)
    assert drive.state is FreezeState.ERROR
    drive.wait(60)
    others = [drive.suspected(w) for w in drive.spawned if drive.spawned[w].rpc == "thaw" and w != thawer]
    assert others, "mount 0 is not in flight any more and may be tried"
    assert all(mounts == {0} for mounts in others), "mount 1 is in flight"


def test_nothing_to_thaw_is_no_proof_while_a_killed_worker_may_still_freeze(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 1)
    drive.wait(30)
    drive.compensates(refused={0: errno.EINVAL})  # its FIFREEZE waits for writers; it completes a moment later
    drive.wait(0.9)
    assert attempts(drive) > 1, "tried again before the worker is dead"
    assert drive.suspected(drive.newest) == {0}
    count = attempts(drive)
    drive.compensates()
    drive.wait(1)
    assert attempts(drive) > count, "this one undid a freeze, perhaps somebody else's, and the worker's own comes later"
    drive.compensates()
    drive.die(worker)
    drive.compensates()
    ended(drive)


# -- refused


def test_a_refused_thaw_is_an_error_and_is_tried_again_with_back_off(drive: Drive) -> None:
    keeper_died(drive, 1)
    waits = []
    for _ in range(14):
        before = drive.now
        drive.refuses()
        assert drive.state is FreezeState.ERROR
        assert "/srv/0" in drive.status().error
        count = attempts(drive)
        while attempts(drive) == count:
            due = drive.timers.nearest()
            assert due is not None
            drive.wait(due - drive.now)
        assert attempts(drive) == count + 1
        assert drive.state is FreezeState.THAWINPROGRESS
        waits.append(drive.now - before)
    assert 0 < waits[0] <= 0.25
    assert waits[-1] == pytest.approx(30)
    assert waits[1:] == pytest.approx([min(2 * wait, 30) for wait in waits[:-1]])
    drive.compensates()
    ended(drive, "broken", tells=())


def test_the_back_off_begins_anew_with_the_next_freeze(drive: Drive) -> None:
    firsts = []
    for _ in range(2):
        keeper_died(drive, 1)
        drive.refuses()
        due = drive.timers.nearest()
        assert due is not None
        firsts.append(due - drive.now)
        for _ in range(5):
            drive.wait(30)
            drive.refuses()
        drive.wait(30)
        drive.compensates()
        assert drive.ask("va.fsthaw").code is Code.FREEZE_BROKEN
    assert firsts[0] == pytest.approx(firsts[1])


def test_what_a_stuck_keeper_could_not_thaw_is_thawed_while_it_hangs_on_another(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    drive.in_kernel.add(keeper)
    drive.wait(11)
    assert drive.state is FreezeState.ERROR
    thaw.refused(Code.FAILED, "/srv/0", "/srv/1")
    drive.report(keeper, messages.Step(1, "failed", errno.EIO, "FITHAW: Input/output error (EIO)"))
    assert drive.suspected(drive.newest) == {1}, "the other may lie on it, and hang until it is thawed"
    drive.compensates()
    drive.undo(keeper, 0)
    drive.die(keeper)
    settled(drive, keeper)
    ended(drive, "thawed")


def test_what_a_stuck_thaw_worker_found_not_frozen_is_tried_again_while_it_hangs(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 2)
    thaw = drive.ask("va.fsthaw")
    thawer = drive.newest
    drive.in_kernel |= {worker, thawer}
    drive.wait(11)
    thaw.refused(Code.FAILED, "/srv/0", "/srv/1")
    drive.report(thawer, messages.Started(1))
    drive.undo(thawer, 0, refused=errno.EINVAL)
    assert drive.newest > thawer, "the freeze worker may have frozen it since, and hangs on the other"
    assert drive.suspected(drive.newest) == {0}
    drive.compensates()
    drive.in_kernel.clear()
    drive.undo(thawer, 1)
    drive.report(thawer, messages.Done(2))
    drive.exit(thawer)
    settled(drive, worker)
    ended(drive, "cancelled")


def test_a_thaw_worker_that_was_not_heard_yet_is_left_alone_in_the_kernel(drive: Drive) -> None:
    """Killed, it would not thaw the others that it was forked for, and they would wait for its disk, too."""
    thawer = keeper_died(drive, 2)
    drive.in_kernel.add(thawer)
    drive.wait(11)
    assert thawer not in drive.killed
    assert drive.state is FreezeState.ERROR
    drive.compensates(thawer)
    ended(drive, "broken", tells=["SIGKILL"])


@pytest.mark.parametrize("who", ["keeper", "thaw worker"])
def test_what_a_worker_was_to_thaw_when_somebody_killed_it_does_not_wait_for_what_it_hangs_on(
    drive: Drive, who: str
) -> None:
    """It may hang because of the others: what lies on what is not always known (ADR 0030)."""
    _, keeper = drive.hold(2)
    drive.ask("va.fsthaw")
    victim = keeper
    if who == "keeper":
        drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    else:
        drive.die(keeper)
        victim = drive.newest
    drive.in_kernel.add(victim)
    drive.dying.add(victim)
    drive.wait(12)
    assert drive.newest > victim
    assert drive.suspected(drive.newest) == {0, 1}
    drive.compensates()
    drive.die(victim)
    settled(drive, victim)
    if who == "keeper":
        ended(drive, "thawed")
    else:  # what the keeper would have counted died with it
        ended(drive, "broken", tells=["that died with the keeper"])


@pytest.mark.parametrize("said", ["before", "after"])
@pytest.mark.parametrize("why", ["limit", "rubbish"])
def test_what_a_worker_said_it_thaws_when_it_was_killed_is_thawed_by_another(drive: Drive, said: str, why: str) -> None:
    """The killed one may hang in FIFREEZE of 0 because 1 is frozen, and nothing of it is left that would thaw 1."""
    _, worker = played(drive, "synced", 2)

    def thaws() -> None:
        drive.freezes(worker, 0, 1)
        drive.frozen(worker, 1)
        drive.report(worker, messages.Thawing("it got SIGTERM", drive.now, 7), messages.Step(1, "thawing"))

    if said == "before":
        thaws()
    if why == "rubbish":
        drive.feed(events.RubbishReported(worker, "not msgpack"))
    while worker not in drive.killed:
        drive.wait(0.25)
    if said == "after":
        thaws()
    drive.wait(5)
    assert set().union(*map(drive.suspected, drive.workers("thaw"))) == {0, 1}


def test_what_a_thaw_worker_had_when_it_spoke_rubbish_is_thawed_by_another(drive: Drive) -> None:
    """It may hang in FITHAW of 0 because 1 is frozen, and nothing of it is left that would thaw 1."""
    _, keeper = drive.hold(2)
    drive.die(keeper)
    first = drive.newest
    drive.report(first, messages.Started(1), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    drive.feed(events.RubbishReported(first, "not msgpack"))
    drive.wait(1)
    assert drive.newest > first
    assert drive.suspected(drive.newest) == {0, 1}


@pytest.mark.parametrize("who", ["keeper", "thaw worker"])
def test_what_a_stuck_worker_had_when_it_spoke_rubbish_is_thawed_by_another(drive: Drive, who: str) -> None:
    """Nobody learns any more which of its attempts failed, and what hangs may wait for the one that did."""
    _, keeper = drive.hold(2)
    drive.ask("va.fsthaw")
    if who == "keeper":
        stuck = keeper
        drive.report(keeper, messages.Thawing("", drive.now))
    else:
        drive.die(keeper)
        stuck = drive.newest
        drive.report(stuck, messages.Started(1))
    drive.report(stuck, messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    drive.in_kernel.add(stuck)
    drive.wait(12)
    assert drive.state is FreezeState.ERROR
    assert drive.newest == stuck, "it thaws by itself what it can"
    for _ in range(3):
        drive.feed(events.RubbishReported(stuck, "not msgpack"))
        drive.wait(60)
    assert stuck not in drive.killed, "SIGKILL inside FITHAW does harm (ADR 0015)"
    assert [drive.suspected(worker) for worker in drive.workers("thaw") if worker != stuck] == [{0, 1}], "no more"
    drive.compensates()
    drive.die(stuck)
    settled(drive, stuck)


def test_what_a_thaw_worker_found_before_the_freeze_worker_had_ended_proves_nothing(drive: Drive) -> None:
    """Its EINVAL is read after the freeze worker was reaped, and may be from before that one's FIFREEZE took effect."""
    _, worker = played(drive, "freezing", 1)
    drive.report(worker, messages.Thawing("it got SIGTERM", drive.now, 7))
    drive.in_kernel.add(worker)
    drive.wait(11)
    thawer = drive.newest
    assert drive.suspected(thawer) == {0}
    drive.report(thawer, messages.Started(1), messages.Step(0, "thawing"))
    drive.frozen(worker, 0)
    drive.undo(worker, 0, refused=errno.EIO)
    drive.report(worker, messages.Failed(12, "/srv/0: FITHAW: Input/output error (EIO)"))
    drive.exit(worker)
    drive.report(thawer, messages.Step(0, "thawed", errno.EINVAL), messages.Done(1))
    drive.exit(thawer)
    assert drive.state is not FreezeState.THAWED
    drive.wait(0.1)
    assert drive.suspected(drive.newest) == {0}
    assert drive.newest > thawer
    drive.compensates()
    ended(drive, "failed")


@pytest.mark.parametrize("stands", ["frozen", "thawing"])
def test_what_lies_on_one_that_could_not_be_thawed_does_not_wait_for_a_stuck_disk(drive: Drive, stands: str) -> None:
    """The thaw worker tries it no more, and does not end while its other FITHAW hangs (promise 10)."""
    inner, middle, outer = plan_of(3).mounts
    mounts = replace(inner, hosts=(2,)), middle, replace(outer, level=1)
    call = drive.ask("va.fsfreeze")
    keeper = drive.newest
    drive.report(keeper, messages.Started(1), messages.Progress("plan"), messages.Plan(Plan(mounts, ()).dump()))
    drive.sync(keeper, 3)
    drive.freezes(keeper, 0, 1, 2)
    drive.frozen(keeper, 0, 1, 2)
    drive.report(keeper, messages.Frozen(3, drive.now, drive.now + 60))
    assert call.value == 3
    if stands == "thawing":  # the keeper had begun with it
        drive.ask("va.fsthaw")
        drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"))
    drive.die(keeper)
    thawer = drive.newest
    drive.report(thawer, messages.Started(1), messages.Step(1, "thawing"), messages.Step(2, "thawing"))
    drive.report(thawer, messages.Step(2, "failed", errno.EIO, "FITHAW: Input/output error (EIO)"))
    drive.in_kernel.add(thawer)
    drive.wait(12)
    assert drive.suspected(drive.newest) == {0, 2}
    assert drive.newest > thawer
    drive.compensates()
    drive.wait(60)
    assert attempts(drive) == 2, "mount 1 is in flight"
    drive.undo(thawer, 1)
    drive.report(thawer, messages.Failed(12, "/srv/2: FITHAW: Input/output error (EIO)"))
    drive.exit(thawer)
    settled(drive, thawer)


def test_only_what_is_not_proved_thawed_is_tried_again(drive: Drive) -> None:
    drive.compensates(keeper_died(drive, 3), {1: errno.EIO})
    drive.wait(1)
    assert drive.suspected(drive.newest) == {1}


def test_thaw_in_error_tries_at_once(drive: Drive) -> None:
    keeper_died(drive, 1)
    for _ in range(10):
        drive.refuses()
        drive.wait(seconds_to_the_next(drive))
    drive.refuses()
    count = attempts(drive)
    thaw = drive.ask("va.fsthaw")
    assert attempts(drive) == count + 1
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.compensates()
    assert thaw.code is Code.FREEZE_BROKEN
    ended(drive)


def test_thaw_in_error_that_fails_again_says_which_mount_and_the_break_is_still_told(drive: Drive) -> None:
    keeper_died(drive, 1)
    drive.refuses()
    first = drive.ask("va.fsthaw")
    drive.refuses()
    first.refused(Code.FAILED, "/srv/0")
    second = drive.ask("va.fsthaw")
    drive.compensates()
    assert second.code is Code.FREEZE_BROKEN
    ended(drive, "broken")


def test_many_callers_in_error_pile_up_nothing(drive: Drive) -> None:
    keeper_died(drive, 1)
    drive.refuses()
    calls = [drive.ask("va.fsthaw") for _ in range(20)]
    assert len(drive.workers("thaw")) == 1
    drive.compensates()
    assert all(c.answered for c in calls)
    ended(drive)


def test_a_keeper_that_could_not_thaw_is_followed_up(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 0)
    drive.undo(keeper, 1, refused=errno.EIO)
    drive.report(keeper, messages.Failed(Code.FAILED, "/srv/1: FITHAW: EIO"))
    assert not drive.workers("thaw"), "at most one attempt in flight: the keeper still holds it"
    drive.exit(keeper)
    assert drive.suspected(drive.newest) == {1}
    drive.compensates()
    assert thaw.value == 2
    ended(drive)


def test_fork_fails_for_the_thaw_worker(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.fork_error = OSError(errno.ENOMEM, "Cannot allocate memory")
    drive.die(keeper)
    assert drive.state is FreezeState.ERROR
    assert "Cannot allocate memory" in drive.status().error
    drive.wait(5)
    assert 2 <= attempts(drive) <= 10
    drive.fork_error = None
    drive.wait(30)
    assert drive.live == {drive.newest}
    drive.compensates()
    ended(drive, "broken", tells=())


def test_a_thaw_worker_dies(drive: Drive) -> None:
    thawer = keeper_died(drive, 2)
    drive.report(thawer, messages.Started(1))
    drive.undo(thawer, 0)
    drive.die(thawer)
    drive.wait(1)
    assert drive.suspected(drive.newest) == {1}
    drive.compensates()
    ended(drive, "broken", tells=())


@pytest.mark.parametrize(
    "message",
    [
        messages.Progress("thaw"),
        messages.Plan({}),
        messages.Frozen(1, 0, 0),
        messages.Held(1),
        messages.Thawing("", 1),
        messages.Step(9, "thawed"),
        messages.Step(0, "molten"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_thaw_worker_talks_rubbish(drive: Drive, message: messages.Report) -> None:
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), message)
    assert drive.killed == {thawer}
    assert drive.state is not FreezeState.THAWED
    drive.die(thawer)
    drive.wait(1)
    assert drive.newest != thawer
    drive.compensates()
    ended(drive, "broken", tells=())


def test_a_thaw_worker_that_proves_nothing_is_not_believed(drive: Drive) -> None:
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), messages.Done(1))
    drive.exit(thawer)
    assert drive.state is not FreezeState.THAWED


def test_a_thaw_worker_that_proves_nothing_is_followed_with_back_off(drive: Drive) -> None:
    thawer = keeper_died(drive, 1)
    for _ in range(5):
        thawer = drive.newest
        if thawer in drive.live:
            drive.report(thawer, messages.Started(1), messages.Done(1))
            drive.exit(thawer)
    assert attempts(drive) < 5


def test_the_thaw_limit_bounds_an_attempt() -> None:
    drive = Drive(thaw_limit=3)
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), messages.Step(0, "thawing"))
    drive.wait(2.9)
    assert not drive.killed
    drive.wait(0.1)
    assert drive.killed == {thawer}


@pytest.mark.parametrize("state", ["THAWINPROGRESS", "ERROR"])
def test_a_freeze_worker_that_was_killed_is_waited_for_even_if_nothing_was_touched(drive: Drive, state: str) -> None:
    call, worker = played(drive, "synced", 2)
    drive.wait(30)
    assert drive.killed == {worker}
    if state == "ERROR":
        drive.wait(1)
    assert drive.state is FreezeState[state]
    assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE
    drive.die(worker)
    assert call.code is Code.OVERRUN
    ended(drive, "overran")


def test_the_end_of_a_report_pipe_is_not_an_exit(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.feed(events.ReportEnded(keeper))
    assert drive.state is FreezeState.FROZEN
    drive.die(keeper)
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.feed(events.ReportEnded(drive.newest))
    drive.exit(drive.newest)
    assert drive.state is not FreezeState.THAWED, "it died without a word"


def test_seq_and_records_follow_each_change(drive: Drive) -> None:
    seen = [drive.status().seq]
    _, keeper = drive.begin(1)
    seen.append(drive.status().seq)
    drive.sync(keeper, 1)
    seen.append(drive.status().seq)
    drive.freezes(keeper, 0)
    seen.append(drive.status().seq)
    drive.die(keeper)
    seen.append(drive.status().seq)
    drive.compensates()
    seen.append(drive.status().seq)
    assert seen == sorted(set(seen)), "every change makes a newer record"


def test_events_at_the_very_end_of_all_limits_leave_no_deadline(drive: Drive) -> None:
    for count in range(3):
        _, keeper = drive.hold(1)
        if count == 1:
            drive.ask("va.fsthaw", {"wait": 500})
        drive.die(keeper)
        drive.compensates()
        drive.ask("va.fsthaw")
    assert not drive.due


# -- a worker that is in the kernel when its limit passes is left alone


@pytest.mark.parametrize("who", ["keeper", "thaw worker"])
def test_a_worker_in_the_kernel_is_not_killed_but_named_and_waited_for(drive: Drive, who: str) -> None:
    if who == "keeper":
        _, worker = drive.hold(2)
        thaw = drive.ask("va.fsthaw")
        drive.report(worker, messages.Thawing("", drive.now))
    else:
        worker = keeper_died(drive, 2)
        thaw = drive.ask("va.fsthaw")
        drive.report(worker, messages.Started(1))
    drive.undo(worker, 0)
    drive.report(worker, messages.Step(1, "thawing"))
    drive.in_kernel.add(worker)
    drive.wait(11)
    assert not drive.killed
    assert drive.state is FreezeState.ERROR
    assert "/srv/1" in drive.status().error
    assert thaw.code is Code.FAILED
    assert not [w for w in drive.workers("thaw") if w != worker and 1 in drive.suspected(w)], "one attempt a mount"
    drive.undo(worker, 1)
    drive.report(worker, messages.Done(2))
    drive.exit(worker)
    settled(drive, worker)


@pytest.mark.parametrize("done", [True, False])
def test_a_worker_that_left_the_kernel_and_does_not_end_is_killed(drive: Drive, done: bool) -> None:
    thawer = keeper_died(drive, 1)
    drive.report(thawer, messages.Started(1), messages.Step(0, "thawing"))
    drive.in_kernel.add(thawer)
    drive.wait(11)
    drive.in_kernel.discard(thawer)
    if done:
        drive.undo(thawer, 0)
        drive.report(thawer, messages.Done(1))
    drive.wait(3600)
    assert thawer in drive.killed


# What comes in the very turn in which a limit passes; the loop was late, or the machine was paused for its snapshot.
@pytest.mark.parametrize("event", ["exit", "done", "rubbish"])
@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("who", ["keeper", "thaw worker"])
def test_the_thaw_limit_passes_in_the_turn_of_another_event(
    drive: Drive, who: str, in_kernel: bool, event: str
) -> None:
    if event == "rubbish" and not in_kernel:
        event = "done"
    if who == "keeper":
        _, worker = drive.hold(1)
        drive.ask("va.fsthaw")
        drive.report(worker, messages.Thawing("", drive.now))
    else:
        worker = keeper_died(drive, 1)
        drive.report(worker, messages.Started(1))
    drive.undo(worker, 0)
    if in_kernel:
        drive.in_kernel.add(worker)
    drive.now += 11
    if event == "exit":
        drive.exit(worker)
    elif event == "done":
        drive.report(worker, messages.Done(1))
    else:
        drive.feed(events.RubbishReported(worker, "x"))
    settled(drive, worker)


# -- what a dead supervisor left


def adopted(drive: Drive, count: int) -> int:
    """Find the journal of a dead agent whose freeze worker still lives; return that worker."""
    drive.feed(events.JournalFound(5, plan_of(count), "freeze 5 was broken: the agent died", (4711, 99)))
    [adopt] = drive.of(events.Adopt)
    assert (adopt.pid, adopt.started) == (4711, 99)
    return int(adopt.worker)


def test_an_orphan_that_ends_by_itself_is_not_killed_but_not_trusted_either(drive: Drive) -> None:
    orphan = adopted(drive, 1)
    assert not drive.workers("thaw"), "it is about to thaw by itself"
    drive.die(orphan)
    assert drive.killed == set()
    drive.compensates()
    ended(drive, "broken", tells=())


def test_an_orphan_that_does_not_end_is_killed_and_compensated_at_once_and_again(drive: Drive) -> None:
    orphan = adopted(drive, 1)
    drive.wait(0.6)
    assert drive.killed == {orphan}
    first = drive.newest
    drive.compensates(first)
    assert drive.state is not FreezeState.THAWED, "the orphan may still freeze"
    drive.die(orphan)
    assert drive.newest > first
    drive.compensates()
    ended(drive, "broken", tells=())


def test_an_orphan_in_the_kernel_is_left_alone_and_the_others_are_thawed(drive: Drive) -> None:
    orphan = adopted(drive, 2)
    drive.in_kernel.add(orphan)
    drive.wait(0.6)
    assert drive.killed == set()
    assert drive.workers("thaw")
    assert drive.state is FreezeState.ERROR


def test_a_stuck_orphan_is_named(drive: Drive) -> None:
    orphan = adopted(drive, 1)
    drive.wait(2)
    assert drive.state is FreezeState.ERROR
    assert f"worker {orphan}" in drive.status().error


def test_a_thaw_worker_answers_only_for_what_it_was_given(drive: Drive) -> None:
    """One that proved its own must not be blamed for what another is still at: the host would hear FAILED."""
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"))
    drive.in_kernel.add(keeper)
    drive.wait(10.1)
    first = drive.newest
    assert drive.suspected(first) == {1}
    thaw.refused(Code.FAILED, "stuck")
    drive.die(keeper)
    second = drive.newest
    assert second > first, "mount 0 was being thawed by the keeper, and is free now"
    again = drive.ask("va.fsthaw")
    drive.compensates(second)
    drive.compensates(first)
    assert not again.answered or again.code is None
    drive.wait(1)
    if drive.newest > second:
        drive.compensates(drive.newest)
    assert again.value == 2
    ended(drive, "thawed")


# -- grace periods that were expedited


def begin_expedited(drive: Drive) -> int:
    drive.ask("va.fsfreeze")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Progress("plan"), messages.Plan(plan_of(2).dump(), 1))
    drive.sync(worker)
    drive.freezes(worker, 0, 1)
    return worker


def test_who_thaws_for_a_dead_freeze_worker_puts_back_what_it_expedited(drive: Drive) -> None:
    worker = begin_expedited(drive)
    assert drive.journal is not None
    assert drive.journal["expedites"] is True
    drive.die(worker)
    assert drive.spawned[drive.newest].args["expedited"] is True


def test_a_keeper_has_put_that_back_itself(drive: Drive) -> None:
    worker = begin_expedited(drive)
    drive.frozen(worker, 0, 1)
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    drive.die(worker)
    assert drive.spawned[drive.newest].args["expedited"] is False


@pytest.mark.parametrize("expedites", [True, False])
def test_what_a_dead_agent_expedited_is_put_back(drive: Drive, expedites: bool) -> None:
    drive.feed(events.JournalFound(3, plan_of(1), "freeze 3 was broken", expedites=expedites))
    assert drive.spawned[drive.newest].args["expedited"] is expedites


@pytest.mark.parametrize("killed", [True, False])
def test_grace_periods_are_put_back_also_if_everything_was_refused_before_the_worker_died(
    drive: Drive, killed: bool
) -> None:
    worker = begin_expedited(drive)
    for mount in (0, 1):
        drive.report(worker, messages.Step(mount, "busy", errno.EBUSY, "frozen by someone else"))
    if not killed:
        drive.report(worker, messages.Thawing("busy", drive.now), messages.Failed(Code.FREEZE_FAILED, "busy"))
        drive.exit(worker)
        assert attempts(drive) == 0, "it has put that back itself"
        ended(drive, "failed")
        return
    drive.die(worker)
    thawer = drive.newest
    assert drive.spawned[thawer].args == {"mounts": {}, "expedited": True}, "who froze them is left alone"
    assert drive.state is FreezeState.THAWINPROGRESS
    assert drive.journal is not None
    drive.compensates(thawer)
    assert attempts(drive) == 1
    ended(drive)


def test_grace_periods_are_put_back_once_and_not_with_each_retry(drive: Drive) -> None:
    worker = begin_expedited(drive)
    drive.frozen(worker, 0, 1)
    drive.die(worker)
    first = drive.newest
    drive.compensates(first, {1: errno.EIO})
    drive.wait(1)
    assert drive.newest != first
    assert drive.spawned[drive.newest].args["expedited"] is False


def test_a_freezer_that_thaws_what_it_never_said_it_froze_leaves_it_suspect(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 1)
    drive.report(worker, messages.Thawing("gave up", drive.now), messages.Step(0, "thawing"))
    drive.report(worker, messages.Step(0, "failed", errno.EIO, "FITHAW: EIO"), messages.Failed(7, "gave up"))
    drive.exit(worker)
    assert drive.suspected(drive.newest) == {0}
