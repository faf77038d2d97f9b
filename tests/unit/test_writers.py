"""Writers without a process: their files, their order, the table of their life, and what the core decides."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.drive import Drive
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Plan
from virtagent.agent.api.states import Unlisted, following
from virtagent.agent.api.writer_options import ordered, parse
from virtagent.agent.api.writers import (
    TYPES,
    WRITER_TABLE,
    BadWriter,
    Hold,
    Step,
    WriterConfig,
    WriterEvent,
    WriterState,
    hold,
)
from virtagent.agent.worker import messages
from virtagent.agent.worker.mountinfo import parse_mountinfo
from virtagent.agent.worker.writers import life
from virtagent.agent.worker.writers.calls import ignored
from virtagent.agent.worker.writers.config import read_folder
from virtagent.agent.worker.writers.drivers import DRIVERS
from virtagent.agent.worker.writers.latch import BEGUN, UNDONE, Latch, left
from virtagent.supervisor.config import BadConfig, build
from virtagent.supervisor.core import events

SAMPLES = Path(__file__).parents[2] / "packaging/writers.d"
ALL_OPTIONS = {option for kind in TYPES.values() for option in kind.options} | {"paths", "quiesce-limit", "required"}
LIMITS = {"prepare_limit": 60.0, "quiesce_limit": 10.0, "confirm_limit": 2.0, "release_limit": 10.0}


# -- configuration


def test_a_file() -> None:
    text = "# a comment\ntype hook\npath = /a b/hook\nrequired no\nafter db other\nquiesce-limit 1.5\nwhen prepare\n"
    found = parse("orders", text, "f")
    assert found == WriterConfig(
        "orders", "hook", False, ("db", "other"), "/a b/hook", when=Step.PREPARE, quiesce_limit=1.5
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f: it has no type"),
        ("type oracle", "f line 1: type is 'oracle', expected one of"),
        ("type hook", "f: a writer of type hook needs the option path"),
        ("type hook\npath hook", "f line 2: path is 'hook', expected an absolute path"),
        ("type hook\npath /h\ncolour red", "f line 3: there is no option 'colour'"),
        ("type hook\npath /h\npath /h", "f line 3: path stands there for the second time"),
        ("type hook\npath /h\nafter", "f line 3: after has no value"),
        ("type hook\npath /h\nrequired maybe", "f line 3: required is 'maybe', expected yes or no"),
        ("type hook\npath /h\nquiesce-limit 0", "f line 3: quiesce-limit is '0', expected seconds over 0"),
        ("type hook\npath /h\nafter a/b", "f line 3: after is 'a/b', 'a/b' is no name of a writer"),
        ("type redis\npath /h", "f line 2: a writer of type redis has no option path"),
        ("type live", "f: a writer of type live needs the option command"),
        ("type live\ncommand live", "f line 2: command is 'live', expected an absolute path"),
        ("type live\ncommand '/a", 'f line 2: command is "\'/a", expected words: No closing quotation'),
        ("type live\ncommand ''", "f line 2: command is \"''\", expected an absolute path"),
        ("type live\ncommand /a\nverdict perhaps", "f line 3: verdict is 'perhaps', expected yes or no"),
        ("type live\ncommand /a\nwhen prepare", "f line 3: a writer of type live has no option when"),
        ("type pair\nfreeze /a", "f: a writer of type pair needs the option thaw"),
        ("type pair\nfreeze /a\nthaw b", "f line 3: thaw is 'b', expected an absolute path"),
        ("type sql\nclient /c", "f: a writer of type sql needs the option quiesce"),
        ("type sql\nclient /c\nquiesce ;", "f line 3: quiesce is ';', expected a statement"),
        ("type sql\nclient /c\nquiesce x\nsentinel select 1", "f line 4: sentinel is 'select 1', expected a statement"),
        ("type sql\nclient /c\nquiesce x\nsentinel {} {}", "f line 4: sentinel is '{} {}', expected a statement"),
        ("type mysql\nquiesce x", "f line 2: a writer of type mysql has no option quiesce"),
        ("type mongodb\nlogin-script l.js", "f line 2: login-script is 'l.js', expected an absolute path"),
        ("type redis\nlogin backup", "f line 2: login needs the option password-file, too"),
        ("type redis\npassword-file p", "f line 2: password-file is 'p', expected an absolute path"),
        ("type vmware\npath scripts", "f line 2: path is 'scripts', expected an absolute path"),
        ("type redis\npaths /a b", "f line 2: paths is '/a b', expected an absolute path"),
        ("type mariadb\nclient mariadb", "f line 2: client is 'mariadb', expected an absolute path"),
    ],
)
def test_a_bad_file_is_named_by_line_and_option(text: str, said: str) -> None:
    with pytest.raises(BadWriter) as raised:
        parse("x", text, "f")
    assert str(raised.value).startswith(said)


def test_words_may_have_blanks() -> None:
    text = "type pair\nfreeze '/a b' --mode 'x y'\nthaw = /c\npaths '/srv/my data' /b\n"
    found = parse("x", text, "f")
    assert (found.freeze, found.thaw) == (("/a b", "--mode", "x y"), ("/c",))
    assert found.paths == ("/srv/my data", "/b")
    assert parse("x", "type redis\npaths auto\n", "f").paths == ()
    found = parse("x", "type mariadb\nsocket /run/my db/s\nclient-options --defaults-file='/a b'\n", "f")
    assert (found.socket, found.client_options) == ("/run/my db/s", ("--defaults-file=/a b",))
    assert parse("x", "type vmware", "f").path == "/etc/vmware-tools/backupScripts.d"


def test_statements_may_be_several() -> None:
    text = "type sql\nclient /c\nquiesce begin;\nquiesce set global x = 1 ;\nundo = set global x = 0\n"
    found = parse("x", text, "f")
    assert (found.quiesce, found.undo) == (("begin", "set global x = 1"), ("set global x = 0",))
    assert (hold(found), hold(parse("x", "type sql\nclient /c\nquiesce x", "f"))) == (Hold.LATCH, Hold.SESSION)


def test_a_folder(tmp_path: Path) -> None:
    assert read_folder(str(tmp_path / "nothing")) == {}
    assert read_folder(os.devnull) == {}
    (tmp_path / "a.conf").write_text("type redis\n")
    (tmp_path / "b.conf.sample").write_text("nonsense")
    (tmp_path / "masked.conf").symlink_to(os.devnull)
    assert read_folder(str(tmp_path)) == {"a": "type redis\n"}
    (tmp_path / "a.conf").chmod(0o664)
    with pytest.raises(BadWriter, match=r"a\.conf must be owned by root and writable by nobody else"):
        read_folder(str(tmp_path))
    (tmp_path / "a.conf").chmod(0o644)
    (tmp_path / "d.conf").mkdir()
    with pytest.raises(BadWriter, match="directory"):
        read_folder(str(tmp_path))


@pytest.mark.parametrize("name", ["orders.new", "db.lock", "db.begun", "a.b.undone"])
def test_no_writer_has_the_name_of_another_ones_record(name: str, tmp_path: Path) -> None:
    """What it had set would be undone by nobody: no start takes such a file for a record."""
    (tmp_path / f"{name}.conf").write_text("type redis\n")
    with pytest.raises(BadWriter, match=r"does not end in \.lock, \.new, \.begun or \.undone"):
        read_folder(str(tmp_path))
    with pytest.raises(BadWriter, match="is no name of a writer"):
        parse("x", f"type redis\nafter {name}\n", "f")
    Latch(str(tmp_path / "w"), name).write({})
    assert left(str(tmp_path / "w")) == [], "which is why"


def test_names_that_are_like_those() -> None:
    for name in ("new", "x.new.db", "lock", "db-new", "db.locks"):
        assert parse("x", f"type redis\nafter {name}\n", "f").after == (name,)


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.sample")), ids=lambda path: path.name)
def test_each_sample_is_good_also_with_what_it_comments_out(sample: Path) -> None:
    lines = sample.read_text().splitlines()
    assert parse("x", "\n".join(lines), "f").type == sample.name.partition(".")[0]
    options = [line.removeprefix("# ") for line in lines if line.partition("# ")[2].split(" ")[0] in ALL_OPTIONS]
    assert parse("x", "\n".join([*options, *(line for line in lines if line[:1] != "#")]), "f")


def test_each_type_has_a_sample() -> None:
    assert {sample.name.partition(".")[0] for sample in SAMPLES.glob("*.sample")} == TYPES.keys() - {"hook", "hook-dir"}


def test_the_daemon_reads_them_and_gives_them_its_limits(tmp_path: Path) -> None:
    (tmp_path / "db.conf").write_text("type redis\nconfirm-limit 5\nafter hook\n")
    given = {"writers-dir": [str(tmp_path)], "hook": ["/h"], "release-limit": ["7"]}
    hook, db = build(given, {}).every_writer
    assert hook == WriterConfig("hook", "hook", path="/h", **(LIMITS | {"release_limit": 7.0}))
    assert (db.confirm_limit, db.release_limit) == (5.0, 7.0)
    (tmp_path / "hook.conf").write_text("type redis\n")
    with pytest.raises(BadConfig, match="two writers with the name hook"):
        build(given, {})


def test_the_order() -> None:
    a, b, c = (
        WriterConfig("a", "redis", after=("c",)),
        WriterConfig("b", "redis"),
        WriterConfig("c", "redis", after=("b",)),
    )
    assert [writer.name for writer in ordered((a, b, c))] == ["b", "c", "a"]
    with pytest.raises(BadWriter, match="after each other: a, b"):
        ordered((WriterConfig("a", "redis", after=("b",)), WriterConfig("b", "redis", after=("a",))))
    with pytest.raises(BadWriter, match="writer a: after names x"):
        ordered((WriterConfig("a", "redis", after=("x",)),))


def test_every_type_has_a_driver() -> None:
    assert TYPES.keys() == DRIVERS.keys()


@pytest.mark.parametrize(
    "name", ["a~", "a.bak", "a.orig", "a.rpmnew", "a.rpmorig", "a.rpmsave", "a.sample", "a.dpkg-old"]
)
def test_hooks_that_are_ignored(name: str) -> None:
    assert ignored(name)
    assert not ignored("a")


# -- the record of a latch


def test_a_latch_says_what_was_begun(tmp_path: Path) -> None:
    folder = str(tmp_path / "writers")
    assert left(folder) == []
    latch = Latch(folder, "hook")
    assert latch.record is None
    latch.write({"type": "hook", "runs": []})
    for _ in range(2):
        os.write(latch.open_count(BEGUN), b".")
    assert (latch.count(BEGUN), latch.count(UNDONE)) == (2, 0)
    latch.take_back(BEGUN)
    assert latch.count(BEGUN) == 1
    assert left(folder) == ["hook"]
    latch.clear()
    assert left(folder) == []
    latch.write({"type": "hook", "runs": [1]})
    assert latch.count(BEGUN) == 0


class Orphan:
    """What a worker may use whose supervisor, which had the pid before 1, is dead."""

    supervisor = 0
    control_fd = lifeline_fd = -1

    def become_writer(self, name: str) -> None:
        """Nobody looks."""

    title = become_writer


@pytest.mark.parametrize("rpc", ["writer", "unlatch"])
def test_an_orphan_leaves_what_a_later_worker_set(rpc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by storm 8097178: it had not run since its fork; since then another freeze is held, whose writer died."""
    monkeypatch.setattr(life.kernel, "lock_memory", lambda: None)
    monkeypatch.setattr(life.signal, "signal", lambda *_: None)
    monkeypatch.setattr(life, "Orders", lambda _worker: None)
    (tmp_path / "a").write_text('{"type": "hook", "runs": []}')
    args = {"writer": WriterConfig("a", "hook"), "name": "a", "folder": str(tmp_path), "limit": 1.0, "at_most": 0.0}
    with pytest.raises(Fault, match="its next start"):
        {"writer": life.serve, "unlatch": life.unlatch}[rpc](Orphan(), args)  # type: ignore[operator]
    assert left(str(tmp_path)) == ["a"]


