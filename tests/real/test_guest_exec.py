"""guest-exec on real programs, its handlers called as a worker's main thread would."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.processes import process_state, until, wait_gone
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import exec as handlers
from virtagent.agent.worker.commands.exec import CAPTURE_MAX, Program

MIB = 1 << 20


class _Worker:
    def __init__(self) -> None:
        self.titles: list[str] = []

    def title(self, doing: str) -> None:
        self.titles.append(doing)


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return the function that calls guest-exec: start("sh", "-c", "exit 3", capture=True)."""
    programs: list[Program] = []

    def start_(path: str, *arg: str, limit: float = 0, grace: float = 0, **options: Any) -> Program:
        given = options.get("given")
        args = {
            "path": path,
            "arg": list(arg) if arg else None,
            "env": options.get("env"),
            "input-data": given if given is None or isinstance(given, str) else b64encode(given).decode(),
            "capture-output": options.get("capture"),
            "limit": limit,
            "grace": grace,
            **({"qga": options["qga"]} if "qga" in options else {}),
        }
        before = set(threading.enumerate())
        programs.append(handlers.guest_exec(_Worker(), args))  # type: ignore[arg-type]
        assert programs[-1].value == {"pid": programs[-1].key}
        assert set(threading.enumerate()) <= before, "what attends it might be heard before the answer"
        programs[-1].acquired()
        return programs[-1]

    yield start_
    for program in programs:
        program.close()
    for thread in threading.enumerate():
        if thread.name == "attendant":
            thread.join(10)
            assert not thread.is_alive()
    assert not any(process_state(program.key) for program in programs)


def outcome(program: Program, within: float = 20) -> dict[str, Any]:
    """Wait until it has exited and return what guest-exec-status then says, the output as bytes."""
    assert program._over.wait(within)
    assert not program.ended
    status = handlers.exec_status(program, {"pid": program.key})
    assert program.ended
    assert status.pop("exited") is True
    assert process_state(program.key) == "", "a zombie is left"
    return {key: b64decode(value) if key.endswith("-data") else value for key, value in status.items()}


def refused(text: str, code: Code = Code.FAILED) -> Any:
    return pytest.raises(Fault, match=rf"^{text} \[{code.name} ")


SPEAKS = ("sh", "-c", "echo out; echo err >&2; exit 3")
OUT = {"out-data": b"out\n", "out-truncated": False}
ERR = {"err-data": b"err\n", "err-truncated": False}


@pytest.mark.parametrize(
    ("capture", "captured"),
    [
        (None, {}),
        (False, {}),
        ("none", {}),
        (True, OUT | ERR),
        ("separated", OUT | ERR),
        ("stdout", OUT),
        ("stderr", ERR),
        ("merged", {"out-data": b"out\nerr\n", "out-truncated": False}),
    ],
)
def test_capture(capture: bool | str | None, captured: dict[str, Any], start: Start) -> None:
    assert outcome(start(*SPEAKS, capture=capture)) == {"exitcode": 3} | captured


def test_output_that_is_empty_is_left_out(start: Start) -> None:
    assert outcome(start("true", capture=True)) == {"exitcode": 0}


def test_a_signal(start: Start) -> None:
    assert outcome(start("sh", "-c", "kill -9 $$", capture=True)) == {"signal": 9}


def test_running_and_then_over(start: Start) -> None:
    program = start("cat", given=b"x" * MIB, capture="stderr", limit=1000)
    assert outcome(program) == {"exitcode": 0}
    program, loose = start("sleep", "1000"), threading.Event()
    program.notify_releasable = loose.set
    assert handlers.exec_status(program, {"pid": program.key}) == {"exited": False}
    assert not program.ended
    assert not loose.is_set()
    os.kill(program.key, signal.SIGTERM)
    assert outcome(program) == {"signal": 15}
    assert loose.is_set()
    assert program._worker.titles[-1] == f"sleep, pid {program.key}, signal 15"  # type: ignore[attr-defined]


# arguments, environment, path


def test_arguments_are_no_shell_words(start: Start) -> None:
    words = ("%s|", "a b", "", "$HOME", ";", "*", "\u00e4", "'", "\n")
    printed = b"a b||$HOME|;|*|\xc3\xa4|'|\n|"
    assert outcome(start("printf", *words, capture=True))["out-data"] == printed


