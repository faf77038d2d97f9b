"""One guest's or host's trouble in a group: what it costs the others, and what is said of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from fakes.relays import DIE, HANG, LATE, FakeRelays
from virtagent.agent.api.errors import Code, Fault
from virtagent.host import (
    AgentGroup,
    AsyncAgent,
    FreezeBroken,
    GroupFailed,
    NotThawed,
    client_session,
    hypervisor,
    relay_talk,
)
from virtagent.host.barrier import Barrier
from virtagent.host.holding import notes
from virtagent.host.relay import Relay


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRelays]:
    with FakeRelays(monkeypatch) as those:
        yield those


class Slow:
    """Guest 1 refuses to freeze, and its thaw does not end before that of the others: that is its own trouble."""

    def __init__(self) -> None:
        self.others_thaw = threading.Event()

    def __call__(self, n: int, method: str) -> Any:
        if n != 1:
            if method == "va.fsthaw":
                self.others_thaw.set()
        elif method == "va.fsgo":
            return OSError("EIO")
        elif method == "va.fsthaw" and not self.others_thaw.is_set():
            return Fault(Code.IN_PROGRESS, "va.fsthaw is still in progress after 1.0 s; the job goes on")
        return None


@pytest.mark.parametrize("far", [False, True])
def test_a_guest_that_fails_and_thaws_slowly_keeps_no_other_frozen(
    tmp_path: Path, relays: FakeRelays, far: bool
) -> None:
    """The others were held until `freeze_wait` had passed, though it was known that the freeze had failed."""
    slow = Slow()
    with ManyAgents(tmp_path, 2, slow) as guests:
        urls = [f"ssh:hv{n}?agents={url}" for n, url in enumerate(guests.urls)] if far else guests.urls
        failing = pytest.raises(GroupFailed, match=r"EIO.*all were thawed")
        with failing as raised, AgentGroup(urls).frozen(freeze_wait=40, thaw_wait=10):
            pytest.fail("the block runs")
        assert "in progress" not in str([raised.value, *notes(raised.value)])
        assert slow.others_thaw.is_set()
        assert not guests.frozen


@pytest.mark.parametrize("refuses", [0, 1])
def test_a_guest_behind_a_relay_that_may_be_frozen_still_is_named(
    tmp_path: Path, relays: FakeRelays, refuses: int
) -> None:
    """Whether it is the one that failed, or one that was let go with it: it was said that all were thawed."""

    def answer(n: int, method: str) -> Any:
        if (n, method) == (1, "va.fsthaw"):
            return Fault(Code.FAILED, "not yet thawed: /srv")
        if method == "va.fsgo" and n in (1, refuses):
            return OSError("EIO") if n == refuses else ...
        return None

    with ManyAgents(tmp_path, 2, answer) as guests:
        url = f"ssh:hv1?agents={guests.urls[0]}&agents={guests.urls[1]}"
        with pytest.raises(GroupFailed, match="EIO") as raised, AgentGroup([url]).frozen(thaw_wait=1):
            pytest.fail("the block runs")
        assert "all were thawed" not in str(raised.value)
        assert any(f"{guests.urls[1]}: not yet thawed: /srv" in one for one in notes(raised.value))


def test_one_guest_alone_behind_a_relay_that_may_be_frozen_still_is_named(tmp_path: Path, relays: FakeRelays) -> None:
    def answer(n: int, method: str) -> Any:
        return {"va.fsgo": OSError("EIO"), "va.fsthaw": Fault(Code.FAILED, "not yet thawed: /srv")}.get(method)

    async def run(url: str) -> None:
        with pytest.raises(GroupFailed, match="EIO") as raised:
            async with AsyncAgent(url).frozen(thaw_wait=1):
                pytest.fail("the block runs")
        assert any("not yet thawed: /srv" in one for one in notes(raised.value))

    with ManyAgents(tmp_path, 1, answer) as guests:
        asyncio.run(run(f"ssh:hv1?agents={guests.urls[0]}"))


class Clock:
    """The time of the relay's own module, which only a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Lines:
    """What a coordinator says, when it does."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def next(self) -> bytes | None:
        return await self.said.get()


def test_a_coordinator_that_waits_for_the_answer_to_freeze_is_not_taken_for_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A freeze that took over 20 s, whose holds are extended, was thawed as soon as it was answered."""
    clock = Clock()
    monkeypatch.setattr(relay_talk, "time", clock)

    class Slow:
        extends = False

        async def take(self, record: Any) -> dict[str, Any]:
            if "freeze" in record:
                clock.now += relay_talk.SILENCE + 5
                self.extends = True
            return record | {"done": True}

    async def run() -> None:
        lines, said = Lines(), asyncio.Queue[Any]()
        talking = asyncio.ensure_future(relay_talk._converse(Slow(), lines, said.put_nowait))  # type: ignore[arg-type]
        for record in (b'{"freeze": {}}', b'{"thaw": {}}'):
            lines.said.put_nowait(record)
            answering = asyncio.ensure_future(said.get())
            await asyncio.wait([talking, answering], return_when=asyncio.FIRST_COMPLETED)
            assert answering.done(), "the relay has left"
            for _ in range(5):
                await asyncio.sleep(0)
            assert not talking.done()
        clock.now += relay_talk.SILENCE
        lines.said.put_nowait(b'{"thaw": {}}')  # what was said in time is heard
        assert "thaw" in await said.get()
        lines.said.put_nowait(None)
        await talking

    asyncio.run(run())


