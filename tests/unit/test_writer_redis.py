"""What the writer of Redis believes of a server that answers late, and what stays on record."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtagent.agent.api.structs import replace
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker.writers import drivers, redis
from virtagent.agent.worker.writers.latch import Latch
from virtagent.agent.worker.writers.step import Refused, TooSlow, wait

SOON = 30.0
SERVER, KEPT, POSITION = "redis_version:7.0.15\n", "loading:0\naof_enabled:1\n", "master_replid:abc\n"


def text(said: str) -> bytes:
    octets = said.replace("\n", "\r\n").encode()
    return b"$%d\r\n%s\r\n" % (len(octets), octets)


ANSWERS = {
    "INFO server": text(SERVER),
    "INFO persistence": text(KEPT),
    "INFO replication": text(POSITION),
    "CONFIG GET dir": b"*2\r\n" + text("dir") + text("/srv"),
    "CLIENT PAUSE": b"+OK\r\n",
    "CLIENT UNPAUSE": b"+OK\r\n",
}


class Fake:
    """A server that answers what it is told to; `asked` is what it has heard."""

    def __init__(self, folder: Path) -> None:
        self.answers = dict(ANSWERS)
        self.asked: list[str] = []
        self.ends_after = ""
        """A session that has said this is found idle, and ended."""
        self.path = str(folder / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with end:
                heard = b""
                while data := end.recv(4096):
                    heard += data
                    words = re.findall(r"\$\d+\r\n(.*?)\r\n", heard.decode())
                    if len(words) == int(heard[1 : heard.index(b"\r\n")]):
                        self.asked.append(" ".join(words))
                        heard = b""
                        end.sendall(self._answer(self.asked[-1]))
                        if self.asked[-1] == self.ends_after:
                            break

    def _answer(self, asked: str) -> bytes:
        return next(said for words, said in self.answers.items() if asked.startswith(words))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    made.close()


@pytest.fixture
def latch(tmp_path: Path) -> Latch:
    return Latch(str(tmp_path / "writers"), "db")


def paused(server: Fake, latch: Latch) -> redis.Redis:
    writer = prepared(server, latch)
    writer.quiesce(time.monotonic() + SOON)
    return writer


def prepared(server: Fake, latch: Latch) -> redis.Redis:
    writer = redis.Redis(WriterConfig("db", "redis", socket=server.path), latch, wait, 100)
    writer.prepare(time.monotonic() + SOON)
    assert latch.record is None, "nothing is set yet"
    return writer


def test_the_pause_is_on_record_until_it_is_ended(server: Fake, latch: Latch) -> None:
    writer = paused(server, latch)
    assert latch.record is not None
    assert latch.record["type"] == "redis"
    assert writer.release(time.monotonic() + SOON, "good") == ""
    assert latch.record is None
    assert server.asked.count("CLIENT UNPAUSE") == 1


def test_a_longer_hold_is_a_longer_pause_and_on_record(server: Fake, latch: Latch) -> None:
    writer = paused(server, latch)
    ends = time.monotonic() + 5000
    writer.renew(time.monotonic() + SOON, ends)
    first, second = (int(asked.split()[2]) for asked in server.asked if asked.startswith("CLIENT PAUSE"))
    assert first < 200_000 < 4_000_000 < second
    assert latch.record is not None
    assert latch.record["ends"] >= ends
    server.answers["PING"] = b"+PONG\r\n"
    writer.confirm(time.monotonic() + SOON)
    assert writer.release(time.monotonic() + SOON, "good") == ""
    assert latch.record is None


def ended(writer: redis.Redis) -> None:
    """Wait until the server has ended the session (its option `timeout`)."""
    assert wait(writer.fds[0], time.monotonic() + SOON)


def test_one_that_was_found_idle_while_file_systems_were_synced_comes_again(server: Fake, latch: Latch) -> None:
    server.ends_after = "CONFIG GET dir"
    writer = prepared(server, latch)
    ended(writer)
    writer.quiesce(time.monotonic() + SOON)
    assert "CLIENT PAUSE" in " ".join(server.asked)
    assert writer.release(time.monotonic() + SOON, "good") == ""


@pytest.mark.parametrize("looks", [True, False])
def test_one_that_was_found_idle_while_it_held_holds_still(looks: bool, server: Fake, latch: Latch) -> None:
    """The pause outlasts the session."""
    server.answers["INFO server"] = text(f"{SERVER}run_id:1\n")
    server.ends_after = "INFO replication"
    writer = paused(server, latch)
    ended(writer)
    if looks:
        assert writer.lost() == ""
        assert not wait(writer.fds[0], 0)
    assert writer.release(time.monotonic() + SOON, "good") == ""
    assert server.asked.count("CLIENT UNPAUSE") == 1


@pytest.mark.parametrize("how", ["started anew", "gone"])
def test_a_server_that_has_ended_does_not_hold(how: str, server: Fake, latch: Latch) -> None:
    server.answers["INFO server"] = text(f"{SERVER}run_id:1\n")
    server.ends_after = "INFO replication"
    writer = paused(server, latch)
    ended(writer)
    server.answers["INFO server"] = text(f"{SERVER}run_id:2\n")
    if how == "gone":
        os.unlink(server.path)
    assert writer.lost().startswith("the connection has ended: ")
    writer.close()
    latch.clear()


@pytest.mark.parametrize("looks", [True, False])
def test_one_whose_server_listens_no_more_says_so_when_it_is_let_go(looks: bool, server: Fake, latch: Latch) -> None:
    server.answers["INFO server"] = text(f"{SERVER}run_id:1\n")
    server.ends_after = "INFO replication"
    writer = paused(server, latch)
    ended(writer)
    nobody = replace(writer._config, socket="127.0.0.1:1")
    writer._config = nobody
    latch.write(
        {"type": "redis", "socket": nobody.socket, "login": "", "password_file": "", "ends": time.monotonic() + 99}
    )
    if looks:
        assert writer.lost().startswith("the connection has ended: ")
    with pytest.raises(Refused, match=r"127\.0\.0\.1:1"):
        writer.release(time.monotonic() + SOON, "bad")
    assert latch.record is not None, "the pause stays on record"
    latch.clear()


def test_whoever_is_left_ends_the_pause(server: Fake, latch: Latch) -> None:
    writer = paused(server, latch)
    writer.close()
    assert drivers.undo(latch, time.monotonic() + SOON, "bad") == ""
    assert latch.record is None
    assert server.asked[-1] == "CLIENT UNPAUSE"


def test_what_the_clock_has_ended_needs_no_server(tmp_path: Path, latch: Latch) -> None:
    about = {"socket": str(tmp_path / "none"), "login": "", "password_file": ""}
    latch.write({"type": "redis", **about, "ends": time.monotonic() + SOON})
    with pytest.raises(Refused):
        drivers.undo(latch, time.monotonic() + SOON, "bad")
    assert latch.record is not None
    latch.write({"type": "redis", **about, "ends": time.monotonic()})
    assert drivers.undo(latch, time.monotonic() + SOON, "bad") == ""
    assert latch.record is None


def test_a_late_answer_to_the_pause_does_not_pass_for_that_to_its_end(server: Fake, latch: Latch) -> None:
    server.answers |= {"CLIENT PAUSE": b"", "CLIENT UNPAUSE": b"+OK\r\n-ERR not now\r\n"}
    writer = prepared(server, latch)
    with pytest.raises(TooSlow):
        writer.quiesce(time.monotonic() + 0.05)
    assert writer.release(time.monotonic() + SOON, "bad") == "ERR not now"
    assert server.asked[-2:] == ["CLIENT UNPAUSE"] * 2, "in a connection of its own"
    assert latch.record is None
