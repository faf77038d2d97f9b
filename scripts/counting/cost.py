"""What a worker's report and a ping cost in the supervisor: calls of Python functions, counted in a real daemon.

The daemon is the tree's own main program with one change: its forked worker is a stand-in that reports what a freeze
worker would, one message a turn of the loop, and freezes nothing. `sys.setprofile` counts between two waits.

Run as a program with the tree as its argument; prints JSON.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import types
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

MOUNTS, PINGS, IDLE = 8, 20, 16
PARTS = ("decide", "show", "read and write", "keep house")
PING = b'{"execute":"guest-ping"}\n'
NOWHERE = "/nowhere/at/all"
"""What the daemon may freeze: should the stand-in not take the worker's place, there is nothing to be found."""
_SHOW = ("status", "titles", "audit", "polls", "log", "log_writer")


class Costs:
    """Counts the calls of each turn of the loop, and keeps those of the turns that held one interesting event."""

    def __init__(self, tree: Path) -> None:
        self._supervisor, self._agent = (str(tree / folder) + os.sep for folder in ("supervisor", "agent"))
        self._parts: list[str] = []
        self._turn: Counter[str] = Counter()
        self._events: list[str] = []
        self.kept: dict[str, list[dict[str, int]]] = {"Step": [], "ping": []}

    def wait_begins(self) -> None:
        """Keep what the turn that ends here has cost."""
        if len(self._events) == 1 and self._events[0] in self.kept:
            self.kept[self._events[0]].append(dict(self._turn))
        self._turn.clear()
        self._events.clear()

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """Take what the interpreter tells of a call or a return."""
        if event == "call":
            part = self._part(frame)
            self._parts.append(part)
            self._turn[part] += 1
        elif event == "return" and self._parts:
            self._parts.pop()

    def _part(self, frame: FrameType) -> str:
        outer = self._parts[-1] if self._parts else "keep house"
        code = frame.f_code
        inside = code.co_filename.startswith(self._supervisor)
        if inside and outer != "decide" and code.co_name == "handle" and "event" in frame.f_locals:
            self._events.append(_kind(frame.f_locals["event"]))
            return "decide"
        if outer == "keep house" and code.co_filename.startswith(self._agent):
            return "read and write"
        shows = inside and (Path(code.co_filename).stem in _SHOW or code.co_name == "_show")
        return "show" if outer == "decide" and shows else outer


def _kind(event: object) -> str:
    message = getattr(event, "message", None)
    if message is not None:
        return type(message).__name__
    return "ping" if "ping" in getattr(event, "method", "") else type(event).__name__


