"""What was measured: figures, tables of them, and the file that keeps them."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """All values of one thing, measured one way: `part` is a table, `what` a row of it, `way` a column."""

    part: str
    what: str
    way: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def at(self, share: float) -> float:
        """Return the percentile, as the value that so many do not pass."""
        return sorted(self.values)[math.ceil(share * len(self.values)) - 1]

    def __str__(self) -> str:
        least, most = number(min(self.values)), number(max(self.values))
        return f"**{number(self.median)}**" + (f" ({least} - {most})" if len(self.values) > 1 else "")


class Figures:
    """The figures so far; `add` prints nothing."""

    def __init__(self) -> None:
        self.all: list[Figure] = []

    def add(self, part: str, what: str, way: str, unit: str, values: Sequence[float]) -> Figure:
        made = Figure(part, what, way, unit, tuple(values))
        self.all.append(made)
        return made

    def get(self, part: str, what: str, way: str) -> Figure | None:
        return next((f for f in self.all if (f.part, f.what, f.way) == (part, what, way)), None)

    def parts(self) -> list[str]:
        return list(dict.fromkeys(f.part for f in self.all))

    def table(self, part: str, against: str = "qemu-ga", us: str = "virtagentd") -> str:
        """Return a part as a Markdown table: median (least - most), and how many times more than ours the peer's is."""
        mine = [f for f in self.all if f.part == part]
        ways = list(dict.fromkeys(f.way for f in mine))
        compared = us in ways and against in ways
        head = ["", *ways, *([f"{against} / {us}"] if compared else [])]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for what in dict.fromkeys(f.what for f in mine):
            row = {f.way: f for f in mine if f.what == what}
            unit = next(iter(row.values())).unit
            cells = [f"{what}, {unit}" if unit else what, *(str(row[w]) if w in row else "" for w in ways)]
            if compared:
                both = us in row and against in row and row[us].median > 0
                cells.append(f"{number(row[against].median / row[us].median)}" if both else "")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def keep(self, path: Path, settings: dict[str, object], notes: Iterable[str], *, aside: bool = False) -> None:
        """Keep all in a JSON file, and what that has of other parts; `aside`: also its settings and notes."""
        other, about = Figures.load(path) if path.exists() else (Figures(), {})
        old = [f for f in other.all if f.part not in self.parts()]
        if not (aside and about):
            about = {"machine": machine(), "settings": settings, "notes": list(notes)}
        kept = {
            **about,
            "figures": [{**asdict(f), "values": [round(v, 4) for v in f.values]} for f in (*old, *self.all)],
        }
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> tuple[Figures, dict[str, object]]:
        """Return the figures of a file, and what else it says."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        made = cls()
        for one in kept.pop("figures"):
            made.add(one["part"], one["what"], one["way"], one["unit"], one["values"])
        return made, kept


def number(value: float) -> str:
    """Return it with the digits that count."""
    if value and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> dict[str, object]:
    """Return what the figures depend on; nothing that tells whose machine it is."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "processor": cpu[1].strip() if cpu else platform.machine(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "qemu-ga": _version(["qemu-ga", "--version"]),
        "util-linux": _version(["fsfreeze", "--version"]),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _version(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else ""


def say(text: str) -> None:
    print(text, flush=True)


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)
