"""JSON documents of Python models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.models.workers import documents
from meshnode.models.workers.adaptor import WorkerRequest
from meshnode.models.workers.documents import Types, types_of, wants_instance


class Ask(BaseModel):
    text: str
    n: int = 1


class Reply(BaseModel):
    out: str


@dataclass
class Plain:
    x: int


def module(**kinds: type) -> ModuleType:
    made = ModuleType(__name__)
    vars(made).update(kinds)
    return made


def text(*elements: bytes) -> WorkerRequest:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return WorkerRequest({"request": array})


def test_the_content_of_a_request_is_its_document_or_body() -> None:
    assert documents.content(text(b"[1]")) == b"[1]"
    body = np.frombuffer(b"abc", dtype=np.uint8).reshape(1, -1)
    assert documents.content(WorkerRequest({"body": body})) == b"abc"
    with pytest.raises(InvalidRequest, match="one document"):
        documents.content(text(b"1", b"2"))
    with pytest.raises(InvalidRequest, match="a JSON document is expected"):
        documents.content(WorkerRequest({}))


def test_an_empty_body_is_an_empty_object() -> None:
    assert documents.read(b"") == {}


@pytest.mark.parametrize("data", [b"{", b"nonsense", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        documents.read(data)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": np.float32(0.5), "b": np.array([[1, 2]])}, '{"a":0.5,"b":[[1,2]]}'),
        (b"ab", '"YWI="'),
        (memoryview(b"ab"), '"YWI="'),
        (Path("a/b"), '"a/b"'),
        (Plain(3), '{"x":3}'),
        (Reply(out="x"), '{"out":"x"}'),
        ({1: None}, '{"1":null}'),
    ],
)
def test_what_models_answer_has_a_spelling_in_json(value: Any, written: str) -> None:
    assert documents.write(value).decode() == written


@pytest.mark.parametrize("value", [object(), {"x": {1, object()}}, {(1, 2): 3}])
def test_what_has_none_is_the_models_failure(value: object) -> None:
    with pytest.raises(InferenceFailed, match="no JSON"):
        documents.write(value)


def test_types_are_found_by_annotations_before_names() -> None:
    def annotated(inputs: Ask) -> Reply:
        return Reply(out=inputs.text)

    class Pipe:
        def __call__(self, inputs: dict[str, Any]) -> Reply:
            return Reply(out="")

    assert types_of(annotated, []).request is Ask
    assert wants_instance(annotated)
    found = types_of(
        Pipe(), [module(TextRequest=type("TextRequest", (Ask,), {"__module__": __name__}))]
    )
    assert found.response is Reply
    assert found.request is not None
    assert found.request.__name__ == "TextRequest"
    assert not wants_instance(Pipe())


def test_two_classes_that_could_be_meant_are_none_unless_one_has_the_plain_name() -> None:
    one = type("ARequest", (Ask,), {"__module__": __name__})
    two = type("BRequest", (Ask,), {"__module__": __name__})
    plain = type("Request", (Ask,), {"__module__": __name__})
    assert types_of(print, [module(a=one, b=two)]).request is None
    assert types_of(print, [module(a=one, b=two, c=plain)]).request is plain


def test_only_the_first_reasons_are_told() -> None:
    fields: Any = {f"f{number}": (int, ...) for number in range(8)}
    from pydantic import create_model

    with pytest.raises(InvalidRequest, match=r"f0: Field required; .*; and 3 more"):
        Types(create_model("Many", **fields)).accept({})


def test_a_schema_that_is_too_long_for_a_manifest_is_left_out() -> None:
    assert json.loads(Types(Ask, Reply).schema())["response"]["title"] == "Reply"
    assert documents.bounded({"x": "y" * 10_000}) == ""
    assert Types().schema() == ""
