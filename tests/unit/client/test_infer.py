"""A result's route, the calls' JSON, and what a client remembers of models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from meshnode.client.infer import (
    InferResult,
    MetadataCache,
    Route,
    infer_call,
    parse_route,
)
from meshnode.client.results import TensorInfo
from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_CACHED_MODELS


def test_a_request_of_a_sequence_is_not_sent_again_after_it_may_have_run() -> None:
    assert infer_call("m", {"parameters": {"priority": 1}}).repeatable
    assert not infer_call("m", {"parameters": {"sequence_id": 7}}).repeatable


def test_a_route_header_is_read_into_its_fields() -> None:
    header = (
        "node=be%20ta; region=eu-west; version=3; expected_ms=3.2; candidates=4; attempts=2; "
        'reason=only-candidate; tried="al%2Cpha:link_lost,gamma:saturated"'
    )
    route = parse_route(header)
    assert route == Route(
        node="be ta",
        region="eu-west",
        version=3,
        reason="only-candidate",
        expected_ms=3.2,
        candidates=4,
        attempts=2,
        tried=(("al,pha", "link_lost"), ("gamma", "saturated")),
        text=header,
    )
    assert str(route) == header


@pytest.mark.parametrize("header", ["", "nonsense;;", "version=x; attempts=-1; expected_ms=nan"])
def test_a_header_that_makes_no_sense_is_a_route_without_facts(header: str) -> None:
    assert parse_route(header) == Route(text=header)


def sent(document: dict[str, object], remaining_s: float, *buffers: bytes) -> dict[str, object]:
    message = infer_call("m", document, buffers).message(remaining_s)
    found: dict[str, object] = json.loads(bytes(message.parts[0]))
    return found


def test_the_gateway_is_told_a_little_less_than_the_client_waits() -> None:
    assert sent({"inputs": []}, 1.0)["parameters"] == {"timeout": 900_000}
    assert sent({"inputs": []}, 30.0)["parameters"] == {"timeout": 29_500_000}
    assert sent({"parameters": {"timeout": 5, "a": 1}}, 1.0)["parameters"] == {"timeout": 5, "a": 1}


def test_binary_parts_follow_the_json_whose_length_is_told() -> None:
    call = infer_call("a/b", {"inputs": []}, (b"ab", memoryview(b"cd")), version=3, request_id="i")
    assert (call.method, call.path) == ("POST", "/v2/models/a%2Fb/versions/3/infer")
    message = call.message(1.0)
    assert message.headers == {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(message.parts[0])),
        "X-Request-Id": "i",
    }
    assert message.parts[1:] == (b"ab", memoryview(b"cd"))


@pytest.mark.parametrize("text", ["", "a\r\nX: y", "x" * 129, "ä"])
def test_an_id_that_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        infer_call("m", {}, request_id=text)


def test_parameters_that_are_no_json_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        sent({"parameters": {"x": object()}}, 1.0)


def test_the_cache_forgets_the_oldest_model_and_what_it_is_told_to() -> None:
    cache = MetadataCache()
    spec = (TensorInfo("x", "FP32", (1,)),)
    for number in range(MAX_CACHED_MODELS + 1):
        cache.put(f"m{number}", None, spec)
    assert cache.get("m0", None) is None
    assert cache.get("m1", None) == spec
    assert cache.get("m1", 2) is None
    cache.forget("m1", None)
    cache.forget("m1", None)
    assert cache.get("m1", None) is None
    assert repr(cache) == f"<MetadataCache of {MAX_CACHED_MODELS - 1} models>"


def test_text_of_a_numeric_output_is_a_mistake() -> None:
    result = InferResult({"x": np.zeros((1, 2), np.float32)}, model="m")
    with pytest.raises(TypeError, match="float32, no text"):
        result.text("x")
    assert dict(result).keys() == {"x"}
