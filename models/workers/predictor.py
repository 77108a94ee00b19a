"""Predictors: a class with `predict(request, header=None)`, and perhaps `async_predict` for streams.

What a request asks for decides what is called, as in TensorOpera's (FedML's) inference runner:

| request | called | answer |
|---|---|---|
| `"stream": true`, or `Accept: text/event-stream` or `application/x-ndjson` | `async_predict(request)` | each thing that it yields is a part |
| JSON accepted | `predict(request)` | JSON |
| another type accepted, such as `image/png` | `predict(request, type)` | the file at the returned path |

Of a stream's parts, texts and bytes are sent as they are; anything else is a line of JSON, or an event where events are
accepted. A file is called what it is: what was asked for only where that cannot be told. All of them may be coroutines or return a FastAPI response, which is then the answer. A file is sent from here,
in parts, and only if it lies in the model's folder or in one that the process writes to.

`from fedml.serving import FedMLPredictor, FedMLInferenceRunner` finds stand-ins: a file that ends in
`FedMLInferenceRunner(predictor).run()` is run like a program, and that predictor is the one that is served.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import mimetypes
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest, MeshError, ModelError
from meshnode.limits import MAX_RETURNED_FILE_BYTES, RETURNED_FILE_PART_BYTES
from meshnode.models.execution import Spelling
from meshnode.models.http_calls import (
    ACCEPT,
    RESPONSE,
    STREAM,
    HttpCall,
    HttpHead,
)
from meshnode.models.media_types import (
    EVENTS,
    LINES,
    accepted,
    answered_as,
    asks_for_stream,
    by_ending,
    framing,
    plain_name,
    sniffed,
    wants_json,
)
from meshnode.models.workers import documents
from meshnode.models.workers.documents import types_of, wants_instance
from meshnode.models.workers.loading import (
    concurrency_of,
    device_of,
    load_module,
    offer,
    own_classes,
    prepare,
    told,
)
from meshnode.models.workers.pipeline import check_source, described, type_modules

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from types import ModuleType

    from meshnode.models.runtimes.base import Described
    from meshnode.models.workers.adaptor import (
        Adaptor,
        Answer,
        Outcome,
        WorkerRequest,
        WorkerSurroundings,
    )

CONCURRENCY: Final = 16
"""Requests that a predictor with coroutines works on at once."""

_READY_POLL_S: Final = 0.2  # between two questions whether a predictor is ready
_JSON_TYPE: Final = (("content-type", "application/json"),)


def open_adaptor(surroundings: WorkerSurroundings) -> Adaptor:
    """Return the adaptor of a file with a predictor."""
    return PredictorAdaptor(surroundings)


class FedMLPredictor:
    """Stands in for the base class that predictors inherit."""

    def __init__(self, *_arguments: object, **_named: object) -> None:
        """Take what others take."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Be overridden."""
        raise NotImplementedError(f"{type(self).__name__} has no predict()")

    def ready(self) -> bool:
        """Whether it can predict; asked until it says so."""
        return True


class FedMLInferenceRunner:
    """Stands in for the server that serves a predictor: the node does that."""

    captured: list[Any] = []  # noqa: RUF012 - of the process, which has one predictor
    """Predictors that were to be served."""

    def __init__(self, client_predictor: Any) -> None:
        """Take the predictor."""
        self.client_predictor = client_predictor

    def run(self, *_arguments: object, **_named: object) -> None:
        """Remember it, and return."""
        self.captured.append(self.client_predictor)


def stand_ins() -> dict[str, ModuleType]:
    """Return the modules that predictors import."""
    fedml = types.ModuleType("fedml")
    serving = types.ModuleType("fedml.serving")
    names = {"FedMLPredictor": FedMLPredictor, "FedMLInferenceRunner": FedMLInferenceRunner}
    vars(serving).update(names)
    modules = {"fedml": fedml, "fedml.serving": serving}
    for name, value in (
        ("fedml_predictor", FedMLPredictor),
        ("fedml_inference_runner", FedMLInferenceRunner),
    ):
        module = types.ModuleType(f"fedml.serving.{name}")
        setattr(module, value.__name__, value)
        setattr(serving, name, module)
        modules[module.__name__] = module
    vars(fedml).update(serving=serving, __path__=[], mlops=types.SimpleNamespace())
    vars(serving).update(__path__=[])
    return modules


class PredictorAdaptor:
    """One predictor. Functions that are no coroutines run on a thread, or on as many as it is set to."""

    asynchronous = True
    joins_rows = False

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        opening = surroundings.opening
        self._opening = opening
        self.device = device_of(opening)
        self._folder = (opening.folder / opening.entry).parent
        self._entry = opening.entry.rpartition("/")[2]
        self._predictor: Any = None
        self._types = documents.Types()
        self._thread = ThreadPoolExecutor(concurrency_of(opening, 1), "predict")
        place = prepare(surroundings, self._folder)
        if opening.folder != self._folder:
            sys.path.insert(1, str(opening.folder))
        self._roots = [opening.folder, place, surroundings.work_folder]
        offer(self._folder, stand_ins())

    def __repr__(self) -> str:
        return f"<PredictorAdaptor {type(self._predictor).__name__} of {self._opening.model}>"

    @property
    def concurrency(self) -> int:
        """Requests at once: one for a predictor without coroutines, unless its configuration says."""
        text = (self._folder / self._entry).read_text(errors="replace")
        return concurrency_of(self._opening, CONCURRENCY if "async def" in text else 1)

    def describe(self) -> Described:
        """Say that it takes JSON; the file is run only where its author uses Pydantic.

        Raises:
            ModelError: if it is no Python, or has no predictor.
        """
        found = documents.Types()
        if "pydantic" in check_source(self._folder / self._entry):
            self._predictor = self._load()
            found = self._find_types(self._predictor)
        told_of = described(self._opening.execution, Spelling.PREDICTOR, found.schema())
        execution = msgspec.structs.replace(told_of.execution, decoupled=True)
        return dataclasses.replace(told_of, execution=execution)

    async def initialise(self) -> None:
        """Make the predictor, and wait until it says that it is ready."""
        self._predictor = self._load()
        self._types = self._find_types(self._predictor)
        ready = getattr(self._predictor, "ready", None)
        while callable(ready) and not await _awaited(ready()):  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(_READY_POLL_S)

    async def execute(self, requests: Sequence[WorkerRequest]) -> Sequence[Outcome]:
        """Answer each in one part, if its answer is one."""
        return [await self._whole(request) for request in requests]

    async def stream(self, request: WorkerRequest) -> AsyncIterator[Answer]:
        """Answer in as many parts as there are."""
        document = documents.read(documents.content(request))
        accept = str(request.parameters.get(ACCEPT, ""))
        streams = request.parameters.get(STREAM) is True or (
            isinstance(document, dict) and document.get("stream") is True
        )
        argument = self._types.accept(document)
        predict, async_predict = functions_of(self._predictor)
        if self._types.request is not None and not wants_instance(predict):
            argument = argument.model_dump()
        try:
            can_stream = async_predict != predict  # its own, and no stand-in
            if streams or (can_stream and asks_for_stream(accept)):
                _check_streamable(accept)
                value = await self._call(async_predict, argument)
                parts = self._as_stream(value, framing(accept))
            elif not wants_json(accept):
                kinds = accepted(accept)
                parts = self._as_file(await self._call(predict, argument, kinds[0]), kinds)
            else:
                parts = self._as_json(await self._call(predict, argument))
            async with aclosing(parts):
                async for part in parts:
                    yield part
        except MeshError:
            raise
        except Exception as error:
            if _is_http_exception(error):
                yield _refused(error)
                return
            raise

    async def finalise(self) -> None:
        """Let go of it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._predictor = None

    async def _whole(self, request: WorkerRequest) -> Outcome:
        try:
            parts = [part async for part in self.stream(request)]
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            return error
        if len(parts) != 1:
            return InferenceFailed("the predictor answered in several parts")
        return parts[0]

    # Finding it.

    def _load(self) -> Any:
        """Return the predictor of the file.

        Raises:
            ModelError: if there is none, or it cannot be made.
        """
        if self._predictor is not None:
            return self._predictor
        text = (self._folder / self._entry).read_text(encoding="utf-8", errors="replace")
        as_program = "FedMLInferenceRunner" in text and "__main__" in text
        FedMLInferenceRunner.captured.clear()
        module = load_module(self._folder, self._entry, "__main__" if as_program else "")
        if FedMLInferenceRunner.captured:
            return FedMLInferenceRunner.captured[-1]
        kinds = [
            kind
            for kind in own_classes(module)
            if callable(getattr(kind, "predict", None))
            or callable(getattr(kind, "async_predict", None))
        ]
        named = vars(module).get("predictor")
        if named is not None and not isinstance(named, type):
            return named
        if not kinds:
            raise ModelError(f"{self._entry} has no class with predict() or async_predict()")
        try:
            return kinds[-1]()
        except Exception as error:
            raise ModelError(f"{kinds[-1].__name__}() failed: {told(error)}") from error

    def _find_types(self, predictor: Any) -> documents.Types:
        module = sys.modules.get(type(predictor).__module__)
        modules = [*([module] if module is not None else []), *type_modules(self._folder)]
        return types_of(functions_of(predictor)[0], modules)

    # Calling it.

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the author's, with as many arguments as it takes."""
        arguments = arguments[: max(1, _places(function))]
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            return await _awaited(function(*arguments))
        return await _awaited(await self._in_thread(partial(function, *arguments)))

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Run it on the thread; who stops waiting waits all the same until the thread is free."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    # Answering.

    async def _as_json(self, value: Any) -> AsyncGenerator[Answer, None]:
        if _is_response(value):
            async for part in _of_response(value):
                yield part
        elif inspect.isasyncgen(value) or inspect.isgenerator(value):
            async with aclosing(self._as_stream(value)) as parts:
                async for part in parts:
                    yield part
        else:
            data = documents.write(self._types.checked(value))
            yield documents.answered(RESPONSE, data)

    async def _as_stream(self, value: Any, form: str = "") -> AsyncGenerator[Answer, None]:
        """Send what a generator yields; `form` is `EVENTS` where what is no text becomes events."""
        if _is_response(value):
            async for part in _of_response(value):
                yield part
            return
        if not (inspect.isasyncgen(value) or inspect.isgenerator(value)):
            async with aclosing(self._as_json(value)) as parts:
                async for part in parts:
                    yield part
            return
        head: HttpHead | None = None
        first = True
        pieces = value if inspect.isasyncgen(value) else self._drawn(value)
        async with aclosing(pieces):
            async for piece in pieces:
                data = _piece(piece, form)
                if first:
                    head = HttpHead(200, (("content-type", _stream_type(piece, data, form)),))
                yield documents.answered(RESPONSE, data, head)
                first, head = False, None
        if first:
            yield documents.answered(RESPONSE, b"", HttpHead(200, _JSON_TYPE))

    async def _drawn(
        self, generator: types.GeneratorType[Any, Any, Any]
    ) -> AsyncGenerator[Any, None]:
        """Draw from an ordinary generator on the thread; one that nobody wants is closed there at once."""
        end = object()
        try:
            while (piece := await self._in_thread(partial(next, generator, end))) is not end:
                yield piece
        finally:
            await self._in_thread(generator.close)

    async def _as_file(self, value: Any, kinds: Sequence[str]) -> AsyncGenerator[Answer, None]:
        """Send the file at a returned path, or a response, bytes or a stream.

        Raises:
            InvalidRequest: for anything else: then only JSON could be the answer.
        """
        if _is_response(value):
            async for part in _of_response(value):
                yield part
            return
        if inspect.isasyncgen(value) or inspect.isgenerator(value):
            async with aclosing(self._as_stream(value, framing(",".join(kinds)))) as parts:
                async for part in parts:
                    yield part
            return
        if isinstance(value, bytes | bytearray | memoryview):
            head = HttpHead(200, (("content-type", answered_as(kinds, sniffed(value))),))
            yield documents.answered(RESPONSE, bytes(value), head)
            return
        if not isinstance(value, str | os.PathLike):
            raise InvalidRequest(
                f"the model answers with JSON ({type(value).__name__}), not with {kinds[0][:60]}; "
                "ask with Accept: application/json"
            )
        path = returned_file(Path(value), self._roots)
        size = path.stat().st_size
        with path.open("rb") as file:
            media_type = answered_as(kinds, _file_type(path, file.read(12), kinds))
            file.seek(0)
            head = HttpHead(200, (("content-type", media_type), ("content-length", str(size))))
            sent = 0
            while True:
                data = await asyncio.to_thread(file.read, RETURNED_FILE_PART_BYTES)
                if not data and sent:
                    return
                yield documents.answered(RESPONSE, data, head if not sent else None)
                sent += len(data)
                if not data:
                    return


