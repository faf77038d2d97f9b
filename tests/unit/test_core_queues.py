"""Request queues that a dead worker may have left short: the supervisor looks, and has another worker put them back."""

from __future__ import annotations

import errno

import pytest
from fakes.drive import Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

FREEZE, SYNC, LENGTHEN = "va.fsfreeze", "va.fssync", "lengthen"
UNFIT = messages.Failed(int(Code.FAILED), "the disk is busy")


@pytest.fixture
def drive() -> Drive:
    return Drive(sync_requests=8, state_dir="/run/x")


def looks(drive: Drive) -> int:
    return len(drive.of(events.LookAtQueues))


def warnings(drive: Drive) -> list[str]:
    return [entry.text for entry in drive.of(events.Log) if entry.level == "warning"]


def ended(drive: Drive, number: int, outcome: messages.Done | messages.Failed) -> None:
    drive.report(number, messages.Started(1), outcome)
    drive.exit(number)


@pytest.mark.parametrize("method", [FREEZE, SYNC, "guest-fsfreeze-freeze"])
def test_the_worker_is_told_how_short_and_where_the_record_is(drive: Drive, method: str) -> None:
    drive.ask_by_name(method, {})
    given = drive.spawned[drive.newest].args["options"]
    assert (given.sync_requests, given.queue_records) == (8, "/run/x/queues")


@pytest.mark.parametrize("method", [FREEZE, SYNC])
def test_what_a_dead_worker_left_is_put_back_by_another(drive: Drive, method: str) -> None:
    drive.queues_left = True
    drive.ask(method)
    drive.die(drive.newest)
    (worker,) = drive.workers(LENGTHEN)
    assert drive.spawned[worker].args == {"folder": "/run/x/queues"}
    drive.queues_left = False
    ended(drive, worker, messages.Done("nr_requests was put back: sda 128"))
    assert "nr_requests was put back: sda 128" in [entry.text for entry in drive.of(events.Log)]
    drive.wait(100)
    assert not drive.workers(LENGTHEN)


def test_nothing_is_looked_for_where_nothing_was_shortened() -> None:
    drive = Drive()
    drive.queues_left = True
    drive.ask(SYNC)
    drive.die(drive.newest)
    assert looks(drive) == 0


def test_a_worker_that_put_back_itself_costs_a_look(drive: Drive) -> None:
    drive.ask(SYNC)
    ended(drive, drive.newest, messages.Done(1))
    assert looks(drive) == 1
    assert not drive.workers(LENGTHEN)
    drive.ask("va.fsplan")
    drive.die(drive.newest)
    assert looks(drive) == 1, "it shortens nothing"


def test_it_is_looked_for_after_the_option_was_taken_away(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    worker = drive.newest
    drive.core._configure(Drive(state_dir="/run/x").core._config)
    drive.die(worker)
    assert drive.workers(LENGTHEN)


def test_neither_freeze_nor_thaw_waits_for_it(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    drive.die(drive.newest)
    (worker,) = drive.workers(LENGTHEN)
    call, keeper = drive.hold(1)
    assert call.value == 1
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert thaw.value == 1
    assert worker in drive.live


@pytest.mark.parametrize("how", ["failed", "killed", "not forked", "overran"])
def test_it_is_tried_again_later_and_later(drive: Drive, how: str) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    if how == "not forked":
        worker = drive.newest
        drive.fork_error = OSError(errno.EAGAIN, "no process")
        drive.die(worker)
        drive.fork_error = None
    else:
        drive.die(drive.newest)
        (worker,) = drive.workers(LENGTHEN)
        if how == "failed":
            ended(drive, worker, UNFIT)
        elif how == "killed":
            drive.die(worker)
        else:
            drive.wait(20)
            assert worker in drive.killed
            drive.exit(worker, 9)
    assert not drive.workers(LENGTHEN)
    assert "trying again in 1 s" in warnings(drive)[-1]
    drive.wait(1.1)
    (worker,) = drive.workers(LENGTHEN)
    ended(drive, worker, UNFIT)
    assert "trying again in 2 s" in warnings(drive)[-1]
    drive.wait(1.1)
    assert not drive.workers(LENGTHEN)
    drive.wait(1.1)
    (worker,) = drive.workers(LENGTHEN)
    drive.queues_left = False
    ended(drive, worker, messages.Done(""))
    drive.wait(100)
    assert not drive.workers(LENGTHEN)


def test_a_record_of_a_worker_that_lives_is_no_trouble(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    drive.die(drive.newest)
    (worker,) = drive.workers(LENGTHEN)
    before = warnings(drive)
    ended(drive, worker, messages.Failed(int(Code.BUSY), "a worker that lives has it"))
    assert warnings(drive) == before
    drive.wait(1.1)
    assert drive.workers(LENGTHEN)


def test_who_dies_meanwhile_is_seen_to_as_well(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    drive.die(drive.newest)
    (worker,) = drive.workers(LENGTHEN)
    drive.ask(SYNC)
    drive.die(drive.newest)
    assert drive.workers(LENGTHEN) == [worker], "one at a time"
    ended(drive, worker, messages.Done("first"))
    (again,) = drive.workers(LENGTHEN)
    assert again != worker


def test_what_an_earlier_agent_left_is_put_back_at_the_start() -> None:
    drive = Drive()
    drive.feed(events.QueuesSeen(left=True))
    assert drive.workers(LENGTHEN)


# The end of the agent


def test_recovering_only_waits_until_it_is_done() -> None:
    drive = Drive()
    drive.feed(events.QueuesSeen(left=True), events.Stopped("it was asked to recover only"))
    assert not drive.of(events.Quit)
    (worker,) = drive.workers(LENGTHEN)
    ended(drive, worker, messages.Done("done"))
    assert drive.of(events.Quit) == [events.Quit(0)]


@pytest.mark.parametrize("method", [FREEZE, SYNC])
def test_the_agent_ends_when_what_it_stopped_is_put_back(drive: Drive, method: str) -> None:
    drive.queues_left = True
    drive.ask(method)
    worker = drive.newest
    drive.feed(events.Stopped("SIGTERM"))
    assert worker in drive.killed
    assert not drive.of(events.Quit)
    drive.exit(worker, 9)
    (putting,) = drive.workers(LENGTHEN)
    assert not drive.of(events.Quit)
    drive.queues_left = False
    ended(drive, putting, messages.Done("done"))
    assert drive.of(events.Quit) == [events.Quit(0)]


def test_the_agent_does_not_wait_for_a_disk_that_hangs(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    worker = drive.newest
    drive.in_kernel.add(worker)
    drive.feed(events.Stopped("SIGTERM"))
    drive.wait(2)
    assert drive.of(events.Quit) == [events.Quit(0)], "the worker is stuck; the next start finds the record"


def test_the_agent_tries_it_but_once_before_it_ends(drive: Drive) -> None:
    drive.queues_left = True
    drive.ask(SYNC)
    worker = drive.newest
    drive.feed(events.Stopped("SIGTERM"))
    drive.exit(worker, 9)
    (putting,) = drive.workers(LENGTHEN)
    ended(drive, putting, UNFIT)
    assert drive.of(events.Quit) == [events.Quit(0)]


def test_without_the_option_nothing_is_waited_for() -> None:
    drive = Drive()
    drive.ask(SYNC)
    drive.feed(events.Stopped("SIGTERM"))
    assert drive.of(events.Quit) == [events.Quit(0)]
