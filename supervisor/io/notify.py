"""Messages to the service manager: datagrams to NOTIFY_SOCKET (sd_notify(3)), if there is one."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notify:
    """The notify socket, and how often to feed the watchdog (seconds; None: never)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.interval: float | None = None
        microseconds = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if microseconds.isdecimal() and int(microseconds) and mine:
            self.interval = int(microseconds) / 2e6

    def say(self, state: str) -> str:
        """Send `state`; return what is wrong with the socket, "" if nothing is."""
        if not self._address:
            return ""
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            return f"notify socket: {error.strerror}"
        return ""
