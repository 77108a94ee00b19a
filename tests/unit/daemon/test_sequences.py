"""Sequences over a mesh of whole daemons: two serve a model with a state, and any gateway is asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from meshnode.errors import InvalidRequest, SequenceLost
from tests.unit.daemon.conftest import LIMIT_S
from tests.unit.models.conftest import TensorType, onnx_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.unit.daemon.conftest import Daemons, Running

CONFIG = """
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  state { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: 1 }
}
"""


def write_sum(folder: Path) -> str:
    """Write a model that answers with the sum of its sequence so far; return its repository."""
    column: TensorType = (TensorProto.FLOAT, ["n", 1])
    nodes = [
        helper.make_node("Add", ["x", "before"], ["y"]),
        helper.make_node("Identity", ["y"], ["after"]),
    ]
    content = onnx_model(nodes, {"x": column, "before": column}, {"y": column, "after": column})
    (folder / "sum" / "1").mkdir(parents=True)
    (folder / "sum" / "1" / "model.onnx").write_bytes(content)
    (folder / "sum" / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    return str(folder)


async def add(gateway: Running, sequence_id: int | str, x: float, **parameters: bool) -> Any:
    """Send one request of a sequence to a gateway; return its answer."""
    return await asyncio.to_thread(
        gateway.client.infer,
        "sum",
        {"x": np.array([[x]], np.float32)},
        parameters={"sequence_id": sequence_id, **parameters},
        timeout_s=5.0,
    )


async def until(question: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not await question():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


async def reaches(gateway: Running, *names: str) -> bool:
    """Whether a gateway knows that these nodes serve the model, and can ask each of them."""
    seen = {each["name"]: each for each in await gateway.get("/mesh/v1/nodes")}
    models = await gateway.get("/mesh/v1/models")
    ready = {
        replica["node"]
        for model in models
        for replica in model["replicas"]
        if replica["state"] == "ready"
    }
    return ready == set(names) and all(name in seen and seen[name]["linked"] for name in names)


async def test_a_sequence_is_one_through_any_gateway_until_its_node_is_gone(
    daemons: Daemons,
) -> None:
    models = write_sum(daemons.folder / "models")
    alpha = await daemons.start("alpha", models=models).ready()
    beta = await daemons.start("beta", await alpha.invite(), models=models).ready()
    gamma = await daemons.start("gamma", await alpha.invite()).ready()
    gateways = [alpha, beta, gamma]
    for gateway in gateways:
        await until(lambda each=gateway: reaches(each, "alpha", "beta"), "all reach both")  # type: ignore[misc]

    homes = {}
    for number in range(1, 13):
        first = await add(gateways[number % 3], number, 1.0, sequence_start=True)
        homes[number] = first.route.node
        for step, gateway in enumerate(gateways, start=2):
            answer = await add(gateway, number, 1.0)
            assert answer["y"].tolist() == [[float(step)]]
            assert answer.route.node == homes[number]
    assert set(homes.values()) == {"alpha", "beta"}

    with pytest.raises(InvalidRequest, match="needs sequence_start"):
        await add(gamma, 99, 1.0)
    with pytest.raises(InvalidRequest, match="needs the parameter 'sequence_id'"):
        await add(gamma, 0, 1.0)

    await beta.stop()
    await until(lambda: reaches(gamma, "alpha"), "beta is gone")
    for number, home in homes.items():
        if home == "alpha":
            assert (await add(gamma, number, 1.0))["y"].tolist() == [[5.0]]
            continue
        with pytest.raises(SequenceLost, match=r"was on beta.*start the sequence anew"):
            await add(gamma, number, 1.0)
        anew = await add(gamma, number, 1.0, sequence_start=True)
        assert (anew["y"].tolist(), anew.route.node) == ([[1.0]], "alpha")
        with pytest.raises(SequenceLost):  # each gateway that saw it there says so once
            await add(alpha, number, 1.0)
        assert (await add(alpha, number, 1.0))["y"].tolist() == [[2.0]]


async def test_a_node_that_is_drained_gives_its_sequences_away_and_none_is_lost(
    daemons: Daemons,
) -> None:
    models = write_sum(daemons.folder / "models")
    alpha = await daemons.start("alpha", models=models).ready()
    beta = await daemons.start("beta", await alpha.invite(), models=models).ready()
    gamma = await daemons.start("gamma", await alpha.invite()).ready()
    for gateway in (alpha, beta, gamma):
        await until(lambda each=gateway: reaches(each, "alpha", "beta"), "all reach both")  # type: ignore[misc]
    homes = {}
    for number in range(1, 13):
        first = await add([alpha, beta][number % 2], number, 1.0, sequence_start=True)
        homes[number] = first.route.node
    assert set(homes.values()) == {"alpha", "beta"}

    await asyncio.to_thread(alpha.client.drain, "beta")
    sums = dict.fromkeys(homes, 1)
    drained = False
    while (
        not drained
    ):  # requests come all the time, through gateways that saw it begin and one that did not
        drained = (await asyncio.to_thread(alpha.client.drain_state, "beta")).is_drained
        for number, home in homes.items():
            sums[number] += 1
            answer = await add([alpha, beta, gamma][number % 3], number, 1.0)
            assert answer["y"].tolist() == [[float(sums[number])]]
            assert answer.route.node in ("alpha", home)
    for number in homes:
        answer = await add(gamma, number, 1.0, sequence_end=True)
        assert answer["y"].tolist() == [[float(sums[number] + 1)]]
        assert answer.route.node == "alpha"
    assert (await alpha.get("/mesh/v1/nodes/beta/drain"))["ended"] == 0
