"""Snapshots of all disks at once over QMP: taken while frozen they need no recovery and lack nothing written."""

from __future__ import annotations

from pathlib import Path

from harness.processes import until
from harness.vm.disks import LOG_BLOCKS, assert_clean, copied, last_line, log_length, log_root, needs_recovery, snapshot
from harness.vm.guest import FILE_SYSTEMS, Guest

LINES = 30  # each is flushed, with a block beside it: by then the journals and logs hold much that is not in its place


def load(guest: Guest) -> None:
    guest.write_everywhere(durably=True)
    guest.wait_writing()


def test_a_snapshot_of_a_frozen_guest_needs_no_recovery(guest: Guest, tmp_path: Path) -> None:
    load(guest)
    port = guest.host()
    assert port.ask("va.fsfreeze", {"hold_limit": 120}) == {"return": FILE_SYSTEMS}
    images, seconds = snapshot(guest, tmp_path)
    written = guest.written()
    assert port.ask("va.fsthaw") == {"return": FILE_SYSTEMS}
    copied(guest)
    guest.wait_writing()
    print(f"transaction {seconds * 1000:.0f} ms; log of xfs: {log_length(images['xfs'])} blocks")
    assert_clean(images)
    # A line that was written and not counted yet when its file system froze may be there, too.
    assert last_line(images["root"], "/var/tmp/written") - written["root"] in (0, 1)
    assert last_line(images["ext4"], "/written") - written["ext4"] in (0, 1)


def test_a_snapshot_without_a_freeze_needs_recovery(guest: Guest, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    load(guest)
    before = guest.written()
    until(lambda: all(n >= before[name] + LINES for name, n in guest.written().items()), 300, "logs to be replayed")
    images, _ = snapshot(guest, tmp_path)
    copied(guest)
    print(f"log of xfs: {log_length(images['xfs'])} blocks; log_root of btrfs: {log_root(images['btrfs'])}")
    assert needs_recovery(images["root"])
    assert needs_recovery(images["ext4"])
    assert log_length(images["xfs"]) > LOG_BLOCKS


def test_a_snapshot_after_the_freeze_was_broken_is_reported(guest: Guest, tmp_path: Path) -> None:
    load(guest)
    port = guest.host()
    assert port.ask("va.fsfreeze", {"hold_limit": 2}) == {"return": FILE_SYSTEMS}
    guest.wait_writing()
    images, _ = snapshot(guest, tmp_path)
    error = port.ask("va.fsthaw")["error"]
    copied(guest)
    assert error["name"] == "FREEZE_BROKEN", error
    assert needs_recovery(images["ext4"])
