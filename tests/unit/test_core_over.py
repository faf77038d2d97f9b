"""A good freeze is over for hosts and writers before its worker is reaped; the state says so when it is (ADR 0040)."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import ended, played, settled
from virtagent.agent.api.errors import Code
from virtagent.agent.api.states import FreezeState
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events
from virtagent.supervisor.core.between import REAPING

GRACE = 1.0  # seconds for which a worker may take to end after its report
DB = WriterConfig("db", "postgresql", prepare_limit=60.0, quiesce_limit=10.0, confirm_limit=2.0, release_limit=10.0)


def over(drive: Drive, count: int = 2, ask: str = "va.fsthaw") -> tuple[Asked, int]:
    """Play a freeze until its keeper has thawed all and says so; return the call that asked for the thaw, and it."""
    _, keeper = drive.hold(count)
    thaw = drive.ask_by_name(ask, {}) if ask.startswith("guest") else drive.ask(ask)
    drive.report(keeper, messages.Thawing("", drive.now, 0, 0))
    drive.undo(keeper, *range(count))
    assert not thaw.answered
    drive.report(keeper, messages.Done(count))
    return thaw, keeper


def state(drive: Drive) -> FreezeState:
    return drive.core.freeze.state


@pytest.mark.parametrize("ask", ["va.fsthaw", "guest-fsfreeze-thaw"])
def test_the_thaw_is_answered_before_the_keeper_is_reaped(drive: Drive, ask: str) -> None:
    thaw, keeper = over(drive, ask=ask)
    assert thaw.value == 2
    assert state(drive) is FreezeState.THAWINPROGRESS
    assert len(drive.of(events.RemoveJournal)) == 1
    assert drive.journal is None
    answer = next(i for i, e in enumerate(drive.effects) if isinstance(e, events.Answer) and e.token == thaw.token)
    assert isinstance(drive.effects[answer - 1], events.RemoveJournal), "success is told when nothing contradicts it"
    assert drive.core.freeze.history.last.outcome == "thawed"
    drive.exit(keeper)
    assert state(drive) is FreezeState.THAWED
    assert len(drive.of(events.RemoveJournal)) == 1
    ended(drive, "thawed")


@pytest.mark.parametrize("what", ["number", "record", "brief", "guest"])
def test_who_asks_for_the_state_then_learns_that_it_is_thawed(drive: Drive, what: str) -> None:
    """A host that has its answer, and looks, must find what it was told; for a moment the answer waits."""
    asks: dict[str, tuple[Any, ...]] = {
        "number": ("va.fsstatus",),
        "record": ("va.fsstatus", {}),
        "brief": ("va.fsstatus", {"brief": True}),
    }
    _, keeper = over(drive)
    asked = drive.ask_by_name("guest-fsfreeze-status", {}) if what == "guest" else drive.ask(*asks[what])
    assert not asked.answered
    drive.exit(keeper)
    told = asked.value if what in ("number", "guest") else asked.value.state
    assert told == {"number": 0, "guest": "thawed"}.get(what, "THAWED")
    assert drive.idle()


@pytest.mark.parametrize("record", [False, True])
def test_who_asks_for_the_state_waits_for_a_moment_only(drive: Drive, record: bool) -> None:
    _, keeper = over(drive)
    asked = drive.ask("va.fsstatus", *([{}] if record else []))
    drive.wait(REAPING * 0.9)
    assert not asked.answered
    drive.wait(REAPING * 0.2)
    assert (asked.value.state if record else asked.value) == ("THAWINPROGRESS" if record else 3)
    drive.exit(keeper)
    ended(drive, "thawed")


@pytest.mark.parametrize("ask", ["va.fsfreeze", "guest-fsfreeze-freeze", "va.fssync", "guest-shutdown"])
def test_what_must_not_begin_before_it_is_reaped_waits_for_that(drive: Drive, ask: str) -> None:
    _, keeper = over(drive)
    before = drive.newest
    asked = drive.ask_by_name(ask, {}) if ask.startswith("guest") else drive.ask(ask)
    assert not asked.answered
    assert drive.newest == before
    drive.exit(keeper)
    assert drive.newest > before
    assert not asked.answered


@pytest.mark.parametrize("ask", ["guest-exec", "guest-file-open"])
def test_what_writes_is_admitted_since_nothing_is_frozen(drive: Drive, ask: str) -> None:
    over(drive)
    asked = drive.ask_by_name(ask, {"path": "/bin/true"})
    assert not asked.answered
    assert drive.spawned[drive.newest].rpc != "va.fsfreeze"


def test_another_who_asks_for_the_thaw_is_answered_when_it_is_reaped(drive: Drive) -> None:
    _, keeper = over(drive)
    second = drive.ask("va.fsthaw")
    assert not second.answered
    drive.exit(keeper)
    assert second.value == 0, "as from qemu-ga: the first has thawed all, and was told so"
    ended(drive, "thawed")


@pytest.mark.parametrize("how", ["thawed by another", "written to", "not counted", "cancelled"])
def test_what_is_not_known_to_be_good_waits_until_it_is_reaped(drive: Drive, how: str) -> None:
    if how == "cancelled":
        call, keeper = played(drive, "frozen", 1)
        thaw = drive.ask("va.fsthaw")
    else:
        call, keeper = drive.hold(1)
        thaw = drive.ask("va.fsthaw")
    wrote = (512, "512 bytes were written to /dev/loop0 while frozen") if how == "written to" else (0, "")
    if how != "not counted":
        drive.report(keeper, messages.Thawing("", drive.now, 0, *wrote))
    drive.undo(keeper, 0, refused=errno.EINVAL if how == "thawed by another" else 0)
    drive.report(keeper, messages.Done(1))
    assert not thaw.answered
    settled(drive, keeper)
    if how == "cancelled":
        assert call.code is Code.FREEZE_FAILED
        ended(drive, "cancelled")
    else:
        thaw.refused(Code.FREEZE_BROKEN)


@pytest.mark.parametrize("then", ["rubbish", "SIGKILL", "does not end", "is stuck"])
def test_what_was_told_stands_whatever_becomes_of_the_keeper(drive: Drive, then: str) -> None:
    thaw, keeper = over(drive)
    assert thaw.value == 2
    if then == "rubbish":
        drive.feed(events.RubbishReported(keeper, "x"))
        assert drive.suspected(drive.newest) == {0, 1}, "nothing that it has said counts: it may all be frozen"
        drive.compensates(refused=dict.fromkeys((0, 1), errno.EINVAL))
    elif then != "SIGKILL":
        drive.wait(GRACE * 1.1)
        assert drive.killed == {keeper}
    if then == "is stuck":
        drive.wait(10)
        assert state(drive) is FreezeState.ERROR
        assert "stuck" in drive.status().error
        assert drive.ask("va.fsfreeze").code is Code.WRONG_STATE
    settled(drive, keeper)
    assert drive.core.freeze.history.last.outcome == "thawed"
    assert not drive.logged("was broken")
    assert drive.ask("va.fsthaw").value == 0
    ended(drive, "thawed")


def test_the_end_of_the_agent_comes_when_it_is_reaped(drive: Drive) -> None:
    """Who wanted to freeze is answered before who only asked for the state (promise 12; storm 80063755)."""
    _, keeper = over(drive)
    asked = drive.ask("va.fsstatus")
    freeze = drive.ask("va.fsfreeze")
    drive.feed(events.Stopped("SIGTERM"))
    assert not drive.of(events.Quit)
    drive.exit(keeper)
    assert asked.value == 0
    assert freeze.code is Code.WRONG_STATE
    tokens = [answer.token for answer in drive.of(events.Answer)]
    assert tokens.index(freeze.token) < tokens.index(asked.token)
    assert drive.of(events.Quit)


# -- with writers


def writer_over(**info: Any) -> tuple[Drive, Asked, int, int]:
    """Play a freeze with a writer as `over` does; return the core, the thaw, the keeper and the writer's worker."""
    drive = Drive(every_writer=(DB,))
    _, keeper = drive.begin(1)
    writer = drive.newest
    drive.report(writer, messages.Started(1), messages.Acted("prepare", "ok", "", info))
    drive.sync(keeper, 1)
    drive.report(writer, messages.Acted("quiesce", "ok", "", {}))
    drive.freezes(keeper, 0)
    drive.report(keeper, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, drive.now + 60))
    drive.report(writer, messages.Acted("confirm", "ok", "", {}))
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now, 0, 0))
    drive.undo(keeper, 0)
    assert messages.Act("release", 10.0, "good") not in [message for _, message in drive.told]
    drive.report(keeper, messages.Done(1))
    assert (writer, messages.Act("release", 10.0, "good")) in drive.told, "its application stands still no longer"
    assert not thaw.answered
    assert drive.journal is not None
    return drive, thaw, keeper, writer


