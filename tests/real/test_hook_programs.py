"""One run of a hook program, as a process: what its record says of one that could not begin."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from virtagent.agent.worker.writers import hook_program
from virtagent.agent.worker.writers.hook_program import Command, NotStarted
from virtagent.agent.worker.writers.latch import BEGUN, Latch
from virtagent.agent.worker.writers.step import wait


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("counted", [False, True])
def test_one_that_cannot_begin_is_told_and_is_no_one_that_began(
    counted: bool, earlier: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it counts itself something may be forbidden, after that only the program itself cannot be executed."""

    def forbidden() -> None:
        raise PermissionError(errno.EPERM, "forbidden")

    if not counted:
        monkeypatch.setattr(hook_program.kernel, "be_killed_like_others", forbidden)
    latch = Latch(str(tmp_path), "hook")
    latch.write({"type": "hook", "runs": []})
    for _ in range(earlier):
        latch.add(BEGUN)
    command = Command((f"{tmp_path}/gone" if counted else "/bin/true", "freeze"))
    with pytest.raises(NotStarted, match="ENOENT" if counted else "EPERM"):
        hook_program.run(command, latch, BEGUN, lambda _: None, wait, time.monotonic() + 60)
    assert latch.count(BEGUN) == earlier
