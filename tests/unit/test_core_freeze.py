"""One freeze as the core sees it: the way there, write-ahead, what fails before the hold, cancelling, overruns."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fakes.drive import Asked, Drive, plan_of
from fakes.scenarios import attempts, ended, played, settled
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Plan
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events


def test_a_freeze_from_request_to_thawed(drive: Drive) -> None:
    assert drive.idle()
    call, keeper = drive.begin(2)
    assert drive.state is FreezeState.INPROGRESS
    drive.sync(keeper)
    assert drive.status().phase == "freeze", "it has been told to proceed, and may have begun"
    drive.freezes(keeper, 0, 1)
    assert drive.status().phase == "freeze"
    assert [m.state for m in drive.status().mounts] == ["freezing", "freezing"]
    drive.frozen(keeper, 0, 1)
    assert not call.answered
    drive.report(keeper, messages.Frozen(2, drive.now, drive.now + 60))
    assert call.value == 2
    assert drive.state is FreezeState.FROZEN
    assert drive.status().hold_left == pytest.approx(60)
    drive.wait(41)
    assert drive.status().hold_left == pytest.approx(19)

    thaw = drive.ask("va.fsthaw")
    assert drive.told[-1] == (keeper, messages.Thaw())
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 0, 1)
    drive.report(keeper, messages.Done(2))
    assert thaw.value == 2, "before the keeper is reaped (ADR 0040)"
    drive.exit(keeper)
    last = drive.status().last
    assert last is not None
    assert (last.held_seconds, last.error) == (41, "")
    assert not drive.killed
    ended(drive, "thawed")


def test_the_plan_is_in_the_journal_before_the_worker_may_go_on(drive: Drive) -> None:
    _, worker = played(drive, "syncing", 2)
    assert not drive.told
    assert drive.journal is None, "nothing may be frozen yet"
    done = drive.feed(events.Reported(worker, messages.Synced()))
    kinds = [type(e) for e in done if isinstance(e, events.WriteJournal | events.Tell)]
    assert kinds == [events.WriteJournal, events.Tell]
    assert drive.told == [(worker, messages.Proceed())]
    assert drive.journal is not None
    assert Plan.load(drive.journal["plan"]) == plan_of(2)
    assert drive.journal["untold"], "the next start must know what to tell"


def test_the_journal_stays_until_all_is_thawed(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 0, 1)
    assert drive.journal is not None
    drive.report(keeper, messages.Done(2))
    drive.exit(keeper)
    assert drive.journal is None


def test_a_journal_that_cannot_be_written_fails_the_freeze(drive: Drive) -> None:
    drive.journal_error = OSError(errno.ENOSPC, "No space left on device")
    call, worker = played(drive, "synced", 2)
    assert (worker, messages.Proceed()) not in drive.told
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWED
    drive.die(worker)
    assert call.code is Code.FREEZE_FAILED
    assert call.fault.text == "the journal could not be written, so nothing was frozen: No space left on device"
    assert drive.logged("killed by SIGKILL after 0.0 s: the journal could not be written")[0].endswith("be written")
    assert not attempts(drive), "nothing was frozen"
    drive.journal_error = None
    ended(drive)


def test_nothing_to_freeze(drive: Drive) -> None:
    call, worker = played(drive, "synced", 0)
    drive.report(worker, messages.Progress("freeze"), messages.Done(0))
    assert not call.answered
    drive.exit(worker)
    assert call.value == 0
    ended(drive)


def test_the_journal_record_names_a_freeze_that_was_broken_when_the_agent_dies(drive: Drive) -> None:
    drive.hold(1)
    assert drive.journal is not None
    next_life = Drive()
    next_life.journal = drive.journal
    next_life.feed(
        events.JournalFound(drive.journal["freeze"], Plan.load(drive.journal["plan"]), drive.journal["untold"])
    )
    assert next_life.state is FreezeState.THAWINPROGRESS
    assert next_life.suspected(next_life.newest) == {0}
    next_life.compensates()
    ended(next_life, tells=("the agent died",))


def test_the_number_of_a_freeze_is_never_used_again_after_a_restart(drive: Drive) -> None:
    drive.feed(events.JournalFound(17, plan_of(1), "the agent died"))
    drive.compensates()
    assert drive.status().freeze_id == 17
    drive.hold(1)
    assert drive.status().freeze_id == 18


def test_a_journal_without_mounts_only_tells(drive: Drive) -> None:
    drive.feed(events.JournalFound(3, Plan((), ()), "freeze 3 was broken"))
    assert drive.state is FreezeState.THAWED
    assert not drive.spawned
    assert drive.ask("va.fsthaw").fault.text == "freeze 3 was broken"
    ended(drive)


def test_what_a_journal_named_is_counted_when_it_is_thawed(drive: Drive) -> None:
    drive.feed(events.JournalFound(3, plan_of(2), "freeze 3 was broken: the agent died"))
    thaw = drive.ask("va.fsthaw")
    assert not thaw.answered
    drive.compensates()
    thaw.refused(Code.FREEZE_BROKEN, "thawed 2 of 2")
    ended(drive)


def test_what_a_journal_tells_of_an_earlier_freeze_is_not_said_of_this_one(drive: Drive) -> None:
    """A broken freeze is told for a minute, also by the journal of the next one; that does not make it this one's."""
    earlier = "freeze 2 was broken: the hold limit passed; thawed 1 of 1"
    drive.feed(events.JournalFound(3, plan_of(2), f"{earlier}; freeze 3 was broken: the agent died"))
    thaw = drive.ask("va.fsthaw")
    drive.compensates()
    assert drive.status().last is not None
    assert drive.status().last.error == "freeze 3 was broken: the agent died; thawed 2 of 2"
    thaw.refused(Code.FREEZE_BROKEN, earlier, "freeze 3 was broken: the agent died; thawed 2 of 2")
    ended(drive)


