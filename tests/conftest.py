"""How `make test` spreads the tests over the cores: files go to whichever worker is free.

Tests that start real daemons, make network namespaces or build wheels measure time or change the machine,
so they stay on one worker, one after the other.

Examples of property tests have no deadline: on a machine that also runs something else it would say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

hypothesis.settings.register_profile("meshnode", deadline=None)
hypothesis.settings.load_profile("meshnode")

_ON_THE_MACHINE = (
    "tests/conformance/",
    "tests/e2e/",
    "tests/first_hour/",
    "tests/network/",
    "tests/packaging/",
    "tests/attacks/",
    "tests/unit/cli/test_demo.py",
    "tests/unit/cli/test_running.py",
    "tests/unit/cli/test_service.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Schedule by file, with all tests of the machine as one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "machine" if nodeid.startswith(_ON_THE_MACHINE) else nodeid.partition("::")[0]

    return ByFile(config, log)
