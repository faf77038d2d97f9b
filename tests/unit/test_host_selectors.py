"""One string is one selector or one URL, and never its letters: every parameter that takes several texts."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.agent_socket import FakeAgent, status_record
from fakes.many_agents import ManyAgents
from virtagent.agent.api.errors import Fault
from virtagent.host import Agent, AgentGroup, AsyncAgent, AsyncAgentGroup, HostError, calls
from virtagent.host.holding import Wanted


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("call", [calls.plan, calls.sync, calls.freeze])
def test_one_string_is_one_selector_of_a_call(call: Callable[..., calls.Call[Any]], name: str) -> None:
    assert call(**{name: "/srv/*"}).params[0][name] == ["/srv/*"]
    assert call(**{name: ["/srv/*", "/b"]}).params[0][name] == ["/srv/*", "/b"]
    assert call(**{name: (glob for glob in ["/b"])}).params[0][name] == ["/b"]
    for wrong in (b"/srv", ["/srv", 7], Path("/srv"), None):
        with pytest.raises(TypeError):
            call(**{name: wrong})


def asked_by(frozen: Callable[[str], None], path: Path) -> list[Any]:
    """Return the options of each freeze that `frozen` asks of the agent that it is given."""

    def answer(method: str, params: list[Any]) -> Any:
        return {"va.fsfreeze": 1, "va.fsthaw": 1, "va.fssync": 1, "va.ping": "dummy"}.get(method, status_record())

    with FakeAgent(path, answer) as fake:
        with contextlib.suppress(Fault, HostError):  # how the freeze ends is no matter here
            frozen(fake.url)
        asked = [fake.asked.get() for _ in range(fake.asked.qsize())]
    return [params[0] for method, params in asked if method in ("va.fsfreeze", "va.fssync")]


def by_agent(url: str, **selected: Any) -> None:
    with Agent(url) as agent, agent.frozen(**selected):
        pass


def by_async_agent(url: str, **selected: Any) -> None:
    async def freeze() -> None:
        async with AsyncAgent(url) as agent, agent.frozen(**selected):
            pass

    asyncio.run(freeze())


def by_group(url: str, **selected: Any) -> None:
    with AgentGroup([url]).frozen(**selected):
        pass


def by_async_group(url: str, **selected: Any) -> None:
    async def freeze() -> None:
        async with AsyncAgentGroup([url]).frozen(**selected):
            pass

    asyncio.run(freeze())


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("way", [by_agent, by_async_agent, by_group, by_async_group])
def test_one_string_is_one_selector_of_a_block(way: Callable[..., None], name: str, tmp_path: Path) -> None:
    asked = asked_by(lambda url: way(url, **{name: "/srv/*"}), tmp_path / "a")
    assert asked
    assert all(options[name] == ["/srv/*"] for options in asked)


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_selectors_that_are_no_strings_are_refused_before_anything_is_asked(name: str, tmp_path: Path) -> None:
    with ManyAgents(tmp_path, 1) as guests:
        with pytest.raises(TypeError, match=name), AgentGroup(guests.urls).frozen(**{name: [b"/srv"]}):
            pytest.fail("the block runs")
        assert not guests.asked
    assert Wanted("/a", (one for one in "bc")) == Wanted(("/a",), ["b", "c"])


@pytest.mark.parametrize("group", [AgentGroup, AsyncAgentGroup])
def test_one_string_is_one_url_of_a_group(group: type[AgentGroup] | type[AsyncAgentGroup]) -> None:
    assert group("unix:/x").urls == ("unix:/x",)
    assert group(iter(["unix:/x", "unix:/y"])).urls == ("unix:/x", "unix:/y")
    with pytest.raises(TypeError, match="urls"):
        group([Path("/x")])  # type: ignore[list-item]


def test_no_other_parameter_of_the_library_takes_a_sequence_of_strings() -> None:
    """Such a parameter takes a string, too, for every type checker: it says `Texts` and goes through `texts`."""
    public: list[Any] = [getattr(calls, name) for name in dir(calls) if not name.startswith("_")]
    public += [getattr(one, name) for one in (Agent, AsyncAgent, AgentGroup, AsyncAgentGroup) for name in dir(one)]
    taking = [Wanted, *(one for one in public if inspect.isfunction(one))]
    said = {(one.__qualname__, p) for one in taking for p, v in inspect.signature(one).parameters.items() if _sole(v)}
    assert said == set()


def _sole(parameter: inspect.Parameter) -> bool:
    return any(kind in str(parameter.annotation) for kind in ("Sequence[str]", "Iterable[str]", "list[str]"))