def test_a_request_for_another_freeze_is_refused_in_every_other_state(drive: Drive) -> None:
    _, keeper = drive.begin(1)
    assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE
    drive.sync(keeper, 1)
    drive.freezes(keeper, 0)
    drive.frozen(keeper, 0)
    drive.report(keeper, messages.Frozen(1, drive.now, drive.now + 60))
    assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE
    drive.ask("va.fsthaw")
    assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE
    drive.die(keeper)
    drive.refuses()
    assert drive.state is FreezeState.ERROR
    assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE


# -- failing before the hold


def test_a_mount_that_fails_thaws_the_others_before_the_host_learns(drive: Drive) -> None:
    call, worker = played(drive, "freezing", 2, frozen=(0,))
    drive.report(worker, messages.Step(1, "failed", errno.EIO, "FIFREEZE: Input/output error (EIO)"))
    drive.report(worker, messages.Thawing("/srv/1: FIFREEZE: Input/output error (EIO)", drive.now))
    assert not call.answered
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.undo(worker, 0)
    drive.report(worker, messages.Failed(Code.FREEZE_FAILED, "/srv/1: FIFREEZE: EIO; thawed again: 1"))
    assert not call.answered
    drive.exit(worker)
    call.refused(Code.FREEZE_FAILED, "/srv/1", "thawed again: 1")
    ended(drive, "failed")


def test_a_busy_mount_is_never_thawed_by_us(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 2, frozen=(0,))
    drive.report(worker, messages.Step(1, "busy", errno.EBUSY, "frozen by someone else"))
    drive.die(worker)
    assert drive.suspected(drive.newest) == {0}


def test_what_never_froze_needs_no_thaw(drive: Drive) -> None:
    call, worker = played(drive, "freezing", 1)
    drive.report(worker, messages.Step(0, "unsupported", errno.EOPNOTSUPP, "its type cannot freeze"))
    drive.report(worker, messages.Done(0))
    drive.exit(worker)
    assert call.value == 0
    assert not attempts(drive)
    ended(drive)


@pytest.mark.parametrize("state", ["freezing", "frozen"])
def test_what_was_reported_freezing_or_frozen_is_compensated(drive: Drive, state: str) -> None:
    call, worker = played(drive, "freezing", 2, freezing=())
    drive.report(worker, messages.Step(1, "freezing"))
    if state == "frozen":
        drive.frozen(worker, 1)
    drive.die(worker)
    assert drive.suspected(drive.newest) == {1}
    assert not call.answered
    drive.compensates()
    call.refused(
        Code.WORKER_DIED, f"worker {worker}", "SIGKILL", "thawed 1 of 1", *(["/srv/1"] if state == "freezing" else [])
    )
    ended(drive)


def test_a_mount_reported_frozen_out_of_the_blue_is_compensated_too(drive: Drive) -> None:
    _, worker = played(drive, "synced", 2)
    drive.report(worker, messages.Progress("freeze"), messages.Step(1, "frozen"))
    drive.die(worker)
    assert drive.workers("thaw")
    assert drive.suspected(drive.newest) >= {1}


def test_dying_before_anything_froze_needs_no_thaw(drive: Drive) -> None:
    call, worker = played(drive, "synced", 2)
    drive.die(worker)
    assert call.code is Code.WORKER_DIED
    ended(drive)


