"""Hosts on ports and listeners, with real descriptors and no daemon: a port that is hung up as a virtio port is."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.bench import Bench
from harness.hosts import request
from virtagent.supervisor.channels import char_device, connection, connections, listener
from virtagent.supervisor.channels.char_device import CharDevice
from virtagent.supervisor.channels.listener import Listener, PeerRejected
from virtagent.supervisor.core import events
from virtagent.supervisor.io.poller import READ, REPORTS


class Transport(CharDevice):
    """A port made of a FIFO, which is hung up while no host has it open, all the time, as a virtio port is.

    What is sent goes to `sent`, at most `room` bytes of it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"virtio:{path}")
        self.sent = b""
        self.room = 1 << 30
        self.refused = 0

    def _open(self, died: Any, watch: Any) -> None:
        if self.refused:
            raise OSError(self.refused, os.strerror(self.refused))
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._edges = select.epoll()
        self._edges.register(self._fd, char_device._BASE)
        self._mask = char_device._BASE
        self._heard = self.dead = self.at_end = False

    def send(self, data: memoryview, /) -> int:
        count = min(len(data), self.room)
        if not count:
            raise BlockingIOError
        self.sent += bytes(data[:count])
        self.room -= count
        return count


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.hosts.close()
    made.poller.close()


@pytest.fixture
def port(bench: Bench, tmp_path: Path) -> Transport:
    os.mkfifo(tmp_path / "port")
    made = Transport(tmp_path / "port")
    bench.hosts.listen(made)
    bench.turn()
    return made


def host(port: Transport) -> int:
    return os.open(port.path, os.O_WRONLY | os.O_NONBLOCK)


def test_an_end_that_is_closed_costs_nothing_and_one_that_opens_is_heard_at_once(bench: Bench, port: Transport) -> None:
    for number in range(1, 4):
        assert bench.turn() == 0
        fd = host(port)
        os.write(fd, request("va.ping"))
        assert 1 <= bench.turn() <= 3
        assert len(bench.methods()) == number
        assert port.sent.count(b"dummy" if not bench.answers else b"to ") == number
        os.close(fd)
        bench.turn()
        assert bench.turn() == 0, "it is hung up, and ready all the time"
    talks = [connection for connection, _ in bench.methods()]
    assert len(set(talks)) == 3
    assert set(talks) <= set(bench.gone())
    assert bench.lines() == [f"{port.spec}: open"]


def test_what_was_said_before_the_end_is_done(bench: Bench, port: Transport) -> None:
    fd = host(port)
    os.write(fd, request("va.ping") * 3)
    os.close(fd)
    bench.turn()
    assert len(bench.methods()) == 3


def test_half_a_message_is_not_the_next_hosts(bench: Bench, port: Transport) -> None:
    fd = host(port)
    os.write(fd, request("va.ping")[:50])
    bench.turn()
    os.close(fd)
    bench.turn()
    fd = host(port)
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert [method for _, method in bench.methods()] == ["va.hello"]
    assert not [e for e in bench.fed if isinstance(e, events.Malformed)]


def test_an_answer_that_comes_late_is_not_the_next_hosts(bench: Bench, port: Transport) -> None:
    bench.answers = False
    fd = host(port)
    os.write(fd, request("va.fsfreeze"))
    bench.turn()
    bench.now += connection.DOUBT_AGE
    os.close(fd)
    bench.turn()
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()
    (old, _), (new, _) = bench.methods()
    tokens = [e.token for e in bench.fed if isinstance(e, events.Requested)]
    bench.hosts.answer(old, tokens[0], "too late")
    bench.hosts.answer(new, tokens[1], "in time")
    os.close(fd)
    assert b"late" not in port.sent
    assert b"in time" in port.sent


def test_replies_that_were_not_taken_are_not_the_next_hosts(bench: Bench, port: Transport) -> None:
    port.room = 10
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()
    assert len(port.sent) == 10
    bench.now += connection.DOUBT_AGE
    os.close(fd)
    bench.turn()
    port.room = 1 << 30
    fd = host(port)
    bench.turn()
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert port.sent[10:].startswith(b"HTTP/1.1 200 OK")
    assert port.sent.count(b"HTTP/1.1") == 2


