"""A program of the operator's that keeps its application's session and is told each step on its standard input.

It hears the lines `prepare`, `quiesce`, `confirm` and `release`, and answers each with `ok [key=value]...` or
`no REASON`. The end of its standard input means: let go now, and end. So the hold ends with this process, whoever kills
it. The program itself is on record, since it may need a while for that: whoever comes later waits until it has ended,
and ends it if that takes too long.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...api.errors import no_more
from ...api.writers import WriterConfig
from . import hook_program
from .accounts import account
from .hook_program import Program
from .latch import Latch
from .step import Refused, TooSlow, Waits, wait

ANSWER_MAX = 4096
WORDS_MAX = 300
LAST_WORDS = 1.0  # seconds in which standard error ends if the program has, unless it leaves something behind
Info = dict[str, Any]


class Complaints:
    """What a program writes to standard error, of which the end is kept.

    A thread reads it all: the program neither waits for ever, nor fails with EAGAIN, which few expect there.
    """

    def __init__(self) -> None:
        """Begin to read; the program's end of the pipe is `end`. Raises OSError, Refused."""
        reads, self.end = os.pipe2(os.O_CLOEXEC)
        self._said = b""
        self._thread = threading.Thread(target=self._read, args=(reads,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(reads)
            os.close(self.end)
            raise Refused("there are no more threads") from None

    def last(self) -> bytes:
        """Return the end of what it has written, after it has ended."""
        self._thread.join(LAST_WORDS)
        return self._said

    def _read(self, fd: int) -> None:
        try:
            while data := os.read(fd, 65536):
                self._said = (self._said + data)[-ANSWER_MAX:]
        finally:
            os.close(fd)


class Live:
    """One program."""

    told: Mapping[str, str] = MappingProxyType({})

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: Complaints | None = None
        self._said = b""
        self._answers = True

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor that becomes readable if the program ends, or says something unasked."""
        return (self._out(),) if self._process is not None else ()

    def prepare(self, until: float) -> Info:
        """Start the program, and have it prepare. Raises Refused, Interrupted."""
        self._start()
        return self._ask("prepare", until)

    def quiesce(self, until: float) -> Info:
        """Have it hold. Raises Refused, Interrupted."""
        return self._ask("quiesce", until)

    def confirm(self, until: float) -> Info:
        """Have it prove that it held until now. Raises Refused, Interrupted."""
        return self._ask("confirm", until)

    def renew(self, _until: float, _ends: float) -> None:
        """Do nothing: it holds until it is told, or its standard input ends."""

    def lost(self) -> str:
        """Return why its hold is lost: it has ended, or says so with a line of its own."""
        data = os.read(self._out(), ANSWER_MAX)
        return f"it said {self._text(data)!r:.100} while it held" if data else self._ended("release")

    def release(self, until: float, verdict: str) -> str:
        """Have it let go and end; return what went wrong."""
        if self._process is None:
            return ""
        wrong = ""
        # One that still works at an earlier step hears of it by the end of its standard input.
        if self._answers:
            self._waits = wait
            try:
                self._ask(f"release {verdict}" if self._config.verdict else "release", until)
            except Refused as error:
                wrong = str(error)
        assert self._process.stdin is not None
        self._process.stdin.close()
        wrong = undo(self._latch, until, verdict) or wrong
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0)
        self._process = None
        return wrong

    def _start(self) -> None:
        whom = account(self._config.user)
        self._complaints = Complaints()
        # It begins only when it is on record: until then its first line is not sent, and it has set nothing.
        try:
            self._process = subprocess.Popen(
                self._config.command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints.end,
                cwd="/",
                env={**os.environ, **whom.env},
                start_new_session=True,
                restore_signals=False,  # SIGPIPE stays ignored: an answer that nobody reads must not end a shell
                user=whom.uid if self._config.user else None,
                group=whom.gid if self._config.user else None,
                extra_groups=whom.groups if self._config.user else None,
            )
        except OSError as error:
            raise Refused(f"{self._config.command[0]}: {(no_more(error) or error).strerror}") from None
        finally:
            os.close(self._complaints.end)
        self._latch.write({"type": "live", "program": list(hook_program.program(self._process.pid))})

    def _ask(self, line: str, until: float) -> Info:
        assert self._process is not None
        assert self._process.stdin is not None
        self._answers = False
        step = line.split()[0]
        if self._said:
            raise Refused(f"it said {self._text(self._said)!r} without being asked")
        try:
            self._process.stdin.write(f"{line}\n".encode("ascii"))
        except OSError:
            raise Refused(self._ended(step)) from None
        while b"\n" not in self._said:
            if not self._waits(self._out(), until):
                raise TooSlow(f"it did not answer {step} in time")
            data = os.read(self._out(), ANSWER_MAX)
            if not data:
                raise Refused(self._ended(step))
            self._said += data
            if len(self._said) > ANSWER_MAX:
                raise Refused(f"its answer to {step} is over {ANSWER_MAX} bytes")
        answer, _, self._said = self._said.partition(b"\n")
        self._answers = True
        return self._understood(step, self._text(answer))

    def _understood(self, step: str, answer: str) -> Info:
        word, _, rest = answer.partition(" ")
        if word == "no":
            raise Refused(rest.strip() or "it gives no reason")
        if word != "ok":
            raise Refused(f"it answered {step} with {answer!r:.100}, expected ok or no")
        try:
            pairs = [pair.partition("=") for pair in shlex.split(rest)]
        except ValueError as error:
            raise Refused(f"it answered {step} with {answer!r:.100}: {error}") from None
        if bad := [key for key, equals, _ in pairs if not equals or not key]:
            raise Refused(f"it answered {step} with {bad[0]!r:.60}, expected key=value")
        info: Info = {key: value for key, _, value in pairs if key != "path"}
        if paths := [value for key, _, value in pairs if key == "path"]:
            info["paths"] = paths
        return info

    def _out(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _ended(self, step: str) -> str:
        """Return that it has ended, with the last of what it has written to standard error."""
        assert self._complaints is not None
        words = "; ".join(self._text(self._complaints.last()).split("\n"))[-WORDS_MAX:]
        return f"it has ended before it answered {step}" + (f": {words}" if words else "")

    @staticmethod
    def _text(octets: bytes) -> str:
        return octets.decode(errors="replace").strip()


def undo(latch: Latch, until: float, _verdict: str) -> str:
    """Wait until the program on record has ended, and end it if that takes too long; return what went wrong.

    Its standard input has ended before: this process, or the one that had it, has closed it.
    """
    program = Program(*(latch.record or {}).get("program", (0, 0)))
    ended = hook_program.await_end(program, until)
    latch.clear()
    return "" if ended else "it did not end when its standard input had ended, and was ended"