# -- the table


def test_every_pair_has_a_row_or_is_a_defect() -> None:
    for state in WriterState:
        for event in WriterEvent:
            if (state, event) in WRITER_TABLE:
                assert following(WRITER_TABLE, state, event) is WRITER_TABLE[state, event][0]
            else:
                with pytest.raises(Unlisted):
                    following(WRITER_TABLE, state, event)


def test_no_state_is_a_dead_end() -> None:
    begun = {to for (_, event), (to, _) in WRITER_TABLE.items() if event is WriterEvent.PREPARE}
    assert begun == {WriterState.PREPARING}
    for state in WriterState:
        reached, todo = {state}, [state]
        while todo:
            here = todo.pop()
            for (old, _), (new, _) in WRITER_TABLE.items():
                if old is here and new not in reached:
                    reached.add(new)
                    todo.append(new)
        assert WriterState.PREPARING in reached, state


# -- the core


class Played:
    """A core with writers, and a freeze that is played up to a step."""

    def __init__(self, *writers: WriterConfig) -> None:
        self.drive = Drive(every_writer=writers)

    def orders(self, name: str) -> list[messages.Act]:
        number = self.worker(name)
        return [message for to, message in self.drive.told if to == number and isinstance(message, messages.Act)]

    def worker(self, name: str) -> int:
        return max(w for w, s in self.drive.spawned.items() if s.rpc == "writer" and s.args["writer"].name == name)

    def acted(self, name: str, step: str, outcome: str = "ok", text: str = "") -> None:
        self.drive.report(self.worker(name), messages.Acted(step, outcome, text, {}))

    def begin(self, *names: str) -> tuple[Any, int]:
        call, freezer = self.drive.begin(1)
        for name in names:
            self.drive.report(self.worker(name), messages.Started(1))
        return call, freezer

    def told(self, worker: int) -> list[type]:
        return [type(message) for to, message in self.drive.told if to == worker]

    def writer(self, name: str) -> Any:
        record = self.drive.ask("va.fsstatus", {}).value
        return next(writer for writer in record.writers if writer.name == name)


