"""How many connections 50 domains are to a real libvirtd, and what its death or silence costs. No guest is booted."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Unmet
from harness.fixtures import unmet
from harness.processes import until
from harness.vm.libvirt import Libvirtd
from virtagent.host import AsyncAgent, HostError, TimedOut, libvirt_pool

DOMAINS = 50
# A machine that never runs: libvirt says of it that its agent is not connected.
MACHINE = """\
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>
</domain>
"""


@pytest.fixture
def libvirtd(tmp_path: Path) -> Iterator[Libvirtd]:
    if importlib.util.find_spec("libvirt") is None:
        unmet(Unmet("needs libvirt-python: install virtagent[libvirt]"))
    try:
        made = Libvirtd(tmp_path)
    except Unmet as reason:
        unmet(reason)
    yield made
    made.close()


def served(libvirtd: Libvirtd) -> int:
    """Return how many sockets libvirtd has at its path, the listening one with them."""
    path = f"{libvirtd.run}/sock/libvirt-sock"
    return sum(one.laddr == path for one in libvirtd.process().net_connections("unix"))


class Counted:
    """What 50 agents were told, and how many connections and threads they were meanwhile."""

    def __init__(self, libvirtd: Libvirtd, agents: list[AsyncAgent]) -> None:
        self.libvirtd, self.agents = libvirtd, agents
        self.said: list[str] = []
        self.connections = self.threads = 0

    async def ask(self) -> None:
        found = await asyncio.gather(*(agent.ping() for agent in self.agents), return_exceptions=True)
        for one in found:
            assert isinstance(one, HostError), one
        self.said = [str(one) for one in found]
        self.connections = served(self.libvirtd)
        self.threads = sum(thread.name.startswith("libvirt ") for thread in threading.enumerate())


def agents(libvirtd: Libvirtd, **options: float) -> list[AsyncAgent]:
    return [AsyncAgent(f"libvirt:vm{n}?connect={libvirtd.uri}", **options) for n in range(DOMAINS)]


def test_50_domains_are_one_connection(libvirtd: Libvirtd) -> None:
    for n in range(3):
        (libvirtd.run / "vm.xml").write_text(MACHINE.format(name=f"vm{n}"))
        libvirtd.virsh("define", str(libvirtd.run / "vm.xml"))
    until(lambda: served(libvirtd) == 1, 30, "virsh has gone, and the listening socket is left")
    kept = libvirt_pool.pool(libvirtd.uri)  # one user more, so that the connection is there until it leaves
    counted = Counted(libvirtd, agents(libvirtd))
    asyncio.run(counted.ask())
    assert all("domain is not running" in one for one in counted.said[:3]), counted.said[:3]
    assert all("no domain with matching name" in one for one in counted.said[3:]), counted.said[3:]
    assert counted.connections == 2
    assert 1 <= counted.threads <= libvirt_pool.REQUESTS
    print(f"50 domains: {counted.connections - 1} connection, {counted.threads} threads")
    kept.leave()
    until(lambda: served(libvirtd) == 1, 30, "the connection is closed")


def test_a_libvirtd_that_stops_answering_or_dies_is_told_in_time_and_found_again(libvirtd: Libvirtd) -> None:
    kept = libvirt_pool.pool(libvirtd.uri)
    counted = Counted(libvirtd, agents(libvirtd))
    asyncio.run(counted.ask())
    process = libvirtd.process()
    process.send_signal(signal.SIGSTOP)
    try:

        async def silence() -> list[BaseException | str]:
            asked = agents(libvirtd, timeout=0.5)
            return await asyncio.gather(*(agent.ping() for agent in asked), return_exceptions=True)

        assert {type(one) for one in asyncio.run(silence())} == {TimedOut}
    finally:
        for one in (process, process.parent()):  # nsenter stops itself with its child
            assert one is not None
            one.send_signal(signal.SIGCONT)
    asyncio.run(counted.ask())
    assert all("no domain with matching name" in one for one in counted.said), counted.said
    libvirtd.kill()
    libvirtd.start()
    asyncio.run(counted.ask())
    assert all("no domain with matching name" in one for one in counted.said), counted.said
    kept.leave()
