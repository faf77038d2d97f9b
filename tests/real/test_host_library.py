"""The host's library and real daemons on real file systems: one agent, frozen() and groups."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path
from textwrap import indent

import pytest
from harness.daemon import Daemon
from harness.processes import kill, until
from harness.rig import Rig
from virtagent.host import (
    Agent,
    AgentGroup,
    AsyncAgent,
    Code,
    Fault,
    FreezeBroken,
    GroupFailed,
    NothingFrozen,
    NotThawed,
)


def thaw(daemon: Daemon) -> int:
    """Thaw as another host."""
    with Agent(daemon.url) as other:
        return other.thaw()


def test_every_method_in_both_protocols(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon([rig.everywhere])
    for protocol in ("auto", "json", "xmlrpc"):
        with Agent(daemon.url, protocol=protocol) as agent:
            assert agent.ping() == agent.hello() == "dummy"
            assert "va.fssync" in agent.capabilities().methods
            assert {m.mountpoint for m in agent.plan().mounts} == {str(one) for one in fs}
            assert agent.sync() == 2
            assert agent.sync([fs[0].include]) == 1
            assert agent.freeze(hold_limit=20) == 2
            assert (agent.state(), agent.status().state) == (2, "FROZEN")
            assert 39 < agent.hold(40) <= 40
            with pytest.raises(Fault) as refused:
                agent.sync()
            assert refused.value.code is Code.REFUSED_WHILE_FROZEN
            assert agent.thaw() == 2
            assert agent.getfile("/proc/self/comm")
            assert isinstance(agent.getdmesg(), str)
            assert not agent.stock
        for one in fs:
            one.assert_writable()


def test_a_daemon_that_allows_only_the_freeze(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--allow-rpcs", "va.fsfreeze,va.fsthaw,va.fsstatus"])
    with Agent(daemon.url) as agent:
        with agent.frozen() as freeze:
            fs.assert_frozen()
        assert freeze.broken is None
        with pytest.raises(Fault) as refused:
            agent.ping()
        assert refused.value.code is Code.BLOCKED


def test_sync_leaves_nothing_for_the_freeze(rig: Rig) -> None:
    fs = rig.fs("ext4", 256 << 20)
    daemon = rig.daemon([fs])
    fs.fill(64 << 20)
    before = rig.footprint(daemon)
    with Agent(daemon.url) as agent:
        assert agent.sync() == 1
    fs.assert_thawed()
    fs.assert_writable()
    rig.assert_unchanged(before, daemon)


def test_sync_of_a_stalled_disk_ends_at_its_limit_and_names_it(rig: Rig) -> None:
    stall = rig.stall("ext4")
    other = rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere])
    stall.fs.fill(4 << 20)
    stall.stall()
    with Agent(daemon.url) as agent, pytest.raises(Fault) as raised:
        agent.sync(sync_limit=0.5)
    assert raised.value.code is Code.OVERRUN
    assert str(stall.fs) in raised.value.text
    assert str(other) not in raised.value.text
    stall.release()
    until(lambda: not daemon.children(), 10, "the worker is gone")


def test_frozen_is_extended_as_long_as_the_block_runs(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with Agent(daemon.url) as agent:
        with agent.frozen(hold=0.6, extend=True) as freeze:
            assert freeze.mounts == (str(fs),)
            assert freeze.freeze_id > 0
            held = agent.status()
            for _ in range(3):  # each extension is a change, and three of them are more than one hold
                held = agent.status(since=held.seq)
                assert held.state == "FROZEN"
            fs.assert_frozen()
        fs.assert_writable()
        assert freeze.broken is None
        assert freeze.held_seconds > 0


def test_asyncio_frozen_is_extended_too(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])

    async def hold() -> None:
        async with AsyncAgent(daemon.url) as agent:
            assert await agent.ping() == "dummy"
            async with agent.frozen(hold=0.6, extend=True) as freeze:
                held = await agent.status()
                for _ in range(3):
                    held = await agent.status(since=held.seq)
                    assert held.state == "FROZEN"
            assert freeze.broken is None

    asyncio.run(hold())
    fs.assert_writable()


@pytest.mark.parametrize("how", ["expires", "keeper", "other host", "thawed and frozen again"])
def test_a_broken_freeze_is_told_after_the_block(rig: Rig, how: str) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with Agent(daemon.url) as agent, Agent(daemon.url) as other:
        raised = pytest.raises(FreezeBroken, match="throw the snapshot away")
        with raised as info, agent.frozen(hold=20) as freeze:
            match how:
                case "expires":
                    other.hold(0.1)
                    daemon.wait_state("THAWED")
                case "keeper":
                    (worker,) = agent.status().workers
                    kill(worker.pid)
                    daemon.wait_state("THAWED")
                case _:
                    assert other.thaw() == 1
            if how == "thawed and frozen again":
                assert other.freeze() == 1
        assert freeze.broken is info.value
        if how == "thawed and frozen again":
            fs.assert_frozen()  # H7: that is the other host's
            assert other.thaw() == 1
        assert agent.state() == 0
        with agent.frozen() as freeze:
            pass
        assert freeze.broken is None
    fs.assert_writable()


def test_the_blocks_own_exception_comes_first(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with Agent(daemon.url) as agent:
        for broken in (False, True):
            with pytest.raises(KeyboardInterrupt) as raised, agent.frozen() as freeze:  # noqa: PT012
                if broken:
                    thaw(daemon)
                raise KeyboardInterrupt
            assert (freeze.broken is not None) == broken
            assert any("throw the snapshot away" in note for note in getattr(raised.value, "__notes__", [])) == broken
            fs.assert_writable()


def test_a_guest_that_freezes_nothing_is_none_to_snapshot(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with Agent(daemon.url) as agent, pytest.raises(NothingFrozen), agent.frozen(exclude=["*"]):
        pytest.fail("the block runs")
    assert daemon.status()["state"] == "THAWED"


def test_a_daemon_that_dies_in_the_block_is_told(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with (
        Agent(daemon.url) as agent,
        pytest.raises(NotThawed, match="may be frozen"),
        agent.frozen(thaw_wait=0.3),
    ):
        kill(daemon.pid)
    fs.assert_writable()


def test_a_group_of_five(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(5)]
    daemons = [rig.daemon([one]) for one in fs]
    group = AgentGroup([daemon.url for daemon in daemons])
    with group.frozen(hold=20, extend=True) as freeze:
        for one in fs:
            one.assert_frozen()
        assert {url: one.mounts for url, one in freeze.guests.items()} == {
            daemon.url: (str(one),) for daemon, one in zip(daemons, fs, strict=True)
        }
    assert 0 <= freeze.skew < 20
    assert 0 <= freeze.skew_by_agents < 20
    assert freeze.window > 0
    assert freeze.broken is None
    for one in fs:
        one.assert_writable()
    with pytest.raises(FreezeBroken) as raised, group.frozen(hold=20) as freeze:
        thaw(daemons[3])
    assert daemons[3].url in str(raised.value)
    assert freeze.broken is raised.value
    for one in fs:
        one.assert_writable()


def test_a_group_thaws_all_if_one_refuses(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(5)]
    daemons = [rig.daemon([one]) for one in fs]
    group = AgentGroup([daemon.url for daemon in daemons])
    with Agent(daemons[2].url) as other:
        other.freeze(hold_limit=60)
        with pytest.raises(GroupFailed) as raised, group.frozen():
            pytest.fail("the block runs")
        cause = raised.value.causes[daemons[2].url]
        assert isinstance(cause, Fault)
        assert cause.code is Code.WRONG_STATE
        assert other.thaw() == 1, "the freeze of another host was touched"
    for daemon in daemons:
        assert daemon.status()["state"] == "THAWED"
    for one in fs:
        one.assert_writable()


def test_a_group_thaws_all_if_one_is_late(rig: Rig) -> None:
    stall = rig.stall("ext4")
    fs = [rig.fs("ext4") for _ in range(3)]
    daemons = [rig.daemon([one]) for one in (*fs, stall.fs)]
    group = AgentGroup([daemon.url for daemon in daemons])
    stall.fs.fill(4 << 20)
    stall.stall()
    with pytest.raises(GroupFailed, match=r"did not get ready .*nothing was frozen"), group.frozen(sync_limit=0.5):
        pytest.fail("the block runs")
    for one in fs:
        one.assert_writable()
    stall.release()


def test_a_group_is_interrupted_by_a_signal(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(2)]
    stall = rig.stall("ext4")
    daemons = [rig.daemon([one]) for one in (*fs, stall.fs)]
    stall.fs.fill(4 << 20)
    stall.stall()
    syncing = threading.Thread(
        target=lambda: (
            daemons[2].wait_status(lambda record: record["phase"] == "sync"),
            os.kill(os.getpid(), signal.SIGINT),
        )
    )
    syncing.start()
    with pytest.raises(KeyboardInterrupt), AgentGroup([daemon.url for daemon in daemons]).frozen():
        pytest.fail("the block runs")
    syncing.join()
    stall.release()
    for one in fs:
        one.assert_writable()


def test_the_page_says_what_runs(rig: Rig) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "host.md").read_text(encoding="utf-8")
    urls = ("unix:/run/vm1/agent.sock", "vsock:3:9999", "vsock:4:9999")
    fs = [rig.fs("ext4") for _ in urls]
    daemons = [rig.daemon([one]) for one in fs]
    for url, daemon in zip(urls, daemons, strict=True):
        page = page.replace(url, daemon.url)
    page = page.replace("/srv/*", rig.everywhere)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    taken: list[object] = []

    async def take_snapshot_later(mounts: tuple[str, ...]) -> None:
        taken.append(mounts)

    for block in blocks:
        names = {"take_snapshot": taken.append, "take_snapshots": taken.append, "drop_snapshot": pytest.fail}
        if "await " in block:
            names["take_snapshot"] = take_snapshot_later
            imports, _, rest = block.partition("\n\n")
            exec(f"import asyncio\n{imports}\nasync def run():\n{indent(rest, '    ')}\nasyncio.run(run())", names)
        else:
            exec(block, names)
    assert len(taken) == len(blocks) == 3
    for one in fs:
        one.assert_writable()
