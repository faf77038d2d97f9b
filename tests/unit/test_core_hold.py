"""The hold as the core sees it: how it ends, who is told what, and that a thaw never lies about it."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest
from fakes.drive import Drive
from fakes.scenarios import ended, settled
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events

# -- the hold passes


def test_the_keeper_reports_in_time_that_its_hold_has_passed(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.now += 60
    drive.thaws(keeper, reason="the hold limit of 60 s passed")
    assert not drive.killed
    ended(
        drive,
        "expired",
        tells=(
            "fsfreeze is limited",
            "hold limit",
            "60 s",
            "thawed 2 of 2",
        ),
    )


def test_the_keeper_reports_late(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.wait(60)
    assert drive.state is FreezeState.THAWINPROGRESS
    assert not drive.killed, "it thaws by itself"
    assert not drive.workers("thaw")
    drive.wait(1.5)
    drive.thaws(keeper, reason="the hold limit of 60 s passed")
    assert not drive.killed
    ended(drive, "expired", tells=("fsfreeze is limited", "hold limit"))


def test_the_keeper_never_reports(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.wait(62)
    assert drive.killed == {keeper}
    assert drive.suspected(drive.newest) == {0, 1}
    drive.compensates()
    drive.die(keeper)
    drive.compensates()
    ended(drive, "expired", tells=("fsfreeze is limited", "hold limit"))


@pytest.mark.parametrize(
    ("method", "args", "limit"),
    [
        ("guest-fsfreeze-freeze", {}, 300),
        ("guest-fsfreeze-freeze-list", {"mountpoints": ["/srv/0"]}, 300),
        ("va.fsfreeze", {}, 60),
        ("va.fsfreeze", {"hold_limit": 7}, 7),
    ],
)
def test_freezes_of_qemu_gas_protocol_are_held_longer(
    drive: Drive, method: str, args: dict[str, Any], limit: float
) -> None:
    drive.ask_by_name(method, args)
    assert drive.spawned[drive.newest].args["options"].hold_limit == limit


def test_the_keeper_begins_to_thaw_and_does_not_end(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.wait(60)
    drive.report(keeper, messages.Thawing("the hold limit passed", drive.now))
    drive.undo(keeper, 0)
    drive.wait(9.9)
    assert not drive.killed
    drive.wait(0.2)
    assert drive.killed == {keeper}
    drive.compensates()
    drive.die(keeper)
    drive.compensates()
    ended(drive, "expired", tells=())


def test_no_answer_is_given_on_a_hold_that_is_over(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.now += 60  # the loop was late, and a host's word is the first that it takes
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert thaw.code is Code.FREEZE_BROKEN
    ended(drive, "expired")


def test_an_extension_that_comes_too_late_is_refused(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.now += 60
    assert drive.ask("va.fshold", 60).code is Code.WRONG_STATE
    drive.thaws(keeper, 1, "the hold limit passed")
    ended(drive, "expired", tells=())


def test_a_keeper_whose_clock_ran_out_after_thaw_was_asked_has_held_to_the_end(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(59.999)
    thaw = drive.ask("va.fsthaw")
    drive.now += 0.001
    drive.thaws(keeper, 1, "the hold limit of 60 s passed")
    assert thaw.value == 1
    ended(drive, "thawed")


def test_a_keeper_whose_clock_ran_out_before_thaw_was_asked_has_not(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(30)
    at = drive.now
    drive.now += 0.001
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("worker 1 got SIGTERM", at))
    drive.undo(keeper, 0)
    drive.report(keeper, messages.Failed(8, "worker 1 got SIGTERM"))
    drive.exit(keeper)
    thaw.refused(Code.FREEZE_BROKEN, "SIGTERM")
    ended(drive, "broken")


def test_thawing_unasked_before_the_host_asks_breaks_the_freeze(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(5)
    drive.report(keeper, messages.Thawing("worker 1 got SIGTERM", drive.now))
    thaw = drive.ask("va.fsthaw")
    drive.undo(keeper, 0)
    drive.report(keeper, messages.Failed(8, "worker 1 got SIGTERM"))
    drive.exit(keeper)
    assert thaw.code is Code.FREEZE_BROKEN
    ended(drive, "broken")


def test_done_while_frozen_breaks_the_freeze(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.report(keeper, messages.Done(1))
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.exit(keeper)
    drive.compensates()
    ended(drive, "broken", tells=())


def test_the_time_held_ends_when_the_hold_does(drive: Drive) -> None:
    _, keeper = drive.hold(1, {"hold_limit": 10})
    drive.wait(10)
    drive.now += 1
    drive.thaws(keeper, 1, "the hold limit passed")
    last = drive.status().last
    assert last is not None
    assert last.held_seconds == pytest.approx(10)
    assert last.stall_seconds == pytest.approx(11)


# -- the keeper dies


def test_the_keeper_dies_and_the_supervisor_thaws_at_once(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.die(keeper)
    assert drive.state is FreezeState.THAWINPROGRESS
    assert drive.suspected(drive.newest) == {0, 1}
    drive.compensates()
    ended(
        drive,
        "broken",
        tells=(
            f"worker {keeper}",
            "SIGKILL",
            "thawed 2 of 2",
        ),
    )


def test_the_keeper_dies_and_the_host_asks_meanwhile(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    drive.die(keeper)
    thaw = drive.ask("va.fsthaw")
    assert not thaw.answered
    drive.compensates()
    assert thaw.code is Code.FREEZE_BROKEN
    ended(drive, "broken")


def test_the_keeper_dies_after_thaw_was_asked_and_the_freeze_was_held(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.die(keeper)
    drive.compensates()
    assert thaw.value == 2
    ended(drive, "thawed")


def test_the_keeper_dies_half_way_through_the_thaw(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    drive.report(keeper, messages.Step(0, "thawed"))
    drive.die(keeper)
    assert drive.suspected(drive.newest) >= {1}
    nothing_left = dict.fromkeys(drive.suspected(drive.newest), errno.EINVAL)
    drive.compensates(refused=nothing_left)  # perhaps the keeper's last ioctl had done it
    thaw.refused(Code.FREEZE_BROKEN, "nobody saw that /srv/1 was frozen until it was thawed", "thawed 1 of 2")
    ended(drive, "broken")


def test_the_keeper_dies_half_way_and_the_rest_is_still_frozen(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(1, "thawing"))
    drive.report(keeper, messages.Step(0, "thawed"))
    drive.die(keeper)
    drive.compensates(refused={0: errno.EINVAL})
    assert thaw.value == 2
    ended(drive, "thawed")


def test_a_keeper_that_does_not_hear_is_killed(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.wait(2)
    assert drive.killed == {keeper}
    drive.compensates()
    drive.die(keeper)
    drive.compensates()
    thaw.refused(Code.FREEZE_BROKEN, "that died with the keeper", "thawed 2 of 2")
    ended(drive, "broken")


def test_a_keeper_that_does_not_exit_after_its_report_is_killed(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 0)
    drive.report(keeper, messages.Done(1))
    drive.wait(1)
    assert drive.killed == {keeper}
    settled(drive, keeper)
    assert thaw.value == 1
    ended(drive, "thawed")


# -- someone else thaws


def test_the_keeper_finds_that_someone_else_had_thawed(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 0)
    drive.undo(keeper, 1, refused=errno.EINVAL)
    drive.report(keeper, messages.Failed(8, "someone else had thawed /srv/1"))
    drive.exit(keeper)
    thaw.refused(Code.FREEZE_BROKEN, "/srv/1")
    ended(drive, "broken")


def test_a_thaw_worker_finds_that_someone_else_had_thawed(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    thaw = drive.ask("va.fsthaw")
    drive.die(keeper)  # before it touched anything
    drive.compensates(refused={1: errno.EINVAL})
    thaw.refused(Code.FREEZE_BROKEN, "/srv/1")
    ended(drive, "broken")


def test_the_second_pass_finds_nothing_frozen_and_that_breaks_nothing(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.wait(10)
    drive.compensates()
    drive.die(keeper)
    drive.compensates(refused={0: errno.EINVAL})
    assert thaw.value == 1
    ended(drive, "thawed")


# -- extending


def test_the_hold_is_extended_by_the_keepers_word(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(50)
    hold = drive.ask("va.fshold", 100)
    assert drive.told[-1] == (keeper, messages.Hold(drive.now + 100))
    assert not hold.answered
    drive.report(keeper, messages.Held(drive.now + 100))
    assert hold.value == pytest.approx(100)
    assert drive.status().hold_left == pytest.approx(100)
    drive.wait(99.9)
    assert drive.state is FreezeState.FROZEN
    drive.wait(0.1)
    assert drive.state is FreezeState.THAWINPROGRESS
    drive.thaws(keeper, 1, "the hold limit passed")
    ended(drive, tells=())


def test_a_hold_of_many_seconds_that_nobody_ends_is_told_in_plain_digits(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    for _ in range(5):
        drive.wait(50)
        drive.ask("va.fshold", 600)
        drive.report(keeper, messages.Held(drive.now + 600))
        drive.wait(500)
    drive.wait(110)
    assert drive.logged("the hold limit of 2850 s passed")


def test_the_hold_may_be_shortened(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.fshold", 5)
    drive.report(keeper, messages.Held(drive.now + 5))
    drive.wait(5)
    assert drive.state is FreezeState.THAWINPROGRESS


def test_the_hold_is_bounded_by_the_configuration(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.fshold", 1e6)
    assert drive.told[-1] == (keeper, messages.Hold(drive.now + 600))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12, "5", True, None, [5]])
def test_an_absurd_hold_is_refused(drive: Drive, seconds: object) -> None:
    _, _keeper = drive.hold(1)
    told = len(drive.told)
    assert drive.ask("va.fshold", seconds).code is Code.PARAMS
    assert len(drive.told) == told
    assert drive.state is FreezeState.FROZEN


def test_only_what_is_held_can_be_extended(drive: Drive) -> None:
    assert drive.ask("va.fshold", 60).code is Code.WRONG_STATE
    _, worker = drive.begin(1)
    assert drive.ask("va.fshold", 60).code is Code.WRONG_STATE
    drive.die(worker)
    assert drive.ask("va.fshold", 60).code is Code.WRONG_STATE


def test_a_keeper_cannot_stretch_the_hold_unasked(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.report(keeper, messages.Held(drive.now + 30))
    drive.wait(61)
    assert drive.state is not FreezeState.FROZEN


def test_a_keeper_cannot_stretch_the_hold_beyond_what_was_asked(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.fshold", 100)
    drive.report(keeper, messages.Held(drive.now + 5000))
    drive.wait(601)
    assert drive.state is not FreezeState.FROZEN


def test_each_extension_is_answered_with_what_it_got(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    first, second = drive.ask("va.fshold", 10), drive.ask("va.fshold", 100)
    drive.report(keeper, messages.Held(drive.now + 10))
    drive.report(keeper, messages.Held(drive.now + 100))
    assert first.value == pytest.approx(10)
    assert second.value == pytest.approx(100)


def test_not_too_many_extensions_wait_at_once(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    calls = [drive.ask("va.fshold", 10) for _ in range(100)]
    refused = [c for c in calls if c.answered]
    assert refused
    assert {c.code for c in refused} == {Code.BUSY}
    for _ in range(len(calls) - len(refused)):
        drive.report(keeper, messages.Held(drive.now + 10))
    assert all(c.answered for c in calls)


@pytest.mark.parametrize("mode", ["bogus", "", "POWERDOWN", "halt "])
def test_a_shutdown_that_is_refused_thaws_nothing(drive: Drive, mode: str) -> None:
    _, keeper = drive.hold(1)
    told = list(drive.told)
    refused = drive.ask_by_name("guest-shutdown", {"mode": mode}), drive.ask("va.shutdown", mode)
    assert [one.code for one in refused] == [Code.PARAMS, Code.PARAMS]
    assert (drive.state, drive.told, len(drive.spawned)) == (FreezeState.FROZEN, told, 1)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert thaw.value == 1


@pytest.mark.parametrize("end", ["died", "passed", "stopped", "rubbish", "shutdown"])
def test_an_extension_is_answered_when_the_hold_ends_meanwhile(drive: Drive, end: str) -> None:
    _, keeper = drive.hold(1)
    hold = drive.ask("va.fshold", 100)
    if end == "died":
        drive.die(keeper)
    elif end == "passed":
        drive.wait(60)
    elif end == "stopped":
        drive.feed(events.Stopped("SIGTERM"))
    elif end == "rubbish":
        drive.feed(events.RubbishReported(keeper, "x"))
    else:
        drive.ask("va.shutdown", "halt")
    assert hold.code in (Code.FREEZE_BROKEN, Code.WRONG_STATE)


@pytest.mark.parametrize("late", [True, False])
def test_an_extension_is_answered_when_thaw_is_asked_meanwhile(drive: Drive, late: bool) -> None:
    _, keeper = drive.hold(1)
    hold = drive.ask("va.fshold", 100)
    thaw = drive.ask("va.fsthaw")
    if late:
        drive.report(keeper, messages.Held(drive.now + 100))
    drive.thaws(keeper, 1)
    assert thaw.value == 1
    assert hold.answered
    ended(drive, "thawed")


def test_a_late_held_does_not_bring_a_hold_back(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    hold = drive.ask("va.fshold", 100)
    drive.wait(60)
    drive.report(keeper, messages.Held(drive.now + 100))
    assert drive.state is FreezeState.THAWINPROGRESS
    assert hold.code is Code.FREEZE_BROKEN
    drive.wait(3)
    assert drive.killed == {keeper}


def test_a_keeper_that_was_extended_just_too_late_is_told_to_thaw(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.wait(59.999)
    drive.ask("va.fshold", 100)
    drive.wait(0.001)
    drive.report(keeper, messages.Held(drive.now + 99.999))  # it holds on
    assert drive.told[-1] == (keeper, messages.Thaw())


# -- every order of five things that happen at about the same time


@pytest.mark.parametrize("order", list(itertools.permutations(["ask", "expire", "die", "gone", "says"])))
def test_success_means_held_until_asked_in_every_order(order: tuple[str, ...]) -> None:
    drive = Drive()
    _, keeper = drive.hold(1)
    thaw = None
    for what in order:
        if what == "ask":
            thaw = drive.ask("va.fsthaw")
        elif what == "expire":
            drive.now += 60  # all at once: nobody is stuck, the machine was paused
            drive.feed()
        elif what == "die" and keeper in drive.live:
            drive.die(keeper)
        elif what == "says" and keeper in drive.live and thaw is not None:
            drive.report(keeper, messages.Thawing("", drive.now))
        elif what == "gone" and thaw is not None and not thaw.answered:
            drive.hang_up(thaw)
    settled(drive, keeper)
    assert thaw is not None
    asked, says, dies = map(order.index, ("ask", "says", "die"))
    held = asked < order.index("expire") and asked < says < dies
    faults = [thaw.answers[0]] if thaw.answered else []
    again = drive.ask("va.fsthaw")
    if held:
        assert again.value == 0
        if not thaw.gone:
            assert thaw.value == 1
    else:
        broken = [f for f in (*faults, *again.answers) if getattr(f, "code", None) is Code.FREEZE_BROKEN]
        assert len(broken) == len(faults) + 1, "told to everybody who listens"
    ended(drive, "thawed" if held else "")
