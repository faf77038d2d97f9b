"""The code that freezes, driven by lists: each promise of a freeze, and each instant at which it may end."""

from __future__ import annotations

import ast
import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
from fakes.driven import BEGIN, Driven, Refused, Waits, options, plan_of
from virtagent.agent.api.bounds import bounded
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import LeftOut, Mount, Plan
from virtagent.agent.api.states import MountState
from virtagent.agent.api.structs import replace
from virtagent.agent.worker import freeze, messages, steps
from virtagent.agent.worker.freeze import Flush, FreezeScript, thaw_again
from virtagent.agent.worker.steps import Event, Gone, Operation, Told, judge

SYNC, FREEZE, THAW = Operation
PROCEED, CANCEL = Told(messages.Proceed()), Told(messages.Thaw())
DIED = Gone("the supervisor died")
TWO = plan_of((), ())
NESTED = plan_of((1, 2), (2,), (), (), levels=(0, 1, 2, 0))
"""0 lies on 1, which lies on 2; 3 lies on none."""
GO: list[tuple[float, Event]] = [(0, PROCEED), (5, CANCEL)]
"""A freeze as it should be: the thaw is asked for after 5 s."""


def freezing(plan: Plan = TWO, comes: list[tuple[float, Event]] = GO, **fields: Any) -> Driven:
    return Driven(plan, comes, **fields)


def fault_of(driven: Driven, request: Any = None) -> Refused:
    found = driven.run(FreezeScript(request or options()).run())
    assert isinstance(found, Refused), found
    return found


def left_nothing(driven: Driven) -> None:
    """Nothing is frozen, no grace period is short, and no announcement stands unanswered."""
    assert not driven.frozen
    assert not driven.expedited
    for index in range(len(driven.plan.mounts)):
        states = driven.states(index)
        assert not states or states[-1] not in ("syncing", "freezing", "frozen", "thawing"), states
        if "freezing" in states:
            assert len(states) > states.index("freezing") + 1, "announced, and not answered"


# A freeze as it should be


def test_a_freeze_from_plan_to_thaw() -> None:
    driven = freezing()
    assert driven.run(FreezeScript(options()).run()) == 2
    left_nothing(driven)
    assert driven.names() == ["syncfs 0", "syncfs 1", "FIFREEZE 0", "FIFREEZE 1", "FITHAW 0", "FITHAW 1"]
    kinds = [type(report).__name__ for report in driven.reports]
    assert list(dict.fromkeys(kinds)) == ["Progress", "Plan", "Step", "Synced", "Frozen", "Thawing"]
    assert driven.states(1) == ["syncing", "synced", "freezing", "frozen", "thawing", "thawed"]
    assert driven.said(messages.Thawing) == [messages.Thawing("", BEGIN + 5, 0, 0)]
    assert driven.said(messages.Frozen) == [messages.Frozen(2, BEGIN, BEGIN + 60)]
    assert [p.phase for p in driven.said(messages.Progress)] == ["plan", "sync", "freeze"]


def test_the_plan_is_reported_before_anything_is_done() -> None:
    driven = freezing(expedites=False)
    driven.run(FreezeScript(options()).run())
    kinds = [type(step).__name__ for step in driven.did]
    assert kinds[:8] == ["Title", "LockMemory", "Send", "ReadPlan", "PrepareToExpedite", "Send", "Start", "Measure"]
    assert driven.said(messages.Plan) == [messages.Plan(bounded(TWO).dump(), 0)]
    again = freezing()
    again.run(FreezeScript(options()).run())
    assert again.said(messages.Plan)[0].expedites == 1


def test_the_plan_is_reported_within_its_bounds_and_known_whole() -> None:
    aliases = tuple(f"/bind/{i}" for i in range(6000))
    left_out = tuple(LeftOut(f"/net/{i}", device=f"0:{i}", fstype="nfs", reason="network") for i in range(1000))
    driven = freezing(dataclasses.replace(TWO, mounts=(*TWO.mounts[:1], aliased(aliases)), left_out=left_out))
    assert driven.run(FreezeScript(options()).run()) == 2
    (told,) = driven.said(messages.Plan)
    plan = Plan.load(told.plan)
    assert (len(plan.left_out), plan.left_out_counts, plan.mounts[1].more_aliases) == (50, {"network": 1000}, 5992)
    (start,) = [step for step in driven.did if isinstance(step, steps.Start)]
    assert dict(start.mounts)[1].aliases == aliases, "one of them may be the only one that leads there"


def aliased(aliases: tuple[str, ...]) -> Mount:
    return dataclasses.replace(TWO.mounts[1], aliases=aliases)


