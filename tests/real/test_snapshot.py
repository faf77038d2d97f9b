"""virtagentctl snapshot with real daemons: whatever happens to it, at each step, the guests are thawed in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import kill, until
from harness.rig import Rig
from harness.terminal import CTL, Terminal
from virtagent.host import Agent, Code, Fault

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HOLD = "2"
IN_TIME = 10.0
UNDONE = "nothing was run, and what may have frozen was told to thaw"


def arguments(daemons: Sequence[Daemon], *argv: str) -> list[str]:
    return [*CTL, *(word for daemon in daemons for word in ("--agent", daemon.url)), "snapshot", *argv]


def snapshot(daemons: Sequence[Daemon], *argv: str) -> subprocess.CompletedProcess[str]:
    command = arguments(daemons, *argv)
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, stdin=subprocess.DEVNULL)


@contextmanager
def running(daemons: Sequence[Daemon], *argv: str) -> Iterator[subprocess.Popen[str]]:
    def untouched() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    pipe = subprocess.PIPE
    command = arguments(daemons, *argv)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=untouched) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_at_rest(daemons: Sequence[Daemon], filesystems: Sequence[LoopFs], timeout: float = IN_TIME) -> None:
    for daemon in daemons:
        daemon.wait_state("THAWED", timeout)
    for fs in filesystems:
        fs.assert_writable()
    for daemon in daemons:
        with Agent(daemon.url) as agent, agent.frozen(hold=20) as freeze:
            pass
        assert freeze.broken is None, "the next freeze does not work"


def test_a_snapshot_of_one_guest(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon([rig.everywhere])
    script = 'test "$(cat)" = "" && printf "%s\\n" "$VIRTAGENT_MOUNTS" "$VIRTAGENT_FREEZE_ID"'
    ran = snapshot([daemon], "--hold", "20", "--", "sh", "-c", script)
    assert ran.returncode == 0, ran.stderr
    *mounts, number = ran.stdout.split()
    assert sorted(mounts) == sorted(map(str, fs))
    last = daemon.status()["last"]
    assert (str(last["freeze_id"]), last["held_continuously"]) == (number, True)
    assert_at_rest([daemon], fs)


def test_the_file_systems_are_frozen_while_the_command_runs(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(3)]
    daemons = [rig.daemon([one]) for one in fs]
    with running(daemons, "--hold", "20", "--", "sh", "-c", "echo; read line") as process:
        assert process.stdout is not None
        process.stdout.readline()
        for one in fs:
            one.assert_frozen()
        _, err = process.communicate("\n", timeout=20)
    assert process.returncode == 0, err
    assert "good: 3 file systems of 3 guests held " in err
    assert " at one point, frozen within " in err
    assert_at_rest(daemons, fs)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("how", ["fails", "hangs", "cannot be started"])
def test_whatever_the_command_does(rig: Rig, how: str, several: bool) -> None:
    fs = [rig.fs("ext4") for _ in range(2 if several else 1)]
    daemons = [rig.daemon([one]) for one in fs]
    bad = rig.area.fresh("program")
    bad.write_text("#!/no/such/interpreter\n")
    bad.chmod(0o755)
    options, code = {
        "fails": (["--", "sh", "-c", "exit 9"], 1),
        "hangs": (["--timeout", "0.3", "--", "sh", "-c", "trap '' TERM; sleep 300"], 4),
        "cannot be started": (["--", str(bad)], 1),
    }[how]
    ran = snapshot(daemons, *options)
    assert ran.returncode == code, ran.stderr
    assert_at_rest(daemons, fs)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_freeze(rig: Rig, number: signal.Signals, several: bool) -> None:
    stall = rig.stall("ext4")
    fs = [stall.fs, *(rig.fs("ext4") for _ in range(int(several)))]
    daemons = [rig.daemon([one]) for one in fs]
    stall.fs.fill(4 << 20)
    stall.stall()
    with running(daemons, "--", "echo", "run") as process:
        daemons[0].wait_status(lambda record: bool(record["workers"]), what="the sync")
        process.send_signal(number)
        if several:  # a sync freezes nothing: there is nothing to wait for
            assert process.wait(IN_TIME) == 130
            stall.release()
        else:
            until(lambda: daemons[0].status()["state"] != "INPROGRESS", IN_TIME, "the freeze is cancelled")
            stall.release()
            assert process.wait(IN_TIME) == 130
        out, err = process.communicate()
    assert out == ""
    assert err == f"virtagentctl: interrupted by {number.name}; {UNDONE}\n"
    assert_at_rest(daemons, fs, 20)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_frozen(rig: Rig, number: signal.Signals, several: bool) -> None:
    fs = [rig.fs("ext4") for _ in range(2 if several else 1)]
    daemons = [rig.daemon([one]) for one in fs]
    with running(daemons, "--hold", "60", "--", "sh", "-c", "echo; sleep 300") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=IN_TIME)
    assert process.returncode == 130
    assert f"interrupted by {number.name}; the command was ended, and all is thawed" in err
    assert "Traceback" not in err
    assert_at_rest(daemons, fs)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_thawing(rig: Rig, number: signal.Signals) -> None:
    fs = [rig.fs("ext4") for _ in range(2)]
    daemons = [rig.daemon([one]) for one in fs]
    with running(daemons, "--hold", "60", "--", "sh", "-c", "echo; read line") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        # It cannot be thawed before this one goes on.
        os.kill(daemons[1].pid, signal.SIGSTOP)
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            daemons[0].wait_state("THAWED")
            process.send_signal(number)
            process.send_signal(number)
        finally:
            os.kill(daemons[1].pid, signal.SIGCONT)
        _, err = process.communicate(timeout=IN_TIME)
    assert process.returncode == 130
    assert f"interrupted by {number.name}; the command had ended with 0, and all is thawed" in err
    assert "2 file systems of 2 guests held " in err
    assert_at_rest(daemons, fs)


@pytest.mark.parametrize("step", ["before the freeze", "frozen", "thawing"])
def test_sigkill(rig: Rig, step: str) -> None:
    fs = rig.stall("ext4") if step == "before the freeze" else None
    one = fs.fs if fs else rig.fs("ext4")
    daemon = rig.daemon([one])
    if fs:
        fs.fs.fill(4 << 20)
        fs.stall()
    with running([daemon], "--hold", HOLD, "--", "sh", "-c", "echo; read line; true") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if step == "before the freeze":
            daemon.wait_state("INPROGRESS")
        else:
            process.stdout.readline()
        if step == "thawing":
            os.kill(daemon.pid, signal.SIGSTOP)
            process.stdin.write("\n")
            process.stdin.flush()
            until(lambda: "sh" not in children(process.pid), IN_TIME, "the command has ended")
        process.kill()
        process.wait()
        if step == "thawing":
            os.kill(daemon.pid, signal.SIGCONT)
    if fs:
        fs.release()
    daemon.wait_status(
        lambda record: record["state"] == "THAWED" and record["last"], float(HOLD) + IN_TIME, "thawed at its hold limit"
    )
    last = daemon.status()["last"]
    if step != "thawing":  # then the thaw may have been told
        assert (last["outcome"], last["held_continuously"]) == ("expired", False)
        with Agent(daemon.url) as agent, pytest.raises(Fault) as broken:
            agent.thaw()
        assert broken.value.code is Code.FREEZE_BROKEN
    assert_at_rest([daemon], [one])


def children(pid: int) -> list[str]:
    try:
        return [child.name() for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("how", ["expires", "another host thaws", "keeper dies"])
def test_a_broken_freeze(rig: Rig, how: str) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with running(
        [daemon], "--hold", "0.3" if how == "expires" else "60", "--", "sh", "-c", "echo; read line"
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if how == "another host thaws":
            with Agent(daemon.url) as other:
                other.thaw()
        elif how == "keeper dies":
            (worker,) = daemon.status()["workers"]
            kill(worker["pid"])
        daemon.wait_state("THAWED")
        _, err = process.communicate("\n", timeout=IN_TIME)
    assert process.returncode == 5
    assert err.splitlines()[-1].startswith(f"virtagentctl: {daemon.url}: ")
    assert "throw the snapshot away" in err
    assert_at_rest([daemon], [fs])


def test_a_group_of_which_one_is_broken(rig: Rig) -> None:
    fs = [rig.fs("ext4") for _ in range(4)]
    daemons = [rig.daemon([one]) for one in fs]
    with running(daemons, "--json", "--hold", "60", "--", "sh", "-c", "echo >&2; read line") as process:
        assert process.stderr is not None
        process.stderr.readline()
        with Agent(daemons[2].url) as other:
            other.thaw()
        out, err = process.communicate("\n", timeout=IN_TIME)
    assert process.returncode == 5
    report = json.loads(out)
    broken = [url for url, guest in report["guests"].items() if guest["broken"]]
    assert (report["good"], report["exit"], broken) == (False, 5, [daemons[2].url])
    assert report["error"] in err
    assert_at_rest(daemons, fs)


def test_a_hold_is_extended_as_long_as_the_command_runs(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    ran = snapshot([daemon], "--hold", "0.6", "--extend", "--", "sleep", "2")
    assert ran.returncode == 0, ran.stderr
    assert_at_rest([daemon], [fs])


def test_the_screen_of_watch(rig: Rig) -> None:
    for kind in ("ext4", "xfs"):
        rig.fs(kind)
    daemon = rig.daemon([rig.everywhere])
    with Terminal([*CTL, "--agent", daemon.url, "watch"]) as terminal, Agent(daemon.url) as agent:
        terminal.read_until("THAWED")
        agent.freeze(hold_limit=30)
        shown = terminal.read_until("* FROZEN  applications stand still", "thaws by itself in 29 s")
        assert "  2 frozen" in shown
        terminal.read_until("thaws by itself in 28 s")  # it counts on without a word from the agent
        agent.thaw()
        terminal.read_until("- THAWED  applications run", "last freeze: 1 good: 2 file systems held ")
        terminal.type(b"\x03")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text


def test_the_screen_of_freeze_on_a_slow_disk(rig: Rig) -> None:
    stall = rig.stall("ext4")
    daemon = rig.daemon([rig.everywhere])
    stall.fs.fill(8 << 20)
    stall.stall()
    with Terminal([*CTL, "--agent", daemon.url, "freeze", "--hold-limit", "30"]) as terminal:
        shown = terminal.read_until("~ SYNCING  applications run", str(stall.fs), "/dev/loop", " of 10 min")
        assert "Ctrl-C leaves" in shown
        stall.release()
        shown = terminal.read_until("frozen 2 file systems (freeze ")
        assert terminal.wait() == 0
        assert "SYNCING" not in shown, "the picture is left on the screen"
    with Agent(daemon.url) as agent:
        assert agent.thaw() == 2


def test_the_screen_of_snapshot(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    with Terminal(arguments([daemon], "--", "sh", "-c", "echo the command runs; read line")) as terminal:
        shown = terminal.read_until("frozen 1 file system (freeze ", "the command runs")
        fs.assert_frozen()
        assert "FREEZING" not in shown, "the picture is left on the screen"
        terminal.type(b"\n")
        assert terminal.wait() == 0
        terminal.read_until("good: 1 file system held ", "without a break; synced ", "the command ended with 0 after ")
    assert_at_rest([daemon], [fs])


@pytest.mark.parametrize("how", ["Ctrl-C", "the terminal goes"])
def test_a_terminal_that_ends_a_snapshot(rig: Rig, how: str) -> None:
    fs = [rig.fs("ext4") for _ in range(2)]
    daemons = [rig.daemon([one]) for one in fs]
    command = arguments(daemons, "--hold", "60", "--", "sh", "-c", "echo the command runs; sleep 300")
    with Terminal(command) as terminal:
        terminal.read_until("frozen 2 file systems of 2 guests within ", "the command runs")
        if how == "Ctrl-C":
            terminal.type(b"\x03")
            terminal.read_until("interrupted by SIGINT; the command was ended")
            assert terminal.wait() == 130
        else:
            terminal.hang_up()
            assert terminal.process.wait(IN_TIME) == 130
    assert_at_rest(daemons, fs)
