"""An agent of the test's making on a unix socket: sound answers in both protocols, or raw bytes.

And virtagentctl run against one, in this process or in its own.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from xmlrpc import client as xmlrpc

from virtagent.host import cli

Answer = Callable[[str, list[Any]], Any]
Script = Callable[[socket.socket], None]


class FakeAgent:
    """Listens at `path` until the context ends. Each connection is one thread that runs `script`.

    `answer` returns the value for a method and its parameters, or raises xmlrpc.Fault. Every request is noted in
    `asked` as (method, params) before it is answered; what finds out who answers (guest-sync-delimited, guest-info) is
    not, except that a `stock` one, which knows no va.* methods, is asked for its guest-info.
    """

    def __init__(
        self, path: Path, answer: Answer | None = None, script: Script | None = None, *, stock: bool = False
    ) -> None:
        self.url = f"unix:{path}"
        self.asked: queue.Queue[tuple[str, list[Any]]] = queue.Queue()
        self.connections = 0
        self._answer = answer
        self._stock = stock
        self._script = script or self._serve
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> FakeAgent:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for sock in (*self._open, self._listener):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = self._listener.accept()[0]
                self.connections += 1
                self._open.append(sock)
                self._threads.append(threading.Thread(target=self._converse, args=(sock,)))
                self._threads[-1].start()

    def _converse(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._script(sock)
            sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, sock: socket.socket) -> None:
        if sock.recv(1, socket.MSG_PEEK) in (b"\xff", b"{"):
            self._serve_json(sock)
            return
        while (request := read_request(sock)) is not None:
            tag, body = request
            params, method = xmlrpc.loads(body, use_builtin_types=True)
            assert method is not None
            self.asked.put((method, list(params)))
            assert self._answer is not None
            try:
                reply = xmlrpc.dumps((self._answer(method, list(params)),), methodresponse=True)
            except xmlrpc.Fault as fault:
                reply = xmlrpc.dumps(fault, methodresponse=True)
            sock.sendall(http(reply.encode(), tag))

    def _serve_json(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # the client has hung up amid a message
                request = json.loads(line.lstrip(b"\xff"))
                echo = {"id": request["id"]} if "id" in request else {}
                match request:
                    case {"execute": "guest-sync-delimited", "arguments": {"id": number}}:
                        sock.sendall(b"\xff" + json_line({"return": number}))
                        continue
                    case {"execute": "guest-info"} if not self._stock:
                        sock.sendall(json_line({"return": GUEST_INFO, **echo}))
                        continue
                    case {"execute": str(method)}:
                        params = request.get("arguments", [])
                        params = params if isinstance(params, list) else [params]
                self.asked.put((method, params))
                assert self._answer is not None
                try:
                    sock.sendall(json_line({"return": self._answer(method, params), **echo}))
                except xmlrpc.Fault as fault:
                    error = {"class": "GenericError", "desc": fault.faultString}
                    named = {} if self._stock else {"code": fault.faultCode, "name": "X"}
                    sock.sendall(json_line({"error": error | named, **echo}))


def introduce(sock: socket.socket) -> None:
    """Answer what finds out who is there, as an agent that speaks JSON."""
    for reply in ({}, {"return": GUEST_INFO}):
        request = json.loads(read_line(sock).lstrip(b"\xff"))
        if reply:
            sock.sendall(json_line(reply | {"id": request["id"]}))
        else:
            sock.sendall(b"\xff" + json_line({"return": request["arguments"]["id"]}))


def read_line(sock: socket.socket) -> bytes:
    """Return one line, without reading on."""
    line = b""
    while not line.endswith(b"\n") and (byte := sock.recv(1)):
        line += byte
    return line


def json_line(reply: dict[str, Any]) -> bytes:
    """Return a line of the QEMU guest agent protocol; bytes travel as base64."""
    return json.dumps(reply, default=lambda value: base64.b64encode(value).decode()).encode() + b"\n"


def read_request(sock: socket.socket) -> tuple[str, bytes] | None:
    """Return the client tag and the body of one HTTP request; None at the end of the stream."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := sock.recv(65536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(headers["content-length"]):
        body += sock.recv(65536)
    return headers["x-virtagent-client-tag"], body


