"""virtagentctl snapshot against agents of the test's making: what the command is told, and each way it can end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, FakeAgent, status_record
from fakes.many_agents import ManyAgents
from virtagent.agent.api import timeofday
from virtagent.host.signals import SIGNALS

CTL = [sys.executable, "-m", "virtagent.host.main"]
GOOD = LAST | {"freeze_id": 17, "outcome": "thawed", "held_continuously": True, "held_seconds": 2.5, "error": ""}


class Guest:
    """An agent that freezes and thaws, and notes what it is asked. `last` is how it says the freeze ended."""

    def __init__(self, path: Path, *, last: dict[str, Any] = GOOD, mounts: list[Any] | None = None) -> None:
        self.asked: list[str] = []
        self.frozen = False
        self._last = last
        self._mounts = [MOUNT] if mounts is None else mounts
        self.options: Any = None
        self.agent = FakeAgent(path, self.answer)

    def answer(self, method: str, params: list[Any]) -> Any:
        self.asked.append(method)
        match method:
            case "va.fsfreeze":
                self.frozen, self.options = True, params[0]
                return 1
            case "va.fsthaw":
                was, self.frozen = self.frozen, False
                return int(was)
            case "va.fshold":
                return params[0]
        if self.frozen:
            return status_record(mounts=self._mounts)
        return status_record(state="THAWED", code=0, phase="", hold_left=-1, last=self._last)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path / "a")
    with made.agent:
        yield made


Ran = subprocess.CompletedProcess[str]


def snapshot(*argv: str, urls: list[str], **options: Any) -> Ran:
    agents = [word for url in urls for word in ("--agent", url)]
    return subprocess.run([*CTL, *agents, *argv], capture_output=True, text=True, timeout=30, check=False, **options)


def test_the_command_is_run_while_frozen_and_told_what(guest: Guest) -> None:
    script = 'printf "%s\\n" "$VIRTAGENT_FREEZE_ID" "$VIRTAGENT_MOUNTS" "$VIRTAGENT_AGENTS"; cat'
    argv = ["snapshot", "--hold", "9", "--include", "/srv/*", "--strict", "--sync-limit", "7", "--", "sh", "-c", script]
    ran = snapshot(*argv, urls=[guest.agent.url], input="from stdin")
    assert (ran.returncode, ran.stdout) == (0, f"17\n/srv/db\n{guest.agent.url}\nfrom stdin")
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("good: ")
    assert " held 2.5 s without a break; " in lines[0]
    assert "; the command ended with 0 after " in lines[0]
    assert len(lines) == 1
    assert guest.options["include"] == ["/srv/*"]
    assert (guest.options["hold_limit"], guest.options["strict"], guest.options["sync_limit"]) == (9, True, 7)
    assert guest.asked == ["va.fsfreeze", "va.fsstatus", "va.fsthaw", "va.fsstatus"]


def test_the_report_for_programs(guest: Guest) -> None:
    ran = snapshot("--json", "snapshot", "--", "echo", "of the command", urls=[guest.agent.url])
    assert (ran.returncode, ran.stderr) == (0, "of the command\n")
    report = json.loads(ran.stdout)
    assert 0 < report.pop("window") < 30
    assert report.pop("summary").startswith("good: ")
    assert report["guests"][guest.agent.url].pop("summary").startswith("good: ")
    assert 0 < report["command"].pop("seconds") < 30
    assert report.pop("by").endswith(f"@{socket.gethostname()}")
    assert report.pop("frozen_at_text") == timeofday.moment(report["frozen_at"], milliseconds=True), "with its zone"
    assert 0 <= time.time() - report.pop("frozen_at") < 30
    last = report["guests"][guest.agent.url].pop("last")
    assert (last["freeze_id"], last["outcome"], last["held_continuously"]) == (17, "thawed", True)
    assert report == {
        "good": True,
        "exit": 0,
        "error": "",
        "skew": 0,
        "skew_by_agents": 0,
        "skew_by_clocks": -1,
        "skew_by_round_trip": -1,
        "skew_error": 0,
        "hosts": {},
        "command": {"started": True, "status": 0},
        "guests": {
            guest.agent.url: {
                "frozen": 1,
                "freeze_id": 17,
                "mounts": ["/srv/db"],
                "held_seconds": 2.5,
                "broken": "",
                "not_extended": "",
                "cannot_wait": "",
                "writers": [],
            }
        },
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sh", "-c", "exit 7"], "the command ended with 7; all is thawed: throw away what it made"),
        (["sh", "-c", "kill -SEGV $$"], "the command was killed by SIGSEGV; all is thawed: throw away what it made"),
        (["/proc/self/status"], "there is no program '/proc/self/status'; nothing was frozen"),
        (["no-such-program"], "there is no program 'no-such-program'; nothing was frozen"),
    ],
)
def test_a_command_that_fails(guest: Guest, words: list[str], said: str) -> None:
    ran = snapshot("snapshot", "--", *words, urls=[guest.agent.url])
    started = "no program" not in said
    assert ran.returncode == (1 if started else 2)
    assert ran.stderr.splitlines()[-1] == f"virtagentctl: {said}"
    assert ("va.fsthaw" in guest.asked) == started


def test_a_command_that_cannot_be_started_is_thawed_too(guest: Guest, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    ran = snapshot("snapshot", "--", str(program), urls=[guest.agent.url])
    assert ran.returncode == 1
    assert "the command cannot be started (No such file or directory); all is thawed" in ran.stderr
    assert guest.asked[-2:] == ["va.fsthaw", "va.fsstatus"]


def test_a_command_that_hangs_is_ended_with_all_its_processes(guest: Guest, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; wait; wait"
    ran = snapshot("snapshot", "--timeout", "0.5", "--", "sh", "-c", script, urls=[guest.agent.url])
    assert ran.returncode == 4
    assert "virtagentctl: the command took longer than --timeout and was ended after " in ran.stderr
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    assert guest.asked[-2:] == ["va.fsthaw", "va.fsstatus"]


@pytest.mark.parametrize("how", ["late", "interrupted"])
def test_the_jobs_of_a_shell_are_ended_too(guest: Guest, tmp_path: Path, how: str) -> None:
    """They have process groups of their own."""
    script = "set -m; sleep 600 & echo $!; (trap '' TERM; exec sleep 601) & echo $!; wait"
    argv = ("snapshot", *(("--timeout", "1") if how == "late" else ()), "--", "bash", "-c", script)
    with running(*argv, url=guest.agent.url, preexec_fn=default_signals) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        if how == "interrupted":
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == (4 if how == "late" else 130)
    assert all(gone(pid) for pid in pids)
    assert not guest.frozen


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_broken_freeze(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "a", last=LAST | {"freeze_id": 17})
    with guest.agent:
        for words, code in ((["true"], 5), (["sh", "-c", "exit 3"], 5)):
            ran = snapshot("snapshot", "--", *words, urls=[guest.agent.url])
            assert ran.returncode == code
            assert ran.stderr.startswith("BROKEN: the hold limit passed; 4 file systems held 1 min, ")
            assert "; use a longer --hold, or --extend" in ran.stderr
            assert f"{guest.agent.url}: freeze 17 was not held without a break" in ran.stderr.splitlines()[-1]
            assert "throw the snapshot away" in ran.stderr
        late = snapshot("snapshot", "--timeout", "0.1", "--", "sleep", "60", urls=[guest.agent.url])
        assert late.returncode == 5
        assert json.loads(snapshot("snapshot", "--json", "--", "true", urls=[guest.agent.url]).stdout)["good"] is False


@pytest.mark.parametrize("place", ["/dev/full", "a pipe that nobody reads"])
def test_a_report_that_cannot_be_written_leaves_the_exit_code_alone(tmp_path: Path, place: str) -> None:
    guest = Guest(tmp_path / "a", last=LAST | {"freeze_id": 17})
    if place == "/dev/full":
        to = os.open(place, os.O_WRONLY)
    else:
        read, to = os.pipe()
        os.close(read)
    command = [*CTL, "--agent", guest.agent.url, "--json", "snapshot", "--", "true"]
    with guest.agent:
        ran = subprocess.run(command, stdout=to, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(to)
    assert ran.returncode == 5
    assert "freeze 17 was not held without a break" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_guest_cannot_break_the_lines_of_the_environment(tmp_path: Path) -> None:
    evil = "/srv/\n/etc\\\0\ud800é x"
    guest = Guest(tmp_path / "a", mounts=[MOUNT | {"mountpoint": evil}])
    with guest.agent:
        ran = snapshot("snapshot", "--", "sh", "-c", 'printf %s "$VIRTAGENT_MOUNTS"', urls=[guest.agent.url])
    assert (ran.returncode, ran.stdout) == (0, "/srv/\\012/etc\\134\\000\\355\\240\\200é x")


@contextmanager
def running(*argv: str, url: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    command = [*CTL, "--agent", url, *argv]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


def default_signals() -> None:
    """Have what is started take these signals, whoever started the tests."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_command_runs(guest: Guest, number: signal.Signals, tmp_path: Path) -> None:
    script = "sleep 600 & echo $!; wait"
    argv = ("snapshot", "--", "sh", "-c", script)
    with running(*argv, url=guest.agent.url, preexec_fn=default_signals) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(20) == 130
        err = process.stderr.read() if process.stderr else ""
    said = f"interrupted by {number.name}; the command was ended, and all is thawed: throw away what it made"
    assert err.splitlines()[-1] == f"virtagentctl: {said}"
    assert "Traceback" not in err
    assert gone(pid)
    assert not guest.frozen


