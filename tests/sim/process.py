"""A worker: the real script of `agent/worker/freeze.py`, its threads, its pipes, and what signals do to it.

It does for the script what `mount_threads.py` does, step for step, but waits for the storm to let it go on. What it
wrote to its report pipe outlives it; what waits in its memory because the pipe was full does not.
"""

from __future__ import annotations

import errno
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.methods import RPCS
from virtagent.agent.worker import freeze, messages, steps
from virtagent.agent.worker.steps import Event, Gone, Operation, Result, Script, Step, Taken, Timeout, Told

from .kernel import Call

if TYPE_CHECKING:
    from .world import World

NOT_BEGUN = -1
FREEZING = Operation.FREEZE.during.value
DEAD, REAPABLE, GONE = range(1, 4)
"""How far a process has ended: its report pipe is at its end, its pidfd says so too, it is reaped."""


def _nothing(_args: Mapping[str, Any]) -> Script[int]:
    yield steps.Now()
    return 0


SCRIPTS: Mapping[str, Callable[[Mapping[str, Any]], Script[int]]] = {
    "va.fsfreeze": lambda args: freeze.FreezeScript(args["options"]).run(),
    "thaw": lambda args: freeze.thaw_again(args["mounts"], args["expedited"]),
    "va.fssync": lambda args: freeze.Flush(args["options"]).run(),
}
"""The scripts by the RPC; every other worker only answers 0."""


class Defect(AssertionError):
    """A script raised what is no fault, or did what it must not."""


class Thread:
    """The thread of one file system: it was ordered to do something, or is in the kernel, or has come back from it."""

    __slots__ = ("call", "error", "index", "name", "operation")

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.operation: Operation | None = None
        self.call: Call | None = None
        self.error: int | None = None


