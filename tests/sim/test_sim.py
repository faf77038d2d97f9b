"""Ten thousand storms without a violation; and that storms are what they are taken for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from . import defects, storm

STORMS = 10_000
PARTS = 20
QUICK = (
    "a thaw that failed counts as thawed",
    "compensation is forgotten after the reaping",
    "the thaw is answered before all is thawed",
)
"""Planted defects that few storms find; `scripts/sim --defects` plants them all."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_storms(part: int) -> None:
    for seed in range(part * STORMS // PARTS, (part + 1) * STORMS // PARTS):
        _, failure = storm.run(seed)
        if failure is not None:
            shrunk = storm.shrink(failure)
            trace = "\n".join(storm.traced(shrunk))
            pytest.fail(f"scripts/sim --replay {seed}: {failure.why}\n{shrunk.actions}\n{trace}", pytrace=False)


def test_a_seed_is_a_storm() -> None:
    assert storm.trace_of(7) == storm.trace_of(7)
    assert storm.trace_of(7) != storm.trace_of(8)


def test_storms_reach_what_they_are_for() -> None:
    """The counts say that storms are no calm: each of these happens in a few hundred of them."""
    counts: Counter[str] = Counter()
    for seed in range(300):
        counts.update(storm.run(seed)[0])
    for what in (
        *(
            "FROZEN",
            "ERROR",
            "fork of thaw",
            "death between two effects",
            "start",
            "another",
            "disk",
            "error",
            "rubbish",
        ),
        *("thaw answered FREEZE_BROKEN", "thaw answered FAILED", "thaw answered with a number", "hang up"),
        *("writer held", "writer let go", "fork of unlatch", "app", "ask freeze-at", "ask go"),
        *("attended freeze left alone", "attended freeze let go"),
        *("fault forks_fail", "fault journal_fails", "fault pipes_full", "fault no_threads"),
    ):
        assert counts[what], what


@pytest.mark.parametrize("name", list(defects.DEFECTS))
def test_each_planted_defect_can_be_planted(name: str) -> None:
    with defects.planted(name):
        pass


def test_the_docs_say_after_how_many_storms_each_planted_defect_is_found() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in page.partition("## Planted defects")[2].splitlines()]
    table = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}
    assert set(table) <= set(defects.DEFECTS)
    assert len(table) >= 25
    assert all(0 < after <= 20_000 for after in table.values())


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_defect_is_found_and_shrunk(name: str) -> None:
    with defects.planted(name):
        failure = next(found for seed in range(20_000) if (found := storm.run(seed)[1]) is not None)
        shrunk = storm.shrink(failure, 500)
        assert storm.kind(shrunk.why) == storm.kind(failure.why)
        assert len(shrunk.actions) < len(failure.actions)
        assert storm.traced(shrunk)[-1] == shrunk.why
    assert storm.replay(shrunk.layout, shrunk.actions) == "", "without the defect all is well"
