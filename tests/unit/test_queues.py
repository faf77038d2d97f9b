"""The request queues of disks while they are synced: on record before they change, and put back by whoever is left."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker import queues
from virtagent.agent.worker.queues import NAME, Queues, put_back, shortened
from virtagent.agent.worker.writers.latch import Latch

LONG = 20.0  # seconds; what must come comes, on a slow machine, too


class Worker:
    """What a worker may use; its supervisor lives."""

    supervisor = os.getppid()

    def title(self, text: str) -> None:
        """Nobody looks."""


class Disks:
    """A sysfs with three disks, and the folder of the record. `written` is what was written to which, in order."""

    def __init__(self, folder: Path) -> None:
        self.block, self.records = folder / "block", str(folder / "queues")
        self.written: list[tuple[str, int]] = []
        for disk, number in (("sda", 128), ("sdb", 64), ("sdc", 4)):
            (self.block / disk / "queue").mkdir(parents=True)
            self.set(disk, number)
        (self.block / "sda" / "sda1").mkdir()
        (self.block / "sda" / "sda1" / "partition").write_text("1\n")
        (self.block / "sda1").symlink_to("sda/sda1")

    def set(self, disk: str, number: int) -> None:
        (self.block / disk / "queue" / NAME).write_text(f"{number}\n")

    def has(self, disk: str) -> int:
        return int((self.block / disk / "queue" / NAME).read_text() or "-1")  # read between truncation and write

    @property
    def record(self) -> Any:
        path = Path(self.records, NAME)
        return json.loads(path.read_text()) if path.exists() else None

    def left(self, **record: list[int]) -> None:
        """Leave a record, as a worker does that died."""
        latch = Latch(self.records, NAME)
        latch.write(record)
        latch.unlock()

    def shorten(self, *names: str, number: int = 8) -> Queues:
        made = shortened(self.records, names, number)
        assert made is not None
        return made


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    made = Disks(tmp_path)
    monkeypatch.setattr(queues, "BLOCK", str(made.block))
    monkeypatch.setattr(queues, "SHORTENS", LONG)
    write = queues._write

    def noted(disk: str, number: int) -> None:
        assert disk in (made.record or ()), "written before it was on record"
        made.written.append((disk, number))
        write(disk, number)

    monkeypatch.setattr(queues, "_write", noted)
    return made


class Stuck:
    """One of the two calls does not return for one disk, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, disk: str) -> None:
        self.begun, self._free = threading.Event(), threading.Event()
        real = getattr(queues, call)

        def hang(which: str, *rest: int) -> Any:
            if which == disk and not self._free.is_set():
                self.begun.set()
                assert self._free.wait(LONG)
            return real(which, *rest)

        monkeypatch.setattr(queues, call, hang)

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Stuck]]:
    made: list[Stuck] = []

    def make(call: str, disk: str) -> Stuck:
        made.append(Stuck(monkeypatch, call, disk))
        return made[-1]

    yield make
    for one in made:
        one.let_go()


def unlocked(disks: Disks) -> bool:
    try:
        Latch(disks.records, NAME, wait=False).unlock()
    except BlockingIOError:
        return False
    return True


def until(true: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if true():
            return
        ended.wait(0.01)
    raise AssertionError("it did not come")


# As it should be


def test_the_disks_are_shortened_while_it_lasts(disks: Disks, capsys: pytest.CaptureFixture[str]) -> None:
    made = disks.shorten("sda", "sdb", "sdc")
    assert (disks.has("sda"), disks.has("sdb"), disks.has("sdc")) == (8, 8, 4), "never longer than before"
    assert disks.record == {"sda": [128, 8], "sdb": [64, 8]}
    assert not unlocked(disks)
    assert made.put_back(LONG) == []
    assert (disks.has("sda"), disks.has("sdb"), disks.has("sdc")) == (128, 64, 4)
    assert disks.record is None
    assert unlocked(disks), "nothing is held while the guest is frozen"
    assert capsys.readouterr().err == ""


def test_a_partition_counts_as_its_disk_which_is_shortened_once(disks: Disks) -> None:
    made = disks.shorten("sda1", "sda")
    assert disks.record == {"sda": [128, 8]}
    made.put_back(LONG)
    assert disks.written == [("sda", 8), ("sda", 128)]


def test_what_is_made_of_disks_counts_as_these(disks: Disks) -> None:
    for name, below in (("md0", ("sda1", "dm-0")), ("dm-0", ("sdb",))):
        (disks.block / name / "queue").mkdir(parents=True)
        disks.set(name, 128)
        for one in below:
            (disks.block / name / "slaves" / one).mkdir(parents=True)
    made = disks.shorten("md0", "sdc")
    assert disks.record == {"sda": [128, 8], "sdb": [64, 8]}
    made.put_back(LONG)
    assert disks.has("md0") == disks.has("dm-0") == 128


def test_a_slash_in_the_name_of_a_disk_is_an_exclamation_mark_in_sysfs(disks: Disks) -> None:
    os.rename(disks.block / "sdb", disks.block / "cciss!c0d0")
    disks.shorten("cciss/c0d0").put_back(LONG)
    assert disks.written == [("cciss!c0d0", 8), ("cciss!c0d0", 64)]


@pytest.mark.parametrize(
    "prepare", [lambda d: os.unlink(d), lambda d: d.write_text("none\n")], ids=["none", "no number"]
)
def test_a_disk_without_a_request_queue_is_left_out(
    disks: Disks, capsys: pytest.CaptureFixture[str], prepare: Callable[[Path], object]
) -> None:
    prepare(disks.block / "sda" / "queue" / NAME)
    made = disks.shorten("sda", "sdb")
    assert disks.has("sdb") == 8
    assert disks.record == {"sdb": [64, 8]}
    assert made.put_back(LONG) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "sda/queue/nr_requests stays as it is: " in line


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EROFS, errno.EIO, errno.EBUSY, errno.ENODEV])
@pytest.mark.parametrize("call", ["_read", "_write"])
def test_a_disk_that_refuses_is_left_out(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str, number: int
) -> None:
    real, refused = getattr(queues, call), []

    def refuse(disk: str, *rest: int) -> Any:
        if disk == "sda" and not refused:
            refused.append(disk)
            raise OSError(number, os.strerror(number))
        return real(disk, *rest)

    monkeypatch.setattr(queues, call, refuse)
    made = disks.shorten("sda", "sdb")
    assert (disks.has("sda"), disks.has("sdb")) == (128, 8)
    assert disks.record == {"sdb": [64, 8]}
    assert made.put_back(LONG) == []
    assert f"stays as it is: {os.strerror(number)}" in capsys.readouterr().err


