"""The guest as the tests use it: its file systems with writers on them, the agent in it, and how it is set back."""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import HarnessError
from ..processes import until
from . import image
from .machine import COMMAND, Disk, Machine, Result, Transport

LATE = "org.virtagent.late"
CONF = f"channel unix:/run/virtagent/virtagentd.sock\nchannel virtio\nchannel virtio:/dev/virtio-ports/{LATE}\n"
SIZES = {"ext4": "64M", "xfs": "300M", "btrfs": "128M"}
PLACES = {"root": "/var/tmp", "log": "/var/log", **{kind: f"/srv/{kind}" for kind in SIZES}}
FILE_SYSTEMS = 1 + len(SIZES)
PID = "$(systemctl show -p MainPID --value virtagentd)"
WRITER = (
    "n=0; while echo $n >>{place}/written; do echo $n >/run/ram/count/{name}; n=$((n+1)); {more} usleep 50000; done"
)
MORE = "dd if=/dev/zero of={place}/block.$((n%50)) bs=4k count=4 conv=fsync 2>/dev/null;"


@dataclass(frozen=True)
class Switches:
    """How often the supervisor has been run, and its clock ticks of CPU."""

    times: int
    ticks: int


class Guest:
    """A guest that has booted, with the agent running and data disks mounted below /srv."""

    def __init__(self, folder: Path) -> None:
        self.base = image.base()
        self.folder = folder
        over = folder / "etc-of-the-test"
        (over / "etc/virtagent").mkdir(parents=True)
        (over / "etc/virtagent/virtagentd.conf").write_text(CONF)
        disks = [self._disk(kind, size) for kind, size in SIZES.items()]
        self.initramfs = image.initramfs(self.base, folder, over)
        self.machine = Machine(self.base, self.initramfs, folder, disks)
        try:
            self._early = self.machine.port()
            self._early.send(b'{"execute": "guest-sync", "arguments": {"id": 1}}\n')
            self.booted = self.machine.wait_up()
            self.mount()
            self.early_reply = self._early.line()
            self.answered = time.monotonic() - self.machine.started
            self._early.close()
            self.wait_agent()
        except BaseException:
            self.machine.close()
            raise
        self._ports: list[Transport] = []

    def _disk(self, kind: str, size: str) -> Disk:
        path = self.folder / f"{kind}.img"
        with open(path, "wb") as file:
            file.truncate(int(size[:-1]) << 20)
        mkfs = shutil.which(f"mkfs.{kind}") or f"/usr/sbin/mkfs.{kind}"
        subprocess.run([mkfs, "-q", str(path)], check=True, stdout=subprocess.DEVNULL)
        return Disk(kind, path)

    # -- the host

    def host(self, name: str = "agent", timeout: float = 60) -> Transport:
        """Open the agent's port; closed by `reset`."""
        port = self.machine.port(name, timeout)
        self._ports.append(port)
        return port

    def plug_in(self) -> str:
        """Plug in the late port, which the agent serves, too; return the URL of its host's end."""
        path = self.folder / "late"
        address = {"type": "unix", "data": {"path": str(path)}}
        backend: dict[str, Any] = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        self.machine.monitor("chardev-add", id="late", backend=backend)
        self.machine.monitor("device_add", driver="virtserialport", chardev="late", name=LATE, id="port-late")
        return f"unix:{path}"

    def sh(self, command: str, timeout: float = COMMAND, *, check: bool = True) -> Result:
        """Run a command line in the guest, by a shell that lies in RAM."""
        return self.machine.shell(command, timeout, check=check)

    def mount(self) -> None:
        """Mount the data disks, after a boot."""
        mounts = "; ".join(
            f"mkdir -p /srv/{kind} && mount -t {kind} /dev/vd{letter} /srv/{kind}"
            for kind, letter in zip(SIZES, "bcdefgh", strict=False)
        )
        self.sh(f"set -e; modprobe -a xfs btrfs; mkdir -p /run/ram/count; {mounts}")

    def throttle(self, disk: str, bytes_per_second: int) -> None:
        """Let QEMU write to a disk no faster than that; 0 for as fast as it can."""
        none = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        self.machine.monitor("block_set_io_throttle", device=disk, bps_wr=bytes_per_second, **none)

    def dirty(self, disk: str, mib: int, name: str = "dirty") -> None:
        """Write that much to a file that no disk has yet. (Some of it may soon go there by itself.)"""
        self.sh(f"dd if=/dev/zero of=/srv/{disk}/{name} bs=1M count={mib} 2>/dev/null")

    # -- the agent

    def wait_agent(self) -> None:
        """Wait until systemd says that the agent is ready."""
        self.sh("until systemctl -q is-active virtagentd; do usleep 100000; done", 2 * COMMAND)

    def status(self) -> dict[str, Any]:
        """Return the status record; asked at the agent's port, where no other host may be."""
        port = self.machine.port()
        try:
            found: dict[str, Any] = port.ask("va.fsstatus", {})["return"]
        finally:
            port.close()
        return found

    def switches(self) -> Switches:
        """Return how often the supervisor has been run until now."""
        text = self.sh(
            f"awk '/ctxt/ {{n += $2}} END {{print n}}' /proc/{PID}/status; awk '{{print $14+$15}}' /proc/{PID}/stat"
        )
        times, ticks = text.split()
        return Switches(int(times), int(ticks))

    def quiet(self) -> None:
        """Wait until the supervisor has nothing to do: it has not been run for a quarter of a second."""
        seen = [self.switches()]

        def unchanged() -> bool:
            select.select([], [], [], 0.25)
            seen.append(self.switches())
            return seen[-1] == seen[-2]

        until(unchanged, 20, "the supervisor is quiet")

    def pid_of(self, role: str) -> int:
        """Return the process of ours whose title begins with the role."""
        pids = self.sh(f"pgrep -f '^virtagentd: {role}'", check=False).split()
        if len(pids) != 1:
            raise HarnessError(f"{len(pids)} processes are {role}: {self.sh('ps')}")
        return int(pids[0])

    def log(self) -> list[str]:
        """Return what the agent has logged since the boot."""
        return self.sh("journalctl -u virtagentd -o cat --no-pager").splitlines()

    # -- writers

    def write_everywhere(self, *, durably: bool = False) -> None:
        """Have a process append lines to a file on each file system, `durably` and much more each time with fsync.

        The number of the last line that was written is noted in RAM.
        """
        for name, place in PLACES.items():
            loop = WRITER.format(name=name, place=place, more=MORE.format(place=place) if durably else "")
            self.sh(f"setsid sh -c '{loop}' >/dev/null 2>&1 </dev/null & echo $! >>/run/ram/writers")

    def written(self) -> dict[str, int]:
        """Return how many lines each writer has written."""
        text = self.sh("cd /run/ram/count && grep -H . *", check=False)
        return {name: int(count) for name, _, count in (line.partition(":") for line in text.splitlines())}

    def wait_writing(self, timeout: float = 60) -> None:
        """Wait until every writer has gone on."""
        before = self.written()
        until(
            lambda: all(self.written().get(name, 0) > before.get(name, -1) for name in PLACES),
            timeout,
            "every file system is written to",
        )

    # -- afterwards

    def reset(self) -> list[str]:
        """Set back what a test may have changed; return what was wrong. Raises if the guest has to be booted again."""
        for port in self._ports:
            port.close()
        self._ports.clear()
        with contextlib.suppress(HarnessError):
            self.machine.monitor("cont")
        for disk in SIZES:
            self.throttle(disk, 0)
        self.wait_agent()
        wrong = []
        if (state := self.status()["state"]) != "THAWED":
            wrong.append(f"left {state}")
            self.sh("virtagentctl thaw", 120, check=False)
        for name, place in PLACES.items():
            done: Future[Result] = self.machine.begin(f"touch {place}/reset")
            try:
                done.result(20)
            except TimeoutError:
                wrong.append(f"{name} is still frozen")
        self.sh("[ ! -e /run/ram/writers ] || kill -9 $(cat /run/ram/writers) 2>/dev/null")
        self.sh("rm -rf /run/ram/writers /run/ram/count/* /srv/*/dirty*")
        return wrong

    def close(self) -> None:
        """Pull the plug."""
        self.machine.close()
