"""The same requests to a real qemu-ga and to ours, and the page that says where the answers differ."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.qga_cases import NOT_SENT, SCRIPTS, WIRE, Step
from harness import Unmet
from harness.namespace import Area
from harness.peer import QemuGa, Talk, qemu_ga_version
from harness.processes import until
from harness.rig import Rig
from virtagent.agent.api.methods import RPCS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "qga.md"
BEGIN, END = "<!-- compared with {}: made by tests/peers -->", "<!-- compared with {}: end -->"
VERSIONS = ("7.2", "10.0")
"""Those of Debian 12 and 13. VIRTAGENT_QEMU_GA names a qemu-ga that is not the installed one."""
COMMANDS = [row.name for row in RPCS.values() if row.is_guest]


@dataclass(frozen=True)
class Compared:
    """What both answered to each step, and to each message on the wire; `version` is that of the real one."""

    version: tuple[int, int]
    steps: dict[str, list[tuple[Step, Any, Any]]]
    wire: list[tuple[bytes, str, Any, Any]]
    lists: tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def compared(area: Area) -> Iterator[Compared]:
    """Run all scripts against a qemu-ga and a virtagentd that see the same file systems, a folder for each."""
    from harness.fixtures import unmet

    rig = Rig(area)
    try:
        yield compare(rig)
    except Unmet as reason:
        unmet(reason)
    finally:
        wrong = rig.close()
        assert not wrong, wrong


def compare(rig: Rig) -> Compared:
    theirs_fs, ours_fs = rig.fs("ext4"), rig.fs("ext4")
    text, version = qemu_ga_version()
    if f"{version[0]}.{version[1]}" not in VERSIONS:
        raise Unmet(f"needs a qemu-ga of {' or '.join(VERSIONS)}, this is {text}")
    daemon = rig.daemon([theirs_fs, ours_fs], ["--qga-version", text])
    peer = QemuGa(rig.area)
    theirs, ours = peer.talk(), Talk(rig.area, str(daemon.socket))
    try:
        steps = {}
        for name, script in SCRIPTS.items():
            sides = Side(theirs, str(theirs_fs), str(ours_fs)), Side(ours, str(ours_fs), str(theirs_fs))
            # One after the other: qemu-ga thaws whatever it sees, also what ours holds frozen.
            answers = [[side.ask(step) for step in script] for side in sides]
            steps[name] = list(zip(script, *answers, strict=True))
        wire = [(data, why, theirs.replies_to(data), ours.replies_to(data)) for data, why in WIRE]
        lists = [talk.ask("guest-info")["return"]["supported_commands"] for talk in (theirs, ours)]
        named = tuple({command["name"]: command for command in listed} for listed in lists)
        return Compared(version, steps, wire, (named[0], named[1]))
    finally:
        ours.close()
        theirs.close()
        peer.close()


class Side:
    """One agent in a script: what its placeholders stand for."""

    def __init__(self, talk: Talk, folder: str, other: str) -> None:
        self._talk = talk
        self._known: dict[str, Any] = {"$folder": folder}
        self._folder, self._other = folder, other

    def ask(self, step: Step) -> Any:
        arguments = None if step.arguments is None else {k: self._fill(v) for k, v in step.arguments.items()}
        reply = self._talk.ask(step.command, arguments)
        if step.until:

            def ended() -> bool:
                nonlocal reply
                if reply["return"][step.until] is True:
                    return True
                reply = self._talk.ask(step.command, arguments)
                return False

            until(ended, 20, f"{step.command} says {step.until}")
        found = reply.get("return")
        if step.command == "guest-file-open" and "return" in reply:
            self._known["$handle"], reply["return"] = found, "a handle"
        if isinstance(found, dict) and "pid" in found:
            self._known["$pid"] = found["pid"]
        names = {self._folder: "$folder", self._other: "$other", str(self._known.get("$handle")): "$handle"}
        return plain(reply, step, names)

    def _fill(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._fill(one) for one in value]
        if isinstance(value, str) and value.startswith("$"):
            name, slash, rest = value.partition("/")
            return f"{self._known[name]}/{rest}" if slash else self._known.get(name, value)
        return value


def plain(value: Any, step: Step, names: Mapping[str, str]) -> Any:
    """Return the reply with what must differ taken out."""
    match value:
        case {"hardware-address": _} if "ip-addresses" not in value:
            return {k: v for k, v in sorted(value.items()) if k != "statistics"}
        case {"desprefixlen": _, "flags": int(), "metric": int()}:
            return {k: v for k, v in sorted(value.items()) if k not in ("flags", "metric")}
        case dict():
            return {k: type(v).__name__ if k in step.blank else plain(v, step, names) for k, v in sorted(value.items())}
        case list():
            items = [plain(one, step, names) for one in value]
            known = items and isinstance(items[0], dict) and step.sort in items[0]
            return sorted(items, key=lambda one: str(one[step.sort])) if known else items
        case str() if step.command != "guest-get-fsinfo":
            for name, placeholder in names.items():
                value = value.replace(name, placeholder)
            return value
        case int() if step.command == "guest-get-time" and value > 10**18:
            return "nanoseconds"
    return value


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_answers_are_qemu_gas_or_differ_as_the_page_says(compared: Compared, script: str) -> None:
    wrong = [
        f"{step.command} {step.arguments}\n    theirs {theirs}\n    ours   {ours}\n    {step.differs(compared.version)}"
        for step, theirs, ours in compared.steps[script]
        if (theirs == ours) == bool(step.differs(compared.version))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_wire_is_qemu_gas_or_differs_as_the_page_says(compared: Compared) -> None:
    wrong = [
        f"{data[:100]!r}\n    theirs {theirs}\n    ours   {ours}\n    {why}"
        for data, why, theirs, ours in compared.wire
        if (theirs == ours) == bool(why)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_command_is_compared() -> None:
    asked = {step.command for steps in SCRIPTS.values() for step in steps}
    assert sorted(set(COMMANDS) - asked) == []
    assert len(COMMANDS) == 43
    assert set(NOT_SENT) <= set(COMMANDS)


def test_every_command_of_qemu_ga_is_there(compared: Compared) -> None:
    theirs, ours = compared.lists
    assert set(theirs) - set(ours) == ({"guest-get-devices"} if compared.version < (8, 0) else set())
    assert {name for name in ours if name.startswith("guest-")} <= set(theirs)
    for name in set(theirs) & set(ours):
        assert ours[name]["success-response"] == theirs[name]["success-response"], name
        assert ours[name]["enabled"] == theirs[name]["enabled"], name


def test_the_page_is_what_the_comparison_says(compared: Compared) -> None:
    text = PAGE.read_text(encoding="utf-8")
    begin, end = (mark.format("{}.{}".format(*compared.version)) for mark in (BEGIN, END))
    head, mark, rest = text.partition(begin)
    assert mark, f"{PAGE.name} has no place for the tables"
    _, mark, tail = rest.partition(end)
    fresh = head + begin + "\n".join(["", *tables(compared), ""]) + end + tail
    if os.environ.get("VIRTAGENT_WRITE"):
        PAGE.write_text(fresh, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == fresh, "VIRTAGENT_WRITE=1 scripts/test tests/peers makes it anew"


def tables(compared: Compared) -> Iterator[str]:
    yield "| command | requests | same | differs, and why |"
    yield "|---|---|---|---|"
    for command in COMMANDS:
        mine = [found for found in itertools.chain(*compared.steps.values()) if found[0].command == command]
        same = sum(theirs == ours for _, theirs, ours in mine)
        whys = [step.differs(compared.version) or step.maybe for step, *_ in mine]
        notes = dict.fromkeys(filter(None, whys))
        if command in NOT_SENT:
            notes[NOT_SENT[command]] = None
        yield f"| `{command}` | {len(mine)} | {'all' if same == len(mine) else same} | {'; '.join(notes) or '-'} |"
    yield ""
    same = sum(theirs == ours for *_, theirs, ours in compared.wire)
    yield f"Of {len(compared.wire)} messages, most of them malformed, {same} draw the same replies to the letter."
    yield "The others:"
    yield ""
    yield "| message | why the replies differ |"
    yield "|---|---|"
    for data, why, _, _ in compared.wire:
        if why:
            shown = ascii(data)[2:-1].replace("|", "\\|")
            yield f"| `{shown if len(shown) < 60 else shown[:57] + '...'}` | {why} |"
