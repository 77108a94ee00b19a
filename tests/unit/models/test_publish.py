from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from meshnode.errors import InvalidRequest, ModelError
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec, check_request
from meshnode.models.repository.publish import describe, publish
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.base import Opening
from meshnode.types import DataType, InferRequest, Tensor

from .conftest import add_and_subtract, external, identity

if TYPE_CHECKING:
    from meshnode.models.runtimes.onnx import OnnxRuntime

WriteModel = Callable[..., Path]


def described(path: Path, runtime: OnnxRuntime, name: str | None = None) -> Manifest:
    [model] = scan(path, name)
    assert not model.error
    return describe(model, model.versions[0], runtime)


def test_a_bare_file_is_described_by_itself(tmp_path: Path, runtime: OnnxRuntime) -> None:
    content = identity()
    (tmp_path / "net.onnx").write_bytes(content)
    assert described(tmp_path / "net.onnx", runtime, "public") == Manifest(
        model="public",
        version=1,
        runtime="onnx",
        platform="onnxruntime_onnx",
        inputs=(TensorSpec("x", DataType.FP32, (-1, 2)),),
        outputs=(TensorSpec("y", DataType.FP32, (-1, 2)),),
        max_batch_size=0,
        files=(FileEntry("net.onnx", len(content), hashlib.sha256(content).digest()),),
        entry="net.onnx",
    )


def test_the_configuration_completes_the_file(
    write_model: WriteModel, runtime: OnnxRuntime
) -> None:
    repo = write_model("net", add_and_subtract(), config="max_batch_size: 8", version="3")
    manifest = described(repo / "net", runtime)
    assert (manifest.version, manifest.max_batch_size) == (3, 8)
    assert [spec.name for spec in manifest.outputs] == ["sum", "difference"]


def test_an_input_that_the_file_needs_is_not_optional(
    write_model: WriteModel, runtime: OnnxRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    """A request without it is refused as incomplete (400), instead of failing in the model (500)."""
    config = """
        input { name: "a" data_type: TYPE_INT32 dims: [ -1, 2 ] }
        input { name: "b" data_type: TYPE_INT32 dims: [ -1, 2 ] optional: true }"""
    repo = write_model("net", add_and_subtract(), config=config)
    manifest = described(repo / "net", runtime)
    assert manifest.execution.optional_inputs == ()
    assert "input 'b' is optional in its config.pbtxt, but its file has no default" in caplog.text
    with pytest.raises(InvalidRequest, match="also needs input 'b'"):
        check_request(
            manifest, InferRequest("net", (Tensor("a", DataType.INT32, (1, 2), bytes(8)),))
        )


def test_a_disagreement_stops_publishing_with_both_sides(
    write_model: WriteModel, runtime: OnnxRuntime
) -> None:
    config = 'input { name: "x" data_type: TYPE_INT64 dims: [ -1, 2 ] }'
    repo = write_model("net", config=config)
    [model] = scan(repo / "net")
    with pytest.raises(ModelError) as caught:
        describe(model, model.versions[0], runtime)
    assert str(caught.value) == (
        "version 1 of model 'net': input 'x' is INT64 in config.pbtxt, but FP32 in the file"
    )


def test_publishing_keeps_a_copy_that_edits_do_not_reach(
    write_model: WriteModel, runtime: OnnxRuntime, tmp_path: Path
) -> None:
    repo = write_model("net", external("w.bin"))
    weights = repo / "net" / "1" / "w.bin"
    weights.write_bytes(np.array([1, 2], np.float32).tobytes())
    [model] = scan(repo / "net")
    store = BlobStore(tmp_path / "data")
    manifest = publish(store, model, model.versions[0], runtime)
    assert manifest == describe(model, model.versions[0], runtime)
    weights.write_bytes(b"edited!!")
    folder = store.materialise(manifest)
    assert [path.name for path in folder.parent.iterdir()] == [manifest.digest]
    assert (folder / "w.bin").read_bytes() != b"edited!!"
    assert runtime.load(Opening(folder=folder, entry=manifest.entry)).inputs == manifest.inputs


def test_data_that_would_not_travel_stops_publishing(tmp_path: Path, runtime: OnnxRuntime) -> None:
    """A bare file whose weights have a name of their own works in place, but only there."""
    (tmp_path / "net.onnx").write_bytes(external("w.bin"))
    (tmp_path / "w.bin").write_bytes(bytes(8))
    assert described(tmp_path / "net.onnx", runtime).files[0].path == "net.onnx"
    [model] = scan(tmp_path / "net.onnx")
    store = BlobStore(tmp_path / "data")
    with pytest.raises(ModelError, match="External data path does not exist"):
        publish(store, model, model.versions[0], runtime)
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_a_file_that_vanishes_is_told(
    write_model: WriteModel, runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    [model] = scan(write_model("net") / "net")

    def gone(path: Path, *_: object) -> NoReturn:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "open", gone)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        describe(model, model.versions[0], runtime)


def test_triton_s_examples_are_described(triton_examples: Path, runtime: OnnxRuntime) -> None:
    manifests = {model.name: describe(model, model.versions[0], runtime)
                 for model in scan(triton_examples)}  # fmt: skip
    simple = manifests["simple"]
    assert simple.max_batch_size == 8
    assert simple.inputs == tuple(
        TensorSpec(name, DataType.INT32, (-1, 16)) for name in ("INPUT0", "INPUT1")
    )
    assert manifests["simple_string"].inputs[0].datatype is DataType.BYTES
