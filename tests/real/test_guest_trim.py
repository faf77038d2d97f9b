"""guest-fstrim on real file systems, and on none that is not the test's."""

from __future__ import annotations

from typing import Any

import pytest
from harness.filesystems import KINDS
from harness.rig import Rig
from virtagent.agent.worker import sysfs
from virtagent.agent.worker.commands import machine
from virtagent.agent.worker.mountinfo import MountInfo


class _Worker:
    def title(self, doing: str) -> None:
        assert doing


def trim(rig: Rig, minimum: int | None = None) -> list[dict[str, Any]]:
    def ours() -> list[MountInfo]:
        return [m for m in sysfs.read_mountinfo() if m.mountpoint.startswith(f"{rig.area.root}/")]

    worker: Any = _Worker()
    answer: list[dict[str, Any]] = machine.fstrim(worker, {"minimum": minimum}, read_mounts=ours)["paths"]
    return answer


def test_every_file_system_once(rig: Rig) -> None:
    made = [rig.fs(kind) for kind in KINDS]
    answer = trim(rig)
    assert [result["path"] for result in answer] == [str(fs.path) for fs in reversed(made)]
    for result in answer:
        assert result.keys() == {"path", "trimmed", "minimum"}
        assert result["trimmed"] > 1 << 20


@pytest.mark.parametrize("minimum", [1 << 40, -1])
def test_a_minimum_that_nothing_reaches(rig: Rig, minimum: int) -> None:
    fs = rig.fs("ext4")
    assert trim(rig, minimum) == [{"path": str(fs.path), "error": "failed to trim: Invalid argument"}]
