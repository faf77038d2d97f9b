"""The packages in real guests of Debian 12 and 13, in place of the qemu-ga that Debian ships there.

Without KVM each guest takes some ten minutes, on a busy machine an hour: they are tried only when VIRTAGENT_VM_RELEASED
is set.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.packaged import cloud_init
from harness import Unmet
from harness.fixtures import unmet
from harness.processes import until
from harness.vm.image import TREE
from harness.vm.machine import PATIENCE, Transport
from harness.vm.released import DATA, FOLDER, PATH, Released, libvirt, newer, proxmox
from virtagent.agent import __version__

NEWER = f"{__version__}+later1"
SUITES = ("bookworm", "trixie")
NUMBERS = itertools.count(1_700_000_000_000)
BY_LIBVIRT = (
    "guest-ping",
    "guest-get-host-name",
    "guest-get-osinfo",
    "guest-get-timezone",
    "guest-get-users",
    "guest-get-fsinfo",
    "guest-network-get-interfaces",
    "guest-get-vcpus",
    "guest-get-time",
    "guest-fsfreeze-status",
)
BY_PROXMOX = ("guest-ping", "guest-info", "guest-get-fsinfo", "guest-get-osinfo", "guest-fsfreeze-status")
UNIT = "virtagent-qemu-ga"

pytestmark = pytest.mark.skipif(
    "VIRTAGENT_VM_RELEASED" not in os.environ, reason="takes minutes: VIRTAGENT_VM_RELEASED=1 scripts/test --vm"
)


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    lacking = [tool for tool in ("dpkg-buildpackage", "dh", "dh_python3") if shutil.which(tool) is None]
    if lacking:
        unmet(f"needs {', '.join(lacking)}")
    folder = tmp_path_factory.mktemp("debs")
    subprocess.run([TREE / "scripts/package", "--output", folder, "deb"], check=True, stdout=subprocess.DEVNULL)
    first = folder / f"virtagent-qemu-ga_{__version__}_all.deb"
    subprocess.run([sys.executable, "-I", TREE / "packaging/zipapp/build.py", folder / "virtagentd.pyz"], check=True)
    return [first, newer(first, folder, NEWER), folder / "virtagentd.pyz"]


@pytest.fixture(params=SUITES)
def guest(request: pytest.FixtureRequest, tmp_path: Path, debs: list[Path]) -> Iterator[Released]:
    try:
        made = Released(tmp_path, request.param, debs)
    except Unmet as reason:
        unmet(reason)
    yield made
    made.close()


def shape(answer: Any) -> Any:
    """Return what a host's parser sees of an answer: members and types."""
    if isinstance(answer, dict):
        return {name: shape(value) for name, value in answer.items()}
    return [shape(answer[0])] if isinstance(answer, list) and answer else type(answer).__name__


def conversation(port: Transport) -> dict[str, Any]:
    """Ask what libvirt and Proxmox ask, a snapshot in the middle; return the answers."""
    said: dict[str, Any] = {f"libvirt {name}": libvirt(port, next(NUMBERS), name) for name in BY_LIBVIRT}
    said |= {f"proxmox {name}": proxmox(port, next(NUMBERS), name) for name in BY_PROXMOX}
    for name, ask in (("libvirt", libvirt), ("proxmox", proxmox)):
        said[f"{name} freeze"] = ask(port, next(NUMBERS), "guest-fsfreeze-freeze")
        said[f"{name} frozen"] = ask(port, next(NUMBERS), "guest-fsfreeze-status")
        said[f"{name} thaw"] = ask(port, next(NUMBERS), "guest-fsfreeze-thaw")
        said[f"{name} thawed"] = ask(port, next(NUMBERS), "guest-fsfreeze-status")
    return said


def commands(said: dict[str, Any]) -> set[str]:
    return {command["name"] for command in said["proxmox guest-info"]["supported_commands"]}


def alike(before: Any, after: Any, where: str = "") -> list[str]:
    """Return where the answer after has less than the one before, or another type."""
    if isinstance(before, dict) and isinstance(after, dict):
        lacking = [f"{where}.{name} is missing" for name in before.keys() - after.keys()]
        return lacking + [w for name in before.keys() & after.keys() for w in alike(before[name], after[name], name)]
    if isinstance(before, list) and isinstance(after, list):
        return alike(before[0], after[0], where) if before and after else []
    return [] if before == after else [f"{where}: {before} became {after}"]


@pytest.mark.timeout(5400)
def test_apt_puts_ours_in_place_of_qemu_ga_upgrades_it_and_takes_it_away(guest: Released) -> None:
    began = time.monotonic()
    with contextlib.closing(guest.machine.port()) as port:
        for step in STEPS:
            step(guest, port)
            print(f"{step.__name__} {time.monotonic() - began:.0f} s after the boot")


