"""A gateway whose models take text, and what they answer."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.models.execution import DEFAULT_EXECUTION, Interface
from meshnode.models.exposure import Exposure
from meshnode.models.http_calls import (
    HttpHead,
    document_tensor,
    head_parameters,
    json_tensors,
)
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.tasks import read_task
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeLocal

PROMPT = TensorSpec("prompt", DataType.BYTES, (1,))
TEXT = TensorSpec("text", DataType.BYTES, (1,))
VECTOR = TensorSpec("vector", DataType.FP32, (-1, 2))


def model(
    *inputs: TensorSpec,
    outputs: tuple[TensorSpec, ...] = (TEXT,),
    tasks: tuple[str, ...] = (),
    interface: Interface = Interface.TENSORS,
    optional: tuple[str, ...] = (),
    max_batch_size: int = 0,
) -> Manifest:
    execution = msgspec.structs.replace(
        DEFAULT_EXECUTION, interface=interface, optional_inputs=optional, decoupled=True
    )
    return Manifest(
        "writer", 1, "python", "python", inputs or (PROMPT,), outputs, max_batch_size, (), "m.py",
        execution, exposure=Exposure(tasks=tuple(map(read_task, tasks))),
    )  # fmt: skip


def documents(*tasks: str) -> Manifest:
    inputs, outputs = json_tensors()
    return model(*inputs, outputs=outputs, tasks=tasks, interface=Interface.JSON)


def bytes_tensor(name: str, *values: bytes) -> Tensor:
    data = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return Tensor(name, DataType.BYTES, (len(values),), data)


def says(text: str | bytes, **told: Any) -> ResponsePart:
    data = text if isinstance(text, bytes) else text.encode()
    return ResponsePart((bytes_tensor("text", data),), told)


def content(tensor: Tensor) -> bytes:
    return bytes(tensor.data)[4:]


def document(data: bytes, media_type: str = "", status: int = 200) -> ResponsePart:
    head = HttpHead(status, (("content-type", media_type),)) if media_type else None
    told = head_parameters(head) if head is not None else {}
    return ResponsePart((document_tensor("response", data),), told)


def floats(shape: tuple[int, ...], *values: float, name: str = "v") -> ResponsePart:
    return ResponsePart(
        (Tensor(name, DataType.FP32, shape, struct.pack(f"<{len(values)}f", *values)),)
    )


class Gateway:
    """Posts to a dispatcher, and notes what the model was asked."""

    def __init__(
        self, dispatcher: Dispatcher, local: FakeLocal, serve: Callable[..., None]
    ) -> None:
        self.dispatcher, self.local, self.serve = dispatcher, local, serve
        self.asked: list[InferRequest] = []
        self.closed = 0
        local.inline = False

    def answers(self, manifest: Manifest, *parts: ResponsePart | Exception) -> None:
        """Serve a model that answers every request with these parts."""
        self.serve(what=manifest)

        async def stream() -> AsyncIterator[ResponsePart]:
            try:
                for part in parts:
                    if isinstance(part, Exception):
                        raise part
                    yield part
            finally:
                self.closed += 1

        async def behave(request: InferRequest) -> InferResponse:
            self.asked.append(request)
            if len(parts) == 1 and isinstance(parts[0], ResponsePart):
                return InferResponse(request.model, 1, parts[0])
            return InferResponse(request.model, 1, stream())

        self.local.behave = behave

    async def post(self, path: str, body: Any) -> Any:
        """Return the JSON of an answer, or the events of a stream."""
        http = HttpRequest("POST", path, "", {}, json.dumps(body).encode())
        reply: Any = self.dispatcher.match("POST", path).answer(http, "r1")
        if not isinstance(reply, HttpResponse):
            reply = await reply
        if isinstance(reply, HttpStream):
            assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            text = b"".join([bytes(piece) async for piece in reply.parts]).decode()
            assert text.endswith("\n\n")
            events = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
            return [event if event == "[DONE]" else json.loads(event) for event in events]
        return json.loads(bytes(reply.body))

    async def chat(self, text: str = "hi", **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return await self.post(
            "/v1/chat/completions", {"model": "writer", "messages": messages, **more}
        )