def _first(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if not name.startswith(str(missing.name)):
                raise
    raise SystemExit(f"none of {', '.join(names)} is in this tree")


def _stand_in(drive: Any) -> Any:
    """Return what takes the place of the worker's body: it reports a freeze of file systems that do not exist."""
    messages = _first("virtagent.agent.worker.messages", "virtagent.agent.report")

    def run(job: Any, report: int, control: int, supervisor: int) -> NoReturn:
        sys.setprofile(None)
        mounts = range(MOUNTS)

        def say(*all_: Any) -> None:
            for message in all_:
                for frame in messages.encode(message):
                    os.write(report, frame)
                while fcntl.ioctl(report, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0":
                    select.select([], [], [], 0.001)

        def hear() -> None:
            select.select([control], [], [])
            os.read(control, 65536)

        try:
            os.set_blocking(report, True)
            say(messages.Started(os.getpid()))
            if job.rpc == "va.fsfreeze":
                say(
                    messages.Progress("plan"), messages.Plan(drive.plan_of(MOUNTS).dump()), messages.Progress("sync", 1)
                )
                say(*(messages.Step(i, state) for i in mounts for state in ("syncing", "synced")))
                say(*(messages.REPORTS[name]() for name in ("Synced",) if name in messages.REPORTS))  # since ADR 0024
                hear()
                say(messages.Progress("freeze"))
                say(*(messages.Step(i, state) for i in mounts for state in ("freezing", "frozen")))
                now = time.monotonic()
                say(messages.Frozen(MOUNTS, now, now + job.args["options"].hold_limit))
                hear()
                say(messages.Thawing("", time.monotonic()))
            say(*(messages.Step(i, state) for i in mounts for state in ("thawing", "thawed")), messages.Done(MOUNTS))
        finally:
            os._exit(0)

    return run


def _serve(tree: Path, folder: str) -> int:
    """Be the daemon; write what was counted when it ends."""
    sys.path.insert(0, str(tree / "tests"))
    sys.modules["virtagent"] = types.ModuleType("virtagent")
    sys.modules["virtagent"].__path__ = [str(tree)]
    costs = Costs(tree)
    epoll = select.epoll

    class Watched:
        """An epoll that tells when a turn ends and the next one begins; what it does not change is not a call."""

        def __init__(self, *given: Any) -> None:
            self._real = real = epoll(*given)
            for name in ("register", "modify", "unregister", "close", "fileno"):
                setattr(self, name, getattr(real, name))

        def poll(self, *given: Any, **named: Any) -> Any:
            sys.setprofile(None)
            costs.wait_begins()
            found = self._real.poll(*given, **named)
            sys.setprofile(costs.note)
            return found

    select.epoll = Watched  # type: ignore[assignment,misc]
    selectors.EpollSelector._selector_cls = Watched  # type: ignore[attr-defined]
    main = importlib.import_module("virtagent.supervisor.main")
    worker = _first("virtagent.agent.worker.process", "virtagent.agent.worker")
    assert worker.run, "the worker's body has another name"
    worker.run = _stand_in(importlib.import_module("fakes.drive"))
    options = ["--channel", f"unix:{folder}/socket", "--state-dir", f"{folder}/state", "--include", NOWHERE]
    code: int = main.main(options)
    sys.setprofile(None)
    Path(folder, "counts").write_text(json.dumps(costs.kept))
    return code


def _connect(path: str, daemon: subprocess.Popen[bytes]) -> socket.socket:
    for _ in range(2000):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if daemon.poll() is not None:
                break
            select.select([], [], [], 0.01)
    raise SystemExit("the daemon did not start")


def _ask(sock: socket.socket, line: bytes) -> Any:
    sock.sendall(line)
    data = b""
    while not data.endswith(b"\n"):
        more = sock.recv(65536)
        if not more:
            raise SystemExit("the daemon hung up")
        data += more
    answer = json.loads(data)
    if "error" in answer:
        raise SystemExit(f"{line!r}: {answer['error']}")
    return answer["return"]


def _measure(tree: Path, idle: int) -> dict[str, list[dict[str, int]]]:
    """Return what each `Step` and each ping has cost while `idle` other connections are open."""
    folder = tempfile.mkdtemp(prefix="count", dir="/dev/shm")
    os.mkdir(f"{folder}/state", 0o700)
    daemon = subprocess.Popen([sys.executable, "-B", __file__, str(tree), folder], stderr=subprocess.DEVNULL)
    limit = threading.Timer(60, daemon.kill)
    limit.start()
    try:
        host = _connect(f"{folder}/socket", daemon)
        others = [_connect(f"{folder}/socket", daemon) for _ in range(idle)]
        for sock in (*others, host):
            _ask(sock, PING)
        for _ in range(PINGS):
            _ask(host, PING)
        froze = _ask(host, b'{"execute":"guest-fsfreeze-freeze"}\n')
        thawed = _ask(host, b'{"execute":"guest-fsfreeze-thaw"}\n')
        assert froze == thawed == MOUNTS, (froze, thawed)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        counted: dict[str, list[dict[str, int]]] = json.loads(Path(folder, "counts").read_text())
        return counted
    finally:
        limit.cancel()
        daemon.kill()
        daemon.wait()
        shutil.rmtree(folder)


def usual(turns: list[dict[str, int]]) -> dict[str, int]:
    """Return the calls of the turn in the middle, by part and together."""
    ordered = sorted(turns, key=lambda turn: sum(turn.values()))
    middle = ordered[len(ordered) // 2]
    return {part: middle.get(part, 0) for part in PARTS} | {"together": sum(middle.values())}


def main() -> int:
    """Print the costs as JSON; with a folder as a second argument, be the daemon."""
    tree = Path(sys.argv[1]).resolve()
    if len(sys.argv) > 2:
        return _serve(tree, sys.argv[2])
    alone, crowded = _measure(tree, 0), _measure(tree, IDLE - 1)
    print(
        json.dumps(
            {
                "a Step report, 1 connection": usual(alone["Step"]),
                f"a Step report, {IDLE} connections": usual(crowded["Step"]),
                "a ping, 1 connection": usual(alone["ping"]),
                f"a ping, {IDLE} connections": usual(crowded["ping"]),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
