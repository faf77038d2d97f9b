"""What the supervisor counts for a monitoring system."""

from __future__ import annotations

import pytest
from fakes.drive import Drive
from fakes.scenarios import played
from virtagent.agent.api.states import Outcome
from virtagent.agent.worker import messages


def test_at_the_start_all_outcomes_and_phases_are_there(drive: Drive) -> None:
    totals = drive.status().totals
    assert set(totals.freezes) == {outcome.value for outcome in Outcome}
    assert {"plan", "prepare", "sync", "quiesce", "freeze", "hold", "thaw"} <= set(totals.phase_seconds)
    assert not any(totals.freezes.values())
    assert (totals.held_seconds, totals.last_success) == (0, -1)


def test_a_good_freeze(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.now += 12
    drive.ask("va.fsthaw")
    drive.now += 1.5
    drive.thaws(keeper)
    record = drive.status()
    assert record.last is not None
    totals = record.totals
    assert {name: count for name, count in totals.freezes.items() if count} == {"thawed": 1}
    assert totals.phase_seconds["hold"] == pytest.approx(12)
    assert totals.phase_seconds["thaw"] == pytest.approx(1.5)
    assert totals.held_seconds == pytest.approx(record.last.held_seconds) == pytest.approx(12)
    assert totals.stall_seconds == pytest.approx(record.last.stall_seconds)
    assert totals.last_success == record.last.at


def test_a_freeze_that_is_reported_only_when_it_is_done_is_no_part_of_the_sync(drive: Drive) -> None:
    """Seen on a busy machine: all that the worker had said since it was told to proceed was read at once."""
    _, worker = played(drive, "synced", 1)
    drive.now += 0.25
    drive.freezes(worker, 0)
    drive.frozen(worker, 0)
    drive.report(worker, messages.Frozen(1, drive.now, drive.now + 60))
    assert drive.status().totals.phase_seconds["freeze"] == pytest.approx(0.25)


def test_what_goes_on_counts_already(drive: Drive) -> None:
    drive.hold(2)
    drive.now += 5
    assert drive.status().totals.phase_seconds["hold"] == pytest.approx(5)
    drive.now += 5
    assert drive.status().totals.phase_seconds["hold"] == pytest.approx(10)


def test_freezes_add_up_and_a_broken_one_is_no_success(drive: Drive) -> None:
    for _ in range(2):
        _, keeper = drive.hold(1)
        drive.ask("va.fsthaw")
        drive.thaws(keeper, 1)
    success = drive.status().totals.last_success
    drive.now += 100
    _, keeper = drive.hold(1)
    drive.now += 60
    drive.thaws(keeper, 1, "the hold limit of 60 s passed")
    totals = drive.status().totals
    assert {name: count for name, count in totals.freezes.items() if count} == {"thawed": 2, "expired": 1}
    assert totals.last_success == success


def test_nothing_is_counted_twice(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    for _ in range(3):
        drive.ask("va.ping")
    assert sum(drive.status().totals.freezes.values()) == 1
