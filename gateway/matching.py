"""What answers a path: the pieces of which the routes of a gateway are made.

A part of the gateway (a dialect, the native API, jobs) offers a `RouteSet`. The dispatcher joins them; none knows another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.models.repository.version_names import read_version
from meshnode.types import Scope

if TYPE_CHECKING:
    from meshnode.gateway.operations import Operation

Reply = HttpResponse | Awaitable[HttpResponse | HttpStream]
Handler = Callable[[HttpRequest, str], Reply]
"""Answers a request; the second argument is its id."""


class Match(NamedTuple):
    """What answers a request: `answer(http, request_id)`, for callers with this scope.

    Attributes:
        answer: Answers it.
        scope: What its caller needs.
        takes_body: False where a body, if there is one, is not worth reading.
        forwarded: Whether the request may come from another node's gateway, whose own role does not allow it.
        infers: Whether a model runs for it, so that it may be made a job (`Prefer: respond-async`).
        answers_once: Whether what answers looks after `Idempotency-Key` itself, as jobs do.
        goes_on: Whether `Last-Event-ID` asks it for the rest of a stream, for which nothing runs anew.
    """

    answer: Handler
    scope: Scope
    takes_body: bool = False
    forwarded: bool = False
    infers: bool = False
    answers_once: bool = False
    goes_on: bool = False


Methods = Mapping[str, Match]
"""What answers each method of one path."""


class RouteSet(NamedTuple):
    """The routes of one part of the gateway.

    Attributes:
        fixed: By path; each answers with a slash at its end, too.
        below: By the beginning of a path, such as `/v2/models/`: returns the routes of a path below it, or
            raises `HttpRefusal` (`unknown(path)`). The longest beginning that fits is asked.
        remembered: Those of `below` whose matches are worth remembering: models' paths, asked again and again.
        operations: What each route does, for the description of the API (`meshnode.gateway.openapi`).
    """

    fixed: Mapping[str, Methods]
    below: Mapping[str, Callable[[str], Methods]]
    remembered: frozenset[str] = frozenset()
    operations: tuple[Operation, ...] = ()


def get(handler: Callable[[], Reply]) -> Methods:
    """Return the routes of what everybody may read who may infer."""
    return {"GET": Match(lambda _http, _request_id: handler(), Scope.INFER)}


def change(scope: Scope, handler: Callable[[HttpRequest], Reply]) -> Match:
    """Return what changes this node, or shows what only some may see."""
    return Match(lambda http, _request_id: handler(http), scope, takes_body=True)


def infer(answer: Handler) -> Methods:
    """Return the routes of a path to which an inference is posted."""
    return {"POST": Match(answer, Scope.INFER, takes_body=True, infers=True)}


def by_method(routes: Methods, method: str) -> Match:
    """Return what answers a method.

    Raises:
        HttpRefusal: 405 if nothing does.
    """
    found = routes.get(method)
    if found is None:
        allowed = ", ".join(
            each for name in routes for each in (("GET", "HEAD") if name == "GET" else (name,))
        )
        raise HttpRefusal(405, f"this path takes {allowed}, not {method[:20]}", {"Allow": allowed})
    return found


def segment(text: str, path: str) -> str:
    """Return a path segment decoded, such as a model's name; an empty or deeper one is unknown."""
    if not text or "/" in text:
        raise unknown(path)
    return unquote(text)


def version_of(text: str) -> int:
    """Return the model version that a path segment names, by its number or its label.

    Raises:
        InvalidRequest: if it is neither.
    """
    labelled = read_version(text) if "_" in text else None
    if labelled is not None:
        return labelled.number
    if not text.isascii() or not text.isdigit() or len(text) > 18 or text[0] == "0" != text:
        raise InvalidRequest(
            f"{text[:40]!r} is not a model version; versions are positive integers, or moments such as "
            "20260131_120000"
        )
    return int(text)


def unknown(path: str) -> HttpRefusal:
    """Return the refusal of a path at which nothing is served."""
    return HttpRefusal(404, f"nothing is served at {path[:100]!r}")
