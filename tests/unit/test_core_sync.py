"""va.fssync in the core: its limit, its phase in the status record, and when it is refused."""

from __future__ import annotations

import pytest
from fakes.drive import Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.worker import messages
from virtagent.agent.worker.freeze import OWN_LIMIT_LATER


def test_the_number_of_file_systems_is_the_answer(drive: Drive) -> None:
    call = drive.ask("va.fssync", {"include": ["/srv/*"]})
    worker = drive.newest
    options = drive.spawned[worker].args["options"]
    assert (options.rules.request_include, options.sync_limit) == (("/srv/*",), 600)
    drive.report(worker, messages.Started(1), messages.Progress("sync", 1), messages.Step(0, "syncing"))
    (shown,) = drive.status().workers
    assert (shown.rpc, shown.phase) == ("va.fssync", "sync")
    drive.report(worker, messages.Step(0, "synced"), messages.Progress("sync", 2), messages.Done(1))
    drive.exit(worker)
    assert call.value == 1
    assert drive.idle()


@pytest.mark.parametrize(
    ("limit", "options", "killed_after"),
    [(600, {}, 600), (600, {"sync_limit": 5}, 5), (0, {"sync_limit": 7}, 7), (0, {}, None)],
)
def test_its_limit_is_that_of_the_sync_phase(limit: float, options: dict[str, float], killed_after: float) -> None:
    drive = Drive(sync_limit=limit)
    call = drive.ask("va.fssync", options)
    worker = drive.newest
    drive.report(worker, messages.Started(1))
    if killed_after is None:
        assert drive.timers.nearest() is None
        return
    drive.wait(killed_after + OWN_LIMIT_LATER / 2)
    assert not call.answered, "the worker knows more than the supervisor, and comes first"
    drive.wait(OWN_LIMIT_LATER)
    assert call.code is Code.OVERRUN
    assert drive.killed == {worker}


def test_more_than_the_daemons_limit_is_refused() -> None:
    drive = Drive(sync_limit=60)
    assert drive.ask("va.fssync", {"sync_limit": 61}).code is Code.PARAMS
    assert drive.ask("va.fssync", {"hold_limit": 1}).code is Code.PARAMS


def test_the_call_waits_no_longer_than_asked_and_the_job_goes_on(drive: Drive) -> None:
    call = drive.ask("va.fssync", {"wait": 2})
    drive.report(drive.newest, messages.Started(1))
    drive.wait(2)
    assert call.code is Code.IN_PROGRESS
    assert not drive.killed


def test_it_is_refused_while_anything_may_be_frozen(drive: Drive) -> None:
    drive.begin(2)
    assert drive.ask("va.fssync").code is Code.REFUSED_WHILE_FROZEN


def test_a_worker_that_syncs_cannot_say_that_it_froze(drive: Drive) -> None:
    call = drive.ask("va.fssync")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Frozen(1, 0, 0))
    assert call.code is Code.WORKER_DIED
    assert drive.killed == {worker}
