"""The connections to libvirt that agents share: how many there are, and whom the trouble of one concerns."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, wait
from types import ModuleType
from typing import Any

import pytest
from fakes.agent_socket import GUEST_INFO, json_line
from test_host_transports import LibvirtError
from virtagent.host import AsyncAgent, Lost, Unreachable, libvirt_pool
from virtagent.host.client import _Blocking
from virtagent.host.connection import finish
from virtagent.host.libvirt_domain import Domain

LONG = 30.0


def waited(domain: Domain, text: str, seconds: float) -> str:
    """Ask as a thread does that waits itself."""
    return finish(_Blocking().ask(domain, text, seconds))


GONE = 38, "Cannot recv data: Connection reset by peer"


class Found:
    """What `lookupByName` returns. libvirt closes no connection before all of its domains are gone."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name


class Connection:
    """What `libvirt.open` returns."""

    def __init__(self, libvirtd: Libvirtd, uri: str) -> None:
        self.libvirtd, self.uri, self.alive = libvirtd, uri, True
        self.threads: set[int] = set()
        self.most = self.now = 0
        self.closed = threading.Event()

    def getLibVersion(self) -> int:
        if not self.alive:
            raise LibvirtError(*GONE)
        return 9000000

    def lookupByName(self, name: str) -> Found:
        if name.startswith("no"):
            raise LibvirtError(42, f"Domain not found: no domain with matching name '{name}'")
        self.libvirtd.found.add(found := Found(self, name))
        return found

    def close(self) -> None:
        self.closed.set()


