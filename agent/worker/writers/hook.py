"""Hooks: programs that are called with `freeze` before the file systems freeze and with `thaw` after they are thawed.

They are those of qemu-ga: one program, or all of a folder, in the order of their names and back. For each that was
called with `freeze`, whatever came of it, the same is called with `thaw`, once; and none without. A `thaw` that fails
is only told: nobody knows what calling it again would do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from ...api.writers import Step, WriterConfig
from . import hook_program
from .client import Refused, TooSlow
from .hook_program import NotStarted, Program, Waits, wait
from .latch import BEGUN, UNDONE, Latch

IGNORED = ("~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample")
"""The endings that QEMU's own fsfreeze-hook ignores, and names with .dpkg- in them."""
Info = dict[str, Any]


class Hooks:
    """The programs of one writer."""

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._paths: list[str] = []

    fds: tuple[int, ...] = ()

    def prepare(self, until: float) -> Info:
        """Look for the programs; call them if that is to be done before the sync. Raises Refused, Interrupted."""
        try:
            self._paths = programs(self._config)
        except OSError as error:
            raise Refused(f"{error.filename}: {error.strerror}") from None
        return self._freeze(until) if self._config.when is Step.PREPARE else {}

    def quiesce(self, until: float) -> Info:
        """Call the programs, one after another. Raises Refused, Interrupted."""
        return self._freeze(until) if self._config.when is Step.QUIESCE else {}

    def confirm(self, _until: float) -> Info:
        """Do nothing: a hook cannot prove that it held."""
        return {}

    def _freeze(self, until: float) -> Info:
        runs: list[dict[str, Any]] = []
        for path in self._paths:
            runs.append({"path": path, "freeze": [0, 0], "thaw": [0, 0]})
            self._latch.write({"type": self._config.type, "runs": runs})

            def note(program: Program) -> None:
                runs[-1]["freeze"] = list(program)
                self._latch.write({"type": self._config.type, "runs": runs})

            try:
                ended = hook_program.run(path, "freeze", self._latch, BEGUN, note, self._waits, until)
            except NotStarted as error:
                raise Refused(str(error)) from None
            if ended.wrong:
                raise (TooSlow if ended.overran else Refused)(f"{path} freeze {ended.wrong}")
        return {}

    def release(self, until: float) -> str:
        """Call the programs that were called; return what went wrong, "" if nothing did."""
        return undo(self._latch, until)


def undo(latch: Latch, until: float) -> str:
    """Call each program that was called with `freeze` with `thaw`, unless that is done; return what went wrong.

    One that still freezes is ended before, one that still thaws is waited for. Nothing is on record afterwards.
    """
    runs: list[dict[str, Any]] = list((latch.record or {}).get("runs", []))
    wrong = []
    for run in runs:
        hook_program.end(Program(*run["freeze"]))
    begun = runs[: latch.count(BEGUN)][::-1]
    done = latch.count(UNDONE)
    for run in begun[:done]:
        wrong += [f"{run['path']} thaw {why}"] if (why := _await(Program(*run["thaw"]), until)) else []
    for run in begun[done:]:
        try:
            ended = hook_program.run(run["path"], "thaw", latch, UNDONE, _noting(latch, runs, run), wait, until)
        except NotStarted as error:
            wrong.append(str(error))
            continue
        wrong += [f"{run['path']} thaw {ended.wrong}"] if ended.wrong else []
    latch.clear()
    return "; ".join(wrong)


def _noting(latch: Latch, runs: list[dict[str, Any]], run: dict[str, Any]) -> Callable[[Program], None]:
    def note(program: Program) -> None:
        run["thaw"] = list(program)
        latch.write({**(latch.record or {}), "runs": runs})

    return note


def _await(program: Program, until: float) -> str:
    """Wait until a program that another process has started ends; return what is wrong with that."""
    if not program.lives:
        return ""
    try:
        pidfd = os.pidfd_open(program.pid)
    except ProcessLookupError:
        return ""
    try:
        if wait(pidfd, until):
            return ""
    finally:
        os.close(pidfd)
    hook_program.end(program)
    return "did not end in time, and was ended"


def programs(config: WriterConfig) -> list[str]:
    """Return the programs to call, in order; raise OSError if there is none at that path, or it is not executable."""
    if config.type == "hook":
        _check(config.path)
        return [config.path]
    found = [os.path.join(config.path, name) for name in sorted(os.listdir(config.path)) if not ignored(name)]
    return [path for path in found if _is_program(path)]


def ignored(name: str) -> bool:
    """Return whether a file of this name is none of the hooks in a folder."""
    return name.endswith(IGNORED) or ".dpkg-" in name or name.startswith(".")


def _is_program(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK)
    except FileNotFoundError:
        return False  # a link to nothing


def _check(path: str) -> None:
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise OSError(22, "it is no program", path)
    if not os.access(path, os.X_OK):
        raise PermissionError(13, "it may not be executed", path)
