"""The judge of the storms: what it must find, and what it must not claim."""

from __future__ import annotations

from typing import Any

import pytest
from harness.hosts import GONE, Fault
from harness.verdict import Call, Meddling, Verdict, judge
from virtagent.agent.api.errors import Code

BROKEN = Fault(Code.FREEZE_BROKEN, "freeze 3 was broken: the keeper died")
PENDING = Fault(Code.IN_PROGRESS, "va.fsthaw is still in progress")
STUCK = Fault(Code.FAILED, "worker 4 is stuck; trying again")


def freeze(sent: float, answered: float, answer: Any = 2, counts: tuple[int, ...] = (10, 20), **more: Any) -> Call:
    return Call("va.fsfreeze", sent, answered, answer, counts=counts, scope=(0, 1), hold=5.0, **more)


def thaw(sent: float, answered: float, answer: Any, counts: tuple[int, ...] = (10, 21), **more: Any) -> Call:
    return Call("va.fsthaw", sent, answered, answer, counts=counts, **more)


def vanish(make: Any, at: float) -> Call:
    return make(at, at, GONE, vanished=True)  # type: ignore[no-any-return]


def wrong(*calls: Call, **more: Any) -> list[str]:
    return judge(calls, **more).violations


F = freeze(1, 2)


def test_held() -> None:
    assert judge([F, thaw(3, 4, 2), thaw(5, 6, 0)]) == Verdict(freezes=1, held=1)


def test_broken_and_told() -> None:
    assert judge([F, thaw(3, 4, BROKEN), thaw(5, 6, 0)]) == Verdict(freezes=1, broken=1, told=1)


def test_broken_and_not_told() -> None:
    assert "is not told" in wrong(F, thaw(3, 4, 0))[0]
    # What was said before to a freeze that failed changes nothing.
    assert "is not told" in wrong(F, freeze(2.5, 2.6, Fault(Code.WRONG_STATE, "...")), thaw(3, 4, 0))[0]
    # Nor does a thaw that was refused, or what comes later.
    assert wrong(F, thaw(2.5, 2.6, Fault(Code.WRONG_STATE, "...")), thaw(3, 4, 0), thaw(5, 6, BROKEN))


@pytest.mark.parametrize("answers", [(0, BROKEN), (BROKEN, 0), (0, 2), (2, 0)])
def test_thaws_at_the_same_time_share_the_news(answers: tuple[Any, Any]) -> None:
    """Their threads may note the answers in either order."""
    assert not wrong(F, thaw(3, 4.1, answers[0]), thaw(3.1, 4, answers[1]))


def test_told_for_too_long() -> None:
    calls = F, thaw(3, 4, BROKEN), thaw(8, 9, BROKEN)
    assert "told too long" in wrong(*calls)[0]
    assert wrong(*calls, continued=[3.5]), "it went on before it told"
    assert not wrong(*calls, continued=[7]), "stopped as it told, it learnt only then that the host had taken that"


def test_answers_that_contradict_each_other() -> None:
    assert wrong(F, thaw(3, 4, 2), thaw(3.1, 4, BROKEN))


def test_written_while_it_was_held() -> None:
    assert "2 records were written to file system 1" in wrong(F, thaw(3, 4, 2, (10, 22)))[0]
    # It must be held until the first thaw was asked for, not longer.
    assert not wrong(F, thaw(3, 4, 2), thaw(3.5, 4, 2, (500, 500)))
    assert wrong(F, thaw(3, 4, 2, (10, 22)), thaw(3.5, 3.9, 2, (500, 500)))
    assert not wrong(F, thaw(3, 4, 2, (10, 22)), played={1})


def test_another_number_thawed_than_frozen() -> None:
    assert wrong(F, thaw(3, 4, 1))


