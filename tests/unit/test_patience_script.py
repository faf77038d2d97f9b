"""Patience: a file system that is slow to freeze makes no other one stand still for more than a second."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from fakes.driven import BEGIN, Driven, Refused, options, plan_of
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Plan
from virtagent.agent.api.states import MountState
from virtagent.agent.worker import messages, steps
from virtagent.agent.worker.file_systems import FileSystems
from virtagent.agent.worker.freeze import BUSY_AGAIN, FreezeScript
from virtagent.agent.worker.steps import Event, Operation, Told

SYNC, FREEZE, THAW = Operation
GO: list[tuple[float, Event]] = [(0, Told(messages.Proceed())), (500, Told(messages.Thaw()))]
THREE = plan_of((), (), ())
SLOW = {(0, FREEZE): [5.0]}
"""The first one is slow to freeze, the others are not."""


def frozen(plan: Plan = THREE, request: Any = None, **fields: Any) -> Driven:
    """Return a freeze in which all are frozen in the end, and thawed after that."""
    driven = Driven(plan, GO, **fields)
    assert driven.run(FreezeScript(request or options(hold=0)).run()) == len(plan.mounts)
    left_nothing(driven)
    assert all(driven.states(i)[-3:] == ["frozen", "thawing", "thawed"] for i in range(len(plan.mounts)))
    return driven


def failed(plan: Plan = THREE, request: Any = None, **fields: Any) -> tuple[Driven, Refused]:
    driven = Driven(plan, GO, **fields)
    found = driven.run(FreezeScript(request or options(hold=0)).run())
    assert isinstance(found, Refused), found
    left_nothing(driven)
    return driven, found


def learnt(index: int, hosts: list[int]) -> messages.Learnt:
    return messages.Learnt(index, hosts, [f"7:{one}@ext4{at}" for at, one in enumerate((index, *hosts), 7)])


def left_nothing(driven: Driven) -> None:
    assert not driven.frozen
    assert not driven.expedited
    for index in range(len(driven.plan.mounts)):
        states = driven.states(index)
        assert states[-1] not in ("syncing", "freezing", "frozen", "thawing"), states


def standstills(driven: Driven, index: int) -> list[float]:
    """Return for how long, from FIFREEZE to the return of the next FITHAW, it stood still, each time."""
    found, since = [], -1.0
    for at, call, mount in driven.history:
        if mount == index and call == "FIFREEZE" and since < 0:
            since = at
        elif mount == index and call == "thawed":
            found.append(at - since)
            since = -1.0
    return found


# A slow disk


def test_a_slow_one_is_waited_for_with_the_others_running() -> None:
    driven = frozen(lasts=SLOW)
    assert driven.names() == [
        *("syncfs 0", "syncfs 1", "syncfs 2", "FIFREEZE 0", "FIFREEZE 1", "FIFREEZE 2", "FITHAW 1", "FITHAW 2"),
        *("syncfs 1", "syncfs 2", "FIFREEZE 1", "FIFREEZE 2", "FITHAW 0", "FITHAW 1", "FITHAW 2"),
    ]
    assert standstills(driven, 1)[0] == 1
    assert driven.said(messages.Frozen) == [messages.Frozen(3, BEGIN + 5, 0)]
    assert driven.said(messages.Learnt) == [learnt(0, [])], "it was slow by itself"


@pytest.mark.parametrize("patience", [0.2, 3])
def test_patience_is_an_option(patience: float) -> None:
    driven = frozen(request=options(hold=0, patience=patience), lasts=SLOW)
    assert standstills(driven, 1)[0] == pytest.approx(patience)


def test_no_end_of_patience() -> None:
    driven = frozen(request=options(hold=0, patience=0), lasts=SLOW)
    assert driven.names().count("FIFREEZE 1") == 1


def test_one_that_is_nearly_slow_makes_nobody_be_thawed() -> None:
    assert frozen(lasts={(0, FREEZE): [0.99]}).names().count("FIFREEZE 1") == 1


def test_nothing_is_thawed_where_nothing_else_is_frozen() -> None:
    assert frozen(plan_of(()), lasts=SLOW).names() == ["syncfs 0", "FIFREEZE 0", "FITHAW 0"]
    both = frozen(plan_of((), ()), lasts={(0, FREEZE): [5.0], (1, FREEZE): [5.5]})
    assert both.names().count("FIFREEZE 0") == 1


def test_each_that_was_slow_is_thawed_again_if_another_has_not_returned_a_second_later() -> None:
    driven = frozen(lasts={(0, FREEZE): [5.0], (1, FREEZE): [20.0]})
    assert standstills(driven, 2)[0] == 1
    assert standstills(driven, 0)[0] == 6, "frozen after 5 s, thawed a second later"
    assert driven.states(1).count("frozen") == 1
    assert driven.said(messages.Learnt) == [learnt(0, []), learnt(1, [])]


def test_what_lies_on_the_slow_one_stays_frozen_with_it() -> None:
    plan = plan_of((1,), (), (), levels=(0, 1, 1))
    driven = frozen(plan, lasts={(1, FREEZE): [5.0]})
    assert [driven.states(i).count("frozen") for i in range(3)] == [1, 1, 2]


def test_what_lies_on_a_slow_one_is_thawed_after_it_when_that_is_thawed_again() -> None:
    plan = plan_of((1,), (), (), levels=(0, 1, 1))
    driven = frozen(plan, lasts={(1, FREEZE): [5.0], (2, FREEZE): [20.0]})
    thaws = [(at, mount) for at, call, mount in driven.history if call == "FITHAW"]
    assert thaws[:2] == [(6, 1), (6, 0)]
    assert standstills(driven, 0)[0] == 6


def test_those_of_later_levels_are_frozen_when_the_slow_one_is() -> None:
    plan = plan_of((2,), (), (), levels=(0, 0, 1))
    driven = frozen(plan, lasts={(1, FREEZE): [5.0]})
    assert driven.names()[3:] == [
        *("FIFREEZE 0", "FIFREEZE 1", "FITHAW 0", "syncfs 0", "syncfs 2", "FIFREEZE 0", "FIFREEZE 2"),
        *("FITHAW 1", "FITHAW 2", "FITHAW 0"),
    ]


def test_a_level_below_that_is_slow_thaws_those_above() -> None:
    plan = plan_of((1,), (), (), levels=(0, 1, 1))
    driven = frozen(plan, lasts={(2, FREEZE): [5.0]})
    assert standstills(driven, 0)[0] == standstills(driven, 1)[0] == 1
    thaws = [mount for _, call, mount in driven.history if call == "FITHAW"]
    assert thaws[:2] == [1, 0], "outermost first"


def test_the_second_time_it_fails() -> None:
    driven, found = failed(lasts={(0, FREEZE): [5.0], (2, FREEZE): [0, 9.0]})
    assert found.code is Code.OVERRUN
    assert found.text == "/srv/2 did not freeze within 1 s, for the second time; thawed again: 3"
    assert driven.said(messages.Thawing)[0].code == Code.OVERRUN
    assert standstills(driven, 1) == [1, 1]


def test_a_fithaw_that_does_not_return_fails_it() -> None:
    driven, found = failed(lasts={(0, FREEZE): [5.0], (2, THAW): [9.0]})
    assert found.code is Code.OVERRUN
    assert found.text == "/srv/2: FITHAW did not return within 1 s; thawed again: 3"
    assert driven.said(messages.Thawing)[0].at == BEGIN + 2


def test_a_refused_fithaw_fails_it_even_if_partial() -> None:
    driven = Driven(THREE, GO, lasts=SLOW, errors={(2, THAW): [errno.EIO]})
    found = driven.run(FreezeScript(options(hold=0, partial=True)).run())
    assert isinstance(found, Refused)
    assert "/srv/2: FITHAW: Input/output error (EIO)" in found.text
    assert driven.frozen == {2}, "the supervisor tries again"


def test_the_freeze_limit_holds_over_all_of_it() -> None:
    _, found = failed(request=options(freeze=3, hold=0), lasts=SLOW)
    assert found == Refused(Code.OVERRUN, "the freeze limit of 3 s passed; thawed again: 3")


def test_a_slow_one_that_then_fails() -> None:
    _, found = failed(lasts=SLOW, errors={(0, FREEZE): [errno.EIO]})
    assert found.code is Code.FREEZE_FAILED
    driven = Driven(THREE, GO, lasts=SLOW, errors={(0, FREEZE): [errno.EIO]})
    assert driven.run(FreezeScript(options(hold=0, partial=True)).run()) == 2
    left_nothing(driven)


def test_one_that_fails_in_the_sync_in_between() -> None:
    _, found = failed(lasts=SLOW, errors={(1, SYNC): [0, errno.EIO]})
    assert "/srv/1: syncfs" in found.text
    driven = Driven(THREE, GO, lasts=SLOW, errors={(1, SYNC): [0, errno.EINVAL]})
    assert driven.run(FreezeScript(options(hold=0, partial=True)).run()) == 2, "EINVAL of a sync tells of no thaw"


def test_grace_periods_are_normal_while_a_slow_one_is_waited_for() -> None:
    driven = frozen(lasts=SLOW)
    kinds = [type(step) for step in driven.did]
    assert kinds.count(steps.Expedite) == 2
    thaw = next(n for n, step in enumerate(driven.did) if isinstance(step, steps.Order) and step.operation is THAW)
    assert steps.EndExpedite in kinds[:thaw]


def test_someone_else_thaws_one_meanwhile_and_it_is_frozen_again() -> None:
    frozen(lasts=SLOW, errors={(1, THAW): [errno.EINVAL]})


# An edge that no device number tells


def test_what_a_slow_one_lies_on_is_learnt() -> None:
    driven = frozen(lasts={(0, FREEZE): [0.01]}, hangs_on={0: {2}})
    assert driven.said(messages.Learnt) == [learnt(0, [1, 2])]
    freezes = [name for name in driven.names() if name.startswith("FIFREEZE")]
    assert freezes[-2:] == ["FIFREEZE 1", "FIFREEZE 2"]
    assert [name for name in driven.names() if name.startswith("FITHAW")][-3:] == ["FITHAW 1", "FITHAW 2", "FITHAW 0"]
    assert driven.began[0, THAW] == driven.began[2, THAW]


def test_what_returns_long_after_a_thaw_lies_on_nothing_that_was_thawed() -> None:
    driven = frozen(lasts={(0, FREEZE): [1.2]})
    assert driven.said(messages.Learnt) == [learnt(0, [])]


def test_an_edge_that_would_close_a_circle_is_not_learnt() -> None:
    mounts = FileSystems(enumerate(plan_of((1, 2), (2,), ()).mounts))
    assert mounts.learn(2, [0, 1]) == set()
    mounts = FileSystems(enumerate(plan_of((1,), (), ()).mounts))
    assert mounts.learn(1, [2]) == {2}
    assert mounts[0].hosts == {1, 2}, "and so does what lies on it"
    assert [[fs.index for fs in level] for level in mounts.levels(mounts.all())] == [[0], [1], [2]]


# Frozen by someone else


@pytest.mark.parametrize("seconds", [0.3, 1.9])
def test_what_someone_else_has_frozen_is_tried_again(seconds: float) -> None:
    times = round(seconds / BUSY_AGAIN)
    driven = frozen(errors={(0, FREEZE): [errno.EBUSY] * times})
    assert driven.names().count("FIFREEZE 0") == times + 1
    assert driven.began[0, FREEZE] == pytest.approx(seconds)
    assert standstills(driven, 1)[0] == (1 if seconds > 1 else 500), "that is waited for alone, too"
    # Write-ahead: between two attempts nobody must thaw it, since it is not ours.
    assert driven.states(0)[2 : 2 + 2 * times] == ["freezing", "busy"] * times


def test_nothing_is_learnt_of_what_someone_else_had_frozen() -> None:
    """It waited for whoever had frozen it, so that it returns as others are thawed tells nothing."""
    driven = frozen(errors={(0, FREEZE): [errno.EBUSY] * (round(1 / BUSY_AGAIN) + 1)})
    assert "FITHAW 1" in driven.names()[: driven.names().index("FITHAW 0")], "patience was lost"
    assert driven.said(messages.Learnt) == []


def test_what_stays_frozen_by_someone_else_is_an_error_and_never_thawed() -> None:
    driven, found = failed(errors={(0, FREEZE): [errno.EBUSY] * 99})
    assert found.code is Code.FREEZE_FAILED
    assert "/srv/0: frozen by someone else: FIFREEZE: Device or resource busy (EBUSY)" in found.text
    assert driven.began[0, FREEZE] == pytest.approx(2, abs=BUSY_AGAIN + 1e-6)
    assert "FITHAW 0" not in driven.names()
    assert driven.said(messages.Learnt) == []


def test_what_stays_frozen_by_someone_else_is_left_out_if_partial() -> None:
    driven = Driven(THREE, GO, errors={(0, FREEZE): [errno.EBUSY] * 99})
    assert driven.run(FreezeScript(options(hold=0, partial=True)).run()) == 2
    assert driven.states(0)[-1] == "busy"
    left_nothing(driven)


def test_a_busy_wait_ends_when_the_freeze_is_given_up() -> None:
    driven = Driven(THREE, [GO[0], (0.5, Told(messages.Thaw()))], errors={(0, FREEZE): [errno.EBUSY] * 99})
    found = driven.run(FreezeScript(options(hold=0)).run())
    assert found == Refused(Code.FREEZE_FAILED, "the freeze was cancelled; thawed again: 2")
    assert driven.states(0)[-1] in ("busy", "synced")
    assert "FITHAW 0" not in driven.names()


# Whatever ends it


@pytest.mark.parametrize("event", [Told(messages.Thaw()), steps.Gone("the supervisor died")])
def test_ended_at_each_instant(event: Event) -> None:
    def slow() -> Driven:
        lasts = {(0, FREEZE): [2.0], (1, FREEZE): [0.1, 0.1, 0.1, 4.0], (2, THAW): [0.2], (2, SYNC): [0.1, 0.3]}
        return Driven(plan_of((2,), (), (), levels=(0, 0, 1)), GO, lasts=lasts, errors={(1, FREEZE): [errno.EBUSY] * 3})

    whole = slow()
    assert whole.run(FreezeScript(options(hold=0)).run()) == 3
    assert "thawed" in whole.states(0)[:-1]
    for number in range(1, whole.waits + 1):
        driven = slow()
        driven.at_wait[number] = event
        driven.run(FreezeScript(options(hold=0)).run())
        left_nothing(driven)
        for index in range(3):
            assert MountState.FREEZING not in driven.states(index)[-1:]
