"""Runs in the guest, from RAM: takes commands from the tests' own port and reports how they ended.

A line is one JSON object. {"id", "run"}: a command line for busybox's shell; its reply is {"id", "code", "out", "err"}.
Each runs in a thread, so that one that hangs on a frozen file system keeps no other waiting.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading

PORT = "org.virtagent.test"
RAM = "/run/ram"
ENVIRONMENT = {"PATH": f"{RAM}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"}


def port() -> str:
    """Return the port's device; nothing that udev makes is needed."""
    folder = "/sys/class/virtio-ports"
    for name in os.listdir(folder):
        with open(f"{folder}/{name}/name", encoding="ascii") as file:
            if file.read().strip() == PORT:
                return f"/dev/{name}"
    raise SystemExit(f"no port {PORT}")


def main() -> None:
    os.chdir("/run")
    fd = os.open(port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    lock = threading.Lock()
    edges = select.epoll()
    edges.register(fd, select.EPOLLIN | select.EPOLLET)
    writable = select.poll()
    writable.register(fd, select.POLLOUT)

    def say(message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    writable.poll()

    def run(number: int, command: str) -> None:
        done = subprocess.run(
            [f"{RAM}/bin/busybox", "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ENVIRONMENT,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        say({"id": number, "code": done.returncode, "out": out, "err": err})

    say({"id": 0, "code": 0, "out": sys.version, "err": ""})
    rest = b""
    while True:
        edges.poll()
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                break
            if not data:
                break  # the tests are away
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                threading.Thread(target=run, args=(message["id"], message["run"]), daemon=True).start()


main()
