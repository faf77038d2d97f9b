"""Starting programs from a worker. They inherit nothing of the agent, and die with the worker.

Arguments are a list; no shell reads them. Only the main thread of a worker may start one, and before it starts other
threads: the kernel binds a program's life to the thread that forked it, and Python code runs between fork and exec.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from ..api.errors import no_more
from . import kernel

Text = str | bytes
SAID_MAX = 400


def start(
    command: Sequence[Text],
    *,
    executable: Text | None = None,
    env: Mapping[bytes, bytes] | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
    folder: str | None = "/",
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with default signal handling and none of our other descriptors.

    It starts in `folder` (None: where the agent is). Pipes are unbuffered. Raises OSError if it cannot be executed.
    """
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            executable=executable,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            close_fds=True,
            cwd=folder,
            env=env,
            start_new_session=True,
            preexec_fn=_be_nobodys_but(os.getpid()),
        )
    except BlockingIOError as error:  # of fork(2)
        raise no_more(error) or error from None


def run(command: Sequence[str], given: bytes = b"") -> tuple[int, str]:
    """Run a program to its end; return its exit code (negative: the signal) and what it said, on one line.

    `given` goes to its standard input. Raises OSError if it cannot be executed.
    """
    program = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = program.communicate(given)
    return program.returncode, " ".join(said.decode(errors="replace").split())[:SAID_MAX]


def _be_nobodys_but(parent: int) -> Callable[[], None]:
    """Return the function that the child calls before exec."""
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]

    def prepare() -> None:
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before that
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)  # exec resets handlers, but ignored signals stay ignored
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare
