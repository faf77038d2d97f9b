"""What a line of the log about a freeze tells programs: its kind, and the fields of its entry (events.Entry). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...agent.api import summary
from ...agent.api.records import Last
from ...agent.api.states import FreezeState, Outcome, Phase
from .events import Entry
from .transaction import ABOUT_MAX, Transaction
from .turn import Turn
from .workers import Worker

FROZEN, THAWED, BROKEN, OVERRAN = "frozen", "thawed", "broken", "overran"
STUCK, VETOED, FAILED, LEARNT = "stuck", "vetoed", "failed", "learnt"
KINDS = (FROZEN, THAWED, BROKEN, OVERRAN, STUCK, VETOED, FAILED, LEARNT)
_OF_OUTCOME: Mapping[Outcome, str] = {
    Outcome.BROKEN: BROKEN,
    Outcome.EXPIRED: BROKEN,
    Outcome.OVERRAN: OVERRAN,
    Outcome.VETOED: VETOED,
    Outcome.FAILED: FAILED,
}
_OF_STATE: Mapping[FreezeState, str] = {
    FreezeState.FROZEN: FROZEN,
    FreezeState.THAWED: THAWED,
    FreezeState.ERROR: STUCK,
}
_LEVELS: Mapping[str, str] = {BROKEN: "err", STUCK: "err", OVERRAN: "warning", VETOED: "warning", FAILED: "warning"}


def tell(
    turn: Turn,
    text: str,
    state: FreezeState,
    ended: Outcome | None,
    transaction: Transaction | None,
    freezer: Worker | None,
    refused_by: str,
) -> None:
    """Log what has become of the freeze: the state that it enters, or that it has `ended` badly, which weighs more.

    `freezer` is its worker, None if that is gone; `refused_by` is the writer that refused it, if one did.
    """
    kind = (_OF_OUTCOME.get(ended) if ended else None) or _OF_STATE.get(state, "")
    fields: list[tuple[str, str]] = []
    if transaction is not None:
        phase = freezer.phase if freezer else Phase.THAW
        fields += [("freeze_id", str(transaction.id)), ("phase", phase.value), ("outcome", transaction.outcome.value)]
        fields += _mounts(transaction, kind)
    if kind == VETOED and refused_by:
        fields.append(("writer", refused_by))
    # The one line of a freeze at level notice is that of its end.
    level = _LEVELS.get(kind) or ("info" if kind == FROZEN else "debug")
    turn.log(level, text, Entry("" if kind == THAWED else kind, tuple(fields)))


def sum_up(turn: Turn, last: Last, transaction: Transaction, by: str) -> None:
    """Log in one line what became of a freeze that is over, with its figures; `by` is who asked for it."""
    fields = [("freeze_id", str(last.freeze_id)), ("phase", Phase.THAW.value), ("outcome", last.outcome)]
    entry = Entry(THAWED, (*fields, *_mounts(transaction, THAWED)))
    turn.log("notice", summary.line(last, by), entry)


def _mounts(transaction: Transaction, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the mount points that an entry of that kind is about, and the first errno of theirs."""
    ledger = transaction.ledger
    failed = {index for index, mark in enumerate(ledger.marks) if mark.errno}
    chosen = {
        FROZEN: ledger.held,
        THAWED: ledger.thawed_by.keys(),
        BROKEN: ledger.stolen or failed or transaction.unproved or transaction.held,
        OVERRAN: ledger.moving.keys(),
        STUCK: ledger.suspects,
        FAILED: failed,
    }.get(kind, set())
    indices = sorted(chosen)
    for index in indices[:ABOUT_MAX]:
        yield "mount", ledger.marks[index].mount.mountpoint
    if numbers := [ledger.marks[index].errno for index in indices if index in failed]:
        yield "errno", str(numbers[0])
