"""The same hooks under a real qemu-ga and under ours: the exact list of their calls, where both agree and where not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.peer import QemuGa, Talk, qemu_ga
from harness.processes import kill, process_state, until, wait_gone
from harness.rig import Rig

OURS = str(Path(sys.executable).with_name("virtagent-qemu-ga"))
STOCK = Path("/etc/qemu/fsfreeze-hook")
GOOD = 'echo "{name} $1" >>{calls}\n'
FAILS = GOOD + "[ $1 = thaw ] || exit 1\n"
HANGS = GOOD + "[ $1 = thaw ] || while [ -e {folder}/hangs ]; do sleep 0.02; done\n"
LEAVES = GOOD + "if [ $1 = freeze ]; then sleep 1000 & echo $! >{folder}/left; fi\n"


class Side:
    """One agent with a hook, and the file system that it may freeze."""

    def __init__(self, rig: Rig, script: str, ours: bool) -> None:
        self.rig, self.ours = rig, ours
        self.fs: LoopFs = rig.fs("ext4")
        self.folder = rig.area.fresh("hooks")
        self.folder.mkdir()
        self.calls_file = self.folder / "calls"
        self.hook = self.write("hook", script)
        self.daemon: Daemon | None = None
        self.peer: QemuGa | None = None
        self.talks: list[Talk] = []

    def write(self, name: str, script: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + script.format(name=path.name, calls=self.calls_file, folder=self.folder))
        path.chmod(0o755)
        return path

    def start(self) -> Talk:
        if not self.ours:
            self.peer = QemuGa(self.rig.area, f"-F{self.hook}")
            return self._keep(self.peer.talk())
        self.daemon = self.rig.daemon([self.fs], ["--hook", str(self.hook)])
        return self._keep(Talk(self.rig.area, str(self.daemon.socket)))

    def _keep(self, talk: Talk) -> Talk:
        self.talks.append(talk)
        return talk

    def freeze(self, talk: Talk) -> Any:
        return talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": [str(self.fs)]})

    def kill(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
        elif self.peer is not None:
            kill(self.peer.process.pid)
            self.peer.process.wait(10)

    def settled(self) -> None:
        """Wait until a killed agent has left nothing that runs."""
        if self.daemon is not None:
            assert not wait_gone(self.daemon.orphans, 20)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture(params=[False, True], ids=["theirs", "ours"])
def side(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Side]]:
    qemu_ga()
    made: list[Side] = []

    def make(script: str) -> Side:
        made.append(Side(rig, script, request.param))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            (one.folder / "hangs").unlink(missing_ok=True)
            for talk in one.talks:
                talk.close()
            if one.peer is not None:
                one.peer.close()


def test_a_good_freeze(side: Callable[[str], Side]) -> None:
    one = side(GOOD)
    talk = one.start()
    assert one.freeze(talk) == {"return": 1}
    assert one.calls == ["hook freeze"]
    assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
    assert one.calls == ["hook freeze", "hook thaw"]


def test_a_freeze_that_matches_nothing(side: Callable[[str], Side]) -> None:
    one = side(GOOD)
    talk = one.start()
    assert talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": ["/nowhere"]}) == {"return": 0}
    assert one.calls == ([] if one.ours else ["hook freeze"])


def test_a_hook_that_fails(side: Callable[[str], Side]) -> None:
    one = side(FAILS)
    talk = one.start()
    assert "error" in one.freeze(talk)
    assert one.calls == (["hook freeze", "hook thaw"] if one.ours else ["hook freeze"])
    one.fs.assert_thawed()


def test_a_thaw_with_nothing_frozen(side: Callable[[str], Side]) -> None:
    one = side(GOOD)
    talk = one.start()
    assert talk.ask("guest-fsfreeze-thaw") == {"return": 0}
    assert one.calls == ([] if one.ours else ["hook thaw"])


def test_the_stock_dispatcher_with_a_script_that_fails(side: Callable[[str], Side]) -> None:
    if not STOCK.exists():
        pytest.skip("needs QEMU's own fsfreeze-hook")
    one = side(GOOD)
    one.hook.write_text(STOCK.read_text().replace("/var/log", str(one.folder)))
    one.write("fsfreeze-hook.d/10-good", GOOD)
    one.write("fsfreeze-hook.d/20-fails", FAILS)
    one.write("fsfreeze-hook.d/30-old.rpmsave", GOOD)
    talk = one.start()
    assert one.freeze(talk) == {"return": 1}
    assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
    assert one.calls == ["10-good freeze", "20-fails freeze", "10-good thaw", "20-fails thaw"]


@pytest.mark.timeout(60)
def test_killed_while_the_hook_freezes(side: Callable[[str], Side]) -> None:
    one = side(HANGS)
    (one.folder / "hangs").touch()
    talk = one.start()
    asked = '{"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["%s"]}}'
    talk.send((asked % one.fs).encode())
    until(lambda: one.calls == ["hook freeze"], 10, "the hook was called")
    one.kill()
    one.settled()
    assert one.calls == (["hook freeze", "hook thaw"] if one.ours else ["hook freeze"])
    one.fs.assert_thawed()


@pytest.mark.timeout(60)
def test_killed_while_frozen(side: Callable[[str], Side]) -> None:
    one = side(GOOD)
    assert one.freeze(one.start()) == {"return": 1}
    one.kill()
    one.settled()
    assert one.calls == (["hook freeze", "hook thaw"] if one.ours else ["hook freeze"])
    assert one.fs.is_frozen() is not one.ours
    if not one.ours:
        assert one.fs.thaw() == "ok"


def test_a_hook_that_leaves_a_process_behind(side: Callable[[str], Side]) -> None:
    one = side(LEAVES)
    talk = one.start()
    assert one.freeze(talk) == {"return": 1}
    assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
    assert one.calls == ["hook freeze", "hook thaw"]
    left = int((one.folder / "left").read_text())
    assert process_state(left) not in ("", "Z")
    kill(left)
    assert not wait_gone([left], 10)


def test_fifreeze_itself_fails(side: Callable[[str], Side]) -> None:
    """Somebody else holds it frozen: EBUSY."""
    one = side(GOOD)
    talk = one.start()
    assert one.fs.freeze() == "ok"
    answer = one.freeze(talk)
    # qemu-ga takes EBUSY for a second mount of what it has frozen itself.
    assert "error" in answer if one.ours else answer == {"return": 0}
    assert one.calls == (["hook freeze", "hook thaw"] if one.ours else ["hook freeze"])
    assert one.fs.thaw() == "ok"
