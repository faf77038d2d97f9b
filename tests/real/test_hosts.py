"""What hosts do to the channel of a real daemon: several at once, in a hurry, half a message, none at all, rubbish."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemon import NEWS_LIMIT, Daemon
from harness.peer import Talk
from harness.questions import forgets
from harness.rig import Rig
from virtagent.agent.api.errors import Code

Fault = xmlrpc.client.Fault


def post(body: str | bytes, *headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = ["POST /RPC2 HTTP/1.1", "Host: guest", "Content-Type: text/xml", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def call(method: str, *params: Any, headers: tuple[str, ...] = ()) -> bytes:
    return post(xmlrpc.client.dumps(params, method), *headers)


def reply(sock: socket.socket) -> tuple[dict[str, str], Any]:
    """Read one HTTP reply; return its headers (and `status`), and the value or Fault."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1)
        assert more, f"closed after {data!r}"
        data += more
    lines = data.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
    headers["status"] = lines[0].split()[1]
    body = b""
    while len(body) < int(headers["content-length"]):
        body += sock.recv(int(headers["content-length"]) - len(body))
    try:
        return headers, xmlrpc.client.loads(body)[0][0]
    except Fault as fault:
        return headers, fault


@pytest.fixture
def daemon(rig: Rig) -> Daemon:
    return rig.daemon([rig.fs("ext4")], ["--message-age", "0.3"])


def still_well(daemon: Daemon) -> None:
    host = daemon.proxy()
    assert host.va.ping() == "dummy"
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1


def test_one_waits_while_another_asks(rig: Rig) -> None:
    stall = rig.stall("xfs")
    daemon = rig.daemon([stall.fs])
    stall.stall()
    waiting = daemon.raw(30)
    waiting.sendall(call("va.fsfreeze"))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    other = daemon.proxy()
    for _ in range(50):
        assert other.va.ping() == "dummy"
        assert other.va.fsstatus() == 1
    stall.release()
    assert reply(waiting)[1] == 1
    assert other.va.fsthaw() == 1


def test_newer_request_gets_its_answer_and_the_older_none(rig: Rig) -> None:
    """A host that gives up and asks again on the same stream never sees the answer to what it gave up."""
    stall = rig.stall("ext4")
    daemon = rig.daemon([stall.fs])
    stall.stall()
    sock = daemon.raw(30)
    sock.sendall(call("va.fsfreeze"))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    sock.sendall(call("va.fsstatus"))
    assert reply(sock)[1] == 1
    stall.release()
    daemon.wait_state("FROZEN")
    sock.sendall(call("va.ping"))
    assert reply(sock)[1] == "dummy"
    sock.sendall(call("va.fsthaw"))
    assert reply(sock)[1] == 1


def test_tagged_requests_are_answered_as_they_finish(rig: Rig) -> None:
    stall = rig.stall("ext4")
    daemon = rig.daemon([stall.fs])
    stall.stall()
    sock = daemon.raw(30)
    tag = "X-Virtagent-Client-Tag"
    sock.sendall(call("va.fsfreeze", headers=(f"{tag}: one",)))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    sock.sendall(call("va.ping", headers=(f"{tag}: two",)))
    headers, value = reply(sock)
    assert (headers[tag.lower()], value) == ("two", "dummy")
    stall.release()
    headers, value = reply(sock)
    assert (headers[tag.lower()], value) == ("one", 1)
    sock.sendall(call("va.fsthaw"))
    assert reply(sock)[1] == 1


def test_freeze_of_a_host_that_gave_up_and_failed_is_told_by_the_next_thaw(rig: Rig) -> None:
    stall = rig.stall("ext4")
    daemon = rig.daemon([stall.fs], ["--sync-limit", "0.5", "--kill-grace", "0.2"])
    stall.stall()
    sock = daemon.raw()
    sock.sendall(call("va.fsfreeze"))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    sock.close()
    daemon.wait_state("THAWED")
    stall.release()
    host = daemon.proxy()
    with pytest.raises(Fault, match="sync limit") as told:
        host.va.fsthaw()
    assert told.value.faultCode == Code.FREEZE_BROKEN
    forgets(daemon)


