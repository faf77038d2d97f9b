"""The guest of `guest.py` as a domain of libvirt, with virtagentd or a stock qemu-ga behind its port."""

from __future__ import annotations

import base64
import json
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .. import HarnessError
from ..processes import until
from . import image
from .guest import PLACES, SIZES, Guest
from .libvirt import Libvirtd, Said
from .machine import AGENT, COMMAND, KERNEL_LINE, Machine, Result

NAME = "guest"
VIRTAGENT, QEMU_GA = AGENTS = "virtagent", "qemu-ga"
HOLD, SYNC, FREEZE = 8, 15, 15  # seconds: short limits, to be waited for, and longer than a busy machine's disk stalls
CONF = f"channel virtio\nhold-limit {HOLD}\nguest-hold-limit {HOLD}\nsync-limit {SYNC}\nfreeze-limit {FREEZE}\n"
ADDRESS = "192.0.2.7"
DEVICES = {"root": "vda", **dict(zip(SIZES, ("vdb", "vdc", "vdd"), strict=True))}

XML = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>768</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{line}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>restart</on_reboot>
  <devices>
    {disks}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{run}/console'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{run}/agent'/><target type='virtio' name='{agent}'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='{run}/test'/><target type='virtio' name='org.virtagent.test'/>
    </channel>
    <interface type='user'><model type='virtio'/><rom enabled='no'/></interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = """\
<disk type='file' device='disk'>
      <driver name='qemu' type='{format}' cache='unsafe' discard='unmap'/>
      <source file='{path}'/><target dev='{device}' bus='virtio'/><serial>{name}</serial>
    </disk>"""


class Started(Machine):
    """A QEMU that libvirt starts: only the tests' own port is ours."""

    def __init__(self, run: Path, libvirtd: Libvirtd) -> None:
        self.run = run
        self._libvirtd = libvirtd
        self._ids = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Result]] = {}
        self.start()

    def start(self) -> None:
        """Start the domain; `wait_up` waits for the guest."""
        self.started = time.monotonic()
        self._waiting[0] = Future()
        self._libvirtd.virsh("start", NAME)
        self._test = self._connect("test")
        self._test.sock.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()

    def expect_boot(self) -> None:
        """Have the next `wait_up` wait for a boot to come."""
        self.started = time.monotonic()
        self._waiting[0] = Future()

    def monitor(self, command: str, **arguments: Any) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self._libvirtd.virsh("qemu-monitor-command", NAME, text))["return"]

    def close(self) -> None:
        if hasattr(self, "_test"):
            self._test.close()


