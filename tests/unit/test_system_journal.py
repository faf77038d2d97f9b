"""The journal: its datagrams never block, what it refuses goes to stderr and is counted, each kind has its fields."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.drive import Drive
from fakes.scenarios import brought_to, played
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker import messages
from virtagent.agent.worker.messages import Step
from virtagent.supervisor.core import entries, events
from virtagent.supervisor.core.events import Entry
from virtagent.supervisor.io.log import Log, Stderr
from virtagent.supervisor.io.system_journal import FIELDS, MESSAGE_IDS, SystemJournal, is_stream, native

CATALOGUE = Path(__file__).resolve().parents[2] / "packaging/virtagent.catalog"
ALWAYS = {"VIRTAGENT_FREEZE_ID", "VIRTAGENT_PHASE", "VIRTAGENT_OUTCOME"}


def fields(datagram: bytes) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in datagram.decode().removesuffix("\n").split("\n"):
        name, equals, value = line.partition("=")
        assert equals
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
        found.setdefault(name, []).append(value)
    return found


# -- datagrams


class Reader:
    """A journal that is read by hand, with a stderr beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "journal")
        self._ends = os.pipe()
        os.set_blocking(self._ends[0], False)
        self.stderr = Stderr(self._ends[1], prefixed=True)
        self.sink = SystemJournal(self.path, self.stderr)
        self.log = Log(self.sink, "info")
        self.socket: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(self.path)

    def end(self) -> None:
        assert self.socket is not None
        self.socket.close()
        os.unlink(self.path)

    def add(self, text: str, entry: Entry | None = None) -> bool:
        self.log.add("notice", text, entry)
        return self.log.write()

    def read(self) -> list[dict[str, list[str]]]:
        assert self.socket is not None
        found = []
        while True:
            try:
                found.append(fields(self.socket.recv(1 << 20)))
            except BlockingIOError:
                return found

    def beside(self) -> str:
        try:
            return os.read(self._ends[0], 1 << 20).decode()
        except BlockingIOError:
            return ""

    def fill_stderr(self) -> None:
        os.set_blocking(self._ends[1], False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._ends[1], bytes(4096))

    def close(self) -> None:
        assert self.socket is not None
        self.socket.close()
        self.sink._socket.close()
        os.close(self.stderr.fileno())
        for fd in self._ends:
            os.close(fd)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.close()