# What somebody else does


def test_what_somebody_else_has_set_meanwhile_stays(disks: Disks, capsys: pytest.CaptureFixture[str]) -> None:
    made = disks.shorten("sda", "sdb")
    disks.set("sda", 32)
    assert made.put_back(LONG) == []
    assert (disks.has("sda"), disks.has("sdb")) == (32, 64)
    assert disks.record is None
    assert "sda/queue/nr_requests stays as it is: someone else has set it to 32" in capsys.readouterr().err


def test_a_disk_that_is_gone_needs_nothing(disks: Disks, capsys: pytest.CaptureFixture[str]) -> None:
    made = disks.shorten("sda")
    os.unlink(disks.block / "sda" / "queue" / NAME)
    assert made.put_back(LONG) == []
    assert disks.record is None
    assert capsys.readouterr().err == ""


def test_who_has_the_record_is_alone_with_it(disks: Disks, capsys: pytest.CaptureFixture[str]) -> None:
    made = disks.shorten("sda")
    assert shortened(disks.records, ("sdb",), 8) is None
    assert "another worker" in capsys.readouterr().err
    with pytest.raises(Fault, match="lives") as refused:
        put_back(Worker(), {"folder": disks.records})  # type: ignore[arg-type]
    assert refused.value.code is Code.BUSY
    assert disks.has("sdb") == 64
    made.put_back(LONG)
    assert disks.has("sda") == 128


