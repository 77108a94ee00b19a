"""OpenAI's embeddings: texts, or token numbers, in; one vector for each out.

Vectors are lists of numbers, or base64 of little-endian FP32, which OpenAI's own client asks for. `dimensions` keeps
the first numbers of each vector and scales it to length 1 again, as OpenAI does; that says something only for models
that were trained for it.

`usage.prompt_tokens` is what the model says that it read; else the number of token numbers that were sent; else
characters. `usage.unit` says which.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from meshnode.errors import InferenceFailed
from meshnode.gateway.protocols import openai_requests, task_inputs
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.gateway.protocols.openai_errors import WrongMember
from meshnode.gateway.protocols.task_outputs import (
    told_tokens,
    unit,
    vectors_of,
    wanted_outputs,
)
from meshnode.limits import MODEL_CALL_TIMEOUT_S, ROWS_OF_TEXTS
from meshnode.models.exposure import Task
from meshnode.models.tasks import offer_of
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.models.manifest import Manifest
    from meshnode.models.tasks import Offer
    from meshnode.tracing import Trace
    from meshnode.types import ResponsePart


class Batch(NamedTuple):
    """Some of the texts of a request, as one inference."""

    request: InferRequest
    texts: Sequence[task_inputs.Text]


class VectorsForm(NamedTuple):
    """What the answer is made of."""

    model: str
    offer: Offer
    dimensions: int | None
    base64: bool


def decode(
    asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
) -> tuple[list[Batch], VectorsForm]:
    """Return the inferences that a request takes, in the order of its texts.

    Raises:
        InvalidRequest: if the request is malformed, or the model cannot take it.
    """
    body = asked.body
    texts = openai_requests.texts_of(body, "input")
    parameters = openai_requests.embedding_parameters(body)
    offer = offer_of(manifest, Task.EMBEDDING)
    form = VectorsForm(
        body["model"],
        offer,
        openai_requests.dimensions_of(body),
        openai_requests.wants_base64(body),
    )
    rows = task_inputs.rows_at_once(manifest, offer, ROWS_OF_TEXTS)
    outputs = wanted_outputs(manifest, offer)
    batches: list[Batch] = []
    for start in range(0, len(texts), rows):
        some = texts[start : start + rows]
        if rows == 1:
            inputs = task_inputs.one_input(manifest, offer, some[0], parameters)
        else:
            inputs = task_inputs.batch(manifest, offer, some, parameters)
        request = InferRequest(
            manifest.model,
            inputs,
            manifest.version,
            outputs,
            request_id,
            task_inputs.parameters_for(offer, parameters),
            MODEL_CALL_TIMEOUT_S,
            trace,
        )
        batches.append(Batch(request, some))
    return batches, form


def encode(
    batches: Sequence[Batch], parts: Sequence[ResponsePart], form: VectorsForm
) -> HttpResponse:
    """Return all vectors as one document.

    Raises:
        InferenceFailed: if the model answered something else.
        WrongMember: if a vector is shorter than `dimensions`.
    """
    vectors: list[Sequence[float]] = []
    tokens: int | None = 0
    characters = 0
    for batch, part in zip(batches, parts, strict=True):
        vectors += vectors_of(form.model, form.offer, part, len(batch.texts))
        read = told_tokens(part)
        if read is None and form.offer.takes_tokens:
            read = sum(map(len, batch.texts))
        tokens = None if tokens is None or read is None else tokens + read
        characters += sum(map(len, batch.texts))
    used = characters if tokens is None else tokens
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    body = {
        "object": "list",
        "data": data,
        "model": form.model,
        "usage": {
            "prompt_tokens": used,
            "total_tokens": used,
            "unit": "characters" if tokens is None else "tokens",
        },
    }
    return HttpResponse(200, JSON_HEADERS, msgspec.json.encode(body))


def _written(vector: Sequence[float], form: VectorsForm) -> Any:
    wanted = form.dimensions
    if wanted is not None:
        if wanted > len(vector):
            raise WrongMember(
                f"model {form.model!r} has vectors of {len(vector)} dimensions, not {wanted}",
                "dimensions",
            )
        if wanted < len(vector):
            vector = unit(vector[:wanted])
    if not form.base64:
        return vector
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except OverflowError:
        raise InferenceFailed(
            f"model {form.model!r} answered with numbers beyond FP32, which base64 has; ask with encoding_format float"
        ) from None
