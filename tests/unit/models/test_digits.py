"""The example that comes with meshnode: its files are what its script says they are."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meshnode.examples.digits import train
from meshnode.models.images import image_to_tensor
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.models.tensors import to_numpy
from meshnode.types import InferRequest, ReplicaState

if TYPE_CHECKING:
    from meshnode.models.manifest import Manifest

FOLDER = Path(str(files("meshnode.examples.digits")))
EXPECTED: dict[str, int] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def test_the_readme_s_accuracy_is_the_committed_file_s() -> None:
    _, held_out, _, labels, _ = train.split()
    predicted, _ = train.predict((FOLDER / "digits.onnx").read_bytes(), held_out)
    right = int((predicted == labels).sum())
    assert right / len(labels) >= 0.97
    line = f"accuracy on {len(labels)} held-out digits: {right / len(labels):.2%} ({right} right)"
    assert line in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_pictures_are_the_first_held_out_sample_of_each_digit() -> None:
    _, held_out, _, labels, indices = train.split()
    assert sorted(EXPECTED.values()) == list(range(10))
    assert sorted(EXPECTED) == sorted(
        f"images/{path.name}" for path in (FOLDER / "images").iterdir()
    )
    spec = described().inputs[0]
    for name, digit in EXPECTED.items():
        position = np.flatnonzero(labels == digit)[0]
        assert name == f"images/{digit}-{indices[position]}.png"
        tensor = image_to_tensor((FOLDER / name).read_bytes(), spec)
        assert (to_numpy(tensor)[0] == held_out[position]).all()


async def test_every_picture_is_recognised() -> None:
    server = ModelServer({"onnx": OnnxRuntime()})
    manifest = described()
    status = await server.load(manifest, FOLDER)
    assert status.state is ReplicaState.READY
    seen = {}
    for name in EXPECTED:
        tensor = image_to_tensor((FOLDER / name).read_bytes(), manifest.inputs[0])
        response = await server.infer(InferRequest("digits", (tensor,)))
        assert response.single is not None
        label, probabilities = response.single.outputs
        assert (label.shape, probabilities.shape) == ((1,), (1, 10))
        seen[name] = int(to_numpy(label)[0])
    assert seen == EXPECTED
    await server.close()


def described() -> Manifest:
    [model] = scan(FOLDER / "digits.onnx")
    return describe(model, model.versions[0], OnnxRuntime())
