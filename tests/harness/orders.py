"""Orders to the processes of a hooked virtagentd: files in a folder, each taken by one process at most.

An order is taken by rename(2) and taken back by unlink(2), so of two that want it exactly one has it, wherever either
is stopped or killed. The name of one that was taken tells by whom, until that one says that it has done it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .processes import process_state


@dataclass(frozen=True)
class Taken:
    """An order that this process has taken, and must carry out."""

    text: str
    path: Path

    def done(self) -> None:
        """Say that it has been carried out."""
        self.path.unlink(missing_ok=True)


class Orders:
    """The orders of one kind in a folder, for the test that gives them and the processes that take them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._given = 0

    # The test's side

    def give(self, text: str) -> None:
        """Add an order."""
        self._given += 1
        fresh = self._folder / f"new.{self._kind}"
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(self._folder / f"{self._kind}.{self._given:06}")

    def take_back(self) -> list[str]:
        """Take back what nobody has taken; return that."""
        left = []
        for path in self._waiting():
            try:
                text = path.read_text(encoding="utf-8")
                path.unlink()
            except FileNotFoundError:
                continue
            left.append(text)
        return left

    def waiting(self) -> list[str]:
        """Return what nobody has taken yet."""
        left = []
        for path in self._waiting():
            try:
                left.append(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
        return left

    def under_way(self) -> bool:
        """Tell whether a process that lives has taken one and has not said that it is done."""
        pids = [int(name.rpartition(".")[2]) for name in os.listdir(self._folder) if name.startswith(self._taken)]
        return any(process_state(pid) not in ("", "X", "Z") for pid in pids)

    # The side of virtagentd

    def take(self, wanted: Callable[[str], bool]) -> Taken | None:
        """Take the oldest order whose text is wanted; None if there is none."""
        for path in self._waiting():
            mine = self._folder / f"{self._taken}{path.name}.{os.getpid()}"
            try:
                text = path.read_text(encoding="utf-8")
                if not wanted(text):
                    continue
                path.rename(mine)
            except FileNotFoundError:
                continue
            return Taken(text, mine)
        return None

    @property
    def _taken(self) -> str:
        return f"taken.{self._kind}."

    def _waiting(self) -> list[Path]:
        return [self._folder / name for name in sorted(os.listdir(self._folder)) if name.startswith(f"{self._kind}.")]