# The record


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS])
def test_what_cannot_be_put_on_record_is_not_changed(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Latch, "write", fail)
        made = disks.shorten("sda")
        assert made.put_back(LONG) == []
    assert disks.written == []
    with monkeypatch.context() as patched:
        patched.setattr(
            queues.os if number == errno.EIO else Latch, "makedirs" if number == errno.EIO else "_read", fail
        )
        assert shortened(disks.records, ("sda",), 8) is None
    assert disks.written == []
    assert capsys.readouterr().err.count(os.strerror(number)) == 2
    assert unlocked(disks)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"sda": 8}', '{"sda": [128]}', '{"../sda": [128, 8]}', '{"sda": ["1", 8]}']
)
def test_a_record_that_is_none_stops_nobody_for_long(
    disks: Disks, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    os.makedirs(disks.records)
    Path(disks.records, NAME).write_text(text)
    assert shortened(disks.records, ("sda",), 8) is None
    assert "cannot be put on record" in capsys.readouterr().err
    with pytest.raises(Fault, match=queues.BAD):
        put_back(Worker(), {"folder": disks.records})  # type: ignore[arg-type]
    assert not queues.left(disks.records)
    assert unlocked(disks)
    assert put_back(Worker(), {"folder": disks.records}) == ""  # type: ignore[arg-type]


# Who is left


def test_what_a_dead_worker_left_is_put_back_by_another(disks: Disks) -> None:
    disks.left(sda=[128, 8], sdb=[64, 8], sdc=[128, 8])
    for disk, number in (("sda", 8), ("sdb", 64), ("sdc", 16)):
        disks.set(disk, number)
    done = put_back(Worker(), {"folder": disks.records})  # type: ignore[arg-type]
    assert (disks.has("sda"), disks.has("sdb"), disks.has("sdc")) == (128, 64, 16)
    assert done.startswith("nr_requests was put back: sda 128; ")
    assert "someone else has set it to 16" in done
    assert "sdb" not in done, "it was not shortened yet when the worker died"
    assert not queues.left(disks.records)
    assert unlocked(disks)


def test_who_comes_late_and_alone_to_the_record_leaves_it(disks: Disks) -> None:
    disks.left(sda=[128, 8])
    disks.set("sda", 8)
    orphan = Worker()
    orphan.supervisor = 0
    with pytest.raises(Fault, match="its next start"):
        put_back(orphan, {"folder": disks.records})  # type: ignore[arg-type]
    assert disks.has("sda") == 8


def test_the_next_worker_puts_back_what_it_does_not_shorten_itself(disks: Disks) -> None:
    disks.left(sda=[128, 8], sdb=[64, 8])
    disks.set("sda", 8)
    disks.set("sdb", 8)
    made = disks.shorten("sda", number=16)
    until(lambda: disks.has("sdb") == 64)
    assert made.put_back(LONG) == []
    assert (disks.has("sda"), disks.has("sdb")) == (128, 64), "what it was before the first worker"
    assert disks.record is None


def test_the_next_worker_remembers_what_was_before_the_first(disks: Disks) -> None:
    disks.left(sda=[128, 8])
    disks.set("sda", 8)
    made = disks.shorten("sda", number=4)
    assert disks.record == {"sda": [128, 4]}
    made.put_back(LONG)
    assert disks.has("sda") == 128


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.EINVAL, errno.EMFILE])
def test_what_cannot_be_put_back_stays_on_record(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    made = disks.shorten("sda", "sdb")
    with monkeypatch.context() as patched:
        patched.setattr(queues, "_write", fail)
        assert made.put_back(LONG) == ["sda", "sdb"]
    assert "128 could not be put back" in capsys.readouterr().err
    made._latch.unlock()  # it ends
    with monkeypatch.context() as patched:
        patched.setattr(queues, "_read", fail)
        with pytest.raises(Fault, match="of sda, sdb are still short") as refused:
            put_back(Worker(), {"folder": disks.records})  # type: ignore[arg-type]
    assert refused.value.code is Code.FAILED
    assert disks.record == {"sda": [128, 8], "sdb": [64, 8]}


def test_a_record_that_cannot_be_removed_is_no_success(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one the supervisor looks at once, finds the record, and would have it put back again and again."""

    def fail(_: Latch) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    disks.left(sda=[128, 8])
    monkeypatch.setattr(Latch, "clear", fail)
    for _ in range(2):
        with pytest.raises(Fault, match="the record of request queues: Read-only") as refused:
            put_back(Worker(), {"folder": disks.records})  # type: ignore[arg-type]
        assert refused.value.code is Code.FAILED
        assert disks.has("sda") == 128


def test_what_could_not_be_put_back_is_not_waited_for(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.left(sdb=[64, 8])
    disks.set("sdb", 8)
    refused = threading.Event()
    write = queues._write

    def refuse(disk: str, number: int) -> None:
        if disk == "sdb":
            refused.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(disk, number)

    monkeypatch.setattr(queues, "_write", refuse)
    made = disks.shorten("sda")
    assert refused.wait(LONG)
    assert made.put_back(10 * LONG) == ["sdb"], "the time limit of the test says the rest"
    assert disks.record == {"sdb": [64, 8]}


# Disks that hang


def test_a_disk_that_hangs_while_it_is_shortened_is_waited_for_no_longer(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[str, str], Stuck]
) -> None:
    monkeypatch.setattr(queues, "SHORTENS", 0.05)
    hung = stuck("_write", "sda")
    made = disks.shorten("sda", "sdb")
    until(lambda: disks.has("sdb") == 8)
    assert made.put_back(0.05) == ["sda"]
    until(lambda: disks.has("sdb") == 64)
    assert disks.record == {"sda": [128, 8]}
    assert not unlocked(disks), "nobody may put it back before that write is done"
    hung.let_go()
    until(lambda: disks.record is None)
    assert disks.has("sda") == 128
    until(lambda: unlocked(disks))


def test_a_disk_that_was_looked_at_too_late_is_not_shortened(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[str, str], Stuck]
) -> None:
    monkeypatch.setattr(queues, "SHORTENS", 0.05)
    hung = stuck("_read", "sda")
    made = disks.shorten("sda")
    assert hung.begun.wait(LONG)
    made.put_back(0.05)
    hung.let_go()
    until(lambda: unlocked(disks))
    until(lambda: not made._busy)
    assert disks.written == []


def test_a_disk_that_hangs_while_it_is_put_back_delays_no_other(
    disks: Disks, stuck: Callable[[str, str], Stuck], capsys: pytest.CaptureFixture[str]
) -> None:
    made = disks.shorten("sda", "sdb")
    hung = stuck("_write", "sda")
    assert made.put_back(0.2) == ["sda"]
    until(lambda: disks.has("sdb") == 64)
    assert "128 was not put back within 0.2 s" in capsys.readouterr().err
    hung.let_go()
    until(lambda: disks.record is None)
    assert disks.has("sda") == 128


def test_without_a_thread_a_disk_stays_as_it_is(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(queues._thread, "start_new_thread", refuse)
        made = disks.shorten("sda")
    assert made.put_back(LONG) == []
    assert disks.written == []
    assert "sda" in capsys.readouterr().err
