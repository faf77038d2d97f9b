"""The completion scripts in the shells that they are for."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from harness.fixtures import unmet
from virtagent.host import completion, options


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
    assert completed("--agent", "unix:/x", "snapshot", "--ho") == ["--hold", "--hold-limit"]
    assert completed("snapshot", "--hold", "5", "--ex") == ["--exclude", "--extend"]
    assert completed("watch", "--until", "FR") == ["FROZEN"]
    assert completed("completion", "b") == ["bash"]
    assert completed("freeze", "--wait", "") == []
    assert "cat" in completed("snapshot", "--", "ca")
    assert completed("call", "--", "sn") == []


def completed_by_zsh(*words: str) -> list[str]:
    """Return what zsh's function offers for the last word; zsh itself then leaves out what does not begin so."""
    stubs = (
        "compdef() { }; compadd() { shift; print -l -- $@ }; _files() { print FILES }; _normal() { print -l N $words }"
    )
    call = f"words=(virtagentctl {shlex.join(words)}); CURRENT={len(words) + 1}; _virtagentctl"
    script = f"{stubs}\n{completion.zsh(options.parser())}\n{call}"
    ran = subprocess.run([tool("zsh"), "-f", "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert ran.stderr == ""
    return ran.stdout.split()


def test_zsh_completes() -> None:
    assert set(completed_by_zsh("")) >= {"ping", "freeze", "--agent", "completion"}
    assert set(completed_by_zsh("--agent", "unix:/x", "snapshot", "--ho")) >= {"--hold", "--extend"}
    assert "FROZEN" in completed_by_zsh("watch", "--until", "FR")
    assert "zsh" in completed_by_zsh("completion", "")
    assert completed_by_zsh("freeze", "--wait", "") == ["FILES"]
    assert completed_by_zsh("snapshot", "--hold", "5", "--", "ca") == ["N", "ca"]
    assert completed_by_zsh("snapshot", "--", "cat", "/et") == ["N", "cat", "/et"]
    assert completed_by_zsh("call", "--", "sn") == []


def completed_by_fish(tmp_path: Path, line: str) -> set[str]:
    """Return what fish offers for the end of the line."""
    script = tmp_path / "virtagentctl.fish"
    script.write_text(completion.fish(options.parser()))
    command = [tool("fish"), "--no-config", "-c", f"source {script}; complete -C {shlex.quote(f'virtagentctl {line}')}"]
    env = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)
    assert ran.stderr == ""
    return {found.partition("\t")[0] for found in ran.stdout.splitlines()}


def test_fish_completes(tmp_path: Path) -> None:
    assert completed_by_fish(tmp_path, "sn") == {"snapshot"}
    assert completed_by_fish(tmp_path, "--agent unix:/x snapshot --ho") == {"--hold", "--hold-limit"}
    assert completed_by_fish(tmp_path, "snapshot --hold 5 --ex") == {"--exclude", "--extend"}
    assert completed_by_fish(tmp_path, "watch --until FR") == {"FROZEN"}
    assert completed_by_fish(tmp_path, "completion ") == {"bash", "zsh", "fish"}
    assert "cat" in completed_by_fish(tmp_path, "snapshot -- ca")
    assert "/etc/hostname" in completed_by_fish(tmp_path, "snapshot -- cat /etc/hostn")
    assert completed_by_fish(tmp_path, "call -- sn") == set()


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        unmet(f"{name} is not there")
    return found
