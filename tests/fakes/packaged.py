"""What is installed beside the code, read for tests: the units and their settings."""

from __future__ import annotations

import shlex
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PACKAGING = TREE / "packaging"
UNIT = PACKAGING / "virtagentd.service"
GA_UNIT = PACKAGING / "virtagent-qemu-ga.service"


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").replace("\\\n", "").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def recovery(after: str) -> list[str]:
    """Return the command with which ExecStopPost thaws."""
    shell, option, script = shlex.split(after)
    assert (shell, option) == ("/bin/sh", "-c")
    return script.partition(" exec ")[2].split()


def start_of_the_ga() -> tuple[str, list[str]]:
    """Return the shell script of ExecStart, as systemd gives it to the shell, and its words if no variable is set."""
    (start,) = settings(GA_UNIT)["ExecStart"]
    shell, option, script = shlex.split(start)
    assert (shell, option) == ("/bin/sh", "-c")
    script = script.replace("$$", "$")
    assert script.startswith("set -f; exec ")
    return script, script.partition(" exec ")[2].partition(" $")[0].split()
