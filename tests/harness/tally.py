"""The figures of many storms, and their table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What many storms did and showed."""

    storms: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    freezes: int = 0
    held: int = 0
    broken: int = 0
    unclear: int = 0
    told: int = 0
    worst: float = 0.0
    alone: int = 0
    alone_worst: float = 0.0
    kernel: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures as a table in Markdown."""
        rows = [("storms", str(self.storms)), ("freezes that a host was told of", str(self.freezes))]
        rows += [("- thawed by a host, held without a break until it asked", str(self.held))]
        rows += [("- broken, and a host was told", str(self.broken))]
        rows += [("- superseded or crossed by other calls, so not judged", str(self.unclear))]
        rows += [("answers that told of a broken freeze", str(self.told))]
        rows += [("worst time from the last disturbance to all thawed", f"{self.worst:.2f} s")]
        rows += [("keepers that thawed alone, the supervisor dead or stopped", str(self.alone))]
        rows += [("- worst time from its death, or the end of the hold", f"{self.alone_worst:.2f} s")]
        rows += [(f"fault: {kind}", str(count)) for kind, count in sorted(self.faults.items())]
        rows += [(f"kernel: {kind}", str(count)) for kind, count in sorted(self.kernel.items())]
        rows += [("faults injected", str(self.faults.total())), ("violations", str(len(self.violations)))]
        width = max(len(name) for name, _ in rows)
        lines = [f"| {'what':<{width}} | count |", f"|-{'-' * width}-|------:|"]
        return "\n".join([*lines, *(f"| {name:<{width}} | {value:>5} |" for name, value in rows)])
