"""virtagentctl with several agents: each is asked, what each answers is said, and none is left out without a word."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..agent.api.errors import VirtagentError
from ..agent.api.records import Status
from ..agent.api.text import printable, took
from . import calls, exits, signals, text
from .aio import AsyncAgent
from .commands import COMMANDS, Said
from .events import EventLines
from .exits import DONE
from .group import CONNECTS, AsyncAgentGroup, GroupFreeze, refuse_twice
from .holding import Script
from .observing import Observer, following, reporting
from .options import included

T = TypeVar("T")
_WORST_FIRST = (exits.BROKEN, exits.FAILED, exits.TIMED_OUT, exits.UNREACHABLE, exits.NOTHING_TO_THAW, exits.USAGE)
Found = Mapping[str, "Said | VirtagentError"]


def ask(args: argparse.Namespace, urls: Sequence[str], observer: Observer | None = None) -> int:
    """Have all agents asked at the same time, whatever becomes of the others; return the worst exit code.

    Raises ValueError if a URL is none, or stands twice; then nobody is asked.
    """
    refuse_twice(urls)
    agents = {url: AsyncAgent(url, timeout=args.timeout) for url in urls}

    def script(url: str) -> Script[Said]:
        return COMMANDS[args.command](args, url)

    async def looked_on(by: Observer) -> dict[str, Said | VirtagentError]:
        async with by, following(by, urls) as follow:
            return await _asked(agents, lambda url: reporting(script(url), url, follow))

    found = signals.interruptible(looked_on(observer) if observer else _asked(agents, script))
    if args.command == "sync" and isinstance(observer, EventLines):
        for url, one in found.items():
            if isinstance(one, Said):
                observer.sync_ended(url, one.data["synced"])
            else:
                observer.sync_ended(url, -1, str(one))
    endings = [(url, *_ending(one, args)) for url, one in found.items()]
    codes = {code for *_, code in endings}
    worst = next((code for code in _WORST_FIRST if code in codes), DONE)
    if args.json or args.events:
        exits.put_document({url: _document(one, args) for url, one in found.items()}, worst, events=args.events)
    else:
        for line in _lines(found):
            print(printable(line), flush=True)
    for url, wrong, code in endings:
        if wrong:
            exits.complain(wrong if url in wrong else f"{url}: {wrong}", code)
    return worst


def statuses(args: argparse.Namespace, urls: Sequence[str]) -> dict[str, Status | VirtagentError]:
    """Return the record of each agent, or why there is none. Raises ValueError if a URL is none, or stands twice."""
    refuse_twice(urls)
    agents = {url: AsyncAgent(url, timeout=args.timeout) for url in urls}
    return signals.interruptible(_asked(agents, lambda _url: _status()))


def _status() -> Script[Status]:
    found: Status = yield calls.status()
    return found


async def _asked(agents: Mapping[str, AsyncAgent], script: Callable[[str], Script[T]]) -> dict[str, T | VirtagentError]:
    gate = asyncio.Semaphore(CONNECTS)

    async def one(url: str, agent: AsyncAgent) -> T | VirtagentError:
        async with gate, agent:
            try:
                said = await agent.play(script(url))
            except VirtagentError as error:
                return error
        return said

    answers = await asyncio.gather(*(one(url, agent) for url, agent in agents.items()))
    return dict(zip(agents, answers, strict=True))


def _lines(found: Found) -> Iterator[str]:
    for url, said in found.items():
        if isinstance(said, Said) and (lines := list(said.lines)):
            yield url
            yield from (f"  {line}" for line in lines)


def _ending(said: Said | VirtagentError, args: argparse.Namespace) -> tuple[str, int]:
    if isinstance(said, Said):
        return said.wrong, said.code
    return exits.sentence(said, may_be_frozen=args.command in ("thaw", "hold"))


def _document(said: Said | VirtagentError, args: argparse.Namespace) -> Any:
    wrong, code = _ending(said, args)
    if isinstance(said, Said):
        return said.data | exits.document(wrong, code) if wrong else said.data
    return exits.document(wrong, code, said)


def freeze(args: argparse.Namespace, urls: Sequence[str], observer: Observer | None = None) -> int:
    """Freeze all guests at one point, and leave them frozen; if one cannot be, all are thawed. Return the exit code.

    Raises ValueError if a URL is none or stands twice, or GroupFailed.
    """
    group = AsyncAgentGroup(urls, timeout=args.timeout)

    async def looked_on() -> GroupFreeze:
        async with observer or contextlib.nullcontext():
            return await group.freeze(
                included(args),
                args.exclude,
                strict=args.strict,
                partial=args.partial,
                writers=args.writers,
                sync_limit=args.sync_limit,
                freeze_limit=args.freeze_limit,
                hold=args.hold,
                max_skew=args.max_skew,
                progress=observer.put if observer else None,
            )

    frozen = signals.interruptible(looked_on())
    if args.json or args.events:
        guests = {
            url: {"frozen": one.count, "freeze_id": one.freeze_id, "hold_left": one.hold_left}
            for url, one in frozen.guests.items()
        }
        exits.put_document({"skew": frozen.skew, "guests": guests}, DONE, events=args.events)
    else:
        for line in _frozen_lines(frozen):
            print(printable(line), flush=True)
    return DONE


def _frozen_lines(frozen: GroupFreeze) -> Iterator[str]:
    count = text.count(sum(one.count for one in frozen.guests.values()))
    yield f"frozen {count} of {len(frozen.guests)} guests within {took(frozen.true_skew)}"
    for url, one in frozen.guests.items():
        yield f"{url}: {text.count(one.count)}{text.held(one.status)}"
        yield from text.not_frozen(one.status.mounts)
        if one.cannot_wait:
            yield f"{url} was not made ready before the others were let go: {one.cannot_wait}"