def config(name: str, kind: str = "hook", **more: Any) -> WriterConfig:
    return WriterConfig(name, kind, path="/h", **(LIMITS | more))


def synced(played: Played, freezer: int) -> None:
    played.drive.sync(freezer, 1)


def test_prepare_sync_quiesce_freeze_confirm_reply_thaw_release() -> None:
    played = Played(config("a"))
    drive = played.drive
    call, freezer = played.begin("a")
    assert [order.step for order in played.orders("a")] == ["prepare"]
    assert played.told(freezer) == []
    played.acted("a", "prepare")
    assert played.told(freezer) == [messages.Sync]
    synced(played, freezer)
    assert [order.step for order in played.orders("a")] == ["prepare", "quiesce"]
    assert played.told(freezer) == [messages.Sync]
    played.acted("a", "quiesce")
    assert played.told(freezer) == [messages.Sync, messages.Proceed]
    drive.freezes(freezer, 0)
    drive.report(freezer, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, drive.now + 60))
    assert not call.answered
    assert played.writer("a").state == "quiesced"
    played.acted("a", "confirm")
    assert call.value == 1
    thaw = drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    assert [order.step for order in played.orders("a")] == ["prepare", "quiesce", "confirm"]
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    assert played.orders("a")[-1] == messages.Act("release", 10.0, "good")
    assert not thaw.answered
    assert drive.ask("va.fsstatus").value == 0
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    assert thaw.value == 1
    assert drive.ask("va.fsstatus", {}).value.last.consistency == "application"


@pytest.mark.parametrize(
    ("then", "attended", "begins"),
    [("", False, True), ("leaves", False, True), ("leaves", True, False), ("thaws", False, False)],
)
def test_a_freeze_that_waits_for_the_release_longer_than_its_call_goes_on(
    then: str, attended: bool, begins: bool
) -> None:
    """After IN_PROGRESS the job goes on, and a host that leaves changes nothing, unless it was to let the freeze go."""
    played = Played(config("a"))
    drive = played.drive
    _, first = played.begin("a")
    played.acted("a", "prepare", "refused", "it has no time")
    later = drive.ask("va.fsfreeze", {"wait": 0.001, "at": 1.7e9 + 200, "attended": attended})
    assert drive.newest == played.worker("a"), "it waits until the writer is let go"
    drive.wait(0.01)
    later.refused(Code.IN_PROGRESS)
    if then == "leaves":
        drive.hang_up(later)
    elif then == "thaws":
        drive.ask("va.fsthaw", {"freeze_id": 77}).refused(Code.FREEZE_BROKEN)
        drive.ask("va.fsthaw")
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    drive.die(first)
    assert bool(drive.workers("va.fsfreeze")) == begins


@pytest.mark.parametrize("step", ["prepare", "quiesce"])
def test_a_refusal_ends_the_freeze_and_lets_go(step: str) -> None:
    played = Played(config("a"))
    call, freezer = played.begin("a")
    if step == "quiesce":
        played.acted("a", "prepare")
        synced(played, freezer)
    played.acted("a", step, "refused", "it has no time")
    assert messages.Proceed not in played.told(freezer)
    assert not call.answered  # not before it is let go
    played.acted("a", "release")
    played.drive.exit(played.worker("a"))
    call.refused(Code.VETOED, "a refused the freeze: it has no time; nothing was frozen")
    assert played.writer("a").state == "vetoed"
    played.drive.die(freezer)
    assert played.drive.ask("va.fsstatus").value == 0


def test_one_that_is_not_required_does_not_hinder() -> None:
    played = Played(config("a", required=False), config("b"))
    call, freezer = played.begin("a", "b")
    played.acted("a", "prepare", "refused", "no")
    played.acted("b", "prepare")
    release = played.orders("a")[-1]
    assert (release.step, release.verdict) == ("release", "bad"), "nobody knows yet that the freeze will be good"
    synced(played, freezer)
    played.acted("b", "quiesce")
    assert messages.Proceed in played.told(freezer)
    assert not call.answered


@pytest.mark.parametrize("then", ["lets go", "is lost", "hangs"])
def test_one_that_waits_for_another_to_be_let_go_is_not_held_when_that_does_not_end(then: str) -> None:
    played = Played(config("a", "postgresql"), config("b", after=("a",)))
    drive = played.drive
    _, freezer = played.begin("a", "b")
    for step in ("prepare", "quiesce"):
        for name in ("a", "b"):
            played.acted(name, step)
        if step == "prepare":
            synced(played, freezer)
    thaw = drive.ask("va.fsthaw")
    drive.die(freezer)
    assert [played.orders(name)[-1].step for name in ("a", "b")] == ["quiesce", "release"]
    drive.wait(22)
    assert played.worker("b") in drive.killed, "and it does not die"
    assert thaw.answered
    assert played.orders("a")[-1].step == "release"
    if then == "is lost":
        played.acted("a", "held", "lost", "the session has ended")
    if then == "hangs":
        drive.wait(16)
        assert played.worker("a") in drive.killed
        drive.die(played.worker("a"))
        drive.wait(2)
        assert drive.workers("unlatch") or played.writer("a").state == "released"
    else:
        played.acted("a", "release")
        assert played.writer("a").state == "released"


