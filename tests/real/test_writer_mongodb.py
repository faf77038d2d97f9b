"""The writer mongodb against a made-up mongod: its lock is undone once, whoever dies. Debian has no MongoDB."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import xmlrpc.client
from pathlib import Path

import pytest
from harness.applications import pid_of
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hosts import Asking
from harness.mongo import Mongod
from harness.processes import Child, kill, python, until
from harness.rig import Rig
from virtagent.agent.api.errors import Code

pytestmark = pytest.mark.timeout(120)
TESTS = Path(__file__).parents[1]


class Site:
    """A mongod, the client that asks it, and the writer's configuration."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.folder = rig.area.fresh("mongo")
        self.folder.mkdir()
        self.mongod = Mongod(self.folder)
        self.mongod.make()
        self.client = self.folder / "mongosh"
        words = f'PYTHONPATH={TESTS} exec {sys.executable} -m harness.mongo shell {self.folder} "$@"'
        self.client.write_text(f'#!/bin/sh\necho "$*" >{self.folder}/words\n{words}\n')
        self.client.chmod(0o755)
        self.conf = rig.area.fresh("writers.d")
        self.conf.mkdir(mode=0o700)
        self.write("")

    def write(self, more: str) -> None:
        (self.conf / "db.conf").write_text(f"type mongodb\nclient {self.client}\n{more}")

    def start(self, fs: LoopFs, state_dir: Path | None = None) -> Daemon:
        return self.rig.daemon([fs], ["--writers-dir", str(self.conf)], state_dir=state_dir)


@pytest.fixture
def site(rig: Rig) -> Site:
    return Site(rig)


def refused(daemon: Daemon) -> str:
    with pytest.raises(xmlrpc.client.Fault) as raised:
        daemon.proxy().va.fsfreeze()
    assert raised.value.faultCode == Code.VETOED, raised.value
    return raised.value.faultString


def settled(daemon: Daemon) -> None:
    daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["phase"])


def test_it_is_locked_while_frozen(rig: Rig, site: Site) -> None:
    fs = rig.fs("ext4")
    daemon = site.start(fs)
    host = daemon.proxy()
    (planned,) = host.va.fsplan()["writers"]
    assert (planned["paths"], planned["not_frozen"], planned["error"]) == (["/srv/mongo"], ["/srv/mongo"], "")
    for _ in range(2):
        assert host.va.fsfreeze() == 1
        assert site.mongod.locks == 1
        (writer,) = daemon.status()["writers"]
        assert (writer["hold"], writer["state"], writer["paths"]) == ("latch", "confirmed", ["/srv/mongo"])
        assert writer["info"] == {"version": "7.0.14", "lock_count": "1", "optime": "1764266000:3"}
        assert host.va.fsthaw() == 1
        assert site.mongod.locks == 0
    assert site.mongod.asked == ["fsync", "fsyncUnlock"] * 2
    assert (site.folder / "words").read_text().split()[-1] == "mongodb://127.0.0.1:27017/admin?directConnection=true"


@pytest.mark.parametrize("who", ["writer", "keeper", "supervisor", "session", "all"])
def test_it_is_unlocked_once_whoever_dies(rig: Rig, site: Site, who: str) -> None:
    fs = rig.fs("ext4")
    site.write(f"paths {fs.path}\n")
    daemon = site.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    session = next(child.pid for child in daemon.children() if "harness.mongo" in " ".join(child.cmdline()))
    if who in ("writer", "all"):
        kill(pid_of(daemon, "writer"))
    if who in ("keeper", "all"):
        kill(pid_of(daemon, "keeper"))
    if who == "session":
        kill(session)
    if who in ("supervisor", "all"):
        daemon.kill()
        daemon.wait_orphans(20)
        daemon = site.start(fs, daemon.state_dir)
        settled(daemon)
    elif who == "keeper":
        settled(daemon)
    else:
        assert host.va.fsthaw() == 1
    assert site.mongod.locks == 0
    assert site.mongod.asked == ["fsync", "fsyncUnlock"]
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1


