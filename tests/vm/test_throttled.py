"""A disk that takes two megabytes a second, with much to write: a freeze that outlasts its host's time-out."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator

import pytest
from harness.processes import until
from harness.vm.guest import FILE_SYSTEMS, Guest
from harness.vm.machine import AGENT, Transport
from virtagent.host import Agent, Code, Fault, TimedOut

RATE = 2_000_000  # bytes a second
DIRTY = 24  # MiB: 12 s
TIMEOUT = 3.0  # seconds that the host waits for an answer
MIB = 1 << 20


@pytest.fixture
def slow(guest: Guest) -> Guest:
    """Throttle the ext4 disk and have much to write to it; each writer goes on."""
    with Agent(f"unix:{guest.machine.run}/agent", timeout=60) as host:  # no broken freeze of before is told after it
        host.freeze()
        host.thaw()
    guest.write_everywhere()
    guest.wait_writing()
    guest.throttle("ext4", RATE)
    guest.dirty("ext4", DIRTY)
    return guest


def moved(guest: Guest, seconds: float) -> dict[str, int]:
    """Return how many lines each writer writes meanwhile."""
    before = guest.written()
    select.select([], [], [], seconds)
    return {name: count - before[name] for name, count in guest.written().items()}


def test_a_freeze_that_outlasts_its_hosts_time_out_is_followed_to_its_end(slow: Guest) -> None:
    url = f"unix:{slow.machine.run}/agent"
    began = time.monotonic()
    with Agent(url, timeout=TIMEOUT) as host, pytest.raises((Fault, TimedOut)) as late:
        host.freeze(hold_limit=60)
    waited = time.monotonic() - began
    assert waited >= TIMEOUT * 0.8
    assert isinstance(late.value, TimedOut) or late.value.code == Code.IN_PROGRESS
    slowest, flushed, etas, polls = 0.0, [], [], 0
    with Agent(url, timeout=20) as host:  # another connection, as of another process
        status = host.status()
        assert (status.state, status.phase) == ("INPROGRESS", "sync")
        assert {m.mountpoint: m.state for m in status.mounts if m.state != "left-out"}["/srv/ext4"] == "syncing"
        moving = moved(slow, 1)
        assert all(moving[name] > 0 for name in ("root", "log", "xfs", "btrfs")), "applications run while it syncs"
        while status.state == "INPROGRESS":
            asked = time.monotonic()
            assert host.ping() == "dummy"
            slowest = max(slowest, time.monotonic() - asked)
            flushed.append(status.progress.flushed_bytes)
            etas.append(status.progress.eta)
            status = host.status(since=status.seq, wait=10)
            polls += 1
        frozen = time.monotonic() - began
        assert status.state == "FROZEN"
        assert frozen > TIMEOUT
        assert set(moved(slow, 0.5).values()) == {0}
        assert host.thaw() == FILE_SYSTEMS
        last = host.status().last
    slow.wait_writing()
    print(
        f"host gave up after {waited:.1f} s; frozen after {frozen:.1f} s, told in {polls} polls; slowest ping "
        f"{slowest * 1000:.0f} ms; written {max(flushed) / MIB:.1f} MiB; writers stood still {last.stall_seconds:.2f} s"
    )
    known = [count for count in flushed if count >= 0]
    assert known == sorted(known)
    assert len(set(known)) > 3, "progress"
    assert max(etas) > 1, "seconds until it is frozen"
    assert last.held_continuously
    assert last.stall_seconds < frozen / 2


def test_a_freeze_that_takes_too_long_is_cancelled(slow: Guest) -> None:
    """The kernel lets nobody leave a sync that has begun, but nothing is frozen, and the host is told why."""
    with Agent(f"unix:{slow.machine.run}/agent", timeout=TIMEOUT) as host:
        with pytest.raises((Fault, TimedOut)):
            host.freeze()
        began = time.monotonic()
        assert host.thaw() == 0, "nothing was frozen yet"
        assert host.status().state == "THAWED"
        answered = time.monotonic() - began
        slow.wait_writing()
        print(f"thawed after {answered:.2f} s; written to everywhere after {time.monotonic() - began:.2f} s")
        slow.throttle("ext4", 0)
        until(lambda: not host.status().workers, 60, "the end of the killed worker")
        last = host.status().last
        assert last is not None
        assert last.outcome == "cancelled"


@pytest.fixture
def stock(slow: Guest) -> Iterator[Guest]:
    """Have a real qemu-ga at the port in the agent's place."""
    slow.sh("systemctl stop virtagentd")
    run = f"qemu-ga -m virtio-serial -p /dev/virtio-ports/{AGENT} -t /run"
    slow.sh(f"setsid {run} >/run/qga.log 2>&1 </dev/null & echo $! >/run/qga.pid")
    yield slow
    slow.sh("kill $(cat /run/qga.pid); while [ -e /proc/$(cat /run/qga.pid) ]; do usleep 20000; done")
    slow.sh("systemctl start virtagentd")


def answer_of(port: Transport, number: int) -> list[bytes]:
    """Return the lines until the reply to the guest-sync with that number, which is the last."""
    lines = [port.line()]
    while json.loads(lines[-1]) != {"return": number}:
        lines.append(port.line())
    return lines


def test_the_same_with_qemu_ga_which_answers_nothing_until_it_is_done(stock: Guest) -> None:
    """For comparison: file systems on fast disks stand still, frozen, until the slow one is, too."""
    port = stock.host()
    port.send(b'{"execute": "guest-sync", "arguments": {"id": 1}}\n')
    assert json.loads(answer_of(port, 1)[-1]) == {"return": 1}
    began = time.monotonic()
    port.send(b'{"execute": "guest-fsfreeze-freeze"}\n')
    assert select.select([port.sock], [], [], TIMEOUT)[0] == [], "no answer in time"
    port.send(b'{"execute": "guest-sync", "arguments": {"id": 2}}\n')
    assert select.select([port.sock], [], [], 1)[0] == [], "nor to a sync"
    still = moved(stock, 0.5)
    lines = answer_of(port, 2)
    frozen = time.monotonic() - began
    assert json.loads(lines[0]) == {"return": FILE_SYSTEMS}, "the late answer, to a host that has given up"
    assert port.ask("guest-fsfreeze-thaw") == {"return": FILE_SYSTEMS}
    stock.wait_writing()
    stood = [name for name, lines_written in still.items() if lines_written == 0]
    print(f"qemu-ga: frozen, and a sync answered, after {frozen:.1f} s; meanwhile stood still: {' '.join(stood)}")
    assert {"xfs", "btrfs"} <= set(stood)
