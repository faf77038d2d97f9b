"""A disk that stalls on command: a file system whose image lies on another one that the test freezes itself.

While the outer one is frozen, every write of the inner one's loop device waits: FIFREEZE, syncfs and FITHAW of the
inner one block in D until the release. Nothing is needed but loop devices (nbdkit would bring delays and errors too).
ext4 and xfs write at every freeze; a clean btrfs does not, and freezes at once on a dead disk, so data is written to it
after the disk has stopped. Mind that a plain `sync` of anyone on the machine blocks as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from . import HarnessError
from .filesystems import MIB, LoopFs


class Stall:
    """`fs` is the file system on the disk that can stall, `disk` the one that is frozen for that."""

    def __init__(self, make: Callable[..., LoopFs], kind: str, size: int = 0) -> None:
        self.disk = make("ext4", size=(size or 512 * MIB) + 64 * MIB, name="disk")
        self.fs = make(kind, size=size, outer=self.disk, name=f"stalling-{kind}")
        self.stalled = False

    def stall(self, dirty: bool = True) -> None:
        """Stop the disk, with 4 MiB in memory that a freeze must write first."""
        answer = self.disk.freeze()
        if answer != "ok":
            raise HarnessError(f"stalling {self.fs}: {answer}")
        self.stalled = True
        if dirty:
            with contextlib.suppress(TimeoutError):  # a write that waits for the disk holds up the freeze as well
                self.fs.ioctl("dirty").answer(2)

    def release(self) -> None:
        """Let the disk go on; harmless if it is not stalled."""
        answer = self.disk.thaw()
        self.stalled = False
        if answer not in ("ok", "EINVAL"):
            raise HarnessError(f"releasing {self.fs}: {answer}")
