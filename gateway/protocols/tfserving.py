"""TensorFlow Serving's REST API: `:predict`, `:classify` and `:regress`.

    {"instances": [row, ...]}            ─> {"predictions": [row, ...]}      row format
    {"inputs": value or {name: value}}   ─> {"outputs": value or {...}}      column format
    {"examples": [{feature: value}]}     ─> {"results": [...]}               classify, regress

A row, or a value, of a model with one input needs no name; a single output loses its name. A model here has one
signature, `serving_default`. `context` of a classification has features that all examples share.

Classification needs scores: an output called `scores`, or the only one of floats, of shape [examples, classes]. Labels
are an output called `classes`; without one a class is called by its place. Regression needs the only output of floats,
with one number per example.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, Saturated
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.gateway.protocols.status import PLAIN, ErrorForm, status_of
from meshnode.gateway.protocols.tensors import FLOATS
from meshnode.gateway.protocols.tfserving_values import is_binary, tensor_of, value_of
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S, MAX_BODY_BYTES, MAX_REQUEST_TENSORS
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.errors import MeshError
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, ResponsePart, Tensor

SIGNATURE: Final = "serving_default"
VERBS: Final = ("predict", "classify", "regress")

_SCORES: Final = "scores"
_CLASSES: Final = "classes"


class ValuesForm(NamedTuple):
    """How an answer is told.

    Attributes:
        verb: Which of the three.
        rows: Whether predictions are told row by row.
    """

    verb: str
    rows: bool


class TensorFlowServing:
    """The dialect of one verb."""

    def __init__(self, verb: str) -> None:
        """Serve one of `VERBS`."""
        self._verb = verb

    def __repr__(self) -> str:
        return f"<TensorFlowServing {self._verb}>"

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for.

        Raises:
            InvalidRequest: if the request is malformed, or does not fit the model.
        """
        body = _body(asked.http)
        signature = body.get("signature_name")
        if signature not in (None, "", SIGNATURE):
            shown = f", not {signature[:40]!r}" if isinstance(signature, str) else ""
            raise InvalidRequest(
                f"model {manifest.model!r} has the signature {SIGNATURE!r} only{shown}"
            )
        rows = True
        if self._verb == "predict":
            named, rows = _predict_inputs(manifest, body)
            fitted = [tensor_of(_spec(manifest, name), value) for name, value in named.items()]
        else:
            named = _examples(body)
            fitted = [_feature(_spec(manifest, name), value) for name, value in named.items()]
        if len(fitted) > MAX_REQUEST_TENSORS:
            raise InvalidRequest(f"a request has at most {MAX_REQUEST_TENSORS} inputs")
        request = InferRequest(
            manifest.model, tuple(fitted), manifest.version, (), request_id, {},
            DEFAULT_REQUEST_TIMEOUT_S, trace,
        )  # fmt: skip
        return Call(request, ValuesForm(self._verb, rows))

    def encode(self, response: InferResponse, part: ResponsePart, form: ValuesForm) -> HttpResponse:
        """Return a complete answer of one part.

        Raises:
            InvalidRequest: if the model's outputs cannot be told in this form.
        """
        outputs = part.outputs
        if form.verb == "classify":
            document: dict[str, Any] = {"results": _classes(response.model, outputs)}
        elif form.verb == "regress":
            document = {"results": _numbers(response.model, outputs)}
        elif form.rows:
            document = {"predictions": _rows(response.model, outputs)}
        else:
            values = {tensor.name: value_of(tensor) for tensor in outputs}
            document = {"outputs": next(iter(values.values())) if len(values) == 1 else values}
        text = msgspec.json.encode(document)
        if b"null" in text:  # NaN and infinities, which TensorFlow Serving writes as literals
            text = json.dumps(document, separators=(",", ":")).encode()
        return HttpResponse(200, JSON_HEADERS, text)


def _status(error: MeshError) -> int:
    if isinstance(error, Saturated):
        return 429
    if isinstance(error, DeadlineExceeded):
        return 504
    return status_of(error)


ERRORS: Final = ErrorForm(PLAIN.document, _status)
"""`{"error": sentence}`; a full queue is 429 (RESOURCE_EXHAUSTED), a passed deadline 504."""


