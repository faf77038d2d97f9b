"""Names and lists of Kubernetes at their limits: too long, expired half-way, and of controllers of another version."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.kube_api import ApiServer, Cluster, Handler
from virtagent.kube import api, main, shapes, transaction
from virtagent.kube.api import BadReply, Refused, Server
from virtagent.kube.transaction import Transaction, Wanted, snapshot_name

PATH = f"{transaction.KUBEVIRT}/namespaces/shop/virtualmachineinstances"


def gone(handler: Handler) -> None:
    handler.refuse(410, "The provided continue parameter is too old")


@pytest.fixture
def server(tmp_path: Path) -> object:
    token = tmp_path / "token"
    token.write_text("secret")
    cluster = Cluster()
    for name in ("a", "b", "c"):
        cluster.add(name)
    served = ApiServer(cluster)
    yield served, Server(served.url, token)
    served.close()


@pytest.mark.parametrize(("times", "found"), [(1, 3), (2, 3), (3, 0)])
def test_a_list_whose_next_page_has_expired_is_read_again(
    server: tuple[ApiServer, Server], times: int, found: int
) -> None:
    served, one = server
    cluster: Cluster = served.cluster
    asked: list[str] = []

    def second(handler: Handler) -> None:
        asked.append(handler.path)
        if "continue=2" in handler.path and sum("continue=2" in path for path in asked) <= times:
            gone(handler)
            return
        fault = cluster.faults.pop("GET virtualmachineinstances$")
        handler._serve()
        cluster.faults["GET virtualmachineinstances$"] = fault

    cluster.faults["GET virtualmachineinstances$"] = second
    if not found:
        with pytest.raises(Refused, match="410"):
            api.listed(one, PATH, "app=shop")
        return
    names = [shapes.guest(each).name for each in api.listed(one, PATH, "app=shop")]
    assert names == ["a", "b", "c"], "each once, from the start"


def test_names_that_are_cut_stay_different() -> None:
    name, claims = "n" * 200, ["c" * 200 + end for end in ("-1", "-2", "")]
    found = {snapshot_name(name, claim) for claim in claims}
    assert len(found) == len(claims)
    assert all(shapes.is_name(one) for one in found)
    assert snapshot_name("nightly", "db") == "nightly-db"
    assert shapes.is_name(snapshot_name("n" * 200, "a" * 35 + "." + "b" * 30))


def test_snapshots_of_claims_with_long_names_are_all_taken(
    server: tuple[ApiServer, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    served, one = server
    served.cluster.add("long", *("c" * 240 + str(n) for n in range(3)))
    words = ["--server", one.url, "--token-file", str(one.token_file), "snapshot", "--namespace", "shop"]
    assert main.main([*words, "--selector", "app=shop", "--name", "n" * 100]) == 0
    capsys.readouterr()
    assert len(served.cluster.snapshots) == 3 + 3


@pytest.mark.parametrize("text", ["a..b", "-a", "a-", "A", "", "a" * 254, "a/b", "../x", "a\n", "a.-b"])
def test_what_is_no_name(text: str) -> None:
    assert not shapes.is_name(text)
    with pytest.raises(BadReply, match="name"):
        shapes.claim_name({"metadata": {"name": text}})


def member(owner: bool) -> Callable[[Cluster], None]:
    def change(cluster: Cluster) -> None:
        for one in cluster.snapshots.values():
            if not owner:
                del one["metadata"]["ownerReferences"]
                one["status"] = one["status"] | {"volumeGroupSnapshotName": "nightly"}

    return change


def lacking(cluster: Cluster) -> None:
    cluster.snapshots["snapshot-b-root"]["spec"]["source"] = {"persistentVolumeClaimName": "a-root"}


def failing(cluster: Cluster) -> None:
    one = cluster.snapshots["snapshot-b-root"]
    one["status"] = one["status"] | {"error": {"message": "no space"}}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (member(owner=True), 0, ""),
        (member(owner=False), 0, ""),
        (lacking, 5, "the group has no snapshot of 'b-root'"),
        (failing, 5, "snapshot 'snapshot-b-root' of the group failed: no space"),
    ],
    ids=["owner", "status", "one volume twice", "one failed"],
)
def test_the_members_of_a_group(
    server: tuple[ApiServer, Server],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Cluster], None],
    code: int,
    said: str,
) -> None:
    served, one = server
    cluster: Cluster = served.cluster

    def look(handler: Handler) -> None:
        del cluster.faults["GET volumesnapshots$"]
        change(cluster)
        handler._serve()

    cluster.faults["GET volumesnapshots$"] = look
    words = ["--server", one.url, "--token-file", str(one.token_file), "snapshot", "--namespace", "shop"]
    options = ["--selector", "app=shop", "--volumes", "group=shop", "--name", "nightly", "--members-wait", "0.2"]
    assert main.main([*words, *options]) == code
    assert said in capsys.readouterr().err


def test_a_second_signal_where_the_thaw_begins_thaws(
    server: tuple[ApiServer, Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served, one = server
    served.cluster.lazy = True
    deaf, signals = main._deaf, [signal.SIGTERM]

    def late() -> None:
        if signals:
            signal.raise_signal(signals.pop())
        deaf()

    monkeypatch.setattr(main, "_deaf", late)
    words = ["--server", one.url, "--token-file", str(one.token_file), "snapshot", "--namespace", "shop"]
    assert main.main([*words, "--selector", "app=shop"]) == 1
    assert not any(machine.frozen for machine in served.cluster.machines.values())
    assert "SIGTERM" in capsys.readouterr().err


def test_a_thaw_that_was_done_is_not_asked_again(server: tuple[ApiServer, Server]) -> None:
    served, one = server
    work = Transaction(one, Wanted("shop", "app=shop", "n"))
    work.find()
    work.freeze()
    work.thaw()
    before = len(served.cluster.seen)
    work.thaw_once()
    assert len(served.cluster.seen) == before


@pytest.mark.parametrize("words", [["--namespace", "a.b"], ["--namespace", "a" * 64], ["--name", "a..b"]])
def test_options_that_are_no_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--server", "https://h", "snapshot", "--selector", "a", "--namespace", "n", *words]
    with pytest.raises(SystemExit):
        main.main(given)
    assert "is no name of Kubernetes" in capsys.readouterr().err
