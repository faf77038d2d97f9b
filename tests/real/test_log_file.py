"""A log on a disk that the daemon itself freezes: only the log writer waits, and every line is there afterwards."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from harness.daemon import Daemon
from harness.processes import kill, process_state, until
from harness.rig import Rig


def writer_of(daemon: Daemon) -> int:
    found = [pid for pid, title in daemon.titles().items() if "log writer [" in title]
    return found[0] if found else 0


def logged(log: Path, text: str, times: int = 1) -> None:
    until(lambda: log.exists() and log.read_text().count(text) >= times, 10, text)


def start(rig: Rig, log: Path, *options: str) -> Daemon:
    return rig.daemon([rig.everywhere], ["--log-target", f"file:{log}", *options])


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_log_on_a_file_system_that_is_frozen(rig: Rig, kind: str) -> None:
    log = Path(str(rig.fs(kind))) / "virtagentd.log"
    daemon = start(rig, log, "--log-level", "debug")
    host = daemon.proxy()
    writer = writer_of(daemon)
    for _ in range(3):
        assert host.va.fsfreeze() == 1
        until(lambda: process_state(writer) == "D", 10, "the writer waits for the disk")
        for _ in range(200):
            assert host.va.ping() == "dummy"
        assert process_state(writer) == "D"
        assert host.va.fsthaw() == 1
    logged(log, "-> THAWED", 3)
    logged(log, 'method="va.fsthaw"', 3)
    assert daemon.stop() == 0
    text = log.read_text()
    assert re.findall(r"(\w+) -> (\w+):", text) == 3 * [
        ("THAWED", "INPROGRESS"),
        ("INPROGRESS", "FROZEN"),
        ("FROZEN", "THAWINPROGRESS"),
        ("THAWINPROGRESS", "THAWED"),
    ]
    called = re.findall(r"audit: time=(\S+) .* method=\"va.(\w+)\"", text)
    assert [name for _, name in called] == 3 * ["fsfreeze", *200 * ["ping"], "fsthaw"]
    assert called == sorted(called, key=lambda one: one[0])
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in text.splitlines())
    assert daemon.log() == ""


def test_a_log_larger_than_the_pipe_while_frozen(rig: Rig) -> None:
    """What the pipe to the writer does not take waits in the supervisor."""
    log = Path(str(rig.fs("ext4"))) / "log"
    daemon = start(rig, log)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    until(lambda: process_state(writer_of(daemon)) == "D", 10, "the writer waits for the disk")
    for number in range(300):
        daemon.process.send_signal(signal.SIGUSR1)  # a status record is a long line
        assert host.va.fshold(60 + number % 2) > 50
    assert host.va.fsthaw() == 1
    logged(log, 'method="va.fsthaw"')
    assert log.read_text().count('method="va.fshold"') == 300


def test_a_writer_that_is_killed_is_followed_by_another(rig: Rig) -> None:
    rig.fs("ext4")
    log = rig.area.fresh("log")
    daemon = start(rig, log)
    host = daemon.proxy()
    assert host.va.ping() == "dummy"
    logged(log, 'method="va.ping"')
    first = writer_of(daemon)
    kill(first)
    assert host.va.hello() == "dummy"
    logged(log, "the log writer was killed by signal 9")
    logged(log, 'method="va.hello"')
    assert writer_of(daemon) not in (0, first)
    assert daemon.stop() == 0


def test_signals_to_the_group_do_not_end_the_writer(rig: Rig) -> None:
    rig.fs("ext4")
    log = rig.area.fresh("log")
    daemon = start(rig, log)
    writer = writer_of(daemon)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(writer, number)
    os.killpg(daemon.pid, signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    until(lambda: process_state(writer) in ("", "Z"), 5, "the writer ends when the supervisor has")
    assert "version" in log.read_text()


def test_the_writer_ends_with_a_supervisor_that_is_killed(rig: Rig) -> None:
    rig.fs("ext4")
    daemon = start(rig, rig.area.fresh("log"))
    daemon.kill()
    daemon.wait_orphans()


def test_a_rotated_log_and_one_that_cannot_be_written(rig: Rig) -> None:
    rig.fs("ext4")
    folder = rig.area.fresh("logs")
    log = folder / "log"
    daemon = start(rig, log)
    host = daemon.proxy()
    until(lambda: "No such file or directory" in daemon.log(), 5, "a word on stderr")
    folder.mkdir()
    assert host.va.ping() == "dummy"
    logged(log, 'method="va.ping"')
    assert re.search(r"log: \d+ lines were lost: No such file or directory\n", log.read_text())
    log.rename(folder / "log.1")
    assert host.va.hello() == "dummy"
    logged(log, 'method="va.hello"')
    assert 'method="va.ping"' not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
