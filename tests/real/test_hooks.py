"""Hooks around a freeze, on real file systems: which are called, with what, in what order, whoever dies."""

from __future__ import annotations

import signal
import xmlrpc.client
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.applications import pid_of
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hosts import Asking
from harness.processes import kill, process_state, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code

Fault = xmlrpc.client.Fault
LATCHES = "writers"

SCRIPT = """#!/bin/sh
echo "{name} $1" >>{calls}
[ -e {folder}/{name}.$1.hang ] && {{ trap '' TERM; while [ -e {folder}/{name}.$1.hang ]; do sleep 0.02; done; }}
[ -e {folder}/{name}.$1.fail ] && exit 3
echo "{name} $1 done" >>{calls}
"""


class Hooked:
    """A folder of hooks on a file system that nobody freezes, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        self.calls_file.touch()

    def add(self, name: str = "hook", folder: str = "") -> Path:
        where = self.folder / folder
        where.mkdir(exist_ok=True)
        path = where / name
        path.write_text(SCRIPT.format(name=name, calls=self.calls_file, folder=self.folder))
        path.chmod(0o755)
        return path

    def when(self, name: str, word: str, what: str) -> Path:
        """Have the hook fail or hang; removing the file ends that."""
        switch = self.folder / f"{name}.{word}.{what}"
        switch.touch()
        return switch

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def begun(self) -> list[str]:
        return [call for call in self.calls if not call.endswith(" done")]

    def wait(self, call: str) -> None:
        until(lambda: call in self.calls, 10, f"hook was called: {call}; calls {self.calls}")


@pytest.fixture
def hooked(rig: Rig) -> Hooked:
    folder = rig.area.fresh("hooks")
    folder.mkdir()
    return Hooked(folder)


def refused(call: Callable[..., Any], *params: Any) -> tuple[Code, str]:
    with pytest.raises(Fault) as raised:
        call(*params)
    return Code(raised.value.faultCode), raised.value.faultString


def nothing_is_left(daemon: Daemon, fs: LoopFs) -> None:
    fs.assert_thawed()
    left = [path.name for path in (daemon.state_dir / LATCHES).iterdir() if not path.name.endswith(".lock")]
    assert not left, left


def start(rig: Rig, fs: LoopFs, hook: Path, *options: str, **more: Any) -> Daemon:
    return rig.daemon([fs], ["--hook", str(hook), *options], **more)


BOTH = ["hook freeze", "hook freeze done", "hook thaw", "hook thaw done"]


def test_freeze_before_and_thaw_after(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    daemon = start(rig, fs, hooked.add())
    host = daemon.proxy()
    for times in range(1, 4):
        assert host.va.fsfreeze() == 1
        assert hooked.calls == BOTH * (times - 1) + BOTH[:2]
        fs.assert_frozen()
        (writer,) = daemon.status()["writers"]
        assert (writer["name"], writer["state"], writer["hold"]) == ("hook", "confirmed", "latch")
        assert [title for title in daemon.titles().values() if "writer" in title and "hook [confirmed" in title]
        assert host.va.fsthaw() == 1
        assert hooked.calls == BOTH * times
        record = daemon.status()
        assert record["writers"][0]["state"] == "released"
        assert record["last"]["consistency"] == "application"
        nothing_is_left(daemon, fs)
    assert host.va.fsthaw() == 0
    assert hooked.calls == BOTH * 3
    assert daemon.stop() == 0


def test_a_failing_hook_refuses_and_gets_its_thaw(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "fail")
    daemon = start(rig, fs, hook)
    code, text = refused(daemon.proxy().va.fsfreeze)
    assert code is Code.VETOED
    assert text == f"hook refused the freeze: {hook} freeze ended with exit code 3; nothing was frozen"
    assert hooked.calls == ["hook freeze", "hook thaw", "hook thaw done"]
    record = daemon.status()
    assert (record["state"], record["last"]["outcome"]) == ("THAWED", "vetoed")
    assert record["writers"][0]["state"] == "vetoed"
    nothing_is_left(daemon, fs)


def test_a_hook_that_is_not_there_refuses_and_nothing_is_called(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    daemon = start(rig, fs, hook)
    host = daemon.proxy()
    hook.chmod(0o644)
    assert refused(host.va.fsfreeze)[0] is Code.VETOED
    hook.write_text("#!/nonexistent/interpreter\n")
    hook.chmod(0o755)
    code, text = refused(host.va.fsfreeze)
    assert code is Code.VETOED
    assert "No such file" in text
    hook.unlink()
    assert "No such file" in refused(host.va.fsfreeze)[1]
    assert hooked.calls == []
    nothing_is_left(daemon, fs)
    assert host.va.fsfreeze({"writers": "none"}) == 1
    assert host.va.fsthaw() == 1
    assert host.va.fsfreeze({"writers": "try"}) == 1
    assert host.va.fsthaw() == 1
    assert daemon.status()["last"]["consistency"] == "file-system"


@pytest.mark.timeout(60)
def test_a_hook_that_hangs_is_ended_and_gets_its_thaw(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook, "--quiesce-limit", "0.5")
    code, text = refused(daemon.proxy().va.fsfreeze)
    assert code is Code.VETOED
    assert f"{hook} freeze did not end in time" in text
    assert hooked.calls == ["hook freeze", "hook thaw", "hook thaw done"]
    assert not [child for child in daemon.children() if child.name() == "hook"]
    nothing_is_left(daemon, fs)


@pytest.mark.timeout(60)
def test_a_thaw_that_hangs_is_ended_and_told(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "thaw", "hang")
    daemon = start(rig, fs, hook, "--release-limit", "0.5")
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    waiting = Asking(daemon, "va.fsthaw")
    hooked.wait("hook thaw")
    fs.assert_thawed()
    assert daemon.status()["phase"] == "release"
    assert waiting.wait() == 1
    assert "did not end in time" in daemon.status()["writers"][0]["error"]
    assert hooked.begun == ["hook freeze", "hook thaw"]
    nothing_is_left(daemon, fs)


def test_a_freeze_that_is_cancelled_while_the_hook_runs(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook)
    waiting = Asking(daemon, "va.fsfreeze")
    hooked.wait("hook freeze")
    assert daemon.proxy().va.fsthaw() == 0
    assert isinstance(waiting.wait(), Fault)
    assert hooked.begun == ["hook freeze", "hook thaw"]
    nothing_is_left(daemon, fs)


def test_before_the_sync(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    switch = hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook, "--hook-when", "prepare")
    waiting = Asking(daemon, "va.fsfreeze")
    hooked.wait("hook freeze")
    assert daemon.status()["phase"] == "prepare"
    switch.unlink()
    assert waiting.wait() == 1
    assert daemon.proxy().va.fsthaw() == 1
    assert hooked.calls == BOTH


def test_a_folder_in_order_and_back(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    for name in ("20-b", "10-a", "30-c"):
        hooked.add(name, "hooks.d")
    for name in ("40-d.bak", "50-e.sample", "60-f~", "70-g.dpkg-old", "80-h.rpmsave"):
        hooked.add(name, "hooks.d")
    hooked.add("90-i", "hooks.d").chmod(0o644)
    daemon = rig.daemon([fs], ["--hook-dir", str(hooked.folder / "hooks.d")])
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    order = ["10-a freeze", "20-b freeze", "30-c freeze", "30-c thaw", "20-b thaw", "10-a thaw"]
    assert hooked.begun == order
    hooked.when("20-b", "freeze", "fail")
    code, text = refused(host.va.fsfreeze)
    assert code is Code.VETOED
    assert "20-b freeze ended with exit code 3" in text
    assert hooked.begun[6:] == ["10-a freeze", "20-b freeze", "20-b thaw", "10-a thaw"]
    nothing_is_left(daemon, fs)


def test_no_hook_where_nothing_is_frozen(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    daemon = start(rig, fs, hooked.add())
    assert daemon.proxy().va.fsfreeze({"exclude": ["*"]}) == 0
    assert hooked.calls == []


@pytest.mark.parametrize("off", [("--hook", "/dev/null"), ("--hook=",)])
def test_off(rig: Rig, off: Sequence[str]) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], list(off))
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    assert daemon.status()["writers"] == []
    assert host.va.fsthaw() == 1


# -- whoever dies


def restarted(rig: Rig, daemon: Daemon, fs: LoopFs, hook: Path) -> Daemon:
    return rig.daemon([fs], ["--hook", str(hook)], state_dir=daemon.state_dir)


def test_supervisor_killed_while_frozen(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    daemon = start(rig, fs, hook)
    assert daemon.proxy().va.fsfreeze() == 1
    daemon.kill()
    hooked.wait("hook thaw done")
    fs.assert_thawed()
    daemon.wait_orphans()
    again = restarted(rig, daemon, fs, hook)
    again.wait_state("THAWED")
    assert hooked.calls == BOTH
    nothing_is_left(again, fs)


def test_supervisor_killed_while_frozen_lets_every_writer_go(rig: Rig, hooked: Hooked) -> None:
    """Each is a process of its own, and all listen to the one word of the keeper."""
    fs = rig.fs("ext4")
    folder = hooked.add("of-folder", folder="hooks.d").parent
    daemon = start(rig, fs, hooked.add(), "--hook-dir", str(folder))
    assert daemon.proxy().va.fsfreeze() == 1
    daemon.kill()
    hooked.wait("hook thaw done")
    hooked.wait("of-folder thaw done")
    daemon.wait_orphans()
    nothing_is_left(daemon, fs)


def test_supervisor_killed_while_the_hook_freezes(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook)
    Asking(daemon, "va.fsfreeze")
    hooked.wait("hook freeze")
    daemon.kill()
    hooked.wait("hook thaw done")
    daemon.wait_orphans()
    again = restarted(rig, daemon, fs, hook)
    again.wait_state("THAWED")
    assert hooked.begun == ["hook freeze", "hook thaw"]
    nothing_is_left(again, fs)


@pytest.mark.parametrize("how", ["start", "recover"])
def test_supervisor_and_keeper_killed(rig: Rig, hooked: Hooked, how: str) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    daemon = start(rig, fs, hook)
    assert daemon.proxy().va.fsfreeze() == 1
    keeper, writer = pid_of(daemon, "keeper"), pid_of(daemon, "writer")
    psutil.Process(daemon.pid).suspend()
    kill(keeper)
    daemon.kill()
    until(lambda: process_state(writer) in ("", "Z"), 10, "the writer has ended")
    assert hooked.calls == BOTH[:2]
    if how == "recover":
        recovered = rig.daemon([fs], ["--hook", str(hook), "--recover"], state_dir=daemon.state_dir, wait_ready=False)
        assert recovered.process.wait(20) == 0, recovered.log()
        assert hooked.calls == BOTH
        fs.assert_thawed()
    again = restarted(rig, daemon, fs, hook)
    hooked.wait("hook thaw done")
    assert again.wait_state("THAWED")
    until(lambda: not again.status()["phase"], 10, "let go")
    assert hooked.calls == BOTH
    nothing_is_left(again, fs)


def test_writer_killed_while_frozen(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    daemon = start(rig, fs, hooked.add())
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    kill(pid_of(daemon, "writer"))
    record = daemon.wait_status(lambda record: record["writers"][0]["state"] == "lost")
    assert record["state"] == "FROZEN"
    assert hooked.calls == BOTH[:2]
    assert host.va.fsthaw() == 1
    assert hooked.calls == BOTH
    nothing_is_left(daemon, fs)


def test_writer_killed_while_the_hook_freezes(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook)
    waiting = Asking(daemon, "va.fsfreeze")
    hooked.wait("hook freeze")
    kill(pid_of(daemon, "writer"))
    fault = waiting.wait()
    assert isinstance(fault, Fault)
    assert fault.faultCode == Code.VETOED, fault
    assert "killed by SIGKILL" in fault.faultString
    assert hooked.begun == ["hook freeze", "hook thaw"]
    nothing_is_left(daemon, fs)


def test_writer_killed_while_the_hook_thaws(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    switch = hooked.when("hook", "thaw", "hang")
    daemon = start(rig, fs, hook)
    assert daemon.proxy().va.fsfreeze() == 1
    waiting = Asking(daemon, "va.fsthaw")
    hooked.wait("hook thaw")
    kill(pid_of(daemon, "writer"))
    switch.unlink()
    assert waiting.wait() == 1
    assert hooked.calls == BOTH
    nothing_is_left(daemon, fs)


def test_all_killed_while_the_hook_freezes(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    hooked.when("hook", "freeze", "hang")
    daemon = start(rig, fs, hook)
    Asking(daemon, "va.fsfreeze")
    hooked.wait("hook freeze")
    writer = pid_of(daemon, "writer")
    freezer = pid_of(daemon, "va.fsfreeze")
    psutil.Process(daemon.pid).suspend()
    kill(writer)
    kill(freezer)
    daemon.kill()
    again = restarted(rig, daemon, fs, hook)
    hooked.wait("hook thaw done")
    until(lambda: not again.status()["phase"], 10, "let go")
    assert hooked.begun == ["hook freeze", "hook thaw"]
    nothing_is_left(again, fs)


def test_keeper_killed(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    daemon = start(rig, fs, hooked.add())
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    kill(pid_of(daemon, "keeper"))
    hooked.wait("hook thaw done")
    assert refused(host.va.fsthaw)[0] is Code.FREEZE_BROKEN
    assert hooked.calls == BOTH
    nothing_is_left(daemon, fs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_frozen(rig: Rig, hooked: Hooked, number: signal.Signals) -> None:
    fs = rig.fs("ext4")
    daemon = start(rig, fs, hooked.add())
    assert daemon.proxy().va.fsfreeze() == 1
    daemon.process.send_signal(number)
    assert daemon.process.wait(20) == 0
    assert hooked.calls == BOTH
    nothing_is_left(daemon, fs)


def test_a_background_child_of_the_hook_stays(rig: Rig, hooked: Hooked) -> None:
    fs = rig.fs("ext4")
    hook = hooked.add()
    stays = hooked.folder / "stays"
    hook.write_text(
        f'#!/bin/sh\nif [ $1 = freeze ]; then sleep 1000 & echo $! >{stays}; else kill "$(cat {stays})"; fi\n'
        f'echo "hook $1" >>{hooked.calls_file}\n'
    )
    daemon = start(rig, fs, hook)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    pid = int(stays.read_text())
    assert process_state(pid) not in ("", "Z")
    assert host.va.fsthaw() == 1
    until(lambda: process_state(pid) in ("", "Z"), 10, "the hook's own child has ended")
    assert hooked.calls == ["hook freeze", "hook thaw"]
