"""Calls through a relay: what is too long for it, what it may refuse, and what a user's event loop waits for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from fakes.relays import DIE, FakeRelays
from virtagent.agent.api.errors import Code, Fault
from virtagent.host import Agent, AgentGroup, AsyncAgent, BadReply, Unsendable, cli, snapshot, ssh_guest, ssh_process
from virtagent.host.relay import Relay
from virtagent.host.relay_passing import Passing
from virtagent.host.ssh_process import Remote


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRelays]:
    with FakeRelays(monkeypatch) as those:
        yield those


def test_a_call_that_no_relay_takes_is_not_sent_and_costs_no_other(tmp_path: Path, relays: FakeRelays) -> None:
    """It was answered as a line that is none, which ended the connection of all agents of that host."""
    with ManyAgents(tmp_path, 2) as guests:
        with (
            Agent(f"ssh:hv1?agents={guests.urls[0]}") as writes,
            Agent(f"ssh:hv1?agents={guests.urls[1]}") as other,
        ):
            other.ping()
            with pytest.raises(Unsendable, match="over 1048576 bytes"):
                writes.call("guest-file-write", {"handle": 1, "buf-b64": "A" * (1 << 20)})
            assert other.ping() == "dummy"
            assert writes.ping() == "dummy"
        assert relays.started == ["hv1"]
        assert not any(method == "guest-file-write" for _, method in guests.asked)


def test_an_answer_that_is_not_passed_on_was_given_all_the_same(tmp_path: Path) -> None:
    """So whoever repeats what was never asked does not repeat it."""
    said: list[dict[str, Any]] = []
    value = "x" * (5 << 20)
    with ManyAgents(tmp_path, 1, lambda n, method: value if method == "guest-exec" else None) as guests:

        async def run() -> None:
            passing = Passing(said.append)
            passing.take(
                "call", {"id": 1, "agent": guests.urls[0], "text": '{"execute": "guest-exec", "arguments": {}}'}
            )
            await asyncio.wait(passing._tasks)
            passing.close()

        asyncio.run(run())
    (answer,) = said
    assert "at most 4194304 are passed on" in answer["called"]["error"]
    assert answer["called"]["kind"] == BadReply.__name__


def test_a_guest_whose_ping_is_blocked_is_frozen_behind_a_relay_too(tmp_path: Path, relays: FakeRelays) -> None:
    blocked = Fault(Code.BLOCKED, "va.ping is blocked")
    guests = ManyAgents(tmp_path, 2, lambda n, method: blocked if method == "va.ping" else None)
    with guests, AgentGroup([f"ssh:hv1?agents={guests.urls[0]}", guests.urls[1]]).frozen():
        assert guests.frozen == {0, 1}


@pytest.mark.parametrize("method", ["va.fsfreeze", "va.fsgo", "va.fsthaw"])
def test_what_a_relay_says_of_a_guest_is_bounded(tmp_path: Path, method: str) -> None:
    """Else one guest's long sentence is over the length of a line, and its whole host is hung up on."""
    long = OSError("x" * (1 << 20))
    with ManyAgents(tmp_path, 1, lambda n, asked: long if asked == method else None) as guests:

        async def run() -> list[dict[str, Any]]:
            relay = Relay()
            return [
                await relay.take({"prepare": {"agents": guests.urls, "options": {"thaw_wait": 1}}}),
                *([] if method == "va.fsfreeze" else [await relay.take({"freeze": {"each": True}})]),
                await relay.take({"thaw": {"each": True}}),
            ]

        said = asyncio.run(run())
    assert "xxx" in str(said)
    assert len(json.dumps(said)) < 10_000


def test_an_event_loop_does_not_wait_for_the_end_of_an_ssh(
    tmp_path: Path, relays: FakeRelays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that hangs held up the calls to all others, for up to 9 s."""
    may_end, ended = threading.Event(), threading.Event()
    close = Remote.close

    async def slow(remote: Remote) -> None:
        await asyncio.to_thread(may_end.wait, 20)
        await close(remote)
        ended.set()

    monkeypatch.setattr(ssh_process.Remote, "close", slow)
    with ManyAgents(tmp_path, 1) as guests:

        async def run() -> None:
            async with AsyncAgent(f"ssh:hv1?agents={guests.urls[0]}") as agent:
                await agent.ping()
            assert not ended.is_set()

        asyncio.run(run())
        may_end.set()
        with Agent(f"ssh:hv1?agents={guests.urls[0]}") as agent:
            agent.ping()
        assert ended.wait(20)


def test_a_name_with_an_ampersand_is_one(tmp_path: Path, relays: FakeRelays) -> None:
    """As sockets of libvirt's domains may have."""
    folder = tmp_path / "a&b"
    folder.mkdir()
    with ManyAgents(folder, 2) as guests:
        urls = [f"ssh:hv1?agents={guests.urls[0]}&agents={guests.urls[1]}"]
        with AgentGroup(urls).frozen(progress=lambda record: None) as freeze:
            assert snapshot.environment(freeze)["VIRTAGENT_AGENTS"] == "ssh:hv1"
        assert list(freeze.guests) == [f"ssh:hv1?agents={url}" for url in guests.urls]
        with AgentGroup(f"ssh:hv1?agents=unix:{tmp_path}/a?b/*").frozen() as freeze:
            assert snapshot.environment(freeze)["VIRTAGENT_AGENTS"] == "ssh:hv1"


def test_a_host_that_is_down_keeps_nobody_from_hearing_of_the_others(
    tmp_path: Path, relays: FakeRelays, capsys: pytest.CaptureFixture[str]
) -> None:
    relays.meddle = lambda host, what, answer: DIE if host == "hv2" else None
    with ManyAgents(tmp_path, 2) as guests:
        agents = ["--agent", f"ssh:hv1?agents={guests.urls[0]}&agents={guests.urls[1]}", "--agent", "ssh:hv2"]
        assert cli.main(["--json", *agents, "ping"]) == 3
        said = json.loads(capsys.readouterr().out)
        assert list(said) == [*(f"ssh:hv1?agents={url}" for url in guests.urls), "ssh:hv2"]
        assert "no connection to ssh:hv2" in said["ssh:hv2"]["error"]["text"]
        assert cli.main(["--json", "--agent", "ssh:hv2", "ping"]) == 3
        assert "no connection to ssh:hv2" in capsys.readouterr().out
        ssh_guest._HUB._close()  # as the end of the program does
        ssh_guest._HUB._shared.clear()
