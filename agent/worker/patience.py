"""How long a FIFREEZE may make other file systems stand still, and what is learnt from it. Pure: no steps, no clock.

A FIFREEZE that has not returned after `seconds` is slow: its disk is, or it lies on one that is frozen already, in a
way that no device number tells. Nobody stands still because of it: what is frozen and does not lie on it is thawed, and
it is waited for with everything else running. What lies on it stays frozen, since the FITHAW of that would block. If it
returns just as a FITHAW has returned, it lies on one of those that were thawed then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..api.states import MountState
from .file_systems import FileSystem, FileSystems
from .steps import Operation, Result

THAW_SECONDS = 1.0  # in which the FITHAW of a file system that lies on nothing frozen must return
LEARN_SECONDS = 0.1  # between the return of a FITHAW and that of the FIFREEZE that waited for it
_STILL = (MountState.FROZEN, MountState.THAWING)


class Patience:
    """The times of one go at freezing: when each FIFREEZE began, and what it made stand still.

    `slow` are those that made others be thawed.
    """

    def __init__(self, mounts: FileSystems, seconds: float) -> None:
        """Be patient for that many seconds; 0 means without end."""
        self.slow: set[int] = set()
        self._mounts = mounts
        self._seconds = seconds or math.inf
        self._began: dict[int, float] = {}  # of the FIFREEZEs that have not returned; EBUSY that is tried again is none
        self._thawing: dict[int, float] = {}
        self._frozen_at: dict[int, float] = {}
        self._thawed_at: dict[int, float] = {}
        self._busy: set[int] = set()
        self._over = False

    def freezes(self, those: Iterable[FileSystem], now: float) -> None:
        """Take note that FIFREEZE begins on these."""
        self._over &= bool(self._began)
        for fs in those:
            self._began.setdefault(fs.index, now)

    def thaws(self, those: Iterable[FileSystem], now: float) -> None:
        """Take note that FITHAW begins on these."""
        self._thawing |= {fs.index: now for fs in those}

    def returned(self, result: Result) -> None:
        """Take note that one of these calls has returned."""
        if result.operation is Operation.THAW:
            self._thawing.pop(result.mount, None)
            self._thawed_at[result.mount] = result.at
        elif result.operation is Operation.FREEZE:
            self._began.pop(result.mount, None)
            if result.error == 0:
                self._frozen_at[result.mount] = result.at

    def tried_again(self, index: int) -> None:
        """Take note that someone else had it frozen: when it returns then tells nothing of what it lies on."""
        self._busy.add(index)

    @property
    def telling(self) -> list[int]:
        """The slow ones that hung in the kernel, so that there is something to be learnt of what they lie on."""
        return sorted(self.slow - self._busy)

    def since(self, index: int) -> float:
        """Return when the first attempt to freeze it began that has not come to an end."""
        return self._began[index]

    def due(self) -> float:
        """Return when to ask `tired` and `late` next."""
        due = min(self._thawing.values(), default=math.inf) + THAW_SECONDS
        if self._began and not self._over:
            return min(due, self._slow_at())
        return min([due, *(self._tired_at(fs) for fs in self._not_on_slow())])

    def late(self, now: float) -> list[FileSystem]:
        """Return those whose FITHAW should have returned by now."""
        return [self._mounts[index] for index, began in self._thawing.items() if now >= began + THAW_SECONDS]

    def tired(self, now: float) -> list[FileSystem]:
        """Return those to thaw now; what lies on them is named when these are thawed."""
        if not self._began or now < self._slow_at():
            return []
        self._over = True
        tired = [fs for fs in self._not_on_slow() if now >= self._tired_at(fs)]
        if tired:
            self.slow |= self._began.keys()
        those = {fs.index for fs in tired}.union(*(fs.hosts for fs in tired))
        frozen = {fs.index for fs in self._mounts.in_state(MountState.FROZEN)}
        return [self._mounts[index] for index in sorted(those & frozen) if frozen.isdisjoint(self._mounts[index].hosts)]

    def learnt(self, index: int) -> list[int]:
        """Return on which others this one lies, one of them at least, as the times tell."""
        at = self._frozen_at.get(index, math.inf)
        return sorted(other for other, thawed in self._thawed_at.items() if abs(at - thawed) <= LEARN_SECONDS)

    def _slow_at(self) -> float:
        return min(self._began.values()) + self._seconds

    def _tired_at(self, fs: FileSystem) -> float:
        """Return when it has stood still long enough for those that are slow: it may have been slow itself."""
        frozen_at = max(self._frozen_at.get(index, 0.0) for index in (fs.index, *fs.hosts))
        slow_at = self._slow_at()
        return frozen_at + self._seconds if frozen_at > slow_at else slow_at

    def _not_on_slow(self) -> list[FileSystem]:
        """Return what is frozen, lies on none that is slow, and waits for no FITHAW of what it lies on."""
        if not self._began:
            return []
        avoid = self._began.keys() | self._thawing.keys()
        return [fs for fs in self._mounts.in_state(MountState.FROZEN) if avoid.isdisjoint(fs.hosts)]
