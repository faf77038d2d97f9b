"""`progress=` of the library, with real daemons: blocking, asyncio, and groups."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from harness.rig import Rig
from virtagent.host import Agent, AgentGroup, AsyncAgent, Freeze, GuestStatus


def assert_told(seen: list[GuestStatus], url: str, freeze: Freeze) -> None:
    """Assert that the records of this guest tell of the freeze from before it until after it, in order."""
    mine = [record for record in seen if record.url == url]
    assert mine[0].state == "THAWED"
    assert "FROZEN" in [record.state for record in mine]
    assert [record.seq for record in mine] == sorted({record.seq for record in mine})
    last = mine[-1].last
    assert mine[-1].state == "THAWED"
    assert last is not None
    assert (last.freeze_id, last.held_continuously) == (freeze.freeze_id, True)
    assert freeze.last == last
    assert freeze.not_followed == ""


def test_an_agent_tells_its_progress(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon(fs)
    seen: list[GuestStatus] = []
    threads = threading.active_count()
    with Agent(daemon.url) as agent:
        with agent.frozen(hold=30, progress=seen.append) as freeze:
            fs[0].assert_frozen()
        assert_told(seen, daemon.url, freeze)
    assert threading.active_count() == threads


def test_an_agent_for_asyncio_tells_its_progress(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    seen: list[GuestStatus] = []

    async def run() -> Freeze:
        async with AsyncAgent(daemon.url) as agent, agent.frozen(progress=seen.append) as freeze:
            fs.assert_frozen()
        return freeze

    assert_told(seen, daemon.url, asyncio.run(run()))


def test_a_group_tells_the_progress_of_each_guest(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(3)]
    urls = [rig.daemon([one]).url for one in fs]
    seen: list[GuestStatus] = []
    with AgentGroup(urls).frozen(hold=30, progress=seen.append) as freeze:
        for one in fs:
            one.assert_frozen()
    for url in urls:
        assert_told(seen, url, freeze.guests[url])


@pytest.mark.parametrize("blocking", [True, False])
def test_a_progress_that_raises_prevents_nothing(rig: Rig, blocking: bool) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    seen: list[Any] = []

    def tell(record: GuestStatus) -> None:
        seen.append(record)
        raise ZeroDivisionError("mine")

    async def run() -> Freeze:
        async with AsyncAgent(daemon.url) as agent, agent.frozen(progress=tell) as freeze:
            fs.assert_frozen()
        return freeze

    if blocking:
        with Agent(daemon.url) as agent, agent.frozen(progress=tell) as freeze:
            fs.assert_frozen()
    else:
        freeze = asyncio.run(run())
    assert freeze.broken is None
    assert len(seen) == 1
    assert freeze.not_followed == "progress raised ZeroDivisionError: mine"
    fs.assert_thawed()
