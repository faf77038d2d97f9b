"""virtagentctl snapshot: freeze, run a command, thaw whatever happens, and say whether the freeze was good.

Everything runs on one event loop. The loop notes a signal and cancels the only task, once, so that it takes effect only
where the task waits. So a signal can never skip the thaw of a frozen guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..agent.api.errors import Fault
from ..agent.api.records import Status
from ..agent.api.text import left, printable, took
from . import exits, signals, text
from .aio import AsyncAgent
from .answers import at
from .errors import FreezeBroken, HostError
from .following import Following
from .group import AsyncAgentGroup, GroupFreeze
from .guest_status import GuestStatus, Tell
from .holding import notes
from .hypervisor import Hypervisor, Ran
from .observing import Observer, following
from .processes import end, gone
from .transports import parse

_VARIABLE_MAX = 128 << 10  # bytes, MAX_ARG_STRLEN of execve(2)
COUNTDOWN = (0.25, 0.5, 0.75, 0.9)  # shares of the hold after which a line says how much is left
COUNTDOWN_ENDLESS = 15.0  # seconds until the first line if the hold does not end by itself
COUNTDOWN_LEAST = 8.0  # seconds; a shorter hold is over before the lines are read


@dataclass
class Times:
    """When it happened, in nanoseconds since the epoch; 0 means that it did not. `frozen` is by URL."""

    frozen: dict[str, int] = field(default_factory=dict)
    command_began: int = 0
    command_ended: int = 0
    thaw_began: int = 0


@dataclass
class Report:
    """The result of a snapshot.

    `freeze` is None if nothing was frozen. `status` is that of the command: its exit code, the negative number of the
    signal that killed it, None if it did not start or did not end; `ran` are the commands on other hosts, by URL.
    `error` is what else ended the snapshot, or broke the freeze. `interrupted` is the signal that ended it,
    `interrupted_at` when it came, `failed_then` what failed.
    """

    freeze: GroupFreeze | None = None
    status: int | None = None
    seconds: float = -1
    late: bool = False
    interrupted: int = 0
    interrupted_at: str = ""
    failed_then: str = ""
    error: Fault | HostError | OSError | None = None
    times: Times = field(default_factory=Times)
    ran: dict[str, Ran] = field(default_factory=dict)

    @property
    def failed_there(self) -> dict[str, Ran]:
        """The commands on other hosts that did not end with 0."""
        return {url: ran for url, ran in self.ran.items() if ran.code != 0 or ran.error}

    @property
    def broken(self) -> FreezeBroken | None:
        """Why the snapshot is worthless, whatever the command says."""
        return self.error if isinstance(self.error, FreezeBroken) else None

    @property
    def good(self) -> bool:
        """Whether the command did all its work while all guests were frozen."""
        done = self.status == 0 or (self.status is None and self.freeze is not None and bool(self.ran))
        return done and not (self.late or self.interrupted or self.error or self.failed_there)


class Snapshot:
    """One run. `timeout` is for the commands, `options` are those of `frozen`; `observer` sees how the guests freeze.

    `max_skew` is how far apart several may freeze, `on_each_host` what is run on the other hosts, `more` what the
    command finds in its environment besides.

    Raises ValueError if a URL is invalid, or is there twice.
    """

    def __init__(
        self,
        urls: Sequence[str],
        words: Sequence[str],
        *,
        timeout: float | None,
        options: Mapping[str, Any],
        stdout: Any = None,
        observer: Observer | None = None,
        max_skew: float | None = None,
        on_each_host: str | None = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._urls = urls
        self._group = AsyncAgentGroup(urls) if len(urls) > 1 or parse(urls[0]).far is not None else None
        self._words = words
        self._timeout = timeout
        self._options = options
        self._stdout = stdout
        self._observer = observer
        self._max_skew = max_skew
        self._on_each_host = on_each_host
        self._more = more
        self._phase = "freezing"
        self.report = Report()

    def run(self) -> Report:
        """Do it, and return the report."""
        asyncio.run(self._run())
        return self.report

    async def _run(self) -> None:
        report = self.report
        task = asyncio.current_task()
        assert task is not None

        def note(number: int) -> None:
            if report.interrupted:
                return  # the first signal has done all that can be done; the rest ends by itself
            report.interrupted, report.interrupted_at = number, self._phase
            if self._phase != "thawing":
                task.cancel()

        signals.on_signal(note)
        try:
            async with contextlib.AsyncExitStack() as stack:
                follow = None
                if self._observer is not None:
                    await stack.enter_async_context(self._observer)
                    if self._group is None:
                        follow = await stack.enter_async_context(following(self._observer, self._urls))
                    else:
                        self._observer.blind = self._group.not_followed
                try:
                    async with self._frozen() as report.freeze:
                        _catch_up(follow, {url: one.status for url, one in report.freeze.guests.items()})
                        if self._observer is not None and await self._observer.make_room():
                            with contextlib.suppress(OSError):
                                print(*map(printable, _begun(report.freeze)), sep="\n", file=sys.stderr, flush=True)
                        report.times.frozen = {u: int(one.frozen_at * 1e9) for u, one in report.freeze.guests.items()}
                        try:
                            await self._commands(report.freeze)
                        finally:
                            self._phase = "thawing"
                            report.times.thaw_began = time.time_ns()
                finally:
                    if report.freeze is not None:
                        _catch_up(follow, {url: one.ended for url, one in report.freeze.guests.items()})
        except asyncio.CancelledError as cancelled:
            if not report.interrupted:
                raise
            report.error = report.freeze.broken if report.freeze else None
            report.failed_then = "; ".join(notes(cancelled))
        except (Fault, HostError) as error:
            report.error = error

    @contextlib.asynccontextmanager
    async def _frozen(self) -> AsyncIterator[GroupFreeze]:
        if self._group is not None:
            tells = [tell for tell in (self._options.get("progress"), self._observer and self._observer.put) if tell]
            options = {**self._options, "progress": functools.partial(_tell, tells)} if tells else self._options
            async with self._group.frozen(max_skew=self._max_skew, **options) as group:
                yield group
            return
        (url,) = self._urls
        one: GroupFreeze | None = None
        try:
            async with AsyncAgent(url) as agent, agent.frozen(**self._options) as freeze:
                begun = time.monotonic()
                one = GroupFreeze({url: freeze}, skew=0, skew_by_agents=0)
                try:
                    yield one
                finally:
                    one.window = time.monotonic() - begun
        finally:
            if one is not None:
                one.broken = one.guests[url].broken

    async def _commands(self, freeze: GroupFreeze) -> None:
        """Run the command here, and that for the other hosts there, at the same time."""
        tasks = {url: asyncio.ensure_future(self._run_there(host)) for url, host in freeze.hosts.items()}
        try:
            if self._words:
                await self._command(freeze)
            if tasks:
                await asyncio.wait(tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
        self.report.ran = {url: ran for url, task in tasks.items() if (ran := task.result()) is not None}

    async def _run_there(self, host: Hypervisor) -> Ran | None:
        if self._on_each_host is None:
            return None
        self._phase = "running"
        return await host.run(["/bin/sh", "-c", self._on_each_host], self._timeout)

    async def _command(self, freeze: GroupFreeze) -> None:
        report = self.report
        report.times.command_began, began = time.time_ns(), time.monotonic()
        try:
            process = subprocess.Popen(
                self._words, env={**environment(freeze), **self._more}, stdout=self._stdout, start_new_session=True
            )
        except (OSError, ValueError) as error:
            report.error = error if isinstance(error, OSError) else OSError(0, str(error))
            return
        self._phase = "running"
        watched = os.pidfd_open(process.pid)
        try:
            counting = asyncio.ensure_future(_count_down(freeze, extended=bool(self._options.get("extend"))))
            try:
                report.late = not await gone(watched, self._timeout)
            finally:
                counting.cancel()
        except asyncio.CancelledError:
            await end(process.pid, watched)
            raise
        else:
            if report.late:
                await end(process.pid, watched)
        finally:
            os.close(watched)
            report.status = process.poll()
            report.seconds = time.monotonic() - began
            report.times.command_ended = time.time_ns()


def _tell(tells: Sequence[Tell], record: GuestStatus) -> None:
    for tell in tells:
        tell(record)


def _catch_up(follow: Following | None, statuses: Mapping[str, Status | None]) -> None:
    if follow is not None:
        for url, status in statuses.items():
            follow.add(url, status)


async def _count_down(freeze: GroupFreeze, *, extended: bool) -> None:
    """Say on the standard error for how long the guest has stood still, and how much of the hold is left.

    Of a hold that is extended, or has no limit, nothing is left; then each line comes after twice as long as the last.
    """
    holds = [one.hold_left for one in freeze.guests.values() if one.hold_left >= 0]
    whole, began = min(holds, default=0.0), time.monotonic()
    endless = extended or not holds
    if not endless and whole < COUNTDOWN_LEAST:
        return
    ends = "its hold is extended until the command has ended" if extended else "its hold has no limit"
    for after in _doubling(COUNTDOWN_ENDLESS) if endless else (whole * share for share in COUNTDOWN):
        await asyncio.sleep(max(0.0, began + after - time.monotonic()))
        with contextlib.suppress(OSError):
            how = ends if endless else f"it thaws by itself in {left(whole - after)}, at {at(whole - after)}"
            exits.say(f"the guest has stood still for {took(round(after))}; {how}", sys.stderr)


def _doubling(first: float) -> Iterator[float]:
    while True:
        yield first
        first *= 2


def _begun(freeze: GroupFreeze) -> Iterator[str]:
    """Say what is frozen, before the command runs."""
    if len(freeze.guests) > 1:
        count = sum(one.count for one in freeze.guests.values())
        yield f"frozen {text.count(count)} of {len(freeze.guests)} guests within {took(freeze.true_skew)}"
        return
    for one in freeze.guests.values():
        yield f"frozen {text.count(one.count)}{text.held(one.status)}"
        yield from text.not_frozen(one.status.mounts)


def environment(freeze: GroupFreeze) -> dict[str, str]:
    """Return the environment of the command. Nothing that a guest says can break a line in it.

    Of other hosts there is only their URL: a variable holds 128 KiB, and each has its own guests in a command there.
    One that would be longer is not there, since no command could be started with it.
    """
    several = len(freeze.guests) > 1
    here = {url: one for url, one in freeze.guests.items() if parse(url).far is None}
    mounts = [
        f"{url}\t{_octal(mount)}" if several else _octal(mount) for url, one in here.items() for mount in one.mounts
    ]
    ours = {
        "VIRTAGENT_FREEZE_ID": "\n".join(str(one.freeze_id) for one in here.values()),
        "VIRTAGENT_MOUNTS": "\n".join(mounts),
        "VIRTAGENT_AGENTS": "\n".join([*here, *freeze.hosts]),
    }
    held = {name: value for name, value in ours.items() if len(os.fsencode(f"{name}={value}")) < _VARIABLE_MAX}
    return {name: value for name, value in os.environ.items() if name not in ours} | held


def _octal(mountpoint: str) -> str:
    """Escape backslashes and what is not printable, byte by byte, as mountinfo does."""
    return "".join(
        c if c.isprintable() and c != "\\" else "".join(f"\\{byte:03o}" for byte in c.encode(errors="surrogatepass"))
        for c in mountpoint
    )
