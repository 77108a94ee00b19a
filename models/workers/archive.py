"""TorchServe's `.mar` archives: unpacked, and run by the handler that they name.

    .mar ─> unpack ─> MAR-INF/MANIFEST.json ─> handler: module:function, a class with
    initialize(context) and handle(data, context), or one of TorchServe's default handlers by name

`handle` is given a list of requests and returns a list of the same length. A request is `{"body": value}`:
what its JSON means, or bytes for anything else.
"""

from __future__ import annotations

import re
import sys
import zipfile
import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest, MeshError, ModelError
from meshnode.limits import MAX_ARCHIVE_BYTES, MAX_MODEL_CONFIG_BYTES
from meshnode.models.execution import DynamicBatching, Interface, Spelling
from meshnode.models.http_calls import CONTENT_TYPE, FIELDS, RESPONSE, HttpHead, json_tensors
from meshnode.models.repository.spellings import ARCHIVE_MANIFEST, ARCHIVE_SUFFIX
from meshnode.models.repository.unpacking import unpack_zip
from meshnode.models.runtimes.base import Described
from meshnode.models.workers import documents
from meshnode.models.workers.loading import (
    device_of,
    load_module,
    offer,
    own_classes,
    prepare,
    told,
)
from meshnode.models.workers.torchserve import (
    Context,
    PredictionException,
    RequestProcessor,
    stand_ins,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from meshnode.models.workers.adaptor import (
        Adaptor,
        Answer,
        Outcome,
        WorkerRequest,
        WorkerSurroundings,
    )

DEFAULT_HANDLERS: Final = {
    "base_handler": "BaseHandler",
    "image_classifier": "ImageClassifier",
    "image_segmenter": "ImageSegmenter",
    "object_detector": "ObjectDetector",
}
"""TorchServe's own handlers that run here."""

_WITHOUT = {
    "text_classifier": "torchtext, which is no longer maintained",
}  # why some do not
_CONFIG_LINE = re.compile(r"^([A-Za-z]\w*):[ \t]*([^\s#][^#\n]*?)[ \t]*(?:#.*)?$", re.MULTILINE)
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")


class _Model(msgspec.Struct, rename="camel"):
    model_name: str = ""
    handler: str = ""
    serialized_file: str = ""
    model_file: str = ""
    model_version: str = "1.0"
    config_file: str = ""


class _Manifest(msgspec.Struct):
    model: _Model


def open_adaptor(surroundings: WorkerSurroundings) -> Adaptor:
    """Return the adaptor of an archive."""
    return ArchiveAdaptor(surroundings)


class ArchiveAdaptor:
    """One archive and its handler."""

    asynchronous = False
    joins_rows = False
    concurrency = 1

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        self._surroundings = surroundings
        self._opening = surroundings.opening
        self._archive = self._opening.folder / self._opening.entry
        self._folder = surroundings.work_folder / "archive"
        self._context: Context | None = None
        self._handle: Callable[[Any, Any], Any] | None = None
        self.device = device_of(self._opening)

    def __repr__(self) -> str:
        return f"<ArchiveAdaptor {self._archive.name}>"

    def describe(self) -> Described:
        """Read the archive's manifest and configuration, without running anything.

        Raises:
            ModelError: if they are missing or malformed, or the handler is none that can run here.
        """
        manifest = self._manifest()
        _check_handler(manifest.model.handler)
        config = _settings(self._config_text(manifest))
        batch_size = self._opening.max_batch_size or int(config.get("batchSize", "0") or 0)
        batch_size = batch_size if batch_size > 1 else 0
        execution = self._opening.execution
        if batch_size and execution.batching is None:
            delay_us = int(float(config.get("maxBatchDelay", "100"))) * 1000
            execution = msgspec.structs.replace(
                execution, batching=DynamicBatching(max_queue_delay_us=delay_us)
            )
        execution = msgspec.structs.replace(
            execution, interface=Interface.JSON, spelling=Spelling.ARCHIVE, adaptive=False
        )
        inputs, outputs = json_tensors(batch_size)
        return Described(inputs, outputs, batch_size, execution)

    def initialise(self) -> None:
        """Unpack it, load the handler and initialise that."""
        manifest = self._manifest()
        raw = msgspec.json.decode(self._member(ARCHIVE_MANIFEST))
        folder = self._archive.parent.parent
        if self._archive.name.endswith(ARCHIVE_SUFFIX):
            unpack_zip(self._archive, self._folder, MAX_ARCHIVE_BYTES)
            folder = self._folder
        prepare(self._surroundings, folder)
        offer(folder, stand_ins())
        context = Context(
            model_name=manifest.model.model_name or self._opening.model,
            model_dir=str(folder),
            manifest=raw,
            batch_size=max(1, self._opening.max_batch_size),
            gpu_id=_gpu(self._opening.device),
            model_yaml_config=_yaml(self._config_text(manifest)),
        )
        handle, start = _handler_of(folder, manifest.model.handler)
        try:
            start(context)
        except MeshError:
            raise
        except Exception as error:
            raise ModelError(f"the handler's initialize() failed: {told(error)}") from error
        self._context, self._handle = context, handle

    def execute(self, requests: Sequence[WorkerRequest]) -> Sequence[Outcome]:
        """Hand the whole batch to the handler."""
        assert self._context is not None
        assert self._handle is not None
        context = self._context
        context.request_ids = {
            number: request.request_id for number, request in enumerate(requests)
        }
        context.request_processor = [RequestProcessor(_headers(request)) for request in requests]
        try:
            rows = [_row(request) for request in requests]
            answers = self._handle(rows, context)
        except PredictionException as error:
            return [_status(error) for _ in requests]
        if not isinstance(answers, list) or len(answers) != len(requests):
            got = f"{len(answers)} of them" if isinstance(answers, list) else type(answers).__name__
            wrong = InferenceFailed(
                f"the handler must return a list of {len(requests)} answers, not {got}"
            )
            return [wrong] * len(requests)
        return [
            _answer(answer, context.request_processor[number])
            for number, answer in enumerate(answers)
        ]

    def stream(self, request: WorkerRequest) -> Iterator[Answer]:
        """Answer in one part."""
        (outcome,) = self.execute([request])
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome

    def finalise(self) -> None:
        """Let go of it."""
        self._handle = self._context = None

    def _member(self, name: str) -> bytes:
        if self._archive.name.endswith(ARCHIVE_SUFFIX):
            return _read_member(self._archive, name)
        path = self._archive.parent.parent.joinpath(*name.split("/"))
        try:
            return path.read_bytes()[:MAX_MODEL_CONFIG_BYTES]
        except OSError as error:
            raise ModelError(f"{name} cannot be read: {error.strerror}") from None

    def _manifest(self) -> _Manifest:
        text = self._member(ARCHIVE_MANIFEST)
        try:
            return msgspec.json.decode(text, type=_Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ModelError(f"{ARCHIVE_MANIFEST} of {self._archive.name}: {error}") from None

    def _config_text(self, manifest: _Manifest) -> str:
        name = manifest.model.config_file
        return self._member(name).decode(errors="replace") if name else ""


def _read_member(archive: Path, name: str) -> bytes:
    """Return one small file of an archive that is not unpacked yet."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
            data = member.read(MAX_MODEL_CONFIG_BYTES + 1)
    except KeyError:
        raise ModelError(f"{archive.name} has no {name}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{archive.name} is no archive that can be read: {error}") from None
    except OSError as error:
        raise ModelError(f"{archive.name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_MODEL_CONFIG_BYTES:
        raise ModelError(f"{name} of {archive.name} has more than {MAX_MODEL_CONFIG_BYTES} bytes")
    return data


def _check_handler(handler: str) -> None:
    if not handler:
        raise ModelError(f"{ARCHIVE_MANIFEST} names no handler")
    if handler in _WITHOUT:
        raise ModelError(
            f"TorchServe's handler {handler!r} needs {_WITHOUT[handler]}; give the archive a handler of "
            "its own (--handler FILE.py of torch-model-archiver)"
        )


def _handler_of(
    folder: Path, handler: str
) -> tuple[Callable[[Any, Any], Any], Callable[[Context], object]]:
    """Return what answers a batch, and what begins."""
    _check_handler(handler)
    name, _, function = handler.partition(":")
    if not function and name in DEFAULT_HANDLERS and not (folder / f"{name}.py").is_file():
        default = getattr(sys.modules[f"ts.torch_handler.{name}"], DEFAULT_HANDLERS[name])()
        return default.handle, default.initialize
    module = _module_of(folder, name)
    entry = vars(module).get(function or "handle")
    if callable(entry) and not isinstance(entry, type):
        return entry, lambda context: entry(None, context)
    if function:
        raise ModelError(f"the handler {name} has no function {function!r}")
    kinds = [kind for kind in own_classes(module) if callable(getattr(kind, "handle", None))]
    if not kinds:
        raise ModelError(f"the handler {name} has neither handle() nor a class with it")
    try:
        made: Any = kinds[-1]()
    except Exception as error:
        raise ModelError(f"{kinds[-1].__name__}() failed: {told(error)}") from error
    return made.handle, getattr(made, "initialize", lambda _context: None)


def _module_of(folder: Path, name: str) -> ModuleType:
    file = name.rpartition("/")[2].removesuffix(".py") + ".py"
    if (folder / file).is_file():
        return load_module(folder, file)
    raise ModelError(
        f"the archive has no {file}, and {name!r} is none of TorchServe's handlers that run here: "
        f"{', '.join(sorted(DEFAULT_HANDLERS))}"
    )


def _headers(request: WorkerRequest) -> dict[str, str]:
    return {
        name.replace("_", "-"): str(value)
        for name, value in request.parameters.items()
        if isinstance(value, str)
    }


def _row(request: WorkerRequest) -> dict[str, Any]:
    """Return what the handler sees of one request: the fields of a form, or the body."""
    if request.parameters.get(CONTENT_TYPE) != FIELDS:
        return {"body": _value(request)}
    try:
        fields = msgspec.msgpack.decode(documents.content(request), type=dict[str, bytes])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the form cannot be read: {error}") from None
    return {name: bytearray(content) for name, content in fields.items()}


def _value(request: WorkerRequest) -> Any:
    """Return what the handler sees as the body: a JSON value if it is one, else bytes."""
    data = documents.content(request)
    media_type = str(request.parameters.get(CONTENT_TYPE, "")).partition(";")[0].strip().lower()
    if media_type in _JSON_TYPES:
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return bytearray(data)
    return data.decode(errors="replace") if media_type == "text/plain" else bytearray(data)


def _answer(value: Any, processor: RequestProcessor) -> Outcome:
    status = processor.get_response_status_code()
    headers = tuple(
        (name.lower(), str(text)) for name, text in processor.get_response_headers().items()
    )
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            if not any(name == "content-type" for name, _ in headers):
                headers = (*headers, ("content-type", "application/octet-stream"))
            return documents.answered(RESPONSE, bytes(value), HttpHead(status, headers))
        if not headers and status == 200:
            return documents.answered(RESPONSE, documents.write(value))
        if not any(name == "content-type" for name, _ in headers):
            headers = (*headers, ("content-type", "application/json"))
        return documents.answered(RESPONSE, documents.write(value), HttpHead(status, headers))
    except MeshError as error:
        return error


def _status(error: PredictionException) -> Answer:
    head = HttpHead(int(error.error_code), (("content-type", "application/json"),))
    return documents.answered(RESPONSE, documents.write({"error": error.message}), head)


def _settings(text: str) -> dict[str, str]:
    """Return the plain values of a configuration's first level."""
    return {key: value.strip("\"'") for key, value in _CONFIG_LINE.findall(text)}


def _yaml(text: str) -> dict[str, Any]:
    """Return what a handler sees of `model-config.yaml`: all of it where PyYAML is installed."""
    if not text:
        return {}
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        return dict(_settings(text))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelError(f"the archive's configuration is no YAML: {error}") from None
    return found if isinstance(found, dict) else {}


def _gpu(device: str) -> int | None:
    kind, _, number = device.partition(":")
    return int(number or 0) if kind in ("gpu", "cuda") else None