def test_one_that_has_let_go_and_does_not_end_is_waited_for_no_longer_than_the_others() -> None:
    played = Played(config("a"))
    drive = played.drive
    _, freezer = played.begin("a")
    played.acted("a", "prepare")
    drive.die(freezer)
    thaw = drive.ask("va.fsthaw")
    played.acted("a", "release")
    drive.report(played.worker("a"), messages.Done(""))
    assert not thaw.answered
    drive.wait(22)
    assert played.worker("a") in drive.killed, "and it does not die"
    assert thaw.answered
    assert played.writer("a").state == "released"
    again, _ = played.begin("a")
    drive.die(max(w for w, spawn in drive.spawned.items() if spawn.rpc == "writer" and w != played.worker("a")))
    assert [order.step for order in played.orders("a")] == ["prepare"]
    assert not again.answered


@pytest.mark.parametrize("good", [True, False])
def test_one_that_hangs_when_it_has_let_go_is_killed_and_the_thaw_is_answered(good: bool) -> None:
    """It had reported neither its end nor anything wrong; its limit has passed, and there was no row for that."""
    played, _, freezer = confirmed(config("a"))
    drive = played.drive
    thaw = drive.ask("va.fsthaw")
    if good:
        drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawed"), messages.Done(1))
        drive.exit(freezer)
    else:
        drive.die(freezer)
        drive.compensates()
    played.acted("a", "release")
    assert played.writer("a").state == "released"
    drive.wait(22)
    assert played.worker("a") in drive.killed, "and it does not die"
    assert thaw.answered
    assert not good or thaw.value == 1
    assert played.writer("a").state == "released"
    assert not played.writer("a").error


@pytest.mark.parametrize("how", ["rubbish", "does not end"])
def test_a_worker_that_was_killed_and_does_not_die_refuses_the_freeze_at_once(how: str) -> None:
    """Another application is held meanwhile."""
    played = Played(config("a"), config("b"))
    drive = played.drive
    call, freezer = played.begin("a", "b")
    played.acted("a", "prepare")
    played.acted("b", "prepare")
    synced(played, freezer)
    played.acted("a", "quiesce")
    if how == "rubbish":
        drive.feed(events.RubbishReported(played.worker("b"), "nonsense"))
        said = "nonsense"
    else:
        said = "gone mad"
        drive.report(played.worker("b"), messages.Failed(int(Code.INTERNAL), said))
        drive.wait(1.5)
    assert played.worker("b") in drive.killed
    assert played.writer("b").state == "lost"
    assert said in played.writer("b").error
    drive.die(freezer)
    drive.wait(0.1)
    assert [order.step for order in played.orders("a")][-1] == "release"
    played.acted("a", "release")
    drive.wait(22)
    call.refused(Code.VETOED, "b was lost", said)


@pytest.mark.parametrize("method", ["va.fsthaw", "guest-fsfreeze-thaw"])
def test_a_good_thaw_stays_good_if_the_keeper_does_not_end_while_writers_let_go(method: str) -> None:
    """It was answered FAILED, as if something were frozen; and a freeze that waited was never answered (ADR 0040)."""
    played, _, keeper = confirmed(config("a"))
    drive = played.drive
    thaw = drive.ask_by_name(method, {})
    drive.report(keeper, messages.Thawing("", drive.now), messages.Step(0, "thawed"), messages.Done(1))
    waits = drive.ask("va.fsfreeze")
    drive.wait(3)
    assert (drive.state.name, keeper in drive.killed) == ("ERROR", True)
    assert not thaw.answered
    assert not waits.answered
    later = drive.ask_by_name(method, {})
    drive.wait(1)
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    assert thaw.value == 1
    assert later.value == 1
    waits.refused(Code.WRONG_STATE, "ERROR")
    assert drive.ask_by_name(method, {}).value == 0
    assert drive.status().last.outcome == "thawed"
    drive.die(keeper)
    assert drive.state.name == "THAWED"
    assert drive.ask_by_name(method, {}).value == 0
    assert drive.journal is None


def test_after_is_the_order_of_quiesce_and_backwards_of_release() -> None:
    played = Played(config("a"), config("b", after=("a",)))
    _, freezer = played.begin("a", "b")
    played.acted("a", "prepare")
    played.acted("b", "prepare")
    synced(played, freezer)
    assert [order.step for order in played.orders("b")] == ["prepare"]
    played.acted("a", "quiesce")
    assert [order.step for order in played.orders("b")] == ["prepare", "quiesce"]
    played.acted("b", "quiesce", "refused", "no")
    assert played.orders("b")[-1].step == "release"
    assert played.orders("a")[-1].step == "quiesce"
    played.acted("b", "release")
    assert played.orders("a")[-1].step == "release"


def test_a_writer_that_dies_is_undone_by_another_worker() -> None:
    played = Played(config("a"))
    drive = played.drive
    call, freezer = played.begin("a")
    played.acted("a", "prepare")
    synced(played, freezer)
    drive.die(played.worker("a"))
    (undo,) = drive.workers("unlatch")
    assert drive.spawned[undo].args["name"] == "a"
    drive.report(undo, messages.Started(1), messages.Done(""))
    assert not call.answered
    drive.exit(undo)
    call.refused(Code.VETOED, "a was lost", "killed by SIGKILL", "nothing was frozen")


def test_one_that_could_not_be_let_go_refuses_the_next_freeze_until_it_is() -> None:
    played = Played(config("a"))
    drive = played.drive
    call, freezer = played.begin("a")
    drive.die(played.worker("a"))
    (undo,) = drive.workers("unlatch")
    drive.report(undo, messages.Started(1), messages.Failed(12, "the disk is full"))
    drive.exit(undo)
    call.refused(Code.VETOED, "a was lost")
    drive.die(freezer)
    assert played.writer("a").state == "stuck"
    drive.ask("va.fsfreeze").refused(Code.VETOED, "a refuses the freeze", "could not be let go", "nothing was frozen")
    drive.wait(1.5)
    (again,) = drive.workers("unlatch")
    drive.report(again, messages.Started(1), messages.Done(""))
    drive.exit(again)
    assert played.writer("a").state == "released"
    assert not drive.ask("va.fsfreeze").answered


def test_one_that_could_not_be_let_go_is_not_let_go_in_a_freeze_without_writers() -> None:
    played = Played(config("a"))
    drive = played.drive
    _, freezer = played.begin("a")
    drive.die(played.worker("a"))
    (undo,) = drive.workers("unlatch")
    drive.report(undo, messages.Started(1), messages.Failed(12, "the disk is full"))
    drive.exit(undo)
    drive.die(freezer)
    call, keeper = drive.hold(1, {"writers": "none"})
    assert call.value == 1
    drive.wait(1.5)
    assert not drive.workers("unlatch")
    drive.ask("va.fsthaw")
    drive.thaws(keeper, 1)
    drive.wait(2.5)
    (again,) = drive.workers("unlatch")
    drive.report(again, messages.Started(1), messages.Done(""))
    drive.exit(again)
    assert not drive.ask("va.fsfreeze").answered


