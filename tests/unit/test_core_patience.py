"""A file system that is thawed and frozen again before Frozen is told: what may be frozen, what is known of it."""

from __future__ import annotations

import errno
import json

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import ended, played, settled
from virtagent.agent.api import records
from virtagent.agent.api.bounds import ALIASES_MAX, LEARNT_MAX
from virtagent.agent.api.errors import Code
from virtagent.agent.api.records import Learnt
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.agent.worker.messages import Step
from virtagent.supervisor.core import events
from virtagent.supervisor.core.learnt import MOST, MOST_IDS

STEPS = ("thawing", "thawed", "syncing", "synced", "freezing", "frozen")
"""The second life of a file system that did not have to stand still for a slow one."""


def impatient(drive: Drive, until: str = "frozen") -> tuple[Asked, int]:
    """Play a freeze in which 1 is slow: 0 is thawed after a second and frozen again, up to a step of its."""
    call, worker = played(drive, "freezing", frozen=(0,))
    for state in STEPS[: STEPS.index(until) + 1]:
        drive.wait(1)
        if state == "syncing":
            drive.report(worker, Step(1, "frozen"))
        drive.report(worker, Step(0, state))
    return call, worker


def hold(drive: Drive) -> tuple[Asked, int]:
    call, worker = impatient(drive)
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert call.value == 2
    return call, worker


def test_it_is_held_and_thawed_as_any_other(drive: Drive) -> None:
    _, worker = hold(drive)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(worker)
    assert thaw.value == 2
    ended(drive, "thawed")


def test_someone_else_who_thaws_it_in_its_second_life_is_found(drive: Drive) -> None:
    _, worker = hold(drive)
    thaw = drive.ask("va.fsthaw")
    drive.report(worker, messages.Thawing("", drive.now))
    drive.undo(worker, 1)
    drive.undo(worker, 0, refused=errno.EINVAL)
    drive.report(worker, messages.Done(2))
    drive.exit(worker)
    thaw.refused(Code.FREEZE_BROKEN, "someone else had thawed /srv/0")


def test_someone_else_who_thaws_it_in_its_second_life_is_found_by_a_thaw_worker(drive: Drive) -> None:
    _, worker = hold(drive)
    drive.die(worker)
    drive.compensates(refused={0: errno.EINVAL})
    ended(drive, "broken", tells=())


def test_someone_else_who_thaws_it_before_it_is_frozen_again_breaks_nothing(drive: Drive) -> None:
    call, worker = played(drive, "freezing", frozen=(0,))
    drive.report(worker, Step(0, "thawing"), Step(0, "thawed", errno.EINVAL))
    drive.report(worker, Step(1, "frozen"), Step(0, "freezing"), Step(0, "frozen"))
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    thaw = drive.ask("va.fsthaw")
    drive.thaws(worker)
    assert (call.value, thaw.value) == (2, 2)


def test_frozen_while_one_is_thawed_is_a_lie(drive: Drive) -> None:
    _, worker = impatient(drive, "synced")
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert drive.killed == {worker}
    settled(drive, worker, seconds=0)


@pytest.mark.parametrize("until", STEPS)
def test_a_death_at_each_step_of_the_second_life(drive: Drive, until: str) -> None:
    call, worker = impatient(drive, until)
    drive.die(worker)
    may_be_frozen = {1} if until in ("thawed", "syncing", "synced") else {0, 1}
    assert drive.suspected(drive.newest) == may_be_frozen
    drive.compensates()
    call.refused(Code.WORKER_DIED)
    ended(drive, "failed")


@pytest.mark.parametrize("until", STEPS)
def test_cancelled_at_each_step_of_the_second_life(drive: Drive, until: str) -> None:
    call, worker = impatient(drive, until)
    drive.ask("va.fsthaw")
    assert drive.killed == {worker}
    settled(drive, worker, seconds=0)
    call.refused(Code.FREEZE_FAILED, "cancelled")
    ended(drive, "cancelled")


