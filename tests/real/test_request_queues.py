"""A shorter request queue while syncing, on real disks: whoever dies in the sync, afterwards it is what it was."""

from __future__ import annotations

import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.filesystems import LoopFs
from harness.hosts import call
from harness.processes import kill, until
from harness.rig import Rig
from harness.stall import Stall

OPTIONS = ("--sync-requests", "8", "--kill-grace", "0.3")
BEFORE = 64  # not what every disk has


def queue(fs: LoopFs) -> Path:
    return Path("/sys/block", Path(fs.device).name, "queue", "nr_requests")


def requests(fs: LoopFs) -> int:
    return int(queue(fs).read_text())


class Scene:
    """A file system whose disk hangs in the sync, beside one that is well."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stall: Stall = rig.stall("ext4")
        self.well = rig.fs("ext4")
        self.every = [self.stall.fs, self.well]
        for fs in self.every:
            queue(fs).write_text(str(BEFORE))
        self.daemon = rig.daemon(self.every, OPTIONS)
        self.record = self.daemon.state_dir / "queues" / "nr_requests"
        self._asking: list[threading.Thread] = []

    def sync(self, method: str) -> None:
        """Begin, and wait until a disk hangs and the queues are short."""
        self.stall.stall()
        asking = threading.Thread(target=call, args=(self.daemon, method))
        self._asking.append(asking)
        asking.start()
        until(lambda: self.short() and bool(self._syncing()), 20, "a short queue")

    def short(self) -> bool:
        """Return whether the queue of the disk that is well is short: to read that of the other may hang."""
        return requests(self.well) == 8 and self.record.exists()

    def worker(self) -> int:
        (found,) = self._syncing()
        return found

    def _syncing(self) -> list[int]:
        titles = self.daemon.titles().items()
        return [pid for pid, title in titles if title.startswith("virtagentd: worker") and "[syncing" in title]

    def put_back(self) -> None:
        """Release the disk, and wait until nothing is left of it."""
        self.stall.release()
        until(lambda: not self.record.exists(), 20, "no record")
        assert [requests(fs) for fs in self.every] == [BEFORE, BEFORE]

    def end(self) -> None:
        self.stall.release()
        for asking in self._asking:
            asking.join(30)


@pytest.fixture
def scene(rig: Rig) -> Iterator[Scene]:
    made = Scene(rig)
    yield made
    made.end()


def test_the_queue_is_short_while_syncing_alone(scene: Scene) -> None:
    scene.sync("va.fsfreeze")
    scene.stall.release()
    scene.daemon.wait_state("FROZEN")
    assert [requests(fs) for fs in scene.every] == [BEFORE, BEFORE]
    assert not scene.record.exists()
    assert scene.daemon.proxy().va.fsthaw() == 2


@pytest.mark.parametrize("method", ["va.fsfreeze", "va.fssync"])
def test_the_worker_dies(scene: Scene, method: str) -> None:
    scene.sync(method)
    kill(scene.worker())
    assert scene.short(), "it is in the kernel still, and has the record"
    scene.put_back()
    until(lambda: "nr_requests was put back" in scene.daemon.log(), 10, "that is in the log")


def test_a_sync_that_overruns_says_where(scene: Scene) -> None:
    scene.stall.stall()
    with pytest.raises(xmlrpc.client.Fault, match=f"while syncing {scene.stall.fs.path}; nothing was frozen"):
        scene.daemon.proxy().va.fssync({"sync_limit": 1})
    scene.put_back()


def test_the_supervisor_dies(scene: Scene) -> None:
    scene.sync("va.fsfreeze")
    scene.daemon.kill()
    scene.put_back()
    scene.daemon.wait_orphans()


@pytest.mark.parametrize(("method", "options"), [("va.fsfreeze", ()), ("va.fssync", ("--recover",))])
def test_both_die_and_the_next_start_puts_it_back(scene: Scene, method: str, options: tuple[str, ...]) -> None:
    scene.sync(method)
    kill(scene.worker())  # first, since one that sees that it is alone puts back
    scene.daemon.kill()
    scene.stall.release()
    scene.daemon.wait_orphans()
    assert scene.short()
    again = scene.rig.daemon(scene.every, options, state_dir=scene.daemon.state_dir, wait_ready=not options)
    if options:
        assert again.process.wait(20) == 0
        assert not scene.record.exists(), "it waits until that is done"
    scene.put_back()


def test_an_agent_that_is_stopped_puts_it_back_first(scene: Scene) -> None:
    scene.sync("va.fssync")
    kill(scene.worker())
    scene.stall.release()
    assert scene.daemon.stop() == 0
    assert not scene.record.exists()
    scene.put_back()


def test_what_somebody_else_has_set_meanwhile_stays(scene: Scene) -> None:
    scene.sync("va.fssync")
    queue(scene.well).write_text("32")
    scene.stall.release()
    until(lambda: not scene.record.exists(), 20, "no record")
    assert [requests(fs) for fs in scene.every] == [BEFORE, 32]
    assert "someone else has set it to 32" in scene.daemon.log()
