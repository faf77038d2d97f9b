"""What hosts ask and are told: admission, waits, polls, hosts that go away, told once, BUSY, stop, shutdown, audit."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.drive import PEER, Asked, Drive
from fakes.scenarios import brought_to, ended, played, seconds_to_the_next
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.methods import RPCS, Disk
from virtagent.agent.api.records import Plan, Status
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events
from virtagent.supervisor.core.engine import CALLS_MAX

PARAMS: dict[str, list[Any]] = {
    "va.getfile": ["/etc/hostname"],
    "va.shutdown": ["halt"],
    "va.fshold": [60],
    "va.fsforget": ["/nowhere"],
    "system.methodHelp": ["va.ping"],
}
PUBLIC = [row.name for row in RPCS.values() if row.public and not row.is_guest]
ESSENTIAL = {"va.ping", "va.capabilities", "va.fsstatus", "va.fsthaw"}


# -- admission


@pytest.mark.parametrize("state", FreezeState.__members__)
@pytest.mark.parametrize("method", PUBLIC)
def test_admission_of_every_row_in_every_state(method: str, state: str) -> None:
    drive, _ = brought_to(state)
    spawned = set(drive.spawned)
    call = drive.ask(method, *PARAMS.get(method, []))
    codes = {a.code for a in call.answers if hasattr(a, "code") and not isinstance(a, Status)}
    fresh = [drive.spawned[w].rpc for w in set(drive.spawned) - spawned]
    row = RPCS[method]
    if method == "va.fsfreeze":
        assert codes == (set() if state == "THAWED" else {Code.WRONG_STATE})
        assert fresh == ([method] if state == "THAWED" else [])
    elif method == "va.fshold":
        assert codes == (set() if state == "FROZEN" else {Code.WRONG_STATE})
    elif method == "va.fsgo":
        assert codes == {Code.WRONG_STATE}, "none waits in phase ready here"
    elif method == "va.fsforget":
        assert codes == {Code.PARAMS if state == "ERROR" else Code.WRONG_STATE}
    elif method == "va.fssync":
        assert codes == (set() if state == "THAWED" else {Code.REFUSED_WHILE_FROZEN})
    elif method == "va.shutdown":
        assert codes == set()
        assert (method in fresh) == (state in ("THAWED", "ERROR"))
    else:
        assert row.disk in (Disk.NONE, Disk.READ)
        assert codes == set()


@pytest.mark.parametrize("state", FreezeState.__members__)
def test_rpcs_that_read_run_in_every_state(state: str) -> None:
    drive, _ = brought_to(state)
    call = drive.ask("va.getdmesg")
    worker = drive.newest
    assert drive.spawned[worker].rpc == "va.getdmesg"
    drive.report(worker, messages.Started(1), messages.Done("text"))
    drive.exit(worker)
    assert call.value == "text"


@pytest.mark.parametrize("state", FreezeState.__members__)
@pytest.mark.parametrize("method", ["", "thaw", "va.nothing", "VA.PING", "va.ping ", "x" * 100_000, "\udcff"])
def test_there_is_no_such_method(method: str, state: str) -> None:
    drive, _ = brought_to(state)
    call = drive.ask(method)
    assert call.code is Code.METHOD
    assert len(call.fault.text) < 300


@pytest.mark.parametrize("method", PUBLIC)
def test_a_wrong_count_or_type_costs_nothing(drive: Drive, method: str) -> None:
    for params in ([1, 2, 3], [{"no": 1}], [None], [[]]):
        call = drive.ask(method, *params)
        assert call.code is Code.PARAMS
        assert method in call.fault.text
    assert not drive.spawned
    ended(drive)


def test_blocked_and_unlisted_rpcs() -> None:
    drive = Drive(block_rpcs=("va.getfile",))
    assert drive.ask("va.getfile", "/x").code is Code.BLOCKED
    assert "va.getfile" not in drive.ask("system.listMethods").value
    assert "va.getfile" not in drive.ask("va.capabilities").value["methods"]
    drive = Drive(allow_rpcs=("va.ping", "system.listMethods"))
    assert drive.ask("va.fsfreeze").code is Code.BLOCKED
    assert drive.ask("va.ping").value == "dummy"
    assert drive.ask("system.listMethods").value == ["va.ping", "system.listMethods"]


def test_guest_info_is_of_the_qemu_ga_that_it_is_told_to_be() -> None:
    told = {}
    for version in ("7.2.22", "10.2.0"):
        drive = Drive(qga_version=version)
        info = drive.ask_by_name("guest-info", {}).value
        assert info["version"] == version
        told[version] = {command["name"] for command in info["supported_commands"]}
        missing = drive.ask_by_name("guest-get-load", {})
        assert missing.answers == [] or missing.code is Code.METHOD
        assert bool(missing.answers) == (version == "7.2.22")
    assert told["10.2.0"] - told["7.2.22"] == {"guest-get-load", "guest-network-get-route"}


def test_the_list_and_the_help_are_the_table(drive: Drive) -> None:
    assert sorted(drive.ask("system.listMethods").value) == sorted(PUBLIC)
    assert drive.ask("va.capabilities").value == {"version": "1.2", "methods": drive.ask("system.listMethods").value}
    for name in PUBLIC:
        assert RPCS[name].doc in drive.ask("system.methodHelp", name).value
    assert drive.ask("system.methodHelp", "thaw").code is Code.PARAMS


# -- ordinary workers


def test_a_worker_gives_its_value_fault_or_death(drive: Drive) -> None:
    call = drive.ask("va.getfile", "/x")
    worker = drive.newest
    assert drive.spawned[worker].args == {"path": "/x"}
    drive.report(
        worker, messages.Started(1), messages.Failed(Code.FAILED, "va.getfile: /x: Permission denied (EACCES)")
    )
    assert call.code is Code.FAILED
    drive.exit(worker)

    call = drive.ask("va.getfile", "/x")
    drive.report(drive.newest, messages.Started(1), messages.Failed(4711, "what"))
    assert call.code is Code.INTERNAL
    drive.exit(drive.newest)

    call = drive.ask("va.getfile", "/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1))
    drive.now += 3
    drive.exit(worker, number=11)
    call.refused(Code.WORKER_DIED, f"worker {worker}", "va.getfile", "SIGSEGV", "3.0 s")

    call = drive.ask("va.getfile", "/x")
    drive.exit(drive.newest, code=3)
    assert "exit code 3" in call.fault.text
    ended(drive)


def test_an_overrun_is_killed_and_told_at_once(drive: Drive) -> None:
    call = drive.ask("va.getfile", "/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1))
    drive.wait(29.9)
    assert not call.answered
    drive.wait(0.1)
    assert drive.killed == {worker}
    call.refused(Code.OVERRUN, "30 s")
    drive.wait(1000)
    assert drive.logged("stuck")
    assert not drive.due
    drive.report(worker, messages.Done(b""))
    drive.die(worker)
    ended(drive)


@pytest.mark.parametrize(
    "message",
    [
        messages.Plan({}),
        messages.Step(0, "frozen"),
        messages.Progress("sync"),
        messages.Frozen(1, 0, 0),
        messages.Thawing("", 0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_an_ordinary_worker_may_not_speak_of_freezing(drive: Drive, message: messages.Report) -> None:
    call = drive.ask("va.getfile", "/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1), message)
    assert drive.killed == {worker}
    assert call.code is Code.WORKER_DIED
    assert drive.state is FreezeState.THAWED
    drive.die(worker)
    ended(drive)


def test_rubbish_after_the_answer_changes_nothing_for_the_host(drive: Drive) -> None:
    call = drive.ask("va.getfile", "/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Done(b"y"))
    drive.feed(events.RubbishReported(worker, "x"))
    drive.die(worker)
    assert call.value == b"y"
    ended(drive)


def test_an_ordinary_worker_does_not_disturb_a_freeze(drive: Drive) -> None:
    reader = drive.ask("va.getfile", "/x")
    number = drive.newest
    call, keeper = drive.hold(1)
    drive.feed(events.RubbishReported(number, "x"))
    drive.die(number)
    assert reader.code is Code.WORKER_DIED
    assert drive.state is FreezeState.FROZEN
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert (call.value, thaw.value) == (1, 1)


def test_busy_at_eight_workers_and_compensation_is_exempt(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    for _ in range(7):
        assert not drive.ask("va.getfile", "/x").answered
    call = drive.ask("va.getfile", "/x")
    assert call.code is Code.BUSY
    assert drive.ask("va.ping").value == "dummy"
    drive.die(keeper)
    [thawer] = drive.workers("thaw")
    assert not drive.ask("va.getfile", "/x").answered, "a thaw worker takes nobody's place"
    drive.compensates(thawer)
    assert drive.ask("va.fsthaw").code is Code.FREEZE_BROKEN
    assert drive.ask("va.fsfreeze").code is Code.BUSY
    assert drive.state is FreezeState.THAWED


# -- wait against limit


def test_when_replies_are_not_read_only_what_is_essential_is_admitted() -> None:
    for method in PUBLIC:
        drive = Drive()
        params = PARAMS.get(method, [])
        call = drive.ask(method, *params, crowded=True)
        refused = call.answered and isinstance(call.answers[0], Fault) and call.code is Code.BUSY
        assert refused == (method not in ESSENTIAL), method
        if refused:
            assert call.fault.text == f"{method}: too many replies are not read; call again later"
            assert not drive.spawned


def test_one_connection_has_64_calls_under_way(drive: Drive) -> None:
    since = drive.status().seq
    polls = [drive.ask("va.fsstatus", {"since": since}, connection=1) for _ in range(CALLS_MAX)]
    assert not any(poll.answered for poll in polls)
    over = drive.ask("va.ping", connection=1)
    assert over.code is Code.BUSY
    assert over.fault.text == "va.ping: 64 calls of this connection wait already"
    assert drive.ask("va.ping", connection=2).value == "dummy"
    drive.give_up(polls[0])
    assert drive.ask("va.ping", connection=1).value == "dummy"
    assert not drive.ask("va.fsstatus", {"since": since}, connection=1).answered
    assert drive.ask("va.ping", connection=1).code is Code.BUSY


def test_the_call_waits_as_long_as_its_host_chose_and_the_job_goes_on(drive: Drive) -> None:
    call, keeper = played(drive, "synced", 1, options={"wait": 5})
    drive.wait(4.9)
    assert not call.answered
    drive.wait(0.1)
    assert call.code is Code.IN_PROGRESS
    assert not drive.killed
    drive.freezes(keeper, 0)
    drive.frozen(keeper, 0)
    drive.report(keeper, messages.Frozen(1, drive.now, drive.now + 60))
    assert drive.state is FreezeState.FROZEN
    thaw = drive.ask("va.fsthaw", {"wait": 1})
    drive.wait(1)
    assert thaw.code is Code.IN_PROGRESS
    drive.thaws(keeper, 1)
    ended(drive)


def test_wait_zero_answers_at_once(drive: Drive) -> None:
    call = drive.ask("va.fsfreeze", {"wait": 0})
    drive.wait(0)
    assert call.code is Code.IN_PROGRESS
    assert drive.state is FreezeState.INPROGRESS


def test_a_wait_that_is_longer_than_the_job_is_forgotten(drive: Drive) -> None:
    call, keeper = drive.hold(1, {"wait": 500})
    assert call.value == 1
    drive.wait(59)
    thaw = drive.ask("va.fsthaw", {"wait": 500})
    drive.thaws(keeper, 1)
    assert thaw.value == 1
    assert not drive.due


def test_a_failure_after_the_wait_is_told_by_the_next_thaw(drive: Drive) -> None:
    call, worker = drive.begin(1, {"wait": 1})
    drive.wait(1)
    assert call.code is Code.IN_PROGRESS
    drive.die(worker)
    ended(drive, tells=(f"worker {worker}",))


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), 1e20, "1", True])
def test_an_absurd_wait_is_refused(drive: Drive, wait: object) -> None:
    for method in ("va.fsfreeze", "va.fsthaw", "va.fsstatus", "va.fsplan"):
        assert drive.ask(method, {"wait": wait}).code is Code.PARAMS
    assert not drive.spawned


# -- long polls


def test_a_poll_answers_when_seq_is_another(drive: Drive) -> None:
    seq = drive.status().seq
    poll = drive.ask("va.fsstatus", {"since": seq, "wait": 100})
    assert not poll.answered
    drive.wait(50)
    assert not poll.answered
    drive.ask("va.ping")
    assert not poll.answered, "a request changes nothing"
    drive.ask("va.fsfreeze")
    assert poll.value.state == "INPROGRESS"
    assert poll.value.seq > seq


def test_a_poll_answers_when_its_wait_has_passed(drive: Drive) -> None:
    seq = drive.status().seq
    poll = drive.ask("va.fsstatus", {"since": seq, "wait": 7})
    drive.wait(6.9)
    assert not poll.answered
    drive.wait(0.1)
    assert poll.value.seq == seq
    ended(drive)


def test_a_poll_without_wait_does_not_wait_for_ever(drive: Drive) -> None:
    poll = drive.ask("va.fsstatus", {"since": drive.status().seq})
    drive.wait(3600)
    assert poll.answered
    ended(drive)


@pytest.mark.parametrize("since", [0, -1, 10**15, None])
def test_a_poll_with_another_seq_answers_at_once(drive: Drive, since: int | None) -> None:
    options = {"wait": 100} if since is None else {"since": since, "wait": 100}
    assert drive.ask("va.fsstatus", options).value.state == "THAWED"


def test_many_polls_are_all_answered_and_none_is_left(drive: Drive) -> None:
    seq = drive.status().seq
    polls = [drive.ask("va.fsstatus", {"since": seq, "wait": 10 + i}) for i in range(30)]
    drive.hang_up(polls[3])
    drive.give_up(polls[4])
    _, keeper = drive.hold(1)
    assert all(p.answered != p.gone for p in polls)
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    ended(drive)


def test_frozen_wakes_the_poll_at_once(drive: Drive) -> None:
    _, keeper = played(drive, "frozen", 1)
    poll = drive.ask("va.fsstatus", {"since": drive.status().seq})
    drive.report(keeper, messages.Frozen(1, drive.now, drive.now + 60))
    assert poll.value.code == 2


# -- hosts that go away

STEPS = ["begin", "sync", "freezing", "frozen", "held"]


@pytest.mark.parametrize("how", ["hang_up", "give_up"])
@pytest.mark.parametrize("step", STEPS)
def test_a_host_that_goes_away_changes_nothing_and_a_broken_freeze_is_told_to_the_next(step: str, how: str) -> None:
    drive = Drive()
    call, worker = drive.begin(1)

    def at(name: str) -> None:
        if step == name and not call.answered:
            getattr(drive, how)(call)

    at("begin")
    drive.sync(worker, 1)
    at("sync")
    drive.freezes(worker, 0)
    at("freezing")
    drive.frozen(worker, 0)
    at("frozen")
    drive.report(worker, messages.Frozen(1, drive.now, drive.now + 60))
    at("held")
    assert drive.state is FreezeState.FROZEN
    assert not drive.killed
    drive.die(worker)
    drive.compensates()
    ended(drive, "broken", tells=())


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_broken_is_told_to_a_live_caller_or_kept(drive: Drive, gone: int) -> None:
    _, keeper = drive.hold(1)
    drive.die(keeper)
    callers = [drive.ask("va.fsthaw") for _ in range(3)]
    for call in callers[:gone]:
        drive.hang_up(call)
    drive.compensates()
    for call in callers[gone:]:
        assert call.code is Code.FREEZE_BROKEN, "none of them may take its snapshot for good"
    ended(drive, "broken", tells=() if gone == 3 else None)


def test_broken_is_kept_over_a_wait_that_passed(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.die(keeper)
    call = drive.ask("va.fsthaw", {"wait": 1})
    drive.wait(1)
    assert call.code is Code.IN_PROGRESS
    drive.compensates()
    ended(drive, "broken", tells=())


def test_broken_survives_the_agents_own_end(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.die(keeper)
    drive.compensates()
    assert drive.journal is not None
    assert Plan.load(drive.journal["plan"]) == Plan((), ())
    assert "broken" in drive.journal["untold"]


def test_several_thaw_callers_of_a_good_freeze_all_learn_it(drive: Drive) -> None:
    _, keeper = drive.hold(2)
    callers = [drive.ask("va.fsthaw") for _ in range(3)]
    assert [m for _, m in drive.told].count(messages.Thaw()) == 1
    drive.hang_up(callers[1])
    drive.thaws(keeper, 2)
    assert (callers[0].value, callers[2].value) == (2, 2)
    ended(drive)


def test_a_failed_freeze_whose_host_was_told_is_not_told_again(drive: Drive) -> None:
    call, worker = drive.begin(1)
    thaw_later = drive.ask("va.fsthaw")
    drive.die(worker)
    assert call.code is Code.FREEZE_FAILED
    assert thaw_later.value == 0
    ended(drive, "cancelled")


@pytest.mark.parametrize("gone", ["nobody", "freezer", "thawer", "both"])
def test_a_host_that_cancelled_is_not_told_that_anything_broke(drive: Drive, gone: str) -> None:
    call, worker = drive.begin(1)
    thaw = drive.ask("va.fsthaw")
    if gone in ("freezer", "both"):
        drive.hang_up(call)
    if gone in ("thawer", "both"):
        drive.hang_up(thaw)
    drive.die(worker)
    if not thaw.gone:
        assert thaw.value == 0
    ended(drive, "cancelled")


def test_a_new_freeze_forgets_the_break_of_the_last(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.die(keeper)
    drive.compensates()
    _, keeper = drive.hold(1)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert thaw.value == 1, "this one was held"
    ended(drive, "thawed")


# -- SIGTERM


def stops(drive: Drive) -> list[events.Quit]:
    drive.feed(events.Stopped("SIGTERM"))
    return drive.of(events.Quit)


def test_sigterm_while_thawed_ends_at_once_and_answers_who_waits(drive: Drive) -> None:
    read = drive.ask("va.getfile", "/x")
    poll = drive.ask("va.fsstatus", {"since": drive.status().seq})
    assert stops(drive) == [events.Quit(0)]
    assert read.answered
    assert poll.answered
    assert drive.killed == {drive.newest}


@pytest.mark.parametrize("state", ["INPROGRESS", "FROZEN", "THAWINPROGRESS", "ERROR"])
def test_sigterm_thaws_first(state: str) -> None:
    drive, worker = brought_to(state)
    poll = drive.ask("va.fsstatus", {"since": 0})
    assert not stops(drive)
    if state == "INPROGRESS":
        assert drive.killed == {worker}
        drive.die(worker)
    elif state == "FROZEN":
        assert drive.told[-1] == (worker, messages.Thaw())
        drive.thaws(worker, 1)
    else:
        drive.wait(30)
        drive.compensates()
    assert poll.answered
    assert drive.of(events.Quit) == [events.Quit(0)]
    assert [a for a in drive.asked if not a.answered] == []
    assert drive.of(events.Answer)[-1], "answered before the end"
    kinds = [type(e) for e in drive.effects]
    assert events.Answer not in kinds[kinds.index(events.Quit) :]
    if state == "FROZEN":
        assert drive.journal is not None
        assert "SIGTERM" in drive.journal["untold"], "the next life tells"


def test_sigterm_while_frozen_tells_the_thaw_that_comes_then(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    stops(drive)
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    thaw.refused(Code.FREEZE_BROKEN, "SIGTERM")
    assert drive.of(events.Quit) == [events.Quit(0)]
    assert drive.journal is not None
    assert drive.journal["told_at"] == drive.now, "the next start tells it for as long as this one would have"


def test_nothing_new_begins_while_the_agent_stops(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    stops(drive)
    for method, params in (("va.fsfreeze", []), ("va.getfile", ["/x"]), ("va.shutdown", ["halt"])):
        assert drive.ask(method, *params).code is Code.WRONG_STATE
    assert drive.ask("va.ping").value == "dummy"
    drive.thaws(keeper, 1)
    assert set(drive.spawned) == {keeper}


def test_a_second_sigterm_changes_nothing(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    stops(drive)
    stops(drive)
    drive.thaws(keeper, 1)
    assert drive.of(events.Quit) == [events.Quit(0)]


def test_sigterm_in_error_tries_at_once() -> None:
    drive, _ = brought_to("ERROR")
    for _ in range(10):
        drive.wait(seconds_to_the_next(drive))
        drive.refuses()
    count = len(drive.spawned)
    stops(drive)
    assert len(drive.spawned) == count + 1


# -- shutdown


def test_shutdown_runs_the_configured_program() -> None:
    drive = Drive(shutdown_command=("/bin/echo", "bye"))
    call = drive.ask("va.shutdown", "reboot")
    assert drive.spawned[drive.newest].args == {"mode": "reboot", "command": ("/bin/echo", "bye")}
    drive.report(drive.newest, messages.Started(1), messages.Done("dummy"))
    drive.exit(drive.newest)
    assert call.value == "dummy"


def test_shutdown_thaws_first_and_the_freeze_is_broken(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    call = drive.ask("va.shutdown", "halt")
    assert drive.told[-1] == (keeper, messages.Thaw())
    thaw = drive.ask("va.fsthaw")
    assert not drive.workers("va.shutdown")
    drive.thaws(keeper, 1)
    assert thaw.code is Code.FREEZE_BROKEN
    [worker] = drive.workers("va.shutdown")
    drive.report(worker, messages.Started(1), messages.Done("dummy"))
    drive.exit(worker)
    assert call.value == "dummy"
    ended(drive)


def test_shutdown_cancels_a_freeze_in_progress(drive: Drive) -> None:
    call, worker = drive.begin(1)
    drive.ask("va.shutdown", "halt")
    assert drive.killed == {worker}
    drive.die(worker)
    assert call.code is Code.FREEZE_FAILED
    assert drive.workers("va.shutdown")


def test_shutdown_goes_on_if_the_thaw_fails(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    drive.ask("va.shutdown", "halt")
    drive.die(keeper)
    drive.refuses()
    assert drive.state is FreezeState.ERROR
    assert drive.workers("va.shutdown")


def test_shutdown_in_error_does_not_wait_for_long() -> None:
    drive, _ = brought_to("ERROR")
    drive.ask("va.shutdown", "halt")
    drive.wait(1)
    assert drive.workers("va.shutdown")


def test_shutdown_does_not_wait_for_a_stuck_disk(drive: Drive) -> None:
    played(drive, "freezing", 1)
    drive.wait(31)
    drive.report(drive.newest, messages.Started(1), messages.Step(0, "thawing"))
    drive.wait(60)
    assert drive.state is FreezeState.ERROR
    drive.ask("va.shutdown", "powerdown")
    drive.wait(3600)
    assert drive.workers("va.shutdown")


def test_a_shutdown_whose_host_has_gone_still_happens(drive: Drive) -> None:
    _, keeper = drive.hold(1)
    call = drive.ask("va.shutdown", "halt")
    drive.hang_up(call)
    drive.thaws(keeper, 1)
    assert drive.workers("va.shutdown")


# -- audit


def audit(drive: Drive) -> list[str]:
    return [line.text for line in drive.of(events.Log) if line.level == "audit" and "audit: time=" in line.text]


def test_every_rpc_leaves_a_record(drive: Drive) -> None:
    drive.ask("va.ping")
    drive.ask("va.nothing", "x\ny")
    abandoned = drive.ask("va.getfile", "/x")
    drive.hang_up(abandoned)
    lines = audit(drive)
    assert len(lines) == 3
    assert 'method="va.ping"' in lines[0]
    assert "outcome=done" in lines[0]
    assert "time=2023-11-14T22:13:20.000Z" in lines[0]
    assert f"peer={PEER.who}" in lines[0]
    assert f"fault={int(Code.METHOD)}" in lines[1]
    assert "\n" not in lines[1]
    assert "outcome=abandoned" in lines[2]
    assert f"worker={drive.newest}" in lines[2]


def test_the_record_of_a_dead_worker_names_it(drive: Drive) -> None:
    drive.ask("va.getfile", "/x")
    drive.die(drive.newest)
    assert f"worker={drive.newest}" in audit(drive)[0]


def test_records_wait_while_frozen_and_come_in_order(drive: Drive) -> None:
    for _ in range(3):
        drive.ask("va.hello")
    before = len(audit(drive))
    _, keeper = drive.hold(1)
    for i in range(5):
        drive.ask("va.fsforget", i)
    assert len(audit(drive)) == before
    assert drive.status().audit.waiting == 6
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    lines = audit(drive)[before:]
    assert [line.split('params="')[1][0] for line in lines if "va.fsforget" in line] == list("01234")
    assert [word for word in ("va.fsfreeze", "va.fsthaw") if sum(word in line for line in lines) != 1] == []
    assert drive.status().audit.waiting == 0


@pytest.mark.parametrize(("method", "many"), [("set_user_password", 1), ("set_user_password", 100_000), ("reload", 1)])
def test_the_parameters_of_a_method_that_does_not_exist_are_not_shown(drive: Drive, method: str, many: int) -> None:
    """It may be a misspelt one, and XML-RPC sends them without their names."""
    drive.ask(method, *["root", "hunter2"] * many)
    drive.ask_by_name("guest-set-user-pasword", {"username": "root", "password": "hunter2"})
    by_place, by_name = audit(drive)[-2:]
    assert "hunter2" not in by_place + by_name
    assert """params="'(not shown)', '(not shown)'""" in by_place
    assert """params="{'password': '(not shown)', 'username': '(not shown)'}""" in by_name


