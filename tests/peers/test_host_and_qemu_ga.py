"""The host's library and a real qemu-ga, which can freeze the area's file systems only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness.filesystems import LoopFs
from harness.peer import QemuGa, check_harmless
from harness.rig import Rig
from virtagent.host import Agent, AsyncAgent, Fault, FreezeBroken, Unsupported


@dataclass
class Stock:
    """A qemu-ga, how the library reaches it, and the one file system that it may be asked to freeze."""

    peer: QemuGa
    url: str
    fs: LoopFs

    @property
    def include(self) -> list[str]:
        found = [str(self.fs)]
        check_harmless("guest-fsfreeze-freeze-list", {"mountpoints": found}, str(self.fs.area.root))
        return found


@pytest.fixture(params=["unix", "qemu-ga:unix"])
def stock(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Stock]:
    fs = rig.fs("ext4")
    peer = QemuGa(rig.area)
    try:
        yield Stock(peer, f"{request.param}:{peer.socket}", fs)
    finally:
        peer.close()


def test_freeze_status_and_thaw(stock: Stock) -> None:
    with Agent(stock.url) as agent:
        assert agent.ping() == "dummy"
        able = agent.capabilities()
        assert able.version.startswith("stock qemu-ga ")
        assert "guest-fsfreeze-thaw" in able.methods
        assert agent.status().state == "THAWED"
        assert agent.freeze(stock.include) == 1
        stock.fs.assert_frozen()
        status = agent.status()
        assert (status.state, status.stock, agent.state()) == ("FROZEN", True, 2)
        assert agent.thaw() == 1
        assert agent.thaw() == 0
        stock.fs.assert_writable()
        assert "id" in agent.call("guest-get-osinfo")
        with pytest.raises(Fault, match="nothing"):
            agent.call("guest-nothing")


def test_what_it_cannot_do_is_said(stock: Stock) -> None:
    with Agent(stock.url) as agent:
        for ask in (
            agent.plan,
            agent.sync,
            lambda: agent.hold(9),
            lambda: agent.status(since=1),
            lambda: agent.freeze(stock.include, hold_limit=9),
            lambda: agent.freeze(["/nowhere/*"]),
        ):
            with pytest.raises(Unsupported) as raised:
                ask()
            assert "\n" not in str(raised.value)
        assert agent.status().state == "THAWED"


def test_frozen(stock: Stock) -> None:
    with Agent(stock.url) as agent:
        with agent.frozen(stock.include) as freeze:
            stock.fs.assert_frozen()
        assert (freeze.count, freeze.broken) == (1, None)
        stock.fs.assert_writable()
        with pytest.raises(FreezeBroken), agent.frozen(stock.include):
            assert stock.fs.thaw() == "ok"


def test_frozen_for_asyncio(stock: Stock) -> None:
    async def hold() -> None:
        async with AsyncAgent(stock.url) as agent, agent.frozen(stock.include):
            await asyncio.to_thread(stock.fs.assert_frozen)

    asyncio.run(hold())
    stock.fs.assert_writable()


def test_half_a_message_of_another_host_is_no_hindrance(stock: Stock) -> None:
    talk = stock.peer.talk()
    talk.send(b'{"execute": "guest-p')
    talk.close()
    with Agent(stock.url) as agent:
        assert agent.ping() == "dummy"
