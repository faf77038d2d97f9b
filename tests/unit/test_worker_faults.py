"""What a worker that meets the unforeseen tells: what the system refused, in words; of a defect the place."""

from __future__ import annotations

import errno
import os

import pytest
from virtagent.agent.api.errors import Code
from virtagent.agent.worker.process import fault_of
from virtagent.supervisor.io import process


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")]
)
def test_no_more_threads_or_processes_is_said_so(error: Exception) -> None:
    fault = fault_of("va.fsfreeze", error)
    assert fault.code is Code.FAILED
    assert fault.text.startswith("va.fsfreeze: no more threads or processes; raise pids.max")
    assert fault.text.endswith("(EAGAIN)")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "va.fsplan: Too many open files (EMFILE)"),
        (OSError(errno.ENOENT, "No such file or directory", "/x"), "va.fsplan: /x: No such file or directory (ENOENT)"),
        (OSError(errno.EIO, "Input/output error", b"/\xff"), "va.fsplan: /\udcff: Input/output error (EIO)"),
    ],
)
def test_what_the_system_refused_is_no_defect(error: OSError, text: str) -> None:
    fault = fault_of("va.fsplan", error)
    assert (fault.code, fault.text) == (Code.FAILED, text)


def test_a_defect_names_its_place() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        fault = fault_of("va.fsplan", error)
    assert fault.code is Code.INTERNAL
    assert fault.text.startswith("va.fsplan: KeyError: 'x' (test_worker_faults.py:")


def test_a_fork_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(OSError, match="no more threads or processes") as caught:
        process.System().fork()
    assert caught.value.errno == errno.EAGAIN
