"""What one test uses, made on demand and taken down in the one order that cannot hang, with a search for leaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from . import HarnessError, linux
from .daemon import Daemon, process_line
from .filesystems import LoopFs
from .namespace import Area
from .processes import process_state, until, wait_gone
from .stall import Stall
from .writer import Writer

EXPEDITED_LEFT = "expedited: rcu_expedited is left"
NEIGHBOUR_SECONDS = 20


@dataclass(frozen=True)
class Footprint:
    """What must be the same before and after."""

    loops: tuple[str, ...]
    mounts: tuple[str, ...]
    processes: tuple[str, ...]
    fds: tuple[str, ...]
    expedited: tuple[str, ...] = ()

    def difference(self, later: Footprint) -> list[str]:
        found = []
        for name in ("loops", "mounts", "processes", "fds", "expedited"):
            before, after = list(getattr(self, name)), list(getattr(later, name))
            for one in before:
                if one in after:
                    after.remove(one)
                elif name != "expedited":  # of the whole machine: someone else had set it, and put it back
                    found.append(f"{name}: {one} is gone")
            found += [f"{name}: {one} is left" for one in after]
        return found


class Rig:
    """File systems, stalls, daemons and writers of one test. `close` takes all down and returns what was wrong."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self.filesystems: list[LoopFs] = []
        self.stalls: list[Stall] = []
        self.daemons: list[Daemon] = []
        self.writers: list[Writer] = []
        self._before = self.footprint()
        self._closed = False

    @property
    def everywhere(self) -> str:
        """The include glob for every file system of this test."""
        return self.area.everywhere

    def fs(
        self, kind: str, size: int = 0, outer: LoopFs | None = None, name: str = "", folder: Path | None = None
    ) -> LoopFs:
        """Make and mount a file system; `outer`: its image lies on that one, in `folder` if that is given.

        `name` may hold any characters.
        """
        made = LoopFs(self.area, kind, size, outer, name, folder)
        self.filesystems.append(made)
        return made

    def stall(self, kind: str, size: int = 0) -> Stall:
        """Make a file system whose disk can stall; `.stall()` stops it, `.release()` lets it go on."""
        made = Stall(self.fs, kind, size)
        self.stalls.append(made)
        return made

    def daemon(
        self,
        include: Iterable[LoopFs | str | os.PathLike[str]] = (),
        options: Sequence[str] = (),
        *,
        module: str = "virtagent.supervisor.main",
        program: str = "",
        env: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        wait_ready: bool = True,
        stderr: int | None = None,
    ) -> Daemon:
        """Start virtagentd and wait until it is ready."""
        made = Daemon(
            self.area,
            include,
            options,
            module=module,
            program=program,
            env=env,
            state_dir=state_dir,
            wait_ready=wait_ready,
            stderr=stderr,
        )
        self.daemons.append(made)
        return made

    def writer(self, fs: LoopFs | str | os.PathLike[str]) -> Writer:
        """Start a writer on a file system."""
        made = Writer(str(fs))
        self.area.guard(made.pid)
        self.writers.append(made)
        return made

    def footprint(self, daemon: Daemon | None = None) -> Footprint:
        """Return what is there now: loop devices and mounts of the area, children of this process.

        With a daemon: its descriptors and descendants, too.
        """
        area = str(self.area.root)
        mine = [p.pid for p in psutil.Process().children() if p.pid != self.area.guardian_pid]
        processes = [f"{pid} {_name(pid)}" for pid in mine if process_state(pid) not in ("", "Z")]
        if daemon:
            processes += [f"{child.pid} {_name(child.pid)}" for child in daemon.children()]
        return Footprint(
            tuple(sorted(linux.loop_devices(area))),
            tuple(sorted(m.mountpoint for m in linux.mounts_under(area))),
            tuple(sorted(processes)),
            tuple(daemon.fds()) if daemon else (),
            ("rcu_expedited",) if linux.expedited() == "1" else (),
        )

    def assert_unchanged(self, before: Footprint, daemon: Daemon | None = None, timeout: float = 3) -> None:
        """Fail with the list of what is there now and was not, or the other way round.

        What a process leaves goes a moment after the answer that it gave, so this waits for it.
        """

        def left() -> list[str]:
            return before.difference(self.footprint(daemon))

        try:
            until(lambda: not set(left()) - {EXPEDITED_LEFT}, timeout, "the same as before")
            # The whole machine has one such switch: another agent on it may freeze just now, and puts it back.
            until(lambda: not left(), NEIGHBOUR_SECONDS, "the same as before")
        except TimeoutError:
            raise AssertionError("\n".join(left())) from None

    def logs(self) -> list[tuple[str, str]]:
        """Return a heading and the text of each daemon's log."""
        return [(f"virtagentd {daemon.pid}", daemon.log()) for daemon in self.daemons]

    def close(self) -> list[str]:
        """Take everything down; return one line for each thing that was not as it should be."""
        wrong: list[str] = []
        if self._closed:
            return wrong
        self._closed = True

        def step(do: Callable[[], object], what: str) -> None:
            try:
                do()
            except Exception as error:  # noqa: BLE001 - whatever happens, the next step must follow
                wrong.append(f"{what}: {type(error).__name__} {error}")

        for stall in self.stalls:
            step(stall.release, f"releasing {stall.fs}")
        for daemon in self.daemons:
            step(lambda daemon=daemon: wrong.extend(daemon.close()), f"ending virtagentd {daemon.pid}")
        outermost_first = sorted(self.filesystems, key=lambda fs: fs.depth)
        for fs in outermost_first:
            step(fs.thaw, f"thawing {fs}")
        for daemon in self.daemons:
            step(lambda daemon=daemon: wrong.extend(map(process_line, daemon.end_orphans())), "reaping")
        for writer in self.writers:
            step(writer.close, writer.name)
        for fs in outermost_first:
            step(fs.end_probes, f"ending the probes of {fs}")
        for fs in outermost_first:  # a process killed in FIFREEZE left it frozen when it ended
            step(fs.thaw, f"thawing {fs}")
        for fs in reversed(outermost_first):
            step(fs.unmount, f"unmounting {fs}")
            step(fs.detach, f"detaching {fs}")
        step(self._reap_orphans, "reaping")
        step(lambda: self.assert_unchanged(self._before), "left behind")
        return wrong

    def _reap_orphans(self) -> None:
        """Reap what became this process's child when its parent died (see `linux.adopt_orphans`)."""
        zombies = [p.pid for p in psutil.Process().children() if process_state(p.pid) == "Z"]
        wait_gone([pid for pid in zombies if pid != self.area.guardian_pid], 1)


def closed(rig: Rig) -> None:
    """Close the rig; raise HarnessError if anything was wrong."""
    if wrong := rig.close():
        raise HarnessError("\n".join(wrong))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
