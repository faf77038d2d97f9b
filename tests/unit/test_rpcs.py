"""The table of RPCs against the design's section 6, its start-up check, and the predicate of admission."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from virtagent.agent.api.errors import MEANING, Code, Fault, failed, from_number
from virtagent.agent.api.methods import RPCS, Disk, Rpc, Runs, public, refusal, table
from virtagent.agent.api.params import Kind, Param
from virtagent.agent.api.states import FreezeState
from virtagent.agent.api.structs import Frozen
from virtagent.agent.worker.handlers import HANDLERS

FSFREEZE = {"include", "exclude", "strict", "partial", "wait", "sync_limit", "freeze_limit", "hold_limit", "writers"}
FSSYNC = {"include", "exclude", "partial", "wait", "sync_limit", "writers"}
DESIGN: dict[str, list[set[str] | str]] = {
    "va.ping": [],
    "va.capabilities": [],
    "va.hello": [],
    "va.getfile": ["path"],
    "va.getdmesg": [],
    "va.shutdown": ["mode"],
    "va.fsfreeze": [FSFREEZE | {"at", "attended"}],
    "va.fsthaw": [{"wait", "freeze_id", "verdict"}],
    "va.fsstatus": [{"since", "wait", "brief", "history"}],
    "va.fsgo": ["at"],
    "va.fshold": ["seconds"],
    "va.fsforget": ["mountpoint"],
    "va.fsplan": [FSFREEZE],
    "va.fssync": [FSSYNC],
    "system.listMethods": [],
    "system.methodHelp": ["method"],
}
CODES = {
    "PARSE": -32700,
    "REQUEST": -32600,
    "METHOD": -32601,
    "PARAMS": -32602,
    "INTERNAL": -32603,
    "IN_PROGRESS": 1,
    "WRONG_STATE": 2,
    "REFUSED_WHILE_FROZEN": 3,
    "BUSY": 4,
    "OVERRUN": 5,
    "WORKER_DIED": 6,
    "FREEZE_FAILED": 7,
    "FREEZE_BROKEN": 8,
    "VETOED": 9,
    "BLOCKED": 10,
    "AUDIT_FULL": 11,
    "FAILED": 12,
}


def nothing(*_: object) -> None:
    raise AssertionError


def row(name: str, runs: Runs = Runs.WORKER, disk: Disk = Disk.NONE, **more: object) -> Rpc:
    return Rpc(name, nothing, runs, disk, "Do nothing.", "nothing", **more)  # type: ignore[arg-type]


GOOD = (row("freeze", disk=Disk.FREEZES, compensation="undo"), row("undo", public=False), row("ping", Runs.INLINE))


def test_the_public_rows_are_the_designs() -> None:
    assert {r.name for r in RPCS.values() if r.public and not r.is_guest} == set(DESIGN)
    for name, wanted in DESIGN.items():
        found = [
            {f.name for f in p.fields}
            if p.kind is Kind.STRUCT
            else p.name  # the struct's own name is nobody's business
            for p in RPCS[name].params
        ]
        assert found == wanted
    assert next(p for p in RPCS["va.shutdown"].params).choices == ("halt", "powerdown", "reboot")


def test_every_option_of_a_struct_is_optional() -> None:
    for rpc in RPCS.values():
        for param in () if rpc.is_guest else rpc.params:
            assert param.required == (param.kind is not Kind.STRUCT and (rpc.name, param.name) != ("va.fsgo", "at"))
            assert not any(field.required for field in param.fields)


def test_what_is_essential_is_what_the_promise_says() -> None:
    ours = {"va.ping", "va.capabilities", "va.fsstatus", "va.fsthaw"}
    guest = {"sync", "sync-delimited", "ping", "info", "fsfreeze-status", "fsfreeze-thaw"}
    assert {r.name for r in RPCS.values() if r.essential} == ours | {f"guest-{name}" for name in guest}


def test_every_worker_has_a_limit_or_phases_with_limits() -> None:
    for rpc in RPCS.values():
        if rpc.runs is not Runs.INLINE and rpc.public:
            assert rpc.limit or rpc.limited_by or rpc.disk is Disk.FREEZES, f"{rpc.name} may run for ever"
    assert RPCS["va.fsfreeze"].compensation == "thaw"


def test_rows_never_change() -> None:
    with pytest.raises(Frozen):
        RPCS["va.ping"].essential = False  # type: ignore[misc]


def test_a_good_table_is_taken() -> None:
    assert list(table(GOOD)) == ["freeze", "undo", "ping"]


MODE = Param("mode", Kind.STRING, "")
TEXTS = Param("texts", Kind.LIST, "", fields=(Param("item", Kind.STRING, ""),))
BAD = {
    "a name twice": (row("a"), row("a")),
    "no such compensation": (row("freeze", disk=Disk.FREEZES, compensation="nothing"),),
    "an inline compensation": (GOOD[0], row("undo", Runs.INLINE)),
    "a compensation that writes": (GOOD[0], row("undo", disk=Disk.WRITE)),
    "a compensation that freezes": (GOOD[0], row("undo", disk=Disk.FREEZES, compensation="u"), row("u")),
    "a compensation with one of its own": (GOOD[0], row("undo", compensation="u"), row("u")),
    "a compensation of itself": (row("freeze", disk=Disk.FREEZES, compensation="freeze"),),
    "freezing without compensation": (row("freeze", disk=Disk.FREEZES),),
    "a value that the handler refuses, of what thaws first": (row("a", limit=5, thaws_first=True, params=(MODE,)),),
    "a value that the handler refuses, of what is held": (row("a", limit=5, holds=1, params=(TEXTS,)),),
    "a value that the handler refuses, of what needs undoing": (replace(GOOD[0], params=(MODE,)), GOOD[1]),
    "inline and freezing": (row("freeze", Runs.INLINE, Disk.FREEZES, compensation="undo"), GOOD[1]),
    "inline and writing": (row("a", Runs.INLINE, Disk.WRITE),),
    "inline with a limit": (row("a", Runs.INLINE, limit=5),),
    "inline with a compensation": (row("a", Runs.INLINE, compensation="undo"), GOOD[1]),
}


def test_a_value_that_is_checked_is_taken_by_any_row() -> None:
    taken = (replace(MODE, choices=("a",)), replace(MODE, name="b", any_value=True))
    assert table((row("a", limit=5, thaws_first=True, params=taken),))


def test_handlers_of_such_rows_check_no_value() -> None:
    """What `any_value` says is true: they raise no PARAMS themselves."""
    rows = [r for r in RPCS.values() if r.thaws_first or r.holds or r.compensation]
    assert {"va.shutdown", "guest-shutdown", "guest-exec", "guest-file-open", "va.fsfreeze"} <= {r.name for r in rows}
    for rpc in rows:
        assert "PARAMS" not in inspect.getsource(HANDLERS[rpc.handler])


@pytest.mark.parametrize("rows", BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_refused_at_the_start(rows: tuple[Rpc, ...]) -> None:
    with pytest.raises(ValueError, match=r"."):
        table(rows)


def test_an_inline_row_that_reads_a_disk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        table((row("a", Runs.INLINE, Disk.READ),))


def test_a_worker_row_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        table((row("a"),))


@pytest.mark.parametrize("state", FreezeState, ids=lambda s: s.name)
@pytest.mark.parametrize("disk", Disk, ids=lambda d: d.name)
def test_outside_thawed_only_none_and_read_are_admitted(disk: Disk, state: FreezeState) -> None:
    refused = refusal(row("a", disk=disk), state, blocked=False, audit_full=False, stopping=False)
    if state is FreezeState.THAWED or disk in (Disk.NONE, Disk.READ):
        assert refused is None
    else:
        assert refused is not None
        assert refused.code is (Code.WRONG_STATE if disk is Disk.FREEZES else Code.REFUSED_WHILE_FROZEN)
        assert state.name in refused.text


def test_the_order_of_refusals() -> None:
    rpc = row("a", disk=Disk.WRITE)

    def code(**more: bool) -> Code | None:
        asked = {"blocked": False, "audit_full": False, "stopping": False} | more
        refused = refusal(rpc, FreezeState.FROZEN, **asked)
        return refused and refused.code

    assert code(blocked=True, audit_full=True, stopping=True) is Code.BLOCKED
    assert code(audit_full=True, stopping=True) is Code.AUDIT_FULL
    assert code(stopping=True) is Code.WRONG_STATE
    assert code() is Code.REFUSED_WHILE_FROZEN
    assert (
        refusal(replace(rpc, essential=True), FreezeState.THAWED, blocked=False, audit_full=True, stopping=False)
        is None
    )


def test_names_that_a_host_may_not_call() -> None:
    assert public("va.ping").name == "va.ping"
    for name in ("thaw", "va.pin", "", "va.ping\n"):
        with pytest.raises(Fault) as caught:
            public(name)
        assert caught.value.code is Code.METHOD


def test_a_command_that_came_later_is_not_there() -> None:
    assert public("guest-get-load", (10, 0)).name == "guest-get-load"
    with pytest.raises(Fault, match="no method"):
        public("guest-get-load", (9, 2))


def test_the_codes_are_the_designs() -> None:
    assert {c.name: int(c) for c in Code} == CODES
    assert set(MEANING) == set(Code)


def test_faults_name_what_the_system_said() -> None:
    fault = failed(FileNotFoundError(2, "No such file or directory"), "va.getfile: /x")
    assert (fault.code, fault.text) == (Code.FAILED, "va.getfile: /x: No such file or directory (ENOENT)")
    assert "errno 0" in failed(OSError("odd"), "x").text
    assert from_number(7, "x").code is Code.FREEZE_FAILED
    assert from_number(99, "x").code is Code.INTERNAL
    assert "FREEZE_FAILED 7" in str(from_number(7, "x"))
