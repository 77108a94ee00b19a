"""Meshes in virtual time for pytest: `mesh_world`, a seed for each test, and how to play a failure again.

Installed with meshnode, it is there in every test session; it imports nothing of the simulator before a
test asks for it. `-p no:meshnode` leaves it out. docs/simulator.md has a worked example.

| name | what |
|---|---|
| `mesh_world` | fixture: makes worlds as `meshnode.sim.World` does, with the test's seed, and closes them |
| `mesh_seed` | fixture: the test's seed, for randomness of its own |
| `@pytest.mark.mesh_seeds(n)` | runs a test with n seeds, from 1 |
| `--mesh-seed N` | runs every test with this seed alone; `MESHNODE_SIM_SEED` does the same |
| `--mesh-report DIR` | writes an HTML report about each world of a test that fails |
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from meshnode.sim.api import World
    from meshnode.sim.scenario.model import Depth, Scenario

SEED_VARIABLE: Final = "MESHNODE_SIM_SEED"
"""The environment variable that says what `--mesh-seed` does."""

FIRST_SEED: Final = 1
"""The seed of a test that nobody gave one: tests are the same every time unless they are told otherwise."""

_WORLDS: Final = pytest.StashKey[list["World"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("meshnode", "meshes in virtual time")
    group.addoption(
        "--mesh-seed",
        type=int,
        metavar="N",
        help=f"run tests that use mesh_world with this seed alone (else {SEED_VARIABLE}, else their own)",
    )
    group.addoption(
        "--mesh-report",
        metavar="DIR",
        help="write an HTML report about each world of a test that fails to this folder",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, and refuse a seed that is none before any test runs."""
    _told_seed(config)
    config.addinivalue_line(
        "markers", "mesh_seeds(n): run a test that uses mesh_world with n seeds, from 1"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each seed where the mark asks for several."""
    mark = metafunc.definition.get_closest_marker("mesh_seeds")
    if mark is None:
        return
    if "mesh_seed" not in metafunc.fixturenames:
        pytest.fail(
            f"{metafunc.definition.nodeid}: mesh_seeds is for tests that take mesh_world or mesh_seed; "
            "this one takes neither, so take the mark away or ask for one of them",
            pytrace=False,
        )
    if len(mark.args) != 1 or not isinstance(mark.args[0], int) or mark.args[0] < 1:
        pytest.fail(
            f"{metafunc.definition.nodeid}: mesh_seeds takes one number of seeds, such as "
            "@pytest.mark.mesh_seeds(20)",
            pytrace=False,
        )
    told = _told_seed(metafunc.config)
    seeds = range(FIRST_SEED, FIRST_SEED + mark.args[0]) if told is None else [told]
    metafunc.parametrize("mesh_seed", seeds, ids=lambda seed: f"seed-{seed}")


def _told_seed(config: pytest.Config) -> int | None:
    seed: int | None = config.getoption("--mesh-seed")
    told = os.environ.get(SEED_VARIABLE)
    if seed is not None:
        return _usable(seed, "--mesh-seed")
    if not told:
        return None
    try:
        return _usable(int(told), SEED_VARIABLE)
    except ValueError:
        raise pytest.UsageError(f"{SEED_VARIABLE} must be a whole number, not {told!r}") from None


def _usable(seed: int, source: str) -> int:
    from meshnode.limits import MAX_SEED

    if 0 <= seed <= MAX_SEED:
        return seed
    raise pytest.UsageError(f"{source} must be 0 to {MAX_SEED}, not {seed}")


@pytest.fixture
def mesh_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this test."""
    told = _told_seed(request.config)
    return FIRST_SEED if told is None else told


class Worlds:
    """Makes the worlds of one test; what `mesh_world` is."""

    def __init__(self, seed: int, replay: str) -> None:
        """Make them with this seed, unless they are told another one."""
        self._seed = seed
        self._replay = replay
        self.made: list[World] = []

    def __repr__(self) -> str:
        return f"<Worlds of seed {self._seed}: {len(self.made)} made>"

    def __call__(self, *args: Any, **options: Any) -> World:
        """Make a world as `meshnode.sim.World` does; `start` it."""
        from meshnode.sim.api import World

        return self._keep(World(*args, **{"seed": self._seed, **options}))

    def of(self, scenario: Scenario | str, *, depth: Depth | None = None) -> World:
        """Make the world of a scenario as `meshnode.sim.World.of` does; `start` it."""
        from meshnode.sim.api import World

        return self._keep(World.of(scenario, seed=self._seed, depth=depth))

    def _keep(self, world: World) -> World:
        world.replay = self._replay
        self.made.append(world)
        return world


@pytest.fixture
def mesh_world(request: pytest.FixtureRequest, mesh_seed: int) -> Iterator[Worlds]:
    """Return what makes worlds; they are closed after the test."""
    replay = f"pytest {shlex.quote(_as_typed(request.node))} --mesh-seed {mesh_seed}"
    worlds = Worlds(mesh_seed, replay)
    request.node.stash[_WORLDS] = worlds.made
    yield worlds
    with ExitStack() as all_of_them:
        for world in worlds.made:
            all_of_them.callback(world.close)


def _as_typed(item: pytest.Item) -> str:
    """Return a test as one names it in the folder where this session was started."""
    _, *inside = item.nodeid.split("::")
    try:
        file = os.path.relpath(item.path, item.config.invocation_params.dir)
    except ValueError:  # Windows: it is on another drive
        file = str(item.path)
    return "::".join([file, *inside])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what its worlds were, and the command that plays it again."""
    del call
    report = yield
    if report.failed:  # fixtures of the test's own, too, before it and after it
        worlds: list[World] = item.stash.get(_WORLDS, [])
        for number, world in enumerate(worlds, 1):
            report.sections.append(("meshnode simulator", _told(item, world, number)))
    return report


def _told(item: pytest.Item, world: World, number: int) -> str:
    lines = [f"{world!r}", f"replay: {world.replay}"]
    if not world.started:
        return "\n".join(lines)
    from meshnode.sim.running.timeline import timeline

    result = world.result()
    result.steps = [
        step for step in result.steps if step.time_s >= 0
    ]  # the start is no test's story
    result.events = [event for event in result.events if event.time_s >= 0]
    lines += [f"trace:  {result.trace_hash}", *timeline(result)]
    folder = item.config.getoption("--mesh-report")
    if folder:
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", item.nodeid).strip("-")
        path = Path(folder) / f"{name}-{number}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        world.report(path)
        lines.append(f"report: {path}")
    return "\n".join(lines)
