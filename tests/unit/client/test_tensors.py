"""Tensors against the gateway's own codec: what the client writes it reads, and the other way round."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from meshnode.client.calls import Reply
from meshnode.client.infer import infer_call, infer_document, read_result
from meshnode.client.results import TensorInfo
from meshnode.client.tensors import InputTensor, encode_inputs, needs_metadata
from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.gateway.protocols import oip
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.tensors import DTYPES
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

NUMERIC = [kind for kind in DataType if kind not in (DataType.BYTES, DataType.BF16)]


def manifest(specs: Sequence[TensorInfo] = ()) -> Manifest:
    inputs = tuple(TensorSpec(s.name, DataType(s.datatype), s.shape) for s in specs)
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", inputs, inputs, 0, (), "m.onnx")


def received(inputs: object, *specs: TensorInfo) -> InferRequest:
    """What the gateway makes of inputs."""
    encoded = encode_inputs(inputs, "m", specs if needs_metadata(inputs) else None)
    document = infer_document(encoded, binary=True)
    message = infer_call("m", document, encoded.buffers).message(5.0)
    headers = {name.lower(): value for name, value in message.headers.items()}
    http = HttpRequest("POST", "/v2/models/m/infer", "", headers, b"".join(message.parts))
    call = oip.decode_infer(http, manifest(specs), None)
    assert call.form.binary
    return call.request


def echoed(tensors: Sequence[Tensor], *, binary: bool = True) -> Mapping[str, NDArray[Any]]:
    """What the client makes of the gateway's answer with these outputs."""
    form = oip.AnswerForm(binary=binary)
    part = ResponsePart(tuple(tensors))
    http = oip.encode(InferResponse("m", 1, part), part, form)
    body = http.body if isinstance(http.body, bytes) else b"".join(http.body)
    headers = {name.lower(): value for name, value in http.headers.items()}
    return read_result(Reply(200, headers, bytearray(body)))


def there_and_back(array: NDArray[Any]) -> NDArray[Any]:
    little = array.dtype.newbyteorder("<")
    datatype = next(kind for kind, dtype in DTYPES.items() if little == dtype)
    (tensor,) = received({"x": array}, TensorInfo("x", str(datatype), array.shape)).inputs
    assert tensor.shape == array.shape
    return echoed([tensor])["x"]


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_arrays_of_every_type_come_back_as_they_were(
    datatype: DataType, data: st.DataObject
) -> None:
    shape = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    array = data.draw(arrays.arrays(DTYPES[datatype], shape))
    back = there_and_back(array)
    assert back.dtype == DTYPES[datatype]
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", NUMERIC)
def test_the_other_byte_order_strides_and_read_only_memory_are_no_difference(
    datatype: DataType,
) -> None:
    array = np.arange(24).reshape(4, 6).astype(DTYPES[datatype])
    for variant in (
        array.astype(array.dtype.newbyteorder(">")),
        array.T,
        array[::2, ::-1],
        array[1:1],
        np.broadcast_to(array, (2, 4, 6)),
        np.asfortranarray(array),
        array[0, 0],  # NumPy's scalar
    ):
        back = there_and_back(np.asarray(variant))
        np.testing.assert_array_equal(back, np.asarray(variant))


def test_a_large_array_is_sent_from_its_own_memory_and_the_result_is_a_view() -> None:
    array = np.arange(10_000, dtype=np.float32)
    encoded = encode_inputs({"x": array}, "m", None)
    assert np.shares_memory(np.frombuffer(encoded.buffers[0], np.float32), array)
    body = bytearray(
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[2,2],'
        b'"parameters":{"binary_data_size":16}}]}'
    )
    head = len(body)
    pad = -head % 4
    body[-1:-1] = b" " * pad
    body += np.arange(4, dtype=np.float32).tobytes()
    reply = Reply(200, {"inference-header-content-length": str(head + pad)}, body)
    result = read_result(reply)["y"]
    assert np.shares_memory(result, np.frombuffer(body, np.uint8))
    assert result.flags.writeable


def test_unaligned_outputs_are_right() -> None:
    tensors = [
        Tensor("a", DataType.UINT8, (3,), b"\x01\x02\x03"),
        Tensor("b", DataType.FP64, (2,), np.array([1.5, -2.0]).tobytes()),
    ]
    result = echoed(tensors)
    assert result["b"].tolist() == [1.5, -2.0]
    assert result["b"].flags.aligned


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "ä猫", ""]),
        np.array([b"a", "ä猫".encode(), b""]),
        np.array(["a", "ä猫", ""], dtype=object),
        np.array([b"a", "ä猫".encode(), b""], dtype=object),
        InputTensor(["a", "ä猫", ""], "BYTES"),
        InputTensor([b"a", "ä猫".encode(), b""], "BYTES"),
    ],
)
def test_text_and_bytes_travel_as_bytes(value: Any) -> None:
    (tensor,) = received({"x": value}).inputs
    assert (tensor.datatype, tensor.shape) == (DataType.BYTES, (3,))
    result = echoed([tensor])["x"]
    assert result.tolist() == [b"a", "ä猫".encode(), b""]


