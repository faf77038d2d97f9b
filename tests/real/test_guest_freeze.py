"""The freeze through the QEMU guest agent protocol: its host never waits, and is never told what is not so."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.peer import Talk
from harness.processes import until
from harness.rig import Rig
from harness.stall import Stall

ASKED = 200


class Scene:
    """A file system on a disk that stalls as soon as it is being frozen, and one that is well."""

    def __init__(self, rig: Rig, *options: str) -> None:
        self.rig = rig
        self.stall: Stall = rig.stall("ext4")
        self.well = rig.fs("xfs")
        self.stuck = str(self.stall.fs.path)
        self._flag: Path = rig.area.fresh("stall")
        order = f"{self.stall.disk.path}|{self.stuck}|{self._flag}"
        self.daemon: Daemon = rig.daemon(
            [self.stall.fs, self.well], options, module="harness.stalling", env={"VIRTAGENT_STALL": order}
        )
        self.talks: list[Talk] = []

    def talk(self, timeout: float = 20) -> Talk:
        made = Talk(self.rig.area, str(self.daemon.socket), timeout)
        self.talks.append(made)
        return made

    def hang(self, talk: Talk, **more: Any) -> None:
        """Ask for a freeze that hangs, and wait until it does."""
        self._flag.touch()
        talk.send(json.dumps({"execute": "guest-fsfreeze-freeze", **more}).encode() + b"\n")
        self.daemon.wait_status(
            lambda r: any(m["mountpoint"] == self.stuck and m["state"] == "freezing" for m in r["mounts"])
        )

    def recover(self) -> None:
        self.stall.release()
        self.daemon.wait_state("THAWED")
        self.stall.fs.assert_thawed()
        self.well.assert_thawed()


@pytest.fixture
def scene(rig: Rig) -> Iterator[Scene]:
    made = Scene(rig, "--freeze-limit", "50")
    yield made
    for talk in made.talks:
        talk.close()


def test_all_is_answered_while_a_freeze_hangs_and_no_reply_comes_late(scene: Scene) -> None:
    host, other = scene.talk(), scene.talk()
    scene.hang(host)
    took = []
    for number in range(ASKED):
        for talk in (host, other):
            begun = time.perf_counter()
            assert talk.ask("guest-sync", {"id": number}) == {"return": number}
            assert talk.ask("guest-ping") == {"return": {}}
            took.append((time.perf_counter() - begun) / 2)
    took.sort()
    # Said, not asserted: on a machine under load an answer takes as long as it takes to be scheduled.
    print(f"sync and ping while a freeze hangs: median {took[ASKED] * 1000:.2f} ms, 99th {took[-4] * 1000:.2f} ms")
    record = other.ask("va.fsstatus", {"wait": 0})["return"]
    assert (record["state"], record["phase"]) == ("INPROGRESS", "freeze")
    assert scene.stuck in [m["mountpoint"] for m in record["mounts"] if m["state"] == "freezing"]
    assert other.ask("guest-exec", {"path": "/bin/true"})["error"] == {
        "class": "CommandNotFound",
        "desc": "Command guest-exec has been disabled: the command is not allowed",
    }
    scene.stall.release()
    scene.daemon.wait_state("FROZEN")
    # Whatever had been due would stand before the reply to this.
    assert host.replies_to(b"") == [{"error": {"class": "GenericError", "desc": "JSON parse error, stray '\ufffd'"}}]
    assert host.ask("guest-fsfreeze-status") == {"return": "frozen"}
    assert host.ask("guest-fsfreeze-thaw") == {"return": 2}
    scene.recover()


def test_a_second_freeze_waits_for_the_outcome_of_the_first(scene: Scene) -> None:
    """H9: it is refused as one that comes while all is frozen only if all is frozen."""
    first, second = scene.talk(), scene.talk()
    scene.hang(first)
    second.send(b'{"execute": "guest-fsfreeze-freeze", "id": "waits"}')
    assert second.ask("guest-ping", id="now") == {"return": {}, "id": "now"}
    scene.stall.release()
    assert first.line() == {"return": 2}
    refused = second.line()
    assert (refused["error"]["class"], refused["id"]) == ("CommandNotFound", "waits")
    assert first.ask("guest-fsfreeze-thaw") == {"return": 2}
    scene.recover()


def test_the_status_is_held_until_it_is_true(scene: Scene) -> None:
    freezing, asking, polling = scene.talk(), scene.talk(), scene.talk()
    scene.hang(freezing)
    asking.send(b'{"execute": "guest-fsfreeze-status", "id": "held"}')
    assert asking.ask("guest-ping", id="now") == {"return": {}, "id": "now"}
    seq = polling.ask("va.fsstatus", {"wait": 0})["return"]["seq"]
    scene.stall.release()
    assert asking.line() == {"return": "frozen", "id": "held"}
    assert freezing.line() == {"return": 2}
    assert polling.ask("va.fsstatus", {"since": seq, "wait": 10})["return"]["state"] == "FROZEN"
    assert asking.ask("guest-fsfreeze-thaw") == {"return": 2}
    assert asking.ask("guest-fsfreeze-status") == {"return": "thawed"}


def test_a_thaw_cancels_a_freeze_that_hangs(scene: Scene) -> None:
    freezing, thawing, asking = scene.talk(), scene.talk(), scene.talk()
    scene.hang(freezing)
    thawing.send(b'{"execute": "guest-fsfreeze-thaw"}')
    error = freezing.line()["error"]
    assert error["class"] == "GenericError"
    assert "cancelled" in error["desc"]
    scene.daemon.wait_state("ERROR")
    scene.well.assert_thawed()
    # What the killed worker may still freeze when the disk recovers is not thawed.
    assert asking.ask("guest-fsfreeze-status") == {"return": "frozen"}
    told = thawing.line()["error"]
    assert told["class"] == "GenericError"
    assert scene.stuck in told["desc"]
    scene.recover()
    assert asking.ask("guest-fsfreeze-status") == {"return": "thawed"}
    assert asking.ask("guest-fsfreeze-freeze") == {"return": 2}
    assert asking.ask("guest-fsfreeze-thaw") == {"return": 2}


def test_a_freeze_that_broke_is_told_by_the_next_thaw(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs], ["--guest-hold-limit", "0.2"])
    talk = Talk(rig.area, str(daemon.socket))
    try:
        assert talk.ask("guest-fsfreeze-freeze") == {"return": 1}
        daemon.wait_state("THAWED")
        fs.assert_thawed()
        assert talk.ask("guest-fsfreeze-status") == {"return": "thawed"}
        error = talk.ask("guest-fsfreeze-thaw")["error"]
        assert error["class"] == "GenericError"
        assert "fsfreeze is limited: the hold limit of 0.2 s passed" in error["desc"]
        until(lambda: talk.ask("guest-fsfreeze-thaw") == {"return": 0}, 5, "it is forgotten")
    finally:
        talk.close()


def test_freeze_list_takes_any_mount_point_of_a_file_system(rig: Rig) -> None:
    first, second = rig.fs("ext4"), rig.fs("btrfs")
    alias = first.bind()
    daemon = rig.daemon([first, second])
    talk = Talk(rig.area, str(daemon.socket))
    try:
        assert talk.ask("guest-fsfreeze-freeze-list", {"mountpoints": [str(alias), "/no/such"]}) == {"return": 1}
        second.assert_thawed()
        record = talk.ask("va.fsstatus", {"wait": 0})["return"]
        assert [m["mountpoint"] for m in record["mounts"] if m["state"] == "frozen"] == [str(first.path)]
        assert talk.ask("guest-fsfreeze-thaw") == {"return": 1}
        first.assert_thawed()
    finally:
        talk.close()


def test_our_own_methods_through_this_protocol(rig: Rig) -> None:
    fs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    talk = Talk(rig.area, str(daemon.socket))
    try:
        assert talk.ask("va.ping") == {"return": "dummy"}
        assert talk.ask("system.methodHelp", ["va.ping"])["return"].startswith("Answer")
        [planned] = talk.ask("va.fsplan", {"include": [str(fs.path)]})["return"]["mounts"]
        assert planned["mountpoint"] == str(fs.path)
        assert talk.ask("va.fsfreeze", [{"hold_limit": 30}]) == {"return": 1}
        assert 30 < talk.ask("va.fshold", {"seconds": 40})["return"] <= 40
        assert talk.ask("va.fsfreeze")["error"]["name"] == "WRONG_STATE"
        assert talk.ask("va.fsthaw", []) == {"return": 1}
        assert talk.ask("va.getfile", ["/proc/sys/kernel/ostype"]) == {"return": "TGludXgK"}
    finally:
        talk.close()


def test_shutdown_thaws_first_and_only_a_failure_is_told(rig: Rig) -> None:
    fs = rig.fs("ext4")
    noted = rig.area.fresh("noted")
    program = rig.area.fresh("shutdown")
    program.write_text(f'#!/bin/sh\necho "$@" >> {noted}\n[ "$1" != -H ] || {{ echo no >&2; exit 3; }}\n')
    program.chmod(0o755)
    daemon = rig.daemon([fs], ["--shutdown-command", str(program)])
    talk = Talk(rig.area, str(daemon.socket))
    try:
        assert talk.ask("guest-fsfreeze-freeze") == {"return": 1}
        # Sent past the fence: the program is the test's own.
        talk.send(b'{"execute": "guest-shutdown", "arguments": {"mode": "reboot"}}')
        daemon.wait_status(lambda r: r["state"] == "THAWED" and noted.exists() and not r["workers"])
        fs.assert_thawed()
        assert noted.read_text() == "-r now\n"
        assert talk.ask("guest-ping") == {"return": {}}
        talk.send(b'{"execute": "guest-shutdown", "arguments": {"mode": "halt"}}')
        assert "no" in talk.line()["error"]["desc"]
        talk.send(b'{"execute": "guest-shutdown"}')
        daemon.wait_status(lambda r: noted.read_text().endswith("-P now\n"))
    finally:
        talk.close()
