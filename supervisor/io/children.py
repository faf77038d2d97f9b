"""The forked workers as the loop sees them: their pipes and pidfds, and the events that come from them.

All that a worker wrote before it died is true, and is read before its death is taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn, cast

from ...agent.api.structs import Struct, field
from ...agent.worker import context, messages, process, standby
from ..core import events
from ..core.events import Lifeline
from ..core.timing import Deadlines, Key
from . import poller as ranks
from .ours import is_our_worker
from .poller import Poller
from .process import Ended, Processes, is_unreaped
from .troubles import Troubles

READ = 64 << 10
AGAIN = 1.0  # seconds until another look at an orphan that cannot be watched, or for a process that stands by
STANDBY = ("standby",)
NOBODY = 0  # the number of a process that stands by; workers are numbered from 1
THAW = "thaw"
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # the mask of all takes 0.2 ms to set
Body = Callable[[int, int, int, int], NoReturn]
"""What a child does, given the ends of its pipes, our pid, and its end of the lifeline or -1."""
PIPE_SIZE = 1 << 20  # a report pipe that is not read for a while must not block a freeze worker (F_SETPIPE_SZ)


class Child(Struct):
    """One worker: its pid, and the descriptors on the supervisor's side, -1 when closed.

    `unsent` is what the control pipe has not taken yet; `waits`: the loop waits until it takes more. An `adopted`
    one is no child of this process; it `started` at that time, and is `doomed` if it is to be killed as soon as a pidfd
    can be had.
    """

    id: int
    pid: int
    pidfd: int
    report_fd: int
    control_fd: int
    decoder: messages.Decoder = field(default_factory=lambda: messages.Decoder(messages.REPORTS))
    rubbish: bool = False
    adopted: bool = False
    unsent: deque[bytes] = field(default_factory=deque)
    waits: bool = False
    started: int = 0
    doomed: bool = False

    def read(self) -> tuple[list[messages.Report], str, bool] | None:
        """Read once; return the messages, what was wrong with the bytes ("": nothing), and whether it is the end.

        Returns None if there is nothing to read now. After rubbish the rest is thrown away: it cannot be trusted.
        """
        try:
            data = os.read(self.report_fd, READ)
        except BlockingIOError:
            return None
        if not data or self.rubbish:
            return [], "", not data
        try:
            return self.decoder.feed(data), "", False
        except messages.Rubbish as error:
            self.rubbish = True
            return [], str(error), False

    def write(self) -> bool:
        """Write what the control pipe takes; return whether to wait until it takes more."""
        try:
            while self.unsent:
                # A frame has at most PIPE_BUF bytes, so it is written whole or not at all (pipe(7)).
                os.write(self.control_fd, self.unsent[0])
                self.unsent.popleft()
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self.unsent.clear()  # it is gone; its exit will be noticed
        return False

    def close_report(self) -> None:
        """Close the report pipe at its end."""
        _close([self.report_fd])
        self.report_fd = -1

    def close(self) -> None:
        """Close what is left after the reaping."""
        _close(fd for fd in (self.pidfd, self.control_fd, self.report_fd) if fd >= 0)


class Children:
    """All children that are not reaped; `ended` is called after each reaping.

    Whatever goes wrong with the pipes or the pidfd of one is told in one line, and that worker is killed and
    compensated as after rubbish: what it says can no longer be heard, or what it is told no longer be said.
    """

    def __init__(
        self,
        processes: Processes,
        poller: Poller,
        timers: Deadlines,
        clock: Callable[[], float],
        feed: Callable[[events.Event], None],
        ended: Callable[[], None],
        troubles: Troubles,
    ) -> None:
        self._processes = processes
        self._poller = poller
        self._timers = timers
        self._clock = clock
        self._feed = feed
        self._ended = ended
        self._troubles = troubles
        self._by_id: dict[int, Child] = {}
        self._lost: list[int] = []
        self._lifeline = -1
        self._standby: Child | None = None
        self._wants_standby = False

    def pid(self, number: int) -> int:
        """Return the child's pid, -1 if it is reaped."""
        return self._by_id[number].pid if number in self._by_id else -1

    def spawn(self, job: context.Job, lifeline: Lifeline | None = None) -> Child:
        """Fork a worker for `job`, begin to wait for its reports, and return it; in the child this never returns.

        The `lifeline` is a pipe from the freeze worker, which alone has the end to write to, to the writers. Where no
        process can be had, a thaw is done by the one that stands by. Raises OSError if a pipe, the fork or the pidfd
        was refused; then nothing is left behind.
        """
        try:
            child = self._spawn(job.worker, partial(process.run, job), lifeline)
        except OSError as error:
            if job.rpc != THAW or self._standby is None:
                raise
            return self._wake(job, error)
        self._by_id[child.id] = child
        return child

    def _spawn(self, number: int, body: Body, lifeline: Lifeline | None = None) -> Child:
        child = self._fork(number, body, lifeline)
        try:
            self._watch(child)
        except OSError:
            # What cannot be heard cannot be supervised. It has frozen nothing: for that it needs our word.
            self._processes.kill(child.pidfd)
            self._lost.append(child.pid)
            child.close()
            raise
        return child

    # -- one in reserve (ADR 0029)

    def stand_by(self) -> None:
        """Have a process forked ahead that can thaw; raise NoStandby. It is replaced if it dies, until `dismiss`."""
        self._wants_standby = True
        if self._standby is None:
            try:
                self._standby = self._spawn(NOBODY, process.stand_by)
            except OSError as error:
                raise events.NoStandby(error.errno, error.strerror) from None

    def stand_by_again(self, _key: Key) -> None:
        """Try again to have one, if the last has ended or thaws; or end it, if it is dismissed."""
        if self._wants_standby:
            try:
                self.stand_by()
            except OSError:
                self._timers.arm(STANDBY, self._clock() + AGAIN)
            return
        child, self._standby = self._standby, None
        if child is not None:
            self._kill(child)

    def dismiss(self) -> None:
        """End the one that stands by: nothing is frozen. In the next turn, since its end would delay the answer."""
        self._wants_standby = False
        self._timers.arm(STANDBY, self._clock())

    def _wake(self, job: context.Job, error: OSError) -> Child:
        """Give the job to the one that stands by."""
        child, self._standby = self._standby, None
        assert child is not None
        child.id = job.worker
        self._by_id[child.id] = child
        self._tell(child, "no other process can be had, so the one that stood by thaws", error)
        self.tell(child.id, standby.order(job))
        self._timers.arm(STANDBY, self._clock() + AGAIN)
        return child

    def _watch(self, child: Child) -> None:
        """Wait for what it says and for its end; raise OSError, and wait for neither, if that is refused."""
        if child.report_fd >= 0:
            self._poller.register(child.report_fd, ranks.REPORTS, ranks.READ, partial(self._report, child))
        try:
            self._poller.register(child.pidfd, ranks.EXITS, ranks.READ, partial(self._reap, child))
        except OSError:
            if child.report_fd >= 0:
                self._poller.unregister(child.report_fd)
            raise

    def _fork(self, number: int, body: Body, lifeline: Lifeline | None) -> Child:
        self._lost = [pid for pid in self._lost if is_unreaped(pid)]
        fds: list[int] = []
        held = -1
        supervisor = os.getpid()
        try:
            report_r, report_w = os.pipe2(os.O_CLOEXEC)
            fds += [report_r, report_w]
            control_r, control_w = os.pipe2(os.O_CLOEXEC)
            fds += [control_r, control_w]
            if lifeline is Lifeline.HOLD:
                watched, held = os.pipe2(os.O_CLOEXEC)
                _close([self._lifeline] if self._lifeline >= 0 else [])
                self._lifeline = watched
                fds += [held]
            os.set_blocking(report_r, False)
            os.set_blocking(control_w, False)
            _widen(report_w)
        except OSError:
            _close(fds)
            raise
        mine = {Lifeline.HOLD: held, Lifeline.WATCH: self._lifeline}[lifeline] if lifeline else -1
        # A signal to the child before it has its own handlers would be handled as one to the supervisor.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = self._processes.fork()
            if pid == 0:
                body(report_w, control_r, supervisor, mine)
        except OSError:
            _close(fds)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(report_w)
        os.close(control_r)
        if lifeline is Lifeline.HOLD:
            os.close(held)
        try:
            pidfd = self._processes.open_pidfd(pid)
        except OSError:
            # Without a pidfd it cannot be supervised. It has frozen nothing: for that it needs our Proceed.
            os.kill(pid, signal.SIGKILL)
            self._lost.append(pid)
            os.close(report_r)
            os.close(control_w)
            raise
        return Child(number, pid, pidfd, report_r, control_w)

    def adopt(self, number: int, pid: int, started: int) -> None:
        """Watch the worker of a dead supervisor, which started at that time; if it is gone, feed its exit.

        One that is there and cannot be watched (no pidfd is to be had) is not taken for gone: it may still freeze. That
        is told, and tried again every second.
        """
        self._by_id[number] = child = Child(number, pid, -1, -1, -1, adopted=True, started=started)
        if error := self._take(child):
            self._tell(child, "what an earlier agent left cannot be watched, and is looked at every second", error)

    def adopt_again(self, key: Key) -> None:
        """Try again to watch it, or see that it is gone."""
        child = self._by_id.get(cast("int", key[1]))
        if child is not None and child.pidfd < 0:
            self._take(child)

    def _take(self, child: Child) -> OSError | None:
        """Watch an orphan; return why that cannot be done for now."""
        failed = None
        try:
            child.pidfd = self._processes.open_pidfd(child.pid)
        except OSError as error:
            failed = error
        gone = isinstance(failed, ProcessLookupError)
        try:
            # ADR 0016: another process may have got the pid before the pidfd was opened; from now on none can.
            gone = gone or not is_our_worker(child.pid, child.started)
        except OSError as error:
            failed = failed or error  # nothing can be read of it for now
        if not gone and failed is None:
            try:
                self._watch(child)
            except OSError as error:
                failed = error
        if not gone and failed is None:
            if child.doomed:
                self.kill(child.id)
            return None
        child.close()
        child.pidfd = -1
        if gone:
            del self._by_id[child.id]
            self._feed(events.Exited(child.id, signal.SIGKILL, 0))
            return None
        self._timers.arm(("orphan", child.id), self._clock() + AGAIN)
        return failed

    def tell(self, number: int, message: messages.Control) -> None:
        """Write the message to the worker's control pipe, now or when that takes it; not if it is gone or adopted."""
        child = self._by_id.get(number)
        if child is not None and child.control_fd >= 0:
            child.unsent.extend(messages.encode(message))
            self._write_to(child)

    def _write_to(self, child: Child) -> None:
        why = ""
        try:
            more = child.write()
            if more and not child.waits:
                self._poller.register(child.control_fd, ranks.WRITES, ranks.WRITE, partial(self._write_to, child))
        except Exception as error:  # noqa: BLE001 - the boundary around one of many (promise 11)
            why = self._tell(child, "what it is to do cannot be told to it", error)
            child.unsent.clear()
            more = False
        if child.waits and not more:
            self._poller.unregister(child.control_fd)
        child.waits = more
        if why:
            self._feed(events.RubbishReported(child.id, why))

    def _tell(self, child: Child, what: str, error: Exception) -> str:
        return self._troubles.tell(f"worker {child.id} (pid {child.pid}): {what}", error)

    def kill(self, number: int) -> None:
        """SIGKILL the child; nothing if it was reaped in this turn, or was to be adopted and was gone."""
        child = self._by_id.get(number)
        if child is not None and child.pidfd < 0:
            child.doomed = True
        elif child is not None:
            self._kill(child)

    def _kill(self, child: Child) -> None:
        try:
            self._processes.kill(child.pidfd)
        except OSError as error:
            self._tell(child, "it cannot be killed, and is waited for", error)

    def _report(self, child: Child) -> bool:
        """Take what the worker said; return whether there may be more."""
        try:
            taken = child.read()
        except Exception as error:  # noqa: BLE001 - the boundary around one of many (promise 11)
            taken = [], self._tell(child, "its reports cannot be read, and it is killed", error), True
        if taken is None:
            return False
        said, wrong, end = taken
        if child.id != NOBODY:
            for left, message in zip(range(len(said), 0, -1), said, strict=True):
                self._feed(events.Reported(child.id, message, more=left > 1))
            if wrong:
                self._feed(events.RubbishReported(child.id, wrong))
        elif (said or wrong) and child is self._standby:
            if not end:
                spoke = messages.Rubbish(wrong or type(said[0]).__name__)
                self._tell(child, "it stands by, says something all the same, and is killed", spoke)
            self._give_up_standby()
            self._kill(child)
        if end:
            self._poller.unregister(child.report_fd)
            child.close_report()
            if child.id != NOBODY:
                self._feed(events.ReportEnded(child.id))
        return not end

    def _give_up_standby(self) -> None:
        """Have another one a second later, or as soon as a freeze needs it."""
        self._standby = None
        self._timers.arm(STANDBY, self._clock() + AGAIN)

    def _reap(self, child: Child) -> None:
        """Reap the child if it has ended, and forget it."""
        # Of another's child only the end is to be seen, not how; it was killed.
        ended: Ended | None = Ended(signal.SIGKILL, 0)
        try:
            if not child.adopted:
                ended = self._processes.reap(child.pidfd)
        except OSError as error:  # the descriptor is readable: it has ended
            self._tell(child, "how it ended cannot be known, and is taken for a kill", error)
        if ended is None:
            return
        self._by_id.pop(child.id, None)
        if child is self._standby:
            self._give_up_standby()
        # What it wrote before it died is true, and comes first.
        while child.report_fd >= 0 and self._report(child):
            pass
        if child.report_fd >= 0:
            self._poller.unregister(child.report_fd)
        self._poller.unregister(child.pidfd)
        if child.waits:
            self._poller.unregister(child.control_fd)
        child.close()
        if child.id != NOBODY:
            self._feed(events.Exited(child.id, ended.signal, ended.code))
        self._ended()


def _close(fds: Iterable[int]) -> None:
    """Close them; a close that fails has closed all the same (close(2))."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return  # over the user's pipe quota, or no memory: the default size does, only less slack
