"""Networks of hosts for the tests: what happens between machines, with real daemons on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.network.devices import Network, why_not_here
from tests.network.lan import Lan, environment

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of it where there can be no such hosts, and say why."""
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    if mine and (reason := why_not_here()):
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    """An empty bridge; what is added to it is gone after the module."""
    # A home folder's path is short, since a Unix socket's must be.
    with (
        tempfile.TemporaryDirectory(prefix="lan-") as folder,
        Network(Path(folder), environment()) as network,
    ):
        lan = Lan(network)
        try:
            yield lan
        finally:
            lan.close()
