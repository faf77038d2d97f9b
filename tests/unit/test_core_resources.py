"""What workers keep for hosts: open files and started programs, asked one after another, lost with their worker."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.drive import Asked, Drive
from virtagent.agent.api.errors import Code
from virtagent.agent.api.methods import RPCS
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events
from virtagent.supervisor.core.admission import BULKY_MAX
from virtagent.supervisor.core.resources import ASKED_BYTES, ASKED_MAX, RELEASABLE_MAX

LOST = "handle '1000' has not been found"


@pytest.fixture
def drive() -> Drive:
    return Drive(exec_limit=90)


def ask(drive: Drive, command: str, connection: int | None = None, **arguments: Any) -> Asked:
    """Call a command as JSON does."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return drive.ask_by_name(f"guest-{command}", named, connection)


def opened(drive: Drive, handle: int = 1000) -> int:
    call = ask(drive, "file-open", path="/x")
    worker = drive.newest
    assert drive.spawned[worker].args["handle"] == handle
    drive.report(worker, messages.Started(1), messages.Acquired(handle, handle))
    assert call.value == handle
    return worker


def started(drive: Drive, pid: int) -> int:
    call = ask(drive, "exec", path="/bin/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Acquired(pid, {"pid": pid}))
    assert call.value == {"pid": pid}
    return worker


def told(drive: Drive, worker: int) -> list[messages.Control]:
    return [message for to, message in drive.told if to == worker]


def test_a_file_is_opened_asked_and_closed(drive: Drive) -> None:
    worker = opened(drive)
    drive.wait(10_000)
    assert worker in drive.live
    assert worker not in drive.killed
    read = ask(drive, "file-read", handle=1000, count=5)
    [question] = told(drive, worker)
    assert isinstance(question, messages.Ask)
    assert (question.rpc, question.args) == ("guest-file-read", {"handle": 1000, "count": 5})
    assert len(drive.spawned) == 1
    drive.report(worker, messages.Replied(question.call, {"count": 0, "buf-b64": "", "eof": True}))
    assert read.value["eof"] is True
    close = ask(drive, "file-close", handle=1000)
    last = told(drive, worker)[-1]
    assert isinstance(last, messages.Ask)
    drive.report(worker, messages.Replied(last.call, {}), messages.Done(None))
    drive.exit(worker)
    assert close.value == {}
    assert ask(drive, "file-close", handle=1000).fault.text == LOST
    assert drive.idle()


def test_numbers_of_files_are_given_once_and_kept_over_a_restart(drive: Drive) -> None:
    opened(drive)
    opened(drive, 1001)
    assert [effect.next for effect in drive.of(events.KeepHandle)] == [1001, 1002]


def test_a_refusal_of_the_keeper_is_the_answer_and_it_goes_on(drive: Drive) -> None:
    worker = opened(drive)
    call = ask(drive, "file-seek", handle=1000, offset=-1, whence="set")
    [question] = told(drive, worker)
    drive.report(worker, messages.Declined(question.call, int(Code.FAILED), "Invalid argument"))
    assert call.fault.text == "Invalid argument"
    assert worker in drive.live
    assert drive.timers.nearest() is None


def test_each_answer_has_its_limit_and_an_overrun_loses_the_file(drive: Drive) -> None:
    worker = opened(drive)
    limit = RPCS["guest-file-read"].limit or 0
    first, second = ask(drive, "file-read", handle=1000), ask(drive, "file-flush", handle=1000)
    drive.wait(limit - 1)
    drive.report(worker, messages.Replied(told(drive, worker)[0].call, {}))
    assert first.value == {}
    drive.wait(limit - 1)
    assert not second.answered
    drive.wait(2)
    assert second.code is Code.OVERRUN
    assert worker in drive.killed
    assert ask(drive, "file-read", handle=1000).fault.text == LOST
    drive.die(worker)
    assert drive.idle()


def test_the_death_of_the_keeper_answers_all_that_wait_for_it_and_no_other(drive: Drive) -> None:
    worker, other = opened(drive), opened(drive, 1001)
    calls = [ask(drive, "file-read", handle=1000) for _ in range(3)]
    bystander = ask(drive, "file-read", handle=1001)
    drive.die(worker)
    assert {call.code for call in calls} == {Code.WORKER_DIED}
    assert not bystander.answered
    drive.report(other, messages.Replied(told(drive, other)[0].call, {}))
    assert bystander.value == {}


def test_who_asks_behind_the_close_is_told_that_it_is_gone(drive: Drive) -> None:
    worker = opened(drive)
    ask(drive, "file-close", handle=1000)
    late = ask(drive, "file-read", handle=1000)
    drive.report(worker, messages.Replied(told(drive, worker)[0].call, {}), messages.Done(None))
    drive.exit(worker)
    assert late.fault.text == LOST


def test_keepers_are_not_counted_as_workers_and_have_a_number_of_their_own(drive: Drive) -> None:
    most = RPCS["guest-file-open"].holds
    for handle in range(1000, 1000 + most):
        opened(drive, handle)
    assert ask(drive, "file-open", path="/x").code is Code.BUSY
    assert not drive.ask("va.getfile", "/x").answered


def test_of_programs_those_that_have_ended_and_were_not_asked_about_make_room(drive: Drive) -> None:
    most = RPCS["guest-exec"].holds
    workers = [started(drive, 100 + i) for i in range(most)]
    assert ask(drive, "exec", path="/x").code is Code.BUSY
    drive.report(workers[3], messages.Releasable())
    drive.report(workers[7], messages.Releasable())
    assert not ask(drive, "exec", path="/x").answered
    assert told(drive, workers[3]) == [messages.Drop()]
    assert ask(drive, "exec-status", pid=103).fault.text == "Invalid parameter 'pid'"
    drive.report(workers[3], messages.Done(None))
    drive.exit(workers[3])
    assert told(drive, workers[7]) == []


def test_a_pid_that_the_kernel_gives_out_again_means_the_newer_program(drive: Drive) -> None:
    old, new = started(drive, 100), started(drive, 100)
    assert told(drive, old) == [messages.Drop()]
    ask(drive, "exec-status", pid=100)
    assert len(told(drive, new)) == 1


def test_a_program_gets_the_limit_of_the_configuration(drive: Drive) -> None:
    started(drive, 100)
    assert drive.spawned[drive.newest].args["limit"] == 90


@pytest.mark.parametrize("wrong", [messages.Replied(99, 1), messages.Declined(99, 12, "x")])
def test_an_answer_that_nobody_asked_for_is_rubbish(drive: Drive, wrong: messages.Report) -> None:
    worker = opened(drive)
    drive.report(worker, wrong)
    assert worker in drive.killed


def test_too_many_questions_to_one_keeper_are_refused(drive: Drive) -> None:
    opened(drive)
    for _ in range(ASKED_MAX):
        assert not ask(drive, "file-flush", handle=1000).answered
    assert ask(drive, "file-flush", handle=1000).code is Code.BUSY


def test_too_many_bytes_to_write_are_refused(drive: Drive) -> None:
    opened(drive)
    opened(drive, 1001)
    data = "A" * (ASKED_BYTES // 2)
    assert not ask(drive, "file-write", handle=1000, buf_b64=data).answered
    assert not ask(drive, "file-write", handle=1001, buf_b64=data[:-1000]).answered
    assert ask(drive, "file-write", handle=1001, buf_b64="A" * 4000).code is Code.BUSY
    assert not ask(drive, "file-flush", handle=1001).answered


def test_too_many_large_replies_at_once_are_refused(drive: Drive) -> None:
    opened(drive)
    for _ in range(BULKY_MAX):
        assert not ask(drive, "file-read", handle=1000).answered
    assert ask(drive, "file-read", handle=1000).code is Code.BUSY
    assert not ask(drive, "file-flush", handle=1000).answered


def test_each_keeper_is_asked_only_what_is_its_own(drive: Drive) -> None:
    opened(drive, 1000)
    started(drive, 1000)
    assert not ask(drive, "exec-status", pid=1000).answered
    assert not ask(drive, "file-flush", handle=1000).answered
    opened(drive, 1001)
    assert ask(drive, "exec-status", pid=1001).fault.text == "Invalid parameter 'pid'"


def test_the_first_question_has_its_limit(drive: Drive) -> None:
    worker = opened(drive)
    call = ask(drive, "file-read", handle=1000)
    drive.wait((RPCS["guest-file-read"].limit or 0) + 1)
    call.refused(Code.OVERRUN, "guest-file-read of 1000")
    assert worker in drive.killed


def test_what_a_keeper_says_after_it_was_killed_is_late_not_wrong(drive: Drive) -> None:
    call = ask(drive, "file-open", path="/x")
    worker = drive.newest
    drive.report(worker, messages.Started(1))
    drive.wait((RPCS["guest-file-open"].limit or 0) + 0.1)
    assert call.code is Code.OVERRUN
    drive.report(worker, messages.Acquired(1000, 1000), messages.Replied(7, 1), messages.Releasable())
    drive.wait(2)
    assert drive.logged("stuck")
    assert ask(drive, "file-read", handle=1000).fault.text == LOST
    drive.die(worker)
    assert drive.idle()


def test_a_write_under_way_when_a_freeze_begins_may_wait_for_the_thaw(drive: Drive) -> None:
    worker = opened(drive)
    write, read = ask(drive, "file-write", handle=1000, buf_b64="eA=="), ask(drive, "file-read", handle=1000)
    _, keeper = drive.hold(options={"hold_limit": 500})
    drive.wait(400)
    assert worker not in drive.killed
    thaw = drive.ask("va.fsthaw")
    drive.thaws(keeper)
    assert thaw.value == 2
    drive.report(worker, *(messages.Replied(q.call, {}) for q in told(drive, worker) if isinstance(q, messages.Ask)))
    assert write.value == read.value == {}


def test_only_a_few_that_may_be_dropped_are_kept(drive: Drive) -> None:
    workers = [started(drive, 100 + i) for i in range(RELEASABLE_MAX + 1)]
    for worker in workers[:-1]:
        drive.report(worker, messages.Releasable())
    assert not any(told(drive, worker) for worker in workers)
    drive.report(workers[-1], messages.Releasable())
    assert told(drive, workers[0]) == [messages.Drop()]


def test_a_thaw_that_nobody_waits_for_is_done_and_the_news_kept(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.die(keeper)
    drive.compensates()
    unheard = drive.ask_unheard("guest-fsfreeze-thaw", {})
    assert not unheard.answered
    assert ask(drive, "fsfreeze-thaw").code is Code.FREEZE_BROKEN
    _, keeper = drive.hold()
    drive.ask_unheard("guest-fsfreeze-thaw", {})
    drive.thaws(keeper)
    assert ask(drive, "fsfreeze-status").value == "thawed"


def test_status_calls_that_were_given_up_are_forgotten(drive: Drive) -> None:
    drive.begin()
    for _ in range(100):
        drive.give_up(ask(drive, "fsfreeze-status"))
    assert len(drive.core._pending._unsettled) <= 1


def test_the_status_of_a_program_is_told_while_frozen_and_files_are_refused(drive: Drive) -> None:
    started(drive, 100)
    opened(drive)
    drive.hold()
    assert not ask(drive, "exec-status", pid=100).answered
    assert ask(drive, "file-read", handle=1000).code is Code.REFUSED_WHILE_FROZEN
    assert ask(drive, "exec", path="/x").code is Code.REFUSED_WHILE_FROZEN


def test_the_end_of_the_agent_ends_keepers(drive: Drive) -> None:
    worker, program = opened(drive), started(drive, 100)
    call = ask(drive, "file-read", handle=1000)
    drive.feed(events.Stopped("SIGTERM"))
    assert call.code is Code.WRONG_STATE
    assert worker in drive.killed
    assert program not in drive.killed  # it ends its program first
    assert told(drive, program) == [messages.Drop()]


@pytest.mark.parametrize("state", ["INPROGRESS", "THAWINPROGRESS"])
def test_fsfreeze_status_waits_for_the_outcome(drive: Drive, state: str) -> None:
    assert ask(drive, "fsfreeze-status").value == "thawed"
    _, worker = drive.begin()
    if state == "INPROGRESS":
        asked = [ask(drive, "fsfreeze-status") for _ in range(2)]
        gone = ask(drive, "fsfreeze-status")
        drive.hang_up(gone)
        drive.sync(worker)
        drive.freezes(worker, 0, 1)
        drive.frozen(worker, 0, 1)
        assert not asked[0].answered
        drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
        assert {call.value for call in asked} == {"frozen"}
    else:
        drive.sync(worker)
        thaw = ask(drive, "fsfreeze-thaw")
        status = ask(drive, "fsfreeze-status")
        assert not status.answered
        drive.die(worker)
        assert status.value == "thawed"
        assert thaw.value == 0


def test_fsfreeze_status_says_frozen_of_what_cannot_be_thawed(drive: Drive) -> None:
    _, worker = drive.hold()
    drive.die(worker)
    status = ask(drive, "fsfreeze-status")
    assert not status.answered
    drive.refuses()
    assert status.value == "frozen"


def test_guest_info_says_what_is_admitted_now(drive: Drive) -> None:
    def enabled() -> dict[str, bool]:
        commands = ask(drive, "info").value["supported_commands"]
        return {command["name"]: command["enabled"] for command in commands}

    assert all(enabled().values())
    drive.hold()
    now = enabled()
    for command in ("sync", "sync-delimited", "ping", "info", "fsfreeze-status", "fsfreeze-thaw", "get-load"):
        assert now[f"guest-{command}"], command
    for command in ("fsfreeze-freeze", "fsfreeze-freeze-list", "exec", "file-read", "fstrim", "set-user-password"):
        assert not now[f"guest-{command}"], command
    drive = Drive(block_rpcs=("guest-exec",))
    assert not enabled()["guest-exec"]


def test_freeze_list_takes_mount_points_as_they_are(drive: Drive) -> None:
    ask(drive, "fsfreeze-freeze-list", mountpoints=["/srv/*", "/x"])
    assert drive.spawned[drive.newest].args["options"].rules.literal == ("/srv/*", "/x")
    ask(Drive(), "fsfreeze-freeze")
    fresh = Drive()
    ask(fresh, "fsfreeze-freeze-list")
    assert fresh.spawned[fresh.newest].args["options"].rules.literal is None


def test_what_is_secret_is_not_in_the_audit_record(drive: Drive) -> None:
    ask(drive, "set-user-password", username="tux", password="c2VjcmV0", crypted=False)
    drive.report(drive.newest, messages.Started(1), messages.Done({}))
    [line] = drive.logged("set-user-password")
    assert "tux" in line
    assert "c2VjcmV0" not in line