def test_what_an_earlier_agent_left_is_undone_at_the_start() -> None:
    drive = Drive(every_writer=())
    drive.feed(events.LatchesFound(["gone"]))
    (undo,) = drive.workers("unlatch")
    freeze = drive.ask("va.fsfreeze")
    assert not drive.workers("va.fsfreeze")
    drive.report(undo, messages.Started(1), messages.Done(""))
    drive.exit(undo)
    assert drive.workers("va.fsfreeze")
    assert not freeze.answered


def test_the_journal_goes_though_its_news_passed_while_an_earlier_agents_writer_was_let_go() -> None:
    drive = Drive(every_writer=())
    drive.feed(events.JournalFound(3, Plan((), ()), "freeze 3 was broken", told_at=drive.now - 57))
    drive.journal = {"freeze": 3}
    drive.feed(events.LatchesFound(["gone"]))
    (undo,) = drive.workers("unlatch")
    drive.wait(5)
    drive.report(undo, messages.Started(1), messages.Done(""))
    drive.exit(undo)
    assert drive.journal is None


# -- held, and lost


def confirmed(
    *writers: WriterConfig, devices: dict[str, str] | None = None, confirm: tuple[str, ...] = ()
) -> tuple[Played, Any, int]:
    """Return a core that holds a freeze of one file system, 7:0, with these writers, that answered confirm so."""
    played = Played(*writers)
    names = [writer.name for writer in writers]
    call, freezer = played.begin(*names)
    for name in names:
        info = {} if devices is None else {"devices": devices}
        played.drive.report(played.worker(name), messages.Acted("prepare", "ok", "", info))
    synced(played, freezer)
    for name in names:
        played.acted(name, "quiesce")
    played.drive.freezes(freezer, 0)
    now = played.drive.now
    played.drive.report(freezer, messages.Step(0, "frozen"), messages.Frozen(1, now, now + 60))
    for name in names:
        played.acted(name, "confirm", *confirm)
    assert call.value == 1
    return played, call, freezer


def thawed(played: Played, freezer: int, *names: str) -> None:
    drive = played.drive
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    for name in names:
        played.acted(name, "release")
        drive.exit(played.worker(name))


def test_those_that_hold_are_told_that_the_hold_is_longer() -> None:
    """Else they would let go by themselves, while all is frozen, when the limits of a freeze have passed."""
    played, _, keeper = confirmed(config("a"), config("b", "mariadb"), config("c", required=False))
    drive = played.drive
    played.acted("c", "held", "lost", "its session has ended")
    call = drive.ask("va.fshold", 500.0)
    until = drive.now + 500
    assert drive.told[-1] == (keeper, messages.Hold(until))
    drive.report(keeper, messages.Held(until))
    assert call.value == 500
    assert drive.told[-3:] == [(played.worker(name), messages.Hold(until + 10 + 60)) for name in "abc"]


def test_where_a_hold_has_no_limit_nobody_lets_go_by_himself() -> None:
    played = Played(config("a"))
    drive = played.drive = Drive(every_writer=(config("a"),), hold_limit=0, hold_limit_max=0)
    _, keeper = played.begin("a")
    played.acted("a", "prepare")
    assert drive.spawned[played.worker("a")].args["at_most"] == 0
    synced(played, keeper)
    played.acted("a", "quiesce")
    drive.freezes(keeper, 0)
    drive.report(keeper, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, 0))
    played.acted("a", "confirm")
    drive.ask("va.fshold", 500.0)
    drive.report(keeper, messages.Held(drive.now + 500))
    assert messages.Hold not in played.told(played.worker("a"))


def test_one_that_waits_for_others_to_quiesce_does_not_let_go_meanwhile() -> None:
    """All that may pass from when the first has quiesced until all is thawed."""
    drive = Played(config("a", quiesce_limit=300.0), config("b", after=("a",), quiesce_limit=200.0)).drive
    drive.begin(1)
    (at_most,) = {drive.spawned[worker].args["at_most"] for worker in drive.workers("writer")}
    assert at_most == 300 + 200 + 30 + 2 + 600 + 10 + 60


def test_one_lost_with_paths_that_are_not_frozen_breaks_the_freeze() -> None:
    played, _, freezer = confirmed(config("a", "mariadb"), devices={"/srv/0": "7:0", "/else": "8:1"})
    assert played.writer("a").not_frozen == ("/else",)
    played.acted("a", "held", "lost", "its session has ended")
    assert played.told(freezer)[-1] is messages.Thaw
    thaw = played.drive.ask("va.fsthaw")
    thawed(played, freezer, "a")
    thaw.refused(Code.FREEZE_BROKEN, "a was lost, and /else is not frozen: its session has ended")
    assert played.drive.ask("va.fsstatus", {}).value.last.consistency == "none"


def test_one_lost_with_all_its_paths_frozen_is_only_told() -> None:
    played, _, freezer = confirmed(config("a", "mariadb"), devices={"/srv/0": "7:0"})
    played.acted("a", "held", "lost", "its session has ended")
    assert played.told(freezer)[-1] is messages.Proceed
    thaw = played.drive.ask("va.fsthaw")
    thawed(played, freezer, "a")
    assert thaw.value == 1
    last = played.drive.ask("va.fsstatus", {}).value.last
    assert (last.consistency, last.writers[0].state, last.writers[0].error) == (
        "application",
        "lost",
        "its session has ended",
    )


@pytest.mark.parametrize("answer", [("refused", "its session has ended"), ("overran", "it did not answer in time")])
def test_one_that_is_not_required_and_does_not_confirm_is_not_said_to_have_held(answer: tuple[str, str]) -> None:
    optional = config("a", "mariadb", required=False)
    played, _, freezer = confirmed(optional, devices={"/srv/0": "7:0"}, confirm=answer)
    thaw = played.drive.ask("va.fsthaw")
    thawed(played, freezer, "a")
    assert thaw.value == 1
    assert played.drive.ask("va.fsstatus", {}).value.last.consistency == "file-system"


def test_what_lies_elsewhere_is_not_consistent() -> None:
    played, _, freezer = confirmed(config("a"), devices={"/else": "8:1"})
    played.drive.ask("va.fsthaw")
    thawed(played, freezer, "a")
    assert played.drive.ask("va.fsstatus", {}).value.last.consistency == "file-system"


