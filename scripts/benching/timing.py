"""virtagentd whose freeze workers say in the file BENCH_FROZE when they begin to freeze; it takes virtagentd's options.

That tells a writer's standstill while syncing from the one while frozen. It costs one write to memory.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from virtagent.agent.api.states import Phase
from virtagent.agent.worker import context, messages
from virtagent.supervisor import main


def install(path: str) -> None:
    """Change the reporter here; forked workers inherit it."""
    put = context.Reporter.post

    def post(self: context.Reporter, *reports: messages.Report) -> None:
        if any(isinstance(one, messages.Progress) and one.phase == Phase.FREEZE.value for one in reports):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.write(fd, f"{time.monotonic():.6f}".encode())
            os.close(fd)
        put(self, *reports)

    replaced: Any = post
    context.Reporter.post = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    install(os.environ["BENCH_FROZE"])
    sys.exit(main.main())