def test_rubbish_in_the_second_life_makes_all_suspect(drive: Drive) -> None:
    _, worker = impatient(drive, "thawed")
    drive.report(worker, Step(9, "frozen"))
    assert drive.suspected(drive.newest) == {0, 1}
    settled(drive, worker, seconds=0)


def test_the_phase_and_its_limit_stay_those_of_the_freeze(drive: Drive) -> None:
    _, worker = played(drive, "freezing", frozen=(0,))
    drive.wait(29)
    drive.report(worker, Step(0, "thawing"), Step(0, "thawed"), Step(0, "syncing"), messages.Progress("freeze"))
    assert drive.status().phase == "freeze"
    drive.wait(1)
    assert drive.killed == {worker}


def test_the_standstill_is_that_of_the_one_that_stood_still_longest(drive: Drive) -> None:
    call, worker = played(drive, "freezing", frozen=(0,))
    drive.wait(1)
    drive.report(worker, Step(0, "thawing"), Step(0, "thawed"))
    drive.report(worker, Step(1, "busy", errno.EBUSY, "frozen by someone else"))
    drive.wait(8)
    drive.report(worker, Step(0, "freezing"), Step(1, "freezing"), Step(0, "frozen"), Step(1, "frozen"))
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert call.value == 2
    drive.wait(3)
    drive.ask("va.fsthaw")
    drive.thaws(worker)
    last = drive.status().last
    assert last is not None
    assert (last.held_seconds, last.stall_seconds) == (3, 3), "each ran for the eight seconds in between"


def test_one_that_was_too_slow_twice_is_an_overrun(drive: Drive) -> None:
    call, worker = impatient(drive, "freezing")
    drive.report(worker, messages.Thawing("/srv/0 did not freeze within 1 s, for the second time", drive.now, 5))
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.report(worker, Step(0, "frozen"))
    drive.undo(worker, 1, 0)
    drive.report(worker, messages.Failed(5, "/srv/0 did not freeze within 1 s, for the second time; thawed again: 2"))
    drive.exit(worker)
    call.refused(Code.OVERRUN, "/srv/0 did not freeze", "thawed 2 of 2")
    ended(drive, "overran")


# -- what is learnt


def test_what_is_learnt_is_told_and_given_to_the_next_plans(drive: Drive) -> None:
    _, worker = impatient(drive)
    drive.report(
        worker, messages.Learnt(1, [0], ["7:1@ext47", "7:0@ext48"]), messages.Frozen(2, drive.now, drive.now + 60)
    )
    drive.ask("va.fsthaw")
    drive.thaws(worker)
    assert drive.logged("/srv/1 lies on one of: /srv/0")
    last = drive.status().last
    assert last is not None
    assert last.learnt == (Learnt("/srv/1", ("/srv/0",)),)
    for method in ("va.fsplan", "va.fsfreeze"):
        drive.ask(method)
        assert drive.spawned[drive.newest].args["options"].rules.learnt == (("7:1@ext47", ("7:0@ext48",)),)


def test_what_has_proved_wrong_is_forgotten(drive: Drive) -> None:
    _, worker = impatient(drive)
    drive.report(
        worker,
        messages.Learnt(1, [0], ["7:1@ext47", "7:0@ext48"]),
        messages.Learnt(1, [], ["7:1@ext47"]),
        messages.Learnt(0, [], ["7:0@ext48"]),
    )
    assert len(drive.logged("does not lie on")) == 1
    drive.die(worker)
    drive.compensates()
    drive.ask("va.fsfreeze")
    assert drive.spawned[drive.newest].args["options"].rules.learnt == ()


@pytest.mark.parametrize("learnt", [(2, [0]), (-1, [0]), (0, [2]), (0, [-1]), (0, [0]), (0, ["1"]), (0, [None])])
def test_what_cannot_be_learnt_is_rubbish(drive: Drive, learnt: tuple[int, list[object]]) -> None:
    _, worker = impatient(drive)
    drive.report(worker, messages.Learnt(*learnt, ["7:0@ext48", "7:1@ext47"]))  # type: ignore[arg-type]
    assert drive.killed == {worker}
    settled(drive, worker, seconds=0)


