"""The recipes of docs/host.md, each run as it stands there, and the copies that they make looked at.

Those that need libvirt are run in tests/vm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fixtures import unmet
from harness.rig import Rig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "host.md").read_text(encoding="utf-8")
RECIPES = [text for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "libvirt:" not in text]
CONTENTS = "a file of the guest"


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe(rig: Rig, number: int) -> None:
    recipe = RECIPES[number]
    for program in ("qemu-img", "restic", "borg"):
        if program in recipe and shutil.which(program) is None:
            unmet(f"{program} is not there")
    backup = rig.area.fresh("backup")
    backup.mkdir()
    password = rig.area.fresh("password")
    password.write_text("secret")
    programs = rig.area.fresh("bin")
    programs.mkdir()
    (programs / "virtagentctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m virtagent.host.main "$@"\n')
    (programs / "virtagentctl").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "RESTIC_PASSWORD_FILE": str(password), "HOME": str(backup)}
    env |= {"BORG_BASE_DIR": str(backup), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    folder = rig.area.fresh("vm")
    for name in ("vm1", "vm2"):
        fs = rig.fs("ext4")
        (fs.path / "file").write_text(CONTENTS)
        (folder / name).mkdir(parents=True)
        (folder / name / "disk.img").hardlink_to(fs.image)
        recipe = recipe.replace(f"unix:/run/{name}/agent.sock", rig.daemon([fs]).url)
    recipe = recipe.replace("/var/lib", str(folder)).replace("/backup", str(backup))
    if "restic" in recipe:
        subprocess.run(["restic", "--quiet", "--repo", str(backup / "restic"), "init"], check=True, env=env)
    if "borg" in recipe:
        subprocess.run(["borg", "init", "--encryption", "none", "borg"], check=True, env=env, cwd=backup)
    ran = subprocess.run(["sh", "-ec", recipe], capture_output=True, text=True, timeout=50, env=env, cwd=backup)
    assert ran.returncode == 0, ran.stderr
    assert "without a break" in ran.stderr
    if "qcow2" in recipe:
        subprocess.run(["qemu-img", "convert", "-O", "raw", "vm1.qcow2", "vm1.img"], cwd=backup, check=True)
    if "restic" in recipe:
        subprocess.run(["restic", "--repo", "restic", "check"], cwd=backup, env=env, check=True, capture_output=True)
    if "borg" in recipe:
        subprocess.run(["borg", "check", "--verify-data", "borg"], cwd=backup, env=env, check=True)
        with (backup / "vm1.img").open("wb") as copy:
            subprocess.run(["borg", "extract", "--stdout", "borg::vm1"], cwd=backup, env=env, check=True, stdout=copy)
    copies = sorted(backup.glob("*.img"))
    assert len(copies) == recipe.count("--agent")
    for copy in copies:
        # -n: only look. It says nothing of a journal to be replayed: the copy is of a file system that was at rest.
        looked = subprocess.run(["e2fsck", "-f", "-n", copy], capture_output=True, text=True)
        assert looked.returncode == 0, looked.stdout
        assert "recover" not in looked.stdout
        inside = subprocess.run(["debugfs", "-R", "cat /file", copy], capture_output=True, text=True, check=True)
        assert inside.stdout == CONTENTS
