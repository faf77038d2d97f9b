"""Stands in for virtagentd where the harness itself is tested: says READY=1 and writes what is mounted into `seen`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from harness import linux


def main() -> None:
    child = None
    if os.environ.get("PRETEND") == "leave a child":
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
    asked = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"STATUS=pretending\nREADY=1", os.environ["NOTIFY_SOCKET"])
    while signal.sigwait(asked) == signal.SIGUSR1:
        with open("seen.new", "w", encoding="utf-8") as seen:
            seen.writelines(f"{m.mountpoint} {m.fstype}\n" for m in linux.mounts())
        os.rename("seen.new", "seen")
    os._exit(0 if child is None or child.poll() is None else 1)


if __name__ == "__main__":
    main()
