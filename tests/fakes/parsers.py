"""What reads what others wrote, with the errors that it may answer with; anything else that it raises is a defect."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.wire.messages import Limits
from virtagent.agent.wire.session import Session
from virtagent.agent.worker import messages, mountinfo
from virtagent.agent.worker.writers.step import Refused
from virtagent.supervisor import config, key_file
from virtagent.supervisor.core import events, status
from virtagent.supervisor.io import journal

from .answers import hear
from .drive import Drive
from .mutations import corpus, mutated

BOOT = "1b9d0000-0000-4000-8000-000000000000"
WRITERS = ("postgresql", "mariadb", "mongodb", "mysql", "redis", "sql", "live")
LIMITS = Limits(header=4096, body=1 << 16, nesting=64)


class Parser(NamedTuple):
    """A reader: the file of its corpus, what it does with an input, and the errors that it may raise."""

    corpus: str
    read: Callable[[bytes, random.Random], object]
    errors: tuple[type[Exception], ...]


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """Return the input in up to four pieces."""
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, 3)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _session(data: bytes, chance: random.Random) -> None:
    session = Session(LIMITS)
    for piece in pieces(data, chance):
        session.receive_data(piece)
        for _ in range(len(data) + 9):
            if session.next_event() is None:
                break
        session.wrote(len(session.pending()))
    session.give_up()


def _report(data: bytes, chance: random.Random) -> None:
    decoder = messages.Decoder(messages.REPORTS)
    for piece in pieces(data, chance):
        decoder.feed(piece)


def _config(data: bytes, _: random.Random) -> None:
    text = data.decode("utf-8", "surrogateescape")
    config.build({}, config.read_file(text, "virtagentd.conf"))


def _journal(data: bytes, _: random.Random) -> None:
    journal.parse(data.replace(b"BOOT", BOOT.encode()).decode("ascii"), BOOT)


def _key_file(data: bytes, _: random.Random) -> None:
    for group in key_file.parse(data).values():
        for key, raw in group.items():
            key_file.text_of(key, raw)
            key_file.truth_of(key, raw)


def _mountinfo(data: bytes, _: random.Random) -> None:
    mountinfo.superblocks(mountinfo.parse_mountinfo(data.decode("utf-8", "surrogateescape")))


def _writer(data: bytes, chance: random.Random) -> None:
    """Have a core take what a writer's worker reports, and what is said of it in the status."""
    drive = Drive(every_writer=(WriterConfig("a", "hook", path="/h"),))
    drive.begin(1)
    writer = next(number for number, spawn in drive.spawned.items() if spawn.rpc == "writer")
    drive.report(writer, messages.Started(1))
    try:
        for message in messages.Decoder(messages.REPORTS).feed(data):
            if writer in drive.live and not isinstance(message, messages.Started):
                drive.report(writer, message)
    except messages.Rubbish as rubbish:
        drive.feed(events.RubbishReported(writer, str(rubbish)))
    status.dump(drive.status(), lambda _pid: "sleeping", 0)
    if writer in drive.killed:
        raise messages.Rubbish("its worker was killed")


def _answers(kind: str) -> Callable[[bytes, random.Random], object]:
    return lambda data, _: hear(kind, data)


PARSERS = {
    "wire": Parser("wire", _session, ()),
    "report pipe": Parser("report", _report, (messages.Rubbish,)),
    "journal": Parser("journal", _journal, (ValueError,)),
    "mountinfo": Parser("mountinfo", _mountinfo, (ValueError,)),
    "configuration": Parser("config", _config, (config.BadConfig,)),
    "key file": Parser("keyfile", _key_file, (key_file.BadKeyFile,)),
    "a writer's worker": Parser("writer", _writer, (messages.Rubbish,)),
    **{kind: Parser(kind, _answers(kind), (Refused,)) for kind in WRITERS},
}


def feed(parser: Parser, seed: int, count: int) -> int:
    """Feed `count` inputs of this seed; return how many were refused. Raises AssertionError that names a bad one."""
    chance, entries, refused = random.Random(seed), corpus(parser.corpus), 0
    for number in range(count):
        data = mutated(chance, entries)
        try:
            parser.read(data, chance)
        except parser.errors:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}: {error!r} for {data[:400]!r}") from error
    return refused
