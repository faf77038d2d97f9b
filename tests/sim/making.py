"""Storms are made from a seed: actions are chosen, by chance and by a climate, while the storm is played."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping

from . import choices, scenes
from .actions import LAYOUTS, Action
from .moments import MOMENTS, WRITERS_MOMENTS
from .world import World


class Maker:
    """Chooses the actions of one storm while it is played."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.layout = self.random.choices(range(len(LAYOUTS)), (6, 8, 3, 6, 4, 2, 2, 2, 4, 4, 4, 4))[0]
        # A storm has its own climate: some faults are likely in it, others do not occur.
        climate = {kind: self.random.choice((0, 1, 1, 3)) * weight for kind, (weight, _) in _CHOICES.items()}
        climate["ask"] = climate["ask"] or 6
        climate["steps"] = climate["steps"] or 10
        self._kinds = list(climate)
        self._weights = [float(weight) for weight in climate.values()]
        self.length = self.random.randint(6, 40)

    def next(self, world: World) -> Iterable[Action]:
        """Return the next actions, each to be done before the next is taken."""
        kind = self.random.choices(self._kinds, self._weights)[0]
        return _CHOICES[kind][1](self.random, world)


def _choose_strike(rng: random.Random, world: World) -> Iterator[Action]:
    """Yield several faults at one moment, and then let everybody go on with those."""
    yield ("steps", 80, rng.choice(MOMENTS))
    for _ in range(rng.randint(1, 4)):
        kind = rng.choices(
            ("signal", "ask", "time", "another", "death", "disk", "steps", "start"), (6, 3, 4, 2, 1, 3, 4, 1)
        )
        yield from _CHOICES[kind[0]][1](rng, world)
    yield ("settle",)


def _choose_writers(rng: random.Random, world: World) -> Iterator[Action]:
    """Let a freeze with writers come to one of their moments, and strike there."""
    if not world.apps:
        return
    yield ("ask", rng.choice(("freeze", "freeze", "freeze-at", "freeze-try")), None)
    yield ("steps", 150, rng.choice(WRITERS_MOMENTS))
    for _ in range(rng.randint(1, 3)):
        kind = rng.choices(
            ("app", "holder", "signal", "ask", "time", "death", "steps", "start"), (4, 4, 3, 2, 2, 1, 4, 1)
        )
        yield from _CHOICES[kind[0]][1](rng, world)


_CHOICES: Mapping[str, tuple[float, Callable[[random.Random, World], Iterable[Action]]]] = {
    "ask": (8, choices.ask),
    "steps": (8, choices.steps),
    "moment": (6, choices.moment),
    "strike": (2, _choose_strike),
    "stall": (2, scenes.stall),
    "lag": (2, scenes.lag),
    "meddling": (2, scenes.meddling),
    "theft": (0.5, scenes.theft),
    "stuck thaw": (0.5, scenes.stuck_thaw),
    "deaf": (0.5, scenes.deaf),
    "late": (0.5, scenes.late),
    "over": (1, scenes.over),
    "orphan": (1, scenes.orphan),
    "attended": (1, scenes.attended),
    "settle": (4, choices.settle),
    "time": (4, choices.time),
    "hang up": (1, choices.hang_up),
    "signal": (7, choices.signal),
    "death": (1, choices.death),
    "start": (3, choices.start),
    "disk": (3, choices.disk),
    "error": (1, choices.error),
    "another": (1.5, choices.another),
    "fault": (1, choices.fault),
    "slow": (0.5, lambda rng, _: [("slow", rng.randint(1, 40))]),
    "late in": (0.5, lambda rng, _: [("late in", rng.randint(1, 20))]),
    "lapse": (0.5, scenes.lapse),
    "rubbish": (0.4, choices.rubbish),
    "tear": (0.5, choices.tear),
    "app": (2, choices.app),
    "holder": (1, choices.holder),
    "writers": (3, _choose_writers),
}
