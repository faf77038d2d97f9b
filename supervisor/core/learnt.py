"""What freezes have found out of what lies on what, in a way that no device number tells. In memory only. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ...agent.api.options import Edge
from ...agent.api.records import Learnt, Mount
from ...agent.api.states import Phase
from .entries import LEARNT
from .events import Entry
from .transaction import Transaction
from .turn import Turn

MOST = 256  # edges; a plan takes no notice of those whose superblock is gone, but they stay here


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
            found = Learnt(mount.mountpoint, tuple(host.mountpoint for host in hosts))
            self._by_number[mount.device] = (ids[0], tuple(ids[1:]))
            if len(self._by_number) > MOST:
                del self._by_number[next(iter(self._by_number))]
            transaction.learnt.append(found)
            fields = (
                ("freeze_id", str(transaction.id)),
                ("phase", Phase.FREEZE.value),
                ("mount", mount.mountpoint),
                *(("lies_on", host) for host in found.hosts),
            )
            text = f"{mount.mountpoint} lies on one of: {', '.join(found.hosts)}"
            turn.log("info", text, Entry(LEARNT, fields))
        elif before and before[0] == ids[0]:
            turn.log("info", f"{mount.mountpoint} does not lie on what an earlier freeze took it to lie on")