def test_bytes_that_are_no_text_come_back_too_and_text_decodes_on_demand() -> None:
    (tensor,) = received({"x": np.array([b"\xff\x00\xfe", b""], dtype=object)}).inputs
    form = oip.AnswerForm(binary=True)
    part = ResponsePart((tensor, Tensor("t", DataType.BYTES, (1, 1), b"\x02\x00\x00\x00\xc3\xa4")))
    http = oip.encode(InferResponse("m", 1, part), part, form)
    assert isinstance(http.body, list)
    headers = {name.lower(): value for name, value in http.headers.items()}
    result = read_result(Reply(200, headers, b"".join(http.body)))
    assert result["x"].tolist() == [b"\xff\x00\xfe", b""]
    assert result.text("t").tolist() == [["ä"]]
    with pytest.raises(UnicodeDecodeError):
        result.text("x")


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bf16_is_rounded_as_the_gateway_rounds_it(values: list[float]) -> None:
    array = np.array(values, np.float32)
    (tensor,) = received({"x": InputTensor(array, "BF16")}).inputs
    assert tensor.datatype is DataType.BF16
    back = echoed([tensor])["x"]
    assert back.dtype == np.float32
    # Half of the distance between neighbours of 8 bits, where it does not round to an infinity.
    near = np.isfinite(array) & (np.abs(array) > 1e-30) & (np.abs(array) < 3.3e38)
    np.testing.assert_allclose(back[near], array[near], rtol=2**-8)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(array))
    listed = [value for value in values if abs(value) < 3.3e38]
    if listed:
        (by_gateway,) = received({"x": InputTensor(listed, "BF16")}).inputs
        (by_client,) = received({"x": InputTensor(np.array(listed, np.float32), "BF16")}).inputs
        assert bytes(by_gateway.data) == bytes(by_client.data)


def test_a_scalar_of_bf16_stays_a_scalar() -> None:
    (tensor,) = received({"x": InputTensor(np.float64(1.5), "BF16")}).inputs
    assert tensor.shape == ()
    assert echoed([tensor])["x"].tolist() == 1.5


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([1j]), "complex128"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.zeros(1, np.longdouble), "longdouble"),
        (np.zeros(1, [("a", "f4")]), "a"),
        (np.array([{}], dtype=object), "dict cannot be sent"),
        (np.array([1, "a"], dtype=object), "element 0: int cannot be sent"),
        (np.array(["\ud800"], dtype=object), "not valid"),
    ],
)
def test_what_has_no_type_in_the_protocol_is_refused_before_anything_is_sent(
    array: NDArray[Any], said: str
) -> None:
    said = str(np.dtype(np.longdouble)) if said == "longdouble" else said
    with pytest.raises(InvalidRequest, match=r"input 'x'") as caught:
        encode_inputs({"x": array}, "m", None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (InputTensor(np.array([1.5]), "INT64"), r'astype\("int64"\)'),
        (InputTensor(np.array([1]), "BYTES"), r'astype\("str"\)'),
        (InputTensor(np.array([1, 300]), "INT8"), "holds 300, which INT8 cannot: .* -128 to 127"),
        (InputTensor(np.array([-1]), "UINT64"), "holds -1, which UINT64 cannot: it goes from 0"),
        (InputTensor(np.array([2**63 + 5], np.uint64), "INT64"), "holds 9223372036854775813"),
        (InputTensor(np.array([1.0, -1e9, np.inf]), "FP16"), r"holds 1e\+09, which FP16 cannot"),
        (InputTensor(np.array([1e300]), "BF16"), r"holds 1e\+300, which BF16 cannot"),
        (InputTensor(None, "FP32"), "is None"),  # type: ignore[arg-type]
        (InputTensor(np.array(["a"]), "FP32"), "not FP32"),
        (InputTensor([1], "FLOAT"), "no datatype"),
        (InputTensor([[1], [1, 2]], "FP32"), "different lengths"),
        (InputTensor(np.array([True]), "BF16"), "not BF16"),
        (InputTensor([b"x"], "FP32"), "takes FP32"),
        (InputTensor([object()], "FP32"), "not JSON serializable"),  # type: ignore[arg-type]
        ([np.zeros(2), np.zeros(3)], "cannot be an array"),
    ],
)
def test_what_cannot_be_the_type_that_was_named_is_refused(value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        encode_inputs({"x": value}, "m", None)


def test_a_named_type_converts_where_only_precision_is_lost() -> None:
    (half,) = received({"x": InputTensor(np.array([1 / 3, np.inf]), "FP16")}).inputs
    assert half.datatype is DataType.FP16
    assert echoed([half])["x"].tolist() == [float(np.float16(1 / 3)), float("inf")]
    (wide,) = received({"x": InputTensor(np.array([1, 2], np.int8), "INT64")}).inputs
    assert echoed([wide])["x"].tolist() == [1, 2]
    (narrow,) = received({"x": InputTensor(np.array([0, 255]), "UINT8")}).inputs
    assert echoed([narrow])["x"].tolist() == [0, 255]
    (none,) = received({"x": InputTensor(np.zeros((0, 2), np.int64), "INT8")}).inputs
    assert none.shape == (0, 2)


SPEC = TensorInfo("x", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([[1, 2.5]], (1, 2)),
        ([1, 2.5], (1, 2)),
        ((1, 2.5, 3, 4), (2, 2)),
        ([[1, 2], (3, 4)], (2, 2)),
    ],
)
def test_lists_take_the_type_and_the_shape_of_the_model(value: Any, shape: tuple[int, ...]) -> None:
    (tensor,) = received({"x": value}, SPEC).inputs
    assert (tensor.datatype, tensor.shape) == (DataType.FP32, shape)
    (alone,) = received(value, SPEC).inputs
    assert alone == tensor


