"""guest-exec and guest-file-* through a real daemon: programs that misbehave, files on a disk that stalls."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemon import Daemon
from harness.peer import Talk
from harness.processes import process_state, until, wait_gone
from harness.rig import Rig

MIB = 1 << 20


@pytest.fixture
def daemon(rig: Rig) -> Daemon:
    return rig.daemon([rig.fs("ext4")], ["--exec-limit", "0"])


@pytest.fixture
def talk(rig: Rig, daemon: Daemon) -> Iterator[Talk]:
    made = Talk(rig.area, str(daemon.socket))
    yield made
    made.close()


def start(talk: Talk, *command: str, **more: Any) -> int:
    arguments = {"path": command[0], "arg": list(command[1:]), **{k.replace("_", "-"): v for k, v in more.items()}}
    reply = talk.ask("guest-exec", arguments)
    return int(reply["return"]["pid"])


def ended(talk: Talk, pid: int) -> dict[str, Any]:
    """Ask until the program has exited, and return the record, which is given once."""
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(talk.ask("guest-exec-status", {"pid": pid})["return"])
        return bool(found["exited"])

    until(over, 30, f"the end of {pid}")
    assert talk.ask("guest-exec-status", {"pid": pid})["error"]["desc"] == "Invalid parameter 'pid'"
    return found


def test_a_hundred_mebibytes_of_output_cost_bounded_memory(daemon: Daemon, talk: Talk) -> None:
    talk.ask("guest-ping")
    supervisor = psutil.Process(daemon.pid)
    before = supervisor.memory_info().rss
    pid = start(talk, "head", "-c", str(100 * MIB), "/dev/zero", capture_output=True)
    highest = 0

    def over() -> bool:
        nonlocal highest
        for child in daemon.children():
            try:
                highest = max(highest, child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        return not process_state(pid)

    until(over, 30, "the end of the program")
    record = ended(talk, pid)
    assert record["exitcode"] == 0
    assert record["out-truncated"] is True
    assert base64.b64decode(record["out-data"]) == b"\0" * (16 * MIB)
    assert highest < 100 * MIB
    assert supervisor.memory_info().rss - before < 80 * MIB
    assert wait_gone([child.pid for child in daemon.children()], 5) == []


def test_a_program_that_never_ends_and_ignores_sigterm_is_ended_at_its_limit(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")], ["--exec-limit", "0.3"], module="harness.hasty")
    talk = Talk(rig.area, str(daemon.socket))
    try:
        gentle = start(talk, "sleep", "1000")
        stubborn = start(talk, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done", capture_output=True)
        assert ended(talk, gentle)["signal"] == 15
        record = ended(talk, stubborn)
        assert record["signal"] == 9
        assert base64.b64decode(record["out-data"]) == b"ready\n"
        assert [process_state(pid) for pid in (gentle, stubborn)] == ["", ""]
        until(lambda: not psutil.Process(daemon.pid).children(), 10, "that no worker is left, not even a zombie")
    finally:
        talk.close()


def test_a_program_goes_with_its_worker_and_the_host_is_told(daemon: Daemon, talk: Talk) -> None:
    pid = start(talk, "sleep", "1000")
    worker = psutil.Process(psutil.Process(pid).ppid())
    assert f"{pid}" in " ".join(worker.cmdline())
    worker.kill()
    assert wait_gone([worker.pid, pid], 10) == []

    def lost() -> bool:
        return "error" in talk.ask("guest-exec-status", {"pid": pid})

    until(lost, 10, "that the status of a lost program is refused")


def test_arguments_are_no_shell_text_and_input_and_environment_arrive(talk: Talk) -> None:
    data = os.urandom(3 * MIB)
    pid = start(talk, "cat", input_data=base64.b64encode(data[: 1 << 20]).decode(), capture_output="stdout")
    assert base64.b64decode(ended(talk, pid)["out-data"]) == data[: 1 << 20]
    pid = start(talk, "printf", "%s|", "$(id)", "a b", ";", capture_output="separated")
    assert base64.b64decode(ended(talk, pid)["out-data"]) == b"$(id)|a b|;|"
    pid = start(talk, "/usr/bin/env", env=["ONE=1"], capture_output="stdout")
    assert base64.b64decode(ended(talk, pid)["out-data"]) == b"ONE=1\n"
    pid = start(talk, "sh", "-c", "echo a; echo b >&2; echo c", capture_output="merged")
    assert base64.b64decode(ended(talk, pid)["out-data"]) == b"a\nb\nc\n"


def test_a_program_that_runs_when_the_freeze_begins_is_asked_about_while_frozen(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    talk = Talk(rig.area, str(daemon.socket))
    try:
        pid = start(talk, "sh", "-c", f"read line; echo done > {fs.path}/x", input_data="")
        assert ended(talk, pid)["exited"]
        pid = start(talk, "sleep", "1000")
        assert talk.ask("guest-fsfreeze-freeze") == {"return": 1}
        assert talk.ask("guest-exec-status", {"pid": pid}) == {"return": {"exited": False}}
        assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
        os.kill(pid, 9)
        assert ended(talk, pid)["signal"] == 9
    finally:
        talk.close()


def test_a_large_file_is_written_and_read_as_it_is(rig: Rig, daemon: Daemon, talk: Talk) -> None:
    fs = rig.filesystems[0]
    data = os.urandom(24 * MIB)
    handle = talk.ask("guest-file-open", {"path": f"{fs.path}/big", "mode": "w+"})["return"]
    assert handle == 1000
    for at in range(0, len(data), 12 * MIB):
        piece = base64.b64encode(data[at : at + 12 * MIB]).decode()
        assert talk.ask("guest-file-write", {"handle": handle, "buf-b64": piece})["return"]["count"] == 12 * MIB
    assert talk.ask("guest-file-flush", {"handle": handle}) == {"return": {}}
    assert talk.ask("guest-file-seek", {"handle": handle, "offset": 0, "whence": "set"})["return"]["position"] == 0
    read = talk.ask("guest-file-read", {"handle": handle, "count": 24 * MIB})["return"]
    assert hashlib.sha256(base64.b64decode(read["buf-b64"])).digest() == hashlib.sha256(data).digest()
    assert Path(fs.path, "big").read_bytes() == data
    assert talk.ask("guest-file-close", {"handle": handle}) == {"return": {}}
    assert wait_gone([child.pid for child in daemon.children()], 5) == []


def test_numbers_of_files_go_on_over_a_restart(rig: Rig) -> None:
    fs = rig.fs("ext4")
    first = rig.daemon([fs])
    talk = Talk(rig.area, str(first.socket))
    assert talk.ask("guest-file-open", {"path": f"{fs.path}/a", "mode": "w"}) == {"return": 1000}
    talk.close()
    first.stop()
    second = rig.daemon([fs], state_dir=first.state_dir)
    talk = Talk(rig.area, str(second.socket))
    assert "error" in talk.ask("guest-file-close", {"handle": 1000})
    assert talk.ask("guest-file-open", {"path": f"{fs.path}/a"}) == {"return": 1001}
    talk.close()


def test_a_file_on_a_stalled_disk_hurts_no_other(rig: Rig) -> None:
    stall, well = rig.stall("ext4"), rig.fs("ext4")
    daemon = rig.daemon([well])
    one, two = Talk(rig.area, str(daemon.socket)), Talk(rig.area, str(daemon.socket))
    try:
        stuck = one.ask("guest-file-open", {"path": f"{stall.fs.path}/f", "mode": "w"})["return"]
        fine = two.ask("guest-file-open", {"path": f"{well.path}/f", "mode": "w"})["return"]
        stall.fs.freeze()  # as a disk on which a write does not return
        one.send(b'{"execute":"guest-file-write","arguments":{"handle":%d,"buf-b64":"eA=="}}' % stuck)
        daemon.wait_status(lambda r: [w for w in r["workers"] if w["process_state"] == "disk-sleep"] or r["seq"] > 0)
        assert two.ask("guest-file-write", {"handle": fine, "buf-b64": "eA=="})["return"]["count"] == 1
        assert two.ask("guest-ping") == {"return": {}}
        stall.fs.thaw()
        assert one.line()["return"]["count"] == 1
    finally:
        stall.fs.thaw()
        one.close()
        two.close()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_programs_end_with_the_agent_and_what_they_started_too(rig: Rig, how: str) -> None:
    daemon = rig.daemon([rig.fs("ext4")])
    talk = Talk(rig.area, str(daemon.socket))
    pid = start(talk, "sh", "-c", "sleep 1000 & echo $!; wait", capture_output=True)
    [child] = await_children(pid)
    talk.close()
    getattr(daemon, how)()
    assert wait_gone([pid, child], 10) == []
    daemon.wait_orphans()


def await_children(pid: int) -> list[int]:
    found: list[int] = []

    def there() -> bool:
        found[:] = [child.pid for child in psutil.Process(pid).children()]
        return bool(found)

    until(there, 10, f"a child of {pid}")
    return found


def test_a_program_is_told_nothing_that_is_the_agents_own(rig: Rig) -> None:
    daemon = rig.daemon([rig.fs("ext4")], env={"WATCHDOG_USEC": "9000000", "LISTEN_FDS": "3"})
    talk = Talk(rig.area, str(daemon.socket))
    try:
        pid = start(talk, "/usr/bin/env", capture_output=True)
        printed = base64.b64decode(ended(talk, pid)["out-data"]).decode()
        assert "PATH=" in printed
        assert not [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS") if f"{name}=" in printed]
    finally:
        talk.close()
