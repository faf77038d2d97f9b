"""virtagent-qemu-ga beside qemu-ga: what -D prints, byte for byte, what a start does, and who may have the pid file."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.peer import QemuGa, Talk, qemu_ga, qemu_ga_version
from harness.processes import kill, python, until, wait_gone
from harness.rig import Rig
from unit.test_ga_options import FILES, LINES

OURS = str(Path(sys.executable).with_name("virtagent-qemu-ga"))


def run(program: str, *words: str, conf: Path | str = "/nonexistent/conf") -> tuple[int, bytes]:
    """Return exit code and standard output; only for what prints and ends. Ours is told to be as theirs."""
    environment = {**os.environ, "QGA_CONF": str(conf)}
    version = ["--qga-version", qemu_ga_version()[0]] if program == OURS else []
    done = subprocess.run([program, *version, *words], capture_output=True, check=False, timeout=30, env=environment)
    return done.returncode, re.sub(rb"try '\S* --help'", b"try 'PROGRAM --help'", done.stdout)


def needs_blacklist(*texts: str) -> None:
    if "blacklist" in "".join(texts) and qemu_ga_version()[1] >= (10, 0):
        pytest.skip("this qemu-ga is 10.0 or later: it has no blacklist, which ours still takes")


@pytest.mark.parametrize("words", [words for words, _ in LINES])
def test_dump_of_a_command_line(words: list[str]) -> None:
    needs_blacklist(*words)
    code, text = run(qemu_ga(), "-D", *words)
    assert run(OURS, "-D", *words) == (code, text)
    assert text.startswith(b"[general]\n")


@pytest.mark.parametrize("data", [data for data, _ in FILES])
@pytest.mark.parametrize("words", [[], ["-m", "isa-serial", "-b", "z,y", "-v"]])
def test_dump_of_a_key_file(data: str, words: list[str], tmp_path: Path) -> None:
    needs_blacklist(data)
    conf = tmp_path / "conf"
    conf.write_text(data, encoding="utf-8", newline="")
    assert run(OURS, "-D", *words, conf=conf) == run(qemu_ga(), "-D", *words, conf=conf)


@pytest.mark.parametrize(
    "words",
    [["-Dx"], ["-D", "-?"], ["-D", "--nonsense"], ["-D", "-m"], ["-D", "--pidfile"], ["-D", "--daemonize=1"],
     ["-D", "--p", "x"], ["-xV"], ["-D", "-m", "nonsense"], ["-m", "unix-listen"], ["-D", "-m", ""], ["--="]],
)  # fmt: skip
def test_what_is_refused(words: list[str]) -> None:
    code, text = run(qemu_ga(), *words)
    assert code == 1
    assert run(OURS, *words) == (code, text)


def test_every_command_that_it_lists_is_listed() -> None:
    names = run(qemu_ga(), "-b", "help")[1].split()
    ours = run(OURS, "-b", "?")[1].split()
    assert {name for name in ours if name.startswith(b"guest-")} == set(names) - {b"guest-get-devices"}


def test_the_version_is_told_as_theirs() -> None:
    assert run(OURS, "-V") == run(qemu_ga(), "-V")


# -- started


@pytest.fixture
def conf(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have ours freeze nothing but the test's own file systems."""
    rig.fs("ext4")
    file = rig.area.fresh("conf")
    file.write_text(f"include {rig.everywhere}\n")
    monkeypatch.setenv("VIRTAGENT_CONF", str(file))
    return file


@contextlib.contextmanager
def served(rig: Rig, program: str, *options: str) -> Iterator[tuple[QemuGa, Talk]]:
    agent = QemuGa(rig.area, *options, program=program)
    try:
        talk = Talk(rig.area, agent.socket, ours=program == OURS)
        try:
            yield agent, talk
        finally:
            talk.close()
    finally:
        agent.close()


def test_it_serves_and_blocks_as_theirs(rig: Rig, conf: Path) -> None:
    answers = []
    for program in (qemu_ga(), OURS):
        more = ["--qga-version", qemu_ga_version()[0]] if program == OURS else []
        with served(rig, program, "-b", "guest-info,guest-nothing", "-v", *more) as (agent, talk):
            answers.append([talk.ask("guest-ping"), talk.ask("guest-info"), talk.ask("guest-sync", {"id": 7})])
            log = (agent.folder / "log").read_text()
    theirs_said, ours_said = (answer[1].pop("error") for answer in answers)
    assert ours_said == theirs_said
    assert answers[0] == answers[1]
    assert "block-rpcs: there is no RPC 'guest-nothing'" in log


def test_ours_freezes_and_keeps_its_state_where_it_was_told(rig: Rig, conf: Path) -> None:
    with served(rig, OURS) as (agent, talk):
        assert talk.ask("guest-fsfreeze-freeze") == {"return": 1}
        assert (agent.folder / "virtagent/journal").exists()
        assert talk.ask("guest-fsfreeze-status") == {"return": "frozen"}
        assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
        assert not (agent.folder / "pid").exists(), "only a daemon has one"
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0