def test_the_environment_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    assert b"\nMINE=1\n" in b"\n" + outcome(start("env", capture=True))["out-data"]
    entries = ["A=1", "B=x=\u00e4", "A=2", "NOTHING", "C="]
    assert outcome(start("env", env=entries, capture=True))["out-data"] == b"A=1\nB=x=\xc3\xa4\nC=\n"
    assert outcome(start("env", env=[], capture=True)) == {"exitcode": 0}


def test_the_path(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\necho $0\n")
    ran = {"exitcode": 0, "out-data": f"{script}\n".encode(), "out-truncated": False}
    not_there = "Failed to execute child process \u201ctool\u201d"
    with refused(rf"{not_there} \(No such file or directory\)"):
        start("tool")
    with refused(rf"{not_there} \(Permission denied\)"):
        start("tool", env=[f"PATH=/nope:{tmp_path}"])
    script.chmod(0o755)
    assert outcome(start("tool", env=[f"PATH=/nope:{tmp_path}"], capture=True)) == ran
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert outcome(start("tool", env=["A=1"], capture=True)) == ran
    with refused(rf"{not_there} \(No such file or directory\)"):
        start("tool", env=["PATH=/nope"])


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "No such file or directory"),
        ("nope-nope", "No such file or directory"),
        ("/nope", "No such file or directory"),
        ("/tmp", "Permission denied"),
        ("/etc/passwd", "Permission denied"),
    ],
)
def test_what_cannot_be_executed(path: str, why: str, start: Start) -> None:
    said = f"Failed to execute child process \u201c{path}\u201d \\({why}\\)"
    with refused(f"{said}"):
        start(path, "x")
    with refused(f"Guest agent command failed, error was '{said}'"):
        start(path, "x", qga=(7, 2))


