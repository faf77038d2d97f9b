"""What a handler gets in addition to the host's arguments: the daemon's options, and limits bounded by them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...agent.api import qemu
from ...agent.api.errors import Code, Fault
from ...agent.api.methods import Rpc
from ...agent.api.options import Edge, Options, Rules
from ...agent.api.records import PastFreeze
from ...agent.worker.freeze import OWN_LIMIT_LATER
from ..config import Config
from . import estimates
from .writer import HELD_LATER

INSTANT_MAX = 300.0  # seconds of which the instant of a freeze may be ahead
EXEC_GRACE = 10.0  # seconds that a program over its limit has between SIGTERM and SIGKILL


def additions(config: Config, handle: int, past: Sequence[PastFreeze], options: Options | None) -> dict[str, Any]:
    """Return everything that a row may get in addition to its arguments (`Rpc.adds`)."""
    return {
        "command": config.shutdown_command,
        "limit": config.exec_limit,
        "grace": EXEC_GRACE,
        "handle": handle,
        "qga": qemu.version(config.qga_version),
        "writers": config.every_writer,
        "estimate": estimates.expected(past),
        "in_force": estimates.in_force(config, options) if options is not None else (),
    }


def freeze_options(
    config: Config,
    method: str,
    given: dict[str, Any] | None,
    literal: list[str] | None = None,
    learnt: tuple[Edge, ...] = (),
    wall: float = 0.0,
) -> Options:
    """Return the options of a freeze; `literal` are the mount points of the QEMU protocol's freeze-list.

    `learnt` is what earlier freezes have found out of what lies on what, `wall` the time of day.

    Raises Fault PARAMS for a limit over the daemon's own, an instant that is not near, `attended` without one, and
    `strict` with `partial`. A request that is strict takes back what is only the daemon's default.
    """
    given = given or {}
    hold = config.guest_hold_limit if method.startswith("guest-") else config.hold_limit

    def limit(name: str, default: float, most: float) -> float:
        value = given.get(name)
        if value is None:
            return default
        if most and not 0 < value <= most:  # ADR 0011: refused, not clamped as va.fshold does
            raise Fault(Code.PARAMS, f"{method}: {name} is {value:g}, expected over 0 and at most {most:g} seconds")
        return float(value)

    strict = config.strict if given.get("strict") is None else given["strict"]
    partial = config.partial if given.get("partial") is None else given["partial"]
    if strict and given.get("strict") and given.get("partial") is None:
        partial = False
    if strict and partial:
        raise Fault(Code.PARAMS, f"{method}: strict and partial contradict each other; nothing was frozen")
    if given.get("attended") and not given.get("at"):
        raise Fault(Code.PARAMS, f"{method}: attended needs at, the instant by which va.fsgo is to come")
    writers = given.get("writers") or config.writers
    longest = (config.freeze_limit, config.hold_limit_max, config.thaw_limit)
    steps = [one.quiesce_limit for one in config.every_writer]  # one after another, and they confirm together
    steps += [max((one.confirm_limit for one in config.every_writer), default=0.0), HELD_LATER]
    return Options(
        rules=Rules(
            config.include,
            config.exclude,
            given.get("include") or (),
            given.get("exclude") or (),
            None if literal is None else tuple(literal),
            learnt,
        ),
        strict=strict,
        sync_limit=limit("sync_limit", config.sync_limit, config.sync_limit),
        freeze_limit=limit("freeze_limit", config.freeze_limit, config.freeze_limit),
        hold_limit=limit("hold_limit", hold, config.hold_limit_max),
        partial=partial,
        writers=writers,
        waits=bool(config.every_writer) and writers != "none",
        held_at_most=sum(longest) + sum(steps) if all(longest) else 0,
        patience=config.patience,
        busy_wait=config.busy_wait,
        at=near(method, given.get("at") or 0.0, wall),
        attended=bool(given.get("attended")),
        sync_requests=config.sync_requests,
        queue_records=config.queues,
    )


def near(method: str, at: float, wall: float) -> float:
    """Return `at`, 0 for none; raise Fault PARAMS if it is farther than INSTANT_MAX from `wall`, the time of day.

    One that has passed is taken, since a request may be late: it means now.
    """
    if at and abs(at - wall) > INSTANT_MAX:
        away = f"{abs(at - wall):.0f} s {'ahead' if at > wall else 'ago'} by the guest's clock"
        raise Fault(Code.PARAMS, f"{method}: at is {at:.3f}, {away}; expected at most {INSTANT_MAX:g} s ahead")
    return at


def limit_of(row: Rpc, args: dict[str, Any]) -> float:
    """Return after how many seconds to kill a worker, 0 for never; later if it keeps its own limit and says more."""
    if not row.limited_by:
        return row.limit or 0
    own: float = getattr(args["options"], row.limited_by)
    return own and own + OWN_LIMIT_LATER
