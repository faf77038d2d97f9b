"""frozen(): what is asked around the block, and when it ends in FreezeBroken. For Agent and AsyncAgent alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import LAST, MOUNT, FakeAgent, status_record
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Status, load
from virtagent.host import (
    Agent,
    AsyncAgent,
    Freeze,
    FreezeBroken,
    NothingFrozen,
    NotThawed,
    TimedOut,
    Unreachable,
    Unsupported,
)
from virtagent.host.calls import Call
from virtagent.host.connection import drive
from virtagent.host.errors import HostError, Lost
from virtagent.host.holding import CallOnOwnConnection, Holding, Pause, Wanted, notes

FROZEN = status_record(freeze_id=17, hold_left=30.0)
GOOD = status_record(
    state="THAWED", code=0, last=LAST | {"freeze_id": 17, "outcome": "thawed", "held_continuously": True}
)


def status(**changed: Any) -> Status:
    return load(Status, FROZEN | changed, "status")


class Told:
    """What an agent answers to a holding, in order; what was asked; and a clock that pauses move."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = {f"va.{name}": list(found) for name, found in answers.items()}
        self.asked: list[str] = []
        self.thawed: list[int | None] = []
        """The freezes that the thaws have named."""
        self.now = 0.0

    def take(self, step: Call[Any] | CallOnOwnConnection | Pause) -> Any:
        if isinstance(step, Pause):
            self.now += step.seconds
            return None
        if isinstance(step, CallOnOwnConnection):
            step = step.call
        self.asked.append(step.method)
        if step.method == "va.fsthaw":
            self.thawed.append(step.params[0].get("freeze_id"))
        answer = self.answers[step.method].pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run(self, holding: Holding) -> Freeze:
        freeze = drive(holding.begin(), self.take)
        drive(holding.end(), self.take)
        return freeze


def holding(told: Told, **options: Any) -> Holding:
    return Holding("unix:/a", Wanted(**options), clock=lambda: told.now)


BEGUN, ENDED = status(), load(Status, GOOD, "status")


def test_a_good_freeze() -> None:
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, ENDED], fsthaw=[1])
    freeze = told.run(holding(told))
    assert told.asked == ["va.fsfreeze", "va.fsstatus", "va.fsthaw", "va.fsstatus"]
    assert (freeze.count, freeze.freeze_id, freeze.mounts, freeze.hold_seconds) == (1, 17, ("/srv/db",), 30)
    assert 0 < freeze.hold_left <= 30
    assert (freeze.broken, freeze.held_seconds) == (None, 60)


@pytest.mark.parametrize(
    ("thaw", "last", "words"),
    [
        ([Fault(Code.FREEZE_BROKEN, "the hold limit passed")], ENDED, "hold limit"),
        ([Fault(Code.FAILED, "EIO")], ENDED, "EIO"),
        ([0], ENDED, "0 still were"),
        ([1], status(last={}), "none"),
        ([1], status(last={"freeze_id": 18, "held_continuously": True}), "18"),
        ([1], status(last=LAST | {"freeze_id": 17}), "expired"),
        ([1], Fault(Code.AUDIT_FULL, "full"), "not known"),
        ([1], Lost("gone"), "not known"),
        ([TimedOut("late"), 0], ENDED, "first answer was lost"),
    ],
)
def test_what_is_not_known_to_be_good_is_broken(thaw: list[Any], last: Any, words: str) -> None:
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, last], fsthaw=thaw)
    it = holding(told)
    freeze = drive(it.begin(), told.take)
    with pytest.raises(FreezeBroken, match=words) as raised:
        drive(it.end(), told.take)
    assert freeze.broken is raised.value
    assert isinstance(raised.value, NotThawed) == (words == "EIO")


def test_a_thaw_is_told_until_it_is_answered() -> None:
    gone: list[Any] = [Lost("gone"), Unreachable("none"), TimedOut("late"), Fault(Code.IN_PROGRESS, "slow"), 1]
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, ENDED], fsthaw=gone)
    assert told.run(holding(told)).broken is None
    assert told.now > 0


def test_each_thaw_names_the_freeze() -> None:
    """H7: so it never ends that of another host."""
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, ENDED], fsthaw=[Lost("gone"), Fault(Code.IN_PROGRESS, "slow"), 1])
    told.run(holding(told))
    assert told.thawed == [17, 17, 17]


