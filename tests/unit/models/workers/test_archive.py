"""TorchServe archives: their handlers, and what they import."""

from __future__ import annotations

import io
import json
import warnings
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InferenceFailed, ModelError
from meshnode.models.execution import DynamicBatching, Interface, Spelling
from meshnode.models.workers.adaptor import ModelAnswers, ModelCall, WorkerSurroundings
from meshnode.models.workers.archive import _module_of, open_adaptor
from meshnode.models.workers.torchserve import load_label_mapping, map_class_to_label, stand_ins
from tests.unit.models.workers.spelled import archive, describe, opened, opening, write

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.models.runtimes.base import Described, Opening

HANDLER = """
import os
from ts.context import Context
from ts.metrics.dimension import Dimension
from ts.utils.util import PredictionException

class Handler:
    def initialize(self, context: Context):
        folder = context.system_properties["model_dir"]
        self.words = open("words.txt").read() + open(os.path.join(folder, "words.txt")).read()

    def handle(self, data, context):
        context.metrics.add_counter("calls", len(data), None)
        bodies = [row["body"] for row in data]
        if bodies[0] == "refuse":
            raise PredictionException("not today", 404)
        if bodies[0] == "wrong":
            return [1] * (len(data) + 1)
        if bodies[0] == "headers":
            context.set_response_content_type(0, "text/plain")
            context.set_response_status(201, "made", 0)
            return [self.words.encode()]
        return [{"of": len(data), "body": str(body)} for body in bodies]
"""

FUNCTION = """
state = {}

def answer(data, context):
    if data is None:
        state["name"] = context.model_name
        return None
    return [state["name"]] * len(data)
"""


def described_here(path: Path) -> Described:
    """Describe an archive in this process: that runs none of its code."""

    def nobody(_call: ModelCall) -> ModelAnswers:
        raise AssertionError("no model was asked")

    surroundings = WorkerSurroundings(of(path), path.parent / "work", None, nobody)
    return open_adaptor(surroundings).describe()


def of(path: Path) -> Opening:
    return opening(path.parent, path.name, Spelling.ARCHIVE, max_batch_size=4)


async def test_a_class_handles_whole_batches(tmp_path: Path) -> None:
    config = "batchSize: 4\nmaxBatchDelay: 50  # ms\nhandler:\n  x: 1\n"
    model = {"handler": "handler.py", "configFile": "model-config.yaml"}
    files = {"handler.py": HANDLER, "model-config.yaml": config, "words.txt": "hi"}
    what = of(archive(tmp_path / "m.mar", model, files))
    told = describe(what)
    assert told.max_batch_size == 4
    assert told.inputs[0].shape == (-1,)
    assert told.execution.interface is Interface.JSON
    assert told.execution.batching == DynamicBatching(max_queue_delay_us=50_000)
    async with opened(what) as opened_model:
        one, two = await opened_model.batch({"a": 1}, b"\xff")
        assert one.json == {"of": 2, "body": "{'a': 1}"}
        assert two.json["body"] == "bytearray(b'\\xff')"
        (refused,) = await opened_model.batch("refuse")
        assert (refused.head.status, refused.json) == (404, {"error": "not today"})
        wrong = await opened_model.batch("wrong", 2)
        assert all(isinstance(each, InferenceFailed) for each in wrong)
        assert str(wrong[1]) == "the handler must return a list of 2 answers, not 3 of them"
        (plain,) = await opened_model.batch("headers")
        assert (plain.head.status, plain.body) == (201, b"hihi")
        assert plain.head.header("content-type") == "text/plain"
        (raw,) = await opened_model.batch(b"7", content_type="application/octet-stream")
        assert raw.json["body"] == "bytearray(b'7')"


async def test_a_function_is_told_once_to_begin(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.mar", {"handler": "h:answer"}, {"h.py": FUNCTION})
    async with opened(of(path)) as model:
        assert [each.json for each in await model.batch(1, 2)] == ["m", "m"]


async def test_an_image_classifier_needs_no_code_of_its_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="meshnode[torch] is not installed")
    from PIL import Image

    layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(layers, torch.zeros(1, 3, 224, 224)).save(str(tmp_path / "net.pt"))
    names = json.dumps({"0": ["n0", "red"], "1": "green", "2": "blue"})
    model = {"handler": "image_classifier", "serializedFile": "net.pt"}
    weights = (tmp_path / "net.pt").read_bytes()
    files: dict[str, str | bytes] = {"net.pt": weights, "index_to_name.json": names}
    picture = io.BytesIO()
    Image.new("RGB", (300, 280), (0, 255, 0)).save(picture, "PNG")
    async with opened(of(archive(tmp_path / "m.mar", model, files))) as opened_model:
        (said,) = await opened_model.batch(picture.getvalue(), content_type="image/png")
    assert list(said.json) == ["green", "blue", "red"]
    assert said.json["green"] > 0.9


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"handler": "text_classifier"}, "needs torchtext"),
        ({"handler": ""}, "names no handler"),
        ({"handler": "h.py", "configFile": "none.yaml"}, "has no none.yaml"),
    ],
)
def test_an_archive_that_cannot_run_here_says_why(
    tmp_path: Path, model: dict[str, str], reason: str
) -> None:
    path = archive(tmp_path / "m.mar", model, {"h.py": ""})
    with pytest.raises(ModelError, match=reason):
        described_here(path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../evil.py": ""}, "evil"),
        ({"h.py": "1 / 0"}, r"ZeroDivisionError: division by zero \(h.py, line 1\)"),
    ],
)
async def test_a_malicious_or_broken_archive_is_not_loaded(
    tmp_path: Path, files: dict[str, str | bytes], reason: str
) -> None:
    path = tmp_path / "m.mar"
    archive(path, {"handler": "h.py"}, files)
    with pytest.raises(ModelError, match=reason):
        async with opened(of(path)):
            pass


def test_a_handler_that_is_not_in_the_archive_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no h\.py, and 'h\.py' is none of TorchServe's"):
        _module_of(tmp_path, "h.py")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"m.mar": "not a zip"})
    with pytest.raises(ModelError, match="no archive"):
        described_here(tmp_path / "m.mar")


def test_the_modules_that_handlers_import_are_there() -> None:
    modules = stand_ins()
    for name in ("ts.context", "ts.torch_handler.base_handler", "ts.handler_utils.timer"):
        assert name in modules
    assert modules["ts"].utils.util.PredictionException("x", 404).error_code == 404
    with pytest.raises(AttributeError):
        _ = modules["ts.torch_handler.base_handler"].Nothing


def test_labels_are_read_and_given_to_classes(tmp_path: Path) -> None:
    write(tmp_path, {"index_to_name.json": '{"0": ["n01", "cat"], "1": "dog"}', "bad.json": "[]"})
    labels = load_label_mapping(str(tmp_path / "index_to_name.json"))
    assert labels == {"0": "cat", "1": "dog"}
    assert map_class_to_label([[0.9, 0.1]], labels, [[1, 7]]) == [{"dog": 0.9, "7": 0.1}]
    assert load_label_mapping(str(tmp_path / "none.json")) is None
    with pytest.raises(TypeError):
        load_label_mapping(str(tmp_path / "bad.json"))
