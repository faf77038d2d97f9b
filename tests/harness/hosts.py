"""Hosts of the chaos tests: they call, wait, give up or vanish. An answer is a value, a Fault or GONE."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import xmlrpc.client
from typing import Any

from .daemon import Daemon, UnixTransport

Fault = xmlrpc.client.Fault


class Gone:
    """The connection was lost, refused, or the host waited no longer: there was no answer."""

    def __repr__(self) -> str:
        return "GONE"


GONE = Gone()


def call(daemon: Daemon, method: str, *params: Any, timeout: float = 30) -> Any:
    """Call over a connection of its own; return the value, the Fault, or GONE."""
    transport = UnixTransport(str(daemon.socket), timeout)
    proxy = xmlrpc.client.ServerProxy("http://virtagent/RPC2", transport=transport)
    try:
        return getattr(proxy, method)(*params)
    except Fault as fault:
        return fault
    except (OSError, http.client.HTTPException, EOFError):
        return GONE
    finally:
        transport.close()


def request(method: str, *params: Any) -> bytes:
    """Return the bytes of one request."""
    body = xmlrpc.client.dumps(params, method).encode()
    lines = ["POST /RPC2 HTTP/1.1", "Host: guest", "Content-Type: text/xml", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


class Vanishing:
    """A host that asks and hangs up when it is told to, without reading."""

    def __init__(self, daemon: Daemon, method: str, *params: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        try:
            self.sock.connect(str(daemon.socket))
            self.sock.sendall(request(method, *params))
        except OSError:
            self.sock.close()
            raise

    def vanish(self) -> None:
        self.sock.close()


class Asking(threading.Thread):
    """A host that waits in one call; `answer` is a value, a Fault or GONE, None as long as there is none."""

    def __init__(self, daemon: Daemon, method: str, *params: Any, timeout: float = 60) -> None:
        super().__init__(daemon=True)
        self.method, self.params = method, params
        self.daemon_pid = daemon.pid
        self.answer: Any = None
        self.sent_at = time.monotonic()
        self.answered_at = 0.0
        self._agent, self._timeout = daemon, timeout
        self.start()

    def run(self) -> None:
        answer = call(self._agent, self.method, *self.params, timeout=self._timeout)
        self.answered_at = time.monotonic()
        self.note(answer)
        self.answer = answer

    def note(self, answer: Any) -> None:
        """Called with the answer before anybody else can see it."""

    def wait(self, timeout: float = 30) -> Any:
        """Return the answer; AssertionError if there is none in time."""
        self.join(timeout)
        assert not self.is_alive(), f"{self.method}: no answer within {timeout:g} s"
        return self.answer


def code_of(answer: Any) -> int | None:
    """Return the fault's number, None if the answer is no fault."""
    return answer.faultCode if isinstance(answer, Fault) else None
