"""What is installed beside the code, read for tests: the units and their settings."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PACKAGING = TREE / "packaging"
UNIT = PACKAGING / "virtagentd.service"
GA_UNIT = PACKAGING / "virtagent-qemu-ga.service"


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    return settings_in(unit.read_text(encoding="utf-8"))


def settings_in(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", "").splitlines():
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


def cloud_init() -> tuple[dict[str, str], list[str]]:
    """Return what docs/install.md has cloud-init write, by path, and the commands that it runs then."""
    page = (TREE / "docs/install.md").read_text(encoding="utf-8")
    text = textwrap.dedent(re.findall(r"^    #cloud-config\n(?:    .*\n)+", page, re.MULTILINE)[0])
    files, _, commands = text.partition("runcmd:\n")
    found = {}
    for one in files.split("  - path: ")[1:]:
        path, _, about = one.partition("\n")
        found[path] = textwrap.dedent(about.partition("content: |\n")[2])
    return found, re.findall(r"^  - (.*)$", commands, re.MULTILINE)
