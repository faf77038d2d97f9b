"""Storms: a seed's sequence of actions against a real daemon on real file systems, and what must be true afterwards.

What judges is not the daemon: a writer on each file system shows whether it was held without a break from the moment
that a host knew of the freeze until it asked to thaw (`verdict.py`). The same seed gives the same actions; when they
strike depends on the machine.

A `World` has the file systems; a `Storm` is one run on it, with a daemon of its own: `do` actions, then `settle`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable
from typing import Any

from virtagent.agent.api.errors import Code

from . import HarnessError, layouts, linux, verdict
from .actions import FILE_SYSTEMS, Action
from .daemon import Daemon, process_line
from .filesystems import MIB, LoopFs
from .hooks import Hooks
from .hosts import GONE, Asking, Vanishing, call, code_of
from .processes import Action as Helper
from .processes import process_state, until, wait_gone
from .questions import orphans, resting, unwell
from .rig import Rig
from .tally import Tally
from .writer import Writer

BOUND = 15.0  # seconds from the last disturbance until all is thawed and every call is answered
ANSWERS = 5.0  # seconds to the answer of a ping, on a machine that does a lot besides
AT_ONCE = 2.0  # seconds from the death of the supervisor until its keeper has thawed, on such a machine
GOES_DOWN = 5.0  # seconds from the order to kill or stop the supervisor until it is seen to be so
TROUBLE = (TimeoutError, AssertionError, OSError, HarnessError, subprocess.TimeoutExpired)
OPTIONS = (
    *("--plan-limit", "5", "--sync-limit", "5", "--freeze-limit", "5", "--thaw-limit", "1"),
    *("--hold-limit", "4", "--hold-limit-max", "8", "--exit-grace", "0.5", "--kill-grace", "0.2"),
)


class World:
    """ext4 with an ext4 on it, a btrfs, and one on a disk that can stall; a writer on each.

    With `odd_layouts` no path tells what lies on the first: an image in a folder that is covered since (or on an
    overlay, by the seed), and instead of the btrfs an ext4 whose journal is there.
    """

    def __init__(self, rig: Rig, seed: int = 0, *, odd_layouts: bool = False) -> None:
        self.rig = rig
        kind = ("xfs", "ext4")[seed % 2]
        outer = layouts.Underneath(rig, "ext4", 256 * MIB)
        self.stall = rig.stall(kind)
        if odd_layouts:
            image = (layouts.image_on_overlay, layouts.covered_image)[seed % 2]
            others = [image(rig, outer), layouts.with_journal_elsewhere(rig, outer)]
        else:
            others = [rig.fs("ext4", outer=outer), rig.fs("btrfs")]
        self.every: list[LoopFs] = [outer, *others, self.stall.fs]
        self.writers: list[Writer] = [rig.writer(fs) for fs in self.every]
        self._asking = threading.Lock()

    def counts(self) -> list[int]:
        """Return how many records each writer has written."""
        with self._asking:
            return [writer.report().writes for writer in self.writers]

    def wait_moving(self, until_then: float, but: Container[LoopFs] = ()) -> list[LoopFs]:
        """Wait until each has written again, at most until that second; return those that have not."""
        stuck = []
        with self._asking:
            for fs, writer in zip(self.every, self.writers, strict=True):
                if fs in but:
                    continue
                try:
                    writer.wait_moving(max(0.1, until_then - time.monotonic()))
                except TimeoutError:
                    stuck.append(fs)
        return stuck

    def mount_anew(self, fs: LoopFs) -> None:
        """Unmount and mount a file system that the kernel has made read-only."""
        number = self.every.index(fs)
        self.writers[number].close()
        self.rig.writers.remove(self.writers[number])
        fs.unmount()
        fs.mount()
        self.writers[number] = self.rig.writer(fs)


def is_read_only(fs: LoopFs) -> bool:
    """Tell whether the kernel has made the superblock read-only."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(
            line.split(" ")[4] == str(fs.path) and line.rsplit(" ", 1)[1].strip().split(",")[0] == "ro"
            for line in lines
        )


