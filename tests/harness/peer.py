"""A real qemu-ga beside ours, and the fence around it.

It has no --include, so it runs behind the shield, where only the area's file systems can be frozen, and what could
hurt the machine itself is not sent to it at all.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from . import HarnessError, Unmet, linux
from .namespace import Area
from .processes import python

START_SECONDS = 10.0
FORBIDDEN = frozenset(
    {
        "guest-fsfreeze-freeze",
        "guest-fsfreeze-freeze-list",
        "guest-shutdown",
        "guest-suspend-disk",
        "guest-suspend-ram",
        "guest-suspend-hybrid",
        "guest-set-time",
        "guest-set-vcpus",
        "guest-set-memory-blocks",
        "guest-set-user-password",
        "guest-fstrim",
    }
)
"""Commands that could hurt this machine: sent only with arguments that are known to be refused or to do nothing."""


class Talk:
    """One connection that speaks JSON, to an agent that listens at `path`; `ours` has an --include and may freeze."""

    def __init__(self, area: Area, path: str, timeout: float = 20, *, ours: bool = True) -> None:
        self._area = str(area.root)
        self._ours = ours
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(timeout)
        self._sock.connect(path)
        self._lines = self._sock.makefile("rb")

    def ask(self, command: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
        """Call a command and return the reply; `arguments` None sends none."""
        if not self._ours or not command.startswith("guest-fsfreeze-"):
            check_harmless(command, arguments, self._area)
        message = {"execute": command, **({} if arguments is None else {"arguments": arguments}), **more}
        self.send(json.dumps(message).encode() + b"\n")
        return self.line()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def line(self) -> dict[str, Any]:
        """Return the next reply; a byte 0xFF before it is skipped."""
        line = self.raw_line()
        found: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        return found

    def raw_line(self) -> bytes:
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the agent hung up")
        return line

    def replies_to(self, data: bytes) -> list[dict[str, Any]]:
        """Send any bytes and a delimited sync in one go; return what was answered before that sync's reply."""
        self.send(data + b'\xff\n{"execute": "guest-sync-delimited", "arguments": {"id": 424242}}\n')
        found = []
        while not (line := self.raw_line()).startswith(b"\xff"):
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"no JSON": line})
        assert json.loads(line[1:]) == {"return": 424242}, line
        return found

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


def check_harmless(command: str, arguments: Any, area: str) -> None:
    """Raise HarnessError if the command, sent so to an agent without --include, could do harm here."""
    if command not in FORBIDDEN:
        return
    given = arguments if isinstance(arguments, dict) else {}
    match command, given:
        case _, {"unknown": _}:
            return  # refused before anything is done
        case "guest-fsfreeze-freeze-list", {"mountpoints": list(points)}:
            known = {m.mountpoint for m in linux.mounts()}
            if all(linux.is_under(p, area) for p in points if isinstance(p, str) and p in known):
                return
        case "guest-shutdown", {"mode": str(mode)} if mode not in ("powerdown", "halt", "reboot"):
            return
        case "guest-set-time", {"time": when} if not isinstance(when, int) or when < 0:
            return
        case "guest-set-vcpus", {"vcpus": list(cpus)} if all(_keeps_cpu(cpu) for cpu in cpus):
            return
        case "guest-set-memory-blocks", {"mem-blks": list(blocks)} if all(
            isinstance(block, dict) and block.get("online") is True for block in blocks
        ):
            return
        case "guest-set-user-password", {"username": str(user)} if user.startswith("no-such-user"):
            return
        case "guest-fstrim", {"minimum": int(least)} if least >= 1 << 50:
            return
        case "guest-fstrim", {"minimum": str()}:
            return
        case "guest-set-vcpus" | "guest-set-memory-blocks" | "guest-set-user-password", {} if not given:
            return
    raise HarnessError(f"{command} with {arguments!r} is not sent to an agent that could do it")


def _keeps_cpu(cpu: Any) -> bool:
    return not isinstance(cpu, dict) or cpu.get("online") is True or "online" not in cpu


def qemu_ga() -> str:
    """Return the path of a real qemu-ga: the one that VIRTAGENT_QEMU_GA names, else the installed one."""
    program = os.environ.get("VIRTAGENT_QEMU_GA") or "qemu-ga"
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise Unmet("needs qemu-ga (Debian package qemu-guest-agent)")
    return found


def qemu_ga_version() -> tuple[str, tuple[int, int]]:
    """Return the version of the real qemu-ga as it tells it, and its first two numbers."""
    said = subprocess.run([qemu_ga(), "-V"], capture_output=True, text=True, check=True, timeout=10).stdout
    text = said.split()[3]
    major, minor, *_ = text.split(".")
    return text, (int(major), int(minor))


class QemuGa:
    """A qemu-ga (Debian package qemu-guest-agent) on a unix socket in the area."""

    def __init__(self, area: Area, *options: str, program: str = "") -> None:
        found = program or qemu_ga()
        self._area = area
        self.folder = area.fresh("qemu-ga")
        self.folder.mkdir()
        self.socket = str(self.folder / "s")
        self._log = open(self.folder / "log", "wb")  # noqa: SIM115 - closed by close()
        shielded = [*python("harness.shield", str(area.holder)), found]
        state = ["-t", str(self.folder), "-f", f"{self.folder}/pid"]
        self.process = subprocess.Popen(
            [*shielded, "-m", "unix-listen", "-p", self.socket, *state, *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        area.guard(self.process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not Path(self.socket).exists():
            try:
                code = self.process.wait(0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                code = None
            self.close()
            raise HarnessError(f"qemu-ga did not start ({code}): {(self.folder / 'log').read_text()}")

    def talk(self) -> Talk:
        return Talk(self._area, self.socket, ours=False)

    def close(self) -> None:
        # SIGTERM is lost now and then: it sets a flag between qemu-ga's look at it and its sleep.
        self.process.kill()
        self.process.wait(10)
        self._log.close()
