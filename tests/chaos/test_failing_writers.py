"""Calls that the kernel refuses to the worker of a writer: the freeze is refused, and each hook has its counterpart."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.faults import PASS, WRITER_CALLS
from harness.hooks import Hooks
from harness.hosts import call, code_of
from harness.processes import until
from harness.questions import resting
from harness.rig import Rig
from virtagent.agent.api.errors import NO_MORE, Code
from virtagent.agent.worker.writers.latch import left

LATCHES = "writers"
pytestmark = pytest.mark.timeout(120)
REFUSALS = [
    (name, number, passed)
    for name, numbers in WRITER_CALLS.items()
    for number in numbers
    for passed in range(4 if number == numbers[0] else 1)
]


@pytest.fixture
def hook(rig: Rig) -> Path:
    """Return a hook program that notes what it is called with, beside itself."""
    path = rig.area.fresh("hook")
    path.write_text(f'#!/bin/sh\necho "$1" >>{path}.calls\n')
    path.chmod(0o755)
    Path(f"{path}.calls").touch()
    return path


@pytest.mark.parametrize(("name", "number", "passed"), REFUSALS)
def test_whatever_call_a_writer_is_refused_each_hook_has_its_counterpart(
    rig: Rig, hooks: Hooks, hook: Path, name: str, number: str, passed: int
) -> None:
    """The first such call fails, or the second, and so on: before the hook, after it, or when it is undone."""
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--hook", str(hook)], module="harness.hooked", env=hooks.env)
    assert call(daemon, "va.fsfreeze") == call(daemon, "va.fsthaw") == 1
    rest = resting(rig, daemon)
    hooks.fail(name, PASS, passed)
    hooks.fail(name, number)
    answers = [call(daemon, "va.fsfreeze"), call(daemon, "va.fsthaw")]
    for answer in answers:
        assert "Errno" not in str(answer), answer
        assert "Error" not in str(answer), answer
    if code_of(answers[0]) is not None:
        assert code_of(answers[0]) == Code.VETOED
        assert "nothing was frozen" in answers[0].faultString
    if (name, number, passed) == ("writer_fork", "EAGAIN", 0):
        assert NO_MORE in answers[0].faultString, "H16"
    daemon.wait_status(lambda r: r["state"] == "THAWED" and not r["workers"])
    hooks.fail_no_more()
    until(lambda: calls(hook, "thaw") >= calls(hook, "freeze"), 10, "each hook has its counterpart")
    until(lambda: call(daemon, "va.fsfreeze") == 1, 10, "the next freeze")
    assert call(daemon, "va.fsthaw") == 1
    # A hook that was ended just after it had begun may not have noted that, and has its counterpart all the same.
    assert calls(hook, "thaw") - calls(hook, "freeze") in ((0, 1) if name == "writer_pidfd_open" else (0,))
    fs.assert_writable()
    until(lambda: not daemon.children(), 10, "no worker is left")
    rig.assert_unchanged(rest, daemon)
    assert not left(str(daemon.state_dir / LATCHES)), "nothing is on record"


def calls(hook: Path, word: str) -> int:
    """Return how often the hook was called with that word."""
    return Path(f"{hook}.calls").read_text(encoding="utf-8").split().count(word)
