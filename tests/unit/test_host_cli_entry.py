"""virtagentctl's first milliseconds, its completion and its manual page."""

from __future__ import annotations

import subprocess
import sys

import pytest
from virtagent.host import completion, manual, options

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
    "name", ["virtagent.host.cli", "argparse", "json", "virtagent.host.link", "virtagent.host.qga"]
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


def completed(*words: str) -> list[str]:
    """Return what bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=(virtagentctl {quoted}); COMP_CWORD={len(words)}; _virtagentctl"
    script = f"{completion.bash(options.parser())}\n{asked}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    bash = ["bash", "--norc", "--noprofile", "-c", script]
    ran = subprocess.run(bash, capture_output=True, text=True, timeout=20, check=True)
    assert ran.stderr == ""
    return ran.stdout.split()


def test_bash_completes() -> None:
    assert completed("sn") == ["snapshot"]
    assert set(completed("")) >= {"ping", "freeze", "--agent", "completion"}
    assert completed("--agent", "unix:/x", "snapshot", "--ho") == ["--hold"]
    assert completed("snapshot", "--hold", "5", "--ex") == ["--exclude", "--extend"]
    assert completed("watch", "--until", "FR") == ["FROZEN"]
    assert completed("completion", "b") == ["bash"]
    assert completed("freeze", "--wait", "") == []
    assert "cat" in completed("snapshot", "--", "ca")
    assert completed("call", "--", "sn") == []


def test_the_script_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from virtagent.host import cli

    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion.bash(options.parser())


def test_the_manual_page_names_everything() -> None:
    page = manual.page(options.parser()).replace("\\-", "-")
    commands = options.commands_of(options.parser())
    for name, one in commands.items():
        assert f"\n.SS {name}" in page
        for action in options.options_of(one):
            assert all(option in page for option in action.option_strings)
    assert all(f"\n.B {code}\n" in page for code, _ in options.EXIT_CODES)