def test_a_script_without_an_interpreter(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "plain"
    script.write_text('echo "$0" "$1"\n')
    script.chmod(0o755)
    assert outcome(start(str(script), "a $b", capture=True))["out-data"] == f"{script} a $b\n".encode()
    script.write_text("#!/nope\n")
    with refused(rf"Failed to execute child process \u201c{script}\u201d \(No such file or directory\)"):
        start(str(script))


def test_the_program_has_nothing_of_the_agent(start: Start) -> None:
    # ls lists the descriptor that it lists with, too. The signals without a shell, which sets them right by itself.
    script = "pwd; ls /proc/self/fd; cut -d' ' -f6 /proc/$$/stat; echo $$"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        said = outcome(start("sh", "-c", script, capture="merged"))["out-data"].decode().splitlines()
        signals = outcome(start("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", capture="merged"))["out-data"]
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert signals.decode().splitlines() == ["SigBlk:\t" + "0" * 16, "SigIgn:\t" + "0" * 16]
    assert said[:5] == [os.getcwd(), "0", "1", "2", "3"]
    assert said[5] == said[6], "not in a session of its own"


# input and output


def test_bytes_in_and_out_at_once(start: Start) -> None:
    given = os.urandom(3 * MIB)
    assert outcome(start("cat", given=given, capture=True))["out-data"] == given
    assert outcome(start("cat", given=b"", capture=True)) == {"exitcode": 0}
    assert outcome(start("cat", capture=True)) == {"exitcode": 0}
    with refused("Base64 data contains invalid characters", Code.PARAMS):
        start("cat", given="!!")


def test_input_that_nobody_reads(start: Start) -> None:
    assert outcome(start("true", given=bytes(MIB))) == {"exitcode": 0}
    assert outcome(start("sh", "-c", "exec <&-; sleep 0.1; echo x", given=bytes(MIB), capture=True))["exitcode"] == 0


@pytest.mark.parametrize("over", [0, 1])
def test_up_to_16_mib_are_kept(over: int, start: Start) -> None:
    status = outcome(start("head", "-c", str(CAPTURE_MAX + over), "/dev/zero", capture=True))
    assert status == {"exitcode": 0, "out-data": bytes(CAPTURE_MAX), "out-truncated": bool(over)}


def test_100_mib_on_both_streams_stay_bounded(start: Start) -> None:
    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # proc(5): forget the peak
    before = peak()
    program = start("sh", "-c", "head -c 100M /dev/zero; head -c 100M /dev/zero >&2; echo done", capture=True)
    assert program._over.wait(50)
    assert [len(stream.data) for stream in program.streams] == [CAPTURE_MAX] * 2
    # The two buffers, each of which may be twice there while it grows.
    assert peak() - before < 5 * CAPTURE_MAX
    status = outcome(program)
    assert (status["exitcode"], status["out-truncated"], status["err-truncated"]) == (0, True, True)
    assert not any(stream.data for stream in program.streams)


# limits


def test_a_program_that_never_ends(start: Start) -> None:
    begun = time.monotonic()
    program = start("sh", "-c", "echo begun; exec sleep 1000", capture=True, limit=0.5, grace=1000)
    assert outcome(program) == {"signal": 15, "out-data": b"begun\n", "out-truncated": False}
    assert time.monotonic() - begun >= 0.5


def test_a_program_that_ignores_sigterm(start: Start) -> None:
    begun = time.monotonic()
    script = "trap 'echo no' TERM; echo 1; while :; do sleep 0.02; done"
    program = start("sh", "-c", script, capture="stdout", limit=0.5, grace=0.3)
    assert outcome(program) == {"signal": 9, "out-data": b"1\nno\n", "out-truncated": False}
    assert time.monotonic() - begun >= 0.8


def test_the_limit_is_the_groups(start: Start) -> None:
    script = "sh -c 'trap : TERM; echo $$; while :; do sleep 0.02; done' & exec sleep 1000"
    program = start("sh", "-c", script, capture="stdout", limit=0.5, grace=0.3)
    status = outcome(program)
    assert status["signal"] == 15
    assert wait_gone([int(status["out-data"])], 5) == []


def test_the_group_has_its_grace_when_the_program_has_ended(start: Start) -> None:
    script = "sh -c 'trap \"sleep 0.2; echo bye; exit\" TERM; while :; do sleep 0.02; done' & exec sleep 1000"
    program = start("sh", "-c", script, capture="stdout", limit=0.5, grace=1000)
    assert outcome(program) == {"signal": 15, "out-data": b"bye\n", "out-truncated": False}


@pytest.mark.parametrize("call", ["listdir", "open"])
def test_a_group_that_cannot_be_looked_for_has_its_grace_too(
    start: Start, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """No more files (ENFILE): what attends it must not die of that, since then it would run for ever."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    program = start("sleep", "60", limit=0.1, grace=0.2)
    monkeypatch.setattr(*((os, "listdir") if call == "listdir" else (handlers, "open")), fail, raising=False)
    assert outcome(program) == {"signal": signal.SIGTERM}


def test_a_limit_that_is_not_reached(start: Start) -> None:
    assert outcome(start("true", limit=1e9, grace=1e9)) == {"exitcode": 0}


# what a program leaves behind


@pytest.mark.parametrize("chatty", [False, True])
def test_a_daemon_that_holds_the_pipe(chatty: bool, start: Start) -> None:
    work = "while echo more; do sleep 0.01; done" if chatty else "exec sleep 1000"
    program = start("sh", "-c", f"({work}) & echo $!", capture=True)
    status = outcome(program)
    assert status["exitcode"] == 0
    daemon = next(int(line) for line in status["out-data"].split() if line.isdigit())
    assert process_state(daemon) not in ("", "Z"), "it goes on, as after qemu-ga's guest-exec"
    assert not program.streams[0].holds
    os.kill(daemon, signal.SIGKILL)


def test_close_kills_the_group(start: Start) -> None:
    program = start("sh", "-c", "sleep 1000 & sleep 1000", capture=True)
    until(lambda: len(_group(program.key)) == 3, 5, "both sleep")
    group = _group(program.key)
    program.close()
    assert wait_gone([pid for pid in group if pid != program.key], 5) == []
    assert outcome(program) == {"signal": 9}


def _group(leader: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, group in map(str.split, listed.splitlines()) if int(group) == leader]


def test_the_program_dies_with_its_worker() -> None:
    code = (
        "import signal\n"
        "from virtagent.agent.worker.commands.exec import guest_exec\n"
        "class Worker:\n"
        "    def title(self, doing): pass\n"
        "names = ('env', 'input-data', 'capture-output')\n"
        "args = {'path': 'sleep', 'arg': ['1000'], 'limit': 0, 'grace': 0, **dict.fromkeys(names)}\n"
        "print(guest_exec(Worker(), args).key, flush=True)\n"
        "signal.pause()\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd="/")
    with worker:
        assert worker.stdout is not None
        program = int(worker.stdout.readline())
        pidfd = os.pidfd_open(program)
        worker.kill()
    try:
        assert select.select([pidfd], [], [], 5)[0]
    finally:
        os.close(pidfd)
