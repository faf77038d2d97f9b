"""An API server of Kubernetes with KubeVirt and a snapshot controller, as far as virtagent.kube asks them.

Paths, verbs, bodies and the shapes of what it answers are those that are published: kubevirt.io/v1
VirtualMachineInstance and its subresources freeze (FreezeUnfreezeTimeout) and unfreeze, PersistentVolumeClaim of v1,
VolumeSnapshot of snapshot.storage.k8s.io/v1, VolumeGroupSnapshot of groupsnapshot.storage.k8s.io/v1, and Status for
errors. Anything else is answered with 404 or 400, as a real one does. A guest thaws
by itself after its unfreezeTimeout, unless `lazy` says that only an unfreeze thaws it.
"""

from __future__ import annotations

import datetime
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[["Handler"], None]
TOKEN = "secret"
GROUP, SNAPSHOT = "groupsnapshot.storage.k8s.io", "snapshot.storage.k8s.io"


@dataclass
class Machine:
    """One VirtualMachineInstance; `until` is when it is thawed by itself, 0 while it is not frozen."""

    name: str
    claims: tuple[str, ...]
    labels: dict[str, str]
    uid: str
    until: float = 0.0
    phase: str = "Running"
    agent: bool = True
    freezes: int = 0
    longest: float = 0.0

    @property
    def frozen(self) -> bool:
        return time.monotonic() < self.until

    def shape(self) -> dict[str, Any]:
        named = [{"persistentVolumeClaim": {"claimName": claim}} for claim in self.claims]
        named[0] = {"dataVolume": {"name": self.claims[0]}}
        volumes = [{"name": f"disk{n}", **one} for n, one in enumerate(named)]
        status: dict[str, Any] = {
            "phase": self.phase,
            "nodeName": "node1",
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "AgentConnected", "status": "True" if self.agent else "False"},
            ],
        }
        if self.frozen:
            status["fsFreezeStatus"] = "frozen"
        return {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": self.name, "namespace": "shop", "uid": self.uid, "labels": self.labels},
            "spec": {"volumes": [*volumes, {"name": "init", "cloudInitNoCloud": {"userData": "x"}}]},
            "status": status,
        }


@dataclass
class Cluster:
    """What there is, and what goes wrong: `faults` maps "METHOD pattern-of-the-path" to what is done instead."""

    machines: dict[str, Machine] = field(default_factory=dict)
    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    rights: set[tuple[str, str, str]] = field(default_factory=set)
    token: str = TOKEN
    page: int = 2
    cut_offset: float = 0.0
    lazy: bool = False
    error: str = ""
    """The snapshot controller's error: no snapshot is taken while it is there."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    gate: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, *claims: str, group: str = "shop") -> Machine:
        machine = Machine(name, claims or (f"{name}-root",), {"app": "shop"}, f"uid-{name}")
        self.machines[name] = machine
        for claim in machine.claims:
            self.claims[claim] = {"group": group}
        return machine

    def cut(self, source: dict[str, Any], name: str, kind: str, content: str) -> dict[str, Any]:
        """Return the status that a snapshot gets; the machines' state is what it would contain."""
        if self.error:
            return {"readyToUse": False, "error": {"message": self.error, "time": now(0)}}
        return {content: f"content-{name}", "creationTime": now(self.cut_offset), "readyToUse": False}


