"""Tests here run against a real virtual machine, booted once: see tests/harness/vm. `scripts/test --vm` runs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import HarnessError, Unmet
from harness.fixtures import unmet
from harness.vm.guest import Guest

TIMEOUT = 600  # seconds: the first test boots the guest, and before that may build it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


class Booted:
    """The guest of this session; booted again if a test left it unusable."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._guest: Guest | None = None

    def get(self) -> Guest:
        if self._guest is None:
            self._guest = Guest(self._factory.mktemp("guest"))
        return self._guest

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
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    made = Booted(tmp_path_factory)
    yield made
    made.close()


@pytest.fixture
def guest(booted: Booted) -> Iterator[Guest]:
    """The guest, thawed and with nobody at its ports; set back afterwards."""
    try:
        found = booted.get()
    except Unmet as reason:
        unmet(reason)
    yield found
    try:
        wrong = found.reset()
    except (HarnessError, TimeoutError, OSError) as error:
        wrong = [f"the guest could not be set back: {error!r}", found.machine.console()[-2000:]]
    if wrong:
        booted.close()
        pytest.fail("after the test:\n" + "\n".join(wrong), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Show what the agent logged below a failure."""
    report = yield
    guest = getattr(item, "funcargs", {}).get("guest")
    if report.failed and report.when == "call" and guest is not None:
        try:
            report.sections.append(("the agent's log", "\n".join(guest.log()[-60:])))
        except (HarnessError, TimeoutError, OSError) as error:
            report.sections.append(("the guest's console", f"{error!r}\n{guest.machine.console()[-4000:]}"))
    return report
