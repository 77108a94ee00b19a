"""JSON documents between the mesh and a Python model: read, checked by its author's types, written."""

from __future__ import annotations

import base64
import json
import logging
import sys
import typing
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.limits import MAX_DOCUMENT_REASONS, MAX_SCHEMA_BYTES
from meshnode.models.http_calls import BODY, REQUEST, RESPONSE, head_parameters
from meshnode.models.workers.adaptor import Answer
from meshnode.models.workers.loading import own_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from meshnode.models.http_calls import HttpHead
    from meshnode.models.workers.adaptor import WorkerRequest
    from meshnode.types import Buffer

log = logging.getLogger(__name__)

_REQUEST_ENDINGS: Final = ("Request", "Input", "Inputs")
_RESPONSE_ENDINGS: Final = ("Response", "Output", "Outputs")


def content(request: WorkerRequest) -> bytes:
    """Return the bytes of a request's `request` or `body`.

    Raises:
        InvalidRequest: if it has neither, or several documents.
    """
    for name in (REQUEST, BODY):
        array = request.inputs.get(name)
        if array is None:
            continue
        if array.dtype != object:
            return array.tobytes()
        if array.size != 1:
            raise InvalidRequest(f"one document was expected, not {array.size}")
        element = array.flat[0]
        return element if isinstance(element, bytes) else str(element).encode()
    raise InvalidRequest(f"a JSON document is expected as {REQUEST!r}")


def read(data: Buffer) -> Any:
    """Return what a JSON text means; an empty one is an empty object.

    Raises:
        InvalidRequest: if it is not JSON.
    """
    if not memoryview(data).nbytes:
        return {}
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def write(value: object) -> bytes:
    """Return a value as JSON: what a model is likely to answer has a spelling, arrays and bytes too.

    Raises:
        InferenceFailed: if it has none.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise InferenceFailed(f"the model's answer is no JSON: {error}") from None


def answered(name: str, data: Buffer, head: HttpHead | None = None) -> Answer:
    """Return bytes as one part of an answer, as the tensor `response` or `body`."""
    array: np.ndarray[Any, Any]
    if name == RESPONSE:
        array = np.empty(1, dtype=object)
        array[0] = bytes(data)
    else:
        array = np.frombuffer(data, dtype=np.uint8).reshape(1, -1)
    return Answer({name: array}, head_parameters(head) if head is not None else {})


class Types:
    """The Pydantic models of a model's documents; without one, a document is a plain value."""

    def __init__(self, request: type | None = None, response: type | None = None) -> None:
        self.request = request
        self.response = response

    def __repr__(self) -> str:
        names = [each.__name__ if each else "anything" for each in (self.request, self.response)]
        return f"<Types {names[0]} -> {names[1]}>"

    def accept(self, document: object) -> Any:
        """Return a document as an instance of the request's type, or as it is.

        Raises:
            InvalidRequest: with Pydantic's reasons.
        """
        if self.request is None:
            return document
        from pydantic import ValidationError

        kind: Any = self.request
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise InvalidRequest(f"the request is no {kind.__name__}: {reasons(error)}") from None

    def checked(self, value: object) -> object:
        """Return an answer as the response's type allows it.

        Raises:
            InferenceFailed: if the model answered with something else.
        """
        if self.response is None:
            return value
        from pydantic import ValidationError

        kind: Any = self.response
        try:
            return kind.model_validate(value, from_attributes=True).model_dump(mode="json")
        except ValidationError as error:
            raise InferenceFailed(
                f"the model's answer is no {kind.__name__}: {reasons(error)}"
            ) from None

    def schema(self) -> str:
        """Return both JSON schemas as one document; empty if there are none, or they are too long."""
        found: dict[str, Any] = {}
        for name, kind in (("request", self.request), ("response", self.response)):
            if kind is not None:
                typed: Any = kind
                found[name] = typed.model_json_schema()
        return bounded(found)


def bounded(schema: dict[str, Any]) -> str:
    """Return a schema as JSON, or nothing if it is longer than a manifest may have."""
    if not schema:
        return ""
    text = json.dumps(schema, separators=(",", ":"), default=str)
    if len(text.encode()) <= MAX_SCHEMA_BYTES:
        return text
    log.warning("the JSON schema has more than %d bytes and is not shown", MAX_SCHEMA_BYTES)
    return ""


def types_of(function: Callable[..., object], modules: Iterable[ModuleType]) -> Types:
    """Find the types of what a model takes and gives.

    The annotations of its function come first, then classes in the modules by name: `Request` and
    `Response`, or else the only one that ends so (or in Input, Output).

    Args:
        function: What is called with a document.
        modules: The model's modules, in the order of their weight.
    """
    request, response = _annotated(function)
    for module in modules:
        kinds = [kind for kind in own_classes(module) if is_model(kind)]
        request = request or _named(kinds, _REQUEST_ENDINGS)
        response = response or _named(kinds, _RESPONSE_ENDINGS)
    return Types(request, response)


def wants_instance(function: Callable[..., object]) -> bool:
    """Whether a function takes an instance of a Pydantic model rather than a dictionary."""
    return _annotated(function)[0] is not None


def is_model(kind: object) -> bool:
    """Whether this is a Pydantic model."""
    if "pydantic" not in sys.modules or not isinstance(kind, type):
        return False
    from pydantic import BaseModel

    return issubclass(kind, BaseModel) and kind is not BaseModel


def reasons(error: Any) -> str:
    """Return the first reasons of a Pydantic error, each with the field that it is about."""
    told = [
        f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}"
        for each in error.errors()[:MAX_DOCUMENT_REASONS]
    ]
    more = error.error_count() - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _annotated(function: Callable[..., object]) -> tuple[type | None, type | None]:
    target: Any = function
    if not hasattr(target, "__code__") and not hasattr(target, "__func__"):
        target = type(target).__call__ if hasattr(type(target), "__call__") else target  # noqa: B004
    try:
        hints = typing.get_type_hints(getattr(target, "__func__", target))
    except (NameError, TypeError, AttributeError):
        return None, None
    response = hints.pop("return", None)
    request = next(iter(hints.values()), None)
    return request if is_model(request) else None, response if is_model(response) else None


def _named(kinds: list[type], endings: tuple[str, ...]) -> type | None:
    for ending in endings:
        exact = [kind for kind in kinds if kind.__name__ == ending]
        alike = exact or [kind for kind in kinds if kind.__name__.endswith(ending)]
        if len(alike) == 1:
            return alike[0]
    return None


def _plain(value: Any) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, memoryview):
        return base64.b64encode(value).decode()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    for name in ("tolist", "item"):  # arrays and scalars of NumPy, torch and their like
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError(f"a {type(value).__name__} has no JSON form")
