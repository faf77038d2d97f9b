"""Whether anything was written to what a freeze held, by the sectors written before and after the hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..api.records import Mount
from ..api.text import listed, size
from . import steps
from .steps import Script

SECTOR = 512  # bytes, whatever the disk's own are (Documentation/block/stat.rst)
NOT_KNOWN = -1


class Evidence:
    """The evidence of one freeze: `begin` after the last FIFREEZE, `end` before the first FITHAW.

    `written` are the bytes written meanwhile, NOT_KNOWN if one of the file systems gave no evidence and none of the
    others was written to. `wrote` says which devices were written to, "" if none was.
    """

    def __init__(self) -> None:
        self.written = NOT_KNOWN
        self.wrote = ""
        self._held: list[Mount] = []
        self._before: Mapping[str, int] = {}

    def begin(self, held: Iterable[Mount]) -> Script[None]:
        """Read how much was written to these, all of which are frozen."""
        self._before = yield steps.ReadWritten()
        self._held = list(held)

    def end(self) -> Script[None]:
        """Read again and compare, unless nothing is held, or that was done before: then something may be thawed."""
        held, self._held = self._held, []
        if not held:
            return
        after: Mapping[str, int] = yield steps.ReadWritten()
        differs: dict[str, int] = {}
        whole = True
        for mount in held:
            known = [name for name in mount.devices if name in self._before and name in after]
            whole &= bool(known) and len(known) == len(mount.devices)
            for name in known:
                if more := after[name] - self._before[name]:
                    differs[_path_of(name, mount)] = abs(more) * SECTOR
        if differs:
            self.written = sum(differs.values())
            to = listed(
                f"{size(count)} {'to' if at else 'were written to'} {path}"
                for at, (path, count) in enumerate(differs.items())
            )
            self.wrote = f"{to} while frozen"
        elif whole:
            self.written = 0


def _path_of(name: str, mount: Mount) -> str:
    """Return the path by which operators know a device of that file system."""
    mapped = name.startswith("dm-") and name == mount.devices[0] and mount.source.startswith("/dev/mapper/")
    return mount.source if mapped else f"/dev/{name}"
