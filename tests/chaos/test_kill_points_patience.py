"""Each process dies at each message of a freeze that waits for a slow file system with the others thawed.

Slow is what someone else has frozen: it is thawed again when the others are, or when somebody has died.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.hidden import hidden_edge
from harness.hooks import Hooks
from harness.hosts import GONE, call, code_of
from harness.questions import assert_well, assert_writable, resting, wait_orphans
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(600)

WORKER, SUPERVISOR = "kill:va.fsfreeze", "kill:supervisor"
TRIES = 20
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
                state = {m["mountpoint"]: m["state"] for m in record["mounts"]}
                if record["state"] == "INPROGRESS" and state.get(str(self.inner)) == "thawed":
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
        assert "before va.fsfreeze Learnt" not in found, "that someone else had frozen it tells nothing"
        # How often the slow one is found busy depends on the time: only the first is sure to come.
        return [point for point in found if not point.endswith(" busy again")]


def test_worker_killed_at_each_message(rig: Rig, hooks: Hooks) -> None:
    scene = Scene(rig, hooks)
    points = scene.points()
    daemon = scene.start()
    rest = resting(rig, daemon)
    for point in points:
        hooks.at(point, WORKER)
        answers = scene.freeze_and_thaw(daemon, ours=True)  # it may be dead before it says what FIFREEZE said
        assert hooks.spent, f"nothing died at {point}"
        assert answers == [Code.WORKER_DIED, 0], point
        assert_well(rig, daemon, scene.every, rest)


@pytest.mark.parametrize("acts", [(SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["supervisor", "both"])
def test_killed_at_each_message_of_the_worker(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    scene = Scene(rig, hooks)
    for point in scene.points():
        daemon = scene.start()
        hooks.at(point, *acts)
        assert scene.freeze_and_thaw(daemon) == [GONE], point
        daemon.process.wait(10)
        assert hooks.spent, f"nothing died at {point}"
        wait_orphans(rig)
        if acts == (SUPERVISOR,):
            assert_writable(scene.every)
        again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
        assert code_of(call(again, "va.fsthaw")) == Code.FREEZE_BROKEN, point
        assert_well(rig, again, scene.every)
        again.stop()


@pytest.mark.parametrize("acts", [(WORKER,), (SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["worker", "supervisor", "both"])
def test_killed_as_it_learns(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    with hidden_edge(rig) as (inner, outer):
        every = [outer, inner, rig.fs("ext4")]
        options: dict[str, Any] = {"module": "harness.hooked", "env": hooks.env}
        for _ in range(TRIES):  # it may be frozen just before what it lies on is, and learn nothing
            daemon = rig.daemon([rig.everywhere], ("--patience", "0.3"), **options)
            inner.fill(1 << 20)
            hooks.at("before va.fsfreeze Learnt", *acts)
            answer = call(daemon, "va.fsfreeze")
            if hooks.spent:
                break
            assert (answer, call(daemon, "va.fsthaw")) == (3, 3)
            daemon.stop()
        assert hooks.spent, "nothing was learnt"
        if acts == (WORKER,):
            assert code_of(answer) == Code.WORKER_DIED
            assert_well(rig, daemon, every)
            daemon.stop()
            return
        assert answer is GONE
        daemon.process.wait(10)
        wait_orphans(rig)
        if acts == (SUPERVISOR,):
            assert_writable(every)
        again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
        assert code_of(call(again, "va.fsthaw")) == Code.FREEZE_BROKEN
        assert_well(rig, again, every)
        again.stop()
