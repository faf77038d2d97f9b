"""A file system that is slow to freeze, or that someone else has frozen: nobody else stands still because of it."""

from __future__ import annotations

import threading
import xmlrpc.client
from collections.abc import Iterator
from typing import Any

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import KINDS, LoopFs
from harness.hidden import hidden_edge
from harness.rig import Rig
from virtagent.agent.api.errors import Code


class Asking(threading.Thread):
    """A host that waits for the answer to va.fsfreeze."""

    def __init__(self, daemon: Daemon, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._freeze = daemon.proxy(timeout=60).va.fsfreeze
        self._options = options or {}
        self._answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._freeze(self._options)
        except xmlrpc.client.Fault as fault:
            self._answer = fault

    def answer(self) -> Any:
        self.join(30)
        assert not self.is_alive(), "no answer within 30 s"
        return self._answer


def mount_state(record: dict[str, Any], fs: LoopFs) -> str:
    (found,) = [m["state"] for m in record["mounts"] if m["mountpoint"] == str(fs)]
    return str(found)


def wait_mount(daemon: Daemon, state: str, *those: LoopFs) -> dict[str, Any]:
    return daemon.wait_status(lambda r: r["mounts"] and {mount_state(r, fs) for fs in those} == {state})


@pytest.mark.parametrize("kind", KINDS)
def test_a_stalled_disk_makes_no_other_stand_still(rig: Rig, kind: str) -> None:
    stall, well = rig.stall(kind), [rig.fs("ext4"), rig.fs("xfs"), rig.fs("btrfs")]
    flag = rig.area.fresh("stall")
    order = f"{stall.disk.path}|{stall.fs}|{flag}"
    daemon = rig.daemon([stall.fs, *well], module="harness.stalling", env={"VIRTAGENT_STALL": order})
    writers = [rig.writer(fs) for fs in well]
    flag.touch()
    asking = Asking(daemon)
    record = wait_mount(daemon, "thawed", *well)
    assert record["state"] == "INPROGRESS"
    assert record["phase"] == "freeze"
    assert mount_state(record, stall.fs) == "freezing"
    for writer in writers:
        writer.wait_moving()
    for fs in well:
        fs.assert_writable()
    stall.release()
    assert asking.answer() == 4
    for fs in (stall.fs, *well):
        fs.assert_frozen()
    for writer in writers:
        writer.wait_still()
    assert daemon.proxy().va.fsthaw() == 4
    last = daemon.wait_state("THAWED")["last"]
    assert last["outcome"] == "thawed"
    assert last["held_continuously"]
    for fs in (stall.fs, *well):
        fs.assert_thawed()
    assert daemon.proxy().va.fsfreeze() == 4
    assert daemon.proxy().va.fsthaw() == 4


def test_a_stalled_disk_is_given_up_at_the_freeze_limit_with_the_others_running(rig: Rig) -> None:
    stall, well = rig.stall("ext4"), rig.fs("ext4")
    flag = rig.area.fresh("stall")
    order = f"{stall.disk.path}|{stall.fs}|{flag}"
    options = ("--freeze-limit", "2", "--patience", "0.2", "--kill-grace", "0.2")
    daemon = rig.daemon([stall.fs, well], options, module="harness.stalling", env={"VIRTAGENT_STALL": order})
    flag.touch()
    asking = Asking(daemon)
    wait_mount(daemon, "thawed", well)
    fault = asking.answer()
    assert fault.faultCode == Code.OVERRUN
    assert f"while freezing {stall.fs}" in fault.faultString
    well.assert_thawed()
    stall.release()
    daemon.wait_state("THAWED")
    stall.fs.assert_thawed()


def test_what_someone_else_has_frozen_for_a_moment_is_frozen_after_that(rig: Rig) -> None:
    busy, other = rig.fs("ext4"), rig.fs("ext4")
    daemon = rig.daemon([busy, other])
    assert busy.freeze() == "ok"
    asking = Asking(daemon)
    wait_mount(daemon, "frozen", other)
    assert busy.thaw() == "ok", "nobody else has thawed it"
    assert asking.answer() == 2
    busy.assert_frozen()
    assert daemon.proxy().va.fsthaw() == 2


@pytest.mark.parametrize("partial", [False, True])
def test_what_stays_frozen_by_someone_else_is_never_thawed(rig: Rig, partial: bool) -> None:
    busy, other = rig.fs("ext4"), rig.fs("ext4")
    daemon = rig.daemon([busy, other], ["--patience", "0.2"])
    writer = rig.writer(other)
    assert busy.freeze() == "ok"
    asking = Asking(daemon, {"partial": partial})
    assert wait_mount(daemon, "thawed", other)["state"] == "INPROGRESS"
    writer.wait_moving()
    answer = asking.answer()
    if partial:
        assert answer == 1
        other.assert_frozen()
        assert [m["reason"] for m in daemon.status()["mounts"] if m["mountpoint"] == str(busy)] == ["busy"]
        assert daemon.proxy().va.fsthaw() == 1
    else:
        assert answer.faultCode == Code.FREEZE_FAILED
        assert f"{busy}: frozen by someone else" in answer.faultString
    daemon.wait_state("THAWED")
    other.assert_thawed()
    assert busy.thaw() == "ok", "it is still frozen"


def test_a_cancel_while_someone_else_has_it_frozen_leaves_it_so(rig: Rig) -> None:
    busy, other = rig.fs("ext4"), rig.fs("ext4")
    daemon = rig.daemon([busy, other])
    assert busy.freeze() == "ok"
    asking = Asking(daemon)
    wait_mount(daemon, "busy", busy)
    daemon.proxy().va.fsthaw()
    assert asking.answer().faultCode == Code.FREEZE_FAILED
    daemon.wait_state("THAWED")
    assert busy.thaw() == "ok", "it is still frozen"


@pytest.fixture
def served(rig: Rig) -> Iterator[tuple[LoopFs, LoopFs]]:
    with hidden_edge(rig) as both:
        yield both


def learn(daemon: Daemon, inner: LoopFs, *held: LoopFs) -> dict[str, Any]:
    """Freeze and thaw until something is learnt of `inner`; return that."""
    host = daemon.proxy()
    while True:  # it may be frozen just before what it lies on is
        inner.fill(1 << 20)
        count = host.va.fsfreeze()
        for fs in (inner, *held):
            fs.assert_frozen()
        assert host.va.fsthaw() == count
        if learnt := daemon.wait_state("THAWED")["last"]["learnt"]:
            (edge,) = learnt
            return dict(edge)


def notes_on(daemon: Daemon, fs: LoopFs) -> list[str]:
    """Return what the plan says was learnt of a file system."""
    notes = daemon.proxy().va.fsplan()["notes"]
    return [note for note in notes if note.startswith(f"{fs} lies on one of: ") and note.endswith("(learnt)")]


def test_what_a_file_system_lies_on_is_learnt(rig: Rig, served: tuple[LoopFs, LoopFs]) -> None:
    inner, outer = served
    other = rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere], ["--patience", "0.3"])
    host = daemon.proxy()
    edge = learn(daemon, inner, outer, other)
    assert edge["mountpoint"] == str(inner)
    assert str(outer) in edge["hosts"]
    (note,) = notes_on(daemon, inner)
    assert str(outer) in note
    writer = rig.writer(other)
    writer.wait_moving()
    writer.reset()
    assert host.va.fsfreeze() == 3
    assert host.va.fsthaw() == 3
    assert daemon.wait_state("THAWED")["last"]["learnt"] == [], "in order from the beginning"


def test_what_was_learnt_goes_with_the_superblock(rig: Rig, served: tuple[LoopFs, LoopFs]) -> None:
    inner, _ = served
    daemon = rig.daemon([rig.everywhere], ["--patience", "0.3"])
    learn(daemon, inner)
    assert notes_on(daemon, inner)
    alias = inner.bind()
    linux.umount(str(inner))
    inner.path = alias
    inner.aliases.clear()
    assert notes_on(daemon, inner), "it is the same superblock, mounted elsewhere"
    number = inner.number
    inner.unmount()
    assert notes_on(daemon, inner) == []
    inner.mount()
    assert inner.number == number, "another superblock of the same number"
    assert notes_on(daemon, inner) == []
