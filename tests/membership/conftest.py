"""The fleets that the cases of membership run on, and how many seeds and sizes of each.

A case that asks for `seed` runs with a few; one that asks for `count` runs with several sizes. Both
say how many by a mark, `make test` takes the small number and `make soak` (through `SOAK_SEEDS` and
`SOAK_SIZES`) the great one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.sim.virtual_fleet import SimFleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_SEEDS = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("seeds")
        few = mark.args[0] if mark else DEFAULT_SEEDS
        metafunc.parametrize("seed", range(1, 1 + int(os.environ.get("SOAK_SEEDS", few))))
    if "count" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("sizes")
        assert mark is not None, f"{metafunc.function.__name__} asks for sizes and names none"
        many = mark.kwargs.get("soak", ()) if "SOAK_SIZES" in os.environ else ()
        metafunc.parametrize("count", [*mark.args, *many])


@pytest.fixture
def make_fleet() -> Iterator[Callable[..., SimFleet]]:
    """Make fleets in virtual time."""
    fleets: list[SimFleet] = []

    def make(seed: int = 1, **options: Any) -> SimFleet:
        fleets.append(SimFleet(seed, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()
