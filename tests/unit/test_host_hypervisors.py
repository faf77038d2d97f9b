"""A group over hypervisors: one barrier over all relays, and what one relay's trouble costs at each step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.many_agents import ManyAgents
from fakes.relays import DIE, HANG, LATE, FakeRelays
from fakes.schema import faults
from virtagent.host import (
    Agent,
    AgentGroup,
    AsyncAgent,
    AsyncAgentGroup,
    FreezeBroken,
    GroupFailed,
    NotThawed,
    TooSkewed,
    cli,
    group,
    hosts_report,
    hypervisor,
    inventory,
    outcome,
    ssh_guest,
    ssh_process,
)
from virtagent.host.group import GroupFreeze
from virtagent.host.holding import Wanted
from virtagent.host.hypervisor import Clock, Hypervisor, Ran
from virtagent.host.member import Guest
from virtagent.host.processes import OUTPUT_MAX
from virtagent.host.snapshot import Report
from virtagent.host.transports import Far

PLACES = ("hv1", "hv2", "hv3")


class Fleet:
    """Three hypervisors with two guests each, and one guest that is reached from here."""

    def __init__(self, folder: Path, relays: FakeRelays, guests: ManyAgents) -> None:
        self.relays, self.guests = relays, guests
        paths = [url.removeprefix("unix:") for url in guests.urls]
        self.names = [f"ssh:{host}" for host in PLACES]
        self.urls = [
            f"ssh:{host}?agents=unix:{paths[2 * n]}&agents=unix:{paths[2 * n + 1]}" for n, host in enumerate(PLACES)
        ]
        self.all = [*self.urls, guests.urls[6]]

    def group(self) -> AgentGroup:
        return AgentGroup(self.all)

    def nothing_is_frozen(self) -> None:
        assert not self.guests.frozen | self.guests.waiting


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with ManyAgents(tmp_path, 7) as guests:
        with FakeRelays(monkeypatch) as relays:
            yield Fleet(tmp_path, relays, guests)
        assert not guests.frozen | guests.waiting, "the end of the input has not thawed"


def test_all_are_frozen_together(fleet: Fleet) -> None:
    with fleet.group().frozen(hold=30) as freeze:
        assert fleet.guests.frozen == set(range(7))
    fleet.nothing_is_frozen()
    assert len(freeze.guests) == 7
    assert list(freeze.hosts) == fleet.names
    assert all(one.broken is None and one.ended is not None for one in freeze.guests.values())
    assert fleet.guests.urls[6] in freeze.guests
    assert f"ssh:hv1?agents={fleet.guests.urls[0]}" in freeze.guests
    assert 0 <= freeze.true_skew < 20
    assert freeze.window >= 0
    steps = [what for _, what in fleet.relays.asked if what != "clock"]
    assert steps == ["prepare"] * 3 + ["freeze"] * 3 + ["thaw"] * 3, "no step begins before the last has ended for all"
    assert sorted(fleet.relays.started) == sorted(PLACES), "one ssh a hypervisor"


def test_urls_of_one_host_share_its_relay(fleet: Fleet) -> None:
    urls = [f"ssh:hv1?agents={url}" for url in fleet.guests.urls[:3]]
    with AgentGroup(urls).frozen() as freeze:
        assert fleet.guests.frozen == {0, 1, 2}
    assert (list(freeze.hosts), list(freeze.guests)) == (["ssh:hv1"], urls)
    assert fleet.relays.started == ["hv1"]
    with pytest.raises(ValueError, match="for all that are named there, and with agents, too"):
        AgentGroup([*urls, "ssh:hv1"])


def meddling(step: str, said: Any) -> Any:
    """Let the relay of hv2 say that at one step: connect is the first question for its time, measure the second."""
    clocks = 0

    def meddle(host: str, what: str, answer: dict[str, Any]) -> Any:
        nonlocal clocks
        if host != "hv2":
            return None
        if what == "clock":
            clocks += 1
            what = {1: "connect", 2: "measure"}.get(clocks, "clock")
        if what != step:
            return None
        return said(answer) if callable(said) else said

    return meddle


def frozen_with(**changed: Any) -> Any:
    def said(answer: dict[str, Any]) -> Any:
        return {"frozen": {**answer["frozen"], **changed}}

    return said


def each_with(**changed: Any) -> Any:
    def said(answer: dict[str, Any]) -> Any:
        frozen = answer["frozen"]
        return {"frozen": {**frozen, "each": {url: {**one, **changed} for url, one in frozen["each"].items()}}}

    return said


LIES = {
    "nonsense": b"frozen!\n",
    "an array": b"[1]\n",
    "another record": {"thawed": 7},
    "no end": b"x" * 5000,
    "an error": {"error": "no such thing"},
    "none frozen": frozen_with(each={}),
    "one frozen in the future": frozen_with(last=4e9),
    "one frozen in 1970": frozen_with(first=1.0),
    "one without figures": frozen_with(each={"unix:/a": {}, "unix:/b": {}}),
    "texts for numbers": frozen_with(first="soon"),
    "infinite instants": frozen_with(first=float("-inf"), last=float("inf")),
    "infinite holds": each_with(hold_left=float("inf")),
    "a count that is none": each_with(count=float("nan")),
    "an endless count": each_with(count=int("9" * 400)),
    "a count in words": each_with(count="1"),
    "a list of guests": frozen_with(each=["unix:/a", "unix:/b"]),
    "guests that are lists": frozen_with(each={"unix:/a": [], "unix:/b": []}),
    "mounts in words": each_with(mounts="/srv"),
    "mounts without names": each_with(mounts=[7]),
    "the same twice": lambda answer: json.dumps(answer).replace('"at"', '"count": 1, "at"').encode() + b"\n",
}
UNREADY = (
    {"ready": "all"},
    {"ready": 0},
    {"ready": True},
    {"ready": 10**9},
    {"failed": {}},
    {"failed": {"unix:/a": [7]}},
)
TIMES = ("now", -1, 0, True, 10**400, 1e300, None, float("nan"), float("inf"))
TROUBLE: list[tuple[str, Any]] = [
    *((step, said) for step in ("connect", "prepare", "measure", "freeze") for said in (HANG, DIE)),
    *((step, {"failed": {"unix:/run/vm7": "EIO"}}) for step in ("prepare", "freeze")),
    *(("freeze", said) for said in LIES.values()),
    *(("prepare", said) for said in (*LIES.values(), *UNREADY) if not callable(said)),
    *((step, {"clock": {"now": at}}) for step in ("connect", "measure") for at in TIMES),
    *((step, said) for step in ("connect", "measure") for said in ({"clock": 7}, {"ready": 2}, b"{\n")),
]


@pytest.mark.parametrize(("step", "said"), TROUBLE)
def test_one_relay_in_trouble_thaws_all_and_is_named(
    fleet: Fleet, step: str, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_process, "ANSWER_MAX", 4000)
    if said is HANG:
        monkeypatch.setattr(hypervisor, "MARGIN", 1)
        monkeypatch.setattr(hypervisor, "ANSWER", 0)
        monkeypatch.setattr(hypervisor, "CONNECT_SECONDS", 1)
        monkeypatch.setattr(group, "PREPARE_SECONDS", 1)
    fleet.relays.meddle = meddling(step, said)
    failing = pytest.raises(GroupFailed, match="hv2")
    with failing as raised, fleet.group().frozen(freeze_wait=1 if said is HANG else 60, thaw_wait=1):
        pytest.fail("the block runs")
    assert "hv1" not in str(raised.value)
    assert ("nothing was frozen" in str(raised.value)) == (step != "freeze")


@pytest.mark.parametrize("step", ["connect", "prepare", "measure", "freeze", "run", "thaw"])
def test_one_relay_that_is_late_and_not_too_late_costs_nothing_but_time(fleet: Fleet, step: str) -> None:
    late = 3.0 if step == "freeze" else 0.3
    fleet.relays.meddle = meddling(step, LATE(late))
    with fleet.group().frozen() as freeze:
        assert asked_to_run(freeze, fleet.names[1]) == Ran(0, "")
    assert all(one.broken is None for one in freeze.guests.values())
    assert freeze.true_skew < late or step != "freeze", "it is late in telling, not in freezing"


@pytest.mark.parametrize(
    "said",
    [
        HANG,
        DIE,
        b"frozen!\n",
        {"held": 3, "broken": [], "window": 1},
        {"error": "it is too hot"},
        {"held": [[7]], "broken": {}, "each": {"unix:/a": [7]}, "window": "long"},
        lambda answer: {**answer, "window": 10**400},
        lambda answer: {
            **answer,
            "each": {url: {**last, "held_seconds": float("inf")} for url, last in answer["each"].items()},
        },
        lambda answer: {**answer, "held": answer["held"][:1]},
        lambda answer: {**answer, "each": {}, "held": []},
        lambda answer: {**answer, "broken": {answer["held"][0]: "it expired"}},
        lambda answer: {
            **answer,
            "each": {url: {**last, "held_continuously": False} for url, last in answer["each"].items()},
        },
    ],
    ids=[
        *("hangs", "dies", "nonsense", "misshapen", "refuses", "misshapen within", "endless", "infinite"),
        *("one not held", "none held", "one broken", "not continuously"),
    ],
)
def test_a_thaw_that_is_not_known_to_be_good_costs_only_that_host(
    fleet: Fleet, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is HANG:
        monkeypatch.setattr(hypervisor, "MARGIN", 1)
        monkeypatch.setattr(hypervisor, "ANSWER", 0)
    fleet.relays.meddle = meddling("thaw", said)
    wait = 1 if said is HANG else 60
    with pytest.raises(FreezeBroken, match="hv2") as raised, fleet.group().frozen(thaw_wait=wait) as freeze:
        pass
    assert "hv1" not in str(raised.value)
    broken = {url for url, one in freeze.guests.items() if one.broken is not None}
    assert broken
    assert all("hv2" in url for url in broken), "what the others say stands"
    if said in (HANG, DIE):
        assert all(isinstance(freeze.guests[url].broken, NotThawed) for url in broken)


def test_a_relay_that_dies_while_all_are_frozen_breaks_the_freeze(fleet: Fleet) -> None:
    fleet.relays.meddle = meddling("run", DIE)
    with pytest.raises(FreezeBroken, match="hv2"), fleet.group().frozen() as group:
        ran = asked_to_run(group, fleet.names[1])
    assert ran.code == -1
    assert "hv2" in ran.error
    assert {url.partition("?")[0] for url, one in group.guests.items() if one.broken} == {"ssh:hv2"}


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"error": "no shell"}, "refused run: no shell"),
        ({"failed": {"unix:/a": "EIO"}}, "did not say what became of the command"),
        ({"ran": 7}, "did not say"),
        ({"ran": {"code": "0", "output": ""}}, "did not say"),
        ({"ran": {"code": 0, "output": None}}, "did not say"),
        ({"ran": {"code": 10**9, "output": ""}}, "did not say"),
        ({"ran": {"code": True, "output": ""}}, "did not say"),
        ({"ran": {"code": 0, "output": "", "error": [7]}}, "7"),
        (b"done\n", "which is no JSON"),
        (HANG, "did not answer run within"),
    ],
)
def test_a_command_that_is_not_known_to_be_done_failed_and_says_so(
    fleet: Fleet, said: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guests were held all the same, unless what was said makes the relay unbelievable."""
    if said is HANG:
        monkeypatch.setattr(hypervisor, "MARGIN", 1)
    fleet.relays.meddle = meddling("run", said)
    broken = isinstance(said, bytes) or said is HANG
    with (
        pytest.raises(FreezeBroken, match="hv2") if broken else contextlib.nullcontext(),
        fleet.group().frozen() as them,
    ):
        ran = asked_to_run(them, fleet.names[1])
        assert ran.code != 0 or ran.error
        assert wrong in ran.error
    assert {url for url, one in them.guests.items() if one.broken} == {
        url for url in them.guests if broken and "hv2" in url
    }


