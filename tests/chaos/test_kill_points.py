"""The freeze worker dies at each of its report messages in turn; the list comes from a clean run.

Afterwards the same four questions: are the file systems writable, is the state THAWED, was the answer true, does the
next freeze work?
"""

from __future__ import annotations

import xmlrpc.client

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.rig import Rig
from virtagent.agent.errors import Code


def file_systems(rig: Rig) -> list[LoopFs]:
    outer = rig.fs("ext4")
    return [outer, rig.fs("ext4", outer=outer), rig.fs("xfs"), rig.fs("btrfs")]


def start(rig: Rig, order: str) -> Daemon:
    return rig.daemon([rig.everywhere], module="harness.killing", env={"VIRTAGENT_KILL": order})


def messages(rig: Rig) -> list[str]:
    """Return the messages of a freeze and thaw in which nothing dies."""
    listed = rig.area.fresh("messages")
    daemon = start(rig, f"list:{listed}")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 4
    assert host.va.fsthaw() == 4
    daemon.stop()
    return listed.read_text().splitlines()


def answers(daemon: Daemon) -> list[object]:
    """Freeze and thaw, whatever happens; return the values or fault codes."""
    host = daemon.proxy()
    given: list[object] = []
    for call in (host.va.fsfreeze, host.va.fsthaw):
        try:
            given.append(call())
        except xmlrpc.client.Fault as fault:
            given.append(Code(fault.faultCode))
    return given


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_at_each_message(rig: Rig, moment: str) -> None:
    every = file_systems(rig)
    listed = messages(rig)
    kinds = {line.split()[0] for line in listed}
    assert kinds == {"Started", "Progress", "Plan", "Step", "Frozen", "Thawing", "Done"}
    frozen_at = listed.index("Frozen")
    for number, message in enumerate(listed):
        daemon = start(rig, f"{moment}:{number}")
        given = answers(daemon)
        assert (daemon.state_dir / "spent").exists(), f"nothing died at {number} {message}"
        daemon.wait_state("THAWED")
        for fs in every:
            fs.assert_thawed()
            fs.assert_writable()
        failed, held, thawed = [Code.WORKER_DIED, 0], [4, 4], [4, Code.FREEZE_BROKEN]
        # Up to Frozen the host gets the death; while it is held, its thaw says that it was broken; a keeper that dies
        # when it was told to thaw has held it long enough: the answer is what the file systems were.
        if number < frozen_at or (number == frozen_at and moment == "before"):
            assert given == failed, message
        elif number == frozen_at:
            assert given in (thawed, held), message
        else:
            assert given == held, message
        host = daemon.proxy()
        assert host.va.fsfreeze() == 4, message
        assert host.va.fsthaw() == 4, message
        daemon.stop()
