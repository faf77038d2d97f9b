"""`python3 -m virtagent.kube`: snapshot, and freeze and thaw for those who take the snapshot themselves.

Exit codes are those of virtagentctl: 0 done, 1 refused or failed, 2 usage, 3 the API server was not reached,
5 broken: what was snapshotted is not known to be consistent, 6 thaw found nothing frozen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .api import KubeError, NoAnswer, Server
from .report import notes_of, report
from .shapes import is_name
from .transaction import Failed, Transaction, Wanted, labels

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DONE, FAILED, UNREACHED, BROKEN, NOTHING = 0, 1, 3, 5, 6
HOLD_MAX = 3600.0


class Stopped(Exception):
    """A signal has asked to end; what is frozen is thawed first."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    asked = parser()
    options = asked.parse_args(words)
    try:
        server, wanted = _server(options), _wanted(options)
    except ValueError as error:
        asked.error(str(error))
    work = Transaction(server, wanted)
    try:
        with _signals():
            try:
                if options.command == "thaw":
                    return _thaw(work, options.none_ok)
                return {"snapshot": _snapshot, "freeze": _freeze}[options.command](work)
            except Stopped:
                _deaf()
                work.thaw_once()  # a second signal may have come just where the thaw was to begin
                raise
    except (KubeError, Failed, Stopped) as error:
        print(f"virtagent.kube: {error}", file=sys.stderr)
        return UNREACHED if isinstance(error, NoAnswer) else FAILED


def _snapshot(work: Transaction) -> int:
    work.find()
    work.check()
    error = ""
    try:
        work.freeze()
        work.cut()
        work.held()
    except (KubeError, Failed, Stopped) as failed:
        error = str(failed)
    finally:
        _deaf()
        work.thaw()
    if not error:
        work.prove()
    return _tell(work, error)


def _freeze(work: Transaction) -> int:
    work.find()
    work.check()
    try:
        work.freeze()
    except BaseException:
        _deaf()
        work.thaw()
        raise
    count = len(work.done.guests)
    print(f"{count} guests are frozen, and thawed by KubeVirt after {work.wanted.hold:g} s", file=sys.stderr)
    return DONE


def _thaw(work: Transaction, none_ok: bool) -> int:
    guests = work.find()
    lost = [guest.name for guest in guests if not guest.frozen]
    work.begin_thaw()
    work.thaw()
    for name, why in work.done.not_thawed.items():
        print(f"virtagent.kube: guest {name!r} could not be told to thaw ({why})", file=sys.stderr)
    if work.done.not_thawed:
        return FAILED
    if len(lost) == len(guests) and none_ok:
        return DONE
    if len(lost) == len(guests):
        print("virtagent.kube: no guest was frozen; what was snapshotted is not consistent", file=sys.stderr)
        return NOTHING
    for name in lost:
        print(f"virtagent.kube: guest {name!r} was not frozen any more; the snapshot is broken", file=sys.stderr)
    return BROKEN if lost else DONE


def _tell(work: Transaction, error: str) -> int:
    found = report(work.wanted, work.done, error)
    found["not_annotated"] = work.annotate(notes_of(found))
    print(json.dumps(found, indent=1))
    for text in [error, *found["broken"], *found["not_annotated"]]:
        if text:
            print(f"virtagent.kube: {text}", file=sys.stderr)
    for name, why in found["not_thawed"].items():
        print(
            f"virtagent.kube: guest {name!r} could not be told to thaw ({why}); KubeVirt thaws it "
            f"{work.wanted.hold:g} s after it was frozen",
            file=sys.stderr,
        )
    if found["verdict"] == "broken":
        return BROKEN
    return FAILED if error or found["not_thawed"] or found["not_annotated"] else DONE


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Have SIGTERM and SIGINT end what is going on with Stopped."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped(f"{signal.Signals(number).name}; what was frozen is thawed")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deaf() -> None:
    """Let no second signal end the thaw; it ends by itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _server(options: argparse.Namespace) -> Server:
    if options.server:
        return Server(options.server, options.token_file, options.ca_file)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ValueError("this is no pod of a cluster; name the API server with --server")
    host = f"[{host}]" if ":" in host else host
    return Server(
        f"https://{host}:{port}", options.token_file or ACCOUNT / "token", options.ca_file or ACCOUNT / "ca.crt"
    )


def _wanted(options: argparse.Namespace) -> Wanted:
    given: dict[str, Any] = vars(options)
    namespace = given["namespace"]
    if not namespace:
        try:
            namespace = (ACCOUNT / "namespace").read_text(encoding="ascii").strip()
        except OSError:
            raise ValueError("name the namespace of the guests with --namespace") from None
    name = given.get("name") or time.strftime("virtagent-%Y%m%d-%H%M%S", time.gmtime())
    for what, text, most in (("namespace", namespace, 63), ("name", name, 200)):
        if not is_name(text) or len(text) > most or (what == "namespace" and "." in text):
            raise ValueError(f"--{what} {text!r} is no name of Kubernetes: a-z, 0-9, - and . only, {most} at most")
    if given.get("volumes"):
        labels(given["volumes"])
    known = {key: value for key, value in given.items() if key in Wanted.__dataclass_fields__}
    return Wanted(**known | {"namespace": namespace, "name": name})


def _seconds(text: str) -> float:
    found = float(text)
    if not 0 < found <= HOLD_MAX:
        raise ValueError
    return found


_seconds.__name__ = f"number of seconds up to {HOLD_MAX:g}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python3 -m virtagent.kube", description=__doc__.partition("\n")[0] if __doc__ else "", allow_abbrev=False
    )
    made.add_argument("--server", help="https://HOST:PORT of the API server (default: that of the pod's cluster)")
    made.add_argument("--token-file", type=Path, help="read for each request (default: that of the pod)")
    made.add_argument(
        "--ca-file", type=Path, help="certificates that the server's must come from (default: that of the pod)"
    )
    commands = made.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("snapshot", "freeze, snapshot, thaw; print a report"),
        ("freeze", "freeze and leave frozen until thaw, or until the hold has passed"),
        ("thaw", "thaw what freeze has frozen; ends with 5 if a guest was not frozen any more"),
    ):
        one = commands.add_parser(name, help=help_text, allow_abbrev=False)
        one.add_argument("--namespace", default="", help="of guests and snapshots (default: that of the pod)")
        one.add_argument("--selector", required=True, help="labels of the guests, as kubectl has them")
        if name == "thaw":
            one.add_argument("--none-ok", action="store_true", help="end with 0 if nothing was frozen")
        else:
            one.add_argument("--hold", type=_seconds, default=60.0, help="KubeVirt thaws after so long (60)")
            one.add_argument("--freeze-wait", type=_seconds, default=30.0, help="until all are frozen (30)")
        if name == "snapshot":
            one.add_argument("--name", default="", help="of the snapshots (default: virtagent- and the time)")
            one.add_argument(
                "--volumes", default="", help="KEY=VALUE,... that all volumes have: one VolumeGroupSnapshot"
            )
            one.add_argument("--group-version", default="v1", choices=["v1", "v1beta2", "v1beta1"])
            one.add_argument("--group-class", default="", help="VolumeGroupSnapshotClass (default: the cluster's)")
            one.add_argument("--snapshot-class", default="", help="VolumeSnapshotClass (default: the cluster's)")
            one.add_argument(
                "--max-skew", type=_seconds, default=1.0, help="between the storage's clock and this one (1)"
            )
            one.add_argument("--members-wait", type=_seconds, default=60.0, help="for the group's snapshots (60)")
    return made
