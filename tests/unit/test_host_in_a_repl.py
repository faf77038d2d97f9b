"""The library as a person meets it in a REPL or an editor: names, signatures, docstrings, what a freeze shows."""

from __future__ import annotations

import contextlib
import inspect
import pydoc
import time
from pathlib import Path

import pytest
import virtagent.host
from fakes.agent_socket import FakeAgent, status_record
from virtagent.host import Agent, AgentGroup, AsyncAgent, FreezeBroken, calls

METHODS = [name for name, make in inspect.getmembers(calls, inspect.isfunction) if hasattr(Agent, name)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_shows_its_name_signature_and_docstring(name: str) -> None:
    made = getattr(calls, name)
    for agent, wraps in ((Agent("unix:/a"), "{}"), (AsyncAgent("unix:/a"), "Awaitable[{}]")):
        method = getattr(agent, name)
        shown = inspect.signature(method)
        assert shown.parameters == inspect.signature(made).parameters
        value = inspect.signature(made).return_annotation.removeprefix("Call[").removesuffix("]")
        assert shown.return_annotation == wraps.format(value)
        text = pydoc.plain(pydoc.render_doc(method))
        assert f"{name}(" in text
        assert inspect.getdoc(made).splitlines()[0] in text  # type: ignore[union-attr]


def test_every_public_name_can_be_seen_and_imported() -> None:
    assert set(virtagent.host.__all__) <= set(dir(virtagent.host))
    for name in virtagent.host.__all__:
        assert getattr(virtagent.host, name).__name__ == name
    assert {"Status", "Plan", "Last", "MountStatus", "Capabilities"} <= set(virtagent.host.__all__)
    assert "with Agent(" in (virtagent.host.__doc__ or "")


def test_an_agent_shows_its_url() -> None:
    assert repr(Agent("unix:/a")) == "Agent('unix:/a')"
    assert repr(AsyncAgent("vsock:3:4")) == "AsyncAgent('vsock:3:4')"


def test_what_is_no_option_of_a_group_is_refused() -> None:
    with pytest.raises(TypeError, match="bogus"):
        AgentGroup("unix:/a", bogus=1)  # type: ignore[call-arg]


def test_hold_left_counts_down(tmp_path: Path) -> None:
    record = status_record(hold_left=30.0)

    def answer(method: str, params: list[object]) -> object:
        return record if method == "va.fsstatus" else 1

    with (
        FakeAgent(tmp_path / "a", answer) as fake,
        Agent(fake.url) as agent,
        contextlib.suppress(FreezeBroken),
        agent.frozen() as freeze,
    ):
        for passed, left in ((0.0, 30.0), (12.5, 17.5), (31.0, 0.0)):
            freeze._since = time.monotonic() - passed
            assert left - 5 < freeze.hold_left <= left
        assert freeze.hold_left == 0.0
        freeze.extended(50)
        assert 49 < freeze.hold_left <= 50
        freeze.extended(-1)
        assert freeze.hold_left == -1
