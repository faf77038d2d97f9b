"""Reading the configuration again while the agent runs: what a worker is asked, and what comes of its answer. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...agent.api.methods import RPCS
from ...agent.worker import messages
from ..config import BadConfig, Config, reread
from . import events
from .turn import Turn
from .workers import Worker, Workers


class Reloading:
    """What SIGHUP asks for. While a freeze or its writers are not done it is put off.

    `take_over` gets the new configuration.
    """

    def __init__(self, workers: Workers, take_over: Callable[[Config, Turn], None]) -> None:
        self._workers = workers
        self._take_over = take_over
        self._asked = False
        self._read: tuple[str, dict[str, Any]] | None = None

    def asked(self, turn: Turn, config: Config, *, idle: bool) -> None:
        """Read the files again; later if the agent is not `idle`."""
        self._asked = True
        if idle:
            self.go_on(turn, config)
        else:
            turn.log("notice", "SIGHUP: the configuration is read again after the thaw")

    def read(self, turn: Turn, config: Config, message: messages.Report, *, idle: bool) -> bool:
        """Take the report of the worker that reads them; return whether it is about that."""
        match message:
            case messages.Done({"options": str(options), "writers": dict(writers)}):
                self._read = options, writers
            case messages.Failed(_, text):
                turn.log("err", f"the configuration stays as it was: {text}")
            case _:
                return False
        if idle:
            self.go_on(turn, config)
        return True

    def ended(self, turn: Turn, config: Config, worker: Worker, *, idle: bool) -> None:
        """Take note that a worker was reaped: one that read nothing makes way for the next."""
        if worker.row.name == "reload" and idle:
            self.go_on(turn, config)

    def go_on(self, turn: Turn, config: Config) -> None:
        """Do what was put off: nothing is frozen, and no writer is held."""
        if self._read is not None:
            read, self._read = self._read, None
            self._compare(turn, config, *read)
        row = RPCS["reload"]
        # A worker that reads them already may have read what was changed since.
        if self._asked and not any(worker.row is row and worker.outcome is None for worker in self._workers):
            self._asked = False
            # They may lie on a slow disk.
            args = {"path": config.file, "needed": config.file_needed, "writers": config.writers_dir}
            self._workers.spawn(turn, row, args, None, row.limit or 0)

    def _compare(self, turn: Turn, config: Config, options: str, writers: dict[str, Any]) -> None:
        try:
            fresh, unchanged = reread(config, options, writers)
        except BadConfig as error:
            turn.log("err", f"the configuration stays as it was: {error}")
            return
        needs = f"; {', '.join(unchanged)} change only with a restart" if unchanged else ""
        turn.do(events.Configured(fresh))
        for note in fresh.notes:
            turn.log("notice", note)
        turn.log("notice", f"the configuration {fresh.file} was read again{needs}")
        self._take_over(fresh, turn)
