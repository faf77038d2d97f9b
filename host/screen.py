"""From records to what rich draws on a terminal: tables, a tree, a live picture. Imported only where it is drawn.

What a guest says is drawn as text, never as markup, and escaped by `printable`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ..agent.api import forecast
from ..agent.api.records import Capabilities, MountStatus, Plan, Status
from ..agent.api.text import printable
from . import answers, folded, text

_STYLES = {
    "ERROR": "bold red",
    "THAWED": "bold green",
    "INPROGRESS": "bold",
    "FROZEN": "bold cyan",
    "THAWINPROGRESS": "bold",
    "pending": "",
    "syncing": "bold",
    "synced": "green",
    "freezing": "bold",
    "frozen": "cyan",
    "thawing": "bold",
    "thawed": "green",
    "unsupported": "magenta",
    "busy": "red",
    "failed": "bold red",
    "left-out": "",
}
_NARROW = 50  # columns; below that the cells of a table would be too narrow to read
_PLANNED_SHOWN = 30  # rows of one guest in a live picture; the rest is only counted
_LEAST_SHOWN = 3  # however low the terminal is
_ROOM_LEAST, _ROOM_OTHERS = 24, 38  # characters: for mount point and error, and for state, type, time and gaps
_QUIET = ("pending", "synced", "frozen", "thawed")


def console(stream: Any = None) -> Console:
    """Return a console on `stream` (default: the standard output) that does not interpret what is printed."""
    return Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)


def status(record: Status, *, verbose: bool = False) -> RenderableType:
    """Draw what a status record answers; with `verbose` all of it: each file system, workers, audit."""
    said = [] if record.stock else [_cell(line) for line in answers.lines(record)]
    parts = [
        *_state(record),
        *said,
        *_mounts(record, verbose=verbose),
        *_rows_of_writers(map(text.writer_row, record.writers)),
    ]
    parts += _workers(record) if verbose else ()
    last = text.last_freeze(record.last) if record.last else "none since the agent started"
    bad = record.last is not None and record.last.freeze_id > 0 and not record.last.held_continuously
    facts = Table.grid(padding=(0, 2))
    facts.add_row(_cell("last freeze"), _cell(last, "red" if bad else ""))
    if verbose or record.audit.dropped:
        facts.add_row(_cell("audit"), _cell(text.audit_line(record.audit), "red" if record.audit.dropped else ""))
    facts.add_row(_cell("agent"), _cell(f"version {record.version or 'unknown'}, up {text.known(record.uptime)}"))
    return Group(*parts, facts)


def plan(found: Plan, *, verbose: bool = False) -> RenderableType:
    """Draw the plan as a tree of levels, and what is left out; with `verbose` each by name."""
    tree = Tree(Text(f"a freeze would freeze {text.count(len(found.mounts))}", "bold"), guide_style="")
    for level in sorted({mount.level for mount in found.mounts}):
        branch = tree.add(Text(f"level {level}, all at once", "cyan"))
        for mount in found.mounts:
            if mount.level == level:
                branch.add(_line(text.planned_row(mount, found)))
    rows = folded.left_out(found.left_out, verbose=verbose)
    counted = list(folded.counted_left_out(found.left_out, found.left_out_counts, rows))
    if rows or counted:
        out = tree.add(Text("left out", "magenta"))
        for left in rows:
            out.add(_line(text.left_out_row(left)))
        for line in counted:
            out.add(_cell(line))
    for note in found.notes:
        tree.add(_cell(note, "bold"))
    writers = _rows_of_writers(map(text.planned_writer_row, found.writers))
    return Group(tree, *map(_cell, forecast.lines(found)), *writers)


def capabilities(able: Capabilities) -> RenderableType:
    """Draw the version, and the methods in columns by their family."""
    grid = Table.grid(padding=(0, 2))
    families: dict[str, list[str]] = {}
    for name in able.methods:
        families.setdefault(name.partition(".")[0] if "." in name else name.partition("-")[0], []).append(name)
    for family, names in families.items():
        grid.add_row(_cell(family), _cell(", ".join(names)))
    return Group(_cell(f"virtagentd {able.version}", "bold"), grid)


def _state(record: Status) -> Iterable[RenderableType]:
    head = _cell(text.headline(record))
    head.stylize(_STYLES.get(record.state, "bold"), 0, len(printable(record.state)))
    yield head
    if going := text.moved(record.progress):
        written, dirty = record.progress.flushed_bytes, record.progress.dirty_bytes
        yield _cell(f"  {_bar(written, dirty)}{going}")


def _bar(written: int, dirty: int, width: int = 24) -> str:
    if written < 0 or dirty < 0 or written + dirty <= 0:
        return ""
    full = round(width * (written / (written + dirty)))
    return f"[{'#' * full}{'.' * (width - full)}] "


def _mounts(record: Status, *, verbose: bool) -> Iterable[RenderableType]:
    rows = folded.planned(record.mounts, verbose=verbose)
    yield from _rows(rows)
    yield from map(_cell, folded.counted_planned(record.mounts, rows))
    shown = folded.all_left_out(record)
    out = folded.left_out(shown, verbose=verbose)
    lines = [*text.table([text.left_out_row(left) for left in out])]
    lines += (f"  {line}" for line in folded.counted_left_out(shown, record.left_out_counts, out))
    if lines:
        yield from map(_cell, ("left out", *lines))


def _rows(mounts: Sequence[MountStatus]) -> Iterable[RenderableType]:
    if mounts:
        grid = _table(("file system", "state", "type", "device", "took", ""))
        for state, mountpoint, *rest in map(text.mount_row, mounts):
            style = _STYLES.get(state, "")
            grid.add_row(_cell(mountpoint), _cell(state, style), *map(_cell, rest))
        yield _Fitting(grid)


def _rows_of_writers(rows: Iterable[tuple[str, ...]]) -> Iterable[RenderableType]:
    found = list(rows)
    if found:
        grid = _table(("writer", "type", *[""] * (len(found[0]) - 2)))
        for row in found:
            grid.add_row(*map(_cell, row))
        yield _Fitting(grid)


def _workers(record: Status) -> Iterable[RenderableType]:
    if record.workers:
        grid = _table(("worker", "process", "phase", "for", "kernel"))
        for worker in record.workers:
            stuck = "bold red" if text.waits(worker, record) else ""
            grid.add_row(*(_cell(one, stuck) for one in text.worker_row(worker)))
        yield _Fitting(grid)


def _table(heads: Sequence[str]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
    for head in heads:
        grid.add_column(head, overflow="fold")
    return grid


class _Fitting:
    """A table; where the terminal is too narrow for it, a paragraph for each row."""

    def __init__(self, grid: Table) -> None:
        self._grid = grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= _NARROW:
            yield self._grid
            return
        for row in zip(*(column.cells for column in self._grid.columns), strict=True):
            yield Text("  ").join(cell for cell in row if isinstance(cell, Text) and cell)


def _line(cells: Iterable[str]) -> Text:
    first, *rest = cells
    return Text.assemble(printable(first), *(("  " + printable(one), "") for one in rest if one))


def _cell(words: str, style: str = "") -> Text:
    return Text(printable(words), style)
