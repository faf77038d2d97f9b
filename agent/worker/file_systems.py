"""The file systems that a script works on: their states, the calls in flight, what lies on what, and their thaw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..api import records
from ..api.states import MountState
from ..api.structs import Struct, field
from ..api.text import brief
from . import steps
from .steps import Event, Operation, Result, Script, Timeout

DESCRIBE_AFTER = 0.05  # seconds without an event


class FileSystem(Struct):
    """What the script knows about one planned file system.

    `hosts` are those that it lies on, as in the plan or learnt since. `froze`: this worker froze it, perhaps thawed it
    since. `refused`: its last FITHAW failed, so it is still frozen.
    """

    index: int
    mount: records.Mount
    state: MountState
    hosts: set[int] = field(default_factory=set)
    froze: bool = False
    refused: bool = False
    error: int = 0
    words: str = ""


class FileSystems:
    """All file systems of a script, and which of them have a call in flight."""

    def __init__(self, planned: Iterable[tuple[int, records.Mount]], state: MountState = MountState.PENDING) -> None:
        self._all = {index: FileSystem(index, mount, state, {*mount.hosts}) for index, mount in planned}
        self.busy: set[int] = set()
        """The indices of those on which a call is in flight."""

    def __getitem__(self, index: int) -> FileSystem:
        return self._all[index]

    def all(self) -> list[FileSystem]:
        """Return all of them in the order of the plan."""
        return list(self._all.values())

    def in_state(self, *states: MountState) -> list[FileSystem]:
        """Return those that are in one of the states."""
        return [fs for fs in self._all.values() if fs.state in states]

    def refused(self) -> list[FileSystem]:
        """Return those whose FITHAW failed: they are still frozen."""
        return [fs for fs in self._all.values() if fs.refused]

    @property
    def thawed(self) -> bool:
        """Whether none of them is frozen, or about to be."""
        moving = self.in_state(MountState.FREEZING, MountState.FROZEN, MountState.THAWING)
        return not (moving or self.refused())

    def at_work(self) -> list[FileSystem]:
        """Return those on which a call is in flight, in the order of the plan."""
        return [self._all[index] for index in sorted(self.busy)]

    def levels(self, those: Iterable[FileSystem]) -> list[list[FileSystem]]:
        """Return these in the order of freezing: what lies on another one comes in an earlier list."""
        level = {fs.index: 0 for fs in those}
        # What lies on another one has that one and all its hosts: so from the most hosts to the fewest is inside out.
        for index in sorted(level, key=lambda index: -len(self._all[index].hosts)):
            for host in self._all[index].hosts & level.keys():
                level[host] = max(level[host], level[index] + 1)
        found: list[list[FileSystem]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
        for index, at in level.items():
            found[at].append(self._all[index])
        return found

    def learn(self, index: int, hosts: Iterable[int]) -> set[int]:
        """Take note that one lies on others; return those of which that is new, and closes no circle."""
        lying = self._all[index]
        new = {host for host in hosts if host != index and index not in self._all[host].hosts} - lying.hosts
        below = new.union(*(self._all[host].hosts for host in new))
        for fs in self._all.values():
            if fs is lying or index in fs.hosts:
                fs.hosts |= below
        return new

    def start(self, *, obeys: bool) -> Script[None]:
        """Give them to whoever drives the script."""
        yield steps.Start(tuple((fs.index, fs.mount) for fs in self._all.values()), obeys)

    def announce(self, those: Sequence[FileSystem], operation: Operation) -> Script[None]:
        """Report that a call on these is about to begin."""
        if those:
            yield steps.Post(tuple(steps.announced(fs.index, operation) for fs in those))

    def order(self, those: Sequence[FileSystem], operation: Operation) -> Script[None]:
        """Begin a call on all of these simultaneously; they must be idle."""
        for fs in those:
            fs.state = operation.during
            self.busy.add(fs.index)
        if those:
            yield steps.Order(tuple(fs.index for fs in those), operation)

    def wait(self, until: float = math.inf, *, taken: bool = False) -> Script[Event]:
        """Return the next event, after noting what it says about a file system."""
        event: Event = yield steps.Wait(until, taken)
        if isinstance(event, Result):
            fs = self._all[event.mount]
            self.busy.discard(fs.index)
            fs.state, fs.words = steps.judge(event.operation, event.error, event.said, event.failed)
            fs.error = event.error
            fs.froze |= event.operation is Operation.FREEZE and event.error == 0
            fs.refused = event.operation is Operation.THAW and fs.state is MountState.FAILED
        return event

    def with_short_queues(self, folder: str, number: int, script: Script[None]) -> Script[None]:
        """Run the script while the request queues of their disks are `number` long; 0: as they are.

        What they were is on record in `folder`.
        """
        if not number:
            return (yield from script)
        disks = {disk for fs in self._all.values() for disk in fs.mount.disks}
        yield steps.ShortenQueues(folder, tuple(sorted(disks)), number)
        try:
            yield from script
        except Exception:
            yield steps.LengthenQueues(ends=True)
            raise
        yield steps.LengthenQueues()

    def describe(self, what: str) -> Script[None]:
        """Show in the title what is in flight, and where."""
        at = [fs.mount.mountpoint for fs in self.at_work()]
        done = len(self._all) - len(at)
        where = f" {brief(at[0])}" + (f" +{len(at) - 1}" if len(at) > 1 else "") if at else ""
        yield steps.Title(f"{what}{where} {done}/{len(self._all)}")

    def thaw(self) -> Script[None]:
        """Thaw all that is frozen, outermost first, each as soon as what it lies on is thawed.

        Waits for every call in flight, and also thaws what a FIFREEZE in flight freezes. FITHAW of a file system whose
        host is frozen would block, since it writes the superblock: what lies on one whose FITHAW failed stays frozen.
        """
        yield steps.StopFreezing()
        while True:
            frozen = self.in_state(MountState.FROZEN)
            waiting = {fs.index for fs in (*frozen, *self.in_state(MountState.FREEZING, MountState.THAWING))}
            waiting |= {fs.index for fs in self.refused()}
            below = {host for index in waiting for host in self._all[index].hosts}
            free = [fs for fs in frozen if waiting.isdisjoint(fs.hosts)]
            yield from self.announce(free, Operation.THAW)
            yield from self.order(free, Operation.THAW)
            if not self.busy:
                return
            described = 0
            while self.busy:
                # The title shows those that hang: it is set when no more results come quickly, and delays no FITHAW.
                until = math.inf
                if len(self.busy) != described:
                    until = (yield steps.Now()) + DESCRIBE_AFTER
                match (yield from self.wait(until)):
                    case Result(index, operation) if operation is Operation.FREEZE or index in below:
                        break
                    case Timeout():
                        described = len(self.busy)
                        yield from self.describe("thawing")
