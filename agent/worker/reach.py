"""On what each file system lies, through all that may carry its writes down. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..api.errors import Code, Fault
from ..api.text import listed
from .learnt import add_learnt
from .mountinfo import Superblock

Node = int | str | None
"""A place among the file systems, the name of a device, or what is not understood."""
T = TypeVar("T", bound=Hashable)


def walk_down(start: Iterable[T], below: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """Yield what is given and everything that it lies on, each once, depth first.

    `below` returns what one lies on directly. Circles do no harm.
    """
    seen = set()
    pending = [*start][::-1]
    while pending:
        here = pending.pop()
        if here not in seen:
            seen.add(here)
            yield here
            pending += [*below(here)][::-1]


def reach_of(
    found: Sequence[Superblock],
    planned: Sequence[int],
    below: Callable[[Node], list[Node]],
    learnt: Mapping[str, Sequence[str]],
) -> tuple[list[int], list[str]]:
    """Return for each planned file system all those that it lies on, and notes on what was learnt or not assumed.

    Both are places in `planned` (in the order of mounting), those below as bits. Known edges come first, then what was
    `learnt` of superblocks; then what is not understood lies on all that was mounted before it, but for what lies
    on the very device that is not understood. An edge that would close a circle is left out. Raises Fault for a circle
    of known edges.
    """
    place = {i: at for at, i in enumerate(planned)}
    direct: list[list[int]] = []
    unknown: dict[int, str] = {}
    behind: dict[int, set[str | None]] = {}

    def below_with_device(node: Node, device: str | None) -> list[tuple[Node, str | None]]:
        return [(on, on if isinstance(on, str) else device) for on in below(node)]

    @functools.cache
    def devices_of(at: int) -> set[Node]:
        return {node for node in walk_down(below(planned[at]), below) if isinstance(node, str)}

    for at, i in enumerate(planned):
        # What lies below another planned one is that one's own.
        pairs = list(
            walk_down(below_with_device(i, None), lambda pair: () if pair[0] in place else below_with_device(*pair))
        )
        nodes = dict.fromkeys(node for node, _ in pairs)
        direct.append([place[node] for node in nodes if isinstance(node, int) and node in place and node != i])
        if None in nodes:
            devices = listed(node for node in nodes if isinstance(node, str))
            unknown[at] = f"{found[i].points[0]}{devices and f' ({devices})'}"
            behind[at] = {device for node, device in pairs if node is None}
    hosts = [set(walk_down(below_it, direct.__getitem__)) - {at} for at, below_it in enumerate(direct)]
    for at, those in enumerate(hosts):
        if circle := [other for other in those if at in hosts[other]]:
            names = listed(found[planned[other]].points[0] for other in sorted([at, *circle]))
            why = f"{names} lie on each other in a circle; exclude one of them"
            raise Fault(Code.FREEZE_FAILED, f"no order of freezing: {why}; nothing was frozen")

    reach = [sum(1 << host for host in those) for those in hosts]
    notes = add_learnt(reach, [found[i] for i in planned], learnt)
    for at, name in unknown.items():
        on_it = [other for other, mask in enumerate(reach) if mask >> at & 1]
        before = [other for other in range(at) if not reach[other] >> at & 1]
        # What lies on the very device whose own place is not known cannot be that place.
        earlier = [other for other in before if not behind[at] <= devices_of(other)]
        for other in earlier:
            reach[at] |= reach[other] | 1 << other
        if earlier:
            but = "" if len(earlier) == len(before) else ", but for what lies on the same device"
            all_but = f"all that was mounted before it{but}"
            notes.append(f"{name} is taken to lie on {all_but}: what it lies on is not understood")
        for other in on_it:
            reach[other] |= reach[at]
        if refused := [found[planned[other]].points[0] for other in on_it if other < at]:
            what = f"{found[planned[at]].points[0]} is not taken to lie on {listed(refused)}"
            notes.append(f"{what}: mounted before it, but known to lie on it")
    return reach, notes


def bottom_of(node: Node, below: Callable[[Node], list[Node]]) -> tuple[str, ...]:
    """Return the devices that a file system lies on in the end: those that lie on nothing else that is known."""
    devices = (one for one in walk_down([node], below) if isinstance(one, str))
    return tuple(name.replace("!", "/") for name in devices if all(on is None for on in below(name)))


def bits(mask: int) -> list[int]:
    """Return the places of the bits that are set, from the lowest."""
    text = bin(mask)[:1:-1]
    return [at for at, bit in enumerate(text) if bit == "1"]
