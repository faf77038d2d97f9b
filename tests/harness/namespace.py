"""The working area: a private mount namespace with a tmpfs, on which all images and state folders lie.

The process itself enters the namespace, so nothing that it mounts reaches the machine. A guardian process watches over
it: if this process is killed, the guardian thaws, unmounts and ends the daemons that it was told of.

    /tmp/va-XXXXXXXX         tmpfs, private
    /tmp/va-XXXXXXXX/root    where a daemon's root is put together (see `shield.py`)
    /tmp/va-XXXXXXXX/w       the area; shared with the daemons' namespaces, so they see what is mounted later
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import HarnessError, Unmet, linux
from .processes import python


class Area:
    """The working area of this process. `root` is the folder, with no character that a glob takes for its own."""

    def __init__(self, holder: Path) -> None:
        self.holder = holder
        self.root = holder / "w"
        self._taken = 0
        self._guardian = subprocess.Popen(
            python("harness.guardian", str(holder)), stdin=subprocess.PIPE, cwd="/", start_new_session=True
        )

    @property
    def everywhere(self) -> str:
        """The include glob for every file system of the area."""
        return f"{self.root}/*"

    @property
    def guardian_pid(self) -> int:
        return self._guardian.pid

    def fresh(self, name: str) -> Path:
        """Return a path in the area that nobody had yet, ending in `name`."""
        self._taken += 1
        return self.root / f"{self._taken}-{name}"

    def guard(self, pid: int) -> None:
        """Let the guardian kill this process and its descendants if this process dies."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"{pid}\n".encode())
        self._guardian.stdin.flush()

    def leave(self) -> None:
        """Unmount the area; raise HarnessError if the guardian could not thaw and unmount all."""
        global _area
        _area = None
        self._guardian.communicate(timeout=40)
        if self._guardian.returncode:
            raise HarnessError(f"{self.root} could not be cleared: what is still there is listed above")


_area: Area | None = None


def enter() -> Area:
    """Put this process into a private mount namespace with a working area; once, then it is the same area.

    Raises Unmet without root or where namespaces are forbidden.
    """
    global _area
    if _area is not None:
        return _area
    if os.geteuid() != 0:
        raise Unmet("needs root to make and freeze file systems")
    try:
        linux.unshare_mounts()
        linux.mount("", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    except PermissionError:
        raise Unmet("needs a mount namespace of its own, which this container forbids") from None
    linux.adopt_orphans()
    holder = Path(tempfile.mkdtemp(prefix="va-", dir="/tmp"))
    linux.mount("virtagent-tests", str(holder), "tmpfs", data="mode=755,size=80%")
    (holder / "root").mkdir()
    (holder / "w").mkdir()
    linux.mount(str(holder / "w"), str(holder / "w"), flags=linux.MS_BIND)
    linux.mount("", str(holder / "w"), flags=linux.MS_SHARED)
    _area = Area(holder)
    return _area


@contextlib.contextmanager
def entered() -> Iterator[Area]:
    """As `enter`, and leaves at the end."""
    area = enter()
    try:
        yield area
    finally:
        area.leave()