@pytest.mark.parametrize(
    ("then", "named"),
    [
        ({"state": "THAWED", "code": 0}, 17),
        ({"state": "THAWINPROGRESS", "code": 3}, 17),
        ({"state": "INPROGRESS", "code": 1, "freeze_id": 18, "last": LAST | {"freeze_id": 17}}, 17),
        ({"state": "INPROGRESS", "code": 1, "freeze_id": 18}, None),
        ({"state": "ERROR", "code": -1, "freeze_id": -1}, None),
        ({"state": "THAWINPROGRESS", "code": 3, "freeze_id": 2**31}, None),
    ],
)
def test_a_freeze_that_is_over_already_is_the_one_that_is_named(then: dict[str, Any], named: int | None) -> None:
    told = Told(fsfreeze=[1], fsstatus=[status(**then)], fsthaw=[Fault(Code.FREEZE_BROKEN, "it was")])
    with pytest.raises(FreezeBroken):
        drive(holding(told).begin(), told.take)
    assert told.thawed == [named]


def test_a_freeze_of_which_nothing_is_known_is_thawed_by_no_name() -> None:
    told = Told(fsfreeze=[TimedOut("late")], fsthaw=[0])
    with pytest.raises(TimedOut):
        drive(holding(told).begin(), told.take)
    assert told.thawed == [None]


def test_an_agent_that_cannot_be_told_which_one_thaws_all_the_same() -> None:
    old = Fault(Code.PARAMS, "va.fsthaw: options has an unexpected member freeze_id")
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, ENDED], fsthaw=[old, 1])
    assert told.run(holding(told)).broken is None
    assert told.thawed == [17, None]
    told = Told(fsfreeze=[1], fsstatus=[BEGUN], fsthaw=[old, old])
    with pytest.raises(FreezeBroken, match="unexpected member"):
        told.run(holding(told))


def test_a_thaw_that_is_never_answered_is_said() -> None:
    told = Told(fsfreeze=[1], fsstatus=[BEGUN], fsthaw=[Lost("gone")] * 99)
    it = holding(told, thaw_wait=10)
    drive(it.begin(), told.take)
    with pytest.raises(NotThawed, match="may be frozen"):
        drive(it.end(), told.take)
    assert 10 <= told.now <= 13


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
def test_interruptions_do_not_keep_the_thaw_from_being_told(interrupt: type[BaseException]) -> None:
    told = Told(fsfreeze=[1], fsstatus=[BEGUN, ENDED], fsthaw=[interrupt(), interrupt(), 1])
    it = holding(told)
    drive(it.begin(), told.take)
    with pytest.raises(interrupt):
        drive(it.end(), told.take)
    assert told.answers["va.fsthaw"] == []
    told = Told(fsfreeze=[1], fsstatus=[BEGUN], fsthaw=[interrupt()] * 9)
    it = holding(told)
    drive(it.begin(), told.take)
    with pytest.raises(interrupt):
        drive(it.end(), told.take)
    assert len(told.answers["va.fsthaw"]) == 6


def unasked(error: HostError) -> HostError:
    error.asked = False
    return error


@pytest.mark.parametrize(
    ("freeze", "undone"),
    [
        (Fault(Code.FREEZE_FAILED, "EIO"), False),
        (Fault(Code.WRONG_STATE, "another host's"), False),
        (Fault(Code.IN_PROGRESS, "slow"), True),
        (Unreachable("none"), False),
        (Unsupported("stock"), False),
        (Lost("gone"), True),
        (TimedOut("late"), True),
        (unasked(TimedOut("late")), False),
        (KeyboardInterrupt(), True),
        (asyncio.CancelledError(), True),
        (0, True),
    ],
)
def test_a_freeze_that_fails_leaves_nothing_frozen_and_touches_no_other(freeze: Any, undone: bool) -> None:
    told = Told(fsfreeze=[freeze], fsthaw=[0])
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        drive(holding(told).begin(), told.take)
    assert raised.value is freeze or isinstance(raised.value, NothingFrozen)
    assert told.asked == ["va.fsfreeze", *(["va.fsthaw"] if undone else [])]


