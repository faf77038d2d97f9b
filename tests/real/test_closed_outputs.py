"""Every program with outputs that are closed or full: no traceback, and an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("program", ["virtagentctl", "virtagentd", "virtagent-qemu-ga"])
@pytest.mark.parametrize("words", ["--version", "--bogus"])
@pytest.mark.parametrize("where", [">&-", "2>&-", ">&- 2>&-", ">/dev/full"])
def test_no_traceback(program: str, words: str, where: str) -> None:
    line = f"'{BIN / program}' {words} {where}"
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=50, check=False)
    assert "Traceback" not in ran.stderr
    right = 0 if words == "--version" else {"virtagent-qemu-ga": 1}.get(program, 2)
    full = where == ">/dev/full" and (words == "--version" or program == "virtagent-qemu-ga")
    assert ran.returncode == (1 if full else right), ran.stderr
