"""One run of a hook program: begun only when that is on record, waited for, and ended with its group if it overruns.

The child waits at a gate until its pid is in the record. If the writer's worker is killed before it opens the gate, the
child ends without a trace; afterwards the record says whom to wait for. Only the program is waited for, never the end
of its output: it may leave others in its group that belong to its work, and they stay if it has ended in time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...api.errors import no_more
from .. import kernel
from .accounts import Account, account
from .latch import Latch
from .step import Waits, wait

TERM_GRACE = 2.0  # seconds between SIGTERM and SIGKILL, and after that until it is no longer waited for
_LOOK = 0.05  # seconds between two looks whether a group has ended: the kernel sends no event for that
SHELL = "/bin/sh"


class Command(NamedTuple):
    """What is called: its words, whom it runs as ("": as the agent), and what it finds in its environment.

    `shell`: what is no program for the kernel is given to the shell, as execvp(3) does it.
    """

    words: tuple[str, ...]
    user: str = ""
    env: Mapping[str, str] = {}
    shell: bool = False

    def __str__(self) -> str:
        return " ".join(self.words)


class Program(NamedTuple):
    """A process: its pid, and when it started (proc(5), stat field 22), since pids are given out again."""

    pid: int
    started: int

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.pid > 0 and _stat(self.pid) == (self.started, True)


class Ended(NamedTuple):
    """How a program ended: what is wrong with that ("": nothing), and whether it had to be ended."""

    wrong: str
    overran: bool = False


class NotStarted(Exception):
    """The program could not be executed."""


def run(
    command: Command, latch: Latch, count: str, note: Callable[[Program], None], waits: Waits, until: float
) -> Ended:
    """Run the command until that CLOCK_MONOTONIC second; `note` puts it on record before it begins.

    Raises NotStarted, Refused if its user does not exist, OSError if there can be no more processes, or what `waits`
    raises: then it was ended before.
    """
    before = latch.count(count)
    pid, gate, failed = _fork(command, account(command.user) if command.user else None, latch.open_count(count))
    program = Program(pid, _stat(pid)[0])
    try:
        note(program)
        os.write(gate, b".")
    finally:
        os.close(gate)
    pidfd = os.pidfd_open(pid)
    try:
        # The pipe ends when the program is executed.
        executed = waits(failed, until)
        said = os.read(failed, 16) if executed else b""
        ended = executed and not said and waits(pidfd, until)
    except BaseException:
        end(program)
        raise
    finally:
        os.close(pidfd)
        os.close(failed)
    if said:
        os.waitpid(pid, 0)
        if latch.count(count) > before:  # else it failed before it had counted itself
            latch.take_back(count)
        number = int(said)
        raise NotStarted(f"{command.words[0]}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
    if not ended:
        end(program)
        return Ended("did not end in time, and was ended", overran=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return Ended("")
    return Ended(f"ended with exit code {status}" if status > 0 else f"was killed by {_name(-status)}")


def _fork(command: Command, whom: Account | None, counts: int) -> tuple[int, int, int]:
    """Fork; return the pid, the gate that lets the child begin, and where it says that it could not."""
    gate_r, gate_w = os.pipe2(os.O_CLOEXEC)
    failed_r, failed_w = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except BlockingIOError as error:
        raise no_more(error) or error from None
    if pid == 0:
        try:
            os.close(gate_w)
            os.close(failed_r)
            _become(command, whom, gate_r, counts)
        except OSError as error:
            os.write(failed_w, str(error.errno or errno.EIO).encode("ascii"))
        finally:
            os._exit(127)
    for fd in (gate_r, failed_w, counts):
        os.close(fd)
    return pid, gate_w, failed_r


def _become(command: Command, whom: Account | None, gate: int, counts: int) -> None:
    """Become the program once the gate is open; raise OSError if it cannot be executed."""
    os.setsid()
    if not os.read(gate, 1):
        os._exit(1)  # who would wait for it is dead
    kernel.be_killed_like_others()
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # exec resets handlers, but ignored signals stay ignored
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    env = {**os.environ, **command.env}
    if whom is not None:
        whom.become()
        env |= whom.env
    os.write(counts, b".")
    try:
        os.execve(command.words[0], command.words, env)  # the rest is closed on exec
    except OSError as error:
        if error.errno != errno.ENOEXEC or not command.shell:
            raise
        os.execve(SHELL, [SHELL, *command.words], env)


def program(pid: int) -> Program:
    """Return the process that has this pid now."""
    return Program(pid, _stat(pid)[0])


def await_end(program: Program, until: float) -> bool:
    """Wait until a process, which need not be a child, ends; return False if it had to be ended at that second."""
    if not program.lives:
        return True
    try:
        pidfd = os.pidfd_open(program.pid)
    except ProcessLookupError:
        return True
    try:
        if wait(pidfd, until):
            return True
    finally:
        os.close(pidfd)
    end(program)
    return False


def end(program: Program) -> None:
    """End the program and its group, unless it has ended by itself: SIGTERM, 2 s later SIGKILL.

    It need not be a child of this process. One that is in the kernel even then is left alone.
    """
    if not program.lives:
        return
    until = 0.0
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, number)
        until = time.monotonic() + TERM_GRACE
        while _has_company(program.pid) and time.monotonic() < until:
            select.select((), (), (), _LOOK)
        if time.monotonic() < until:
            break
    with contextlib.suppress(ChildProcessError):
        os.waitpid(program.pid, os.WNOHANG)


def _has_company(group: int) -> bool:
    """Return whether anyone of the group is alive, its leader included."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as file:
                state, _, of = file.read().rpartition(b")")[2].split()[:3]
                if int(of) == group and state not in b"ZX":
                    return True
    return False


def _stat(pid: int) -> tuple[int, bool]:
    """Return when the process started, in clock ticks since boot, 0 if it does not exist; and whether it lives."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, False
    return int(fields[19]), fields[0] not in b"ZX"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
