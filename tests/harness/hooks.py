"""The test's side of `hooked.py`: a folder whose files tell a hooked virtagentd where to die, stop, stall or fail."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .namespace import Area
from .orders import Orders


class Hooks:
    """The folder of one daemon, and of those that are started after it on the same file systems."""

    def __init__(self, area: Area) -> None:
        self.folder = area.fresh("hooks")
        self.folder.mkdir()
        self._points = self.folder / "points"
        self._order = Orders(self.folder, "order")
        self._faults = Orders(self.folder, "fault")
        self._stall = Orders(self.folder, "stall")
        self._clock = self.folder / "clock"

    @property
    def env(self) -> dict[str, str]:
        """For the daemon, with the module `harness.hooked`."""
        return {"VIRTAGENT_HOOKS": str(self.folder)}

    # Kill points

    def list_points(self) -> None:
        """Have each point that is passed from now on be listed."""
        self._points.touch()

    def points(self) -> list[str]:
        """Return the points that were passed, each once, in order; and list no more."""
        listed = self._points.read_text(encoding="utf-8").splitlines()
        self._points.unlink()
        return list(dict.fromkeys(listed))

    def at(self, point: str, *acts: str) -> None:
        """Have `acts` be done when the point is passed for the first time: `kill:WHO`, `stop:WHO` or `fill`.

        WHO is supervisor, va.fsfreeze or thaw (the worker of that RPC). `fill` fills the report pipe of the worker.
        What was ordered before and has not been done is taken back.
        """
        self._order.take_back()
        self._order.give(f"{point}|{','.join(acts)}")

    def disarm(self) -> bool:
        """Take the order back; return whether it was still waiting."""
        return bool(self._order.take_back())

    @property
    def spent(self) -> bool:
        """Whether somebody has begun to do what was ordered."""
        return not self._order.waiting()

    def under_way(self) -> bool:
        """Tell whether a living process has taken an order and has not carried it out yet; it may be stopped."""
        return any(orders.under_way() for orders in (self._order, self._faults, self._stall))

    # Calls that fail

    def fail(self, call: str, errno: str, times: int = 1) -> None:
        """Have the next calls fail; `faults.CALLS` names them."""
        for _ in range(times):
            self._faults.give(f"{call} {errno}")

    def fail_no_more(self) -> list[str]:
        """Take the orders back; return what has not failed yet."""
        return self._faults.take_back()

    def faults_left(self) -> list[str]:
        """Return what was ordered to fail and has not failed yet."""
        return self._faults.waiting()

    # Disk and clock

    def stall_at_freeze(self, disk: Path) -> None:
        """Have the next freeze worker freeze `disk`, on which one of the planned lies, when its freeze phase begins."""
        self._stall.give(str(disk))

    def stall_no_more(self) -> bool:
        """Take the order back; return whether it was still waiting."""
        return bool(self._stall.take_back())

    def stalling(self) -> bool:
        """Tell whether a living worker has taken the order and has not stalled the disk yet."""
        return self._stall.under_way()

    def step_the_clock(self, seconds: Iterable[float]) -> None:
        """Have each look at the time of day be wrong by the next of these seconds, round and round."""
        self._clock.write_text(" ".join(map(str, seconds)), encoding="utf-8")
