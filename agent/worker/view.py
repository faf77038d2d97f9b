"""What paths lead to in one mount namespace, and what stands on the way. Pure."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

from .mountinfo import MountInfo, behind_servers, is_long, parse_mountinfo, path_walk

_NUMBERS = 80  # bytes that hold the three numbers with which a line begins


class View:
    """One mount namespace, as a process in it sees it."""

    def __init__(self, mounts: Sequence[MountInfo] = (), text: str = "") -> None:
        """Take the mounts, or the text of mountinfo, which is parsed only as far as it is asked about."""
        self._text = text
        if not text:
            self.mounts = mounts

    @functools.cached_property
    def mounts(self) -> Sequence[MountInfo]:
        """The mounts in the order of mountinfo."""
        return parse_mountinfo(self._text)

    @property
    def devices(self) -> Collection[str]:
        """The superblocks (major:minor) that are mounted."""
        return self._by_device.keys()

    def of(self, device: str) -> list[MountInfo]:
        """Return the mounts of a superblock (major:minor), in the order of mounting."""
        return self._by_device.get(device, [])

    def device(self, mount_id: int) -> str:
        """Return the superblock that is mounted by that mount, "" if there is no such mount."""
        if self._text and "mounts" not in self.__dict__:  # six thousand lines, of which one is asked for
            start = f"\n{mount_id} "
            at = 0 if self._text.startswith(start[1:]) else self._text.find(start) + 1
            found = self._text[at : at + _NUMBERS].split(" ", 3)
            return found[2] if len(found) > 2 and found[0] == str(mount_id) else ""
        mount = self.by_id.get(mount_id)
        return mount.device if mount else ""

    def is_shown(self, mount: MountInfo) -> bool:
        """Return whether the path of the mount's mount point leads to it."""
        return self.leads_to[mount.mountpoint] == mount.mount_id

    def is_safe(self, mount: MountInfo) -> bool:
        """Return whether no FUSE, network or automount stands on the mount's way, itself among them."""
        return mount.mount_id not in self.behind

    def is_safe_path(self, path: str) -> bool:
        """Return whether walking an absolute path asks nobody but the kernel."""
        mount = self.at(path)
        return mount is not None and self.is_safe(mount)

    def at(self, path: str) -> MountInfo | None:
        """Return the mount that an absolute path without links leads to; None if there is none."""
        folder = path
        while folder not in self.leads_to and folder != "/":
            folder = folder.rpartition("/")[0] or "/"
        return self.by_id.get(self.leads_to.get(folder, -1))

    def way(self, device: str) -> MountInfo | None:
        """Return the first of the safe `ways`, None if there is none. Of thousands, few are looked at."""
        ways = (m for m in self.of(device) if self.is_shown(m) and self.is_safe(m))
        second = None
        for mount in ways:
            if mount.root == "/" and not is_long(mount.mountpoint):
                return mount
            second = second or mount
        return self.ways(device, safe=True)[0] if second else None

    def ways(self, device: str, *, safe: bool) -> list[MountInfo]:
        """Return the mounts that show a superblock, those first that are the likeliest to be a folder.

        `safe`: those that ask nobody but the kernel; else the others.
        """
        shown = [m for m in self.of(device) if self.is_shown(m) and self.is_safe(m) is safe]
        return sorted(shown, key=lambda m: (is_long(m.mountpoint), m.root != "/"))

    def covered(self, device: str) -> list[MountInfo]:
        """Return the mounts of a superblock that others hide, and that can be uncovered without asking a server."""
        return [m for m in self.of(device) if not self.is_shown(m) and self.is_safe(m)]

    def cover(self, mount: MountInfo) -> str:
        """Return the first mount point on the way to a mount whose topmost mount leads elsewhere; "" if there is none.

        When that one is detached, the way goes on, at least to the next cover.
        """
        if self.is_shown(mount):
            return ""
        chain = set()
        here: MountInfo | None = mount
        while here is not None and here.mount_id not in chain:
            chain.add(here.mount_id)
            here = self.by_id.get(here.parent_id)
        point = mount.mountpoint
        steps = [at for at, letter in enumerate(point) if letter == "/" and at]
        for path in ("/", *(point[:at] for at in steps), point):
            if path in self.leads_to and self.leads_to[path] not in chain:
                return path
        return point

    @functools.cached_property
    def by_id(self) -> Mapping[int, MountInfo]:
        """The mounts by their ids."""
        return {m.mount_id: m for m in self.mounts}

    @functools.cached_property
    def leads_to(self) -> Mapping[str, int]:
        """For each mount point the id of the mount that its path leads to."""
        return path_walk(self.mounts)

    @functools.cached_property
    def behind(self) -> frozenset[int]:
        """The ids of the mounts on whose way a FUSE or network file system or an automount stands."""
        return behind_servers(self.mounts)

    @functools.cached_property
    def _by_device(self) -> Mapping[str, list[MountInfo]]:
        found: dict[str, list[MountInfo]] = {}
        for mount in self.mounts:
            found.setdefault(mount.device, []).append(mount)
        return found
