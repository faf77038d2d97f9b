"""The threads of a freeze or thaw worker, one a file system, and the board on which the main thread reads what happens.

The threads issue the calls that may block, so that a stuck disk delays no other; at most one call is in flight for
each. The main thread waits for their results, for the supervisor's word on the control pipe, for the death of the
supervisor (its pidfd: an end-of-file on the pipe could be hidden by a sibling that still holds its other end), for
SIGTERM and for the clock. It never touches a disk itself, so it can always thaw; but where there are no more threads,
that of a thaw worker does one after another what has none.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import math
import os
import queue
import resource
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import setproctitle

from ..api import records
from ..api.states import MountState
from ..api.text import brief, printable
from . import kernel, messages, sysfs
from . import plan as planner

if TYPE_CHECKING:
    from .context import Worker

GONE = -2  # in the place of a descriptor
DESCRIBE_AFTER = 0.05  # seconds without news
_STACK = 256 << 10
_LONGEST = (1 << 31) - 1  # milliseconds that poll(2) takes


class Operation(NamedTuple):
    """One thing that a thread does to its file system: its name, the states around it and the call."""

    name: str
    during: MountState
    after: MountState
    call: Callable[[int], None]


SYNC = Operation("syncfs", MountState.SYNCING, MountState.SYNCED, kernel.syncfs)
FREEZE = Operation("FIFREEZE", MountState.FREEZING, MountState.FROZEN, kernel.freeze)
THAW = Operation("FITHAW", MountState.THAWING, MountState.THAWED, kernel.thaw)


class Result(NamedTuple):
    """A thread has done what it was told: `error` is the errno, 0 if none."""

    hand: MountThread
    verb: Operation
    error: int
    seconds: float


class Told(NamedTuple):
    """The supervisor said something."""

    message: messages.Control


class Gone(NamedTuple):
    """The freeze must end: the supervisor is gone, or a signal asks."""

    reason: str


class Timeout(NamedTuple):
    """The time that was waited for has come."""


class Taken(NamedTuple):
    """The report pipe has taken all that was posted."""


Event = Result | Told | Gone | Timeout | Taken


class MountThread:
    """The thread of one file system. It opens a mount point, then obeys; results go to the board."""

    def __init__(self, board: WorkerLoop, index: int, mount: records.Mount) -> None:
        self.index = index
        self.mount = mount
        self.state = MountState.PENDING
        self.doing: Operation | None = None
        self.froze = False
        self.error = 0
        self.words = ""
        self._board = board
        self._orders: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        self._fd = -1
        self.runs = False

    def start(self) -> None:
        """Start the thread; raises RuntimeError if there are no more threads."""
        # Not a threading.Thread, whose start waits until it runs: with hundreds of them that is most of the time.
        _thread.start_new_thread(self._run, ())
        self.runs = True

    def order(self, verb: Operation) -> None:
        """Have the thread do `verb`; only when it is idle."""
        assert self.doing is None, f"{self.mount.mountpoint} is still {self.state.value}"
        self.doing = verb
        self.state = verb.during
        if self.runs:
            self._orders.put(verb)
        else:
            self._obey(verb)  # it could not be started: after those that could, one by one, each as long as it takes

    def _run(self) -> None:
        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        setproctitle.setthreadtitle(printable(self.mount.mountpoint)[-15:])
        while True:
            self._obey(self._orders.get())

    def _obey(self, verb: Operation) -> None:
        begun = time.monotonic()
        error = self._do(verb)
        self._board.post(Result(self, verb, error, time.monotonic() - begun))

    def _do(self, verb: Operation) -> int:
        reporter = self._board.worker.reporter
        begun = time.monotonic()
        error = 0
        try:
            if self._fd < 0:
                self._fd = open_file_system(self.mount, self._board.mounted)
            if verb is FREEZE and (self._board.ending or reporter.closed):
                raise OSError(errno.ECANCELED, "given up")
            verb.call(self._fd)
        except OSError as refused:
            error = refused.errno or errno.EIO
        after, text = judge(verb, error)
        reporter.post(messages.Step(self.index, after.value, error, text, time.monotonic() - begun))
        return error


class WorkerLoop:
    """The threads, what they have done, and the one place where the main thread waits."""

    def __init__(self, worker: Worker, planned: Iterable[tuple[int, records.Mount]], *, obeys: bool) -> None:
        self.worker = worker
        self.ending = False
        self.mounted = Mounted()
        self.busy: set[int] = set()  # the hands that have not ended what they were told
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._terminated = False
        self._control = messages.Decoder(messages.CONTROLS)
        self._told: list[messages.Control] = []
        self._supervisor = self._signalled = -1
        if obeys:
            self._obey()
        _allow_open_files()
        threading.stack_size(_STACK)
        self.hands = {index: MountThread(self, index, mount) for index, mount in planned}
        for hand in self.hands.values():
            try:
                hand.start()
            except RuntimeError:  # no more threads: a freeze has not begun then, but what is frozen must be thawed
                if obeys:
                    raise
                break

    def _obey(self) -> None:
        self._supervisor = os.pidfd_open(self.worker.supervisor)
        self._poll.register(self._supervisor, select.POLLIN)
        os.set_blocking(self.worker.control_fd, False)
        self._poll.register(self.worker.control_fd, select.POLLIN)
        # The wake-up pipe closes the gap between the interpreter's look for signals and the wait.
        self._signalled, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup)
        self._poll.register(self._signalled, select.POLLIN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, _number: int, _frame: object) -> None:
        self._terminated = True

    def post(self, result: Result) -> None:
        """Called by the threads."""
        self._results.put(result)
        os.eventfd_write(self._wake, 1)

    def announce(self, hands: Iterable[MountThread], verb: Operation) -> None:
        """Post that `verb` is about to begin on the hands."""
        self.worker.reporter.post(*(messages.Step(hand.index, verb.during.value) for hand in hands))

    def order(self, hands: Iterable[MountThread], verb: Operation) -> None:
        """Have the hands do `verb`, all at once; they are idle."""
        for hand in hands:
            self.busy.add(hand.index)
            hand.order(verb)

    def next(self, until: float = math.inf, *, taken: bool = False) -> Event:
        """Wait for the next event, at most until that CLOCK_MONOTONIC second; `taken`: or until all posted is taken."""
        while True:
            if not self.worker.reporter.flush():
                self._poll.register(self.worker.reporter.fd, select.POLLOUT)
            elif taken:
                return Taken()
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                pass
            else:
                return self._note(result)
            if self._told:
                return Told(self._told.pop(0))
            if not self.ending and (reason := self._ended()):
                self.ending = True
                return Gone(reason)
            left = until - time.monotonic()
            if left <= 0:
                return Timeout()
            for fd, _ in self._poll.poll(None if left == math.inf else min(math.ceil(left * 1000), _LONGEST)):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd == self.worker.reporter.fd:
                    self._poll.unregister(fd)
                elif fd == self._signalled:
                    os.read(self._signalled, 4096)
                elif fd == self.worker.control_fd:
                    self._read_control()
                else:
                    self._forget_supervisor()

    def _note(self, result: Result) -> Result:
        hand = result.hand
        self.busy.discard(hand.index)
        hand.doing = None
        hand.state, hand.words = judge(result.verb, result.error)
        hand.error = result.error
        hand.froze |= result.verb is FREEZE and result.error == 0
        return result

    def _ended(self) -> str:
        if self._terminated:
            return f"{self.worker.rpc} worker {self.worker.id} got SIGTERM"
        if self.alone:
            return "the supervisor died"
        return ""

    def _read_control(self) -> None:
        data = os.read(self.worker.control_fd, 65536)
        if data:
            self._told.extend(self._control.feed(data))
        else:
            self._forget_supervisor()

    def _forget_supervisor(self) -> None:
        if self._supervisor >= 0:
            self._poll.unregister(self._supervisor)
            self._poll.unregister(self.worker.control_fd)
            self._supervisor = GONE

    @property
    def alone(self) -> bool:
        """Whether the supervisor is gone: nobody else would thaw."""
        return self._supervisor == GONE or self.worker.reporter.closed

    def in_state(self, *states: MountState) -> list[MountThread]:
        """Return the hands whose file system is in one of the states."""
        return [hand for hand in self.hands.values() if hand.state in states]

    def at_work(self) -> list[MountThread]:
        """Return the hands that have not ended what they were told, in the order of the plan."""
        return [self.hands[index] for index in sorted(self.busy)]

    def describe(self, what: str) -> None:
        """Put into the title what is in flight, and where."""
        at = [hand.mount.mountpoint for hand in self.at_work()]
        done = len(self.hands) - len(at)
        where = f" {brief(at[0])}" + (f" +{len(at) - 1}" if len(at) > 1 else "") if at else ""
        self.worker.title(f"{what}{where} {done}/{len(self.hands)}")

    def thaw(self) -> None:
        """Thaw all that is frozen, each as soon as what it lies on is thawed, outermost first; returns when all that
        was ordered has ended. A FIFREEZE that is still in flight is waited for, and thawed.

        FITHAW of a file system whose host is frozen would block: it writes its superblock.
        """
        self.ending = True
        while True:
            waiting = {h.index for h in self.in_state(MountState.FREEZING, MountState.FROZEN, MountState.THAWING)}
            below = {host for index in waiting for host in self.hands[index].mount.hosts}
            free = [h for h in self.in_state(MountState.FROZEN) if not waiting.intersection(h.mount.hosts)]
            self.announce(free, THAW)
            self.order(free, THAW)
            if not self.busy:
                return
            self.describe("thawing")
            told = len(self.busy)
            while self.busy:
                # Those that hang are to be seen in the title: when what comes at once has come, it says who is left.
                match self.next(math.inf if len(self.busy) == told else time.monotonic() + DESCRIBE_AFTER):
                    case Result(hand, verb) if verb is FREEZE or hand.index in below:
                        break
                    case Timeout():
                        told = len(self.busy)
                        self.describe("thawing")


def _allow_open_files() -> None:
    """Each file system has a descriptor, and without systemd 1,024 are usual."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < most:
        with contextlib.suppress(ValueError):  # forbidden: as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def judge(verb: Operation, error: int) -> tuple[MountState, str]:
    """Return what a call's errno makes of the file system, and the words for it."""
    if error == 0:
        return verb.after, ""
    words = f"{verb.name}: {os.strerror(error)} ({errno.errorcode.get(error, error)})"
    if verb is THAW and error == errno.EINVAL:
        return MountState.THAWED, "was not frozen any more"
    if verb is FREEZE and error in (errno.EOPNOTSUPP, errno.ENOTTY):
        return MountState.UNSUPPORTED, f"its type cannot freeze: {words}"
    if verb is FREEZE and error == errno.EBUSY:
        return MountState.BUSY, f"frozen by someone else: {words}"
    if verb is FREEZE and error == errno.ECANCELED:
        return MountState.SYNCED, "freeze given up before it began"
    return MountState.FAILED, words


