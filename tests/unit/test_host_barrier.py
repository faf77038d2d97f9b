"""A freeze that waits at a barrier, as a script: what the agent is asked, and what its records mean."""

from __future__ import annotations

import time
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Last, Status
from virtagent.host.barrier import READY_SECONDS, Barrier
from virtagent.host.calls import Call
from virtagent.host.holding import Pause, Script, Wanted

GOES_ON = Fault(Code.IN_PROGRESS, "va.fsfreeze is still in progress after 0.0 s; the job goes on")


def told(state: str, phase: str, seq: int = 1, **more: Any) -> Status:
    numbers = {"THAWED": 0, "INPROGRESS": 1, "FROZEN": 2}
    return Status(state, numbers[state], seq, freeze_id=5, phase=phase, **more)


def played(script: Script[Any], *answers: Any) -> tuple[list[Call[Any]], Any]:
    """Play a script against these answers, Faults among them; return what was asked, and what came of it."""
    asked: list[Call[Any]] = []
    left = list(answers)
    try:
        step = next(script)
        while True:
            assert not isinstance(step, Pause)
            asked.append(step)
            answer = left.pop(0)
            step = script.throw(answer) if isinstance(answer, Fault) else script.send(answer)
    except StopIteration as end:
        assert not left, "not all was asked"
        return asked, end.value
    except Fault as fault:
        assert not left, "not all was asked"
        return asked, fault


def test_it_is_asked_for_with_somebody_who_lets_it_go() -> None:
    """So that the agent calls it off if that one has gone; the instant is by the guest's own clock."""
    now = time.time() + 5000
    asked, value = played(
        Barrier("unix:/a", Wanted(hold=30)).prepare(), int(now * 1e9), GOES_ON, told("INPROGRESS", "ready")
    )
    assert value is None
    (options,) = asked[1].params
    assert asked[1].method == "va.fsfreeze"
    assert options["attended"] is True
    assert options["at"] == pytest.approx(now + READY_SECONDS, abs=1)
    assert options["hold_limit"] == 30


def test_it_may_wait_until_the_writers_of_another_freeze_are_let_go() -> None:
    barrier = Barrier("unix:/a", Wanted())
    waits = [told("THAWED", "release"), told("THAWED", "prepare", 2), told("INPROGRESS", "sync", 3)]
    _, value = played(barrier.prepare(), 10**9, GOES_ON, *waits, told("INPROGRESS", "ready", 4))
    assert value is None
    assert barrier.prepared


def test_one_that_was_called_off_meanwhile_is_told_in_the_agents_words() -> None:
    barrier = Barrier("unix:/a", Wanted())
    played(barrier.prepare(), 10**9, GOES_ON, told("INPROGRESS", "ready"))
    gone = Fault(Code.WRONG_STATE, "va.fsgo needs a freeze that waits in phase ready; the state is THAWED")
    asked, value = played(barrier.go(), gone)
    assert [call.method for call in asked] == ["va.fsgo"]
    assert value is gone
    assert barrier.prepared, "it is called off by whoever sees to all of the group"
    asked, _ = played(barrier.call_off(), 0)
    assert [call.method for call in asked] == ["va.fsthaw"]
    last = Last(5, "cancelled", False, 0, 0, "its host has left; nothing was frozen", 1.0)
    _, value = played(Barrier("unix:/b", Wanted()).prepare(), 10**9, GOES_ON, told("THAWED", "", last=last))
    assert value.code is Code.FREEZE_FAILED
    assert value.text == "its host has left; nothing was frozen"


def test_made_ready_again_it_is_called_off_by_its_new_number() -> None:
    barrier = Barrier("unix:/a", Wanted())
    played(barrier.prepare(), 10**9, GOES_ON, told("INPROGRESS", "ready"))
    asked, _ = played(barrier.call_off(), 0)
    assert asked[0].params[0]["freeze_id"] == 5
    vetoed = Fault(Code.BUSY, "8 workers run")
    played(barrier.prepare(), 10**9, GOES_ON, vetoed)
    asked, _ = played(barrier.call_off(), 0)
    assert "freeze_id" not in asked[0].params[0], "it names the freeze that was called off before"
