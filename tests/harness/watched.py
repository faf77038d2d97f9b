"""virtagentd that notes what its supervisor imports and opens once it serves; it takes virtagentd's options.

VIRTAGENT_WATCH names the file of notes, one `import NAME`, `open PATH` or `exec PROGRAM` a line (sys.addaudithook).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from virtagent.supervisor import main
from virtagent.supervisor.io import loop


def install(notes: int) -> None:
    """Note what this process does from its first wait on; a fork of it does as it likes."""
    supervisor = os.getpid()
    serving = False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if serving and event in ("import", "open", "os.exec", "subprocess.Popen") and os.getpid() == supervisor:
            os.write(notes, f"{event} {arguments[0]}\n".encode(errors="backslashreplace"))

    run = loop.Loop.run

    def watched(self: loop.Loop) -> int:
        nonlocal serving
        serving = True
        return run(self)

    sys.addaudithook(note)
    loop.Loop.run = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    install(os.open(os.environ["VIRTAGENT_WATCH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC))
    sys.exit(main.main())
