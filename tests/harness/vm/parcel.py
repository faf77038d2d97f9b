"""This tree and what it depends on as one file, so that a guest without a network can run scripts/install."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tarfile
from pathlib import Path

from .. import Unmet
from .image import TREE

PARTS = ("agent", "supervisor", "host", "kube", "packaging", "scripts", "docs")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE")


def pack(folder: Path, python: str) -> Path:
    """Write tree.tar with `tree` and `wheels` for that version of Python ("3.11"). Raises Unmet without an index."""
    config = configparser.ConfigParser()
    config.read(TREE / "setup.cfg")
    wanted = (config["options"]["install_requires"] + config["options.extras_require"]["host"]).split()
    wheels = folder / "wheels"
    download = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--dest", str(wheels)]
    kind = ["--only-binary=:all:", "--python-version", python]
    done = subprocess.run([*download, *kind, "setuptools>=70.1", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unmet(f"pip cannot download what the tree depends on: {done.stderr.strip()[-500:]}")
    target = folder / "tree.tar"
    with tarfile.open(target, "w") as tar:
        tar.add(wheels, "wheels")
        for name in (*PARTS, *FILES):
            tar.add(TREE / name, f"tree/{name}", filter=_plain)
    return target


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    return None if "__pycache__" in member.name else member
