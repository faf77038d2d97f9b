"""The time of day jumps. CLOCK_REALTIME of the machine is not touched, and a time namespace does not have it: so
`time.time` of the daemon is, which shows that nothing but records and titles depends on it.
"""

from __future__ import annotations

import pytest
from harness.hooks import Hooks
from harness.hosts import call, code_of
from harness.processes import kill
from harness.questions import assert_well, resting
from harness.rig import Rig
from virtagent.agent.api.errors import Code

DAY = 86400.0
JUMPS = [(DAY,), (-DAY,), (0, 1e9, -1e9), (3600, -3600, 0.5), (-1.7e9,)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("jumps", JUMPS)
def test_clock_steps(rig: Rig, hooks: Hooks, jumps: tuple[float, ...]) -> None:
    every = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon([rig.everywhere], module="harness.hooked", env=hooks.env)
    rest = resting(rig, daemon)
    assert call(daemon, "va.fsfreeze", {"hold_limit": 30}) == 2
    hooks.step_the_clock(jumps)
    record = daemon.status()
    assert 25 < record["hold_left"] <= 30
    assert 0 <= record["since"] < 25
    assert call(daemon, "va.fshold", 20) == pytest.approx(20, abs=2)
    assert call(daemon, "va.fsthaw") == 2
    last = daemon.status()["last"]
    assert 0 <= last["held_seconds"] <= last["stall_seconds"] < 25
    # The limits end what they are to end, neither earlier nor later.
    assert call(daemon, "va.fsfreeze", {"hold_limit": 0.4}) == 2
    expired = daemon.wait_state("THAWED")["last"]
    assert expired["outcome"] == "expired"
    assert 0.3 < expired["held_seconds"] < 25
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    # A message that is half there, a poll that waits, a keeper that dies.
    seq = daemon.status()["seq"]
    assert call(daemon, "va.fsstatus", {"since": seq, "wait": 0.2})["seq"] == seq
    assert call(daemon, "va.fsfreeze") == 2
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    kill(keeper)
    daemon.wait_state("THAWED")
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, daemon, every, rest)
