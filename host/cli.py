"""virtagentctl: the agent's RPCs from a terminal or a script. Never a traceback; the exit code says what happened."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from ..agent.api import records, timeofday
from ..agent.api.errors import VirtagentError
from ..agent.api.text import printable
from . import charset, exits, named_agents, options, text
from .client import Agent
from .commands import COMMANDS, Said
from .errors import HostError
from .events import EventLines
from .exits import DONE, FAILED, INTERRUPTED, LEFT, MAY_BE_FROZEN, USAGE, complain, document, sentence
from .transports import GLOB, parse
from .watch import watch_script

if TYPE_CHECKING:
    from types import ModuleType

    from .holding import Script
    from .observing import Observer
    from .trace import Trace

OBSERVED = ("freeze", "sync", "thaw", "watch", "snapshot")


@dataclass
class Run:
    """One run of the command: what was asked, of which agents, and whether the guest may be frozen if it ends now.

    `screen` is the module that draws on a terminal, None if the output is not a terminal, or rich is not installed.
    """

    agent: Agent
    args: argparse.Namespace
    may_be_frozen: bool
    screen: ModuleType | None

    def show(self, lines: Iterable[str], data: Any, draw: Callable[[Any], Any] | None = None, code: int = DONE) -> None:
        """Print the data: as a document for programs, on a terminal as `draw` draws it, otherwise as lines."""
        if self.args.events or self.args.json:
            exits.put_document(data, code, events=self.args.events)
        elif self.screen is not None and draw is not None:
            self.screen.console().print(draw(self.screen))
        else:
            for line in lines:
                exits.say(line, sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            charset.limit(stream)
    code = DONE
    words = sys.argv[1:] if argv is None else list(argv)
    ours = words[: words.index("--")] if "--" in words else words
    try:
        if not words:
            options.parser().print_help(sys.stderr)
            return USAGE
        try:
            code = _run(options.parser().parse(words))
        except SystemExit:  # of --version and --help
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except options.Bad as error:
        return exits.tell_wrong(str(error), USAGE, as_json="--json" in ours, events="--events" in ours)
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
    if args.command == "relay":
        if args.named or args.json or args.timeout is not None:
            raise options.Bad("`relay` takes no --agent, --json or --timeout; its records say all")
        from . import relay_talk  # asyncio is slow to import

        return relay_talk.main()
    run = None
    try:
        try:
            args.agents = named_agents.expand(_wanted(args))
            hosts = args.command == "snapshot" and not args.dry_run  # a group takes them as they are
            if not hosts and (args.command != "freeze" or len(args.agents) == 1):
                several = len(args.agents) > 1
                args.agents = [one for url in args.agents for one in _one_by_one(url, alone=not several)]
            args.agent = args.agents[-1]
            agent = Agent(args.agent, timeout=args.timeout)
        except ValueError as error:
            raise options.Bad(str(error)) from None
        run = Run(
            agent,
            args,
            may_be_frozen=args.command in ("freeze", "thaw", "hold") or getattr(args, "rehearse", False),
            screen=None if args.json or args.events else _screen(sys.stdout),
        )
        if args.command == "snapshot":
            return snapshot(run)
        if args.command == "metrics":
            return metrics(run)
        if len(args.agents) > 1:
            return several_agents(run)
        if args.command == "watch":
            return watch(run)
        script = COMMANDS[args.command](args, args.agent)
        looks_on = observer(args, sys.stdout) if args.command in OBSERVED else None
        if looks_on is None:
            with run.agent:
                said = run.agent.play(script)
        else:
            said = looked_on(script, args, looks_on)
        data = said.data | document(said.wrong, said.code) if said.wrong else said.data
        run.show(said.lines, data, said.draw, said.code)
        return complain(said.wrong, said.code) if said.wrong else said.code
    except KeyboardInterrupt:
        if run is None or not run.may_be_frozen:
            return INTERRUPTED
        return exits.tell_wrong(f"interrupted; {MAY_BE_FROZEN}", INTERRUPTED, as_json=args.json, events=args.events)
    except VirtagentError as error:
        words, code = sentence(error, may_be_frozen=run is not None and run.may_be_frozen)
        return exits.tell_wrong(words, code, error, as_json=args.json, events=args.events)


def looked_on(script: Script[Said], args: argparse.Namespace, looks_on: Observer) -> Said:
    """Return what the script comes to, while the observer looks on. Raises VirtagentError."""
    from . import observing, signals  # asyncio takes long

    to_tell = looks_on if args.command == "sync" and isinstance(looks_on, EventLines) else None
    try:
        said = signals.interruptible(observing.ask(script, args.agent, args.timeout, looks_on))
    except VirtagentError as error:
        if to_tell is not None:
            to_tell.sync_ended(args.agent, -1, str(error))
        raise
    if to_tell is not None:
        to_tell.sync_ended(args.agent, said.data["synced"])
    return said


def _wanted(args: argparse.Namespace) -> list[str]:
    """Return the agents that were named, and those of the inventory. Raises ValueError."""
    if getattr(args, "inventory", None) is None:
        return list(args.agents)
    from . import inventory  # rarely needed

    return [*(args.agents if args.named else ()), *inventory.read(args.inventory)]


def _one_by_one(url: str, *, alone: bool) -> list[str]:
    """Return the URLs of the agents that the URL of a relay means, asking there; any other URL is that of one.

    Raises a HostError if a relay that is named alone does not say; else the URL stands for what is said of it then.
    """
    far = parse(url).far
    if far is None or (len(far.agents) == 1 and not GLOB & set(far.agents[0])):
        return [url]
    from .ssh_guest import guests_of  # asyncio takes long

    try:
        return guests_of(far)
    except HostError:
        if alone:
            raise
        return [url]


def observer(args: argparse.Namespace, stream: TextIO) -> Observer | None:
    """Return what shows how a command goes on: events, a picture if the stream is a terminal, or None."""
    if args.events:
        return EventLines(sys.stdout)
    if args.json or not _is_terminal(stream):
        return None
    from . import live_view  # needed only on a terminal

    return live_view.Picture(stream, args.command, args.agents)


def several_agents(run: Run) -> int:
    """Ask all agents of the command line; raise Bad if the command is for one."""
    from . import several  # asyncio takes long

    args = run.args
    if args.command == "watch":
        return watch(run)
    if args.command == "freeze" and args.wait is not None:
        raise options.Bad("`freeze --wait` takes one --agent; several freeze together or not at all")
    try:
        looks_on = observer(args, sys.stdout) if args.command in OBSERVED else None
        return (several.freeze if args.command == "freeze" else several.ask)(args, args.agents, looks_on)
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
    return telling.tell(found, args.textfile, as_json=args.json, form=args.format)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def _screen(stream: TextIO | None) -> ModuleType | None:
    if not _is_terminal(stream):
        return None
    try:
        from . import screen  # slow to import, and rich may be missing
    except ImportError:
        return None
    return screen


def watch(run: Run) -> int:
    """Show what changes in one guest or several, until Ctrl-C; return the exit code."""
    args = run.args
    looks_on = observer(args, sys.stdout)
    if looks_on is None and len(args.agents) > 1:
        raise options.Bad("`watch` of several --agent needs a terminal, or --events")
    deadline = math.inf if args.timeout is None else time.monotonic() + args.timeout

    def note(record: records.Status) -> None:
        run.may_be_frozen = record.state not in ("THAWED", "THAWINPROGRESS")

    try:
        if looks_on is None:
            with run.agent:
                run.agent.play(watch_script(_line_by_line(args.json, note), args.until, deadline))
        else:
            from . import observing, signals  # asyncio takes long

            signals.interruptible(observing.watch(args.agents, args.timeout, args.until, deadline, looks_on, note))
    except KeyboardInterrupt as interrupt:
        by_hand = not interrupt.args or interrupt.args[0] in (LEFT, signal.SIGINT)
        if not by_hand or args.until is not None:
            raise
    if args.events:
        exits.put_document({}, DONE, events=True)
    return DONE


def _line_by_line(as_json: bool, note: Callable[[records.Status], None]) -> Callable[[records.Status], None]:
    last: records.Status | None = None

    def put(record: records.Status) -> None:
        nonlocal last
        note(record)
        if as_json:
            if last is None or record.seq != last.seq:
                print(text.to_json(records.dump(record)), flush=True)
        else:
            clock = timeofday.moment(time.time())
            for line in text.changes(last, record):
                print(clock, printable(line), flush=True)
        last = record

    return put


def snapshot(run: Run) -> int:
    """Freeze, run the command, thaw; say what came of it."""
    from . import outcome  # asyncio is slow to import
    from . import snapshot as taking

    args = run.args

    def refuse(why: str) -> int:
        return exits.tell_wrong(why, USAGE, as_json=args.json, events=args.events)

    if not args.words and args.on_each_host is None:
        raise options.Bad(
            "the following arguments are required: COMMAND, or --on-each-host; see `virtagentctl snapshot --help`"
        )
    if args.on_each_host is not None and not any(url.startswith("ssh:") for url in args.agents):
        raise options.Bad("--on-each-host needs an agent by ssh:, of --agent or --inventory")
    if args.words and shutil.which(args.words[0]) is None:
        return refuse(f"there is no program {args.words[0]!r}; nothing was frozen")
    if args.dry_run:
        return dry_run(run)
    if args.report is not None and (why := outcome.not_writable(args.report)):
        return refuse(f"the report cannot be written to {args.report} ({why}); nothing was frozen")

    trace: Trace | None = None
    if args.trace is not None:
        from . import trace as tracing  # rarely needed

        trace = tracing.Trace(os.environ)

    def wanted() -> taking.Snapshot:
        if trace is not None:
            trace.begin()
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
                **({"progress": trace.tell} if trace else {}),
            },
            max_skew=args.max_skew,
            on_each_host=args.on_each_host,
            more={"TRACEPARENT": trace.traceparent} if trace else {},
            # The standard output belongs to the command, or with --json to the report, with --events to these.
            stdout=sys.stderr if args.json or args.events else None,
            observer=observer(args, sys.stderr),
        )

    try:
        report = outcome.tried(wanted, args.retry, trace.end if trace else None)
    except ValueError as error:
        return refuse(str(error))
    code = outcome.tell(report, as_json=args.json, events=args.events, file=args.report, notify=args.notify)
    if trace is not None:
        from . import trace_sink

        if why := trace_sink.keep(args.trace, trace.document):
            complain(f"the trace could not be left at {args.trace} ({why}); that changes nothing else", code)
    return code


def dry_run(run: Run) -> int:
    """Show what each agent would freeze, and the command that would run."""
    args = run.args
    args.command, args.mount_points, args.verbose = "plan", [], False
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
