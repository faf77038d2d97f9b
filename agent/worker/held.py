"""Whether a file system that is mounted nowhere still lives, and by which device: a freeze holds it by itself.

The kernel claims the block device of each superblock for itself. So if such a device can be opened exclusively, or does
not exist, there is no superblock, and nothing is frozen. These calls may block on the disk: only in a worker.
"""

from __future__ import annotations

import errno
import os
import stat

from ..api import records


def device_in_use(mount: records.Mount) -> str:
    """Return the path of the block device on which the superblock lives, "" if there is no such superblock any more.

    Raises OSError if that cannot be known.
    """
    path = _device_of(mount)
    if not path:
        return ""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return path
        if error.errno in (errno.ENXIO, errno.ENODEV):
            return ""
        raise
    return ""


def _device_of(mount: records.Mount) -> str:
    """Return the path of its device, or one of them, "" if it does not exist; raise OSError if it is not known."""
    number = mount.device
    if number.startswith("0:"):
        # It has no number of its own, as a btrfs: its source is all that is known.
        if not mount.source.startswith("/dev/"):
            raise OSError(errno.ENODEV, f"not mounted any more, and its device is not known ({mount.source})")
        try:
            about = os.stat(mount.source)
        except FileNotFoundError:
            raise OSError(errno.ENODEV, f"not mounted any more, and there is no {mount.source}") from None
        if not stat.S_ISBLK(about.st_mode):
            raise OSError(errno.ENODEV, f"not mounted any more, and {mount.source} is no block device")
        number = f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}"
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except FileNotFoundError:
        return ""
    path = "/dev/" + name.replace("!", "/")
    device = os.stat(path).st_rdev
    if f"{os.major(device)}:{os.minor(device)}" != number:
        raise OSError(errno.ENODEV, f"not mounted any more, and {path} is another device than {number}")
    return path
