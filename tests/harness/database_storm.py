"""Storms over real databases: any process dies or stops at any step of a freeze with writers, servers as well.

Sessions insert at full speed all the time. Afterwards nothing may be left set in a server, each must take a commit
again, hooks must be paired, and an image whose freeze was told held must have every commit that was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from . import HarnessError, databases
from .daemon import Daemon
from .databases import Server
from .hooks import Hooks
from .hosts import Asking, call, code_of
from .processes import until
from .questions import unwell
from .rig import Rig
from .serving import INNODB, lost_in, serve
from .tally import Tally

BOUND = 40.0  # seconds from the last disturbance until every application is free; an undo is tried again after 1, 2, 4
HOLD = 6.0
OPTIONS = (
    *(
        "--plan-limit",
        "5",
        "--prepare-limit",
        "10",
        "--sync-limit",
        "10",
        "--quiesce-limit",
        "4",
        "--freeze-limit",
        "5",
    ),
    *("--confirm-limit", "2", "--hold-limit", str(HOLD), "--hold-limit-max", "8", "--thaw-limit", "2"),
    *("--release-limit", "3", "--exit-grace", "0.5", "--kill-grace", "0.2"),
)
TROUBLE = (TimeoutError, AssertionError, OSError, HarnessError, subprocess.SubprocessError, psutil.Error)
FLUSH = "innodb_flush_log_at_trx_commit"

_WRITER = ("Started", "Acted prepare", "Acted quiesce", "Acted confirm", "Acted release", "Done")
_FREEZE = ("Plan", "Synced", "Step 0 freezing", "Step 1 frozen", "Frozen", "Thawing", "Step 0 thawed", "Done")
POINTS = (
    *(f"writer {said}" for said in _WRITER),
    *(f"supervisor writer {said}" for said in (*_WRITER, "exit")),
    *(f"va.fsfreeze {said}" for said in _FREEZE),
    *(f"supervisor va.fsfreeze {said}" for said in ("Frozen", "exit")),
    *("unlatch Started", "unlatch Done", "supervisor unlatch Done", "supervisor asked va.fsthaw"),
)
ACTS = (
    *("kill:writer", "kill:va.fsfreeze", "kill:supervisor", "stop:writer", "stop:supervisor", "stop:va.fsfreeze"),
    *("kill:supervisor,kill:va.fsfreeze", "kill:supervisor,kill:writer", "kill:va.fsfreeze,kill:writer"),
    "kill:supervisor,kill:va.fsfreeze,kill:writer",
)
_WHO = ("supervisor", "keeper", "writer", "writer", "client", "client", "server")


class Load:
    """A server on a file system of its own, and a session that inserts; `durable`: without its writer, too."""

    def __init__(
        self, rig: Rig, servers: list[Server], kind: type[Server], typed: str, options: list[str], setup: str
    ) -> None:
        self.kind, self.typed, self.options = kind, typed, options
        self.server, self.fs = serve(rig, servers, kind, options, setup)
        self.durable = f"--{FLUSH.replace('_', '-')}=0" not in options
        self.acknowledged: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError, ValueError):
                self.server.insert(self._over, self.acknowledged)
            self._over.wait(0.05)  # the server is down

    def file(self) -> str:
        """Return the file that makes it a writer."""
        where = self.server.run if self.typed == "postgresql" else f"{self.server.run}/s"
        no_defaults = "client-options --no-defaults\n" if self.typed == "mariadb" else ""
        return f"type {self.typed}\nsocket {where}\n{no_defaults}"

    def kill(self) -> None:
        """Kill the server; it ends when nothing of it is in the kernel any more."""
        assert self.server.process is not None
        self.server.process.send_signal(self.server.ended_by)

    def back(self) -> None:
        """Have the server run: let go if it is stopped, started again if it is dead."""
        process = self.server.process
        assert process is not None
        process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            self.server.start()

    def goes_on(self) -> None:
        """Wait until it has acknowledged one more."""
        before = len(self.acknowledged)
        until(lambda: len(self.acknowledged) > before, BOUND, f"{self.server.name} takes commits again")

    def left_set(self) -> str:
        """Return what is not as it was before, "" if all is."""
        if isinstance(self.server, databases.MariaDb):
            now = self.server.ask(f"select @@global.{FLUSH};").strip()
            wanted = self.options[0].rpartition("=")[2]
            return "" if now == wanted else f"{FLUSH} is {now}, it was {wanted}"
        return ""

    def close(self) -> None:
        self._over.set()
        self.server.stop()
        self._thread.join(60)


class World:
    """PostgreSQL, MariaDB and Redis, each on a file system of its own, and a hook that notes what it is called with."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self._servers: list[Server] = []
        flush = [f"--{FLUSH.replace('_', '-')}={(seed + 2) % 3}", "--innodb-log-file-size=16M"]
        innodb = f"create database t;\n{INNODB}"
        self.loads: list[Load] = []
        for kind, typed, options, setup in (
            (databases.PostgreSql, "postgresql", [], "create table n (n int primary key);"),
            (databases.MariaDb, "mariadb", flush, innodb),
            (databases.Redis, "redis", [], ""),
        ):
            self.loads.append(Load(rig, self._servers, kind, typed, list(options), setup))  # type: ignore[arg-type]
        folder = rig.area.fresh("hook")
        folder.mkdir()
        self._calls = folder / "calls"
        self.hook = folder / "hook"
        self.hook.write_text(f"#!/bin/sh\necho $1 >>{self._calls}\n")
        self.hook.chmod(0o755)
        self.conf = rig.area.fresh("writers.d")
        self.conf.mkdir(mode=0o700)
        for load in self.loads:
            (self.conf / f"{load.typed}.conf").write_text(load.file())

    def calls(self) -> list[str]:
        """Return what the hook was called with, and forget it."""
        found = self._calls.read_text().split() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """End all servers."""
        for load in self.loads:
            load.close()


