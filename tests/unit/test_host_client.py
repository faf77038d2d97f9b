"""Agent against agents of the test's making: what it sends, what it makes of answers, and of agents that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import Answer, FakeAgent, Script, read_request, reply_bytes, status_record
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Plan
from virtagent.host import Agent, AsyncAgent, BadReply, HostError, Lost, TimedOut, Unreachable, calls
from virtagent.host.transports import parse

Serving = Callable[..., AbstractContextManager[tuple[FakeAgent, Agent]]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    @contextmanager
    def serve(
        answer: Answer | None = None, script: Script | None = None, **options: Any
    ) -> Iterator[tuple[FakeAgent, Agent]]:
        if script is not None:
            options.setdefault("protocol", "xmlrpc")
        with FakeAgent(tmp_path / "a", answer, script) as fake, Agent(fake.url, **options) as agent:
            yield fake, agent

    return serve


PLAN = {"mounts": [], "left_out": []}
ASKED: list[tuple[Callable[[Agent], Any], Any, tuple[str, list[Any]], Any]] = [
    (Agent.ping, "dummy", ("va.ping", []), "dummy"),
    (lambda a: a.capabilities().methods, {"version": "1", "methods": ["m"]}, ("va.capabilities", []), ("m",)),
    (lambda a: a.plan(["/a*"], ["/b"]), PLAN, ("va.fsplan", [{"include": ["/a*"], "exclude": ["/b"]}]), Plan((), ())),
    (lambda a: a.plan(strict=True), PLAN, ("va.fsplan", [{"strict": True}]), Plan((), ())),
    (Agent.freeze, 3, ("va.fsfreeze", [{"wait": 900.0}]), 3),
    (
        lambda a: a.freeze(sync_limit=5, freeze_limit=2),
        3,
        ("va.fsfreeze", [{"wait": 907.0, "sync_limit": 5, "freeze_limit": 2}]),
        3,
    ),
    (lambda a: a.freeze(wait=0.5, hold_limit=9), 3, ("va.fsfreeze", [{"wait": 0.5, "hold_limit": 9}]), 3),
    (Agent.thaw, 3, ("va.fsthaw", [{"wait": 60.0}]), 3),
    (Agent.state, 2, ("va.fsstatus", []), 2),
    (Agent.state, -1, ("va.fsstatus", []), -1),
    (lambda a: a.status().seq, status_record(), ("va.fsstatus", [{}]), 40),
    (lambda a: a.status(since=39, wait=7).seq, status_record(), ("va.fsstatus", [{"since": 39, "wait": 7}]), 40),
    (lambda a: a.hold(30), 30, ("va.fshold", [30]), 30.0),
    (lambda a: a.getfile("/etc/x"), b"\0\xff", ("va.getfile", ["/etc/x"]), b"\0\xff"),
    (lambda a: a.getfile("/etc/x"), "AP8=", ("va.getfile", ["/etc/x"]), b"\0\xff"),
    (Agent.getdmesg, "log", ("va.getdmesg", []), "log"),
    (lambda a: a.shutdown("halt"), "dummy", ("va.shutdown", ["halt"]), "dummy"),
    (lambda a: a.call("va.y", 1, "b", [2.5]), {"z": True}, ("va.y", [1, "b", [2.5]]), {"z": True}),
]


@pytest.mark.parametrize(("ask", "answer", "request_", "result"), ASKED)
def test_typed_methods(serving: Serving, ask: Callable[[Agent], Any], answer: Any, request_: Any, result: Any) -> None:
    with serving(lambda method, params: answer) as (fake, agent):
        assert ask(agent) == result
        assert fake.asked.get_nowait() == request_


@pytest.mark.parametrize("ask", [ask for ask, *_ in ASKED[:-1]])
@pytest.mark.parametrize("answer", [[], True, 1.5j, {"a": []}])
def test_an_answer_of_another_shape_is_a_bad_reply(serving: Serving, ask: Callable[[Agent], Any], answer: Any) -> None:
    answer = {} if answer == 1.5j else answer
    with serving(lambda method, params: answer) as (_, agent), pytest.raises(BadReply):
        ask(agent)


def test_contents_that_are_not_base64_are_a_bad_reply(serving: Serving) -> None:
    with serving(lambda method, params: "A*P8=") as (_, agent), pytest.raises(BadReply, match="not base64"):
        agent.getfile("/etc/x")


def test_calls_share_a_connection_also_after_a_fault(serving: Serving) -> None:
    def answer(method: str, params: list[Any]) -> str:
        if method == "va.bad":
            raise xmlrpc.Fault(4, "8 workers run")
        return "dummy"

    with serving(answer) as (fake, agent):
        agent.ping()
        with pytest.raises(Fault, match="8 workers run") as caught:
            agent.call("va.bad")
        assert caught.value.code is Code.BUSY
        agent.ping()
        assert fake.connections == 1


def test_a_connection_that_the_agent_closed_is_opened_again(serving: Serving) -> None:
    closed = threading.Event()

    def script(sock: socket.socket) -> None:
        request = read_request(sock)
        assert request is not None
        sock.sendall(reply_bytes("dummy", request[0]))
        sock.shutdown(socket.SHUT_RDWR)
        closed.set()

    with serving(script=script) as (fake, agent):
        for n in (1, 2, 3):
            closed.clear()
            assert agent.ping() == "dummy"
            assert closed.wait(10)
            assert fake.connections == n


def test_a_reply_that_nobody_asked_for_ends_the_connection(serving: Serving) -> None:
    doubled = threading.Event()

    def script(sock: socket.socket) -> None:
        while (request := read_request(sock)) is not None:
            sock.sendall(reply_bytes("dummy", request[0]))
            sock.sendall(reply_bytes("again"))
            doubled.set()

    with serving(script=script) as (fake, agent):
        assert agent.ping() == "dummy"
        assert doubled.wait(10)
        assert agent.ping() == "dummy"
        assert fake.connections == 2


def test_after_a_time_out_the_late_answer_is_not_taken_for_the_next(serving: Serving) -> None:
    gave_up = threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.slow":
            assert gave_up.wait(10)
        return method

    # Long enough for the second answer on a busy machine, too.
    with serving(answer, timeout=1) as (_, agent):
        with pytest.raises(TimedOut, match=r"va\.slow .* within 1 s"):
            agent.call("va.slow")
        gave_up.set()
        assert agent.call("va.quick") == "va.quick"


@pytest.mark.parametrize("drop", [b"", b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_silence_ends_in_time(serving: Serving, drop: bytes) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(drop)
        read_request(sock)
        read_request(sock)

    with serving(script=script, timeout=0.1) as (_, agent), pytest.raises(TimedOut):
        agent.ping()


def test_a_trickle_ends_in_time(serving: Serving) -> None:
    hung_up = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n<methodResponse><params>")
        while not hung_up.wait(0.01):
            sock.sendall(b" ")

    with serving(script=script, timeout=0.2) as (_, agent):
        with pytest.raises(TimedOut):
            agent.ping()
        hung_up.set()


def test_an_endless_reply_ends_at_the_limit(serving: Serving) -> None:
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n<methodResponse><params>")
        while True:
            sock.sendall(b" " * 65536)

    with serving(script=script, reply_max=1 << 20) as (_, agent), pytest.raises(BadReply, match="over 1048576"):
        agent.ping()


@pytest.mark.parametrize("drop", [b"\xff" * 65536, b"\n" * 65536, b'{"return": 1, "id": "x"}\n' * 3000])
@pytest.mark.parametrize("waits", ["a thread", "an event loop"])
def test_a_flood_ends_in_time_too(tmp_path: Path, waits: str, drop: bytes) -> None:
    """There is always something to receive: only the clock says that it is enough."""

    def script(sock: socket.socket) -> None:
        while True:
            sock.sendall(drop)

    async def run(url: str) -> None:
        async with AsyncAgent(url, timeout=0.2) as agent:
            await agent.ping()

    with (
        FakeAgent(tmp_path / "a", script=script) as fake,
        Agent(fake.url, timeout=0.2) as agent,
        pytest.raises((TimedOut, BadReply)),
    ):
        asyncio.run(run(fake.url)) if waits == "an event loop" else agent.ping()


def test_a_call_that_waits_for_another_ends_in_time(serving: Serving) -> None:
    asked, over = threading.Event(), threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        asked.set()
        assert over.wait(20)
        return "dummy"

    with serving(answer) as (_, agent):
        other = threading.Thread(target=agent.ping)
        other.start()
        assert asked.wait(20)
        with pytest.raises(TimedOut, match="was not asked") as raised:
            agent.carry_out(calls.thaw(), 0.1)
        assert not raised.value.asked
        over.set()
        other.join()
        assert agent.carry_out(calls.ping(), 20) == "dummy"


def test_a_call_of_a_task_that_waits_for_another_ends_in_time(tmp_path: Path) -> None:
    async def run(url: str, asked: threading.Event, over: threading.Event) -> None:
        async with AsyncAgent(url) as agent:
            other = asyncio.ensure_future(agent.ping())
            await asyncio.to_thread(asked.wait, 20)
            with pytest.raises(TimedOut, match="was not asked") as raised:
                await agent.carry_out(calls.thaw(), 0.1)
            assert not raised.value.asked
            cancelled = asyncio.ensure_future(agent.carry_out(calls.thaw(), 20))
            await asyncio.sleep(0)
            cancelled.cancel()
            over.set()
            assert await other == "dummy"
            assert await agent.carry_out(calls.ping(), 20) == "dummy"

    asked, over = threading.Event(), threading.Event()

    def answer(method: str, params: list[Any]) -> Any:
        assert method == "va.ping"
        asked.set()
        assert over.wait(20)
        return "dummy"

    with FakeAgent(tmp_path / "a", answer) as fake:
        asyncio.run(run(fake.url, asked, over))


@pytest.mark.parametrize("seconds", [1e18, 1e300, float("inf")])
def test_no_time_is_too_long(serving: Serving, seconds: float) -> None:
    with serving(lambda method, params: 1, timeout=seconds) as (_, agent):
        assert agent.thaw() == 1


def test_no_wait_is_too_long(serving: Serving) -> None:
    with serving(lambda method, params: 1) as (fake, agent):
        assert agent.thaw(1e300) == 1
        assert fake.asked.get_nowait()[1] == [{"wait": 1e300}]


def test_a_host_that_never_reads_the_request_ends_in_time(serving: Serving) -> None:
    full = threading.Event()
    with serving(script=lambda sock: full.wait(10) and None, timeout=0.2) as (_, agent):
        with pytest.raises(TimedOut):
            agent.call("va.x", "x" * (4 << 20))
        full.set()


def test_a_refusal_is_read_though_the_agent_closed_before_it_had_all(serving: Serving) -> None:
    refusal = xmlrpc.dumps(xmlrpc.Fault(-32600, "the body is over the limit"), methodresponse=True).encode()

    def script(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + refusal)
        sock.shutdown(socket.SHUT_WR)
        sock.shutdown(socket.SHUT_RD)

    with serving(script=script) as (_, agent), pytest.raises(Fault, match="over the limit"):
        agent.call("va.x", "x" * (8 << 20))


def test_a_connection_that_ends_without_an_answer_is_lost(serving: Serving) -> None:
    with serving(script=lambda sock: None) as (_, agent), pytest.raises(Lost, match="without an answer"):
        agent.ping()


def test_a_connection_that_is_reset_is_lost(serving: Serving) -> None:
    # Closing a unix socket with unread bytes resets it.
    def script(sock: socket.socket) -> None:
        assert sock.recv(1)
        sock.close()

    with serving(script=script) as (_, agent), pytest.raises(Lost):
        agent.ping()


def test_no_socket_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="No such file"):
        Agent(f"unix:{tmp_path}/none").ping()
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable, match="refused"):
        Agent(f"unix:{tmp_path}/file").ping()


def test_a_socket_whose_queue_is_full(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "a"))
        listener.listen(0)
        first.connect(str(tmp_path / "a"))
        for options in ({"connect_timeout": 0.05}, {"timeout": 0.05}):
            with pytest.raises(Unreachable, match="none within"):
                Agent(f"unix:{tmp_path}/a", **options).ping()


@pytest.mark.parametrize("url", ["", "unix:", "tcp:1.2.3.4", "/run/a.sock", "unix:a\0b", "unix:/" + "x" * 107])
def test_a_bad_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|unix:PATH|shorter"):
        Agent(url)


def test_a_path_of_the_longest_length_can_be_used() -> None:
    assert parse("unix:/" + "x" * 106).address == "/" + "x" * 106


def test_sockets_are_closed_whatever_happens(serving: Serving) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for script in (lambda sock: None, lambda sock: sock.sendall(b"no\r\n\r\n")):
        with serving(script=script) as (fake, agent):
            for _ in range(5):
                with pytest.raises(HostError):
                    agent.ping()
            assert not agent._session.open
        Path(fake.url.removeprefix("unix:")).unlink()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_time_out_shortens_the_wait_that_is_asked_for(serving: Serving) -> None:
    with serving(lambda method, params: 1, timeout=10) as (fake, agent):
        agent.freeze()
        agent.freeze(wait=2)
        agent.thaw()
        assert [fake.asked.get_nowait()[1][0]["wait"] for _ in range(3)] == [9.0, 2, 9.0]