def test_nothing_is_frozen_before_proceed() -> None:
    driven = freezing(comes=[])
    with pytest.raises(Waits):
        driven.run(FreezeScript(options()).run())
    assert driven.names() == ["syncfs 0", "syncfs 1"]
    assert "freezing" not in driven.states(0)
    later = freezing(comes=[(100, PROCEED), (105, CANCEL)])
    assert later.run(FreezeScript(options()).run()) == 2
    assert later.began[0, FREEZE] == 100


def test_proceed_may_come_while_a_sync_is_under_way() -> None:
    driven = freezing(comes=[(1, PROCEED), (9, CANCEL)], lasts={(0, SYNC): [3.0, 2.9]})
    assert driven.run(FreezeScript(options()).run()) == 2


def test_each_is_announced_before_it_freezes_though_the_pipe_is_full() -> None:
    driven = freezing(pipe_full_until=3)
    assert driven.run(FreezeScript(options()).run()) == 2
    assert driven.began[0, FREEZE] == 3


def test_what_lies_on_another_freezes_before_it_and_thaws_after_it() -> None:
    driven = freezing(NESTED, lasts={(2, THAW): [1.0]})
    assert driven.run(FreezeScript(options()).run()) == 4
    freezes = [name for name in driven.names() if name.startswith("FIFREEZE")]
    assert freezes == ["FIFREEZE 0", "FIFREEZE 3", "FIFREEZE 1", "FIFREEZE 2"]
    assert driven.names()[-4:] == ["FITHAW 2", "FITHAW 3", "FITHAW 1", "FITHAW 0"]
    assert driven.began[3, THAW] == 5, "waits for no other"
    assert driven.began[1, THAW] == 6


def test_a_level_freezes_all_together_and_nothing_is_said_meanwhile() -> None:
    driven = freezing(plan_of((), (), ()), lasts={(i, FREEZE): [0.2] for i in range(3)})
    assert driven.run(FreezeScript(options()).run()) == 3
    (at,) = [n for n, step in enumerate(driven.did) if isinstance(step, steps.Order) and step.operation is FREEZE]
    assert driven.did[at] == steps.Order((0, 1, 2), FREEZE)
    assert isinstance(driven.did[at - 1], steps.Expedite)
    # One title when all have begun; then it waits.
    assert [type(step).__name__ for step in driven.did[at + 1 : at + 6]] == ["Title", "Now", "Wait", "Wait", "Wait"]


# The sync


def rounds(first: float, *more: float) -> int:
    """Return the number of rounds where the first takes that long, and then as long as given."""
    driven = freezing(lasts={(0, SYNC): [first, *more]}, comes=[(50, PROCEED), (60, CANCEL)])
    assert driven.run(FreezeScript(options()).run()) == 2
    return driven.names().count("syncfs 0")


def test_sync_rounds_end_when_they_get_no_shorter() -> None:
    assert rounds(0.04) == 1, "nothing worth another"
    assert rounds(1, 0.04) == 2
    assert rounds(1, 0.9) == 2, "no gain"
    assert rounds(1, 0.5, 0.25) == 3
    assert rounds(8, 4, 2, 1) == freeze.SYNC_ROUNDS


def test_progress_is_told_while_something_lasts() -> None:
    driven = freezing(TWO, [(9, PROCEED), (20, CANCEL)], lasts={(1, SYNC): [1.1, 0], (0, FREEZE): [0.6]})
    assert driven.run(FreezeScript(options()).run()) == 2
    told = [(p.phase, p.round) for p in driven.said(messages.Progress)]
    assert told == [("plan", 0), *[("sync", 1)] * 6, ("sync", 2), ("freeze", 0), *[("freeze", 0)] * 2]
    assert driven.titles[:3] == ["planning", "syncing /srv/0 +1 0/2", "syncing /srv/1 1/2"]
    assert "freezing /srv/0 1/2" in driven.titles


def test_figures_are_left_out_while_the_pipe_is_full() -> None:
    driven = freezing(TWO, [(9, PROCEED), (20, CANCEL)], lasts={(1, SYNC): [1.1, 0]}, pipe_full_until=1)
    assert driven.run(FreezeScript(options()).run()) == 2
    assert [p.round for p in driven.said(messages.Progress) if p.phase == "sync"] == [1, 1, 2]


