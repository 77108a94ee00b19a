"""Calls of the HTTP API as data, and flows of them. Pure.

A `Call` is one request that any gateway may answer, a `Reply` its answer. What takes several calls is
written once, as a generator that yields steps and is sent their results: a `Flow`. `MeshClient` runs
flows with threads and sockets, `AsyncMeshClient` on an event loop.
"""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.limits import MAX_IDEMPOTENCY_KEY_LENGTH, MAX_TRIES_PER_GATEWAY

if TYPE_CHECKING:
    from meshnode.types import Buffer

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Message(NamedTuple):
    """What a request carries: its own headers, and the parts of its body, sent one after the other."""

    headers: Mapping[str, str]
    parts: tuple[Buffer, ...] = ()


_EMPTY: Final = Message({})

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

_KEY: Final = re.compile(rf"[!-~]{{1,{MAX_IDEMPOTENCY_KEY_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        method: Upper case.
        path: Path of the HTTP API, its names quoted.
        message: Makes what is sent, from the seconds that remain for the answer.
        repeatable: Whether it may be carried out twice.
        keyed: Whether it carries an idempotency key, made for this call where it has none of its own. A gateway that
            broke off is asked again then: it carries out only once what comes under one key.
        only: The one gateway that can answer, by its index; None for any.
        max_tries: How often each gateway is tried.
        timeout_s: Seconds for the call with all its tries; None for what its flow has left.
    """

    method: str
    path: str
    message: Callable[[float], Message] = field(default=lambda _remaining_s: _EMPTY, repr=False)
    repeatable: bool = True
    keyed: bool = False
    only: int | None = None
    max_tries: int = MAX_TRIES_PER_GATEWAY
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        status: The HTTP status.
        headers: Names in lower case.
        body: The content. Tensors become views of it.
        gateway: Index of the gateway that answered.
        url: The same as a URL.
    """

    status: int
    headers: Mapping[str, str]
    body: Buffer
    gateway: int = 0
    url: str = ""

    def document(self) -> Any:
        """Return the body as JSON; None if it is empty.

        Raises:
            ProtocolError: if it is not JSON.
        """
        if not self.body:
            return None
        try:
            return json.loads(bytes(self.body))
        except (ValueError, RecursionError):
            raise ProtocolError(f"the answer of {self.url} is not JSON") from None


@dataclass(frozen=True, slots=True)
class Pause:
    """A flow waits for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Blocking:
    """A flow wants the result of a function that waits for a disk: an event loop must not run it."""

    function: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Open:
    """A flow of a stream wants this call's answer as it comes.

    It is sent the answer's head as a `Reply` without a body. What was open before is closed.
    """

    call: Call


@dataclass(frozen=True, slots=True)
class Read:
    """A flow of a stream wants the next bytes of what it opened; `TryFailed` if none come in time.

    It is sent `bytes`, empty at the end.
    """

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Emit(Generic[T_co]):
    """A flow of a stream gives its consumer a value."""

    value: T_co


Step = Call | Pause | Blocking
Flow = Generator[Step, Any, T]
"""Yields steps and is sent a `Reply`, None, or the function's result; an error is thrown into it."""

StreamFlow = Generator[Step | Open | Read | Emit[T], Any, None]
"""The same for a stream of values, each of which it emits."""


def ask(call: Call) -> Flow[Reply]:
    """Yield one call, with its reply's type."""
    reply: Reply = yield call
    return reply


def json_bytes(document: object) -> bytes:
    """Return a document as JSON.

    Raises:
        InvalidRequest: if it cannot be.
    """
    try:
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None


def json_message(document: object) -> Callable[[float], Message]:
    """Return a maker of messages that carry a JSON document; raises as `json_bytes` does."""
    body = json_bytes(document)
    return lambda _remaining_s: Message({"Content-Type": "application/json"}, (body,))


def with_key(
    message: Callable[[float], Message], idempotency_key: str
) -> Callable[[float], Message]:
    """Return a maker of the same messages with an idempotency key; one that they have stays.

    Raises:
        InvalidRequest: if it cannot be a header.
    """
    if not _KEY.fullmatch(idempotency_key):
        raise InvalidRequest(
            f"an idempotency key must be 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable ASCII characters without "
            f"spaces, and is {idempotency_key!r:.80}"
        )

    def keyed(remaining_s: float) -> Message:
        plain = message(remaining_s)
        return plain._replace(headers={IDEMPOTENCY_HEADER: idempotency_key, **plain.headers})

    return keyed


def once(call: Call, idempotency_key: str | None) -> Call:
    """Return a call that is carried out once under a key; the call itself without one.

    What its message says must not depend on the time that remains: another body is another request.

    Raises:
        InvalidRequest: as `with_key` does.
    """
    if idempotency_key is None:
        return call
    message = with_key(call.message, idempotency_key)
    return replace(call, message=message, keyed=True, repeatable=False)


def get_document(path: str, **more: Any) -> Flow[Any]:
    """GET a path and return its JSON document."""
    return (yield from ask(Call("GET", _checked_path(path), **more))).document()


def post_document(
    path: str, document: object, idempotency_key: str | None = None, **more: Any
) -> Flow[Any]:
    """POST a JSON document, once at most, and return the answer's."""
    message = json_message(document)
    if idempotency_key is not None:
        message, more = with_key(message, idempotency_key), {"keyed": True, **more}
    call = Call("POST", _checked_path(path), message, **{"repeatable": False, **more})
    return (yield from ask(call)).document()


def put_document(path: str, document: object, **more: Any) -> Flow[Any]:
    """PUT a JSON document and return the answer's; it may be carried out twice."""
    call = Call("PUT", _checked_path(path), json_message(document), **more)
    return (yield from ask(call)).document()


def delete_document(path: str, **more: Any) -> Flow[Any]:
    """DELETE a path, once at most, and return the answer's document, if it has one."""
    call = Call("DELETE", _checked_path(path), **{"repeatable": False, **more})
    return (yield from ask(call)).document()


def _checked_path(path: object) -> str:
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidRequest(f"{path!r} is no path of the HTTP API; one begins with '/'")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise InvalidRequest(f"the path {path[:200]!r} must be quoted: use urllib.parse.quote")
    return path


def quoted_name(name: object) -> str:
    """Return a name as it stands in a path.

    Raises:
        InvalidRequest: if it is none.
    """
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{name!r} is no name; give text that is not empty")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name!r} is no name: it is not valid Unicode") from None


