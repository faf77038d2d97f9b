"""The two transition tables against the design's, every pair walked, and the state's one setter."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import virtagent.supervisor.core.engine as _core
from virtagent.agent.api.states import (
    FREEZE_TABLE,
    WORKER_TABLE,
    FreezeEvent,
    FreezeState,
    MountState,
    Outcome,
    Phase,
    Reason,
    Unlisted,
    WorkerEvent,
    WorkerState,
    following,
)
from virtagent.supervisor.core.state import State

SUPERVISOR = Path(_core.__file__).parent

# Section 5 of the design, row by row; rows with several events are spelt out.
FREEZE_ROWS = """
THAWED          ADMITTED     INPROGRESS
INPROGRESS      FROZEN       FROZEN
INPROGRESS      FAILED       THAWINPROGRESS
INPROGRESS      DIED         THAWINPROGRESS
INPROGRESS      OVERRAN      THAWINPROGRESS
INPROGRESS      THAW_ASKED   THAWINPROGRESS
INPROGRESS      STOPPING     THAWINPROGRESS
FROZEN          THAW_ASKED   THAWINPROGRESS
FROZEN          HOLD_PASSED  THAWINPROGRESS
FROZEN          DIED         THAWINPROGRESS
FROZEN          STOPPING     THAWINPROGRESS
THAWINPROGRESS  SETTLED      THAWED
THAWINPROGRESS  THAW_FAILED  ERROR
THAWINPROGRESS  STUCK        ERROR
ERROR           RETRY        THAWINPROGRESS
ERROR           THAW_ASKED   THAWINPROGRESS
THAWED          JOURNAL      THAWINPROGRESS
"""
# What the table needs beyond the design's rows: a worker that found nothing to freeze, a keeper that gives up.
FREEZE_MORE = """
INPROGRESS      ENDED        THAWINPROGRESS
FROZEN          FAILED       THAWINPROGRESS
"""

# Section 3.
_REPORTS = "STARTED PLAN STEP PROGRESS FROZEN HELD THAWING ACQUIRED REPLIED DECLINED RELEASABLE DONE FAILED RUBBISH"
WORKER_ROWS = """
SPAWNED                    STARTED                      RUNNING
RUNNING                    STEP PROGRESS                RUNNING
RUNNING                    FROZEN                       HOLDING
RUNNING HOLDING            DONE FAILED                  REPORTED
SPAWNED RUNNING HOLDING    LIMIT CANCELLED              KILLED
REPORTED                   GRACE                        KILLED
KILLED                     GRACE                        STUCK
SPAWNED RUNNING HOLDING REPORTED KILLED STUCK  EXIT     REAPED
"""
# What the design says in words, or measuring taught: rubbish is killed; the hold is extended; the freeze worker tells
# its plan and that it thaws; a worker inside FITHAW is left alone; what a killed worker had said before is still read.
WORKER_MORE = f"""
RUNNING                    PLAN THAWING                 RUNNING
HOLDING                    HELD THAWING STEP PROGRESS   HOLDING
RUNNING                    ACQUIRED                         HOLDING
HOLDING                    REPLIED DECLINED RELEASABLE       HOLDING
SPAWNED RUNNING HOLDING REPORTED   RUBBISH              KILLED
RUNNING HOLDING            IN_KERNEL                    STUCK
STUCK                      LIMIT                        KILLED
KILLED                     {_REPORTS}                   KILLED
STUCK                      {_REPORTS}                   STUCK
"""


def freeze_rows(text: str) -> dict[tuple[FreezeState, FreezeEvent], FreezeState]:
    rows = [line.split() for line in text.strip().splitlines()]
    return {(FreezeState[old], FreezeEvent[event]): FreezeState[new] for old, event, new in rows}


def worker_rows(text: str) -> dict[tuple[WorkerState, WorkerEvent], WorkerState]:
    found = {}
    for line in text.strip().splitlines():
        *left, new = line.split()
        states = [WorkerState[word] for word in left if word in WorkerState.__members__]
        for event in (WorkerEvent[word] for word in left if word not in WorkerState.__members__):
            found |= {(state, event): WorkerState[new] for state in states}
    for state in WorkerState:
        found[state, WorkerEvent.REPORT_END] = state
    return found


FREEZE = freeze_rows(FREEZE_ROWS) | freeze_rows(FREEZE_MORE)
WORKER = worker_rows(WORKER_ROWS) | worker_rows(WORKER_MORE)


def test_the_freeze_table_is_the_designs() -> None:
    assert {pair: new for pair, (new, _) in FREEZE_TABLE.items()} == FREEZE


def test_the_worker_table_is_the_designs() -> None:
    assert {pair: new for pair, (new, _) in WORKER_TABLE.items()} == WORKER


@pytest.mark.parametrize("event", FreezeEvent, ids=lambda e: e.name)
@pytest.mark.parametrize("state", FreezeState, ids=lambda s: s.name)
def test_each_freeze_pair_leads_where_the_design_says_or_nowhere(state: FreezeState, event: FreezeEvent) -> None:
    if (state, event) in FREEZE:
        assert following(FREEZE_TABLE, state, event) is FREEZE[state, event]
    else:
        with pytest.raises(Unlisted, match=state.name):
            following(FREEZE_TABLE, state, event)


@pytest.mark.parametrize("event", WorkerEvent, ids=lambda e: e.name)
@pytest.mark.parametrize("state", WorkerState, ids=lambda s: s.name)
def test_each_worker_pair_leads_where_the_design_says_or_nowhere(state: WorkerState, event: WorkerEvent) -> None:
    if (state, event) in WORKER:
        assert following(WORKER_TABLE, state, event) is WORKER[state, event]
    else:
        with pytest.raises(Unlisted, match=state.name):
            following(WORKER_TABLE, state, event)


def test_thawed_is_reached_only_by_all_thawed_all_reaped() -> None:
    assert [pair for pair, new in FREEZE.items() if new is FreezeState.THAWED] == [
        (FreezeState.THAWINPROGRESS, FreezeEvent.SETTLED)
    ]


def test_reaped_is_the_end() -> None:
    assert [event for state, event in WORKER if state is WorkerState.REAPED] == [WorkerEvent.REPORT_END]


def test_every_state_of_a_freeze_leads_back_to_thawed() -> None:
    home = {FreezeState.THAWED}
    while more := {old for (old, _), new in FREEZE.items() if new in home} - home:
        home |= more
    assert home == set(FreezeState)


def test_the_numbers_and_names_are_those_of_2011_and_of_the_status_record() -> None:
    assert {s.name: int(s) for s in FreezeState} == {
        "ERROR": -1,
        "THAWED": 0,
        "INPROGRESS": 1,
        "FROZEN": 2,
        "THAWINPROGRESS": 3,
    }
    assert [s.value for s in MountState] == (
        "pending syncing synced freezing frozen thawing thawed unsupported busy failed left-out".split()  # noqa: SIM905
    )
    assert {o.value for o in Outcome} == {"thawed", "cancelled", "failed", "overran", "expired", "broken"}
    assert {r.value for r in Reason} == {"network", "pseudo", "read-only", "excluded", "not-included"}
    assert {p.value for p in Phase} >= {"plan", "sync", "freeze", "hold", "thaw"}


def test_the_setter_logs_the_change_and_refuses_what_is_not_listed() -> None:
    out: list[object] = []
    state = State(out)  # type: ignore[arg-type]
    state.enter(FreezeEvent.ADMITTED, "freeze 1", 5.0)
    assert state.now is FreezeState.INPROGRESS
    assert (state.since, state.changes, len(out)) == (5.0, 1, 1)
    assert "THAWED -> INPROGRESS: freeze 1" in str(out[0])
    with pytest.raises(Unlisted):
        state.enter(FreezeEvent.SETTLED, "", 6.0)
    assert (state.now, state.changes) == (FreezeState.INPROGRESS, 1)


def assignments(attribute: str) -> set[tuple[str, str, str]]:
    """Return (file, class, function) of every assignment to `.attribute` in the supervisor."""
    found = set()
    for path in SUPERVISOR.glob("*.py"):
        for owner in ast.walk(ast.parse(path.read_text())):
            if not isinstance(owner, ast.ClassDef | ast.Module):
                continue
            functions = [f for f in owner.body if isinstance(f, ast.FunctionDef)]
            for function in functions:
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Attribute)
                        and node.attr == attribute
                        and isinstance(node.ctx, ast.Store | ast.Del)
                    ):
                        found.add((path.name, getattr(owner, "name", ""), function.name))
    return found


def test_only_the_setters_assign_the_states() -> None:
    assert {(f, c, n) for f, c, n in assignments("now") if c != "Core"} == {
        ("state.py", "State", "__init__"),
        ("state.py", "State", "enter"),
    }
    # A mount's state (Mark) is a note, not a state machine; a worker's has one setter.
    assert {where for where in assignments("state") if where[0] != "transaction.py"} == {
        ("workers.py", "Workers", "change")
    }


def test_nothing_sets_an_attribute_by_name() -> None:
    for path in SUPERVISOR.glob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not names & {"setattr", "delattr"}, path.name
