"""Hypothesis plays storms: all the blows of the other tests mixed, on one world of real file systems."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from harness.actions import ACTIONS, draw
from harness.namespace import Area
from harness.rig import Rig, closed
from harness.storm import Storm, World
from harness.tally import Tally
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

FAMILIES = {
    "hosts": ["freeze", "freeze and vanish", "thaw", "thaw and vanish", "hold", "ping", "look"],
    "waits": ["wait", "wait frozen"],
    "signals": ["signal", "kill both", "continue", "restart"],
    "points": ["arm", "fail"],
    "disks": ["stall", "stall at freeze", "release", "dirty"],
    "others": ["someone freezes", "someone thaws", "cover", "unmount", "bind", "undo mounts"],
}


@pytest.fixture
def world(area: Area) -> Iterator[World]:
    rig = Rig(area)
    try:
        yield World(rig)
    finally:
        closed(rig)


def machine(world: World, tally: Tally) -> type[RuleBasedStateMachine]:
    """Return a state machine whose every example is a storm on `world`."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.storm = Storm(world, tally)

        def act(self, family: str, data: Any) -> None:
            kind = data.draw(st.sampled_from(FAMILIES[family]), label="kind")
            action = draw(kind, random.Random(data.draw(st.integers(0, 9999), label="how")))
            self.storm.do(action)

        @rule(data=st.data())
        def host(self, data: Any) -> None:
            self.act("hosts", data)

        @rule(data=st.data())
        def wait(self, data: Any) -> None:
            self.act("waits", data)

        @rule(data=st.data())
        def send_signal(self, data: Any) -> None:
            self.act("signals", data)

        @rule(data=st.data())
        def arm(self, data: Any) -> None:
            self.act("points", data)

        @rule(data=st.data())
        def disk(self, data: Any) -> None:
            self.act("disks", data)

        @rule(data=st.data())
        def someone_else(self, data: Any) -> None:
            self.act("others", data)

        @precondition(lambda self: not self.storm.done)
        @rule()
        def freeze_first(self) -> None:
            self.storm.do(draw("freeze", random.Random(5)))

        def teardown(self) -> None:
            wrong = self.storm.settle()
            assert not wrong, "\n".join([*map(str, self.storm.done), *wrong])

    return Machine


def test_every_action_belongs_to_a_family() -> None:
    assert sorted(kind for kinds in FAMILIES.values() for kind in kinds) == sorted(ACTIONS)


@pytest.mark.timeout(300)
def test_storms(world: World) -> None:
    tally = Tally()
    run_state_machine_as_test(
        machine(world, tally),
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            derandomize=os.environ.get("CI") == "true",
            # A failure is a matter of time: shrinking would only repeat it elsewhere. scripts/chaos replays a seed.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
    print(tally.table())
