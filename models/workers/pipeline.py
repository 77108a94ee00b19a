"""`pipeline.py`: a callable `pipe` with `compile(pipe)`, or a class `Pipeline` with `compile(self)`.

    import pipeline.py ─> pipe, or Pipeline() ─> compile ─> ready ─> pipe(document) for each request

With an `endpoint.py` beside it the model answers HTTP by its author's own routes
(`meshnode.models.workers.endpoint`); without one it takes a JSON document and gives one.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.models.execution import Execution, Interface, Spelling
from meshnode.models.http_calls import RESPONSE, json_tensors
from meshnode.models.repository.spellings import ENDPOINT_FILE
from meshnode.models.runtimes.base import Described
from meshnode.models.workers import documents
from meshnode.models.workers.documents import Types, types_of, wants_instance
from meshnode.models.workers.loading import call_or_none, device_of, load_module, prepare, told

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

_TYPE_FILES = ("schemas.py", "api_classes.py")  # beside pipeline.py


def open_adaptor(surroundings: WorkerSurroundings) -> Adaptor:
    """Return the adaptor of a folder with `pipeline.py`."""
    folder = folder_of(surroundings)
    if (folder / ENDPOINT_FILE).is_file():
        from meshnode.models.workers.endpoint import EndpointAdaptor

        return EndpointAdaptor(surroundings, folder)
    return PipelineAdaptor(surroundings, folder)


def folder_of(surroundings: WorkerSurroundings) -> Path:
    """Return the folder of the entry, where the files beside it are."""
    opening = surroundings.opening
    return (opening.folder / opening.entry).parent


def described(execution: Execution, spelling: Spelling, schema: str) -> Described:
    """Return what a model says of itself that takes one JSON document at a time."""
    inputs, outputs = json_tensors()
    return Described(
        inputs,
        outputs,
        0,
        msgspec.structs.replace(
            execution, interface=Interface.JSON, spelling=spelling, adaptive=False, schema=schema
        ),
    )


class Pipe:
    """The author's pipeline, compiled."""

    def __init__(self, folder: Path, entry: str) -> None:
        """Load it.

        Raises:
            ModelError: if the file has neither `pipe` nor `Pipeline`, or raises.
        """
        self.module: ModuleType = load_module(folder, entry)
        self.call = _callable_of(self.module, entry)
        self.types = types_of(self.call, [self.module, *type_modules(folder)])
        self._takes_instance = wants_instance(self.call)

    def __repr__(self) -> str:
        return f"<Pipe {type(self.call).__name__} {self.types}>"

    def compile(self) -> None:
        """Run the author's compilation.

        Raises:
            ModelError: with what it raised.
        """
        compile_pipe = vars(self.module).get("compile")
        try:
            if callable(compile_pipe):
                compile_pipe(self.call)
            else:
                call_or_none(getattr(self.call, "compile", None))
        except MeshError:
            raise
        except Exception as error:
            raise ModelError(f"compile() failed: {told(error)}") from error

    def __call__(self, document: object) -> object:
        """Run it on a JSON value, and return a JSON value.

        Raises:
            InvalidRequest, InferenceFailed: if request or answer are not of the author's types.
        """
        accepted = self.types.accept(document)
        if self.types.request is not None and not self._takes_instance:
            accepted = accepted.model_dump()
        return self.types.checked(self.call(accepted))


class PipelineAdaptor:
    """A pipeline without an endpoint: JSON in, JSON out, one request after the other."""

    asynchronous = False
    joins_rows = False
    concurrency = 1

    def __init__(self, surroundings: WorkerSurroundings, folder: Path) -> None:
        self._opening = surroundings.opening
        self.device = device_of(self._opening)
        self._folder = folder
        self._entry = self._opening.entry.rpartition("/")[2]
        self._pipe: Pipe | None = None
        prepare(surroundings, folder)

    def __repr__(self) -> str:
        return f"<PipelineAdaptor {self._opening.model} {self._pipe}>"

    def describe(self) -> Described:
        """Say that it takes JSON; the types are looked up where the author uses Pydantic.

        The file is run only then: it may load weights.

        Raises:
            ModelError: if it is no Python, or its types cannot be found.
        """
        types = Types()
        path = self._folder / self._entry
        names = check_source(path)
        if "pydantic" in names:
            self._pipe = Pipe(self._folder, self._entry)
            types = self._pipe.types
        else:
            modules = type_modules(self._folder)
            if modules:
                types = types_of(check_source, modules)
        return described(self._opening.execution, Spelling.PIPELINE, types.schema())

    def initialise(self) -> None:
        """Load and compile."""
        if self._pipe is None:
            self._pipe = Pipe(self._folder, self._entry)
        self._pipe.compile()

    def execute(self, requests: Sequence[WorkerRequest]) -> Sequence[Outcome]:
        """Answer one after the other; what one raises is its own."""
        return [self._answer(request) for request in requests]

    def stream(self, request: WorkerRequest) -> Iterator[Answer]:
        """Answer in one part."""
        outcome = self._answer(request)
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome

    def finalise(self) -> None:
        """Let go of it."""
        self._pipe = None

    def _answer(self, request: WorkerRequest) -> Answer | Exception:
        assert self._pipe is not None
        try:
            value = self._pipe(documents.read(documents.content(request)))
            return documents.answered(RESPONSE, documents.write(value))
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            return error if isinstance(error, MeshError) else _failed(error)


def check_source(path: Path) -> set[str]:
    """Return the names of the modules that a Python file imports.

    Raises:
        ModelError: if it is not there, or no Python.
    """
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be loaded: {told(error)}") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def type_modules(folder: Path) -> list[ModuleType]:
    """Return the modules beside a pipeline that hold nothing but types."""
    return [load_module(folder, name) for name in _TYPE_FILES if (folder / name).is_file()]


def _callable_of(module: ModuleType, entry: str) -> Callable[..., object]:
    pipe: Any = vars(module).get("pipe")
    if pipe is None:
        kind = vars(module).get("Pipeline")
        if not isinstance(kind, type):
            raise ModelError(f"{entry} has neither a callable `pipe` nor a class `Pipeline`")
        try:
            pipe = kind()
        except Exception as error:
            raise ModelError(f"Pipeline() failed: {told(error)}") from error
    if not callable(pipe):
        raise ModelError(f"`pipe` of {entry} is a {type(pipe).__name__}, which cannot be called")
    found: Callable[..., object] = pipe
    return found


def _failed(error: Exception) -> InferenceFailed:
    import traceback

    traceback.print_exception(error)  # into the model's log
    return InferenceFailed(f"the pipeline raised {told(error)}")
