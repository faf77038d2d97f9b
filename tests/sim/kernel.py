"""File systems of a kernel, and the calls on them that may block: as measured (docs/simulation.md has the facts).

A call that has entered the kernel goes on whatever happens to its process: SIGKILL does not stop it, and its effect
comes with its end. FIFREEZE has two stages. In the first it waits for writers without the lock of the superblock, so
that FITHAW finds the file system not frozen (EINVAL), and another FIFREEZE finds it busy. In the second it holds the
lock: every other call waits for it. FITHAW holds the lock while it writes the superblock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from virtagent.agent.worker.steps import Operation

NOBODY, FOREIGNER = 0, -1
"""Who froze a file system, if it is not the process of that pid."""

FLOWS, STUCK, STUCK_FOR_WRITERS = range(3)
"""What a disk does: it works, or calls wait for it; or only the first stage of FIFREEZE waits, for a writer."""

ENTER, WRITERS, LOCKED = range(3)


class FileSystem:
    """One superblock. `below`: the indices of all that it lies on. `errors`: errnos of the next calls that end.

    `written` are the sectors written to its device: an ext4's FIFREEZE and FITHAW write, and writers wait for a thaw.
    """

    __slots__ = ("below", "disk", "errors", "freezing", "frozen", "index", "lock", "supported", "written")

    def __init__(self, index: int, below: frozenset[int], *, supported: bool) -> None:
        self.index = index
        self.below = below
        self.supported = supported
        self.frozen = NOBODY
        self.freezing: Call | None = None
        self.lock: Call | None = None
        self.disk = FLOWS
        self.errors: dict[Operation, list[int]] = {}
        self.written = 0


class Call:
    """A call of process `pid` that is in the kernel."""

    __slots__ = ("fs", "operation", "pid", "stage")

    def __init__(self, pid: int, fs: FileSystem, operation: Operation) -> None:
        self.pid = pid
        self.fs = fs
        self.operation = operation
        self.stage = ENTER


class Kernel:
    """The file systems; `changed(fs)` is called when one was frozen or thawed."""

    def __init__(self, every: Sequence[FileSystem], changed: Callable[[FileSystem], None]) -> None:
        self.every = every
        self._changed = changed
        self.expedited = False

    def blocked(self, call: Call) -> bool:
        """Return whether the call cannot go on for now."""
        fs = call.fs
        if fs.lock is not None and fs.lock is not call:
            return not (call.stage == ENTER and call.operation is Operation.FREEZE and not fs.supported)
        if call.stage == ENTER:
            return call.operation is Operation.SYNC and self._hangs(fs)
        if call.stage == WRITERS:
            return fs.disk == STUCK_FOR_WRITERS
        return self._hangs(fs)

    def _hangs(self, fs: FileSystem) -> bool:
        every = self.every
        return fs.disk == STUCK or any(every[i].frozen or every[i].disk == STUCK for i in fs.below)

    def step(self, call: Call) -> int | None:
        """Let a call that is not blocked go on; return its errno when it ends (0: done), else None."""
        return (_SYNC if call.operation is Operation.SYNC else self._MOVES[call.operation, call.stage])(self, call)

    def _sync(self, call: Call) -> int | None:
        return self._injected(call)

    def _enter_freeze(self, call: Call) -> int | None:
        fs = call.fs
        if not fs.supported:
            return errno.EOPNOTSUPP
        if fs.frozen or fs.freezing is not None:
            return errno.EBUSY
        fs.freezing = call
        call.stage = WRITERS
        return None

    def _writers_wait(self, call: Call) -> int | None:
        call.fs.lock = call
        call.stage = LOCKED
        return None

    def _freeze(self, call: Call) -> int | None:
        fs = call.fs
        fs.freezing = fs.lock = None
        error = self._injected(call)
        if not error:
            self._set(fs, call.pid)
        return error

    def _enter_thaw(self, call: Call) -> int | None:
        if not call.fs.frozen:
            return errno.EINVAL
        call.fs.lock = call
        call.stage = LOCKED
        return None

    def _thaw(self, call: Call) -> int | None:
        fs = call.fs
        fs.lock = None
        error = self._injected(call)
        if not error:
            self._set(fs, NOBODY)
        return error

    _MOVES = {  # noqa: RUF012 - a table
        (Operation.FREEZE, ENTER): _enter_freeze,
        (Operation.FREEZE, WRITERS): _writers_wait,
        (Operation.FREEZE, LOCKED): _freeze,
        (Operation.THAW, ENTER): _enter_thaw,
        (Operation.THAW, LOCKED): _thaw,
    }

    def _injected(self, call: Call) -> int:
        errors = call.fs.errors.get(call.operation)
        return errors.pop(0) if errors else 0

    def _set(self, fs: FileSystem, frozen: int) -> None:
        fs.frozen = frozen
        fs.written += 1
        self._changed(fs)

    def freeze_by_another(self, fs: FileSystem) -> bool:
        """Have somebody else freeze it; return whether that was possible."""
        if fs.frozen or fs.freezing is not None or fs.lock is not None or not fs.supported:
            return False
        self._set(fs, FOREIGNER)
        return True

    def thaw_by_another(self, fs: FileSystem) -> bool:
        """Have somebody else thaw it, whoever froze it; return whether that was possible."""
        if not fs.frozen or fs.lock is not None:
            return False
        self._set(fs, NOBODY)
        return True


_SYNC = Kernel._sync