def test_a_path_on_what_could_not_be_frozen_is_not_frozen() -> None:
    played = Played(config("a"))
    drive = played.drive
    call, freezer = drive.begin(2)
    drive.report(played.worker("a"), messages.Started(1))
    drive.report(
        played.worker("a"), messages.Acted("prepare", "ok", "", {"devices": {"/srv/0": "7:0", "/srv/1": "7:1"}})
    )
    drive.sync(freezer, 2)
    played.acted("a", "quiesce")
    assert played.writer("a").not_frozen == ()
    drive.freezes(freezer, 0, 1)
    now = drive.now
    steps = (messages.Step(0, "frozen"), messages.Step(1, "unsupported", 95), messages.Frozen(1, now, now + 60))
    drive.report(freezer, *steps)
    played.acted("a", "confirm")
    assert call.value == 1
    assert played.writer("a").not_frozen == ("/srv/1",)


def test_the_stall_of_an_application_goes_on_until_it_is_let_go() -> None:
    played = Played(config("a"))
    drive = played.drive
    call, freezer = played.begin("a")
    drive.wait(5)
    played.acted("a", "prepare")
    synced(played, freezer)
    drive.wait(0.25)
    played.acted("a", "quiesce")
    drive.freezes(freezer, 0)
    drive.report(freezer, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, drive.now + 60))
    played.acted("a", "confirm")
    assert call.value == 1
    drive.wait(2)
    drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    drive.wait(0.5)
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    record = drive.ask("va.fsstatus", {"history": True}).value
    assert record.last.app_stall_seconds == 2.75
    assert record.history[-1].app_stall_seconds == 2.75
    (writer,) = record.last.writers
    assert (writer.state, writer.seconds.quiesce, writer.seconds.held, writer.seconds.release) == (
        "released",
        0.25,
        2.0,
        0.5,
    )


def test_without_writers_no_application_stands_still() -> None:
    drive = Drive()
    call, freezer = drive.begin(1)
    drive.sync(freezer, 1)
    drive.freezes(freezer, 0)
    drive.report(freezer, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, drive.now + 60))
    assert call.value == 1
    drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    last = drive.ask("va.fsstatus", {}).value.last
    assert (last.consistency, last.writers, last.app_stall_seconds) == ("file-system", (), -1)


def records(drive: Drive) -> list[Any]:
    status = drive.ask("va.fsstatus", {"history": True}).value
    return [status.last, status.history[-1]]


FIGURES = ("sync_seconds", "freeze_seconds", "thaw_seconds", "held_seconds", "stall_seconds", "at")


def test_letting_the_writers_go_is_no_part_of_the_thaw() -> None:
    played, _, freezer = confirmed(config("a"))
    drive = played.drive
    drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"))
    drive.wait(0.01)
    drive.report(freezer, messages.Step(0, "thawed"), messages.Done(1))
    drive.exit(freezer)
    before = drive.ask("va.fsstatus", {}).value.last
    drive.wait(9)
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    for record in records(drive):
        assert record.thaw_seconds == pytest.approx(0.01)
        assert [getattr(record, name) for name in FIGURES] == [getattr(before, name) for name in FIGURES]


def test_letting_the_writers_go_is_no_part_of_a_sync_that_fails() -> None:
    played = Played(config("a"))
    drive = played.drive
    _, freezer = drive.begin(1)
    drive.report(played.worker("a"), messages.Started(1))
    played.acted("a", "prepare")
    drive.report(freezer, messages.Progress("sync", 1), messages.Step(0, "syncing"))
    drive.wait(3)
    drive.report(freezer, messages.Failed(12, "EIO"))
    drive.exit(freezer)
    drive.wait(9)
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    assert [record.sync_seconds for record in records(drive)] == [pytest.approx(3), pytest.approx(3)]


