"""One system call or one write in a process of its own: `python -m harness.child ACTION PATH`.

What may block for good on a frozen or stalled file system is done here, never in the process that runs the tests.
It prints `ready`, acts, and prints the answer.
"""

from __future__ import annotations

import errno
import os
import sys

from harness import linux

DIRTY = 4 << 20
CROWD = 4096  # folders: more inodes than are read when a file system is mounted


def act(action: str, path: str) -> str:
    """Do it; return the answer: `ok`, `yes`, `no`, or the name of the errno."""
    try:
        if action == "freeze":
            linux.freeze(path)
        elif action == "thaw":
            linux.thaw(path)
        elif action == "frozen":
            return "yes" if linux.is_frozen(path) else "no"
        elif action == "sync":
            linux.sync(path)
        elif action == "write":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(fd, b"probe\n")
            os.close(fd)
        elif action == "dirty":
            with open(os.path.join(path, "stalled"), "wb", buffering=0) as file:
                file.write(os.urandom(DIRTY))
        elif action == "open":
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        elif action == "crowd":
            for number in range(CROWD):
                os.mkdir(f"{path}/{number}")
        else:
            raise SystemExit(f"unknown action {action!r}")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def main() -> None:
    action, path = sys.argv[1:]
    print("ready", flush=True)
    print(act(action, path), flush=True)


if __name__ == "__main__":
    main()