# What fails it


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY])
def test_one_that_fails_thaws_the_others_and_is_named(number: int) -> None:
    driven = freezing(errors={(1, FREEZE): [number]}, lasts={(1, FREEZE): [0.1]})
    found = fault_of(driven, options(busy_wait=0))
    assert found.code is Code.FREEZE_FAILED
    assert "/srv/1: " in found.text
    assert errno.errorcode[number] in found.text
    assert "FIFREEZE" in found.text
    assert found.text.endswith("thawed again: 1")
    left_nothing(driven)
    assert "FITHAW 0" in driven.names()
    assert "FITHAW 1" not in driven.names(), "it is not ours"
    assert driven.states(1)[-1] == ("busy" if number == errno.EBUSY else "failed")
    assert driven.said(messages.Thawing)[0].reason
    assert not driven.said(messages.Frozen)


def test_one_that_cannot_sync_fails_it_before_any_is_frozen() -> None:
    driven = freezing(errors={(0, SYNC): [errno.EIO]})
    found = fault_of(driven)
    assert found.text == "/srv/0: syncfs: Input/output error (EIO); thawed again: 0"
    assert found.code is Code.FREEZE_FAILED
    assert driven.names() == ["syncfs 0", "syncfs 1"]


def test_a_second_level_is_not_begun_when_the_first_failed() -> None:
    driven = freezing(NESTED, errors={(0, FREEZE): [errno.EIO]})
    fault_of(driven)
    left_nothing(driven)
    assert "FIFREEZE 1" not in driven.names()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_one_that_cannot_freeze_is_left_out_unless_strict(number: int) -> None:
    driven = freezing(errors={(1, FREEZE): [number]})
    assert driven.run(FreezeScript(options()).run()) == 1
    assert driven.said(messages.Frozen)[0].count == 1
    assert driven.states(1)[-1] == "unsupported"
    strict = freezing(errors={(1, FREEZE): [number]}, lasts={(1, FREEZE): [0.1]})
    found = fault_of(strict, options(strict=True))
    assert found.code is Code.FREEZE_FAILED
    assert "/srv/1: its type cannot freeze" in found.text
    left_nothing(strict)
    assert strict.states(0)[-1] == "thawed"


@pytest.mark.parametrize("operation", [SYNC, FREEZE])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV, errno.EINVAL])
def test_a_partial_freeze_leaves_out_what_fails(operation: Operation, number: int) -> None:
    driven = freezing(NESTED, errors={(1, operation): [number]})
    assert driven.run(FreezeScript(options(partial=True)).run()) == 3
    assert driven.said(messages.Frozen)[0].count == 3
    assert driven.states(1)[-1] == "failed"
    assert ("FIFREEZE 1" in driven.names()) is (operation is FREEZE), "what could not be synced is not frozen"
    assert driven.names().count("syncfs 1") == 1
    left_nothing(driven)


def test_a_partial_freeze_thaws_what_it_froze_though_a_thaw_fails() -> None:
    driven = freezing(errors={(1, FREEZE): [errno.EIO], (0, THAW): [errno.EIO]})
    found = fault_of(driven, options(partial=True))
    assert found == Refused(Code.FAILED, "/srv/0: FITHAW: Input/output error (EIO); thawing because the host asked")


@pytest.mark.parametrize("operation", [SYNC, FREEZE])
def test_the_call_that_failed_is_the_one_that_is_named(operation: Operation) -> None:
    driven = freezing(errors={(1, operation): [errno.EIO]}, failed={(1, operation): "open"})
    assert fault_of(driven).text.startswith("/srv/1: open: Input/output error (EIO)")


@pytest.mark.parametrize("plan", [plan_of(), plan_of(())])
def test_nothing_to_freeze_holds_nothing(plan: Plan) -> None:
    driven = freezing(plan, [(0, PROCEED)], errors={(0, FREEZE): [errno.EOPNOTSUPP]})
    assert driven.run(FreezeScript(options()).run()) == 0
    left_nothing(driven)
    assert not driven.said(messages.Frozen)
    assert not driven.said(messages.Thawing)
    assert not any(isinstance(step, steps.BecomeKeeper) for step in driven.did)


def test_what_cannot_be_planned_is_the_fault() -> None:
    driven = freezing(at_step={3: Fault(Code.PARAMS, "matches nothing")})
    assert fault_of(driven) == Refused(Code.PARAMS, "matches nothing")
    assert not driven.said(messages.Thawing)


def test_own_limit_of_the_freeze_for_a_supervisor_that_is_stopped() -> None:
    driven = freezing(lasts={(1, FREEZE): [50.0]})
    found = fault_of(driven, options(freeze=2, patience=0))
    assert found == Refused(Code.OVERRUN, "the freeze limit of 2 s passed; thawed again: 2")
    assert driven.began[0, THAW] == 2 + freeze.OWN_LIMIT_LATER, "as soon as the limit passed"
    assert driven.began[1, THAW] == 50, "a FIFREEZE in flight is waited for"
    left_nothing(driven)


