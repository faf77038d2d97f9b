"""Pictures of the figures (SVG): how long writers stand still, and how a freeze grows with the number of file systems.

matplotlib (extra `bench`) is imported only here, and this only when pictures are wanted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

from . import scaling, stall
from .figures import Figures, number

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "virtagent", "svg.fonttype": "none", "font.size": 10, "axes.axisbelow": True}
from matplotlib import pyplot, ticker  # noqa: E402 - after the choice of what it draws on

COLOURS = {
    "virtagentd": "#1b7f4d",
    "qemu-ga": "#c8553d",
    "fsfreeze": "#8d99ae",
    "C parallel": "#2b2d42",
    "C per disk": "#5b6bd0",
}
WAYS = tuple(COLOURS)


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Draw what there are figures for; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [stalls(figures, folder / "stall.svg"), growth(figures, folder / "scaling.svg")]
    return [path for path in made if path is not None]


def stalls(figures: Figures, path: Path) -> Path | None:
    """One group of bars a case: the median of the longest stall of all writers, with the least and the most."""
    ending = ": longest of all writers"
    cases = [f.what for f in figures.all if f.part == stall.PART and f.what.endswith(ending)]
    cases = list(dict.fromkeys(cases))
    if not cases:
        return None
    picture, axes = pyplot.subplots(figsize=(9, 0.9 * len(cases) + 1.2))
    height = 0.7 / len(WAYS)
    for row, case in enumerate(cases):
        for place, way in enumerate(WAYS):
            figure = figures.get(stall.PART, case, way)
            if figure is None:
                continue
            at, middle = row + (place - (len(WAYS) - 1) / 2) * height, figure.median
            axes.hlines(at, min(figure.values), max(figure.values), color=COLOURS[way], linewidth=2)
            axes.plot(middle, at, "o", color=COLOURS[way], markersize=7, label=None if row else way)
            axes.annotate(number(middle), (max(figure.values), at), (7, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(cases)), [case.removesuffix(ending).replace(", ", "\n", 1) for case in cases])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.1)
    _tick(axes.xaxis)
    axes.set_xlabel("longest write stall over freeze and thaw, ms (median; the line is from the least to the most)")
    return _save(picture, axes, path)


def growth(figures: Figures, path: Path) -> Path | None:
    """One line a way: the median from request to reply of a freeze, and the range."""
    picture, axes = pyplot.subplots(figsize=(7, 4.5))
    drawn = False
    for way in WAYS:
        points = []
        for figure in figures.all:
            count = re.match(r"(\d+) file systems?: freeze$", figure.what)
            if figure.part == scaling.PART and figure.way == way and count:
                points.append((int(count[1]), figure))
        if not points:
            continue
        drawn = True
        counts = [count for count, _ in points]
        axes.plot(counts, [figure.median for _, figure in points], "o-", color=COLOURS[way], label=way, markersize=4)
        low, high = ([f(figure.values) for _, figure in points] for f in (min, max))
        axes.fill_between(counts, low, high, color=COLOURS[way], alpha=0.15, linewidth=0)
    if not drawn:
        return None
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _tick(axes.yaxis)
    axes.set_xticks(counts, map(str, counts))
    axes.set_xlabel("clean ext4 file systems")
    axes.set_ylabel("freeze, request to reply, ms")
    return _save(picture, axes, path)


def _tick(axis: Any) -> None:
    """Have plain numbers at a logarithmic axis."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _save(picture: Any, axes: Any, path: Path) -> Path:
    axes.grid(alpha=0.3, which="major")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(WAYS))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture.tight_layout()
    picture.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(picture)
    return path
