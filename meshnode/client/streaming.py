"""Streams of server-sent events as flows: opened, read, and taken up again where a connection broke.

    Open ─> Read ─> events ─> Emit ...            until the event that ends the stream
              └ broke off ─┬ no id came yet ────> Open again, at any gateway, while the plan allows
                           ├ ids came ──────────> Open with `Last-Event-ID`: at any gateway if the id names the node
                           │                      that makes the answer, and then at the one that began it
                           └ no ids, or refused > the error says how much had come

The gateway that began a stream has its events. Where their ids name the node that makes the answer
(`STREAM.NUMBER.NODE`), any other gateway goes on with the very same answer, or refuses: a consumer that has seen half of
one answer never gets the other half of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from meshnode.client.calls import (
    IDEMPOTENCY_HEADER,
    Call,
    Emit,
    Message,
    Open,
    Read,
    StreamFlow,
    once,
)
from meshnode.client.event_stream import LAST_ID_HEADER, MEDIA_TYPE, EventParser
from meshnode.client.hints import hinted
from meshnode.client.infer import InferResult, MetadataCache, encoded_for
from meshnode.client.native import (
    PlainResult,
    exact_result,
    native_call,
    native_document,
    native_inputs,
    read_answer,
)
from meshnode.client.plan import Fault
from meshnode.client.tries import TryFailed
from meshnode.errors import (
    GatewayUnavailable,
    MeshError,
    NoReplica,
    NotFound,
    ProtocolError,
    error_of,
)
from meshnode.limits import CLIENT_STREAM_SILENCE_S, MAX_SENTENCE_LENGTH, MAX_STREAM_RESUMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from meshnode.client.calls import Reply
    from meshnode.client.event_stream import ServerEvent
    from meshnode.client.hints import Hints
    from meshnode.client.native import NativeAnswer
    from meshnode.types import Scalar

T = TypeVar("T")

_PART, _DONE, _ERROR = "part", "done", "error"
_DOTS = 2  # of the id of an event that names a node


class Ended(Exception):
    """Raised by the reader of events: this one was the last. Never leaves the client."""


@dataclass(slots=True)
class _Progress:
    """How far a stream is.

    Attributes:
        head: Of the answer that is read.
        last_id: The last event's.
        events: How many events came, over all connections.
        fruitless: Connections in a row that brought none.
        only_where_begun: Whether other gateways have refused to go on.
    """

    head: Reply | None = None
    last_id: str = ""
    events: int = 0
    fruitless: int = 0
    only_where_begun: bool = False


def follow(
    call: Call,
    read: Callable[[ServerEvent, Reply], T | None],
    has_ended: Callable[[], bool] = lambda: False,
    *,
    anywhere: bool = False,
) -> StreamFlow[T]:
    """Emit what a stream of events says.

    Args:
        call: Asks for the stream.
        read: Returns the value of an event, or None for one that has none; is given the head of the answer as well.
            Raises `Ended` at the last event, and the error that an event tells.
        has_ended: Whether what was read last was the last value.
        anywhere: Whether any gateway can go on with it, not only the one that began it.

    Raises:
        GatewayUnavailable: if the stream broke off and nobody can go on with it.
        MeshError: as the call, and as `read`.
    """
    progress = _Progress()
    while True:
        try:
            progress.head = yield Open(_resuming(call, progress, anywhere=anywhere))
        except (GatewayUnavailable, NotFound, NoReplica) as error:
            if progress.head is None or not progress.events:
                raise
            if _names_its_node(progress.last_id) and not progress.only_where_begun:
                progress.only_where_begun = True
                continue
            raise lost(progress.events, progress.head.url, str(error)) from error
        parser = EventParser(progress.last_id)
        came = progress.events
        try:
            while piece := (yield Read(CLIENT_STREAM_SILENCE_S)):
                for event in parser.feed(piece):
                    progress.events += 1
                    progress.last_id = event.id
                    value = read(event, progress.head)
                    if value is not None:
                        yield Emit(value)
                    if has_ended():
                        return
                progress.last_id = parser.last_id  # an id may come without an event
        except Ended:
            return
        except TryFailed as failed:
            broken = failed
        else:
            broken = TryFailed(Fault.BROKEN, "ended without saying that it was complete")
        progress.fruitless = 0 if progress.events > came else progress.fruitless + 1
        _check_goes_on(call, progress, broken)


def _resuming(call: Call, progress: _Progress, *, anywhere: bool) -> Call:
    """Return the call for the rest of a stream; the call itself if its place is not known."""
    if progress.head is None:
        return call
    if not progress.last_id:
        # Under its key it is carried out once, but only where that is known.
        return replace(call, only=progress.head.gateway) if call.keyed else call
    last_id = progress.last_id

    def message(remaining_s: float) -> Message:
        whole = call.message(remaining_s)
        headers = {**whole.headers, LAST_ID_HEADER: last_id}
        headers.pop(IDEMPOTENCY_HEADER, None)  # another one would get the stream from its beginning
        return whole._replace(headers=headers)

    anywhere = anywhere or (_names_its_node(last_id) and not progress.only_where_begun)
    only = None if anywhere else progress.head.gateway
    # Nothing runs anew for it, so it may be asked for as often as it takes.
    return replace(call, message=message, only=only, repeatable=True)


def _names_its_node(event_id: str) -> bool:
    """Whether an event's id says which node makes the answer: every gateway can ask that one."""
    return event_id.count(".") == _DOTS


