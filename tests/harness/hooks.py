"""The test's side of `hooked.py`: a folder whose files tell a hooked virtagentd where to die, stop, stall or fail."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .namespace import Area


class Hooks:
    """The folder of one daemon, and of those that are started after it on the same file systems."""

    def __init__(self, area: Area) -> None:
        self.folder = area.fresh("hooks")
        self.folder.mkdir()
        self._order = self.folder / "order"
        self._points = self.folder / "points"
        self._faults = self.folder / "faults"
        self._stall = self.folder / "stall"
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
        """
        fresh = self._order.with_suffix(".new")
        fresh.write_text(f"{point}|{','.join(acts)}", encoding="utf-8")
        fresh.rename(self._order)

    def disarm(self) -> bool:
        """Take the order back; return whether it was still waiting."""
        try:
            self._order.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def spent(self) -> bool:
        """Whether what was ordered has been done."""
        return not self._order.exists()

    # Calls that fail

    def fail(self, call: str, errno: str, times: int = 1) -> None:
        """Have the next calls fail; `faults.CALLS` names them."""
        with open(self._faults, "a", encoding="utf-8") as file:
            file.write(f"{call} {errno}\n" * times)

    def fail_no_more(self) -> list[str]:
        """Take the orders back; return what has not failed yet."""
        left = self.faults_left()
        self._faults.unlink(missing_ok=True)
        return left

    def faults_left(self) -> list[str]:
        """Return what was ordered to fail and has not failed yet."""
        return self._faults.read_text(encoding="utf-8").splitlines() if self._faults.exists() else []

    # Disk and clock

    def stall_at_freeze(self, disk: Path) -> None:
        """Have the next freeze worker freeze `disk`, on which one of the planned lies, when its freeze phase begins."""
        self._stall.write_text(str(disk), encoding="utf-8")

    def stall_no_more(self) -> bool:
        """Take the order back; return whether it was still waiting."""
        try:
            self._stall.unlink()
        except FileNotFoundError:
            return False
        return True

    def step_the_clock(self, seconds: Iterable[float]) -> None:
        """Have each look at the time of day be wrong by the next of these seconds, round and round."""
        self._clock.write_text(" ".join(map(str, seconds)), encoding="utf-8")
