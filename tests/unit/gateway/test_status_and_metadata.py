"""Statuses of errors, and what a client asks before it infers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import errors
from meshnode.gateway.protocols import oip_metadata
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import DataType

if TYPE_CHECKING:
    from meshnode.gateway.protocols.http import HttpResponse


def body_of(response: HttpResponse) -> Any:
    assert isinstance(response.body, bytes)
    assert response.headers["Content-Type"] == "application/json"
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (errors.InvalidRequest, 400, False),
        (errors.ModelError, 400, False),
        (errors.ConfigError, 400, False),
        (errors.Forbidden, 403, False),
        (errors.Unauthenticated, 401, False),
        (errors.Throttled, 429, True),
        (errors.NotFound, 404, False),
        (errors.ModelNotFound, 404, False),
        (errors.TooLarge, 413, False),
        (errors.NoReplica, 503, True),
        (errors.Saturated, 503, True),
        (errors.NotServing, 503, True),
        (errors.LinkLost, 503, True),
        (errors.DeadlineExceeded, 503, False),
        (errors.Cancelled, 503, False),
        (errors.InferenceFailed, 500, False),
        (errors.ProtocolError, 500, False),
        (errors.PeerError, 500, False),
        (errors.MeshError, 500, False),
    ],
)
def test_each_error_has_a_status_and_a_sentence(
    error: type[errors.MeshError], status: int, retry: bool
) -> None:
    response = error_response(error("what happened"))
    assert (response.status, body_of(response)) == (status, {"error": "what happened"})
    assert ("Retry-After" in response.headers) is retry
    assert body_of(error_response(error("why"), with_code=True)) == {
        "error": "why",
        "code": error.code,
    }


def test_an_error_without_words_still_has_a_sentence() -> None:
    assert body_of(error_response(errors.LinkLost())) == {"error": "the request failed (link_lost)"}


def test_refusals_carry_their_headers_and_failures_the_id_for_the_log() -> None:
    refusal = HttpRefusal(405, "not so", {"Allow": "GET"})
    assert refusal_response(refusal).headers["Allow"] == "GET"
    assert body_of(refusal_response(refusal)) == {"error": "not so"}
    assert body_of(refusal_response(HttpRefusal(404, "no"), with_code=True))["code"] == "http"
    assert "request r-1" in body_of(failure_response("r-1"))["error"]
    assert body_of(failure_response("r-1", with_code=True))["code"] == "internal"


BATCHED = Manifest(
    "m",
    2,
    "onnx",
    "onnxruntime_onnx",
    (TensorSpec("x", DataType.FP32, (-1, 4)), TensorSpec("s", DataType.BYTES, (-1, 1))),
    (TensorSpec("y", DataType.INT64, (-1,)),),
    8,
    (),
    "model.onnx",
)


def test_metadata_has_full_shapes_and_versions_as_strings() -> None:
    body = body_of(oip_metadata.model_metadata(BATCHED, [2, 1]))
    assert body == {
        "name": "m",
        "versions": ["2", "1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "s", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    }
    assert body_of(oip_metadata.model_metadata(BATCHED, ()))["versions"] == ["2"]


def test_configuration_leaves_the_batch_dimension_out_and_spells_types_as_triton() -> None:
    body = body_of(oip_metadata.model_config(BATCHED))
    assert body["max_batch_size"] == 8
    assert body["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [4]},
        {"name": "s", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    unbatched = Manifest("m", 1, "onnx", "", BATCHED.inputs, (), 0, (), "")
    assert body_of(oip_metadata.model_config(unbatched))["input"][0]["dims"] == [-1, 4]


def test_readiness_is_told_by_status_too() -> None:
    assert (oip_metadata.ready(True).status, oip_metadata.ready(False).status) == (200, 400)
    assert oip_metadata.model_ready("m", False).status == 400
    assert body_of(oip_metadata.model_ready("m", True)) == {"name": "m", "ready": True}
    assert body_of(oip_metadata.live()) == {"live": True}
    assert "binary_tensor_data" in body_of(oip_metadata.server_metadata("1.2"))["extensions"]