def slow_disk(*writers: WriterConfig) -> tuple[Played, Any, int]:
    """Return a core whose freeze has found a file system slow, and thaws the other, 3 s after all were quiesced."""
    played = Played(*writers)
    drive = played.drive
    call, freezer = drive.begin(2)
    for writer in writers:
        drive.report(played.worker(writer.name), messages.Started(1))
        played.acted(writer.name, "prepare")
    drive.sync(freezer, 2)
    for writer in writers:
        played.acted(writer.name, "quiesce")
    drive.freezes(freezer, 0, 1)
    drive.report(freezer, messages.Step(0, "frozen"))
    drive.wait(3)
    drive.report(freezer, messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    return played, call, freezer


def test_none_is_held_for_a_slow_disk_over_its_quiesce_limit() -> None:
    played, call, freezer = slow_disk(config("a"), config("b", quiesce_limit=4))
    played.drive.wait(3.9)
    assert freezer not in played.drive.killed
    played.drive.wait(0.2)
    assert freezer in played.drive.killed
    assert played.writer("b").state == "overran"
    played.drive.die(freezer)
    while thaws := played.drive.workers("thaw"):
        steps = (messages.Step(i, "thawed", 22) for i in (0, 1))
        played.drive.report(thaws[0], messages.Started(1), *steps, messages.Done(0))
        played.drive.exit(thaws[0])
    for name in ("a", "b"):
        played.acted(name, "release")
        played.drive.exit(played.worker(name))
    call.refused(Code.VETOED, "b refused the freeze: it was held for its quiesce limit of 4 s", "slow to freeze")


@pytest.mark.parametrize("first", [4, 7])
def test_each_is_held_for_a_slow_disk_for_its_own_limit_from_when_that_was_found(first: int) -> None:
    """One that the freeze goes on without does not begin the others' time anew."""
    played, _, freezer = slow_disk(config("a", required=False, quiesce_limit=first), config("b", quiesce_limit=8))
    drive = played.drive
    drive.wait(first + 0.1)
    assert played.writer("a").error.startswith(f"it was held for its quiesce limit of {first} s while")
    assert freezer not in drive.killed
    played.acted("a", "release")
    drive.exit(played.worker("a"))
    drive.wait(7.9 - first - 0.1)
    assert freezer not in drive.killed
    drive.wait(0.2)
    assert freezer in drive.killed
    assert played.writer("b").error.startswith("it was held for its quiesce limit of 8 s while")


def test_a_late_wake_up_ends_all_whose_limit_has_passed() -> None:
    played, _, freezer = slow_disk(config("a", quiesce_limit=4), config("b", quiesce_limit=5))
    played.drive.now += 5.5
    played.drive.feed()
    assert freezer in played.drive.killed
    for name, limit in (("a", 4), ("b", 5)):
        assert played.writer(name).error.startswith(f"it was held for its quiesce limit of {limit} s while"), name


def test_a_slow_disk_that_comes_in_time_is_no_reason() -> None:
    played, call, freezer = slow_disk(config("a"))
    drive = played.drive
    drive.wait(5)
    drive.report(freezer, messages.Step(1, "frozen"), messages.Step(0, "freezing"), messages.Step(0, "frozen"))
    drive.report(freezer, messages.Frozen(2, drive.now, drive.now + 60))
    drive.wait(1)
    played.acted("a", "confirm")
    assert call.value == 2
    drive.wait(20)
    assert drive.ask("va.fsstatus").value == 2


# -- the configuration is read again


def read_again(drive: Drive, text: str) -> None:
    (reload,) = drive.workers("reload")
    drive.report(reload, messages.Started(1), messages.Done({"options": text, "writers": {}}))
    drive.exit(reload)


def test_sighup_waits_until_the_writers_are_let_go() -> None:
    played, _, freezer = confirmed(config("a"))
    drive = played.drive
    drive.feed(events.Reload())
    drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    assert not drive.workers("reload")
    played.acted("a", "release")
    assert not drive.workers("reload")
    drive.exit(played.worker("a"))
    read_again(drive, "hold-limit 7\n")
    drive.begin(1)
    assert drive.spawned[max(drive.spawned)].args["options"].hold_limit == 7


def test_what_was_read_when_a_freeze_began_is_taken_over_after_it() -> None:
    drive = Drive()
    drive.feed(events.Reload())
    call, freezer = drive.begin(1)
    read_again(drive, "hold-limit 7\n")
    drive.report(freezer, messages.Failed(12, "no"))
    drive.exit(freezer)
    assert call.answered
    drive.begin(1)
    assert drive.spawned[max(drive.spawned)].args["options"].hold_limit == 7


@pytest.mark.parametrize("frozen", ["thawed", "frozen"])
def test_a_second_sighup_outlives_a_reader_that_hangs(frozen: str) -> None:
    drive = Drive()
    drive.feed(events.Reload())
    (first,) = drive.workers("reload")
    drive.report(first, messages.Started(1))
    drive.wait(5)
    drive.feed(events.Reload())
    assert drive.workers("reload") == [first], "it may have read what was changed since"
    drive.wait(6)
    assert first in drive.killed
    keeper = drive.hold(1)[1] if frozen == "frozen" else 0
    drive.die(first)
    if keeper:
        assert not drive.workers("reload"), "it is put off"
        drive.ask("va.fsthaw")
        drive.thaws(keeper, 1)
    read_again(drive, "hold-limit 7\n")
    drive.begin(1)
    assert drive.spawned[max(drive.spawned)].args["options"].hold_limit == 7
    assert [one.rpc for one in drive.spawned.values()].count("reload") == 2


def test_a_reader_that_dies_is_not_replaced_unasked() -> None:
    drive = Drive()
    drive.feed(events.Reload())
    drive.die(*drive.workers("reload"))
    assert not drive.workers("reload")


# -- va.fssync


def let_go(played: Played, *names: str) -> None:
    for name in names:
        played.acted(name, "release")
        played.drive.exit(played.worker(name))


def test_a_sync_has_the_writers_prepare_and_holds_nothing() -> None:
    played = Played(config("a"), config("b", after=("a",)))
    drive = played.drive
    call = drive.ask("va.fssync")
    for name in ("a", "b"):
        drive.report(played.worker(name), messages.Started(1))
    assert not drive.workers("va.fssync")
    record = drive.ask("va.fsstatus", {}).value
    assert (record.state, record.phase) == ("THAWED", "prepare")
    played.acted("a", "prepare")
    played.acted("b", "prepare")
    assert [order.step for order in played.orders("b")] == ["prepare", "release"]
    let_go(played, "b", "a")
    assert played.orders("a")[-1] == messages.Act("release", 10.0, "bad")
    (sync,) = drive.workers("va.fssync")
    drive.report(sync, messages.Started(1), messages.Done(3))
    assert call.value == 3
    assert drive.ask("va.fsstatus", {}).value.phase == ""


def test_a_refusal_ends_the_sync() -> None:
    played = Played(config("a"))
    call = played.drive.ask("va.fssync")
    played.drive.report(played.worker("a"), messages.Started(1))
    played.acted("a", "prepare", "refused", "no")
    let_go(played, "a")
    call.refused(Code.VETOED, "a refused the freeze: no; nothing was synced")
    assert not played.drive.workers("va.fssync")


@pytest.mark.parametrize("options", [{"writers": "none"}, {"writers": "try"}])
def test_a_sync_without_them_and_one_that_goes_on(options: dict[str, str]) -> None:
    played = Played(config("a"))
    call = played.drive.ask("va.fssync", options)
    if options["writers"] == "try":
        played.drive.report(played.worker("a"), messages.Started(1))
        played.acted("a", "prepare", "refused", "no")
        let_go(played, "a")
    (sync,) = played.drive.workers("va.fssync")
    played.drive.report(sync, messages.Started(1), messages.Done(3))
    assert call.value == 3


def test_a_freeze_and_another_sync_wait_for_the_sync_a_thaw_does_not() -> None:
    played = Played(config("a"))
    drive = played.drive
    first, second, freeze = drive.ask("va.fssync"), drive.ask("va.fssync"), drive.ask("va.fsfreeze")
    assert drive.ask("va.fsthaw").value == 0
    for call in (first, second):
        drive.report(played.worker("a"), messages.Started(1))
        played.acted("a", "prepare")
        assert not drive.workers("va.fsfreeze")
        let_go(played, "a")
        sync = drive.workers("va.fssync")[-1]
        drive.report(sync, messages.Started(1), messages.Done(1))
        drive.exit(sync)
        assert call.value == 1
    assert drive.workers("va.fsfreeze")
    assert not freeze.answered


def test_a_sync_waits_for_the_release_of_a_freeze() -> None:
    played, _, freezer = confirmed(config("a"))
    drive = played.drive
    drive.ask("va.fsthaw")
    drive.report(freezer, messages.Thawing("", drive.now), messages.Step(0, "thawing"), messages.Step(0, "thawed"))
    drive.report(freezer, messages.Done(1))
    drive.exit(freezer)
    old = played.worker("a")
    drive.ask("va.fssync")
    let_go(played, "a")
    assert played.worker("a") != old


def test_the_end_of_the_agent_lets_go_of_those_that_prepare() -> None:
    played = Played(config("a"))
    drive = played.drive
    call = drive.ask("va.fssync")
    drive.report(played.worker("a"), messages.Started(1))
    drive.feed(events.Stopped("SIGTERM"))
    assert played.orders("a")[-1].step == "release"
    assert not any(isinstance(effect, events.Quit) for effect in drive.effects)
    let_go(played, "a")
    call.refused(Code.WRONG_STATE, "the agent was stopped: SIGTERM")
    assert any(isinstance(effect, events.Quit) for effect in drive.effects)


def test_a_shutdown_cuts_the_sync_short() -> None:
    played = Played(config("a"))
    drive = played.drive
    call = drive.ask("va.fssync")
    drive.report(played.worker("a"), messages.Started(1))
    drive.ask("va.shutdown", "halt")
    assert not drive.workers("va.shutdown")
    let_go(played, "a")
    call.refused(Code.FAILED, "the sync was cancelled: va.shutdown was called; nothing was synced")
    assert drive.workers("va.shutdown")


@pytest.mark.parametrize(
    ("step", "outcome"), [("release", "ok"), ("held", "lost"), ("prepare", "ok"), ("quiesce", "refused")]
)
@pytest.mark.parametrize("after", ["ok", "refused"])
def test_one_that_has_let_go_and_says_more_is_killed(step: str, outcome: str, after: str) -> None:
    """Found by fuzzing: it ended the supervisor."""
    played = Played(config("a", required=False))
    played.begin("a")
    played.acted("a", "prepare", after)
    played.acted("a", "release", "ok", "it let go by itself")
    worker = played.worker("a")
    played.acted("a", step, outcome)
    assert worker in played.drive.killed


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("outcome", ["ok", "refused"])
def test_one_that_is_lost_as_it_is_told_to_confirm_stays_lost_whatever_it_answers(outcome: str, required: bool) -> None:
    """A program that says a line of its own, and then `ok` to `confirm`: that ended the supervisor."""
    played = Played(config("a", "live", required=required))
    drive = played.drive
    call, freezer = played.begin("a")
    played.acted("a", "prepare")
    synced(played, freezer)
    played.acted("a", "quiesce")
    drive.freezes(freezer, 0)
    drive.report(freezer, messages.Step(0, "frozen"), messages.Frozen(1, drive.now, drive.now + 60))
    assert played.orders("a")[-1].step == "confirm"
    played.acted("a", "held", "lost", "it said 'x' while it held")
    played.acted("a", "confirm", outcome)
    assert played.worker("a") not in drive.killed
    writer = played.writer("a")
    assert (writer.state, writer.error) == ("lost", "it said 'x' while it held")
    assert call.answers == ([] if required else [1])
    assert (freezer in drive.killed) is required


# -- what is found out when it is let go


def thawed_with(wrong: str, kind: str = "mariadb", **more: Any) -> tuple[Any, Any]:
    """Return the answer to the thaw, and the record, of a freeze whose writer says that when it is let go."""
    played, _, freezer = confirmed(config("a", kind, **more), devices={"/srv/0": "7:0", "/else": "8:1"})
    drive = played.drive
    thaw = drive.ask("va.fsthaw")
    thawed(played, freezer)
    drive.report(played.worker("a"), messages.Acted("release", "ok", wrong, {}))
    drive.exit(played.worker("a"))
    return thaw, drive.ask("va.fsstatus", {"history": True}).value


def test_a_hold_that_is_found_lost_when_it_is_let_go_breaks_the_freeze() -> None:
    thaw, record = thawed_with("the session has ended")
    thaw.refused(Code.FREEZE_BROKEN, "a was lost, and /else is not frozen: the session has ended")
    assert (record.last.outcome, record.last.consistency, record.last.held_continuously) == ("broken", "none", False)
    assert (record.history[-1].outcome, record.totals.freezes["broken"]) == ("broken", 1)
    assert record.totals.freezes["thawed"] == 0


@pytest.mark.parametrize(("wrong", "kind", "more"), [("", "mariadb", {}), ("it failed", "hook", {})])
def test_a_hold_that_held_does_not(wrong: str, kind: str, more: dict[str, Any]) -> None:
    thaw, record = thawed_with(wrong, kind, **more)
    assert thaw.value == 1
    assert record.last.outcome == "thawed"
    assert sum(record.totals.freezes.values()) == 1


def test_one_that_is_not_required_breaks_nothing() -> None:
    thaw, _ = thawed_with("the session has ended", required=False)
    assert thaw.value == 1


def test_a_death_before_it_has_said_how_it_ended_breaks_the_freeze() -> None:
    played, _, freezer = confirmed(config("a", "postgresql"), devices={"/else": "8:1"})
    thaw = played.drive.ask("va.fsthaw")
    thawed(played, freezer)
    played.drive.die(played.worker("a"))
    thaw.refused(Code.FREEZE_BROKEN, "a was lost, and /else is not frozen", "killed by SIGKILL")


# -- where the data of an application are


def test_a_path_below_a_covered_mount_point_lies_on_what_covers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a path that no freeze holds is taken for one that it does."""
    lines = [
        "20 1 8:1 / / rw - ext4 /dev/vda1 rw",
        f"21 20 8:2 / {tmp_path}/srv/db rw - ext4 /dev/vdb rw",
        f"22 20 8:3 / {tmp_path}/srv rw - ext4 /dev/vdc rw",
        f"23 20 8:4 / {tmp_path}/other rw - ext4 /dev/vdd rw",
        f"24 23 8:5 / {tmp_path}/other rw - ext4 /dev/vde rw",
    ]
    mounts = parse_mountinfo("\n".join([*lines, ""]))
    monkeypatch.setattr(life.sysfs, "read_mountinfo", lambda: mounts)
    paths = {"srv/db": "8:3", "srv/db/log": "8:3", "srv": "8:3", "other/a": "8:5", "otherwise": "8:1"}
    found = life.devices_of([f"{tmp_path}/{path}" for path in paths])
    assert found == {f"{tmp_path}/{path}": device for path, device in paths.items()}


def test_a_path_whose_server_does_not_answer_is_told_as_not_known_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one that is configured on a hung NFS mount hangs each plan and each freeze."""
    line = "20 1 8:1 / / rw - ext4 /dev/vda1 rw\n"
    monkeypatch.setattr(life.sysfs, "read_mountinfo", lambda: parse_mountinfo(line))
    answers = threading.Event()

    def realpath(path: str) -> str:
        if path == "/hung/a":
            answers.wait(3)
        return path

    monkeypatch.setattr(life.os.path, "realpath", realpath)
    try:
        assert life.devices_of(["/hung/a", "/srv"]) == {"/hung/a": "unknown", "/srv": "8:1"}
    finally:
        answers.set()