def test_own_limit_of_the_freeze_where_the_pipe_takes_nothing() -> None:
    driven = freezing(pipe_full_until=1000)
    found = fault_of(driven, options(freeze=2))
    assert found.text == "the freeze limit of 2 s passed; thawed again: 0"
    assert "FIFREEZE 0" not in driven.names()
    assert driven.states(0)[-2:] == ["freezing", "synced"]
    assert not any(isinstance(step, steps.Expedite) for step in driven.did)


def test_no_limit_of_the_freeze() -> None:
    driven = freezing(comes=[(0, PROCEED), (900, CANCEL)], lasts={(1, FREEZE): [800.0]})
    assert driven.run(FreezeScript(options(freeze=0, hold=0)).run()) == 2


# Every instant at which it may end


def _slow(plan: Plan) -> Driven:
    """Something to do at each instant: slow calls, two levels or more, and one that cannot freeze."""
    lasts = {(i, operation): [0.3 + i / 8] * 3 for i in range(len(plan.mounts)) for operation in Operation}
    return freezing(plan, [(2, PROCEED), (9, CANCEL)], lasts=lasts, errors={(3, FREEZE): [errno.EOPNOTSUPP]})


@pytest.mark.parametrize("event", [CANCEL, DIED], ids=["cancelled", "supervisor gone"])
@pytest.mark.parametrize("pipe_full_until", [0, 4.0])
def test_ended_at_each_instant(event: Event, pipe_full_until: float) -> None:
    whole = _slow(NESTED)
    whole.pipe_full_until = pipe_full_until
    assert whole.run(FreezeScript(options()).run()) == 3
    outcomes = set()
    for number in range(1, whole.waits + 1):
        driven = _slow(NESTED)
        driven.pipe_full_until = pipe_full_until
        driven.at_wait[number] = event
        found = driven.run(FreezeScript(options()).run())
        left_nothing(driven)
        held = bool(driven.said(messages.Frozen))
        if not isinstance(found, Refused):
            assert held
            assert found == 3
            if event is DIED:
                assert driven.said(messages.Thawing)[0].reason == "", "it thawed already"
                continue
        elif held:
            assert found == Refused(Code.FREEZE_BROKEN, "the supervisor died")
        else:
            why = "the freeze was cancelled" if event is CANCEL else "the supervisor died"
            froze = sum("frozen" in driven.states(i) for i in range(4))
            assert found == Refused(Code.FREEZE_FAILED, f"{why}; thawed again: {froze}")
            assert driven.said(messages.Thawing)[0].reason == why
        outcomes.add((held, isinstance(found, Refused)))
    assert outcomes == {(False, True), (True, event is DIED)}


def test_whatever_step_is_refused_nothing_stays_frozen() -> None:
    whole = _slow(NESTED)
    whole.run(FreezeScript(options()).run())
    start = next(n for n, step in enumerate(whole.did) if isinstance(step, steps.Start))
    thaw = next(n for n, step in enumerate(whole.did) if isinstance(step, steps.StopFreezing))
    for number in range(start + 1, thaw):
        if isinstance(whole.did[number], steps.Order | steps.Expedite | steps.EndExpedite):
            continue  # the first two raise nothing; of the third see below
        driven = _slow(NESTED)
        driven.at_step[number] = OSError(errno.EMFILE, "Too many open files")
        with pytest.raises(OSError, match="Too many open files"):
            driven.run(FreezeScript(options()).run())
        left_nothing(driven)
        reason = driven.said(messages.Thawing)[0].reason
        assert reason.startswith("OSError: "), number


def test_grace_periods_that_cannot_be_put_back_thaw_what_is_frozen() -> None:
    whole = freezing()
    whole.run(FreezeScript(options()).run())
    number = whole.did.index(steps.EndExpedite())
    driven = freezing(at_step={number: OSError(errno.EIO, "that")})
    with pytest.raises(OSError, match="that"):
        driven.run(FreezeScript(options()).run())
    assert not driven.frozen
    assert driven.states(0)[-1] == "thawed"


def test_threads_that_cannot_be_started_end_it_before_it_begins() -> None:
    whole = freezing()
    whole.run(FreezeScript(options()).run())
    number = next(n for n, step in enumerate(whole.did) if isinstance(step, steps.Start))
    driven = freezing(at_step={number: OSError(errno.EAGAIN, "no more threads")})
    with pytest.raises(OSError, match="no more threads"):
        driven.run(FreezeScript(options()).run())
    assert not driven.calls


