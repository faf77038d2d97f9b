"""A group of guests: two phases, one point; what thaws all; and how many guests one process can hold."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import status_record
from fakes.many_agents import ManyAgents
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Status
from virtagent.host import (
    AgentGroup,
    AsyncAgent,
    AsyncAgentGroup,
    FreezeBroken,
    GroupFailed,
    TimedOut,
    TooSkewed,
    Unreachable,
    cli,
    group,
)
from virtagent.host.holding import Freeze, Wanted, notes
from virtagent.host.member import Guest


def test_two_hundred_guests_and_no_thread_a_guest(tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 200) as guests:
        threads = threading.active_count()
        with AgentGroup(guests.urls).frozen(hold=30, extend=True) as freeze:
            assert len(guests.frozen) == 200
            assert threading.active_count() == threads + 1
        assert not guests.frozen
        assert guests.connections == 200
        phases = [method for _, method in guests.asked]
        last_ready = len(phases) - phases[::-1].index("va.fsfreeze") - 1
        assert phases.index("va.fsgo") > last_ready, "none is let go before the last has been made ready"
        assert phases.index("va.fsthaw") > len(phases) - phases[::-1].index("va.fsgo") - 1
    assert list(freeze.guests) == guests.urls
    assert (freeze.broken, freeze.skew_by_agents >= 0, freeze.window > 0) == (None, True, True)


@pytest.mark.parametrize("phase", ["va.ping", "va.fsfreeze", "va.fsgo", "va.fsstatus"])
@pytest.mark.parametrize("answer", [OSError("no"), "rubbish"])
def test_one_that_refuses_ends_it_for_all(tmp_path: Path, phase: str, answer: Any) -> None:
    if phase == "va.ping":
        answer = 7  # a refusal would do: it is an answer
    with ManyAgents(tmp_path, 5, lambda n, method: answer if (n, method) == (3, phase) else None) as guests:
        with pytest.raises(GroupFailed) as raised, AgentGroup(guests.urls).frozen():
            pytest.fail("the block runs")
        assert not guests.frozen
        assert not guests.waiting
        gone = {n for n, method in guests.asked if method == "va.fsgo"}
        assert bool(gone) == (phase == "va.fsgo")
        begun = {n for n, method in guests.asked if method == "va.fsfreeze"}
        assert bool(begun) == (phase != "va.ping")
        thawed = {n for n, method in guests.asked if method == "va.fsthaw"}
        assert begun - thawed <= {3}
    assert guests.urls[3] in str(raised.value)
    assert list(raised.value.causes) == [guests.urls[3]]
    if isinstance(answer, OSError):
        cause = raised.value.causes[guests.urls[3]]
        assert isinstance(cause, Fault)
        assert cause.code is Code.FREEZE_FAILED


def test_one_that_is_late_ends_it_for_all(tmp_path: Path) -> None:
    def silent(n: int, method: str) -> Any:
        return ... if (n, method) == (3, "va.fsgo") else None

    with ManyAgents(tmp_path, 5, silent) as guests:
        late = pytest.raises(GroupFailed, match=r"/3 did not freeze within 0\.2 s; all were thawed")
        with late, AgentGroup(guests.urls).frozen(freeze_wait=0.2):
            pytest.fail("the block runs")
        assert not guests.frozen
        assert (3, "va.fsthaw") in guests.asked


def thaws_late(n: int, method: str) -> Any:
    """Guest 3 refuses the freeze; 1 is slow with it, and then refuses to thaw."""
    if (n, method) == (3, "va.fsgo"):
        return OSError("no")
    return ... if (n, method) == (1, "va.fsgo") else OSError("EIO") if (n, method) == (1, "va.fsthaw") else None


def test_a_guest_that_could_not_be_thawed_is_named(tmp_path: Path) -> None:
    def silent(n: int, method: str) -> Any:
        return ... if (n, method) == (1, "va.fsthaw") else thaws_late(n, method)

    with ManyAgents(tmp_path, 5, silent) as guests:
        group = AgentGroup(guests.urls, timeout=0.2)
        with pytest.raises(GroupFailed) as raised, group.frozen(thaw_wait=0.2):
            pytest.fail("the block runs")
    assert "all were thawed" not in str(raised.value)
    (said,) = [one for one in notes(raised.value) if "may be frozen" in one]
    assert guests.urls[1] in said
    words, _ = cli.sentence(raised.value)
    assert said in words


def test_what_an_interrupted_group_could_not_undo_is_told(tmp_path: Path) -> None:
    """By a cancellation, and by a signal in the thread that blocks."""
    asked = threading.Event()

    def silent(n: int, method: str) -> Any:
        if (n, method) == (1, "va.fsgo"):
            asked.set()
            return ...
        return OSError("EIO") if (n, method) == (1, "va.fsthaw") else None

    async def cancelled(guests: ManyAgents) -> None:
        async def freeze() -> None:
            # Caught here: who awaits the task gets a new exception without notes from Python 3.10.
            with pytest.raises(asyncio.CancelledError) as raised:
                async with AsyncAgentGroup(guests.urls).frozen():
                    pytest.fail("the block runs")
            assert any(guests.urls[1] in one and "EIO" in one for one in notes(raised.value))

        task = asyncio.ensure_future(freeze())
        await asyncio.to_thread(asked.wait, 20)
        task.cancel()
        await task

    with ManyAgents(tmp_path, 3, silent) as guests:
        asyncio.run(cancelled(guests))
        assert not guests.frozen
        asked.clear()
        signalling = threading.Thread(target=lambda: (asked.wait(20), os.kill(os.getpid(), signal.SIGINT)))
        signalling.start()
        with pytest.raises(KeyboardInterrupt) as raised, AgentGroup(guests.urls).frozen():
            pytest.fail("the block runs")
        signalling.join()
        assert any(guests.urls[1] in one and "EIO" in one for one in notes(raised.value))
        assert not guests.frozen


def test_an_interruption_that_comes_when_all_are_frozen_thaws_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes after the last guest was frozen, and before the block has begun."""
    waited = concurrent.futures.wait

    def interrupted(futures: Any, **options: Any) -> Any:
        waited(futures, **options)
        monkeypatch.undo()
        raise KeyboardInterrupt

    with ManyAgents(tmp_path, 3) as guests:
        monkeypatch.setattr(concurrent.futures, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), AgentGroup(guests.urls).frozen():
            pytest.fail("the block runs")
        assert not guests.frozen
        assert [method for _, method in guests.asked].count("va.fsthaw") == 3


