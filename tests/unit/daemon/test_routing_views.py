"""Two whole nodes: where a request would go, where it went, and the same again from the log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.routing.decisions import read, replay
from meshnode.types import Address

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
EXPLAIN = "/mesh/v1/models/digits/explain"


async def test_a_decision_is_explained_beforehand_and_replayed_afterwards(
    daemons: Daemons, tmp_path: Path
) -> None:
    path = tmp_path / "decisions.log"
    alpha = await daemons.start(
        "alpha", http=Address("127.0.0.1", 0), decision_log=str(path)
    ).ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await alpha.post("/mesh/v1/deployments", {"path": str(DIGITS), "on": ["beta"]})
    told = await alpha.get(f"{EXPLAIN}?rows=2")
    while not told["candidates"]:
        await asyncio.sleep(0.02)
        told = await alpha.get(f"{EXPLAIN}?rows=2")
    assert (told["gateway"], told["version"], told["reason"]) == ("alpha", 1, "only-candidate")
    (candidate,) = told["candidates"]
    assert (candidate["name"], candidate["odds"], candidate["dropped"]) == ("beta", 1.0, "")
    assert candidate["terms"]["service_ms"] > 0
    assert candidate["terms"]["rtt_ms"] > 0

    image = [[[0.0] * 8 for _ in range(8)]]
    await alpha.post("/mesh/v1/models/digits/infer", {"inputs": {"image": image}})
    kept = await alpha.get("/mesh/v1/decisions")
    assert [each["model"] for each in kept] == ["digits"]
    assert kept[0]["time"].endswith("Z")
    assert replay(read(json.dumps(kept[0]))).is_same
    assert await beta.stop() == 0
    told = await alpha.get(EXPLAIN)
    while told["candidates"]:
        await asyncio.sleep(0.02)
        told = await alpha.get(EXPLAIN)
    assert told["reason"] == ""
    assert await alpha.stop() == 0
    line = path.read_text(encoding="utf-8").splitlines()[0]
    assert replay(read(line)).is_same
    assert read(line).number == kept[0]["number"]
