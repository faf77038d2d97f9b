"""What goes wrong with one connection or one worker: told in one line each, counted, and ended there.

Only the code for one of them stands inside such a boundary. A defect of the core is not caught: it ends the supervisor,
and the keeper thaws.
"""

from __future__ import annotations

import errno
import os

from .log import Log


class Troubles:
    """The count of them since the start, and the log that they are told in."""

    def __init__(self, log: Log) -> None:
        self.count = 0
        self._log = log

    def tell(self, what: str, error: Exception) -> str:
        """Log and count that `what` (who it was, and what was done about it) met `error`; return the reason."""
        self.count += 1
        why = reason(error)
        self._log.add("warning", f"{what}: {why} [{self.count} since the start]")
        return why


def reason(error: Exception) -> str:
    """Return what went wrong and where, and what can be done about it. No file is opened for that."""
    where = _where(error)
    if isinstance(error, OSError) and error.errno is not None:
        name = errno.errorcode.get(error.errno, f"errno {error.errno}")
        text = f"{os.strerror(error.errno)} ({name}) in {where}"
        if error.errno == errno.ENOSPC:
            text += "; raise fs.epoll.max_user_watches"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            text += "; raise the limit of open files"
        return text
    if isinstance(error, MemoryError):
        return f"out of memory in {where}"
    return f"a defect of the agent, please report it: {type(error).__name__}({str(error)[:80]!r}) in {where}"


def _where(error: Exception) -> str:
    place = error.__traceback__
    if place is None:
        return "the agent"
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code
    return f"{code.co_name}, {os.path.basename(code.co_filename)} line {place.tb_lineno}"