def replaced(guest: Released, port: Transport) -> None:
    before = conversation(port)
    assert not any(name.startswith("va.") for name in commands(before))
    stock = guest.package("qemu-guest-agent")
    assert stock

    guest.apt(f"install {FOLDER}/virtagent-qemu-ga_{__version__}_all.deb")
    print(f"installed over qemu-guest-agent {stock}")
    if PATIENCE > 1:  # a guest that is so slow that it cannot plan in 5 s
        guest.sh(f"echo plan-limit 60 >>/etc/virtagent/virtagentd.conf; systemctl restart {UNIT}")
    assert (guest.package("qemu-guest-agent"), guest.package(UNIT)) == ("", __version__)
    assert guest.unit(UNIT) == "active"
    assert guest.sh("pgrep -x qemu-ga", check=False) == ""
    assert guest.sh("qemu-ga -V").startswith("QEMU Guest Agent ")
    after = conversation(port)
    assert "va.fsstatus" in commands(after)
    assert commands(before) - {"guest-get-devices"} <= commands(after), "that one is for Windows (docs/qga.md)"
    changed = {name: wrong for name in before if (wrong := alike(shape(before[name]), shape(after[name])))}
    assert not changed
    assert after["libvirt freeze"] == before["libvirt freeze"] == after["proxmox thaw"]


def upgraded(guest: Released, port: Transport) -> None:
    main = guest.sh(f"systemctl show -p MainPID --value {UNIT}")
    guest.apt(f"install {FOLDER}/virtagent-qemu-ga_{NEWER}_all.deb")
    assert guest.package(UNIT) == NEWER
    assert guest.sh(f"systemctl show -p MainPID --value {UNIT}") != main, "what runs is what is installed"
    assert libvirt(port, next(NUMBERS), "guest-ping") == {}, "on the connection that the host had before"


def refused_while_frozen(guest: Released, port: Transport) -> None:
    assert proxmox(port, next(NUMBERS), "guest-fsfreeze-freeze-list", mountpoints=[DATA]) == 1
    again = f"install --reinstall --allow-downgrades {FOLDER}/virtagent-qemu-ga_{__version__}_all.deb"
    for change in (again, f"remove {UNIT}", f"purge {UNIT}"):
        refused = guest.apt(change, check=False)
        assert refused.code != 0, change
        assert DATA in refused.err + refused, "it says what is frozen"
        assert proxmox(port, next(NUMBERS), "guest-fsfreeze-status") == "frozen", change
        assert guest.package(UNIT) == NEWER


def broken_and_explained(guest: Released, port: Transport) -> None:
    """What refused_while_frozen has frozen is broken by a restart, which is not apt's to refuse: it thaws first."""
    guest.sh(f"systemctl restart {UNIT}")
    guest.sh(f"touch {DATA}/written")
    error = proxmox(port, next(NUMBERS), "guest-fsfreeze-thaw")
    assert isinstance(error, dict)
    assert "was broken" in error["desc"]
    explained = guest.sh(f"{PATH} journalctl -x -o short -u {UNIT} --no-pager")
    print(explained)
    for words in (
        "A freeze was broken: the snapshot is not consistent",
        "Throw away the snapshot",
        "The guest's file systems are frozen",
    ):
        assert words in explained
    found = guest.sh(f"journalctl -o cat -u {UNIT} VIRTAGENT_MOUNT={DATA} --no-pager")
    assert "-> FROZEN" in found


def removed_and_purged(guest: Released, _port: Transport) -> None:
    guest.apt(f"remove {UNIT}")
    assert guest.package(UNIT) == ""
    until(lambda: guest.sh("pgrep -f '^virtagentd: supervisor'", check=False) == "", 30, "the agent has ended")
    left = guest.sh("ls -d /etc/virtagent/virtagentd.conf /usr/lib/virtagent /usr/sbin/qemu-ga", check=False)
    assert left == "/etc/virtagent/virtagentd.conf\n"
    guest.apt(f"purge {UNIT}")
    assert guest.sh("ls -d /etc/virtagent /run/virtagent /usr/lib/virtagent", check=False) == ""
    assert guest.sh(f"systemctl list-unit-files '{UNIT}*' --no-legend", check=False) == ""


def by_cloud_init(guest: Released, port: Transport) -> None:
    """What docs/install.md has cloud-init do with the one file, where nothing of ours is installed any more."""
    files, commands = cloud_init()
    for path, text in files.items():
        if text:
            guest.sh(f"cat >{path} <<'END'\n{text}END\n")
        else:
            guest.sh(f"install -m 755 {FOLDER}/{Path(path).name} {path}")
    for command in commands:
        guest.sh(f"{PATH} {command}")
    assert libvirt(port, next(NUMBERS), "guest-ping") == {}
    info: Any = proxmox(port, next(NUMBERS), "guest-info")
    assert "va.fsstatus" in {one["name"] for one in info["supported_commands"]}
    assert proxmox(port, next(NUMBERS), "guest-fsfreeze-freeze-list", mountpoints=[DATA]) == 1
    assert proxmox(port, next(NUMBERS), "guest-fsfreeze-thaw") == 1
    assert guest.sh("systemctl is-enabled virtagentd") == "enabled\n", "it is there after the next boot"

    assert proxmox(port, next(NUMBERS), "guest-fsfreeze-freeze-list", mountpoints=[DATA]) == 1
    guest.sh("systemctl kill --kill-whom=all -s KILL virtagentd")
    guest.sh(f"touch {DATA}/written")  # waits until the next start has thawed what the journal names
    error = proxmox(port, next(NUMBERS), "guest-fsfreeze-thaw")
    assert isinstance(error, dict)
    assert "was broken" in error["desc"]
    guest.sh("systemctl stop virtagentd")


STEPS = (replaced, upgraded, refused_while_frozen, broken_and_explained, removed_and_purged, by_cloud_init)