class Mounted:
    """Which mount belongs to which superblock (mountinfo), read no more often than needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._mounts: dict[int, planner.MountInfo] = {}

    def now(self, opened_at: float) -> dict[int, planner.MountInfo]:
        """Return the mounts by id, read after that CLOCK_MONOTONIC second: what was opened before keeps its id."""
        with self._lock:
            if self._read_at <= opened_at:
                begun = time.monotonic()
                self._mounts = {info.mount_id: info for info in sysfs.read_mountinfo()}
                self._read_at = begun
            return self._mounts


def open_file_system(mount: records.Mount, mounted: Mounted) -> int:
    """Open a mount point of the file system and return the descriptor.

    A path alone could lead to whatever was mounted over it since, so the mount id of what was opened
    (/proc/self/fdinfo, proc(5)) must be one that mountinfo gives for the superblock. O_PATH first: opening a FIFO or a
    device that is bind-mounted could block. Raises OSError, ENODEV if no mount point leads there.
    """
    refused = OSError(errno.ENODEV, "not mounted any more")
    tried = set()
    begun = time.monotonic()
    paths = [mount.mountpoint, *mount.aliases]
    while paths:
        tried.add(path := paths.pop(0))
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            refused = error
        else:
            try:
                mode = os.fstat(handle).st_mode
                found = mounted.now(time.monotonic()).get(_mount_id(handle))
                if found and found.device == mount.device and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                refused = error
            finally:
                os.close(handle)
        if not paths:  # it may be mounted elsewhere by now
            there = {info.mountpoint for info in mounted.now(begun).values() if info.device == mount.device}
            paths = sorted(there - tried)
            refused = refused if there else OSError(errno.ENODEV, "not mounted any more")
    raise refused


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENODEV, "no mnt_id in fdinfo")
