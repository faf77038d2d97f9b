"""The pytest side of the harness: the fixture `rig`, and what happens where the machine lacks something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from . import linux
from .namespace import Area
from .rig import Rig

EXPEDITED = "/sys/kernel/rcu_expedited"


def unmet(reason: object) -> NoReturn:
    """Skip the test with the reason; in CI, where a skipped test would hide that nothing was tested, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"not skipped, since CI=true: {reason}", pytrace=False)
    pytest.skip(str(reason))


@pytest.fixture
def rig(area: Area) -> Iterator[Rig]:
    """Make file systems, stalls, daemons and writers; afterwards all is thawed, ended and unmounted, or the test fails.

    A test may ask for `rig` only: whatever must be taken down first is then taken down first.
    """
    made = Rig(area)
    wrong: list[str] = []
    try:
        yield made
    finally:
        wrong = made.close()
    if wrong:
        pytest.fail("after the test:\n" + "\n".join(wrong), pytrace=False)


@pytest.fixture
def grace_periods(rig: Rig) -> Iterator[Path]:
    """Lay a file of the test's own over the switch that the whole machine shares, for the daemons started after it."""
    if not linux.expedited():
        unmet("this kernel has no /sys/kernel/rcu_expedited")
    own = rig.area.fresh("rcu_expedited")
    own.write_text("0\n")
    linux.mount(str(own), EXPEDITED, flags=linux.MS_BIND)
    try:
        yield own
    finally:
        linux.umount(EXPEDITED, linux.MNT_DETACH)