@pytest.mark.parametrize("answer", [Lost("gone"), Fault(Code.AUDIT_FULL, "full"), ENDED])
def test_a_freeze_that_cannot_be_looked_at_is_undone(answer: Any) -> None:
    told = Told(fsfreeze=[1], fsstatus=[answer], fsthaw=[Fault(Code.FREEZE_BROKEN, "it was")])
    with pytest.raises((HostError, Fault)) as raised:
        drive(holding(told).begin(), told.take)
    assert told.asked[-1] == "va.fsthaw"
    assert "it was" in raised.value.__notes__[0]  # type: ignore[attr-defined,unused-ignore]


def test_an_interruption_right_after_the_answer_is_undone_too() -> None:
    class Interrupting:
        """A clock that a Ctrl-C interrupts, as it may anything in a program."""

        def __init__(self, at: int) -> None:
            self.left = at

        def __call__(self) -> float:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return 0.0

    for at in (1, 2):
        told = Told(fsfreeze=[1], fsstatus=[BEGUN], fsthaw=[1])
        it = Holding("unix:/a", Wanted(), clock=Interrupting(at))
        with pytest.raises(KeyboardInterrupt):
            drive(it.begin(), told.take)
        assert told.asked[-1] == "va.fsthaw"
        assert not it.frozen


def test_a_freeze_whose_end_was_not_seen_is_broken() -> None:
    told = Told(fsfreeze=[1], fsstatus=[BEGUN], fsthaw=[KeyboardInterrupt(), 1])
    it = holding(told)
    freeze = drive(it.begin(), told.take)
    with pytest.raises(KeyboardInterrupt):
        drive(it.end(), told.take)
    assert freeze.broken is not None


def test_what_could_not_be_undone_is_noted() -> None:
    told = Told(fsfreeze=[TimedOut("late")], fsthaw=[Lost("gone")] * 99)
    it = holding(told, thaw_wait=5)
    with pytest.raises(TimedOut) as raised:
        drive(it.begin(), told.take)
    assert isinstance(it.undo_failed, NotThawed)
    assert notes(raised.value) == [f"besides: {it.undo_failed}"]
    told = Told(fsfreeze=[TimedOut("late")], fsthaw=[Fault(Code.FAILED, "EIO")])
    it = holding(told)
    with pytest.raises(TimedOut):
        drive(it.begin(), told.take)
    assert isinstance(it.undo_failed, NotThawed)


def test_of_a_stock_qemu_ga_the_count_decides() -> None:
    stock = load(Status, {"state": "FROZEN", "code": 2, "seq": -1, "version": "stock qemu-ga"}, "status")
    told = Told(fsfreeze=[2], fsstatus=[stock], fsthaw=[2])
    assert told.run(holding(told)).freeze_id == -1
    told = Told(fsfreeze=[2], fsstatus=[stock], fsthaw=[1])
    with pytest.raises(FreezeBroken, match="1 still were"):
        told.run(holding(told))


def test_the_hold_is_extended_when_a_third_has_passed() -> None:
    answers = [30.0, TimedOut("late"), TimedOut("late"), 12.0, Fault(Code.WRONG_STATE, "thawed")]
    told = Told(fsfreeze=[1], fsstatus=[BEGUN], fshold=answers)
    it = holding(told)
    freeze = drive(it.begin(), told.take)
    pauses: list[float] = []
    apart: list[bool] = []

    def take(step: CallOnOwnConnection | Pause) -> Any:
        if isinstance(step, Pause):
            pauses.append(step.seconds)
        else:
            assert step.call.params == (30,)
            apart.append(step.apart)
        return told.take(step)

    drive(it.extension(), take)
    assert pauses == [10, 10, pytest.approx(1 / 3), 4]
    assert apart == [True, True, False, False, False]
    assert "thawed" in freeze.not_extended


# -- the two agents


