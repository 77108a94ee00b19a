"""Worlds: a mesh that a test can ask, hurt and look at, at both depths."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from meshnode.errors import ConfigError, UsageError
from meshnode.sim import (
    Load,
    Model,
    NetworkPart,
    NotReachedError,
    Outcome,
    Region,
    World,
    faults,
    stand_in_inputs,
)
from meshnode.sim.running.result import METRICS, choose
from meshnode.sim.sessions import sessions_of_the_world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.sim.scenario.model import Depth

REGIONS = [Region("eu-west", nodes=2), Region("us-east", nodes=1)]
MODELS = [Model(name="digits")]


@pytest.fixture(params=["A", "B"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A started world of each depth."""
    with World(REGIONS, MODELS, seed=7, depth=request.param) as made:
        yield made.start()


def test_nodes_are_named_after_their_region_and_all_know_all_at_the_start(world: World) -> None:
    assert world.nodes == ("eu-west-1", "eu-west-2", "us-east")
    assert world.select("region:eu-west") == ["eu-west-1", "eu-west-2"]
    assert [node.alive for node in world.sample().nodes.values()] == [3, 3, 3]
    assert world.now == 0.0
    assert "seed 7" in repr(world)


def test_a_call_is_answered_and_takes_virtual_time_only(world: World) -> None:
    outcome = world.call("digits", via="us-east", work_s=0.3)
    assert outcome.code == "ok"
    assert 0.3 < outcome.took_s < 0.6
    assert world.now >= outcome.took_s


def test_a_fault_is_done_now_and_undone_after_its_time(world: World) -> None:
    world.apply(faults.Crash(nodes=("us-east",), for_s=20.0))
    assert world.call("digits", via="us-east").code == "gateway_lost"
    assert world.call("digits", via="us-east", others=["eu-west-1"]).code == "ok"
    world.run_until(lambda: world.sample().nodes["eu-west-1"].alive == 2, limit_s=15.0)
    world.run_for(20.0)
    world.run_until(lambda: world.sample().nodes["us-east"].alive == 3, limit_s=15.0)
    world.check()
    assert [(mark.verb, mark.undone) for mark in world.result().marks] == [
        ("crash", False),
        ("crash", True),
    ]


def test_faults_happen_at_their_times_under_a_load_and_the_result_has_all_of_it(
    world: World, tmp_path: Path
) -> None:
    world.load(Load(model="digits", rate_per_s=10, via=("us-east",)), for_s=6.0)
    world.at(2.0, faults.Crash(nodes=("eu-west-2",)))
    world.run_for(8.0)
    world.check()
    result = world.result()
    assert [round(mark.time_s, 3) for mark in result.marks] == [2.0]
    chosen = choose(result)
    assert 30 < METRICS["requests"].find(chosen) < 100
    assert METRICS["error_rate"].find(chosen) == 0.0
    assert "eu-west-2" in {event.subject for event in result.events if event.kind == "member.dead"}
    assert len(result.samples) >= 8
    world.report(tmp_path / "out.html")
    assert "seed=7" in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("depth", ["A", "B"])
def test_one_seed_is_one_world_and_another_seed_is_another(depth: Depth) -> None:
    def trace(seed: int) -> str:
        with World(REGIONS, MODELS, seed=seed, depth=depth) as world:
            world.start()
            world.load(Load(model="digits", rate_per_s=20), for_s=1.0)
            world.run_for(2.0)
            return world.result().trace_hash

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_two_loads_of_one_world_draw_different_arrivals() -> None:
    with World(REGIONS, MODELS, depth="A") as world:
        world.start()
        for _ in range(2):
            world.load(Load(model="digits", rate_per_s=20), for_s=1.0)
            world.run_for(2.0)
        times = [call.made_at_s for call, _ in world.result().calls]
    first = [round(time_s, 6) for time_s in times if time_s < 1.5]
    assert first != [round(time_s - 2.0, 6) for time_s in times if time_s > 1.5]


def test_what_does_not_come_about_is_an_error_with_the_seed() -> None:
    with World(REGIONS, depth="A", seed=11) as world:
        world.start()
        with pytest.raises(NotReachedError, match=r"peace did not come about within 1 s \(seed 11"):
            world.run_until(lambda: False, 1.0, "peace")


def test_a_scenario_of_the_library_is_a_world_without_its_load_and_faults() -> None:
    with World.of("region-loss", seed=3, depth="A") as world:
        assert world.scenario.seed == 3
        assert world.scenario.load == ()
        assert world.scenario.faults == ()
        assert world.scenario.nodes != ()


