"""The sync: on each disk one file system after another, disks in parallel, then all together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.driven import Driven, options, plan_of
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import messages, steps
from virtagent.agent.worker.freeze import SYNC_LITTLE, SYNC_STUCK, Flush
from virtagent.agent.worker.steps import Operation

SYNC = Operation.SYNC
MUCH = SYNC_LITTLE


class Dirty(Driven):
    """A guest with so many dirty bytes."""

    dirty = MUCH

    def _do(self, step: steps.Step) -> Any:
        answer = super()._do(step)
        return replace(answer, dirty_bytes=self.dirty) if isinstance(step, steps.Measure) else answer


def on(*disks: str) -> Plan:
    """Return a plan with a file system on the disks (each a letter) of each argument."""
    plan = plan_of(*[()] * len(disks))
    return replace(plan, mounts=tuple(replace(m, bottom=tuple(d)) for m, d in zip(plan.mounts, disks, strict=True)))


def begun(plan: Plan, seconds: dict[int, float], dirty: int = MUCH) -> list[float]:
    """Return when the first sync of each began, if these last that long."""
    driven = Dirty(plan, lasts={(index, SYNC): [lasts] for index, lasts in seconds.items()})
    driven.dirty = dirty
    count = len(plan.mounts)
    assert driven.run(Flush(options()).run()) == count
    first: dict[int, float] = {}
    for at, _, index in driven.history:
        first.setdefault(index, at)
    return [first[index] for index in range(count)]


def test_one_after_another_on_a_disk_and_disks_in_parallel() -> None:
    assert begun(on("a", "a", "a", "b", "b"), {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}) == [0, 2, 3, 0, 1]


def test_the_second_round_is_all_together() -> None:
    driven = Dirty(on("a", "a", "b"), lasts={(0, SYNC): [2.0], (1, SYNC): [1.0]})
    driven.run(Flush(options()).run())
    assert [(at, index) for at, _, index in driven.history] == [(0, 0), (0, 2), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert [p.round for p in driven.said(messages.Progress) if p.round][-1] == 2


def test_one_that_is_stuck_holds_up_no_other_disk() -> None:
    assert begun(on("a", "a", "b", "b"), {0: 100, 2: 1, 3: 1}) == [0, 100, 0, 1]


def test_one_on_several_disks_takes_its_turn_on_each() -> None:
    assert begun(on("a", "ab", "b"), {0: 0.5, 1: 0.5, 2: 0.2}) == [0, 0.5, 0]
    assert begun(on("ab", "a", "b"), {0: 0.5, 1: 0.5, 2: 0.2}) == [0, 0.5, 0.5]


def test_one_that_is_stuck_on_one_of_its_disks_keeps_others_off_the_rest_only_for_a_second() -> None:
    _, first, second = begun(on("ab", "a", "b"), {0: 100})
    assert SYNC_STUCK <= first == second < 2 * SYNC_STUCK


def test_one_on_no_known_disk_waits_for_nobody() -> None:
    assert begun(on("a", "", "", "a"), {0: 3, 1: 3, 2: 3}) == [0, 0, 0, 3]


def test_where_little_is_dirty_no_queue_gets_long() -> None:
    assert begun(on("a", "a"), {0: 3}, dirty=SYNC_LITTLE - 1) == [0, 0]
    assert begun(on("a", "a"), {0: 3}, dirty=-1) == [0, 3], "not known to be little"
