"""Worlds refuse what makes no sense, pass over nothing, and tell what they saw when they are closed."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError, UsageError
from meshnode.sim import Load, Model, Region, World, faults

if TYPE_CHECKING:
    from collections.abc import Callable

REGIONS = [Region("eu-west", nodes=2)]
MODELS = [Model(name="digits")]


@pytest.fixture(scope="module")
def cores() -> World:
    """A started world at depth A, which no test here changes."""
    return World(REGIONS, MODELS, depth="A").start()


@pytest.mark.parametrize(
    "act",
    [
        lambda world, wrong: world.run_for(wrong),
        lambda world, wrong: world.run_until(lambda: False, wrong),
        lambda world, wrong: world.at(wrong, faults.Crash(nodes=("all",))),
        lambda world, wrong: world.call("digits", timeout_s=wrong),
        lambda world, wrong: world.call("digits", work_s=wrong),
        lambda world, wrong: world.check(wrong),
        lambda world, wrong: world.run(asyncio.Event().wait, limit_s=wrong),
    ],
)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -5.0])
def test_what_is_no_time_is_refused(
    cores: World, act: Callable[[World, float], None], wrong: float
) -> None:
    with pytest.raises(UsageError, match=f"is {wrong!r}; it must be seconds, 0 or more"):
        act(cores, wrong)


@pytest.mark.parametrize("seed", [-5, 2**63])
def test_a_seed_that_no_scenario_may_have_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed: it is {seed}; it must be at least 0"):
        World(REGIONS, seed=seed)


def test_parts_are_checked_as_those_of_a_file_are(cores: World) -> None:
    with pytest.raises(ConfigError, match=r"nodes\[0\]\.count: it is -1; it must be at least 1"):
        World([Region("eu-west", nodes=-1)])
    with pytest.raises(ConfigError, match=r"faults\[0\]\.for_s: it is a number, nan"):
        cores.apply(faults.Freeze(nodes=("all",), for_s=math.nan))
    with pytest.raises(ConfigError, match="duration_s: it is a number, nan"):
        cores.load(Load(model="digits"), for_s=math.nan)
    with pytest.raises(ConfigError, match="it makes about 5e"):
        cores.load(Load(model="digits", rate_per_s=1e12), for_s=5.0)


def test_the_tables_of_a_world_may_be_as_large_as_its_models_and_releases_make_them() -> None:
    models = [Model(name=f"m{number}", load_s=0.0, fetch_s=0.0) for number in range(3)]
    with World(REGIONS, models, depth="A") as world:
        world.start()
        assert world.stage.invariants.models == 3
        release = faults.Release(model="m1")
        world.apply(release)
        assert world.stage.invariants.models == 4


@pytest.mark.parametrize("depth", ["A", "B"])
def test_what_happened_can_be_told_when_a_world_is_closed(depth: str) -> None:
    with World(REGIONS, depth="A" if depth == "A" else "B") as world:
        world.start()
        world.apply(faults.Crash(nodes=("eu-west-2",)))
        world.run_for(1.0)
        told = world.result()
    assert world.result().trace_hash == told.trace_hash
    assert world.result().marks == told.marks
    with pytest.raises(UsageError, match="has not started"):
        World(REGIONS).result()


def test_what_a_task_in_the_background_raises_fails_the_body() -> None:
    async def background() -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError("nobody asked")

    async def body() -> str:
        task = asyncio.create_task(background())
        await asyncio.sleep(1.0)
        return str(task.done())

    with World(REGIONS) as world:
        world.start()
        with pytest.raises(ZeroDivisionError, match="nobody asked") as raised:
            world.run(body)
        assert "in the background of" in raised.value.__notes__[0]
        assert world.run(asyncio.sleep(1.0, "the next one is not blamed")) is not None