def test_a_list_of_arrays_is_a_batch_and_an_array_alone_the_only_input() -> None:
    rows = [np.zeros(2, np.float32), np.ones(2, np.float32)]
    (tensor,) = received({"x": rows}).inputs
    assert (tensor.datatype, tensor.shape) == (DataType.FP32, (2, 2))
    (alone,) = received(np.stack(rows), SPEC).inputs
    assert alone == tensor


def test_what_other_libraries_call_an_array_is_one() -> None:
    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
            return np.array([1, 2], np.int16)

    (tensor,) = received({"x": Foreign()}).inputs
    assert (tensor.datatype, tensor.shape) == (DataType.INT16, (2,))


@pytest.mark.parametrize("raised", [RuntimeError("it requires grad\nmore"), TypeError("cuda:0")])
def test_an_array_that_cannot_be_read_is_refused_with_what_to_do(raised: Exception) -> None:
    """As torch's tensors do that require a gradient or lie on a GPU."""

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
            raise raised

    with pytest.raises(InvalidRequest, match=f"cannot be an array: {str(raised)[:16]}$"):
        encode_inputs({"x": Tensor()}, "m", None)
    Tensor.__module__ = "torch"
    with pytest.raises(InvalidRequest, match=r"give tensor\.detach\(\)\.cpu\(\)\.numpy\(\)$"):
        encode_inputs({"x": [Tensor()]}, "m", None)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.array([[0.1, 2]]), (1, 2)),
        (np.array([[0, 2]]), (1, 2)),
        ([np.array([0.1, 2]), np.array([3, 4.0])], (2, 2)),
        ([[np.float64(0.1), 2]], (1, 2)),
        ([[0.1, np.float64(2)]], (1, 2)),
        ([np.float64(0.1), np.float64(2)], (1, 2)),  # as lists, without the batch dimension
        ([[0.1, 2], np.array([3.0, 4])], (2, 2)),
    ],
)
def test_arrays_of_numpys_default_types_take_the_type_of_the_model(
    value: Any, shape: tuple[int, ...]
) -> None:
    (tensor,) = received({"x": value}, SPEC).inputs
    assert (tensor.datatype, tensor.shape) == (DataType.FP32, shape)
    expected = np.asarray(value, np.float32).reshape(shape)
    np.testing.assert_array_equal(echoed([tensor])["x"], expected)


def test_default_types_are_not_forced_into_another_kind_or_out_of_range() -> None:
    whole = TensorInfo("x", "INT8", (-1,))
    with pytest.raises(InvalidRequest, match=r'cannot become INT8 .* astype\("int8"\)'):
        encode_inputs({"x": np.array([1.5])}, "m", [whole])
    with pytest.raises(InvalidRequest, match="holds 300, which INT8 cannot"):
        encode_inputs({"x": np.array([300])}, "m", [whole])
    (own,) = received({"x": np.array([300], np.int16)}, whole).inputs
    assert own.datatype is DataType.INT16  # was chosen: the gateway says what it thinks of it


