"""Opens models in the way of their authors, in real worker processes, for the tests of spellings."""

from __future__ import annotations

import asyncio
import json
import zipfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from meshnode.models.execution import Execution, Spelling
from meshnode.models.http_calls import (
    HttpCall,
    HttpHead,
    body_tensor,
    content_of,
    document_tensor,
    encode_call,
    head_of,
)
from meshnode.models.runtimes.base import Described, Opening, ProcessModel
from meshnode.models.runtimes.processes import describe_worker, load_worker
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import InferRequest, ResponsePart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from meshnode.types import Scalar

SETTINGS = WorkerSettings(allow_code=True, stop_grace_s=2.0)


class Said(NamedTuple):
    """One answer: its head, its body, and how many parts it had."""

    head: HttpHead
    body: bytes
    parts: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def opening(
    folder: Path, entry: str, spelling: Spelling, cache: Path | None = None, max_batch_size: int = 0
) -> Opening:
    """Say what to open, as the node does."""
    return Opening(
        folder=folder,
        entry=entry,
        model="greeter",
        execution=Execution(spelling=spelling),
        device="cpu",
        cache_folder=cache,
        max_batch_size=max_batch_size,
    )


def describe(what: Opening) -> Described:
    """Ask a model what it takes, in a process of its own."""
    return describe_worker("python", what.execution.spelling, what, SETTINGS)


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files into a folder, and return it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def archive(path: Path, model: Mapping[str, str], files: Mapping[str, str | bytes]) -> Path:
    """Write a TorchServe archive."""
    manifest = {"runtime": "python", "model": {"modelName": "m", "modelVersion": "1.0", **model}}
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for name, data in files.items():
            made.writestr(name, data)
    return path


class Model:
    """An opened model, asked in words of HTTP and JSON."""

    def __init__(self, process: ProcessModel) -> None:
        self.process = process

    async def batch(self, *documents: object, **parameters: Scalar) -> list[Any]:
        """Ask with a batch; each outcome is an answer or an error."""
        requests = [document(each, **parameters) for each in documents]
        return [
            each if isinstance(each, Exception) else _said([_part(each)])
            for each in await self.process.execute(requests)
        ]

    async def ask(self, value: object, **parameters: Scalar) -> Said:
        """Ask for a stream of parts with a document."""
        return await self._streamed(document(value, **parameters))

    async def http(
        self, method: str, path: str, body: bytes = b"", query: str = "", **headers: str
    ) -> Said:
        """Ask by a route."""
        pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        tensor, parameters = encode_call(HttpCall(method, path, query, pairs, body))
        return await self._streamed(InferRequest("m", (tensor,), parameters=parameters))

    async def post(self, data: bytes) -> Said:
        """Ask a model with routes by a document."""
        return await self._streamed(InferRequest("m", (body_tensor(data),)))

    async def _streamed(self, request: InferRequest) -> Said:
        return _said([part async for part in self.process.stream(request)])


@asynccontextmanager
async def opened(what: Opening) -> AsyncIterator[Model]:
    """Open a model in a process, and end that."""
    process = await asyncio.to_thread(
        load_worker, "python", what.execution.spelling, what, SETTINGS, None
    )
    try:
        yield Model(process)
    finally:
        await process.close()


def document(value: object, **parameters: Scalar) -> InferRequest:
    """Return a request with a document; bytes are sent as they are."""
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return InferRequest("m", (document_tensor("request", data),), parameters=parameters)


def _part(outcome: Any) -> ResponsePart:
    return outcome if isinstance(outcome, ResponsePart) else ResponsePart(outcome)


def _said(parts: list[ResponsePart]) -> Said:
    body = b"".join(bytes(content_of(part.outputs)) for part in parts)
    return Said(head_of(parts[0].parameters), body, len(parts))
