"""The routes of TensorFlow Serving's REST API, below `/v1/models/`, where OpenAI's clients ask for models too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from meshnode.gateway.matching import Methods, RouteSet, get, infer, unknown, version_of
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols import tfserving, tfserving_metadata
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.protocols.openai_errors import OPENAI
from meshnode.gateway.protocols.openai_models import model_object
from meshnode.gateway.protocols.status import ErrorForm, HttpRefusal

if TYPE_CHECKING:
    from meshnode.gateway.inference import Inference
    from meshnode.gateway.matching import Reply
    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse

_MODELS: Final = "/v1/models/"
_TAG: Final = "TensorFlow Serving"
_NEWEST: Final = frozenset({"stable", "latest"})


class _Place(NamedTuple):
    """What a path below `/v1/models/` names.

    Attributes:
        model: The model's name.
        version: The version that it insists on, or None.
        verb: What follows the colon; empty without one.
        is_metadata: Whether the path ends in `/metadata`.
        is_one: Whether it is about one version, named or labelled.
    """

    model: str
    version: int | None
    verb: str
    is_metadata: bool = False
    is_one: bool = False


class TensorFlowServingRoutes:
    """Answers below `/v1/models/`."""

    def __init__(self, inference: Inference, control: MeshControl) -> None:
        """Answer from these."""
        self._inference = inference
        self._control = control
        self._dialects = {verb: tfserving.TensorFlowServing(verb) for verb in tfserving.VERBS}

    def __repr__(self) -> str:
        return f"<TensorFlowServingRoutes of {self._inference!r}>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        return RouteSet({}, {_MODELS: self._model}, frozenset({_MODELS}), _OPERATIONS)

    def _model(self, path: str) -> Methods:
        place = _place(path)
        if place.verb:
            return infer(lambda http, request_id: self._infer(place, http, request_id))
        if place.is_metadata:
            return get(lambda: self._metadata(place))
        if place.is_one:
            return get(lambda: json_response(self._status(place)))
        return get(lambda: self._both(place))

    def _infer(self, place: _Place, http: HttpRequest, request_id: str) -> Reply:
        dialect = self._dialects[place.verb]
        return self._inference.answer(dialect, Asked(http, place.model, place.version), request_id)

    def _metadata(self, place: _Place) -> HttpResponse:
        return json_response(
            tfserving_metadata.metadata(self._control.manifest(place.model, place.version))
        )

    def _status(self, place: _Place) -> dict[str, object]:
        view = self._control.model(place.model)
        versions = view["versions"]
        if place.is_one:
            versions = [self._control.manifest(place.model, place.version).version]
        states = tfserving_metadata.version_status(versions, view["replicas"])
        return {"model_version_status": states}

    def _both(self, place: _Place) -> HttpResponse:
        """Answer what OpenAI's clients and TensorFlow Serving's ask at the same path."""
        states = self._status(place)
        manifest = self._inference.pipeline.announced(place.model, None)
        return json_response({**model_object(place.model, manifest), **states})


def v1_error_form(path: str) -> ErrorForm:
    """Return how errors are told at a path below `/v1/`: as OpenAI, but for TensorFlow Serving's own paths."""
    if not path.startswith(_MODELS):
        return OPENAI
    named, verb = _verb_apart(path.removeprefix(_MODELS).rstrip("/"))
    return tfserving.ERRORS if verb or "/" in named else OPENAI


def _verb_apart(rest: str) -> tuple[str, str]:
    """Return what stands before `:VERB`, and the verb; it is empty if none of TensorFlow Serving's is there.

    Models may have colons and slashes in their names, as `llama3:8b` and `org%2Fmodel`: OpenAI's clients ask for them too.
    """
    for colon in (":", "%3A", "%3a"):
        named, found, verb = rest.rpartition(colon)
        if found and verb in tfserving.VERBS:
            return named, verb
    return rest, ""


def _place(path: str) -> _Place:
    """Read `M[/versions/N | /labels/L][:verb | /metadata]`.

    Raises:
        HttpRefusal: if it is something else.
        InvalidRequest: if the version is none.
    """
    named, verb = _verb_apart(path.removeprefix(_MODELS))
    parts = named.split("/")
    if parts[-1] == "" and len(parts) > 1:
        parts.pop()  # a slash at the end
    is_metadata = len(parts) in (2, 4) and parts[-1] == "metadata"
    if is_metadata:
        parts.pop()
    if not parts[0] or (verb and is_metadata):
        raise unknown(path)
    match [unquote(part) for part in parts[1:]]:
        case []:
            version = None
        case ["versions", text]:
            version = version_of(text)
        case ["labels", text]:
            version = _labelled(text)
        case _:
            raise unknown(path)
    return _Place(unquote(parts[0]), version, verb, is_metadata, is_one=len(parts) > 1)


def _labelled(label: str) -> int | None:
    """Return the version that a label stands for; None for the newest one that is ready.

    Raises:
        HttpRefusal: if nothing is labelled so.
    """
    if label in _NEWEST:
        return None
    if "_" not in label:
        raise HttpRefusal(
            404,
            f"no version has the label {label[:40]!r}: labels are {' and '.join(sorted(_NEWEST))} for the newest version, "
            "and moments such as 20260131_120000",
        )
    return version_of(label)


_VALUES: Final = {
    "oneOf": [
        {
            "type": "object",
            "required": ["instances"],
            "properties": {"instances": {"type": "array", "minItems": 1}},
        },
        {"type": "object", "required": ["inputs"]},
    ]
}
_EXAMPLES: Final = {
    "type": "object",
    "required": ["examples"],
    "properties": {
        "context": {"type": "object"},
        "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    },
}
_ANSWER: Final = {"type": "object"}
_SUMMARIES: Final = {
    "predict": "Run a model on rows or columns of values",
    "classify": "Ask a model for the scores of classes",
    "regress": "Ask a model for one number per example",
}
_PLACES: Final = ("{model}", "{model}/versions/{version}", "{model}/labels/{label}")


def _operations() -> list[Operation]:
    made = []
    for place in _PLACES:
        path = f"{_MODELS}{place}"
        sample = path.replace("{version}", "1").replace("{label}", "stable")
        status = "A model, as OpenAI and TensorFlow Serving tell it"
        if place != "{model}":
            status = "The state of a model version"
        made += [
            Operation("GET", path, status, _TAG, answer=_ANSWER, schema_path=sample),
            Operation(
                "GET", f"{path}/metadata", "A model's signature", _TAG, answer=_ANSWER,
                schema_path=f"{sample}/metadata",
            ),
        ]  # fmt: skip
        made += [
            Operation(
                "POST", f"{path}:{verb}", summary, _TAG,
                body=_VALUES if verb == "predict" else _EXAMPLES, answer=_ANSWER,
                infers=True, schema_path=f"{sample}:{verb}",
            )
            for verb, summary in _SUMMARIES.items()
        ]  # fmt: skip
    return made


_OPERATIONS: Final = tuple(_operations())