def test_what_a_command_wrote_is_bounded_here_too(fleet: Fleet) -> None:
    fleet.relays.meddle = meddling("run", {"ran": {"code": 0, "output": "x" * 300_000, "output_left_out": 5}})
    with fleet.group().frozen() as them:
        ran = asked_to_run(them, fleet.names[1])
    assert ran.output.startswith("x" * OUTPUT_MAX)
    assert ran.output.endswith(f"[{300_000 - OUTPUT_MAX + 5} bytes more were left out]")


def asked_to_run(freeze: GroupFreeze, url: str) -> Ran:
    """Have one relay run a command, on the group's own loop."""
    host = freeze.hosts[url]
    writer = host._remote._writer
    assert writer is not None
    loop = writer._loop  # type: ignore[attr-defined]
    return asyncio.run_coroutine_threadsafe(host.run(["/bin/true"], 1), loop).result(20)


@pytest.mark.parametrize("ahead", [60.0, -60.0])
def test_clocks_that_differ_by_a_minute_are_told_and_do_not_count(fleet: Fleet, ahead: float) -> None:
    fleet.relays.clocks["hv2"] = ahead
    with fleet.group().frozen(max_skew=30) as freeze:
        pass
    clocks = {url: host.clock for url, host in freeze.hosts.items()}
    clock = clocks[fleet.names[1]]
    assert clock is not None
    assert clock.differs
    assert clock.ahead == pytest.approx(ahead, abs=20)
    assert freeze.skew_by_clocks == pytest.approx(60, abs=20)
    assert freeze.skew_by_round_trip < 30
    assert freeze.true_skew < 30


