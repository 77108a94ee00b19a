"""A whole member: models deployed, served to peers and over HTTP, described, taken away."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import artifacts, load_sampling
from meshnode.errors import Forbidden, MeshError, ModelError, ModelNotFound, UsageError
from meshnode.hardware import usage
from meshnode.types import Address, Role
from tests.unit.daemon.conftest import LIMIT_S, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.daemon.conftest import Daemons, Running

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
LOOPBACK = Address("127.0.0.1", 0)
IMAGE = {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}


async def until(question: Callable[[], Awaitable[Any]], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not await question():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


async def http(running: Running, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    base = (await running.get("/mesh/v1/status"))["http"]
    data = None if body is None else json.dumps(body).encode()

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(base + path, data, 10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def deploy(running: Running, path: Path = DIGITS, **wish: Any) -> Any:
    body = {"path": str(path), "name": None, "replicas": None, "on": [], **wish}
    return await running.post("/mesh/v1/deployments", body)


async def is_ready(running: Running, count: int) -> bool:
    replicas = (await running.get("/mesh/v1/models/digits"))["replicas"]
    states: list[str] = [replica["state"] for replica in replicas]
    return states == ["ready"] * count


@pytest.mark.parametrize(("idle_interval_s", "is_often"), [(600.0, False), (0.0, True)])
async def test_a_node_that_serves_nothing_looks_at_its_load_seldom(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, idle_interval_s: float, is_often: bool
) -> None:
    looks = 0

    def utilisation() -> tuple[float, int]:
        nonlocal looks
        looks += 1
        return 0.5, 1 << 30

    monkeypatch.setattr(usage, "utilisation", utilisation)
    monkeypatch.setattr(load_sampling, "LOAD_INTERVAL_S", 0.005)
    monkeypatch.setattr(load_sampling, "IDLE_LOAD_INTERVAL_S", idle_interval_s)
    alpha = await daemons.start("alpha").ready()

    async def tells_load() -> bool:
        return bool((await alpha.get("/mesh/v1/nodes"))[0]["load"])

    await until(tells_load, "its load is told once")
    looks = 0
    await asyncio.sleep(0.2)
    assert (looks > 3) is is_often


async def test_a_model_is_deployed_to_a_peer_served_from_it_and_taken_away(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.05)
    monkeypatch.setattr(load_sampling, "LOAD_INTERVAL_S", 0.05)
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    beta = await daemons.start("beta", await alpha.invite(), http=LOOPBACK).ready()
    await alpha.sees(2)
    entry = await deploy(alpha, on=["beta"])
    assert (entry["name"], entry["wanted"], entry["placed"]) == ("digits", 1, ["beta"])
    await until(lambda: is_ready(alpha, 1), "beta serves it")
    status, body = await http(alpha, "/v2/models/digits/infer", {"inputs": [IMAGE]})
    assert status == 200
    assert json.loads(body)["model_name"] == "digits"
    assert (await http(alpha, "/v2/models/digits/ready"))[0] == 200
    assert (await http(alpha, "/v2/models/digits/versions/9/ready"))[0] == 404
    assert (await http(alpha, "/v2/models/nothing"))[0] == 404
    assert (await http(alpha, "/readyz"))[0] == 200
    status, metrics = await http(alpha, "/metrics")
    assert 'meshnode_members{state="alive"} 2' in metrics
    assert "meshnode_links 1" in metrics
    assert 'meshnode_notes_sent_total{kind="' in metrics
    assert 'kind="other"' not in metrics
    status, metrics = await http(beta, "/metrics")
    assert 'meshnode_replicas{state="ready"} 1' in metrics
    assert 'meshnode_peer_requests_total{outcome="ok"} 1' in metrics
    assert 'meshnode_model_slots{model="digits",version="1"}' in metrics
    assert (await beta.get("/mesh/v1/models"))[0]["name"] == "digits"

    async def tells_load() -> bool:
        nodes = await alpha.get("/mesh/v1/nodes")
        return any(node["load"].get("models") for node in nodes if node["name"] == "beta")

    await until(tells_load, "its load is told")
    await asyncio.to_thread(alpha.client.delete, "/mesh/v1/deployments/digits")

    async def is_gone() -> bool:
        return not await alpha.get("/mesh/v1/models")

    await until(is_gone, "it is taken away")


async def test_wishes_that_cannot_be_are_refused_with_why(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    with pytest.raises(UsageError, match="no node is called 'gamma'; there are alpha"):
        await deploy(alpha, on=["gamma"])
    with pytest.raises(UsageError, match="2 replicas do not fit on 1 node"):
        await deploy(alpha, on=["alpha", "alpha"], replicas=2)
    with pytest.raises(ModelError):
        await deploy(alpha, Path("/nowhere"))
    with pytest.raises(ModelNotFound):
        await asyncio.to_thread(alpha.client.delete, "/mesh/v1/deployments/digits")
    with pytest.raises(ModelNotFound, match="no node of this mesh has a model 'digits'"):
        await alpha.get("/mesh/v1/models/digits")
    models = daemons.folder / "several"
    for name in ("one", "two"):
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    with pytest.raises(ModelError, match=r"several models .*one, two"):
        await deploy(alpha, models)


async def test_names_that_several_nodes_have_need_an_id(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    twin = await daemons.start(
        "alpha", await alpha.invite(), data_dir=str(daemons.folder / "twin")
    ).ready()
    await alpha.sees(2)
    with pytest.raises(UsageError, match="several nodes are called 'alpha'; name one by its"):
        await deploy(alpha, on=["alpha"])
    identity = (await twin.get("/mesh/v1/status"))["id"]
    assert (await deploy(alpha, on=[identity]))["wanted"] == 1


async def test_a_file_that_changed_is_a_new_version_and_the_same_one_is_not(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    model = daemons.folder / "digits.onnx"
    model.write_bytes(DIGITS.read_bytes())
    assert (await deploy(alpha, model))["versions"] == [1]
    assert (await deploy(alpha, model))["versions"] == [1]
    import onnx

    changed = onnx.load(model)
    changed.doc_string = "changed"
    onnx.save(changed, model)
    assert 2 in (await deploy(alpha, model))["versions"]


async def test_a_plain_member_changes_nothing(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    monkeypatch.setattr(Role, "allows", lambda self, needed: False)
    with pytest.raises(Forbidden, match="that needs an operator's node"):
        await deploy(alpha)


async def test_a_damaged_list_of_members_is_dropped_and_said(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    await alpha.stop()
    (daemons.folder / "alpha" / "state" / "members").write_bytes(b"garbage")
    await daemons.start("alpha").ready()
    assert "list of known members is damaged" in caplog.text


async def test_a_part_of_the_node_that_stops_by_mistake_is_logged(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> tuple[float, int]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("meshnode.hardware.usage.utilisation", broken)
    alpha = await daemons.start("alpha").ready()
    await eventually(lambda: "a part of this node stopped" in caplog.text)
    assert (await alpha.get("/mesh/v1/status"))["state"] == "running"


async def test_log_lines_of_members_name_them(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await beta.stop()
    await eventually(lambda: "member.left beta" in caplog.text)
    with pytest.raises(MeshError):
        await beta.get("/mesh/v1/status")
