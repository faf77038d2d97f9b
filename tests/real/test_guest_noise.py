"""Malformed, cut-up and endless messages to a real daemon: the right error or none, and the next sync is answered."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from typing import Any

import psutil
import pytest
from harness.daemon import Daemon
from harness.peer import Talk
from harness.processes import until
from harness.rig import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MESSAGES_EACH, RUNS = 20, 500  # 10,000 messages
GOOD = [
    b'{"execute":"guest-ping"}',
    b'{"execute": "guest-sync", "arguments": {"id": 77}}\n',
    b'{"execute":"guest-info","id":{"a":[1,null,"\\u00e9"]}}',
    b"{'execute':'guest-fsfreeze-status'}",
    b'{"execute":"va.fsstatus","arguments":{"since":0,"wait":0}}',
    b'{"execute":"va.fshold","arguments":[1]}',
    b'{"execute":"nope"}',
    b'{"execute":"guest-sync","arguments":{"id":18446744073709551615}}',
]
TEXTS = (
    "JSON parse error, ",
    "JSON nesting depth limit exceeded",
    "JSON token size limit exceeded",
    "QMP input ",
    "The command ",
    "Parameter '",
    "Invalid parameter type for '",
    "va.fshold",
    "va.fsstatus",
)
bits = st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"'", b"\\", b":", b",", b"\xff", b"\n", b"\0", b"1e", b"nul"])


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A good message, broken."""
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "insert", "replace", "remove", "double"])):
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(bits | st.binary(max_size=4))
            case "replace":
                data[at : at + 1] = draw(bits)
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case _:
                data += data[at:]
    return bytes(data)


noise = st.one_of(
    spoiled(),
    st.binary(max_size=200),
    st.lists(bits, max_size=40).map(b"".join),
    st.tuples(bits, st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
)
# A P where a message begins is HTTP, whose errors end the connection: tests/real/test_hosts.py.
messages = st.lists(noise.map(lambda data: data.replace(b"P", b"p")), min_size=MESSAGES_EACH, max_size=MESSAGES_EACH)


def check(replies: list[dict[str, Any]]) -> None:
    for reply in replies:
        if "error" in reply:
            assert reply["error"]["class"] in ("GenericError", "CommandNotFound")
            assert reply["error"]["desc"].startswith(TEXTS), reply
        else:
            assert "return" in reply


@pytest.mark.timeout(300)
def test_ten_thousand_malformed_and_cut_up_messages(rig: Rig) -> None:
    daemon = rig.daemon([rig.everywhere])
    talk = Talk(rig.area, str(daemon.socket))
    served = 0

    @settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages, st.lists(st.integers(0, 255), max_size=3))
    def storm(many: list[bytes], places: list[int]) -> None:
        nonlocal served
        for data in many:
            edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
            for a, b in itertools.pairwise(edges):
                talk.send(data[a:b])
            check(talk.replies_to(b""))
            served += 1

    try:
        storm()
        assert served >= MESSAGES_EACH * RUNS
        assert talk.ask("va.fsstatus") == {"return": 0}
    finally:
        talk.close()
    assert psutil.Process(daemon.pid).memory_info().rss < 60 << 20


def test_an_endless_message_costs_no_memory(rig: Rig) -> None:
    daemon = rig.daemon([rig.everywhere])
    supervisor = psutil.Process(daemon.pid)
    talk = Talk(rig.area, str(daemon.socket))
    try:
        talk.ask("guest-ping")
        before = supervisor.memory_info().rss
        for begin in (b'{"execute":"', b"{" * 100, b'{"a":[' + b"1," * 100):
            talk.send(begin)
            for _ in range(64):
                talk.send(b"x" * (1 << 20) if begin.endswith(b'"') else begin[-1:] * (1 << 16))
            check(talk.replies_to(b""))
        assert supervisor.memory_info().rss - before < 16 << 20
    finally:
        talk.close()


def test_many_requests_in_one_go_are_all_answered_in_order(rig: Rig) -> None:
    daemon = rig.daemon([rig.everywhere])
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(daemon.socket))
    with sock, sock.makefile("rb") as lines:
        wanted = []
        batch = b""
        for number in range(300):
            batch += json.dumps({"execute": "guest-ping"}).encode()
            wanted.append({"return": {}})
            if number % 25 == 0:
                batch += b'{"execute": "guest-get-host-name"}\n'
                wanted.append({"return": {"host-name": socket.gethostname()}})
        sock.sendall(batch)
        assert [json.loads(lines.readline()) for _ in wanted] == wanted


def connect(daemon: Daemon) -> socket.socket:
    return daemon.raw(20)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def test_a_host_that_has_said_all_is_answered_before_the_end(rig: Rig) -> None:
    """As `echo ... | socat - UNIX:PATH` does."""
    daemon = rig.daemon([rig.everywhere])
    sock = connect(daemon)
    sock.sendall(b'{"execute": "guest-get-host-name"}{"execute": "guest-ping"}')
    sock.shutdown(socket.SHUT_WR)
    assert [json.loads(line) for line in read_all(sock).splitlines()] == [
        {"return": {"host-name": socket.gethostname()}},
        {"return": {}},
    ]


def test_what_a_host_asked_before_it_went_is_done(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    talk = Talk(rig.area, str(daemon.socket))
    handle = talk.ask("guest-file-open", {"path": f"{fs.path}/f", "mode": "w"})["return"]
    sock = connect(daemon)
    write = {"execute": "guest-file-write", "arguments": {"handle": handle, "buf-b64": "eA=="}}
    sock.sendall(b'{"execute": "guest-get-host-name"}' + json.dumps(write).encode())
    sock.close()
    until(lambda: (fs.path / "f").read_bytes() == b"x", 10, "what the host wrote before it went")
    talk.close()


def test_a_host_that_hangs_up_while_others_wait_costs_nothing(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    talk = Talk(rig.area, str(daemon.socket))
    handle = talk.ask("guest-file-open", {"path": f"{fs.path}/f", "mode": "w"})["return"]
    [keeper] = daemon.children()
    keeper.suspend()
    sock = connect(daemon)
    flush = {"execute": "guest-file-flush", "arguments": {"handle": handle}}
    sock.sendall(json.dumps(flush).encode() + b'{"execute": "guest-ping"}' * 100)
    talk.ask("guest-ping")
    sock.close()
    talk.ask("guest-ping")
    supervisor = psutil.Process(daemon.pid)
    before = supervisor.num_ctx_switches()
    spent = sum(supervisor.cpu_times()[:2])
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(1.0)  # an end that does not come
    after = supervisor.num_ctx_switches()
    assert after.voluntary - before.voluntary <= 1
    assert sum(supervisor.cpu_times()[:2]) - spent < 0.2
    keeper.resume()
    talk.close()


def test_a_host_that_floods_does_not_hold_up_the_others(rig: Rig) -> None:
    """However much one says, others have their turn after some of it: counted in answers, not in time."""
    daemon = rig.daemon([rig.everywhere])
    flood, other = connect(daemon), connect(daemon)
    flood.setblocking(False)
    sent, ping = 0, b'{"execute":"guest-ping"}' * 5000
    try:
        while True:
            sent += flood.send(ping)
    except BlockingIOError:
        pass
    other.sendall(b'{"execute":"guest-ping"}')
    assert other.recv(100) == b'{"return": {}}\n'
    flood.close()
    other.close()