@pytest.mark.parametrize(("trips", "wrong_by"), [([0.4], 0), ([0.4, 0.1], 0.25), ([0.4, 0.1, 0.3], 0.35)])
def test_a_skew_is_wrong_by_no_more_than_both_its_ends_are(trips: list[float], wrong_by: float) -> None:
    """Each host's instants are wrong by half of its round trip, one way or the other; those of one host all alike."""
    hosts = [Hypervisor(Far(f"ssh:hv{n}", f"hv{n}", 0, ()), Wanted()) for n in range(len(trips))]
    for host, trip in zip(hosts, trips, strict=True):
        host.clock = Clock(0.0, trip, 0.0)
    assert group.report(hosts).skew_error == pytest.approx(wrong_by)
    if len(trips) == 1:
        here = Guest(AsyncAgent("unix:/a"), Wanted())
        assert group.report([*hosts, here]).skew_error == pytest.approx(trips[0] / 2)


def test_a_host_that_is_late_breaks_the_group_by_its_skew(fleet: Fleet) -> None:
    """Its guests were frozen 0.6 s before those of the others, and its clock is right."""

    def early(answer: dict[str, Any]) -> Any:
        frozen = answer["frozen"]
        each = {url: {**one, "at": one["at"] - 0.6} for url, one in frozen["each"].items()}
        return {"frozen": {**frozen, "first": frozen["first"] - 0.6, "last": frozen["last"] - 0.6, "each": each}}

    fleet.relays.meddle = meddling("freeze", early)
    with pytest.raises(TooSkewed, match="all were thawed"), fleet.group().frozen(max_skew=0.5):
        pytest.fail("the block runs")
    fleet.nothing_is_frozen()


