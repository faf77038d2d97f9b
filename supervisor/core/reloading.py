"""Reading the configuration again while the agent runs: what a worker is asked, and what comes of its answer. Pure."""

from __future__ import annotations

from typing import Any

from ...agent.api.methods import RPCS
from ..config import BadConfig, Config, reread
from . import events
from .turn import Turn
from .workers import Workers


def ask(turn: Turn, workers: Workers, config: Config) -> None:
    """Have a worker read the files, which may lie on a slow disk, unless one reads them already."""
    row = RPCS["reload"]
    if not any(worker.row is row for worker in workers):
        args = {"path": config.file, "needed": config.file_needed, "writers": config.writers_dir}
        workers.spawn(turn, row, args, None, row.limit or 0)


def taken_over(turn: Turn, config: Config, options: str, writers: dict[str, Any]) -> Config | None:
    """Return the configuration with the new texts of the files; None, and a line in the log, if one of them is bad."""
    try:
        fresh, unchanged = reread(config, options, writers)
    except BadConfig as error:
        turn.log("err", f"the configuration stays as it was: {error}")
        return None
    needs = f"; {', '.join(unchanged)} change only with a restart" if unchanged else ""
    turn.do(events.Configured(fresh))
    for note in fresh.notes:
        turn.log("notice", note)
    turn.log("notice", f"the configuration {fresh.file} was read again{needs}")
    return fresh
