"""scripts/docs as a program; what it writes is checked without a process in tests/unit/test_docs.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/docs"


def run(*command: str) -> tuple[int, str]:
    # A fixed seed would hide an order that depends on the hashes.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    ran = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False, env=environment)
    return ran.returncode, ran.stderr


def test_what_is_generated_is_current() -> None:
    assert run(sys.executable, str(SCRIPT)) == (0, "")


def test_it_needs_nothing_that_is_installed() -> None:
    assert run(sys.executable, "-I", "-S", str(SCRIPT)) == (0, "")