def test_what_the_next_host_said_before_it_was_seen_is_answered(bench: Bench, port: Transport) -> None:
    """The kernel has its first words before it tells that a host is there, and takes no reply until then."""
    port.room = 0
    fd = host(port)
    os.write(fd, request("va.ping"))
    os.close(fd)
    assert bench.turn() <= 3
    assert bench.turn() == 0, "it is hung up, and ready all the time"
    assert bench.gone() == []
    assert bench.timers.nearest() == 100.0 + connection.DOUBT_AGE
    bench.now += connection.DOUBT_AGE / 2
    port.room = 1 << 30
    fd = host(port)
    os.write(fd, b"\n")  # a virtio port is ready to be written to when the host is there; a FIFO never
    bench.turn()
    assert b"to 1" in port.sent
    bench.now += connection.DOUBT_AGE
    bench.due()
    assert bench.gone() == []
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert bench.methods() == [(1, "va.ping"), (1, "va.hello")]


def test_a_reply_is_not_kept_for_a_host_that_comes_later(bench: Bench, port: Transport) -> None:
    port.room = 0
    fd = host(port)
    os.write(fd, request("va.ping"))
    os.close(fd)
    bench.turn()
    bench.now += connection.DOUBT_AGE
    bench.due()
    assert bench.gone() == [1]
    assert bench.timers.nearest() is None
    assert bench.turn() == 0
    port.room = 1 << 30
    fd = host(port)
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert port.sent.count(b"HTTP/1.1") == 1
    assert b"to 2" in port.sent


def test_a_host_that_does_not_read_and_goes_is_noticed(bench: Bench, port: Transport) -> None:
    """Not read any more, since too many replies wait: its end must still be seen, and what it said last thrown away."""
    port.room = 0
    bench.answers = False
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()
    ((talk, _),) = bench.methods()
    (token,) = [e.token for e in bench.fed if isinstance(e, events.Requested)]
    bench.hosts.answer(talk, token, "x" * 300_000)
    assert bench.turn() <= 2
    os.write(fd, request("va.ping"))
    assert bench.turn() <= 2, "what is not read keeps it awake"
    os.close(fd)
    assert bench.turn() <= 2
    assert talk in bench.gone()
    port.room, bench.answers = 1 << 30, True
    fd = host(port)
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert [method for _, method in bench.methods()] == ["va.ping", "va.hello"]
    assert b"xxx" not in port.sent


def test_what_is_left_unread_is_heard_when_the_replies_are_taken(bench: Bench, port: Transport) -> None:
    port.room, bench.answers = 0, False
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()
    ((talk, _),) = bench.methods()
    bench.hosts.answer(talk, next(e.token for e in bench.fed if isinstance(e, events.Requested)), "x" * 300_000)
    os.write(fd, request("va.hello"))
    bench.turn()
    assert len(bench.methods()) == 1
    port.room = 1 << 30
    bench.hosts.ready(port)  # as the kernel would say: it takes more
    bench.turn()
    assert [method for _, method in bench.methods()] == ["va.ping", "va.hello"]
    os.close(fd)


def test_a_host_that_reads_nothing_for_too_long_is_given_up_and_heard_anew(bench: Bench, port: Transport) -> None:
    port.room = 0
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()
    assert bench.timers.nearest() == 105.0
    bench.now = 105.0
    bench.due()
    assert bench.timers.nearest() is None
    bench.turn()
    port.room = 1 << 30
    os.write(fd, request("va.hello"))
    bench.turn()
    os.close(fd)
    assert len({talk for talk, _ in bench.methods()}) == 2
    assert port.sent.count(b"HTTP/1.1") == 1


