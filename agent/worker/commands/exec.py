"""guest-exec, guest-exec-status: a host starts a program, and asks about it until it has ended.

A worker holds one program. The main thread starts it and answers; one other thread, the attendant, feeds its standard
input, takes its output, ends it at its limit and reaps it, waiting for whichever comes first.

Limit: `limit` seconds after the start the program's process group gets SIGTERM, `grace` seconds later SIGKILL. If the
program has ended meanwhile and others of its group have not, it is reaped only after that SIGKILL, so that the number
of the group cannot have been given to another one. What has left the group (setsid) goes on.

End: qemu-ga says "exited" only when the program has ended *and* its pipes are closed, so a daemon that it left behind
makes it seem to run for ever. Here a program has exited at the latest LINGER seconds after its end, with the output
until then; later output is read and thrown away until the worker ends.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...api import qemu
from ...api.errors import Code, Fault
from ..base64_codec import from_base64, octets, to_base64
from ..programs import Text, start
from ..resource import Resource

if TYPE_CHECKING:
    from ..context import Args, Worker

CAPTURE_MAX = 16 << 20  # bytes of each stream
LINGER = 1.0
_LOOK = 0.05  # seconds between two looks whether a group has ended: the kernel sends no event for that
_POLL_MAX = 1e6  # seconds; poll(2) counts milliseconds in an int
_PIECE = 64 << 10
_PIPE_MAX = 1 << 20  # pipe(7)
_OUT, _ERR = "out", "err"
# Which streams each capture mode captures; merged takes both as "out".
_CAPTURES = {
    "none": (),
    "stdout": (_OUT,),
    "stderr": (_ERR,),
    "separated": (_OUT, _ERR),
    "merged": (_OUT,),
}


class Output:
    """The first 16 MiB that a program wrote to one of its pipes."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.data = bytearray()
        self.truncated = False
        self.holds = True

    def take(self) -> bool:
        """Read what is there, once; return False at the end of file."""
        try:
            piece = os.read(self.fd, _PIECE)
        except BlockingIOError:
            return True
        if self.holds:
            room = CAPTURE_MAX - len(self.data)
            self.data += piece[:room]
            self.truncated |= len(piece) > room
        return bool(piece)

    def drain(self) -> None:
        """Read what is in the pipe now, and store nothing from then on."""
        for _ in range(_PIPE_MAX // _PIECE):  # not until it is empty: it may be filled as fast as it is read
            before = len(self.data)
            self.take()
            if len(self.data) == before:
                break
        self.holds = False


class Program(Resource):
    """A started program; `key` is its pid."""

    def __init__(
        self, worker: Worker, name: str, process: subprocess.Popen[bytes], given: bytes, limit: float, grace: float
    ) -> None:
        self.key = process.pid
        self.value = {"pid": process.pid}
        self.streams: list[Output] = []
        self._worker, self._name, self._process = worker, name, process
        self._given = memoryview(given)
        self._limit, self._grace = limit, grace
        self._pidfd = os.pidfd_open(process.pid)
        self._reaping = threading.Lock()  # held while the group is signalled, so that its number is still ours
        self._reaped = False
        self._over = threading.Event()
        for stream, pipe in ((_OUT, process.stdout), (_ERR, process.stderr)):
            if pipe is not None:
                self.streams.append(Output(stream, pipe.fileno()))
        worker.title(f"{name}, pid {self.key}")

    def acquired(self) -> None:
        """Start the attendant."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        threading.Thread(target=self._attend, name="attendant", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """Return the record of guest-exec-status; once that says exited, the output and the program are forgotten."""
        if not self._over.is_set():
            return {"exited": False}
        code = self._process.returncode
        record: dict[str, Any] = {"exited": True, **({"signal": -code} if code < 0 else {"exitcode": code})}
        for stream in self.streams:
            if stream.data:
                record[f"{stream.name}-data"] = to_base64(stream.data)
                record[f"{stream.name}-truncated"] = stream.truncated
                stream.data = bytearray()
        self.ended = True
        return record

    def close(self) -> None:
        """Kill what is left of the program's group, unless the program has ended by itself."""
        with self._reaping:
            if not self._reaped:
                os.killpg(self.key, signal.SIGKILL)

    def _attend(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        open_streams = {stream.fd: stream for stream in self.streams}
        for fd in open_streams:
            poll.register(fd, select.POLLIN)
        stdin = -1 if self._process.stdin is None else self._process.stdin.fileno()
        if stdin >= 0:
            poll.register(stdin, select.POLLOUT)
        terminate_at = time.monotonic() + self._limit if self._limit else math.inf
        kill_at = stop_reading_at = math.inf
        ended = False

        while open_streams or not self._over.is_set():
            left = max(0.0, min(terminate_at, kill_at, stop_reading_at) - time.monotonic())
            longest = _LOOK if ended and not self._reaped else _POLL_MAX
            ready = poll.poll(None if left == math.inf else min(left, longest) * 1000)
            for fd, _ in ready:
                if fd == stdin:
                    if not self._feed():
                        poll.unregister(stdin)
                        stdin = -1
                elif fd == self._pidfd:
                    poll.unregister(self._pidfd)
                    ended, terminate_at = True, math.inf
                elif fd in open_streams and not open_streams[fd].take():
                    poll.unregister(fd)
                    del open_streams[fd]
            now = time.monotonic()
            if now >= terminate_at:
                self._signal(signal.SIGTERM)
                terminate_at, kill_at = math.inf, now + self._grace
            if now >= kill_at:
                self._signal(signal.SIGKILL)
                kill_at = math.inf
            if ended and not self._reaped and (kill_at == math.inf or not self._has_company()):
                self._reap()
                kill_at, stop_reading_at = math.inf, now + LINGER
            if self._reaped and not self._over.is_set() and (not open_streams or now >= stop_reading_at):
                stop_reading_at = math.inf
                self._finish(open_streams.values())
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _feed(self) -> bool:
        """Write what standard input takes; return False if it is closed: all written, or the program gone."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            if self._given:
                self._given = self._given[os.write(pipe.fileno(), self._given[:_PIECE]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._given = memoryview(b"")
        if self._given:
            return True
        pipe.close()
        return False

    def _signal(self, number: int) -> None:
        try:
            with self._reaping:
                os.killpg(self.key, number)
        except PermissionError:  # it has changed its user, and the service has no CAP_KILL
            self._worker.title(f"{self._name}, pid {self.key}, cannot be signalled")

    def _has_company(self) -> bool:
        """Return whether others of the program's group are alive; that is so if it cannot be known."""
        try:
            return any(self._is_company(name) for name in os.listdir("/proc") if name.isdecimal())
        except OSError:
            return True

    def _is_company(self, name: str) -> bool:
        if int(name) == self.key:
            return False
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(group) == self.key and state not in b"ZX"

    def _reap(self) -> None:
        with self._reaping:
            self._process.wait()
            self._reaped = True
        os.close(self._pidfd)

    def _finish(self, still_open: Iterable[Output]) -> None:
        for stream in still_open:
            stream.drain()
        code = self._process.returncode
        self._worker.title(f"{self._name}, pid {self.key}, {f'signal {-code}' if code < 0 else f'exit code {code}'}")
        self.notify_releasable()
        self._over.set()


def guest_exec(worker: Worker, args: Args) -> Program:
    """Start `path` with the arguments `arg`; return the program for the worker to hold. The first answer is {pid}.

    `path` without a slash is looked for in the PATH of `env`, else the agent's; `env` replaces the environment.
    Raises Fault FAILED if the program cannot be executed.
    """
    path = args["path"]
    given = None if args["input-data"] is None else from_base64(args["input-data"])
    mode, captured = _capture(args["capture-output"])
    env = None if args["env"] is None else _environment(args["env"])
    command = [octets(text) for text in (path, *(args["arg"] or ()))]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL

    def execute(command: list[bytes], executable: Text) -> subprocess.Popen[bytes]:
        return start(
            command,
            executable=executable,
            env=env,
            stdin=null if given is None else pipe,
            stdout=pipe if _OUT in captured else null,
            stderr=subprocess.STDOUT if mode == "merged" else pipe if _ERR in captured else null,
            folder=None,
        )

    worker.title(f"starting {path}")
    try:
        executable = _find(command[0], env)
        try:
            process = execute(command, executable)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # The shell runs a script that names no interpreter, as with execvp(3); its arguments stay a list.
            process = execute([b"/bin/sh", executable, *command[1:]], b"/bin/sh")
    except OSError as error:
        why = f"Failed to execute child process “{path}” ({error.strerror})"
        if args.get("qga", qemu.LATEST) < qemu.EXEC_SAYS_WHY:
            why = f"Guest agent command failed, error was '{why}'"
        raise Fault(Code.FAILED, why) from None
    return Program(worker, os.path.basename(path), process, given or b"", args["limit"], args["grace"])


def exec_status(program: Program, _args: Args) -> dict[str, Any]:
    """Return whether the program has exited; if so, also, once, its exit code or signal and its output."""
    return program.status()


def _capture(wanted: bool | str | None) -> tuple[str, tuple[str, ...]]:
    mode = wanted if isinstance(wanted, str) else "separated" if wanted else "none"
    return mode, _CAPTURES[mode]


def _environment(entries: list[str]) -> dict[bytes, bytes]:
    """Return the variables of `NAME=value` entries; the first counts if one is there twice, as with getenv(3)."""
    variables: dict[bytes, bytes] = {}
    for entry in entries:
        name, equals, value = octets(entry).partition(b"=")
        if equals:
            variables.setdefault(name, value)
    return variables


def _find(name: bytes, env: dict[bytes, bytes] | None) -> bytes:
    """Return the path of the program; raise OSError, EACCES if what was found may not be executed."""
    if b"/" in name:
        return name
    path = (env or {}).get(b"PATH", os.environb.get(b"PATH", os.fsencode(os.defpath)))
    refused = errno.ENOENT
    for folder in path.split(b":") if name else ():
        candidate = os.path.join(folder or b".", name)
        try:
            mode = os.stat(candidate).st_mode
        except OSError as error:
            if error.errno == errno.EACCES:
                refused = errno.EACCES
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        refused = errno.EACCES
    raise OSError(refused, os.strerror(refused))
