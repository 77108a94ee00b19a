"""The native routes of inference, and the mesh's events.

| path | method | scope | |
|---|---|---|---|
| `/mesh/v1/models/M[/versions/N]/infer` | POST | infer | one answer: `meshnode.gateway.protocols.native` |
| `/mesh/v1/models/M[/versions/N]/stream` | POST | infer | an answer as server-sent events; `Last-Event-ID` goes on with one |
| `/mesh/v1/events?kinds=K,…&after=ID&follow=false` | GET | infer | what happens in the mesh, as server-sent events |
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from meshnode.errors import InvalidRequest, LinkLost, NoReplica, NotFound, NotServing
from meshnode.gateway.event_streams import no_such_stream
from meshnode.gateway.matching import Match, Methods, RouteSet, infer, segment, unknown, version_of
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import native
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.event_ids import LAST_EVENT_ID, MIN_NAME_LENGTH, EventId
from meshnode.types import KeptAs, Scope

if TYPE_CHECKING:
    from meshnode.gateway.event_streams import EventStreams
    from meshnode.gateway.inference import Begun, Inference
    from meshnode.gateway.matching import Reply
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream

_MODELS = "/mesh/v1/models/"
_INFER = native.InferDialect()
_STREAM = native.StreamDialect()
_TAG = "Inference"


class NativeRoutes:
    """Answers inferences in plain JSON, and tells what happens in the mesh."""

    def __init__(self, inference: Inference, control: MeshControl, streams: EventStreams) -> None:
        """Answer from these."""
        self._inference = inference
        self._control = control
        self._streams = streams

    def __repr__(self) -> str:
        return f"<NativeRoutes of {self._inference!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed: dict[str, Methods] = {
            "/mesh/v1/events": {"GET": Match(self._events, Scope.INFER)},
        }
        return RouteSet(fixed, {_MODELS: self._model}, frozenset({_MODELS}), _OPERATIONS)

    def _model(self, path: str) -> Methods:
        name, _, rest = path.removeprefix(_MODELS).partition("/")
        version: int | None = None
        if rest.startswith("versions/"):
            text, _, rest = rest.removeprefix("versions/").partition("/")
            version = version_of(text)
        if rest == "infer":
            return infer(partial(self._infer, segment(name, path), version))
        if rest == "stream":
            match = infer(partial(self._stream, segment(name, path), version))
            return {method: each._replace(goes_on=True) for method, each in match.items()}
        raise unknown(path)

    def _infer(self, model: str, version: int | None, http: HttpRequest, request_id: str) -> Reply:
        asked = _asked(model, version, http)
        return self._inference.answer(_INFER, asked, request_id)

    async def _stream(
        self, model: str, version: int | None, http: HttpRequest, request_id: str
    ) -> HttpResponse | HttpStream:
        streams = self._streams
        last = http.headers.get(LAST_EVENT_ID)
        after: EventId | None = None
        if last is not None:
            after = EventId.parse(last)
            if streams.has(last, http.caller.key_id, http.path):
                if http.body:  # else nobody could go on but this gateway
                    _check_is_the_same(after, _asked(model, version, http))
                return streams.resumed(last, http.caller.key_id, http.path)
            if after is None or after.executor is None or len(after.stream) < MIN_NAME_LENGTH:
                raise no_such_stream(last)
        asked = _asked(model, version, http)
        _check_is_the_same(after, asked)
        if http.caller.job:  # it is collected here, and begun anew if it fails
            return (await self._inference.streamed(_STREAM, asked, request_id, None)).answer
        name = after.stream if after is not None else streams.new_name(_what_is_asked(asked))
        keep = KeptAs(name, _owner(http)) if asked.body.resume else None
        if after is None:
            begun = await self._inference.streamed(_STREAM, asked, request_id, keep)
        else:
            begun = await self._taken_up(asked, request_id, after)
        return streams.open(
            begun.answer,
            http.caller.key_id,
            resume=asked.body.resume,
            path=http.path,
            holding=http.holding,
            name=name,
            after=after.number if after is not None else 0,
            executor=lambda: begun.response.executor,
        )

    async def _taken_up(self, asked: Asked, request_id: str, after: EventId) -> Begun:
        """Go on with a stream that another gateway began.

        Raises:
            NotFound: if nobody can.
        """
        http = asked.http
        assert after.executor is not None
        keep = KeptAs(after.stream, _owner(http), after.number)
        try:
            return await self._inference.taken_up(_STREAM, asked, request_id, keep, after.executor)
        except (NotFound, LinkLost, NotServing, NoReplica) as error:
            last = http.headers[LAST_EVENT_ID]
            raise no_such_stream(last, f", or the node that made it is lost ({error})") from error

    def _events(self, http: HttpRequest, _request_id: str) -> Reply:
        asked = dict(parse_qsl(http.query, keep_blank_values=True))
        others = asked.keys() - {"kinds", "after", "follow"}
        if others:
            raise InvalidRequest(
                f"{min(others)[:40]!r} is no field of this query; it takes ?kinds=KIND,KIND&after=ID&follow=false"
            )
        follow = asked.get("follow", "true")
        if follow not in ("true", "false"):
            raise InvalidRequest(f"follow is true or false, not {follow[:40]!r}")
        kinds = [kind for kind in asked.get("kinds", "").split(",") if kind]
        after = http.headers.get(LAST_EVENT_ID) or asked.get("after")
        stream = self._control.events.stream(after, kinds, follow=follow == "true")
        return _at_once(stream)


def _asked(model: str, version: int | None, http: HttpRequest) -> Asked:
    """Return what is asked for; the version may be in the path, in the body, or the same in both.

    Raises:
        InvalidRequest: if the body is none, or names another version.
    """
    body = native.read_body(http)
    if version is not None and body.version not in (None, version):
        raise InvalidRequest(
            f"the path asks for version {version}, the body for version {body.version}"
        )
    return Asked(http, model, version if version is not None else body.version, body)


def _what_is_asked(asked: Asked) -> bytes:
    """Return all that decides about an answer, the same at every gateway."""
    return asked.http.path.encode(errors="surrogatepass") + b"\0" + native.what_is_asked(asked.body)


def _check_is_the_same(after: EventId | None, asked: Asked) -> None:
    """Raise InvalidRequest if a stream that is to be taken up began with another request."""
    if after is not None and not after.may_be_of(_what_is_asked(asked)):
        raise InvalidRequest(
            f"the event {after.stream[:60]}.{after.number} is of another request than this: send the request with which "
            "the stream began, or this one without Last-Event-ID"
        )


def _owner(http: HttpRequest) -> str:
    """Return who may take a stream up, and where: the same at every gateway."""
    return f"{http.caller.key_id} {http.path}"


async def _at_once(stream: HttpStream) -> HttpStream:
    return stream


_ANSWER = {
    "type": "object",
    "required": ["model", "version", "outputs"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "outputs": {"type": "object"},
        "parameters": {"type": "object"},
    },
}
_EVENT_STREAM = (native.EVENT_STREAM,)
_RESUMED = (("Last-Event-ID", "The last id that you saw: what followed it comes next."),)

_OPERATIONS = (
    Operation(
        "POST", "/mesh/v1/models/{model}/infer", "Run a model", _TAG,
        body=native.NativeBody, answer=_ANSWER, infers=True,
    ),
    Operation(
        "POST", "/mesh/v1/models/{model}/versions/{version}/infer", "Run one version of a model", _TAG,
        body=native.NativeBody, answer=_ANSWER, infers=True,
    ),
    Operation(
        "POST", "/mesh/v1/models/{model}/stream", "Run a model and get its answer as it is made", _TAG,
        body=native.NativeBody, media_types=_EVENT_STREAM, headers=_RESUMED, infers=True,
    ),
    Operation(
        "POST", "/mesh/v1/models/{model}/versions/{version}/stream",
        "Run one version of a model and get its answer as it is made", _TAG,
        body=native.NativeBody, media_types=_EVENT_STREAM, headers=_RESUMED, infers=True,
    ),
    Operation(
        "GET", "/mesh/v1/events", "Follow what happens in the mesh", "Mesh",
        query=(
            ("kinds", "Only these, separated by commas: member, deployment, model, node"),
            ("after", "Begin after the event of this id"),
            ("follow", "`false`: tell what is kept, and end"),
        ),
        media_types=_EVENT_STREAM, headers=_RESUMED,
    ),
)  # fmt: skip
