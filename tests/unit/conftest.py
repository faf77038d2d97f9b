"""Unit tests start no process: what needs one belongs in tests/real."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from fakes.drive import Drive

STARTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
}
_refuses = False


class StartedProcess(BaseException):
    """A unit test started a process. Not an Exception, so that no code under test handles it."""


def _refuse(event: str, _arguments: object) -> None:
    if _refuses and event in STARTS:
        raise StartedProcess(f"{event}: a unit test starts no process; move this test to tests/real")


sys.addaudithook(_refuse)


@pytest.fixture(autouse=True)
def no_process() -> Iterator[None]:
    """Refuse processes while a test of this folder runs."""
    global _refuses
    _refuses = True
    yield
    _refuses = False
    threading.stack_size(0)  # a worker's threads have small ones, which are too small for those of other tests


@pytest.fixture
def drive() -> Drive:
    """Make a core under a hand-held clock."""
    return Drive()
