"""What the lists of RPCs block, under every name that it has, and what they cannot keep from a frozen guest."""

from __future__ import annotations

import pytest
from fakes.drive import Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.api.methods import RPCS, allows, refusal
from virtagent.agent.api.states import FreezeState
from virtagent.supervisor import qemu_ga
from virtagent.supervisor.config import Config

BLOCKED = {
    "guest-file-open": {"va.getfile"},
    "guest-file-read": {"va.getfile"},
    "guest-fsfreeze-freeze": {"va.fsfreeze", "guest-fsfreeze-freeze-list"},
    "guest-fsfreeze-freeze-list": {"va.fsfreeze"},
    "guest-fsfreeze-status": {"va.fsstatus"},
    "guest-fsfreeze-thaw": {"va.fsthaw"},
    "guest-shutdown": {"va.shutdown"},
    "va.fsfreeze": {"guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list"},
    "va.fsstatus": {"guest-fsfreeze-status"},
    "va.fsthaw": {"guest-fsfreeze-thaw"},
    "va.getfile": {"guest-file-read"},
    "va.shutdown": {"guest-shutdown"},
}
NEEDED = {f"guest-{name}" for name in ("sync", "sync-delimited", "ping", "info", "fsfreeze-status", "fsfreeze-thaw")}
NEEDED |= {"va.fsthaw", "va.fsstatus"}
PUBLIC = [row.name for row in RPCS.values() if row.public]


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_blocked_is_blocked_under_all_its_names(name: str) -> None:
    config = Config(block_rpcs=(name,))
    assert {other for other in PUBLIC if not config.allows(other)} == {name} | BLOCKED.get(name, set())


def test_both_programs_have_one_predicate() -> None:
    """virtagent-qemu-ga hands the names on as they are, and knows of no others."""
    notes: list[str] = []
    assert qemu_ga._known("block-rpcs", ["guest-file-open", "guest-fsfreeze-freeze"], notes) == [
        "guest-file-open",
        "guest-fsfreeze-freeze",
    ]
    assert notes == []


def test_what_is_allowed_is_allowed_by_its_name_alone() -> None:
    assert [name for name in PUBLIC if allows(RPCS[name], ("guest-file-read",), ())] == ["guest-file-read"]
    assert not allows(RPCS["va.getfile"], ("va.getfile",), ("guest-file-open",)), "block wins"


@pytest.mark.parametrize("lists", [{"block_rpcs": tuple(PUBLIC)}, {"allow_rpcs": ("va.hello",)}], ids=str)
def test_no_list_keeps_a_frozen_guest_from_being_thawed(lists: dict[str, tuple[str, ...]]) -> None:
    admitted = {
        state: {row.name for row in RPCS.values() if row.public and _admitted(row.name, state, lists)}
        for state in FreezeState
    }
    assert admitted.pop(FreezeState.THAWED) == set(lists.get("allow_rpcs", ()))
    assert all(names - {"va.hello"} == NEEDED for names in admitted.values())


def _admitted(name: str, state: FreezeState, lists: dict[str, tuple[str, ...]]) -> bool:
    blocked = not Config(**lists).allows(name)  # type: ignore[arg-type]
    return refusal(RPCS[name], state, blocked=blocked, audit_full=False, stopping=False) is None


def test_a_blocked_thaw_thaws() -> None:
    drive = Drive(block_rpcs=("guest-fsfreeze-thaw",))
    assert drive.ask("va.fsthaw").code is Code.BLOCKED, "nothing is frozen: the list stands"
    _, keeper = drive.hold(1)
    thaw = drive.ask_by_name("guest-fsfreeze-thaw", {})
    drive.thaws(keeper, 1)
    assert thaw.value == 1
    assert drive.ask_by_name("guest-fsfreeze-thaw", {}).code is Code.BLOCKED