def test_paths_are_of_the_folder_of_the_start(rig: Rig, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in qemu-ga: QEMU's own tests open a relative path."""
    folder = rig.area.fresh("cwd")
    folder.mkdir()
    monkeypatch.chdir(folder)
    answers = []
    for program in (qemu_ga(), OURS):
        with served(rig, program) as (_, talk):
            assert "return" in talk.ask("guest-file-open", {"path": "rel", "mode": "w"})
            pid = talk.ask("guest-exec", {"path": "pwd", "capture-output": True})["return"]["pid"]
            said: dict[str, Any] = {}

            def ended(talk: Talk = talk, pid: int = pid, said: dict[str, Any] = said) -> bool:
                said.update(talk.ask("guest-exec-status", {"pid": pid})["return"])
                return bool(said["exited"])

            until(ended, 10, "the end of pwd")
            answers.append(said["out-data"])
        assert (folder / "rel").exists()
        (folder / "rel").unlink()
    assert answers == [base64.b64encode(f"{folder}\n".encode()).decode()] * 2


def test_two_agents_with_state_folders_on_a_disk(rig: Rig, conf: Path) -> None:
    disk = rig.fs("ext4").path
    (disk / "a").mkdir()
    (disk / "b").mkdir()
    with served(rig, OURS, "-t", f"{disk}/a") as (one, first), served(rig, OURS, "-t", f"{disk}/b") as (_, second):
        assert first.ask("guest-fsfreeze-freeze") == {"return": 2}
        assert second.ask("guest-fsfreeze-status") == {"return": "thawed"}
        assert first.ask("guest-fsfreeze-thaw") == {"return": 2}
        told = f"statedir {disk}/a is not on tmpfs: state is kept in (.*/virtagent.at{disk}/a/virtagent)"
        found = re.search(told, (one.folder / "log").read_text())
        assert found
        assert (Path(found[1]) / "lock").exists()
    shutil.rmtree(found[1].partition("virtagent.at")[0] + f"virtagent.at{rig.area.root}")


def test_it_works_under_the_name_of_theirs(rig: Rig, conf: Path) -> None:
    link = rig.area.fresh("bin") / "qemu-ga"
    link.parent.mkdir()
    link.symlink_to(OURS)
    with served(rig, str(link)) as (_, talk):
        assert talk.ask("guest-ping") == {"return": {}}


def started(command: list[str]) -> tuple[int, str]:
    """Return exit code and what was said until nobody has its standard output any more."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return done.returncode, done.stdout


class Daemonized:
    """A qemu-ga that was started with -d; `pid` is the daemon's, from the pid file."""

    def __init__(self, rig: Rig, program: str, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        command = [*python("harness.shield", str(rig.area.holder)), program, "-d", "-m", "unix-listen"]
        command += ["-p", f"{folder}/s", "-t", str(folder), "-f", f"{folder}/pid", *options]
        self.folder = folder
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
        )
        self.code, self.said = done.returncode, done.stdout + done.stderr
        self.pid = 0
        if not self.code:
            until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().endswith("\n"), 10, "the pid file")
            self.pid = int((folder / "pid").read_text())
            rig.area.guard(self.pid)

    def ask(self, command: str) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{self.folder}/s")
            sock.sendall(json.dumps({"execute": command}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                return json.loads(lines.readline())

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            left = wait_gone([self.pid], 10)
            if left:  # qemu-ga loses one now and then
                kill(self.pid)
            assert not left or self.program != OURS, "it did not end upon SIGTERM"


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_daemon_has_its_pid_file_alone(rig: Rig, conf: Path, first: str) -> None:
    one, two = (OURS, qemu_ga()) if first == "ours" else (qemu_ga(), OURS)
    folder = rig.area.fresh("qga")
    daemon = Daemonized(rig, one, folder, "-l", f"{folder}/log")
    try:
        assert (daemon.code, daemon.said) == (0, "")
        until(lambda: (folder / "s").exists(), 10, "the socket")
        assert daemon.ask("guest-ping") == {"return": {}}
        assert (folder / "pid").read_text() == f"{daemon.pid}\n"
        assert (folder / "pid").stat().st_mode & 0o777 == 0o600
        targets = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in range(3)]
        assert targets == ["/dev/null"] * 3
        assert os.getsid(daemon.pid) != os.getsid(0)
        assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"
        other = [*python("harness.shield", str(rig.area.holder)), two, "-d", "-m", "unix-listen", "-p", f"{folder}/t"]
        other += ["-t", str(folder), "-f", f"{folder}/pid"]
        code, said = started(other)
        assert "Resource temporarily unavailable" in said
        assert code == (1 if two == OURS else 0)  # theirs has ended before it looks
        assert daemon.ask("guest-ping") == {"return": {}}
        if one == OURS:
            until(lambda: 'method="guest-ping"' in (folder / "log").read_text(), 10, "the log")
    finally:
        daemon.end()
    assert one != OURS or not (folder / "pid").exists()


def test_a_daemon_that_cannot_start_says_so(rig: Rig, conf: Path) -> None:
    folder = rig.area.fresh("qga")
    folder.mkdir()
    (folder / "s").mkdir()
    daemon = Daemonized(rig, OURS, folder)
    assert daemon.code == 1
    assert "channel unix:" in daemon.said
    assert not (folder / "pid").exists()