def http(body: bytes, tag: str | None = None, head: str = "HTTP/1.1 200 OK") -> bytes:
    """Return the HTTP response with `body`."""
    lines = [head, "Content-Type: text/xml", f"Content-Length: {len(body)}"]
    if tag is not None:
        lines.append(f"X-Virtagent-Client-Tag: {tag}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply_bytes(value: Any, tag: str | None = None) -> bytes:
    """Return the HTTP response that returns `value`."""
    return http(xmlrpc.dumps((value,), methodresponse=True).encode(), tag)


def run_virtagentctl(
    path: Path, *argv: str, answer: Answer | None = None, script: Script | None = None
) -> tuple[int, str, str]:
    """Run one command in this process against an agent at `path`; return exit code, output and errors."""
    path.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with FakeAgent(path, answer, script) as fake, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = cli.main(["--agent", fake.url, *argv])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def virtagentctl(path: Path, answer: Answer, *argv: str, **options: Any) -> Iterator[Any]:
    """Start one command in a process of its own, for what only a process can meet: signals and the ends of pipes."""
    path.unlink(missing_ok=True)
    program = [sys.executable, "-c", "import sys; from virtagent.host.main import main; sys.exit(main())"]
    with FakeAgent(path, answer) as fake:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        options["env"] = os.environ | {"VIRTAGENT_AGENT": fake.url} | options.get("env", {})
        # A test run in the background has SIGINT ignored, and would hand that on.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen([*program, *argv], **options) as process:
            try:
                yield process
            finally:
                process.kill()


GUEST_INFO = {"version": "1", "supported_commands": [{"name": "guest-info"}, {"name": "va.ping"}]}
MOUNT = {
    "mountpoint": "/srv/db",
    "aliases": ["/mnt/db"],
    "device": "7:0",
    "fstype": "ext4",
    "level": 0,
    "state": "frozen",
    "errno": 0,
    "error": "",
    "seconds": 0.031,
    "reason": "",
    "more_aliases": 0,
    "source": "/dev/vdb",
    "sync_seconds": 2.5,
    "freeze_seconds": 0.031,
    "still_seconds": 19.0,
    "written_bytes": 1 << 20,
    "dirty_bytes": -1,
    "bytes_per_second": -1.0,
    "eta": -1.0,
    "may_be_frozen": True,
    "dm": "",
}
WORKER = {
    "id": 17,
    "pid": 4711,
    "rpc": "va.fsfreeze",
    "phase": "hold",
    "seconds": 19.0,
    "process_state": "sleeping",
    "doing": "",
}
LAST = {
    "freeze_id": 16,
    "outcome": "expired",
    "held_continuously": False,
    "held_seconds": 60.0,
    "stall_seconds": 0.04,
    "error": "the hold limit passed",
    "at": 86400.0,
    "consistency": "file-system",
    "verdict": "bad",
    "learnt": [],
    "more_learnt": 0,
    "written_while_frozen": -1,
    "writers": [],
    "app_stall_seconds": -1,
    "file_systems": 4,
    "synced_bytes": 48 << 20,
    "sync_seconds": 10.6,
    "slowest": "/srv/db",
    "freeze_seconds": 0.011,
    "thaw_seconds": 0.005,
}


TOTALS = {
    "freezes": {"thawed": 5, "expired": 1},
    "phase_seconds": {"sync": 12.5, "hold": 90.0},
    "held_seconds": 90.0,
    "stall_seconds": 0.75,
    "last_success": 86000.0,
}


def status_record(**changed: Any) -> dict[str, Any]:
    """Return the status record of a freeze that is held, with members changed."""
    record = {
        "state": "FROZEN",
        "code": 2,
        "seq": 40,
        "freeze_id": 17,
        "phase": "hold",
        "since": 19.0,
        "limit_left": -1,
        "hold_left": 41.0,
        "mounts": [MOUNT],
        "progress": {"dirty_bytes": -1, "flushed_bytes": -1, "bytes_per_second": -1.0, "eta": -1.0},
        "workers": [WORKER],
        "writers": [],
        "last": {},
        "audit": {"waiting": 3, "dropped": 0},
        "version": "0.1.0",
        "uptime": 7500.0,
        "troubles": 0,
        "history": [],
        "error": "",
        "left_out_counts": {},
        "totals": TOTALS,
        "stopping": "",
    }
    return record | changed