def test_a_port_that_dies_is_opened_again(bench: Bench, port: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = host(port)
    os.write(fd, request("va.ping"))
    bench.turn()

    def unplugged(*_: object) -> bytes:
        raise OSError(errno.ENODEV, "No such device")

    port.refused = errno.ENXIO
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", unplugged)
        os.write(fd, b" ")
        assert bench.poller.turn(0) == 1
    os.close(fd)
    assert bench.gone() == [bench.methods()[0][0]]
    assert bench.lines()[1:] == [
        f"{port.spec}: hung up, unplugged or failed",
        f"{port.spec}: No such device or address; waiting for that to change",
    ]
    told = bench.lines()
    while bench.turn():
        pass  # what the host's close leaves to be read
    assert bench.lines() == told, "it is told once"
    port.refused = 0
    os.rename(port.path, port.path + ".new")
    os.rename(port.path + ".new", port.path)
    bench.turn()
    assert bench.lines()[-1] == f"{port.spec}: open"


def test_a_busy_port_is_looked_at_when_it_is_closed_and_once_more(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "port")
    holder = os.open(tmp_path / "port", os.O_RDWR | os.O_NONBLOCK)
    port = Transport(tmp_path / "port")
    port.refused = errno.EBUSY
    bench.hosts.listen(port)
    bench.turn()  # others change what they like in the folders on the way, which are watched
    assert bench.timers.nearest() == 101.0
    bench.now = 101.0
    bench.due()
    assert bench.timers.nearest() is None, "it is not polled"
    os.close(holder)
    assert bench.turn() >= 1
    assert bench.timers.nearest() == 102.0, "a close is told before it has happened"
    port.refused = 0
    bench.now = 102.0
    bench.due()
    assert bench.lines() == [f"{port.spec}: Device or resource busy; waiting for that to change", f"{port.spec}: open"]


def test_without_inotify_it_is_looked_at_now_and_then(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(char_device, "PathWatch", refused)
    port = CharDevice(f"virtio:{tmp_path}/none")
    bench.hosts.listen(port)
    assert bench.timers.nearest() == 100.0 + char_device.BLIND
    assert "inotify: Too many open files" in bench.lines()[0]
    bench.now += char_device.BLIND
    bench.due()
    assert bench.timers.nearest() == bench.now + char_device.BLIND
    assert len(bench.lines()) == 1


# -- vsock


class Sock:
    """A listening socket whose peers are (CID, port)."""

    def __init__(self, *peers: tuple[int, int]) -> None:
        self.peers = list(peers)
        self.ours: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        if not self.peers:
            raise BlockingIOError
        ours, theirs = socket.socketpair()
        self.ours.append(theirs)
        return ours, self.peers.pop(0)

    def close(self) -> None:
        for sock in self.ours:
            sock.close()


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_what_is_no_socket_is_not_removed_to_make_room_for_one(tmp_path: Path, kind: str) -> None:
    """connect(2) refuses a file as it refuses a socket on which nobody listens."""
    path, file = tmp_path / "there", tmp_path / "file"
    file.write_text("precious")
    path.symlink_to(file) if kind == "link" else os.mkfifo(path) if kind == "fifo" else path.write_text("precious")
    with pytest.raises(OSError, match="it is no socket") as raised:
        Listener.open(f"unix:{path}")
    assert raised.value.errno == errno.EEXIST
    assert os.path.lexists(path)
    assert file.read_text() == "precious"


def test_only_the_host_may_connect_and_a_stranger_is_named_once() -> None:
    sock: Any = Sock((2, 900), (3, 900), (3, 901), (1, 5), (2, 7))
    listener = Listener("vsock:5", sock)
    accepted = listener.accept()
    assert accepted is not None
    assert accepted[1] == events.Peer("vsock:5", "cid:2")
    assert not accepted[0].getblocking()
    said = []
    for _ in range(3):
        with pytest.raises(PeerRejected) as stranger:
            listener.accept()
        said.append(str(stranger.value))
    assert said[0].startswith("CID 3 was turned away")
    assert said[1] == ""
    assert said[2].startswith("CID 1 was turned away")
    assert all(sock.ours[i].recv(1) == b"" for i in (1, 2, 3)), "closed"
    last = listener.accept()
    assert last is not None
    assert listener.accept() is None
    for one in (accepted, last):
        one[0].close()
    listener.close()


def test_any_cid_may_connect_if_it_is_told_so() -> None:
    sock: Any = Sock((7, 900))
    listener = Listener("vsock:5", sock, any_cid=True)
    accepted = listener.accept()
    assert accepted is not None
    assert accepted[1].who == "cid:7"
    accepted[0].close()
    listener.close()


def test_a_kernel_or_python_without_vsock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with monkeypatch.context() as patched:
        patched.setattr(listener.socket, "socket", refused)
        with pytest.raises(OSError, match="this kernel has no vsock"):
            Listener.open("vsock:5")
    monkeypatch.delattr(socket, "AF_VSOCK")
    with pytest.raises(OSError, match="this Python has no vsock"):
        Listener.open("vsock:5")


Crowd = tuple[Bench, list[socket.socket]]
HALF = b'{"execute": "guest-file-write", "arguments": {"handle": 1, "buf-b64": "'


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    """Return a bench with four connected hosts, which do not block."""
    bench = Bench()
    bench.hosts.listen(Listener.open(f"unix:{tmp_path}/socket"))
    socks = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
    for sock in socks:
        sock.connect(f"{tmp_path}/socket")
        sock.setblocking(False)
    bench.turn()
    yield bench, socks
    for sock in socks:
        sock.close()
    bench.turn()
    bench.hosts.close()
    bench.poller.close()


def say(bench: Bench, sock: socket.socket, data: bytes) -> None:
    """Have all of it come, or what comes until the connection is closed."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            bench.turn()
        except BrokenPipeError:
            break
    bench.turn()


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # what it said last was not read
        return True


def test_half_messages_of_all_hosts_have_room_together(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "INPUT_MAX", 10 << 20)
    bench, (first, second, third, small) = crowd
    for sock in (first, second, third):
        bench.now += 1
        say(bench, sock, HALF + b"A" * (3 << 20))
    bench.now += 1
    say(bench, small, HALF)
    assert not [e for e in bench.fed if isinstance(e, events.Malformed)]
    say(bench, first, b"A" * (2 << 20))  # the first goes over, and the third, begun last, makes room
    refused = [e for e in bench.fed if isinstance(e, events.Malformed)]
    assert [e.text for e in refused] == ["other hosts are sending too much at once; call again later"]
    assert b"call again later" in third.recv(4096)
    assert is_closed(third)
    bench.now += 2
    for sock in (first, second, small):
        say(bench, sock, b'AA=="}}')
        assert b"return" in sock.recv(4096)
    assert [method for _, method in bench.methods()] == ["guest-file-write"] * 3


def test_what_waits_for_its_turn_needs_room_too(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "INPUT_MAX", 7 << 20)
    bench, (first, second, *_) = crowd
    bench.answers = False
    long = HALF + b"A" * (3 << 20) + b'"}}'
    say(bench, first, b'{"execute": "guest-file-read", "arguments": {"handle": 1}}' + long)
    say(bench, second, long[:-3])
    assert not [e for e in bench.fed if isinstance(e, events.Malformed)]
    say(bench, second, b"A" * 200_000)
    assert not [e for e in bench.fed if isinstance(e, events.Malformed)], "both have room"
    say(bench, second, b"A" * (1 << 20))
    assert len([e for e in bench.fed if isinstance(e, events.Malformed)]) == 1
    assert b"call again later" in second.recv(4096)
    assert [method for _, method in bench.methods()] == ["guest-file-read"]


def test_the_half_request_of_http_is_refused_with_its_status(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "INPUT_MAX", 1 << 20)
    bench, (sock, *_) = crowd
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 2000000\r\n\r\n"
    say(bench, sock, head + b" " * (1_200_000))
    said = sock.recv(4096)
    assert b"Connection: close" in said
    assert b"<int>4</int>" in said
    assert is_closed(sock)


def test_a_host_that_takes_its_replies_late_is_kept_while_its_requests_wait_for_their_turn(crowd: Crowd) -> None:
    """Nothing is read from it then, and nothing is left to write: that it can be written to again is no hang-up."""
    bench, (sock, *_) = crowd
    bench.answers = False
    say(bench, sock, b'{"execute": "guest-file-read", "arguments": {"handle": 1}, "id": 1}')
    (first,) = [e for e in bench.fed if isinstance(e, events.Requested)]
    say(bench, sock, b'{"execute": "guest-fsfreeze-freeze"}' + b'{"execute": "guest-get-time"}' * 200)
    bench.hosts.answer(first.connection, first.token, "x" * 600_000)
    bench.turn()
    got = b""
    while True:
        bench.turn()
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            break
        assert data, "closed"
        got += data
    assert got.count(b"x") >= 600_000
    assert bench.gone() == []


def requested(bench: Bench) -> list[events.Requested]:
    return [e for e in bench.fed if isinstance(e, events.Requested)]


@pytest.mark.parametrize("between", [b"", b'{"execute": "guest-ping"}'], ids=["waits for one", "for two"])
def test_half_a_message_of_a_host_that_has_its_answers_is_not_waited_for(crowd: Crowd, between: bytes) -> None:
    """It has said all that it has to say, and its connection ends with the last answer: no deadline stays."""
    bench, (sock, *_) = crowd
    bench.answers = False
    say(bench, sock, b'{"execute": "guest-get-time"}' + between + b'{"execute": "gue')
    sock.shutdown(socket.SHUT_WR)
    bench.turn()
    (asked,) = requested(bench)
    bench.answers = True
    bench.hosts.answer(asked.connection, asked.token, 1)
    bench.hosts.take_turns()
    assert bench.gone() == [asked.connection]
    assert b"return" in sock.recv(4096)
    assert bench.timers.nearest() is None
    bench.now += 60
    bench.due()


def test_a_host_that_was_answered_earlier_in_the_same_turn_has_not_hung_up(crowd: Crowd) -> None:
    """It waits for a third answer, has said all that it has to say, and has just taken the first two."""
    bench, (sock, *_) = crowd
    bench.answers = False
    for number in range(3):
        say(bench, sock, b'{"execute": "guest-get-time", "id": %d}' % number)
    sock.shutdown(socket.SHUT_WR)
    bench.turn()
    first, second, third = requested(bench)
    bench.hosts.answer(first.connection, first.token, "x" * 300_000)
    got = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            got += sock.recv(1 << 16)
    assert len(got) < 300_000, "the rest waits until the socket takes it, as it does now"
    ours, theirs = socket.socketpair()
    theirs.send(b"!")

    def worker_reports() -> None:
        ours.recv(1)
        bench.hosts.answer(second.connection, second.token, 2)

    bench.poller.register(ours.fileno(), REPORTS, READ, worker_reports)
    bench.turn()
    assert not bench.gone()
    bench.hosts.answer(third.connection, third.token, 3)
    bench.turn()
    while (data := sock.recv(1 << 16)) != b"":
        got += data
        bench.turn()
    assert got.count(b"return") == 3
    bench.poller.unregister(ours.fileno())
    ours.close()
    theirs.close()


def test_a_call_that_is_answered_while_its_connection_ends_ends_it_once(crowd: Crowd) -> None:
    """What waited for its turn is done unheard, and before it the core takes the deadlines that have passed."""
    bench, (sock, *_) = crowd
    bench.answers = False
    say(bench, sock, b'{"execute": "guest-get-time"}{"execute": "guest-ping"}')
    (first,) = requested(bench)
    heard: list[events.Event] = []

    def feed(event: events.Event) -> None:
        heard.append(event)
        bench.hosts.answer(first.connection, first.token, 1)

    bench.hosts._feed = feed
    sock.close()
    bench.turn()
    assert [type(event).__name__ for event in heard] == ["Requested", "Disconnected"]


def test_a_host_that_reads_just_after_it_was_not_listened_to_any_more_is_heard(bench: Bench, port: Transport) -> None:
    """All that it said has come, and all replies are gone: nothing would wake the loop for its second request."""
    bench.answers = False
    heard = []

    def feed(event: events.Event) -> None:
        if isinstance(event, events.Requested):
            heard.append(event.method)
            port.room = 0
            bench.hosts.answer(event.connection, event.token, "x" * 300_000)
            port.room = 1 << 30  # it reads between this and the write at the end of its turn

    bench.hosts._feed = feed
    fd = host(port)
    os.write(fd, b'{"execute": "guest-get-time"}{"execute": "guest-get-users"}')
    bench.turn()
    assert heard == ["guest-get-time", "guest-get-users"]
    os.close(fd)
    bench.turn()
