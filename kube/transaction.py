"""All guests frozen, one snapshot of their volumes, all unfrozen: whatever the API does, nothing is held for longer.

Each freeze is asked with an unfreezeTimeout, after which KubeVirt itself unfreezes the guest; an agent of ours in the
guest has a limit besides (guest-hold-limit). What is asked here ends a moment before that.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from . import shapes
from .api import REQUEST_SECONDS, KubeError, NoAnswer, Refused, Server, listed, request, together
from .shapes import Guest, Snapshot

T = TypeVar("T")

KUBEVIRT = "/apis/kubevirt.io/v1"
SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
SNAPSHOTS = "snapshot.storage.k8s.io/v1"
LOOK_SECONDS = 0.5  # between two looks at what is waited for
_NAMED = 3


class Failed(Exception):
    """No snapshot to be trusted; one sentence says why."""


class Broken(Failed):
    """A snapshot was taken and is not known to be consistent."""


@dataclass(slots=True)
class Wanted:
    """What is to be done. Times are in seconds; `volumes` is the label selector of a group snapshot, "" for none."""

    namespace: str
    selector: str
    name: str
    hold: float = 60.0
    freeze_wait: float = 30.0
    max_skew: float = 1.0
    volumes: str = ""
    group_version: str = "v1"
    group_class: str = ""
    snapshot_class: str = ""
    members_wait: float = 60.0


@dataclass(slots=True)
class Done:
    """How far it came. Instants are of time.time(), 0 before they were."""

    guests: list[Guest] = field(default_factory=list)
    asked_at: float = 0.0
    first_frozen: float = 0.0
    last_frozen: float = 0.0
    cut_asked: float = 0.0
    cut_seen: float = 0.0
    thaw_asked: float = 0.0
    snapshots: list[Snapshot] = field(default_factory=list)
    groups: list[Snapshot] = field(default_factory=list)
    not_thawed: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Transaction:
    """One consistent snapshot, step by step; `done` tells how far it came. `thaw` may be called at any time."""

    def __init__(self, server: Server, wanted: Wanted) -> None:
        self._server, self.wanted, self.done = server, wanted, Done()
        self._until = math.inf
        self._never = threading.Event()
        self._thawed = False

    @property
    def _thaw_seconds(self) -> float:
        return min(10.0, self.wanted.hold / 4)

    # -- before the freeze

    def find(self) -> list[Guest]:
        """Find the guests. Raises Failed if there is none; KubeError."""
        self.done.guests = guests = self._guests()
        if not guests:
            raise Failed(f"no guest in namespace {self.wanted.namespace!r} has the labels {self.wanted.selector!r}")
        return guests

    def check(self) -> None:
        """Check that all can be frozen, and that the snapshots will have all volumes. Raises Failed or KubeError."""
        guests, wanted = self.done.guests, self.wanted
        for guest in guests:
            if guest.trouble:
                raise Failed(f"guest {guest.name!r} cannot be frozen: {guest.trouble}; nothing was frozen")
        if frozen := [guest.name for guest in guests if guest.frozen]:
            raise Failed(f"{_few(frozen)} is frozen already, by somebody else; nothing was done")
        if bare := [guest.name for guest in guests if not guest.claims]:
            raise Failed(f"{_few(bare)} has no volume of which a snapshot could be taken; nothing was frozen")
        if not wanted.volumes:
            return
        path = f"/api/v1/namespaces/{wanted.namespace}/persistentvolumeclaims"
        found = self._within(
            REQUEST_SECONDS * 3, lambda: {shapes.claim_name(one) for one in listed(self._server, path, wanted.volumes)}
        )
        used = self._claims()
        if missing := sorted(used - found):
            raise Failed(f"{_few(missing)} has not the labels {wanted.volumes!r}: label each volume of the guests")
        if more := sorted(found - used):
            raise Failed(f"{_few(more)} has the labels {wanted.volumes!r} and is no volume of these guests: unlabel it")

    # -- frozen

    def freeze(self) -> None:
        """Freeze all, and wait until KubeVirt says of each that it is. Raises Failed or KubeError; then call `thaw`."""
        names = [guest.name for guest in self.done.guests]
        wait = min(self.wanted.freeze_wait, self.wanted.hold - self._thaw_seconds)
        body = {"unfreezeTimeout": f"{self.wanted.hold:g}s"}
        self.done.asked_at, began = time.time(), time.monotonic()
        self._until = began + self.wanted.hold
        asked = together({name: self._put(name, "freeze", body, wait) for name in names}, wait)
        _raise_first(asked, "freeze")
        self._wait(began + wait, self._all_frozen, "say of {} that it is frozen")

    def cut(self) -> None:
        """Take the snapshots; wait until each has its creationTime. Raises Failed or KubeError; then call `thaw`."""
        wanted, done = self.wanted, self.done
        until = self._until - self._thaw_seconds
        done.cut_asked = time.time()
        if wanted.volumes:
            source: dict[str, Any] = {"selector": {"matchLabels": labels(wanted.volumes)}}
            spec = {"source": source} | _named("volumeGroupSnapshotClassName", wanted.group_class)
            made = {wanted.name: self._create(self._groups_api, "VolumeGroupSnapshot", wanted.name, spec)}
        else:
            made = {}
            for claim in sorted(self._claims()):
                spec = {"source": {"persistentVolumeClaimName": claim}}
                spec |= _named("volumeSnapshotClassName", wanted.snapshot_class)
                name = snapshot_name(wanted.name, claim)
                made[name] = self._create(SNAPSHOTS, "VolumeSnapshot", name, spec)
        # From now on there may be snapshots, whatever the answer: they are told apart by their annotation.
        found = {name: Snapshot(name, "", None, "", "", "") for name in made}
        kept = done.groups if wanted.volumes else done.snapshots
        kept.extend(found.values())
        created = together(made, max(0.0, until - time.monotonic()))
        refused = {name for name, said in created.items() if isinstance(said, Refused) and 408 != said.status < 500}
        kept[:] = [one for one in kept if one.name not in refused]
        _raise_first(created, "take the snapshot", "the API")
        waiting = set(made)

        def cut_taken() -> str:
            for name, one in self._look(waiting, self._snapshot).items():
                found[name] = one
                if one.cut is not None:
                    waiting.discard(name)
            if not waiting:
                return ""
            name = min(waiting)
            return f"{name!r}" + (f" (it says: {found[name].error})" if found[name].error else "")

        self._wait(until, cut_taken, "take the snapshot {}")
        done.cut_seen = time.time()
        kept[:] = [found[name] for name in sorted(found)]

    def held(self) -> None:
        """Note in `done.broken` which guest is not known to have been frozen since before the cut was asked."""
        before = {guest.name: guest for guest in self.done.guests}
        left = max(0.0, self._until - time.monotonic())
        now = together({name: self._get(name) for name in before}, min(left, REQUEST_SECONDS))
        for name, found in now.items():
            if isinstance(found, KubeError):
                self.done.broken.append(f"it is not known whether {name!r} was held ({found})")
            elif (found.uid, found.node) != (before[name].uid, before[name].node):
                self.done.broken.append(f"{name!r} is another instance, or on another node, than when it was frozen")
            elif not found.frozen:
                self.done.broken.append(f"{name!r} was thawed by somebody else")
        if time.monotonic() >= self._until:
            self.done.broken.append(f"the hold of {self.wanted.hold:g} s passed")

    def begin_thaw(self) -> None:
        """Take it that somebody else's `freeze` froze the guests that were found."""
        self.done.asked_at = self.done.thaw_asked = time.time()
        self._until = time.monotonic() + self.wanted.hold

    def thaw(self) -> None:
        """Unfreeze all, again and again until it worked or KubeVirt has done it by itself; raise nothing."""
        if not self.done.asked_at:
            return
        self.done.thaw_asked = self.done.thaw_asked or time.time()
        left = {guest.name for guest in self.done.guests}
        while left:
            seconds = max(1.0, min(REQUEST_SECONDS, self._until - time.monotonic()))
            found = together({name: self._put(name, "unfreeze", None, seconds) for name in sorted(left)}, seconds)
            self.done.not_thawed = {name: str(said) for name, said in found.items() if isinstance(said, KubeError)}
            gone = {name for name, said in found.items() if isinstance(said, Refused) and said.status == 404}
            left = self.done.not_thawed.keys() - gone
            if time.monotonic() >= self._until:
                break
            if left:
                self._never.wait(LOOK_SECONDS)
        self._thawed = True

    def thaw_once(self) -> None:
        """Unfreeze all, if that was not done to its end."""
        if not self._thawed:
            self.thaw()

    # -- afterwards

    def prove(self) -> None:
        """Find the snapshots of a group, and check where each cut lies. Notes what is wrong in `done.broken`."""
        done = self.done
        if self.wanted.volumes:
            self._find_members()
        for one in [*done.groups, *done.snapshots]:
            if one.cut is None:
                done.broken.append(f"snapshot {one.name!r} does not say when it was taken")
            elif one.cut + 1 + self.wanted.max_skew < done.cut_asked:
                done.broken.append(f"snapshot {one.name!r} says that it was taken before the guests were frozen")
            elif one.cut - self.wanted.max_skew > done.cut_seen:
                done.broken.append(f"snapshot {one.name!r} says that it was taken after the guests were thawed")

    def annotate(self, notes: dict[str, str]) -> list[str]:
        """Write annotations on all snapshots that are there; return what could not be written."""
        body = {"metadata": {"annotations": notes}}
        doing: dict[str, Callable[[], Any]] = {}
        for api, kind, many in (
            (self._groups_api, "volumegroupsnapshots", self.done.groups),
            (SNAPSHOTS, "volumesnapshots", self.done.snapshots),
        ):
            for one in many:
                path = f"{self._in(api)}/{kind}/{urllib.parse.quote(one.name)}"
                doing[f"{kind}/{one.name}"] = functools.partial(
                    request, self._server, "PATCH", path, body, content="application/merge-patch+json"
                )
        failed = [said for said in together(doing, REQUEST_SECONDS * 2).values() if isinstance(said, KubeError)]
        return [str(error) for error in failed if not (isinstance(error, Refused) and error.status == 404)]

    # -- inside

    @property
    def _groups_api(self) -> str:
        return f"groupsnapshot.storage.k8s.io/{self.wanted.group_version}"

    def _in(self, api: str) -> str:
        return f"/apis/{api}/namespaces/{self.wanted.namespace}"

    def _vmi(self, root: str, name: str) -> str:
        return f"{root}/namespaces/{self.wanted.namespace}/virtualmachineinstances/{urllib.parse.quote(name)}"

    def _claims(self) -> set[str]:
        return {claim for guest in self.done.guests for claim in guest.claims}

    def _guests(self) -> list[Guest]:
        path = f"{KUBEVIRT}/namespaces/{self.wanted.namespace}/virtualmachineinstances"
        found = self._within(
            REQUEST_SECONDS * 3,
            lambda: [shapes.guest(one) for one in listed(self._server, path, self.wanted.selector)],
        )
        return sorted(found, key=lambda guest: guest.name)

    def _put(self, name: str, what: str, body: Any, seconds: float) -> Callable[[], Any]:
        path = f"{self._vmi(SUBRESOURCES, name)}/{what}"
        return lambda: request(self._server, "PUT", path, body, seconds=seconds)

    def _get(self, name: str) -> Callable[[], Guest]:
        return lambda: shapes.guest(request(self._server, "GET", self._vmi(KUBEVIRT, name)))

    def _create(self, api: str, kind: str, name: str, spec: dict[str, Any]) -> Callable[[], Any]:
        metadata = {
            "name": name,
            "namespace": self.wanted.namespace,
            "annotations": {"virtagent/verdict": "unproved"},
        }
        body = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
        return lambda: request(self._server, "POST", f"{self._in(api)}/{kind.lower()}s", body)

    def _snapshot(self, name: str) -> Callable[[], Snapshot]:
        api, kind = (
            (self._groups_api, "volumegroupsnapshots") if self.wanted.volumes else (SNAPSHOTS, "volumesnapshots")
        )
        path = f"{self._in(api)}/{kind}/{urllib.parse.quote(name)}"
        return lambda: shapes.snapshot(request(self._server, "GET", path))

    def _all_frozen(self) -> str:
        """Return the first guest that is not frozen, "" if all are; note when that was seen."""
        found = self._look([guest.name for guest in self.done.guests], self._get)
        frozen = {name for name, guest in found.items() if guest.frozen}
        if frozen:
            self.done.first_frozen = self.done.first_frozen or time.time()
        for guest in self.done.guests:
            if guest.name not in frozen:
                return repr(guest.name)
        self.done.last_frozen = time.time()
        return ""

    def _look(self, names: Iterable[str], how: Callable[[str], Callable[[], T]]) -> dict[str, T]:
        """Look at each; what passes by itself (no answer, 5xx) is left out, what does not is raised."""
        left = max(0.0, self._until - self._thaw_seconds - time.monotonic())
        found = together({name: how(name) for name in names}, min(left, REQUEST_SECONDS))
        for said in found.values():
            if isinstance(said, KubeError) and not _passing(said):
                raise said
        return {name: said for name, said in found.items() if not isinstance(said, KubeError)}

    def _wait(self, until: float, waits_for: Callable[[], str], what: str) -> None:
        """Look until nothing is waited for. Raises Failed when the time has passed."""
        while missing := waits_for():
            if (left := until - time.monotonic()) <= 0:
                raise Failed(f"the API did not {what.format(missing)} in time")
            self._never.wait(min(left, LOOK_SECONDS))

    def _within(self, seconds: float, do: Callable[[], T]) -> T:
        (found,) = together({"list": do}, seconds).values()
        if isinstance(found, KubeError):
            raise found
        return found

    def _find_members(self) -> None:
        """Wait until the group has a snapshot of each volume, each with its time."""
        done, path = self.done, f"{self._in(SNAPSHOTS)}/volumesnapshots"
        uids, names = {one.uid for one in done.groups}, {one.name for one in done.groups}
        claims = self._claims()
        wanted = len(claims)

        def members() -> list[Snapshot]:
            found = map(shapes.snapshot, listed(self._server, path, ""))
            return [one for one in found if one.group in uids or (not one.group and one.group_name in names)]

        until = time.monotonic() + self.wanted.members_wait
        trouble = ""
        while True:
            try:
                done.snapshots = self._within(REQUEST_SECONDS, members)
            except KubeError as error:
                trouble = f" ({error})"
            else:
                trouble = ""
                if len(done.snapshots) >= wanted and all(one.cut is not None for one in done.snapshots):
                    break
            if (left := until - time.monotonic()) <= 0:
                break
            self._never.wait(min(left, LOOK_SECONDS))
        if len(done.snapshots) < wanted:
            done.broken.append(f"the group has {len(done.snapshots)} snapshots of {wanted} volumes{trouble}")
        elif missing := claims - {one.claim for one in done.snapshots} if all(o.claim for o in done.snapshots) else ():
            done.broken.append(f"the group has no snapshot of {_few(sorted(missing))}")
        for one in done.snapshots:
            if one.error:
                done.broken.append(f"snapshot {one.name!r} of the group failed: {one.error}")


