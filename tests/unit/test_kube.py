"""virtagent.kube against an API server over HTTP: a good snapshot, and what the API can do wrong at each step."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.kube_api import GROUP, ApiServer, Cluster, Fault, Handler
from virtagent.kube import api, transaction
from virtagent.kube.api import KubeError, NoAnswer, Server, request, together
from virtagent.kube.main import main, parser

TREE = Path(__file__).resolve().parents[2]
PEM = TREE / "tests" / "data" / "loopback.pem"
HOLD = 0.8


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "LOOK_SECONDS", 0.02)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.add("db", "db-root", "db-data")
    made.add("web")
    made.add("cache")
    other = made.add("other", group="else")
    other.labels = {"app": "else"}
    return made


@pytest.fixture
def served(cluster: Cluster) -> Iterator[ApiServer]:
    server = ApiServer(cluster)
    yield server
    server.close()


class Run:
    """One run of the program."""

    def __init__(self, served: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._served, self._capsys = served, capsys
        self.token = tmp_path / "token"
        self.token.write_text("secret\n")

    def __call__(self, command: str, *words: str) -> tuple[int, dict[str, Any], str]:
        """Return its exit code, its report and what it said on stderr."""
        before = ["--server", self._served.url, "--token-file", str(self.token)]
        code = main([*before, command, "--namespace", "shop", "--selector", "app=shop", *words])
        out, err = self._capsys.readouterr()
        return code, json.loads(out) if out else {}, err


@pytest.fixture
def run(served: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(served, tmp_path, capsys)


def frozen(cluster: Cluster) -> list[str]:
    return [name for name, machine in cluster.machines.items() if machine.frozen]


GROUPED = ("--volumes", "group=shop", "--name", "nightly")


def test_a_group_snapshot_of_frozen_guests(cluster: Cluster, run: Run) -> None:
    code, report, err = run("snapshot", *GROUPED)
    assert (code, err) == (0, "")
    assert report["verdict"] == "good"
    assert [guest["name"] for guest in report["guests"]] == ["cache", "db", "web"]
    assert len(report["snapshots"]) == 4
    assert 0 <= report["window"] <= report["standstill"] < 60
    assert 0 <= report["skew"] <= 1
    assert report["frozen_at"] <= report["cut_asked_at"] <= report["cut_seen_at"] <= report["thawed_at"]
    assert frozen(cluster) == []
    assert {name: machine.freezes for name, machine in cluster.machines.items()} == {
        "db": 1,
        "web": 1,
        "cache": 1,
        "other": 0,
    }
    for one in [cluster.groups["nightly"], *cluster.snapshots.values()]:
        notes = one["metadata"]["annotations"]
        assert notes["virtagent/verdict"] == "good"
        assert notes["virtagent/window"] == f"{report['frozen_at']}/{report['thawed_at']}"
        assert notes["virtagent/guests"] == "cache,db,web"


def test_a_snapshot_of_each_volume(cluster: Cluster, run: Run) -> None:
    code, report, _ = run("snapshot", "--name", "nightly", "--snapshot-class", "fast")
    assert (code, report["verdict"]) == (0, "good")
    assert sorted(cluster.snapshots) == [
        f"nightly-{claim}" for claim in ("cache-root", "db-data", "db-root", "web-root")
    ]
    assert {one["spec"]["volumeSnapshotClassName"] for one in cluster.snapshots.values()} == {"fast"}
    assert {one["metadata"]["annotations"]["virtagent/verdict"] for one in cluster.snapshots.values()} == {"good"}


def test_the_order_of_what_is_asked(cluster: Cluster, run: Run) -> None:
    run("snapshot", *GROUPED)
    steps = [one for one in cluster.seen if not one.startswith("GET")]
    assert [one.split("/")[-1] for one in steps[:3]] == ["freeze"] * 3
    assert steps[3] == f"POST /apis/{GROUP}/v1/namespaces/shop/volumegroupsnapshots"
    assert [one.split("/")[-1] for one in steps[4:7]] == ["unfreeze"] * 3
    assert [one.split()[0] for one in steps[7:]] == ["PATCH"] * 5


def test_the_manifest_gives_just_the_rights_that_are_used(cluster: Cluster, run: Run) -> None:
    run("snapshot", *GROUPED)
    run("snapshot", "--name", "each")
    text = (TREE / "packaging" / "kube" / "rbac.yaml").read_text(encoding="utf-8")
    rule = re.compile(r"- apiGroups: \[(.*)\]\n +resources: \[(.*)\]\n +verbs: \[(.*)\]")
    given = {
        (group.strip(' "'), resource.strip(' "'), verb.strip(' "'))
        for groups, resources, verbs in rule.findall(text)
        for group in groups.split(",")
        for resource in resources.split(",")
        for verb in verbs.split(",")
    }
    assert given == cluster.rights
    assert "ClusterRole" not in text.replace("kind: Role", "")


@pytest.mark.parametrize("name", ["job.yaml", "velero-hook.yaml"])
def test_the_manifests_call_it_as_it_is_called(name: str) -> None:
    text = (TREE / "packaging" / "kube" / name).read_text(encoding="utf-8")
    commands = re.findall(r"(?:args: |command: ')(\[.*\])", text)
    assert len(commands) == {"job.yaml": 1, "velero-hook.yaml": 2}[name]
    for command in commands:
        words = json.loads(command)
        if name == "velero-hook.yaml":
            assert words[:3] == ["python3", "-m", "virtagent.kube"]
        asked = parser().parse_args(words[3:] if words[0] == "python3" else words)
        assert asked.selector == "app=shop"
    assert "serviceAccountName: virtagent\n" in text


# -- what is refused before anything is frozen


def refused(cluster: Cluster, run: Run, words: str, *options: str) -> None:
    code, _, err = run("snapshot", *options)
    assert code == 1
    assert re.search(words, err), err
    assert len(err.splitlines()) == 1
    assert not any("freeze" in one or one.startswith("POST") for one in cluster.seen)


def test_guests_that_cannot_be_frozen(cluster: Cluster, run: Run) -> None:
    cluster.machines["web"].agent = False
    refused(cluster, run, "'web' cannot be frozen: its guest agent is not connected")
    cluster.machines["web"].agent, cluster.machines["web"].phase = True, "Scheduling"
    refused(cluster, run, "'web' cannot be frozen: it is in phase Scheduling")
    cluster.machines["web"].phase = "Running"
    cluster.machines["db"].until = time.monotonic() + 30
    refused(cluster, run, "'db' is frozen already, by somebody else")
    assert frozen(cluster) == ["db"], "and it stays so"


def test_volumes_that_the_labels_do_not_name(cluster: Cluster, run: Run) -> None:
    cluster.claims["db-data"] = {}
    refused(cluster, run, "'db-data' has not the labels", *GROUPED)
    cluster.claims["db-data"] = cluster.claims["other-root"] = {"group": "shop"}
    refused(cluster, run, "'other-root' has the labels .* is no volume of these guests", *GROUPED)


def test_no_guests(cluster: Cluster, run: Run) -> None:
    cluster.machines.clear()
    refused(cluster, run, "no guest in namespace 'shop'")


# -- what the API can do


def says(status: int, message: str = "it says why") -> Fault:
    return lambda handler: handler.refuse(status, message)


def hangs(handler: Handler) -> None:
    handler.server.cluster.gate.wait(30)


def leaves(handler: Handler) -> None:
    handler.close_connection = True


def raw(data: bytes) -> Fault:
    return lambda handler: handler.raw(200, data)


def drips(handler: Handler) -> None:
    """Send a byte at a time, each well within the time-out of a socket."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        if handler.server.cluster.gate.wait(0.02):
            return