def functions_of(predictor: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `predict` and `async_predict`; where there is only one, it stands for the other."""
    predict: Any = getattr(predictor, "predict", None)
    if getattr(type(predictor), "predict", None) is FedMLPredictor.predict:
        predict = None  # the base class's, which says that there is none
    async_predict: Any = getattr(predictor, "async_predict", None)
    if predict is None and async_predict is None:
        raise ModelError(f"{type(predictor).__name__} has neither predict() nor async_predict()")
    return predict or async_predict, async_predict or predict


def returned_file(path: Path, roots: Sequence[Path]) -> Path:
    """Return a path that a predictor returned as the file to send.

    Args:
        path: As returned; a relative one is below the current folder.
        roots: The folders that it may lie in, links followed.

    Raises:
        InferenceFailed: if it lies elsewhere, is no regular file, or too large.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise InferenceFailed(
            "the predictor returned the path of a file that is not there"
        ) from None
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise InferenceFailed(
            "the predictor returned a path outside its own folders; write the file into the current "
            "folder, or into what tempfile gives"
        )
    if not real.is_file() or real.stat().st_size > MAX_RETURNED_FILE_BYTES:
        raise InferenceFailed(
            f"the predictor returned a path that is no file of at most {MAX_RETURNED_FILE_BYTES} bytes"
        )
    return real


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _places(function: Callable[..., Any]) -> int:
    """How many positional arguments a function takes; many for `*args`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    count = 0
    for each in parameters:
        if each.kind is each.VAR_POSITIONAL:
            return 2
        count += each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    return count


def _is_response(value: object) -> bool:
    if "starlette.responses" not in sys.modules:
        return False
    from starlette.responses import Response

    return isinstance(value, Response)


def _is_http_exception(error: Exception) -> bool:
    return hasattr(error, "status_code") and hasattr(error, "detail")


def _refused(error: Any) -> Answer:
    data = documents.write({"detail": error.detail})
    return documents.answered(RESPONSE, data, HttpHead(int(error.status_code), _JSON_TYPE))


async def _of_response(response: Any) -> AsyncIterator[Answer]:
    from meshnode.models.workers.asgi import ask

    head: HttpHead | None = None
    async for item in ask(response, HttpCall("GET", "/")):
        if isinstance(item, HttpHead):
            head = item
            continue
        yield documents.answered(RESPONSE, item, head)
        head = None
    if head is not None:
        yield documents.answered(RESPONSE, b"", head)


def _file_type(path: Path, begin: bytes, kinds: Sequence[str]) -> str:
    """Return the media type that a file's beginning or name tells; a system's table of names is asked last."""
    own = sniffed(begin) or by_ending(path.name)
    if own or not all("*" in kind for kind in kinds):
        return own
    return plain_name(mimetypes.guess_type(path.name)[0] or "")


def _check_streamable(accept: str) -> None:
    """Check that a stream is accepted.

    Raises:
        InvalidRequest: if only other types are.
    """
    kinds = accepted(accept)
    if wants_json(accept) or any(kind == LINES or kind.startswith("text/") for kind in kinds):
        return
    raise InvalidRequest(
        f'a stream is {EVENTS} or {LINES}, not {kinds[0][:60]}; ask for one of these, or without "stream"'
    )


def _piece(piece: object, form: str) -> bytes:
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    data = documents.write(piece)
    return b"data: " + data + b"\n\n" if form == EVENTS else data + b"\n"


def _stream_type(piece: object, data: bytes, form: str) -> str:
    if form == EVENTS and not isinstance(piece, str | bytes | bytearray | memoryview):
        return EVENTS
    if not isinstance(piece, str | bytes | bytearray | memoryview) or _is_json_lines(data):
        return LINES
    if data.startswith((b"data:", b"event:", b"id:", b":")):
        return EVENTS
    return "text/plain; charset=utf-8" if isinstance(piece, str) else "application/octet-stream"


def _is_json_lines(data: bytes) -> bool:
    """Whether a piece is whole lines, each of which is a JSON object."""
    if not (data.startswith(b"{") and data.endswith(b"\n")):
        return False
    try:
        return all(isinstance(json.loads(line), dict) for line in data.splitlines() if line.strip())
    except (ValueError, RecursionError):
        return False
