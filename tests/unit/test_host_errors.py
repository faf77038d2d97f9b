"""The exceptions of the library: what one `except` catches, and what it must not."""

from __future__ import annotations

import itertools
import typing
from pathlib import Path

import pytest
from fakes.agent_socket import FakeAgent
from virtagent import host
from virtagent.agent.api.errors import Code
from virtagent.host import (
    Agent,
    Fault,
    FreezeBroken,
    HostError,
    Lost,
    NotThawed,
    Unreachable,
    VirtagentError,
    errors,
    exits,
)


def kinds() -> set[str]:
    """Return the names of all exceptions that the library exports."""
    found = {name: getattr(host, name) for name in host.__all__}
    return {name for name, one in found.items() if isinstance(one, type) and issubclass(one, Exception)}


RAISED = sorted(kinds())


def test_one_base_above_all() -> None:
    assert {"Fault", "HostError", "Unsendable"} < set(RAISED)
    assert all(issubclass(getattr(host, name), VirtagentError) for name in RAISED)
    assert issubclass(host.Unsendable, ValueError), "as before, and as a bad URL is"
    defined = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
    assert defined <= set(RAISED)


def test_no_error_is_a_kind_of_one_that_says_something_else() -> None:
    """But NotThawed is: a freeze of which the end is not known is broken."""
    bases = {VirtagentError, HostError}
    kinds = [getattr(host, name) for name in RAISED if getattr(host, name) not in bases]
    found = {(one, other) for one, other in itertools.permutations(kinds, 2) if issubclass(one, other)}
    assert found == {(NotThawed, FreezeBroken)}


def test_what_may_have_happened_is_not_asked_again_by_who_tries_again(tmp_path: Path) -> None:
    asked = 0

    def persist(url: str) -> None:
        nonlocal asked
        for _ in range(3):
            try:
                with Agent(url, protocol="xmlrpc") as agent:
                    asked += 1
                    agent.freeze()
            except Unreachable:
                continue

    with FakeAgent(tmp_path / "a", script=lambda sock: sock.recv(65536) and None) as fake, pytest.raises(Lost):
        persist(fake.url)
    assert asked == 1


def test_the_causes_of_a_group_have_the_base() -> None:
    hints = typing.get_type_hints(errors.GroupFailed.__init__)
    assert "VirtagentError" in str(hints["causes"])
    assert issubclass(Fault, VirtagentError)


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        (Code.OVERRUN, "the sync limit of 6 s passed while syncing /srv/db; nothing was frozen", "--sync-limit"),
        (Code.OVERRUN, "the freeze limit of 30 s passed while freezing /srv/db; thawed 2 of 3", "--exclude"),
        (
            Code.FREEZE_FAILED,
            "/srv/a: frozen by someone else: FIFREEZE: busy (EBUSY)",
            "`fsfreeze -u /srv/a` if nobody needs it",
        ),
        (Code.FREEZE_FAILED, "the freeze was cancelled: va.fsthaw; nothing was frozen", ""),
        (Code.FREEZE_BROKEN, "freeze 3 is over, the last one is freeze 4; nothing was thawed", "history"),
        (Code.FREEZE_BROKEN, "freeze 3 was broken: the hold limit of 60 s passed", "--hold"),
        (Code.FREEZE_BROKEN, "freeze 3 was broken: the agent died", "throw the snapshot away"),
        (Code.FAILED, "worker 8 is stuck; not yet thawed: /srv/a; trying again", "status"),
    ],
)
def test_what_to_do_is_chosen_by_code_and_phase(code: Code, text: str, words: str) -> None:
    said = exits.advice(Fault(code, text))
    assert words in said
    assert bool(said) == bool(words)
    assert "throw the snapshot" not in said or code is Code.FREEZE_BROKEN, "there is none"
