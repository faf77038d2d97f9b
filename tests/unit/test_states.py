"""The two transition tables against the design's, every pair walked, and the state's one setter."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
import virtagent.supervisor.core.engine as _core
from fakes.drive import Drive
from virtagent.agent.api.errors import Code
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
    freeze_row,
)
from virtagent.supervisor.core.freeze import Freeze
from virtagent.supervisor.core.turn import Turn

SUPERVISOR = Path(_core.__file__).parent

# Section 5 of the design, row by row; rows with several events are spelt out.
FREEZE_ROWS = """
THAWED          ADMITTED     INPROGRESS
INPROGRESS      FROZEN       FROZEN
INPROGRESS      CALLED_OFF   THAWED
INPROGRESS      FAILED       THAWINPROGRESS
INPROGRESS      DIED         THAWINPROGRESS
INPROGRESS      OVERRAN      THAWINPROGRESS
INPROGRESS      VETOED       THAWINPROGRESS
INPROGRESS      EXPIRED      THAWINPROGRESS
INPROGRESS      THAW_ASKED   THAWINPROGRESS
INPROGRESS      STOPPING     THAWINPROGRESS
FROZEN          THAW_ASKED   THAWINPROGRESS
FROZEN          HOLD_PASSED  THAWINPROGRESS
FROZEN          DIED         THAWINPROGRESS
FROZEN          STOPPING     THAWINPROGRESS
FROZEN          WRITER_LOST  THAWINPROGRESS
THAWINPROGRESS  SETTLED      THAWED
THAWINPROGRESS  THAW_FAILED  ERROR
THAWINPROGRESS  STUCK        ERROR
ERROR           RETRY        THAWINPROGRESS
ERROR           THAW_ASKED   THAWINPROGRESS
THAWED          JOURNAL      THAWINPROGRESS
"""
# What the table needs beyond the design's rows: the journal, a worker that found nothing to freeze or ends otherwise, a
# keeper that gives up, a longer hold, and what leaves the state as it is.
FREEZE_MORE = """
THAWED          THAW_ASKED STOPPING WRITER_LOST                   THAWED
INPROGRESS      SYNCED JOURNALED INSTANT FOUND_THAWED             INPROGRESS
INPROGRESS      JOURNAL_FAILED ENDED DONE THAWS GAVE_UP TOO_SLOW  THAWINPROGRESS
FROZEN          HOLD_ASKED HELD FOUND_THAWED                      FROZEN
FROZEN          FAILED THAWS GAVE_UP EXPIRED DONE                 THAWINPROGRESS
THAWINPROGRESS  CHANGED THAW_ASKED STOPPING FOUND_THAWED          THAWINPROGRESS
THAWINPROGRESS  FAILED GAVE_UP EXPIRED UNRESPONSIVE FOUND_BROKEN  THAWINPROGRESS
THAWINPROGRESS  UNPROVED WRITER_LOST                              THAWINPROGRESS
THAWINPROGRESS  ENDED DONE THAWS DIED                             THAWINPROGRESS
ERROR           CHANGED STOPPING FOUND_THAWED FORGOTTEN           ERROR
ERROR           FAILED GAVE_UP EXPIRED UNRESPONSIVE FOUND_BROKEN  ERROR
ERROR           ENDED DONE THAWS DIED UNPROVED WRITER_LOST        ERROR
"""
# Which causes end a freeze how: the outcome and the fault that a host is told, and what else the row does.
FREEZE_ENDS = """
INPROGRESS      JOURNAL_FAILED        FAILED     FREEZE_FAILED  kill_freezer
INPROGRESS      DONE                  FAILED     INTERNAL       nothing
INPROGRESS      FAILED                FAILED     -              nothing
INPROGRESS      THAWS GAVE_UP         FAILED     FREEZE_FAILED  nothing
INPROGRESS      DIED                  FAILED     WORKER_DIED    nothing
INPROGRESS      OVERRAN               OVERRAN    OVERRUN        kill_freezer
INPROGRESS      EXPIRED               OVERRAN    OVERRUN        nothing
INPROGRESS      VETOED                VETOED     VETOED         kill_freezer
INPROGRESS      TOO_SLOW              OVERRAN    OVERRUN        nothing
INPROGRESS      THAW_ASKED STOPPING   CANCELLED  FREEZE_FAILED  kill_freezer
FROZEN          STOPPING              BROKEN     FREEZE_BROKEN  tell_keeper_to_thaw
FROZEN          WRITER_LOST           BROKEN     FREEZE_BROKEN  tell_keeper_to_thaw
THAWED          WRITER_LOST           BROKEN     FREEZE_BROKEN  nothing
THAWINPROGRESS  WRITER_LOST           BROKEN     FREEZE_BROKEN  nothing
ERROR           WRITER_LOST UNPROVED  BROKEN     FREEZE_BROKEN  nothing
FROZEN          HOLD_PASSED           EXPIRED    FREEZE_BROKEN  tell_keeper_to_thaw
FROZEN          EXPIRED               EXPIRED    FREEZE_BROKEN  nothing
FROZEN          FAILED THAWS GAVE_UP  BROKEN     FREEZE_BROKEN  nothing
FROZEN          DONE DIED             BROKEN     FREEZE_BROKEN  nothing
INPROGRESS      FOUND_THAWED          BROKEN     FREEZE_BROKEN  nothing
FROZEN          FOUND_THAWED          BROKEN     FREEZE_BROKEN  nothing
THAWINPROGRESS  FOUND_THAWED GAVE_UP EXPIRED  BROKEN  FREEZE_BROKEN  nothing
ERROR           FOUND_THAWED GAVE_UP EXPIRED  BROKEN  FREEZE_BROKEN  nothing
THAWINPROGRESS  FOUND_BROKEN UNPROVED         BROKEN  FREEZE_BROKEN  nothing
ERROR           FOUND_BROKEN                  BROKEN  FREEZE_BROKEN  nothing
"""

# Section 3.
_REPORTS = "STARTED PLAN STEP PROGRESS SYNCED FROZEN HELD LEARNT THAWING ACQUIRED REPLIED DECLINED RELEASABLE ACTED"
_REPORTS += " DONE FAILED RUBBISH"
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
RUNNING                    PLAN SYNCED LEARNT THAWING ACTED  RUNNING
HOLDING                    HELD THAWING STEP PROGRESS   HOLDING
RUNNING                    ACQUIRED                         HOLDING
HOLDING                    REPLIED DECLINED RELEASABLE       HOLDING
SPAWNED RUNNING HOLDING REPORTED   RUBBISH              KILLED
SPAWNED RUNNING HOLDING    IN_KERNEL                    STUCK
STUCK                      LIMIT                        KILLED
KILLED                     {_REPORTS}                   KILLED
STUCK                      {_REPORTS}                   STUCK
"""


