"""What freezes have found out of what lies on what, in a way that no device number tells. In memory only. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ...agent.api.records import Learnt, Mount
from .transaction import Transaction
from .turn import Turn


class Edges:
    """On which others a file system lies, one of them at least: device numbers of superblocks, for the next plans."""

    def __init__(self) -> None:
        self.by_number: dict[str, tuple[str, ...]] = {}

    def learn(self, turn: Turn, transaction: Transaction, mount: Mount, hosts: Sequence[Mount]) -> None:
        """Take note that a file system lies on one of these, or, without any, that what was learnt of it is wrong."""
        if hosts:
            found = Learnt(mount.mountpoint, tuple(host.mountpoint for host in hosts))
            self.by_number[mount.device] = tuple(host.device for host in hosts)
            transaction.learnt.append(found)
            turn.log("notice", f"{mount.mountpoint} lies on one of: {', '.join(found.hosts)}")
        elif self.by_number.pop(mount.device, None):
            turn.log("notice", f"{mount.mountpoint} does not lie on what an earlier freeze took it to lie on")
