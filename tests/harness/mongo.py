"""A made-up mongod whose state is a file, and a stand-in for mongosh that asks it: Debian has neither.

Both are written from what MongoDB publishes: the commands fsync, fsyncUnlock, currentOp, hello, buildInfo and
getCmdLineOpts, the wire protocol (OP_MSG, OP_QUERY for the first hello), and what mongosh 2 prints if its standard
input is a pipe. `python -m harness.mongo shell FOLDER ...` is the stand-in, `python -m harness.mongo server FOLDER
SOCKET` the server for a real mongosh, which needs the package bson (of pymongo).
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import re
import socketserver
import struct
import sys
from pathlib import Path
from typing import Any

HELLO = {
    "isWritablePrimary": True,
    "ismaster": True,
    "helloOk": True,
    "readOnly": False,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48000000,
    "maxWriteBatchSize": 100000,
    "lastWrite": {"opTime": {"ts": {"$timestamp": {"t": 1764266000, "i": 3}}}},
}
OP_QUERY, OP_REPLY, OP_MSG = 2004, 1, 2013
_HEADER = struct.Struct("<iiii")


class Mongod:
    """The state: how often it is locked, what it was asked, and what it is to refuse or not to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "state"

    def make(self, **changed: Any) -> None:
        self.write({"locks": 0, "asked": [], "refuses": {}, "hangs": "", "hello": {}} | changed)

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found

    def write(self, state: dict[str, Any]) -> None:
        fresh = self._file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(state))
        fresh.rename(self._file)  # who reads it meanwhile finds it whole

    def change(self, **changed: Any) -> None:
        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.write(self.read() | changed)

    @property
    def locks(self) -> int:
        return int(self.read()["locks"])

    @property
    def asked(self) -> list[str]:
        return list(self.read()["asked"])

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return what a mongod answers to an administrative command."""
        name = next(iter(command))
        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            if name in ("fsync", "fsyncUnlock"):
                state["asked"].append(name)
            found = self._do(name, state)
            self.write(state)
        if name == state["hangs"]:
            sys.stdin.read() if sys.argv[1] == "shell" else None
        return found

    def _do(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        if name in state["refuses"]:
            return {"ok": 0, "errmsg": state["refuses"][name], "code": 13}
        if name == "fsync":
            state["locks"] += 1
            return {"info": "now locked against writes", "lockCount": state["locks"], "ok": 1}
        if name == "fsyncUnlock":
            if not state["locks"]:
                return {"ok": 0, "errmsg": "fsyncUnlock called when not locked", "code": 125}
            state["locks"] -= 1
            return {"info": "fsyncUnlock completed", "lockCount": state["locks"], "ok": 1}
        known = {
            "hello": HELLO | state["hello"],
            "buildInfo": {"version": "7.0.14"},
            "getCmdLineOpts": {"parsed": {"storage": {"dbPath": "/srv/mongo"}}},
            "currentOp": {"inprog": [], "fsyncLock": state["locks"] > 0},
        }
        return known.get("hello" if name.lower() == "ismaster" else name, {}) | {"ok": 1}


def shell(mongod: Mongod) -> None:
    """Be mongosh with a pipe as its standard input: a prompt before each answer, an empty line after it."""
    for line in sys.stdin:
        if found := re.fullmatch(r'print\("(va-\d+)"\)\n', line):
            print(f"admin> {found[1]}\n", flush=True)
        elif found := re.search(r"EJSON\.stringify\(db\.adminCommand\((\{.*\})\)\)\) } catch", line):
            answer = mongod.answer(json.loads(found[1]))
            said = f"va-json {json.dumps(answer)}" if answer["ok"] else f"va-error {json.dumps(answer['errmsg'])}"
            print(f"admin> {said}\n", flush=True)
        elif found := re.search(r'"va-json " \+ load\((".*")\)\)', line):
            text = Path(json.loads(found[1])).read_text()
            said = "json true" if "auth" in text else f"error {json.dumps('x is not defined')}"
            print(f"admin> va-{said}\n", flush=True)
        else:
            print("admin> Uncaught SyntaxError: Unexpected token (1:0)\n", flush=True)


def serve(mongod: Mongod, where: str) -> None:
    """Be mongod on a unix socket, for a real mongosh."""
    bson = importlib.import_module("bson")

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while len(head := self.rfile.read(_HEADER.size)) == _HEADER.size:
                size, request, _, kind = _HEADER.unpack(head)
                body = self.rfile.read(size - _HEADER.size)
                at = body.index(b"\0", 4) + 9 if kind == OP_QUERY else 5
                (length,) = struct.unpack_from("<i", body, at)
                found = bson.encode(mongod.answer(bson.decode(body[at : at + length])))
                start = struct.pack("<iqii", 8, 0, 0, 1) if kind == OP_QUERY else struct.pack("<iB", 0, 0)
                reply = OP_REPLY if kind == OP_QUERY else OP_MSG
                size = _HEADER.size + len(start) + len(found)
                self.wfile.write(_HEADER.pack(size, 1, request, reply) + start + found)

    with socketserver.ThreadingUnixStreamServer(where, Session) as server:
        server.daemon_threads = True
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "shell":
        shell(Mongod(Path(sys.argv[2])))
    else:
        serve(Mongod(Path(sys.argv[2])), sys.argv[3])