def snapshot_name(name: str, claim: str) -> str:
    """Return NAME-CLAIM, or if that is too long its beginning and a number that no other claim has."""
    whole = f"{name}-{claim}"
    if len(whole) <= shapes.NAME_MAX:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return f"{whole[: shapes.NAME_MAX - 17].rstrip('-.')}-{mark}"


def labels(selector: str) -> dict[str, str]:
    """Return the labels of KEY=VALUE[,KEY=VALUE...]; raise ValueError."""
    found = {}
    for part in selector.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value) or value.startswith("="):
            raise ValueError(f"{selector!r} are no labels; expected KEY=VALUE[,KEY=VALUE...]")
        found[key] = value
    return found


def _passing(error: KubeError) -> bool:
    return isinstance(error, NoAnswer) or (isinstance(error, Refused) and error.passing)


def _named(field_name: str, value: str) -> dict[str, Any]:
    return {field_name: value} if value else {}


def _few(names: list[str]) -> str:
    more = f" (and {len(names) - _NAMED} more)" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _raise_first(found: dict[str, Any], what: str, who: str = "KubeVirt") -> None:
    failed = {name: error for name, error in found.items() if isinstance(error, KubeError)}
    if failed:
        name, error = next(iter(failed.items()))
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise Failed(f"{who} did not {what} {name!r}{more} ({error})") from error
