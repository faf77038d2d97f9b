"""Where a trace goes: a file, or a collector by HTTP. Whatever is wrong there, the snapshot is as good as it was."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

SECONDS = 5.0  # in which a collector must have taken it
_DEFAULT = "/v1/traces"  # OTLP/HTTP
_SAID = 200  # characters of what a collector says


def keep(target: str, make: Callable[[], dict[str, Any]], seconds: float = SECONDS) -> str:
    """Write the trace to a file, or post it to an http or https URL; return why that failed, "" if it did not."""
    try:
        data = json.dumps(make(), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except Exception as error:  # noqa: BLE001 - whatever a guest has told, or a defect: the snapshot is over, and good
        return f"it cannot be made: {type(error).__name__}: {error}"
    if not target.startswith(("http://", "https://")):
        return _write(target, data)
    said: list[str] = []
    # A thread, since looking up a name has no time limit of its own; one that hangs ends with the program.
    thread = threading.Thread(target=lambda: said.append(_post(target, data, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"no answer within {seconds:g} s"


def _write(path: str, data: bytes) -> str:
    try:
        # O_NONBLOCK: a FIFO that nobody reads is refused, not waited for.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        with open(fd, "wb", buffering=0) as file:
            while data:
                taken = file.write(data)
                if not taken:
                    return "it takes no more"
                data = data[taken:]
    except OSError as error:
        return str(error.strerror)
    return ""


def _post(url: str, data: bytes, seconds: float) -> str:
    try:
        where = urlsplit(url)
        connection = _connection(where, seconds)
        try:
            path = (where.path if where.path.strip("/") else _DEFAULT) + (f"?{where.query}" if where.query else "")
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            words = answer.read(_SAID).decode(errors="replace")
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "strerror", None) or error or type(error).__name__)
    return "" if 200 <= answer.status < 300 else f"{answer.status} {answer.reason}: {words}"


def _connection(where: SplitResult, seconds: float) -> http.client.HTTPConnection:
    if not where.hostname:
        raise ValueError("the URL names no host")
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    return kind(where.hostname, where.port, timeout=seconds)
