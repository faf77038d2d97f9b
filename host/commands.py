"""What each command of virtagentctl asks of one agent, and what it says of the answer. No I/O.

A command is a script: it yields calls and is sent what came of them, by whatever carries them out for one agent or for
several at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..agent.api import records, summary
from ..agent.api.errors import Fault
from ..agent.api.text import took
from . import calls, guest_checks, text
from . import doctor as examination
from .errors import HostError, NothingFrozen, Unreachable, Unsendable, Unsupported
from .exits import DONE, FAILED, NOTHING_TO_THAW
from .holding import Script
from .options import PROG, included
from .transports import parse


@dataclass(frozen=True, slots=True)
class Said:
    """What a command says: plain lines, the same for programs, and what a terminal draws, None if nothing else.

    `wrong` is a sentence that goes with an exit code other than DONE.
    """

    lines: Iterable[str]
    data: Any
    draw: Callable[[Any], Any] | None = None
    wrong: str = ""
    code: int = DONE


def ping(args: argparse.Namespace, url: str) -> Script[Said]:
    began = time.monotonic()
    answer = yield calls.ping()
    seconds = round(time.monotonic() - began, 6)
    return Said([f"{url} answers after {took(seconds)}"], {"answer": answer, "seconds": seconds})


def capabilities(args: argparse.Namespace, url: str) -> Script[Said]:
    able: records.Capabilities = yield calls.capabilities()
    lines = [f"virtagentd {able.version}", *(f"  {name}" for name in able.methods)]
    return Said(lines, records.dump(able), lambda screen: screen.capabilities(able))


def plan(args: argparse.Namespace, url: str) -> Script[Said]:
    found: records.Plan = yield calls.plan(
        included(args),
        args.exclude,
        strict=args.strict,
        partial=args.partial,
        writers=args.writers,
        hold_limit=args.hold,
    )
    return Said(
        text.plan_lines(found, verbose=args.verbose),
        records.dump(found),
        lambda screen: screen.plan(found, verbose=args.verbose),
    )


def sync(args: argparse.Namespace, url: str) -> Script[Said]:
    synced = yield calls.sync(
        included(args), args.exclude, partial=args.partial, wait=args.wait, sync_limit=args.sync_limit
    )
    return Said([f"synced {text.count(synced)}; nothing was frozen"], {"synced": synced})


def freeze(args: argparse.Namespace, url: str) -> Script[Said]:
    frozen = yield calls.freeze(
        included(args),
        args.exclude,
        strict=args.strict,
        partial=args.partial,
        writers=args.writers,
        wait=args.wait,
        sync_limit=args.sync_limit,
        freeze_limit=args.freeze_limit,
        hold_limit=args.hold,
    )
    if frozen == 0:
        raise NothingFrozen(f"nothing was frozen: the agent leaves every file system out; see `{PROG} plan`")
    done = f"frozen {text.count(frozen)}"
    try:
        now: records.Status = yield calls.status()
    except (Fault, HostError):
        # The freeze succeeded, which is what was asked for; only how long it is held is unknown.
        return Said([done], {"frozen": frozen, "freeze_id": -1, "hold_left": -1.0})
    lines = [done + text.held(now), *text.not_frozen(now.mounts)]
    return Said(lines, {"frozen": frozen, "freeze_id": now.freeze_id, "hold_left": now.hold_left})


def thaw(args: argparse.Namespace, url: str) -> Script[Said]:
    # Only the state before tells a freeze that is cancelled while it syncs from one that never was: both answer 0.
    before = None
    try:
        before = yield calls.status()
    except Unreachable:
        raise
    except (Fault, HostError):
        pass  # the thaw matters, and is asked all the same
    thawed = yield calls.thaw(args.wait)
    was = before.state if before is not None else ""
    if was == "INPROGRESS":
        done = f"thawed {text.count(thawed)}" if thawed else "nothing was frozen"
        return Said([f"cancelled the freeze under way; {done}"], {"thawed": thawed, "cancelled": True})
    data: dict[str, Any] = {"thawed": thawed, "cancelled": False}
    if thawed or was in ("FROZEN", "THAWINPROGRESS", "ERROR"):
        lines = [f"thawed {text.count(thawed)}" if thawed else "all is thawed"]
        try:
            last = (yield calls.status()).last
        except (Fault, HostError):
            last = None  # it is thawed, which is what was asked for
        if last is not None and before is not None and last.freeze_id == before.freeze_id:
            lines.append(summary.sentence(last))
            data |= {"last": records.dump(last), "summary": lines[-1]}
        return Said(lines, data)
    wrong = "nothing was frozen, and no freeze was under way; what was copied in between is not consistent"
    return Said((), data, wrong=wrong, code=NOTHING_TO_THAW)


def status(args: argparse.Namespace, url: str) -> Script[Said]:
    record: records.Status = yield calls.status()
    return Said(
        text.status_lines(record, verbose=args.verbose),
        records.dump(record),
        lambda screen: screen.status(record, verbose=args.verbose),
    )


def history(args: argparse.Namespace, url: str) -> Script[Said]:
    past: tuple[records.PastFreeze, ...] = yield calls.history()
    return Said(text.history_lines(past), [records.dump(one) for one in past])


def doctor(args: argparse.Namespace, url: str) -> Script[Said]:
    pid = guest_checks.agent_of(parse(url))
    began = time.monotonic()
    able: records.Capabilities | None = None
    with contextlib.suppress(Fault, Unsupported):  # what is missing is found below
        able = yield calls.capabilities()
    seconds = time.monotonic() - began
    checks = partial(guest_checks.examine, pid) if pid else lambda _types: ()
    found = yield from examination.examine(args.rehearse, checks)
    found.insert(0, examination.ok(f"answers after {took(seconds)}" + ("" if pid else "; asked from outside")))
    kernel = f", Linux {os.uname().release}" if pid else ""
    who = f"{url}  virtagentd {able.version}{kernel}" if able is not None else url
    lines = [who, *(check.line() for check in found)]
    said = examination.verdict(found)
    fine = not any(check.level is examination.Level.FAIL for check in found)
    data = dict(examination.document(found))
    if fine:
        return Said([*lines, said], data)
    return Said(lines, data, wrong=said, code=FAILED)


def hold(args: argparse.Namespace, url: str) -> Script[Said]:
    left = yield calls.hold(args.seconds)
    return Said([text.thaws(left)], {"hold_left": left})


def forget(args: argparse.Namespace, url: str) -> Script[Said]:
    left = yield calls.forget(args.mountpoint)
    others = f"; {text.count(left)} may be frozen, too, and the agent tries again" if left else ""
    return Said([f"{args.mountpoint} counts as thawed, and may be frozen still{others}"], {"left": left})


def call(args: argparse.Namespace, url: str) -> Script[Said]:
    value = yield calls.call(args.method, *map(_argument, args.arguments))
    lines = value.expandtabs().splitlines() if isinstance(value, str) else text.to_json(value, indent=2).splitlines()
    return Said(lines, value)


def _argument(argument: str) -> Any:
    try:
        return json.loads(argument, object_pairs_hook=_members)
    except Unsendable:
        raise
    except (ValueError, RecursionError):
        return argument


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise Unsendable(f"the key {json.dumps(name)} stands twice in an object")
        members[name] = value
    return members


COMMANDS: Mapping[str, Callable[[argparse.Namespace, str], Script[Said]]] = {
    command.__name__: command
    for command in (ping, capabilities, plan, sync, freeze, thaw, status, history, doctor, hold, forget, call)
}
