"""One writer, as the core knows it: what it is asked, what it has answered, and its status record. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...agent.api.records import WriterSeconds, WriterStatus
from ...agent.api.structs import Struct, field
from ...agent.api.writers import TYPES, Hold, Step, WriterConfig, WriterState, hold
from .timing import OWNER, Key

RETRY_FIRST = 1.0  # seconds until an undo that failed is tried again
HELD_LATER = 60.0  # seconds after all limits of a freeze until a writer lets go by itself


class Writer(Struct):
    """One writer. `worker` is the number of its worker, or of the one that undoes, 0 if there is none.

    `asked` is the step that it has yet to answer. `set`: its application may be held. `confirmed`: it has held over
    the freeze. `let_go`: it is not held any more, and its worker ends. `still_since` is when it was told to hold,
    `stood` for how long it then did. `seconds` is how long each step took, `devices` has the device (major:minor) of
    the file system of each of its paths, "" if it has none, and `not_frozen` are the paths that this freeze does not
    hold. Times are seconds of the loop's clock.
    """

    config: WriterConfig
    state: WriterState = WriterState.IDLE
    worker: int = 0
    asked: Step | None = None
    set: bool = False
    let_go: bool = False
    confirmed: bool = False
    since: float = 0.0
    error: str = ""
    backoff: float = RETRY_FIRST
    quiesced_at: float = 0.0
    still_since: float = 0.0
    stood: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    not_frozen: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.config.name

    @property
    def key(self) -> Key:
        """The deadline at which its undo is tried again."""
        return (OWNER, "writer", self.name)

    @property
    def latches(self) -> bool:
        """Whether its dead worker may have left something set that another one must undo."""
        kind = TYPES[self.config.type]
        return kind.latches or kind.hold is Hold.LATCH

    @property
    def held_over_the_freeze(self) -> bool:
        """Whether what its application wrote is whole in the image.

        One that is lost once it has confirmed spoils nothing, as nothing reaches a frozen disk: if that holds its data.
        """
        if not self.confirmed or self.not_frozen:
            return False
        return self.state is not WriterState.LOST or hold(self.config) is Hold.LATCH or bool(self.devices)

    def note(self, info: Mapping[str, Any], frozen: frozenset[str] | None) -> None:
        """Take note of what it tells; `frozen` is as in `place`."""
        for name, value in info.items():
            if name == "devices" and isinstance(value, dict):
                self.devices = {str(path): str(device) for path, device in value.items()}
                self.place(frozen)
            else:
                self.info[name] = str(value)

    def place(self, frozen: frozenset[str] | None) -> None:
        """Take note of which devices are frozen, or will be; None if there is no freeze."""
        self.not_frozen = () if frozen is None else tuple(p for p, at in self.devices.items() if at not in frozen)

    def stands(self, now: float) -> float:
        """Return for how long its application stands still, or did; 0 if it was not told to."""
        return self.stood or (now - self.still_since if self.still_since else 0.0)

    def patience_left(self, since: float, now: float) -> float:
        """Return for how many seconds it may yet be held for a file system that was found slow to freeze at `since`."""
        return since + self.config.quiesce_limit - now

    @property
    def out_of_patience(self) -> str:
        """Why it is held for that file system no longer."""
        slow = "while a file system that is slow to freeze was waited for"
        return f"it was held for its quiesce limit of {self.config.quiesce_limit:g} s {slow}"

    def status(self, now: float) -> WriterStatus:
        """Return its record."""
        held = now - self.quiesced_at if self.quiesced_at and self.set else -1.0
        took = self.seconds
        return WriterStatus(
            name=self.name,
            type=self.config.type,
            hold=hold(self.config).value,
            state=self.state.value,
            required=self.config.required,
            seconds=WriterSeconds(
                took.get("prepare", -1.0), took.get("quiesce", -1.0), took.get("held", held), took.get("release", -1.0)
            ),
            error=self.error,
            paths=tuple(self.devices),
            not_frozen=self.not_frozen,
            info=self.info,
        )
