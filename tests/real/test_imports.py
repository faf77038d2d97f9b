"""What a fresh process imports, and what a Ctrl-C meets meanwhile."""

from __future__ import annotations

import subprocess
import sys

import pytest

INTERRUPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == NAME:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from virtagent.host.main import main
sys.argv = ["virtagentctl", "--agent", "unix:/nowhere", "ping"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name", ["virtagent.host.cli", "argparse", "json", "virtagent.host.client_session", "virtagent.host.qga"]
)
def test_ctrl_c_while_it_is_imported(name: str) -> None:
    command = [sys.executable, "-c", f"NAME = {name!r}{INTERRUPT}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_what_is_imported_before_a_ctrl_c_can_be_caught() -> None:
    command = [sys.executable, "-c", "import sys, virtagent.host.main; print(*sys.modules)"]
    there = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    ours = {name for name in there if name.startswith("virtagent")}
    assert ours <= {"virtagent", "virtagent.host", "virtagent.host.main"}


@pytest.mark.parametrize("command", ["ping", "status", "thaw"])
def test_it_starts_without_asyncio_and_rich(command: str) -> None:
    code = "import sys; from virtagent.host.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    argv = [sys.executable, "-c", code, "--agent", "unix:/nowhere", command]
    there = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stderr.split()
    assert not {"asyncio", "rich"} & set(there)


def test_the_codec_brings_in_no_heavy_module() -> None:
    heavy = "{'ssl', 'http.client', 'xmlrpc.client', 'xmlrpc.server', 'email', 'pydoc', 'asyncio', 'decimal'}"
    code = f"import sys, virtagent.agent.wire.session; print(sorted({heavy} & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
