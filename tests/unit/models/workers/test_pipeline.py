"""`pipeline.py` without an endpoint: JSON in, JSON out."""

from __future__ import annotations

import json
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.models.execution import Interface, Spelling
from meshnode.models.workers.pipeline import _callable_of
from tests.unit.models.workers.spelled import describe, opened, opening, write

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.models.runtimes.base import Opening

TYPED = """
from pathlib import Path
from pydantic import BaseModel
from .words import LOUD

class GreetRequest(BaseModel):
    name: str
    times: int = 1

class GreetResponse(BaseModel):
    text: str
    compiled: int

class Greeter:
    def __call__(self, inputs):
        if inputs["name"] == "nobody":
            raise ValueError("whom?")
        if inputs["name"] == "badly":
            return {"txt": 1}
        return {"text": inputs["name"] * inputs["times"] + LOUD, "compiled": self.compiled}

pipe = Greeter()

def compile(pipe):
    seen = Path("exe_cache/count")
    seen.parent.mkdir(exist_ok=True)
    pipe.compiled = int(seen.read_text()) + 1 if seen.exists() else 1
    seen.write_text(str(pipe.compiled))
    assert Path("words.py").read_text()
"""

CLASS = """
import numpy

class Pipeline:
    def compile(self):
        self.scale = 2

    def __call__(self, inputs):
        return {"doubled": numpy.array(inputs["values"]) * self.scale, "bytes": b"ab"}
"""


def pipeline(folder: Path, text: str, **files: str) -> Opening:
    cache = folder / "cache"
    cache.mkdir(parents=True)
    write(folder / "model", {"pipeline.py": text, **{f"{k}.py": v for k, v in files.items()}})
    return opening(folder / "model", "pipeline.py", Spelling.PIPELINE, cache)


async def test_a_pipeline_is_compiled_before_it_answers_and_its_cache_outlives_it(
    tmp_path: Path,
) -> None:
    what = pipeline(tmp_path, TYPED, words="LOUD = '!'")
    for compiled in (1, 2):
        async with opened(what) as model:
            (said,) = await model.batch({"name": "Ann", "times": 2})
            assert said.json == {"text": "AnnAnn!", "compiled": compiled}
    told = describe(what)
    assert told.execution.interface is Interface.JSON
    assert not told.execution.decoupled
    assert [spec.name for spec in (*told.inputs, *told.outputs)] == ["request", "response"]
    schema = json.loads(told.execution.schema)
    assert schema["request"]["required"] == ["name"]
    assert set(schema["response"]["properties"]) == {"text", "compiled"}


async def test_each_request_of_a_batch_fails_alone_and_says_why(tmp_path: Path) -> None:
    async with opened(pipeline(tmp_path, TYPED, words="LOUD = ''")) as model:
        good, missing, raising, wrong, broken = await model.batch(
            {"name": "Ann"}, {"times": "x"}, {"name": "nobody"}, {"name": "badly"}, b"{no"
        )
    assert good.json["text"] == "Ann"
    assert isinstance(missing, InvalidRequest)
    assert "name: Field required; times: Input should be a valid integer" in str(missing)
    assert isinstance(raising, InferenceFailed)
    assert str(raising) == "the pipeline raised ValueError: whom? (pipeline.py, line 17)"
    assert isinstance(wrong, InferenceFailed)
    assert "the model's answer is no GreetResponse: text: Field required" in str(wrong)
    assert isinstance(broken, InvalidRequest)
    assert "not JSON" in str(broken)


async def test_a_class_is_made_and_arrays_and_bytes_are_written_as_json(tmp_path: Path) -> None:
    async with opened(pipeline(tmp_path, CLASS)) as model:
        said = await model.ask({"values": [1, 2.5]})
        assert said.json == {"doubled": [2.0, 5.0], "bytes": "YWI="}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:\n", r"pipeline.py cannot be loaded: SyntaxError: .* \(line 1\)"),
        (
            "import pydantic\n1 / 0\n",
            r"ZeroDivisionError: division by zero \(pipeline.py, line 2\)",
        ),
    ],
)
def test_a_pipeline_that_is_none_is_refused_with_the_place(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        describe(pipeline(tmp_path, text))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"pipe": 3}, "`pipe` of p.py is a int, which cannot be called"),
        ({"x": 1}, "neither a callable `pipe` nor a class `Pipeline`"),
        ({"Pipeline": "no class"}, "nor a class"),
    ],
)
def test_a_pipeline_has_something_to_call(names: dict[str, object], reason: str) -> None:
    module = ModuleType("p")
    vars(module).update(names)
    with pytest.raises(ModelError, match=reason):
        _callable_of(module, "p.py")


async def test_a_compilation_that_fails_is_why_the_model_is_not_ready(tmp_path: Path) -> None:
    text = "pipe = print\ndef compile(pipe):\n    raise OSError('no accelerator')\n"
    with pytest.raises(ModelError, match=r"compile\(\) failed: OSError: no accelerator"):
        async with opened(pipeline(tmp_path, text)):
            pass
