"""virtagentd whose freeze worker dies at a report message of its own; it takes virtagentd's options.

VIRTAGENT_KILL: `list:FILE` appends a line a message, `before:N` or `after:N` is SIGKILL before or after the N-th
message (from 0) of the first worker that freezes. Workers are forked: what is changed here is changed in them, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from virtagent.agent import report, worker
from virtagent.supervisor import main


def install(order: str, spent: Path) -> None:
    """Count the messages of a freeze worker, and act at the one that `order` names; `spent` marks that it was done."""
    what, _, argument = order.partition(":")
    counted = threading.Lock()
    count = -1
    put = worker.Reporter.post

    def post(self: worker.Reporter, message: report.Report) -> None:
        nonlocal count
        with counted:
            if isinstance(message, report.Started):
                freezes = sys._getframe(2).f_locals["job"].rpc == "va.fsfreeze"
                count = 0 if freezes else -1
            elif count >= 0:
                count += 1
            mine = what != "list" and count == int(argument) and not spent.exists()
            if what == "list" and count >= 0:
                with open(argument, "a", encoding="utf-8") as file:
                    step = f" {message.state}" if isinstance(message, report.Step) else ""
                    file.write(f"{type(message).__name__}{step}\n")
            if mine:
                spent.touch()
        if mine and what == "after":
            put(self, message)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, message)

    replaced: Any = post
    worker.Reporter.post = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    state_dir = sys.argv[sys.argv.index("--state-dir") + 1]
    install(os.environ["VIRTAGENT_KILL"], Path(state_dir) / "spent")
    sys.exit(main.main())
