"""virtagentctl against agents of the test's making: each command's output, each exit code, one sentence an error."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import (
    LAST,
    MOUNT,
    WORKER,
    Answer,
    FakeAgent,
    introduce,
    read_line,
    run_virtagentctl,
    status_record,
)
from virtagent.agent import __version__
from virtagent.agent.api import timeofday
from virtagent.agent.api.records import Plan, load
from virtagent.host import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_virtagentctl, tmp_path / "a")


def returning(value: Any) -> Answer:
    return lambda method, params: value


def refusing(code: int, sentence: str) -> Answer:
    def answer(method: str, params: list[Any]) -> Any:
        raise xmlrpc.Fault(code, sentence)

    return answer


def test_ping(run: Run, tmp_path: Path) -> None:
    code, out, err = run("ping", answer=returning("dummy"))
    assert (code, err) == (0, "")
    assert out.startswith(f"unix:{tmp_path}/a answers after ")
    code, out, _ = run("--json", "ping", answer=returning("dummy"))
    assert json.loads(out).keys() == {"answer", "seconds"}


def test_no_agent_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["--agent", f"unix:{tmp_path}/none", "ping"])
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert err == (
        f"virtagentctl: no connection to unix:{tmp_path}/none (No such file or directory); "
        "see that virtagentd runs and that the URL names its socket\n"
    )


def test_capabilities(run: Run) -> None:
    able = {"version": "0.1.0", "methods": ["va.ping", "va.fsfreeze"]}
    assert run("capabilities", answer=returning(able)) == (0, "virtagentd 0.1.0\n  va.ping\n  va.fsfreeze\n", "")
    assert json.loads(run("capabilities", "--json", answer=returning(able))[1]) == able


PLAN = {
    "mounts": [
        {
            "mountpoint": "/srv/inner",
            "aliases": [],
            "device": "7:1",
            "fstype": "ext4",
            "source": "/dev/loop1",
            "level": 0,
            "hosts": [1],
            "disks": ["sda"],
            "more_aliases": 0,
        },
        {
            "mountpoint": "/srv",
            "aliases": ["/mnt/a", "/mnt/b"],
            "device": "7:0",
            "fstype": "xfs",
            "source": "/dev/loop0",
            "level": 1,
            "hosts": [],
            "disks": ["sda"],
            "more_aliases": 0,
        },
    ],
    "left_out": [
        {
            "mountpoint": "/proc",
            "aliases": [],
            "device": "0:2",
            "fstype": "proc",
            "reason": "pseudo",
            "strict_error": False,
            "more_aliases": 0,
        },
        {
            "mountpoint": "/net",
            "aliases": [],
            "device": "0:9",
            "fstype": "nfs4",
            "reason": "network",
            "strict_error": False,
            "more_aliases": 0,
        },
    ],
    "notes": [],
    "left_out_counts": {"network": 1, "pseudo": 1},
}


def test_plan(run: Run) -> None:
    assert run("plan", answer=returning(PLAN)) == (
        0,
        "a freeze would freeze 2 file systems, level by level\n"
        "level 0\n"
        "  /srv/inner  ext4  /dev/loop1  lies on /srv\n"
        "level 1\n"
        "  /srv  xfs  /dev/loop0  also /mnt/a, /mnt/b\n"
        "left out\n"
        "  1 file system (network): /net\n"
        "  1 file system on no disk (pseudo)\n",
        "",
    )
    assert run("plan", "-v", answer=returning(PLAN))[1].endswith(
        "left out\n  network  /net  nfs4\n  1 file system on no disk (pseudo)\n"
    )
    assert load(Plan, json.loads(run("--json", "plan", answer=returning(PLAN))[1]), "plan") == load(Plan, PLAN, "plan")
    nothing = run("plan", answer=returning({"mounts": [], "left_out": []}))
    assert nothing == (0, "a freeze would freeze 0 file systems\n", "")


def test_what_plan_and_freeze_ask_for(run: Run) -> None:
    asked = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append((method, params))
        return {"va.fsplan": PLAN, "va.fsfreeze": 1, "va.fsstatus": status_record(), "va.fsthaw": 1}[method]

    run("plan", "--include", "/a*", "/b", "--exclude", "/a/c", "--include", "/d", "--strict", answer=answer)
    limits = ["--sync-limit", "9", "--freeze-limit", "8", "--hold-limit", "7.5", "--wait", "6"]
    run("freeze", "--include", "/a*", "--strict", *limits, answer=answer)
    run("freeze", "--timeout", "10", answer=answer)
    run("freeze", "--partial", "--writers", "try", "--wait", "3", answer=answer)
    run("plan", "--partial", "--writers", "none", answer=answer)
    run("thaw", "--wait", "5", answer=answer)
    assert [params[0] for method, params in asked if method != "va.fsstatus"] == [
        {"include": ["/a*", "/b", "/d"], "exclude": ["/a/c"], "strict": True},
        {"include": ["/a*"], "strict": True, "sync_limit": 9, "freeze_limit": 8, "hold_limit": 7.5, "wait": 6},
        {"wait": 9},
        {"partial": True, "writers": "try", "wait": 3},
        {"partial": True, "writers": "none"},
        {"wait": 5},
    ]


UNKNOWN = {"seconds": -1, "sync_seconds": -1, "still_seconds": -1}


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeofday.time, "localtime", timeofday.time.gmtime)
    monkeypatch.setattr(timeofday.time, "time", lambda: 86400.0)


def freezing(number: int, **changed: Any) -> Answer:
    return lambda method, params: number if method == "va.fsfreeze" else status_record(**changed)


@pytest.mark.parametrize(
    ("number", "changed", "said"),
    [
        (3, {"hold_left": 60.0}, "frozen 3 file systems (freeze 17); thaws by itself at 00:01:00Z (in 1 min)\n"),
        (1, {"hold_left": 41.2}, "frozen 1 file system (freeze 17); thaws by itself at 00:00:41Z (in 41 s)\n"),
        (1, {"hold_left": -1}, "frozen 1 file system (freeze 17); its hold has no limit\n"),
        (1, {"state": "THAWED", "code": 0}, "frozen 1 file system; the state is now THAWED\n"),
        (
            1,
            {
                "mounts": [
                    MOUNT,
                    MOUNT | {"mountpoint": "/efi", "fstype": "vfat", "state": "unsupported", "dm": "dm-3"} | UNKNOWN,
                ]
            },
            "frozen 1 file system (freeze 17); thaws by itself at 00:00:41Z (in 41 s)\n"
            "not frozen:\n  unsupported  /efi  vfat  /dev/vdb (dm-3)    also /mnt/db\n",
        ),
    ],
)
def test_freeze(run: Run, monkeypatch: pytest.MonkeyPatch, number: int, changed: dict[str, Any], said: str) -> None:
    stop_the_clock(monkeypatch)
    assert run("freeze", answer=freezing(number, **changed)) == (0, said, "")


def test_freeze_json(run: Run) -> None:
    out = run("--json", "freeze", answer=freezing(3))[1]
    assert json.loads(out) == {"frozen": 3, "freeze_id": 17, "hold_left": 41.0}


def test_a_freeze_is_done_though_the_status_after_it_fails(run: Run) -> None:
    assert run("freeze", answer=returning(3)) == (0, "frozen 3 file systems\n", "")


def test_thaw_and_hold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)
    assert run("thaw", answer=returning(3)) == (0, "thawed 3 file systems\n", "")
    assert json.loads(run("thaw", "--json", answer=returning(3))[1]) == {"thawed": 3, "cancelled": False}
    assert run("hold", "90", answer=returning(90)) == (0, "thaws by itself at 00:01:30Z (in 1 min 30 s)\n", "")
    assert json.loads(run("--json", "hold", "90", answer=returning(90))[1]) == {"hold_left": 90.0}


def thawing(number: int, state: str) -> Answer:
    """Answer a thaw with `number`, by an agent that is in the state before it."""
    return lambda method, params: number if method == "va.fsthaw" else status_record(state=state)


NOTHING = "nothing was frozen, and no freeze was under way; what was copied in between is not consistent"


@pytest.mark.parametrize("before", [thawing(0, "THAWED"), returning(0)])
def test_a_thaw_of_nothing_has_an_exit_code_of_its_own(run: Run, before: Answer) -> None:
    assert run("thaw", answer=before) == (6, "", f"virtagentctl: {NOTHING}\n")
    code, out, _ = run("--json", "thaw", answer=before)
    assert (code, json.loads(out)) == (
        6,
        {
            "thawed": 0,
            "cancelled": False,
            "error": {"code": None, "name": "NOTHING_TO_THAW", "text": NOTHING, "exit": 6},
        },
    )


@pytest.mark.parametrize(
    ("number", "state", "said"),
    [
        (0, "INPROGRESS", "cancelled the freeze under way; nothing was frozen\n"),
        (2, "INPROGRESS", "cancelled the freeze under way; thawed 2 file systems\n"),
        (2, "FROZEN", "thawed 2 file systems\n"),
        (2, "THAWED", "thawed 2 file systems\n"),
        (0, "THAWINPROGRESS", "all is thawed\n"),
        (0, "ERROR", "all is thawed\n"),
    ],
)
def test_a_thaw_says_what_it_ended(run: Run, number: int, state: str, said: str) -> None:
    assert run("thaw", answer=thawing(number, state)) == (0, said, "")
    cancelled = {"thawed": number, "cancelled": state == "INPROGRESS"}
    assert json.loads(run("--json", "thaw", answer=thawing(number, state))[1]) == cancelled


def test_a_thaw_that_tells_a_broken_freeze_is_no_thaw_of_nothing(run: Run) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        if method == "va.fsthaw":
            raise xmlrpc.Fault(8, "the keeper died")
        return status_record(state="THAWED")

    assert run("thaw", answer=answer)[0] == 5


def test_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)
    mounts = [MOUNT, MOUNT | {"mountpoint": "/srv/x", "aliases": [], "state": "failed", "errno": 5, "error": "EIO"}]
    progress = {
        "dirty_bytes": 3.0 * (1 << 30),
        "flushed_bytes": 120 << 20,
        "bytes_per_second": 80.5 * (1 << 20),
        "eta": 130.0,
    }
    workers = [WORKER, WORKER | {"id": 18, "rpc": "thaw", "phase": "run", "process_state": "disk-sleep"}]
    record = status_record(mounts=mounts, progress=progress, workers=workers, last=LAST)
    assert run("status", "--verbose", answer=returning(record)) == (
        0,
        "FROZEN: hold for 19 s, freeze 17, thaws in 41 s\n"
        "  now      2 file systems frozen; who writes to them waits, for 19 s\n"
        "  process  worker 18 thaw (pid 4711) waits in the kernel for its disk\n"
        "  ends     it thaws by itself at 00:00:41Z (in 41 s)\n"
        "  to do    nothing, if a backup runs; else `virtagentctl thaw`, and what was copied meanwhile is worthless\n"
        "  120 MiB written, 3 GiB dirty, 80 MiB/s, 2 min 10 s left\n"
        "file systems\n"
        "  frozen  /srv/db  ext4  /dev/vdb  sync 2.5 s, still 19 s  also /mnt/db\n"
        "  failed  /srv/x   ext4  /dev/vdb  sync 2.5 s, still 19 s  EIO\n"
        "workers\n"
        "  17 va.fsfreeze  pid 4711  hold  19 s  sleeping\n"
        "  18 thaw         pid 4711  run   19 s  waits in the kernel (D)\n"
        "last freeze: 16 BROKEN: the hold limit passed; 4 file systems held 1 min, synced 48 MiB in 10.6 s "
        "(slowest /srv/db), stood still 40 ms (freezing 11 ms, thawing 5 ms); ended 1970-01-02T00:00:00Z\n"
        "audit: 3 records wait for the thaw\n"
        "agent: version 0.1.0, up 2 h 5 min\n",
        "",
    )
    assert json.loads(run("status", "--json", answer=returning(record))[1]) == record


def test_status_at_rest_and_in_error(run: Run) -> None:
    rest = {"state": "THAWED", "code": 0, "phase": "", "hold_left": -1, "freeze_id": 0, "mounts": [], "workers": []}
    quiet = {"audit": {"waiting": 0, "dropped": 2}, "version": "", "uptime": -1}
    assert run("status", answer=returning(status_record(**rest, **quiet)))[1] == (
        "THAWED\n  now      nothing is frozen, applications run\nlast freeze: none since the agent started\n"
        "audit: no record waits, 2 records lost\nagent: version unknown, up an unknown time\n"
    )
    error = {"state": "ERROR", "code": -1, "error": "/srv/db is not thawed (EIO)", "phase": "thaw", "hold_left": -1}
    first = run("status", answer=returning(status_record(**error, limit_left=5)))[1].splitlines()[0]
    assert first == "ERROR: thaw for 19 s, freeze 17, limit in 5 s, /srv/db is not thawed (EIO)"


HUGE = {"since": 1e308, "hold_left": 1e308, "uptime": 1e308, "last": LAST | {"at": 1e308}, "freeze_id": 1e300}


def test_absurd_numbers_are_shown_without_harm(run: Run) -> None:
    progress = {"dirty_bytes": 1e300, "flushed_bytes": 1e300, "bytes_per_second": 1e300, "eta": 1e300}
    code, out, err = run("status", answer=returning(status_record(**HUGE, progress=progress)))
    assert (code, err) == (0, "")
    assert "PiB" in out


EVIL = "/srv/\x1b]0;own\x07\n\u202e\u2028FROZEN\x9b2J"
SHOWN = "/srv/\\x1b]0;own\\x07\\n\\u202e\\u2028FROZEN\\x9b2J"


@pytest.mark.parametrize("command", ["status", "watch", "plan", "freeze", "capabilities", "call", "fault", "error"])
def test_what_a_guest_says_is_no_command_to_the_terminal(run: Run, command: str) -> None:
    record = status_record(
        mounts=[MOUNT | {"mountpoint": "EVIL", "fstype": "EVIL", "aliases": ["EVIL"], "state": "failed"}],
        state="EVIL",
        workers=[WORKER | {"rpc": "EVIL", "process_state": "EVIL"}],
        last=LAST | {"error": "EVIL"},
        version="EVIL",
    )

    def answer(method: str, params: list[Any]) -> Any:
        match command, method:
            case "fault", _:
                raise xmlrpc.Fault(7, EVIL)
            case "watch", "va.fsstatus" if "since" in params[0]:
                raise xmlrpc.Fault(7, EVIL)
            case _, "va.fsfreeze":
                return 1
            case _, "va.fsplan":
                mount = PLAN["mounts"][0] | {"mountpoint": "EVIL"}
                return {"mounts": [mount], "left_out": [PLAN["left_out"][0] | {"reason": "EVIL"}]}
            case _, "va.capabilities":
                return {"version": "EVIL", "methods": ["EVIL"]}
            case "error", _:
                return {"EVIL": 1}
            case "call", _:
                return {"a": "EVIL"} if params else "EVIL"
        return record

    argv = {"fault": ["ping"], "error": ["ping"], "call": ["call", "m"]}.get(command, [command])
    _, out, err = run(*argv, answer=lambda method, params: _evil(answer(method, params)))
    both = out + err
    assert all(c.isprintable() or c == "\n" for c in both)
    assert command == "error" or "\\x1b]0;own\\x07" in both
    if command != "call":
        assert SHOWN in both or command == "error"


def _evil(value: Any) -> Any:
    match value:
        case str():
            return value.replace("EVIL", EVIL)
        case list():
            return [_evil(item) for item in value]
        case dict():
            return {_evil(key): _evil(item) for key, item in value.items()}
    return value


def test_call(run: Run) -> None:
    asked = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append((method, params))
        return {"b": [1, True, "é"]} if params else "one\n\ttwo\nthree"

    arguments = ["1", "-2.5", "true", '"1"', "text", '{"since": [3]}', "/srv/*", "[", "4294967296"]
    code, out, err = run("call", "va.x", *arguments, answer=answer)
    assert asked == [("va.x", [1, -2.5, True, "1", "text", {"since": [3]}, "/srv/*", "[", 2.0**32])]
    assert (code, json.loads(out), err) == (0, {"b": [1, True, "é"]}, "")
    assert run("call", "va.x", answer=answer) == (0, "one\n        two\nthree\n", "")
    assert json.loads(run("call", "va.x", "--json", answer=answer)[1]) == "one\n\ttwo\nthree"
    assert json.loads(run("call", "--json", "va.x", answer=returning(b"\0\xff"))[1]) == "AP8="


@pytest.mark.parametrize("argument", ["[" * 90 + "]" * 90, "\udcff", "9" * 400, '{"a": 1, "a": 2}'])
def test_an_argument_that_cannot_travel(run: Run, argument: str) -> None:
    code, out, err = run("call", "va.x", argument, answer=returning(1))
    assert (code, out) == (2, "")
    assert err.endswith("; see `virtagentctl --help`\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("melt",),
        ("hold",),
        ("hold", "nan"),
        ("hold", "-1"),
        ("hold", "soon"),
        ("ping", "--timeout", "0"),
        ("ping", "--timeout", "1e9"),
        ("ping", "--agent", "tcp:1"),
        ("freeze", "--hold-limit", "inf"),
        ("freeze", "--sync", "3"),
        ("snapshot", "--hold-l", "3", "--", "true"),
        ("watch", "--until", "MOLTEN"),
        ("call",),
    ],
)
def test_usage(run: Run, argv: tuple[str, ...]) -> None:
    code, out, err = run(*argv, answer=returning(1))
    assert (code, out) == (2, "")
    assert err.startswith("virtagentctl: ")
    assert err.count("\n") == 1


def test_without_arguments_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(f"    {name} " in err for name in ("freeze", "snapshot", "status"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frezze"], "there is no command 'frezze'; did you mean `freeze`? see `virtagentctl --help`"),
        (["melt"], "there is no command 'melt'; see `virtagentctl --help`"),
        (["hold", "3", "--bogus"], "unrecognized arguments: --bogus; see `virtagentctl hold --help`"),
        (["call"], "the following arguments are required: METHOD; see `virtagentctl call --help`"),
        (["--agent", "/run/x.sock", "ping"], "'/run/x.sock' is no agent's URL; did you mean unix:/run/x.sock?"),
        (["hold", "5x"], "'5x' is no number of seconds"),
    ],
)
def test_a_wrong_word_says_what_to_type(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err
    assert cli.main(["--json", *argv]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["code"], error["name"], error["exit"]) == (None, "USAGE", 2)
    assert said in error["text"]
    assert said in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("--version", "-V"):
        with pytest.raises(SystemExit) as ended:
            cli.main([name])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"virtagentctl {__version__}\n"


@pytest.mark.parametrize(
    ("text_", "seconds"),
    [("60", 60), ("60s", 60), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25), ("2min", 120), ("1d", 86400)],
)
def test_units_of_time(run: Run, text_: str, seconds: float) -> None:
    asked = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append(params)
        return 1

    assert run("hold", text_, answer=answer)[0] == 0
    assert asked == [[seconds]]


@pytest.mark.parametrize("command", ["freeze", "plan", "sync"])
def test_mount_points_without_an_option(run: Run, command: str) -> None:
    asked = []

    def answer(method: str, params: list[Any]) -> Any:
        asked.append(params[0]["include"] if params and "include" in params[0] else [])
        raise xmlrpc.Fault(12, "enough")

    run(command, "/srv/db/", "/", "--include", "/srv/*", answer=answer)
    assert asked[0] == ["/srv/*", "/srv/db", "/"]


def test_an_error_for_programs(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("--json", "hold", "3", answer=refusing(2, "va.fshold needs state FROZEN, the state is THAWED"))
    error = json.loads(out)["error"]
    assert (code, error["code"], error["name"], error["exit"]) == (1, 2, "WRONG_STATE", 1)
    assert "nothing is frozen" in err
    assert "va.fshold" not in err
    assert cli.main(["--json", "--agent", f"unix:{tmp_path}/none", "freeze"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["name"], error["exit"]) == (None, "UNREACHABLE", 3)


def test_a_dead_agent_over_a_frozen_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    plan = {"mounts": [{"mountpoint": "/srv/db"}, {"mountpoint": "/srv/\x1bx"}], "left_out": []}
    journal = tmp_path / "journal"
    for record, said in (
        ({"boot": boot, "plan": plan}, "its journal says that /srv/db, /srv/\\x1bx may be frozen: start virtagentd"),
        ({"boot": "another", "plan": plan}, "see that virtagentd runs"),
        ({"boot": boot, "plan": {"mounts": []}}, "see that virtagentd runs"),
        ({"boot": boot, "plan": [3]}, "see that virtagentd runs"),
        ([], "see that virtagentd runs"),
    ):
        journal.write_text(json.dumps(record), encoding="ascii")
        assert cli.main(["--agent", f"unix:{tmp_path}/none", "status"]) == 3
        assert said in capsys.readouterr().err


def test_help_of_every_command(run: Run) -> None:
    for command in ("ping", "capabilities", "plan", "freeze", "thaw", "status", "watch", "hold", "call"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "--json" in out


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ((1, "the wait of 5 s passed"), 4, "[IN_PROGRESS 1]; `virtagentctl watch` follows it"),
        ((2, "the state is FROZEN"), 1, "[WRONG_STATE 2]; see `virtagentctl status`"),
        ((7, "/srv/db: EIO"), 1, "/srv/db: EIO [FREEZE_FAILED 7]"),
        ((8, "the keeper died"), 5, "the keeper died [FREEZE_BROKEN 8]; throw the snapshot away"),
        ((-32603, "oops"), 1, "[INTERNAL -32603]; report it"),
        ((4711, "new"), 1, "new (fault 4711, "),
        ((7, "x" * 9999), 1, "xxxx"),
    ],
)
@pytest.mark.parametrize("command", ["freeze", "thaw", "status", "watch"])
def test_faults(run: Run, command: str, fault: tuple[int, str], code: int, said: str) -> None:
    ended, out, err = run(command, answer=refusing(*fault))
    assert (ended, out) == (code, "")
    assert err.startswith("virtagentctl: ")
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 1100
    assert "a freeze may go on" not in err


def test_every_other_ending_of_the_connection(run: Run) -> None:
    note = "a freeze may go on in the guest: `virtagentctl thaw` ends it\n"

    def silent(sock: socket.socket) -> None:
        while read_line(sock):
            pass

    def rubbish(sock: socket.socket) -> None:
        introduce(sock)
        read_line(sock)
        sock.sendall(b"\x1b[2J\n")
        read_line(sock)

    for script, code in ((lambda sock: None, 3), (silent, 4), (rubbish, 1)):
        for command in ("freeze", "ping"):
            ended, out, err = run("--timeout", "0.2", command, script=script)
            assert (ended, out) == (code, "")
            assert err.startswith("virtagentctl: ")
            assert err.count("\n") == 1
            assert err.endswith(note) == (command == "freeze")
            assert "\x1b" not in err


def test_what_is_wrong_with_the_arguments_of_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["snapshot"], "the following arguments are required: COMMAND"),
        (["snapshot", "--hold", "soon", "--", "true"], "is no number of seconds"),
        (["snapshot", "sh", "-c", "true"], "unrecognized arguments: -c"),
        (["--agent", "unix:/a", "--agent", "unix:/a", "snapshot", "--", "true"], "stands twice"),
        (["--agent", "tcp:1", "--agent", "unix:/a", "snapshot", "--", "true"], "is no agent's URL"),
    ):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_without_a_standard_output(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "a", lambda *_: 3) as fake, contextlib.redirect_stdout(None):
        assert cli.main(["--agent", fake.url, "thaw"]) == 0
