"""Whole daemons whose battery is in use: they stop serving, say so, and come back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import owner_limits, reconcile
from meshnode.daemon import artifacts, watch
from meshnode.daemon.surroundings import RealHardware
from meshnode.errors import ModelNotFound
from meshnode.hardware.power import Power, PowerReader
from tests.unit.daemon.test_member import DIGITS, IMAGE, LOOPBACK, deploy, http, until

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons, Running

ASK = {"inputs": [IMAGE]}
INFER = "/v2/models/digits/infer"
HANDOVER_S = 0.5  # shorter than in life


class Plug:
    """The power that all daemons of a test read; only some have been told to care."""

    on_mains = True


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    plug = Plug()
    monkeypatch.setattr(PowerReader, "power", lambda _: Power(plug.on_mains, 50.0))
    monkeypatch.setattr(watch, "LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr(owner_limits, "MAINS_STEADY_S", 0.2)
    monkeypatch.setattr(reconcile, "HANDOVER_S", HANDOVER_S)
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.05)
    return plug


async def states(running: Running) -> dict[str, tuple[str, str]]:
    try:
        replicas = (await running.get("/mesh/v1/models/digits"))["replicas"]
    except ModelNotFound:  # not yet
        return {}
    return {each["node"]: (each["state"], each["reason"]) for each in replicas}


async def test_a_replica_on_battery_is_paused_and_others_answer_until_it_is_back(
    daemons: Daemons, plug: Plug
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    beta = await daemons.start(
        "beta", await alpha.invite(), http=LOOPBACK, only_on_mains=True
    ).ready()
    await alpha.sees(2)
    await deploy(alpha, replicas=2)
    both = {"alpha": ("ready", ""), "beta": ("ready", "")}

    async def shows(wanted: dict[str, tuple[str, str]], running: Running) -> bool:
        return await states(running) == wanted

    await until(lambda: shows(both, alpha), "both serve")
    plug.on_mains = False
    paused = {**both, "beta": ("paused", "on battery")}
    await until(lambda: shows(paused, alpha), "alpha sees that beta is paused")
    await until(lambda: shows(paused, beta), "beta sees it too")
    status = await beta.get("/mesh/v1/status")
    assert (status["state"], status["paused"]) == ("paused", "on battery")
    metrics = (await http(beta, "/metrics"))[1]
    assert 'meshnode_replicas{state="paused"} 1' in metrics
    assert 'meshnode_replicas{state="ready"} 0' in metrics
    assert (await http(beta, INFER, ASK))[0] == 200  # it stays a gateway

    async def is_ineligible() -> Any:
        entry = await alpha.get("/mesh/v1/models/digits")
        return [each["reason"] for each in entry["ineligible"]] == ["paused: on battery"]

    await until(is_ineligible, "placement passes it over")
    nodes = {node["name"]: node for node in await alpha.get("/mesh/v1/nodes")}
    assert nodes["beta"]["capabilities"]["paused"] == "on battery"
    assert nodes["beta"]["load"].get("battery_percent", 50.0) == 50.0
    await asyncio.sleep(HANDOVER_S + 0.5)  # beta's replica is let go: alpha serves all there is
    assert (await http(beta, INFER, ASK))[0] == 200
    plug.on_mains = True
    await until(lambda: shows(both, alpha), "both serve again")


async def test_where_nobody_else_serves_the_answer_is_503_with_the_reason(
    daemons: Daemons, plug: Plug, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    repository = daemons.folder / "repository"
    repository.mkdir()
    (repository / "digits.onnx").write_bytes(DIGITS.read_bytes())
    plug.on_mains = False
    alpha = await daemons.start(
        "alpha", http=LOOPBACK, models=str(repository), only_on_mains=True
    ).ready()

    async def is_paused() -> bool:
        return await states(alpha) == {"alpha": ("paused", "on battery")}

    async def answers() -> bool:
        return (await http(alpha, INFER, ASK))[0] == 200

    await until(is_paused, "it starts paused, with its own folder loaded")
    status, body = await http(alpha, INFER, ASK)
    assert status == 503
    assert "alpha: paused: on battery" in body
    plug.on_mains = True
    await until(answers, "it serves once it is on mains")
    assert "node.resumed alpha" in caplog.text


async def test_above_its_memory_limit_a_node_answers_503_and_recovers(
    daemons: Daemons, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    rss_bytes = 100_000_000
    monkeypatch.setattr(RealHardware, "rss_bytes", lambda _: rss_bytes)
    alpha = await daemons.start("alpha", http=LOOPBACK, max_memory_bytes=1_000_000_000).ready()
    await deploy(alpha)

    async def answers(status: int) -> bool:
        return (await http(alpha, INFER, ASK))[0] == status

    await until(lambda: answers(200), "it serves")
    rss_bytes = 1_100_000_000
    await until(lambda: answers(503), "it refuses")
    rss_bytes = 100_000_000
    await until(lambda: answers(200), "it serves again")
