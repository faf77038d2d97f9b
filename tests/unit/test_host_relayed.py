"""The progress of guests behind relays: by the relay's own connection, bounded, and checked as that of any guest."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import LAST, MOUNT, status_record
from fakes.many_agents import ManyAgents
from fakes.relays import FakeRelays
from virtagent.agent.api import records
from virtagent.agent.api.records import Status
from virtagent.host import AgentGroup, AsyncAgent, following, relayed
from virtagent.host.events import EventLines
from virtagent.host.following import Following
from virtagent.host.guest_status import GuestStatus
from virtagent.host.snapshot import Snapshot

FROZEN, THAWED = 100_000, 200_000  # `seq`
SYNCS = MOUNT | {"state": "syncing", "dirty_bytes": 4 << 20, "eta": 3.5}


class Guests(ManyAgents):
    """Four agents whose first has a sync under way until somebody was told of it, if anybody is to be."""

    def __init__(self, folder: Path) -> None:
        self.seqs = itertools.count(1)
        self.told = threading.Event()
        self.told.set()
        super().__init__(folder, 4, self.syncing)

    def syncing(self, n: int, method: str) -> Any:
        if method != "va.fsstatus":
            return None
        if n in self.frozen:
            return self._usual(n, method, None) | {"seq": FROZEN}
        if n == 0 and n in self.waiting and not self.told.is_set():
            progress = {"dirty_bytes": 4 << 20, "flushed_bytes": 1 << 20, "bytes_per_second": 1e6, "eta": 3.5}
            return status_record(
                state="INPROGRESS", code=1, seq=next(self.seqs), phase="sync", mounts=[SYNCS], progress=progress
            )
        if n in self.waiting:
            return None
        last = LAST | {"freeze_id": 17, "held_continuously": True} if n in self._since else LAST | {"freeze_id": 16}
        # One that has yet to freeze always has something new, so that it is followed until then.
        seq = THAWED if n in self._since else next(self.seqs)
        return status_record(state="THAWED", code=0, phase="", seq=seq, last=last)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed, "_APART", 0.005)


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Guests]:
    with Guests(tmp_path) as those:
        yield those


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch, guests: Guests) -> Iterator[FakeRelays]:
    with FakeRelays(monkeypatch) as those:
        yield those


def hosts(guests: Guests) -> list[str]:
    return [f"ssh:hv1?agents={guests.urls[0]}&agents={guests.urls[1]}", f"ssh:hv2?agents={guests.urls[2]}"]


def test_each_guest_is_told_of_by_the_one_connection_of_its_host(guests: Guests, relays: FakeRelays) -> None:
    told: list[GuestStatus] = []

    def tell(record: GuestStatus) -> None:
        told.append(record)
        if record.phase == "sync":
            guests.told.set()

    guests.told.clear()
    with AgentGroup([*hosts(guests), guests.urls[3]]).frozen(hold=30, progress=tell) as freeze:
        assert guests.frozen == {0, 1, 2, 3}
    assert sorted(relays.started) == ["hv1", "hv2"], "a second ssh"
    assert {record.url for record in told} == set(freeze.guests)
    syncs = [record for record in told if record.phase == "sync" and record.url.startswith("ssh:")]
    assert syncs
    assert syncs[0].progress.eta == 3.5
    assert syncs[0].mounts[0].dirty_bytes == 4 << 20
    for url, one in freeze.guests.items():
        assert one.not_followed == "" or "does not wait" in one.not_followed  # the fakes answer a long poll at once
        states = [record.state for record in told if record.url == url]
        assert "FROZEN" in states, "the step that matters is told, whether a poll has seen it or not"
        assert states[-1] == "THAWED"


def test_one_guest_for_asyncio_is_followed_too(guests: Guests, relays: FakeRelays) -> None:
    told: list[GuestStatus] = []

    async def run() -> None:
        async with AsyncAgent(f"ssh:hv1?agents={guests.urls[2]}").frozen(progress=told.append):
            assert guests.frozen == {2}

    asyncio.run(run())
    states = [record.state for record in told]
    assert [state for state, _ in itertools.groupby(states)][-2:] == ["FROZEN", "THAWED"]
    assert {record.url for record in told} == {f"ssh:hv1?agents={guests.urls[2]}"}
    assert relays.started == ["hv1"]


def test_without_progress_nothing_is_asked(guests: Guests, relays: FakeRelays) -> None:
    with AgentGroup(hosts(guests)).frozen():
        pass
    assert {what for _, what in relays.asked} == {"clock", "prepare", "freeze", "thaw"}


def test_a_snapshot_has_events_of_guests_behind_relays(guests: Guests, relays: FakeRelays) -> None:
    out = io.StringIO()
    snapshot = Snapshot(
        hosts(guests)[:1], [], timeout=20, options={"hold": 30}, observer=EventLines(out), on_each_host="true"
    )
    assert snapshot.run().good
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    of_guests = {event["agent"] for event in events}
    assert of_guests == {f"ssh:hv1?agents={url}" for url in guests.urls[:2]}
    names = [event["event"] for event in events if event["agent"].endswith(guests.urls[1])]
    assert "held" in names
    (held,) = [event for event in events if event["event"] == "held" and event["agent"].endswith(guests.urls[1])]
    assert (held["frozen"], held["freeze_id"]) == (1, 17)
    assert names[-1] == "end"
    assert relays.started == ["hv1"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"state": "FROZEN"}, "code"),
        ([1], "expected a struct"),
        (status_record(mounts=[MOUNT] * 2000), "characters, at most 262144 are passed on"),
        (status_record(since="long"), "since"),
        (ConnectionError("no status today"), "no status today"),
    ],
    ids=["misshapen", "an array", "too long", "a member", "a fault"],
)
def test_a_guest_that_says_nonsense_is_followed_no_more_and_nothing_else_suffers(
    guests: Guests, relays: FakeRelays, said: Any, why: str
) -> None:
    relays.pass_on = lambda text: said if '"va.fsstatus"' in text else None
    told: list[GuestStatus] = []
    group = AgentGroup(hosts(guests)[1:])
    with group.frozen(progress=told.append) as freeze:
        assert guests.frozen == {2}
    (one,) = freeze.guests.values()
    assert one.broken is None
    assert why in one.not_followed
    assert [record.state for record in told] == ["FROZEN", "THAWED"], "what the relay itself says"


def test_a_relay_that_does_not_say_which_guests_it_has_is_not_followed(guests: Guests, relays: FakeRelays) -> None:
    relays.meddle = lambda host, what, answer: {"error": "unknown record"} if what == "list" else None
    group = AgentGroup(hosts(guests))
    with group.frozen(progress=lambda record: None) as freeze:
        assert guests.frozen == {0, 1, 2}
    assert all(one.broken is None for one in freeze.guests.values())


@pytest.mark.parametrize(
    "found", [[], [""], [7], "unix:/a", {"a": 1}, [f"unix:/{n}" for n in range(1001)], ["unix:/a&agents=b"], None]
)
def test_a_list_that_is_none_fails_the_host_before_anything_is_frozen(
    guests: Guests, relays: FakeRelays, found: Any
) -> None:
    relays.meddle = lambda host, what, answer: {"agents": found} if what == "list" else None
    with (
        pytest.raises(Exception, match=r"answered no list of agents.*nothing was frozen"),
        AgentGroup(hosts(guests)).frozen(progress=lambda record: None),
    ):
        pytest.fail("the block runs")
    assert not guests.frozen | guests.waiting


def test_records_of_many_guests_are_far_apart() -> None:
    assert relayed.apart(1) == relayed._APART
    assert relayed.apart(10_000) == 20.0


def status(**changed: Any) -> Status:
    return records.load(Status, status_record(**changed), "status")


SUMMED_UP = Status("FROZEN", 2, -1, 17, phase="hold", hold_left=9.0, mounts=(records.MountStatus("/srv/db"),))
OVER = Status("THAWED", 0, -1, last=records.load(records.Last, LAST | {"freeze_id": 17}, "last"))


@pytest.mark.parametrize(
    ("seen", "summed_up", "told"),
    [
        (status(state="INPROGRESS", phase="ready", mounts=[SYNCS]), SUMMED_UP, True),
        (status(), SUMMED_UP, False),
        (status(state="THAWED", phase="", last=LAST | {"freeze_id": 17}), SUMMED_UP, False),
        (status(state="THAWED", phase="", last=LAST | {"freeze_id": 16}), SUMMED_UP, True),
        (status(), OVER, True),
        (status(state="THAWED", phase="", last=LAST | {"freeze_id": 17}), OVER, False),
    ],
)
def test_what_a_relay_sums_up_is_told_if_no_poll_has_seen_it(seen: Status, summed_up: Status, told: bool) -> None:
    found: list[GuestStatus] = []

    async def follow() -> None:
        one = Following([], found.append)
        one.add("ssh:hv?agents=unix:/a", seen)
        one.add("ssh:hv?agents=unix:/a", summed_up)

    asyncio.run(follow())
    assert len(found) == 1 + told
    if told and summed_up is SUMMED_UP:
        (mount,) = found[1].mounts
        assert (mount.state, mount.device) == ("frozen", MOUNT["device"]), "what was known of it stays"
    if told:
        assert (found[1].state, found[1].seq) == (summed_up.state, seen.seq)


@pytest.mark.parametrize(
    ("url", "alone"),
    [("unix:/a", False), ("libvirt:db", True), ("ssh:hv?agents=libvirt:db", True), ("ssh:hv?agents=unix:/a", False)],
)
def test_libvirt_is_not_kept_waiting_here_or_there(url: str, alone: bool) -> None:
    assert following._by_libvirt(url) is alone
