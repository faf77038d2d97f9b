"""Writers that are programs of the operator's: one that is told the steps (live), a pair, VMware's scripts."""

from __future__ import annotations

import os
import pwd
import signal
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness.applications import pid_of
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hosts import Asking
from harness.processes import kill, process_state, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(90)
Fault = xmlrpc.client.Fault

# What docs/writers.md shows, with a record of what it heard, and faults that a test switches on by files.
LIVE = """#!/bin/bash
echo "begins $(id -un) $HOME" >>{at}/calls
while read -r line; do
    echo "$line" >>{at}/calls
    [ -e {at}/$line.hang ] && {{ trap '' TERM; while [ -e {at}/$line.hang ]; do sleep 0.02; done; }}
    [ -e {at}/$line.end ] && {{ echo 'I give up' >&2; exit 3; }}
    if [ -e {at}/$line.says ]; then cat {at}/$line.says
    elif [ "$line" = quiesce ]; then touch {at}/held; echo 'ok gtid=0-1-7 "note=two words"'
    else echo ok; fi
    [ "$line" = release ] && rm -f {at}/held
done
[ -e {at}/eof.hang ] && {{ trap '' TERM; while [ -e {at}/eof.hang ]; do sleep 0.02; done; }}
rm -f {at}/held
echo ends >>{at}/calls
"""