def test_a_freeze_that_was_announced_and_is_given_up_says_that_it_is_not() -> None:
    driven = freezing(comes=[(0, PROCEED), (1, CANCEL)], pipe_full_until=2)
    found = fault_of(driven)
    assert found.text == "the freeze was cancelled; thawed again: 0"
    assert driven.states(0) == driven.states(1) == ["syncing", "synced", "freezing", "synced"]
    assert "FIFREEZE 0" not in driven.names()


def test_a_freeze_in_flight_when_it_is_cancelled_is_waited_for_and_thawed() -> None:
    driven = freezing(comes=[(0, PROCEED), (1, CANCEL)], lasts={(1, FREEZE): [7.0]})
    assert fault_of(driven).text == "the freeze was cancelled; thawed again: 2"
    assert driven.began[0, THAW] == 1
    assert driven.began[1, THAW] == 7
    left_nothing(driven)


def test_each_that_still_freezes_is_thawed_as_soon_as_it_has() -> None:
    lasts = {(1, FREEZE): [7.0], (2, FREEZE): [9.0]}
    driven = freezing(plan_of((), (), ()), [(0, PROCEED), (1, CANCEL)], lasts=lasts)
    assert fault_of(driven).text == "the freeze was cancelled; thawed again: 3"
    assert [driven.began[i, THAW] for i in range(3)] == [1, 7, 9]


def test_what_lies_on_one_that_still_freezes_waits_for_it() -> None:
    plan = plan_of((1,), (), levels=(0, 1))
    driven = freezing(plan, [(0, PROCEED), (1, CANCEL)], lasts={(1, FREEZE): [7.0]})
    assert fault_of(driven).text == "the freeze was cancelled; thawed again: 2"
    assert (driven.began[1, THAW], driven.began[0, THAW]) == (7, 7)
    assert driven.names()[-2:] == ["FITHAW 1", "FITHAW 0"]


# Grace periods


def test_grace_periods_are_short_from_the_first_announcement_to_the_last_freeze() -> None:
    driven = freezing(NESTED, lasts={(2, FREEZE): [0.1]})
    driven.run(FreezeScript(options()).run())
    kinds = [type(step) for step in driven.did]
    orders = [n for n, step in enumerate(driven.did) if isinstance(step, steps.Order) and step.operation is FREEZE]
    assert kinds.index(steps.Expedite) == orders[0] - 1
    assert kinds.count(steps.EndExpedite) == 1
    assert orders[-1] < kinds.index(steps.EndExpedite) < kinds.index(steps.BecomeKeeper)


def test_grace_periods_are_put_back_before_what_failed_is_thawed() -> None:
    driven = freezing(errors={(1, FREEZE): [errno.EIO]})
    fault_of(driven)
    kinds = [type(step) for step in driven.did]
    assert kinds.index(steps.Expedite) < kinds.index(steps.EndExpedite) < kinds.index(steps.StopFreezing)


# The hold


def test_a_hold_that_passes_thaws_and_is_broken() -> None:
    driven = freezing(comes=[(0, PROCEED)])
    found = fault_of(driven, options(hold=3))
    assert found == Refused(Code.FREEZE_BROKEN, "the hold limit of 3 s passed")
    assert driven.said(messages.Frozen) == [messages.Frozen(2, BEGIN, BEGIN + 3)]
    assert driven.said(messages.Thawing) == [messages.Thawing("the hold limit of 3 s passed", BEGIN + 3, 0, 0)]
    assert [title for title in driven.titles if "left" in title] == [f"2 frozen, {n} s left" for n in (3, 2, 1)]
    left_nothing(driven)


def test_a_hold_is_extended_and_the_keeper_says_so() -> None:
    hold = Told(messages.Hold(BEGIN + 100))
    driven = freezing(comes=[(0, PROCEED), (2, hold), (99, CANCEL)])
    assert driven.run(FreezeScript(options(hold=3)).run()) == 2
    assert driven.said(messages.Held) == [messages.Held(BEGIN + 100)]
    at = driven.did.index(steps.Post((messages.Held(BEGIN + 100),)))
    assert driven.did[at - 1] == steps.Title("2 frozen, 98 s left"), "the host may look as soon as it is told"
    again = freezing(comes=[(0, PROCEED), (2, hold)])
    assert fault_of(again, options(hold=3)).text == "the hold limit of 100 s passed"
    assert again.began[0, THAW] == 100


@pytest.mark.parametrize(("seconds", "words"), [(0.25, "0.25"), (999.75, "1000"), (1234.25, "1234"), (3600, "3600")])
def test_a_hold_of_many_seconds_is_told_in_plain_digits(seconds: float, words: str) -> None:
    driven = freezing(comes=[(0, PROCEED)])
    assert fault_of(driven, options(hold=seconds)).text == f"the hold limit of {words} s passed"