class Ask(Asking):
    """A host that waits for its answer; `counts` are the writers' when it knew of its freeze, or asked to thaw."""

    def __init__(self, world: World, daemon: Daemon, method: str, *params: Any, number: int = -1) -> None:
        self.world = world
        self.scope = [number] if number >= 0 else list(range(FILE_SYSTEMS))
        self.hold: float = params[0]["hold_limit"] if method == "va.fsfreeze" else 0.0
        self.counts: list[int] = world.counts() if method == "va.fsthaw" else []
        super().__init__(daemon, method, *params)

    def note(self, answer: Any) -> None:
        """Take the writers' counts once the host knows that all is frozen."""
        if self.method == "va.fsfreeze" and isinstance(answer, int):
            self.counts = self.world.counts()

    def said(self) -> verdict.Call:
        """Return what the judge needs of it."""
        answered = self.answer is not None
        return verdict.Call(
            self.method,
            self.sent_at,
            self.answered_at if answered else math.inf,
            self.answer if answered else GONE,
            params=self.params,
            counts=self.counts,
            scope=self.scope,
            hold=self.hold,
            daemon_pid=self.daemon_pid,
        )


class Storm:
    """One run: a daemon, what is done to it, and whether it kept its promises."""

    def __init__(self, world: World, tally: Tally) -> None:
        self.world, self.rig, self.tally = world, world.rig, tally
        self.hooks = Hooks(self.rig.area)
        self.done: list[Action] = []
        self.violations: list[str] = []
        self.logs: list[str] = []
        self._asks: list[Ask] = []
        self._vanished: list[verdict.Call] = []
        self._meddlings: list[verdict.Meddling] = []
        self._continued: list[float] = []
        self._disturbed = 0
        self._undo: list[tuple[int, Callable[[], object]]] = []
        self._played: set[int] = set()
        self._theirs: list[tuple[str, int, float, Helper | None]] = []
        self._thawing: list[Helper] = []
        self._dead: list[Daemon] = []
        self._shot = self._terminated = self._killed = False
        self._pids: dict[str, int] = {}
        self._armed = ""
        self._stall_ordered = False
        self._to_fail: Counter[str] = Counter()
        self._daemon = self._start()
        tally.storms += 1

    def _start(self, **more: Any) -> Daemon:
        daemon = self.rig.daemon(self.world.every, OPTIONS, module="harness.hooked", env=self.hooks.env, **more)
        self._shot = self._terminated = False
        return daemon

    # -- what is done

    def do(self, action: Action) -> None:
        """Do it; what does not apply does nothing."""
        self.done.append(action)
        doing: Callable[..., str | None] = getattr(self, "_" + action.kind.replace(" ", "_"))
        fault = doing(*action.args)
        if fault:
            self.tally.faults[fault] += 1
            self._disturbed += 1

    def _ask(self, method: str, *params: Any, number: int = -1) -> Ask:
        ask = Ask(self.world, self._daemon, method, *params, number=number)
        self._asks.append(ask)
        return ask

    def _waiting(self) -> list[Ask]:
        return [ask for ask in self._asks if ask.answer is None]

    def _freeze(self, hold: float, limit: float, wait: float | None, number: int | None) -> None:
        options: dict[str, Any] = {"hold_limit": hold, "sync_limit": limit, "freeze_limit": limit}
        if wait is not None:
            options["wait"] = wait
        if number is not None:
            options["include"] = [self.world.every[number].include]
        self._ask("va.fsfreeze", options, number=-1 if number is None else number)

    def _freeze_and_vanish(self, hold: float) -> str:
        self._vanish("va.fsfreeze", {"hold_limit": hold})
        return "host vanishes before the reply to its freeze"

    def _thaw(self, wait: float | None) -> None:
        self._ask("va.fsthaw", *([{"wait": wait}] if wait is not None else []))

    def _thaw_and_vanish(self) -> str:
        self._vanish("va.fsthaw")
        return "host vanishes before the reply to its thaw"

    def _vanish(self, method: str, *params: Any) -> None:
        counts = self.world.counts()
        now = time.monotonic()
        self._vanished.append(verdict.Call(method, now, now, GONE, params, counts, vanished=True))
        with contextlib.suppress(OSError):
            Vanishing(self._daemon, method, *params).vanish()

    def _hold(self, seconds: float) -> None:
        self._ask("va.fshold", seconds)

    def _ping(self) -> None:
        if not self._serves():
            return
        begun = time.monotonic()
        answer = call(self._daemon, "va.ping", timeout=ANSWERS)
        took = time.monotonic() - begun
        if answer != "dummy" and not self._terminated and not self._goes_down():
            self._violation(f"ping: {answer} after {took:.1f} s")

    def _goes_down(self) -> bool:
        """Tell whether the supervisor is dead or stopped, or is about to be since an order to that end was taken."""
        if ":supervisor" in self._armed and self.hooks.spent:
            with contextlib.suppress(TimeoutError):
                until(lambda: not self._serves(), GOES_DOWN, "what was ordered of the supervisor")
        return not self._serves()

    def _look(self) -> None:
        """Ask for the state; if it is THAWED, nothing may be frozen but by someone else."""
        record = self._status()
        if record is None or record["state"] != "THAWED" or self._waiting() or self._theirs or self._dead:
            return
        frozen = []
        for number, fs in enumerate(self.world.every):
            if number in self._played or fs is self.world.stall.fs:
                continue
            with contextlib.suppress(HarnessError):
                if fs.is_frozen(2):
                    frozen.append(str(fs))
        again = self._status()
        if frozen and again is not None and again["seq"] == record["seq"] and again["uptime"] >= record["uptime"]:
            self._violation(f"the state is THAWED, and frozen are {', '.join(frozen)}")

    def _wait(self, seconds: float) -> None:
        """Wait for any answer, if none is due for any change of the state, at most so long."""
        deadline = time.monotonic() + seconds
        waiting = self._waiting()
        record = None if waiting else self._status()
        if record is not None:
            options = {"since": record["seq"], "wait": seconds}
            call(self._daemon, "va.fsstatus", options, timeout=seconds + 1)
        while time.monotonic() < deadline and waiting and all(ask.answer is None for ask in waiting):
            waiting[0].join(min(0.01, max(0.0, deadline - time.monotonic())))

    def _wait_frozen(self) -> None:
        for ask in self._waiting():
            if ask.method == "va.fsfreeze":
                ask.join(1.5)

    def _signal(self, who: str, name: str) -> str | None:
        record = self._status()
        pid = self._find(who)
        if pid is None:
            return None
        number = signal.Signals[name]
        holds = who == "supervisor" and self._is_held(record)
        if who == "supervisor" and number == signal.SIGKILL:
            self._shot = True
            self._daemon.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self._killed |= number == signal.SIGKILL or who == "thawer"
        if who == "supervisor" and number == signal.SIGTERM:
            self._terminated = True
        if record is not None and holds:
            self._watch_keeper(number, record["hold_left"])
        return f"{name} to the {who}"

    def _is_held(self, record: dict[str, Any] | None) -> bool:
        """Tell whether a keeper holds a freeze, and nothing hinders it to thaw."""
        if record is None or record["state"] != "FROZEN" or self._waiting():
            return False
        if self.world.stall.stalled or self._stall_ordered or ":va.fsfreeze" in self._armed or ":thaw" in self._armed:
            return False
        return process_state(self._pids.get("keeper", 0)) in ("S", "R", "D")

    def _watch_keeper(self, number: signal.Signals, hold_left: float) -> None:
        """The supervisor alone was killed or stopped: the keeper thaws at once, or when its hold ends."""
        if number == signal.SIGTERM or (number == signal.SIGSTOP and hold_left > 1):
            return
        due = time.monotonic() + (hold_left if number == signal.SIGSTOP else 0)
        stuck = self.world.wait_moving(due + AT_ONCE, [self.world.every[n] for _, n, _, _ in self._theirs])
        if stuck:
            names = ", ".join(map(str, stuck))
            self._violation(f"{AT_ONCE:g} s after {number.name} to the supervisor its keeper has not thawed {names}")
        self.tally.alone += 1
        self.tally.alone_worst = max(self.tally.alone_worst, time.monotonic() - due)

    def _kill_both(self) -> str | None:
        keeper = self._find("keeper") or self._find("worker")
        if keeper is None or not self._daemon.is_running():
            return None
        self._shot = self._killed = True
        os.kill(self._daemon.pid, signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        self._daemon.kill()
        return "SIGKILL to supervisor and worker together"

    def _continue(self) -> None:
        stopped = process_state(self._daemon.pid) == "T"
        for pid in self._everybody():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if stopped:
            self._continued.append(time.monotonic())

    def _arm(self, point: str, acts: str) -> None:
        self._take_back()
        self._armed = acts
        self.hooks.at(point, *acts.split(","))
        self._disturbed += 1
        self._killed |= "kill:" in acts

    def _take_back(self) -> None:
        if self._armed and not self.hooks.disarm():
            self._shot |= "kill:supervisor" in self._armed
            self.tally.faults[f"at a message or write: {self._armed.replace('va.fsfreeze', 'worker')}"] += 1
        self._armed = ""

    def _restart(self) -> str | None:
        if self._daemon.is_running():
            return None
        self._check_end()
        old = self._daemon
        try:
            self._daemon = self._start(state_dir=old.state_dir)
        except HarnessError as refused:
            if "in use" not in str(refused):
                self._violation(f"no restart: {refused}")
            return None
        self._dead.append(old)
        return "daemon started again"

    def _stall(self) -> str | None:
        if self.world.stall.stalled:
            return None
        self.world.stall.stalled = True
        with contextlib.suppress(TimeoutError):
            self.world.stall.disk.freeze()
        return "disk stalls"

    def _stall_at_freeze(self) -> None:
        self._order_stall_back()
        self.hooks.stall_at_freeze(self.world.stall.disk.path)
        self._stall_ordered = True
        self._disturbed += 1

    def _order_stall_back(self) -> None:
        if self._stall_ordered and not self.hooks.stall_no_more():
            self.world.stall.stalled = True
            self.tally.faults["disk stalls when a freeze begins"] += 1
        self._stall_ordered = False

    def _release(self) -> None:
        self._order_stall_back()
        self.world.stall.release()
        self.world.stall.stalled = self.hooks.stalling()  # one that is stopped may do it yet

    def _dirty(self, number: int) -> None:
        if number not in self._played:
            self.world.every[number].ioctl("dirty")

    def _someone_freezes(self, number: int) -> str:
        return self._someone("freeze", number)

    def _someone_thaws(self, number: int) -> str:
        return self._someone("thaw", number)

    def _someone(self, what: str, number: int) -> str:
        fs = self.world.every[number]
        if number not in self._played:
            begun = time.monotonic()
            helper = fs.ioctl(what)
            try:
                answer = helper.answer(0.3)
            except TimeoutError:
                self._theirs.append((what, number, begun, helper))  # it is blocked
            else:
                self._meddled(what, number, begun, answer)
                if what == "freeze" and answer == "ok":
                    self._theirs.append((what, number, begun, None))
        return f"someone else {what}s"

    def _meddled(self, what: str, number: int, begun: float, answer: str) -> None:
        if answer == "ok":
            self._meddlings.append(verdict.Meddling(what, number, begun, time.monotonic()))

    def _take_theirs_back(self) -> None:
        """Wait for what others have begun, and have what they froze be thawed."""
        for what, number, begun, helper in self._theirs:
            answer = "ok"
            if helper is not None:
                try:
                    answer = helper.answer(BOUND)
                except TimeoutError:
                    self._meddlings.append(verdict.Meddling(what, number, begun))
                else:
                    self._meddled(what, number, begun, answer)
            if what == "freeze" and answer == "ok":
                self._meddlings.append(verdict.Meddling("thaw", number, time.monotonic()))
                # It may have to wait until the daemon has thawed another.
                self._thawing.append(self.world.every[number].ioctl("thaw"))
        self._theirs.clear()

    def _play(self, number: int, game: Callable[[LoopFs], Callable[[], object]], name: str) -> str | None:
        if number in self._played:
            return None
        fs = self.world.every[number]
        if any(other.outer is fs for other in self.world.every) and name == "unmounted":
            return None  # the image of another lies on it; it would still be mounted below
        try:
            self._undo.append((number, game(fs)))
        except OSError as error:
            self._violation(f"{name} {fs}: {error}")
            return None
        self._played.add(number)
        return f"mount {name}"

    def _cover(self, number: int) -> str | None:
        def game(fs: LoopFs) -> Callable[[], object]:
            linux.mount("cover", str(fs.path), "tmpfs")
            return lambda: _let_go(str(fs.path))

        return self._play(number, game, "covered")

    def _unmount(self, number: int) -> str | None:
        def game(fs: LoopFs) -> Callable[[], object]:
            linux.umount(str(fs.path), linux.MNT_DETACH)
            return fs.mount

        return self._play(number, game, "unmounted")

    def _bind(self, number: int) -> str | None:
        fs = self.world.every[number]
        if number in self._played or fs.aliases:
            return None
        alias = fs.bind()

        def undo() -> None:
            fs.aliases.remove(alias)
            _let_go(str(alias))

        self._undo.append((number, undo))
        return "mount bound at a second place"

    def _undo_mounts(self) -> None:
        """Undo what was done to the mounts; on a disk that may be stalled, mounting would wait for it."""
        stalled = self.world.stall.stalled or self._stall_ordered
        later = [(n, undo) for n, undo in self._undo if stalled and self.world.every[n] is self.world.stall.fs]
        for number, undo in reversed(self._undo):
            try:
                if (number, undo) not in later:
                    undo()
            except OSError as error:
                self._violation(f"undoing what was done to the mounts: {error}")
        self._undo = later

    def _fail(self, name: str, number: str, times: int) -> None:
        self.hooks.fail(name, number, times)
        self._to_fail[name] += times
        self._disturbed += 1

    def _fail_no_more(self) -> None:
        self._to_fail.subtract(line.split()[0] for line in self.hooks.fail_no_more())
        for name, times in (+self._to_fail).items():
            self.tally.faults[f"{name} fails"] += times
        self._to_fail.clear()

    # -- who is there

    def _serves(self) -> bool:
        return self._daemon.is_running() and process_state(self._daemon.pid) not in ("T", "Z", "")

    def _status(self) -> dict[str, Any] | None:
        if not self._serves():
            return None
        record = call(self._daemon, "va.fsstatus", {}, timeout=2)
        if not isinstance(record, dict):
            return None
        for worker in record["workers"]:
            names = {"thaw": "thawer", "va.fsfreeze": "keeper" if worker["phase"] == "hold" else "worker"}
            if worker["rpc"] in names and worker["pid"]:
                self._pids[names[worker["rpc"]]] = worker["pid"]
        return record

    def _everybody(self) -> list[int]:
        """Return the pids of this run that live: the supervisor, its workers, those of the dead ones."""
        here = [self._daemon.pid] if self._daemon.is_running() else []
        return [*here, *(child.pid for child in self._daemon.children()), *orphans(self.rig)]

    def _find(self, who: str) -> int | None:
        if who == "supervisor":
            return self._daemon.pid if self._daemon.is_running() else None
        self._status()
        pid = self._pids.get(who)
        return pid if pid in self._everybody() else None

    # -- afterwards

    def _violation(self, text: str) -> None:
        self.violations.append(text)

    def _check_end(self) -> None:
        """The supervisor is dead: was it we who ended it, and did it end well?"""
        code = self._daemon.process.wait()
        self._take_back()
        right = {-signal.SIGKILL} if self._shot else set()
        if self._terminated:
            right |= {0, -signal.SIGTERM}  # a second SIGTERM ends its last steps
        if code not in right:
            self._violation(f"the supervisor ended with {code}: {self._daemon.log()[-2000:]}")

    def settle(self) -> list[str]:
        """Take back all that disturbs, ask whether every promise was kept, end the daemon; return what was not."""
        try:
            self._calm_down()
            self._thaw_all()
            self._look_for_rests()
            self._freeze_calmly()
        except TROUBLE as error:
            self.trouble(error)
        self._judge()
        try:
            self._end()
        except TROUBLE as error:
            self.trouble(error)
        self.tally.violations += self.violations
        return self.violations

    def trouble(self, error: BaseException) -> None:
        """Something was not as it must be, and the storm could not go on as meant."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        self._violation(f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})")

    def _calm_down(self) -> None:
        """Take back all that disturbs; what somebody is about to do is waited for, and who is stopped is let go."""
        self._fail_no_more()
        self._take_back()
        self._order_stall_back()
        until(self._nothing_is_under_way, BOUND, "what was ordered is done")
        self._continue()
        self._release()
        self._undo_mounts()
        self._restart()  # what lies on a file system that a dead daemon left frozen cannot be thawed
        self._take_theirs_back()
        self._continue()

    def _nothing_is_under_way(self) -> bool:
        self._continue()
        return not self.hooks.under_way()

    def _thaw_all(self) -> None:
        begun = time.monotonic()
        deadline = begun + BOUND
        if self._terminated and self._daemon.is_running():
            self._daemon.process.wait(BOUND)
        for ask in self._waiting():
            ask.join(max(0.1, deadline - time.monotonic()))
            if ask.is_alive():
                self._violation(f"{ask.method}{ask.params}: no answer within {BOUND:g} s")
        while time.monotonic() < deadline:
            self._restart()
            answer = self._ask("va.fsthaw").wait(BOUND)
            record = self._status()
            # Any other answer told nobody how the freeze ended.
            final = isinstance(answer, int) or code_of(answer) == Code.FREEZE_BROKEN
            if record is not None and record["state"] == "THAWED" and final:
                break
            if record is not None and record["state"] != "THAWED":
                call(self._daemon, "va.fsstatus", {"since": record["seq"], "wait": 1})
        else:
            self._violation(f"not THAWED within {BOUND:g} s: {self._status()}")
        for helper in self._thawing:
            with contextlib.suppress(TimeoutError):
                helper.answer(max(0.1, deadline - time.monotonic()))
        logs = [daemon.log() for daemon in (*self._dead, self._daemon)]
        killed = self._killed or any("killed by SIGKILL" in log for log in logs)
        spoilt = [fs for fs in self.world.every if fs.kind == "btrfs" and killed and is_read_only(fs)]
        stuck = self.world.wait_moving(deadline, spoilt)
        self.tally.worst = max(self.tally.worst, time.monotonic() - begun)
        for fs in (*spoilt, *stuck):
            if fs in spoilt:
                self.tally.kernel["btrfs read-only after SIGKILL inside FITHAW (docs/adr/0015)"] += 1
                until(lambda: not self._daemon.children(), BOUND, "no worker is left")
                self.world.mount_anew(fs)
            else:
                self._violation(f"{fs} is not writable {BOUND:g} s after the last disturbance")
                fs.thaw()

    def _look_for_rests(self) -> None:
        """Nothing may be left: frozen file systems, processes, journal, news that was told already."""
        left = wait_gone(orphans(self.rig), BOUND)
        if left:
            self._violation(f"left of dead supervisors: {[process_line(pid) for pid in left]}")
        until(lambda: not self._daemon.children(), BOUND, "no worker is left")
        for fs in self.world.every:
            fs.end_probes()
            if fs.is_frozen():
                self._violation(f"{fs} is frozen")
                fs.thaw()
            fs.end_probes()
        until(lambda: self._ask("va.fsthaw").wait(BOUND) == 0, BOUND, "what was told is forgotten")
        files = {path.name for path in self._daemon.state_dir.iterdir()} - {"lock", "freeze-id"}
        if files:
            self._violation(f"left in the state folder: {sorted(files)}")
        rest = resting(self.rig, self._daemon)
        sockets = rest.fds.count("socket")
        if sockets > 5:
            self._violation(f"descriptors left open: {rest.fds}")

    def _freeze_calmly(self) -> None:
        """Undisturbed, a freeze succeeds and is held."""
        before = resting(self.rig, self._daemon)
        frozen = self._ask("va.fsfreeze", {"hold_limit": 8}).wait(BOUND)
        thawed = self._ask("va.fsthaw").wait(BOUND)
        if (frozen, thawed) != (FILE_SYSTEMS, FILE_SYSTEMS):
            self._violation(f"undisturbed, va.fsfreeze and va.fsthaw answer {frozen} and {thawed}")
        self.rig.assert_unchanged(before, self._daemon, BOUND)

    def _end(self) -> None:
        for daemon in (*self._dead, self._daemon):
            self.violations += daemon.close()
            self.logs.append(daemon.log())
            self.violations += unwell(daemon.log())
            self.rig.daemons.remove(daemon)

    def _judge(self) -> None:
        """Compare what hosts were told with what the writers saw."""
        judged = verdict.judge(
            [*(ask.said() for ask in self._asks), *self._vanished],
            played=self._played,
            meddlings=self._meddlings,
            continued=self._continued,
            disturbed=bool(self._disturbed),
        )
        self.violations += judged.violations
        for name in ("freezes", "held", "broken", "unclear", "told"):
            setattr(self.tally, name, getattr(self.tally, name) + getattr(judged, name))


def _let_go(mountpoint: str) -> None:
    """Unmount; a worker may have opened it just now, so it goes with its last user."""
    linux.umount(mountpoint, linux.MNT_DETACH)


def play(world: World, actions: Iterable[Action], tally: Tally) -> Storm:
    """Do the actions and settle; return the storm with its violations."""
    storm = Storm(world, tally)
    try:
        for action in actions:
            storm.do(action)
    except TROUBLE as error:
        storm.trouble(error)
    finally:
        storm.settle()
    return storm
