"""The life of a writer's worker, played in a thread: what it hears on its pipe, what it has its driver do and tells."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from virtagent.agent.api.params import SECONDS_MAX
from virtagent.agent.api.writers import WriterConfig
from virtagent.agent.worker import messages
from virtagent.agent.worker.context import Reporter
from virtagent.agent.worker.writers import life, step
from virtagent.agent.worker.writers.latch import Latch
from virtagent.agent.worker.writers.orders import Gone, Orders
from virtagent.agent.worker.writers.step import Refused, wait

LONG = 60.0  # seconds in which the other thread surely goes on


class Application:
    """A driver that only takes note of what it is to do."""

    fds: tuple[int, ...] = ()
    told: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.done: list[str] = []
        self.until = 0.0
        self.looked = threading.Event()
        self.refuses = self.loss = ""

    def prepare(self, _until: float) -> dict[str, Any]:
        """Do nothing."""
        return {}

    def quiesce(self, _until: float) -> dict[str, Any]:
        """Hold."""
        self.done.append("quiesce")
        return {}

    def renew(self, _until: float, ends: float) -> None:
        """Hold until then."""
        self.done.append("renew")
        self.until = ends
        if self.refuses:
            raise Refused(self.refuses)

    def confirm(self, _until: float) -> dict[str, Any]:
        """Hold still."""
        return {}

    def lost(self) -> str:
        """Say what is found out: nothing, if it holds all the same."""
        self.done.append("lost")
        self.fds = ()
        self.looked.set()
        return self.loss

    def release(self, _until: float, verdict: str) -> str:
        """Let go."""
        self.done.append(f"release {verdict}")
        return ""


class Played:
    """The worker of a writer that may hold for no time by itself."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, at_most: float = 1e-9) -> None:
        self.application = Application()
        monkeypatch.setitem(life.DRIVERS, "pair", lambda *_: self.application)  # type: ignore[arg-type]
        control, self._orders = os.pipe2(os.O_CLOEXEC)
        self._reports, report = os.pipe2(os.O_CLOEXEC)
        self._fds = (control, self._orders, self._reports, report)
        worker = SimpleNamespace(
            control_fd=control,
            lifeline_fd=-1,
            supervisor=os.getppid(),
            reporter=Reporter(report),
            title=lambda _doing: None,
        )
        config = WriterConfig("a", "pair", release_limit=1.0)
        latch = Latch(str(folder), "a")
        self._life = life._Life(worker, config, Orders(worker), latch, at_most)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._life.run)
        self._decoder = messages.Decoder(messages.REPORTS)
        self._heard: list[messages.Acted] = []

    def tell(self, *orders: messages.Control) -> None:
        """Give these orders at one go."""
        os.write(self._orders, b"".join(frame for order in orders for frame in messages.encode(order)))

    def begin(self) -> None:
        """Let it live."""
        self._thread.start()

    def hears(self) -> tuple[str, str]:
        """Return step and outcome of what it says next."""
        while not self._heard:
            self._heard += self._decoder.feed(os.read(self._reports, 65536))
        acted = self._heard.pop(0)
        return acted.step, acted.outcome

    def ends(self) -> None:
        """Wait for its end."""
        self._thread.join(LONG)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """Close its pipes."""
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    made = Played(tmp_path, monkeypatch)
    yield made
    made.close()


def test_it_lets_go_by_itself_when_it_was_held_as_long_as_it_may_be(played: Played) -> None:
    played.tell(messages.Act("quiesce", 0))
    played.begin()
    assert [played.hears() for _ in range(3)] == [("quiesce", "ok"), ("held", "lost"), ("release", "ok")]
    played.ends()
    assert played.application.done == ["quiesce", "release bad"]


def test_it_holds_longer_if_the_freeze_is_held_longer(played: Played) -> None:
    until = time.monotonic() + 1000
    played.tell(messages.Act("quiesce", 0), messages.Hold(until))
    played.begin()
    assert played.hears() == ("quiesce", "ok")
    played.tell(messages.Hold(until - 500), messages.Act("release", 1.0, "good"))
    assert played.hears() == ("release", "ok")
    played.ends()
    assert played.application.done == ["quiesce", "renew", "release good"]
    assert played.application.until == until


