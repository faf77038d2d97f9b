"""A guest in memory: file systems that are frozen or not, and workers that freeze and thaw them step by step.

What the kernel does is as in the design's table of facts: SIGKILL does not stop a FIFREEZE that is under way, it takes
effect later, at the latest just before the process ends; a FITHAW meanwhile waits for it, or finds nothing frozen and
answers EINVAL. Each worker offers its next `actions`; what it says goes into a pipe that is delivered later.
"""

from __future__ import annotations

import errno
from collections import deque

from virtagent.agent.api.errors import Code
from virtagent.agent.worker import messages

from .drive import Drive, plan_of

Action = tuple[str, int]


class Guest:
    """The file systems. `issued` has the FIFREEZEs that are under way: mount to worker."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.frozen: set[int] = set()
        self.issued: dict[int, int] = {}

    @property
    def all_frozen(self) -> bool:
        """Whether every file system is frozen."""
        return len(self.frozen) == self.count


class Process:
    """A worker: what it has said and not been heard, and what it did to each file system."""

    def __init__(self, drive: Drive, guest: Guest, number: int) -> None:
        self.drive = drive
        self.guest = guest
        self.number = number
        self.phase = "new"
        self.pipe: deque[messages.Report] = deque()
        self.mounts: dict[int, str] = {}

    def actions(self) -> list[Action]:
        """Return what it may do next."""
        raise NotImplementedError

    def act(self, action: Action) -> None:
        """Do it."""
        raise NotImplementedError

    def say(self, *reports: messages.Report) -> None:
        """Write to the report pipe."""
        self.pipe.extend(reports)

    def at(self, *states: str) -> list[int]:
        """Return the mounts in these states."""
        return [mount for mount, state in self.mounts.items() if state in states]

    def deliver(self) -> None:
        """Have the supervisor read one message."""
        self.drive.report(self.number, self.pipe.popleft())

    def end(self, signal: int, take_effect: bool) -> None:
        """End, and be reaped: calls under way take effect just before it, or not; what was said is read first."""
        for mount in [m for m, worker in self.guest.issued.items() if worker == self.number]:
            del self.guest.issued[mount]
            if take_effect:
                self.guest.frozen.add(mount)
        if take_effect:
            self.guest.frozen.difference_update(self.at("thawing"))
        while self.pipe:
            self.deliver()
        self.drive.exit(self.number, signal)

    def fithaw(self, mount: int, refused: bool) -> None:
        """Issue FITHAW and report what came of it."""
        if refused:
            self.mounts[mount] = "failed"
            self.say(messages.Step(mount, "failed", errno.EIO, "FITHAW: EIO"))
            return
        number = 0 if mount in self.guest.frozen else errno.EINVAL
        self.guest.frozen.discard(mount)
        self.mounts[mount] = "thawed"
        self.say(messages.Step(mount, "thawed", number))


class Freezer(Process):
    """The freeze worker."""

    def __init__(self, drive: Drive, guest: Guest, number: int) -> None:
        super().__init__(drive, guest, number)
        self.mounts = dict.fromkeys(range(guest.count), "idle")
        self.reason = ""
        self.until = 0.0
        self._heard = 0

    def _told(self) -> list[messages.Control]:
        return [message for worker, message in self.drive.told if worker == self.number][self._heard :]

    def actions(self) -> list[Action]:
        """Return what it may do next."""
        match self.phase:
            case "new":
                return [("start", 0)]
            case "planned":
                return [("sync", 0)]
            case "synced":
                return [("go on", 0)] if self._told() else []
            case "freezing":
                found = [("announce", i) for i in self.at("idle")] + [("tell", i) for i in self.at("effective")]
                found += [(what, i) for what in ("effect", "refuse") for i in self.at("announced")]
                if not self.at("idle", "announced", "effective", "failed"):
                    found.append(("hold", 0))
                return found + ([("give up", 0)] if self.at("failed") else [])
            case "holding":
                found = [("sigterm", 0)]
                if self.drive.now >= self.until:
                    return [*found, ("expire", 0)]
                return found + ([("obey", 0)] if self._told() else [])
            case "ending":
                found = [("effect", i) for i in self.at("announced")]
                found += [("begin", i) for i in self.at("effective", "frozen")]
                found += [(what, i) for what in ("fithaw", "eio") for i in self.at("thawing")]
                return found or [("finish", 0)]
            case "done":
                return [("exit", 0)]
        raise AssertionError(self.phase)

    def act(self, action: Action) -> None:
        """Do it."""
        what, mount = action
        match what:
            case "start":
                plan = plan_of(self.guest.count).dump()
                self.say(messages.Started(1), messages.Progress("plan"), messages.Plan(plan))
                self.phase = "planned"
            case "sync":
                self.say(messages.Progress("sync", 1), messages.Synced())
                self.phase = "synced"
            case "go on":
                self._heard += 1
                self.say(messages.Progress("freeze"))
                self.phase = "freezing"
            case "announce":
                self.mounts[mount] = "announced"
                self.guest.issued[mount] = self.number
                self.say(messages.Step(mount, "freezing"))
            case "effect":
                self.mounts[mount] = "effective"
                del self.guest.issued[mount]
                self.guest.frozen.add(mount)
            case "refuse":
                self.mounts[mount] = "failed"
                del self.guest.issued[mount]
                self.say(messages.Step(mount, "failed", errno.EIO, "FIFREEZE: EIO"))
            case "tell":
                self.mounts[mount] = "frozen"
                self.say(messages.Step(mount, "frozen"))
            case "hold":
                limit = self.drive.spawned[self.number].args["options"].hold_limit
                self.until = self.drive.now + limit
                self.say(messages.Frozen(self.guest.count, self.drive.now, self.until))
                self.phase = "holding"
            case "obey":
                message = self._told()[0]
                self._heard += 1
                if isinstance(message, messages.Hold):
                    self.until = message.until
                    self.say(messages.Held(message.until))
                else:
                    self._end("")
            case "give up" | "expire" | "sigterm":
                self._end(what)
            case "begin":
                self.mounts[mount] = "thawing"
                self.say(messages.Step(mount, "thawing"))
            case "fithaw" | "eio":
                self.fithaw(mount, what == "eio")
            case "finish":
                failed = self.reason or self.at("failed")
                self.say(
                    messages.Failed(Code.FREEZE_FAILED, self.reason) if failed else messages.Done(self.guest.count)
                )
                self.phase = "done"
            case "exit":
                self.end(0, take_effect=False)

    def _end(self, reason: str) -> None:
        self.reason = reason
        self.phase = "ending"
        self.say(messages.Thawing(reason, self.drive.now))


class Thawer(Process):
    """A thaw worker."""

    def __init__(self, drive: Drive, guest: Guest, number: int) -> None:
        super().__init__(drive, guest, number)
        self.mounts = dict.fromkeys(drive.spawned[number].args["mounts"], "idle")

    def actions(self) -> list[Action]:
        """Return what it may do next; FITHAW may wait for a FIFREEZE that is under way, or not."""
        match self.phase:
            case "new":
                return [("start", 0)]
            case "done":
                return [("exit", 0)]
        found = [("begin", i) for i in self.at("idle")]
        found += [(what, i) for what in ("fithaw", "eio") for i in self.at("thawing")]
        return found or ([] if self.at("idle", "thawing") else [("finish", 0)])

    def act(self, action: Action) -> None:
        """Do it."""
        what, mount = action
        match what:
            case "start":
                self.say(messages.Started(1))
                self.phase = "thawing"
            case "begin":
                self.mounts[mount] = "thawing"
                self.say(messages.Step(mount, "thawing"))
            case "fithaw" | "eio":
                self.fithaw(mount, what == "eio")
            case "finish":
                bad = self.at("failed")
                self.say(messages.Failed(Code.FAILED, "FITHAW: EIO") if bad else messages.Done(len(self.mounts)))
                self.phase = "done"
            case "exit":
                self.end(0, take_effect=False)
