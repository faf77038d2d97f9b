"""systemd's journal by its native protocol: a datagram an entry, with fields that programs and its catalogue read.

A datagram that the journal cannot take now waits, as any line of a log that is full. One that it refuses, or that is
too large, goes to stderr as text if there is one; how many did is told with the next that is taken.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from ...agent.api.text import printable
from ..core import entries
from ..core.events import Entry
from .log import Datagrams, Sink

# What a program looks for with `journalctl MESSAGE_ID=...`; packaging/virtagent.catalog explains each.
MESSAGE_IDS: Mapping[str, str] = {
    entries.FROZEN: "19dad910c18244168f863a2b6bd06e60",
    entries.THAWED: "bdb90bcba5d54fd5946dff3a0e44c63d",
    entries.BROKEN: "6cd23c50f1ad42d5bdd22193a280116b",
    entries.OVERRAN: "fce6982271b84c7095d8bd88f635a147",
    entries.STUCK: "a79849690d4544aaa9f1f50c92a62bfe",
    entries.VETOED: "09f79c67e34f441aa95e3e2cff5f7c6e",
    entries.FAILED: "902726a07d984448aedaefa113ea630c",
    entries.LEARNT: "b8bbc2c84f0a4804840fa8791389befa",
}
FIELDS: Mapping[str, str] = {
    "freeze_id": "VIRTAGENT_FREEZE_ID",
    "phase": "VIRTAGENT_PHASE",
    "outcome": "VIRTAGENT_OUTCOME",
    "mount": "VIRTAGENT_MOUNT",
    "errno": "ERRNO",  # systemd.journal-fields(7)
    "writer": "VIRTAGENT_WRITER",
    "lies_on": "VIRTAGENT_LIES_ON",
}
JOURNAL = "/run/systemd/journal/socket"
FACILITY = 3  # daemon, as in syslog(3)


class SystemJournal(Datagrams):
    """The journal's socket; `beside` takes as text what that refuses."""

    def __init__(self, path: str = JOURNAL, beside: Sink | None = None) -> None:
        super().__init__(path, native)
        self._beside = beside
        self._rest = b""  # of a line that went to stderr in part
        self._refused = 0

    def write(self, data: bytes) -> int:
        """Send one datagram; return its size. Raises BlockingIOError; OSError if neither takes it."""
        try:
            super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            if self._beside is None or error.errno in (errno.ENOBUFS, errno.ENOMEM):
                raise
            try:
                self._tell_beside(self._beside, data)
            except BlockingIOError:
                raise error from None  # else the loop would wait for a socket that is always writable
            return len(data)
        if self._refused:
            text = f"log: {self._refused} lines went to the standard error, without their fields"
            refused, self._refused = self._refused, 0
            try:
                super().write(native(4, text))
            except OSError:
                self._refused = refused  # told with the next
        return len(data)

    def _tell_beside(self, beside: Sink, data: bytes) -> None:
        told = dict(line.partition("=")[::2] for line in data.decode(errors="replace").splitlines())
        text = self._rest + beside.line(int(told["PRIORITY"]), told["MESSAGE"])
        self._rest = text[beside.write(text) :]
        self._refused += 1


def native(priority: int, text: str, entry: Entry | None = None) -> bytes:
    """Return one entry (systemd's JOURNAL_NATIVE_PROTOCOL): a NAME=value a line, since no value has a line break."""
    lines = [
        f"MESSAGE={printable(text)}",
        f"PRIORITY={priority}",
        f"SYSLOG_FACILITY={FACILITY}",
        "SYSLOG_IDENTIFIER=virtagentd",
        f"SYSLOG_PID={os.getpid()}",
    ]
    if entry is not None:
        if entry.kind:
            lines.append(f"MESSAGE_ID={MESSAGE_IDS[entry.kind]}")
        lines += [f"{FIELDS[name]}={printable(value)}" for name, value in entry.fields]
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")


def is_stream(environment: Mapping[str, str], fd: int) -> bool:
    """Return whether the descriptor is the stream to the journal that the service manager names (systemd.exec(5))."""
    about = os.fstat(fd)
    return stat.S_ISSOCK(about.st_mode) and environment.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"
