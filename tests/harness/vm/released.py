"""A guest as a release of Debian makes it: its own qemu-ga behind the port, and packages of ours to be installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import image
from .machine import Disk, Machine, Result, Transport

FOLDER = "/root/debs"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive"
LONG = 900.0
DATA = "/srv/data"


class Released:
    """The guest, booted; `debs` lie in FOLDER, and a file system on a disk of its own is mounted at DATA."""

    def __init__(self, folder: Path, suite: str, debs: Sequence[Path]) -> None:
        base = image.base(suite)
        over = folder / "over"
        (over / FOLDER.lstrip("/")).mkdir(parents=True)
        for deb in debs:
            shutil.copy(deb, over / FOLDER.lstrip("/"))
        disk = folder / "data.img"
        with open(disk, "wb") as file:
            file.truncate(64 << 20)
        mkfs = shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"
        subprocess.run([mkfs, "-q", disk], check=True, stdout=subprocess.DEVNULL)
        initramfs = image.initramfs(base, folder, over, ours=False)
        self.machine = Machine(base, initramfs, folder, [Disk("data", disk)])
        try:
            self.machine.wait_up(LONG)
            self.sh(f"mkdir -p {DATA} && mount -t ext4 /dev/vdb {DATA}")
            self.sh("mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial")
            self.sh("systemctl -q unmask qemu-guest-agent; systemctl start qemu-guest-agent")
        except BaseException:
            self.machine.close()
            raise

    def sh(self, command: str, timeout: float = LONG, *, check: bool = True) -> Result:
        """Run a command line in the guest, by a shell that lies in RAM."""
        return self.machine.shell(command, timeout, check=check)

    def apt(self, command: str, *, check: bool = True) -> Result:
        """Have apt-get do this, with all of Debian's programs as they are."""
        return self.sh(f"{PATH} apt-get -y -q {command}", LONG, check=check)

    def unit(self, name: str) -> str:
        """Return whether the unit is active."""
        return str(self.sh(f"systemctl is-active {name}", check=False)).strip()

    def package(self, name: str) -> str:
        """Return the version of the package that is installed, "" if it is not."""
        shown = self.sh(f"{PATH} dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' {name}", check=False)
        status, _, version = shown.partition(" ")
        return version if status == "installed" else ""

    def log(self) -> list[str]:
        """Return what the agents have logged since the boot."""
        return self.sh("journalctl -u 'virtagent*' -u qemu-guest-agent -o short-monotonic --no-pager").splitlines()

    def close(self) -> None:
        """Pull the plug."""
        self.machine.close()


def newer(deb: Path, folder: Path, version: str) -> Path:
    """Return a copy of the package with a later version."""
    tree = folder / f"{deb.stem}-newer"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE))
    made = folder / f"{deb.name.partition('_')[0]}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, made], check=True, stdout=subprocess.DEVNULL)
    return made


def proxmox(port: Transport, number: int, command: str, **arguments: object) -> object:
    """Ask as PVE::QMPClient does: a sync and the command in one write; return what was returned, or the error."""
    sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
    asked = {"execute": command, "arguments": arguments}
    port.send(f"{json.dumps(sync)}\n{json.dumps(asked)}\n".encode())
    while b"\xff" not in (line := port.line()):
        continue  # of a command that was given up
    assert json.loads(line.rpartition(b"\xff")[2]) == {"return": number}
    reply = json.loads(port.line())
    return reply["return"] if "return" in reply else reply["error"]


def libvirt(port: Transport, stamp: int, command: str, **arguments: object) -> object:
    """Ask as libvirt does on a new connection: guest-sync with a time stamp, then the command."""
    port.send(b'{"execute":"guest-sync", "arguments":{"id":%d}}\n' % stamp)
    while json.loads(port.line().lstrip(b"\xff")) != {"return": stamp}:
        continue
    reply = port.ask(command, **({"arguments": arguments} if arguments else {}))
    return reply["return"] if "return" in reply else reply["error"]