def freeze_rows(text: str) -> dict[tuple[FreezeState, FreezeEvent], FreezeState]:
    rows = [line.split() for line in text.strip().splitlines()]
    return {(FreezeState[old], FreezeEvent[event]): FreezeState[new] for old, *events, new in rows for event in events}


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
    assert {pair: row.state for pair, row in FREEZE_TABLE.items()} == FREEZE


def test_each_cause_ends_a_freeze_as_the_design_says() -> None:
    wanted = {
        (FreezeState[state], FreezeEvent[event]): (Outcome[outcome], None if code == "-" else Code[code], action)
        for state, *events, outcome, code, action in (line.split() for line in FREEZE_ENDS.strip().splitlines())
        for event in events
    }
    found = {pair: (row.outcome, row.code, row.action) for pair, row in FREEZE_TABLE.items() if row.outcome}
    assert found == wanted
    assert not any(row.code for row in FREEZE_TABLE.values() if row.outcome is None)


def test_every_action_is_bound_and_every_bound_one_is_used() -> None:
    assert {row.action for row in FREEZE_TABLE.values()} == Freeze._ACTIONS.keys()


def test_a_broken_freeze_says_which_and_a_cancelled_one_that_it_was_cancelled() -> None:
    for row in FREEZE_TABLE.values():
        text = row.text.format(id=7, why="because", where=" while freezing /a")
        assert text.startswith("freeze 7 was broken: ") == (row.code is Code.FREEZE_BROKEN)
        assert text.startswith("the freeze was cancelled: ") == (row.outcome is Outcome.CANCELLED)


