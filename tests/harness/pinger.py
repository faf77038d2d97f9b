"""A host that asks one thing again and again, and says how long each answer took: python -m harness.pinger SOCKET."""

from __future__ import annotations

import select
import socket
import sys
import time

EVERY = 0.02  # seconds


def ping(path: str, sock: socket.socket | None, number: int) -> tuple[socket.socket, float]:
    """Return the connection and the seconds to the answer; a connection that had to give way is made anew."""
    begun = time.monotonic()
    while True:
        if sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(30)
            sock.connect(path)
        try:
            sock.sendall(b'\xff{"execute": "guest-sync", "arguments": {"id": %d}}\n' % number)
            said = b""
            while b"%d}" % number not in said:
                piece = sock.recv(4096)
                if not piece:
                    raise ConnectionResetError
                said += piece
        except (BrokenPipeError, ConnectionResetError):
            sock.close()
            sock = None
            continue
        return sock, time.monotonic() - begun


def main() -> None:
    """Ping until standard input ends; print the seconds of each, one a line."""
    sock, number = None, 1000
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        number += 1
        sock, seconds = ping(sys.argv[1], sock, number)
        print(f"{seconds:.6f}")


if __name__ == "__main__":
    main()
