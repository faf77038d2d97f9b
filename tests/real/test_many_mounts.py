"""Thousands of mounts, some of them a hostile user's: plan, record and commands stay small, and the agent answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.fixtures import unmet
from harness.rig import Rig
from harness.terminal import CTL

SMALL = 256 << 10
SLOWER = 4  # times what it is with one mount, or less: only the workers may be busy with mounts
EVERY = 0.002  # seconds from ping to ping: as many in each stretch of time, so that slow stretches weigh
COMMANDS = (["plan"], ["freeze"], ["status"], ["thaw"], ["snapshot", "--", "true"])

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def folder(rig: Rig) -> Iterator[Path]:
    """Give a folder of memory, which goes at the end with all that is mounted below it."""
    place = rig.area.fresh("many")
    place.mkdir()
    linux.mount("many", str(place), "tmpfs")
    try:
        yield place
    finally:
        linux.umount(str(place), linux.MNT_DETACH)


@contextlib.contextmanager
def hostile(place: Path, count: int) -> Iterator[None]:
    """Mount as many FUSE file systems as a user may, at paths of 3,400 bytes that are no text; nobody serves them."""
    if not os.path.exists("/dev/fuse"):
        unmet("needs /dev/fuse")
    deep = os.fsencode(place)
    while len(deep) < 3400:
        deep += b"/" + (b"\xff\n\\ \x1b" * 50)[:250]
    servers: list[int] = []
    try:
        for i in range(count):
            point = os.fsdecode(deep + b"/%d" % i)
            os.makedirs(point)
            servers.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
            data = f"fd={servers[-1]},rootmode=40000,user_id=65534,group_id=65534"
            linux.mount("evil", point, f"fuse.{'x' * 40}", data=data)
        yield
    finally:
        for fd in servers:
            os.close(fd)


def bind(target: str, place: Path, count: int) -> None:
    for i in range(count):
        point = place / f"bind{i}"
        point.mkdir()
        linux.mount(target, str(point), flags=linux.MS_BIND)


def busy(daemon: Daemon) -> int:
    """Return for how many ns the supervisor, its first thread, has had a processor (schedstats, sched-stats.rst)."""
    return int(Path(f"/proc/{daemon.pid}/schedstat").read_text().split()[0])


def pings_while_commands_run(daemon: Daemon) -> list[int]:
    """Run each command of virtagentctl, which must succeed; return for how many ns each ping kept the supervisor busy.

    Sorted. That is its own work, without its waits for a processor: those are the machine's.
    """
    failed: list[str] = []

    def run() -> None:
        for words in COMMANDS:
            ended = subprocess.run([*CTL, "--agent", daemon.url, *words], capture_output=True, check=False, timeout=60)
            if ended.returncode or len(ended.stdout) > SMALL:
                failed.append(f"{words}: {ended.returncode}, {len(ended.stdout)} bytes, {ended.stderr[-300:]!r}")

    thread = threading.Thread(target=run)
    took = []
    with daemon.raw() as sock:
        thread.start()
        while thread.is_alive():
            due, begun = time.monotonic() + EVERY, busy(daemon)
            sock.sendall(b'{"execute":"guest-ping"}\n')
            assert sock.recv(4096) == b'{"return": {}}\n'
            took.append(busy(daemon) - begun)
            thread.join(max(0.0, due - time.monotonic()))  # until the next ping is due, or all commands have ended
        thread.join()
    assert failed == []
    return sorted(took)


def longest(daemon: Daemon, mounts: str) -> int:
    """Return the third longest, in ns: a percentile would fall as the commands take longer, and more pings are sent."""
    took = pings_while_commands_run(daemon)
    median, third = took[len(took) // 2] / 1e6, took[-3] / 1e6
    print(f"{mounts}: {len(took)} pings, median {median:.2f} ms, third longest {third:.2f} ms")
    return took[-3]


def check(daemon: Daemon, alone: int, counted: dict[str, int], aliases: int) -> None:
    assert longest(daemon, "many mounts") < SLOWER * alone
    host = daemon.proxy()
    plan, record, brief = host.va.fsplan(), daemon.status(), host.va.fsstatus({"brief": True})
    (mount,) = plan["mounts"]
    assert len(mount["aliases"]) + mount["more_aliases"] == aliases
    for told in (plan, record):
        assert {reason: told["left_out_counts"][reason] for reason in counted} == counted
        assert len(json.dumps(told)) < SMALL
    assert len(plan["left_out"]) <= 50
    assert [(m["mountpoint"], m["aliases"]) for m in brief["mounts"]] == [(mount["mountpoint"], [])]
    assert len(json.dumps(brief)) < 4096


@pytest.mark.parametrize("count", [6000, 10_000])
def test_bind_mounts_of_one_file_system(rig: Rig, count: int) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere])
    alone = longest(daemon, "one mount")
    with folder(rig) as place:
        bind(str(fs), place, count)
        check(daemon, alone, {}, count)
        assert daemon.proxy().va.fsfreeze() == 1
        fs.assert_frozen()
        journal = daemon.state_dir / "journal"
        assert journal.stat().st_size < SMALL
        assert daemon.proxy().va.fsthaw() == 1


def test_hostile_fuse_mounts(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere])
    alone = longest(daemon, "one mount")
    with folder(rig) as place, hostile(place, 1000):
        check(daemon, alone, {"fuse": 1000}, 0)
        assert daemon.proxy().va.fsfreeze({"strict": True}) == 1, "a user can make no freeze fail"
        fs.assert_frozen()
        assert (daemon.state_dir / "journal").stat().st_size < SMALL
        assert daemon.proxy().va.fsthaw() == 1
