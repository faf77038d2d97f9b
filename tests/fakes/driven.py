"""Drives a script of the worker by lists: no process, no thread, no file system, and a clock that moves only in `Wait`.

What must hold in every freeze is asserted at the step that would break it: see `_begin`.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.options import Options, Rules
from virtagent.agent.api.records import Mount, Plan
from virtagent.agent.worker import messages, steps
from virtagent.agent.worker.steps import Event, Gone, Operation, Result, Script, Step, Taken, Timeout, Told

BEGIN = 1000.0
SAID = {errno.EIO: "Input/output error", errno.EBUSY: "Device or resource busy"}
_LASTS = 0.0
Call = tuple[int, Operation]


class Refused(NamedTuple):
    """The fault that a script ended with."""

    code: Code
    text: str


class Waits(Exception):
    """The script waits for what never comes."""


def plan_of(*hosts: Iterable[int], levels: Iterable[int] | None = None) -> Plan:
    """Return a plan of one file system for each argument, which says on which others it lies; levels 0 if not given."""
    given = tuple(levels) if levels is not None else (0,) * len(hosts)
    return Plan(
        tuple(
            Mount(
                *(f"/srv/{i}", (), f"7:{i}", "ext4", f"/dev/loop{i}", given[i], tuple(below), (f"loop{i}",)),
                devices=(f"loop{i}",),
            )
            for i, below in enumerate(hosts)
        ),
        (),
    )


def options(
    *,
    strict: bool = False,
    partial: bool = False,
    sync: float = 600,
    freeze: float = 30,
    hold: float = 60,
    patience: float = 1,
    busy_wait: float = 2,
) -> Options:
    """Return a request for all file systems."""
    return Options(Rules(), strict, sync, freeze, hold, partial, patience=patience, busy_wait=busy_wait)


@dataclass
class Driven:
    """One run of a script over that plan.

    `comes`: what the supervisor says and when, in seconds since the beginning. `errors` and `lasts`: the errnos and
    seconds of the calls on a file system, the first first; without, a call does what the kernel would, in no time.
    `failed`: the call that had the errors, if not the operation's own. `hangs_on`: on which others a file system
    lies although the plan does not say so: while one of them is frozen, its FIFREEZE does not return.
    `pipe_full_until`: the second from which the report pipe takes what is posted. `at_wait`: what comes of which
    `Wait`, by its number, instead. `at_step`: what which step raises, by its number. `sectors`: those written to each
    device, the first reading first; the last one stands.
    """

    plan: Plan
    comes: list[tuple[float, Event]] = field(default_factory=list)
    errors: dict[Call, list[int]] = field(default_factory=dict)
    lasts: dict[Call, list[float]] = field(default_factory=dict)
    failed: dict[Call, str] = field(default_factory=dict)
    hangs_on: dict[int, set[int]] = field(default_factory=dict)
    pipe_full_until: float = 0
    at_wait: dict[int, Event] = field(default_factory=dict)
    at_step: dict[int, Exception] = field(default_factory=dict)
    alone: bool = False
    expedites: bool = True
    sectors: list[dict[str, int]] = field(default_factory=lambda: [{f"loop{i}": 8 for i in range(300)}])

    did: list[Step] = field(default_factory=list, init=False)
    reports: list[messages.Report] = field(default_factory=list, init=False)
    titles: list[str] = field(default_factory=list, init=False)
    calls: list[tuple[str, int]] = field(default_factory=list, init=False)
    """The calls on file systems as they began: name and index."""
    began: dict[Call, float] = field(default_factory=dict, init=False)
    """When the last of these calls began."""
    history: list[tuple[float, str, int]] = field(default_factory=list, init=False)
    """When, in seconds since the beginning, which call began on which file system, or was "thawed"."""
    frozen: set[int] = field(default_factory=set, init=False)
    expedited: bool = field(default=False, init=False)
    waits: int = field(default=0, init=False)
    clock: float = field(default=BEGIN, init=False)

    def __post_init__(self) -> None:
        self.errors = {call: list(numbers) for call, numbers in self.errors.items()}
        self.lasts = {call: list(seconds) for call, seconds in self.lasts.items()}
        self._in_flight: list[tuple[float, int, Result]] = []
        self._begun = 0
        self._unread: set[int] = set()  # said to be about to freeze, but the supervisor cannot read that yet
        self._read: set[int] = set()
        self._tried: set[int] = set()
        self._left_out: set[int] = set()  # could not be synced
        self._told: list[messages.Control] = []
        self._stopped = False
        self._started = False
        self._comes = sorted(((BEGIN + when, event) for when, event in self.comes), key=lambda item: item[0])

    @property
    def passed(self) -> float:
        """The seconds since the beginning."""
        return self.clock - BEGIN

    def run(self, script: Script[int]) -> int | Refused:
        """Drive the script to its end; return its value or the fault that it raised."""
        try:
            step = next(script)
            while True:
                self.did.append(step)
                try:
                    if error := self.at_step.get(len(self.did) - 1):
                        raise error
                    answer = self._do(step)
                except (Waits, AssertionError):
                    raise
                except Exception as error:  # noqa: BLE001 - as the real driver
                    step = script.throw(error)
                else:
                    step = script.send(answer)
        except StopIteration as end:
            assert not self._in_flight
            return int(end.value)
        except Fault as fault:
            return Refused(fault.code, fault.text)

    def states(self, index: int) -> list[str]:
        """Return the states that were reported of a file system."""
        return [r.state for r in self.reports if isinstance(r, messages.Step) and r.mount == index]

    def said(self, kind: type[messages.Report]) -> list[Any]:
        """Return the reports of a kind."""
        return [report for report in self.reports if isinstance(report, kind)]

    def names(self) -> list[str]:
        """Return the calls as they began, each as its name and the file system's index."""
        return [f"{call} {index}" for call, index in self.calls]

    def _do(self, step: Step) -> Any:
        match step:
            case steps.Wait(until, taken):
                return self._wait(until, taken)
            case steps.Order(indices, operation):
                assert len(set(indices)) == len(indices)
                for index in indices:
                    self._begin(index, operation)
            case steps.Post(reports):
                self._post(reports)
            case steps.Send(report):
                self._post((report,))
            case steps.Inform(report):
                if not self._full():
                    self._post((report,))
            case steps.Now():
                return self.clock
            case steps.ReadPlan():
                return self.plan
            case steps.Start(mounts, _):
                self._started = True
                self._mounts = dict(mounts)
            case steps.StopFreezing():
                self._stopped = True
            case steps.Alone():
                return self.alone
            case steps.Measure(phase, number):
                return messages.Progress(phase.value, number, 4096, 0, 0.0)
            case steps.ReadWritten():
                return dict(self.sectors.pop(0) if len(self.sectors) > 1 else self.sectors[0])
            case steps.Title(text):
                self.titles.append(text)
            case steps.PrepareToExpedite():
                return self.expedites
            case steps.Expedite():
                assert self._read, "expedited before anybody could know that it must be put back"
                self.expedited = True
            case steps.EndExpedite() | steps.PutBack():
                self.expedited = False
            case steps.OpenCounters():
                assert not self._tried, "opened while something may be frozen"
            case steps.Identify(mounts):
                return [f"{mount.device}@ext4{number}" for number, mount in enumerate(mounts, 7)]
            case steps.BecomeKeeper() | steps.LockMemory():
                pass
        return None

    def _full(self) -> bool:
        return self.clock < BEGIN + self.pipe_full_until

    def _post(self, reports: Iterable[messages.Report]) -> None:
        for report in reports:
            self.reports.append(report)
            if isinstance(report, messages.Step) and report.state == "freezing":
                self._unread.add(report.mount)
        if not self._full():
            self._read |= self._unread

    def _begin(self, index: int, operation: Operation) -> None:
        assert self._started
        mount, key = self._mounts[index], (index, operation)
        assert all(result.mount != index for _, _, result in self._in_flight), f"{index} has a call in flight"
        error = self.errors[key].pop(0) if self.errors.get(key) else None
        failed = self.failed.get(key, "") if error else ""
        if operation is Operation.FREEZE and self._stopped:
            error, failed = errno.ECANCELED, steps.NOT_BEGUN
        elif operation is Operation.FREEZE:
            assert index in self._read, f"FIFREEZE of {index} before the supervisor could know"
            assert any(isinstance(m, messages.Proceed) for m in self._told), "FIFREEZE before Proceed"
            on_it = {i for i, other in self._mounts.items() if index in other.hosts}
            assert on_it <= self._tried | self._left_out, f"FIFREEZE of {index} before that of what lies on it"
            self._tried.add(index)
            if error is None and index in self.frozen:
                error = errno.EBUSY
        elif operation is Operation.THAW:
            assert not self.frozen.intersection(mount.hosts), f"FITHAW of {index} would block: its host is frozen"
            assert messages.Step(index, "thawing") in self.reports
            if error is None and index not in self.frozen:
                error = errno.EINVAL
        if failed != steps.NOT_BEGUN:
            self.calls.append((operation.call, index))
            self.history.append((self.passed, operation.call, index))
            self.began[key] = self.passed
        lasts = self.lasts[key].pop(0) if self.lasts.get(key) else _LASTS
        self._begun += 1
        error = error or 0
        result = Result(index, operation, error, SAID.get(error, "that") if error else "", failed)
        self._in_flight.append((self.clock + lasts, self._begun, result))

    def _hangs(self, result: Result) -> bool:
        return result.operation is Operation.FREEZE and bool(
            self.frozen.intersection(self.hangs_on.get(result.mount, ()))
        )

    def _wait(self, until: float, taken: bool) -> Event:
        self.waits += 1
        event = self.at_wait.get(self.waits)
        if isinstance(event, Gone) and self._stopped:
            self.alone = True  # which is asked about then, and not told
        elif event:
            return self._note(event)
        if taken and not self._full():
            self._read |= self._unread
            return Taken()
        if self._stopped and self._comes and isinstance(self._comes[0][1], Gone):
            self.alone = True
            self._comes.pop(0)
        free = BEGIN + self.pipe_full_until if taken else math.inf
        ends, order, result = min(
            (call for call in self._in_flight if not self._hangs(call[2])), default=(math.inf, 0, None)
        )
        comes = self._comes[0][0] if self._comes else math.inf
        self.clock = max(self.clock, min(ends, comes, free, until))
        if self.clock == math.inf:
            raise Waits(f"in step {len(self.did)}")
        if result is not None and ends <= self.clock:
            self._in_flight.remove((ends, order, result))
            return self._end(result)
        if comes <= self.clock:
            return self._note(self._comes.pop(0)[1])
        if free <= self.clock:
            self._read |= self._unread
            return Taken()
        return Timeout()

    def _note(self, event: Event) -> Event:
        if isinstance(event, Told):
            self._told.append(event.message)
        if isinstance(event, Gone):
            self.alone, self._stopped = True, True
        return event

    def _end(self, result: Result) -> Result:
        index, operation, error = result.mount, result.operation, result.error
        result.at = self.clock
        if not error and operation is Operation.FREEZE:
            self.frozen.add(index)
        if error and operation is Operation.SYNC:
            self._left_out.add(index)
        if operation is Operation.THAW and error in (0, errno.EINVAL) and not result.failed:
            self.frozen.discard(index)
            self.history.append((self.passed, "thawed", index))
        self.reports.append(steps.ended(result, 0.0))
        return result
