"""Snapshots of all disks at once over QMP: taken while frozen they need no recovery and lack nothing written."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from harness.processes import until
from harness.vm.guest import FILE_SYSTEMS, SIZES, Guest

LOG_BLOCKS = 16  # of xfs: a freeze leaves some 4 between tail and head, work that was not frozen hundreds


def run(program: str, *arguments: str) -> str:
    """Run a checker on an image; what it says is judged, so its exit code is part of it."""
    found = shutil.which(program) or f"/usr/sbin/{program}"
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}\nexit {done.returncode}\n"


def snapshot(guest: Guest, folder: Path) -> tuple[dict[str, Path], float]:
    """Take one of all disks at one moment; return the images and the seconds that QEMU needed to begin them."""
    monitor = guest.machine.monitor
    images = {name: folder / f"{name}.img" for name in ("root", *SIZES)}
    disks = {block["device"]: block["inserted"]["image"]["virtual-size"] for block in monitor("query-block")}
    for name, path in images.items():
        with open(path, "wb") as file:
            file.truncate(disks[name])
        into = {"driver": "file", "filename": str(path)}
        monitor("blockdev-add", driver="raw", **{"node-name": f"copy-{name}"}, file=into)
    actions = [
        {
            "type": "blockdev-backup",
            "data": {"device": name, "job-id": f"backup-{name}", "target": f"copy-{name}", "sync": "full"},
        }
        for name in images
    ]
    began = time.monotonic()
    monitor("transaction", actions=actions)
    return images, time.monotonic() - began


def copied(guest: Guest) -> None:
    """Wait until QEMU has copied what belongs to the snapshot; the guest may go on meanwhile."""
    monitor = guest.machine.monitor
    until(lambda: monitor("query-block-jobs") == [], 300, "the disks are copied")
    for name in ("root", *SIZES):
        monitor("blockdev-del", **{"node-name": f"copy-{name}"})


def needs_recovery(image: Path) -> bool:
    text = run("dumpe2fs", "-h", str(image))
    assert "Filesystem features:" in text, text
    return "needs_recovery" in text


def log_length(image: Path) -> int:
    """Return how many blocks of its log xfs would have to look at."""
    said = re.search(r"log tail: (\d+) head: (\d+)", text := run("xfs_logprint", "-t", str(image)))
    assert said, text
    return int(said[2]) - int(said[1])


def log_root(image: Path) -> int:
    said = re.search(r"^log_root\s+(\d+)", text := run("btrfs", "inspect-internal", "dump-super", str(image)), re.M)
    assert said, text
    return int(said[1])


def last_line(image: Path, path: str) -> int:
    """Return the number on the last line of a file on an ext4 image."""
    return int(re.findall(r"^\d+$", run("debugfs", "-R", f"cat {path}", str(image)), re.M)[-1])


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
    blocks = log_length(images["xfs"])
    print(f"transaction {seconds * 1000:.0f} ms; log of xfs: {blocks} blocks")
    for name in ("root", "ext4"):
        assert not needs_recovery(images[name]), name
        checked = run("e2fsck", "-fn", str(images[name]))
        assert checked.endswith("exit 0\n"), checked
    assert blocks <= LOG_BLOCKS
    assert log_root(images["btrfs"]) == 0
    checked = run("btrfs", "check", "--readonly", str(images["btrfs"]))
    assert checked.endswith("exit 0\n"), checked
    # A line that was written and not counted yet when its file system froze may be there, too.
    assert last_line(images["root"], "/var/tmp/written") - written["root"] in (0, 1)
    assert last_line(images["ext4"], "/written") - written["ext4"] in (0, 1)


def test_a_snapshot_without_a_freeze_needs_recovery(guest: Guest, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    load(guest)
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
