"""virtagentctl metrics: what the agents say, for Prometheus: as OpenMetrics text, or as its own text, in a file too.

The two differ in the name that TYPE and HELP of a counter have, and in the end. node_exporter and promtool read only
the second: of OpenMetrics they take a counter for something of no type and no help.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..agent.api.errors import VirtagentError
from ..agent.api.records import Status
from ..agent.api.states import FreezeState, Outcome
from . import exits
from .errors import HostError
from .exits import DONE
from .text import to_json

FILE = "virtagent.prom"
OPENMETRICS, PROMETHEUS = FORMATS = ("openmetrics", "prometheus")
_STUCK = "disk-sleep"  # psutil's name of state D
_STATES = tuple(state.name for state in FreezeState)

FAMILIES: Mapping[str, tuple[str, str]] = {
    "virtagent_up": ("gauge", "Whether the agent answered."),
    "virtagent_build_info": ("gauge", "The version of the agent; always 1."),
    "virtagent_uptime_seconds": ("gauge", "How long the agent has run."),
    "virtagent_state": ("gauge", "1 for the state that the freeze is in."),
    "virtagent_hold_left_seconds": ("gauge", "What is left of the hold; only while frozen, with a limit."),
    "virtagent_freezes": ("counter", "Freezes that have ended, by outcome."),
    "virtagent_phase_seconds": ("counter", "Seconds spent in each phase of all freezes."),
    "virtagent_held_seconds": ("counter", "Seconds between frozen and thaw asked, of all freezes."),
    "virtagent_stall_seconds": ("counter", "Seconds that writers stood still, of all freezes."),
    "virtagent_last_success_timestamp_seconds": ("gauge", "When the last freeze ended that held without a break."),
    "virtagent_last_freeze_timestamp_seconds": ("gauge", "When the last freeze ended."),
    "virtagent_last_freeze_good": ("gauge", "Whether the last freeze held without a break."),
    "virtagent_last_freeze_broken": ("gauge", "Whether the last freeze was broken after the host was told frozen."),
    "virtagent_last_hold_seconds": ("gauge", "How long the last freeze was held."),
    "virtagent_last_stall_seconds": ("gauge", "How long writers stood still in the last freeze."),
    "virtagent_last_app_stall_seconds": ("gauge", "How long applications of writers stood still in the last freeze."),
    "virtagent_last_application_consistent": ("gauge", "Whether all writers held over the last freeze."),
    "virtagent_mounts": ("gauge", "File systems of the last plan, by what was done to them."),
    "virtagent_mounts_left_out": ("gauge", "File systems that the last plan left out, by reason."),
    "virtagent_writers": ("gauge", "1 for the state of each writer."),
    "virtagent_workers": ("gauge", "Worker processes."),
    "virtagent_workers_stuck": ("gauge", "Worker processes that wait for a disk."),
    "virtagent_audit_waiting": ("gauge", "Audit records that wait for the thaw."),
    "virtagent_audit_dropped": ("counter", "Audit records that were lost."),
    "virtagent_troubles": ("counter", "Connections and workers that were given up because a call for them failed."),
}
_BROKEN = (Outcome.BROKEN.value, Outcome.EXPIRED.value)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a family, and its labels."""

    family: str
    labels: tuple[tuple[str, str], ...]
    value: float