def test_who_watches_leaves_no_record_but_at_debug(drive: Drive) -> None:
    """Three watchers wrote nine tenths of the log, and filled the ring that a freeze has."""
    _, keeper = drive.hold(1)
    waiting = drive.status().audit.waiting
    watching = [row.name for row in RPCS.values() if row.watches]
    assert watching == ["va.fsstatus", "guest-sync-delimited", "guest-sync", "guest-info", "guest-fsfreeze-status"]
    before = len(drive.of(events.Log))
    drive.ask("va.fsstatus", {})
    drive.ask("va.fsstatus", {"since": -1})
    drive.ask("va.fsstatus", {"bogus": 1})
    fresh = drive.of(events.Log)[before:]
    assert [line.level for line in fresh if "audit: time=" in line.text] == ["debug", "debug"]
    assert drive.status().audit.waiting == waiting + 1, "what was refused is recorded"
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert [line for line in audit(drive) if "bogus" in line]


@pytest.mark.parametrize("method", PUBLIC)
def test_a_full_ring_admits_only_what_is_essential(method: str) -> None:
    drive = Drive(audit_ring=3)
    drive.hold(1)
    for _ in range(4):
        drive.ask("va.ping")
    spawned = len(drive.spawned)
    call = drive.ask(method, *PARAMS.get(method, []))
    if method in ESSENTIAL:
        assert not any(getattr(a, "code", None) is Code.AUDIT_FULL for a in call.answers if not isinstance(a, Status))
    else:
        assert call.code is Code.AUDIT_FULL
        assert len(drive.spawned) == spawned


def test_what_the_ring_could_not_keep_is_counted(drive: Drive) -> None:
    drive = Drive(audit_ring=3)
    _, keeper = drive.hold(1)
    for _ in range(10):
        drive.ask("va.ping")
    record = drive.status()
    assert (record.audit.waiting, record.audit.dropped) == (3, 8)
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    assert len(audit(drive)) == 3
    assert drive.logged("dropped")
    drive.ask("va.ping")
    assert len(drive.logged("dropped")) == 1
    assert not any(isinstance(a, Asked) and not a.answered for a in drive.asked)


def test_a_record_has_the_time_of_day_cut_and_not_rounded(drive: Drive) -> None:
    """Some ten-millionths of a second before the next second it is still this one, in both parts of the time."""
    drive.feed(events.Malformed(4, "bad", PEER, 1700000000.9999998))
    assert "time=2023-11-14T22:13:20.999Z" in audit(drive)[0]