def names_of(argument: str, given: Sequence[str]) -> list[str]:
    """Return several names; one alone counts as a list of it.

    Raises:
        InvalidRequest: if something else was given for the argument.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Iterable):
        raise InvalidRequest(f"{argument} must be a list of names, and is {given!r}")
    listed = list(names)
    if not all(isinstance(name, str) for name in listed):
        raise InvalidRequest(f"{argument} must be a list of names, and is {given!r}")
    return listed


def model_path(model: str, version: int | None = None) -> str:
    """Return the Open Inference Protocol's path of a model or one version of it.

    Raises:
        InvalidRequest: if the name or the version is none.
    """
    path = f"/v2/models/{quoted_name(model)}"
    return path if version is None else f"{path}/versions/{_checked_version(version)}"


def _checked_version(version: object) -> int:
    number = 0
    with contextlib.suppress(TypeError):
        number = operator.index(version)  # type: ignore[arg-type]
    if number < 1:
        raise InvalidRequest(f"version {version!r} must be a whole number from 1, or None")
    return number


def mesh_model_path(model: str) -> str:
    """Return the path of a model's entry in the mesh's own API; raises as `quoted_name` does."""
    return f"/mesh/v1/models/{quoted_name(model)}"


def deployment_path(model: str) -> str:
    """Return the path of a model's deployment; raises as `quoted_name` does."""
    return f"/mesh/v1/deployments/{quoted_name(model)}"
