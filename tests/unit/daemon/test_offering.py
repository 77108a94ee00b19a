"""How models are offered: by deployments and configurations, changed without loading, and never twice at one path."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon.offering import check_offer, lost_paths, offer_view
from meshnode.errors import InvalidRequest, ModelError
from meshnode.models.execution import Execution, Interface, Route
from meshnode.models.exposure import Exposure
from meshnode.models.http_calls import HTTP_TENSORS
from meshnode.models.manifest import Manifest
from meshnode.state.deployment import Deployment
from tests.unit.daemon.conftest import LIMIT_S
from tests.unit.daemon.test_publications import until

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons, Running

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


async def deploy(running: Running, **wish: Any) -> Any:
    return await running.post("/mesh/v1/deployments", {"path": str(DIGITS), **wish})


async def ready(running: Running, name: str = "digits") -> Any:
    async with asyncio.timeout(LIMIT_S):
        while True:
            entry = await running.get(f"/mesh/v1/models/{name}")
            if [each["state"] for each in entry["replicas"]] == ["ready"]:
                return entry
            await asyncio.sleep(0.02)


async def test_a_deployment_offers_a_model_and_changes_that_without_loading_it_again(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await deploy(alpha, endpoint="/read-digit/", on=["alpha"])
    entry = await ready(alpha)
    assert (entry["endpoint"], entry["tasks"], entry["cache"]) == ("/read-digit", [], None)
    version = entry["versions"]
    await deploy(alpha, endpoint="/digit", cache=True, on=["alpha"])
    entry = await ready(alpha)
    assert (entry["endpoint"], entry["cache"], entry["versions"]) == ("/digit", True, version)

    async def heard() -> Any:
        return (await beta.get("/mesh/v1/models"))[0]["endpoint"] == "/digit"

    await until(heard, "beta hears of it")
    told = await deploy(alpha, on=["alpha"])
    assert told["warnings"] == [
        "digits is no longer offered at /digit; to keep that, deploy with --path /digit again",
        "digits is no longer offered with answers that are kept; to keep that, deploy with --cache again",
    ]
    entry = await ready(alpha)
    assert (entry["endpoint"], entry["cache"]) == (None, None), "each deployment says all of it"


async def test_no_two_models_are_offered_at_one_path(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    await deploy(alpha, name="first", endpoint="/digit")
    with pytest.raises(ModelError, match="models 'second' and 'first' both answer POST /digit"):
        await deploy(alpha, name="second", endpoint="/digit/")
    await deploy(alpha, name="second", endpoint="/digit-too")
    await deploy(alpha, name="first")
    await deploy(alpha, name="second", endpoint="/digit")


def shop(name: str, path: str = "", *routes: str) -> Manifest:
    execution = Execution(
        interface=Interface.HTTP, routes=tuple(Route("POST", route) for route in routes)
    )
    exposure = Exposure(path)
    inputs = HTTP_TENSORS
    return Manifest(
        name, 1, "python", "python", inputs, inputs, 0, (), "", execution, exposure=exposure
    )


def test_who_is_not_asked_at_a_path_is_told_by_whom_it_is_taken() -> None:
    models = [
        shop("b", "/run"),
        shop("c", "/run"),
        shop("a", "", "/run", "/own"),
        shop("d", "", "/own"),
    ]
    assert {each.model: lost_paths(each, models) for each in models} == {
        "b": [],
        "c": [("/run", "b")],
        "a": [("/run", "b")],
        "d": [("/own", "a")],
    }
    assert offer_view(models[1], models)["taken"] == [{"path": "/run", "by": "b"}]


def test_a_model_whose_route_another_one_has_by_choice_is_refused() -> None:
    node = SimpleNamespace(
        deployments=lambda: [Deployment("digits", (shop("digits", "/numbers"),), 1, ())],
        router=SimpleNamespace(table=SimpleNamespace(manifests=lambda: ())),
    )
    later = Deployment("aaa", (shop("aaa", "", "/numbers"),), 1, ())
    with pytest.raises(ModelError, match="models 'aaa' and 'digits' both answer POST /numbers"):
        check_offer(later, cast("Any", node))


async def test_a_task_that_a_model_cannot_do_is_refused_when_it_is_deployed(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    with pytest.raises(InvalidRequest, match="maps the input 'words'"):
        await deploy(alpha, tasks=["embedding:input=words"])
    with pytest.raises(InvalidRequest, match="not a task"):
        await deploy(alpha, tasks=["paint"])
    with pytest.raises(InvalidRequest, match="the mesh itself answers"):
        await deploy(alpha, endpoint="/mesh/v1/nodes")
    assert await alpha.get("/mesh/v1/models") == []


async def test_a_published_model_is_offered_as_its_deployment_says(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    await alpha.post("/mesh/v1/artifacts", {"path": str(DIGITS)})
    wish = {"artifact": "digits", "endpoint": "/digit", "cache": False}
    await alpha.post("/mesh/v1/deployments", wish)
    entry = await ready(alpha)
    assert (entry["endpoint"], entry["cache"]) == ("/digit", False)


async def test_a_model_of_ones_own_folder_is_offered_as_its_configuration_says(
    daemons: Daemons, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "digits"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    said = 'parameters { key: "meshnode_path" value { string_value: "/digit" } }'
    (folder / "config.pbtxt").write_text(said)
    alpha = await daemons.start("alpha", models=str(tmp_path / "models")).ready()

    async def is_told() -> Any:
        return await alpha.get("/mesh/v1/models")

    await until(is_told, "the folder's model is told")
    assert (await ready(alpha))["endpoint"] == "/digit"


async def test_publishing_a_model_that_is_offered_otherwise_is_news_of_the_same_version(
    daemons: Daemons, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    alpha = await daemons.start("alpha").ready()
    for path in ("/first", "/second"):
        said = f'parameters {{ key: "meshnode_path" value {{ string_value: "{path}" }} }}'
        (folder / "config.pbtxt").write_text(said)
        await alpha.post("/mesh/v1/artifacts", {"path": str(folder)})
        await alpha.post("/mesh/v1/deployments", {"artifact": "reader"})
        entry = await ready(alpha, "reader")
        assert (entry["endpoint"], entry["versions"]) == (path, [1])
