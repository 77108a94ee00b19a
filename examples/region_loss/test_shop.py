"""The shop keeps working when eu-west is lost; run it with `pytest test_shop.py`."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from meshnode.examples.region_loss.shop import make_shop
from meshnode.sim import Model, Region, Worlds, faults, stand_in_inputs


@pytest.mark.mesh_seeds(3)
def test_my_application_keeps_working_when_eu_west_is_lost(mesh_world: Worlds) -> None:
    """Customers of London get their answers, from us-east if need be."""
    world = mesh_world(
        [Region("eu-west", nodes=2), Region("us-east", nodes=2), Region("london", nodes=0)],
        [Model(name="suggestions")],
    ).start()
    gateways = [world.url("eu-west-1"), world.url("us-east-1")]
    shop = make_shop(gateways, world.headers, lambda name: stand_in_inputs(body=name))
    url = world.serve(shop, region="london", name="shop")
    world.at(5.0, faults.RegionDown(region="eu-west"))
    answers: list[tuple[float, int, str, float]] = []

    async def customers() -> None:
        async with aiohttp.ClientSession() as session:
            while world.now < 15.0:
                began = world.now
                async with session.get(f"{url}/suggestions/ada") as answer:
                    by = (await answer.json()).get("by", "nobody")
                    answers.append((began, answer.status, by, world.now - began))
                await asyncio.sleep(0.1)

    world.run(customers, region="london")

    assert {status for _, status, _, _ in answers} == {200}
    assert {by for began, _, by, _ in answers if began < 4.5} == {gateways[0]}
    assert {by for began, _, by, _ in answers if began > 6.0} == {gateways[1]}
    assert max(took for _, _, _, took in answers) < 2.5
    world.check()