def test_the_worker_table_is_the_designs() -> None:
    assert {pair: new for pair, (new, _) in WORKER_TABLE.items()} == WORKER


def test_each_freeze_pair_leads_where_the_design_says_or_nowhere() -> None:
    for state, event in itertools.product(FreezeState, FreezeEvent):
        if (state, event) in FREEZE:
            assert freeze_row(state, event).state is FREEZE[state, event], (state, event)
        else:
            with pytest.raises(Unlisted, match=state.name):
                freeze_row(state, event)


def test_each_worker_pair_leads_where_the_design_says_or_nowhere() -> None:
    for state, event in itertools.product(WorkerState, WorkerEvent):
        if (state, event) in WORKER:
            assert following(WORKER_TABLE, state, event) is WORKER[state, event], (state, event)
        else:
            with pytest.raises(Unlisted, match=state.name):
                following(WORKER_TABLE, state, event)


def test_thawed_is_reached_only_by_all_thawed_all_reaped_or_before_anything_was_frozen() -> None:
    assert {pair for pair, new in FREEZE.items() if new is FreezeState.THAWED is not pair[0]} == {
        (FreezeState.THAWINPROGRESS, FreezeEvent.SETTLED),
        (FreezeState.INPROGRESS, FreezeEvent.CALLED_OFF),
    }


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
    assert {o.value for o in Outcome} == {"thawed", "cancelled", "failed", "overran", "expired", "broken", "vetoed"}
    assert {r.value for r in Reason} == {
        *("network", "fuse", "zfs", "pseudo", "read-only", "damaged", "unreachable", "excluded", "not-included"),
    }
    assert {p.value for p in Phase} >= {"plan", "sync", "freeze", "hold", "thaw"}


def test_the_setter_logs_the_change_and_refuses_what_is_not_listed() -> None:
    drive = Drive()
    freeze = drive.core._freeze
    seen = freeze.changes
    drive.ask("va.fsfreeze")
    assert freeze.state is FreezeState.INPROGRESS
    assert (freeze.since, freeze.changes) == (drive.now, seen + 1)
    assert drive.logged("THAWED -> INPROGRESS: freeze 1 by worker 1 va.fsfreeze")
    with pytest.raises(Unlisted):
        freeze.take(Turn(drive.now, 0, drive.timers), FreezeEvent.SETTLED)
    assert (freeze.state, freeze.changes) == (FreezeState.INPROGRESS, seen + 1)


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
    # A mount's state (Mark) is a note, not a state machine.
    assert {where for where in assignments("state") if where[0] != "ledger.py"} == {
        ("machine.py", "Machine", "__init__"),
        ("machine.py", "Machine", "_enter"),
        ("workers.py", "Workers", "change"),
        ("writers.py", "Writers", "_take"),
    }


# The records of a module are changed by that module alone; whoever else has one asks for the change.
RECORDS = {
    "workers.py": {"worker", "self._live[number]"},
    "ledger.py": {"mark"},
    "freeze.py": {"transaction"},
    "machine.py": {"transaction"},
    "pending.py": {"call"},
    "news.py": {"item"},
}
RECORDS |= {"writers.py": {"writer"}, "audit.py": {"_short"}, "resources.py": {"holder", "self._holders[worker.id]"}}


@pytest.mark.parametrize("path", sorted(SUPERVISOR.glob("*.py")), ids=lambda p: p.stem)
def test_nobody_writes_into_anothers_record(path: Path) -> None:
    mine = {"self", *RECORDS.get(path.name, ())}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = ast.unparse(node.value)
            assert owner in mine, f"line {node.lineno}: {ast.unparse(node)}"


def test_the_state_is_tested_by_its_table_alone() -> None:
    for path in SUPERVISOR.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.MatchValue):
                assert "FreezeState." not in ast.unparse(node), f"{path.name}, line {node.lineno}: a ladder"


def test_nothing_sets_an_attribute_by_name() -> None:
    for path in SUPERVISOR.glob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not names & {"setattr", "delattr"}, path.name
