"""Puts the figures of a file into docs/performance.md, between two marks: all around them is written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

from .figures import Figures, say

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, KEPT = DOCS / "performance.md", DOCS / "performance.json"
BEGIN, END = "<!-- figures: made by scripts/bench --report from docs/performance.json -->\n", "<!-- end of figures -->"


def write(path: Path) -> int:
    """Rewrite the page; return the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        print(f"scripts/bench: {PAGE.name} has no place for the figures", file=sys.stderr)
        return 1
    figures, about = Figures.load(path)
    PAGE.write_text(head + BEGIN + section(figures, about) + END + tail, encoding="utf-8")
    say(f"scripts/bench: {len(figures.all)} figures are in docs/{PAGE.name}")
    return 0


def section(figures: Figures, about: dict[str, object]) -> str:
    """Return the tables, and what they were measured with."""
    lines = ["\n"]
    for part in figures.parts():
        lines.append(f"### {part[0].upper()}{part[1:]}\n\n{figures.table(part)}\n")
    for name in ("machine", "settings"):
        facts = about[name]
        assert isinstance(facts, dict)
        lines.append(f"{name.capitalize()}: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".\n\n")
    notes = about["notes"]
    assert isinstance(notes, list)
    lines += [f"Note: {note}.\n\n" for note in notes]
    return "".join(lines)
