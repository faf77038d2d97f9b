"""What a freeze would take if it ran now, and which options count for it, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from .records import Estimate, Plan
from .text import size, took

_WIDEST = 40  # characters of a value that its column makes room for


def lines(plan: Plan) -> Iterator[str]:
    """Say what a freeze would take now, and which options count for it; of those by default only that they do."""
    if said := sentence(plan.estimate):
        yield f"if run now: {said}"
    if plan.options:
        given = [one for one in plan.options if one.whence != "default"]
        yield "options in force" + ("" if given else ": all by default")
        names = max((len(one.name) for one in given), default=0)
        values = min(max((len(one.value) for one in given), default=0), _WIDEST)
        yield from (f"  {o.name:<{names}}  {o.value:<{values}}  {o.file or o.whence}" for o in given)
        rest = [f"{one.name} {one.value}" for one in plan.options if one.whence == "default" and one.value]
        if given and rest:
            yield f"  by default: {', '.join(rest)}"


def sentence(estimate: Estimate) -> str:
    """Return in words what a freeze would take, "" if nothing of it is known."""
    facts = []
    if estimate.dirty_bytes >= 0:
        whose = " (of the whole guest)" if estimate.whole_guest else ""
        facts.append(f"{size(estimate.dirty_bytes)} to write{whose}")
    if estimate.sync_seconds >= 0:
        facts.append(f"sync about {took(estimate.sync_seconds)} at {size(estimate.bytes_per_second)}/s")
    if estimate.still_seconds >= 0:
        facts.append(f"standstill about {took(estimate.still_seconds)} and the hold")
    elif estimate.dirty_bytes >= 0:
        facts.append("for how long applications would stand still no freeze has shown yet")
    if estimate.hold_limit > 0:
        facts.append(f"thaws by itself after {took(estimate.hold_limit)}")
    return ", ".join(facts)
