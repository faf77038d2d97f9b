"""Ports and listeners of a real daemon: pseudo-terminals that come, hang up and come back, vsock, several at once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import termios
import xmlrpc.client
from pathlib import Path

import psutil
import pytest
from harness.daemon import Daemon
from harness.fixtures import unmet
from harness.hosts import request
from harness.lines import Line
from harness.processes import until
from harness.rig import Rig


@pytest.fixture
def path(rig: Rig) -> Path:
    folder = rig.area.fresh("ports")
    folder.mkdir()
    return folder / "port"


@pytest.fixture(params=["serial", "virtio"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(daemon: Daemon, spec: str, times: int = 1) -> None:
    until(lambda: daemon.log().count(f"virtagentd: {spec}: open\n") >= times, 10, f"{spec} open for the {times}. time")


def logged(daemon: Daemon, text: str) -> None:
    until(lambda: text in daemon.log(), 10, text)


def start(rig: Rig, *specs: str, options: tuple[str, ...] = ()) -> Daemon:
    more = [word for spec in specs for word in ("--channel", spec)]
    return rig.daemon([rig.fs("ext4")], [*more, *options])


def settled(daemon: Daemon) -> bool:
    """Return whether the daemon comes to rest: what came before may come late, and a busy machine has it woken late.

    A daemon that spins or polls, at whatever interval up to a second, has no second in which it only sleeps.
    """
    until(lambda: slept(daemon, 1.0) == 0, 20, "a second in which the daemon sleeps")
    return slept(daemon, 2.0) <= 1


def slept(daemon: Daemon, seconds: float) -> int:
    """Return how often it went to sleep in that time: once after each waking."""
    before = psutil.Process(daemon.pid).num_ctx_switches().voluntary
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(seconds)  # an end that does not come
    return psutil.Process(daemon.pid).num_ctx_switches().voluntary - before


def test_a_host_on_a_port(rig: Rig, path: Path, scheme: str) -> None:
    with Line(path) as line:
        daemon = start(rig, f"{scheme}:{path}")
        opened(daemon, f"{scheme}:{path}")
        assert b"dummy" in line.call("va.ping")
        assert b"<int>1</int>" in line.call("va.fsfreeze")
        assert b"<int>1</int>" in line.call("va.fsthaw")
        assert line.rest() == b""
        logged(daemon, 'method="va.fsfreeze"')
        assert re.search(rf'channel={scheme}:{path} peer=host method="va.fsfreeze"', daemon.log())
        assert settled(daemon)


def test_the_line_changes_no_byte_and_gives_no_signal(rig: Rig, path: Path) -> None:
    """A byte that was swallowed or doubled would make the message behind it another one."""
    with Line(path) as line:
        before = termios.tcgetattr(line.master)
        daemon = start(rig, f"serial:{path}")
        opened(daemon, f"serial:{path}")
        state = termios.tcgetattr(line.master)
        assert before[3] & termios.ECHO
        assert state[:2] + state[3:4] == [termios.IGNBRK, 0, 0]
        assert state[2] & termios.CLOCAL
        assert state[4:6] == before[4:6], "the speed is as it was"
        head = b"POST /RPC2 HTTP/1.1\r\nHost: guest\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
        for data in (b"\x03", b"\x1a\x1c", b"\x11\x13", b"\x04", b"\r\n\n", b"\x7f\x15", b"\0", bytes(range(256))):
            line.send(head % len(data) + data + request("va.ping"))
            assert b"-32700" in line.reply()
            assert b"dummy" in line.reply()
        line.send(b"\xff" + request("va.ping"))
        assert b"dummy" in line.reply()
        assert line.rest() == b"", "an echo"


def test_a_long_reply_goes_in_many_parts(rig: Rig, path: Path) -> None:
    """A terminal takes 4 KiB at once; nothing is lost or doubled when the host is slow to read."""
    big = rig.area.fresh("big")
    text = os.urandom(300_000)
    big.write_bytes(text)
    with Line(path) as line:
        daemon = start(rig, f"virtio:{path}")
        opened(daemon, f"virtio:{path}")
        line.send(request("va.getfile", str(big)))
        value = xmlrpc.client.loads(line.reply(20).partition(b"\r\n\r\n")[2])[0][0]
        assert value.data == text  # type: ignore[union-attr]
        assert b"dummy" in line.call("va.ping")


def test_hung_up_and_there_again(rig: Rig, path: Path, scheme: str) -> None:
    spec = f"{scheme}:{path}"
    with Line(path) as line:
        daemon = start(rig, spec)
        opened(daemon, spec)
        assert b"dummy" in line.call("va.ping")
    logged(daemon, f"{spec}: hung up")
    logged(daemon, f"{spec}: No such file or directory")
    assert settled(daemon), "it woke though the host is away"
    for times in range(2, 5):
        with Line(path) as line:
            opened(daemon, spec, times)
            assert b"dummy" in line.call("va.ping")
            assert line.rest() == b""
    assert daemon.proxy().va.ping() == "dummy"


def test_a_port_that_comes_late_with_its_folder(rig: Rig, path: Path) -> None:
    folder = path.parent / "virtio-ports"
    spec = f"virtio:{folder}/org.qemu.guest_agent.0"
    daemon = start(rig, spec)
    logged(daemon, f"{spec}: No such file or directory")
    assert settled(daemon), "it woke though nothing came"
    (path.parent / "another").mkdir()
    folder.mkdir()
    (folder / "another").touch()
    with Line(path.parent / "vport1p1") as line:
        (folder / "org.qemu.guest_agent.0").symlink_to("../vport1p1")
        opened(daemon, spec)
        assert b"dummy" in line.call("va.ping")
    (path.parent / "vport1p1").unlink()
    (folder / "org.qemu.guest_agent.0").unlink()
    (folder / "another").unlink()
    folder.rmdir()
    logged(daemon, f"{spec}: hung up")
    folder.mkdir()
    (folder / "org.qemu.guest_agent.0").symlink_to("../vport1p1")
    with Line(path.parent / "vport1p1") as line:
        opened(daemon, spec, 2)
        assert b"dummy" in line.call("va.ping")


def test_what_is_no_port_is_waited_out(rig: Rig, path: Path) -> None:
    path.write_text("")
    daemon = start(rig, f"virtio:{path}")
    logged(daemon, f"virtio:{path}: it is no character device")
    path.unlink()
    path.mkdir()
    path.rmdir()
    path.symlink_to(path)
    logged(daemon, f"virtio:{path}: Too many levels of symbolic links")
    path.unlink()
    path.symlink_to("/dev/null")
    logged(daemon, f"virtio:{path}: Operation not permitted")  # epoll: it cannot be waited for
    assert settled(daemon), "its own close of the port made it look again"
    path.unlink()
    with Line(path) as line:
        opened(daemon, f"virtio:{path}")
        assert b"dummy" in line.call("va.ping")


def test_half_a_message_of_one_host_is_not_the_next_ones(rig: Rig, path: Path, scheme: str) -> None:
    spec = f"{scheme}:{path}"
    stall = rig.stall("ext4")
    log = rig.area.fresh("log")  # to a file, since a log on stderr waits while anything may be frozen
    daemon = rig.daemon([stall.fs], ["--channel", spec, "--log-target", f"file:{log}"])

    def logged(text: str, times: int = 1) -> None:
        until(lambda: log.exists() and log.read_text().count(f" {spec}: {text}\n") >= times, 10, text)

    with Line(path) as line:
        logged("open")
        assert b"dummy" in line.call("va.ping")
        stall.stall()
        line.send(request("va.fsfreeze"))
        daemon.wait_status(lambda r: r["phase"] == "sync")
        line.send(request("va.ping")[:60])
    logged("hung up, unplugged or failed")
    with Line(path) as line:
        logged("open", 2)
        assert b"dummy" in line.call("va.ping")
        stall.release()
        daemon.wait_state("FROZEN")
        assert b"<int>2</int>" in line.call("va.fsstatus")
        assert b"<int>1</int>" in line.call("va.fsthaw")
        assert line.rest() == b"", "an answer that another host had asked for"
    until(lambda: 'method="va.fsthaw"' in log.read_text(), 10, "the records after the thaw")
    assert re.search(r'method="va.fsfreeze" .*outcome=abandoned', log.read_text())


def test_the_last_answer_before_the_end_arrives(rig: Rig, path: Path) -> None:
    with Line(path) as line:
        daemon = start(rig, f"serial:{path}")
        opened(daemon, f"serial:{path}")
        line.send(request("va.ping"))
        logged(daemon, 'method="va.ping"')
        assert daemon.stop() == 0
        assert b"dummy" in line.rest()


def test_a_connection_that_would_be_closed_begins_anew(rig: Rig, path: Path) -> None:
    with Line(path) as line:
        daemon = start(rig, f"serial:{path}")
        opened(daemon, f"serial:{path}")
        for _ in range(3):
            line.send(b"POST rubbish\r\n\r\n")
            assert b"400" in line.reply()
            assert b"dummy" in line.call("va.ping")
        line.send(request("va.ping").replace(b"Host: guest", b"Host: guest\r\nConnection: close") + request("va.ping"))
        assert b"dummy" in line.reply()
        assert b"dummy" in line.call("va.ping")
        assert line.rest() == b""


def test_a_host_that_does_not_read_is_given_up_and_another_is_heard(rig: Rig, path: Path) -> None:
    spec = f"virtio:{path}"
    with Line(path) as line:
        daemon = start(rig, spec, options=("--message-age", "0.3"))
        opened(daemon, spec)
        line.send(request("system.listMethods") * 40)
        until(lambda: psutil.Process(daemon.pid).status() == "sleeping", 5, "it waits")
        assert daemon.proxy().va.ping() == "dummy"
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.5)  # the age passes
        while line.rest():
            pass
        line.send(request("va.ping"))
        until(lambda: b"dummy" in line.rest(), 5, "an answer")
        assert settled(daemon)


def test_two_ports_a_socket_and_vsock_are_four_conversations(rig: Rig, path: Path) -> None:
    if not os.path.exists("/dev/vsock"):
        unmet("no vsock here")
    other = path.with_name("other")
    with Line(path) as one, Line(other) as two:
        port = 1_000_000_000 + os.getpid()
        daemon = start(rig, f"virtio:{path}", f"serial:{other}", f"vsock:{port}")
        opened(daemon, f"virtio:{path}")
        opened(daemon, f"serial:{other}")
        half = request("va.ping")
        sock = daemon.raw()
        one.send(half[:50])
        two.send(half[:70])
        sock.sendall(half[:90])
        assert b"dummy" not in one.rest() + two.rest()
        one.send(half[50:])
        assert b"dummy" in one.reply()
        sock.sendall(half[90:])
        assert b"dummy" in sock.recv(4096)
        two.send(half[70:])
        assert b"dummy" in two.reply()
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as taken, pytest.raises(OSError, match="in use"):
            taken.bind((socket.VMADDR_CID_ANY, port))


def test_a_vsock_port_that_is_taken_ends_the_start(rig: Rig) -> None:
    if not os.path.exists("/dev/vsock"):
        unmet("no vsock here")
    port = 1_000_000_000 + os.getpid()
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as taken:
        taken.bind((socket.VMADDR_CID_ANY, port))
        taken.listen()
        daemon = rig.daemon([rig.fs("ext4")], ["--channel", f"vsock:{port}"], wait_ready=False)
        assert daemon.process.wait(20) == 1
        assert f"channel vsock:{port}: Address already in use" in daemon.log()
