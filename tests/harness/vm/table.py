"""The table of docs/vm.md: what libvirt's commands did, with a stock qemu-ga and with virtagent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .domain import QEMU_GA, VIRTAGENT

ROWS = (
    "virsh domstate (asks no agent)",
    "qemu-agent-command guest-ping",
    "guestinfo",
    "domhostname --source agent",
    "domfsinfo",
    "domifaddr --source agent",
    "domtime",
    "domtime --time",
    "guestvcpus",
    "guestvcpus --disable",
    "domfstrim",
    "set-user-password",
    "domfsfreeze",
    "domfsfreeze --mountpoint /srv/ext4",
    "domfsthaw",
    "snapshot-create-as --disk-only --quiesce",
    "the same, writers stood still",
    "reboot --mode agent",
    "shutdown --mode agent",
    "domfsfreeze, a disk is stuck",
    "domfsfreeze, virsh killed",
    "snapshot-create-as --quiesce, virsh killed",
    "snapshot-create-as --quiesce, libvirtd killed",
    "any other, virsh killed",
)


class Table:
    """Cells by row and agent; rows stand in the order of ROWS."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], str] = {}

    def __bool__(self) -> bool:
        return bool(self._cells)

    def note(self, row: str, agent: str, cell: str) -> None:
        assert row in ROWS, row
        self._cells[row, agent] = cell

    def time(self, row: str, agent: str, seconds: Sequence[float]) -> None:
        """Note the median."""
        self.note(row, agent, f"{statistics.median(seconds):.2f} s")

    def lines(self) -> list[str]:
        """Return it in Markdown."""
        found = ["| virsh | qemu-ga | virtagent |", "|---|---|---|"]
        for row in ROWS:
            cells = [self._cells.get((row, agent), "") for agent in (QEMU_GA, VIRTAGENT)]
            if any(cells):
                found.append(f"| {row} | {cells[0]} | {cells[1]} |")
        return found
