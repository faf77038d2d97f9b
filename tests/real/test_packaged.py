"""What is installed beside the code, given to systemd and the shell; and what the scripts refuse."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes.packaged import GA_UNIT, TREE, UNIT, recovery, settings, start_of_the_ga
from harness.fixtures import unmet

EXPOSURE_MOST = 55  # with mount namespaces of its own, ptrace of other processes' roots, and mount (ADR 0025)


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        unmet(f"needs {name} (Debian package {package})")
    return path


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The unit with programs that are there: systemd-analyze looks for them."""
    return with_programs(UNIT, tmp_path)


def with_programs(unit: Path, folder: Path) -> Path:
    text = re.sub(r"/opt/virtagent/current/bin/[a-z-]+", "/bin/true", unit.read_text(encoding="utf-8"))
    (folder / unit.name).write_text(text, encoding="utf-8")
    return folder / unit.name


def analyze(*arguments: str) -> None:
    command = [tool("systemd-analyze", "systemd"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # A setting that systemd ignores is only told there; so is what it finds wrong with other units.
    assert "virtagent" not in done.stderr, done.stderr


def test_systemd_takes_the_unit(runnable: Path) -> None:
    analyze("verify", "--man=no", str(runnable))


def test_systemd_takes_the_unit_in_the_place_of_qemu_ga(tmp_path: Path) -> None:
    analyze("verify", "--man=no", str(with_programs(GA_UNIT, tmp_path)))


def test_the_unit_is_as_closed_as_it_was(runnable: Path) -> None:
    analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(runnable))


@pytest.mark.parametrize("unit", [UNIT, GA_UNIT])
@pytest.mark.parametrize(
    ("ended", "recovers"),
    [
        ("exited 0", False),
        ("exited 2", True),
        ("exited 1", True),
        ("killed TERM", True),
        ("killed KILL", True),
        ("", True),
    ],
)
def test_only_a_daemon_that_ended_with_0_has_thawed_by_itself(
    unit: Path, ended: str, recovers: bool, tmp_path: Path
) -> None:
    (after,) = settings(unit)["ExecStopPost"]
    program = tmp_path / "virtagentd"
    program.write_text("#!/bin/sh\necho $*\n")
    program.chmod(0o755)
    _, _, script = shlex.split(after)
    code, _, status = ended.partition(" ")
    done = subprocess.run(
        ["/bin/sh", "-c", script.replace(recovery(after)[0], str(program))],
        env={"EXIT_CODE": code, "EXIT_STATUS": status},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout == ("--recover\n" if recovers else "")


@pytest.mark.parametrize("script", ["install", "uninstall"])
@pytest.mark.parametrize("wrong", [["--nonsense"], ["--prefix-root"], ["--prefix-root", ""], ["word"]])
def test_a_wrong_option_ends_with_one_sentence(script: str, wrong: list[str]) -> None:
    done = subprocess.run([TREE / "scripts" / script, *wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_only_root_may(script: str, tmp_path: Path) -> None:
    nobody = tmp_path / "id"
    nobody.write_text("#!/bin/sh\necho 65534\n")
    nobody.chmod(0o755)
    command = [str(TREE / "scripts" / script), "--prefix-root", str(tmp_path / "new")]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (2, f"{script}: must be run as root\n")
    assert not (tmp_path / "new").exists()


BLOCKED = "guest-file-open,guest-file-close,guest-exec,guest-exec-status"
ALLOWED = "guest-sync-delimited,guest-sync,guest-ping,guest-info,guest-get-devices,guest-fsfreeze-freeze"
# /etc/sysconfig/qemu-ga of RHEL 8, 9 and 9.4, and what their administrators make of it.
SYSCONFIG = (
    ({}, []),
    ({"BLACKLIST_RPC": BLOCKED, "FSFREEZE_HOOK_PATHNAME": "/etc/qemu-ga/fsfreeze-hook"},
     [f"--block-rpcs={BLOCKED}", "-F/etc/qemu-ga/fsfreeze-hook"]),
    ({"BLOCK_RPCS": f"{BLOCKED}, guest-ping", "FSFREEZE_HOOK_PATHNAME": ""},
     [f"--block-rpcs={BLOCKED}, guest-ping", "-F"]),
    ({"FILTER_RPC_ARGS": f"--allow-rpcs={ALLOWED} --block-rpcs=?", "FSFREEZE_HOOK_PATHNAME": "/dev/null"},
     [f"--allow-rpcs={ALLOWED}", "--block-rpcs=?", "-F/dev/null"]),
    ({"BLACKLIST_RPC": "", "BLOCK_RPCS": "", "FILTER_RPC_ARGS": ""}, []),
)  # fmt: skip


@pytest.mark.parametrize(("variables", "options"), SYSCONFIG)
def test_what_rhel_has_its_qemu_ga_told_is_told_to_ours(
    variables: dict[str, str], options: list[str], tmp_path: Path
) -> None:
    script, start = start_of_the_ga()
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "--block-rpcs=x").touch()  # what an unguarded ? would match
    command = ["/bin/sh", "-c", script.replace(start[0], str(program))]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*start[1:], *options]
    assert settings(GA_UNIT)["EnvironmentFile"] == ["-/etc/sysconfig/qemu-ga"]
