"""virtagentctl: the agent's RPCs from a terminal or a script. Never a traceback; the exit code tells what happened."""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..agent.errors import Code, Fault
from . import calls, records, text
from .client import Agent
from .errors import BadReply, HostError, Lost, TimedOut, Unreachable, Unsendable
from .transports import DEFAULT_URL

DONE, FAILED, USAGE, UNREACHABLE, TIMED_OUT, BROKEN = range(6)
INTERRUPTED = 128 + signal.SIGINT

_PROG = "virtagentctl"
_SENTENCE_MAX = 1000
_MAY_BE_FROZEN = f"a freeze may go on in the guest: `{_PROG} thaw` ends it"
_ADVICE = {
    Code.IN_PROGRESS: f"`{_PROG} watch` follows it, `{_PROG} thaw` cancels it",
    Code.WRONG_STATE: f"see `{_PROG} status`",
    Code.REFUSED_WHILE_FROZEN: f"`{_PROG} thaw` first, then call again",
    Code.METHOD: f"`{_PROG} capabilities` lists the methods",
    Code.FREEZE_BROKEN: "throw the snapshot away",
    Code.BUSY: "call again when one has ended",
    Code.AUDIT_FULL: f"`{_PROG} thaw` first",
    Code.INTERNAL: "report it with the agent's log",
}
_EXIT = {Code.IN_PROGRESS: TIMED_OUT, Code.FREEZE_BROKEN: BROKEN}


