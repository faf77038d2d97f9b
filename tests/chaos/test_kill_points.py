"""Each process dies at each report message and at each journal write in turn; the list comes from a clean run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hooks import Hooks
from harness.hosts import GONE, call, code_of
from harness.processes import kill, until
from harness.questions import assert_well, assert_writable, resting, wait_orphans
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(600)

WORKER, SUPERVISOR, THAWER = "kill:va.fsfreeze", "kill:supervisor", "kill:thaw"
MESSAGES = {"Started", "Progress", "Plan", "Step", "Synced", "Frozen", "Thawing", "Done"}


def nested(rig: Rig) -> list[LoopFs]:
    outer = rig.fs("ext4")
    return [outer, rig.fs("ext4", outer=outer)]


def start(rig: Rig, hooks: Hooks, *options: str, **more: Any) -> Daemon:
    patient = ("--patience", "60", *options)  # what a busy machine is slow with is not to be thawed and frozen again
    return rig.daemon([rig.everywhere], patient, module="harness.hooked", env=hooks.env, **more)


def keeper(daemon: Daemon) -> int:
    (found,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return found


def freeze_and_thaw(daemon: Daemon) -> list[Any]:
    """Return the two answers, a fault as its code."""
    answers = [call(daemon, "va.fsfreeze")]
    if answers[0] is not GONE:
        answers.append(call(daemon, "va.fsthaw"))
    return [code_of(answer) or answer for answer in answers]


def clean_run(rig: Rig, hooks: Hooks, count: int) -> list[str]:
    """Return the points of a freeze and thaw in which nothing dies."""
    daemon = start(rig, hooks)
    hooks.list_points()
    assert freeze_and_thaw(daemon) == [count, count]
    daemon.stop()
    points = hooks.points()
    said = {point.split()[2] for point in points if point.startswith("before va.fsfreeze ")}
    assert said == MESSAGES
    assert not [point for point in points if point.endswith(" again")], points
    return points


def broken_run(rig: Rig, hooks: Hooks, count: int) -> list[str]:
    """Return the points of a freeze whose keeper dies, and of the thaw worker that undoes it."""
    daemon = start(rig, hooks)
    hooks.list_points()
    freeze_and_lose(daemon, count)
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN
    daemon.stop()
    return hooks.points()


def freeze_and_lose(daemon: Daemon, count: int) -> None:
    """Freeze, kill the keeper, and wait until the supervisor has thawed or died."""
    assert call(daemon, "va.fsfreeze") == count
    kill(keeper(daemon))
    while True:
        record = call(daemon, "va.fsstatus", {})
        if record is GONE or record["state"] == "THAWED":
            return
        call(daemon, "va.fsstatus", {"since": record["seq"], "wait": 10})


def restarted(rig: Rig, dead: Daemon, every: Sequence[LoopFs], answers: Sequence[Any], *, over: bool = False) -> None:
    """Start the daemon again where one died, and ask whether it tells the truth and all is well.

    `over`: the freeze was held until it was thawed, and only the answer that says so was lost.
    """
    journal = (dead.state_dir / "journal").exists()
    daemon = rig.daemon([rig.everywhere], state_dir=dead.state_dir)
    told = call(daemon, "va.fsthaw")
    assert code_of(told) == Code.FREEZE_BROKEN if journal else told == 0
    if list(answers) == [len(every), GONE] and not over:
        assert journal, "it was frozen, the host was told, and nothing knows of it any more"
    assert_well(rig, daemon, every)
    daemon.stop()


def dies(rig: Rig, hooks: Hooks, every: Sequence[LoopFs], point: str, *acts: str) -> None:
    """Have the supervisor die at the point, alone or with others, and see that nothing stays frozen."""
    daemon = start(rig, hooks)
    hooks.at(point, *acts)
    answers = freeze_and_thaw(daemon)
    daemon.process.wait(10)
    assert hooks.spent, f"nothing died at {point}"
    wait_orphans(rig)
    if acts == (SUPERVISOR,):
        assert_writable(every)
    restarted(rig, daemon, every, answers, over="journal remove" in point)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("btrfs", [False, True], ids=["", "btrfs"])
def test_worker_killed_at_each_message(rig: Rig, hooks: Hooks, moment: str, btrfs: bool) -> None:
    every = [rig.fs("btrfs")] if btrfs else [*nested(rig), rig.fs("xfs")]
    count = len(every)
    points = [p for p in clean_run(rig, hooks, count) if p.startswith(f"{moment} va.fsfreeze ")]
    frozen = points.index(f"{moment} va.fsfreeze Frozen")
    if btrfs:
        # SIGKILL inside FITHAW may turn a btrfs read-only (docs/adr/0015).
        del points[frozen + 1 :]
    daemon = start(rig, hooks)
    rest = resting(rig, daemon)
    for number, point in enumerate(points):
        hooks.at(point, WORKER)
        answers = freeze_and_thaw(daemon)
        assert hooks.spent, f"nothing died at {point}"
        failed, held, thawed = [Code.WORKER_DIED, 0], [count, count], [count, Code.FREEZE_BROKEN]
        # Up to Frozen the host gets the death; then its thaw says that the freeze was broken: the keeper's counters
        # die with it until it has said Thawing, and what its FITHAW found until it has told of that.
        if number < frozen or (number == frozen and moment == "before"):
            assert answers == failed, point
        elif number == frozen or (moment == "before" and point.endswith((" Thawing", " thawed"))):
            assert answers == thawed, point
        elif point.endswith((" thawing", " thawed")):
            assert answers in (thawed, held), point  # the result of the FITHAW of another one may have died with it
        else:
            assert answers == held, point
        assert_well(rig, daemon, every, rest)


@pytest.mark.parametrize("acts", [(SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["supervisor", "both"])
def test_killed_at_each_message_of_the_worker(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    """Just before each message, which is just after what it tells of."""
    every = nested(rig)
    for point in clean_run(rig, hooks, 2):
        if point.startswith("before va.fsfreeze "):
            dies(rig, hooks, every, point, *acts)


@pytest.mark.parametrize("acts", [(WORKER,), (SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["worker", "supervisor", "both"])
@pytest.mark.usefixtures("grace_periods")
def test_killed_while_grace_periods_are_expedited(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    every = nested(rig)
    points = [point for point in clean_run(rig, hooks, 2) if point.split()[1] == "grace"]
    assert {point.split()[2] for point in points} == {"expedite", "restore"}
    for point in dict.fromkeys(points):
        if acts == (WORKER,):
            daemon = start(rig, hooks)
            hooks.at(point, WORKER)
            assert freeze_and_thaw(daemon) == [Code.WORKER_DIED, 0]
            assert hooks.spent, f"nothing died at {point}"
            assert_well(rig, daemon, every)
            daemon.stop()
        else:
            dies(rig, hooks, every, point, *acts)
        assert linux.expedited() == "0", point


@pytest.mark.parametrize("moment", ["before", "after"])
def test_supervisor_killed_at_each_thing_that_it_takes(rig: Rig, hooks: Hooks, moment: str) -> None:
    every = nested(rig)
    for point in clean_run(rig, hooks, 2):
        if point.startswith(f"{moment} supervisor "):
            dies(rig, hooks, every, point, SUPERVISOR)


@pytest.mark.parametrize("acts", [(SUPERVISOR,), (SUPERVISOR, WORKER)], ids=["supervisor", "both"])
def test_killed_at_each_journal_write(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    every = nested(rig)
    points = [point for point in clean_run(rig, hooks, 2) if " journal " in point]
    assert {point.split()[2] for point in points} == {"write", "rename", "remove"}
    for point in points:
        # The journal is removed when the worker is reaped: then there is nobody else to kill.
        dies(rig, hooks, every, point, *(acts[:1] if "remove" in point else acts))


@pytest.mark.parametrize("acts", [(THAWER,), (SUPERVISOR,), (SUPERVISOR, THAWER)], ids=["thawer", "supervisor", "both"])
def test_killed_at_each_message_of_the_thaw_worker(rig: Rig, hooks: Hooks, acts: tuple[str, ...]) -> None:
    every = nested(rig)
    for point in broken_run(rig, hooks, 2):
        if point.split()[1] == "thaw":
            loses(rig, hooks, every, point, *acts)


def test_supervisor_killed_while_it_undoes_a_broken_freeze(rig: Rig, hooks: Hooks) -> None:
    """At each thing that it takes, and at each journal write."""
    every = nested(rig)
    points = broken_run(rig, hooks, 2)
    lost = points.index("before supervisor va.fsfreeze exit")
    for point in points[lost:]:
        if point.split()[1] in ("supervisor", "journal") and "va.fsstatus" not in point:
            loses(rig, hooks, every, point, SUPERVISOR)


def loses(rig: Rig, hooks: Hooks, every: Sequence[LoopFs], point: str, *acts: str) -> None:
    """Kill the keeper, and at the point of what follows whoever `acts` say."""
    daemon = start(rig, hooks)
    hooks.at(point, *acts)
    freeze_and_lose(daemon, len(every))
    told = call(daemon, "va.fsthaw")
    until(lambda: hooks.spent, 10, f"a death at {point}")  # it may come just after the answer
    if acts == (THAWER,):
        assert code_of(told) == Code.FREEZE_BROKEN, point
        assert_well(rig, daemon, every)
        daemon.stop()
        return
    daemon.process.wait(10)
    wait_orphans(rig)
    if code_of(told) == Code.FREEZE_BROKEN:
        again = rig.daemon([rig.everywhere], state_dir=daemon.state_dir)
        call(again, "va.fsthaw")  # it may tell twice: it died between the answer and the removal of the journal
        assert_well(rig, again, every)
        again.stop()
    else:
        restarted(rig, daemon, every, [len(every), told])
