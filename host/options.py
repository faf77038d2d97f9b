"""virtagentctl's command line: every command and option. Completion and manual page are made from this, too."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..agent import __version__
from ..agent.api.states import FreezeState
from . import calls
from .named_agents import SYSTEM, USER
from .transports import DEFAULT_URL

PROG = "virtagentctl"
DESCRIPTION = "Freeze and thaw a guest's file systems, take snapshots meanwhile, and see what the agent does."
URLS = (
    ("unix:PATH", "a socket of the agent, or QEMU's chardev socket"),
    ("vsock:CID:PORT", "the guest's vsock"),
    ("firecracker:PATH:PORT", "Firecracker's hybrid vsock, by its unix socket"),
    ("libvirt:DOMAIN[?connect=URI]", "a domain whose channel libvirt owns; needs libvirt-python"),
    ("ssh:HOST[:PORT][?agents=GLOB]", "agents that are reached from another host, by a relay there; see `relay`"),
    ("qemu-ga:unix:PATH", "a stock qemu-ga, which can do less"),
)
EXIT_CODES = (
    (0, "done"),
    (1, "the agent refused or failed, or the command of `snapshot` did"),
    (2, "usage"),
    (3, "no connection"),
    (4, "timed out"),
    (5, "the freeze was broken (the snapshot is not consistent)"),
    (6, "`thaw` found nothing frozen and no freeze under way (what was copied in between is not consistent)"),
    (130, "interrupted"),
)
_TIMEOUT_MAX = 10_000_000
_RETRIES_MAX = 1000
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Bad(Exception):
    """The arguments are wrong; the text says how, and where to read more."""


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong with the arguments, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise Bad(f"{message}{'' if message.endswith('?') else ';'} see `{self.prog} --help`")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the arguments; raise Bad, which points to the help of the command that was given."""
        found, extras = self.parse_known_args(words)
        if extras:
            asked: argparse.ArgumentParser = commands_of(self).get(getattr(found, "command", None) or "", self)
            asked.error(f"unrecognized arguments: {' '.join(extras)}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = difflib.get_close_matches(value, action.choices, n=1)
            raise argparse.ArgumentError(
                None, f"there is no command {value!r}" + (f"; did you mean `{close[0]}`?" if close else "")
            )
        super()._check_value(action, value)


class _Agents(argparse.Action):
    """The option --agent: `agents` are all URLs, from before and after the command; `agent` is the last one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        # A subparser has a namespace of its own, whose values replace the others; so they all share one list.
        self.const.append(value)
        namespace.agent, namespace.agents, namespace.named = value, self.const, True


def parser() -> Parser:
    """Return a parser for one command line. `command` is then the command's name."""
    urls: list[str] = []
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES)
    top = Parser(prog=PROG, allow_abbrev=False, description=DESCRIPTION, epilog=f"exit codes: {codes}")
    agent = os.environ.get("VIRTAGENT_AGENT") or DEFAULT_URL
    top.add_argument("--version", "-V", action="version", version=f"{PROG} {__version__}", help="print the version")
    top.set_defaults(agent=agent, agents=[agent], named=False, json=False, events=False, timeout=None)
    asking, taking = Parser(add_help=False), Parser(add_help=False)
    for options in (top, asking):
        _common(options, urls, "give up after so long")
    _common(taking, urls, "end COMMAND, and thaw, when it takes longer")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    def command(name: str, summary: str, common: Parser = asking, **more: Any) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            parents=[common],
            allow_abbrev=False,
            **more,
        )

    command("ping", "see whether the agent answers")
    command("capabilities", "show the agent's version and methods")
    planning = command("plan", "show what a freeze would do, level by level, and what it leaves out and why")
    _mount_points(planning)
    _selection(planning)
    _hold(planning)
    _verbose(planning, "also name each file system that is left out and harmless")
    syncing = command("sync", "write what is dirty on what a freeze would freeze, freezing nothing")
    _mount_points(syncing)
    _globs(syncing)
    syncing.add_argument("--partial", action="store_true", help="leave out what cannot be synced")
    _events(syncing)
    syncing.add_argument("--wait", type=_seconds, metavar="S", help="wait at most so long; the sync goes on")
    syncing.add_argument("--sync-limit", type=_seconds, metavar="S", help="limit of the sync")
    freezing = command("freeze", "sync and freeze the file systems; the agent thaws them when the hold limit passes")
    _mount_points(freezing)
    _selection(freezing)
    _events(freezing)
    freezing.add_argument("--wait", type=_seconds, metavar="S", help="wait at most so long; the freeze goes on")
    _limits(freezing)
    _skew(freezing)
    thawing = command("thaw", "thaw, or cancel a freeze; fails if the freeze was broken")
    _events(thawing)
    thawing.add_argument("--wait", type=_seconds, default=calls.THAW_WAIT, metavar="S", help="wait at most so long")
    showing = command("status", "show the state, what is waited for, what to do, and the last freeze")
    _verbose(showing, "also show each file system, workers and the audit")
    command("history", "show the last freezes: when, for whom, how they ended, how long applications stood still")
    checking = command("doctor", "see whether this guest can be frozen now, what is in the way, and what to do")
    checking.add_argument(
        "--rehearse", action="store_true", help="also sync, freeze for at most a second, and say what it took"
    )
    watching = command("watch", "show changes as they come, until Ctrl-C")
    _events(watching)
    watching.add_argument(
        "--until",
        type=str.upper,
        choices=[state.name for state in FreezeState],
        metavar="STATE",
        help="end when in this state",
    )
    measuring = command("metrics", "print what a monitoring system wants to know, as OpenMetrics text")
    measuring.add_argument(
        "--textfile",
        metavar="DIR",
        help="write it to DIR/virtagent.prom, for node_exporter; in a guest DIR must be on tmpfs",
    )
    measuring.add_argument(
        "--format",
        choices=("openmetrics", "prometheus"),
        default="openmetrics",
        help="what is printed: OpenMetrics, or Prometheus's own text, which promtool reads; a file has the latter",
    )
    holding = command("hold", "hold the freeze for S seconds from now")
    holding.add_argument("seconds", type=_seconds, metavar="S", help="seconds, as far as the agent allows")
    forgetting = command("forget", "in state ERROR, count a file system as thawed that cannot be thawed")
    forgetting.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted, or dev:MAJOR:MINOR")
    _snapshot(command, taking)
    calling = command("call", "call any method; an argument is JSON if it parses, else a string")
    calling.add_argument("method", metavar="METHOD", help="its name, as `capabilities` lists it")
    calling.add_argument("arguments", nargs="*", default=[], metavar="ARG", help="a parameter")
    command(
        "relay",
        "on a hypervisor: freeze its guests together as the records on the standard input say; their end thaws",
        Parser(add_help=False),
        epilog="A record is a line of JSON with one member: prepare {agents, options}, freeze {at}, "
        "run {command, timeout} or thaw {}; each is answered by one line. Start it as `ssh HOST virtagentctl relay`.",
    )
    completing = command("completion", "print a script that completes this command's words in a shell")
    completing.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")
    return top


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, in the order of the help."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options_of(one: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """Return the options and arguments of a parser, without its commands."""
    return [action for action in one._actions if not isinstance(action, argparse._SubParsersAction)]


def _snapshot(command: Callable[..., argparse.ArgumentParser], common: Parser) -> None:
    taking = command(
        "snapshot",
        "freeze, run COMMAND, and thaw whatever happens; several --agent give one consistent point",
        common,
        usage=f"{PROG} snapshot [options] -- COMMAND...",
        epilog="COMMAND finds the number of the freeze in VIRTAGENT_FREEZE_ID, the mount points that are frozen in "
        "VIRTAGENT_MOUNTS and the agents in VIRTAGENT_AGENTS, one a line; of several agents a line of VIRTAGENT_MOUNTS "
        "begins with the agent and a tab. What is not printable in a mount point, and each backslash, is there as "
        "\\ooo. A variable that would be over 128 KiB is not there. "
        "COMMAND runs in a session of its own, and is ended with all processes of that session when it takes "
        "longer than --timeout or this is interrupted.",
    )
    _selection(taking)
    _limits(taking)
    _skew(taking)
    _events(taking)
    taking.add_argument("--extend", action="store_true", help="extend the hold as long as COMMAND runs")
    taking.add_argument("--dry-run", action="store_true", help="only show what would be frozen and run; freeze nothing")
    taking.add_argument(
        "--retry",
        type=_number,
        default=0,
        metavar="N",
        help="try all again, N times, if the freeze failed or was broken",
    )
    taking.add_argument(
        "--trace",
        metavar="FILE|URL",
        help="write spans of what happened to FILE, or post them to the collector at an http or https URL (OTLP, as "
        "JSON); COMMAND finds its span in TRACEPARENT",
    )
    taking.add_argument(
        "--report",
        metavar="FILE",
        help="write the report to FILE, too: as JSON, or if FILE ends with .txt as a page to read",
    )
    taking.add_argument(
        "--notify",
        metavar="COMMAND",
        help="run this shell command if the snapshot is not good; it finds the sentence in VIRTAGENT_ERROR and the "
        "exit code in VIRTAGENT_EXIT",
    )
    taking.add_argument(
        "--inventory",
        metavar="FILE",
        help="the guests of many hosts: a line is an agent's URL, or a host and which of its agents are meant, "
        "HOST [AGENT|GLOB...]; without these all that are named there",
    )
    taking.add_argument(
        "--on-each-host",
        metavar="COMMAND",
        help="run this shell command on each of the other hosts while all are frozen; COMMAND after -- may be left out",
    )
    taking.add_argument("words", nargs="*", metavar="COMMAND", help="a program and its arguments, after --")


def _common(one: argparse.ArgumentParser, urls: list[str], timeout: str) -> None:
    """Add the options that may stand before and after the command."""
    unset = argparse.SUPPRESS
    one.add_argument(
        "--agent",
        action=_Agents,
        const=urls,
        default=unset,
        metavar="URL",
        help=f"the agent, or a name in {SYSTEM} or {USER}; if not given $VIRTAGENT_AGENT, or {DEFAULT_URL}",
    )
    one.add_argument("--json", action="store_true", default=unset, help="print JSON")
    one.add_argument("--timeout", type=_timeout, default=unset, metavar="S", help=timeout)


def _verbose(one: argparse.ArgumentParser, summary: str) -> None:
    one.add_argument("-v", "--verbose", action="store_true", help=summary)


def _events(one: argparse.ArgumentParser) -> None:
    one.add_argument("--events", action="store_true", help="print what happens as it happens, as JSON lines")


def _mount_points(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "mount_points",
        nargs="*",
        default=[],
        type=_mount_point,
        metavar="MOUNTPOINT",
        help="only these, as with --include; default all",
    )


def _mount_point(value: str) -> str:
    # An agent is somewhere else: it has no present folder.
    if not value.startswith(("/", "*", "type:", "dev:")):
        raise argparse.ArgumentTypeError(f"{value!r} is no mount point; did you mean {f'/{value}'!r}?")
    return value


def included(args: argparse.Namespace) -> list[str]:
    """Return the selectors of --include, and the mount points that were given without it."""
    plain = [point.rstrip("/") or "/" if point.startswith("/") else point for point in args.mount_points]
    return [*args.include, *plain]


def _globs(one: argparse.ArgumentParser) -> None:
    for name, summary in (("--include", "only what matches"), ("--exclude", "leave out what matches")):
        one.add_argument(name, nargs="+", action="extend", default=[], metavar="GLOB", help=summary)


def _selection(one: argparse.ArgumentParser) -> None:
    _globs(one)
    one.add_argument("--strict", action="store_true", help="fail if a file system cannot be frozen")
    one.add_argument("--partial", action="store_true", help="leave out what cannot be frozen, and freeze the rest")
    one.add_argument(
        "--writers", choices=["all", "try", "none"], help="which applications take part; try: as if none were required"
    )


def _limits(one: argparse.ArgumentParser) -> None:
    one.add_argument("--sync-limit", type=_seconds, metavar="S", help="limit of the sync, before anything freezes")
    one.add_argument("--freeze-limit", type=_seconds, metavar="S", help="limit of the freezing itself")
    _hold(one)


def _hold(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--hold",
        "--hold-limit",
        dest="hold",
        type=_seconds,
        metavar="S",
        help="the guest thaws by itself after so long",
    )


def _skew(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--max-skew",
        type=_seconds,
        metavar="S",
        help="of several guests: thaw all, and fail, if more than this lies between the first and the last freeze",
    )


def _seconds(value: str) -> float:
    """Return the seconds of 60, 60s, 1.5m, 5min, 2h, 1d or 250ms."""
    number, unit = re.fullmatch(r"(.*?)([a-z]*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        seconds = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of seconds (or 500ms, 60s, 5m, 2h)")
    return seconds


def _number(value: str) -> int:
    if not value.isdecimal() or int(value) > _RETRIES_MAX:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number up to {_RETRIES_MAX}")
    return int(value)


def _timeout(value: str) -> float:
    seconds = _seconds(value)
    if not 0 < seconds <= _TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{value!r} is no time-out")
    return seconds
