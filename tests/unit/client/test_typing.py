"""What a type checker knows of the public names: `make check` reads this file, pytest runs nothing."""

from __future__ import annotations

import inspect
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from meshnode import (
    AsyncMeshClient,
    InferResult,
    InputTensor,
    KeyInfo,
    MeshClient,
    ModelInfo,
    ModelMetadata,
    NewKey,
    NodeInfo,
    NodeStatus,
    Route,
)


def use(mesh: MeshClient) -> None:
    result = mesh.infer("m", {"x": np.zeros(1), "y": [1, 2], "z": InputTensor([1], "FP16")})
    assert_type(result, InferResult)
    assert_type(result["x"], NDArray[Any])
    assert_type(result.route, Route)
    assert_type(result.route.tried, tuple[tuple[str, str], ...])
    assert_type(mesh.infer("m", [[1.0]]), InferResult)
    assert_type(mesh.models(), list[ModelInfo])
    assert_type(mesh.nodes(), list[NodeInfo])
    assert_type(mesh.status(), NodeStatus)
    assert_type(mesh.metadata("m"), ModelMetadata)
    assert_type(mesh.ready(), bool)
    assert_type(mesh.deploy("m.onnx", progress=lambda step: step.text.upper()), ModelInfo)
    assert_type(mesh.create_key("k", scopes=["deploy"]), NewKey)
    assert_type(mesh.keys(), list[KeyInfo])
    with MeshClient.local() as mine:
        assert_type(mine, MeshClient)


async def use_later(mesh: AsyncMeshClient) -> None:
    assert_type(await mesh.infer("m", np.zeros(1)), InferResult)
    assert_type(await mesh.models(), list[ModelInfo])
    async with AsyncMeshClient("http://a") as other:
        assert_type(other, AsyncMeshClient)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_") and inspect.isfunction(method)
        }

    waiting, later = methods(MeshClient), methods(AsyncMeshClient)
    assert later == waiting
