"""What a conversation says and what it makes of the answers: no socket, no clock; the other end is a list of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes.agent_socket import GUEST_INFO, json_line, reply_bytes
from virtagent.agent.api.errors import Code, Fault
from virtagent.host import calls
from virtagent.host.client_session import ANSWER, ClientSession, Command, Look, Open, Receive, Send, Speech, Step
from virtagent.host.connection import drive
from virtagent.host.errors import BadReply, HostError, Lost, TimedOut, Unreachable
from virtagent.host.transports import parse

Reply = Callable[[dict[str, Any]], bytes]


def value(found: Any) -> Reply:
    return lambda request: json_line({"return": found, "id": request["id"]})


def synced(request: dict[str, Any]) -> bytes:
    return b"\xff" + json_line({"return": request["arguments"]["id"]})


def info(request: dict[str, Any]) -> bytes:
    return value(GUEST_INFO)(request)


def stock(request: dict[str, Any]) -> bytes:
    return value({"version": "7.2.0", "supported_commands": [{"name": "guest-ping", "enabled": True}]})(request)


@dataclass
class Guest:
    """Connections, each a list of what comes for each request: bytes, a way to make them, an exception, None: nothing.

    Behind its last a connection has ended.
    """

    connections: list[list[Any]]
    opened: int = 0
    asked: list[str] = field(default_factory=list)
    now: float = 100.0
    came: bytes = b""
    cut: int = 1 << 20
    ended: bool = False
    silent: bool = False

    def take(self, step: Step) -> Any:
        match step:
            case Open():
                if self.opened == len(self.connections):
                    raise Unreachable("no connection")
                self.opened += 1
                self.came, self.ended, self.silent = b"", False, False
                return None
            case Look():
                return bool(self.came) or self.ended
            case Send(data):
                return self.answer(data)
            case Receive(deadline):
                if self.came:
                    part, self.came = self.came[: self.cut], self.came[self.cut :]
                    return part
                if self.ended and not self.silent:
                    return b""
                self.now = deadline
                raise TimeoutError
        raise AssertionError(step)

    def answer(self, data: bytes) -> bool:
        left = self.connections[self.opened - 1]
        if not left:
            self.ended = True
            return False
        request = json.loads(data.lstrip(b"\xff")) if data[:1] in (b"\xff", b"{") else {"execute": data[:4].decode()}
        self.asked.append(request["execute"])
        match left.pop(0):
            case None:
                self.silent = True
            case bytes(reply):
                self.came += reply
            case BaseException() as error:
                raise error
            case make:
                self.came += make(request)
        if left == ["end"]:
            left.clear()
            self.ended = True
        return True


def session(guest: Guest, url: str = "unix:/a", **options: Any) -> ClientSession:
    given = {"timeout": None, "connect_timeout": 5, "reply_max": 1 << 20} | options
    return ClientSession(parse(url), clock=lambda: guest.now, **given)


def ping(guest: Guest, to: ClientSession) -> str:
    return drive(to.perform(calls.ping()), guest.take)


DUMMY = value("dummy")


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_one_sync_and_one_question_a_connection(cut: int) -> None:
    guest = Guest([[synced, info, DUMMY, DUMMY]], cut=cut)
    to = session(guest)
    assert ping(guest, to) == ping(guest, to) == "dummy"
    assert guest.asked == ["guest-sync-delimited", "guest-info", "va.ping", "va.ping"]
    assert (to.open, to.stock) == (True, False)


def test_a_stock_qemu_ga_is_asked_in_its_own_words() -> None:
    guest = Guest([[synced, stock, value({})]])
    to = session(guest)
    assert ping(guest, to) == "dummy"
    assert guest.asked == ["guest-sync-delimited", "guest-info", "guest-ping"]
    assert to.stock


@pytest.mark.parametrize("ours", [True, False])
def test_a_guest_info_that_is_blocked_says_nothing(ours: bool) -> None:
    def no(request: dict[str, Any]) -> bytes:
        error = {"class": "CommandNotFound", "desc": "Command has been disabled: the command is not allowed"}
        return json_line({"error": error, "id": request["id"]})

    guest = Guest([[synced, no, DUMMY if ours else no, DUMMY]])
    to = session(guest)
    assert ping(guest, to) == "dummy"
    assert to.stock != ours


def test_an_agent_that_allows_next_to_nothing_is_still_ours() -> None:
    def blocked(request: dict[str, Any]) -> bytes:
        error = {"class": "CommandNotFound", "desc": "Command x has been disabled: the command is not allowed"}
        ours = {"code": 10, "name": "BLOCKED"} if request["execute"].startswith("va.") else {}
        return json_line({"id": request["id"], "error": error | ours})

    guest = Guest([[blocked, blocked, blocked, DUMMY]])
    to = session(guest)
    assert ping(guest, to) == "dummy"
    assert guest.asked == ["guest-sync-delimited", "guest-info", "va.ping", "va.ping"]
    assert not to.stock


@pytest.mark.parametrize("ends", [True, False])
def test_an_agent_that_speaks_xmlrpc_alone(ends: bool) -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    guest = Guest([[refusal, *(["end"] if ends else [])], [reply_bytes("dummy")]])
    assert ping(guest, session(guest)) == "dummy"
    assert guest.asked == ["guest-sync-delimited", "POST"]
    assert guest.now <= 101


def test_a_protocol_that_is_given_is_not_found_out() -> None:
    guest = Guest([[reply_bytes("dummy")]])
    assert ping(guest, session(guest, speech=Speech.XMLRPC)) == "dummy"
    guest = Guest([[synced, stock, DUMMY]])
    assert ping(guest, session(guest, speech=Speech.JSON)) == "dummy"
    guest = Guest([[synced, value({})]])
    assert ping(guest, session(guest, "qemu-ga:unix:/a")) == "dummy"
    assert guest.asked == ["guest-sync-delimited", "guest-ping"]


def test_after_a_time_out_the_stream_is_resynchronised() -> None:
    late: list[dict[str, Any]] = []

    def slow(request: dict[str, Any]) -> bytes:
        late.append(request)
        return b""

    guest = Guest([[synced, info, slow, lambda r: value("late")(late[0]) + value("late")(late[0]) + synced(r), DUMMY]])
    to = session(guest)
    with pytest.raises(TimedOut, match="within 30 s") as raised:
        ping(guest, to)
    assert raised.value.asked
    assert guest.now == 100 + ANSWER
    assert ping(guest, to) == "dummy"
    assert guest.opened == 1


def test_a_stream_that_cannot_be_resynchronised_is_given_up() -> None:
    guest = Guest([[synced, info, None, b"rubbish"], [synced, info, DUMMY]])
    to = session(guest)
    with pytest.raises(TimedOut):
        ping(guest, to)
    assert ping(guest, to) == "dummy"
    assert guest.opened == 2


def test_after_garbage_the_stream_is_resynchronised() -> None:
    guest = Guest([[synced, info, b"login: \n", b'{"return": 1}\n', DUMMY]])
    guest.connections[0][3] = lambda r: b"Password: \n" + synced(r)
    to = session(guest)
    with pytest.raises(BadReply):
        ping(guest, to)
    assert ping(guest, to) == "dummy"
    assert guest.opened == 1


def test_what_nobody_asked_for_is_skipped_before_the_next_call() -> None:
    guest = Guest([[synced, info, lambda r: DUMMY(r) + b'{"event": 1}\n{"ret', synced, DUMMY]])
    to = session(guest)
    assert ping(guest, to) == ping(guest, to) == "dummy"
    assert guest.asked[3:] == ["guest-sync-delimited", "va.ping"]


def test_a_call_that_was_not_sent_is_sent_on_a_new_connection() -> None:
    guest = Guest([[synced, info, DUMMY], [synced, info, DUMMY]])
    to = session(guest)
    assert ping(guest, to) == ping(guest, to) == "dummy"
    assert guest.asked.count("va.ping") == 2


def test_a_call_that_may_have_been_executed_is_not_sent_again() -> None:
    guest = Guest([[synced, info, DUMMY, b"", "end"], [synced, info, DUMMY]])
    to = session(guest)
    ping(guest, to)
    with pytest.raises(Lost) as raised:
        ping(guest, to)
    assert raised.value.asked
    assert guest.asked.count("va.ping") == 2
    assert ping(guest, to) == "dummy"


@pytest.mark.parametrize("end", [ConnectionResetError(104, "reset"), ConnectionResetError(), OSError(5, "EIO")])
def test_a_connection_that_breaks_is_lost(end: OSError) -> None:
    guest = Guest([[synced, info, end], [synced, info, DUMMY]])
    to = session(guest)
    with pytest.raises(Lost):
        ping(guest, to)
    assert ping(guest, to) == "dummy"


WHOLE = [synced, info, DUMMY]


def transcript() -> list[tuple[int, int]]:
    """Return each place at which a guest may stop: the number of whole replies, and how much came of the next."""
    replies: list[bytes] = []
    guest = Guest([[lambda r, make=make: replies.append(make(r)) or replies[-1] for make in WHOLE]])
    assert ping(guest, session(guest)) == "dummy"
    return [(n, cut) for n, reply in enumerate(replies) for cut in range(len(reply))]


@pytest.mark.parametrize("silent", [True, False])
def test_a_guest_that_stops_or_closes_at_each_byte(silent: bool) -> None:
    for whole, size in transcript():
        connection: list[Any] = [*WHOLE[:whole], lambda r, n=whole, size=size: WHOLE[n](r)[:size]]
        guest = Guest([[*connection, *([] if silent else ["end"])], WHOLE.copy()])
        to = session(guest)
        with pytest.raises((TimedOut, Lost, BadReply)) as raised:
            ping(guest, to)
        assert raised.value.asked == (whole == 2)
        assert guest.now <= 100 + ANSWER
        assert ping(guest, to) == "dummy"


@pytest.mark.parametrize("drop", [b"x", b"\xff", b'{"return": {}}\n', b"\xff{", b'"', b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_endless_guest_ends_at_the_limit(drop: bytes) -> None:
    guest = Guest([[drop * 40_000]], cut=4096)
    with pytest.raises(HostError) as raised:
        ping(guest, session(guest, reply_max=10_000))
    assert not raised.value.asked
    guest = Guest([[synced, info, drop * 40_000]], cut=4096)
    with pytest.raises((BadReply, TimedOut)) as raised:
        ping(guest, session(guest, reply_max=10_000))
    assert raised.value.asked


def test_firecrackers_handshake_comes_first() -> None:
    said: list[bytes] = []
    guest = Guest([[synced, info, DUMMY]])

    def take(step: Step) -> Any:
        match step:
            case Send(data) if data.startswith(b"CONNECT"):
                said.append(data)
                guest.came = b"OK 1073741824\n"
                return True
        return guest.take(step)

    guest.cut = 3
    assert drive(session(guest, "firecracker:/v.sock:5").perform(calls.ping()), take) == "dummy"
    assert said == [b"CONNECT 5\n"]


@pytest.mark.parametrize("answer", [b"", b"NO\n", b"O", b"OK 5", b"OK " + b"9" * 99, b"HTTP/1.1 400\r\n"])
def test_a_port_that_firecracker_does_not_open(answer: bytes) -> None:
    guest = Guest([[]])

    def take(step: Step) -> Any:
        match step:
            case Send():
                guest.came, guest.ended = answer, True
                return True
        return guest.take(step)

    with pytest.raises(Lost, match="OK") as raised:
        drive(session(guest, "firecracker:/v.sock:5").perform(calls.ping()), take)
    assert not raised.value.asked


@pytest.mark.parametrize("ours", [True, False])
def test_libvirt_carries_messages(ours: bool) -> None:
    asked: list[str] = []

    def take(step: Step) -> Any:
        assert isinstance(step, Command)
        request = json.loads(step.text)
        asked.append(request["execute"])
        if request["execute"] == "guest-info":
            return (info if ours else stock)(request).decode()
        if request["execute"] == "va.fsthaw":
            raise Fault(Code.FAILED, "the hold limit passed")
        return DUMMY(request).decode().strip()

    guest = Guest([])
    to = session(guest, "libvirt:vm")
    assert drive(to.perform(calls.ping()), take) == drive(to.perform(calls.ping()), take) == "dummy"
    assert asked == ["guest-info", *(["va.ping" if ours else "guest-ping"] * 2)]
    if ours:
        with pytest.raises(Fault, match="hold limit"):
            drive(to.perform(calls.thaw()), take)
