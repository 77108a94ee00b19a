"""HTTP requests and JSON documents as tensors and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import InferenceFailed, InvalidRequest, TooLarge
from meshnode.models.execution import Execution, Interface
from meshnode.models.http_calls import (
    HttpCall,
    HttpHead,
    answer_headers,
    body_tensor,
    content_of,
    decode_call,
    document,
    document_tensor,
    encode_call,
    head_of,
    head_parameters,
    json_tensors,
    passed_on,
)
from meshnode.models.manifest import Manifest
from meshnode.types import DataType, Tensor


def manifest(interface: Interface) -> Manifest:
    return Manifest("m", 1, "python", "python", (), (), 0, (), "", Execution(interface=interface))


_texts = st.text(max_size=20)


@given(_texts, _texts, st.lists(st.tuples(_texts, _texts), max_size=5), st.binary(max_size=50))
def test_a_call_comes_back_as_it_was_sent(
    path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    call = HttpCall("POST", f"/{path}", query, tuple(headers), body)
    tensor, parameters = encode_call(call)
    assert decode_call(bytes(content_of([tensor])), parameters) == call


def test_a_call_is_one_row_however_long_its_body_is() -> None:
    tensor, _ = encode_call(HttpCall("POST", "/x", body=b"12345"))
    assert tensor.rows == 1
    assert tensor.shape == (1, 5)


def test_a_call_whose_headers_fill_a_message_is_refused() -> None:
    headers = (("cookie", "x" * 60_000),)
    with pytest.raises(TooLarge, match="path, query and headers"):
        encode_call(HttpCall("GET", "/", "", headers))


def test_an_inference_without_a_method_is_a_document() -> None:
    assert decode_call(b"{}", {"stream": True}) is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"http_method": 1},
        {"http_method": "GET", "http_path": 3},
        {"http_method": "GET", "http_headers": "no list"},
        {"http_method": "GET", "http_headers": '[["a"]]'},
        {"http_method": "GET", "http_headers": True},
    ],
)
def test_a_malformed_call_is_an_invalid_request(parameters: dict[str, str | int | bool]) -> None:
    with pytest.raises(InvalidRequest):
        decode_call(b"", parameters)


def test_an_answers_status_and_headers_come_back() -> None:
    head = HttpHead(201, (("content-type", "image/png"), ("x-latency", "3")))
    assert head_of(head_parameters(head)) == head
    assert head_of({}) == HttpHead()
    assert head.header("content-type") == "image/png"
    assert head.header("etag", "none") == "none"


@pytest.mark.parametrize("status", [99, 600, "200", True, 1.5])
def test_an_answer_with_no_status_of_http_has_failed(status: str | float) -> None:
    with pytest.raises(InferenceFailed, match="status"):
        head_of({"http_status": status})


def test_an_answer_with_headers_that_are_none_has_failed() -> None:
    with pytest.raises(InferenceFailed, match="headers"):
        head_of({"http_headers": "{}"})


def test_headers_about_the_connection_and_the_gateways_secrets_are_not_passed_on() -> None:
    headers = [("Accept", "x"), ("Connection", "close"), ("Authorization", "Bearer k")]
    assert passed_on(headers, ["authorization"]) == (("accept", "x"),)
    assert passed_on(headers) == (("accept", "x"), ("authorization", "Bearer k"))


def test_an_answer_keeps_its_headers_but_not_those_of_the_server() -> None:
    head = HttpHead(
        200,
        (
            ("content-type", "text/plain"), ("server", "uvicorn"), ("content-length", "3"),
            ("set-cookie", "a=1"), ("vary", "a"), ("vary", "b"), ("mesh-route", "forged"),
        ),
    )  # fmt: skip
    assert answer_headers(head) == {
        "Content-Type": "text/plain", "Set-Cookie": "a=1", "Vary": "a, b",
    }  # fmt: skip


@pytest.mark.parametrize(
    "pair", [("x\r\ny", "1"), ("x", "1\r\nSet-Cookie: a"), ("", "1"), ("é", "1")]
)
def test_a_model_cannot_write_lines_of_its_own_into_an_answers_head(pair: tuple[str, str]) -> None:
    with pytest.raises(InferenceFailed, match="malformed header"):
        answer_headers(HttpHead(200, (pair,)))


def test_a_document_becomes_the_tensor_that_the_model_takes() -> None:
    assert document(manifest(Interface.JSON), b"{}") == document_tensor("request", b"{}")
    assert document(manifest(Interface.HTTP), b"{}") == body_tensor(b"{}")
    with pytest.raises(InvalidRequest, match="/v2/models/m/infer"):
        document(manifest(Interface.TENSORS), b"{}")


def test_the_content_of_a_document_is_its_one_element() -> None:
    assert bytes(content_of([document_tensor("response", b"[1]")])) == b"[1]"
    assert bytes(content_of([body_tensor(b"abc")])) == b"abc"
    assert bytes(content_of([])) == b""


@pytest.mark.parametrize(
    "tensors",
    [
        [body_tensor(b""), body_tensor(b"")],
        [Tensor("x", DataType.FP32, (1,), bytes(4))],
        [Tensor("x", DataType.BYTES, (2,), bytes(8))],
        [Tensor("x", DataType.BYTES, (1,), b"\x05\0\0\0ab")],
        [Tensor("x", DataType.BYTES, (1,), b"")],
    ],
)
def test_what_is_no_document_is_refused(tensors: list[Tensor]) -> None:
    with pytest.raises(InvalidRequest):
        content_of(tensors)


def test_documents_that_are_batched_have_a_free_first_dimension() -> None:
    assert json_tensors()[0][0].shape == (1,)
    assert json_tensors(8)[1][0].shape == (-1,)
