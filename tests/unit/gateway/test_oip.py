"""Open Inference Protocol: requests in, answers out, against what Triton's own client makes."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from meshnode.errors import InferenceFailed, InvalidRequest, TooLarge
from meshnode.gateway.inference import only_part
from meshnode.gateway.protocols import oip
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.oip import (
    AnswerForm,
    InferCall,
    decode_infer,
    encode,
)
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S, MAX_REQUEST_TIMEOUT_S
from meshnode.models.execution import Execution, Interface
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import DataType, InferResponse, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MANIFEST = Manifest(
    "digits",
    3,
    "onnx",
    "onnxruntime_onnx",
    (TensorSpec("x", DataType.FP32, (-1, 4)),),
    (),
    8,
    (),
    "",
)
VECTOR = msgspec.structs.replace(MANIFEST, inputs=(TensorSpec("x", DataType.FP32, (-1,)),))

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504]], np.float16),
    "BF16": np.array([[0.1, -3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, -3e38, np.nan, np.inf, -np.inf]], np.float32),
    "FP64": np.array([[0.1, -1e300, np.nan]], np.float64),
    "BYTES": np.array([["héllo".encode(), b"", b"x" * 300]], np.object_),
}


def post(body: bytes, **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("POST", "/v2/models/digits/infer", "", named, body)


def decode(body: Any, model: Manifest = MANIFEST, /, **headers: str) -> InferCall:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_infer(post(raw, **headers), model, 3, "id-of-the-gateway")


def refusal(body: Any, model: Manifest = MANIFEST, /, **headers: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, model, **headers)
    return str(caught.value)


def one(**changes: Any) -> dict[str, Any]:
    """A valid request, with changes to its input."""
    return {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | changes]}


def raw_bytes(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype == np.object_:
        packed: bytes = serialize_byte_tensor(array).item()
        return packed
    return array.tobytes()


def tensor_of(datatype: str, array: np.ndarray[Any, Any]) -> Tensor:
    return Tensor("x", DataType(datatype), array.shape, raw_bytes(array))


@pytest.mark.parametrize(
    ("datatype", "binary"),
    # Triton's client sends BF16 in binary only.
    [(name, binary) for name in ARRAYS for binary in (True, False) if binary or name != "BF16"],
)
def test_what_tritons_client_sends_is_understood(datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]
    sent = triton.InferInput("x", list(array.shape), datatype)
    sent.set_data_from_numpy(array, binary_data=binary)
    body, json_size = triton.InferenceServerClient.generate_request_body([sent], request_id="7")
    headers = {} if json_size is None else {"inference_header_content_length": str(json_size)}
    request, form = decode(body, **headers)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, array.shape)
    assert bytes(tensor.data) == raw_bytes(array)
    assert (request.model, request.version) == ("digits", 3)
    assert request.request_id == "id-of-the-gateway"  # "7" may be on all of them
    assert form == AnswerForm(id="7", binary=True)  # it asks so when it names no outputs


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ARRAYS)
def test_tritons_client_understands_what_is_answered(
    datatype: str, binary: bool, coding: str
) -> None:
    array = np.repeat(ARRAYS[datatype], 800, axis=0)
    part = ResponsePart((tensor_of(datatype, array),), {"tokens": 3})
    response = encode(InferResponse("digits", 3, part), part, AnswerForm("7", binary, {}, coding))
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    length = response.headers.get("Inference-Header-Content-Length")
    assert (length is not None) is binary
    assert response.headers.get("Content-Encoding", "") == coding
    result = triton.InferResult.from_response_body(
        body,
        header_length=None if length is None else int(length),
        content_encoding=coding or None,
    )
    got = result.as_numpy("x")
    if datatype == "BYTES" and not binary:
        got = np.vectorize(str.encode, otypes=[np.object_])(got)
    np.testing.assert_array_equal(got, array)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "3", "7")
    assert answer["parameters"] == {"tokens": 3}


def test_a_plain_request_gets_a_plain_answer() -> None:
    request, form = decode(one())
    assert (request.request_id, request.timeout_s) == (
        "id-of-the-gateway",
        DEFAULT_REQUEST_TIMEOUT_S,
    )
    assert (request.outputs, request.parameters, form) == ((), {}, AnswerForm())
    part = ResponsePart((Tensor("y", DataType.INT32, (1,), struct.pack("<i", 5)),))
    response = encode(InferResponse("digits", 3, part), part, form)
    assert response.headers == {"Content-Type": "application/json"}
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "model_name": "digits",
        "model_version": "3",
        "outputs": [{"name": "y", "datatype": "INT32", "shape": [1], "data": [5]}],
    }


def test_unknown_members_are_ignored() -> None:
    assert decode(one(extra=[{}]) | {"more": {"a": None}}).request.inputs[0].shape == (2,)


def test_small_and_huge_answers_are_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    def coding_of(size: int) -> str | None:
        part = ResponsePart((Tensor("y", DataType.UINT8, (size,), bytes(size)),))
        form = AnswerForm(binary=True, coding="gzip")
        return encode(InferResponse("m", 1, part), part, form).headers.get("Content-Encoding")

    monkeypatch.setattr(oip, "MAX_COMPRESSED_BYTES", 5000)
    assert [coding_of(size) for size in (10, 2000, 6000)] == [None, "gzip", None]


def test_several_inputs_take_their_bytes_in_order() -> None:
    body = {
        "inputs": [
            {"name": "a", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}},
            {"name": "b", "shape": [2], "datatype": "UINT8", "data": [8, 9]},
            {"name": "c", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
        ]
    }
    text = json.dumps(body).encode()
    request, _ = decode(text + b"\1\2\3", inference_header_content_length=str(len(text)))
    assert [bytes(tensor.data) for tensor in request.inputs] == [b"\1", b"\x08\x09", b"\2\3"]


def test_outputs_choose_binary_one_by_one() -> None:
    body = one() | {
        "outputs": [
            {"name": "p"},
            {"name": "q", "parameters": {"binary_data": True}},
            {"name": "r", "parameters": {"binary_data": False}},
            {"name": "s", "parameters": {"classification": 0}},
        ],
        "parameters": {"binary_data_output": True},
    }
    request, form = decode(body)
    assert request.outputs == ("p", "q", "r", "s")
    assert form == AnswerForm(binary=True, by_output={"q": True, "r": False})
    part = ResponsePart(tuple(Tensor(n, DataType.UINT8, (1,), b"\7") for n in "pqr"))
    response = encode(InferResponse("m", 1, part), part, form)
    assert isinstance(response.body, list)
    described = json.loads(bytes(response.body[0]))["outputs"]
    assert [output.get("data") for output in described] == [None, None, [7]]
    assert response.body[1:] == [b"\7", b"\7"]
    assert response.headers["Content-Type"] == "application/octet-stream"


def test_timeout_and_form_are_taken_out_of_the_parameters() -> None:
    parameters = {"timeout": 1_500_000, "binary_data_output": False, "priority": 2, "mine": "x"}
    request, _ = decode(one() | {"parameters": parameters})
    assert request.timeout_s == 1.5
    assert request.parameters == {"priority": 2, "mine": "x"}


@pytest.mark.parametrize(
    ("timeout", "timeout_s"), [(0, DEFAULT_REQUEST_TIMEOUT_S), (10**15, MAX_REQUEST_TIMEOUT_S)]
)
def test_no_timeout_is_the_default_and_a_very_long_one_is_cut(
    timeout: int, timeout_s: float
) -> None:
    assert decode(one() | {"parameters": {"timeout": timeout}}).request.timeout_s == timeout_s


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_request_is_understood(coding: str) -> None:
    text = json.dumps(one()).encode()
    packed = gzip.compress(text) if coding == "gzip" else zlib.compress(text)
    request, form = decode(packed, content_encoding=coding, accept_encoding=coding)
    assert request.inputs[0].shape == (2,)
    assert form.coding == coding
    assert decode(text, content_encoding="identity").form.coding == ""


def test_a_compressed_bomb_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip, "MAX_BODY_BYTES", 1000)
    with pytest.raises(TooLarge):
        decode(gzip.compress(bytes(10**6)), content_encoding="gzip")


def test_nan_and_infinity_are_read_as_triton_reads_them() -> None:
    body = b'{"id":"a","inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}'
    data = struct.unpack("<3f", decode(body).request.inputs[0].data)
    assert math.isnan(data[0])
    assert data[1:] == (math.inf, -math.inf)
    assert "INT32 takes integers" in refusal(
        body.replace(b'"x"', b'"y"').replace(b"FP32", b"INT32")
    )
    assert "neither data nor" in refusal(
        b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP32"}],"parameters":{"a":NaN}}'
    )


def test_null_in_a_string_is_left_alone_and_not_taken_for_a_nan() -> None:
    strings = Tensor("s", DataType.BYTES, (1,), struct.pack("<I", 4) + b"null")
    floats = Tensor("f", DataType.FP32, (2,), struct.pack("<2f", math.nan, 1))
    part = ResponsePart((strings, floats))
    body = encode(InferResponse("m", 1, part), part, AnswerForm()).body
    assert isinstance(body, bytes)
    assert b'"data":["null"]' in body
    assert b'"data":[NaN,1.0]' in body


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs":[],"x":NaN', "not JSON"),
        (b'{"inputs":[NaN]}', "Expected `object`, got `float`"),
        (b'{"inputs":[],"x":\xffNaN}', "not JSON"),
        (b'{"inputs":[],"id":"\xff"}', "not JSON"),
        (b'{"inputs":[],"a":' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        (b'{"inputs":[],"b":NaN,"a":' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        ({"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}, "field `name`"),
        (one(shape="2"), "$.inputs[0].shape"),
        (one(shape=[1.5]), "$.inputs[0].shape"),
        (one(shape=[-2]), "every dimension must be 0 or more"),
        (one(shape=[2**40, 2**40]), "more than the"),
        (one(shape=[3]), "3 elements are expected, not 2"),
        (one(datatype="FLOAT"), "datatype 'FLOAT'; known ones are BOOL, UINT8"),
        (one(data=None), "data must be an array, not null"),
        (one(data="abc"), 'data must be an array, not "abc"'),
        (one(data=[1, "b"]), "element 1"),
        (one(parameters={"binary_data_size": 8}), "both data and binary_data_size"),
        ({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32"}]}, "neither data nor"),
        ({"inputs": one()["inputs"] * 2}, "input 'x' is given twice"),
        ({"inputs": one()["inputs"] * 257}, "at most 256 inputs"),
        (one() | {"outputs": [{"name": "y"}] * 2}, "output 'y' is given twice"),
        (
            one() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            "'binary_data' must",
        ),
        (
            one() | {"parameters": {"binary_data_output": "yes"}},
            "'binary_data_output' must be true",
        ),
        (one() | {"parameters": {"timeout": -1}}, "'timeout' must be a number of microseconds"),
        (one() | {"parameters": {"timeout": True}}, "'timeout' must be a number"),
        (one() | {"parameters": {"timeout": "1"}}, "'timeout' must be a number"),
        (one() | {"parameters": {"priority": "high"}}, "'priority' must be a whole number"),
        (one() | {"parameters": {"priority": -1}}, "'priority' must be a whole number"),
        (one() | {"parameters": {"sequence_id": -3}}, "'sequence_id' must be a whole number from"),
        (one() | {"parameters": {"sequence_id": 2**64}}, "'sequence_id' must be a whole number"),
        (one() | {"parameters": {"sequence_id": 1.5}}, "'sequence_id' must be a whole number"),
        (one() | {"parameters": {"sequence_start": 1}}, "'sequence_start' must be true or false"),
        (one() | {"parameters": {"a": []}}, "$.parameters"),
        (one() | {"parameters": {str(n): 1 for n in range(65)}}, "at most 64 parameters, not 65"),
        (one() | {"parameters": {"a": "b" * 20_000}}, "more than 16384 characters"),
        (one() | {"id": "b" * 20_000}, "more than 16384 characters"),
        (one() | {"id": 7}, "$.id"),
    ],
)
def test_a_bad_request_is_told_what_was_expected(body: Any, sentence: str) -> None:
    assert sentence in refusal(body, VECTOR)


def test_data_that_does_not_fit_is_told_the_form_that_the_model_expects() -> None:
    """A wrong shape makes the count wrong as well, and the shape is what helps."""
    short = one(shape=[72])
    assert refusal(short) == (
        "input 'x' of model 'digits' has shape [-1, 4] (-1: any size), not [72]"
    )
    wrong_type = one(shape=[1, 4], datatype="INT64")
    assert refusal(wrong_type) == "input 'x' of model 'digits' is FP32, not INT64"
    assert "so 8 elements are expected, not 2" in refusal(one(shape=[2, 4]))
    assert "a batch of 9 exceeds" in refusal(one(shape=[9, 4]))
    item = {"name": "x", "shape": [3], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [item]}).encode()
    binary = refusal(text + bytes(4), inference_header_content_length=str(len(text)))
    assert "has shape [-1, 4]" in binary
    assert "at most 32" in refusal(one(shape=[1] * 5000))


@pytest.mark.parametrize("count", [-1, True, "3", 1.5])
def test_classification_wants_a_number_of_classes(count: object) -> None:
    asked = one() | {"outputs": [{"name": "y", "parameters": {"classification": count}}]}
    assert "output 'y': the parameter 'classification' is the number" in refusal(asked, VECTOR)


def test_classified_outputs_have_the_highest_values() -> None:
    asked = one() | {"outputs": [{"name": "y", "parameters": {"classification": 1}}]}
    _, form = decode(asked, VECTOR)
    tensor = Tensor("y", DataType.FP32, (1, 3), struct.pack("<3f", 1, 5, 2))
    answer = encode(
        InferResponse("digits", 3, ResponsePart((tensor,))), ResponsePart((tensor,)), form
    )
    (output,) = json.loads(
        b"".join([answer.body] if isinstance(answer.body, bytes) else answer.body)
    )["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == (
        "BYTES",
        [1, 1],
        ["5.000000:1"],
    )


@pytest.mark.parametrize(
    ("size", "tail", "sentence"),
    [
        (8, b"1234567", "7 bytes are left"),
        (8, b"", "is Inference-Header-Content-Length set?"),
        (8, b"123456789", "9 bytes follow the JSON, but"),
        (4, b"1234", "8 bytes are expected, not 4"),
        (-1, b"", "must be a number of bytes"),
        ("8", b"12345678", "must be a number of bytes"),
        (True, b"1", "must be a number of bytes"),
    ],
)
def test_binary_sizes_must_add_up(size: Any, tail: bytes, sentence: str) -> None:
    item = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [item]}).encode()
    said = refusal(text + tail, VECTOR, inference_header_content_length=str(len(text)))
    assert sentence in said


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "9" * 40, "²", ""])
def test_the_json_length_must_be_one(length: str) -> None:
    text = refusal(json.dumps(one()).encode(), inference_header_content_length=length)
    assert "must be the length of the JSON" in text


def test_shared_memory_is_explained() -> None:
    item = {
        "name": "x",
        "shape": [2],
        "datatype": "FP32",
        "parameters": {"shared_memory_region": "r"},
    }
    assert "shared memory, which a mesh cannot reach" in refusal({"inputs": [item]})


RAW = {"inference_header_content_length": "0"}


def raw_manifest(*specs: TensorSpec, max_batch_size: int = 0) -> Manifest:
    return Manifest("m", 3, "onnx", "", specs, (), max_batch_size, (), "")


@pytest.mark.parametrize(
    ("shape", "max_batch_size", "size", "expected"),
    [
        ((-1, 4), 8, 16, (1, 4)),
        ((-1, 4), 0, 32, (2, 4)),
        ((-1, -1, 2), 8, 24, (1, 3, 2)),
        ((2, 2), 0, 16, (2, 2)),
        ((), 8, 4, ()),
    ],
)
def test_a_raw_body_is_the_one_input_at_batch_size_one(
    shape: tuple[int, ...], max_batch_size: int, size: int, expected: tuple[int, ...]
) -> None:
    manifest = raw_manifest(TensorSpec("x", DataType.FP32, shape), max_batch_size=max_batch_size)
    request, form = decode(bytes(size), manifest, **RAW)
    assert request.inputs == (Tensor("x", DataType.FP32, expected, bytes(size)),)
    assert form == AnswerForm(binary=True)


def test_a_raw_string_is_one_element() -> None:
    manifest = raw_manifest(TensorSpec("s", DataType.BYTES, (-1, 1)), max_batch_size=4)
    (tensor,) = decode(b"hello", manifest, **RAW).request.inputs
    assert tensor == Tensor("s", DataType.BYTES, (1, 1), b"\5\0\0\0hello")


@pytest.mark.parametrize(
    ("specs", "size", "sentence"),
    [
        ([("x", DataType.FP32, (2,)), ("y", DataType.FP32, (2,))], 8, "'m' has 2"),
        ([("x", DataType.FP32, (-1, -1))], 8, "more than one variable dimension"),
        ([("x", DataType.FP32, (-1, 2))], 12, "a multiple of 8 bytes is expected, not 12"),
        ([("x", DataType.FP32, (-1, 0))], 0, "a multiple of 0 bytes"),
        ([("x", DataType.FP32, (2,))], 12, "8 bytes are expected, not 12"),
        ([("x", DataType.BYTES, (2,))], 12, "can only be a single element"),
    ],
)
def test_a_raw_body_that_cannot_be_the_input_is_refused(
    specs: list[tuple[str, DataType, tuple[int, ...]]], size: int, sentence: str
) -> None:
    manifest = raw_manifest(*(TensorSpec(*each) for each in specs))
    with pytest.raises(InvalidRequest) as caught:
        decode(bytes(size), manifest, **RAW)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("interface", "is_refused"), [(Interface.TENSORS, True), (Interface.JSON, False)]
)
def test_a_decoupled_model_of_tensors_is_refused_and_a_predictor_that_may_stream_is_not(
    interface: Interface, is_refused: bool
) -> None:
    manifest = raw_manifest(TensorSpec("x", DataType.FP32, (-1, 4)))
    execution = Execution(decoupled=True, interface=interface)
    manifest = msgspec.structs.replace(manifest, execution=execution)
    http = post(bytes(16), **RAW)
    if not is_refused:
        oip.decode(Asked(http, "m"), manifest, "", None)
        return
    with pytest.raises(HttpRefusal, match="generate_stream") as caught:
        oip.decode(Asked(http, "m"), manifest, "", None)
    assert caught.value.status == 501


def _response(*parts: ResponsePart) -> InferResponse:
    async def stream() -> AsyncIterator[ResponsePart]:
        for part in parts:
            yield part

    return InferResponse("m", 1, stream())


async def test_a_stream_of_one_part_is_an_answer_and_others_are_not() -> None:
    part = ResponsePart(())
    assert await only_part(_response(part)) is part
    with pytest.raises(InferenceFailed, match="without a result"):
        await only_part(_response())
    with pytest.raises(InvalidRequest, match="several parts"):
        await only_part(_response(part, part))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["FP32", "BYTES", "INT8", "x", 2**64, -1, "binary_data_size"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "datatype": st.sampled_from([str(d) for d in DataType]) | VALUES,
        "data": VALUES,
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 9)) | VALUES,
    },
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=3) | VALUES},
    optional={"id": VALUES, "parameters": VALUES, "outputs": VALUES},
)


def survives(body: bytes, headers: dict[str, str]) -> None:
    with contextlib.suppress(InvalidRequest, TooLarge):
        decode_infer(HttpRequest("POST", "/", "", headers, body), MANIFEST, None)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(BODIES, st.binary(max_size=9), st.booleans())
def test_no_json_makes_the_decoder_fail_otherwise(body: Any, tail: bytes, binary: bool) -> None:
    text = json.dumps(body).encode()
    survives(text + tail, {"inference-header-content-length": str(len(text))} if binary else {})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(["inference-header-content-length", "content-encoding", "accept-encoding"]),
        st.sampled_from(["0", "5", "gzip", "deflate", "", "\u0661"]) | st.text(max_size=8),
    ),
)
def test_no_bytes_make_the_decoder_fail_otherwise(body: bytes, headers: dict[str, str]) -> None:
    survives(body, headers)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 120), st.integers(0, 255))
def test_no_changed_byte_of_a_good_request_makes_the_decoder_fail(at: int, byte: int) -> None:
    text = bytearray(json.dumps(one() | {"id": "a", "outputs": [{"name": "y"}]}).encode())
    text[at % len(text)] = byte
    survives(bytes(text), {})


def test_the_body_of_a_response_knows_its_size() -> None:
    floats = np.zeros((2, 3), np.float32).data
    assert HttpResponse(200, {}, [b"ab", floats]).size_bytes == 26
    assert HttpResponse(200, {}, b"ab").size_bytes == 2
