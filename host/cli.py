"""virtagentctl: the agent's RPCs from a terminal or a script. Never a traceback; the exit code says what happened."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..agent.api import records
from ..agent.api.errors import Fault, VirtagentError
from ..agent.api.text import printable
from . import calls, named_agents, options, text
from .client import Agent
from .commands import COMMANDS
from .connection import drive
from .errors import HostError, NothingFrozen
from .exits import DONE, FAILED, INTERRUPTED, MAY_BE_FROZEN, USAGE, complain, document, sentence
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
    words = sys.argv[1:] if argv is None else list(argv)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        if not words:
            options.parser().print_help(sys.stderr)
            return USAGE
        code = _run(options.parser().parse(words))
        print(end="", flush=True)
    except options.Bad as error:
        return tell_wrong(str(error), USAGE, as_json=as_json)
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
        try:
            args.agents = named_agents.expand(args.agents)
            args.agent = args.agents[-1]
            agent = Agent(args.agent, timeout=args.timeout)
        except ValueError as error:
            raise options.Bad(str(error)) from None
        run = Run(
            agent,
            args,
            may_be_frozen=args.command in ("freeze", "thaw", "hold") or getattr(args, "rehearse", False),
            screen=None if args.json else _screen(sys.stdout),
        )
        if args.command == "snapshot":
            return snapshot(run)
        if args.command == "metrics":
            return metrics(run)
        if len(args.agents) > 1:
            return several_agents(run)
        with run.agent:
            if args.command == "freeze":
                return freeze(run)
            if args.command == "watch":
                return watch(run)
            said = run.agent.play(COMMANDS[args.command](args, args.agent))
            run.show(said.lines, said.data | document(said.wrong, said.code) if said.wrong else said.data, said.draw)
            return complain(said.wrong, said.code) if said.wrong else said.code
    except KeyboardInterrupt:
        unsure = run is not None and run.may_be_frozen
        return tell_wrong(f"interrupted; {MAY_BE_FROZEN}", INTERRUPTED, as_json=args.json) if unsure else INTERRUPTED
    except VirtagentError as error:
        words, code = sentence(error, may_be_frozen=run is not None and run.may_be_frozen)
        return tell_wrong(words, code, error, as_json=args.json)


def tell_wrong(words: str, code: int, error: VirtagentError | None = None, *, as_json: bool) -> int:
    """Print the sentence, and with --json also a document for programs; return the exit code."""
    if as_json:
        print(text.to_json(document(words, code, error)), flush=True)
    return complain(words, code)


def several_agents(run: Run) -> int:
    """Ask all agents of the command line; raise Bad if the command is for one."""
    from . import several  # asyncio takes long

    args = run.args
    if args.command == "watch":
        raise options.Bad(f"`watch` takes one --agent, and {len(args.agents)} are given; watch each by itself")
    if args.command == "freeze" and args.wait is not None:
        raise options.Bad("`freeze --wait` takes one --agent; several freeze together or not at all")
    try:
        return several.freeze(args, args.agents) if args.command == "freeze" else several.ask(args, args.agents)
    except ValueError as error:
        raise options.Bad(str(error)) from None


def metrics(run: Run) -> int:
    """Print what the agents say for a monitoring system, or write it to a file; of one that does not answer that."""
    from . import metrics as telling

    args = run.args
    found: dict[str, records.Status | VirtagentError]
    if len(args.agents) > 1:
        from . import several  # asyncio takes long

        try:
            found = several.statuses(args, args.agents)
        except ValueError as error:
            raise options.Bad(str(error)) from None
    else:
        try:
            with run.agent:
                found = {args.agent: run.agent.status()}
        except VirtagentError as error:
            found = {args.agent: error}
    return telling.tell(found, args.textfile, as_json=args.json)


def _screen(stream: Any) -> ModuleType | None:
    if stream is None or not stream.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    try:
        from . import screen  # slow to import, and rich may be missing
    except ImportError:
        return None
    return screen


def freeze(run: Run) -> int:
    """Freeze one guest, and say how long it is held."""
    args = run.args
    wanted = calls.freeze(
        options.included(args),
        args.exclude,
        strict=args.strict,
        partial=args.partial,
        writers=args.writers,
        wait=args.wait,
        sync_limit=args.sync_limit,
        freeze_limit=args.freeze_limit,
        hold_limit=args.hold,
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
        return DONE
    lines = [done + text.held(now), *text.not_frozen(now.mounts)]
    data = {"frozen": frozen, "freeze_id": now.freeze_id, "hold_left": now.hold_left}
    run.show(lines, data, lambda screen: screen.frozen(done + text.held(now), now))
    return DONE


def watch(run: Run) -> int:
    """Say what changes in one guest."""
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
    return DONE


def snapshot(run: Run) -> int:
    """Freeze, run the command, thaw; say what came of it."""
    from . import outcome  # asyncio is slow to import
    from . import snapshot as taking

    args = run.args
    if shutil.which(args.words[0]) is None:
        return complain(f"there is no program {args.words[0]!r}; nothing was frozen", USAGE)
    if args.dry_run:
        return dry_run(run)

    def wanted() -> taking.Snapshot:
        return taking.Snapshot(
            args.agents,
            args.words,
            timeout=args.timeout,
            options={
                "include": args.include,
                "exclude": args.exclude,
                "strict": args.strict,
                "partial": args.partial,
                "writers": args.writers,
                "hold": args.hold,
                "extend": args.extend,
                "sync_limit": args.sync_limit,
                "freeze_limit": args.freeze_limit,
            },
            # The standard output belongs to the command, or with --json to the report.
            stdout=sys.stderr if args.json else None,
            draws=not args.json and _screen(sys.stderr) is not None,
        )

    try:
        report = outcome.tried(wanted, args.retry)
    except ValueError as error:
        return complain(str(error), USAGE)
    return outcome.tell(report, as_json=args.json, file=args.report, notify=args.notify)


def dry_run(run: Run) -> int:
    """Show what each agent would freeze, and the command that would run."""
    args = run.args
    args.command, args.mount_points = "plan", []
    print(f"would run: {shlex.join(args.words)}", file=sys.stderr)
    if len(args.agents) > 1:
        return several_agents(run)
    with run.agent:
        said = run.agent.play(COMMANDS["plan"](args, args.agent))
    run.show(said.lines, said.data, said.draw)
    return DONE


def completion(shell: str) -> int:
    """Print the script for the shell."""
    from .completion import SHELLS  # rarely needed

    print(SHELLS[shell](options.parser()), end="")
    return DONE
