"""When another sync round is worth its time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from virtagent.agent.freeze import SYNC_GAIN, SYNC_SHORT, worth_another


@pytest.mark.parametrize(
    ("took", "before", "worth"),
    [
        (5.0, math.inf, True),
        (SYNC_SHORT, math.inf, True),
        (SYNC_SHORT / 2, math.inf, False),
        (4.0, 5.0, True),
        (4.1, 5.0, False),
        (SYNC_SHORT / 2, 5.0, False),
    ],
)
def test_another_round_follows_one_that_is_long_and_shorter_than_the_last(
    took: float, before: float, worth: bool
) -> None:
    assert worth_another(took, before) is worth


def test_the_rounds_end_whatever_the_writers_do() -> None:
    rounds = [600.0]
    while worth_another(rounds[-1], rounds[-2] if len(rounds) > 1 else math.inf):
        rounds.append(rounds[-1] * SYNC_GAIN)
    assert all(later < earlier for earlier, later in pairwise(rounds))
    assert sum(rounds) <= 600 / (1 - SYNC_GAIN)
