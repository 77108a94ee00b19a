"""The mesh's models as a repository, of one daemon on loopback: what is replaced can be had back."""

from __future__ import annotations

import asyncio
import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import reconcile
from meshnode.daemon.repository_files import archive_version
from meshnode.errors import InvalidRequest, MeshError
from tests.unit.models.conftest import add_and_subtract

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Daemons, Running

CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [{"name": name, "data_type": "TYPE_INT32", "dims": [2]} for name in ("a", "b")],
    "output": [
        {"name": name, "data_type": "TYPE_INT32", "dims": [2]} for name in ("sum", "difference")
    ],
}


class Asked:
    """One daemon, and two versions of a model on its disk."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.running = running
        self.paths = []
        for number, shape in enumerate([("n", 2), ("m", 2)], 1):
            path = folder / f"v{number}" / "sums.onnx"
            path.parent.mkdir()
            path.write_bytes(add_and_subtract(shape))
            self.paths.append(path)

    async def register(self, number: int) -> Any:
        path = f"/models?url={self.paths[number - 1]}&initial_workers=1&synchronous=true"
        return await self.running.post(path, {})

    async def put(self, path: str) -> Any:
        return await asyncio.to_thread(self.running.client.put, path, {}, timeout_s=30)

    async def ready(self) -> list[int]:
        """Return the versions that are ready."""
        found = await self.running.post("/v2/repository/index", {"ready": True})
        return sorted(int(each["version"]) for each in found)

    async def load(self, **parameters: Any) -> None:
        await self.running.post(
            "/v2/repository/models/sums/load", {"parameters": parameters} if parameters else {}
        )

    async def config(self) -> Any:
        return await self.running.get("/v2/models/sums/config")


@pytest.fixture
async def asked(daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(reconcile, "HANDOVER_S", 0.2)
    return Asked(await daemons.start("alpha").ready(), tmp_path)


async def test_versions_that_are_registered_are_served_side_by_side_and_are_in_the_store(
    asked: Asked,
) -> None:
    assert "Version: 1 registered" in (await asked.register(1))["status"]
    assert "Version: 2 registered" in (await asked.register(2))["status"]
    assert await asked.ready() == [1, 2]
    stored = await asked.running.get("/mesh/v1/artifacts")
    assert sorted(each["version"] for each in stored) == [1, 2]


async def test_another_default_is_set_and_set_back(asked: Asked) -> None:
    await asked.register(1)
    await asked.running.post("/mesh/v1/deployments", {"path": str(asked.paths[1])})
    for version in (1, 2, 1):
        await asked.put(f"/models/sums/{version}/set-default")
        assert version in await asked.ready()
        while await asked.ready() != [version]:  # noqa: ASYNC110 - the others go when it serves
            await asyncio.sleep(0.02)


async def test_no_workers_for_a_version_leaves_the_others(asked: Asked) -> None:
    await asked.register(1)
    await asked.register(2)
    with pytest.raises(MeshError, match="404"):
        await asked.put("/models/sums/99.0?min_worker=0")
    assert await asked.ready() == [1, 2]
    await asked.put("/models/sums/2?min_worker=0&synchronous=true")
    while await asked.ready() != [1]:  # noqa: ASYNC110 - another process could do it, too
        await asyncio.sleep(0.02)
    await asked.put("/models/sums/2?min_worker=1&synchronous=true")
    assert await asked.ready() == [1, 2]


async def test_more_workers_than_nodes_are_not_said_to_be_there(asked: Asked) -> None:
    await asked.register(1)
    with pytest.raises(MeshError, match="503"):
        await asked.put("/models/sums?min_worker=3&synchronous=true")


async def test_a_plain_load_takes_back_a_configuration_that_a_client_sent(asked: Asked) -> None:
    await asked.register(1)
    before = await asked.config()
    await asked.load(config=json.dumps(CONFIG))
    assert (await asked.config())["max_batch_size"] == 8 != before["max_batch_size"]
    await asked.load()
    assert await asked.config() == before


async def test_a_configuration_for_a_model_of_the_own_folder_is_refused_with_the_reason(
    daemons: Daemons, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sums.onnx").write_bytes(add_and_subtract())
    asked = Asked(await daemons.start("beta", models=str(tmp_path / "models")).ready(), tmp_path)
    async with asyncio.timeout(15):
        while await asked.ready() != [1]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    with pytest.raises(InvalidRequest, match="this node's own model folder"):
        await asked.load(config=json.dumps(CONFIG))


@pytest.mark.parametrize(
    ("version", "number"),
    [("5.0", 5), ("5", 5), ("12.0.0", 12), ("2.1", None), ("0.0", None), ("a", None), (5, None)],
)
def test_an_archives_version_is_its_number_where_it_is_whole(
    tmp_path: Path, version: Any, number: int | None
) -> None:
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelVersion": version}}))
    assert archive_version(path) == number
    path.write_bytes(b"no archive")
    assert archive_version(path) is None
