"""Worlds of virtual hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.sim.virtual.loop import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.virtual.host import VirtualHost


LIMIT_S = 10_000.0
"""After which a test has failed: a world with a heartbeat in it goes on for ever."""


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """An empty world."""
    made = VirtualLoop(seed=1)
    made.at(LIMIT_S, made.fail, AssertionError("what the test waits for does not come about"))
    yield made
    made.close()


@pytest.fixture
def near(loop: VirtualLoop) -> VirtualHost:
    """A host in eu-west."""
    return loop.add_host("near", "eu-west")


@pytest.fixture
def far(loop: VirtualLoop) -> VirtualHost:
    """A host in us-east, 80 ms away."""
    return loop.add_host("far", "us-east")
