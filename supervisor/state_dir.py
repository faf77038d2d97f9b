"""Where the state is kept if the folder that was named is on a disk, which may be frozen.

The place is made of the whole path that was named, so that two agents with different folders have different states.
"""

from __future__ import annotations

import os
import stat

from ..agent.worker import kernel
from .io import journal

BASES = ("/run", "/dev/shm")
OURS = "virtagent.at"  # below it the path that was named
NAME = "virtagent"


class NoPlace(Exception):
    """There is no tmpfs, and none can be mounted; one sentence."""


def place(wanted: str) -> tuple[str, str]:
    """Return the folder for the state of an agent that was told to keep it in `wanted`, and a note for the log or "".

    It is below `wanted` if that is on tmpfs, else below the first of BASES that is; if none is, a tmpfs is mounted
    below `wanted`. Raises NoPlace.
    """
    real = os.path.realpath(wanted)
    own = os.path.join(real, NAME)
    if journal.in_memory(real) or journal.in_memory(own):
        return own, ""
    for base in BASES:
        if journal.in_memory(base) and _make(os.path.join(base, OURS)):
            folder = f"{base}/{OURS}{real.rstrip('/')}/{NAME}"
            return folder, f"statedir {wanted} is not on tmpfs: state is kept in {folder}"
    try:
        os.makedirs(own, mode=0o700, exist_ok=True)
        kernel.mount_tmpfs(own)
    except OSError as error:
        where = f"neither statedir {wanted} nor {' nor '.join(BASES)} is on a tmpfs that can be used"
        raise NoPlace(f"{where}, and none can be mounted at {own}: {error.strerror}") from None
    return own, f"statedir {wanted} is not on tmpfs: one was mounted at {own}"


def _make(folder: str) -> bool:
    """Make the folder; return whether it is this user's alone: in /dev/shm anybody may have made it before."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    except OSError:
        return False  # for want of rights, or of inodes: there are other places
    return True
