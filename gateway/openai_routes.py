"""The routes of OpenAI's API: models, chat completions, completions, embeddings."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

from meshnode.gateway.fan_out import fan_out
from meshnode.gateway.inference import only_part, routed
from meshnode.gateway.matching import Match, Methods, RouteSet, infer
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import openai_embeddings, openai_requests
from meshnode.gateway.protocols.dialect import Asked, Enough
from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.protocols.openai_models import model_list
from meshnode.gateway.protocols.openai_text import (
    Choice,
    Prompt,
    TextDialect,
    Whole,
    count_asked,
    document,
)
from meshnode.models.exposure import Task
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.gateway.inference import Inference
    from meshnode.gateway.matching import Reply
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.types import InferResponse, ResponsePart

_TAG: Final = "OpenAI"


class OpenAIRoutes:
    """Answers `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`."""

    def __init__(self, inference: Inference) -> None:
        """Answer from this."""
        self._inference = inference
        self._pipeline = inference.pipeline
        self._dialects = {
            task: TextDialect(task, inference.pipeline.wall_s)
            for task in (Task.CHAT, Task.COMPLETION)
        }

    def __repr__(self) -> str:
        return f"<OpenAIRoutes of {self._inference!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed: dict[str, Methods] = {
            "/v1/models": {"GET": Match(lambda _http, _id: self._models(), Scope.INFER)},
            "/v1/chat/completions": infer(lambda http, id_: self._text(Task.CHAT, http, id_)),
            "/v1/completions": infer(lambda http, id_: self._text(Task.COMPLETION, http, id_)),
            "/v1/embeddings": infer(self._embeddings),
        }
        return RouteSet(fixed, {}, operations=_OPERATIONS)

    def _models(self) -> HttpResponse:
        table = self._pipeline.table
        names = sorted(table.models())
        return json_response(
            model_list((name, self._pipeline.announced(name, None)) for name in names)
        )

    def _text(self, task: Task, http: HttpRequest, request_id: str) -> Reply:
        asked = _asked(http)
        dialect = self._dialects[task]
        if count_asked(asked.body, task) == 1:
            return self._inference.answer(dialect, asked, request_id)
        return self._texts(dialect, asked, request_id)

    async def _texts(self, dialect: TextDialect, asked: Asked, request_id: str) -> HttpResponse:
        await self._pipeline.cold_starts.until_known(asked.model, asked.version)
        target, prompts = self._inference.decoded(asked, request_id, dialect.prompts)

        async def read(index: int, response: InferResponse) -> Choice:
            return await _choice(prompts[index], response)

        requests = [prompt.request for prompt in prompts]
        choices, answered = await fan_out(self._pipeline, target, asked.http, requests, read)
        return routed(document(choices, prompts[0].form), answered)

    async def _embeddings(self, http: HttpRequest, request_id: str) -> HttpResponse:
        asked = _asked(http)
        await self._pipeline.cold_starts.until_known(asked.model, asked.version)
        target, (batches, form) = self._inference.decoded(
            asked, request_id, openai_embeddings.decode
        )

        async def read(_index: int, response: InferResponse) -> ResponsePart:
            return response.single or await only_part(response)

        requests = [batch.request for batch in batches]
        parts, answered = await fan_out(self._pipeline, target, http, requests, read)
        return routed(openai_embeddings.encode(batches, parts, form), answered)


def _asked(http: HttpRequest) -> Asked:
    body = openai_requests.read_body(http)
    model, version = openai_requests.model_of(body)
    return Asked(http, model, version, body)


async def _choice(prompt: Prompt, response: InferResponse) -> Choice:
    whole = Whole(prompt.form)
    async with aclosing(aiter(response)) as parts:
        with suppress(Enough):
            async for part in parts:
                whole.part(part)
    return whole.choice()


def _schema(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT: Final = {"type": "string"}
_MODEL: Final = {"type": "string", "description": "Name of a model, or NAME@VERSION"}
_SAMPLING: Final[dict[str, Any]] = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1},
    "stop": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
}
_MESSAGE: Final = _schema(
    ("role", "content"),
    role=_TEXT,
    content={"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
)
_TOKENS: Final = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_TEXTS: Final = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
_CHAT: Final = _schema(
    ("model", "messages"),
    model=_MODEL,
    messages={"type": "array", "items": _MESSAGE, "minItems": 1},
    **_SAMPLING,
)
_COMPLETION: Final = _schema(
    ("model", "prompt"), model=_MODEL, prompt=_TEXTS, echo={"type": "boolean"}, **_SAMPLING
)
_EMBEDDING: Final = _schema(
    ("model", "input"),
    model=_MODEL,
    input=_TEXTS,
    encoding_format={"type": "string", "enum": ["float", "base64"]},
    dimensions={"type": "integer", "minimum": 1},
)
_STREAMED: Final = ("application/json", "text/event-stream")

_OPERATIONS: Final = (
    Operation("GET", "/v1/models", "List the models", _TAG, answer={"type": "object"}),
    Operation(
        "POST", "/v1/chat/completions", "Answer a conversation", _TAG, body=_CHAT,
        answer={"type": "object"}, media_types=_STREAMED, infers=True,
    ),
    Operation(
        "POST", "/v1/completions", "Continue texts", _TAG, body=_COMPLETION,
        answer={"type": "object"}, media_types=_STREAMED, infers=True,
    ),
    Operation(
        "POST", "/v1/embeddings", "Return vectors for texts", _TAG, body=_EMBEDDING,
        answer={"type": "object"}, infers=True,
    ),
)  # fmt: skip
