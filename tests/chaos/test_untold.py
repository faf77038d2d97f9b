"""A broken freeze that nobody was told of is told by the next va.fsthaw, whatever came between."""

from __future__ import annotations

import pytest
from harness.hooks import Hooks
from harness.hosts import GONE, call, code_of
from harness.processes import kill
from harness.questions import assert_well
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(60)


def test_another_freeze_fails_meanwhile(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze", {"hold_limit": 0.2}) == 1
    assert daemon.wait_state("THAWED")["last"]["outcome"] == "expired"
    assert fs.freeze() == "ok"
    assert code_of(call(daemon, "va.fsfreeze")) == Code.FREEZE_FAILED
    assert fs.thaw() == "ok"
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN, "the host of the first freeze is told 0"
    assert_well(rig, daemon, [fs])


def test_agent_dies_in_another_freeze_meanwhile(rig: Rig) -> None:
    """The journal of the second freeze takes the place of the one that kept the news."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze", {"hold_limit": 0.2}) == 1
    daemon.wait_state("THAWED")
    assert fs.freeze() == "ok"
    assert code_of(call(daemon, "va.fsfreeze")) == Code.FREEZE_FAILED
    assert fs.thaw() == "ok"
    daemon.kill()
    again = rig.daemon([fs], state_dir=daemon.state_dir)
    assert code_of(call(again, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, again, [fs])


def test_agent_dies_with_the_news(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert call(daemon, "va.fsfreeze", {"hold_limit": 0.2}) == 1
    daemon.wait_state("THAWED")
    for _ in range(2):
        daemon.kill()
        daemon = rig.daemon([fs], state_dir=daemon.state_dir)
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    assert_well(rig, daemon, [fs])


def test_agent_dies_as_it_tells(rig: Rig, hooks: Hooks) -> None:
    """It may tell twice, but not never: the journal goes after the answer."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], module="harness.hooked", env=hooks.env)
    assert call(daemon, "va.fsfreeze") == 1
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    kill(keeper)
    daemon.wait_state("THAWED")
    hooks.at("after journal remove 1", "kill:supervisor")
    told = call(daemon, "va.fsthaw")
    daemon.process.wait(10)
    again = rig.daemon([fs], state_dir=daemon.state_dir)
    told_again = call(again, "va.fsthaw")
    assert told is not GONE or code_of(told_again) == Code.FREEZE_BROKEN
    assert_well(rig, again, [fs])
