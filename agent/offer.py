"""What the supervisor offers to the inline handlers: a protocol, so that agent/ needs not import supervisor/."""

from __future__ import annotations

from typing import Any, Protocol


class Later:
    """What an inline handler returns when the answer comes later."""


LATER = Later()


class Call(Protocol):
    """A request under way."""

    @property
    def id(self) -> int:
        """Number of the call."""


class Agent(Protocol):
    """The supervisor's side of the inline RPCs."""

    version: str

    def methods(self) -> list[str]:
        """Return the names of the methods that a host may call here."""

    def help(self, method: str) -> str:
        """Return the help text of a method; raise Fault PARAMS if there is none of that name."""

    def commands(self) -> list[dict[str, Any]]:
        """Return name, enabled and success-response of all that a host may call by JSON, `enabled` as of now."""

    def settled(self, call: Call) -> str | Later:
        """Return "thawed" or "frozen", as soon as one of them is true."""

    def thaw(self, call: Call) -> int | Later:
        """Thaw, cancel, retry or join as the state demands (design, section 5)."""

    def hold(self, call: Call, seconds: float) -> Later:
        """Extend the hold; raise Fault WRONG_STATE if nothing is held."""

    def state_number(self) -> int:
        """Return the number of the freeze state."""

    def status(self, call: Call, since: int | None, wait: float | None) -> dict[str, Any] | Later:
        """Return the status record once its seq is another than `since`, at the latest after `wait` seconds."""