def test_a_hold_is_shortened() -> None:
    driven = freezing(comes=[(0, PROCEED), (2, Told(messages.Hold(BEGIN + 4)))])
    assert fault_of(driven).text == "the hold limit of 4 s passed"


def test_a_hold_without_a_limit() -> None:
    driven = freezing(comes=[(0, PROCEED), (1e6, CANCEL)])
    assert driven.run(FreezeScript(options(hold=0)).run()) == 2
    assert driven.said(messages.Frozen)[0].until == 0
    assert "2 frozen" in driven.titles


def test_it_is_the_keeper_before_it_says_that_it_holds() -> None:
    driven = freezing()
    driven.run(FreezeScript(options()).run())
    told = driven.did.index(steps.Post(tuple(driven.said(messages.Frozen))))
    assert isinstance(driven.did[told - 1], steps.Title)
    assert driven.did.index(steps.BecomeKeeper()) < told - 1


def test_the_supervisor_dies_while_it_holds() -> None:
    driven = freezing(comes=[(0, PROCEED), (1, DIED)])
    assert fault_of(driven) == Refused(Code.FREEZE_BROKEN, "the supervisor died")
    assert driven.began[0, THAW] == 1


def test_someone_else_thawed_one() -> None:
    driven = freezing(errors={(1, THAW): [errno.EINVAL]})
    assert fault_of(driven) == Refused(Code.FREEZE_BROKEN, "someone else had thawed /srv/1")
    assert driven.states(1)[-1] == "thawed"


# The thaw


def test_a_thaw_that_hangs_delays_no_other_and_is_named() -> None:
    driven = freezing(NESTED, lasts={(2, THAW): [7.0]})
    assert driven.run(FreezeScript(options()).run()) == 4
    assert driven.began[3, THAW] == 5
    assert "thawing /srv/2 3/4" in driven.titles


def test_a_refused_thaw_is_the_supervisors_to_try_again() -> None:
    driven = freezing(errors={(1, THAW): [errno.EIO]})
    found = fault_of(driven)
    assert found.code is Code.FAILED
    assert found.text == "/srv/1: FITHAW: Input/output error (EIO); thawing because the host asked"
    assert driven.names().count("FITHAW 1") == 1
    assert driven.frozen == {1}


def test_a_refused_thaw_is_tried_again_when_nobody_else_would() -> None:
    driven = freezing(comes=[(0, PROCEED), (5, DIED)], errors={(1, THAW): [errno.EIO] * 13})
    assert fault_of(driven) == Refused(Code.FREEZE_BROKEN, "the supervisor died")
    assert driven.names().count("FITHAW 1") == 14
    assert driven.names().count("FITHAW 0") == 1
    waited = sum(min(freeze.THAW_AGAIN_FIRST * 2**n, freeze.THAW_AGAIN_MAX) for n in range(13))
    assert driven.began[1, THAW] == pytest.approx(5 + waited)
    left_nothing(driven)


def test_what_lies_on_one_whose_thaw_was_refused_is_left_to_whoever_tries_again() -> None:
    """Its FITHAW would block until the other is thawed, which nobody would try meanwhile."""
    driven = freezing(NESTED, errors={(2, THAW): [errno.EIO]})
    assert fault_of(driven).text == "/srv/2: FITHAW: Input/output error (EIO); thawing because the host asked"
    assert driven.frozen == {0, 1, 2}
    driven = freezing(NESTED, comes=[(0, PROCEED), (5, DIED)], errors={(2, THAW): [errno.EIO]})
    assert fault_of(driven) == Refused(Code.FREEZE_BROKEN, "the supervisor died")
    left_nothing(driven)


def test_a_refused_thaw_of_a_freeze_that_failed_is_told_with_both_reasons() -> None:
    driven = freezing(errors={(1, FREEZE): [errno.EIO], (0, THAW): [errno.EIO]}, lasts={(1, FREEZE): [0.1]})
    found = fault_of(driven)
    assert found.code is Code.FAILED
    assert found.text == (
        "/srv/0: FITHAW: Input/output error (EIO); thawing because /srv/1: FIFREEZE: Input/output error (EIO)"
    )


@pytest.mark.parametrize("comes", [GO, [(0, PROCEED)], [(0, PROCEED), (3, DIED)]])
def test_a_full_pipe_never_delays_a_hold_or_thaw(comes: list[tuple[float, Event]]) -> None:
    driven = freezing(comes=comes)
    driven.run(FreezeScript(options()).run())
    holds = driven.did.index(steps.BecomeKeeper())
    for step in driven.did[holds:]:
        assert not isinstance(step, steps.Send)
        assert not (isinstance(step, steps.Wait) and step.taken)