class Operator:
    """A folder with the operator's programs, what they were called with, and the writers' configuration."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.at = rig.area.fresh("operator")
        self.at.mkdir()
        self.at.chmod(0o777)
        self.conf = self.at / "writers.d"
        self.conf.mkdir(mode=0o755)
        self.live = self.program("live", LIVE.format(at=self.at))

    def program(self, name: str, text: str) -> Path:
        path = self.at / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def noting(self, name: str) -> Path:
        text = '#!/bin/sh\necho "{n} $* $VIRTAGENT_VERDICT" >>{at}/calls\n'
        text += 'id -un >"{at}/{n}.user"\n[ ! -e "{at}/{n}.$1.fail" ] || exit 3\n'
        return self.program(name, text.format(n=os.path.basename(name), at=self.at))

    def writer(self, text: str, name: str = "app") -> None:
        (self.conf / f"{name}.conf").write_text(text)

    def switch(self, name: str, text: str = "") -> Path:
        (self.at / name).write_text(text)
        return self.at / name

    def start(self, fs: LoopFs, *options: str, **more: Path) -> Daemon:
        return self.rig.daemon([fs], ["--writers-dir", str(self.conf), *options], **more)

    @property
    def calls(self) -> list[str]:
        return [line.strip() for line in (self.at / "calls").read_text().splitlines()] if self.called else []

    @property
    def called(self) -> bool:
        return (self.at / "calls").exists()

    @property
    def held(self) -> bool:
        return (self.at / "held").exists()

    def pid_of_live(self) -> int:
        (found,) = [p.pid for p in psutil.process_iter() if str(self.live) in " ".join(_words(p))]
        return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def operator(rig: Rig) -> Operator:
    return Operator(rig)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Fault) as raised:
        call()
    assert raised.value.faultCode == Code.VETOED, raised.value
    return raised.value.faultString


def nothing_is_left(daemon: Daemon, fs: LoopFs, operator: Operator) -> None:
    fs.assert_thawed()
    until(lambda: not operator.held, 5, "the application is let go")
    left = [path.name for path in (daemon.state_dir / "writers").iterdir() if not path.name.endswith(".lock")]
    assert not left, left
    assert not [p for p in psutil.process_iter() if str(operator.live) in " ".join(_words(p))]


# -- live

STEPS = ["prepare", "quiesce", "confirm", "release"]


def test_a_live_program_hears_the_steps_and_its_facts_are_told(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\n")
    operator.switch("prepare.says", f"ok path={fs.path} 'path={operator.at}/an archive'\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    for times in (1, 2):
        assert host.va.fsfreeze() == 1
        assert operator.held
        (writer,) = daemon.status()["writers"]
        assert (writer["hold"], writer["state"]) == ("session", "confirmed")
        assert writer["info"] == {"gtid": "0-1-7", "note": "two words"}
        archive = f"{operator.at}/an archive"
        assert (writer["paths"], writer["not_frozen"]) == ([str(fs.path), archive], [archive])
        assert host.va.fsthaw() == 1
        assert not operator.held
        root = pwd.getpwuid(os.geteuid())
        assert operator.calls == [f"begins {root.pw_name} {root.pw_dir}", *STEPS, "ends"] * times
        assert daemon.status()["writers"][0]["error"] == ""
        nothing_is_left(daemon, fs, operator)


def test_a_live_program_of_another_user_that_wants_the_verdict(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live} 'two words'\nuser nobody\nverdict yes\npaths {fs.path}\n")
    operator.switch("release good.says", "ok\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    (writer,) = daemon.status()["writers"]
    assert (writer["paths"], writer["not_frozen"]) == ([str(fs.path)], [])
    assert host.va.fsthaw({"verdict": "bad"}) == 1
    assert operator.calls == ["begins nobody /nonexistent", *STEPS[:3], "release bad", "ends"]
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw() == 1
    assert operator.calls[-2:] == ["release good", "ends"]


@pytest.mark.parametrize(
    ("step", "how", "text", "said"),
    [
        ("prepare", "says", "no it has no time\n", "app refused the freeze: it has no time"),
        ("quiesce", "says", "no it has no time\n", "app refused the freeze: it has no time"),
        ("confirm", "says", "no it has no time\n", "app refused the freeze: it has no time"),
        ("prepare", "says", "perhaps\n", "expected ok or no"),
        ("prepare", "says", "o" * 5000, "its answer to prepare is over 4096 bytes"),
        ("quiesce", "says", "ok colour\n", "expected key=value"),
        ("quiesce", "says", "ok 'a=b\n", "No closing quotation"),
        ("prepare", "end", "", "it has ended before it answered prepare: I give up"),
        ("confirm", "end", "", "it has ended before it answered confirm: I give up"),
        ("prepare", "hang", "", "it did not answer prepare in time"),
        ("quiesce", "hang", "", "it did not answer quiesce in time"),
        ("confirm", "hang", "", "it did not answer confirm in time"),
    ],
)
def test_a_live_program_that_refuses(rig: Rig, operator: Operator, step: str, how: str, text: str, said: str) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\n" + "".join(f"{s}-limit 0.6\n" for s in STEPS))
    switch = operator.switch(f"{step}.{how}", text)
    daemon = operator.start(fs)
    assert said in refused(daemon.proxy().va.fsfreeze)
    if how != "says":
        (operator.at / "held").unlink(missing_ok=True)  # a session: the server would have let go
    nothing_is_left(daemon, fs, operator)
    switch.unlink()
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1
    nothing_is_left(daemon, fs, operator)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("command /nonexistent/live", "app refused the freeze: /nonexistent/live: No such file"),
        ("command /bin/sh\nuser nobody-here", "there is no user nobody-here"),
        ("command {at}", "Permission denied"),
        ("command /bin/true", "it has ended before it answered prepare"),
    ],
)
def test_a_live_program_that_cannot_be(rig: Rig, operator: Operator, text: str, said: str) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\n{text.format(at=operator.at)}\n")
    daemon = operator.start(fs)
    assert said in refused(daemon.proxy().va.fsfreeze)
    nothing_is_left(daemon, fs, operator)


def test_a_live_program_that_does_not_let_go_is_ended(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\nrelease-limit 0.5\n")
    operator.switch("release.hang")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    pid = operator.pid_of_live()
    assert host.va.fsthaw() == 1
    assert process_state(pid) in ("", "Z")
    assert "was ended" in daemon.status()["writers"][0]["error"]
    fs.assert_thawed()


@pytest.mark.parametrize("says", [True, False])
def test_a_live_program_that_loses_its_hold_while_frozen_is_told(rig: Rig, operator: Operator, says: bool) -> None:
    fs = rig.fs("ext4")
    body = "exit 3" if not says else "echo no the server is gone; sleep 0.1"
    late = f'[ "$line" = confirm ] && {{ until [ -e {operator.at}/lose ]; do sleep 0.02; done; {body}; }}\ndone'
    operator.program("live", LIVE.format(at=operator.at).replace("done\n[ -e", f"{late}\n[ -e", 1))
    operator.writer(f"type live\ncommand {operator.live}\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    operator.switch("lose")
    record = daemon.wait_status(lambda record: record["writers"][0]["state"] == "lost")
    assert record["state"] == "FROZEN"
    assert ("the server is gone" if says else "it has ended") in record["writers"][0]["error"]
    assert host.va.fsthaw() == 1


@pytest.mark.parametrize("who", ["writer", "keeper", "supervisor", "program", "all"])
def test_the_application_of_a_live_program_is_free_whoever_dies(rig: Rig, operator: Operator, who: str) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    live = operator.pid_of_live()
    if who in ("writer", "all"):
        kill(pid_of(daemon, "writer"))
    if who == "all":
        kill(pid_of(daemon, "keeper"))
    if who == "keeper":
        kill(pid_of(daemon, "keeper"))
    if who in ("supervisor", "all"):
        daemon.kill()
    if who == "program":
        kill(live)
        operator.at.joinpath("held").unlink()  # a session: the server would have let go
        daemon.wait_status(lambda record: record["writers"][0]["state"] == "lost")
    if who in ("writer", "program"):
        assert host.va.fsthaw() == 1
    elif who == "keeper":
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    else:
        daemon.wait_orphans(20)
        daemon = operator.start(fs, state_dir=daemon.state_dir)
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    until(lambda: process_state(live) in ("", "Z"), 10, "the program has ended")
    nothing_is_left(daemon, fs, operator)
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_is_killed_at_a_step_leaves_no_live_program(rig: Rig, operator: Operator, step: str) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\nrelease-limit 3\n")
    switch = operator.switch(f"{step}.hang")
    daemon = operator.start(fs)
    if step == "release":
        assert daemon.proxy().va.fsfreeze() == 1
    waiting = Asking(daemon, "va.fsthaw" if step == "release" else "va.fsfreeze")
    until(lambda: step in operator.calls, 10, f"it hears {step}")
    kill(pid_of(daemon, "writer"))
    switch.unlink()
    answer = waiting.wait()
    assert answer == 1 if step == "release" else isinstance(answer, Fault)
    nothing_is_left(daemon, fs, operator)


def test_a_stopped_live_program_does_not_hold_up_the_thaw(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type live\ncommand {operator.live}\nrelease-limit 0.5\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    os.kill(operator.pid_of_live(), signal.SIGSTOP)
    waiting = Asking(daemon, "va.fsthaw")
    until(lambda: daemon.status()["phase"] == "release", 10, "all is thawed")
    fs.assert_thawed()
    assert waiting.wait() == 1
    assert "was ended" in daemon.status()["writers"][0]["error"]


# -- pair


def test_a_pair(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    holds, goes = operator.noting("hold it"), operator.noting("go")
    operator.writer(f"type pair\nfreeze '{holds}' a 'b c'\nthaw {goes} x\nuser nobody\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    (operator.at / "calls").touch(0o666)
    (operator.at / "calls").chmod(0o666)
    assert host.va.fsfreeze() == 1
    assert daemon.status()["writers"][0]["hold"] == "latch"
    assert operator.calls == ["hold it a b c"]
    assert host.va.fsthaw() == 1
    assert operator.calls == ["hold it a b c", "go x good"]
    assert {(operator.at / f"{name}.user").read_text() for name in ("hold it", "go")} == {"nobody\n"}
    operator.switch("hold it.a.fail")
    assert f"{holds} a b c ended with exit code 3" in refused(host.va.fsfreeze)
    assert operator.calls[2:] == ["hold it a b c", "go x bad"]
    goes.unlink()
    assert f"{goes}: No such file" in refused(host.va.fsfreeze)
    assert len(operator.calls) == 4  # what could not be undone was not done
    nothing_is_left(daemon, fs, operator)


@pytest.mark.parametrize("who", ["writer", "supervisor", "all"])
def test_a_pair_whoever_dies(rig: Rig, operator: Operator, who: str) -> None:
    fs = rig.fs("ext4")
    operator.writer(f"type pair\nfreeze {operator.noting('hold')} a\nthaw {operator.noting('go')}\n")
    daemon = operator.start(fs)
    assert daemon.proxy().va.fsfreeze() == 1
    if who in ("writer", "all"):
        kill(pid_of(daemon, "writer"))
    if who == "all":
        kill(pid_of(daemon, "keeper"))
    if who != "writer":
        daemon.kill()
        daemon.wait_orphans(20)
        daemon = operator.start(fs, state_dir=daemon.state_dir)
        daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])
    else:
        assert daemon.proxy().va.fsthaw() == 1
    assert [call.split()[0] for call in operator.calls] == ["hold", "go"]
    nothing_is_left(daemon, fs, operator)


# -- vmware


def test_vmware_scripts_in_order_and_back(rig: Rig, operator: Operator) -> None:
    fs = rig.fs("ext4")
    for name in ("20-b", "10-a", "B", "30-c.bak"):
        operator.noting(f"backupScripts.d/{name}")
    no_head = operator.program("backupScripts.d/40-d", f'echo "40-d $*" >>{operator.at}/calls\n')
    (operator.at / "backupScripts.d/folder").mkdir()
    operator.writer(f"type vmware\npath {operator.at}/backupScripts.d\n")
    daemon = operator.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    names = ["10-a", "20-b", "30-c.bak", "40-d", "B"]
    assert operator.calls == [f"{name} freeze" for name in names]
    assert host.va.fsthaw() == 1
    calls = [" ".join(call.split()[:2]) for call in operator.calls]
    assert calls[5:] == [f"{name} thaw" for name in reversed(names)]
    operator.switch("20-b.freeze.fail")
    assert "20-b freeze ended with exit code 3" in refused(host.va.fsfreeze)
    calls = [" ".join(call.split()[:2]) for call in operator.calls][10:]
    assert calls == ["10-a freeze", "20-b freeze", "20-b freezeFail", "10-a freezeFail"]
    operator.at.joinpath("20-b.freeze.fail").unlink()
    assert host.va.fsfreeze() == 1
    assert host.va.fsthaw({"verdict": "bad"}) == 1
    assert operator.calls[-1] == "10-a freezeFail bad"
    no_head.chmod(0o644)
    assert f"{no_head}: it may not be executed" in refused(host.va.fsfreeze)
    nothing_is_left(daemon, fs, operator)