def test_a_worker_that_ends_well_without_a_word_has_died(drive: Drive) -> None:
    call, worker = drive.begin(2)
    drive.exit(worker, code=0)
    assert call.code is Code.WORKER_DIED
    ended(drive)


def test_the_freeze_worker_cannot_be_forked(drive: Drive) -> None:
    drive.fork_error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    call = drive.ask("va.fsfreeze")
    call.refused(Code.WORKER_DIED, "Resource temporarily unavailable")
    drive.fork_error = None
    ended(drive)


# -- limits


def test_the_plan_phase_overruns(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Progress("plan"))
    drive.wait(4.9)
    assert not drive.killed
    drive.wait(0.1)
    assert drive.killed == {worker}
    call.refused(Code.OVERRUN, "plan", "nothing was frozen")
    drive.die(worker)
    ended(drive)


def test_a_worker_that_never_starts_overruns_too(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze")
    drive.wait(5)
    drive.die(drive.newest)
    assert call.code is Code.OVERRUN


def test_the_sync_phase_overruns_and_nothing_is_frozen(drive: Drive) -> None:
    call, worker = drive.begin(2, {"sync_limit": 20})
    drive.report(worker, messages.Progress("sync", 1), messages.Step(0, "syncing"), messages.Step(1, "syncing"))
    drive.wait(10)
    drive.report(worker, messages.Progress("sync", 2), messages.Step(1, "synced"))
    drive.wait(9.9)
    assert not drive.killed, "a second round does not begin the limit anew, and it has not passed"
    drive.wait(0.1)
    assert drive.killed == {worker}
    drive.die(worker)
    call.refused(Code.OVERRUN, "sync limit of 20 s", "/srv/0")
    assert not attempts(drive)
    ended(drive, "overran")


def test_the_freeze_phase_overruns_and_is_compensated_at_once_and_again(drive: Drive) -> None:
    call, worker = played(drive, "freezing", 3, freezing=(0, 1), frozen=(0,), options={"freeze_limit": 7})
    drive.wait(7)
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWINPROGRESS
    [first] = drive.workers("thaw")
    assert drive.suspected(first) == {0, 1}, "compensated at the kill, not at the death"
    drive.compensates(first)
    assert drive.state is FreezeState.THAWINPROGRESS, "the killed worker is not reaped"
    assert not call.answered
    drive.die(worker)
    [second] = drive.workers("thaw")
    assert drive.suspected(second) == {0, 1}, "its freeze may have taken effect just before it died"
    assert not call.answered
    drive.compensates(second)
    call.refused(Code.OVERRUN, "freeze limit of 7 s", "/srv/1", "thawed 2 of 2")
    ended(drive, "overran")


def test_a_thaw_worker_from_before_the_death_proves_nothing(drive: Drive) -> None:
    _, worker = played(drive, "freezing", 1)
    drive.wait(30)
    [first] = drive.workers("thaw")
    drive.report(first, messages.Started(1), messages.Step(0, "thawing"))
    drive.die(worker)
    assert drive.workers("thaw") == [first], "at most one attempt in flight a mount"
    drive.undo(first, 0)
    drive.report(first, messages.Done(1))
    assert drive.state is not FreezeState.THAWED
    drive.exit(first)
    assert drive.state is not FreezeState.THAWED
    [second] = drive.workers("thaw")
    assert drive.suspected(second) == {0}
    drive.compensates(second)
    ended(drive)


def test_what_a_killed_worker_still_says_is_noted_and_decides_nothing(drive: Drive) -> None:
    call, worker = played(drive, "freezing", 1)
    drive.wait(30)
    drive.compensates()
    drive.frozen(worker, 0)
    drive.report(worker, messages.Frozen(1, drive.now, drive.now + 60))
    assert drive.state is not FreezeState.FROZEN
    assert not call.answered
    drive.report(worker, messages.Held(drive.now + 1e6), messages.Thawing("", drive.now), messages.Done(1))
    assert drive.state is not FreezeState.THAWED
    drive.die(worker)
    assert drive.state is not FreezeState.THAWED
    drive.compensates()
    assert call.code is Code.OVERRUN
    ended(drive)


def test_a_limit_of_none_is_none() -> None:
    drive = Drive(sync_limit=0, freeze_limit=0, hold_limit=0, hold_limit_max=0)
    call, worker = played(drive, "synced", 1)
    drive.wait(1e6)
    drive.freezes(worker, 0)
    drive.wait(1e6)
    drive.frozen(worker, 0)
    drive.report(worker, messages.Frozen(1, drive.now, 0))
    assert call.value == 1
    assert drive.timers.nearest() is None
    assert drive.status().hold_left == -1
    drive.wait(1e6)
    assert drive.state is FreezeState.FROZEN


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("sync_limit", 600, True),
        ("sync_limit", 601, False),
        ("sync_limit", 0, False),
        ("freeze_limit", 30, True),
        ("freeze_limit", 30.1, False),
        ("freeze_limit", 0, False),
        ("hold_limit", 600, True),
        ("hold_limit", 601, False),
        ("hold_limit", 0, False),
    ],
)
def test_a_request_may_not_ask_for_more_than_the_configuration_allows(
    drive: Drive, name: str, value: float, good: bool
) -> None:
    call = drive.ask("va.fsfreeze", {name: value})
    if good:
        assert getattr(drive.spawned[drive.newest].args["options"], name) == value
    else:
        assert call.code is Code.PARAMS
        assert name in call.fault.text
        assert drive.idle()
        assert drive.ask("va.fsplan", {name: value}).code is Code.PARAMS