def test_clocks_that_are_wrong_by_an_hour(tmp_path: Path) -> None:
    """A guest waits until an instant of its own clock; one that does not tell the time is taken to have ours."""

    def silent_about_time(n: int, method: str) -> Any:
        return Fault(Code.BLOCKED, "it is blocked") if (n, method) == (3, "guest-get-time") else None

    with ManyAgents(tmp_path, 4, silent_about_time) as guests:
        guests.ahead = {0: 3600, 1: -3600}
        with AgentGroup(guests.urls).frozen():
            assert guests.frozen == {0, 1, 2, 3}
            assert "va.fssync" not in {method for _, method in guests.asked}, "all waited"
        assert not guests.frozen


@pytest.mark.parametrize(("late", "good"), [(2, True), (3, False)])
def test_a_sync_that_outlasts_the_instant_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int, good: bool
) -> None:
    """All are called off before one that is ready freezes by itself, and made ready again: at most three times."""

    def syncs(n: int, method: str) -> Any:
        asked = guests.asked.count((1, "va.fsfreeze"))
        if (n, method) != (1, "va.fsstatus") or asked > late or 1 not in guests.waiting:
            return None
        return status_record(state="INPROGRESS", code=1, seq=39, phase="sync")

    monkeypatch.setattr(group, "PREPARE_SECONDS", 0.2)
    with ManyAgents(tmp_path, 2, syncs) as guests:
        if good:
            with AgentGroup(guests.urls).frozen():
                assert guests.frozen == {0, 1}
        else:
            with pytest.raises(GroupFailed, match="still in phase sync"), AgentGroup(guests.urls).frozen():
                pytest.fail("the block runs")
        assert guests.asked.count((0, "va.fsfreeze")) == guests.asked.count((1, "va.fsfreeze")) == 3
        assert not guests.frozen | guests.waiting


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 2) as guests:
        gone = f"unix:{tmp_path}/none"
        with pytest.raises(GroupFailed) as raised, AgentGroup([*guests.urls, gone]).frozen():
            pytest.fail("the block runs")
        assert isinstance(raised.value.causes[gone], Unreachable)
        assert not any(method == "va.fsfreeze" for _, method in guests.asked)


