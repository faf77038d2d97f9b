"""What `virtagentd --plan` prints: devices, what a freeze would take now, the options, no list of pseudo ones."""

from __future__ import annotations

import pytest
from virtagent.agent.api.records import LeftOut, Mount, Plan
from virtagent.agent.worker import sysfs
from virtagent.supervisor import main
from virtagent.supervisor.config import load

PLAN = Plan(
    (
        Mount("/srv/db", device="253:3", fstype="ext4", source="/dev/mapper/vg0-db", dm="dm-3"),
        Mount("/", device="8:1", fstype="xfs", source="/dev/sda1", level=1),
    ),
    (LeftOut("/efi", device="8:2", fstype="vfat", reason="unsupported"), LeftOut("/proc", reason="pseudo")),
)


def test_it_says_what_a_freeze_would_take(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sysfs, "read_plan", lambda rules: PLAN)
    config, _ = load(["--hold-limit", "30", "--config", "/dev/null"])
    assert main.print_plan(config) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "  level 0  /srv/db (ext4, /dev/mapper/vg0-db = dm-3 = 253:3)" in lines
    assert "  unsupported   /efi (vfat, 8:2)" in lines
    assert "  pseudo        1 more" in lines
    assert not [line for line in lines if "/proc" in line]
    [estimate] = [line for line in lines if line.startswith("if run now: ")]
    assert " to write" in estimate
    assert estimate.endswith("thaws by itself after 30 s")
    given = lines[lines.index("options in force") + 1 :]
    assert given[0] == "  hold-limit  30  command line"
    assert "sync-limit 600" in given[1]
