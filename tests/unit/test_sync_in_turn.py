"""The sync: on each disk one file system after another, disks in parallel, then all together."""

from __future__ import annotations

from dataclasses import replace

from fakes.driven import Driven, options, plan_of
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import messages
from virtagent.agent.worker.freeze import SYNC_GAIN, SYNC_ROUNDS, SYNC_STUCK, Flush
from virtagent.agent.worker.steps import Operation

SYNC = Operation.SYNC


def on(*disks: str) -> Plan:
    """Return a plan with a file system on the disks (each a letter) of each argument."""
    plan = plan_of(*[()] * len(disks))
    return replace(plan, mounts=tuple(replace(m, bottom=tuple(d)) for m, d in zip(plan.mounts, disks, strict=True)))


def begun(plan: Plan, seconds: dict[int, float]) -> list[float]:
    """Return when the first sync of each began, if these last that long."""
    driven = Driven(plan, lasts={(index, SYNC): [lasts] for index, lasts in seconds.items()})
    count = len(plan.mounts)
    assert driven.run(Flush(options()).run()) == count
    first: dict[int, float] = {}
    for at, _, index in driven.history:
        first.setdefault(index, at)
    return [first[index] for index in range(count)]


def test_one_after_another_on_a_disk_and_disks_in_parallel() -> None:
    assert begun(on("a", "a", "a", "b", "b"), {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}) == [0, 2, 3, 0, 1]


def test_only_the_last_round_is_all_together() -> None:
    """Each round is half as long as the one before, as with writers that never stop."""
    driven = Driven(on("a", "a", "b"), lasts={(0, SYNC): [2.0, 1.0], (1, SYNC): [2.0, 1.0]})
    driven.run(Flush(options()).run())
    assert [(at, index) for at, _, index in driven.history] == [
        *[(0, 0), (0, 2), (2, 1)],
        *[(4, 0), (4, 2), (5, 1)],
        *[(6, 0), (6, 1), (6, 2)],
    ]
    assert [p.round for p in driven.said(messages.Progress) if p.round][-1] == SYNC_ROUNDS


def test_where_rounds_get_no_shorter_or_are_short_there_is_no_more() -> None:
    slow = Driven(on("a", "a"), lasts={(0, SYNC): [2.0, 2.0 * SYNC_GAIN + 0.1]})
    slow.run(Flush(options()).run())
    assert [index for _, _, index in slow.history] == [0, 1, 0, 1]
    clean = Driven(on("a", "a"), lasts={(0, SYNC): [0.02], (1, SYNC): [0.02]})
    clean.run(Flush(options()).run())
    assert [index for _, _, index in clean.history] == [0, 1]


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
