"""Writers that call programs: one before the file systems freeze, and its counterpart after they are thawed.

They are qemu-ga's hooks, VMware's scripts, or a pair of commands. For each that was called to hold, whatever came of
it, the counterpart is called, once; and none without. A counterpart that fails is only told: nobody knows what calling
it again would do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ...api.writers import Step, WriterConfig
from . import hook_program
from .accounts import account
from .calls import Call, calls
from .hook_program import Command, NotStarted, Program
from .latch import BEGUN, UNDONE, Latch
from .step import Refused, TooSlow, Waits, wait

GOOD, BAD = "good", "bad"
Info = dict[str, Any]


class Hooks:
    """The programs of one writer."""

    def __init__(self, config: WriterConfig, latch: Latch, waits: Waits, _at_most: float = 0.0) -> None:
        self._config = config
        self._latch = latch
        self._waits = waits
        self._calls: list[Call] = []

    fds: tuple[int, ...] = ()
    told: Mapping[str, str] = MappingProxyType({})

    def prepare(self, until: float) -> Info:
        """Look for the programs; call them if that is to be done before the sync. Raises Refused, Interrupted."""
        try:
            self._calls = calls(self._config)
        except OSError as error:
            raise Refused(f"{error.filename}: {error.strerror}") from None
        account(self._config.user)
        return self._freeze(until) if self._config.when is Step.PREPARE else {}

    def quiesce(self, until: float) -> Info:
        """Call the programs, one after another. Raises Refused, Interrupted."""
        return self._freeze(until) if self._config.when is Step.QUIESCE else {}

    def confirm(self, _until: float) -> Info:
        """Do nothing: a program that has ended cannot prove that its application held."""
        return {}

    def renew(self, _until: float, _ends: float) -> None:
        """Do nothing: what holds has no end of its own."""

    def lost(self) -> str:
        """Return nothing: there is nothing that could be seen to be lost."""
        return ""

    def _freeze(self, until: float) -> Info:
        runs: list[dict[str, Any]] = []
        for call in self._calls:
            runs.append(_run_of(call))
            self._latch.write({"type": self._config.type, "runs": runs})
            if not call.freeze:
                self._latch.add(BEGUN)
                continue

            def note(program: Program) -> None:
                runs[-1]["froze"] = list(program)
                self._latch.write({"type": self._config.type, "runs": runs})

            command = Command(call.freeze, call.user, shell=call.shell)
            try:
                ended = hook_program.run(command, self._latch, BEGUN, note, self._waits, until)
            except NotStarted as error:
                raise Refused(str(error)) from None
            if ended.wrong:
                raise (TooSlow if ended.overran else Refused)(f"{command} {ended.wrong}")
        return {}

    def release(self, until: float, verdict: str) -> str:
        """Call the counterparts of those that were called; return what went wrong, "" if nothing did."""
        return undo(self._latch, until, verdict)


def _run_of(call: Call) -> dict[str, Any]:
    """Return the record of a call that begins: whatever is needed to undo it is in it."""
    undone_by = {GOOD: list(call.good), BAD: list(call.bad)}
    return {"undo": undone_by, "user": call.user, "shell": call.shell, "froze": [0, 0], "thawed": [0, 0]}


def undo(latch: Latch, until: float, verdict: str) -> str:
    """Call the counterpart of each program that was called, unless that is done; return what went wrong.

    One that still freezes is ended before, a counterpart that still runs is waited for. Nothing is on record
    afterwards.
    """
    runs: list[dict[str, Any]] = list((latch.record or {}).get("runs", []))
    wrong = []
    for run in runs:
        hook_program.end(Program(*run["froze"]))
    begun = runs[: latch.count(BEGUN)][::-1]
    done = latch.count(UNDONE)
    for run in begun[:done]:
        if not hook_program.await_end(Program(*run["thawed"]), until):
            wrong.append(f"{_command(run, verdict)} did not end in time, and was ended")
    for run in begun[done:]:
        command = _command(run, verdict)
        if not command.words:
            latch.add(UNDONE)
            continue
        try:
            ended = hook_program.run(command, latch, UNDONE, _noting(latch, runs, run), wait, until)
        except NotStarted as error:
            wrong.append(str(error))
            latch.add(UNDONE)  # else whoever goes on after our death would take the next one for this one
            continue
        wrong += [f"{command} {ended.wrong}"] if ended.wrong else []
    latch.clear()
    return "; ".join(wrong)


def _command(run: dict[str, Any], verdict: str) -> Command:
    words = tuple(run["undo"][GOOD if verdict == GOOD else BAD])
    return Command(words, run["user"], {"VIRTAGENT_VERDICT": verdict}, run["shell"])


def _noting(latch: Latch, runs: list[dict[str, Any]], run: dict[str, Any]) -> Callable[[Program], None]:
    def note(program: Program) -> None:
        run["thawed"] = list(program)
        latch.write({**(latch.record or {}), "runs": runs})

    return note