def test_a_signal_and_a_broken_freeze(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "a", last=LAST | {"freeze_id": 17})
    argv = ("snapshot", "--", "sh", "-c", "echo; sleep 600")
    with guest.agent, running(*argv, url=guest.agent.url, preexec_fn=default_signals) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"interrupted by SIGTERM; {guest.agent.url}: freeze 17 was not held without a break" in err


def test_a_signal_that_is_ignored_stays_ignored(guest: Guest) -> None:
    argv = ("snapshot", "--", "sh", "-c", "echo; read line")

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with running(*argv, url=guest.agent.url, preexec_fn=nohup) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate("\n", timeout=20)
        assert process.returncode == 0


def test_a_group(tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 3) as agents:
        script = 'printf "%s\\n" "$VIRTAGENT_FREEZE_ID" "$VIRTAGENT_MOUNTS" "$VIRTAGENT_AGENTS"'
        # The agents that stand before the command count as those after it.
        argv = ["snapshot", "--agent", agents.urls[2], "--", "sh", "-c", script]
        ran = snapshot(*argv, urls=agents.urls[:2])
        assert ran.returncode == 0
        ids, rest = ran.stdout.split("\n")[:3], ran.stdout.split("\n")[3:-1]
        assert ids == ["17"] * 3
        assert rest == [f"{url}\t/srv/db" for url in agents.urls] + agents.urls
        lines = ran.stderr.splitlines()
        assert lines[0].startswith("good: 3 file systems of 3 guests held ")
        assert " at one point, frozen within " in lines[0]
        assert lines[1].startswith(f"  {agents.urls[0]}  freeze 17  good: ")
        report = json.loads(snapshot("--json", "snapshot", "--", "true", urls=agents.urls).stdout)
        assert set(report["guests"]) == set(agents.urls)
        assert report["window"] > 0
        assert report["skew"] >= 0
        assert not agents.frozen


