"""Tiny real ONNX models, and an injected runtime whose time is the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes.base import Capability, Described, Opening
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.types import DataType, Tensor

TensorType = tuple[int, Sequence[int | str | None] | None]

TRITON_EXAMPLES = Path(__file__).parents[4] / "shared" / "triton-examples"


def onnx_model(
    nodes: Sequence[Any],
    inputs: dict[str, TensorType],
    outputs: dict[str, TensorType],
    initializers: Sequence[Any] = (),
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def identity(
    element: int = TensorProto.FLOAT, shape: Sequence[int | str | None] | None = ("n", 2)
) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    return onnx_model([node], {"x": (element, shape)}, {"y": (element, shape)})


def add_and_subtract(shape: Sequence[int | str | None] = ("n", 2)) -> bytes:
    """`sum` and `difference` of `a` and `b`."""
    spec: TensorType = (TensorProto.INT32, shape)
    return onnx_model(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        {"a": spec, "b": spec},
        {"sum": spec, "difference": spec},
    )


def quotient() -> bytes:
    """An integer division, which raises on zeros."""
    spec: TensorType = (TensorProto.INT32, ["n"])
    return onnx_model([helper.make_node("Div", ["x", "x"], ["y"])], {"x": spec}, {"y": spec})


def external(location: str) -> bytes:
    """Adds weights that lie in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weights.external_data.add(key=key, value=value)
    spec: TensorType = (TensorProto.FLOAT, ["n", 2])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return onnx_model([node], {"x": spec}, {"y": spec}, [weights])


@pytest.fixture
def runtime() -> OnnxRuntime:
    return OnnxRuntime()


@pytest.fixture
def triton_examples() -> Path:
    if not TRITON_EXAMPLES.is_dir():
        pytest.skip("Triton's example models are not beside this checkout")
    return TRITON_EXAMPLES


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write `<tmp>/repo/<name>/[config.pbtxt,] <version>/model.onnx`; return the repository."""

    def write(
        name: str, content: bytes | None = None, *, config: str | None = None, version: str = "1"
    ) -> Path:
        folder = tmp_path / "repo" / name / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(identity() if content is None else content)
        if config is not None:
            (folder.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        return tmp_path / "repo"

    return write


class FakeClock:
    """A timer that moves only when a run takes its time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeModel:
    """Echoes its inputs, and takes the seconds per row that the test says."""

    device = "cpu"

    def __init__(self, owner: FakeRuntime, manifest: Manifest, threads: int) -> None:
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.threads = threads
        self.closed = False
        self.runs = 0
        self._owner = owner

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        owner = self._owner
        self.runs += 1
        owner.ran_in.append(threading.get_ident())
        if owner.error is not None:
            raise owner.error
        owner.clock.now_s += owner.row_s * inputs[0].rows
        if owner.gate is not None and threading.get_ident() != owner.main_thread:
            owner.entered.release()
            assert owner.gate.wait(10)
        return tuple(
            Tensor(name, inputs[0].datatype, inputs[0].shape, inputs[0].data) for name in outputs
        )

    def close(self) -> None:
        self.closed = True


class FakeRuntime:
    """A runtime that serves `manifest` and counts what it is asked."""

    name = "fake"
    platform = "fake_platform"
    is_code = False
    shares_instance = True

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.clock = FakeClock()
        self.row_s = 10e-6
        self.error: Exception | None = None
        self.load_error: Exception | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.main_thread = threading.get_ident()
        self.ran_in: list[int] = []
        self.loaded: list[FakeModel] = []

    def capability(self) -> Capability:
        return Capability("1.0")

    def describe(self, opening: Opening) -> Described:
        del opening
        return Described(self.manifest.inputs, self.manifest.outputs)

    def load(self, opening: Opening) -> FakeModel:
        assert (opening.folder.name, opening.entry) == ("nowhere", self.manifest.entry)
        if self.load_error is not None:
            raise self.load_error
        self.loaded.append(FakeModel(self, self.manifest, opening.threads))
        return self.loaded[-1]


def fake_manifest(
    model: str = "m", version: int = 1, shape: tuple[int, ...] = (-1, 2), runtime: str = "fake"
) -> Manifest:
    return Manifest(
        model=model,
        version=version,
        runtime=runtime,
        platform="fake_platform",
        inputs=(TensorSpec("x", DataType.FP32, shape),),
        outputs=(TensorSpec("y", DataType.FP32, shape),),
        max_batch_size=0,
        files=(),
        entry="model.fake",
    )


@pytest.fixture
def fake() -> Iterator[FakeRuntime]:
    runtime = FakeRuntime(fake_manifest())
    yield runtime
    if runtime.gate is not None:
        runtime.gate.set()  # a failed test must not leave its threads waiting
