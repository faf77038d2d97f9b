"""What a program of the operator's may write to its standard error."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker.writers import live
from virtagent.agent.worker.writers.latch import Latch
from virtagent.agent.worker.writers.step import Refused, wait

SOON = 30.0
MUCH = b"x" * 300_000  # of which a pipe holds 65,536


class Program:
    """A program that complains at length when it is told something, and then answers it; and once more as it ends."""

    pid = 0
    last: Program
    answer = b"ok\n"

    def __init__(self, _command: object, *, stderr: int, **_: Any) -> None:
        Program.last = self
        self.stdin = self
        out, self.said = os.pipe2(os.O_CLOEXEC)
        self.stdout = os.fdopen(out, "rb", buffering=0)
        self.errors = os.dup(stderr)
        self.words = MUCH

    def write(self, _line: bytes) -> None:
        """Hear a line."""
        self.complain(self.words)
        if self.answer:
            os.write(self.said, self.answer)
        else:
            self.close()

    def close(self) -> None:
        """Hear the end of standard input."""
        if self.said >= 0:
            self.complain(self.words)
            os.close(self.errors)
            os.close(self.said)
            self.said = -1

    def complain(self, data: bytes) -> None:
        """Write all of it; raise BlockingIOError if it cannot be waited for that."""
        while data:
            data = data[os.write(self.errors, data) :]

    def wait(self, _seconds: float) -> int:
        """Have ended."""
        return 0


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[live.Live]:
    monkeypatch.setattr(live.subprocess, "Popen", Program)
    yield live.Live(WriterConfig("a", "live", command=("/p",)), Latch(str(tmp_path / "writers"), "a"), wait)
    Program.last.stdout.close()


def test_it_may_complain_more_than_a_pipe_holds(writer: live.Live) -> None:
    """It neither fails with EAGAIN, as most programs would, nor waits for ever; also not while it ends."""
    assert writer.prepare(time.monotonic() + SOON) == {}
    assert writer.release(time.monotonic() + SOON, "good") == ""
    assert Program.last.said < 0, "it has written all, and ended"


@pytest.mark.parametrize("left", [False, True])
def test_its_last_words_are_told(writer: live.Live, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Also if something that it leaves behind still has its standard error."""
    monkeypatch.setattr(live, "LAST_WORDS", 0.1 if left else SOON, raising=False)
    monkeypatch.setattr(Program, "answer", b"")
    start, also = Program.__init__, []

    def begin(self: Program, *args: Any, stderr: int, **more: Any) -> None:
        start(self, *args, stderr=stderr, **more)
        self.words = MUCH + b"\nno room\n"
        if left:
            also.append(os.dup(stderr))

    monkeypatch.setattr(Program, "__init__", begin)
    with pytest.raises(Refused, match=r"ended before it answered prepare: .*no room$"):
        writer.prepare(time.monotonic() + SOON)
    writer.release(time.monotonic() + SOON, "bad")
    for fd in also:
        os.close(fd)