# -- cancelling


@pytest.mark.parametrize("until", ["synced", "freezing"])
def test_thaw_cancels_a_freeze_that_was_told_to_proceed(drive: Drive, until: str) -> None:
    touched = until == "freezing"
    call, worker = played(drive, until, frozen=(0,) if touched else None)
    thaw = drive.ask("va.fsthaw")
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWINPROGRESS
    assert len(drive.workers("thaw")) == touched
    if touched:
        drive.compensates()
    assert not thaw.answered
    assert not call.answered
    drive.die(worker)
    if touched:
        assert drive.suspected(drive.newest) == {0, 1}
        assert not thaw.answered
        drive.compensates()
    call.refused(Code.FREEZE_FAILED, "cancelled")
    assert thaw.value == (2 if touched else 0)
    ended(drive, "cancelled")


# -- rubbish, and reports out of place

REPORTS: dict[str, Callable[[Drive], messages.Report]] = {
    "Started": lambda d: messages.Started(1),
    "Plan": lambda d: messages.Plan(plan_of(2).dump()),
    "bad Plan": lambda d: messages.Plan({"mounts": 5}),
    "Step": lambda d: messages.Step(0, "syncing"),
    "Step too far": lambda d: messages.Step(2, "syncing"),
    "Step below 0": lambda d: messages.Step(-1, "syncing"),
    "Step to nowhere": lambda d: messages.Step(0, "molten"),
    "Progress": lambda d: messages.Progress("sync"),
    "Progress to hold": lambda d: messages.Progress("hold"),
    "Progress to nowhere": lambda d: messages.Progress("melt"),
    "Frozen": lambda d: messages.Frozen(2, d.now, d.now + 60),
    "Held": lambda d: messages.Held(d.now + 60),
    "Thawing": lambda d: messages.Thawing("", d.now),
    "Done": lambda d: messages.Done(2),
    "Failed": lambda d: messages.Failed(7, "no"),
}
OUT_OF_PLACE: dict[str, list[str]] = {
    "spawned": [name for name in REPORTS if name != "Started"],
    "planning": ["Started", "bad Plan", "Step", "Held", "Progress to nowhere", "Progress to hold"],
    "syncing": ["Started", "Plan", "Step too far", "Step below 0", "Step to nowhere", "Held", "Progress to nowhere"],
    "held": ["Started", "Plan", "Frozen", "Step too far", "Step to nowhere", "Progress to nowhere"],
    "reported": list(REPORTS),
}


def at_moment(drive: Drive, moment: str) -> tuple[Asked, int]:
    if moment != "reported":
        return played(drive, moment)
    call, worker = drive.hold()
    drive.report(worker, messages.Thawing("sigterm", drive.now), messages.Failed(8, "sigterm"))
    return call, worker


@pytest.mark.parametrize(("at", "name"), [(at, name) for at, names in OUT_OF_PLACE.items() for name in names])
def test_a_report_out_of_place_is_rubbish(drive: Drive, at: str, name: str) -> None:
    _, worker = at_moment(drive, at)
    drive.report(worker, REPORTS[name](drive))
    assert drive.killed == {worker}
    assert drive.state is FreezeState.THAWINPROGRESS
    settled(drive, worker, seconds=0)
    assert drive.idle()


@pytest.mark.parametrize("at", OUT_OF_PLACE)
def test_rubbish_is_killed_and_everything_that_was_planned_is_compensated(drive: Drive, at: str) -> None:
    call, worker = at_moment(drive, at)
    drive.feed(events.RubbishReported(worker, "not a msgpack message"))
    assert drive.killed == {worker}
    planned = {0, 1} if at in ("syncing", "held", "reported") else set()
    assert len(drive.workers("thaw")) == bool(planned)
    if planned:
        assert drive.suspected(drive.newest) == planned, "a liar's steps prove nothing"
        drive.compensates()
    drive.die(worker)
    if planned:
        assert drive.suspected(drive.newest) == planned
        drive.compensates()
    if at in ("spawned", "planning", "syncing"):
        call.refused(Code.WORKER_DIED, "rubbish")
        ended(drive)
    else:
        ended(drive, "broken", tells=())


@pytest.mark.parametrize("after", ["KILLED", "STUCK"])
def test_rubbish_from_a_killed_worker_widens_what_is_thawed(drive: Drive, after: str) -> None:
    call, worker = played(drive, "freezing", 3, freezing=(0,))
    drive.wait(30)
    if after == "STUCK":
        drive.wait(1)
    drive.feed(events.RubbishReported(worker, "x"))
    settled(drive, worker, seconds=0)
    assert drive.idle()
    assert call.answered
    all_given = set().union(*(drive.suspected(w) for w in drive.spawned if drive.spawned[w].rpc == "thaw"))
    assert all_given == {0, 1, 2}


def test_done_without_frozen_is_no_success_if_something_was_frozen(drive: Drive) -> None:
    call, worker = played(drive, "frozen", 1)
    drive.report(worker, messages.Done(1))
    drive.exit(worker)
    drive.compensates()
    assert call.fault
    ended(drive)


def test_frozen_that_contradicts_the_steps_is_not_believed(drive: Drive) -> None:
    call, worker = played(drive, "frozen", 2, freezing=(0,))
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert not (call.answered and call.answers[0] == 2)


def test_a_second_plan_is_rubbish_even_after_an_empty_one(drive: Drive) -> None:
    _, worker = drive.begin(0)
    drive.report(worker, messages.Plan(plan_of(2).dump()))
    assert drive.killed == {worker}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "number"),
    [(kind, number) for kind in ("Frozen", "Held", "Thawing") for number in (NAN, INF, -INF, 1e300)],
)
def test_absurd_times_from_a_keeper_do_not_upset_the_clock(drive: Drive, kind: str, number: float) -> None:
    if kind == "Frozen":
        _, worker = played(drive, "frozen", 1)
        drive.report(worker, messages.Frozen(1, number, number))
    else:
        _, worker = drive.hold(1)
        drive.report(worker, messages.Held(number) if kind == "Held" else messages.Thawing("", number))
    due = drive.timers.nearest()
    assert due is not None
    assert drive.now <= due <= drive.now + 600


# -- strict and partial


@pytest.mark.parametrize("method", ["va.fsfreeze", "va.fsplan"])
def test_strict_and_partial_contradict_each_other(method: str) -> None:
    for config, given in (({}, {"strict": True, "partial": True}), ({"strict": True}, {"partial": True})):
        drive = Drive(**config)
        drive.ask(method, given).refused(Code.PARAMS, "strict and partial")
        assert not drive.spawned


@pytest.mark.parametrize(
    ("config", "given", "strict", "partial"),
    [
        ({"partial": True}, {}, False, True),
        ({"partial": True}, {"strict": True}, True, False),
        ({"partial": True}, {"partial": False}, False, False),
        ({"strict": True}, {"strict": False, "partial": True}, False, True),
    ],
)
def test_what_a_request_says_comes_before_the_daemons_default(
    config: dict[str, bool], given: dict[str, bool], strict: bool, partial: bool
) -> None:
    drive = Drive(**config)
    drive.ask("va.fsfreeze", given)
    options = drive.spawned[drive.newest].args["options"]
    assert (options.strict, options.partial) == (strict, partial)


def test_what_a_partial_freeze_leaves_out_is_told_with_its_reason(drive: Drive) -> None:
    _, worker = played(drive, "synced", 3, options={"partial": True})
    drive.freezes(worker, 0, 1, 2)
    drive.frozen(worker, 0)
    refused = messages.Step(1, "failed", 5, "FIFREEZE: Input/output error (EIO)")
    drive.report(worker, refused, messages.Step(2, "busy", 16, "frozen by someone else"))
    drive.report(worker, messages.Frozen(1, drive.now, drive.now + 60))
    assert drive.state is FreezeState.FROZEN
    told = [(m.state, m.reason, m.errno) for m in drive.status().mounts]
    assert told == [("frozen", "", 0), ("failed", "failed", 5), ("busy", "busy", 16)]
