"""What a type checker knows of the public names: `make check` reads this file, pytest runs nothing."""

from __future__ import annotations

import inspect
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from meshnode import (
    AsyncMeshClient,
    AsyncStream,
    DeployedVersion,
    DeploymentInfo,
    InferResult,
    InputTensor,
    JobInfo,
    KeyInfo,
    MeshClient,
    MeshEvent,
    ModelInfo,
    ModelMetadata,
    NewKey,
    NodeInfo,
    NodeStatus,
    PlainResult,
    Route,
    Stream,
    Webhook,
)
from meshnode.client.progress_bar import ProgressBar


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
    assert_type(MeshClient.discover(mesh="ab"), MeshClient)


def use_streams_and_jobs(mesh: MeshClient) -> None:
    with mesh.stream("m", [1.0], total_s=5) as parts:
        assert_type(parts, Stream[InferResult])
        assert_type(next(parts), InferResult)
    assert_type(mesh.predict("m", {"x": [1]}), PlainResult)
    assert_type([each["y"] for each in mesh.predict_stream("m", {"x": [1]})], list[Any])
    assert_type(mesh.infer_later("m", [1.0], webhook=Webhook("https://a")), JobInfo)
    assert_type(mesh.wait_job("j", progress=lambda job: job.status.upper()), JobInfo)
    assert_type(mesh.watch_job("j"), Stream[JobInfo])
    assert_type(mesh.job_result("j"), InferResult)
    assert_type(mesh.job_prediction("j"), PlainResult)
    assert_type(mesh.jobs(status=["queued"]), list[JobInfo])
    assert_type(mesh.deployments(), list[DeploymentInfo])
    assert_type(mesh.deployment_of("m").versions, tuple[DeployedVersion, ...])
    assert_type(mesh.events(["member"]), Stream[MeshEvent])
    with ProgressBar() as bar:
        assert_type(mesh.deploy("m.onnx", progress=bar), ModelInfo)
        assert_type(mesh.wait_job("j", progress=bar), JobInfo)


async def use_later(mesh: AsyncMeshClient) -> None:
    assert_type(await mesh.infer("m", np.zeros(1)), InferResult)
    assert_type(await mesh.models(), list[ModelInfo])
    async with AsyncMeshClient("http://a") as other:
        assert_type(other, AsyncMeshClient)
    assert_type(await AsyncMeshClient.discover(), AsyncMeshClient)
    assert_type(mesh.stream("m", [1.0]), AsyncStream[InferResult])
    assert_type([job async for job in mesh.watch_job("j")], list[JobInfo])
    assert_type(await mesh.infer_later("m", [1.0]), JobInfo)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    waiting, later = methods(MeshClient), methods(AsyncMeshClient)
    assert later == waiting
