"""virtagentd that dies, stops, stalls and fails where a test says; it takes virtagentd's options.

VIRTAGENT_HOOKS is the folder of `hooks.Hooks`. Workers are forked: what is changed here is changed in them, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from virtagent.agent.api.states import Phase
from virtagent.agent.worker import context, messages
from virtagent.supervisor import main

from . import faults, killing, linux
from .orders import Orders


def install_stall(folder: Path) -> None:
    """Freeze the disk that an order names when a freeze worker says that its freeze phase begins.

    So the sync phase has passed, and FIFREEZE finds a disk that has just stopped.
    """
    put = context.Reporter.post
    orders = Orders(folder, "stall")

    def post(self: context.Reporter, *reports: messages.Report) -> None:
        if any(isinstance(m, messages.Progress) and m.phase == Phase.FREEZE.value for m in reports):
            order = orders.take(lambda _: True)
            if order is not None:
                with contextlib.suppress(OSError):
                    linux.freeze(order.text)
                order.done()
        put(self, *reports)

    replaced: Any = post
    context.Reporter.post = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    folder = Path(os.environ["VIRTAGENT_HOOKS"])
    install_stall(folder)
    faults.install(folder)
    killing.install(folder)
    sys.exit(main.main())