def test_one_that_is_silent_ends_in_time(tmp_path: Path) -> None:
    def silent(n: int, method: str) -> Any:
        return ... if n == 1 else None

    with ManyAgents(tmp_path, 2, silent) as guests:
        with pytest.raises(GroupFailed) as raised, AgentGroup(guests.urls, timeout=0.2).frozen():
            pytest.fail("the block runs")
        assert isinstance(raised.value.causes[guests.urls[1]], TimedOut)


def test_one_that_broke_spoils_all(tmp_path: Path) -> None:
    def broken(n: int, method: str) -> Any:
        return OSError("the hold limit passed") if (n, method) == (1, "va.fsthaw") else None

    with ManyAgents(tmp_path, 3, broken) as guests:
        spoilt = pytest.raises(FreezeBroken, match="/1: the hold limit passed")
        with spoilt as raised, AgentGroup(guests.urls).frozen() as freeze:
            pass
        assert freeze.broken is raised.value
        assert freeze.guests[guests.urls[1]].broken is not None
        assert freeze.guests[guests.urls[0]].broken is None
        assert guests.frozen == {1}
        with pytest.raises(LookupError) as mine, AgentGroup(guests.urls[:2]).frozen() as freeze:
            raise LookupError("mine")
        assert freeze.broken is not None
        assert "hold limit" in getattr(mine.value, "__notes__", [""])[0]


def test_a_task_that_is_cancelled_thaws_all(tmp_path: Path) -> None:
    async def run(guests: ManyAgents) -> None:
        inside = asyncio.Event()

        async def freeze() -> None:
            async with AsyncAgentGroup(guests.urls).frozen(extend=True):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(freeze())
        await inside.wait()
        assert len(guests.frozen) == 5
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with ManyAgents(tmp_path, 5) as guests:
        asyncio.run(run(guests))
        assert not guests.frozen


@pytest.mark.parametrize("urls", [[], ["unix:/a", "unix:/a"], ["tcp:x"]])
def test_a_group_that_is_none(urls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"group|twice|no agent's URL"):
        AgentGroup(urls)


def members(by_agents: tuple[float, float]) -> list[Guest]:
    found = [Guest(AsyncAgent(f"unix:/{n}"), Wanted()) for n in range(2)]
    for member, begun, by_agent in zip(found, (10.0, 10.5), by_agents, strict=True):
        barrier = member._barrier
        barrier.begun, barrier.begun_by_agent = begun, by_agent
        barrier._freeze = Freeze(1, 1, (), 0, 60, Status("FROZEN", 2, 1))
    return found


def test_the_skew_is_the_hosts_and_that_of_the_agents_is_theirs() -> None:
    found = group.report(members((7.0, 7.25)))
    assert (found.skew, found.skew_by_agents, found.true_skew) == (0.5, 0.25, 0.25)
    found = group.report(members((-1.0, 7.25)))  # the first as of a stock qemu-ga
    assert (found.skew, found.skew_by_agents, found.true_skew) == (0.5, -1, 0.5)