class Freeze(Asking):
    """A host that freezes; `sure` is how many commits each server had acknowledged when the host knew."""

    def __init__(self, world: World, daemon: Daemon, choice: str) -> None:
        self._loads = world.loads
        self.sure: list[int] = []
        super().__init__(daemon, "va.fsfreeze", {"writers": choice})

    def note(self, answer: Any) -> None:
        """Count them."""
        if isinstance(answer, int):
            self.sure = [len(load.acknowledged) for load in self._loads]


@dataclass
class Storm:
    """One freeze, what is done to it, and whether all promises were kept."""

    world: World
    tally: Tally
    seed: int
    done: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Do what the seed says, then ask what must be true."""
        self.tally.storms += 1
        self._hooks = Hooks(self.world.rig.area)
        self._daemons = [self._start()]
        self._thaws: list[Asking] = []
        self._images: list[Path] = []
        try:
            self._disturb(random.Random(self.seed))
        except TROUBLE as error:
            self._violation(f"{type(error).__name__}: {error}")
        try:
            self._settle()
        except TROUBLE as error:
            self._violation(f"{type(error).__name__}: {error}")
        self._end()

    @property
    def _daemon(self) -> Daemon:
        return self._daemons[-1]

    def _violation(self, text: str) -> None:
        self.violations.append(text)

    def _start(self, state_dir: Path | None = None) -> Daemon:
        every = [load.fs for load in self.world.loads]
        options = [*OPTIONS, "--writers-dir", str(self.world.conf), "--hook", str(self.world.hook)]
        return self.world.rig.daemon(every, options, module="harness.hooked", env=self._hooks.env, state_dir=state_dir)

    # -- what is done

    def _disturb(self, r: random.Random) -> None:
        if r.random() < 0.6:
            point, acts = f"{r.choice(('before', 'after'))} {r.choice(POINTS)}", r.choice(ACTS)
            self._do(f"arm {point}: {acts}")
            self._hooks.at(point, *acts.split(","))
        choice = r.choice(("all", "all", "all", "try"))
        self._do(f"freeze, writers {choice}")
        self._freeze = Freeze(self.world, self._daemon, choice)
        kinds = ["wait frozen", "signal", "wait", "copy", "thaw"]
        for kind in r.choices(kinds, (3, 6, 3, 1, 1), k=r.randint(2, 5)):
            match kind:
                case "wait frozen":
                    self._freeze.join(4)
                case "wait":
                    self._freeze.join(r.choice((0.02, 0.1, 0.4)))
                case "copy":
                    self._freeze.join(4)
                    self._copy()
                case "thaw":
                    self._thaw()
                case _:
                    self._signal(r.choice(_WHO), r.choice(("SIGKILL", "SIGKILL", "SIGSTOP")), r)
        if r.random() < 0.25:
            self._freeze.join(4)
            self._copy()
        self._thaw()

    def _do(self, what: str) -> None:
        self.done.append(what)

    def _thaw(self) -> None:
        self._do("thaw")
        self._thaws.append(Asking(self._daemon, "va.fsthaw"))

    def _copy(self) -> None:
        """Copy the disks, once, while they are held."""
        if self._images or self._thaws or not self._freeze.sure:
            return
        self._do("copy")
        for load in self.world.loads:
            copy = self.world.rig.area.fresh("image")
            subprocess.run(["cp", "--sparse=always", str(load.fs.image), str(copy)], check=True)
            self._images.append(copy)

    def _signal(self, who: str, name: str, r: random.Random) -> None:
        number = signal.Signals[name]
        if who == "server":
            load = r.choice(self.world.loads)
            self._do(f"{name} to {load.server.name}")
            self.tally.faults[f"{name} to {load.server.name}"] += 1
            if number == signal.SIGKILL:
                load.kill()
            elif load.server.process is not None:
                load.server.process.send_signal(number)
            return
        found = self._find(who)
        if not found:
            return
        self._do(f"{name} to the {who}")
        self.tally.faults[f"{name} to the {who}"] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(r.choice(sorted(found)), number)

    def _find(self, who: str) -> list[int]:
        if who == "supervisor":
            return [self._daemon.pid] if self._daemon.is_running() else []
        titles = self._daemon.titles()
        words = {"keeper": (": keeper ", " va.fsfreeze "), "writer": (": writer ",)}.get(who)
        if words is not None:
            return [pid for pid, title in titles.items() if any(word in title for word in words)]
        writers = {pid for pid, title in titles.items() if ": writer " in title}
        return [child.pid for child in self._daemon.children() if child.ppid() in writers]

    # -- afterwards

    def _settle(self) -> None:
        if not self._hooks.disarm():
            self.tally.faults["at a message"] += 1
        begun = time.monotonic()
        self._continue()
        until(lambda: self._continue() or not self._hooks.under_way(), BOUND, "what was ordered is done")
        for load in self.world.loads:
            load.server.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        self._freeze.join(BOUND)
        for thaw in self._thaws:
            thaw.join(BOUND)
        self._restart()
        last = self._calm()
        for load in self.world.loads:
            load.back()
        for load in self.world.loads:
            load.goes_on()
            if wrong := load.left_set():
                self._violation(wrong)
        self.tally.worst = max(self.tally.worst, time.monotonic() - begun)
        calls = self.world.calls()
        if calls not in ([], ["freeze", "thaw"]):
            self._violation(f"the hook was called with {calls}")
        self._look_for_rests()
        self._freeze_calmly()
        self._judge(last)

    def _continue(self) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal.SIGCONT)

    def _restart(self) -> None:
        if not self._daemon.is_running():
            self._do("restart")
            self._daemons.append(self._start(self._daemon.state_dir))

    def _calm(self) -> dict[str, Any]:
        """Thaw until there is nothing to thaw, and all is let go; return how the freeze ended."""
        deadline = time.monotonic() + BOUND
        while True:
            answer = call(self._daemon, "va.fsthaw", timeout=BOUND)
            self._restart()
            record = self._daemon.status()
            stuck = [writer["name"] for writer in record["writers"] if writer["state"] == "stuck"]
            if record["state"] == "THAWED" and not record["phase"] and not stuck and answer == 0:
                return dict(record["last"] or {})
            if time.monotonic() > deadline:
                raise TimeoutError(f"not let go within {BOUND:g} s: {answer} {record}")
            call(self._daemon, "va.fsstatus", {"since": record["seq"], "wait": 0.2})
            for load in self.world.loads:  # what is stuck may wait for a server that was killed
                load.back()

    def _look_for_rests(self) -> None:
        until(lambda: not self._daemon.children(), BOUND, "no worker is left")
        records = [path.name for path in (self._daemon.state_dir / "writers").glob("*") if path.suffix != ".lock"]
        if records:
            self._violation(f"left on record: {records}")
        for load in self.world.loads:
            if load.fs.is_frozen():
                self._violation(f"{load.fs} is frozen")
                load.fs.thaw()

    def _freeze_calmly(self) -> None:
        number = len(self.world.loads)
        answers = [call(self._daemon, "va.fsfreeze"), call(self._daemon, "va.fsthaw")]
        if answers != [number, number] or self.world.calls() != ["freeze", "thaw"]:
            self._violation(f"undisturbed, va.fsfreeze and va.fsthaw answer {answers}")

    def _judge(self, last: dict[str, Any]) -> None:
        """If the host was told that the freeze held, the image must have what was acknowledged before."""
        answers = [thaw.answer for thaw in self._thaws]
        self.tally.freezes += bool(self._freeze.sure)
        held = bool(self._freeze.sure) and answers[:1] == [len(self.world.loads)] and len(self._daemons) == 1
        self.tally.told += any(code_of(answer) is not None for answer in answers)
        if not held:
            self.tally.broken += bool(self._freeze.sure)
        else:
            self.tally.held += 1
        for load, image, sure in zip(self.world.loads, self._images, self._freeze.sure, strict=False):
            if held and (load.durable or last.get("consistency") == "application"):
                lost = lost_in(self.world.rig, load.kind, load.options, image, load.acknowledged[:sure])
                self.tally.faults["images started a server from"] += 1
                if lost:
                    self._violation(f"{lost} of {sure} commits of {load.server.name} are not in the image: {last}")
            image.unlink(missing_ok=True)

    def _end(self) -> None:
        for daemon in self._daemons:
            self.violations += daemon.close()
            self.logs.append(daemon.log())
            self.violations += unwell(daemon.log())
            self.world.rig.daemons.remove(daemon)
        for path in self._images:
            path.unlink(missing_ok=True)
        self.tally.violations += self.violations