@pytest.mark.parametrize(("method", "said"), [("va.fsfreeze", "nothing was frozen"), ("va.fsgo", "all were thawed")])
def test_a_group_of_which_one_refuses(tmp_path: Path, method: str, said: str) -> None:
    def answer(n: int, asked: str) -> Any:
        return RuntimeError("EIO") if (n, asked) == (1, method) else None

    with ManyAgents(tmp_path, 3, answer) as agents:
        ran = snapshot("snapshot", "--", "echo", "run", urls=agents.urls)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith(f"virtagentctl: {agents.urls[1]} did not ")
        assert ran.stderr.endswith(f"; {said}\n")
        assert not agents.frozen


def test_a_group_of_which_one_is_not_there(tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 1) as agents:
        gone = f"unix:{tmp_path}/none"
        ran = snapshot("snapshot", "--", "echo", "run", urls=[agents.urls[0], gone])
        assert (ran.returncode, ran.stdout) == (3, "")
        assert f"{gone} did not connect" in ran.stderr


def test_sync(guest: Guest, tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append((method, params))
        return 2

    with FakeAgent(tmp_path / "b", answer) as fake:
        argv = ["--include", "/srv/*", "--sync-limit", "5", "--wait", "3"]
        assert snapshot("sync", *argv, urls=[fake.url]).stdout == "synced 2 file systems; nothing was frozen\n"
        assert json.loads(snapshot("sync", "--json", urls=[fake.url]).stdout) == {"synced": 2}
    assert asked[0] == ("va.fssync", [{"include": ["/srv/*"], "sync_limit": 5, "wait": 3}])


def test_a_hold_that_is_extended(guest: Guest) -> None:
    with running("snapshot", "--hold", "0.6", "--extend", "--", "cat", url=guest.agent.url) as process:
        for _ in range(20):
            if guest.agent.asked.get(timeout=20)[0] == "va.fshold":
                break
        process.communicate("", timeout=20)
        assert process.returncode == 0