def test_an_entry_has_the_fields_of_what_happened(reader: Reader) -> None:
    about = (("freeze_id", "7"), ("mount", "/a"), ("mount", "/b\nMESSAGE_ID=x"), ("errno", "5"))
    assert not reader.add("it went wrong", Entry("failed", about))
    (found,) = reader.read()
    assert found["MESSAGE"] == ["it went wrong"]
    assert found["MESSAGE_ID"] == [MESSAGE_IDS["failed"]]
    assert found["PRIORITY"] == ["5"]
    assert found["SYSLOG_IDENTIFIER"] == ["virtagentd"]
    assert found["VIRTAGENT_MOUNT"] == ["/a", "/b\\nMESSAGE_ID=x"], "a mount point makes no field of its own"
    assert (found["VIRTAGENT_FREEZE_ID"], found["ERRNO"]) == (["7"], ["5"])
    assert reader.beside() == ""


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[31m", "\udcff", "\0", "\u2028", "a=b"])
def test_whatever_a_guest_names_is_one_value(text: str) -> None:
    found = fields(native(5, text, Entry("", (("mount", text),))))
    assert len(found["MESSAGE"]) == len(found["VIRTAGENT_MOUNT"]) == 1
    assert "MESSAGE_ID" not in found


def test_a_journal_that_takes_nothing_now_is_waited_for_in_order_and_never_blocks(reader: Reader) -> None:
    count = 0
    while not reader.add(f"line {count}"):
        count += 1
    reader.add("the last")
    found = []
    while reader.log.waiting:
        found += reader.read()
        reader.log.write()
    found += reader.read()
    assert [entry["MESSAGE"][0] for entry in found] == [*(f"line {i}" for i in range(count + 1)), "the last"]
    assert reader.beside() == ""


def test_what_is_refused_goes_to_stderr_and_is_counted(reader: Reader) -> None:
    reader.add("one")
    assert len(reader.read()) == 1
    reader.end()
    for text in ("two", "three"):
        assert not reader.add(text, Entry("broken"))
    assert reader.beside() == "<5>virtagentd: two\n<5>virtagentd: three\n"
    reader.listen()
    reader.add("four")
    said = [entry["MESSAGE"][0] for entry in reader.read()]
    assert said == ["four", "log: 2 lines went to the standard error, without their fields"]
    reader.add("five")
    assert [entry["MESSAGE"][0] for entry in reader.read()] == ["five"], "told once"


def test_what_does_not_fit_goes_to_stderr(reader: Reader) -> None:
    reader.add("connects")
    reader.sink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reader.add("x" * 12000)
    reader.add("after")
    assert reader.beside() == f"<5>virtagentd: {'x' * 12000}\n"
    assert [entry["MESSAGE"][0][:5] for entry in reader.read()] == ["conne", "after", "log: "]


def test_with_neither_nothing_spins_and_nothing_is_lost(reader: Reader) -> None:
    reader.end()
    reader.fill_stderr()
    for text in ("one", "two"):
        assert not reader.add(text), "a socket that nobody reads is always writable: it must not be waited for"
    reader.listen()
    reader.add("three")
    assert [entry["MESSAGE"][0] for entry in reader.read()] == ["one", "two", "three"]


def test_without_a_stderr_it_waits_for_the_next_line(tmp_path: Path) -> None:
    sink = SystemJournal(str(tmp_path / "none"))
    log = Log(sink, "info")
    log.add("info", "one")
    assert not log.write()
    assert len(log.waiting) == 1
    sink._socket.close()


def test_only_the_stream_that_the_service_manager_made_is_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        about = os.fstat(ours.fileno())
        named = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
        assert is_stream(named, ours.fileno())
        assert not is_stream(named, theirs.fileno()), "stderr was led elsewhere"
        assert not is_stream({}, ours.fileno())
    with open(os.devnull) as file:
        assert not is_stream(named, file.fileno())


# -- what the core says


def told(drive: Drive, kind: str) -> list[tuple[str, dict[str, list[str]]]]:
    """Return level and fields of the entries of that kind."""
    lines = [line for line in drive.of(events.Log) if line.entry is not None and line.entry.kind == kind]
    return [(line.level, fields(native(5, line.text, line.entry))) for line in lines]


def only(drive: Drive, kind: str) -> tuple[str, dict[str, list[str]]]:
    found = told(drive, kind)
    assert len(found) == 1, found
    level, entry = found[0]
    assert {"VIRTAGENT_FREEZE_ID", "VIRTAGENT_PHASE"} <= entry.keys()
    return level, entry


def test_frozen_and_thawed(drive: Drive) -> None:
    _, keeper = drive.hold()
    level, entry = only(drive, "frozen")
    assert level == "info"
    assert (entry["VIRTAGENT_FREEZE_ID"], entry["VIRTAGENT_PHASE"]) == (["1"], ["hold"])
    assert entry["VIRTAGENT_MOUNT"] == ["/srv/0", "/srv/1"]
    drive.ask("va.fsthaw")
    drive.thaws(keeper)
    _, entry = only(drive, "thawed")
    assert (entry["VIRTAGENT_OUTCOME"], entry["VIRTAGENT_PHASE"]) == (["thawed"], ["thaw"])
    assert entry["VIRTAGENT_MOUNT"] == ["/srv/0", "/srv/1"]
    for kind in set(entries.KINDS) - {"frozen", "thawed"}:
        assert told(drive, kind) == []


def test_broken_by_its_hold_limit(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.wait(60)
    drive.thaws(keeper, reason="the hold limit passed")
    level, entry = only(drive, "broken")
    assert level == "err"
    assert (entry["VIRTAGENT_PHASE"], entry["VIRTAGENT_OUTCOME"]) == (["hold"], ["expired"])
    assert only(drive, "thawed")[1]["VIRTAGENT_OUTCOME"] == ["expired"]


def test_broken_by_someone_else_names_what_was_thawed(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 1)
    drive.undo(keeper, 0, refused=errno.EINVAL)
    drive.report(keeper, messages.Done(2))
    drive.exit(keeper)
    _, entry = only(drive, "broken")
    assert entry["VIRTAGENT_MOUNT"] == ["/srv/0"]
    assert entry["ERRNO"] == [str(errno.EINVAL)]


def test_broken_by_the_death_of_the_agent(drive: Drive) -> None:
    _, _ = drive.hold()
    assert drive.journal is not None
    later = Drive()
    plan = messages.Plan(drive.journal["plan"])
    found = events.JournalFound(1, events.Plan.load(plan.plan), "freeze 1 was broken: the agent died", expedites=False)
    later.feed(found)
    level, entry = only(later, "broken")
    assert (level, entry["VIRTAGENT_FREEZE_ID"], entry["VIRTAGENT_OUTCOME"]) == ("err", ["1"], ["broken"])


def test_a_freeze_that_fails_names_mount_and_errno(drive: Drive) -> None:
    _, worker = played(drive, "freezing", frozen=(1,))
    drive.report(worker, Step(0, "failed", errno.EIO, "FIFREEZE: Input/output error"))
    drive.report(worker, messages.Thawing("/srv/0: FIFREEZE: Input/output error (EIO)", drive.now))
    level, entry = only(drive, "failed")
    assert (level, entry["VIRTAGENT_PHASE"], entry["ERRNO"]) == ("warning", ["freeze"], [str(errno.EIO)])
    assert entry["VIRTAGENT_MOUNT"] == ["/srv/0"]


def test_an_overrun_names_what_was_waited_for(drive: Drive) -> None:
    _, worker = played(drive, "freezing", frozen=(1,))
    drive.wait(30)
    _, entry = only(drive, "overran")
    assert (entry["VIRTAGENT_PHASE"], entry["VIRTAGENT_MOUNT"]) == (["freeze"], ["/srv/0"])
    drive.wait(5)
    stuck = told(drive, "stuck")
    assert stuck, f"worker {worker} is stuck, and so is the freeze"
    for level, entry in stuck:
        assert (level, entry["VIRTAGENT_FREEZE_ID"]) == ("err", ["1"])
        assert "/srv/0" in entry["VIRTAGENT_MOUNT"]


def test_a_worker_that_was_called_off_and_is_stuck_names_its_disk(drive: Drive) -> None:
    _, worker = played(drive, "syncing")
    drive.report(worker, Step(1, "syncing"))
    drive.ask("va.fsthaw")
    drive.wait(60)
    level, entry = only(drive, "stuck")
    assert (level, entry["VIRTAGENT_PHASE"], entry["VIRTAGENT_MOUNT"]) == ("err", ["sync"], ["/srv/1"])


def test_vetoed_names_the_writer() -> None:
    drive = Drive(every_writer=(WriterConfig("pg", "hook", path="/h"),))
    drive.begin(1)
    (writer,) = drive.workers("writer")
    drive.report(writer, messages.Started(1), messages.Acted("prepare", "refused", "it has no time", {}))
    level, entry = only(drive, "vetoed")
    assert (level, entry["VIRTAGENT_WRITER"], entry["VIRTAGENT_PHASE"]) == ("warning", ["pg"], ["prepare"])
    about = [line.entry for line in drive.of(events.Log) if line.text.startswith("writer pg:")]
    assert about
    assert all(entry and ("writer", "pg") in entry.fields for entry in about)


def test_a_thaw_that_fails_is_stuck() -> None:
    drive, _ = brought_to("ERROR")
    _, entry = only(drive, "stuck")
    assert (entry["VIRTAGENT_MOUNT"], entry["ERRNO"]) == (["/srv/0"], [str(errno.EIO)])


def test_learnt(drive: Drive) -> None:
    _, worker = played(drive, "freezing")
    drive.report(worker, messages.Learnt(0, [1], ["7:0@ext47", "7:1@ext48"]))
    _, entry = only(drive, "learnt")
    assert (entry["VIRTAGENT_MOUNT"], entry["VIRTAGENT_LIES_ON"]) == (["/srv/0"], ["/srv/1"])


# -- the catalogue


def catalogue() -> dict[str, str]:
    """Return the text of each message by its id."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOGUE.read_text(), flags=re.MULTILINE)
    assert len(set(parts[1::2])) == len(parts[1::2])
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_catalogue_explains_each_kind_and_no_other() -> None:
    assert set(MESSAGE_IDS) == set(entries.KINDS)
    assert set(catalogue()) == set(MESSAGE_IDS.values())
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)


@pytest.mark.parametrize("kind", entries.KINDS)
def test_the_catalogue_uses_only_fields_that_are_always_there(kind: str) -> None:
    text = catalogue()[MESSAGE_IDS[kind]]
    assert re.match(r"Subject: .+\nDefined-By: virtagent\n", text)
    always = {"stuck": set(), "learnt": ALWAYS | {"VIRTAGENT_MOUNT"}}.get(kind, ALWAYS)
    assert set(re.findall(r"@(\w+)@", text)) <= always
    assert set(re.findall(r"\b(VIRTAGENT_\w+|ERRNO)=", text)) <= set(FIELDS.values())


@pytest.mark.parametrize("kind", entries.KINDS)
def test_the_page_names_the_id_of_each_kind(kind: str) -> None:
    page = (CATALOGUE.parents[1] / "docs/operations.md").read_text()
    assert f"| {kind} | {MESSAGE_IDS[kind]} |" in page