def test_misuse_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match="eu-wets"):
        World([Region("eu-wets"), Region("us-east")])
    with pytest.raises(UsageError, match="sim up"):
        World(REGIONS, depth="C")
    world = World(REGIONS, MODELS, depth="A")
    with pytest.raises(UsageError, match="start"):
        world.run_for(1.0)
    world.start()
    with pytest.raises(UsageError, match="starts once"):
        world.start()
    with pytest.raises(UsageError, match="there are digits"):
        world.call("letters")
    with pytest.raises(UsageError, match="no gateway; there are eu-west-1"):
        world.call("digits", via="nobody")
    with pytest.raises(ConfigError, match="nobody"):
        world.apply(faults.Crash(nodes=("nobody",)))
    with pytest.raises(UsageError, match="depth='B'"):
        world.session()
    world.run_for(2.0)
    with pytest.raises(UsageError, match="passed already"):
        world.at(1.0, faults.Crash(nodes=("all",)))
    world.close()
    world.close()
    with pytest.raises(UsageError, match="closed"):
        world.run_for(1.0)


# Depth B: HTTP.


@pytest.fixture
def daemons() -> Iterator[World]:
    """A started world of whole daemons."""
    network = NetworkPart(near_rtt_ms=10.0, jitter=0.0)
    with World([Region("eu-west", nodes=2)], MODELS, seed=5, network=network) as made:
        yield made.start()


def test_a_body_speaks_http_with_the_gateways_in_virtual_time(daemons: World) -> None:
    async def body() -> tuple[int, str, float]:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(100.0)
        async with (
            daemons.session() as session,
            session.post(
                f"{daemons.url('eu-west-2')}/v2/models/digits/infer",
                json={"inputs": stand_in_inputs(body="x")},
            ) as answer,
        ):
            found = await answer.json()
        return answer.status, found["model_name"], asyncio.get_running_loop().time() - began

    status, model, took_s = daemons.run(body)
    assert (status, model) == (200, "digits")
    assert 100.02 < took_s < 100.5  # a connection and a request are two round trips of 10 ms
    assert daemons.run(asyncio.sleep(1.0, "awaited")) == "awaited"
    with pytest.raises(UsageError, match="no node 'eu-west-3'; there are eu-west-1, eu-west-2"):
        daemons.url("eu-west-3")


def test_a_body_can_hurt_the_mesh_but_not_let_time_pass_for_others(daemons: World) -> None:
    async def body() -> list[str]:
        daemons.apply(faults.Crash(nodes=("eu-west-2",)))
        states = [daemons.sample().nodes["eu-west-2"].state]
        with pytest.raises(UsageError, match="await asyncio"):
            daemons.run_for(1.0)
        with pytest.raises(UsageError, match="await the coroutine"):
            daemons.run(asyncio.Event().wait)
        await asyncio.sleep(0.5)
        daemons.apply(faults.Restart(nodes=("eu-west-2",)))
        await asyncio.sleep(5.0)
        return [*states, daemons.sample().nodes["eu-west-2"].state]

    assert daemons.run(body) == ["down", "up"]
    daemons.check()


def test_a_body_that_fails_or_hangs_says_so_and_the_world_goes_on(daemons: World) -> None:
    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        daemons.run(fails)
    with pytest.raises(TimeoutError):
        daemons.run(asyncio.Event().wait, limit_s=30.0)
    assert daemons.call("digits").code == "ok"


def test_an_application_of_ones_own_reaches_the_mesh_with_sessions_that_it_makes_itself(
    daemons: World,
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        async with aiohttp.ClientSession(headers=daemons.headers) as session:
            url = f"{daemons.url('eu-west-1')}/v2/models/digits/infer"
            async with session.post(url, json={"inputs": stand_in_inputs()}) as found:
                return web.json_response({"status": found.status})

    app = web.Application()
    app.router.add_get("/", answer)
    url = daemons.serve(app, name="shop")

    async def body() -> dict[str, int]:
        connector = aiohttp.TCPConnector(limit=3, keepalive_timeout=5)
        assert isinstance(connector, aiohttp.TCPConnector)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url) as found,
        ):
            told: dict[str, int] = await found.json()
        return told

    async def outside() -> bool:
        with sessions_of_the_world():
            connector = aiohttp.TCPConnector()
            await connector.close()
        return type(connector) is aiohttp.TCPConnector

    before = aiohttp.TCPConnector
    assert asyncio.run(outside())
    assert daemons.run(body) == {"status": 200}
    assert aiohttp.TCPConnector is before


def test_outcomes_have_a_name_of_their_own_in_the_package() -> None:
    assert Outcome("ok", 1.0).gateways == 1


PROBE = """
import aiohttp
from meshnode.examples.region_loss.shop import make_shop
from meshnode.sim import Model, Region, World, faults, stand_in_inputs

with World([Region("eu-west"), Region("us-east")], [Model(name="suggestions")], seed=3) as world:
    world.start()
    gateways = [world.url(node) for node in world.nodes]
    shop = make_shop(gateways, world.headers, lambda name: stand_in_inputs(body=name))
    url = world.serve(shop)
    world.at(0.5, faults.RegionDown(region="eu-west"))

    async def customers():
        async with aiohttp.ClientSession() as session:
            while world.now < 2.0:
                async with session.get(f"{url}/suggestions/ada") as answer:
                    await answer.read()

    world.run(customers, region="us-east")
    print(world.result().trace_hash)
"""


def test_a_world_with_an_application_has_one_trace_whatever_the_hashes_of_strings_are() -> None:
    def trace(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert trace("1") == trace("2")