def samples(agent: str, status: Status | None) -> Iterator[Sample]:
    """Yield what is known of an agent; None if it did not answer. What is not known is left out, never -1."""

    def one(family: str, value: float, **labels: str) -> Iterator[Sample]:
        if value >= 0:
            yield Sample(family, (("agent", agent), *labels.items()), int(value) if value in (0, 1) else value)

    yield from one("virtagent_up", status is not None)
    if status is None:
        return
    yield from one("virtagent_build_info", 1, version=status.version)
    for state in _STATES:
        yield from one("virtagent_state", state == status.state, state=state)
    if status.stock:
        return
    totals, last = status.totals, status.last
    yield from one("virtagent_uptime_seconds", status.uptime)
    yield from one("virtagent_hold_left_seconds", status.hold_left)
    for outcome, count in totals.freezes.items():
        yield from one("virtagent_freezes", count, outcome=outcome)
    for phase, seconds in totals.phase_seconds.items():
        yield from one("virtagent_phase_seconds", seconds, phase=phase)
    yield from one("virtagent_held_seconds", totals.held_seconds)
    yield from one("virtagent_stall_seconds", totals.stall_seconds)
    yield from one("virtagent_last_success_timestamp_seconds", totals.last_success)
    if last is not None:
        yield from one("virtagent_last_freeze_timestamp_seconds", last.at)
        yield from one("virtagent_last_freeze_good", last.held_continuously)
        yield from one("virtagent_last_freeze_broken", last.outcome in _BROKEN)
        yield from one("virtagent_last_hold_seconds", last.held_seconds)
        yield from one("virtagent_last_stall_seconds", last.stall_seconds)
        yield from one("virtagent_last_app_stall_seconds", last.app_stall_seconds)
        if status.writers:
            yield from one("virtagent_last_application_consistent", last.consistency == "application")
    for state, count in _counts(mount.state for mount in status.mounts if not mount.reason):
        yield from one("virtagent_mounts", count, state=state)
    for reason, count in status.left_out_counts.items():
        yield from one("virtagent_mounts_left_out", count, reason=reason)
    for writer in status.writers:
        yield from one("virtagent_writers", 1, writer=writer.name, type=writer.type, state=writer.state)
    yield from one("virtagent_workers", len(status.workers))
    yield from one("virtagent_workers_stuck", sum(w.process_state == _STUCK for w in status.workers))
    yield from one("virtagent_audit_waiting", status.audit.waiting)
    yield from one("virtagent_audit_dropped", status.audit.dropped)
    yield from one("virtagent_troubles", status.troubles)


def _counts(values: Iterable[str]) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return sorted(found.items())


def exposition(found: Iterable[Sample], form: str = OPENMETRICS) -> str:
    """Return the samples as text in one of FORMATS, each family once."""
    by_family: dict[str, list[Sample]] = {}
    for sample in found:
        by_family.setdefault(sample.family, []).append(sample)
    lines = []
    for family, (kind, what) in FAMILIES.items():
        if family not in by_family:
            continue
        name = f"{family}_total" if kind == "counter" else family
        named = family if form == OPENMETRICS else name
        lines += [f"# TYPE {named} {kind}", f"# HELP {named} {what}"]
        for sample in by_family[family]:
            labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels)
            lines.append(f"{name}{{{labels}}} {_number(sample.value)}")
    return "\n".join([*lines, "# EOF"] if form == OPENMETRICS else lines) + "\n"


def _escaped(text: str) -> str:
    text = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def write(folder: str, text: str) -> None:
    """Replace the file in node_exporter's folder as a whole; raise OSError."""
    fd, fresh = tempfile.mkstemp(prefix=f".{FILE}.", dir=folder)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o644)
            file.write(text)
        os.rename(fresh, os.path.join(folder, FILE))
    except BaseException:
        os.unlink(fresh)
        raise


def tell(
    found: Mapping[str, Status | VirtagentError], folder: str | None, *, as_json: bool, form: str = OPENMETRICS
) -> int:
    """Print, or write, what was found of each agent; return the exit code of the first that did not answer.

    A file is node_exporter's, whatever `form` says. Raises HostError if the file cannot be written.
    """
    known = [
        sample
        for url, status in found.items()
        for sample in samples(url, status if isinstance(status, Status) else None)
    ]
    text = exposition(known, form if folder is None else PROMETHEUS)
    if as_json:
        print(to_json([{"name": s.family, "labels": dict(s.labels), "value": s.value} for s in known], indent=2))
    elif folder is None:
        print(text, end="", flush=True)
    if folder is not None:
        try:
            write(folder, text)
        except OSError as error:
            raise HostError(f"{os.path.join(folder, FILE)} cannot be written ({error.strerror})") from None
    code = DONE
    for url, status in found.items():
        if isinstance(status, VirtagentError):
            wrong, ending = exits.sentence(status)
            exits.complain(wrong if url in wrong else f"{url}: {wrong}", ending)
            code = code or ending
    return code