def huge(handler: Handler) -> None:
    handler.raw(200, b"[" + b" " * (api.REPLY_MAX + 10) + b"]")


WRONGS: dict[str, Fault] = {
    "403": says(403),
    "409": says(409),
    "500": says(500),
    "hangs": hangs,
    "leaves": leaves,
    "no JSON": raw(b'{"items": ['),
    "deep": raw(b"[" * 100_000),
    "not a number": raw(b'{"items": [], "n": NaN}'),
    "twice": raw(b'{"items": [], "items": [1]}'),
    "half a pair": raw(b'{"items": ["\\ud800"]}'),
    "another name": raw(b'{"items": [], "metadata": {"name": "../x", "uid": "1"}, "spec": {}, "status": {}}'),
    "another shape": raw(b'{"items": 3, "metadata": [], "status": "x"}'),
    "a string": raw(b'"x"'),
    "huge": huge,
    "drips": drips,
}
STEPS = {
    "list of guests": "GET virtualmachineinstances$",
    "list of volumes": "GET persistentvolumeclaims$",
    "freeze": "PUT db/freeze$",
    "looks at a guest": "GET virtualmachineinstances/db$",
    "snapshot": "POST volumegroupsnapshots$",
    "looks at the snapshot": "GET volumegroupsnapshots/nightly$",
    "unfreeze": "PUT db/unfreeze$",
}