def now(offset: float) -> str:
    """Return the time as metav1.Time is written: in whole seconds."""
    at = datetime.datetime.fromtimestamp(time.time() + offset, datetime.timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_PATCH = do_GET

    def _serve(self) -> None:
        cluster: Cluster = self.server.cluster
        path = urllib.parse.urlsplit(self.path).path
        with cluster.lock:
            cluster.seen.append(f"{self.command} {path}")
        for pattern, fault in list(cluster.faults.items()):
            method, _, where = pattern.partition(" ")
            if method == self.command and re.search(where, path):
                fault(self)
                return
        if self.headers.get("Authorization") != f"Bearer {cluster.token}":
            self.refuse(401, "Unauthorized")
            return
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        with cluster.lock:
            self._route(cluster, path, body)

    def _route(self, cluster: Cluster, path: str, body: Any) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "v1"]:
            group, rest = "", parts[2:]
        elif parts[0] == "apis":
            group, rest = parts[1], parts[3:]
            if parts[2] != "v1":
                self.refuse(404, "the server could not find the requested resource")
                return
        else:
            self.refuse(404, "page not found")
            return
        if rest[:2] != ["namespaces", "shop"]:
            self.refuse(404, "namespace not found")
            return
        kind, name, sub = [*rest[2:], "", "", ""][:3]
        verb = {"GET": "get" if name else "list", "PUT": "update", "POST": "create", "PATCH": "patch"}[self.command]
        cluster.rights.add((group, f"{kind}/{sub}" if sub else kind, verb))
        tables: dict[tuple[str, str], dict[str, Any]] = {
            ("kubevirt.io", "virtualmachineinstances"): {n: m.shape() for n, m in cluster.machines.items()},
            ("", "persistentvolumeclaims"): {
                n: {"metadata": {"name": n, "labels": labels}, "spec": {}} for n, labels in cluster.claims.items()
            },
            (SNAPSHOT, "volumesnapshots"): cluster.snapshots,
            (GROUP, "volumegroupsnapshots"): cluster.groups,
        }
        if group == "subresources.kubevirt.io" and kind == "virtualmachineinstances" and verb == "update":
            self._subresource(cluster, name, sub, body)
        elif (group, kind) not in tables:
            self.refuse(404, "the server could not find the requested resource")
        elif verb == "list":
            self._list(cluster, tables[group, kind], query)
        elif verb == "create":
            self._create(cluster, tables[group, kind], group, kind, body)
        elif name not in tables[group, kind]:
            self.refuse(404, f'{kind} "{name}" not found')
        elif verb == "get":
            self.answer(200, tables[group, kind][name])
        elif verb == "patch" and self.headers.get("Content-Type") == "application/merge-patch+json":
            metadata = tables[group, kind][name]["metadata"]
            metadata["annotations"] = metadata.get("annotations", {}) | body["metadata"]["annotations"]
            self.answer(200, tables[group, kind][name])
        else:
            self.refuse(415, "unsupported media type")

    def _subresource(self, cluster: Cluster, name: str, sub: str, body: Any) -> None:
        machine = cluster.machines.get(name)
        if machine is None:
            self.refuse(404, f'virtualmachineinstance.kubevirt.io "{name}" not found')
        elif sub == "freeze":
            found = re.fullmatch(r"(\d+(?:\.\d+)?)s", (body or {}).get("unfreezeTimeout", ""))
            if not found:
                self.refuse(400, "Can not unmarshal Request body to struct, error: time: invalid duration")
                return
            machine.freezes += 1
            machine.longest = max(machine.longest, float(found[1]))
            machine.until = time.monotonic() + (3600 if cluster.lazy else float(found[1]))
            self.answer(202, None)
        elif sub == "unfreeze":
            machine.until = 0.0
            self.answer(202, None)
        else:
            self.refuse(404, "the server could not find the requested resource")

    def _list(self, cluster: Cluster, table: dict[str, Any], query: dict[str, str]) -> None:
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        found = [one for one in table.values() if wanted.items() <= (one["metadata"].get("labels") or {}).items()]
        start = int(query.get("continue") or 0)
        end = start + min(int(query["limit"]), cluster.page)
        metadata = {"resourceVersion": "1"} | ({"continue": str(end)} if end < len(found) else {})
        self.answer(200, {"kind": "List", "metadata": metadata, "items": found[start:end]})

    def _create(self, cluster: Cluster, table: dict[str, Any], group: str, kind: str, body: Any) -> None:
        name = body["metadata"]["name"]
        if name in table:
            self.refuse(409, f'{kind} "{name}" already exists')
            return
        if body["apiVersion"] != f"{group}/v1" or body["kind"].lower() + "s" != kind:
            self.refuse(400, f"the API version in the data ({body['apiVersion']}) does not match")
            return
        made = body | {"metadata": body["metadata"] | {"uid": f"uid-{name}"}}
        table[name] = made
        if kind == "volumesnapshots":
            claim = body["spec"]["source"]["persistentVolumeClaimName"]
            made["status"] = cluster.cut({}, name, kind, "boundVolumeSnapshotContentName")
            assert claim in cluster.claims
        else:
            labels = body["spec"]["source"]["selector"]["matchLabels"]
            made["status"] = cluster.cut({}, name, kind, "boundVolumeGroupSnapshotContentName")
            for claim, has in cluster.claims.items():
                if labels.items() <= has.items():
                    member = f"snapshot-{claim}"
                    owner = {"apiVersion": f"{GROUP}/v1", "kind": "VolumeGroupSnapshot", "name": name}
                    owner["uid"] = f"uid-{name}"
                    cluster.snapshots[member] = {
                        "metadata": {
                            "name": member,
                            "uid": f"uid-{member}",
                            "ownerReferences": [owner | {"uid": f"uid-{name}"}],
                        },
                        "spec": {"source": {"persistentVolumeClaimName": claim}},
                        "status": made["status"],
                    }
        self.answer(201, made)

    def answer(self, status: int, body: Any) -> None:
        """Answer with JSON."""
        self.raw(status, b"" if body is None else json.dumps(body).encode())

    def raw(self, status: int, data: bytes) -> None:
        """Answer with these bytes."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def refuse(self, status: int, message: str) -> None:
        """Answer with a Status object."""
        reason = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists"}.get(status, "")
        found = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
        found["reason"] = reason
        self.answer(status, found)


class ApiServer:
    """The server on loopback; with `certificate` it speaks TLS."""

    def __init__(self, cluster: Cluster, certificate: Path | None = None) -> None:
        self.cluster = cluster
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.cluster = cluster  # type: ignore[attr-defined]
        self._server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # a client that left
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what hangs, and the server."""
        self.cluster.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