def test_two_hosts_on_two_channels(rig: Rig) -> None:
    """H7: A freezes, B thaws, B freezes, A thaws."""
    fs = rig.fs("ext4")
    second = rig.area.fresh("second.sock")
    daemon = rig.daemon([fs], ["--channel", f"unix:{second}"])
    a, b = Talk(rig.area, str(daemon.socket)), Talk(rig.area, str(second))
    try:
        assert a.ask("va.fsfreeze") == {"return": 1}
        number = a.ask("va.fsstatus", {"brief": True})["return"]["freeze_id"]
        assert b.ask("va.fsthaw") == {"return": 1}
        assert b.ask("va.fsfreeze") == {"return": 1}
        named = a.ask("va.fsthaw", {"freeze_id": number})["error"]["desc"]
        assert f"freeze {number} is over" in named
        assert f"freeze {number} was ended by another host" in named
        fs.assert_frozen()
        assert "was ended by another host" in a.ask("va.fsthaw")["error"]["desc"]
        fs.assert_thawed()
        daemon.kill()
        again = rig.daemon([fs], state_dir=daemon.state_dir)
        assert again.proxy().va.fsfreeze() == 1
        assert again.status()["freeze_id"] == number + 2
        assert again.proxy().va.fsthaw({"freeze_id": number + 2, "verdict": "bad"}) == 1
        assert again.status()["last"]["verdict"] == "bad"
    finally:
        a.close()
        b.close()


def test_a_host_that_leaves_the_news_unread_has_not_been_told(rig: Rig) -> None:
    """H6: the kernel took the reply, the host closed without reading it, and the next thaw is told."""
    daemon = rig.daemon([rig.fs("ext4")])
    assert daemon.proxy().va.fsfreeze({"hold_limit": 0.1}) == 1
    daemon.wait_state("THAWED")
    for ending in ("closed", "shut down", "asked and closed in one go"):
        sock = daemon.raw()
        sock.sendall(b'{"execute": "guest-fsfreeze-thaw"}\n')
        if ending != "asked and closed in one go":
            assert sock.recv(1, socket.MSG_PEEK)
        if ending == "shut down":
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        # The daemon answers this after more than its news-limit, since nothing happens.
        daemon.proxy().va.fsstatus({"since": daemon.status()["seq"], "wait": 2 * NEWS_LIMIT})
    with pytest.raises(Fault, match="hold limit") as told:
        daemon.proxy().va.fsthaw()
    assert told.value.faultCode == Code.FREEZE_BROKEN
    forgets(daemon)


def test_byte_by_byte_pipelined_and_with_the_sentinel(daemon: Daemon) -> None:
    sock = daemon.raw()
    for byte in b"\xff" + call("va.ping"):
        sock.sendall(bytes([byte]))
    assert reply(sock)[1] == "dummy"
    sock.sendall(call("va.ping") * 20)
    assert [reply(sock)[1] for _ in range(20)] == ["dummy"] * 20


BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<methodCall><methodName>&b;</methodName></methodCall>"""


DEEP = "<methodCall><methodName>va.ping</methodName><params><param>" + "<value><array><data>" * 5000


def struct(**members: str) -> str:
    inside = "".join(f"<member><name>{k}</name><value>{v}</value></member>" for k, v in members.items())
    value = f"<value><struct>{inside}</struct></value>"
    return f"<methodCall><methodName>va.fsfreeze</methodName><params><param>{value}</param></params></methodCall>"


BAD = {
    "broken XML": ("<methodCall><methodName>va.ping</methodName>", Code.PARSE),
    "XML bomb": (BOMB, Code.PARSE),
    "no call": ("<methodResponse/>", Code.REQUEST),
    "deep": (DEEP, Code.REQUEST),
    "unknown method": (xmlrpc.client.dumps((), "va.nope"), Code.METHOD),
    "internal method": (xmlrpc.client.dumps(({},), "thaw"), Code.METHOD),
    "wrong type": (xmlrpc.client.dumps((3,), "va.fsfreeze"), Code.PARAMS),
    "wrong member type": (xmlrpc.client.dumps(({"include": "/"},), "va.fsfreeze"), Code.PARAMS),
    "unknown member": (xmlrpc.client.dumps(({"includes": ["/"]},), "va.fsfreeze"), Code.PARAMS),
    "too many": (xmlrpc.client.dumps(({}, {}), "va.fsfreeze"), Code.PARAMS),
    "too few": (xmlrpc.client.dumps((), "va.getfile"), Code.PARAMS),
    "negative": (xmlrpc.client.dumps(({"freeze_limit": -1},), "va.fsfreeze"), Code.PARAMS),
    "huge": (xmlrpc.client.dumps(({"hold_limit": 1e300},), "va.fsfreeze"), Code.PARAMS),
    "over the configuration": (xmlrpc.client.dumps(({"freeze_limit": 31},), "va.fsfreeze"), Code.PARAMS),
    "no limit at all": (xmlrpc.client.dumps(({"hold_limit": 0},), "va.fsfreeze"), Code.PARAMS),
    "NaN": (struct(hold_limit="<double>nan</double>"), Code.PARAMS),
    "infinity": (struct(hold_limit="<double>inf</double>"), Code.PARAMS),
    "boolean": (struct(hold_limit="<boolean>1</boolean>"), Code.PARAMS),
    "hold of NaN": (struct(hold_limit="<double>nan</double>").replace("fsfreeze", "fshold"), Code.PARAMS),
    "nothing matches": (xmlrpc.client.dumps(({"include": ["/none"]},), "va.fsfreeze"), Code.PARAMS),
    "relative path": (xmlrpc.client.dumps(("etc/passwd",), "va.getfile"), Code.PARAMS),
    "no such file": (xmlrpc.client.dumps(("/no/such",), "va.getfile"), Code.FAILED),
    "a directory": (xmlrpc.client.dumps(("/",), "va.getfile"), Code.FAILED),
    "a device": (xmlrpc.client.dumps(("/dev/zero",), "va.getfile"), Code.FAILED),
    "3 MiB": (xmlrpc.client.dumps(("x" * (3 << 20),), "va.ping"), Code.REQUEST),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_request_gets_its_fault_and_the_connection_goes_on(daemon: Daemon, bad: str) -> None:
    body, code = BAD[bad]
    sock = daemon.raw()
    sock.sendall(post(body))
    headers, value = reply(sock)
    assert headers["status"] == "200"
    assert isinstance(value, Fault)
    assert value.faultCode == code, value.faultString
    assert "\n" not in value.faultString
    sock.sendall(call("va.ping"))
    assert reply(sock)[1] == "dummy"
    assert daemon.proxy().va.fsstatus() == 0


def test_fault_names_what_is_wrong(daemon: Daemon) -> None:
    host = daemon.proxy()
    for params, words in (
        ({"includes": ["/"]}, "includes"),
        ({"hold_limit": -3}, "hold_limit is -3"),
        ({"include": ["/none*"]}, "/none*"),
    ):
        with pytest.raises(Fault, match=re.escape(words)):
            host.va.fsfreeze(params)


@pytest.mark.parametrize(
    "endless",
    [
        b"POST / HTTP/1.1\r\n" + b"X-A: b\r\n" * 2000,
        b"POST /" + b"x" * 20000,
    ],
    ids=["endless headers", "endless line"],
)
def test_what_is_no_request_ends_the_connection(daemon: Daemon, endless: bytes) -> None:
    sock = daemon.raw()
    sock.sendall(endless)
    headers, value = reply(sock)
    assert headers["status"] in ("400", "431")
    assert value.faultCode in (Code.PARSE, Code.REQUEST)
    assert sock.recv(1) == b""
    still_well(daemon)


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\x00rubbish\n", b"\x16\x03\x01\x02\x00"])
def test_what_begins_like_nothing_is_told_in_json_and_the_connection_goes_on(daemon: Daemon, rubbish: bytes) -> None:
    sock = daemon.raw()
    sock.sendall(rubbish)
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    assert json.loads(line)["error"]["desc"].startswith("JSON parse error")
    sock.sendall(b"\n" + call("va.ping"))
    while sock.recv(1, socket.MSG_PEEK) == b"{":  # more errors about the same rubbish
        while sock.recv(1) != b"\n":
            pass
    assert reply(sock)[1] == "dummy"
    still_well(daemon)


def test_half_a_request_and_silence(daemon: Daemon) -> None:
    sock = daemon.raw()
    sock.sendall(call("va.ping")[:50])
    headers, value = reply(sock)
    assert headers["status"] == "400"
    assert value.faultCode == Code.REQUEST
    assert sock.recv(1) == b""
    still_well(daemon)


def read_to_end(sock: socket.socket) -> int:
    """Return how much comes before the other side closes."""
    size = 0
    while True:
        try:
            data = sock.recv(1 << 20)
        except ConnectionError:
            return size
        if not data:
            return size
        size += len(data)


def test_client_that_never_reads(rig: Rig) -> None:
    fs = rig.fs("ext4")
    (fs.path / "big").write_bytes(b"\0" * (15 << 20))
    daemon = rig.daemon([fs], ["--message-age", "0.5"])
    memory = psutil.Process(daemon.pid).memory_info().rss
    sock = daemon.raw()
    sock.sendall(call("va.getfile", str(fs.path / "big")))
    assert sock.recv(10)
    flood = daemon.raw(2)
    sent = 0
    for _ in range(200_000):
        try:
            sent += flood.send(call("va.ping"))
        except (TimeoutError, ConnectionError):
            break
    assert sent < 20 << 20, "it is not read for ever"
    still_well(daemon)
    assert read_to_end(sock) < 20 << 20, "the reply that was not read is not sent for ever"
    assert psutil.Process(daemon.pid).memory_info().rss - memory < 80 << 20


def test_half_requests_of_many_clients_have_a_bound_together(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")])
    memory = psutil.Process(daemon.pid).memory_info().rss
    socks = [daemon.raw() for _ in range(6)]
    for sock in socks:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b'{"execute": "guest-file-write", "arguments": {"handle": 1, "buf-b64": "')
            for _ in range(40):
                sock.sendall(b"A" * (1 << 20))
    assert psutil.Process(daemon.pid).memory_info().rss - memory < 160 << 20
    for sock in socks[:2]:
        sock.sendall(b'"}}\n')
        assert b"error" in sock.recv(4096)  # there is no such file
    for sock in socks[2:]:
        assert b"call again later" in sock.recv(4096)
    still_well(daemon)
    for sock in socks:
        sock.close()


def test_replies_that_are_not_read_crowd_out_what_is_not_essential(rig: Rig) -> None:
    fs = rig.fs("ext4")
    (fs.path / "big").write_bytes(b"\0" * (15 << 20))
    daemon = rig.daemon([fs])
    socks = [daemon.raw() for _ in range(4)]
    for sock in socks:
        sock.sendall(call("va.getfile", str(fs.path / "big")))
        assert sock.recv(1)  # its 20 MB are there
    host = daemon.proxy()
    with pytest.raises(Fault, match="too many replies are not read") as raised:
        host.va.getdmesg()
    assert raised.value.faultCode == Code.BUSY
    assert host.va.ping() == "dummy"
    assert host.va.fsthaw() == 0
    socks[0].close()
    assert host.va.fsstatus() == 0
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1


def test_seventeen_clients(daemon: Daemon) -> None:
    """Of sixteen that say nothing the one that has been idle the longest gives way."""
    sixteen = [daemon.raw() for _ in range(16)]
    for sock in sixteen:
        sock.sendall(call("va.ping"))
        assert reply(sock)[1] == "dummy"
    seventeenth = daemon.raw()
    seventeenth.sendall(call("va.ping"))
    assert reply(seventeenth)[1] == "dummy"
    assert sixteen.pop(0).recv(1) == b""
    for sock in sixteen:
        sock.sendall(call("va.ping"))
        assert reply(sock)[1] == "dummy"
    for sock in (*sixteen, seventeenth):
        sock.close()
    still_well(daemon)


@pytest.mark.parametrize("count", [16, 40])
def test_a_thaw_comes_through_a_full_house(rig: Rig, count: int) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    assert daemon.proxy().va.fsfreeze() == 1
    silent = [daemon.raw() for _ in range(count)]
    assert daemon.proxy().va.fsthaw() == 1
    for sock in silent:
        sock.close()
    still_well(daemon)


def test_a_house_full_of_work_serves_what_is_essential_and_tells_the_others(rig: Rig) -> None:
    stall = rig.stall("ext4")
    daemon = rig.daemon([stall.fs], ["--max-clients", "2"])
    stall.stall()
    freezes = daemon.raw(30)
    freezes.sendall(call("va.fsfreeze"))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    waits = daemon.raw(30)
    waits.sendall(b'{"execute": "guest-fsfreeze-status"}')
    third = daemon.raw(30)
    third.sendall(call("va.getdmesg"))
    _, value = reply(third)
    assert value.faultCode == Code.BUSY
    assert "too many clients" in value.faultString
    third.sendall(call("va.ping"))
    assert reply(third)[1] == "dummy"
    # All four wait now; whoever comes is told so in words, and not by a closed connection.
    third.sendall(b'{"execute": "guest-fsfreeze-status"}')
    fourth = daemon.raw(30)
    fourth.sendall(b'{"execute": "guest-fsfreeze-status"}')
    ctl = [sys.executable, "-m", "virtagent.host.main", "--agent", daemon.url, "call", "va.getdmesg"]
    asked = subprocess.run(ctl, capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 1, asked.stderr
    assert "too many clients on this channel" in asked.stderr
    stall.release()
    assert reply(freezes)[1] == 1
    assert daemon.proxy().va.fsthaw() == 1
    for sock in (freezes, waits, third, fourth):
        sock.close()


def test_a_hundred_clients_at_once(daemon: Daemon) -> None:
    socks = [daemon.raw(20) for _ in range(100)]
    for sock in socks:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it had said nothing, and gave way to a newer
            sock.sendall(call("va.ping"))
    assert reply(socks[-1])[1] == "dummy"
    for sock in socks:
        sock.close()
    still_well(daemon)


def test_nine_workers(rig: Rig) -> None:
    """The ninth long RPC is refused with BUSY; a freeze worker that runs is one of the eight."""
    stall = rig.stall("ext4")
    daemon = rig.daemon([stall.fs], ["--max-workers", "1"])
    stall.stall()
    sock = daemon.raw(30)
    sock.sendall(call("va.fsfreeze"))
    daemon.wait_status(lambda r: r["phase"] == "sync")
    with pytest.raises(Fault) as busy:
        daemon.proxy().va.getdmesg()
    assert busy.value.faultCode == Code.BUSY
    stall.release()
    assert reply(sock)[1] == 1
    assert daemon.proxy().va.fsthaw() == 1


def test_long_poll(daemon: Daemon) -> None:
    record = daemon.status()
    answers: list[Any] = []
    host = daemon.proxy()
    waiting = threading.Thread(target=lambda: answers.append(host.va.fsstatus({"since": record["seq"], "wait": 20})))
    waiting.start()
    assert daemon.proxy().va.fsfreeze() == 1
    waiting.join(20)
    assert answers[0]["seq"] != record["seq"]
    assert daemon.proxy().va.fsthaw() == 1
    record = daemon.wait_status(lambda r: not r["workers"])
    assert daemon.proxy().va.fsstatus({"since": record["seq"], "wait": 0.1})["seq"] == record["seq"]


def test_blocked_rpcs(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")], ["--block-rpcs", "va.getfile,va.shutdown"])
    host = daemon.proxy()
    assert "va.getfile" not in host.system.listMethods()
    assert "va.shutdown" not in host.va.capabilities()["methods"]
    with pytest.raises(Fault) as blocked:
        host.va.getfile("/etc/hostname")
    assert blocked.value.faultCode == Code.BLOCKED
    assert "frozen" in host.system.methodHelp("va.fsfreeze")


def test_getfile_is_binary_safe_and_bounded(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    host = daemon.proxy(60)
    data = bytes(range(256)) * 256 * 256
    (fs.path / "max").write_bytes(data)
    assert host.va.getfile(str(fs.path / "max")).data == data
    (fs.path / "over").write_bytes(data + b"x")
    with pytest.raises(Fault, match="EFBIG"):
        host.va.getfile(str(fs.path / "over"))


def test_a_second_daemon_takes_neither_socket_nor_state(rig: Rig, daemon: Daemon) -> None:
    second = rig.daemon([rig.everywhere], state_dir=daemon.state_dir, wait_ready=False)
    assert second.process.wait(10) == 1
    assert "in use by another virtagentd" in second.log()
    third = rig.daemon([rig.everywhere], ["--channel", f"unix:{daemon.socket}"], wait_ready=False)
    assert third.process.wait(10) == 1
    assert "another process listens there" in third.log()
    still_well(daemon)


def test_state_dir_must_be_on_tmpfs(rig: Rig) -> None:
    fs = rig.fs("ext4")
    state = fs.path / "state"
    daemon = rig.daemon([fs], state_dir=Path(state), wait_ready=False)
    assert daemon.process.wait(10) == 2
    assert "is on ext4, not on tmpfs" in daemon.log()