def _body(http: HttpRequest) -> dict[str, Any]:
    body: Buffer = http.body
    coding = http.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        body = decompress(body, coding, MAX_BODY_BYTES)
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        plain = bytes(body)
        if b"NaN" not in plain and b"Infinity" not in plain:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        try:
            document = json.loads(plain)  # which takes the literals
        except (ValueError, RecursionError) as failure:
            raise InvalidRequest(f"the body is not JSON: {failure}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return document


def _predict_inputs(manifest: Manifest, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the values of inputs by name, and whether they came row by row."""
    by_row, by_column = "instances" in body, "inputs" in body
    if by_row == by_column:
        raise InvalidRequest("a prediction has either instances, row by row, or inputs, by name")
    if by_column:
        inputs = body["inputs"]
        if isinstance(inputs, dict) and not is_binary(inputs):
            return inputs, False
        return {_only_input(manifest).name: inputs}, False
    instances = body["instances"]
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest("instances must be a list of at least one row")
    if not isinstance(instances[0], dict) or is_binary(instances[0]):
        return {_only_input(manifest).name: instances}, True
    return _columns(instances, "instances"), True


def _columns(rows: Sequence[Any], what: str) -> dict[str, list[Any]]:
    """Return rows of named values as one list of values for each name."""
    first = rows[0]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != first.keys():
            raise InvalidRequest(
                f"{what}[{index}] must be an object with the same names as the first: "
                f"{', '.join(map(repr, first))[:400]}"
            )
    return {name: [row[name] for row in rows] for name in first}


def _examples(body: dict[str, Any]) -> dict[str, Any]:
    examples = body.get("examples")
    if not isinstance(examples, list) or not examples:
        raise InvalidRequest("examples must be a list of at least one object of features")
    context = body.get("context", {})
    if not isinstance(context, dict) or not all(isinstance(each, dict) for each in examples):
        raise InvalidRequest("context and examples are objects of features")
    return _columns([{**context, **example} for example in examples], "examples")


def _only_input(manifest: Manifest) -> TensorSpec:
    optional = manifest.execution.optional_inputs
    needed = [spec for spec in manifest.inputs if spec.name not in optional]
    if len(needed) != 1:
        names = ", ".join(repr(spec.name) for spec in manifest.inputs)
        raise InvalidRequest(
            f"model {manifest.model!r} has several inputs, so values need their names: {names}"
        )
    return needed[0]


def _spec(manifest: Manifest, name: str) -> TensorSpec:
    spec = next((spec for spec in manifest.inputs if spec.name == name), None)
    if spec is None:
        names = ", ".join(repr(spec.name) for spec in manifest.inputs)
        raise InvalidRequest(
            f"model {manifest.model!r} has no input {name[:80]!r}; its inputs are {names}"
        )
    return spec


def _feature(spec: TensorSpec, value: Any) -> Tensor:
    """Return a feature of examples: one value each is [examples] or [examples, 1], as the model has it."""
    tensor = tensor_of(spec, value)
    shape = tensor.shape
    if len(shape) + 1 == len(spec.shape):
        return msgspec.structs.replace(tensor, shape=(*shape, 1))
    if len(shape) == len(spec.shape) + 1 and shape[-1] == 1:
        return msgspec.structs.replace(tensor, shape=shape[:-1])
    return tensor


def _rows(model: str, outputs: Sequence[Tensor]) -> list[Any]:
    counts = {tensor.shape[0] if tensor.shape else -1 for tensor in outputs}
    if len(counts) != 1 or -1 in counts:
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in outputs)
        raise InvalidRequest(
            f"the outputs of model {model!r} ({shapes}) do not have as many rows each; ask with inputs, in column format"
        )
    values = [value_of(tensor) for tensor in outputs]
    if len(values) == 1:
        (rows,) = values
        return list(rows)
    names = [tensor.name for tensor in outputs]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _classes(model: str, outputs: Sequence[Tensor]) -> list[list[list[Any]]]:
    scores = next((each for each in outputs if each.name == _SCORES), None) or _floats(
        model, outputs, "classification"
    )
    if len(scores.shape) != 2:
        raise InvalidRequest(
            f"output {scores.name!r} of model {model!r} has shape {list(scores.shape)}; a classification needs one score "
            "for each class of each example"
        )
    values = value_of(scores)
    labels = next((each for each in outputs if each.name == _CLASSES), None)
    if labels is None:
        names = [[str(place) for place in range(scores.shape[1])]] * scores.shape[0]
    elif labels.shape == scores.shape:
        names = [[str(label) for label in row] for row in value_of(labels)]
    else:
        raise InferenceFailed(f"model {model!r} answered with other numbers of classes and scores")
    return [
        [list(pair) for pair in zip(labels_of, scores_of, strict=True)]
        for labels_of, scores_of in zip(names, values, strict=True)
    ]


def _numbers(model: str, outputs: Sequence[Tensor]) -> list[float]:
    tensor = _floats(model, outputs, "regression")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise InvalidRequest(
            f"output {tensor.name!r} of model {model!r} has shape {list(tensor.shape)}; a regression needs one number for "
            "each example"
        )
    values = value_of(tensor)
    return [value[0] if isinstance(value, list) else value for value in values]


def _floats(model: str, outputs: Sequence[Tensor], what: str) -> Tensor:
    found = [tensor for tensor in outputs if tensor.datatype in FLOATS]
    if len(found) != 1:
        raise InvalidRequest(
            f"model {model!r} has {len(found)} outputs of floats; a {what} needs exactly one: use :predict"
        )
    return found[0]
