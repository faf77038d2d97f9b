"""Processes of the harness: helpers that may block, and waiting for the end of any process without polling."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import HarnessError

TESTS = Path(__file__).resolve().parent.parent


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the harness in a bare interpreter (15 ms)."""
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import runpy; runpy.run_module({module!r}, None, '__main__')"
    )
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def until(true: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait for what the kernel sends no event for (a process state, a loop device that goes); else raise TimeoutError.

    Only for that: whatever has a descriptor is waited for with `select`.
    """
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        select.select([], [], [], 0.002)


def process_state(pid: int) -> str:
    """Return the letter of the state, "" if there is no such process; asks /proc/PID/stat only, which never blocks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def readable(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Wait until one can be read or has ended; return those. Unlike select(2) it takes descriptors over 1,023."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]


def wait_gone(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait until these processes, children or not, have ended and reap orphans; return those that still live."""
    deadline = time.monotonic() + timeout
    alive = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended = readable([fd], deadline - time.monotonic())
        finally:
            os.close(fd)
        if not ended:
            alive.append(pid)
            continue
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return alive


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Child:
    """A helper process with lines of text to and from it. `close` it: it is killed and reaped."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self._buffer = b""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=True
        )
        self.pid = self.process.pid

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def line(self, timeout: float) -> str:
        """Return the next line that it prints; raise TimeoutError, or HarnessError if it ended instead."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            if not readable([self.process.stdout.fileno()], deadline - time.monotonic()):
                raise TimeoutError(f"{self.name} said nothing within {timeout:g} s (state {self.state() or 'gone'})")
            data = self.process.stdout.read(4096)
            if not data:
                raise HarnessError(f"{self.name} ended without an answer (exit code {self.process.wait(timeout=10)})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def ask(self, line: str, timeout: float) -> Any:
        """Send a line, return the JSON value that comes back."""
        self.send(line)
        return json.loads(self.line(timeout))

    def state(self) -> str:
        return process_state(self.pid)

    def wait_blocked(self, timeout: float = 10) -> None:
        """Wait until it is in uninterruptible sleep (D)."""
        until(lambda: self.state() == "D", timeout, f"{self.name} in state D")

    def kill(self) -> None:
        kill(self.pid)

    def close(self, timeout: float = 10) -> None:
        """Kill and reap it; raise HarnessError if it stays (it is still blocked)."""
        if self.process.returncode is None:
            self.kill()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise HarnessError(f"{self.name} ({self.pid}) does not end: state {self.state()}") from None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Action(Child):
    """`freeze`, `thaw`, `frozen` or `write` on a path in a process of its own (see `child.py`)."""

    def __init__(self, action: str, path: str) -> None:
        super().__init__(python("harness.child", action, path), f"{action} {path}")
        if self.line(20) != "ready":
            raise HarnessError(f"{self.name} did not start")

    def answer(self, timeout: float = 10) -> str:
        """Return `ok`, `yes`, `no` or an errno's name; raise TimeoutError while it is blocked."""
        return self.line(timeout)


def act(action: str, path: str, timeout: float = 10) -> str:
    """Do it in a process of its own; return the answer. If it blocks, raise TimeoutError; it stays until released."""
    child = Action(action, path)
    try:
        return child.answer(timeout)
    finally:
        with contextlib.suppress(HarnessError):
            child.close(timeout=0 if child.state() == "D" else 10)
