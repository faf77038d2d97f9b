"""A network namespace with a veth pair to this one; it lasts as long as the process that holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .namespace import Area
from .processes import until


def missing() -> str:
    """Return why there can be none here, "" if there can."""
    if os.geteuid():
        return "a network namespace needs root"
    absent = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    return f"no {' and '.join(absent)} (Debian: iproute2, util-linux)" if absent else ""


class NetworkNamespace:
    """The namespace of one host. If this process is killed, the guardian ends the holder, and all of it goes."""

    def __init__(self, area: Area, number: int) -> None:
        """Make it; `number`, 0 to 63, tells the addresses of one test apart (198.18.0.0/15 is for tests: RFC 2544)."""
        self.address, here = f"198.18.77.{4 * number + 2}", f"198.18.77.{4 * number + 1}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        pid = self._holder.pid
        self._link = f"va{pid}"
        try:
            area.guard(pid)
            own = os.readlink("/proc/self/ns/net")
            until(lambda: os.readlink(f"/proc/{pid}/ns/net") != own, 10, "the holder has a namespace")
            self.name = os.readlink(f"/proc/{pid}/ns/net")
            self.enter = ("nsenter", f"--net=/proc/{pid}/ns/net")
            _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
            _ip("address", "add", f"{here}/30", "dev", self._link)
            _ip("link", "set", self._link, "up")
            _ip("address", "add", f"{self.address}/30", "dev", "eth0", within=self.enter)
            for link in ("lo", "eth0"):
                _ip("link", "set", link, "up", within=self.enter)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the pair and end the holder; the namespace goes with the last process in it."""
        if Path(f"/sys/class/net/{self._link}").exists():
            _ip("link", "delete", self._link)
        self._holder.kill()
        self._holder.wait(20)


def _ip(*words: str, within: tuple[str, ...] = ()) -> None:
    done = subprocess.run([*within, "ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
