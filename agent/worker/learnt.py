"""What earlier freezes have found out of what lies on what, put into the order of a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..api.text import listed
from .mountinfo import Superblock


def add_learnt(reach: list[int], planned: Sequence[Superblock], learnt: Mapping[str, Sequence[str]]) -> list[str]:
    """Add to what each planned one lies on (`reach`, as bits) what was learnt of it; return notes on that.

    `learnt` says of superblocks (device numbers) on which others they lie, one of them at least.
    """
    notes = []
    places = {superblock.info.device: at for at, superblock in enumerate(planned)}
    for number, others in learnt.items():
        if number not in places:
            continue
        lying, point = places[number], planned[places[number]].points[0]
        hosts = [places[other] for other in others if other in places and other != number]
        refused = [host for host in hosts if reach[host] >> lying & 1]
        kept = [host for host in hosts if host not in refused]
        if refused:
            named = listed(planned[host].points[0] for host in refused)
            notes.append(f"{point} is not taken to lie on {named}, as was learnt: known to lie on it")
        if kept:
            notes.append(f"{point} lies on one of: {listed(planned[host].points[0] for host in kept)} (learnt)")
        below = sum(1 << host for host in kept)
        for host in kept:
            below |= reach[host]
        for at, mask in enumerate(reach):
            if at == lying or mask >> lying & 1:
                reach[at] |= below
    return notes
