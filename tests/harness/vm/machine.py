"""The guest while it runs: QEMU, its monitor, the tests' own port into it, and the host's end of the agent's port."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .. import HarnessError
from .image import Base

PATIENCE = float(os.environ.get("VIRTAGENT_VM_PATIENCE", "1"))  # on a busy machine: wait so many times as long
BOOT = 180.0 * PATIENCE  # seconds until the guest must have said something
COMMAND = 60.0 * PATIENCE
AGENT = "org.qemu.guest_agent.0"
KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on net.ifnames=0 "
    "systemd.show_status=no rd.systemd.show_status=no"
)
# A guest that reboots or goes down stops QEMU there, so that its disks can be looked at.
STAYS = ("-action", "reboot=shutdown,shutdown=pause")


class Disk:
    """A raw image behind /dev/vdb and those that follow; what the guest writes to it goes elsewhere, and then away."""

    def __init__(self, name: str, path: Path, *, bytes_per_second: int = 0) -> None:
        self.name = name
        self.path = path
        self.throttle = f",throttling.bps-write={bytes_per_second}" if bytes_per_second else ""


class Result(str):
    """What a command printed; `code` and `err` say how it ended."""

    code: int
    err: str


class Transport:
    """The host's end of a port, as a socket of QEMU's; closed, the guest sees nobody there."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        """Return the next line. Raises TimeoutError, ConnectionError."""
        while b"\n" not in self._rest:
            data = self.sock.recv(1 << 20)
            if not data:
                raise ConnectionError("QEMU closed the port")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def ask(self, command: str, arguments: Any = None, **more: Any) -> Any:
        """Call a command; return its whole reply. A byte 0xFF before it is skipped."""
        message = {"execute": command, **({} if arguments is None else {"arguments": arguments}), **more}
        self.send(json.dumps(message).encode() + b"\n")
        return json.loads(self.line().lstrip(b"\xff"))

    def close(self) -> None:
        self.sock.close()


class Machine:
    """One QEMU. `monitor` gives it commands, `shell` runs one in the guest, `port` is a host at the agent's port."""

    def __init__(self, base: Base, initramfs: Path, run: Path, disks: Sequence[Disk] = (), *more: str) -> None:
        self.run = run
        self.started = time.monotonic()
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)  # of the monitor, that nobody has waited for
        self._ids = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Result]] = {0: Future()}
        arguments = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "768"),
            *("-nodefaults", "-display", "none", *STAYS, "-serial", f"file:{run}/console"),
            *("-kernel", str(base.kernel), "-initrd", str(initramfs), "-append", KERNEL_LINE),
            *("-qmp", f"unix:{run}/monitor,server=on,wait=off"),
            *_disk("root", base.root),
            *(word for disk in disks for word in _disk(disk.name, disk.path, disk.throttle)),
            *("-device", "virtio-serial-pci,max_ports=8"),
            *_port(run, "test", "org.virtagent.test"),
            *_port(run, "agent", AGENT),
            *more,
        ]
        with open(run / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(run)}
            )
        try:
            self._monitor = self._connect("monitor")
            self._greeting = json.loads(self._monitor.line())
            self.monitor("qmp_capabilities")
            self._test = self._connect("test")
        except BaseException:
            self.close()
            raise
        self._test.sock.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()

    # -- the host's side

    def _connect(self, name: str) -> Transport:
        deadline = time.monotonic() + 20
        while True:
            try:
                return Transport(self.run / name, COMMAND)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise HarnessError(f"QEMU did not start: {(self.run / 'qemu.log').read_text()}") from None
                select.select([], [], [], 0.01)

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Give QEMU a command over QMP; return what it returned. Raises HarnessError."""
        self._monitor.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = json.loads(self._monitor.line())
            if "error" in message:
                raise HarnessError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            self.events.append(message)

    def event(self, name: str, timeout: float = COMMAND) -> dict[str, Any]:
        """Wait for an event of QEMU's; return its data. What came before is dropped. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            if not self.events:
                self._monitor.sock.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    self.events.append(json.loads(self._monitor.line()))
                finally:
                    self._monitor.sock.settimeout(COMMAND)
            if (found := self.events.popleft())["event"] == name:
                return found.get("data", {})

    def save(self, name: str) -> None:
        """Keep memory and disks as they are now. Raises HarnessError."""
        self._snapshot(f"savevm {name}")

    def load(self, name: str) -> None:
        """Go back to what was saved, and on from there, whatever has become of the guest. Raises HarnessError."""
        self.monitor("stop")
        self._reset()  # else one that went down may not go on
        self._snapshot(f"loadvm {name}")
        self.monitor("set-action", reboot="shutdown")
        self.events.clear()
        self.monitor("cont")

    def _snapshot(self, line: str) -> None:
        if said := self.monitor("human-monitor-command", **{"command-line": line}):
            raise HarnessError(f"{line}: {said}")

    def restart(self) -> None:
        """Start a guest again that went down or reboots; `wait_up` waits for it. It may reboot from now on."""
        self._waiting[0] = Future()
        self._reset()
        self.monitor("cont")

    def _reset(self) -> None:
        self.events.clear()
        self.monitor("set-action", reboot="reset")  # else it would go down now, and when the firmware resets once more
        self.monitor("system_reset")
        self.event("RESET")  # it is done a moment later

    def port(self, name: str = "agent", timeout: float = COMMAND) -> Transport:
        """Open the host's end of a port."""
        return Transport(self.run / name, timeout)

    def close(self) -> None:
        """Pull the plug."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        for end in ("_monitor", "_test"):
            if hasattr(self, end):
                getattr(self, end).close()

    # -- inside

    def wait_up(self, timeout: float = BOOT) -> float:
        """Wait until commands can be given; return the seconds since QEMU was started."""
        try:
            self._waiting[0].result(timeout)
        except TimeoutError:
            raise HarnessError(f"the guest did not boot:\n{self.console()}") from None
        return time.monotonic() - self.started

    def begin(self, command: str) -> Future[Result]:
        """Begin a command line in the guest, from RAM."""
        with self._lock:
            self._ids += 1
            number = self._ids
            self._waiting[number] = Future()
            self._test.send(json.dumps({"id": number, "run": command}).encode() + b"\n")
        return self._waiting[number]

    def shell(self, command: str, timeout: float = COMMAND, *, check: bool = True) -> Result:
        """Run a command line in the guest; return what it printed. Raises HarnessError if it fails, TimeoutError."""
        done = self.begin(command).result(timeout)
        if check and done.code:
            raise HarnessError(f"{command!r} ended with {done.code}: {done.err}{done}")
        return done

    def console(self) -> str:
        path = self.run / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def _listen(self) -> None:
        try:
            while True:
                message = json.loads(self._test.line())
                result = Result(message["out"])
                result.code, result.err = message["code"], message["err"]
                future = self._waiting[message["id"]]
                if not future.done():
                    future.set_result(result)
        except (OSError, ValueError) as gone:
            for future in list(self._waiting.values()):
                if not future.done():
                    future.set_exception(HarnessError(f"the guest has gone: {gone}"))


def _disk(name: str, path: Path, throttle: str = "") -> tuple[str, ...]:
    drive = f"file={path},format=raw,if=none,id={name},snapshot=on,cache=unsafe,discard=unmap{throttle}"
    return "-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name},id=dev-{name}"


def _port(run: Path, name: str, inside: str) -> tuple[str, ...]:
    channel = f"socket,id={name},path={run}/{name},server=on,wait=off"
    return "-chardev", channel, "-device", f"virtserialport,chardev={name},name={inside},id=port-{name}"
