"""A process that writes small records to a file system without pause and measures how long it stood still."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass

from .processes import Child, python

PACE = 0.001
ROUND = 4096  # records until the file is written from its beginning again


@dataclass(frozen=True)
class Standing:
    """`longest` and `now`: seconds without a finished write, at most and at this moment."""

    writes: int
    longest: float
    now: float


class Writer(Child):
    """Writes until it is closed. It answers questions also while its write is blocked."""

    def __init__(self, folder: str) -> None:
        super().__init__(python("harness.writer", os.path.join(folder, "writer")), f"writer on {folder}")
        self.line(20)

    def report(self) -> Standing:
        return Standing(**self.ask("report", 10))

    def reset(self) -> None:
        """Begin to measure anew."""
        self.ask("reset", 10)

    def wait_still(self, seconds: float = 0.1, timeout: float = 10) -> Standing:
        """Wait until no write has ended for `seconds`."""
        return self._standing(f"still {timeout} {seconds}", timeout)

    def wait_moving(self, timeout: float = 10) -> Standing:
        """Wait until the next write has ended."""
        return self._standing(f"moving {timeout}", timeout)

    def _standing(self, question: str, timeout: float) -> Standing:
        answer = self.ask(question, timeout + 10)
        if answer is None:
            raise TimeoutError(f"{self.name}: not within {timeout:g} s: {question.split()[0]}")
        return Standing(**answer)


class _Measure:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.writes, self.longest, self.last = 0, 0.0, time.monotonic()

    def written(self) -> None:
        with self.changed:
            now = time.monotonic()
            self.writes += 1
            self.longest = max(self.longest, now - self.last)
            self.last = now
            self.changed.notify()

    def answer(self, question: list[str]) -> str:
        with self.changed:
            if question[0] == "reset":
                self.longest, self.last = 0.0, time.monotonic()
            elif question[0] == "still":
                deadline = time.monotonic() + float(question[1])
                while (left := self.last + float(question[2]) - time.monotonic()) > 0:
                    if time.monotonic() > deadline:
                        return "null"
                    self.changed.wait(left)
            elif question[0] == "moving":
                count = self.writes
                if not self.changed.wait_for(lambda: self.writes > count, float(question[1])):
                    return "null"
            now = time.monotonic() - self.last
            return json.dumps({"writes": self.writes, "longest": max(self.longest, now), "now": now})


def main() -> None:
    measure = _Measure()

    over = threading.Event()

    def write() -> None:
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while not over.wait(PACE):
            os.pwrite(fd, b"%-63d\n" % measure.writes, measure.writes % ROUND * 64)
            measure.written()

    threading.Thread(target=write, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(measure.answer(line.split()), flush=True)
    over.set()
    os._exit(0)  # without waiting for a write that is blocked


if __name__ == "__main__":
    main()
