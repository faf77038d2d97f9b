"""virtagentctl: the agent's RPCs from a terminal or a script. Never a traceback; the exit code says what happened."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..agent.api import records
from ..agent.api.errors import Fault
from ..agent.api.text import printable
from . import calls, options, text
from .client import Agent
from .connection import drive
from .errors import HostError, NothingFrozen, Unsendable
from .exits import DONE, FAILED, INTERRUPTED, MAY_BE_FROZEN, USAGE, complain, sentence
from .options import PROG
from .watch import watch_script

if TYPE_CHECKING:
    from types import ModuleType


@dataclass
class Run:
    """One run of the command: what was asked, of which agents, and whether the guest may be frozen if it ends now.

    `screen` is the module that draws on a terminal, None if the output is not a terminal, or rich is not installed.
    """

    agent: Agent
    args: argparse.Namespace
    may_be_frozen: bool
    screen: ModuleType | None

    def show(self, lines: Iterable[str], data: Any, draw: Callable[[Any], Any] | None = None) -> None:
        """Print the data: with --json as one document, on a terminal as `draw` draws it, otherwise as lines."""
        if self.args.json:
            print(text.to_json(data, indent=2))
        elif self.screen is not None and draw is not None:
            self.screen.console().print(draw(self.screen))
        else:
            for line in lines:
                print(printable(line))


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
            return code  # the error was printed before, or the reader of the output has what it wanted
        return complain(f"the output cannot be written ({error.strerror}); give it another place", FAILED)
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "completion":
        return completion(args.shell)
    run = None
    try:
        run = Run(
            Agent(args.agent, timeout=args.timeout),
            args,
            may_be_frozen=args.command in ("freeze", "thaw", "hold"),
            screen=None if args.json else _screen(sys.stdout),
        )
        if args.command == "snapshot":
            return snapshot(run)
        with run.agent:
            _COMMANDS[args.command](run)
    except KeyboardInterrupt:
        unsure = run is not None and run.may_be_frozen
        return complain(f"interrupted; {MAY_BE_FROZEN}", INTERRUPTED) if unsure else INTERRUPTED
    except (Fault, HostError) as error:
        return complain(*sentence(error, may_be_frozen=run is not None and run.may_be_frozen))
    except Unsendable as error:
        return complain(f"{error}; see `{PROG} --help`", USAGE)
    except ValueError as error:
        if run is not None:
            raise
        return complain(str(error), USAGE)
    return DONE


def _screen(stream: Any) -> ModuleType | None:
    if stream is None or not stream.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    try:
        from . import screen  # slow to import, and rich may be missing
    except ImportError:
        return None
    return screen


def ping(run: Run) -> None:
    began = time.monotonic()
    answer = run.agent.ping()
    seconds = round(time.monotonic() - began, 6)
    lines = [f"{run.args.agent} answers after {text.duration(seconds)}"]
    run.show(lines, {"answer": answer, "seconds": seconds})


def capabilities(run: Run) -> None:
    able = run.agent.capabilities()
    lines = [f"virtagentd {able.version}", *(f"  {name}" for name in able.methods)]
    run.show(lines, records.dump(able), lambda screen: screen.capabilities(able))


def plan(run: Run) -> None:
    args = run.args
    found = run.agent.plan(args.include, args.exclude, strict=args.strict)
    run.show(text.plan_lines(found), records.dump(found), lambda screen: screen.plan(found))


def sync(run: Run) -> None:
    args = run.args
    synced = run.agent.sync(args.include, args.exclude, wait=args.wait, sync_limit=args.sync_limit)
    done = f"synced {text.count(synced)}; nothing was frozen"
    run.show([done], {"synced": synced})


def freeze(run: Run) -> None:
    args = run.args
    wanted = calls.freeze(
        args.include,
        args.exclude,
        strict=args.strict,
        wait=args.wait,
        sync_limit=args.sync_limit,
        freeze_limit=args.freeze_limit,
        hold_limit=args.hold_limit,
    )
    if run.screen is None:
        frozen = run.agent.carry_out(wanted)
    else:
        from . import live_view  # needed only on a terminal

        frozen = live_view.during_call(args.agent, "freezing", wanted, timeout=args.timeout)
    if frozen == 0:
        raise NothingFrozen(f"nothing was frozen: the agent leaves every file system out; see `{PROG} plan`")
    done = f"frozen {text.count(frozen)}"
    try:
        now = run.agent.status()
    except (Fault, HostError):
        # The freeze succeeded, which is what was asked for; only how long it is held is unknown.
        run.show([done], {"frozen": frozen, "freeze_id": -1, "hold_left": -1.0})
        return
    lines = [done + text.held(now), *text.not_frozen(now.mounts)]
    data = {"frozen": frozen, "freeze_id": now.freeze_id, "hold_left": now.hold_left}
    run.show(lines, data, lambda screen: screen.frozen(done + text.held(now), now))


def thaw(run: Run) -> None:
    thawed = run.agent.thaw(run.args.wait)
    run.show([f"thawed {text.count(thawed)}" if thawed else "nothing was frozen"], {"thawed": thawed})


def status(run: Run) -> None:
    record = run.agent.status()
    run.show(text.status_lines(record), records.dump(record), lambda screen: screen.status(record))


def watch(run: Run) -> None:
    args = run.args
    deadline = math.inf if args.timeout is None else time.monotonic() + args.timeout
    last: records.Status | None = None

    def put(record: records.Status) -> None:
        nonlocal last
        run.may_be_frozen = record.state not in ("THAWED", "THAWINPROGRESS")
        if args.json:
            if last is None or record.seq != last.seq:
                print(text.to_json(records.dump(record)), flush=True)
        elif run.screen is None:
            clock = time.strftime("%H:%M:%S")
            for line in text.changes(last, record):
                print(clock, printable(line), flush=True)
        last = record

    if run.screen is None:

        def ask(step: Any) -> Any:
            return run.agent.carry_out(step)

        drive(watch_script(put, args.until, deadline), ask)
    else:
        from . import live_view  # needed only on a terminal

        live_view.watch(args.agent, args.timeout, args.until, deadline, put)


def hold(run: Run) -> None:
    left = run.agent.hold(run.args.seconds)
    run.show([f"held for {text.duration(left)} from now"], {"hold_left": left})


def call(run: Run) -> None:
    value = run.agent.call(run.args.method, *map(_argument, run.args.arguments))
    lines = value.expandtabs().splitlines() if isinstance(value, str) else text.to_json(value, indent=2).splitlines()
    run.show(lines, value)


def _argument(argument: str) -> Any:
    try:
        return json.loads(argument)
    except (ValueError, RecursionError):
        return argument


def snapshot(run: Run) -> int:
    """Freeze, run the command, thaw; say what came of it."""
    from . import outcome  # asyncio is slow to import
    from . import snapshot as taking

    args = run.args
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
            # The standard output belongs to the command, or with --json to the report.
            stdout=sys.stderr if args.json else None,
            draws=not args.json and _screen(sys.stderr) is not None,
        )
    except ValueError as error:
        return complain(str(error), USAGE)
    return outcome.tell(wanted.run(), args.json)


def completion(shell: str) -> int:
    """Print the script for the shell."""
    from .completion import SHELLS  # rarely needed

    print(SHELLS[shell](options.parser()), end="")
    return DONE


_COMMANDS: Mapping[str, Callable[[Run], None]] = {
    run.__name__: run for run in (ping, capabilities, plan, sync, freeze, thaw, status, watch, hold, call)
}
