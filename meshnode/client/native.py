"""Requests and answers of the native API: plain JSON outside, exact tensors where the client has arrays. Pure."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.client.calls import (
    Call,
    Flow,
    Message,
    ask,
    json_bytes,
    mesh_model_path,
    names_of,
    once,
)
from meshnode.client.hints import hinted
from meshnode.client.infer import InferResult, Route, checked_id, parse_route
from meshnode.client.shapes import nested
from meshnode.client.tensors import output_array
from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.limits import MAX_REQUEST_TIMEOUT_S
from meshnode.types import Scalar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.client.calls import Reply
    from meshnode.client.hints import Hints
    from meshnode.client.tensors import Encoded


DOCUMENT: Final = "request"
"""The input of models that take a JSON document: nothing in it is made into something else."""


class PlainResult(Mapping[str, Any]):
    """The outputs of a model by name, as plain Python values, and how they came about.

    Numbers and text, or lists of them nested as deep as the tensor has dimensions; for a model of JSON documents
    `result["response"]` is the document. Elements of BYTES that are no text are `{"b64": ...}`; NaN and the infinities
    are the texts `"NaN"`, `"Infinity"` and `"-Infinity"`, which JSON does not have.

    Attributes:
        model: The model that ran.
        version: Its version; 0 if the gateway does not say.
        parameters: What the model answered besides its outputs.
        route: The way that the request took.
        request_id: The request's id, which is in the logs of every node involved.
        gateway: URL of the gateway that answered.
    """

    __slots__ = ("_outputs", "gateway", "model", "parameters", "request_id", "route", "version")

    def __init__(self, answer: NativeAnswer, head: Reply) -> None:
        """Hold an answer and what its head said."""
        self._outputs = answer.outputs
        self.model = answer.model
        self.version = answer.version
        self.parameters: Mapping[str, Scalar] = answer.parameters
        self.route: Route = parse_route(head.headers.get("mesh-route", ""))
        self.request_id = head.headers.get("x-request-id", "")
        self.gateway = head.url

    def __repr__(self) -> str:
        return f"<PlainResult of {self.model} {self.version}: {', '.join(self._outputs)}>"

    def __getitem__(self, name: str) -> Any:
        """Return one output.

        Raises:
            KeyError: naming the outputs that there are.
        """
        try:
            return self._outputs[name]
        except KeyError:
            known = ", ".join(map(repr, self._outputs)) or "none"
            raise KeyError(f"no output {name!r}; there are {known}") from None

    def __iter__(self) -> Iterator[str]:
        """Yield the outputs' names in the model's order."""
        return iter(self._outputs)

    def __len__(self) -> int:
        """Return the number of outputs."""
        return len(self._outputs)


class NativeAnswer(msgspec.Struct):
    """An answer, or a part of one, as the gateway writes it."""

    outputs: dict[str, Any]
    model: str = ""
    version: int = 0
    parameters: dict[str, Scalar] = {}


class _Exact(msgspec.Struct):
    b64: str
    datatype: str
    shape: tuple[int, ...]


def native_inputs(encoded: Encoded) -> dict[str, Any]:
    """Return encoded inputs as the native API takes them."""
    buffers = iter(encoded.buffers)
    inputs: dict[str, Any] = {}
    for item in encoded.described:
        if "data" in item:
            values = [_finite(value) for value in item["data"]]
            inputs[item["name"]] = nested(values, item["shape"])
            continue
        inputs[item["name"]] = {
            "b64": base64.b64encode(next(buffers)).decode(),
            "datatype": item["datatype"],
            "shape": item["shape"],
        }
    return inputs


def _finite(value: Any) -> Any:
    """Return a number as strict JSON has it: NaN and the infinities are texts."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain(name: str, value: Any) -> Any:
    """Return an input as JSON can carry it: in the lists of a tensor, NaN and the infinities become texts.

    Raises:
        InvalidRequest: naming the input, if it holds something else that JSON lacks.
    """
    if isinstance(value, list | tuple) and name != DOCUMENT:
        try:
            return [_plain(name, each) for each in value]
        except RecursionError:
            raise InvalidRequest(f"input {name!r} is nested too deeply") from None
    if isinstance(value, float) and name != DOCUMENT:
        return _finite(value)
    try:
        json_bytes(value)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"input {name!r} holds what JSON does not have ({_why(value, error)}); give plain numbers, texts, lists "
            "and maps of them, or use `infer`, which takes arrays and bytes"
        ) from None
    return value


