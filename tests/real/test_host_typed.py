"""The library as type checkers and IPython see it, after an installation as a user would make one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

SOUND = """
import asyncio

from virtagent.host import (
    Agent, AgentGroup, AsyncAgent, AsyncAgentGroup, Capabilities, Freeze, FreezeBroken, GroupFreeze, GuestStatus, Last,
    MountStatus, PastFreeze, Plan, Status, VirtagentError,
)


def told(record: GuestStatus) -> None:
    mounts: tuple[MountStatus, ...] = record.mounts
    print(record.url, record.state, [mount.mountpoint for mount in mounts])


def blocking() -> None:
    with Agent("unix:/a", timeout=5.0) as agent:
        frozen: int = agent.freeze("/srv/*", strict=True, hold_limit=3)
        plan: Plan = agent.plan()
        able: Capabilities = agent.capabilities()
        past: tuple[PastFreeze, ...] = agent.history()
        record: Status = agent.status(since=3, wait=1.0)
        data: bytes = agent.getfile("/etc/hostname")
        print(frozen, plan, able, past, record, data)
        with agent.frozen(["/srv/db", "/srv/web"], hold=60, extend=True, progress=told) as freeze:
            one: Freeze = freeze
            left: float = one.hold_left
        last: Last | None = freeze.last
        print(left, last)


def together(urls: list[str]) -> None:
    try:
        with AgentGroup(urls, timeout=3).frozen(hold=30, progress=told, freeze_wait=9) as group:
            whole: GroupFreeze = group
            print(whole.skew, whole.guests[urls[0]].mounts)
    except FreezeBroken as broken:
        print(broken)
    except VirtagentError as error:
        print(error)


async def awaiting() -> int:
    async with AsyncAgent("vsock:3:9999") as agent:
        async with agent.frozen(hold=30, progress=told) as freeze:
            print(freeze.mounts)
        async with AsyncAgentGroup(["unix:/a"]).frozen("/srv/*") as group:
            print(group.skew)
        return await agent.thaw(30.0)


print(asyncio.run(awaiting()))
"""
WRONG = [
    'Agent("unix:/a").freeze(hold=3)',
    'Agent("unix:/a").freeze(hold_limit="3")',
    'Agent("unix:/a").frozen(hold_limit=3)',
    'Agent("unix:/a").frozen(progress=3)',
    'Agent("unix:/a", bogus=1)',
    'AgentGroup("unix:/a", bogus=1)',
    'AgentGroup(["unix:/a"]).frozen(hold="long")',
    'text: str = Agent("unix:/a").status()',
    'number: int = AsyncAgent("unix:/a").thaw()',
    'Agent("unix:/a").status().no_such_member',
]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300, check=False)


def programs(folder: Path) -> None:
    (folder / "sound.py").write_text(SOUND)
    lines = ["from virtagent.host import Agent, AgentGroup, AsyncAgent", *WRONG]
    (folder / "wrong.py").write_text("\n".join(lines) + "\n")


def wrong_lines(said: str) -> set[int]:
    return {int(found) for found in re.findall(r"wrong\.py:(\d+)[: ]", said)}


@pytest.mark.timeout(300)
def test_mypy_strict_agrees_with_the_library(tmp_path: Path) -> None:
    programs(tmp_path)
    mypy = [str(BIN / "mypy"), "--strict", "--cache-dir", str(tmp_path / "cache")]
    found = run(tmp_path, *mypy, "sound.py")
    assert found.returncode == 0, found.stdout
    assert wrong_lines(run(tmp_path, *mypy, "wrong.py").stdout) == set(range(2, 2 + len(WRONG)))


@pytest.mark.timeout(300)
def test_pyright_strict_agrees_with_the_library(tmp_path: Path) -> None:
    pyright = shutil.which("pyright", path=f"{BIN}:/usr/local/bin:/usr/bin")
    if pyright is None or run(tmp_path, pyright, "--version").returncode:
        pytest.skip("pyright is not installed, or cannot fetch its program (pip install pyright)")
    programs(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    words = [pyright, "--pythonpath", sys.executable]
    found = run(tmp_path, *words, "sound.py")
    assert found.returncode == 0, found.stdout
    assert wrong_lines(run(tmp_path, *words, "wrong.py").stdout) == set(range(2, 2 + len(WRONG)))


SESSION = """
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(history_load_length=0)
shell.run_cell("import virtagent.host; from virtagent.host import Agent; agent = Agent('unix:/none')")
agent = shell.user_ns["agent"]


def completed(text):
    with provisionalcompleter():
        shell.Completer.use_jedi = False
        return shell.complete(text)[1]


print("names:", *completed("virtagent.host."))
print("methods:", *completed("agent."))
print("agent:", repr(agent))
print(shell.inspector._get_info(agent.freeze, "agent.freeze", detail_level=0)["text/plain"])
print(shell.inspector._get_info(agent.frozen, "agent.frozen", detail_level=0)["text/plain"])
"""


def test_a_session_of_ipython(tmp_path: Path) -> None:
    pytest.importorskip("IPython", reason="IPython is not installed (pip install ipython)")
    (tmp_path / "session.py").write_text(SESSION)
    found = run(tmp_path, sys.executable, "session.py")
    assert found.returncode == 0, found.stderr
    said = re.sub(r"\x1b\[[0-9;]*m", "", found.stdout)
    names, methods, agent, help_text = said.split("\n", 3)
    assert {"Agent", "AgentGroup", "Status", "FreezeBroken", "GuestStatus"} <= {
        name.rpartition(".")[2] for name in names.split()
    }
    assert {"freeze", "frozen", "thaw", "status", "history", "go"} <= {
        name.rpartition(".")[2] for name in methods.split()
    }
    assert agent == "agent: Agent('unix:/none')"
    assert "hold_limit: 'float | None' = None" in help_text
    assert "Freeze, and return the number of file systems frozen" in help_text
    assert "Hold the guest frozen while the block runs" in help_text
