"""A consistent point over hosts, with OpenSSH on loopback, real relays and real daemons."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import MOUNT, status_record
from fakes.many_agents import ManyAgents
from fakes.schema import faults
from harness import sshd
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.fixtures import unmet
from harness.namespace import Area
from harness.processes import until
from harness.questions import assert_frozen, assert_well
from harness.rig import Rig
from harness.sshd import Sshd
from harness.terminal import Terminal
from virtagent.host import Agent, AgentGroup

pytestmark = pytest.mark.timeout(120)
SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
CTL = [sys.executable, "-m", "virtagent.host.main"]


@pytest.fixture(scope="module")
def server(area: Area, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Start an sshd in the mount namespace of the tests, in which their sockets are."""
    if why := sshd.missing():
        unmet(why)
    one = Sshd(tmp_path_factory.mktemp("sshd") / "it")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in one.env.items():
            patch.setenv(name, value)
        yield one
    one.close()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CTL, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


Guests = list[tuple[Daemon, LoopFs]]


@pytest.fixture
def guests(server: Sshd, rig: Rig) -> Guests:
    """Return two guests for the first of two hosts, and one for the second."""
    return [(rig.daemon([fs]), fs) for fs in (rig.fs("ext4") for _ in range(3))]


@pytest.fixture
def inventory(tmp_path: Path, guests: Guests) -> Path:
    path = tmp_path / "fleet"
    one, two, three = (daemon.url for daemon, _ in guests)
    path.write_text(f"# two hosts\nhv1 {one} {two}\nssh:hv2?agents={three}\n")
    return path


