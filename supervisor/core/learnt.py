"""What freezes have found out of what lies on what, in a way that no device number tells. In memory only. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ...agent.api.bounds import learnt
from ...agent.api.options import Edge
from ...agent.api.records import Mount
from ...agent.api.states import Phase
from ...agent.api.text import listed
from .entries import LEARNT
from .events import Entry
from .transaction import Transaction
from .turn import Turn

MOST = 256  # edges; a plan takes no notice of those whose superblock is gone, but they stay here
MOST_IDS = 1 << 16  # in all edges; of one edge all are kept, since it may be any of them


class Edges:
    """On which others a file system lies, one of them at least: ids of superblocks, for the next plans."""

    def __init__(self) -> None:
        self._by_number: dict[str, Edge] = {}

    @property
    def known(self) -> tuple[Edge, ...]:
        """What the next plan is given."""
        return tuple(self._by_number.values())

    def learn(
        self, turn: Turn, transaction: Transaction, mount: Mount, hosts: Sequence[Mount], ids: Sequence[str]
    ) -> None:
        """Take note that a file system lies on one of these, or, without any, that what was learnt of it is wrong.

        `ids` are those of their superblocks, its own first.
        """
        before = self._by_number.pop(mount.device, None)
        if hosts:
            found = learnt(mount.mountpoint, [host.mountpoint for host in hosts])
            self._by_number[mount.device] = (ids[0], tuple(ids[1:]))
            self._forget_the_oldest()
            transaction.note_learnt(found)
            fields = (
                ("freeze_id", str(transaction.id)),
                ("phase", Phase.FREEZE.value),
                ("mount", mount.mountpoint),
                *(("lies_on", host) for host in found.hosts),
            )
            text = f"{mount.mountpoint} lies on one of: {listed(found.hosts, more=found.more_hosts)}"
            turn.log("info", text, Entry(LEARNT, fields))
        elif before and before[0] == ids[0]:
            turn.log("info", f"{mount.mountpoint} does not lie on what an earlier freeze took it to lie on")

    def _forget_the_oldest(self) -> None:
        ids = sum(1 + len(hosts) for _, hosts in self.known)
        while len(self._by_number) > MOST or (ids > MOST_IDS and len(self._by_number) > 1):
            ids -= 1 + len(self._by_number.pop(next(iter(self._by_number)))[1])
