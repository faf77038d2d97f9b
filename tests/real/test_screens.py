"""The page of screens is made by a script that runs the real thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
HEADINGS = [
    "While the disks are synced, applications run",
    "It is frozen, COMMAND runs, it is thawed",
    "`virtagentctl watch` while it is frozen",
    "`virtagentctl thaw`, and what became of the freeze",
]


@pytest.mark.timeout(180)
def test_the_script_that_makes_the_screens(tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed (apt-get install tmux)")
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")
    made = tmp_path / "screens.md"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(TREE / "scripts/screens.py")]
    ran = subprocess.run([*command, str(made)], capture_output=True, text=True, timeout=170, check=False)
    assert ran.returncode == 0, ran.stderr
    for page in (made.read_text(), (TREE / "docs/screens.md").read_text()):
        assert re.findall(r"^## (.*)$", page, re.MULTILINE) == HEADINGS
        syncing, done, watched, thawed = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
        assert "~ SYNCING  applications run\n" in syncing
        assert re.search(r"\n  /srv/db   /dev/loop\d+ .* s\n", syncing)
        assert "good: 3 file systems held " in done
        assert "* FROZEN  applications stand still\n" in watched
        assert "thawed 3 file systems\ngood: 3 file systems held " in thawed
        assert all(len(line) <= 80 for line in (syncing + watched).splitlines())
