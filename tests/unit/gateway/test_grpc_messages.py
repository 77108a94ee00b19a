"""Messages of inferences, to and from what the pipeline takes: pure, so without a server."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import strategies
from tritonclient.grpc import service_pb2

from meshnode import errors
from meshnode.errors import InvalidRequest, MeshError
from meshnode.gateway.protocols import grpc_messages, grpc_status
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.grpc_messages import NO_TIMEOUT, NoRegions, Streamed, Unary
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S, MAX_REQUEST_TIMEOUT_S
from meshnode.models.manifest import Manifest
from meshnode.types import Buffer, DataType, InferResponse, ResponsePart, Tensor
from tests.unit.gateway.conftest import spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.protocols.dialect import Call

NOWHERE = NoRegions("there is none")


class Memory:
    """Two regions of 32 bytes."""

    def __init__(self) -> None:
        self.data = {"a": bytearray(range(32)), "b": bytearray(32)}

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        if name not in self.data:
            raise InvalidRequest("no such region")
        return bytes(self.data[name][offset : offset + size_bytes])

    def write(self, name: str, offset: int, data: Buffer) -> None:
        self.data[name][offset : offset + len(data)] = data


def message(**more: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name="digits", **more)


def typed(field: str, values: list[Any], datatype: str, shape: list[int] | None = None) -> Any:
    found = message()
    item = found.inputs.add(name="x", datatype=datatype, shape=shape or [len(values)])
    getattr(item.contents, field).extend(values)
    return found


def decode(
    asked: Any, manifest: Manifest, regions: Any = NOWHERE, headers: dict[str, str] | None = None
) -> Call:
    http = HttpRequest("POST", "/", "", headers or {})
    return Unary(regions).decode(Asked(http, "digits", None, asked), manifest, "id", None)


@pytest.mark.parametrize(
    ("field", "values", "datatype", "data"),
    [
        ("bool_contents", [True, False], "BOOL", b"\1\0"),
        ("int_contents", [-1, 2], "INT8", b"\xff\2"),
        ("int_contents", [-1, 2], "INT16", struct.pack("<2h", -1, 2)),
        ("int_contents", [-1, 2], "INT32", struct.pack("<2i", -1, 2)),
        ("int64_contents", [-1, 2**62], "INT64", struct.pack("<2q", -1, 2**62)),
        ("uint_contents", [1, 255], "UINT8", b"\1\xff"),
        ("uint_contents", [1, 65535], "UINT16", struct.pack("<2H", 1, 65535)),
        ("uint_contents", [1, 2**32 - 1], "UINT32", struct.pack("<2I", 1, 2**32 - 1)),
        ("uint64_contents", [2**64 - 1], "UINT64", struct.pack("<Q", 2**64 - 1)),
        ("fp32_contents", [1.5], "FP32", struct.pack("<f", 1.5)),
        ("fp64_contents", [1e300], "FP64", struct.pack("<d", 1e300)),
        ("bytes_contents", [b"ab", b"\xff"], "BYTES", b"\2\0\0\0ab\1\0\0\0\xff"),
    ],
)
def test_typed_contents_become_little_endian_bytes(
    field: str, values: list[Any], datatype: str, data: bytes, manifest: Manifest
) -> None:
    (tensor,) = decode(typed(field, values, datatype), manifest).request.inputs
    assert (tensor.datatype, tensor.shape, bytes(tensor.data)) == (
        DataType(datatype),
        (len(values),),
        data,
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (typed("int_contents", [300], "INT8"), "integers from -128 to 127"),
        (typed("fp32_contents", [1.0], "FP16"), "raw_input_contents, not in contents.fp32"),
        (typed("int_contents", [1], "FP32"), "contents.fp32_contents or in raw_input_contents"),
        (typed("fp32_contents", [1.0], "FP32", [2]), "2 elements are expected"),
        (typed("fp32_contents", [1.0], "FLOAT"), "datatype 'FLOAT'"),
        (typed("fp32_contents", [1.0], "FP32", [-1]), "0 or more"),
    ],
)
def test_typed_contents_that_do_not_fit_are_told(asked: Any, said: str, manifest: Manifest) -> None:
    with pytest.raises(InvalidRequest, match=said):
        decode(asked, manifest)


def test_raw_contents_are_for_all_inputs_in_their_order(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest(spec("x", (1,)), spec("y", (1,)))
    asked = message(raw_input_contents=[b"\1\0\0\0", b"\2\0\0\0"])
    for name in "xy":
        asked.inputs.add(name=name, datatype="INT32", shape=[1])
    found = decode(asked, manifest).request.inputs
    assert [(each.name, bytes(each.data)) for each in found] == [
        ("x", b"\1\0\0\0"),
        ("y", b"\2\0\0\0"),
    ]
    asked.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequest, match="3 raw_input_contents for 2 inputs"):
        decode(asked, manifest)
    del asked.raw_input_contents[1:]
    with pytest.raises(InvalidRequest, match="1 raw_input_contents for 2 inputs"):
        decode(asked, manifest)
    asked.inputs[0].contents.int_contents.append(1)
    with pytest.raises(InvalidRequest, match="as well"):
        decode(asked, manifest)


def raw(**more: Any) -> Any:
    asked = message(raw_input_contents=[bytes(16)], **more)
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return asked


def test_raw_contents_have_the_size_that_their_shape_says(manifest: Manifest) -> None:
    asked = raw()
    asked.raw_input_contents[0] = bytes(12)
    with pytest.raises(InvalidRequest, match="16 bytes are expected, not 12"):
        decode(asked, manifest)


def test_parameters_reach_the_model_but_for_the_protocols_own(manifest: Manifest) -> None:
    asked = raw(id="mine")
    asked.parameters["priority"].int64_param = 2
    asked.parameters["sequence_id"].string_param = "s"
    asked.parameters["big"].uint64_param = 2**64 - 1
    asked.parameters["rate"].double_param = 0.5
    asked.parameters["flag"].bool_param = True
    asked.parameters["timeout"].int64_param = 2_500_000
    asked.parameters["binary_data_output"].bool_param = True
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    call = decode(asked, manifest)
    assert call.request.parameters == {
        "priority": 2,
        "sequence_id": "s",
        "big": 2**64 - 1,
        "rate": 0.5,
        "flag": True,
    }
    assert call.request.timeout_s == 2.5
    assert (call.form.id, call.form.wants_end) == ("mine", True)


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("timeout", "string_param", "soon", "microseconds"),
        ("timeout", "int64_param", -1, "microseconds"),
        ("timeout", "bool_param", True, "microseconds"),
        ("triton_enable_empty_final_response", "int64_param", 1, "true or false"),
        ("priority", "string_param", "high", "'priority' must be a whole number"),
        ("sequence_id", "int64_param", -3, "'sequence_id' must be a whole number"),
        ("sequence_end", "int64_param", 1, "'sequence_end' must be true or false"),
    ],
)
def test_parameters_of_the_protocol_are_checked(
    name: str, field: str, value: Any, said: str, manifest: Manifest
) -> None:
    asked = raw()
    setattr(asked.parameters[name], field, value)
    with pytest.raises(InvalidRequest, match=said):
        decode(asked, manifest)


def test_a_parameter_without_a_value_is_told(manifest: Manifest) -> None:
    asked = raw()
    asked.parameters["empty"].SetInParent()
    with pytest.raises(InvalidRequest, match="'empty' has no value"):
        decode(asked, manifest)


def test_the_nearer_of_two_deadlines_counts(manifest: Manifest) -> None:
    asked = raw()
    assert decode(asked, manifest).request.timeout_s == DEFAULT_REQUEST_TIMEOUT_S
    assert decode(asked, manifest, headers={NO_TIMEOUT: "1.5"}).request.timeout_s == 1.5
    asked.parameters["timeout"].int64_param = 1_000_000
    assert decode(asked, manifest, headers={NO_TIMEOUT: "1.5"}).request.timeout_s == 1.0
    asked.parameters["timeout"].int64_param = 10**15
    assert decode(asked, manifest).request.timeout_s == MAX_REQUEST_TIMEOUT_S


def test_more_of_anything_than_a_request_has_is_refused(manifest: Manifest) -> None:
    asked = message()
    for number in range(257):
        asked.inputs.add(name=str(number), datatype="FP32", shape=[0])
    with pytest.raises(InvalidRequest, match="256 inputs"):
        decode(asked, manifest)
    asked = raw()
    for number in range(65):
        asked.parameters[str(number)].bool_param = True
    with pytest.raises(InvalidRequest, match="64 parameters"):
        decode(asked, manifest)
    with pytest.raises(InvalidRequest, match="characters"):
        decode(raw(id="x" * 17_000), manifest)


def test_names_given_twice_are_told(manifest: Manifest) -> None:
    asked = raw()
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(bytes(16))
    with pytest.raises(InvalidRequest, match="input 'x' is given twice"):
        decode(asked, manifest)
    asked = raw()
    asked.outputs.add(name="y")
    asked.outputs.add(name="y")
    with pytest.raises(InvalidRequest, match="output 'y' is given twice"):
        decode(asked, manifest)


def answer(*tensors: Tensor, **parameters: Any) -> tuple[InferResponse, ResponsePart]:
    part = ResponsePart(tensors, parameters)
    return InferResponse("digits", 3, part), part


def test_an_answer_is_what_protobuf_makes_of_it(manifest: Manifest) -> None:
    tensors = (
        Tensor("y", DataType.FP32, (2,), memoryview(bytes(range(8)))),
        Tensor("z", DataType.UINT8, (300,), bytes(300)),
        Tensor("none", DataType.FP32, (0,), b""),
    )
    call = decode(raw(id="mine"), manifest)
    response, part = answer(
        *tensors, cache="hit", count=3, huge=2**70, small=-(2**63), rate=0.5, flag=True
    )
    body = Unary(NOWHERE).encode(response, part, call.form).body
    found = service_pb2.ModelInferResponse.FromString(body)
    assert (found.model_name, found.model_version, found.id) == ("digits", "3", "mine")
    assert [(each.name, each.datatype, list(each.shape)) for each in found.outputs] == [
        ("y", "FP32", [2]),
        ("z", "UINT8", [300]),
        ("none", "FP32", [0]),
    ]
    assert list(found.raw_output_contents) == [bytes(range(8)), bytes(300), b""]
    told = found.parameters
    assert (told["cache"].string_param, told["count"].int64_param) == ("hit", 3)
    assert (told["huge"].double_param, told["small"].int64_param) == (2.0**70, -(2**63))
    assert (told["rate"].double_param, told["flag"].bool_param) == (0.5, True)


def test_a_message_in_a_stream_is_what_protobuf_makes_of_it(manifest: Manifest) -> None:
    asked = raw(id="mine")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    http = HttpRequest("POST", "/", "", {})
    call = Streamed(NOWHERE).decode(Asked(http, "digits", None, asked), manifest, "id", None)
    assert call.stream is not None
    response, part = answer(Tensor("y", DataType.FP32, (50,), bytes(200)))
    encoder = call.stream(response)
    found = service_pb2.ModelStreamInferResponse.FromString(encoder.part(part))
    assert found.infer_response.raw_output_contents == [bytes(200)]
    assert found.infer_response.parameters["triton_final_response"].bool_param
    assert not encoder.end()
    failed = encoder.failed(InvalidRequest("it broke"))
    assert failed is not None
    told = service_pb2.ModelStreamInferResponse.FromString(failed)
    assert (told.error_message, told.infer_response.id) == ("it broke", "mine")
    assert not encoder.headers


@pytest.mark.parametrize("wants_end", [True, False])
def test_an_empty_part_only_ends_an_answer(manifest: Manifest, wants_end: bool) -> None:
    asked = raw()
    asked.parameters["triton_enable_empty_final_response"].bool_param = wants_end
    http = HttpRequest("POST", "/", "", {})
    call = Streamed(NOWHERE).decode(Asked(http, "digits", None, asked), manifest, "id", None)
    assert call.stream is not None
    response, part = answer()
    encoder = call.stream(response)
    assert encoder.part(part) == b""
    assert bool(encoder.end()) is wants_end


def in_region(item: Any, region: str, size_bytes: int, offset: int | None = None) -> None:
    item.parameters["shared_memory_region"].string_param = region
    item.parameters["shared_memory_byte_size"].int64_param = size_bytes
    if offset is not None:
        item.parameters["shared_memory_offset"].int64_param = offset


def test_tensors_come_from_regions_and_go_there(manifest: Manifest) -> None:
    memory = Memory()
    asked = message()
    in_region(asked.inputs.add(name="x", datatype="UINT8", shape=[4]), "a", 4, 8)
    in_region(asked.outputs.add(name="y"), "b", 8, 16)
    call = decode(asked, manifest, memory)
    assert call.request.inputs[0].data == bytes([8, 9, 10, 11])
    response, part = answer(
        Tensor("y", DataType.UINT8, (4,), b"abcd"), Tensor("z", DataType.UINT8, (1,), b"z")
    )
    body = Unary(memory).encode(response, part, call.form).body
    found = service_pb2.ModelInferResponse.FromString(body)
    assert list(found.raw_output_contents) == [b"", b"z"]
    told = found.outputs[0].parameters
    assert told["shared_memory_region"].string_param == "b"
    assert told["shared_memory_byte_size"].int64_param == 4
    assert told["shared_memory_offset"].int64_param == 16
    assert memory.data["b"][16:20] == b"abcd"
    response, part = answer(Tensor("y", DataType.UINT8, (9,), bytes(9)))
    with pytest.raises(InvalidRequest, match="more than the 8"):
        Unary(memory).encode(response, part, call.form)


def test_a_region_needs_its_name_and_size(manifest: Manifest) -> None:
    asked = message()
    item = asked.inputs.add(name="x", datatype="UINT8", shape=[4])
    item.parameters["shared_memory_region"].string_param = "a"
    with pytest.raises(InvalidRequest, match="shared_memory_byte_size is missing"):
        decode(asked, manifest, Memory())
    item.parameters["shared_memory_byte_size"].int64_param = -1
    with pytest.raises(InvalidRequest, match="whole number"):
        decode(asked, manifest, Memory())
    item.parameters["shared_memory_region"].bool_param = True
    with pytest.raises(InvalidRequest, match="name of a region"):
        decode(asked, manifest, Memory())


def test_a_caller_without_regions_is_told_why(manifest: Manifest) -> None:
    asked = message()
    in_region(asked.inputs.add(name="x", datatype="UINT8", shape=[4]), "a", 4)
    with pytest.raises(InvalidRequest, match="there is none"):
        decode(asked, manifest)
    with pytest.raises(InvalidRequest, match="there is none"):
        NOWHERE.write("a", 0, b"")


def test_the_highest_values_are_told_of_who_asks_for_them(
    make_manifest: Callable[..., Manifest],
) -> None:
    asked = raw()
    wanted = asked.outputs.add(name="x")
    wanted.parameters["classification"].int64_param = 2
    call = decode(asked, make_manifest(max_batch_size=4))
    response, part = answer(Tensor("x", DataType.FP32, (1, 3), struct.pack("<3f", 1, 3, 2)))
    body = Unary(NOWHERE).encode(response, part, call.form).body
    found = service_pb2.ModelInferResponse.FromString(body)
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == ("BYTES", [1, 2])
    assert b"3.000000:1" in found.raw_output_contents[0]
    in_region(wanted, "b", 8)
    with pytest.raises(InvalidRequest, match="both"):
        decode(asked, make_manifest())


@hypothesis.given(strategies.binary(max_size=200))
@hypothesis.settings(max_examples=300)
def test_any_message_is_decoded_or_refused_for_its_caller(data: bytes) -> None:
    try:
        asked = service_pb2.ModelInferRequest.FromString(b"\x2a\x10\x0a\x01x\x12\x04FP32" + data)
    except Exception:  # noqa: BLE001 - no message at all; the server refuses it
        return
    manifest = Manifest("m", 1, "onnx", "", (spec("x", (-1,)),), (), 0, (), "m.onnx")
    try:
        decode(asked, manifest, Memory())
    except InvalidRequest:
        return


def test_lengths_are_written_as_protobuf_does() -> None:
    for length in (0, 1, 127, 128, 300, 2**21, 2**26 + 5):
        head = grpc_messages._varint(length)
        value, shift = 0, 0
        for byte in head:
            value |= (byte & 0x7F) << shift
            shift += 7
        assert value == length
        assert all(byte & 0x80 for byte in head[:-1])
        assert not head[-1] & 0x80


# Statuses


def test_every_error_has_a_status_with_a_name() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, MeshError)
    ]
    for kind in kinds:
        status = grpc_status.status_from(kind("why"))
        assert grpc_status.NAMES[status.code]
        assert status.sentence == "why"
        assert dict(status.metadata)["mesh-error"] == kind.code


def test_waiting_is_advised_where_it_helps() -> None:
    told = dict(grpc_status.status_from(errors.Throttled("slow", 7)).metadata)
    assert told["grpc-retry-pushback-ms"] == "7000"
    assert "grpc-retry-pushback-ms" not in dict(
        grpc_status.status_from(InvalidRequest("no")).metadata
    )


def test_refusals_of_paths_are_statuses_too() -> None:
    assert grpc_status.status_from_refusal(HttpRefusal(501, "no")).code == 12
    assert grpc_status.code_of_http(418) == grpc_status.INVALID_ARGUMENT
    assert grpc_status.code_of_http(502) == grpc_status.INTERNAL
