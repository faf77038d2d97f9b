"""The driver of a script of `freeze` in a worker: threads for the calls that may block, and one place to wait in.

A thread more is started for each call that hangs, so that a stuck disk does not delay the others. At most one call is
in flight for each file system. The main thread runs the script and waits for results of the threads, for messages of
the supervisor on the control pipe, for the death of the supervisor (its pidfd, since a sibling that still has the other
end of the pipe could hide an end-of-file), for SIGTERM and for the clock. It never touches a disk itself, so it can
always thaw. The exception: if a thaw worker cannot start threads, its main thread does the missing calls in turn.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import math
import os
import queue
import resource
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import setproctitle

from ..api import records
from ..api.errors import no_more
from ..api.text import printable
from . import kernel, messages, queues, rcu, steps, sysfs
from .open_fs import FileSystemOpener, SuperblockGone
from .progress import WritebackMeter
from .steps import Event, Gone, Operation, Result, Script, Step, Taken, Timeout, Told
from .written import WriteCounters, flush_others

if TYPE_CHECKING:
    from .context import Worker

GONE = -2  # instead of the descriptor of a supervisor that is dead
THREADS = 32  # more of them freeze 256 file systems no sooner (docs/performance.md)
GROWS_AFTER = 0.01  # seconds without a result after which a call hangs
GROWS_AGAIN = 0.05  # seconds until another attempt to start a thread
_STACK = 256 << 10
FILES = 2048  # open files: the descriptors and counters of 500 file systems, in a table of 16 KiB
_SWITCH_INTERVAL = 0.0002  # seconds: a call that has returned would wait for 5 ms for the interpreter
_WAKE_AGAIN = 0.05  # seconds
_LONGEST = (1 << 31) - 1  # milliseconds that poll(2) takes
_CALLS: Mapping[Operation, Callable[[int], None]] = {
    Operation.SYNC: kernel.syncfs,
    Operation.FREEZE: kernel.freeze,
    Operation.THAW: kernel.thaw,
}
T = TypeVar("T")


def perform(worker: Worker, script: Script[T]) -> T:
    """Do the steps of the script until it ends; return its value or raise what it raises."""
    loop = WorkerLoop(worker)
    try:
        step = next(script)
        while True:
            try:
                answer = loop.do(step)
            except Exception as error:  # noqa: BLE001 - the script decides what it means
                step = script.throw(error)
            else:
                step = script.send(answer)
    except StopIteration as end:
        value: T = end.value
        return value


class MountCall:
    """One file system, open at `fd` or yet to be opened, and the call on it that is ordered or in flight.

    `begun` is the CLOCK_MONOTONIC second at which a thread has taken it.
    """

    def __init__(self, loop: WorkerLoop, index: int, mount: records.Mount, fd: int = -1) -> None:
        self.index = index
        self.mount = mount
        self.doing: Operation | None = None
        self.begun = math.inf
        self._loop = loop
        self._fd = fd

    def do(self) -> Result:
        """Do what is ordered; whatever happens there is a result, since the loop waits for that without limit."""
        assert self.doing is not None
        self.begun = time.monotonic()
        result = Result(self.index, self.doing)
        try:
            self._call(result)
        except OSError as refused:
            result.error = refused.errno or errno.EIO
            result.said = refused.strerror or os.strerror(result.error)
        except Exception as defect:  # noqa: BLE001 - see above
            result.error, result.said = errno.EIO, f"a defect of the agent: {type(defect).__name__}: {defect}"
        result.at = time.monotonic()
        return result

    def _call(self, result: Result) -> None:
        result.failed = "open"
        if self._fd < 0 and result.operation is Operation.THAW:
            try:
                self._fd = self._loop.opener.open_to_thaw(self.mount)
            except SuperblockGone:
                result.failed = ""
                raise OSError(errno.EINVAL, "its superblock is gone") from None  # as FITHAW where nothing is frozen
        elif self._fd < 0:
            self._fd = self._loop.opener.open(self.mount.device).fd
        if result.operation is Operation.FREEZE and (self._loop.ending or self._loop.worker.reporter.closed):
            result.failed = steps.NOT_BEGUN
            raise OSError(errno.ECANCELED, "given up")
        result.failed = ""
        _CALLS[result.operation](self._fd)
        if result.operation is Operation.SYNC:
            flush_others(self.mount)


class CallThreads:
    """The threads that do the calls: a few, and more only while calls hang, so that no stuck disk delays the others.

    More than a few of them only take turns in the interpreter, as long as calls return.
    """

    def __init__(self, post: Callable[[Result], None], *, alone: bool) -> None:
        """Give each result to `post`. `alone`: where no thread can be had, `look` does a call itself."""
        self._post = post
        self._alone = alone
        self._orders: queue.SimpleQueue[MountCall] = queue.SimpleQueue()
        self._count = 0
        self.look_at = math.inf
        """The CLOCK_MONOTONIC second of the next `look`."""

    def start(self, count: int) -> None:
        """Start so many threads; raise OSError if there are no more."""
        if count <= 0:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the main thread
        try:
            for _ in range(count):
                # Not a threading.Thread, whose start waits until it runs.
                _thread.start_new_thread(self._run, ())
                self._count += 1
        except RuntimeError as error:
            raise no_more(error) or error from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def order(self, calls: Iterable[MountCall], operation: Operation) -> None:
        """Make the threads do `operation` on all of these, which must be idle."""
        for call in calls:
            assert call.doing is None, f"{call.mount.mountpoint}: {call.doing} is in flight"
            call.doing, call.begun = operation, math.inf
            self._orders.put(call)
        self.look_at = time.monotonic() + (GROWS_AFTER if self._count else 0)

    def look(self, now: float, calls: Iterable[MountCall]) -> None:
        """Start a thread for each of the calls that hangs, if any has to wait because of them."""
        if now < self.look_at:
            return
        waiting = self._orders.qsize()
        hanging = sum(call.doing is not None and call.begun <= now - GROWS_AFTER for call in calls)
        self.look_at = now + GROWS_AFTER if waiting else math.inf
        try:
            self.start(min(waiting, hanging if self._count else waiting))
        except OSError:
            self.look_at = now + GROWS_AGAIN
            if self._alone:
                self.look_at = now
                with contextlib.suppress(queue.Empty):
                    self._post(self._orders.get_nowait().do())

    def _run(self) -> None:
        while True:
            call = self._orders.get()
            with contextlib.suppress(Exception):  # it is only for ps, and whatever happens the loop must get a result
                setproctitle.setthreadtitle(printable(call.mount.mountpoint)[-15:])
            self._post(call.do())


class WorkerLoop:
    """The main thread, which does the steps of a script. It waits only in `_wait`, and in `Send` and `ReadPlan`."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.ending = False
        self.opener = FileSystemOpener()
        self._opened: dict[str, int] = {}
        self._calls: dict[int, MountCall] = {}
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._taken: deque[Result] = deque()
        self._control = messages.Decoder(messages.CONTROLS)
        self._heard: list[messages.Control] = []
        self._terminated = False
        self._wake = self._supervisor = self._signalled = -1
        self._woken = False
        self._queues: queues.Queues | None = None

    def do(self, step: Step) -> Any:
        """Do a step and return its answer; raise what it raises."""
        match step:
            case steps.Wait(until, taken):
                return self._wait(until, taken)
            case steps.Now():
                return time.monotonic()
            case steps.Order(indices, operation):
                self._threads.order((self._calls[index] for index in indices), operation)
            case steps.Post(reports):
                self.worker.reporter.post(*reports)
            case steps.Inform(report):
                self.worker.reporter.inform(report)
            case steps.Send(report):
                self.worker.reporter.send(report)
            case steps.Title(text):
                self.worker.title(text)
            case steps.Measure(phase, number, syncing):
                return self._meter.progress(phase, number, syncing)
            case steps.OpenCounters():
                self._counters = WriteCounters(self._mounts)
            case steps.ReadWritten():
                return self._counters.read()
            case steps.Identify(mounts):
                return [sysfs.superblock_id(mount.device, mount.fstype, mount.source) for mount in mounts]
            case steps.StopFreezing():
                self.ending = True
            case steps.Alone():
                self._look(0)  # it may have died since the last wait
                return self._alone()
            case steps.ReadPlan(rules):
                _make_room_for_files(self.worker.control_fd)
                plan, self._opened = sysfs.open_plan(rules)
                return plan
            case steps.Start(mounts, obeys):
                self._start(dict(mounts), obeys)
            case steps.BecomeKeeper():
                self.worker.become_keeper()
            case steps.LockMemory():
                with contextlib.suppress(OSError):  # the supervisor has logged that this is not allowed
                    kernel.lock_memory()
            case steps.PrepareToExpedite():
                self._grace = rcu.Expediter()
                return self._grace.able
            case steps.Expedite():
                self._grace.begin()
            case steps.EndExpedite():
                self._grace.end()
            case steps.ShortenQueues(folder, disks, number):
                self._queues = queues.shortened(folder, disks, number)
            case steps.LengthenQueues(ends):
                if self._queues is not None:
                    self._queues.put_back(queues.ENDS if ends else queues.PUTS_BACK)
            case steps.PutBack():
                with contextlib.suppress(OSError):  # that is not a reason not to thaw
                    rcu.put_back()
        return None

    def _start(self, mounts: dict[int, records.Mount], obeys: bool) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        if obeys:
            self._obey()
        _make_room_for_files(self.worker.control_fd)
        threading.stack_size(_STACK)
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._calls = {
            index: MountCall(self, index, mount, self._opened.pop(mount.device, -1)) for index, mount in mounts.items()
        }
        self._threads = CallThreads(self.post, alone=not obeys)
        try:
            self._threads.start(min(len(mounts), THREADS))
        except OSError:  # no more threads: a freeze has not begun yet, but a thaw must be done
            if obeys:
                raise
        self._mounts = tuple(mounts.values())
        self._meter = WritebackMeter(mounts)

    def _obey(self) -> None:
        self._supervisor = os.pidfd_open(self.worker.supervisor)  # ADR 0008: the pipe alone does not tell its death
        self._poll.register(self._supervisor, select.POLLIN)
        os.set_blocking(self.worker.control_fd, False)
        self._poll.register(self.worker.control_fd, select.POLLIN)
        # Without the wake-up pipe a signal between the interpreter's check and the wait would be noticed late.
        self._signalled, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup)
        self._poll.register(self._signalled, select.POLLIN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, _number: int, _frame: object) -> None:
        self._terminated = True

    def post(self, result: Result) -> None:
        """Take a result from a thread and wake the main thread; refused, that is tried until it is done."""
        self._results.put(result)
        if self._woken:
            return  # the main thread has not looked since, or somebody is at it
        self._woken = True
        while True:
            try:
                os.eventfd_write(self._wake, 1)
            except BlockingIOError:
                return  # its counter is full: it wakes all the same
            except OSError:
                threading.Event().wait(_WAKE_AGAIN)
            else:
                return

    def _take(self) -> None:
        """Take the results that have come, and report them, in as few writes as they need."""
        reports = []
        with contextlib.suppress(queue.Empty):
            while True:
                result = self._results.get_nowait()
                call = self._calls[result.mount]
                call.doing = None
                self._taken.append(result)
                reports.append(steps.ended(result, result.at - call.begun))
        if not reports:
            return
        try:
            self.worker.reporter.post(*reports)
        except Exception as defect:  # noqa: BLE001 - for the supervisor the calls have not ended, which is safe
            where = ", ".join(self._calls[result.mount].mount.mountpoint for result in self._taken)
            sys.stderr.write(printable(f"{where}: what was done could not be reported: {defect!r}\n"))

    def _wait(self, until: float, taken: bool) -> Event:
        while True:
            self._take()
            if not self.worker.reporter.flush():
                self._poll.register(self.worker.reporter.fd, select.POLLOUT)
            elif taken:
                return Taken()
            if self._taken:
                return self._taken.popleft()
            if self._heard:
                return Told(self._heard.pop(0))
            if not self.ending and (reason := self._ended()):
                self.ending = True
                return Gone(reason)
            now = time.monotonic()
            if until <= now:
                return Timeout()
            self._threads.look(now, self._calls.values())
            left = min(until, self._threads.look_at) - now
            self._look(None if left == math.inf else min(math.ceil(left * 1000), _LONGEST))

    def _look(self, milliseconds: int | None) -> None:
        """Take note of what has happened, after waiting at most so long for something to happen."""
        for fd, _ in self._poll.poll(milliseconds):
            if fd == self._wake:
                os.eventfd_read(self._wake)
                self._woken = False  # before the results are taken: what comes now wakes again
            elif fd == self.worker.reporter.fd:
                self._poll.unregister(fd)
            elif fd == self._signalled:
                os.read(self._signalled, 4096)
            elif fd == self.worker.control_fd:
                self._read_control()
            else:
                self._forget_supervisor()

    def _ended(self) -> str:
        if self._terminated:
            return f"{self.worker.rpc} worker {self.worker.id} got SIGTERM"
        if self._alone():
            return "the supervisor died"
        return ""

    def _read_control(self) -> None:
        data = os.read(self.worker.control_fd, 65536)
        if data:
            self._heard.extend(self._control.feed(data))
        else:
            self._forget_supervisor()

    def _forget_supervisor(self) -> None:
        if self._supervisor >= 0:
            self._poll.unregister(self._supervisor)
            self._poll.unregister(self.worker.control_fd)
            self._supervisor = GONE

    def _alone(self) -> bool:
        return self._supervisor == GONE or self.worker.reporter.closed


def _make_room_for_files(fd: int) -> None:
    """Raise the limit of open files, since each file system needs some, and make their table large by copying `fd`.

    While there is one thread: when the table of several grows, the kernel waits for an RCU grace period each time
    (expand_fdtable in fs/file.c), which was a fifth of the freeze of 256 file systems.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < most:
        with contextlib.suppress(ValueError):  # forbidden: the present limit has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError):  # so many are not allowed: it grows when it must
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FILES - 1))