class Process:
    """One worker. `name` is its number in the storm, the same in each run of that storm.

    `counters`: it could read what is written to the disks, None if it has not looked; `told_counts`: what it read then
    and when it began to thaw is in its pipe; `thawed_before`: what was thawed before it looked first, None if it has
    not, `has_counted`: it has looked again. `first_freeze` and `last_freeze` are the moments of its first FIFREEZE's
    begin and its last one's success. `tells_thawed`: it has ended, and says so to the writers.
    """

    def __init__(self, world: World, name: int, pid: int, number: int, rpc: str, args: Mapping[str, Any]) -> None:
        self.world = world
        self.name = name
        self.pid = pid
        self.number = number
        self.rpc = rpc
        self.row = RPCS[rpc]
        self.args = args
        self.script: Script[int] | None = SCRIPTS.get(rpc, _nothing)(args)
        self.outlives = self.row.outlives
        self.parent: object = None
        self.forked_by: object = None
        self.announced: set[int] = set()
        self.threads: dict[int, Thread] = {}
        self.pipe: deque[messages.Report] = deque()
        self.control: deque[messages.Control] = deque()
        self.froze: set[int] = set()
        self.held: frozenset[int] = frozenset()
        self.hold_until = 0.0
        self.granted: set[float] = set()
        self.thaws = self.distrusted = False
        self.counters: bool | None = None
        self.thawed_before: set[int] | None = None
        self.has_counted = False
        self.told_counts = self.tells_thawed = False
        self.first_freeze = self.last_freeze = 0
        self.stopped = False
        self.ended = 0
        self.signal = 0
        self.code = 0
        self.killed = False
        self._backlog: deque[messages.Report] = deque()
        self._results: deque[Result] = deque()
        self._heard: deque[messages.Control] = deque()
        self._waits: steps.Wait | None = None
        self._sends = False
        self._begun = False
        self._answer: Any = None
        self._raises: Exception | None = None
        self._obeys = self._terminated = self._alone = self._ending = False
        self._read_end_closed = self._write_failed = self._finished = False
        self._expedites = self._expedited = False

    # -- signals, and the death of others

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Take a signal that ends it. What is in the kernel comes to its end first."""
        if not self.killed and not self.ended:
            self.killed = True
            self.signal = number
            self.world.oracle.killed(self)
            self._leave()

    def terminate(self) -> None:
        """Take SIGTERM."""
        if self._obeys and not self.killed:
            self._terminated = True
        else:
            self.kill(signal.SIGTERM)

    def _leave(self) -> None:
        """End as far as is possible: a thread in the kernel keeps the process."""
        self.script = None
        self._waits = None
        self._backlog.clear()
        self._results.clear()
        self.threads = {i: thread for i, thread in self.threads.items() if thread.call is not None}
        if not self.threads:
            self.ended = DEAD

    def abandon(self) -> None:
        """Take note that the supervisor is dead: nobody reads the reports, nobody writes to the control pipe."""
        self._read_end_closed = True
        self.pipe.clear()
        if not self.outlives:
            self.kill()

    @property
    def state(self) -> str:
        """Its state as psutil names it."""
        if self.ended:
            return "gone" if self.ended == GONE else "zombie"
        if any(thread.call is not None for thread in self.threads.values()):
            return "disk-sleep"
        return "stopped" if self.stopped else "sleeping"

    @property
    def finished(self) -> bool:
        """Whether its script has ended: whatever it could not thaw is the supervisor's."""
        return self._finished

    @property
    def thaws_only(self) -> bool:
        """Whether it is a thaw worker."""
        return self.rpc == "thaw"

    @property
    def unread(self) -> bool:
        """Whether it has said what the supervisor cannot have read yet."""
        return bool(self.pipe or self._backlog)

    @property
    def exists(self) -> bool:
        """Whether it is not reaped."""
        return self.ended < GONE

    @property
    def freezing(self) -> bool:
        """Whether it is, or comes to be, in FIFREEZE."""
        return any(thread.operation is Operation.FREEZE for thread in self.threads.values())

    # -- what can go on

    def main_can(self) -> bool:
        """Whether its main thread can go on."""
        if self.script is None or self.stopped:
            return False
        if self._sends:
            return not self._backlog or not self.world.pipes_full or self._read_end_closed
        wait = self._waits
        if wait is None or self._results or self._heard:
            return True
        if self._backlog and (not self.world.pipes_full or self._read_end_closed):
            return True
        if wait.taken and not self._backlog:
            return True
        if wait.until <= self.world.now:
            return True
        if not self._obeys:
            return False
        if self.control or (self._supervisor_gone() and not self._alone):
            return True
        return not self._ending and (self._terminated or self._is_alone())

    def thread_can(self, thread: Thread) -> bool:
        """Whether this thread can go on."""
        if thread.call is not None:
            return not self.world.kernel.blocked(thread.call)
        return thread.operation is not None and not self.stopped and not self.killed

    def due(self) -> float:
        """Return when it wakes by itself, infinity if never."""
        return self._waits.until if self._waits is not None else math.inf

    # -- threads

    def thread_step(self, thread: Thread) -> None:
        """Let a thread go on: into the kernel, through it, or back to say how it was."""
        operation = thread.operation
        assert operation is not None
        if thread.call is not None:
            error = self.world.kernel.step(thread.call)
            if error is None:
                return
            thread.call = None
            thread.error = error
            if operation is Operation.FREEZE and not error:
                self.froze.add(thread.index)
                self.last_freeze = self.world.moment
            if self.killed:
                del self.threads[thread.index]
                if not self.threads:
                    self.ended = DEAD
        elif thread.error is None:
            if operation is Operation.FREEZE and (self._ending or self._write_failed):
                thread.error = NOT_BEGUN
            else:
                self.world.oracle.enters(self, thread.index, operation)
                if operation is Operation.FREEZE:
                    self.first_freeze = self.first_freeze or self.world.moment
                thread.call = Call(self.pid, self.world.kernel.every[thread.index], operation)
        else:
            result = Result(thread.index, operation, thread.error, os.strerror(thread.error) if thread.error else "")
            if thread.error == NOT_BEGUN:
                result = Result(thread.index, operation, errno.ECANCELED, "given up", steps.NOT_BEGUN)
            result.at = self.world.now
            thread.error, thread.operation = None, None
            self._post((steps.ended(result, 0.0),))
            self._results.append(result)

    # -- the main thread

    def main_step(self) -> None:
        """Let the main thread go on until it has said or ordered something, or waits."""
        if not self._begun:
            self._begun = True
            self._send(messages.Started(self.pid))
            return
        if self._sends:
            if not self._drain():
                return
            self._sends = False
            if self._finished:
                self._exit()
                return
        if self._waits is not None:
            event = self._event(self._waits)
            if event is None:
                return
            self._waits = None
            self._answer = event
        self._run()

    def _run(self) -> None:
        script = self.script
        assert script is not None
        try:
            while True:
                if self._raises is not None:
                    raised, self._raises = self._raises, None
                    step = script.throw(raised)
                else:
                    answer, self._answer = self._answer, None
                    step = script.send(answer)
                if self._do(step):
                    return
        except StopIteration as end:
            self.tells_thawed = True
            self._finish(messages.Done(end.value))
        except Fault as fault:
            self.tells_thawed = fault.code is not Code.FAILED
            self._finish(messages.Failed(int(fault.code), fault.text))
        except Exception as error:
            if not isinstance(error, OSError):
                raise Defect(f"the script of {self.rpc} raised {type(error).__name__}: {error}") from error
            self._finish(messages.Failed(int(Code.INTERNAL), f"{type(error).__name__}: {error}"))

    def _finish(self, outcome: messages.Report) -> None:
        self._finished = True
        self._send(outcome)

    def _exit(self) -> None:
        self._leave()
        if self.threads:
            self.killed = True  # they are killed where they are

    def _do(self, step: Step) -> bool:
        """Do a step; return whether the thread now waits, or has said something."""
        match step:
            case steps.Wait():
                self._waits = step
                return True
            case steps.Now():
                self._answer = self.world.now
            case steps.Post(reports):
                self._post(reports)
                return True
            case steps.Order(indices, operation):
                for index in indices:
                    thread = self.threads[index]
                    if thread.operation is not None:
                        raise Defect(f"{thread.operation} is in flight on {index}, and {operation} was ordered")
                    thread.operation = operation
                return True
            case steps.Title():
                pass
            case steps.Inform(report):
                if not self._backlog:
                    self._post((report,))
                    return True
            case steps.Send(report):
                self._send(report)
                return True
            case steps.Measure(phase, number):
                self._answer = messages.Progress(phase.value, number)
            case steps.ReadWritten():
                if self.counters is None:
                    self.counters = not self.world.no_counters
                every = self.world.kernel.every if self.counters else ()
                self.has_counted = self.thawed_before is not None
                if self.thawed_before is None:
                    self.thawed_before = {i for i in self.froze if self.world.kernel.every[i].frozen != self.pid}
                self._answer = {f"loop{fs.index}": fs.written for fs in every}
            case steps.Identify(mounts):
                self._answer = [mount.device for mount in mounts]
            case steps.StopFreezing():
                self._ending = True
            case steps.Alone():
                self._alone |= self._obeys and self._supervisor_gone()
                self._answer = self._is_alone()
            case steps.ReadPlan():
                plan = self.world.plan
                if isinstance(plan, Exception):
                    self._raises = plan
                else:
                    self._answer = plan
            case steps.Start(mounts, obeys):
                self._obeys = obeys
                self.threads = {index: Thread(index, f"{self.name}:{index}") for index, _ in mounts}
                if obeys and self.world.no_threads:
                    self._raises = OSError(errno.EAGAIN, "no more threads")
            case steps.PrepareToExpedite():
                self._expedites = self._answer = self.world.may_expedite and not self.world.kernel.expedited
            case steps.Expedite():
                if self._expedites and not self._expedited and not self.world.kernel.expedited:
                    self.world.kernel.expedited = self._expedited = True
            case steps.EndExpedite():
                if self._expedited:
                    self.world.kernel.expedited = self._expedited = False
            case steps.PutBack():
                self.world.kernel.expedited = False
            case steps.BecomeKeeper() | steps.LockMemory() | steps.OpenCounters():
                pass
            case _:
                raise Defect(f"the model does not know the step {step}")
        return False

    # -- the report pipe

    def _post(self, reports: Iterable[messages.Report]) -> None:
        for report in reports:
            self.world.oracle.said(self, report)
            self._backlog.append(report)
        self._drain()

    def _send(self, report: messages.Report) -> None:
        self._post((report,))
        self._sends = True

    def _drain(self) -> bool:
        if self._read_end_closed:
            self._write_failed = self._write_failed or bool(self._backlog)
            self._backlog.clear()
        elif self._backlog and not self.world.pipes_full:
            self.pipe.extend(self._backlog)
            for report in self._backlog:
                if isinstance(report, messages.Step) and report.state == FREEZING:
                    self.announced.add(report.mount)
                self.told_counts |= isinstance(report, messages.Thawing)
            self._backlog.clear()
        return not self._backlog

    # -- waiting

    def _supervisor_gone(self) -> bool:
        return self._read_end_closed  # its pidfd says so, too

    def _is_alone(self) -> bool:
        return self._alone or self._write_failed

    def _event(self, wait: steps.Wait) -> Event | None:
        while True:
            if self._drain() and wait.taken:
                return Taken()
            if self._results:
                return self._results.popleft()
            if self._heard:
                return Told(self._heard.popleft())
            if self._obeys and not self._ending and (reason := self._ended()):
                self._ending = True
                return Gone(reason)
            if wait.until <= self.world.now:
                return Timeout()
            if self._obeys and self.control:
                self._heard.extend(self.control)
                self.control.clear()
            elif self._obeys and self._supervisor_gone() and not self._alone:
                self._alone = True
            else:
                return None

    def _ended(self) -> str:
        if self._terminated:
            return f"{self.rpc} worker {self.number} got SIGTERM"
        return "the supervisor died" if self._is_alone() else ""