def _check_goes_on(call: Call, progress: _Progress, broken: TryFailed) -> None:
    """Raise the error of a stream with which nobody can go on."""
    assert progress.head is not None
    url = progress.head.url
    if not progress.events:
        if (call.repeatable or call.keyed) and progress.fruitless <= MAX_STREAM_RESUMES:
            return
        raise GatewayUnavailable(
            f"{url}: {broken.reason}, before the stream had said anything. The call {call.method} {call.path} may "
            "have been carried out: look before you repeat it"
        )
    if progress.last_id and progress.fruitless < MAX_STREAM_RESUMES:
        return
    raise lost(progress.events, url, broken.reason)


def lost(events: int, url: str, why: str) -> GatewayUnavailable:
    """Return the error for a stream of which the rest is lost."""
    return GatewayUnavailable(
        f"the stream of {url} broke off after {events} events and cannot be taken up again ({why}); what had come is "
        "good, the rest is lost: ask again from the beginning if the model may run twice"
    )


def stream(
    cache: MetadataCache,
    model: str,
    inputs: object,
    *,
    version: int | None,
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    request_id: str | None,
    timeout_s: float,
    resume: bool,
    idempotency_key: str | None,
    hints: Hints | None = None,
) -> StreamFlow[InferResult]:
    """Emit the parts of a model's answer as arrays; `MeshClient.stream` says the rest."""
    encoded = yield from encoded_for(cache, model, version, inputs)
    call = _stream_call(
        model,
        native_inputs(encoded),
        outputs,
        parameters,
        exact=True,
        version=version,
        request_id=request_id,
        timeout_s=timeout_s,
        resume=resume,
        idempotency_key=idempotency_key,
        hints=hints,
    )
    yield from follow(call, lambda event, head: read_part(event, head, model, exact_result))


def predict_stream(
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | None,
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    request_id: str | None,
    timeout_s: float,
    resume: bool,
    idempotency_key: str | None,
    hints: Hints | None = None,
) -> StreamFlow[PlainResult]:
    """Emit the parts of a model's answer as plain values; `MeshClient.predict_stream` says the rest."""
    call = _stream_call(
        model,
        inputs,
        outputs,
        parameters,
        exact=False,
        version=version,
        request_id=request_id,
        timeout_s=timeout_s,
        resume=resume,
        idempotency_key=idempotency_key,
        hints=hints,
    )
    yield from follow(call, lambda event, head: read_part(event, head, model, PlainResult))


def _stream_call(
    model: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    *,
    exact: bool,
    version: int | None,
    request_id: str | None,
    timeout_s: float,
    resume: bool,
    idempotency_key: str | None,
    hints: Hints | None,
) -> Call:
    """Return the call for a model's parts; with a key, its time limit is part of what must be the same in every try."""
    is_timed = idempotency_key is None
    document = native_document(
        inputs,
        outputs,
        parameters,
        exact=exact,
        resume=resume,
        timeout_s=None if is_timed else timeout_s,
    )
    call = native_call(
        model,
        "stream",
        document,
        version=version,
        request_id=request_id,
        headers={"Accept": MEDIA_TYPE},
        timeout_s=timeout_s,
        is_timed=is_timed,
    )
    return once(hinted(call, hints), idempotency_key)


def read_part(
    event: ServerEvent, head: Reply, model: str, made: Callable[[NativeAnswer, Reply], T]
) -> T | None:
    """Return what a part of an answer is made into; None for an event of a kind that is not known.

    Raises:
        Ended: at the end.
        MeshError: if the stream tells one.
    """
    if event.kind == _PART:
        answer = read_answer(event.document(), head.url)
        if not answer.outputs and not answer.parameters:
            return None  # with which some models end
        answer.model = answer.model or model
        return made(answer, head)
    if event.kind == _DONE:
        raise Ended
    if event.kind == _ERROR:
        raise error_of_event(event, head)
    return None  # a later version may tell more


def error_of_event(event: ServerEvent, head: Reply) -> MeshError:
    """Return the error that ends a stream."""
    told = event.document()
    sentence, code = told.get("error"), told.get("code")
    if not isinstance(sentence, str) or not isinstance(code, str):
        return ProtocolError(f"the stream of {head.url} ended with an error that cannot be read")
    error = error_of(code, sentence[:MAX_SENTENCE_LENGTH])
    error.gateway = head.url
    error.mesh_route = head.headers.get("mesh-route", "")
    return error
