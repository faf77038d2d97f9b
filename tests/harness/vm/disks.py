"""The guest's disks as they are at one moment, copied over QMP, and what checkers say of the copies.

`drive-backup` would not do: with `snapshot=on` it removes its target.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from ..processes import until
from .guest import SIZES, Guest

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


def assert_clean(images: dict[str, Path]) -> None:
    """Assert that no file system needs its journal to be looked at: each was frozen, or unmounted."""
    for name in ("root", "ext4"):
        assert not needs_recovery(images[name]), name
        checked = run("e2fsck", "-fn", str(images[name]))
        assert checked.endswith("exit 0\n"), checked
    assert log_length(images["xfs"]) <= LOG_BLOCKS
    assert log_root(images["btrfs"]) == 0
    checked = run("btrfs", "check", "--readonly", str(images["btrfs"]))
    assert checked.endswith("exit 0\n"), checked