def test_a_skew_that_is_too_large_thaws_all(tmp_path: Path) -> None:
    """Agent 1 says that it has been frozen for a second, the others that they have just been."""

    def earlier(n: int, method: str) -> Any:
        return status_record(since=1.0) if (n, method) == (1, "va.fsstatus") and 1 in guests.frozen else None

    with ManyAgents(tmp_path, 3, earlier) as guests:
        with pytest.raises(TooSkewed) as raised, AgentGroup(guests.urls).frozen(max_skew=0.5):
            pytest.fail("the block runs")
        assert not guests.frozen
        assert [method for _, method in guests.asked].count("va.fsthaw") == 3
        assert re.match(r"\d+\.\d ms lay between .* more than the 500 ms .*; all were thawed$", str(raised.value))
        assert cli.sentence(raised.value)[1] == 5
        with AgentGroup(guests.urls).frozen(max_skew=20) as freeze:
            assert freeze.true_skew >= 0.5


OLD = {"version": "0.1.0", "methods": ["va.fsfreeze", "va.fssync", "va.fsthaw"]}


def test_one_that_cannot_wait_is_synced_and_freezes_with_the_others(tmp_path: Path) -> None:
    """Agent 1 is of version 0.1, and agent 2 of the same behind libvirt, which drops the codes."""

    def old(n: int, method: str) -> Any:
        if n == 0 or method not in ("va.fsfreeze", "va.capabilities"):
            return None
        if method == "va.capabilities":
            return OLD
        before = sum(asked == (n, "va.fsfreeze") for asked in guests.asked) == 1
        return Fault(Code.PARAMS if n == 1 else Code.FAILED, "va.fsfreeze: unknown option 'at'") if before else None

    with ManyAgents(tmp_path, 3, old) as guests:
        with AgentGroup(guests.urls).frozen() as freeze:
            assert guests.frozen == {0, 1, 2}
        asked = list(guests.asked)
        assert not guests.frozen
    let_go = asked.index((0, "va.fsgo"))
    for n in (1, 2):
        assert asked.index((n, "va.fssync")) < let_go
        assert asked[asked.index((n, "va.fssync")) :].count((n, "va.fsfreeze")) == 1
        assert "0.1.0 knows no va.fsgo" in freeze.guests[guests.urls[n]].cannot_wait
    assert freeze.guests[guests.urls[0]].cannot_wait == ""


def test_one_that_froze_before_it_was_let_go_ends_it_for_all(tmp_path: Path) -> None:
    """Its clock is ahead of the host's."""

    def hasty(n: int, method: str) -> Any:
        return status_record() if (n, method) == (1, "va.fsstatus") and 1 in guests.waiting else None

    with ManyAgents(tmp_path, 3, hasty) as guests:
        early = pytest.raises(GroupFailed, match="/1 froze before it was let go; see that its clock")
        with early, AgentGroup(guests.urls).frozen():
            pytest.fail("the block runs")
        assert not guests.frozen | guests.waiting


def test_a_refusal_that_is_not_for_the_instant_is_told(tmp_path: Path) -> None:
    def refuse(n: int, method: str) -> Any:
        able = {"version": "1", "methods": ["va.fsgo"]}
        wrong = Fault(Code.PARAMS, "'/nowhere' matches no file system")
        return {"va.fsfreeze": wrong, "va.capabilities": able}.get(method) if n == 1 else None

    with ManyAgents(tmp_path, 2, refuse) as guests:
        wrong = pytest.raises(GroupFailed, match="matches no file system")
        with wrong as raised, AgentGroup(guests.urls).frozen("/nowhere"):
            pytest.fail("the block runs")
        assert not guests.waiting
    cause = raised.value.causes[guests.urls[1]]
    assert isinstance(cause, Fault)
    assert cause.code is Code.PARAMS
