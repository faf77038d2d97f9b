"""docs/before-and-after.md: what newcomers and operators met in November 2026, and what the same commands show now.

"Before" is what they wrote down; "now" is a terminal of 80 columns in which scripts/screens has just run it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

HEAD = """\
# Before and after

<!-- Made by scripts/screens, which runs all this in tmux. Do not edit. -->

What newcomers and operators met when they first tried this, and what the same commands show now, on the guest of
[screens](screens.md), where a sync on a slow disk is, too. `exit code` is what the shell said.
"""
HOLD = 40  # seconds: longer than any of these takes


class Terminal(Protocol):
    """The terminal of scripts/screens.py."""

    def ended(self, command: str) -> str: ...


class Agent(Protocol):
    """The agent of scripts/screens.py."""

    log: str

    def start(self) -> None: ...
    def kill(self) -> None: ...


class Case(NamedTuple):
    """What was wrong, what was seen of it, what is typed now and what that shows."""

    title: str
    before: str
    typed: str
    now: str


def page(terminal: Terminal, agent: Agent, slow: str) -> str:
    """Run all cases; return the page. `slow` is the file system on which the disk of /srv/db lies."""
    parts = [HEAD]
    cases = (_at_rest(terminal), _frozen(terminal), _watched(terminal, agent), _hung(terminal, slow))
    for case in (*itertools.chain(*cases), *_killed(terminal, agent)):
        shown = f"# {case.typed}\n{case.now}" if case.typed else case.now
        parts.append(f"## {case.title}\n\nBefore:\n\n```text\n{case.before}\n```\n\nNow:\n\n```text\n{shown}```\n")
    return "\n".join(parts)


def _at_rest(terminal: Terminal) -> Iterator[Case]:
    def case(title: str, before: str, typed: str) -> Case:
        return Case(title, before, typed, terminal.ended(typed))

    yield case(
        "A string became the list of its letters, and froze the whole guest",
        ">>> calls.freeze(\"/srv/*\").params\n({'include': ['/', 's', 'r', 'v', '/', '*'], 'wait': 900.0},)",
        "python -c 'from virtagent.host import calls; print(calls.freeze(\"/srv/*\").params)'",
    )
    yield case(
        "Of several agents only the last was frozen, and nothing said so",
        "frozen 1 file system, held for 1.999 s (freeze 2)     exit 0",
        "virtagentctl freeze --agent unix:/none --agent unix:/run/virtagent/virtagentd.sock",
    )
    for before, typed in (
        ("the following arguments are required: COMMAND", "virtagentctl --version"),
        ("(all choices listed)", "virtagentctl frezze"),
        ("--hold-limit: '5m' is no number of seconds", "virtagentctl snapshot --hold 5m --dry-run -- true | head -2"),
        ("is no agent's URL; expected unix:... or vsock:...", "virtagentctl --agent /run/x.sock ping"),
        ("va.fshold needs state FROZEN, the state is THAWED [WRONG_STATE 2]", "virtagentctl hold 5"),
        ("see that --agent ... names its *socket*", "virtagentctl --agent vsock:3:9999 ping"),
    ):
        yield case(f"`{typed}`", before, typed)
    yield case(
        "Errors for programs were prose",
        "(stdout empty, a sentence on stderr: WRONG_STATE and BUSY were both exit 1)",
        "virtagentctl --json hold 3 2>/dev/null",
    )
    yield case(
        "A dry run had no time, and said nothing of the options in force",
        "file systems that would be frozen: 3\n  level 0  /srv/db (ext4, 7:2)\n...\nleft out: 22\n"
        "  pseudo  /proc (proc, 0:21)\n... (20 of these)",
        "virtagentctl plan --exclude '/srv/w*' | fold -s",
    )
    yield case(
        "Nothing found out, before a backup failed, whether a freeze would work",
        "(there was no `virtagentctl doctor`)",
        "virtagentctl doctor --rehearse | fold -s",
    )
    yield case(
        "At its start the agent had been thawed for longer than it ran",
        '"since": 4260 (for how long the machine was up)\n"uptime": 1.6',
        "virtagentctl --json status | grep -E '\"(since|uptime)\"'",
    )
    terminal.ended("mkdir -p /mnt/me/private && cp -L /usr/bin/python3 /mnt/me/private && export HOME=/mnt/me")
    yield case(
        "The installer took root's private Python, and put it into images",
        ".../bin/python3.11 -> a Python below root's home (0700; in an image it is not there)\n"
        "... is installed below DIR",
        "scripts/install --prefix-root /mnt --python ~/private/python3",
    )
    yield case(
        "The library had no names, signatures or docstrings",
        ">>> help(agent.freeze)\n(*args, **kwargs) <lambda> None",
        "python -c 'from virtagent.host import Agent; help(Agent(\"unix:/none\").freeze)' | fold -s | head -14",
    )


def _hung(terminal: Terminal, slow: str) -> Iterator[Case]:
    """A disk that answers nothing: the file system on which it lies is frozen, as by `fsfreeze -f`."""
    terminal.ended("dd if=/dev/zero of=/srv/db/more bs=1M count=10 status=none")
    terminal.ended(f"fsfreeze -f {slow}")
    try:
        typed = "virtagentctl freeze --sync-limit 2; virtagentctl freeze --exclude /srv/db"
        before = (
            "(the first: OVERRUN, state ERROR; then, for as long as the disk hung:)\n"
            "va.fsfreeze needs state THAWED, the state is ERROR [WRONG_STATE 2]; see `virtagentctl status`"
        )
        yield Case("One disk that hung in sync blocked every freeze", before, typed, terminal.ended(typed))
        terminal.ended("virtagentctl thaw")
        typed = "virtagentctl status"
        before = "ERROR: ... worker 28 ... is stuck while syncing /srv/db (is anything frozen? what shall I do?)"
        yield Case("What hung was named, and not what that meant", before, typed, terminal.ended(typed))
    finally:
        terminal.ended(f"fsfreeze -u {slow}")


def _watched(terminal: Terminal, agent: Agent) -> Iterator[Case]:
    watchers = "for n in 1 2 3; do virtagentctl watch --events >/dev/null & done"
    terminal.ended(f"{watchers}; virtagentctl snapshot --hold 10 -- sleep 3; kill %1 %2 %3; wait")
    terminal.ended(f"tail -5 {agent.log} > /mnt/last")
    before = "(a 30 s freeze with three `watch`: 219 of 251 lines of the log were of va.fsstatus)"
    typed = "grep -c fsstatus /mnt/last; fold -s /mnt/last"
    yield Case("Who watched flooded the log", before, typed, terminal.ended(typed))


def _frozen(terminal: Terminal) -> Iterator[Case]:
    typed = "virtagentctl snapshot --hold 12 -- sleep 11"
    before = "frozen 4 file systems, held for 30 s (freeze 2)\n(then silence, for minutes)"
    yield Case("While COMMAND ran, and the guest stood still, nothing moved", before, typed, terminal.ended(typed))
    typed = f"virtagentctl freeze --hold {HOLD}; virtagentctl status | fold -s"
    before = "FROZEN: hold for 1.5 s, freeze 3, thaws in 18 s\nfile systems\n  frozen  /srv/db  ext4  0 s\n..."
    yield Case("Status did not answer what an operator asks", before, typed, terminal.ended(typed))
    terminal.ended("virtagentctl thaw")
    typed = "virtagentctl snapshot --hold 1 -- sleep 2"
    before = "...; throw the snapshot away                     (four clauses, broken amid a word)"
    yield Case("A hold that was too short", before, typed, terminal.ended(typed))
    typed = "virtagentctl history"
    before = "(there was no history: one failed try by hand wiped out what last night's backup did)"
    yield Case("What the last freezes did", before, typed, terminal.ended(typed))


def _killed(terminal: Terminal, agent: Agent) -> Iterator[Case]:
    terminal.ended(f"virtagentctl freeze --hold {HOLD}")
    agent.kill()
    typed = "virtagentctl status"
    before = "no connection to ...virtagentd.sock (Connection refused); see that virtagentd runs"
    yield Case("A dead agent over a frozen guest was no connection", before, typed, terminal.ended(typed))
    agent.start()
    typed = "virtagentctl status | head -5; virtagentctl status | grep last | fold -s"
    before = "2 broken, held 0 s with a break ..., writers stood still 0 s"
    yield Case("After a recovery writers had stood still for 0 s", before, typed, terminal.ended(typed))
