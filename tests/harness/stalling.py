"""virtagentd whose freeze worker finds its disk stalled just when it begins to freeze; it takes virtagentd's options.

VIRTAGENT_STALL is `DISK|FS|FLAG`: when the worker reports that the freeze phase begins and the file FLAG exists, it is
removed, data is written to the file system at FS and the one at DISK, on which it lies, is frozen. So the sync phase
has passed, and FIFREEZE has something to write, whatever the kind of file system.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from virtagent.agent.api.states import Phase
from virtagent.agent.worker import context, messages
from virtagent.supervisor import main

from . import linux

DIRTY = 4 << 20


def install(disk: str, fs: str, flag: Path) -> None:
    """Change the reporter here; forked workers inherit it."""
    put = context.Reporter.post

    def post(self: context.Reporter, *reports: messages.Report) -> None:
        begins = any(isinstance(m, messages.Progress) and m.phase == Phase.FREEZE.value for m in reports)
        if begins and flag.exists():
            flag.unlink()
            Path(fs, "stalled").write_bytes(os.urandom(DIRTY))
            linux.freeze(disk)
        put(self, *reports)

    replaced: Any = post
    context.Reporter.post = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    disk, fs, flag = os.environ["VIRTAGENT_STALL"].split("|")
    install(disk, fs, Path(flag))
    sys.exit(main.main())
