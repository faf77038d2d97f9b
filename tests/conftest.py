"""What all tests share. The harness for real file systems is imported only when a test asks for it."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

# No test asserts on a time: a slow machine is not a defect.
hypothesis.settings.register_profile("virtagent", deadline=None)
hypothesis.settings.load_profile("virtagent")

if TYPE_CHECKING:
    from harness.namespace import Area

# A virtual machine takes minutes: `scripts/test --vm` asks for it.
collect_ignore = [] if os.environ.get("VIRTAGENT_VM") else ["vm"]

# A run in the background has these ignored, and would hand that on to whatever the tests start.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

TESTS = str(Path(__file__).parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

# The tests are of this checkout, whatever is installed. What they start as a program is what scripts/test installed.
if "virtagent" not in sys.modules:
    sys.modules["virtagent"] = types.ModuleType("virtagent")
    sys.modules["virtagent"].__path__ = [str(Path(__file__).resolve().parents[1])]


@pytest.fixture(scope="session")
def area() -> Iterator[Area]:
    """Put the test process into its own mount namespace with a tmpfs for images and state folders (needs root)."""
    from harness import Unmet, namespace
    from harness.fixtures import unmet

    try:
        made = namespace.enter()
    except Unmet as reason:
        unmet(reason)
    yield made
    made.leave()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip a test that found that this machine lacks something; in CI that is a failure."""
    try:
        return (yield)
    except Exception as reason:
        harness = sys.modules.get("harness")
        if harness is None or not isinstance(reason, harness.Unmet):
            raise
        from harness.fixtures import unmet

        unmet(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemons' logs below a failure."""
    report = yield
    rig = getattr(item, "funcargs", {}).get("rig")
    if report.failed and rig is not None:
        report.sections.extend(rig.logs())
    return report
