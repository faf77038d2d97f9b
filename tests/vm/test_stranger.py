"""A stranger's way by the README, timed: a fresh Debian guest, its first `snapshot`, and one from its host's libvirt.

It says after how many seconds each command was done (`pytest -s`). Without KVM it takes some minutes, on a busy machine
many: it is tried only when VIRTAGENT_VM_RELEASED is set.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Unmet
from harness.fixtures import unmet
from harness.vm import parcel
from harness.vm.domain import NAME, Domain
from harness.vm.image import TREE
from harness.vm.machine import PATIENCE
from test_install import OURS, SCRIPTS

README = (TREE / "README.md").read_text(encoding="utf-8")
LONG = 500.0 * PATIENCE
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

pytestmark = pytest.mark.skipif(
    "VIRTAGENT_VM_RELEASED" not in os.environ, reason="takes minutes: VIRTAGENT_VM_RELEASED=1 scripts/test --vm"
)


def block(after: str) -> list[str]:
    """Return the command lines of the README's first indented block after these words, without their comments."""
    text = README[README.index(after) :]
    found = re.search(r"\n\n((?:    .*\n)+)", text)
    assert found is not None
    joined = re.sub(r" *\\\n +", " ", found[1])
    return [re.sub(r" +#.*", "", line).strip() for line in joined.splitlines()]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Domain]:
    """A guest in which nothing of ours is, but for the tree that was fetched, and wheels in place of an index."""
    if importlib.util.find_spec("libvirt") is None:
        unmet("needs libvirt-python: install virtagent[libvirt]")
    try:
        version = "import sys; print(*sys.version_info[:2], sep='.')"
        # The guest's release of Debian is that of this machine.
        python = subprocess.run(["/usr/bin/python3", "-c", version], capture_output=True, text=True, check=True).stdout
        over, folder = tmp_path / "over/root", tmp_path / "guest"
        over.mkdir(parents=True)
        folder.mkdir()
        shutil.move(parcel.pack(tmp_path, python.strip()), over)
        domain = Domain(folder, over.parent)
        try:
            domain.sh("tar xf /root/tree.tar -C /root && rm /root/tree.tar")
            domain.sh(f"systemctl -q stop virtagentd; rm -rf {OURS} /usr/lib/python3/dist-packages/virtagent.pth")
            domain.sh("systemctl daemon-reload; udevadm control --reload")
            yield domain
        finally:
            domain.close()
    except Unmet as reason:
        unmet(reason)


@pytest.mark.timeout(5400)
def test_from_the_readme_to_a_first_snapshot_in_the_guest_and_one_from_the_host(fresh: Domain) -> None:
    began = time.monotonic()

    def done(what: str, said: str) -> None:
        print(f"-- {time.monotonic() - began:.0f} s: {what}\n{said}", flush=True)

    install, *rest = block("two minutes:")
    done(install, fresh.sh(f"{SCRIPTS}{install.removeprefix('scripts/')}", LONG))
    for line in rest:
        found = fresh.sh(f"{PATH} {line}", LONG, check=False)
        done(line, found + found.err)
        assert found.code == 0, line
    assert "good: " in found.err

    for channel in re.findall(r"`(channel [^`]+)`", README[README.index("On the host") :]):
        fresh.sh(f"echo '{channel}' >>/etc/virtagent/virtagentd.conf")
    fresh.sh("systemctl restart virtagentd")
    fresh.wait_answer(300)
    [line] = [line for line in block("On the host") if line.startswith("virtagentctl")]
    words = line.replace("vm1", NAME).split()
    program = str(Path(sys.executable).with_name(words[0]))
    shown = subprocess.run(
        [program, *words[1:]],
        env=os.environ | {"LIBVIRT_DEFAULT_URI": fresh.libvirtd.uri, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    done(line, shown.stdout + shown.stderr)
    assert shown.returncode == 0
    assert "good: " in shown.stderr
    assert "before-upgrade" in fresh.files()["vda"].name
