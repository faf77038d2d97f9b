"""Tests here run against a real virtual machine, booted once: see tests/harness/vm. `scripts/test --vm` runs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from harness import HarnessError, Unmet
from harness.fixtures import rig, unmet
from harness.vm.domain import AGENTS, Domain
from harness.vm.guest import Guest
from harness.vm.table import Table

__all__ = ["rig"]

TIMEOUT = 600  # seconds: the first test boots the guest, and before that may build it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


G = TypeVar("G", bound=Guest)


class Booted(Generic[G]):
    """The guest of this session; booted again if a test left it unusable."""

    def __init__(self, factory: pytest.TempPathFactory, make: Callable[[Path], G]) -> None:
        self._factory, self._make = factory, make
        self._guest: G | None = None

    def get(self) -> G:
        if self._guest is None:
            self._guest = self._make(self._factory.mktemp("guest"))
        return self._guest

    def lend(self) -> Iterator[G]:
        """Give it to a test; set it back afterwards, and fail the test if that cannot be done."""
        try:
            found = self.get()
        except Unmet as reason:
            unmet(reason)
        yield found
        try:
            wrong = found.reset()
        except (HarnessError, TimeoutError, OSError) as error:
            wrong = [f"the guest could not be set back: {error!r}", found.machine.console()[-2000:]]
        if wrong:
            self.close()
            pytest.fail("after the test:\n" + "\n".join(wrong), pytrace=False)

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            shutil.rmtree(self._guest.folder)
            self._guest = None


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Remove it at once: pytest would keep the images of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted[Guest]]:
    made = Booted(tmp_path_factory, Guest)
    yield made
    made.close()


@pytest.fixture
def guest(booted: Booted[Guest]) -> Iterator[Guest]:
    """The guest, thawed and with nobody at its ports; set back afterwards."""
    yield from booted.lend()


@pytest.fixture(scope="session")
def defined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted[Domain]]:
    made = Booted(tmp_path_factory, Domain)
    yield made
    made.close()


@pytest.fixture
def domain(defined: Booted[Domain]) -> Iterator[Domain]:
    """The guest as a domain of a libvirtd of its own, running and thawed; set back afterwards."""
    yield from defined.lend()


@pytest.fixture(params=AGENTS, scope="module")
def agent(request: pytest.FixtureRequest) -> str:
    """Each of the two agents in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """What was measured, for docs/vm.md: printed at the end."""
    made = Table()
    yield made
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and made:
        reporter.ensure_newline()
        reporter.write_line("\n".join(made.lines()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Show what the agent logged below a failure."""
    report = yield
    used = getattr(item, "funcargs", {})
    guest = used.get("guest") or used.get("domain")
    if report.failed and report.when == "call" and guest is not None:
        try:
            report.sections.append(("the agent's log", "\n".join(guest.log()[-60:])))
        except (HarnessError, TimeoutError, OSError) as error:
            report.sections.append(("the guest's console", f"{error!r}\n{guest.machine.console()[-4000:]}"))
    return report