@pytest.mark.parametrize("first", ["keeper", "writer"])
def test_writers_are_let_go_before_the_keeper_is_reaped(first: str) -> None:
    drive, thaw, keeper, writer = writer_over()
    if first == "keeper":
        drive.exit(keeper)
        assert state(drive) is FreezeState.THAWED
        assert not thaw.answered
    drive.report(writer, messages.Acted("release", "ok", "", {}))
    drive.exit(writer)
    assert thaw.value == 1
    assert drive.journal is None
    if first == "writer":
        assert state(drive) is FreezeState.THAWINPROGRESS
        drive.exit(keeper)
    last = drive.status().last
    assert (last.outcome, last.consistency) == ("thawed", "application")


@pytest.mark.parametrize("what", ["the writer was lost", "the keeper speaks rubbish"])
def test_what_is_found_while_writers_are_let_go_breaks_the_freeze(what: str) -> None:
    drive, thaw, keeper, writer = writer_over(devices={"/not-frozen": "9:9"})
    if what == "the writer was lost":
        drive.report(writer, messages.Acted("release", "ok", "its session had ended", {}))
    else:
        drive.feed(events.RubbishReported(keeper, "x"))
        drive.report(writer, messages.Acted("release", "ok", "", {}))
    drive.exit(writer)
    if what == "the keeper speaks rubbish":
        settled(drive, keeper)
    thaw.refused(Code.FREEZE_BROKEN)
    if keeper in drive.live:
        drive.exit(keeper)
    assert drive.status().last.outcome == "broken"
    assert state(drive) is FreezeState.THAWED


def test_no_journal_is_left_of_what_was_told_long_before_all_is_thawed() -> None:
    """Found by storm 60018799: a thaw worker, which a keeper's rubbish asked for, was stuck longer than news last."""
    drive, thaw, keeper, writer = writer_over()
    drive.feed(events.RubbishReported(keeper, "x"))
    drive.report(writer, messages.Acted("release", "ok", "", {}))
    drive.exit(writer)
    drive.exit(keeper)
    thaw.refused(Code.FREEZE_BROKEN)
    drive.take(thaw)
    drive.wait(120)
    assert state(drive) is not FreezeState.THAWED
    settled(drive, keeper)
    assert state(drive) is FreezeState.THAWED
    assert drive.ask("va.fsthaw").value == 0
    assert drive.journal is None
