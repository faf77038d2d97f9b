"""What makes the guest's root file system without root.

In a user namespace one is taken for root, as far as that goes; fakeroot remembers the owners that cannot be there.

Needs unprivileged user namespaces, as Debian has them, and the package fakeroot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .. import Unmet
from ..processes import python

PROGRAMS = {"unshare": "util-linux", "mount": "mount", "fakeroot": "fakeroot"}
NAMESPACES = ("--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def make(work: Path, *arguments: str) -> None:
    """Run `image.make` with these arguments, taken for root. Raises Unmet."""
    if subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, check=False).returncode:
        raise Unmet(
            "making the guest's image needs root, once, since this machine allows no user namespaces without it"
        )
    command = ["unshare", *NAMESPACES, "fakeroot", "--", *python("harness.vm.image", str(work), *arguments)]
    # Else it says so of each owner that is not mapped.
    environment = {**os.environ, "FAKEROOTDONTTRYCHOWN": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unmet(f"making the guest's image without root failed: {(done.stderr or done.stdout).strip()[-2000:]}")


@contextlib.contextmanager
def prepared(tree: Path) -> Iterator[None]:
    """Give a tree that is going to be made what programs in it need to run under fakeroot; nothing if this is not."""
    if "FAKEROOTKEY" not in os.environ:
        yield
        return
    # The dynamic linker of a program in the tree looks there for what LD_PRELOAD names.
    folder = next(
        Path(name) for name in os.environ["LD_LIBRARY_PATH"].split(":") if Path(name, os.environ["LD_PRELOAD"]).exists()
    )
    inside = tree / folder.relative_to("/")
    shutil.copytree(folder, inside, symlinks=True)
    (tree / "dev").mkdir()
    for name in DEVICES:
        (tree / "dev" / name).touch()
        subprocess.run(["mount", "--bind", f"/dev/{name}", tree / "dev" / name], check=True)
    try:
        yield
    finally:
        for name in DEVICES:
            subprocess.run(["umount", tree / "dev" / name], check=True)
            (tree / "dev" / name).unlink()
        shutil.rmtree(inside)
