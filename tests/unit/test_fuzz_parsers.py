"""A short, seeded run of what scripts/fuzz feeds to everything that reads what others wrote."""

from __future__ import annotations

import random

import pytest
from fakes.mutations import MOST, corpus, mutated
from fakes.parsers import PARSERS, feed


@pytest.mark.parametrize("name", PARSERS)
def test_whatever_it_is_fed_it_reads_or_refuses(name: str) -> None:
    count = 300
    refused = feed(PARSERS[name], 1, count)
    assert refused < count, "it refuses everything: the corpus has nothing that it can read"
    assert refused or name == "wire"


def test_a_seed_makes_the_same_inputs() -> None:
    def some(seed: int) -> list[bytes]:
        chance, entries = random.Random(seed), corpus("wire")
        return [mutated(chance, entries) for _ in range(50)]

    assert some(3) == some(3)
    assert some(3) != some(4)
    assert all(len(one) <= MOST for one in some(3))
