"""A conversation that was recorded once is answered in the same words: replies, titles, journal, log and exit code.

`tests/data/conversation.json` holds what was said. What differs from run to run (times, pids, paths, device numbers,
the machine's other file systems) is masked in the recording and in the replay alike. Whoever changes an answer on
purpose records anew, and reads the difference before committing it:

    VIRTAGENT_RECORD=1 scripts/test tests/real/test_recorded.py && git diff tests/data
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest
from harness.daemon import Daemon
from harness.hosts import request
from harness.processes import kill, until
from harness.rig import Rig

DATA = Path(__file__).resolve().parents[1] / "data" / "conversation.json"
VOLATILE = frozenset({"pid", "seq", "waiting", "process_state", "version", "slowest"})
"""Members that differ from run to run; what is no whole number is a time, wherever it stands."""
LONGER = 30.0
_MASKS = (
    (r"time=\S+", "time=~"),
    (r"pid:\d+", "pid:~"),
    (r" ms=\S+", " ms=~"),
    (r"<double>(?!-1(\.0)?<)[^<]*", "<double>~"),
    (r"\b\d+\.\d+(e-?\d+)? s\b", "~ s"),
    (r"\b\d+ s left", "~ s left"),
    (r"\b\d\d:\d\d:\d\dZ", "~:~:~Z"),
    (r"Content-Length: \d+", "Content-Length: ~"),
    (r"version \d[\w.]*", "version ~"),
    (r" synced_bytes=\d+", ""),
    (r"(_seconds|_bytes)=[\d.]+", r"\1=~"),
    (r'slowest="[^"]*"', "slowest=~"),
)


class Conversation:
    """A daemon, one connection that speaks both protocols, and what was said: pairs of what was asked and what came."""

    def __init__(self, rig: Rig) -> None:
        self.stalling = rig.stall("ext4")
        self.filesystems = [rig.fs("ext4"), rig.fs("xfs"), rig.fs("btrfs"), self.stalling.fs]
        self.note = rig.area.fresh("note")
        options = [
            "--shutdown-command",
            "/bin/false",
            "--hold-limit",
            "900",
            "--hold-limit-max",
            "1800",
            "--news-limit",
            "60",
        ]
        self.daemon: Daemon = rig.daemon(self.filesystems, options)
        self.said: list[dict[str, Any]] = []
        self.sock = self.daemon.raw(LONGER)
        self.words = {str(self.daemon.folder): "<daemon>", str(self.daemon.state_dir): "<state>"}
        self.words |= {str(self.note): "<note>"}
        self.disks: dict[str, str] = {}
        for i, fs in enumerate(self.filesystems):
            self.words |= {str(fs.path): f"<mount {i}>", fs.device: f"<device {i}>"}
            self.disks |= {fs.number: f"<number {i}>", Path(fs.device).name: f"<disk {i}>"}

    # -- masks

    def text(self, text: str) -> str:
        """Return the text without what differs from run to run."""
        for word in sorted(self.words, key=len, reverse=True):
            text = text.replace(word, self.words[word])
        for pattern, mask in _MASKS:
            text = re.sub(pattern, mask, text)
        return text

    def value(self, value: Any, name: str = "") -> Any:
        """Return a parsed answer without what differs from run to run, and without the machine's own file systems."""
        if isinstance(value, dict):
            if name in ("estimate", "left_out_counts") or (name == "progress" and set(value.values()) != {-1}):
                return "~"  # of the whole machine
            return {key: self.value(inner, key) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            if name == "left_out":
                return "~"
            kept = [x for x in value if not (isinstance(x, dict) and x.get("state") == "left-out")]
            return [self.value(inner, name) for inner in kept]
        if isinstance(value, xmlrpc.client.Binary):
            return {"binary": value.data.decode("latin-1")}
        if name in ("dirty_bytes", "written_bytes", "synced_bytes"):
            return "~"  # not known of a sync that was over before anybody looked
        if isinstance(value, bool) or value is None or value in (-1, ""):
            return value
        if isinstance(value, float) or name in VOLATILE:
            return "~"
        if isinstance(value, str):
            return self.disks.get(value) or self.text(value)
        return value

    # -- what is asked

    def note_down(self, asked: str, came: Any) -> None:
        """Keep a pair."""
        self.said.append({"asked": self.text(asked), "came": came})

    def json(self, command: str, arguments: Any = None, *, parsed: bool = False, **more: Any) -> Any:
        """Ask in JSON; return the reply. `parsed`: its members are compared, not its text."""
        message = {"execute": command, **({} if arguments is None else {"arguments": arguments}), **more}
        return self.line(json.dumps(message).encode() + b"\n", parsed=parsed)

    def line(self, data: bytes, *, parsed: bool = False) -> Any:
        """Send any bytes that are answered by one line; return that. A 0xFF that ends a half message draws two."""
        self.sock.sendall(data)
        lines = [read_line(self.sock)]
        while b"\xff" in data and not lines[-1].startswith(b"\xff"):
            lines.append(read_line(self.sock))
        reply = json.loads(lines[-1].lstrip(b"\xff"))
        came = self.value(reply) if parsed else self.text(b"".join(lines).decode("latin-1"))
        self.note_down(data.decode("latin-1"), came)
        return reply

    def xml(self, method: str, *params: Any, parsed: bool = False) -> Any:
        """Ask in XML-RPC on the same connection; return the value or the Fault."""
        self.sock.sendall(request(method, *params))
        return self.reply(f"{method}{params!r}", self.sock, parsed=parsed)

    def reply(self, asked: str, sock: socket.socket, *, parsed: bool = False) -> Any:
        """Read a reply in HTTP and note it down."""
        head, body = read_http(sock)
        try:
            value = xmlrpc.client.loads(body)[0][0]
        except xmlrpc.client.Fault as fault:
            value = fault
        came = [self.text(head), self.value(value) if parsed else self.text(body)]
        if "connection: close" in head.lower():
            came.append(f"then {sock.recv(1)!r}")
        self.note_down(asked, came)
        return value

    def fresh(self, data: bytes, *, show: str = "") -> None:
        """Send bytes in HTTP over a connection of their own."""
        sock = self.daemon.raw(LONGER)
        sock.sendall(data)
        self.reply(show or data.decode("latin-1"), sock)
        sock.close()

    def later(self, method: str, *params: Any) -> socket.socket:
        """Ask over a connection of its own, and do not wait for the answer."""
        sock = self.daemon.raw(LONGER)
        sock.sendall(request(method, *params))
        return sock

    # -- what else there is to be seen

    def titles(self) -> None:
        """Note down what `ps` shows."""
        self.note_down("ps", sorted(self.text(title) for title in self.daemon.titles().values()))

    def title(self) -> None:
        """Note down what `ps` shows of the supervisor, not asking a worker that may be stuck."""
        self.note_down("ps", self.text(self.shown()))

    def shown(self) -> str:
        """Return the title of the supervisor."""
        return Path(f"/proc/{self.daemon.pid}/cmdline").read_bytes().rstrip(b"\0").decode()

    def journal(self) -> None:
        """Note down the journal, without the boot and the worker that it names nor what the kernel allows."""
        journal = json.loads((self.daemon.state_dir / "journal").read_text())
        journal |= {"boot": "~", "worker": ["~", "~"], "expedites": "~"}
        self.note_down("the journal", self.value(journal))

    def log(self) -> None:
        """Note down the log; the calls by which this test waits are not part of it."""
        lines = [self.text(line) for line in self.daemon.log().splitlines()]
        kept = [line for line in lines if not re.search(r'method="va.fsstatus" params="\{', line)]
        self.note_down("the log", [line for i, line in enumerate(kept) if i == 0 or line != kept[i - 1]])


def read_line(sock: socket.socket) -> bytes:
    """Read one line."""
    data = b""
    while not data.endswith(b"\n"):
        more = sock.recv(1)
        assert more, f"closed after {data!r}"
        data += more
    return data


def read_http(sock: socket.socket) -> tuple[str, str]:
    """Read one reply; return its head and its body."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += read_line(sock)
    head = data.decode("latin-1")
    found = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    assert found, head
    body = b""
    while len(body) < int(found[1]):
        more = sock.recv(int(found[1]) - len(body))
        assert more, f"closed after {body!r}"
        body += more
    return head, body.decode()


def post(body: str, *headers: str, length: int | None = None) -> bytes:
    """Return a request with any body."""
    size = len(body) if length is None else length
    lines = ["POST /RPC2 HTTP/1.1", "Host: guest", "Content-Type: text/xml", f"Content-Length: {size}", *headers]
    return ("\r\n".join([*lines, "", ""]) + body).encode()


def about_the_agent(talk: Conversation) -> None:
    talk.json("guest-ping")
    talk.json("guest-ping", {}, id=7)
    talk.json("guest-ping", {"x": 1})
    talk.json("guest-sync", {"id": 1234567})
    talk.line(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":99}}\n')
    talk.json("guest-sync", {"id": "text"})
    talk.json("guest-info", parsed=True)
    talk.json("nope")
    talk.json("va.ping", [])
    talk.xml("va.ping")
    talk.xml("va.hello")
    talk.xml("va.capabilities", parsed=True)
    talk.xml("system.listMethods")
    talk.xml("system.methodHelp", "va.fsfreeze")
    talk.xml("system.methodHelp", "nope")
    talk.xml("nope")
    talk.xml("reload")
    talk.xml("va.ping", 1)
    talk.xml("va.fsfreeze", {"exclude": 3})
    talk.xml("va.fsfreeze", {"include": ["/no/such/place"]})
    talk.xml("va.fshold", 30)
    talk.xml("va.fsthaw")
    talk.xml("va.shutdown", "explode")
    talk.xml("va.shutdown", "halt")
    talk.json("guest-shutdown", {"mode": "explode"})
    talk.xml("va.getfile", "/nowhere")
    talk.xml("va.getfile", "relative")


def what_is_malformed(talk: Conversation) -> None:
    talk.line(b"{nope}\n")
    talk.line(b'{"execute":3}\n')
    talk.line(b'{"execute":"guest-ping","extra":1}\n')
    talk.line(b"[1]\n")
    talk.line(b"[" * 3000 + b"\xff" + b'{"execute":"guest-sync-delimited","arguments":{"id":5}}\n')
    for byte in b'{"execute":"guest-ping"':
        talk.sock.sendall(bytes([byte]))
    talk.line(b"}\n")
    talk.fresh(post("<methodCall>"))
    talk.fresh(post("<methodCall><methodName>va.ping</methodName><params><param/></params></methodCall>"))
    talk.fresh(post('<!DOCTYPE x [<!ENTITY a "b">]><methodCall><methodName>&a;</methodName></methodCall>'))
    talk.fresh(post("x", length=1 << 30))
    talk.fresh(post("", f"X-Long: {'a' * 5000}"), show="a header of 5000 characters")
    talk.fresh(post("<a>" * 100), show="100 open elements")
    talk.fresh(post(xmlrpc.client.dumps((), "va.ping"), "X-Virtagent-Client-Tag: mine"))
    talk.fresh(b"\xff" + request("va.ping"), show="0xFF, then va.ping")
    talk.fresh(b"PUT / HTTP/1.1\r\nHost: guest\r\nContent-Length: 0\r\n\r\n")


def files_and_programs(talk: Conversation) -> None:
    handle = talk.json("guest-file-open", {"path": str(talk.note), "mode": "w+"})["return"]
    talk.json("guest-file-write", {"handle": handle, "buf-b64": "aGVsbG8K"})
    talk.json("guest-file-seek", {"handle": handle, "offset": 0, "whence": "set"})
    talk.json("guest-file-read", {"handle": handle})
    talk.json("guest-file-flush", {"handle": handle})
    talk.json("guest-file-close", {"handle": handle})
    nobody_works(talk)
    talk.json("guest-file-close", {"handle": handle})
    talk.json("guest-file-open", {"path": "/nowhere/at/all"})
    talk.xml("va.getfile", str(talk.note))
    talk.sock.sendall(b'{"execute":"guest-exec","arguments":{"path":"/bin/echo","arg":["hi"],"capture-output":true}}\n')
    pid = json.loads(read_line(talk.sock))["return"]["pid"]
    talk.words[f"'pid': {pid}"] = "'pid': ~"
    asked = json.dumps({"execute": "guest-exec-status", "arguments": {"pid": pid}}).encode() + b"\n"
    while True:
        talk.sock.sendall(asked)
        ended = json.loads(read_line(talk.sock))["return"]
        if ended["exited"]:
            break
    talk.note_down("guest-exec-status", ended)
    talk.json("guest-exec-status", {"pid": 1})


def nobody_works(talk: Conversation) -> None:
    """Wait until every worker is reaped, so that the record and the log have one order."""
    talk.daemon.wait_status(lambda r: r["state"] == "THAWED" and not r["workers"])


def a_freeze(talk: Conversation) -> None:
    talk.xml("va.fsplan", parsed=True)
    talk.xml("va.fssync")
    assert talk.xml("va.fsfreeze") == 4
    for fs in talk.filesystems:
        fs.assert_frozen()
    until(lambda: any("keeper" in t and "left" in t for t in talk.daemon.titles().values()), LONGER, "a keeper")
    talk.titles()
    talk.journal()
    talk.xml("va.fsstatus")
    talk.xml("va.fsstatus", {}, parsed=True)
    talk.json("va.fsstatus", {"wait": 0}, parsed=True)
    talk.json("guest-fsfreeze-status")
    talk.xml("va.fsfreeze")
    talk.json("guest-fsfreeze-freeze")
    talk.json("guest-file-open", {"path": str(talk.note)})
    talk.json("guest-exec", {"path": "/bin/true"})
    talk.json("guest-get-host-name", {"x": 1})
    talk.xml("va.fssync")
    talk.xml("va.fshold", 1200)
    talk.xml("va.fshold", -1)
    talk.xml("va.fshold", 99999)
    talk.xml("va.getfile", "/nowhere")
    assert talk.xml("va.fsthaw") == 4
    nobody_works(talk)
    talk.xml("va.fsthaw")
    talk.xml("va.fsstatus", {}, parsed=True)
    until(lambda: len(talk.daemon.titles()) == 1, LONGER, "the supervisor alone")
    talk.titles()


def a_broken_one(talk: Conversation) -> None:
    some = [str(fs.path) for fs in talk.filesystems[:2]]
    assert talk.json("guest-fsfreeze-freeze-list", {"mountpoints": some})["return"] == 2
    (keeper,) = [pid for pid, title in talk.daemon.titles().items() if "keeper" in title]
    kill(keeper)
    talk.daemon.wait_state("THAWED")
    nobody_works(talk)
    talk.xml("va.fsstatus", {}, parsed=True)
    talk.xml("va.fsthaw")
    talk.xml("va.fsthaw")
    talk.json("guest-fsfreeze-thaw")


def a_cancelled_one(talk: Conversation) -> None:
    talk.stalling.fs.fill(1 << 20)
    talk.stalling.stall()
    freezing = talk.later("va.fsfreeze")
    states = ["synced", "synced", "synced", "syncing"]
    talk.daemon.wait_status(lambda r: sorted(m["state"] for m in r["mounts"] if m["state"] != "left-out") == states)
    talk.daemon.wait_status(lambda r: r["progress"]["dirty_bytes"] >= 0)
    talk.xml("va.fsstatus", {}, parsed=True)
    talk.title()
    thawing = talk.later("va.fsthaw")
    talk.reply("the freeze", freezing)
    talk.reply("its cancelling", thawing)
    until(lambda: "[thawed" in talk.shown(), LONGER, "the title of a thawed guest")
    talk.title()
    talk.stalling.release()
    nobody_works(talk)
    talk.xml("va.fsstatus", {}, parsed=True)
    talk.xml("va.fsthaw")


@pytest.mark.timeout(180)
def test_the_same_answers_as_were_recorded(rig: Rig) -> None:
    talk = Conversation(rig)
    about_the_agent(talk)
    what_is_malformed(talk)
    files_and_programs(talk)
    a_freeze(talk)
    a_broken_one(talk)
    a_cancelled_one(talk)
    talk.daemon.process.send_signal(signal.SIGTERM)
    talk.note_down("SIGTERM", talk.daemon.process.wait(LONGER))
    talk.log()
    if os.environ.get("VIRTAGENT_RECORD"):
        DATA.write_text(json.dumps(talk.said, indent=1, ensure_ascii=True) + "\n")
    recorded = json.loads(DATA.read_text())
    for said, before in zip(talk.said, recorded, strict=False):
        assert json.dumps(said, indent=1).splitlines() == json.dumps(before, indent=1).splitlines()
    assert len(talk.said) == len(recorded)