def test_an_array_alone_may_leave_out_the_batch_dimension() -> None:
    square = TensorInfo("x", "FP32", (-1, 8, 8))
    for array in (np.zeros((8, 8), np.float32), np.zeros((8, 8)), InputTensor([[0.0]], "FP32")):
        (tensor,) = received(array, square).inputs
        assert tensor.shape == ((1, 1) if isinstance(array, InputTensor) else (1, 8, 8))
    (named,) = received({"x": np.zeros((8, 8), np.float32)}, square).inputs
    assert named.shape == (8, 8)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for inputs in (endless, {"x": endless}):
        with pytest.raises(InvalidRequest, match="nested more than 32 deep"):
            encode_inputs(inputs, "m", [SPEC] if needs_metadata(inputs) else None)


@pytest.mark.parametrize("word", [0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF])
def test_a_nan_of_any_bits_stays_one_in_bf16(word: int) -> None:
    """Rounded as a number, it would become zero or an infinity."""
    array = np.array([word], np.uint32).view(np.float32)
    (tensor,) = received({"x": InputTensor(array, "BF16")}).inputs
    assert np.isnan(echoed([tensor])["x"]).all()


def test_only_what_chose_no_type_needs_the_models_metadata() -> None:
    assert needs_metadata(np.zeros(1))
    assert needs_metadata({"x": [1]})
    assert needs_metadata({"x": 1.5})
    assert needs_metadata({"x": [np.float64(1), 2.0]})
    assert needs_metadata({"x": np.zeros(1)})  # NumPy's default type, which nobody chose
    assert not needs_metadata({"x": np.zeros(1, np.float32)})
    assert not needs_metadata({"x": np.float32(1)})
    assert not needs_metadata({"x": [np.zeros(1, np.float32)]})
    assert not needs_metadata({"x": InputTensor([1], "FP32")})


def test_unknown_missing_and_ambiguous_inputs_are_explained() -> None:
    with pytest.raises(
        InvalidRequest, match=r"no input 'y'; its inputs are 'x' \(FP32 \[-1, 2\]\)"
    ):
        encode_inputs({"y": [1]}, "m", [SPEC])
    with pytest.raises(InvalidRequest, match="2 inputs, so each needs its name"):
        encode_inputs(np.zeros(1), "m", [SPEC, SPEC])
    with pytest.raises(InvalidRequest, match="no input is given"):
        encode_inputs({}, "m", None)


def test_answers_in_json_are_read_too() -> None:
    tensors = [
        Tensor("f", DataType.FP16, (2,), np.array([1.5, np.nan], np.float16).tobytes()),
        Tensor("i", DataType.INT8, (1, 2), b"\x01\xff"),
        Tensor("s", DataType.BYTES, (1,), b"\x02\x00\x00\x00\xc3\xa4"),
        Tensor("b", DataType.BF16, (1,), b"\xc0\x3f"),
    ]
    result = echoed(tensors, binary=False)
    assert result["f"].dtype == np.float16
    assert str(result["f"].tolist()) == "[1.5, nan]"
    assert result["i"].tolist() == [[1, -1]]
    assert result["s"].tolist() == ["ä".encode()]
    assert result["b"].tolist() == [1.5]


GOOD = {
    "model_name": "m",
    "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    ],
}


def answer(document: Any, data: bytes = b"abcd", length: str | None = None) -> Reply:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {"inference-header-content-length": length or str(len(head))}
    return Reply(200, headers, head + data, url="http://a")


def changed(**output: Any) -> Any:
    return GOOD | {"outputs": [{**GOOD["outputs"][0], **output}]}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"{"),
        answer(b"\xff"),
        answer([]),
        answer({"model_name": "m"}),
        answer(b"[" * 100_000),
        answer(GOOD, b"abc"),
        answer(GOOD, b"abcde"),
        answer(GOOD, length="1000"),
        answer(GOOD, length="-1"),
        answer(GOOD, length="x"),
        answer(changed(datatype="FP8")),
        answer(changed(shape=[2])),
        answer(changed(shape=[-1])),
        answer(changed(datatype="BYTES")),
        answer(
            changed(datatype="BYTES", parameters={"binary_data_size": 4}, shape=[2]), b"\0\0\0\0"
        ),
        answer(changed(parameters={"binary_data_size": "4"})),
        answer(changed(parameters={"binary_data_size": -4})),
        answer(changed(parameters=None, data=["x"]), b""),
        answer(changed(parameters=None, data=[1, 2]), b""),
    ],
)
def test_garbage_is_a_protocol_error_that_names_the_gateway(reply: Reply) -> None:
    with pytest.raises(ProtocolError, match="the answer of http://a is no inference response"):
        read_result(reply)


def test_a_document_is_no_tensor_and_its_sender_is_told_whom_to_ask() -> None:
    with pytest.raises(InvalidRequest, match="asked with predict, predict_stream or predict_later"):
        encode_inputs({"request": {"prompt": "a red ring"}}, "painter", None)
