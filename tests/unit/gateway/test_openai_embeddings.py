"""OpenAI's embeddings, without a server."""

from __future__ import annotations

import asyncio
import base64
import struct

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
)
from meshnode.gateway.protocols import (
    openai_embeddings,
)
from meshnode.gateway.protocols.openai_errors import WrongMember
from meshnode.models.manifest import TensorSpec
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor
from tests.unit.gateway.text_gateway import (
    PROMPT,
    VECTOR,
    Gateway,
    content,
    document,
    documents,
    floats,
    model,
)


async def test_texts_are_asked_in_batches_and_answered_in_order(gateway: Gateway) -> None:
    rows = TensorSpec("text", DataType.BYTES, (-1, 1))
    gateway.serve(what=model(rows, outputs=(VECTOR,), max_batch_size=2))
    sizes: list[int] = []

    async def behave(request: InferRequest) -> InferResponse:
        count = request.inputs[0].rows
        sizes.append(count)
        values = [float(len(sizes))] * (2 * count)
        data = struct.pack(f"<{len(values)}f", *values)
        tensor = Tensor("vector", DataType.FP32, (count, 2), data)
        return InferResponse("writer", 1, ResponsePart((tensor,)))

    gateway.local.behave = behave
    body = {"model": "writer", "input": ["a", "b", "ccc"]}
    answer = await gateway.post("/v1/embeddings", body)
    assert sizes == [2, 1]
    assert [each["embedding"] for each in answer["data"]] == [[1, 1], [1, 1], [2, 2]]
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "unit": "characters"}
    answer = await gateway.post(
        "/v1/embeddings", {**body, "input": "a", "encoding_format": "base64"}
    )
    assert base64.b64decode(answer["data"][0]["embedding"]) == struct.pack("<2f", 3, 3)
    answer = await gateway.post("/v1/embeddings", {**body, "input": "a", "dimensions": 1})
    assert answer["data"][0]["embedding"] == [1]
    for wrong, name in (
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ):
        with pytest.raises(WrongMember) as raised:
            await gateway.post("/v1/embeddings", {**body, **wrong})
        assert raised.value.member == name


async def test_texts_that_take_too_long_together_end_in_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_embeddings, "MODEL_CALL_TIMEOUT_S", 0.05)
    gateway.serve(what=model(PROMPT, outputs=(VECTOR,)))
    cancelled: list[str] = []

    async def behave(request: InferRequest) -> InferResponse:
        if content(request.inputs[0]) == b"slow":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append("slow")
        return InferResponse("writer", 1, floats((1, 2), 1, 2, name="vector"))

    gateway.local.behave = behave
    with pytest.raises(DeadlineExceeded, match="1 of 2 inferences"):
        await gateway.post("/v1/embeddings", {"model": "writer", "input": ["quick", "slow"]})
    assert cancelled == ["slow"]


async def test_vectors_of_tokens_count_the_tokens(gateway: Gateway) -> None:
    ids = TensorSpec("input_ids", DataType.INT64, (-1, -1))
    gateway.answers(model(ids, outputs=(VECTOR,)), floats((1, 2), 1, 2, name="vector"))
    body = {"model": "writer", "input": [[7, 8, 9], [7]], "dimensions": 2}
    answer = await gateway.post("/v1/embeddings", body)
    assert [request.inputs[0].shape for request in gateway.asked] == [(1, 3), (1, 1)]
    assert [each["embedding"] for each in answer["data"]] == [[1, 2], [1, 2]]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4, "unit": "tokens"}


async def test_numbers_beyond_fp32_have_no_base64(gateway: Gateway) -> None:
    gateway.answers(documents("embedding"), document(b"[1e300,2]"))
    body = {"model": "writer", "input": "a"}
    answer = await gateway.post("/v1/embeddings", body)
    assert answer["data"][0]["embedding"] == [1e300, 2]
    with pytest.raises(InferenceFailed, match="beyond FP32"):
        await gateway.post("/v1/embeddings", {**body, "encoding_format": "base64"})


async def test_models_that_answer_in_parts_give_no_vectors(gateway: Gateway) -> None:
    gateway.answers(model(PROMPT, outputs=(VECTOR,)), floats((1, 2), 1, 2), floats((1, 2), 1, 2))
    with pytest.raises(InvalidRequest, match="several parts"):
        await gateway.post("/v1/embeddings", {"model": "writer", "input": "a"})
    assert gateway.closed == 1