class Held:
    """An agent that freezes, and holds until it is thawed."""

    def __init__(self) -> None:
        self.frozen = self.broken = False
        self.extended = threading.Semaphore(0)

    def __call__(self, method: str, params: list[Any]) -> Any:
        match method:
            case "va.fsfreeze":
                self.frozen = True
                return 1
            case "va.fsstatus":
                return FROZEN | {"mounts": [MOUNT], "hold_left": 0.03} if self.frozen else GOOD
            case "va.fsthaw":
                self.frozen = False
                if self.broken:
                    raise xmlrpc.Fault(8, "the keeper died")
                return 1
            case "va.fshold":
                self.extended.release()
                return 0.03
        raise AssertionError(method)


def test_an_absurd_hold_ends_no_extension() -> None:
    told = Told(fsfreeze=[1], fsstatus=[status(hold_left=1e300)], fshold=[1e300, Fault(Code.WRONG_STATE, "thawed")])
    it = holding(told)
    drive(it.begin(), told.take)
    drive(it.extension(), told.take)
    assert told.now <= 2 * 3600


Block = Callable[[Freeze], None]
Frozen = Callable[..., None]


def by_thread(url: str, block: Block, **options: Any) -> None:
    with Agent(url) as agent, agent.frozen(**options) as freeze:
        block(freeze)


def by_loop(url: str, block: Block, **options: Any) -> None:
    async def run() -> None:
        async with AsyncAgent(url) as agent, agent.frozen(**options) as freeze:
            await asyncio.to_thread(block, freeze)

    asyncio.run(run())


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Held, FakeAgent]]:
    held = Held()
    with FakeAgent(tmp_path / "a", held) as fake:
        yield held, fake


both = pytest.mark.parametrize("frozen", [by_thread, by_loop])


@both
def test_a_block_is_run_frozen(held: tuple[Held, FakeAgent], frozen: Frozen) -> None:
    agent, fake = held
    seen: list[Freeze] = []

    def block(freeze: Freeze) -> None:
        assert agent.frozen
        seen.append(freeze)

    frozen(fake.url, block, hold=30)
    assert not agent.frozen
    assert seen[0].broken is None
    assert fake.asked.get_nowait() == ("va.fsfreeze", [{"hold_limit": 30, "wait": 900.0}])


@both
def test_the_hold_is_extended_while_the_block_runs(held: tuple[Held, FakeAgent], frozen: Frozen) -> None:
    agent, fake = held

    def block(freeze: Freeze) -> None:
        for _ in range(3):
            assert agent.extended.acquire(timeout=10)

    frozen(fake.url, block, extend=True)
    assert fake.connections == 2
    assert not any(thread.name == "virtagent hold" for thread in threading.enumerate())


@both
def test_a_channel_that_takes_one_host_at_a_time_is_used_for_the_extension(tmp_path: Path, frozen: Frozen) -> None:
    agent = Held()
    one = threading.Lock()

    def script(sock: socket.socket) -> None:
        with one:
            fake._serve(sock)

    def block(freeze: Freeze) -> None:
        for _ in range(3):
            assert agent.extended.acquire(timeout=10)

    with FakeAgent(tmp_path / "a", agent, script) as fake:
        frozen(fake.url, block, extend=True)
    assert not agent.frozen


@both
@pytest.mark.parametrize("broken", [False, True])
def test_an_exception_of_the_block_comes_first(held: tuple[Held, FakeAgent], frozen: Frozen, broken: bool) -> None:
    agent, fake = held
    agent.broken = broken
    seen: list[Freeze] = []

    def block(freeze: Freeze) -> None:
        seen.append(freeze)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as raised:
        frozen(fake.url, block)
    assert not agent.frozen
    assert (seen[0].broken is not None) == broken
    assert ["the keeper died" in note for note in getattr(raised.value, "__notes__", [])] == [True] * broken


@both
def test_a_broken_freeze_is_raised_after_the_block(held: tuple[Held, FakeAgent], frozen: Frozen) -> None:
    agent, fake = held
    agent.broken = True
    with pytest.raises(FreezeBroken, match="the keeper died"):
        frozen(fake.url, lambda freeze: None, extend=True)


def test_a_task_that_is_cancelled_thaws(held: tuple[Held, FakeAgent]) -> None:
    agent, fake = held

    async def run() -> None:
        inside = asyncio.Event()

        async def freeze() -> None:
            async with AsyncAgent(fake.url) as it, it.frozen(extend=True):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(freeze())
        await inside.wait()
        assert agent.frozen
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(run())
    assert not agent.frozen