def test_thawed_and_frozen_again_by_someone_else() -> None:
    """No agent can see that; thawed only, it can."""
    thawed, frozen = Meddling("thaw", 1, 2.1, 2.2), Meddling("freeze", 1, 2.3, 2.4)
    bad = (F, thaw(3, 4, 2, (10, 99)))
    assert not wrong(*bad, meddlings=[thawed, frozen])
    assert wrong(*bad, meddlings=[thawed])
    assert wrong(*bad, meddlings=[frozen])
    assert wrong(*bad, meddlings=[Meddling("thaw", 0, 2.1, 2.2), frozen])


def test_a_thaw_that_goes_on_tells_nobody() -> None:
    for answer in (PENDING, STUCK):
        assert judge([F, thaw(3, 4, answer), thaw(5, 6, 0)]) == Verdict(freezes=1, unclear=1)
        assert judge([F, thaw(3, 4, answer), thaw(5, 6, BROKEN)]).broken == 1
        assert "nobody is told" in wrong(F, thaw(3, 4, answer, (10, 22)), thaw(5, 6, 0))[0]


@pytest.mark.parametrize(
    "call",
    [
        thaw(2.5, 2.6, GONE),  # it may have had the news
        vanish(thaw, 2.5),
        vanish(thaw, 1.5),  # it may have come after the freeze
        thaw(1.5, 1.9, PENDING),  # its answer may have been noted before that of the freeze, and given after it
        thaw(1.5, 2.5, 0),
        freeze(1.5, 2.5, 2),  # which of the two the thaw was about is not known
        freeze(1.5, 2.5, PENDING),
        freeze(0.5, 1.5, GONE),
        vanish(freeze, 1.5),
        vanish(freeze, 2.5),  # it may have frozen after the one before was broken
        freeze(2.5, 2.6, PENDING),
        freeze(3.5, 5, 2, (500, 500)),  # the thaw may have come after it
    ],
    ids=repr,
)
def test_unclear(call: Call) -> None:
    for answer in (0, 2, BROKEN):
        judged = judge([F, call, thaw(3, 4, answer, (500, 500)), thaw(8, 9, 2, (500, 500))])
        assert not judged.violations


def test_what_was_over_before_makes_nothing_unclear() -> None:
    before = (freeze(0.1, 0.2, GONE), vanish(freeze, 0.3), vanish(thaw, 0.4), thaw(0.5, 0.6, GONE), thaw(0.7, 0.8, 0))
    assert wrong(*before, F, thaw(3, 4, 0))


def test_told_too_long() -> None:
    assert wrong(thaw(3, 4, BROKEN), thaw(6, 7, BROKEN))
    assert not wrong(thaw(3, 4, BROKEN), thaw(5, 6, BROKEN))
    assert not wrong(thaw(3, 4, BROKEN), thaw(3.5, 6, BROKEN))
    both = Fault(Code.FREEZE_BROKEN, "freeze 2 was broken: ...; freeze 3 was broken: ...")
    assert wrong(thaw(3, 4, BROKEN), thaw(6, 7, both))
    # One that died as it told may tell again.
    assert not wrong(thaw(3, 4, BROKEN, daemon_pid=7), thaw(5, 6, BROKEN, daemon_pid=8))


def test_broken_by_nothing() -> None:
    assert "nothing broke it" in wrong(F, thaw(3, 4, BROKEN), disturbed=False)[0]
    assert not wrong(F, thaw(5.5, 6.5, BROKEN), disturbed=False)  # the hold has passed
    assert not wrong(F, Call("va.fshold", 2.5, 2.6, 0.1), thaw(3, 4, BROKEN), disturbed=False)


def test_defects() -> None:
    defect = Fault(Code.INTERNAL, "va.fsfreeze: KeyError: 3 (core.py:7)")
    assert wrong(freeze(1, 2, defect))
    fault = Fault(Code.FAILED, "va.fsfreeze: no more threads or processes (EAGAIN)")
    assert not wrong(freeze(1, 2, fault))