def _why(value: Any, error: InvalidRequest) -> str:
    if isinstance(value, dict | list | tuple | float):
        return str(error).partition(": ")[2]
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def native_document(
    inputs: Mapping[str, Any],
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None,
    *,
    exact: bool = False,
    resume: bool | None = None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Return the body of a native request.

    Args:
        inputs: By name, each as JSON has it.
        outputs: Names of the outputs wanted; empty for all.
        parameters: For the model.
        exact: Whether outputs shall come as bytes with their type.
        resume: Of a stream: whether it waits for a client that lost its connection; None for others.
        timeout_s: Seconds that the model has, in every try; None where `native_call` says what remains.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidRequest(f"inputs must be a map from name to value, and are {inputs!r:.200}")
    document: dict[str, Any] = {"inputs": dict(inputs)}
    if outputs:
        document["outputs"] = names_of("outputs", outputs)
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(f"parameters must be a map from name to value, and are {parameters!r}")
    if parameters:
        document["parameters"] = dict(parameters)
    if exact:
        document["encoding"] = "b64"
    if resume is not None:
        document["resume"] = resume
    if timeout_s is not None:
        document["timeout_s"] = min(timeout_s, MAX_REQUEST_TIMEOUT_S)
    return document


def native_call(
    model: str,
    verb: str,
    document: Mapping[str, Any],
    *,
    version: int | None = None,
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    is_timed: bool = True,
) -> Call:
    """Return the call for a native request.

    Args:
        model: Public name of the model.
        verb: The last part of the path: `infer`, `stream` or `jobs`.
        document: The body.
        version: A version, or None for the newest that is ready.
        request_id: Sent as `X-Request-Id`, if not None.
        headers: Further ones.
        timeout_s: As in `Call`.
        is_timed: Whether the model has as long as the call; its time is added to the body then.

    Raises:
        InvalidRequest: if the name or the id is none, or the body cannot be JSON.
    """
    own = {"Content-Type": "application/json", **(headers or {})}
    if request_id is not None:
        own["X-Request-Id"] = checked_id(request_id)
    body = {**document} if version is None else {**document, "version": version}
    try:
        text = json_bytes(body)  # is refused before anything is sent
    except InvalidRequest:
        body["inputs"] = {name: _plain(name, each) for name, each in body["inputs"].items()}
        text = json_bytes(body)

    def message(remaining_s: float) -> Message:
        if not is_timed:
            return Message(own, (text,))
        timeout_s = min(remaining_s, MAX_REQUEST_TIMEOUT_S)
        return Message(own, (json_bytes({**body, "timeout_s": timeout_s}),))

    # A request of a sequence that ran twice would count twice in what the model keeps of it.
    repeatable = "sequence_id" not in (document.get("parameters") or {})
    path = f"{mesh_model_path(model)}/{verb}"
    return Call("POST", path, message, repeatable=repeatable, timeout_s=timeout_s)


def predict(
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | None,
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    request_id: str | None,
    timeout_s: float,
    idempotency_key: str | None,
    hints: Hints | None = None,
) -> Flow[PlainResult]:
    """Run a model once on plain values; `MeshClient.predict` says the rest."""
    is_timed = idempotency_key is None
    call = native_call(
        model,
        "infer",
        native_document(inputs, outputs, parameters, timeout_s=None if is_timed else timeout_s),
        version=version,
        request_id=request_id,
        is_timed=is_timed,
    )
    return plain_result((yield from ask(once(hinted(call, hints), idempotency_key))))


def plain_result(reply: Reply) -> PlainResult:
    """Return a complete answer with its outputs as they came.

    Raises:
        ProtocolError: if it is none.
    """
    return PlainResult(read_answer(reply.document(), reply.url), reply)


def exact_result(answer: NativeAnswer, head: Reply) -> InferResult:
    """Return an answer whose outputs came as bytes as arrays.

    Args:
        answer: The answer, or one part of it.
        head: Whose headers came before it.

    Raises:
        ProtocolError: if an output is none.
    """
    arrays = {name: _array(name, value, head.url) for name, value in answer.outputs.items()}
    return InferResult(
        arrays,
        model=answer.model,
        version=answer.version,
        parameters=answer.parameters,
        route=parse_route(head.headers.get("mesh-route", "")),
        request_id=head.headers.get("x-request-id", ""),
        gateway=head.url,
    )


def read_answer(document: object, url: str) -> NativeAnswer:
    """Return a JSON document as an answer or a part of one.

    Raises:
        ProtocolError: if it is none.
    """
    try:
        return msgspec.convert(document, NativeAnswer)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer of {url} is no native answer: {error}") from None


def _array(name: str, value: object, url: str) -> Any:
    try:
        exact = msgspec.convert(value, _Exact)
        data = bytearray(base64.b64decode(exact.b64, validate=True))
    except (msgspec.ValidationError, binascii.Error, ValueError):
        raise ProtocolError(
            f"output {name!r} of {url} is no tensor; a model of JSON documents is asked with `predict`"
        ) from None
    return output_array(name, exact.datatype, exact.shape, data, url)