@pytest.mark.parametrize("ids", [[], ["7:0@"], ["7:0@", 1], ["7:0@", "7:1@", "7:2@"]])
def test_ids_that_fit_nothing_are_rubbish(drive: Drive, ids: list[object]) -> None:
    _, worker = impatient(drive)
    drive.report(worker, messages.Learnt(0, [1], ids))  # type: ignore[arg-type]
    assert drive.killed == {worker}
    settled(drive, worker, seconds=0)


def test_what_was_learnt_of_an_earlier_superblock_of_that_number_did_not_prove_wrong(drive: Drive) -> None:
    _, worker = impatient(drive)
    drive.report(worker, messages.Learnt(1, [0], ["7:1@ext47", "7:0@ext48"]), messages.Learnt(1, [], ["7:1@ext49"]))
    assert drive.logged("does not lie on") == []
    drive.die(worker)
    drive.compensates()
    drive.ask("va.fsfreeze")
    assert drive.spawned[drive.newest].args["options"].rules.learnt == ()


def test_no_more_is_kept_of_what_was_learnt_than_some_hundred_edges(drive: Drive) -> None:
    _, worker = played(drive, "freezing", MOST + 9)
    drive.report(worker, *(messages.Learnt(i, [0], [f"7:{i}@ext4{i}", "7:0@ext41"]) for i in range(1, MOST + 9)))
    drive.die(worker)
    drive.compensates()
    drive.ask("va.fsfreeze")
    learnt = drive.spawned[drive.newest].args["options"].rules.learnt
    assert [own for own, _ in learnt] == [f"7:{i}@ext4{i}" for i in range(9, MOST + 9)], "the oldest were dropped"


def test_of_what_was_learnt_some_is_told_by_name_and_the_rest_counted(drive: Drive) -> None:
    """Else a hundred slow ones among thousands make a status that no channel carries."""
    count, slow = 1300, 60
    _, worker = played(drive, "freezing", count)
    hosts = list(range(slow, count))
    ids = [f"7:{i}@ext4{i}" for i in hosts]
    drive.report(worker, *(messages.Learnt(i, hosts, [f"7:{i}@ext4{i}", *ids]) for i in range(slow)))
    drive.die(worker)
    drive.compensates()
    last = drive.status().last
    assert last is not None
    assert (len(last.learnt), last.more_learnt) == (LEARNT_MAX, slow - LEARNT_MAX)
    first = last.learnt[0]
    assert (first.hosts, first.more_hosts) == (("/srv/60", "/srv/61", *first.hosts[2:]), len(hosts) - len(first.hosts))
    assert len(first.hosts) == ALIASES_MAX
    assert len(json.dumps(records.dump(last))) < 1 << 16
    told = [line for line in drive.of(events.Log) if "lies on one of" in line.text]
    assert len(told) == slow
    assert max(len(line.text) for line in told) < 200
    assert max(len(line.entry.fields) for line in told if line.entry) < 20


def test_no_more_is_kept_of_what_was_learnt_than_so_many_names(drive: Drive) -> None:
    """All that one may lie on is kept: if one were dropped, the order would be wrong."""
    count, slow = 1000, 100
    _, worker = played(drive, "freezing", count)
    hosts = list(range(slow, count))
    ids = [f"7:{i}@ext4{i}" for i in hosts]
    drive.report(worker, *(messages.Learnt(i, hosts, [f"7:{i}@ext4{i}", *ids]) for i in range(slow)))
    drive.die(worker)
    drive.compensates()
    drive.ask("va.fsfreeze")
    learnt = drive.spawned[drive.newest].args["options"].rules.learnt
    assert len(learnt) == MOST_IDS // (len(hosts) + 1)
    assert learnt[-1] == (f"7:{slow - 1}@ext4{slow - 1}", tuple(ids)), "the oldest were dropped"
