"""A libvirtd of the tests' own, started by hand, and `virsh`.

It runs in a mount and a PID namespace: what it keeps in /etc, /run and /var is kept in a folder of the tests, a
libvirtd of this machine is not touched, and all of it, QEMU too, is killed with the first process of the namespace.
That one ends with its standard input, so also when the tests are killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from .. import HarnessError, Unmet
from ..processes import until, wait_gone
from .machine import COMMAND

PROGRAMS = {"libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "qemu-img": "qemu-utils"}
DRIVER = "*/libvirt/connection-driver/libvirt_driver_qemu.so"
FOLDERS = ("etc", "lib", "log", "cache", "sock")
PLACES = """\
set -e
mount -t tmpfs -o mode=755 tmpfs /run
for pair in etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
"""
# The first process of the namespace. Its orphans are reaped by the kernel: libvirtd waits for a QEMU to be gone.
FIRST = """\
import signal, subprocess, sys
subprocess.run(["sh", "-c", sys.argv[1], "places", sys.argv[2]], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
seccomp_sandbox = 0
"""
LIBVIRTD_CONF = """\
unix_sock_dir = "{run}/sock"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_filters = "1:qemu.qemu_agent"
log_outputs = "1:file:{run}/libvirtd.log"
"""


class Said(str):
    """What virsh printed; `err`, `code` and `seconds` say how it ended."""

    err: str
    code: int
    seconds: float


class Libvirtd:
    """One libvirtd, and the QEMUs that it starts. Raises Unmet where it is not installed."""

    def __init__(self, run: Path) -> None:
        lacking = {package for program, package in PROGRAMS.items() if _program(program) is None}
        if not any(Path("/usr/lib").glob(DRIVER)):
            lacking.add("libvirt-daemon-driver-qemu")
        if lacking:
            raise Unmet(f"needs the Debian packages {' '.join(sorted(lacking))}")
        if os.geteuid() != 0:
            raise Unmet("needs root to start libvirtd")
        self.run = run
        self.uri = f"qemu:///system?socket={run}/sock/libvirt-sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        for name in FOLDERS:
            (run / name).mkdir()
        (run / "etc/qemu.conf").write_text(QEMU_CONF)
        (run / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(run=run))
        apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        self._first = subprocess.Popen(
            [*apart, sys.executable, "-I", "-S", "-c", FIRST, PLACES, str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert self._first.stdout is not None
            if self._first.stdout.readline() != b"ready\n":
                raise Unmet("needs the right to make namespaces and mounts")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the daemon and wait until it answers; it finds the QEMUs that run."""
        (inside,) = psutil.Process(self._first.pid).children()
        command = ["nsenter", "--target", str(inside.pid), "--mount", "--pid", _program("libvirtd") or ""]
        with open(self.run / "libvirtd.out", "ab") as out:
            self._daemon = subprocess.Popen(
                [*command, "-f", str(self.run / "libvirtd.conf"), "-p", str(self.run / "libvirtd.pid")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

        def answers() -> bool:
            if self._daemon is not None and self._daemon.poll() is not None:
                raise HarnessError(f"libvirtd did not start: {(self.run / 'libvirtd.out').read_text()[-2000:]}")
            return self.virsh("version", check=False).code == 0

        until(answers, 60, "libvirtd answers")

    def kill(self) -> None:
        """SIGKILL the daemon; its QEMUs live on."""
        assert self._daemon is not None
        self.process().kill()
        self._daemon.wait(20)

    def process(self) -> psutil.Process:
        """Return the daemon's process."""
        assert self._daemon is not None
        (child,) = psutil.Process(self._daemon.pid).children()
        return child

    def close(self) -> None:
        """End it and all QEMUs of its own."""
        known = psutil.Process(self._first.pid).children(recursive=True) if self._first.poll() is None else []
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.close()
        self._first.wait(20)
        self._first.stdout.close()
        if self._daemon is not None:
            self._daemon.wait(20)
        if left := wait_gone([process.pid for process in known], 20):
            raise HarnessError(f"still there after libvirtd: {left}")

    # -- virsh

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a virsh."""
        return subprocess.Popen(
            [_program("virsh") or "", "-c", self.uri, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def virsh(self, *arguments: str, timeout: float = 2 * COMMAND, check: bool = True) -> Said:
        """Run virsh. Raises HarnessError if it fails, TimeoutError (it is killed then)."""
        began = time.monotonic()
        with self.begin(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"virsh {' '.join(arguments)} took over {timeout:g} s") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        said = Said(out.strip())
        said.seconds, said.err, said.code = time.monotonic() - began, err.strip(), process.returncode
        if check and said.code:
            raise HarnessError(f"virsh {' '.join(arguments)} ended with {said.code}: {said.err}")
        return said

    # -- what passes between libvirt and the agent

    def mark(self) -> int:
        """Return where its log ends now, for `wait_log`."""
        return (self.run / "libvirtd.log").stat().st_size

    def log(self, mark: int = 0) -> str:
        with open(self.run / "libvirtd.log", "rb") as file:
            file.seek(mark)
            return file.read().decode(errors="replace")

    def wait_log(self, text: str, mark: int, timeout: float = 60) -> None:
        """Wait until its log has the text, after `mark`."""
        until(lambda: text in self.log(mark), timeout, f"libvirtd logs {text!r}")


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
