"""What is asked of qemu-ga and of ours alike, and where the answers are meant to differ: the table of docs/qga.md.

A step is a command with its arguments. `$handle` and `$pid` stand for what that agent answered before; `blank` names
members whose values must differ (counters, times), of which only the type is compared; `sort` is the member by which a
list is put in order before. `why` says why the answers differ; without it they must be the same, with it they must
not; it holds for qemu-ga `since` a version, and only `before` another. `maybe` says where they differ on some machines;
that is taken out before.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

B64 = base64.b64encode(bytes(range(256)) * 3).decode()
MERGED = "QEMU 7.2 knows only true and false; the modes came with QEMU 8.1"
PID = "qemu-ga prints its format, `PID ld does not exist`, instead of the number"
READABLE = "ours tells it while frozen: it only reads /proc and /sys"


@dataclass(frozen=True)
class Step:
    """One request to both."""

    command: str
    arguments: dict[str, Any] | None = None
    blank: frozenset[str] = frozenset()
    sort: str = ""
    why: str = ""
    since: tuple[int, int] = (0, 0)
    before: tuple[int, int] = (99, 0)
    maybe: str = ""
    until: str = ""
    """Ask again until this member of the answer is true."""

    def differs(self, version: tuple[int, int]) -> str:
        """Return why the answer of that qemu-ga differs, "" if it must not."""
        return self.why if self.since <= version < self.before else ""


def step(command: str, arguments: dict[str, Any] | None = None, blank: str = "", **more: Any) -> Step:
    return Step(f"guest-{command}", arguments, frozenset(blank.split()), **more)


COUNTERS = "user nice system idle iowait irq softirq steal guest guestnice"
DISK_COUNTERS = (
    "read-sectors write-sectors discard-sectors read-ios read-merges write-ios write-merges discard-ios discard-merges "
    "flush-ios read-ticks write-ticks discard-ticks flush-ticks ios-pgr total-ticks weight-ticks"
)
NET_COUNTERS = "rx-bytes rx-packets rx-errs rx-dropped tx-bytes tx-packets tx-errs tx-dropped"

SCRIPTS: dict[str, tuple[Step, ...]] = {
    "about the agent": (
        step("ping"),
        step("ping", {}),
        step("ping", {"x": 1}),
        step("sync", {"id": 1234567}),
        step("sync", {"id": -(2**63)}),
        step("sync", {"id": 2**64 - 1}),
        step("sync", {"id": "1"}),
        step("sync", {"id": 1.0}),
        step("sync", {}),
        step("sync"),
        step("sync", {"id": 1, "x": 2}),
        step("sync-delimited", {"id": 7}),
        step("sync-delimited", {"id": None}),
        step(
            "info",
            why="in another order, and with our own va.* methods; guest-get-devices of QEMU 7.2 is for Windows",
        ),
        step("info", {"unknown": 1}),
        step("nope"),
        step("", {}),
    ),
    "the system": (
        step("get-time", blank=""),
        step("get-time", {"unknown": 1}),
        step("get-host-name"),
        step("get-timezone"),
        step("get-osinfo"),
        step("get-users", sort="user"),
        step("get-load"),
        step("get-cpustats", blank=COUNTERS, sort="cpu"),
        step("get-vcpus", sort="logical-id"),
        step("get-memory-blocks", sort="phys-index"),
        step("get-memory-block-info"),
        step(
            "network-get-interfaces",
            blank=NET_COUNTERS,
            sort="name",
            maybe="ours has statistics of interfaces that have no address, too",
        ),
        step(
            "network-get-route",
            maybe="flags and metric of IPv6, which qemu-ga sign-extends, are not compared",
        ),
        step("get-disks", sort="name"),
        step("get-diskstats", blank=DISK_COUNTERS, sort="name"),
        step("get-fsinfo", blank="used-bytes", sort="mountpoint"),
    ),
    "the machine": (
        step("set-time", {"time": -1}),
        step("set-time", {"time": "now"}),
        step("set-vcpus", {"vcpus": []}),
        step("set-vcpus", {"vcpus": [{"logical-id": 0, "online": True}]}),
        step("set-vcpus", {"vcpus": [{"logical-id": 99999, "online": True}]}),
        step("set-vcpus", {"vcpus": [{"logical-id": "a"}]}),
        step("set-vcpus", {"vcpus": [{"logical-id": 1}]}),
        step("set-vcpus", {"vcpus": [1]}),
        step("set-vcpus", {}),
        step("set-memory-blocks", {"mem-blks": []}),
        step("set-memory-blocks", {"mem-blks": [{"phys-index": 0, "online": True}]}),
        step("set-memory-blocks", {"mem-blks": [{"phys-index": 999999, "online": True}]}),
        step("set-memory-blocks", {}),
        step("fstrim", {"minimum": 1 << 60}, blank="trimmed", sort="path"),
        step("fstrim", {"minimum": "1"}),
        step("shutdown", {"mode": "sleep"}),
        step("shutdown", {"unknown": 1}),
        step("suspend-disk", {"unknown": 1}),
        step("suspend-ram", {"unknown": 1}),
        step("suspend-hybrid", {"unknown": 1}),
    ),
    "users": (
        step("set-user-password", {"username": "no-such-user", "password": "!", "crypted": False}),
        step("set-user-password", {"username": "no-such-user", "password": "YTpiCg==", "crypted": False}),
        step("set-user-password", {"username": "no-such-user:", "password": "eA==", "crypted": False}),
        step(
            "set-user-password",
            {"username": "no-such-user", "password": "eA==", "crypted": False},
            why="ours adds what chpasswd said",
        ),
        step("set-user-password", {}),
        step("ssh-get-authorized-keys", {"username": "no-such-user"}),
        step("ssh-get-authorized-keys", {}),
        step("ssh-add-authorized-keys", {"username": "no-such-user", "keys": ["ssh-ed25519 AAAA x"]}),
        step("ssh-add-authorized-keys", {"username": "no-such-user", "keys": ["# no key"]}),
        step("ssh-add-authorized-keys", {"username": "no-such-user"}),
        step("ssh-remove-authorized-keys", {"username": "no-such-user", "keys": []}),
        step("ssh-remove-authorized-keys", {"username": "no-such-user", "keys": [1]}),
    ),
    "a file written and read": (
        step("file-open", {"path": "$folder/a", "mode": "w+"}),
        step("file-write", {"handle": "$handle", "buf-b64": B64}),
        step("file-write", {"handle": "$handle", "buf-b64": B64, "count": 10}),
        step("file-write", {"handle": "$handle", "buf-b64": B64, "count": 100000}),
        step("file-write", {"handle": "$handle", "buf-b64": "!"}),
        step("file-flush", {"handle": "$handle"}),
        step("file-seek", {"handle": "$handle", "offset": 0, "whence": "set"}),
        step("file-read", {"handle": "$handle", "count": 1000}),
        step("file-read", {"handle": "$handle"}),
        step("file-seek", {"handle": "$handle", "offset": -5, "whence": "end"}),
        step("file-read", {"handle": "$handle", "count": 5}),
        step("file-read", {"handle": "$handle", "count": 5}),
        step("file-seek", {"handle": "$handle", "offset": 3, "whence": 0}),
        step("file-seek", {"handle": "$handle", "offset": 3, "whence": 1}),
        step("file-seek", {"handle": "$handle", "offset": -1, "whence": "set"}),
        step("file-seek", {"handle": "$handle", "offset": 0, "whence": 7}),
        step("file-seek", {"handle": "$handle", "offset": 0, "whence": "there"}),
        step("file-seek", {"handle": "$handle", "offset": 0, "whence": 1.0}),
        step("file-seek", {"handle": "$handle", "offset": 0}),
        step("file-read", {"handle": "$handle", "count": -1}),
        step("file-read", {"handle": "$handle", "count": 48 << 20}),
        step("file-read", {"handle": "$handle", "count": (48 << 20) + 1}),
        step("file-read", {"handle": "$handle", "count": 0}),
        step("file-close", {"handle": "$handle"}),
        step("file-close", {"handle": "$handle"}),
    ),
    "a file read only": (
        step("file-open", {"path": "$folder/a", "mode": "w"}),
        step("file-close", {"handle": "$handle"}),
        step("file-open", {"path": "$folder/a"}),
        step("file-write", {"handle": "$handle", "buf-b64": "eA=="}),
        step("file-close", {"handle": "$handle"}),
    ),
    "files that are refused": (
        step("file-open", {"path": "$folder/none"}),
        step("file-open", {"path": "$folder/none/b", "mode": "w"}),
        step("file-open", {"path": "$folder", "mode": "w"}),
        step("file-open", {"path": "$folder/a", "mode": "x"}),
        step("file-open", {"path": "$folder/a", "mode": ""}),
        step("file-open", {}),
        step("file-read", {"handle": 1}),
        step("file-write", {"handle": 1, "buf-b64": ""}),
        step("file-flush", {"handle": 1}),
        step("file-seek", {"handle": 1, "offset": 0, "whence": 0}),
        step("file-flush", {"handle": "x"}),
    ),
    "programs": (
        step("exec", {"path": "/bin/true"}, blank="pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec-status", {"pid": "$pid"}, why=PID, since=(10, 0)),
        step("exec", {"path": "sh", "arg": ["-c", "echo out; echo err >&2; exit 3"], "capture-output": True}, "pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec", {"path": "sh", "arg": ["-c", "kill -9 $$"], "capture-output": True}, "pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec", {"path": "/bin/cat", "input-data": B64, "capture-output": True}, "pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec", {"path": "/usr/bin/env", "env": ["A=1", "B=two words"], "capture-output": True}, "pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec", {"path": "/bin/echo", "arg": ["$HOME;", "*"], "capture-output": True}, "pid"),
        step("exec-status", {"pid": "$pid"}, until="exited"),
        step("exec", {"path": "/nonexistent"}),
        step("exec", {"path": "no-such-program"}),
        step("exec", {"path": "/etc/passwd"}),
        step("exec", {"path": "/bin/true", "input-data": "!"}),
        step("exec", {"path": "/bin/true", "arg": "x"}),
        step("exec", {"path": "/bin/true", "capture-output": "merged"}, "pid", why=MERGED, before=(8, 1)),
        step("exec-status", {"pid": 1}, why=PID, since=(10, 0)),
        step("exec-status", {"pid": "x"}),
    ),
    "frozen": (
        step("fsfreeze-status"),
        step("fsfreeze-thaw"),
        step("fsfreeze-freeze-list", {"mountpoints": []}),
        step("fsfreeze-freeze-list", {"mountpoints": ["/no/such/mount"]}),
        step("fsfreeze-freeze-list", {"mountpoints": [1]}),
        step("fsfreeze-status"),
        step("fsfreeze-freeze", {"unknown": 1}),
        step("fsfreeze-freeze-list", {"mountpoints": ["$folder", "/no/such/mount"]}),
        step("fsfreeze-status"),
        step("fsfreeze-freeze-list", {"mountpoints": ["$folder"]}),
        step("ping"),
        step("sync", {"id": 3}),
        step("exec", {"path": "/bin/true"}),
        step("file-open", {"path": "$folder/a"}),
        step("file-close", {"handle": 1}),
        step("set-user-password", {"username": "no-such-user", "password": "eA==", "crypted": False}),
        step("fstrim", {"minimum": 1 << 60}),
        step("get-vcpus", why=READABLE),
        step("get-time", why=READABLE),
        step("fsfreeze-thaw"),
        step("fsfreeze-thaw"),
        step("fsfreeze-status"),
    ),
}

NOT_SENT = {
    "guest-fsfreeze-freeze": "freezes all; sent to qemu-ga only as freeze-list with the test's own mount points",
    "guest-shutdown": "success not compared here",
    "guest-suspend-disk": "success not compared here",
    "guest-suspend-ram": "success not compared here",
    "guest-suspend-hybrid": "success not compared here",
    "guest-set-time": "success not compared here",
    "guest-set-user-password": "success not compared here",
}
"""What cannot be compared where qemu-ga would do it to this machine."""

TWICE = "qemu-ga reports the rest of the same garbage once more"
SYNC = "a sync gives up on what is still being done; qemu-ga does not look at it before all older ones are done"
DEPTH = "the limit is 64, not 1024 (option max-nesting), and the rest of the message is not reported again"
WIRE: tuple[tuple[bytes, str], ...] = (
    (b"\xff", ""),
    (b'{"exe\xff', ""),
    (b'{"execute":"guest-ping"\xff', ""),
    (b"[1]\n", ""),
    (b'"str"\n', ""),
    (b"1\n", ""),
    (b"null\n", ""),
    (b"}\n", ""),
    (b"]\n", ""),
    (b'{"execute":"guest-ping"}}{"execute":"guest-ping"}\n', ""),
    (b"{]\n", ""),
    (b'{"a"}\n', ""),
    (b'{"a" 1}\n', ""),
    (b"{1:2}\n", ""),
    (b"{'execute':'guest-ping'}", ""),
    (b"{'execute':'it\\'s'}", ""),
    (b'{"execute":"guest-ping","id":null}', ""),
    (b'{"execute":"guest-ping","id":{"a":[1,2.5,"\\u00e9x"]}}', ""),
    (b'{"execute":"guest-ping","id":18446744073709551615}', ""),
    (b'{"execute":"guest-ping","id":18446744073709551616}', ""),
    (b'{"execute":"guest-ping","id":"/\\"\\\\\\b\\f\\n\\r\\t\\u0000\\ud83d\\ude00"}', ""),
    (b'{"execute":"guest-ping","execute":"guest-ping"}', ""),
    (b"{}", ""),
    (b'{"execute":1}', ""),
    (b'{"execute":"guest-ping","arguments":[]}', ""),
    (b'{"execute":"guest-ping","arguments":null}', ""),
    (b'{"execute":"guest-ping","foo":1}', ""),
    (b'{"execute":"nope","foo":5}', ""),
    (b'{"exec-oob":"guest-ping"}', ""),
    (b'{"id":1}', ""),
    (b'{"id":1,"execute":[]}', ""),
    (b'{"execute":"nope","id":[1]}', ""),
    (b'{"execute":"guest-\xc3\xa9"}', ""),
    (b'{"execute":"guest-\xc3"}', ""),
    (b'{"execute":"guest-\\ud83d\\ude00"}', ""),
    (b'{"execute":"\\q"}', ""),
    (b'{"execute":"x","id":nul}', ""),
    (b'{"execute":"x",}', ""),
    (b"{,}", ""),
    (b"[1,]", ""),
    (b"[1 2]", ""),
    (b'{"execute":"guest-ping" "id":1}', ""),
    (b'{execute:"guest-ping"}', ""),
    (b'{"execute":"guest-ping"]', ""),
    (b'{"execute":"x","id":truex}', ""),
    (b'{"execute":"x","id":"\\u12"}', ""),
    (b'{"execute":"\\uD800"}', ""),
    (b'{"execute":"guest-ping","id":-9223372036854775809}', ""),
    (b'{"execute":"x","id":-}', ""),
    (b'{"execute":"x","id":1.}', ""),
    (b"foo bar\n", ""),
    (b"@\n", ""),
    (b"GET / HTTP/1.1\r\n\r\n", ""),
    (b'{"execute":"guest-ping"}{"execute":"guest-get-host-name"}{"execute":"guest-ping"}', SYNC),
    (b"foo\n", ""),
    (b"\x00", "the byte stands in the error's text"),
    (b'{"execute":"guest-p\x01ing"}', ""),
    (b'{"execute":"x","id":01}', TWICE),
    (b'{"execute":"x","id":.5}', TWICE),
    (b'{"execute":"x","id":+1}', TWICE),
    (b'{"execute":"x","id":NaN}', ""),
    (b'{"execute":"guest-ping","id":1e400}', "QEMU 7.2 echoes inf, which is no JSON"),
    (b'{"execute":"guest-\\ud800"}', ""),
    (b'{"execute":"guest-\xc0\x80"}', "an overlong NUL is no UTF-8 to us"),
    (b'{"a":[1,2}]}\n', "told at the bracket that does not match, not at the end"),
    (b'{"execute":"guest-ping","id":' + b"[" * 70 + b"]" * 70 + b"}", DEPTH),
)
