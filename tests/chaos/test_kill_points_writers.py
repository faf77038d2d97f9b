"""Each process dies at each message of a writer in turn: nothing stays frozen, and each hook that was begun is undone.

Whoever dies, the calls are pairs: `thaw` once for each `freeze`, and none without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.hooks import Hooks
from harness.hosts import GONE, call, code_of
from harness.questions import BOUND, assert_writable, unwell, wait_orphans
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(600)

WRITER, KEEPER, SUPERVISOR = "kill:writer", "kill:va.fsfreeze", "kill:supervisor"
PAIR = ["freeze", "thaw"]


class Played:
    """A guest with one file system and one hook, which notes what it is called with."""

    def __init__(self, rig: Rig, hooks: Hooks) -> None:
        self.rig, self.hooks = rig, hooks
        self.fs = rig.fs("ext4")
        folder = rig.area.fresh("called")
        folder.mkdir()
        self._calls = folder / "calls"
        self._hook = folder / "hook"
        self._hook.write_text(f"#!/bin/sh\necho $1 >>{self._calls}\n")
        self._hook.chmod(0o755)

    def start(self, state_dir: Path | None = None) -> Daemon:
        options = ["--hook", str(self._hook), "--patience", "60"]
        more = {"module": "harness.hooked", "env": self.hooks.env} if state_dir is None else {}
        return self.rig.daemon([self.fs], options, state_dir=state_dir, **more)  # type: ignore[arg-type]

    def calls(self) -> list[str]:
        """Return what the hook was called with, and forget it."""
        found = self._calls.read_text().split() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return found

    def points(self) -> list[str]:
        """Return the points of a freeze and thaw in which nothing dies."""
        daemon = self.start()
        self.hooks.list_points()
        assert [call(daemon, "va.fsfreeze"), call(daemon, "va.fsthaw")] == [1, 1]
        daemon.stop()
        assert self.calls() == PAIR
        return [point for point in self.hooks.points() if " writer " in point and "exit" not in point]

    def well(self, daemon: Daemon, point: str) -> None:
        """Require that all is let go, and that the next freeze is as any other."""
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"], BOUND)
        assert_writable([self.fs])
        assert self.calls() in ([], PAIR), point
        left = [path.name for path in (daemon.state_dir / "writers").glob("*") if path.suffix != ".lock"]
        assert not left, f"{point}: {left}"
        while (told := call(daemon, "va.fsthaw")) != 0:
            assert code_of(told) == Code.FREEZE_BROKEN, point
        assert [call(daemon, "va.fsfreeze"), call(daemon, "va.fsthaw")] == [1, 1], point
        assert self.calls() == PAIR, point
        assert not unwell(daemon.log()), unwell(daemon.log())


SAID = {"Started", "Acted prepare", "Acted quiesce", "Acted confirm", "Acted release", "Done"}


def said(points: Sequence[str]) -> set[str]:
    return {" ".join(point.split()[2:]) for point in points if point.startswith("before writer ")}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_writer_killed_at_each_message(rig: Rig, hooks: Hooks, moment: str) -> None:
    played = Played(rig, hooks)
    points = played.points()
    assert said(points) == SAID
    daemon = played.start()
    for point in points:
        if not point.startswith(f"{moment} writer "):
            continue
        hooks.at(point, WRITER)
        answers = [call(daemon, "va.fsfreeze"), call(daemon, "va.fsthaw")]
        assert hooks.spent, f"nothing died at {point}"
        # What it has confirmed holds; what it does afterwards is undone by another.
        late = any(word in point for word in ("Acted release", "Done")) or point == "after writer Acted confirm"
        vetoed = code_of(answers[0]) == Code.VETOED and answers[1] == 0
        assert answers == [1, 1] if late else vetoed, (point, answers)
        played.well(daemon, point)


@pytest.mark.parametrize(
    "acts",
    [(SUPERVISOR,), (SUPERVISOR, WRITER), (SUPERVISOR, KEEPER), (SUPERVISOR, KEEPER, WRITER)],
    ids=["supervisor", "and-writer", "and-keeper", "all"],
)
def test_killed_at_each_message_of_the_writer(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    """Just before each message, which is just after what it tells of, and as the supervisor takes it."""
    played = Played(rig, hooks)
    for point in played.points():
        if not point.startswith("before "):
            continue
        daemon = played.start()
        hooks.at(point, *acts)
        if call(daemon, "va.fsfreeze") is not GONE:
            call(daemon, "va.fsthaw")
        daemon.process.wait(BOUND)
        assert hooks.spent, f"nothing died at {point}"
        wait_orphans(rig, 30)
        again = played.start(daemon.state_dir)
        played.well(again, point)
        again.stop()
