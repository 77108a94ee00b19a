from __future__ import annotations

import random

import pytest

from meshnode.deployments import Deployments
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.state.config import DesiredConfig
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired import DesiredState
from meshnode.types import NodeId


def manifest(name: str = "m", runtime: str = "onnx", content: str = "x") -> Manifest:
    files = (FileEntry(content, 1, bytes(32)),)
    return Manifest(name, 1, runtime, runtime, (), (), 0, files, content)


def deployment(name: str = "m", runtime: str = "onnx", content: str = "x") -> Deployment:
    return Deployment(name, (manifest(name, runtime, content),))


@pytest.fixture
def desired() -> DesiredState:
    return DesiredState(
        NodeId("me"),
        sign=lambda _data: b"",
        verify=lambda _entry: None,
        config=DesiredConfig(),
        rng=random.Random(1),
    )


def put(core: DesiredState, key: str, value: bytes, wall_s: float) -> None:
    """Write as a driver with a working disk does; an empty value deletes."""
    draft = core.draft({key: value}, wall_s)
    core.commit(draft)


def test_a_deployment_is_decoded_once_for_each_of_its_values(desired: DesiredState) -> None:
    deployments = Deployments(desired)
    assert deployments.get("m") is None
    assert deployments.flaw("m") is None
    put(desired, KEY_PREFIX + "m", deployment().encode(), 1000.0)
    first = deployments.get("m")
    assert first is not None
    assert first.deployment == deployment()
    assert [[each.digest for each in every] for every in first.versions.values()] == [
        [manifest().digest]
    ]
    assert deployments.get("m") is first
    assert repr(deployments) == "<Deployments: 1 decoded>"
    put(desired, KEY_PREFIX + "m", deployment(content="y").encode(), 1001.0)
    second = deployments.get("m")
    assert second is not None
    assert second.deployment == deployment(content="y")
    put(desired, KEY_PREFIX + "m", b"", 1002.0)
    assert deployments.get("m") is None
    assert repr(deployments) == "<Deployments: 0 decoded>"


def test_what_is_no_deployment_is_left_alone_with_a_reason(desired: DesiredState) -> None:
    put(desired, KEY_PREFIX + "odd", b"\xc1", 1000.0)
    put(desired, KEY_PREFIX + "other", deployment("m").encode(), 1000.0)
    put(desired, KEY_PREFIX + "m", deployment("m").encode(), 1000.0)
    put(desired, "policy/m", b"something else", 1000.0)
    deployments = Deployments(desired)
    assert deployments.names() == ["m", "odd", "other"]
    assert [name for name in deployments.names() if deployments.get(name)] == ["m"]
    assert "not a deployment" in str(deployments.flaw("odd"))
    assert deployments.flaw("other") == "the value under 'other' is a deployment of 'm'"
    assert deployments.flaw("m") is None
