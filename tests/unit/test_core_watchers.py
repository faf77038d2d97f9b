"""Who watches delays who acts as little as can be: told after the other effects of a turn, by one record made once."""

from __future__ import annotations

from fakes.drive import Asked, Drive
from fakes.scenarios import played
from virtagent.agent.wire import xmlrpc
from virtagent.agent.worker import messages

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
    shared = xmlrpc.Shared(value)
    assert xmlrpc.dump_reply(shared) == xmlrpc.dump_reply(value)
    kept = shared.pieces
    assert xmlrpc.dump_reply(shared) == [*kept]
    assert shared.pieces is kept
