"""Texts as what models take, and what models answer as text and vectors."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from meshnode.errors import (
    InferenceFailed,
    InvalidRequest,
)
from meshnode.gateway.protocols import (
    task_outputs,
)
from meshnode.gateway.protocols.task_inputs import batch, one_input, rows_at_once
from meshnode.gateway.protocols.task_outputs import TextReader, member, unit, vectors_of
from meshnode.models.exposure import Task, TaskMapping
from meshnode.models.manifest import TensorSpec
from meshnode.models.tasks import Offer, offer_of, read_task
from meshnode.types import DataType, ResponsePart, Tensor
from tests.unit.gateway.text_gateway import (
    PROMPT,
    VECTOR,
    bytes_tensor,
    content,
    document,
    floats,
    model,
    says,
)


def test_inputs_called_like_parameters_are_given_them() -> None:
    manifest = model(
        PROMPT,
        TensorSpec("max_tokens", DataType.INT32, (1,)),
        TensorSpec("stream", DataType.BOOL, (1,)),
        TensorSpec("exclude_input_in_output", DataType.BOOL, (1,)),
        TensorSpec("sampling_parameters", DataType.BYTES, (1,)),
        TensorSpec("image", DataType.FP32, (1,)),
        optional=("image",),
    )
    offer = offer_of(manifest, Task.CHAT)
    inputs = {
        each.name: each for each in one_input(manifest, offer, "a", {"max_tokens": 5}, stream=True)
    }
    assert inputs["max_tokens"].data == struct.pack("<i", 5)
    assert (inputs["stream"].data, inputs["exclude_input_in_output"].data) == (b"\x01", b"\x01")
    assert content(inputs["sampling_parameters"]) == b'{"max_tokens":5}'
    assert "image" not in inputs
    with pytest.raises(InvalidRequest, match="also needs input 'max_tokens'"):
        one_input(manifest, offer, "a", {})


def test_texts_share_a_batch_where_the_model_has_one() -> None:
    rows = TensorSpec("text", DataType.BYTES, (-1, 1))
    manifest = model(rows, outputs=(VECTOR,), max_batch_size=4)
    offer = offer_of(manifest, Task.EMBEDDING)
    assert rows_at_once(manifest, offer, 64) == 4
    (tensor,) = batch(manifest, offer, ["a", "bc"], {})
    assert (tensor.shape, tensor.size_bytes) == ((2, 1), 11)
    assert (
        rows_at_once(
            model(PROMPT, outputs=(VECTOR,)),
            offer._replace(mapping=TaskMapping(Task.EMBEDDING, "prompt")),
            64,
        )
        == 1
    )
    fixed = model(TensorSpec("text", DataType.BYTES, (2,)), outputs=(VECTOR,))
    with pytest.raises(InvalidRequest, match="not one value per text"):
        one_input(fixed, offer, "a", {})


def test_tokens_bring_their_mask() -> None:
    ids = TensorSpec("input_ids", DataType.INT64, (-1, -1))
    mask = TensorSpec("attention_mask", DataType.INT64, (-1, -1))
    manifest = model(ids, mask, outputs=(VECTOR,))
    offer = offer_of(manifest, Task.EMBEDDING)
    tokens, ones = one_input(manifest, offer, [7, 8], {})
    assert (tokens.shape, tokens.data) == ((1, 2), struct.pack("<2q", 7, 8))
    assert ones.data == struct.pack("<2q", 1, 1)
    with pytest.raises(InvalidRequest, match="takes the numbers of tokens, not text"):
        one_input(manifest, offer, "a", {})
    flat = model(TensorSpec("input_ids", DataType.INT64, (-1,)), outputs=(VECTOR,))
    with pytest.raises(InvalidRequest, match="tokens need two dimensions"):
        one_input(flat, offer, [1], {})


def read_all(offer: Offer, *parts: ResponsePart) -> str:
    reader = TextReader("m", offer)
    return "".join(map(reader.read, parts)) + reader.end()


def test_documents_events_lines_and_plain_text_are_read() -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    assert read_all(offer, document(b'{"te'), document(b'xt":"a"}')) == "a"
    assert read_all(offer, document(b'"a"')) == "a"
    assert read_all(offer, document(b'{"anything":"a","n":1}')) == "a"
    lines = "application/x-ndjson"
    assert (
        read_all(offer, document(b'{"text":"a"}\n{"te', lines), document(b'xt":"b"}\n\n')) == "ab"
    )
    events = "text/event-stream"
    assert (
        read_all(
            offer, document(b": hi\ndata: a\n\nda", events), document(b"ta: 7\n\ndata: [DONE]\n\n")
        )
        == "a7"
    )
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choices":[{"delta":{"role":"x"}}]}\n\ndata: {"choices":[]}\n\n'
    assert read_all(offer, document(chunk, events)) == "a"
    assert read_all(offer, document(b"caf\xc3", "text/plain"), document(b"\xa9")) == "caf\u00e9"


EVENTS = "text/event-stream"
CHUNK = b'data: {"choices":[{"delta":{"content":"he"}}]}\n\n'


@pytest.mark.parametrize("last", [b"", b"data: [DONE]", b"data: [DONE]\n", CHUNK[:-2], CHUNK[:-1]])
def test_the_last_event_needs_no_end_if_it_is_whole(last: bytes) -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    said = "hehe" if b"choices" in last else "he"
    assert read_all(offer, document(CHUNK, EVENTS), document(last)) == said


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"choices":[{"delta":{"con',
        b'data: {"choices":[{"delta":{"con\n\n',
        b"data: [DON",
        b"da",
        b"data: out of memory\n\n",
    ],
)
def test_events_that_break_off_are_the_models_failure_and_no_text(last: bytes) -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    for parts in ((document(CHUNK + last, EVENTS),), (document(CHUNK, EVENTS), document(last))):
        with pytest.raises(InferenceFailed, match=r"broke off|not JSON"):
            read_all(offer, *parts)
    if not last.endswith(b"\n"):
        with pytest.raises(InferenceFailed, match="broke off"):
            read_all(offer, document(last, EVENTS))


def test_the_lines_of_one_event_are_one_text() -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    events = b'id: 1\r\ndata: line one\r\ndata: line two\r\n\r\ndata: {\n\ndata: "b"\n\ndata: }\n\n'
    assert read_all(offer, document(events, EVENTS)) == "line one\nline two{b}"
    assert read_all(offer, document(b'data: {"text":\ndata: "a"}\n\n', EVENTS)) == "a"


def test_why_an_answer_ended_is_read_in_openais_form() -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    whole = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}]}'
    last = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: {"choices":[]}\n\n'
    for parts in ((document(whole),), (document(CHUNK, EVENTS), document(last))):
        reader = TextReader("m", offer)
        for part in parts:
            reader.read(part)
        reader.end()
        assert reader.finish_reason == "length"


def test_a_models_error_in_openais_form_is_told() -> None:
    offer = Offer(read_task("chat"), takes_documents=True)
    for part in (
        document(b'{"error":{"message":"no memory","type":"x"}}'),
        document(b'data: {"error":{"message":"no memory"}}\n\n', EVENTS),
    ):
        with pytest.raises(InferenceFailed, match="failed: no memory"):
            read_all(offer, part)


def test_vectors_are_finite_and_their_length_is_found_without_overflow() -> None:
    offer = Offer(read_task("embedding:output=v"))
    documented = Offer(read_task("embedding"), takes_documents=True)
    pooled = floats((1, 2, 1), math.inf, -math.inf)
    for part in (floats((1, 2), math.nan, 1), floats((1, 2), math.inf, 1), pooled):
        with pytest.raises(InferenceFailed, match="NaN or an infinity"):
            vectors_of("m", offer, part, 1)
    assert vectors_of("m", documented, document(b"[1e300,1]"), 1) == [[1e300, 1]]
    assert unit([1e300, 1e300]) == pytest.approx([math.sqrt(0.5)] * 2)
    assert unit([3e-320, 4e-320]) == pytest.approx([0.6, 0.8], rel=1e-3)
    assert unit([]) == []


def test_a_document_without_text_is_the_models_failure() -> None:
    offer = Offer(read_task("chat:output=reply"), takes_documents=True)
    for data in (
        b'{"text":"a"}',
        b'{"reply":1}',
        b"{",
        b'{"error":"no memory"}',
        b'{"choices":[{"text":1}]}',
    ):
        with pytest.raises(InferenceFailed):
            read_all(offer, document(data))
    with pytest.raises(InvalidRequest, match="status 422: too long"):
        read_all(offer, document(b"too long", "text/plain", 422))
    with pytest.raises(InferenceFailed, match="status 503"):
        read_all(offer, document(b"", "text/plain", 503))


def test_parts_that_repeat_what_came_before_are_cut() -> None:
    offer = Offer(read_task("chat:output=text,parts=all"))
    assert read_all(offer, says("a"), says("ab"), says("abc")) == "abc"
    with pytest.raises(InferenceFailed, match="does not begin with"):
        read_all(offer, says("a"), says("b"))


def test_a_part_without_its_output_is_the_models_failure_unless_it_is_empty() -> None:
    offer = Offer(read_task("chat:output=text"))
    assert read_all(offer, says("a"), ResponsePart(())) == "a"
    with pytest.raises(InferenceFailed, match="without its output 'text'"):
        read_all(offer, ResponsePart((bytes_tensor("other", b"a"),)))
    with pytest.raises(InferenceFailed, match="not BYTES"):
        read_all(offer, ResponsePart((Tensor("text", DataType.UINT8, (1,), b"a"),)))
    with pytest.raises(InferenceFailed, match="longer than the data"):
        read_all(offer, ResponsePart((Tensor("text", DataType.BYTES, (1,), b"\x09\0\0\0"),)))


def test_outputs_may_tell_the_counts() -> None:
    reader = TextReader("m", Offer(read_task("chat:output=text")))
    count = Tensor("completion_tokens", DataType.INT32, (2,), struct.pack("<2i", 1, 2))
    reader.read(ResponsePart((*says("a").outputs, count, bytes_tensor("finish_reason", b"length"))))
    assert (reader.completion_tokens, reader.prompt_tokens, reader.finish_reason) == (
        3,
        None,
        "length",
    )


def test_vectors_are_rows_or_pooled_tokens() -> None:
    def vectors(text: str, part: ResponsePart, rows: int) -> Any:
        return [list(each) for each in vectors_of("m", Offer(read_task(text)), part, rows)]

    tokens = floats((1, 3, 2), 1, 2, 3, 4, 5, 12)
    assert vectors("embedding:output=v", floats((2, 2), 1, 2, 3, 4), 2) == [[1, 2], [3, 4]]
    assert vectors("embedding:output=v", floats((2,), 1, 2), 1) == [[1, 2]]
    assert vectors("embedding:output=v", tokens, 1) == [[3, 6]]
    assert vectors("embedding:output=v,pooling=first", tokens, 1) == [[1, 2]]
    assert vectors("embedding:output=v,pooling=last", tokens, 1) == [[5, 12]]
    assert vectors("embedding:output=v,normalize=true", floats((1, 2), 3, 4), 1) == [[0.6, 0.8]]
    for part, rows in (
        (floats((2, 2), 1, 2, 3, 4), 1),
        (floats((1, 1, 1, 1), 1), 1),
        (ResponsePart(()), 1),
        (floats((1, 0, 2)), 1),
    ):
        with pytest.raises(InferenceFailed):
            vectors("embedding:output=v", part, rows)
    assert unit([0, 0]) == [0, 0]


def test_documents_give_one_vector_or_a_list_of_them() -> None:
    offer = Offer(read_task("embedding"), takes_documents=True)
    for data in (b"[1,2]", b"[[1,2]]", b'{"embedding":[1,2]}', b'{"n":1,"any":[1,2]}'):
        assert vectors_of("m", offer, document(data), 1) == [[1, 2]]
    for data in (b"1", b"{}", b'["a"]', b"[1,[2]]"):
        with pytest.raises(InferenceFailed, match="without a vector"):
            vectors_of("m", offer, document(data), 1)
    with pytest.raises(InvalidRequest, match="status 400"):
        vectors_of("m", offer, document(b"no", "text/plain", 400), 1)
    assert member({"a": {"b": 1}}, "a.b", (), str) is None
    assert member({"a": "x", "b": "y"}, "", (), str) is None


def test_a_document_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_outputs, "MAX_BODY_BYTES", 10)
    offer = Offer(read_task("chat"), takes_documents=True)
    for media_type in ("application/json", "application/x-ndjson"):
        with pytest.raises(InferenceFailed, match="more than 10 characters"):
            read_all(offer, document(b'{"text":"aaaa', media_type))


def test_vectors_may_have_any_type_of_float() -> None:
    offer = Offer(read_task("embedding:output=v"))
    tensor = Tensor("v", DataType.FP64, (1, 2), struct.pack("<2d", 1, 2))
    assert [list(each) for each in vectors_of("m", offer, ResponsePart((tensor,)), 1)] == [[1, 2]]
    documented = offer._replace(takes_documents=True)
    with pytest.raises(InferenceFailed, match="no document"):
        vectors_of("m", documented, ResponsePart((tensor,)), 1)
