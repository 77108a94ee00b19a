from __future__ import annotations

import msgspec
import pytest

from meshnode.errors import ModelError, ProtocolError, TooLarge
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.state.deployment import Deployment
from meshnode.types import DataType, NodeId, node_id_of

NODE = node_id_of(bytes(32))


def manifest(model: str = "digits", version: int = 1, files: int = 1) -> Manifest:
    tensor = TensorSpec("x", DataType.FP32, (-1, 64))
    entries = tuple(FileEntry(f"f{i}.onnx", 10, bytes(32)) for i in range(files))
    return Manifest(
        model, version, "onnx", "onnxruntime_onnx", (tensor,), (tensor,), 0, entries, "f0.onnx"
    )


def test_a_deployment_survives_its_encoding() -> None:
    deployment = Deployment("digits", (manifest(), manifest(version=2)), 2, (NODE,))
    assert Deployment.decode(deployment.encode()) == deployment
    assert deployment.key == "deployment/digits"


@pytest.mark.parametrize(
    ("deployment", "reason"),
    [
        (Deployment("../digits", (manifest(),)), "cannot be a model's name"),
        (Deployment("digits", ()), "0 versions"),
        (Deployment("digits", tuple(manifest(version=i + 1) for i in range(33))), "33 versions"),
        (Deployment("digits", (manifest("other"),)), "belongs to the model 'other'"),
        (Deployment("digits", (manifest(), manifest())), "a version twice"),
        (Deployment("digits", (manifest(version=0),)), "not a positive integer"),
        (Deployment("digits", (manifest(),), 0), "0 replicas"),
        (Deployment("digits", (manifest(),), 1025), "1025 replicas"),
        (Deployment("digits", (manifest(),), 1, (NODE, NODE)), "twice"),
        (
            Deployment("digits", (manifest(),), 1, tuple(NodeId(str(i)) for i in range(1025))),
            "too many",
        ),
        (Deployment("digits", (manifest(),), 1, (NodeId("laptop"),)), "not the id of a node"),
    ],
)
def test_a_deployment_out_of_limits_is_neither_written_nor_read(
    deployment: Deployment, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        deployment.encode()
    with pytest.raises(ModelError, match=reason):
        Deployment.decode(msgspec.msgpack.encode(deployment))


def test_a_deployment_that_fits_no_note_is_refused() -> None:
    with pytest.raises(TooLarge, match="too many files"):
        Deployment("digits", (manifest(files=2000),)).encode()


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", b"\x90", msgspec.msgpack.encode({"name": "digits"})]
)
def test_other_bytes_are_no_deployment(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a deployment"):
        Deployment.decode(value)
