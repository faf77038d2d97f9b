"""Clears the working area when the process that made it ends, however it ends: `python -m harness.guardian HOLDER`.

Standard input names processes to kill, one pid a line; its end is the signal. It imports nothing that it might need
later and knows nothing of the tests: it takes what mountinfo and /proc show at that moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

from harness import linux
from harness.processes import wait_gone

THAW_SECONDS = 15.0


def descendants(pids: set[int]) -> set[int]:
    """Return `pids` and all that descend from them."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents[int(entry)] = int(fields[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def start_of(pid: int) -> str:
    """Return what tells a process from a later one with the same number: its start time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def thaw_all(area: str) -> None:
    """Thaw everything in the area, all at once: one that waits for an outer file system ends when that is thawed."""
    nodev = linux.nodev_types()

    def thaw(path: str) -> None:
        with contextlib.suppress(OSError):
            linux.thaw(path)

    paths = [m.mountpoint for m in linux.mounts_under(area) if m.fstype not in nodev]
    threads = [threading.Thread(target=thaw, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + THAW_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def unmount_all(holder: str) -> list[str]:
    """Unmount innermost first; what is in use is detached, so that it goes with its last user. Return what stays."""
    for mount in reversed(linux.mounts_under(holder)):
        try:
            linux.umount(mount.mountpoint)
        except OSError as error:
            if error.errno == errno.EBUSY:
                with contextlib.suppress(OSError):
                    linux.umount(mount.mountpoint, linux.MNT_DETACH)
    return [m.mountpoint for m in linux.mounts_under(holder)]


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    holder = sys.argv[1]
    guarded: dict[int, str] = {}
    for line in sys.stdin:
        guarded[int(line)] = start_of(int(line))
    killed = descendants({pid for pid, start in guarded.items() if start and start_of(pid) == start})
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # A killed worker that was stalled ends only when the outer file system thaws, and leaves its own frozen.
    thaw_all(holder)
    wait_gone(killed, THAW_SECONDS)
    thaw_all(holder)
    left = unmount_all(holder)
    with contextlib.suppress(OSError):
        os.rmdir(holder)
    for path in left:
        print(f"virtagent's test harness could not unmount {path}", file=sys.stderr)
    for device, backing in linux.loop_devices(holder).items():
        print(f"virtagent's test harness left {device} over {backing}", file=sys.stderr)
        left.append(device)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