@pytest.mark.parametrize("who", ["nobody", "writer"])
def test_a_lock_that_does_not_answer_is_undone(rig: Rig, site: Site, who: str) -> None:
    fs = rig.fs("ext4")
    site.mongod.change(hangs="fsync")
    site.write("quiesce-limit 1\n" if who == "nobody" else "")
    daemon = site.start(fs)
    waiting = Asking(daemon, "va.fsfreeze")
    until(lambda: site.mongod.locks == 1, 20, "it is locked")
    if who == "writer":
        kill(pid_of(daemon, "writer"))
    fault = waiting.wait()
    assert isinstance(fault, xmlrpc.client.Fault)
    assert fault.faultCode == Code.VETOED
    assert site.mongod.locks == 0
    fs.assert_thawed()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"locks": 1}, "somebody has locked it already"),
        ({"hello": {"msg": "isdbgrid"}}, "it is mongos"),
        ({"refuses": {"getCmdLineOpts": "not authorized on admin"}}, "not authorized on admin"),
        ({"refuses": {"fsync": "not authorized on admin"}}, "not authorized on admin"),
        ({"refuses": {"hello": "Command hello requires authentication"}}, "requires authentication"),
    ],
)
def test_what_the_server_refuses_refuses_the_freeze(
    rig: Rig, site: Site, changed: dict[str, object], said: str
) -> None:
    fs = rig.fs("ext4")
    site.mongod.change(**changed)
    daemon = site.start(fs)
    assert said in refused(daemon)
    fs.assert_thawed()
    assert site.mongod.locks == changed.get("locks", 0)
    assert "fsyncUnlock" not in site.mongod.asked


def test_a_lock_that_somebody_else_ends_before_the_proof_refuses_the_freeze(rig: Rig, site: Site) -> None:
    fs = rig.fs("ext4")
    ends = site.folder / "ends"
    code = f"from pathlib import Path; from harness.mongo import Mongod; Mongod(Path('{site.folder}')).change(locks=0)"
    ends.write_text(f'#!/bin/sh\nPYTHONPATH={TESTS} exec {sys.executable} -c "{code}"\n')
    ends.chmod(0o755)
    (site.conf / "later.conf").write_text(f"type pair\nfreeze {ends}\nthaw /bin/true\nafter db\n")
    daemon = site.start(fs)
    assert "db refused the freeze: it is not locked any more" in refused(daemon)
    fs.assert_thawed()
    assert "fsyncUnlock" not in site.mongod.asked


def test_a_login_is_a_secret_file(rig: Rig, site: Site) -> None:
    fs = rig.fs("ext4")
    login = site.folder / "my login.js"
    site.write(f"login-script {login}\nsocket /run/mongo db/s.sock\n")
    daemon = site.start(fs)
    assert f"{login}: No such file" in refused(daemon)
    login.write_text("db.auth('backup', 'a \"word\"')\n")
    login.chmod(0o640)
    assert "nobody else may read" in refused(daemon)
    login.chmod(0o600)
    assert daemon.proxy().va.fsfreeze() == 1
    assert daemon.proxy().va.fsthaw() == 1
    words = (site.folder / "words").read_text()
    assert words.split()[-1] == "mongodb://%2Frun%2Fmongo%20db%2Fs.sock/admin?directConnection=true"
    assert "word" not in words
    site.write(f"login-script {login}\nsocket /run/mongo\n")
    daemon_2 = site.start(fs)
    assert "its client takes only what ends in .sock for a socket" in refused(daemon_2)
    login.write_text("x.y()\n")
    assert f"{login}: x is not defined" in refused(daemon)


def test_a_server_that_could_not_be_unlocked_refuses_the_next_freeze(rig: Rig, site: Site) -> None:
    fs = rig.fs("ext4")
    site.write(f"release-limit 5\npaths {fs.path}\n")
    daemon = site.start(fs)
    host = daemon.proxy()
    assert host.va.fsfreeze() == 1
    site.mongod.change(refuses={"fsyncUnlock": "not authorized"})
    assert host.va.fsthaw() == 1
    assert "not authorized" in daemon.status()["writers"][0]["error"]
    assert "could not be let go before" in refused(daemon)
    site.mongod.change(refuses={})
    daemon.wait_status(lambda record: record["writers"][0]["state"] == "released")
    assert site.mongod.locks == 0


def test_a_real_mongosh(rig: Rig, site: Site) -> None:
    mongosh = shutil.which("mongosh")
    if mongosh is None or importlib.util.find_spec("bson") is None:
        pytest.skip("needs mongosh and the Python package pymongo, which Debian does not have together")
    fs = rig.fs("ext4")
    where = site.folder / "mongod.sock"
    with_packages = [word for word in python("harness.mongo", "server", str(site.folder), str(where)) if word != "-S"]
    server = Child(with_packages, "mongod")
    try:
        server.line(20)
        site.write(f"socket {where}\n")
        text = (site.conf / "db.conf").read_text().replace(f"client {site.client}", f"client {mongosh}")
        (site.conf / "db.conf").write_text(text)
        daemon = site.start(fs)
        assert daemon.proxy().va.fsfreeze() == 1
        assert site.mongod.locks == 1
        assert daemon.status()["writers"][0]["info"]["version"] == "7.0.14"
        assert daemon.proxy().va.fsthaw() == 1
        assert site.mongod.locks == 0
    finally:
        server.close()