@dataclass
class Session:
    """One run of the command: what was asked, of whom, and whether the guest may be frozen if it ends now."""

    agent: Agent
    args: argparse.Namespace
    may_be_frozen: bool

    def show(self, lines: Iterable[str], data: Any) -> None:
        """Print the lines, or with --json the data as one document."""
        if self.args.json:
            print(_json(data, indent=2))
        else:
            for line in lines:
                print(text.plain(line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(_parser().parse_args(argv))
        print(end="", flush=True)
    except OSError as error:
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return DONE  # whoever read the output has what it wanted
        return _complain(f"the output cannot be written ({error.strerror}); give it another place", FAILED)
    return code


def _run(args: argparse.Namespace) -> int:
    try:
        agent = Agent(args.agent, timeout=args.timeout)
    except ValueError as error:
        return _complain(str(error), USAGE)
    session = Session(agent, args, may_be_frozen=args.run in (freeze, thaw, hold))
    try:
        with agent:
            args.run(session)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {_MAY_BE_FROZEN}", INTERRUPTED) if session.may_be_frozen else INTERRUPTED
    except Fault as fault:
        advice = _ADVICE.get(fault.code, "")
        return _complain(f"{fault}; {advice}" if advice else str(fault), _EXIT.get(fault.code, FAILED))
    except NothingFrozen:
        return _complain("nothing was frozen: the agent leaves every file system out; see `virtagentctl plan`", FAILED)
    except HostError as error:
        asked = type(error) is not Unreachable
        code = {Unreachable: UNREACHABLE, Lost: UNREACHABLE, TimedOut: TIMED_OUT}.get(type(error), FAILED)
        return _complain(f"{error}; {_MAY_BE_FROZEN}" if session.may_be_frozen and asked else str(error), code)
    except Unsendable as error:
        return _complain(f"{error}; see `{_PROG} --help`", USAGE)
    return DONE


def _complain(sentence: str, code: int) -> int:
    print(f"{_PROG}: {text.plain(sentence)[:_SENTENCE_MAX]}", file=sys.stderr)
    return code


def _json(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, indent=indent, default=lambda value: base64.b64encode(value).decode())


def ping(session: Session) -> None:
    began = time.monotonic()
    answer = session.agent.ping()
    seconds = round(time.monotonic() - began, 6)
    lines = [f"{session.args.agent} answers after {text.duration(seconds)}"]
    session.show(lines, {"answer": answer, "seconds": seconds})


def capabilities(session: Session) -> None:
    able = session.agent.capabilities()
    session.show([f"virtagentd {able.version}", *(f"  {name}" for name in able.methods)], records.dump(able))


def plan(session: Session) -> None:
    args = session.args
    found = session.agent.plan(args.include, args.exclude, strict=args.strict)
    session.show(text.plan_lines(found), records.dump(found))


def freeze(session: Session) -> None:
    args = session.args
    frozen = session.agent.freeze(
        args.include,
        args.exclude,
        strict=args.strict,
        wait=args.wait,
        sync_limit=args.sync_limit,
        freeze_limit=args.freeze_limit,
        hold_limit=args.hold_limit,
    )
    if frozen == 0:
        raise NothingFrozen
    done = f"frozen {text.count(frozen)}"
    try:
        now = session.agent.status()
    except (Fault, HostError):
        # The freeze stands, which is what was asked for; only how long it is held is not known.
        session.show([done], {"frozen": frozen, "freeze_id": -1, "hold_left": -1.0})
        return
    lines = [done + text.held(now), *text.not_frozen(now.mounts)]
    session.show(lines, {"frozen": frozen, "freeze_id": now.freeze_id, "hold_left": now.hold_left})


def thaw(session: Session) -> None:
    thawed = session.agent.thaw(session.args.wait)
    session.show([f"thawed {text.count(thawed)}" if thawed else "nothing was frozen"], {"thawed": thawed})


def status(session: Session) -> None:
    record = session.agent.status()
    session.show(text.status_lines(record), records.dump(record))


def watch(session: Session) -> None:
    args = session.args
    deadline = math.inf if args.timeout is None else time.monotonic() + args.timeout
    last = None
    while last is None or last.state != args.until:
        record = session.agent.status() if last is None else _next(session.agent, last, deadline)
        session.may_be_frozen = record.state not in ("THAWED", "THAWINPROGRESS")
        if args.json:
            if last is None or record.seq != last.seq:
                print(_json(records.dump(record)), flush=True)
        else:
            clock = time.strftime("%H:%M:%S")
            for line in text.changes(last, record):
                print(clock, text.plain(line), flush=True)
        last = record


def _next(agent: Agent, last: records.Status, deadline: float) -> records.Status:
    """Return the record that follows `last`, or the same one after a while without a change."""
    began = time.monotonic()
    if began >= deadline:
        raise TimedOut(f"the state is still {last.state}; watch again, or longer")
    wait = min(calls.STATUS_WAIT, deadline - began)
    record = agent.status(since=last.seq, wait=wait)
    if record.seq == last.seq and time.monotonic() - began < wait / 10:
        raise BadReply("the agent does not wait for a change; use `status` instead, or see that it is a virtagentd")
    return record


def hold(session: Session) -> None:
    left = session.agent.hold(session.args.seconds)
    session.show([f"held for {text.duration(left)} from now"], {"hold_left": left})


def call(session: Session) -> None:
    value = session.agent.call(session.args.method, *map(_argument, session.args.arguments))
    lines = value.expandtabs().splitlines() if isinstance(value, str) else _json(value, indent=2).splitlines()
    session.show(lines, value)


def _argument(argument: str) -> Any:
    try:
        return json.loads(argument)
    except (ValueError, RecursionError):
        return argument


class NothingFrozen(Exception):
    """A freeze was answered with 0: a snapshot would be taken of a guest that writes."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see `{self.prog} --help`", USAGE))


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of seconds")
    return seconds


def _timeout(value: str) -> float:
    seconds = _seconds(value)
    if not 0 < seconds <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{value!r} is no time-out")
    return seconds


def _parser() -> argparse.ArgumentParser:
    everywhere = _Parser(add_help=False)
    parser = _Parser(
        prog=_PROG,
        allow_abbrev=False,
        description="Freeze and thaw a guest's file systems, and see what its agent does.",
        epilog="exit codes: 0 done, 1 the agent refused or failed, 2 usage, 3 no connection, 4 timed out, "
        "5 the freeze was broken (the snapshot is not consistent), 130 interrupted",
    )
    parser.set_defaults(agent=os.environ.get("VIRTAGENT_AGENT") or DEFAULT_URL, json=False, timeout=None)
    for options in (parser, everywhere):
        _common(options)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[[Session], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=summary, description=summary, parents=[everywhere])
        added.set_defaults(run=run)
        return added

    command(ping, "see whether the agent answers")
    command(capabilities, "show the agent's version and methods")
    _selection(command(plan, "show what a freeze would do, freezing nothing"))
    freezing = command(freeze, "sync and freeze the file systems; the agent thaws them when the hold limit passes")
    _selection(freezing)
    freezing.add_argument("--wait", type=_seconds, metavar="S", help="wait at most so long; the freeze goes on")
    freezing.add_argument("--sync-limit", type=_seconds, metavar="S", help="limit of the sync, before anything freezes")
    freezing.add_argument("--freeze-limit", type=_seconds, metavar="S", help="limit of the freezing itself")
    freezing.add_argument("--hold-limit", type=_seconds, metavar="S", help="thaw by itself after so long")
    thawing = command(thaw, "thaw, or cancel a freeze; fails if the freeze was broken")
    thawing.add_argument("--wait", type=_seconds, default=calls.THAW_WAIT, metavar="S", help="wait at most so long")
    command(status, "show the state, each file system, and the last freeze")
    watching = command(watch, "show changes as they come, until Ctrl-C")
    watching.add_argument("--until", choices=list(records.STATES), metavar="STATE", help="end when in this state")
    command(hold, "hold the freeze for S seconds from now").add_argument("seconds", type=_seconds, metavar="S")
    calling = command(call, "call any method; an argument is JSON if it parses, else a string")
    calling.add_argument("method", metavar="METHOD")
    calling.add_argument("arguments", nargs="*", metavar="ARG")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    """Add the options that may stand before and after the command."""
    unset = argparse.SUPPRESS
    parser.add_argument("--agent", default=unset, metavar="URL", help=f"$VIRTAGENT_AGENT, or {DEFAULT_URL}")
    parser.add_argument("--json", action="store_true", default=unset, help="print JSON")
    parser.add_argument("--timeout", type=_timeout, default=unset, metavar="S", help="give up after so long")


def _selection(parser: argparse.ArgumentParser) -> None:
    for name, summary in (("--include", "freeze only what matches"), ("--exclude", "leave out what matches")):
        parser.add_argument(name, nargs="+", action="extend", default=[], metavar="GLOB", help=summary)
    parser.add_argument("--strict", action="store_true", help="fail if a file system cannot be frozen")
