"""What a storm may do, how often it is drawn, and the sequence of a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .faults import CALLS

FILE_SYSTEMS = 4


@dataclass(frozen=True)
class Action:
    """One thing that is done, with what it needs to be done again."""

    kind: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.kind, *map(str, self.args)])


def _points(r: random.Random) -> str:
    mount = r.randrange(FILE_SYSTEMS)
    steps = [f"Step {mount} {state}" for state in ("syncing", "freezing", "frozen", "thawing", "thawed")]
    freezes = [f"Progress {phase}" for phase in ("plan", "sync", "freeze")]
    freezes = ["Started", "Plan", *freezes, "Synced", "Frozen", "Thawing"]
    said = [f"va.fsfreeze {what}" for what in (*freezes, *steps, *steps, "Done")]
    said += [f"thaw {what}" for what in ("Started", *steps[3:], "Done")]
    written = [f"journal {what} {number}" for what in ("write", "rename", "remove") for number in (1, 2)]
    taken = [f"supervisor {what}" for what in (*said, "va.fsfreeze exit", "thaw exit")]
    return f"{r.choice(('before', 'after'))} {r.choice((*said, *said, *written, *taken))}"


_WHO = ("supervisor", "keeper", "worker", "thawer")
_DEADLY = ("kill:supervisor", "kill:va.fsfreeze", "kill:thaw", "stop:supervisor", "stop:va.fsfreeze", "stop:thaw")
_DEADLY_BOTH = ("kill:supervisor,kill:va.fsfreeze", "kill:supervisor,kill:thaw", "stop:supervisor,kill:va.fsfreeze")

ACTIONS: dict[str, tuple[int, Callable[[random.Random], tuple[Any, ...]]]] = {
    "freeze": (
        16,
        lambda r: (
            r.choice((0.2, 0.6, 2, 5, 5, 5)),
            r.choice((0.3, 1, 5, 5)),
            r.choice((None, None, None, 0.0, 0.1)),
            r.choice((None, None, None, *range(FILE_SYSTEMS))),
        ),
    ),
    "freeze and vanish": (2, lambda r: (r.choice((0.2, 1)),)),
    "thaw": (9, lambda r: (r.choice((None, None, None, 0.0, 0.2)),)),
    "thaw and vanish": (1, lambda r: ()),
    "hold": (2, lambda r: (r.choice((0.1, 1, 8)),)),
    "ping": (2, lambda r: ()),
    "look": (5, lambda r: ()),
    "wait": (14, lambda r: (r.choice((0.02, 0.1, 0.4)),)),
    "wait frozen": (6, lambda r: ()),
    "signal": (12, lambda r: (r.choice(_WHO), r.choice(("SIGKILL", "SIGKILL", "SIGSTOP", "SIGTERM")))),
    "kill both": (2, lambda r: ()),
    "continue": (5, lambda r: ()),
    "arm": (8, lambda r: (_points(r), r.choice((*_DEADLY, *_DEADLY, *_DEADLY_BOTH)))),
    "restart": (6, lambda r: ()),
    "stall": (3, lambda r: ()),
    "stall at freeze": (4, lambda r: ()),
    "release": (4, lambda r: ()),
    "dirty": (2, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "someone freezes": (2, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "someone thaws": (3, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "cover": (1, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "unmount": (1, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "bind": (1, lambda r: (r.randrange(FILE_SYSTEMS),)),
    "undo mounts": (2, lambda r: ()),
    "fail": (3, lambda r: (name := r.choice(list(CALLS)), r.choice(CALLS[name]), r.choice((1, 1, 3)))),
}
"""By kind: how often it is drawn, and how its arguments are."""


def draw(kind: str, r: random.Random) -> Action:
    """Return an action of that kind."""
    return Action(kind, ACTIONS[kind][1](r))


def sequence(seed: int) -> list[Action]:
    """Return the actions of a seed."""
    r = random.Random(seed)
    kinds, weights = list(ACTIONS), [weight for weight, _ in ACTIONS.values()]
    drawn = r.choices(kinds, weights, k=r.randint(8, 20))
    # Most things happen only to a freeze that is there, and an order must be there before it.
    first = r.choice((["freeze"], ["freeze", "wait frozen"], ["arm", "freeze"], ["arm", "freeze", "wait frozen"]))
    return [draw(kind, r) for kind in (*first, *drawn)]
