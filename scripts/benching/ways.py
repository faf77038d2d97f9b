"""The ways to freeze and thaw that are compared. Each is asked the same, and answers with what that took.

virtagentd   guest-fsfreeze-freeze-list over its unix socket
qemu-ga      the same request, the same client
fsfreeze     util-linux, one mount after another, in a shell that runs already
C parallel   `still freeze parallel`: sync all in parallel, freeze all in parallel, without anyone to answer to
C per disk   `still freeze disk`: the same, but synced one after another before, as file systems on one disk
none         nothing is frozen: what the machine itself does to a writer meanwhile
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from harness import HarnessError, linux
from harness.filesystems import KINDS, LoopFs
from harness.namespace import Area
from harness.peer import QemuGa, Talk
from harness.processes import Child
from harness.rig import Rig
from harness.writer import Standing

PATIENCE = 120.0
_LOOP = 'while read -r how; do for m in "$@"; do fsfreeze "$how" "$m" || { echo failed; exit; }; done; echo ok; done'


class Took(NamedTuple):
    """Seconds from request to reply; `froze` is the CLOCK_MONOTONIC second when the first FIFREEZE began."""

    freeze: float
    thaw: float
    froze: float = 0.0


class Way(Protocol):
    """One of the ways; `name` is what the tables call it."""

    name: str

    def cycle(self) -> Took:
        """Freeze all, and thaw as soon as that is answered."""


class Agent:
    """virtagentd or qemu-ga, by the commands that both understand."""

    def __init__(self, name: str, talk: Talk, filesystems: Sequence[LoopFs], froze: Path | None = None) -> None:
        """`froze` is the file in which the agent's freeze worker says when it began to freeze (`timing`)."""
        self.name = name
        self._froze = froze
        self._talk = talk
        self._points = [str(fs) for fs in filesystems]

    def cycle(self) -> Took:
        begun = time.monotonic()
        frozen = self._talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": self._points})
        at = time.monotonic()
        thawed = self._talk.ask("guest-fsfreeze-thaw")
        ended = time.monotonic()
        # qemu-ga counts its calls of FITHAW, which it repeats.
        if frozen != {"return": len(self._points)} or thawed.get("return", 0) < len(self._points):
            raise HarnessError(f"{self.name}: {frozen}, {thawed}, for {len(self._points)}")
        froze = float(self._froze.read_text()) if self._froze else begun
        return Took(at - begun, ended - at, froze)


class Bare:
    """A process that takes lines."""

    def __init__(self, name: str, command: Sequence[str], area: Area, words: tuple[str, str], greets: bool) -> None:
        self.name = name
        self.child = Child(command, name)
        area.guard(self.child.pid)
        self._words = words
        if greets:
            self.child.line(20)

    def cycle(self) -> Took:
        begun = time.monotonic()
        froze = self._do(self._words[0])
        at = time.monotonic()
        self._do(self._words[1])
        return Took(at - begun, time.monotonic() - at, froze or begun)

    def _do(self, word: str) -> float:
        self.child.send(word)
        said, _, froze = self.child.line(PATIENCE).partition(" ")
        if said != "ok":
            raise HarnessError(f"{self.name} {word}: {said} {froze}")
        return float(froze or 0)


class Nothing:
    """Waits as long as a freeze and thaw would take."""

    name = "none"

    def cycle(self) -> Took:
        begun = time.monotonic()
        time.sleep(0.1)
        return Took(0.0, 0.0, begun)


class Ways:
    """All of them for some file systems; `close` ends what was started, but virtagentd, which the rig ends."""

    def __init__(self, bench: Bench, filesystems: Sequence[LoopFs], *, none: bool = False) -> None:
        area = bench.rig.area
        paths = [str(fs) for fs in filesystems]
        if wrong := [path for path in paths if not linux.is_under(path, str(area.root))]:
            raise HarnessError(f"{wrong} are not the bench's own")
        froze = area.fresh("froze")
        path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
        env = {"PYTHONPATH": path, "BENCH_FROZE": str(froze)}
        self.daemon = bench.rig.daemon([bench.rig.everywhere], module="benching.timing", env=env)
        self.peer = QemuGa(area)
        self._talks = [
            Talk(area, str(self.daemon.socket), PATIENCE),
            Talk(area, self.peer.socket, PATIENCE, ours=False),
        ]
        self.ours = Agent("virtagentd", self._talks[0], filesystems, froze)
        self.theirs = Agent("qemu-ga", self._talks[1], filesystems)
        self._bare = [
            Bare("fsfreeze", ["sh", "-c", _LOOP, "sh", *paths], area, ("-f", "-u"), greets=False),
            *(
                Bare(f"C {called}", [bench.still, "freeze", how, *paths], area, ("freeze", "thaw"), greets=True)
                for called, how in (("parallel", "parallel"), ("per disk", "disk"))
            ),
        ]
        self.all: list[Way] = [self.ours, self.theirs, *self._bare, *([Nothing()] if none else [])]

    def rounds(self, count: int, do: Callable[[Way], None]) -> None:
        """Do it `count` times with each in turn, and once before that does not count."""
        for number in range(count):
            shift = number % len(self.all)
            for way in self.all[shift:] + self.all[:shift]:
                do(way)

    def close(self) -> None:
        for talk in self._talks:
            talk.close()
        self.peer.close()
        for bare in self._bare:
            bare.child.close()
        self.daemon.stop()


class Writer(Child):
    """`still write` on a file system: like harness.writer, but what it measures is the disk and not the interpreter."""

    def __init__(self, bench: Bench, fs: LoopFs, size: int = 64, pause: float = 0.001, around: int = 1 << 20) -> None:
        command = [bench.still, "write", f"{fs}/writer", str(size), str(round(pause * 1e6)), str(around)]
        super().__init__(command, f"writer on {fs}")
        bench.rig.area.guard(self.pid)
        bench.rig.writers.append(self)
        self.line(20)

    def reset(self) -> None:
        """Begin to measure anew."""
        self.ask("reset", PATIENCE)

    def moving(self) -> Standing:
        """Wait until it has begun and ended a write; return how it fared."""
        return Standing(**self.ask("moving", PATIENCE))

    def gaps(self) -> list[tuple[float, float]]:
        """Return from when until when it stood still, each time for 2 ms or more."""
        return [(begun, ended) for begun, ended in self.ask("gaps", PATIENCE)]


class Bench:
    """What every part is given: file systems and daemons come from its rig, which is the part's alone."""

    def __init__(self, rig: Rig, rounds: int, rate: int, images: Path | None, notes: list[str], *, quick: bool) -> None:
        self.rig, self.rounds, self.rate, self.images, self.notes = rig, rounds, rate, images, notes
        self.quick = quick
        self.disk = disk_of(rate, images)
        self.kinds: Sequence[str] = KINDS
        self.still = still(rig.area)

    def note(self, text: str) -> None:
        """Have it said below the tables, once."""
        if text not in self.notes:
            self.notes.append(text)


def disk_of(rate: int, images: Path | None) -> str:
    """Return what the tables add to their names where the disk is not the smooth one of the usual rate."""
    if images:
        return ", on a real disk"
    return "" if rate else ", on a disk as fast as memory"


def still(area: Area) -> str:
    """Return where the program is that `compile_still` makes."""
    return str(area.root / "still")


def compile_still(area: Area) -> None:
    """Make `still`; raises CalledProcessError."""
    source = Path(__file__).parent / "still.c"
    subprocess.run(["cc", "-O2", "-pthread", "-o", still(area), str(source)], check=True)
