"""A real virtio port: hosts open and close its end, at any moment, and the agent answers the one that is there."""

from __future__ import annotations

import base64
import json
import os
import select
import time

from harness.vm.guest import LATE, Guest
from harness.vm.machine import Transport

MINUTE = 60.0
FILE = 48 << 20


def sync(port: Transport, number: int) -> list[bytes]:
    """Send a delimited sync; return the lines that came before its reply, but for the error that 0xFF draws."""
    port.send(b'\xff{"execute": "guest-sync-delimited", "arguments": {"id": %d}}\n' % number)
    before = []
    while True:
        line = port.line()
        if line.startswith(b"\xff"):
            assert json.loads(line[1:]) == {"return": number}
            return before
        before.append(line)


def idle(guest: Guest, seconds: float) -> int:
    """Let some time pass; return how often the supervisor was run. systemd's watchdog is fed every 15 s."""
    guest.quiet()
    before = guest.switches()
    select.select([], [], [], seconds)
    after = guest.switches()
    assert after.ticks - before.ticks <= 1
    return after.times - before.times


def test_a_host_that_asks_before_the_agent_runs_is_answered(guest: Guest) -> None:
    """Its end was open when the guest was started."""
    assert json.loads(guest.early_reply) == {"return": 1}


def test_an_end_that_is_closed_costs_nothing(guest: Guest) -> None:
    port = guest.host()
    assert port.ask("guest-ping") == {"return": {}}
    assert idle(guest, 4) <= 2, "with the host there"
    port.close()
    assert idle(guest, 4) <= 2, "with the host away"
    assert guest.host().ask("guest-ping") == {"return": {}}


def test_hosts_that_come_and_go_are_all_answered(guest: Guest) -> None:
    for number in range(500):
        port = guest.machine.port(timeout=10)
        assert port.ask("guest-get-host-name" if number % 10 == 0 else "guest-ping", id=number)["id"] == number
        port.close()


def test_half_a_message_is_not_the_next_hosts(guest: Guest) -> None:
    for half in (b'{"execute": "guest-pi', b'{"execute": "guest-exec", "arguments": {"path": "' + b"x" * 100_000):
        port = guest.host()
        port.send(half)
        guest.quiet()
        port.close()
        guest.quiet()
        assert guest.host().ask("guest-ping") == {"return": {}}
        guest._ports[-1].close()


def test_after_half_a_message_a_host_that_comes_at_once_resynchronises(guest: Guest) -> None:
    for number in range(20):
        port = guest.host()
        port.send(b'{"execute": "guest-ping", "id": "hal')
        port.close()
        port = guest.host()
        assert all(json.loads(line)["error"] for line in sync(port, number))
        assert port.ask("guest-ping", id=number) == {"return": {}, "id": number}
        port.close()


def test_what_a_host_did_not_read_is_not_the_next_hosts(guest: Guest) -> None:
    guest.sh("dd if=/dev/zero of=/run/big bs=1M count=16 2>/dev/null")
    port = guest.host()
    handle = port.ask("guest-file-open", {"path": "/run/big"})["return"]
    port.send(json.dumps({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 16 << 20}}).encode())
    assert select.select([port.sock], [], [], MINUTE)[0], "the reply begins"
    assert idle(guest, 2) <= 2, "it waits until the host reads on"
    port.close()
    guest.quiet()
    port = guest.host()
    assert port.ask("guest-ping", id="new") == {"return": {}, "id": "new"}
    assert port.ask("guest-file-close", {"handle": handle}) == {"return": {}}
    guest.sh("rm /run/big")


def test_a_large_file_through_the_port(guest: Guest) -> None:
    data = os.urandom(FILE)
    port = guest.host(timeout=300)
    handle = port.ask("guest-file-open", {"path": "/run/large", "mode": "w+"})["return"]
    half = FILE // 2
    for part in (data[:half], data[half:]):
        written = port.ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(part).decode()})
        assert written["return"]["count"] == half
    port.ask("guest-file-seek", {"handle": handle, "offset": 0, "whence": "set"})
    read = port.ask("guest-file-read", {"handle": handle, "count": FILE})["return"]
    assert read["count"] == FILE
    assert base64.b64decode(read["buf-b64"]) == data
    port.ask("guest-file-close", {"handle": handle})
    guest.sh("rm /run/large")


def test_a_port_that_comes_late_is_served_and_its_going_hurts_no_other(guest: Guest) -> None:
    monitor = guest.machine.monitor
    other = guest.host()
    for _ in range(2):
        guest.plug_in()
        port = guest.host("late")
        assert port.ask("guest-ping") == {"return": {}}
        assert other.ask("guest-ping") == {"return": {}}
        monitor("device_del", id="port-late")
        guest.sh(f"while [ -e /dev/virtio-ports/{LATE} ]; do usleep 20000; done")
        assert other.ask("guest-ping") == {"return": {}}
        assert idle(guest, 2) <= 2, "unplugged"
        port.close()
        monitor("chardev-remove", id="late")


def test_answers_while_another_host_waits_come_at_once(guest: Guest) -> None:
    """Two ways to one agent: the port, and the socket in the guest."""
    port = guest.host()
    began = time.monotonic()
    for number in range(100):
        assert port.ask("guest-sync", {"id": number}) == {"return": number}
    each = (time.monotonic() - began) / 100
    assert each < 1, f"{each:.3f} s for each answer"
