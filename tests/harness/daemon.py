"""A real virtagentd on the file systems of the area, started only if it cannot reach any other."""

from __future__ import annotations

import fnmatch
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from . import HarnessError, linux
from .filesystems import LoopFs
from .namespace import Area
from .processes import TESTS, kill, process_state, python, readable, wait_gone

START_SECONDS = 15.0
STOP_SECONDS = 15.0
NEWS_LIMIT = 0.2  # seconds for which a daemon here tells a broken freeze again; 60 would be too long to wait for


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("virtagent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class UnixTransport(xmlrpc.client.Transport):
    """xmlrpc.client over a unix socket."""

    def __init__(self, path: str, timeout: float | None, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(headers=headers)
        self._path, self._timeout = path, timeout

    def make_connection(self, host: Any) -> UnixConnection:
        if self._connection[1] is None:
            self._connection = host, UnixConnection(self._path, self._timeout)
        return self._connection[1]


def check_includes(includes: Sequence[str], area: str) -> None:
    """Raise HarnessError unless the globs are given and match no mount point outside the area."""
    if not includes:
        raise HarnessError("a daemon without --include would freeze this machine's own file systems")
    for pattern in includes:
        if pattern.startswith("type:") or (pattern.startswith("dev:") and not is_own_device(pattern, area)):
            raise HarnessError(f"--include {pattern} may mean the machine's own disks, seen in another namespace")
        for mount in [linux.Mount("/", "", ""), *linux.mounts()]:
            if not linux.is_under(mount.mountpoint, area) and fnmatch.fnmatchcase(mount.mountpoint, pattern):
                raise HarnessError(f"--include {pattern} matches {mount.mountpoint}, which is not the test's own")


def is_own_device(selector: str, area: str) -> bool:
    """Return whether dev:MAJOR:MINOR is a loop device of the area."""
    numbers = [os.stat(device).st_rdev for device in linux.loop_devices(area)]
    return selector in [f"dev:{os.major(number)}:{os.minor(number)}" for number in numbers]


def include_globs(include: Iterable[LoopFs | str | os.PathLike[str]]) -> list[str]:
    return [one.include if isinstance(one, LoopFs) else os.fspath(one) for one in include]


class Daemon:
    """A virtagentd that has said that it is ready. `close` it; a test does so through its rig."""

    def __init__(
        self,
        area: Area,
        include: Iterable[LoopFs | str | os.PathLike[str]] = (),
        options: Sequence[str] = (),
        *,
        module: str = "virtagent.supervisor.main",
        program: str = "",
        env: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        wait_ready: bool = True,
        stderr: int | None = None,
    ) -> None:
        """Start the module, or `program`, with `options` besides channel, state folder and includes.

        A daemon started with the `state_dir` of one before it finds that one's journal.
        """
        globs = include_globs(include)
        given = [b if a == "--include" else a.partition("=")[2] for a, b in pairwise([*options, ""]) if _is_include(a)]
        check_includes([*globs, *given], str(area.root))
        self.area = area
        self.folder = area.fresh("daemon")
        self.folder.mkdir()
        self.socket = self.folder / "virtagentd.sock"
        self.state_dir = state_dir or self.folder / "state"
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.orphans: set[int] = set()
        self._log = self.folder / "stderr"
        self._proxies: list[xmlrpc.client.ServerProxy] = []
        self._sockets: list[socket.socket] = []
        self.command = [program] if program else [sys.executable, "-m", module]
        if not program:
            self.command += ["--news-limit", str(NEWS_LIMIT)]
        self.command += ["--channel", f"unix:{self.socket}"]
        self.command += ["--state-dir", str(self.state_dir), *(x for g in globs for x in ("--include", g)), *options]
        notify = self.folder / "notify.sock"
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._notify.bind(str(notify))
            with open(self._log, "wb") as log:
                self.process = subprocess.Popen(
                    [*python("harness.shield", str(area.holder)), *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log if stderr is None else stderr,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": path, "NOTIFY_SOCKET": str(notify), **(env or {})},
                    start_new_session=True,
                )
        except BaseException:
            self._notify.close()
            raise
        self.pid = self.process.pid
        area.guard(self.pid)
        if wait_ready:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait for READY=1 of the sd_notify protocol; raise HarnessError with the log if it ends instead."""
        deadline = time.monotonic() + timeout
        ended = os.pidfd_open(self.pid)
        try:
            while True:
                events = readable([self._notify.fileno(), ended], deadline - time.monotonic())
                if self._notify.fileno() in events:
                    if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                        return
                elif events:
                    raise HarnessError(f"virtagentd ended with {self.process.wait()}:\n{self.log()}")
                else:
                    raise HarnessError(f"virtagentd was not ready after {timeout:g} s:\n{self.log()}")
        finally:
            os.close(ended)

    # What it says

    @property
    def url(self) -> str:
        """For virtagentctl --agent."""
        return f"unix:{self.socket}"

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def proxy(self, timeout: float | None = 20, headers: Sequence[tuple[str, str]] = ()) -> xmlrpc.client.ServerProxy:
        """Return a client with a connection of its own."""
        transport = UnixTransport(str(self.socket), timeout, headers)
        proxy = xmlrpc.client.ServerProxy("http://virtagent/RPC2", transport=transport)
        self._proxies.append(proxy)
        return proxy

    def raw(self, timeout: float | None = 10) -> socket.socket:
        """Return a connected socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets.append(sock)
        sock.settimeout(timeout)
        sock.connect(str(self.socket))
        return sock

    def status(self) -> dict[str, Any]:
        """Return the status record, over a connection of its own."""
        return self._status({}, 10)

    def wait_status(self, wanted: Any, timeout: float = 20, what: str = "") -> dict[str, Any]:
        """Return the first status record for which `wanted(record)` is true; each answer is waited for, not polled."""
        deadline = time.monotonic() + timeout
        record = self.status()
        while not wanted(record):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {timeout:g} s: {what or 'the wanted status'}; it is {record}")
            record = self._status({"since": record["seq"], "wait": left}, left + 10)
        return record

    def wait_state(self, name: str, timeout: float = 20) -> dict[str, Any]:
        """Return the first status record with this state (THAWED, INPROGRESS, FROZEN, THAWINPROGRESS, ERROR)."""
        return self.wait_status(lambda record: record["state"] == name, timeout, f"state {name}")

    def _status(self, parameters: dict[str, Any], timeout: float) -> dict[str, Any]:
        transport = UnixTransport(str(self.socket), timeout)
        proxy = xmlrpc.client.ServerProxy("http://virtagent/RPC2", transport=transport)
        try:
            record: Any = proxy.va.fsstatus(parameters)
        finally:
            transport.close()
        return dict(record)

    # What it is

    def is_running(self) -> bool:
        return self.process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Return its living descendants."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child for child in found if process_state(child.pid) not in ("", "Z")]

    def titles(self) -> dict[int, str]:
        """Return pid and title, as `ps` shows them, of the daemon and its descendants."""
        found = {}
        for pid in (self.pid, *(child.pid for child in self.children())):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def fds(self) -> list[str]:
        """Return what each descriptor of the supervisor is: a path, `socket`, `pipe`, `anon_inode:...`."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except FileNotFoundError:
                continue
            found.append(target.split(":")[0] if target.startswith(("socket:", "pipe:")) else target)
        return sorted(found)

    # How it ends

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Send SIGTERM, wait, return the exit code; nothing of it may be left then."""
        self._note_children()
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
        code = self._wait(timeout)
        self.assert_no_children_left()
        return code

    def kill(self) -> None:
        """SIGKILL the supervisor alone, and wait for its end."""
        self._note_children()
        kill(self.pid)
        self._wait(10)

    def wait_orphans(self, timeout: float = 10) -> None:
        """Wait until the processes that a killed supervisor left have ended by themselves."""
        left = wait_gone(self.orphans, timeout)
        assert not left, f"still there {timeout:g} s after the supervisor: {[process_line(pid) for pid in left]}"

    def assert_no_children_left(self, timeout: float = 2) -> None:
        left = wait_gone(self.orphans, timeout)
        assert not left, f"virtagentd ended and left {[process_line(pid) for pid in left]}"

    def close(self) -> list[str]:
        """End it, by force if it must be, and close what is connected to it; return what was wrong."""
        wrong = []
        for proxy in self._proxies:
            proxy("close")()
        for sock in (*self._sockets, self._notify):
            sock.close()
        self._note_children()
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
            try:
                code = self._wait(STOP_SECONDS)
                if code:
                    wrong.append(f"virtagentd {self.pid} ended with {code} upon SIGTERM")
            except TimeoutError:
                wrong.append(f"virtagentd {self.pid} did not end within {STOP_SECONDS:g} s upon SIGTERM and was killed")
                self._note_children()
                kill(self.pid)
                self._wait(10)
        for pid in wait_gone(self.orphans, 3):
            wrong.append(f"virtagentd {self.pid} left {process_line(pid)}, which was killed")
            kill(pid)
        return wrong

    def end_orphans(self) -> list[int]:
        """Reap what `close` killed, after all is thawed; return what stays."""
        return wait_gone(self.orphans, 10)

    def _note_children(self) -> None:
        self.orphans.update(child.pid for child in self.children())

    def _wait(self, timeout: float) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"virtagentd {self.pid} did not end within {timeout:g} s:\n{self.log()}") from None


def process_line(pid: int) -> str:
    """Return pid, state and name of a process, without asking for its command line, which may block."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = "?"
    return f"{pid} ({process_state(pid) or 'gone'}) {name}"


def _is_include(option: str) -> bool:
    return option == "--include" or option.startswith("--include=")