# The thaw of a dead worker's freeze


def test_thaw_again() -> None:
    mounts = dict(enumerate(NESTED.mounts))
    driven = Driven(NESTED, expedites=True)
    driven.frozen = {0, 1, 2}
    driven.expedited = True
    assert driven.run(thaw_again(mounts, expedited=True)) == 4, "one that was not frozen is proved thawed, too"
    assert driven.did[0] == steps.PutBack()
    assert driven.did[1] == steps.Start(tuple(mounts.items()), obeys=False)
    assert driven.names() == ["FITHAW 2", "FITHAW 3", "FITHAW 1", "FITHAW 0"]
    left_nothing(driven)


def test_thaw_again_puts_nothing_back_that_was_not_changed() -> None:
    driven = Driven(TWO)
    assert driven.run(thaw_again(dict(enumerate(TWO.mounts)), expedited=False)) == 2
    assert steps.PutBack() not in driven.did


def test_thaw_again_of_some_of_a_plan_names_what_is_refused() -> None:
    mounts = {i: mount for i, mount in enumerate(NESTED.mounts) if i in (1, 3)}
    driven = Driven(NESTED, errors={(3, THAW): [errno.EIO]})
    driven.frozen = {1, 3}
    assert driven.run(thaw_again(mounts, expedited=False)) == Refused(
        Code.FAILED, "/srv/3: FITHAW: Input/output error (EIO)"
    )
    assert driven.frozen == {3}


# The sync alone


def test_flush() -> None:
    driven = Driven(TWO, lasts={(0, SYNC): [1.0, 0.01]})
    assert driven.run(Flush(options()).run()) == 2
    assert driven.names() == ["syncfs 0", "syncfs 1"] * 2
    assert not driven.said(messages.Thawing)
    assert [step.obeys for step in driven.did if isinstance(step, steps.Start)] == [False]


def test_flush_fails_with_the_one_that_cannot() -> None:
    driven = Driven(TWO, errors={(1, SYNC): [errno.EIO]}, lasts={(0, SYNC): [99.0]})
    assert driven.run(Flush(options()).run()) == Refused(
        Code.FAILED, "/srv/1: syncfs: Input/output error (EIO); nothing was frozen"
    )


def test_a_partial_flush_counts_what_it_synced() -> None:
    driven = Driven(TWO, errors={(1, SYNC): [errno.EIO]}, lasts={(0, SYNC): [1.0, 0.01]})
    assert driven.run(Flush(options(partial=True)).run()) == 1
    assert driven.names() == ["syncfs 0", "syncfs 1", "syncfs 0"]


def test_flush_overruns_and_names_what_still_syncs() -> None:
    driven = Driven(TWO, lasts={(1, SYNC): [99.0]})
    assert driven.run(Flush(options(sync=3)).run()) == Refused(
        Code.OVERRUN, "the sync limit of 3 s passed while syncing /srv/1; nothing was frozen"
    )
    assert driven.passed == 3


def test_the_sync_limit_is_for_all_rounds_together() -> None:
    driven = Driven(TWO, lasts={(1, SYNC): [2.0, 1.5]})
    found = driven.run(Flush(options(sync=3)).run())
    assert isinstance(found, Refused)
    assert driven.passed == 3


def test_flush_without_a_limit() -> None:
    driven = Driven(TWO, lasts={(1, SYNC): [900.0, 0]})
    assert driven.run(Flush(options(sync=0)).run()) == 2


# What an errno means


@pytest.mark.parametrize(
    ("operation", "error", "state"),
    [
        (SYNC, 0, MountState.SYNCED),
        (SYNC, errno.EIO, MountState.FAILED),
        (SYNC, errno.EINVAL, MountState.FAILED),
        (FREEZE, 0, MountState.FROZEN),
        (FREEZE, errno.EBUSY, MountState.BUSY),
        (FREEZE, errno.EOPNOTSUPP, MountState.UNSUPPORTED),
        (FREEZE, errno.ENOTTY, MountState.UNSUPPORTED),
        (FREEZE, errno.ECANCELED, MountState.FAILED),
        (FREEZE, errno.EINVAL, MountState.FAILED),
        (FREEZE, errno.ENODEV, MountState.FAILED),
        (THAW, 0, MountState.THAWED),
        (THAW, errno.EINVAL, MountState.THAWED),
        (THAW, errno.EBUSY, MountState.FAILED),
        (THAW, errno.ECANCELED, MountState.FAILED),
        (THAW, errno.EOPNOTSUPP, MountState.FAILED),
    ],
)
def test_what_an_errno_makes_of_a_file_system(operation: Operation, error: int, state: MountState) -> None:
    assert judge(operation, error, "words")[0] is state


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBUSY, errno.EOPNOTSUPP, errno.ENOTTY, errno.ECANCELED])
def test_what_an_errno_of_an_ioctl_means_it_does_not_mean_of_an_open(operation: Operation, error: int) -> None:
    state, words = judge(operation, error, "words", "open")
    assert state is MountState.FAILED, "EINVAL of an open is no proof that it is thawed"
    assert words.startswith("open: words")


