"""Which tests may run beside others: see `pytest_collection_modifyitems`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent

ALONE: Final = (
    "e2e", "first_hour", "network", "packaging", "membership/test_over_udp.py", "unit/cli", "unit/client", "unit/daemon",
    "unit/docs", "unit/net", "unit/hardware",
)  # fmt: skip
"""Tests of real processes, networks and multicast: one after another in one worker of `pytest -n`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share this machine's network and its other processes in one worker."""
    places = [HERE / place for place in ALONE]
    for item in items:
        if any(item.path.is_relative_to(place) for place in places):
            item.add_marker(pytest.mark.xdist_group("machine"))