@pytest.mark.parametrize("step", ["connect", "prepare", "measure", "freeze", "run", "thaw"])
def test_a_coordinator_that_stops_dead_leaves_nothing_frozen(fleet: Fleet, step: str) -> None:
    """As SIGKILL does: its loop takes no further step, so that it asks for nothing more, and then its sockets end."""
    reached = threading.Event()
    loop = asyncio.new_event_loop()

    def meddle(host: str, what: str, answer: dict[str, Any]) -> Any:
        said = stops(host, what, answer)
        if said is HANG:
            reached.set()
        return said

    async def coordinate() -> None:
        async with AsyncAgentGroup(fleet.urls).frozen(hold=60) as them:
            await them.hosts[fleet.names[1]].run(["/bin/true"], 60)

    stops = meddling(step, HANG)
    fleet.relays.meddle = meddle
    doing = loop.create_task(coordinate())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert reached.wait(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    assert bool(fleet.guests.frozen) == (step in ("freeze", "run")) or step == "thaw"
    fleet.relays.lose_the_coordinator()
    fleet.relays.have_ended()
    fleet.nothing_is_frozen()
    doing.cancel()
    loop.run_until_complete(asyncio.wait([doing]))
    loop.close()


def test_several_urls_of_one_kind_are_refused() -> None:
    for url, words in (
        ("ssh:", "names no host"),
        ("ssh:-oProxyCommand=x", "names no host"),
        ("ssh:a b", "names no host"),
        ("ssh:h?agent=unix:/x", "says 'agent=unix:/x' after the host"),
        ("ssh:h?agents=", "after the host"),
        ("ssh:h:99999999999", "no number"),
        ("qemu-ga:ssh:h", "says not where"),
    ):
        with pytest.raises(ValueError, match=words):
            AgentGroup([url])


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())