def test_a_relay_whose_guests_are_frozen_hears_something_while_others_freeze(
    tmp_path: Path, relays: FakeRelays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It thawed when those of another host took over 20 s, which a freeze of 60 s allows."""
    monkeypatch.setattr(hypervisor, "ALIVE_SECONDS", 0.01)
    relays.meddle = lambda host, what, answer: LATE(0.5) if (host, what) == ("hv2", "freeze") else None
    with ManyAgents(tmp_path, 2) as guests:
        urls = [f"ssh:hv{n}?agents={url}" for n, url in enumerate(guests.urls, 1)]
        with AgentGroup(urls).frozen(extend=True):
            asked = [what for host, what in relays.asked if host == "hv1"]
            assert asked[asked.index("freeze") + 1 :].count("clock") > 1
        with AgentGroup(urls).frozen():
            asked = [what for host, what in relays.asked if host == "hv1"]
            assert asked[-1] == "freeze", "nobody needs that"


@pytest.mark.parametrize("ends", ["by itself", "by the thaw", "by a defect"])
def test_each_record_has_one_answer_when_a_thaw_ends_what_is_going_on(ends: str) -> None:
    """What ends by itself just then has its answer; another one after it was taken for that to the thaw."""
    begun = asyncio.Event()

    class Runs:
        extends = False

        async def take(self, record: Any) -> dict[str, Any]:
            if "run" in record:
                begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:  # as asyncio.wait_for loses one that comes together with the end
                    if ends == "by the thaw":
                        raise
                    return {"ran": 1 // (ends != "by a defect")}
            return {"thawed": True}

    async def run() -> None:
        lines, said = Lines(), list[Any]()
        talking = asyncio.ensure_future(relay_talk._converse(Runs(), lines, said.append))  # type: ignore[arg-type]
        lines.said.put_nowait(b'{"run": {}}')
        await begun.wait()
        for line in (b'{"thaw": {}}', None):
            lines.said.put_nowait(line)
        if ends == "by a defect":
            with pytest.raises(ZeroDivisionError):
                await talking
            return
        await talking
        first = {"ran": 1} if ends == "by itself" else {"error": "run was ended by thaw"}
        assert said == [first, {"thawed": True}]

    asyncio.run(run())


def test_a_guest_that_hangs_at_the_thaw_costs_no_other_of_its_host(
    tmp_path: Path, relays: FakeRelays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relay knew what became of the others, and was not waited for: all of that host counted as not thawed."""
    monkeypatch.setattr(client_session, "ANSWER", 3.0)
    monkeypatch.setattr(hypervisor, "ANSWER", 3.0)
    monkeypatch.setattr(hypervisor, "MARGIN", 1.0)
    answer = lambda n, method: ... if (n, method) == (1, "va.fsthaw") else None  # noqa: E731
    with ManyAgents(tmp_path, 2, answer) as guests:
        url = f"ssh:hv1?agents={guests.urls[0]}&agents={guests.urls[1]}"
        spoilt = pytest.raises(FreezeBroken, match="/1 may be frozen, since no thaw was answered within 1 s")
        with spoilt, AgentGroup([url]).frozen(thaw_wait=1) as freeze:
            pass
    held, lost = freeze.guests.values()
    assert (held.broken, held.ended is not None) == (None, True)
    assert isinstance(lost.broken, NotThawed)


def test_a_relay_that_hangs_at_the_thaw_is_not_waited_for_as_a_guest_is(
    tmp_path: Path, relays: FakeRelays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypervisor, "ALIVE_SECONDS", 0.1)

    def meddle(_host: str, what: str, _answer: dict[str, Any]) -> Any:
        return HANG if "thaw" in (what, *(asked for _, asked in relays.asked)) else None

    relays.meddle = meddle
    with ManyAgents(tmp_path, 1) as guests:
        spoilt = pytest.raises(FreezeBroken, match=r"did not answer clock within 0\.2 s; its guests thaw at the end")
        with spoilt, AgentGroup([f"ssh:hv1?agents={guests.urls[0]}"]).frozen():
            pass


@pytest.mark.parametrize("step", ["prepare", "clock"])
def test_of_guests_that_only_waited_nobody_is_told_that_they_thaw_by_themselves(
    tmp_path: Path, relays: FakeRelays, step: str
) -> None:
    """Nothing was frozen, so there is no hold to wait for, and no snapshot to throw away."""

    def meddle(host: str, what: str, _answer: dict[str, Any]) -> Any:
        return DIE if (host, what) == ("hv2", step) and ("hv2", "prepare") in relays.asked else None

    relays.meddle = meddle
    with ManyAgents(tmp_path, 2) as guests:
        urls = [f"ssh:hv{n}?agents={url}" for n, url in enumerate(guests.urls, 1)]
        with pytest.raises(GroupFailed, match="nothing was frozen") as raised, AgentGroup(urls).frozen():
            pytest.fail("the block runs")
        assert notes(raised.value) == []


def test_connecting_counts_for_the_time_in_which_a_relay_has_its_guests_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it answers when the coordinator has given it up, which then makes nothing ready again."""
    given: list[float] = []
    prepare = Barrier.prepare

    def noted(barrier: Barrier, within: float) -> Any:
        given.append(within)
        return prepare(barrier, within)

    def slow(_n: int, method: str) -> Any:
        return "dummy" if method == "va.ping" and not asked.wait(0.3) else None

    asked = threading.Event()
    monkeypatch.setattr(Barrier, "prepare", noted)
    with ManyAgents(tmp_path, 1, slow) as guests:

        async def run() -> None:
            relay = Relay()
            await relay.take({"prepare": {"agents": guests.urls, "within": 100}})
            await relay.thaw()

        asyncio.run(run())
    (within,) = given
    assert within <= 99.71
