"""Memory and disks of a frozen guest are written to files, and a QEMU of its own goes on from them later."""

from __future__ import annotations

import select
import time
from pathlib import Path

import pytest
from harness.processes import until
from harness.vm.disks import copied, snapshot
from harness.vm.guest import FILE_SYSTEMS, PLACES, SIZES, Guest
from harness.vm.image import Base
from harness.vm.machine import Disk, Machine

HOLD = 8.0
AWAY = 4.0  # seconds between


@pytest.fixture
def taken(guest: Guest, tmp_path: Path) -> Path:
    """Freeze for HOLD seconds, and write the guest as it is then to files; the guest goes on."""
    guest.write_everywhere()
    guest.wait_writing()
    monitor = guest.machine.monitor
    port = guest.host()
    assert port.ask("va.fsfreeze", {"hold_limit": HOLD}) == {"return": FILE_SYSTEMS}
    port.close()
    monitor("stop")
    _, _ = snapshot(guest, tmp_path)
    copied(guest)
    monitor("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
    began = time.monotonic()
    monitor("migrate", uri=f"exec:cat >{tmp_path}/memory")
    until(lambda: monitor("query-migrate")["status"] in ("completed", "failed"), 120, "the memory is written")
    assert monitor("query-migrate")["status"] == "completed"
    size = (tmp_path / "memory").stat().st_size >> 20
    print(f"memory, {size} MiB, written in {time.monotonic() - began:.1f} s")
    (tmp_path / "vmlinuz").symlink_to(guest.base.kernel)
    return tmp_path


def test_a_guest_restored_from_a_snapshot_of_its_memory_thaws_by_itself(guest: Guest, taken: Path) -> None:
    guest.machine.monitor("cont")
    guest.wait_writing()  # the original, after its hold
    guest.machine.monitor("stop")
    select.select([], [], [], AWAY)
    run = taken / "run"
    run.mkdir()
    disks = [Disk(kind, taken / f"{kind}.img") for kind in SIZES]
    incoming = ("-incoming", f"exec:cat {taken}/memory")
    restored = Machine(Base(taken), guest.initramfs, run, disks, *incoming)
    try:
        until(lambda: restored.monitor("query-status")["status"] == "paused", 60, "the memory is read")  # as it was
        restored.monitor("cont")
        began = time.monotonic()
        port = restored.port()
        status = port.ask("va.fsstatus", {})["return"]
        assert status["state"] == "FROZEN"
        assert 0 < status["hold_left"] < HOLD
        still = restored.shell("cat /run/ram/count/*")
        until(lambda: port.ask("va.fsstatus") == {"return": 0}, 60, "the restored guest thaws")
        thawed = time.monotonic() - began
        print(f"hold left {status['hold_left']:.1f} s when restored; thawed by itself after {thawed:.1f} s")
        assert port.ask("va.fsthaw")["error"]["name"] == "FREEZE_BROKEN"
        until(lambda: len(_moved(restored, still)) == len(PLACES), 60, "every file system is written to")
        port.close()
    finally:
        restored.close()


def _moved(machine: Machine, before: str) -> list[str]:
    pairs = zip(before.split(), machine.shell("cat /run/ram/count/*").split(), strict=True)
    return [now for then, now in pairs if int(now) > int(then)]
