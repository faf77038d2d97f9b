"""The catalogue of messages, as journalctl takes it. journalctl -x of a broken freeze is in tests/vm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from harness import Unmet
from virtagent.supervisor.io.system_journal import MESSAGE_IDS

CATALOGUE = Path(__file__).resolve().parents[2] / "packaging/virtagent.catalog"


def journalctl(*arguments: str) -> str:
    if shutil.which("journalctl") is None:
        raise Unmet("needs journalctl (Debian package systemd)")
    done = subprocess.run(["journalctl", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["usr/lib/systemd/catalog", "usr/local/lib/systemd/catalog"])
def test_journalctl_takes_it_where_it_is_installed(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    shutil.copy(CATALOGUE, tmp_path / folder)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    journalctl(f"--root={tmp_path}", "--update-catalog")
    listed = journalctl(f"--root={tmp_path}", "--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == set(MESSAGE_IDS.values())
    told = journalctl(f"--root={tmp_path}", "--dump-catalog", MESSAGE_IDS["broken"])
    assert "Subject: A freeze was broken: the snapshot is not consistent" in told
    assert "Throw away the snapshot" in told