EVERYWHERE = ("403", "500", "hangs")
PAIRS = [(step, wrong) for wrong in EVERYWHERE for step in STEPS]
PAIRS += [("looks at a guest", wrong) for wrong in WRONGS.keys() - EVERYWHERE]
PAIRS += [("looks at the snapshot", "drips"), ("list of guests", "huge"), ("unfreeze", "leaves"), ("snapshot", "409")]
PAIRS += [("list of guests", wrong) for wrong in ("not a number", "twice", "half a pair")]


@pytest.mark.parametrize(("step", "wrong"), sorted(PAIRS))
def test_whatever_the_api_does_all_is_told_to_thaw_and_nothing_is_called_good(
    cluster: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch, step: str, wrong: str
) -> None:
    monkeypatch.setattr(transaction, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(api, "REQUEST_SECONDS", 0.2)
    cluster.faults[STEPS[step]] = WRONGS[wrong]
    cluster.lazy = True
    code, report, err = run("snapshot", *GROUPED, "--hold", str(HOLD), "--freeze-wait", "0.4", "--members-wait", "0.1")
    assert code in (1, 3, 5)
    assert set(frozen(cluster)) <= ({"db"} if step == "unfreeze" else set()), err
    assert {machine.longest for machine in cluster.machines.values()} <= {0.0, HOLD}, "each with its time-out"
    assert report.get("verdict") != "good" or report["not_thawed"], report
    assert err.count("virtagent.kube: ") == len(err.splitlines()) >= 1
    for one in [*cluster.groups.values(), *cluster.snapshots.values()]:
        notes = one["metadata"].get("annotations", {"virtagent/verdict": "unproved"})
        assert notes["virtagent/verdict"] in ("broken", "unproved") or report["not_thawed"]


@pytest.mark.parametrize(("offset", "words"), [(-3600, "before the guests were frozen"), (3600, "after the guests")])
def test_a_cut_outside_the_window_is_broken(cluster: Cluster, run: Run, offset: float, words: str) -> None:
    cluster.cut_offset = offset
    code, report, err = run("snapshot", *GROUPED)
    assert (code, report["verdict"]) == (5, "broken")
    assert words in err
    assert cluster.groups["nightly"]["metadata"]["annotations"]["virtagent/verdict"] == "broken"
    assert words in cluster.groups["nightly"]["metadata"]["annotations"]["virtagent/broken"]


def test_a_guest_that_is_thawed_by_somebody_else_breaks_it(cluster: Cluster, run: Run) -> None:
    def thaw_and_say(handler: Handler) -> None:
        cluster.machines["web"].until = 0.0
        del cluster.faults["POST volumegroupsnapshots$"]
        handler._serve()
        cluster.seen.pop()

    cluster.faults["POST volumegroupsnapshots$"] = thaw_and_say
    code, report, err = run("snapshot", *GROUPED)
    assert (code, report["verdict"]) == (5, "broken")
    assert "'web' was thawed by somebody else" in err


def test_a_guest_that_is_another_instance_by_then_breaks_it(cluster: Cluster, run: Run) -> None:
    def restart_and_say(handler: Handler) -> None:
        cluster.machines["web"].uid = "another"
        del cluster.faults["POST volumegroupsnapshots$"]
        handler._serve()

    cluster.faults["POST volumegroupsnapshots$"] = restart_and_say
    code, _, err = run("snapshot", *GROUPED)
    assert code == 5
    assert "'web' is another instance" in err


def test_a_snapshot_that_is_never_taken(cluster: Cluster, run: Run) -> None:
    cluster.error = "driver is busy"
    code, report, err = run("snapshot", *GROUPED, "--hold", str(HOLD))
    assert (code, report["verdict"]) == (5, "broken"), "it may still be taken, of running guests"
    assert "'nightly' (it says: driver is busy) in time" in err
    assert frozen(cluster) == []
    assert cluster.groups["nightly"]["metadata"]["annotations"]["virtagent/verdict"] == "broken"


def test_a_name_that_is_taken_is_left_as_it_is(cluster: Cluster, run: Run) -> None:
    cluster.groups["nightly"] = {"metadata": {"name": "nightly", "uid": "u"}, "spec": {}, "status": {}}
    code, report, err = run("snapshot", *GROUPED)
    assert (code, report["verdict"]) == (1, "failed")
    assert "already exists" in err
    assert "annotations" not in cluster.groups["nightly"]["metadata"]


def test_a_group_without_all_volumes_is_broken(cluster: Cluster, run: Run) -> None:
    def fewer(handler: Handler) -> None:
        cluster.snapshots.pop("snapshot-db-data", None)
        del cluster.faults["GET volumesnapshots$"]
        handler._serve()

    cluster.faults["GET volumesnapshots$"] = fewer
    code, _, err = run("snapshot", *GROUPED, "--members-wait", "0.2")
    assert code == 5
    assert "3 snapshots of 4 volumes" in err


def test_unfreeze_is_tried_again(cluster: Cluster, run: Run) -> None:
    left = [3]

    def sometimes(handler: Handler) -> None:
        left[0] -= 1
        if not left[0]:
            del cluster.faults["PUT db/unfreeze$"]
        handler.refuse(503, "the server is currently unable to handle the request")

    cluster.faults["PUT db/unfreeze$"] = sometimes
    code, report, _ = run("snapshot", *GROUPED)
    assert (code, report["not_thawed"], frozen(cluster)) == (0, {}, [])


def test_verdicts_that_cannot_be_written_are_told(cluster: Cluster, run: Run) -> None:
    cluster.faults["PATCH ."] = says(403, "no")
    code, report, err = run("snapshot", *GROUPED)
    assert (code, report["verdict"]) == (1, "good")
    assert len(report["not_annotated"]) == 5
    assert "rbac.yaml" in err
    assert cluster.groups["nightly"]["metadata"]["annotations"]["virtagent/verdict"] == "unproved"


def test_a_signal_thaws(cluster: Cluster, run: Run) -> None:
    cluster.error = "busy"

    def signalled(handler: Handler) -> None:
        del cluster.faults["GET volumegroupsnapshots/"]
        os.kill(os.getpid(), signal.SIGTERM)
        handler.refuse(503, "later")

    cluster.faults["GET volumegroupsnapshots/"] = signalled
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run("snapshot", *GROUPED)
    assert code == 5
    assert "SIGTERM" in err
    assert frozen(cluster) == []
    assert signal.getsignal(signal.SIGTERM) is before


# -- freeze and thaw, as hooks call them


def test_freeze_and_thaw(cluster: Cluster, run: Run) -> None:
    assert run("freeze", "--hold", "30")[0] == 0
    assert frozen(cluster) == ["db", "web", "cache"]
    assert {cluster.machines[name].longest for name in frozen(cluster)} == {30}
    assert run("thaw")[0] == 0
    assert frozen(cluster) == []
    assert run("thaw")[0] == 6
    assert run("thaw", "--none-ok")[0] == 0


def test_thaw_tells_that_a_guest_was_not_frozen_any_more(cluster: Cluster, run: Run) -> None:
    run("freeze", "--hold", "30")
    cluster.machines["web"].until = 0.0
    cluster.machines["web"].agent = False
    code, _, err = run("thaw")
    assert code == 5
    assert "'web' was not frozen any more" in err
    assert frozen(cluster) == []


def test_a_freeze_that_fails_thaws_the_others(cluster: Cluster, run: Run) -> None:
    cluster.faults["PUT web/freeze$"] = says(500, "virError: guest agent is not connected")
    code, _, err = run("freeze")
    assert code == 1
    assert "did not freeze 'web'" in err
    assert "guest agent is not connected" in err
    assert frozen(cluster) == []


# -- the connection


def test_the_token_is_read_for_each_request(cluster: Cluster, run: Run) -> None:
    run.token.write_text("old")
    code, _, err = run("snapshot", *GROUPED)
    assert code == 1
    assert "401" in err
    run.token.write_text("secret")

    def renewed(handler: Handler) -> None:
        cluster.token = "new"
        run.token.write_text("new")
        del cluster.faults["PUT db/freeze$"]
        handler._serve()

    cluster.faults["PUT db/freeze$"] = renewed
    cluster.page = 100
    code, report, err = run("snapshot", *GROUPED)
    assert (code, report.get("verdict")) != (0, "broken"), err


def test_the_certificate_is_checked(cluster: Cluster, tmp_path: Path) -> None:
    server = ApiServer(cluster, PEM)
    token = tmp_path / "token"
    token.write_text("secret")
    path = "/apis/kubevirt.io/v1/namespaces/shop/virtualmachineinstances/db"
    try:
        assert request(Server(server.url, token, PEM), "GET", path)["metadata"]["name"] == "db"
        with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
            request(Server(server.url, token), "GET", path)
    finally:
        server.close()
    with pytest.raises(KubeError, match=r"certificates in .*none"):
        request(Server("https://127.0.0.1:1", token, tmp_path / "none"), "GET", path)
    with pytest.raises(KubeError, match=r"token in .*none"):
        request(Server("https://127.0.0.1:1", tmp_path / "none"), "GET", path)


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--server", "http://127.0.0.1:1", "snapshot", "--namespace", "shop", "--selector", "a=b"])
    assert code == 3
    assert "no answer from http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--server", "http://10.0.0.1", "thaw", "--selector", "a", "--namespace", "n"], "unencrypted"),
        (["--server", "ftp://h", "thaw", "--selector", "a", "--namespace", "n"], "no API server"),
        (["thaw", "--selector", "a", "--namespace", "n"], "no pod of a cluster"),
        (["--server", "https://h", "thaw", "--selector", "a", "--namespace", "../x"], "no name of Kubernetes"),
        (["--server", "https://h", "freeze", "--selector", "a", "--hold", "0"], "--hold"),
        (["--server", "https://h", "snapshot", "--selector", "a", "--namespace", "n", "--volumes", "x"], "no labels"),
    ],
)
def test_usage(words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(words)
    assert info.value.code == 2
    assert wrong in capsys.readouterr().err


def test_a_thousand_things_at_a_time_are_bounded() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def one() -> int:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        with lock:
            now[0] -= 1
        return 1

    assert sum(together({str(n): one for n in range(1000)}, 30).values()) == 1000  # type: ignore[arg-type]
    assert most[0] <= api.SIMULTANEOUSLY
