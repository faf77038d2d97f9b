"""What the status says while two slow disks are synced beside two fast ones (U4, U5), on real devices."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from harness.rig import Rig
from harness.throttle import slow

MIB = 1 << 20
RATE = 4 * MIB  # bytes a second
DIRTY = 32 * MIB  # of each file system


def test_the_end_of_a_slow_sync_is_foretold_and_the_slow_disk_named(rig: Rig) -> None:
    disks = [rig.fs("ext4", size=128 * MIB) for _ in range(4)]
    daemon = rig.daemon(disks)
    seen: list[tuple[float, dict[str, Any]]] = []
    with contextlib.ExitStack() as limits:
        for fs in disks[:2]:
            limits.enter_context(slow(fs.device, RATE))
        for fs in disks:
            (fs.path / "dirty").write_bytes(b"x" * DIRTY)
        freezing = threading.Thread(target=daemon.proxy(60).va.fsfreeze)
        freezing.start()
        record = daemon.wait_status(lambda one: one["phase"] == "sync")
        while record["phase"] == "sync":
            seen.append((time.monotonic(), record))
            seq = record["seq"]
            record = daemon.wait_status(lambda one, seq=seq: one["seq"] != seq)
        ended = time.monotonic()
        freezing.join()
    assert record["progress"]["eta"] == -1, "none is foretold outside the sync"
    last_frozen = daemon.wait_state("FROZEN")
    slowest = {str(fs) for fs in disks[:2]}
    assert ended - seen[0][0] > 0.5 * DIRTY / RATE, "the disks were slow"
    for at, one in seen:
        going = [mount for mount in one["mounts"] if mount["state"] == "syncing"]
        eta, left = one["progress"]["eta"], ended - at
        assert one["since"] >= at - seen[0][0] - 0.2
        if at - seen[0][0] > 3 and left > 2 and {mount["mountpoint"] for mount in going} == slowest:
            assert 0.4 * left < eta < 3 * left + 1, f"{eta:.1f} s were said to be left, and {left:.1f} s were"
            for mount in going:
                assert mount["seconds"] >= at - seen[0][0] - 1
                assert mount["source"].startswith("/dev/loop")
                assert RATE / 2 < mount["bytes_per_second"] < 2 * RATE
    assert daemon.proxy().va.fsthaw() == 4
    last = daemon.status()["last"]
    assert last["slowest"] in slowest
    assert last["synced_bytes"] >= 4 * DIRTY * 0.9
    assert last["sync_seconds"] >= 0.5 * DIRTY / RATE
    assert last["stall_seconds"] < last["sync_seconds"], "sync and standstill are kept apart"
    held = {mount["mountpoint"]: mount for mount in last_frozen["mounts"] if mount["state"] == "frozen"}
    assert min(held[one]["sync_seconds"] for one in slowest) > max(held[str(fs)]["sync_seconds"] for fs in disks[2:])