class Domain(Guest):
    """The guest, and its libvirtd. One of the two agents serves its port (`serve`); trees `more` lie over its root."""

    def __init__(self, folder: Path, *more: Path) -> None:
        base = image.base()
        self.folder = folder
        self.agent = VIRTAGENT
        self._snapshots = 0
        over = folder / "etc-of-the-test"
        (over / "etc/virtagent").mkdir(parents=True)
        (over / "etc/virtagent/virtagentd.conf").write_text(CONF)
        self.libvirtd = Libvirtd(folder)
        try:
            top = folder / "root.qcow2"
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base.root), str(top)]
            subprocess.run(create, check=True)
            disks = [DISK.format(format="qcow2", path=top, device="vda", name="root")]
            for kind, size in SIZES.items():
                path = self._disk(kind, size).path
                disks.append(DISK.format(format="raw", path=path, device=DEVICES[kind], name=kind))
            (folder / "domain.xml").write_text(
                XML.format(
                    name=NAME,
                    kernel=base.kernel,
                    initrd=image.initramfs(base, folder, over, *more),
                    line=KERNEL_LINE,
                    disks="\n    ".join(disks),
                    run=folder,
                    agent=AGENT,
                )
            )
            self.libvirtd.virsh("define", str(folder / "domain.xml"))
            self.machine: Started = Started(folder, self.libvirtd)
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        """Wait for a boot, and give the guest what each test finds there."""
        self.booted = self.machine.wait_up()
        mounts = "; ".join(
            f"mkdir -p /srv/{kind} && mount -t {kind} /dev/{DEVICES[kind]} /srv/{kind}" for kind in SIZES
        )
        self.sh(f"set -e; modprobe -a xfs btrfs; mkdir -p /run/ram/count; {mounts}")
        self.sh(f"until [ -e /sys/class/net/eth0 ]; do usleep 50000; done; ip addr add {ADDRESS}/24 dev eth0")
        self.sh("id tester >/dev/null 2>&1 || useradd tester")
        self.agent = VIRTAGENT
        self.wait_agent()
        self.wait_answer()

    # -- the agent

    def serve(self, agent: str) -> None:
        """Have this agent behind the port, and wait until libvirt gets its answer."""
        if agent == self.agent:
            return
        if agent == QEMU_GA:
            self.sh("systemctl stop virtagentd")
            self.sh(f"systemd-run -q --unit=stock qemu-ga -m virtio-serial -p /dev/virtio-ports/{AGENT}")
        else:
            self.sh("systemctl stop stock; systemctl reset-failed stock 2>/dev/null; systemctl start virtagentd")
        self.agent = agent
        self.wait_answer()

    def wait_answer(self, timeout: float = COMMAND) -> None:
        """Wait until a ping through libvirt is answered."""
        until(lambda: self.ping().code == 0, timeout, f"{self.agent} answers libvirt")

    def ping(self) -> Said:
        return self.virsh("qemu-agent-command", "--timeout", "5", command='{"execute": "guest-ping"}', check=False)

    def virsh(self, *words: str, command: str = "", timeout: float = 2 * COMMAND, check: bool = True) -> Said:
        """Run `virsh WORD guest WORD...`; `command` comes last."""
        return self.libvirtd.virsh(*self.words(*words, command=command), timeout=timeout, check=check)

    @staticmethod
    def words(word: str, *more: str, command: str = "") -> Sequence[str]:
        return (word, NAME, *more, *([command] if command else []))

    # -- life

    def boot_id(self) -> str:
        return str(self.sh("cat /proc/sys/kernel/random/boot_id")).strip()

    def power(self) -> str:
        """Return the domain's state in libvirt's words."""
        return str(self.virsh("domstate"))

    def wait_off(self, timeout: float = 90) -> None:
        until(lambda: self.power() == "shut off", timeout, "the domain is shut off")

    def start(self) -> None:
        """Start it after it was shut off."""
        self.machine.close()
        self.machine.start()
        self._set_up()

    def again(self) -> None:
        """Wait for the boot that was expected (`machine.expect_boot`)."""
        self._set_up()

    def agent_status(self) -> str:
        """Return "thawed" or "frozen", by the agent."""
        return str(self.ask("guest-fsfreeze-status"))

    def ask(self, command: str, **arguments: Any) -> Any:
        """Have libvirt pass a command on; return what it returned."""
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        return json.loads(self.virsh("qemu-agent-command", command=text))["return"]

    def snapshot_name(self) -> str:
        """Return a name that no snapshot had."""
        self._snapshots += 1
        return f"s{self._snapshots}"

    def files(self) -> dict[str, Path]:
        """Return which file is behind each device now."""
        rows = (line.split() for line in self.virsh("domblklist").splitlines()[2:])
        return {row[0]: Path(row[1]) for row in rows if row}

    def raw(self, image: Path) -> Path:
        """Return a raw copy of what a domain's disk was at the time of a snapshot; `image` has overlays since."""
        copy = image.with_name(f"{image.name}.raw")
        kind = "raw" if image.suffix == ".img" else "qcow2"
        subprocess.run(["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", str(image), str(copy)], check=True)
        return copy

    def watch_gaps(self) -> None:
        """Have a process on each file system note the longest time that it could not write; `longest_gap` tells it."""
        script = base64.b64encode((image.INSIDE / "gaps.py").read_bytes()).decode()
        self.sh(f"mkdir -p /run/ram/gap; rm -f /run/ram/gap/*; echo {script} | base64 -d >/run/ram/gaps.py")
        for name, place in PLACES.items():
            line = f"python3 -I -B /run/ram/gaps.py {place}/gaps /run/ram/gap/{name}"
            self.sh(f"setsid {line} >/dev/null 2>&1 </dev/null & echo $! >>/run/ram/writers")
        until(lambda: len(self.sh("ls /run/ram/gap").split()) == len(PLACES), 60, "all have begun")

    def longest_gap(self) -> float:
        """Return the seconds, of the file system that fared worst."""
        return max(float(line) for line in self.sh("cat /run/ram/gap/*").split())

    def end_writers(self) -> None:
        """End them, and remove what they wrote."""
        self.sh("[ ! -e /run/ram/writers ] || kill -9 $(cat /run/ram/writers) 2>/dev/null")
        self.sh("rm -rf /run/ram/writers /run/ram/count/* /srv/*/dirty /srv/*/gaps /var/log/gaps /var/tmp/gaps")

    def stands_still(self) -> None:
        """Assert that no file system is written to."""
        before = self.written()
        select.select([], [], [], 0.5)
        assert self.written() == before

    # -- afterwards

    def reset(self) -> list[str]:
        """Set back what a test may have changed; return what was wrong. Raises if it has to be made again."""
        if self.power() != "running":
            self.start()
        wrong = []
        for device in DEVICES.values():
            self.virsh("blkdeviotune", device, "--total-bytes-sec", "0", "--write-bytes-sec", "0")
        self.wait_answer()
        if (state := self.agent_status()) != "thawed":
            wrong.append(f"left {state}")
        self.virsh("domfsthaw", check=False)
        touched: Future[Result] = self.machine.begin("touch /reset " + " ".join(f"/srv/{kind}/reset" for kind in SIZES))
        try:
            touched.result(30)
        except TimeoutError:
            raise HarnessError("a file system is still frozen") from None
        self.end_writers()
        return wrong

    def close(self) -> None:
        """Pull the plug."""
        if hasattr(self, "machine"):
            self.machine.close()
        self.libvirtd.close()
