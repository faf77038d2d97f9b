"""virtagentctl: the agent's RPCs from a terminal or a script. Never a traceback; the exit code tells what happened."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..agent.api.errors import Code, Fault
from . import calls, options, records, text
from .client import Agent
from .errors import FreezeBroken, GroupFailed, HostError, Lost, NothingFrozen, TimedOut, Unreachable, Unsendable
from .following import following
from .holding import notes
from .options import PROG
from .wire import drive

if TYPE_CHECKING:
    from types import ModuleType

DONE, FAILED, USAGE, UNREACHABLE, TIMED_OUT, BROKEN = range(6)
INTERRUPTED = 128 + signal.SIGINT

_SENTENCE_MAX = 1000
_MAY_BE_FROZEN = f"a freeze may go on in the guest: `{PROG} thaw` ends it"
_ADVICE = {
    Code.IN_PROGRESS: f"`{PROG} watch` follows it, `{PROG} thaw` cancels it",
    Code.WRONG_STATE: f"see `{PROG} status`",
    Code.REFUSED_WHILE_FROZEN: f"`{PROG} thaw` first, then call again",
    Code.METHOD: f"`{PROG} capabilities` lists the methods",
    Code.FREEZE_BROKEN: "throw the snapshot away",
    Code.BUSY: "call again when one has ended",
    Code.AUDIT_FULL: f"`{PROG} thaw` first",
    Code.INTERNAL: "report it with the agent's log",
}
_EXIT = {Code.IN_PROGRESS: TIMED_OUT, Code.FREEZE_BROKEN: BROKEN}


@dataclass
class Session:
    """One run of the command: what was asked, of whom, and whether the guest may be frozen if it ends now.

    `screen` is the module that draws on a terminal, None if the output is none, or rich is not there.
    """

    agent: Agent
    args: argparse.Namespace
    may_be_frozen: bool
    screen: ModuleType | None

    def show(self, lines: Iterable[str], data: Any, draw: Callable[[Any], Any] | None = None) -> None:
        """Print the data as one document with --json, else what `draw` draws on a terminal, else the lines."""
        if self.args.json:
            print(to_json(data, indent=2))
        elif self.screen is not None and draw is not None:
            self.screen.console().print(draw(self.screen))
        else:
            for line in lines:
                print(text.plain(line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = DONE
    try:
        code = _run(options.parser().parse_args(argv))
        print(end="", flush=True)
    except options.Bad as error:
        return complain(str(error), USAGE)
    except OSError as error:
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code or isinstance(error, BrokenPipeError):
            return code  # it has been told already, or whoever read the output has what it wanted
        return complain(f"the output cannot be written ({error.strerror}); give it another place", FAILED)
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "completion":
        return completion(args.shell)
    session = None
    try:
        session = Session(
            Agent(args.agent, timeout=args.timeout),
            args,
            may_be_frozen=args.command in ("freeze", "thaw", "hold"),
            screen=None if args.json else _screen(sys.stdout),
        )
        if args.command == "snapshot":
            return snapshot(session)
        with session.agent:
            _COMMANDS[args.command](session)
    except KeyboardInterrupt:
        unsure = session is not None and session.may_be_frozen
        return complain(f"interrupted; {_MAY_BE_FROZEN}", INTERRUPTED) if unsure else INTERRUPTED
    except (Fault, HostError) as error:
        return complain(*sentence(error, may_be_frozen=session is not None and session.may_be_frozen))
    except Unsendable as error:
        return complain(f"{error}; see `{PROG} --help`", USAGE)
    except ValueError as error:
        if session is not None:
            raise
        return complain(str(error), USAGE)
    return DONE


def _screen(stream: Any) -> ModuleType | None:
    if stream is None or not stream.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    try:
        from . import screen  # takes long, and rich need not be there
    except ImportError:
        return None
    return screen


def sentence(error: Fault | HostError, *, may_be_frozen: bool = False) -> tuple[str, int]:
    """Return what went wrong and what to do next, in one sentence, and the exit code."""
    words, ending = _sentence(error, may_be_frozen)
    return "; ".join([words, *notes(error)]), ending


def _sentence(error: Fault | HostError, may_be_frozen: bool) -> tuple[str, int]:
    match error:
        case Fault(code=code):
            advice = _ADVICE.get(code, "")
            return (f"{error}; {advice}" if advice else str(error)), _EXIT.get(code, FAILED)
        case GroupFailed(causes=causes):
            first = next(iter(causes.values()), TimedOut())
            return str(error), _sentence(first, False)[1] if isinstance(first, Fault | HostError) else FAILED
    ending = {Unreachable: UNREACHABLE, Lost: UNREACHABLE, TimedOut: TIMED_OUT}.get(type(error), FAILED)
    if isinstance(error, FreezeBroken):
        ending = BROKEN
    unsure = may_be_frozen and type(error) not in (Unreachable, NothingFrozen)
    return (f"{error}; {_MAY_BE_FROZEN}" if unsure else str(error)), ending


def complain(words: str, code: int) -> int:
    """Print the sentence; return the exit code."""
    with contextlib.suppress(OSError):  # a terminal that is gone reads nothing; the exit code tells
        print(f"{PROG}: {text.plain(words)[:_SENTENCE_MAX]}", file=sys.stderr, flush=True)
    return code


def to_json(data: Any, indent: int | None = None) -> str:
    """Return the data as JSON; bytes as base64."""
    return json.dumps(data, indent=indent, default=lambda value: base64.b64encode(value).decode())


def ping(session: Session) -> None:
    began = time.monotonic()
    answer = session.agent.ping()
    seconds = round(time.monotonic() - began, 6)
    lines = [f"{session.args.agent} answers after {text.duration(seconds)}"]
    session.show(lines, {"answer": answer, "seconds": seconds})


def capabilities(session: Session) -> None:
    able = session.agent.capabilities()
    lines = [f"virtagentd {able.version}", *(f"  {name}" for name in able.methods)]
    session.show(lines, records.dump(able), lambda screen: screen.capabilities(able))


def plan(session: Session) -> None:
    args = session.args
    found = session.agent.plan(args.include, args.exclude, strict=args.strict)
    session.show(text.plan_lines(found), records.dump(found), lambda screen: screen.plan(found))


def sync(session: Session) -> None:
    args = session.args
    synced = session.agent.sync(args.include, args.exclude, wait=args.wait, sync_limit=args.sync_limit)
    done = f"synced {text.count(synced)}; nothing was frozen"
    session.show([done], {"synced": synced})


def freeze(session: Session) -> None:
    args = session.args
    wanted = calls.freeze(
        args.include,
        args.exclude,
        strict=args.strict,
        wait=args.wait,
        sync_limit=args.sync_limit,
        freeze_limit=args.freeze_limit,
        hold_limit=args.hold_limit,
    )
    if session.screen is None:
        frozen = session.agent.carry_out(wanted)
    else:
        from . import live  # only a terminal needs it

        frozen = live.beside(args.agent, "freezing", wanted, timeout=args.timeout)
    if frozen == 0:
        raise NothingFrozen(f"nothing was frozen: the agent leaves every file system out; see `{PROG} plan`")
    done = f"frozen {text.count(frozen)}"
    try:
        now = session.agent.status()
    except (Fault, HostError):
        # The freeze stands, which is what was asked for; only how long it is held is not known.
        session.show([done], {"frozen": frozen, "freeze_id": -1, "hold_left": -1.0})
        return
    lines = [done + text.held(now), *text.not_frozen(now.mounts)]
    data = {"frozen": frozen, "freeze_id": now.freeze_id, "hold_left": now.hold_left}
    session.show(lines, data, lambda screen: screen.frozen(done + text.held(now), now))


def thaw(session: Session) -> None:
    thawed = session.agent.thaw(session.args.wait)
    session.show([f"thawed {text.count(thawed)}" if thawed else "nothing was frozen"], {"thawed": thawed})


def status(session: Session) -> None:
    record = session.agent.status()
    session.show(text.status_lines(record), records.dump(record), lambda screen: screen.status(record))


def watch(session: Session) -> None:
    args = session.args
    deadline = math.inf if args.timeout is None else time.monotonic() + args.timeout
    last: records.Status | None = None

    def put(record: records.Status) -> None:
        nonlocal last
        session.may_be_frozen = record.state not in ("THAWED", "THAWINPROGRESS")
        if args.json:
            if last is None or record.seq != last.seq:
                print(to_json(records.dump(record)), flush=True)
        elif session.screen is None:
            clock = time.strftime("%H:%M:%S")
            for line in text.changes(last, record):
                print(clock, text.plain(line), flush=True)
        last = record

    if session.screen is None:

        def ask(step: Any) -> Any:
            return session.agent.carry_out(step)

        drive(following(put, args.until, deadline), ask)
    else:
        from . import live  # only a terminal needs it

        live.watch(args.agent, args.timeout, args.until, deadline, put)


def hold(session: Session) -> None:
    left = session.agent.hold(session.args.seconds)
    session.show([f"held for {text.duration(left)} from now"], {"hold_left": left})


def call(session: Session) -> None:
    value = session.agent.call(session.args.method, *map(_argument, session.args.arguments))
    lines = value.expandtabs().splitlines() if isinstance(value, str) else to_json(value, indent=2).splitlines()
    session.show(lines, value)


def _argument(argument: str) -> Any:
    try:
        return json.loads(argument)
    except (ValueError, RecursionError):
        return argument


def snapshot(session: Session) -> int:
    """Freeze, run the command, thaw; say what came of it."""
    from . import outcome  # asyncio takes long
    from . import snapshot as taking

    args = session.args
    if shutil.which(args.words[0]) is None:
        return complain(f"there is no program {args.words[0]!r}; nothing was frozen", USAGE)
    try:
        wanted = taking.Snapshot(
            args.agents,
            args.words,
            timeout=args.timeout,
            options={
                "include": args.include,
                "exclude": args.exclude,
                "strict": args.strict,
                "hold": args.hold,
                "extend": args.extend,
                "sync_limit": args.sync_limit,
                "freeze_limit": args.freeze_limit,
            },
            # The standard output is the command's; with --json it is the report's.
            stdout=sys.stderr if args.json else None,
            draws=not args.json and _screen(sys.stderr) is not None,
        )
    except ValueError as error:
        return complain(str(error), USAGE)
    return outcome.tell(wanted.run(), args.json)


def completion(shell: str) -> int:
    """Print the script for the shell."""
    from .completion import SHELLS  # few need it

    print(SHELLS[shell](options.parser()), end="")
    return DONE


_COMMANDS: Mapping[str, Callable[[Session], None]] = {
    run.__name__: run for run in (ping, capabilities, plan, sync, freeze, thaw, status, watch, hold, call)
}