class Libvirtd:
    """The two modules of libvirt-python, for any number of URIs and domains; a domain in `held` hangs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connections: list[Connection] = []
        self.opens: Counter[str] = Counter()
        self.sent: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.no_open: dict[str, threading.Event] = {}
        self.refused: set[str] = set()
        self.found: weakref.WeakSet[Found] = weakref.WeakSet()
        self.begun = threading.Condition(self.lock)
        self.libvirt: Any = ModuleType("libvirt")
        self.libvirt.libvirtError, self.libvirt.open = LibvirtError, self.open
        self.libvirt.VIR_ERR_NO_DOMAIN = 42
        self.libvirt.registerErrorHandler = lambda handler, context: None
        self.qemu: Any = ModuleType("libvirt_qemu")
        self.qemu.qemuAgentCommand = self.command

    def open(self, uri: str) -> Connection:
        with self.lock:
            self.opens[uri] += 1
        if gate := self.no_open.get(uri):
            gate.wait(LONG)
        if uri in self.refused:
            raise LibvirtError(38, "Failed to connect socket")
        made = Connection(self, uri)
        with self.lock:
            self.connections.append(made)
            self.begun.notify_all()
        return made

    def command(self, domain: Found, text: str, seconds: int, flags: int) -> str:
        connection, name = domain.connection, domain.name
        with self.lock:
            connection.threads.add(threading.get_ident())
            connection.now += 1
            connection.most = max(connection.most, connection.now)
            self.sent.append(name)
            self.begun.notify_all()
        try:
            if gate := self.held.get(name):
                gate.wait(LONG)
            if not connection.alive:
                raise LibvirtError(*GONE)
        finally:
            with self.lock:
                connection.now -= 1
        if not text.startswith("{"):
            return f"{name}: {text}"
        request = json.loads(text)
        found = GUEST_INFO if request["execute"] == "guest-info" else "dummy"
        return json_line({"return": found, "id": request["id"]}).decode()

    def hold(self, *names: str) -> threading.Event:
        gate = threading.Event()
        self.held.update(dict.fromkeys(names, gate))
        return gate

    def wait_sent(self, *names: str) -> None:
        with self.begun:
            assert self.begun.wait_for(lambda: set(names) <= set(self.sent), LONG), self.sent


@pytest.fixture
def libvirtd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Libvirtd]:
    made = Libvirtd()
    monkeypatch.setitem(sys.modules, "libvirt", made.libvirt)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", made.qemu)
    yield made
    for gate in [*made.held.values(), *made.no_open.values()]:
        gate.set()
    assert not libvirt_pool._POOLS
    for connection in made.connections:
        assert connection.closed.wait(LONG), "it is closed when nobody uses it"


class Guests:
    """Domains, closed at the end."""

    def __init__(self) -> None:
        self.domains: list[Domain] = []

    def ask(self, name: str, uri: str = "qemu:///a", seconds: float = LONG) -> Future[str]:
        self.domains.append(Domain(name, uri))
        return self.domains[-1].ask("x", seconds)


@pytest.fixture
def guests(libvirtd: Libvirtd) -> Iterator[Guests]:
    made = Guests()
    yield made
    for domain in made.domains:
        domain.close()


def names(count: int) -> list[str]:
    return [f"vm{n}" for n in range(count)]


def test_50_domains_share_a_connection_5_threads_and_5_requests(libvirtd: Libvirtd, guests: Guests) -> None:
    gate = libvirtd.hold(*names(5))
    replies = {name: guests.ask(name) for name in names(50)}
    libvirtd.wait_sent(*names(5))
    assert len(libvirtd.sent) == 5
    gate.set()
    assert {name: reply.result(LONG) for name, reply in replies.items()} == {name: f"{name}: x" for name in names(50)}
    (connection,) = libvirtd.connections
    assert (len(connection.threads), connection.most) == (5, 5)


def test_50_agents_on_an_event_loop(libvirtd: Libvirtd) -> None:
    async def run() -> None:
        agents = [AsyncAgent(f"libvirt:{name}?connect=qemu+ssh://h/system") for name in names(50)]
        assert await asyncio.gather(*(agent.ping() for agent in agents)) == ["dummy"] * 50
        for agent in agents:
            agent.close()

    asyncio.run(run())
    assert libvirtd.opens == {"qemu+ssh://h/system": 1}
    assert libvirtd.connections[0].most <= libvirt_pool.REQUESTS


def test_a_domain_is_asked_one_thing_at_a_time_in_order(libvirtd: Libvirtd, guests: Guests) -> None:
    gate = libvirtd.hold("vm")
    replies = [guests.ask("vm") for _ in range(8)]
    libvirtd.wait_sent("vm")
    assert guests.ask("other").result(LONG) == "other: x", "it takes no place from another domain"
    gate.set()
    wait(replies)
    assert libvirtd.connections[0].most <= 2
    assert libvirtd.sent.count("vm") == 8


@pytest.mark.parametrize("where", ["open", "command"])
def test_one_uri_that_hangs_delays_no_other(libvirtd: Libvirtd, guests: Guests, where: str) -> None:
    gate = libvirtd.hold(*names(50)) if where == "command" else threading.Event()
    libvirtd.no_open["qemu:///hung"] = gate if where == "open" else threading.Event()
    if where == "command":
        libvirtd.no_open["qemu:///hung"].set()
    hung = [guests.ask(name, "qemu:///hung") for name in names(50)]
    fine = [guests.ask(f"fine{n}", f"qemu:///{n % 3}") for n in range(30)]
    assert [reply.result(LONG) for reply in fine] == [f"fine{n}: x" for n in range(30)]
    assert not any(reply.done() for reply in hung)
    gate.set()
    assert [reply.result(LONG) for reply in hung] == [f"{name}: x" for name in names(50)]


def test_a_lost_connection_is_told_to_each_that_it_served_and_to_no_other(libvirtd: Libvirtd, guests: Guests) -> None:
    gate = libvirtd.hold(*names(5))
    served = [guests.ask(name) for name in names(5)]
    libvirtd.wait_sent(*names(5))
    other = libvirtd.hold("elsewhere")
    elsewhere = guests.ask("elsewhere", "qemu:///b")
    waiting = [guests.ask(f"next{n}") for n in range(20)]
    libvirtd.wait_sent("elsewhere")
    next(one for one in libvirtd.connections if one.uri == "qemu:///a").alive = False
    gate.set()
    for name, reply in zip(names(5), served, strict=True):
        with pytest.raises(Lost, match=f"{name}.*reset by peer"):
            reply.result(LONG)
    assert [reply.result(LONG) for reply in waiting] == [f"next{n}: x" for n in range(20)], "not one of them was sent"
    other.set()
    assert elsewhere.result(LONG) == "elsewhere: x"
    assert libvirtd.opens == {"qemu:///a": 2, "qemu:///b": 1}


def test_a_libvirtd_that_is_not_there_is_told_to_all_that_wait(libvirtd: Libvirtd, guests: Guests) -> None:
    gate = libvirtd.no_open["qemu:///a"] = threading.Event()
    libvirtd.refused.add("qemu:///a")
    replies = {name: guests.ask(name) for name in names(50)}
    gate.set()
    for name, reply in replies.items():
        with pytest.raises(Unreachable, match=f"'{name}'.*Failed to connect"):
            reply.result(LONG)
    assert libvirtd.opens["qemu:///a"] == 1, "one attempt for all"
    libvirtd.refused.clear()
    assert guests.ask("vm").result(LONG) == "vm: x", "and later it is tried again"


def test_a_domain_that_is_not_there_costs_the_others_nothing(libvirtd: Libvirtd, guests: Guests) -> None:
    replies = [guests.ask(f"no{n}") for n in range(20)]
    assert guests.ask("vm").result(LONG) == "vm: x"
    for reply in replies:
        with pytest.raises(Unreachable, match="no domain with matching name"):
            reply.result(LONG)
    assert libvirtd.opens == {"qemu:///a": 1}


def test_hung_domains_take_4_connections_at_the_most(
    libvirtd: Libvirtd, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_pool, "PATIENCE", 0.02)
    gate = libvirtd.hold(*names(19))
    hung = [guests.ask(name) for name in names(19)]
    assert guests.ask("fine").result(LONG) == "fine: x", "19 that hang leave a place"
    libvirtd.wait_sent(*names(19))
    more = libvirtd.hold("last")
    hung += [guests.ask("last"), guests.ask("too many")]
    libvirtd.wait_sent("last")
    assert len(libvirtd.connections) == libvirt_pool.CONNECTIONS
    assert [connection.now for connection in libvirtd.connections] == [libvirt_pool.REQUESTS] * 4
    assert "too many" not in libvirtd.sent
    gate.set()
    more.set()
    assert len([reply.result(LONG) for reply in hung]) == 21


def test_another_connection_that_is_refused_costs_nothing(
    libvirtd: Libvirtd, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_pool, "PATIENCE", 0.02)
    gate = libvirtd.hold(*names(5))
    hung = [guests.ask(name) for name in names(5)]
    libvirtd.wait_sent(*names(5))
    libvirtd.refused.add("qemu:///a")
    late = guests.ask("late")
    with pytest.raises(TimeoutError):
        waited(guests.domains[-1], "y", 0.2)
    assert not late.done()
    gate.set()
    assert late.result(LONG) == "late: x"
    assert len([reply.result(LONG) for reply in hung]) == 5


def test_what_was_given_up_while_it_waited_is_never_sent(libvirtd: Libvirtd, guests: Guests) -> None:
    gate = libvirtd.no_open["qemu:///a"] = threading.Event()
    domain = Domain("vm", "qemu:///a")
    guests.domains.append(domain)
    with pytest.raises(TimeoutError):
        waited(domain, "freeze", 0.05)
    cancelled = guests.ask("asyncio cancels")
    cancelled.cancel()
    other = guests.ask("other")
    gate.set()
    assert other.result(LONG) == "other: x"
    assert libvirtd.sent == ["other"]


def test_what_is_past_its_time_when_its_turn_comes_is_not_sent(libvirtd: Libvirtd, guests: Guests) -> None:
    reply = guests.ask("vm", seconds=-1)
    with pytest.raises(TimeoutError):
        reply.result(LONG)
    assert libvirtd.sent == []


def test_an_error_that_is_kept_keeps_no_connection_open(libvirtd: Libvirtd) -> None:
    """libvirt closes a connection when the last domain of it is gone; a traceback would keep one."""
    gate = libvirtd.hold("vm")
    domain = Domain("vm", "qemu:///a")
    reply = domain.ask("x", LONG)
    libvirtd.wait_sent("vm")
    libvirtd.connections[0].alive = False
    gate.set()
    kept = reply.exception(LONG)
    assert isinstance(kept, Lost)
    domain.close()
    assert libvirtd.connections[0].closed.wait(LONG)
    assert not libvirtd.found
