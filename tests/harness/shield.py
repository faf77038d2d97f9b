"""Runs a command that cannot freeze the machine's disks: `python -m harness.shield HOLDER COMMAND...`.

The command gets a mount namespace in which every disk file system of the machine is replaced by a read-only overlay of
itself, which FIFREEZE refuses (EOPNOTSUPP). Only the area is what it is. So even a daemon that freezes all that it
sees, or a request whose include is `*`, reaches nothing but the test's own file systems; and a daemon that writes to a
disk outside the area gets EROFS.
"""

from __future__ import annotations

import os
import sys

from harness import linux


def main() -> None:
    holder, command = sys.argv[1], sys.argv[2:]
    area, base, empty = f"{holder}/w", f"{holder}/root", f"{holder}/empty"
    os.makedirs(empty, exist_ok=True)
    nodev = linux.nodev_types()
    where = os.getcwd()
    machine = [m for m in linux.mounts() if not linux.is_under(m.mountpoint, holder)]
    linux.unshare_mounts()
    for mount in machine:
        target = base + mount.mountpoint.rstrip("/")
        if not os.path.exists(target):
            continue  # hidden by a later mount
        if mount.fstype in nodev:
            linux.mount(mount.mountpoint, target, flags=linux.MS_BIND)
        elif os.path.isdir(mount.mountpoint):
            linux.mount("shield", target, "overlay", data=f"lowerdir={mount.mountpoint}:{empty}")
    linux.mount("shield", base + holder, "tmpfs")
    os.mkdir(base + area)
    linux.mount(area, base + area, flags=linux.MS_BIND | linux.MS_REC)
    linux.change_root(base)
    os.chdir(where)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
