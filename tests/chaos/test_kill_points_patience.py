"""Each process dies at each message of a freeze that waits for a slow file system with the others thawed.

Slow is what someone else has frozen: it is thawed again when the others are, or when somebody has died.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.hooks import Hooks
from harness.hosts import GONE, call, code_of
from harness.questions import assert_well, assert_writable, resting, wait_orphans
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(600)

WORKER, SUPERVISOR = "kill:va.fsfreeze", "kill:supervisor"
LEAST = (
    0.5  # how often the slow one is tried, and what is synced again, depends on the time: not each point comes again
)
# The latter if the test did not see in time that the others were thawed.
LIVED = ([3, 3], [Code.FREEZE_FAILED, 0])
OPTIONS = ("--patience", "0.1", "--busy-wait", "20")


class Scene:
    """Three file systems, of which one lies on another, and a slow one."""

    def __init__(self, rig: Rig, hooks: Hooks) -> None:
        outer = rig.fs("ext4")
        self.inner, self.slow = rig.fs("ext4", outer=outer), rig.fs("ext4")
        self.every = [outer, self.inner, self.slow]
        self._rig, self._hooks = rig, hooks

    def start(self, **more: Any) -> Daemon:
        return self._rig.daemon([self._rig.everywhere], OPTIONS, module="harness.hooked", env=self._hooks.env, **more)

    def freeze_and_thaw(self, daemon: Daemon, *, ours: bool = False) -> list[Any]:
        """Return the answers to a freeze that has to wait for the slow one, and to its thaw, a fault as its code.

        `ours`: the agent cannot know that the slow one was frozen by someone else.
        """
        assert self.slow.freeze() == "ok"
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(call(daemon, "va.fsfreeze")))
        asking.start()
        try:
            record = call(daemon, "va.fsstatus", {})
            while record is not GONE and record["state"] in ("INPROGRESS", "THAWED") and asking.is_alive():
                inner = [m["state"] for m in record["mounts"] if m["mountpoint"] == str(self.inner)]
                if record["state"] == "INPROGRESS" and inner == ["thawed"]:
                    break
                record = call(daemon, "va.fsstatus", {"since": record["seq"], "wait": 5})
        finally:
            thawed = self.slow.thaw()
        assert thawed == "ok" or (ours and thawed == "EINVAL"), "nobody thaws what someone else has frozen"
        asking.join(30)
        if answers[0] is not GONE:
            answers.append(call(daemon, "va.fsthaw"))
        return [code_of(answer) or answer for answer in answers]

    def points(self) -> list[str]:
        """Return the points from the first that is not in every freeze to the answer; nothing dies."""
        daemon = self.start()
        self._hooks.list_points()
        assert self.freeze_and_thaw(daemon) == [3, 3]
        daemon.stop()
        points = [point for point in self._hooks.points() if point.startswith("before va.fsfreeze ")]
        said = [point.removeprefix("before va.fsfreeze ") for point in points]
        first = next(n for n, what in enumerate(said) if what.endswith(" busy"))
        found = points[first : said.index("Frozen") + 1]
        new = {"busy", "thawing", "thawed", "syncing again", "synced again", "freezing again", "frozen again"}
        assert new < {point.split(maxsplit=4)[-1] for point in found}
        assert "before va.fsfreeze Learnt" in found
        return found


def test_worker_killed_at_each_message(rig: Rig, hooks: Hooks) -> None:
    scene = Scene(rig, hooks)
    points = scene.points()
    daemon = scene.start()
    rest = resting(rig, daemon)
    spent = 0
    for point in points:
        hooks.at(point, WORKER)
        answers = scene.freeze_and_thaw(daemon, ours=True)  # it may be dead before it says what FIFREEZE said
        spent += hooks.spent
        assert answers in ([[Code.WORKER_DIED, 0]] if hooks.spent else LIVED), point
        assert_well(rig, daemon, scene.every, rest)
    assert spent >= LEAST * len(points), "hardly anything died"


@pytest.mark.parametrize("acts", [(SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["supervisor", "both"])
def test_killed_at_each_message_of_the_worker(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    scene = Scene(rig, hooks)
    points, spent = scene.points(), 0
    for point in points:
        daemon = scene.start()
        hooks.at(point, *acts)
        answers = scene.freeze_and_thaw(daemon)
        if not hooks.spent:
            assert answers in LIVED, point
            daemon.stop()
            continue
        spent += 1
        assert answers == [GONE], point
        daemon.process.wait(10)
        wait_orphans(rig)
        if acts == (SUPERVISOR,):
            assert_writable(scene.every)
        again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
        assert code_of(call(again, "va.fsthaw")) == Code.FREEZE_BROKEN, point
        assert_well(rig, again, scene.every)
        again.stop()
    assert spent >= LEAST * len(points), "hardly anything died"
