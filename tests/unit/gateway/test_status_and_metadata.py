"""Statuses of errors, and what a client asks before it infers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import ParseDict

from meshnode import errors
from meshnode.gateway.protocols import oip_config, oip_metadata
from meshnode.gateway.protocols.status import (
    CODED,
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.repository.config import parse_config
from meshnode.models.repository.config_messages import messages
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
    assert body_of(error_response(error("why"), CODED)) == {
        "error": "why",
        "code": error.code,
    }


def test_an_error_without_words_still_has_a_sentence() -> None:
    assert body_of(error_response(errors.LinkLost())) == {"error": "the request failed (link_lost)"}


def test_refusals_carry_their_headers_and_failures_the_id_for_the_log() -> None:
    refusal = HttpRefusal(405, "not so", {"Allow": "GET"})
    assert refusal_response(refusal).headers["Allow"] == "GET"
    assert body_of(refusal_response(refusal)) == {"error": "not so"}
    assert body_of(refusal_response(HttpRefusal(404, "no"), CODED))["code"] == "http"
    assert "request r-1" in body_of(failure_response("r-1"))["error"]
    assert body_of(failure_response("r-1", CODED))["code"] == "internal"


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
    body = body_of(oip_config.model_config(BATCHED))
    assert body["max_batch_size"] == 8
    assert body["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [4]},
        {"name": "s", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    unbatched = Manifest("m", 1, "onnx", "", BATCHED.inputs, (), 0, (), "")
    assert body_of(oip_config.model_config(unbatched))["input"][0]["dims"] == [-1, 4]


CONFIGURED = {
    "dynamic": """
        max_batch_size: 8
        dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 900
          priority_levels: 3 default_priority_level: 2
          default_queue_policy { timeout_action: DELAY max_queue_size: 7 }
          priority_queue_policy { key: 1 value { default_timeout_microseconds: 5
            allow_timeout_override: true } } }
        instance_group [ { kind: KIND_CPU count: 2 } ]
        response_cache { enable: true }
        optimization { graph { level: 1 } execution_accelerators { gpu_execution_accelerator {
          name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } } }
        parameters { key: "meshnode_rate_limit_per_second" value { string_value: "7" } }
        parameters { key: "meshnode_repeatable" value { string_value: "false" } }
        parameters { key: "mine" value { string_value: "1" } }
        model_warmup { name: "w" batch_size: 2 count: 3 inputs { key: "x" value {
          data_type: TYPE_FP32 dims: 4 random_data: true } } inputs { key: "s" value {
          data_type: TYPE_STRING dims: 1 input_data_file: "words" } } }""",
    "decoupled": "model_transaction_policy { decoupled: true }",
    "direct": """
        max_batch_size: 8
        sequence_batching { max_sequence_idle_microseconds: 9 direct {
          max_queue_delay_microseconds: 4 minimum_slot_utilization: 0.5 }
          control_input { name: "START" control { kind: CONTROL_SEQUENCE_START
            fp32_false_true: [ 0, 1 ] } }
          control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY
            bool_false_true: [ false, true ] } }
          control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID
            data_type: TYPE_UINT64 } }
          state { input_name: "in" output_name: "out" data_type: TYPE_FP32 dims: 2
            initial_state { data_type: TYPE_FP32 dims: 2 data_file: "zeros" name: "z" } } }""",
    "oldest": """
        max_batch_size: 8
        sequence_batching { oldest { max_candidate_sequences: 5 preferred_batch_size: 4 } }""",
    "steps": """
        platform: "ensemble"
        input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 2, 2 ] } optional: true }
        output { name: "y" data_type: TYPE_INT64 dims: 1 }
        ensemble_scheduling { step { model_name: "a" model_version: -1
          input_map { key: "i" value: "x" } output_map { key: "o" value: "y" } } }""",
}


@pytest.mark.parametrize("text", CONFIGURED.values(), ids=CONFIGURED)
def test_a_configuration_is_told_as_it_was_given(text: str) -> None:
    """What is told, read as a configuration of Triton's, executes the model as the original does."""
    config = parse_config(text, "m")
    manifest = Manifest(
        "m", 1, config.runtime or "onnx", config.runtime or "onnxruntime_onnx",
        config.inputs or BATCHED.inputs, config.outputs or BATCHED.outputs, config.max_batch_size, (), "", execution=config.execution,
    )  # fmt: skip
    told = ParseDict(body_of(oip_config.model_config(manifest)), messages().ModelConfig())
    again = parse_config(text_format.MessageToString(told), "m")
    adaptive = config.execution.adaptive
    assert msgspec.structs.replace(again.execution, adaptive=adaptive) == config.execution
    assert (again.runtime, again.max_batch_size) == (
        config.runtime or "onnx",
        config.max_batch_size,
    )


def test_readiness_is_told_by_status_too() -> None:
    assert (oip_metadata.ready(True).status, oip_metadata.ready(False).status) == (200, 400)
    assert oip_metadata.model_ready("m", False).status == 400
    assert body_of(oip_metadata.model_ready("m", True)) == {"name": "m", "ready": True}
    assert body_of(oip_metadata.live()) == {"live": True}
    assert "binary_tensor_data" in body_of(oip_metadata.server_metadata("1.2"))["extensions"]
