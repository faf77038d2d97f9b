"""Writers' configuration for a daemon, and what a test asks about them."""

from __future__ import annotations

import xmlrpc.client
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from virtagent.agent.api.errors import Code

from .daemon import Daemon
from .filesystems import LoopFs
from .rig import Rig


def daemon_with(
    rig: Rig,
    fs: LoopFs | Sequence[LoopFs],
    texts: str | Mapping[str, str],
    state_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Daemon:
    """Start a daemon for these file systems with these writers; one text is the writer `db`."""
    folder = rig.area.fresh("writers.d")
    folder.mkdir(mode=0o700)
    for name, text in ({"db": texts} if isinstance(texts, str) else texts).items():
        (folder / f"{name}.conf").write_text(text)
    every = [fs] if isinstance(fs, LoopFs) else fs
    return rig.daemon(every, ["--writers-dir", str(folder)], state_dir=state_dir, env=env)


def refused(daemon: Daemon) -> str:
    """Return the words with which writers refuse a freeze."""
    with pytest.raises(xmlrpc.client.Fault) as raised:
        daemon.proxy(60).va.fsfreeze()
    assert raised.value.faultCode == Code.VETOED, raised.value
    return raised.value.faultString


def pid_of(daemon: Daemon, title: str) -> int:
    """Return the process of the daemon with these words in its title, in the fixed part unless they have a bracket."""
    titles = daemon.titles()
    found = [pid for pid, shown in titles.items() if title in (shown if "[" in title else shown.partition("[")[0])]
    assert len(found) == 1, titles
    return found[0]


def let_go(daemon: Daemon) -> None:
    """Wait until all is thawed and all writers are let go."""
    daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
