"""Who watches a freeze costs it no line of the log and no place in the audit ring."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.daemon import Daemon
from harness.processes import until
from harness.rig import Rig

CTL = str(Path(sys.executable).with_name("virtagentctl"))


@contextlib.contextmanager
def watch(daemon: Daemon) -> Iterator[subprocess.Popen[bytes]]:
    """Have a `virtagentctl watch` that has begun to watch."""
    with subprocess.Popen([CTL, "--agent", daemon.url, "watch", "--events"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.terminate()


def frozen_once(daemon: Daemon, watchers: int) -> tuple[int, list[str]]:
    """Freeze and thaw; return how many records waited meanwhile, and the kinds of the lines that the log has more."""
    before = len(daemon.log().splitlines())
    thaws = daemon.log().count('method="va.fsthaw"')
    with contextlib.ExitStack() as watching:
        those = [watching.enter_context(watch(daemon)) for _ in range(watchers)]
        proxy = daemon.proxy()
        proxy.va.fsfreeze()
        for one in those:  # all of them have been told
            assert one.stdout is not None
            while json.loads(one.stdout.readline())["event"] != "held":
                continue
        waiting = daemon.status()["audit"]["waiting"]
        proxy.va.fsthaw()
    # The records come last, that of the thaw after that of the freeze.
    until(lambda: daemon.log().count('method="va.fsthaw"') > thaws, 20, "the record of the thaw")
    lines = daemon.log().splitlines()[before:]
    return waiting, sorted(re.sub("[0-9].*", "", line) for line in lines)


def test_three_who_watch_leave_no_trace(rig: Rig) -> None:
    rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere])
    until(lambda: "listens at" in daemon.log(), 20, "the daemon's first lines")
    alone = frozen_once(daemon, 0)
    assert alone[0] == 1, "the freeze itself has a record"
    assert len(alone[1]) == 4, alone
    assert frozen_once(daemon, 3) == alone
