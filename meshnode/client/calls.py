"""Calls of the HTTP API as data, and flows of them. Pure.

A `Call` is one request that any gateway may answer, a `Reply` its answer. What takes several calls is
written once, as a generator that yields steps and is sent their results: a `Flow`. `MeshClient` runs
flows with threads and sockets, `AsyncMeshClient` on an event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_TRIES_PER_GATEWAY

if TYPE_CHECKING:
    from meshnode.types import Buffer

T = TypeVar("T")


class Message(NamedTuple):
    """What a request carries: its own headers, and the parts of its body, sent one after the other."""

    headers: Mapping[str, str]
    parts: tuple[Buffer, ...] = ()


_EMPTY: Final = Message({})


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        method: Upper case.
        path: Path of the HTTP API, its names quoted.
        message: Makes what is sent, from the seconds that remain for the answer.
        repeatable: Whether it may be carried out twice.
        only: The one gateway that can answer, by its index; None for any.
        max_tries: How often each gateway is tried.
        timeout_s: Seconds for the call with all its tries; None for what its flow has left.
    """

    method: str
    path: str
    message: Callable[[float], Message] = field(default=lambda _remaining_s: _EMPTY, repr=False)
    repeatable: bool = True
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


Step = Call | Pause | Blocking
Flow = Generator[Step, Any, T]
"""Yields steps and is sent a `Reply`, None, or the function's result; an error is thrown into it."""


def ask(call: Call) -> Flow[Reply]:
    """Yield one call, with its reply's type."""
    reply: Reply = yield call
    return reply


def json_message(document: object) -> Callable[[float], Message]:
    """Return a maker of messages that carry a JSON document."""
    body = json.dumps(document).encode()
    return lambda _remaining_s: Message({"Content-Type": "application/json"}, (body,))


def get_document(path: str, **more: Any) -> Flow[Any]:
    """GET a path and return its JSON document."""
    return (yield from ask(Call("GET", path, **more))).document()


def post_document(path: str, document: object, **more: Any) -> Flow[Any]:
    """POST a JSON document, once at most, and return the answer's."""
    call = Call("POST", path, json_message(document), **{"repeatable": False, **more})
    return (yield from ask(call)).document()


def delete_document(path: str, **more: Any) -> Flow[Any]:
    """DELETE a path, once at most, and return the answer's document, if it has one."""
    call = Call("DELETE", path, **{"repeatable": False, **more})
    return (yield from ask(call)).document()


def model_path(model: str, version: int | None = None) -> str:
    """Return the Open Inference Protocol's path of a model or one version of it."""
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def mesh_model_path(model: str) -> str:
    """Return the path of a model's entry in the mesh's own API."""
    return f"/mesh/v1/models/{quote(model, safe='')}"


def deployment_path(model: str) -> str:
    """Return the path of a model's deployment."""
    return f"/mesh/v1/deployments/{quote(model, safe='')}"