def test_the_report_is_as_its_schema_says(fleet: Fleet) -> None:
    nothing = outcome.document(Report(), "no", 1)
    assert list(faults(nothing, SCHEMA)) == []
    fleet.relays.clocks["hv2"] = 2.0
    fleet.relays.meddle = meddling("thaw", lambda answer: {**answer, "broken": {answer["held"][0]: "it expired"}})
    with pytest.raises(FreezeBroken) as raised, fleet.group().frozen() as freeze:
        pass
    ran = {url: Ran(3, "disk\nfull\n") for url in fleet.names[:1]}
    report = Report(freeze, 0, 1.5, error=raised.value, ran=ran)
    document = json.loads(json.dumps(outcome.document(report, "broken", 5)))
    assert list(faults(document, SCHEMA)) == []
    assert list(faults({**document, "good": 1, "more": 2}, SCHEMA)) == [
        "$.good is 1, expected boolean",
        "$.more is in no schema",
    ]
    hv2 = document["hosts"][fleet.names[1]]
    assert (hv2["guests"], len(hv2["broken"]), hv2["clock_differs"]) == (2, 1, True)
    assert document["hosts"][fleet.names[0]]["command"]["status"] == 3
    assert document["summary"].startswith("BROKEN")
    page = outcome.page(report, "throw it away")
    assert f"the clock of {fleet.names[1]} is 2" in page
    assert re.search(r"skew over 3 hosts: by their clocks [\d.]+ m?s, by round trips [\d.]+ m?s", page)
    assert "1 BROKEN" in page
    assert f"asked for by {document['by']}, frozen at 20" in page
    assert hosts_report.wrong(report) == f"on {fleet.names[0]} the command ended with 3: full"


def test_an_inventory(tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    path.write_text("# all\n\nhv1 unix:/run/*.sock libvirt:db1  # two\nadmin@hv2\nssh:hv3:22\nunix:/run/x\n")
    assert inventory.read(str(path)) == [
        "ssh:hv1?agents=unix:/run/*.sock&agents=libvirt:db1",
        "ssh:admin@hv2",
        "ssh:hv3:22",
        "unix:/run/x",
    ]
    for text, words in (
        ("unix:/a unix:/b", "line 1: 'unix:/b' follows a URL"),
        ("hv1\n-oX", "line 2: .* names no host"),
        ("# none", "names no agents"),
        ("http:x", "line 1: .* is no agent's URL"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            inventory.read(str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        inventory.read(str(tmp_path / "none"))


def test_the_command_line_refuses_before_anything_is_frozen(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["snapshot", "--on-each-host", "true"], "needs an agent by ssh:"),
        (["snapshot", "--inventory", str(tmp_path / "none"), "--", "true"], "cannot be read"),
        (["snapshot"], "the following arguments are required: COMMAND"),
        (["--agent", fleet.urls[0], "--agent", fleet.guests.urls[6], "freeze"], "cannot be left frozen"),
    ):
        assert cli.main(words) == 2
        assert said in capsys.readouterr().err
    assert not fleet.guests.asked


def test_a_dry_run_asks_each_guest_of_a_host(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """As Ansible's check mode does, which gives each host with all of its agents."""
    fleet.guests._answer = lambda n, method: {"mounts": [], "left_out": []} if method == "va.fsplan" else None
    assert cli.main(["--json", "--agent", fleet.urls[0], "snapshot", "--dry-run", "--", "true"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert list(plans) == [f"ssh:hv1?agents={url}" for url in fleet.guests.urls[:2]]
    assert not fleet.guests.frozen
    ssh_guest._HUB._close()  # as the end of the program does
    ssh_guest._HUB._shared.clear()


def test_calls_share_the_relay_of_their_host(fleet: Fleet) -> None:
    with Agent(f"ssh:hv1?agents={fleet.guests.urls[0]}") as agent:
        with agent.frozen(hold=20) as freeze:
            assert fleet.guests.frozen == {0}
        assert freeze.broken is None
        with pytest.raises(ValueError, match="are 2 guests, expected one"), Agent(fleet.urls[0]).frozen():
            pytest.fail("the block runs")