def test_a_freeze_that_was_not_begun() -> None:
    assert judge(FREEZE, errno.ECANCELED, "given up", steps.NOT_BEGUN)[0] is MountState.SYNCED


def test_an_errno_without_a_name() -> None:
    assert judge(SYNC, 4711, "Unknown error 4711")[1] == "syncfs: Unknown error 4711 (4711)"


@pytest.mark.parametrize("module", [freeze, steps])
def test_the_script_has_no_clock_and_no_io(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(a.name for a in node.names)]
        assert not {"os", "time", "select", "threading", "fcntl", "kernel", "sysfs", "rcu", "progress"} & set(names)


# A shorter request queue


def short_queues(driven: Driven) -> list[str]:
    """Return the names of these steps and of what they are about, in order."""
    kinds = (steps.ShortenQueues, steps.LengthenQueues, steps.Order)
    named = [type(step).__name__ for step in driven.did if isinstance(step, kinds)]
    return [name for at, name in enumerate(named) if named[at - 1 : at] != [name]]


def short(plan: Plan = TWO) -> tuple[Plan, Any]:
    mounts = tuple(replace(mount, disks=(f"sd{index}", "sdz")) for index, mount in enumerate(plan.mounts))
    return replace(plan, mounts=mounts), replace(options(), sync_requests=8, queue_records="/run/q")


def test_request_queues_are_short_only_while_syncing() -> None:
    plan, request = short()
    driven = freezing(plan)
    assert driven.run(FreezeScript(request).run()) == 2
    assert short_queues(driven) == ["ShortenQueues", "Order", "LengthenQueues", "Order"]
    (step,) = [step for step in driven.did if isinstance(step, steps.ShortenQueues)]
    assert step == steps.ShortenQueues("/run/q", ("sd0", "sd1", "sdz"), 8)
    at = [type(step).__name__ for step in driven.did].index("LengthenQueues")
    synced = steps.Post((messages.Synced(),))
    assert synced in driven.did[at:], "the supervisor hears that all is synced when that is over"


def test_counters_are_opened_while_no_request_queue_changes() -> None:
    """On kernels of about 4.11 to 6.10 a read of queue/iostats waits for a write of nr_requests, so for the disk."""
    plan, request = short()
    driven = freezing(plan)
    assert driven.run(FreezeScript(request).run()) == 2
    kinds = [type(step) for step in driven.did]
    assert kinds.count(steps.OpenCounters) == 1
    assert kinds.index(steps.OpenCounters) < kinds.index(steps.ShortenQueues)


def test_counters_are_opened_while_the_supervisor_writes_the_journal() -> None:
    driven = freezing(short()[0])
    assert driven.run(FreezeScript(options()).run()) == 2
    at = driven.did.index(steps.Post((messages.Synced(),)))
    assert [n for n, step in enumerate(driven.did) if isinstance(step, steps.OpenCounters)] == [at + 1]


@pytest.mark.parametrize(
    "broken",
    [{"errors": {(0, SYNC): [errno.EIO]}}, {"comes": [(0.5, CANCEL)]}, {"comes": [(0.5, DIED)]}],
    ids=["an error", "cancelled", "alone"],
)
def test_request_queues_are_put_back_however_the_sync_ends(broken: dict[str, Any]) -> None:
    plan, request = short()
    driven = Driven(plan, **{"comes": [], "lasts": {(1, SYNC): [1]}} | broken)
    fault_of(driven, request)
    assert short_queues(driven) == ["ShortenQueues", "Order", "LengthenQueues"]


def test_request_queues_are_short_for_va_fssync_too() -> None:
    plan, request = short()
    driven = Driven(plan, [])
    assert driven.run(Flush(request).run()) == 2
    assert short_queues(driven) == ["ShortenQueues", "Order", "LengthenQueues"]


def test_request_queues_stay_as_they_are_without_the_option() -> None:
    driven = freezing(short()[0])
    driven.run(FreezeScript(options()).run())
    assert short_queues(driven) == ["Order"]