def test_a_snapshot_over_hosts_from_an_inventory(rig: Rig, guests: Guests, inventory: Path, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    ran = run(
        *("--json", "snapshot", "--inventory", str(inventory), "--hold", "60", "--max-skew", "30", "--extend"),
        *("--report", str(tmp_path / "page.txt"), "--on-each-host", f"echo $VA_HOST: $VIRTAGENT_AGENTS >> {flag}"),
        *("--", "sh", "-c", "echo $VIRTAGENT_AGENTS"),
    )
    assert (ran.returncode, ran.stderr.count("ssh:hv")) == (0, 2), ran.stderr
    report = json.loads(ran.stdout)
    assert report["good"]
    assert list(faults(report, json.loads(SCHEMA.read_text()))) == []
    assert len(report["guests"]) == 3
    assert list(report["hosts"]) == ["ssh:hv1", "ssh:hv2"]
    assert [host["guests"] for host in report["hosts"].values()] == [2, 1]
    for host in report["hosts"].values():
        assert host["broken"] == []
        assert host["command"] == {"status": 0, "output": "", "error": ""}
    assert 0 <= report["skew_by_round_trip"] < 30
    assert 0 <= report["skew_by_clocks"] < 30
    said = flag.read_text()
    for daemon, _ in guests:
        assert said.count(daemon.url.removeprefix("unix:")) == 1, "each host's command has the guests of that host"
    page = (tmp_path / "page.txt").read_text()
    assert page.startswith("good: ")
    assert "2 guests" in page
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


def test_a_command_that_fails_on_one_host_is_named(rig: Rig, guests: Guests, inventory: Path) -> None:
    ran = run(
        "snapshot", "--inventory", str(inventory), "--on-each-host", "test $VA_HOST = hv1 || { echo full; exit 3; }"
    )
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("virtagentctl: on ssh:hv2 the command")
    assert last.endswith("the command ended with 3: full; all is thawed: throw away what it made")
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


def test_what_each_guest_does_is_told_through_the_one_ssh_of_its_host(
    rig: Rig, guests: Guests, inventory: Path, server: Sshd
) -> None:
    ran = run(
        "snapshot", "--inventory", str(inventory), "--events", "--", "pgrep", "-fc", f"^ssh .*{server.folder}/config"
    )
    assert ran.returncode == 0, ran.stderr
    assert "2" in ran.stderr.splitlines(), "one ssh a host"
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    urls = [f"ssh:hv{1 + n // 2}?agents={daemon.url}" for n, (daemon, _) in enumerate(guests)]
    for url, (_, fs) in zip(urls, guests, strict=True):
        mine = [event for event in events if event.get("agent") == url]
        names = [event["event"] for event in mine]
        assert (names[0], names[-1], names.count("held"), names.count("end")) == ("phase", "end", 1, 1)
        assert [event["state"] for event in mine if event["event"] == "phase"][-1] == "THAWED"
        assert {event["mountpoint"] for event in mine if event["event"] == "mount"} == {str(fs)}
        assert mine[-1]["outcome"] == "thawed"
    assert events[-1]["good"]
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


def test_a_picture_of_guests_behind_a_relay(server: Sshd, tmp_path: Path) -> None:
    ready = threading.Event()
    seqs = itertools.count(41)

    def answer(n: int, method: str) -> Any:
        if method != "va.fsstatus" or n or n not in those.waiting or ready.is_set():
            return None
        ready.wait(0.02)  # its barrier asks again at once
        progress = {"dirty_bytes": 4 << 20, "flushed_bytes": 12 << 20, "bytes_per_second": 1e6, "eta": 4.0}
        mounts = [MOUNT | {"state": "syncing", "source": "/dev/vdb"}]
        return status_record(state="INPROGRESS", code=1, seq=next(seqs), phase="sync", mounts=mounts, progress=progress)

    with ManyAgents(tmp_path, 3, answer) as those:
        words = ["--agent", f"ssh:hv1?agents=unix:{tmp_path}/?", "snapshot", "--", "echo", "it ran"]
        with Terminal([*CTL, *words]) as terminal:
            terminal.read_until(
                *("3 guests", "applications run in all", "ssh:hv1?agents=unix:/"),
                *("~ SYNCING", "75%", "about 4 s", "waits for /srv/db /dev/vdb", "Ctrl-C cancels; nothing is frozen"),
            )
            ready.set()
            assert terminal.wait() == 0
            terminal.read_until("frozen 3 file systems of 3 guests within ", "it ran", "good: ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_coordinator_killed_in_the_window(
    rig: Rig, guests: Guests, inventory: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flag = tmp_path / "flag"
    words = [
        "snapshot",
        "--inventory",
        str(inventory),
        "--hold",
        "60",
        "--",
        "sh",
        "-c",
        f"touch {flag}; exec sleep 99",
    ]
    with subprocess.Popen([*CTL, *words], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as coordinator:
        until(flag.exists, 60, "the command runs")
        assert_frozen([fs for _, fs in guests])
        coordinator.send_signal(number)
        assert coordinator.wait(60) == (-9 if number is signal.SIGKILL else 130)
        for daemon, _ in guests:
            record = daemon.wait_state("THAWED")
            assert record["last"]["outcome"] == "thawed", "not by the end of its hold"
    if number is signal.SIGKILL:
        end_the_command(flag)
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


def end_the_command(flag: Path) -> None:
    """End what a coordinator that was killed left running here."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", b"99"] and os.getsid(int(entry.name)) == int(entry.name):
                os.kill(int(entry.name), signal.SIGKILL)


def test_a_relay_that_is_killed_leaves_its_guests_to_their_hold(rig: Rig, guests: Guests) -> None:
    urls = [f"ssh:hv1?agents={guests[0][0].url}", f"ssh:hv2?agents={guests[2][0].url}"]
    ran = run(
        *(word for url in urls for word in ("--agent", url)),
        *("--json", "snapshot", "--hold", "3", "--on-each-host", "test $VA_HOST = hv1 || kill -9 $PPID"),
    )
    assert ran.returncode == 5
    report = json.loads(ran.stdout)
    broken = {url.partition("?")[0] for url, one in report["guests"].items() if one["broken"]}
    assert broken == {"ssh:hv2"}, report["error"]
    assert "hv2" in report["error"]
    assert guests[0][0].wait_state("THAWED")["last"]["outcome"] == "thawed"
    assert guests[2][0].wait_state("THAWED")["last"]["outcome"] == "expired"
    for daemon, fs in guests:
        assert_well(rig, daemon, [fs])


@pytest.mark.parametrize(
    ("relay", "said"),
    [
        ("no-such-program relay", "not found"),
        ("echo hello", "which is no JSON"),
        ("exit 3", "ended"),
    ],
)
def test_hosts_that_cannot_be_used_are_told_in_one_sentence(
    server: Sshd, monkeypatch: pytest.MonkeyPatch, relay: str, said: str
) -> None:
    monkeypatch.setenv("VIRTAGENT_RELAY", relay)
    ran = run("--agent", "ssh:hv1?agents=unix:/a", "snapshot", "--", "true")
    assert ran.returncode in (1, 3)
    assert ran.stderr.count("\n") == 1
    assert "ssh:hv1" in ran.stderr
    assert said in ran.stderr
    assert "nothing was frozen" in ran.stderr


def test_a_key_that_is_refused_is_told_in_the_words_of_ssh(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTAGENT_SSH", f"ssh -F {server.folder}/config -o PubkeyAuthentication=no")
    ran = run("--agent", "ssh:hv1?agents=unix:/a", "ping")
    assert ran.returncode == 3
    assert "Permission denied" in ran.stderr
    assert "ssh:hv1" in ran.stderr


def test_every_call_goes_through_the_one_ssh_of_a_host(server: Sshd, tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 3) as those:
        ran = run("--agent", f"ssh:hv1?agents=unix:{tmp_path}/?", "--json", "status")
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        assert list(found) == [f"ssh:hv1?agents={url}" for url in those.urls]
        url = f"ssh:hv1?agents={those.urls[1]}"
        with Agent(url) as agent:
            assert agent.ping() == "dummy"
            with agent.frozen(hold=30) as freeze:
                assert those.frozen == {1}
            assert freeze.broken is None
        with AgentGroup([url, those.urls[0]]).frozen(hold=30):
            assert those.frozen == {0, 1}
        assert not those.frozen
        for words in (["--agent", url, "--agent", those.urls[0]], ["--agent", f"ssh:hv1?agents=unix:{tmp_path}/?"]):
            refused = run(*words, "freeze")
            assert refused.returncode == 2
            assert "cannot be left frozen" in refused.stderr
            assert "snapshot -- COMMAND" in refused.stderr
        assert not those.frozen
        one = run("--agent", f"ssh:hv1?agents=unix:{tmp_path}/[1]", "freeze")
        assert (one.returncode, those.frozen) == (0, {1}), one.stderr
        assert ssh_of(server) == [], "the program ends after its ssh"


def ssh_of(server: Sshd) -> list[str]:
    """Return the numbers of the processes that are an ssh to that server."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
            if words[:1] == ["ssh"] and f"{server.folder}/config" in words:
                found.append(entry.name)
    return found