@pytest.mark.parametrize(("stretch", "renews"), [(1e-9, True), (86400.0, False)])
def test_what_ends_by_the_clock_is_put_off_as_long_as_it_is_held_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: float, renews: bool
) -> None:
    """The pause of Redis lasted a day, and then writes went on while all was frozen."""
    monkeypatch.setattr(life, "STRETCH", stretch, raising=False)
    played = Played(tmp_path, monkeypatch, at_most=0)
    played.tell(messages.Act("quiesce", 0))
    played.begin()
    assert played.hears() == ("quiesce", "ok")
    played.tell(messages.Act("release", 1, "good"))
    assert played.hears() == ("release", "ok")
    played.ends()
    played.close()
    assert ("renew" in played.application.done) is renews
    assert played.application.until <= time.monotonic() + stretch


@pytest.mark.parametrize("loss", ["", "it was started anew"])
def test_a_session_that_ends_is_a_hold_that_is_lost_unless_it_holds_all_the_same(played: Played, loss: str) -> None:
    readable, writable = os.pipe2(os.O_CLOEXEC)
    os.close(writable)
    played.application.fds, played.application.loss = (readable,), loss
    played.tell(messages.Act("quiesce", 0), messages.Hold(time.monotonic() + 1000))
    played.begin()
    assert played.hears() == ("quiesce", "ok")
    if loss:
        assert played.hears() == ("held", "lost")
    else:
        assert played.application.looked.wait(LONG)
    played.tell(messages.Act("release", 1.0, "good"))
    assert played.hears() == ("release", "ok")
    played.ends()
    assert played.application.done == ["quiesce", "renew", "lost", "release good"]
    os.close(readable)


def test_what_cannot_be_held_longer_is_lost(played: Played) -> None:
    played.application.refuses = "the connection has ended"
    played.tell(messages.Act("quiesce", 0), messages.Hold(time.monotonic() + 1000))
    played.begin()
    assert [played.hears() for _ in range(2)] == [("quiesce", "ok"), ("held", "lost")]
    played.tell(messages.Act("release", 1.0, "good"))
    assert played.hears() == ("release", "ok")
    played.ends()
    assert played.application.done == ["quiesce", "renew", "release good"]


@pytest.mark.parametrize("thawed", [True, False])
def test_every_writer_hears_of_the_thaw_if_the_supervisor_is_dead(thawed: bool) -> None:
    """One word on one pipe: whoever heard it first took it from the others, which left what they had set."""
    watched, keeper = os.pipe2(os.O_CLOEXEC)
    control, supervisor = os.pipe2(os.O_CLOEXEC)
    # Whose parent is not the supervisor has lost it.
    worker = SimpleNamespace(control_fd=control, lifeline_fd=watched, supervisor=os.getpid())
    writers = [Orders(worker) for _ in range(3)]  # type: ignore[arg-type]
    assert [writer.next(0.0) for writer in writers] == [None] * 3
    if thawed:
        os.write(keeper, b".")
        assert writers[0].next(time.monotonic() + LONG) is Gone.THAWED
    os.close(keeper)
    heard = [writer.next(time.monotonic() + LONG) for writer in writers]
    assert heard == [Gone.THAWED if thawed else Gone.UNKNOWN] * 3
    for fd in (watched, control, supervisor):
        os.close(fd)


@pytest.mark.parametrize("seconds", [3e6, SECONDS_MAX, math.inf])
def test_no_limit_is_too_long_to_be_waited_for(seconds: float) -> None:
    """poll(2) counts milliseconds in an int: with a release-limit of 30 days nothing was let go."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    os.write(writable, b".")
    assert wait(readable, time.monotonic() + seconds)
    for fd in (readable, writable):
        os.close(fd)


def test_a_wait_ends_no_sooner_than_poll_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    polled: list[int | None] = []

    def poll(milliseconds: int | None) -> list[int]:
        assert milliseconds is not None
        polled.append(milliseconds)
        now[0] += milliseconds / 1000
        return []

    now = [0.0]
    monkeypatch.setattr(step.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(step.select, "poll", lambda: SimpleNamespace(register=lambda *_: None, poll=poll))
    assert not step.wait(-1, SECONDS_MAX)
    assert sum(filter(None, polled)) >= SECONDS_MAX * 1000 > max(filter(None, polled))
