"""Who watches delays who acts as little as can be: told after the other effects of a turn, by one record made once."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.drive import Asked, Drive
from fakes.scenarios import played
from virtagent.agent.wire import json_values, xmlrpc
from virtagent.agent.wire.messages import Request, Shared
from virtagent.agent.wire.session import Session
from virtagent.agent.worker import messages
from virtagent.supervisor.core import events
from virtagent.supervisor.core.pending import WATCHERS, WATCHERS_A_TURN, WATCHERS_LATER

MANY = 21


def watching(drive: Drive, *, brief: bool) -> list[Asked]:
    seq = drive.status().seq
    return [drive.ask("va.fsstatus", {"since": seq, "wait": 60, "brief": brief}) for _ in range(MANY)]


def test_all_of_one_turn_get_the_same_record(drive: Drive) -> None:
    _, worker = played(drive, "freezing")
    whole, brief = watching(drive, brief=False), watching(drive, brief=True)
    drive.report(worker, messages.Step(0, "frozen"))
    for watchers in (whole, brief):
        assert all(watcher.answered for watcher in watchers)
        assert len({id(watcher.value) for watcher in watchers}) == 1
    assert whole[0].value is not brief[0].value
    assert drive.ask("va.fsstatus", {"since": 0}).value is not whole[0].value, "another turn, another record"


def test_a_shared_value_is_encoded_once() -> None:
    value = {"state": "FROZEN", "seq": 7, "mounts": [{"mountpoint": "/srv"}]}
    shared = Shared(value)
    assert xmlrpc.dump_reply(shared) == xmlrpc.dump_reply(value)
    kept = shared.pieces
    assert xmlrpc.dump_reply(shared) == [*kept]
    assert shared.pieces is kept


@pytest.mark.parametrize("id_", ["", ', "id": {"a": [1]}'])
def test_a_shared_value_is_made_json_once_whatever_the_id_is(id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    dump = json_values.dump

    def noted(value: object) -> bytes:
        made.append(value)
        return dump(value)

    monkeypatch.setattr(json_values, "dump", noted)
    value = {"state": "FROZEN", "mounts": [{"mountpoint": "/srv/\udcff"}]}
    lines = []
    for record in (value, Shared(value)):
        stream = Session()
        for _ in range(3):
            stream.receive_data(f'{{"execute": "va.fsstatus"{id_}}}'.encode())
            [request] = iter(stream.next_event, None)
            assert isinstance(request, Request)
            stream.reply(request.token, record)
            lines.append(bytes(stream.pending()))
            stream.wrote(len(lines[-1]))
    assert len(set(lines)) == 1, "the same as one that is told to nobody else"
    assert sum("mounts" in str(one) for one in made) == 3 + 1


def told(drive: Drive, watchers: list[Asked]) -> int:
    return sum(watcher.answered for watcher in watchers)


def test_those_who_watch_are_told_in_portions(drive: Drive) -> None:
    _, worker = played(drive, "freezing")
    watchers = watching(drive, brief=False)
    drive.tells_watchers = False
    drive.report(worker, messages.Step(0, "frozen"))
    for turn in range(1, 4):
        assert drive.timers.left(WATCHERS, drive.now) >= 0
        drive.timers.cancel(WATCHERS)
        drive.feed(events.Due(WATCHERS))
        assert told(drive, watchers) == min(MANY, turn * WATCHERS_A_TURN), "the first to ask are the first to be told"
        assert [watcher.answered for watcher in watchers] == sorted((w.answered for w in watchers), reverse=True)
    assert len({id(watcher.value) for watcher in watchers}) == 1, "one record a change, however many turns it takes"


def test_whoever_thaws_is_answered_before_those_who_watch(drive: Drive) -> None:
    _, worker = played(drive, "held")
    watchers = watching(drive, brief=True)
    drive.tells_watchers = False
    thaw = drive.ask("va.fsthaw")
    assert drive.timers.left(WATCHERS, drive.now) == pytest.approx(WATCHERS_LATER), "the thaw is under way"
    drive.thaws(worker)
    assert thaw.answered
    assert told(drive, watchers) == 0
    assert drive.timers.left(WATCHERS, drive.now) == 0, "and now they are told"
    drive.tells_watchers = True
    drive.feed()
    assert {watcher.value.state for watcher in watchers} == {"THAWED"}


def test_those_who_watch_wait_for_no_thaw_that_takes_long(drive: Drive) -> None:
    _, worker = played(drive, "held")
    watchers = watching(drive, brief=True)
    drive.tells_watchers = False
    drive.ask("va.fsthaw")
    drive.report(worker, messages.Thawing("", drive.now))
    assert 0 < drive.timers.left(WATCHERS, drive.now) <= WATCHERS_LATER, "a change does not put it off"
    drive.tells_watchers = True
    drive.feed()
    assert {watcher.value.state for watcher in watchers} == {"THAWINPROGRESS"}


def test_a_freeze_is_told_to_those_who_watch_as_soon_as_it_is_answered(drive: Drive) -> None:
    freeze, worker = played(drive, "frozen")
    watchers = watching(drive, brief=True)
    drive.tells_watchers = False
    drive.report(worker, messages.Frozen(2, drive.now, drive.now + 60))
    assert freeze.answered
    assert drive.timers.left(WATCHERS, drive.now) == 0
    drive.tells_watchers = True
    drive.feed()
    assert told(drive, watchers) == MANY


def test_a_freeze_that_waits_is_refused_before_those_who_watch_are_told(drive: Drive) -> None:
    """Found by storm 400000140: they were told between two reports that were read at once."""
    freeze, worker = played(drive, "frozen")
    waits = drive.ask_by_name("guest-fsfreeze-freeze", {})
    watchers = watching(drive, brief=True)
    before = len(drive.effects)
    drive.feed(events.Reported(worker, messages.Frozen(2, drive.now, drive.now + 60), more=True), events.Due(WATCHERS))
    answers = [(e.connection, e.token) for e in drive.effects[before:] if isinstance(e, events.Answer)]
    told_first = [next(a for a in drive.asked if (a.connection, a.token) == key) for key in answers[:2]]
    assert told_first == [freeze, waits]
    assert told(drive, watchers) > 0
