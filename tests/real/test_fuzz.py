"""A short, seeded run of scripts/fuzz against a real daemon."""

from __future__ import annotations

import pytest
from harness.fuzzing import Watched, fuzz
from harness.hosts import call
from harness.rig import Rig

INPUTS = 3000
MEMORY_KIB = 96 << 10


@pytest.mark.timeout(300)
def test_whatever_hosts_send_others_are_served(rig: Rig) -> None:
    watched = Watched(rig)
    figures = fuzz(watched, 1, inputs=INPUTS)
    assert figures.inputs >= INPUTS
    assert (figures.deaths, figures.defects) == (0, []), figures.table()
    assert figures.given_up <= figures.conversations // 200, figures.table()
    assert figures.memory_kib < MEMORY_KIB, figures.table()
    assert figures.descriptors < 100, figures.table()
    assert figures.pings, "nobody was served meanwhile"
    watched.daemon.wait_state("THAWED")
    call(watched.daemon, "va.fsthaw")  # it may tell that the hold limit of a freeze passed
    assert call(watched.daemon, "va.fsfreeze") == 1
    assert call(watched.daemon, "va.fsthaw") == 1
