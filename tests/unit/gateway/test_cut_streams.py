"""An answer that breaks off in the middle is never taken for a whole one, in any dialect."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from meshnode.errors import InferenceFailed, LinkLost, MeshError
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.caller import Caller
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.models.execution import Execution, Interface, Route, Spelling
from meshnode.models.exposure import Exposure
from meshnode.models.http_calls import HTTP_TENSORS, body_tensor, head_parameters
from meshnode.models.http_calls import HttpHead as Head
from meshnode.models.manifest import Manifest
from meshnode.types import Address, InferRequest, InferResponse, ResponsePart, Scope
from tests.unit.gateway.text_gateway import document, documents, model, says

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from tests.unit.gateway.conftest import FakeLocal

PIECES = ("one ", "two ", "three")
JSON = "application/json"
SSE, LINES = "text/event-stream", "application/x-ndjson"
MESSAGES = [{"role": "user", "content": "hi"}]


class Row(NamedTuple):
    """A path on which an answer of several parts comes as a stream, or joined.

    Attributes:
        name: Of the dialect.
        model: What answers.
        path: Where it is asked.
        body: What it is asked.
        accept: The header.
        end: What ends a whole answer in its body; empty where only the connection tells.
        error: What tells in the body that the answer broke off; empty where only the connection tells.
    """

    name: str
    model: str
    path: str
    body: Any
    accept: str = "*/*"
    end: bytes = b""
    error: bytes = b""


PROMPT = {"prompt": "hi"}
STREAMS = (
    Row("native", "text", "/mesh/v1/models/writer/stream", {"inputs": PROMPT}, SSE, b"event: done", b"event: error"),
    Row("generate_stream", "text", "/v2/models/writer/generate_stream", PROMPT, SSE, b"", b'data: {"error":'),
    Row("chat", "text", "/v1/chat/completions", {"model": "writer", "messages": MESSAGES, "stream": True}, SSE, b"data: [DONE]", b'data: {"error":'),
    Row("completions", "text", "/v1/completions", {"model": "writer", "prompt": "hi", "stream": True}, SSE, b"data: [DONE]", b'data: {"error":'),
    Row("endpoint events", "text", "/inference/writer", PROMPT, SSE, b"", b"event: error"),
    Row("endpoint lines", "text", "/inference/writer", PROMPT, LINES, b"", b'{"error":'),
    Row("offered path", "text", "/write", PROMPT, LINES, b"", b'{"error":'),
    Row("document events", "events", "/inference/writer", PROMPT, SSE, b"", b"event: error"),
    Row("document of some type", "document", "/inference/writer", PROMPT),
    Row("own route", "route", "/own/path", PROMPT),
)  # fmt: skip
JOINED = (
    Row("chat", "text", "/v1/chat/completions", {"model": "writer", "messages": MESSAGES}),
    Row("completions", "text", "/v1/completions", {"model": "writer", "prompt": "hi"}),
    Row("torchserve", "archive", "/predictions/writer", PROMPT),
    Row("torchserve version", "archive", "/predictions/writer/1", PROMPT),
    Row("JSON document", "json", "/inference/writer", PROMPT),
)

MODELS: dict[str, Callable[[], Manifest]] = {
    "text": lambda: msgspec.structs.replace(
        model(tasks=("chat", "completion")),
        exposure=Exposure("/write", model(tasks=("chat", "completion")).exposure.tasks),
    ),
    "events": documents,
    "document": documents,
    "json": documents,
    "archive": lambda: _spelled(documents(), Spelling.ARCHIVE),
    "route": lambda: Manifest(
        "writer", 1, "python", "python", HTTP_TENSORS, HTTP_TENSORS, 0, (), "",
        Execution(interface=Interface.HTTP, decoupled=True, routes=(Route("POST", "/own/path"),)),
    ),
}  # fmt: skip


def _spelled(manifest: Manifest, spelling: Spelling) -> Manifest:
    execution = msgspec.structs.replace(manifest.execution, spelling=spelling)
    return msgspec.structs.replace(manifest, execution=execution)


def parts_of(kind: str) -> list[ResponsePart]:
    if kind == "text":
        return [says(each) for each in PIECES]
    if kind == "route":
        head = head_parameters(Head(200, (("content-type", "text/plain"),)))
        return [
            ResponsePart((body_tensor(each.encode()),), {} if number else head)
            for number, each in enumerate(PIECES)
        ]
    media_type = {"events": SSE, "json": JSON}.get(kind, "text/plain")
    pieces = [f"data: {each}\n\n" if kind == "events" else f'"{each}",' for each in PIECES]
    if kind == "json":
        pieces = ["[", '"a",', '"b"]']
    return [
        document(piece.encode(), "" if number else media_type)
        for number, piece in enumerate(pieces)
    ]


class Cut:
    """A model that breaks off after so many parts."""

    def __init__(self, kind: str, after: int, error: MeshError) -> None:
        self.kind, self.after, self.error = kind, after, error

    async def __call__(self, request: InferRequest) -> InferResponse:
        return InferResponse(request.model, 1, self._parts())

    async def _parts(self) -> AsyncIterator[ResponsePart]:
        for number, part in enumerate(parts_of(self.kind)):
            if number == self.after:
                raise self.error
            yield part


@pytest_asyncio.fixture
async def address(dispatcher: Dispatcher, metrics: GatewayMetrics) -> AsyncIterator[Address]:
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    gateway = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    yield await gateway.listen_tcp(Address("127.0.0.1", 0))
    await gateway.stop()
    await dispatcher.streams.close()


class Answer(NamedTuple):
    """What a client of this version of HTTP sees: `is_whole` is what it believes."""

    status: int
    body: bytes
    is_whole: bool


async def ask(address: Address, row: Row, version: str = "1.1") -> Answer:
    reader, writer = await asyncio.open_connection(*address)
    body = json.dumps(row.body).encode()
    writer.write(
        f"POST {row.path} HTTP/{version}\r\nHost: localhost\r\nAccept: {row.accept}\r\nContent-Type: {JSON}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    data, ended = b"", True
    async with asyncio.timeout(10):
        try:
            while piece := await reader.read(65536):
                data += piece
        except ConnectionResetError:
            ended = False
    writer.close()
    head, _, rest = data.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head else 0
    if b"chunked" in head.lower():
        return Answer(status, rest, rest.endswith(b"0\r\n\r\n"))
    length = next(
        (
            int(line[15:])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ),
        None,
    )
    return Answer(status, rest, ended if length is None else len(rest) == length)


def ids(rows: tuple[Row, ...]) -> list[str]:
    return [row.name for row in rows]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
async def test_a_whole_stream_is_told_as_one(
    address: Address, local: FakeLocal, serve: Callable[..., None], row: Row, version: str
) -> None:
    local.inline, local.behave = False, Cut(row.model, 99, LinkLost("no"))
    serve(what=MODELS[row.model]())
    found = await ask(address, row, version)
    assert (found.status, found.is_whole) == (200, True)
    assert row.end in found.body
    assert not row.error or row.error not in found.body


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    "error", [LinkLost("the link to the node was lost"), InferenceFailed("its process died")]
)
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
async def test_a_stream_that_breaks_off_is_never_taken_for_a_whole_one(
    address: Address,
    local: FakeLocal,
    serve: Callable[..., None],
    row: Row,
    after: int,
    error: MeshError,
    version: str,
) -> None:
    local.inline, local.behave = False, Cut(row.model, after, error)
    serve(what=MODELS[row.model]())
    found = await ask(address, row, version)
    assert not row.end or row.end not in found.body
    if row.error:
        assert row.error in found.body
    else:
        assert not found.is_whole


@pytest.mark.parametrize("row", JOINED, ids=ids(JOINED))
async def test_an_answer_that_is_joined_of_parts_is_an_error_where_one_is_missing(
    address: Address, local: FakeLocal, serve: Callable[..., None], row: Row
) -> None:
    serve(what=MODELS[row.model]())
    local.inline, local.behave = False, Cut(row.model, 99, LinkLost("no"))
    assert (await ask(address, row)).status == 200
    local.behave = Cut(row.model, 2, LinkLost("the link to the node was lost"))
    found = await ask(address, row)
    assert found.status >= 500
    assert b"two" not in found.body


async def whole(answer: Any) -> bytes:
    return b"".join([bytes(piece) async for piece in answer.parts])


@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
async def test_a_job_whose_answer_breaks_off_has_failed(
    dispatcher: Dispatcher, local: FakeLocal, serve: Callable[..., None], row: Row
) -> None:
    """A job collects a stream's pieces: an error among them would look like one more."""
    local.inline, local.behave = False, Cut(row.model, 2, LinkLost("the link to the node was lost"))
    serve(what=MODELS[row.model]())
    caller = Caller(Scope.INFER, "k" * 16, "phone", job="j")
    headers = {"accept": row.accept, "content-type": JSON}
    http = HttpRequest("POST", row.path, "", headers, json.dumps(row.body).encode(), caller)
    reply: Any = dispatcher.match("POST", row.path).answer(http, "r")
    answer = reply if not hasattr(reply, "__await__") else await reply
    with pytest.raises(LinkLost):
        await whole(answer)
