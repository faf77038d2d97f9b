"""Which breakages a tree has: derived from its source and its tables, whatever its folders are called."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import areas

FLAGS = ("disk", "essential", "limit", "compensation", "outlives", "thaws_first")
_NOTHING = "nothing"  # the action of a row that has none
_OURS = "__import__('breaking.derive').derive"


@dataclass(frozen=True)
class Breakage:
    """One change: `text` takes the place of the characters from `start` to `end` of the file at `path`."""

    name: str
    kind: str
    area: str
    path: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """Return the broken source."""
        return source[: self.start] + self.text + source[self.end :]


class Source:
    """A file with the offsets of its lines, in characters."""

    def __init__(self, tree: Path, path: Path) -> None:
        self.path = str(path.relative_to(tree))
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self._lines = self.text.splitlines(keepends=True)

    def offset(self, line: int, column: int) -> int:
        """Return where a position of the syntax tree (its column counts bytes) stands in the text."""
        before = sum(map(len, self._lines[: line - 1]))
        return before + len(self._lines[line - 1].encode()[:column].decode())

    def span(self, node: Any) -> tuple[int, int]:
        """Return where a node begins and ends."""
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)


def sources(tree: Path, globs: list[str]) -> Iterator[Source]:
    """Yield the files that the globs name, each once."""
    for path in sorted({path for pattern in globs for path in tree.glob(pattern)}):
        yield Source(tree, path)


def inside(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield all nodes with the function that they stand in; not what stands in an f-string, which has no position."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr):
            continue
        named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
        within = f"{scope}.{child.name}".lstrip(".") if named else scope  # type: ignore[attr-defined]
        yield within, child
        yield from inside(child, within)


def comparisons(tree: Path, globs: list[str], area: str) -> Iterator[Breakage]:
    """Yield each comparison negated."""
    for source in sources(tree, globs):
        seen: Counter[str] = Counter()
        for scope, node in inside(source.tree):
            if isinstance(node, ast.Compare):
                start, end = source.span(node)
                text = source.text[start:end]
                what = f"{source.path}:{scope}: not ({' '.join(text.split())})"
                seen[what] += 1
                name = what + (f" #{seen[what]}" if seen[what] > 1 else "")
                yield Breakage(name, f"comparison of {area}", area, source.path, start, end, f"(not ({text}))")


def caps(tree: Path, globs: list[str], area: str) -> Iterator[Breakage]:
    """Yield each constant that ends with MAX a million times as large."""
    for source in sources(tree, globs):
        for node in source.tree.body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) if value else ""  # type: ignore[attr-defined]
            if value is not None and re.search(r"_MAX$|^MAX_", name):
                start, end = source.span(value)
                text = f"({source.text[start:end]}) * 1_000_000"
                yield Breakage(f"{source.path}: {name} lifted", "cap", area, source.path, start, end, text)


def assignments(tree: Path, globs: list[str], wanted: str) -> Iterator[tuple[Source, ast.stmt, str]]:
    """Yield the assignments of modules to names that match."""
    for source in sources(tree, globs):
        for node in source.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and re.search(wanted, target.id):
                yield source, node, target.id


def table_rows(tree: Path) -> Iterator[Breakage]:
    """Yield each row of the state tables without its row, and with each of its members turned."""
    for source, node, name in assignments(tree, areas.TABLES, r"_TABLE$"):
        table = vars(_module(source.path))[name]
        end = source.span(node)[1]
        for i, (key, row) in enumerate(table.items()):
            for change in ("removed", *_members(row)):
                text = f"; {name} = {_OURS}.turn_row({name}, {i}, {change!r})"
                title = ", ".join(part.name for part in key)
                yield Breakage(f"{name}[{title}]: {change}", f"row of {name}", "core", source.path, end, end, text)


def rpc_flags(tree: Path) -> Iterator[Breakage]:
    """Yield each row of the RPC table with one of its flags turned: what it does to the disk, its limit and so on."""
    for source, node, name in assignments(tree, areas.ROWS, r"^RPCS$"):
        end = source.span(node)[1]
        for rpc, row in vars(_module(source.path))[name].items():
            for flag in FLAGS:
                if flag in ("disk", "essential") or getattr(row, flag):
                    text = f"; {name} = {_OURS}.turn_flag(globals(), {name}, {rpc!r}, {flag!r})"
                    yield Breakage(f"{name}[{rpc}]: {flag} turned", "flag of RPCS", "rpc", source.path, end, end, text)


def _fields(row: Any) -> dict[str, Any]:
    """Return the members of a row by name, or by number if it is a plain tuple."""
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return dict(row._asdict()) if hasattr(row, "_asdict") else {str(i): member for i, member in enumerate(row)}


def _members(row: Any) -> list[str]:
    """Return the names of a row's members that are of an enumeration, yes and no, or the name of an action."""
    return [n for n, member in _fields(row).items() if isinstance(member, (enum.Enum, bool)) or n == "action"]


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    every = list(type(value))
    return every[(every.index(value) + 1) % len(every)]


def turn_row(table: Mapping[Any, Any], number: int, change: str) -> dict[Any, Any]:
    """Return a state table with one row removed, or with one member of it turned; called by the broken module."""
    turned = dict(table)
    key = list(turned)[number]
    row = turned.pop(key)
    if change == "removed":
        return turned
    before = _fields(row)[change]
    after = _other(before) if change != "action" else _NOTHING if before != _NOTHING else "advance"
    if dataclasses.is_dataclass(row):
        return {**turned, key: dataclasses.replace(row, **{change: after})}  # type: ignore[type-var]
    if hasattr(row, "_replace"):
        return {**turned, key: row._replace(**{change: after})}
    return {**turned, key: tuple(after if str(i) == change else member for i, member in enumerate(row))}


def turn_flag(module: dict[str, Any], rows: Mapping[str, Any], rpc: str, flag: str) -> Any:
    """Return the RPC table with one flag turned, checked as the module checks it; called by the broken module."""
    row = rows[rpc]
    before = getattr(row, flag)
    if flag == "disk":
        after = type(before).NONE if before is type(before).WRITE else type(before).WRITE
    else:
        after = {"limit": lambda: before * 1000, "compensation": lambda: None}.get(flag, lambda: not before)()
    turned = {**rows, rpc: dataclasses.replace(row, **{flag: after})}
    check = module.get("table")
    return check(tuple(turned.values())) if check else turned


def _module(path: str) -> Any:
    return importlib.import_module("virtagent." + path.removesuffix(".py").replace("/", "."))


def derive(tree: Path) -> list[Breakage]:
    """Return all breakages of the tree."""
    return [
        *table_rows(tree),
        *rpc_flags(tree),
        *comparisons(tree, areas.CORE, "core"),
        *comparisons(tree, areas.FREEZE, "freeze"),
        *caps(tree, areas.CORE, "core"),
        *caps(tree, areas.CHANNELS, "channels"),
        *caps(tree, areas.WIRE, "wire"),
    ]
