"""What an earlier supervisor left, and what hosts may still say of earlier freezes. Pure."""

from __future__ import annotations

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS
from ...agent.api.options import Options
from ...agent.api.records import Last
from ...agent.api.states import Outcome
from .events import JournalFound
from .ledger import Ledger
from .transaction import Transaction
from .turn import Turn
from .workers import Workers
from .writers import BAD


def told_of(found: JournalFound) -> Last:
    """Return how the freeze ended of which the journal only has what is to be told."""
    broken = Outcome.BROKEN.value
    return Last(found.freeze, broken, error=found.unreported, consistency="none", verdict=BAD)


def died(freeze: int) -> str:
    """Return what a journal says of a freeze in case the agent dies meanwhile."""
    return f"freeze {freeze} was broken: the agent died"


def apart(found: JournalFound) -> tuple[str, str]:
    """Return what is still to be told of earlier freezes, "" if nothing, and what of this one."""
    own = died(found.freeze)
    if not found.unreported.endswith(own):
        return "", found.unreported
    return found.unreported.removesuffix(own).removesuffix("; "), own


def adopted(turn: Turn, found: JournalFound, options: Options, workers: Workers) -> Transaction:
    """Return the broken freeze that the journal names, all of it suspect; its worker is adopted if it lives."""
    orphan = workers.adopt(turn, RPCS["va.fsfreeze"], found.orphan).id if found.orphan[0] else 0
    ledger = Ledger(orphan)
    ledger.adopt(found.plan, min(found.since, turn.now), expedites=found.expedites)
    broken = Fault(Code.FREEZE_BROKEN, apart(found)[1])
    return Transaction(found.freeze, options, ledger, outcome=Outcome.BROKEN, fault=broken, recovered=True)


def why_not(freeze_id: int, last_id: int, ended: Last | None) -> str:
    """Return why a thaw that names that freeze thaws nothing, "" if it is the last one and did not end badly.

    `ended` is how the last one ended, None if it has not.
    """
    if freeze_id != last_id:
        over = "is over" if freeze_id < last_id else "is not known"
        return f"freeze {freeze_id} {over}, the last one is freeze {last_id}; nothing was thawed"
    return ended.error if ended is not None and ended.freeze_id == freeze_id else ""
