"""The description of the HTTP API in OpenAPI 3.1: `/openapi.json`.

It is made from the operations that stand beside the routes, so that none is forgotten, and from the models that are
deployed at this moment, each with its own input and output (`meshnode.gateway.openapi_models`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.gateway.openapi_models import model_paths
from meshnode.gateway.protocols.hints import HEADERS as HINT_HEADERS
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.gateway.operations import Operation
    from meshnode.gateway.protocols.status import ErrorForm
    from meshnode.models.manifest import Manifest

OPENAPI_VERSION: Final = "3.1.0"
_SCHEMAS: Final = "#/components/schemas/{name}"
_IN_PATH: Final = re.compile(r"\{([A-Za-z_]+)\}")
_EVERYWHERE: Final = {
    400: "The request is malformed",
    401: "The call needs an API key, or the one that came is wrong",
    403: "The caller may not do this",
    404: "There is no such thing",
    405: "The path does not take this method",
    408: "The body arrives too slowly",
    413: "The body is too large",
    422: "The Idempotency-Key came with another body before",
    429: "Too many calls, or full queues; Retry-After says when to ask again",
    431: "The headers are too large",
    503: "The mesh cannot answer now: no replica, full queues, or the deadline passed",
}
_SOMEWHERE: Final = {
    409: "It is not finished",
    410: "It is gone",
    411: "The body's length is missing",
    415: "The media type is not one that is taken",
    500: "The model failed",
    501: "A mesh does not do this",
    504: "Cache-Control: only-if-cached, and no answer is kept",
    507: "There is no room",
}
OF_INFERENCES: Final = (500, 504)
"""What else every operation may answer with that runs a model; the formats of bodies that it takes are its own."""
_JOB: Final = {
    "description": "It has become a job, as `Prefer: respond-async` asked; Location says where it is",
    "headers": {"Location": {"schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"type": "object", "required": ["id", "status"]}}},
}
_IDEMPOTENCY_KEY: Final = (
    "Idempotency-Key",
    "A text of your own: a repetition with the same one gets the first answer, and nothing runs twice.",
)
_INFERENCE_HEADERS: Final = (
    ("Prefer", "`respond-async`: make a job of it, and answer at once."),
    ("Cache-Control", "`no-cache`, `no-store`, `max-age=SECONDS` or `only-if-cached`, of answers that are kept."),
    ("Mesh-Webhook", "Of a job: the URL that is told when it has ended."),
    *HINT_HEADERS,
)  # fmt: skip
_DESCRIPTION: Final = (
    "The HTTP API of a meshnode mesh; any node answers for all of them. Programs on the node's own machine need no "
    "key to infer and read; everything else needs an API key (`meshnode keys create NAME`) whose scope is at least the "
    "one that `x-meshnode-scope` names: infer, deploy, admin. `owner` is the control channel of the node's own machine."
)


def describe(
    operations: Iterable[Operation],
    manifests: Sequence[Manifest],
    form_of: Callable[[str], ErrorForm],
    version: str,
) -> dict[str, Any]:
    """Return the description.

    Args:
        operations: Of all routes.
        manifests: The models to describe, one version of each.
        form_of: Returns how errors are told at a path.
        version: Of the program.
    """
    operations = list(operations)
    kinds = [each for operation in operations for each in (operation.body, operation.answer)]
    schemas, components = _schemas([each for each in kinds if _is_type(each)])
    errors = _Errors(form_of)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        shown = _operation(operation, schemas, errors)
        paths.setdefault(operation.path, {})[operation.method.lower()] = shown
    for manifest in sorted(manifests, key=lambda each: each.model):
        own_paths, own_schemas = model_paths(manifest, errors.inference, headers_of)
        for path, item in own_paths.items():
            paths.setdefault(path, item)
        components |= own_schemas
    _tell_apart(paths)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "meshnode", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": _tags(operations, manifests),
        "paths": paths,
        "components": {
            "schemas": {**components, **errors.schemas},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _tell_apart(paths: dict[str, dict[str, Any]]) -> None:
    """Give each operation an id that no other has: what models state, and paths that deployers choose, may agree."""
    taken: set[str] = set()
    for item in paths.values():
        for operation in item.values():
            if not isinstance(operation, dict):
                continue
            wished = str(operation.get("operationId", "operation"))
            found, number = wished, 1
            while found in taken:
                number += 1
                found = f"{wished}_{number}"
            taken.add(found)
            operation["operationId"] = found


def _tags(operations: Iterable[Operation], manifests: Iterable[Manifest]) -> list[dict[str, str]]:
    names = dict.fromkeys(operation.tag for operation in operations)
    models = sorted(manifest.model for manifest in manifests)
    return [
        *({"name": f"Model {model}", "description": "A deployed model"} for model in models),
        *({"name": name} for name in names),
    ]


def _is_type(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, dict)


def _schemas(kinds: list[Any]) -> tuple[dict[int, Any], dict[str, Any]]:
    """Return the schema of each type, by the type's identity, and what they refer to."""
    found, components = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS)
    return {id(kind): schema for kind, schema in zip(kinds, found, strict=True)}, components


class _Errors:
    """The answers of what fails, in the words of each dialect."""

    def __init__(self, form_of: Callable[[str], ErrorForm]) -> None:
        self._form_of = form_of
        self.schemas: dict[str, Any] = {}

    def responses(self, path: str, more: Sequence[int] = ()) -> dict[str, Any]:
        """Return the responses of an operation at a path; `more` are statuses beside the usual."""
        form = self._form_of(path.replace("{", "").replace("}", ""))
        reference = self._reference(_schema_of(form.document(400, "a sentence", "invalid_request")))
        statuses = {**_EVERYWHERE, **{each: _SOMEWHERE.get(each, "Refused") for each in more}}
        return {
            str(status): {
                "description": statuses[status],
                "content": {"application/json": {"schema": reference}},
            }
            for status in sorted(statuses)
        }

    def inference(self, path: str, more: Sequence[int] = ()) -> dict[str, Any]:
        """Return the responses of an operation that runs a model, besides what it answers itself."""
        return {"202": _JOB, **self.responses(path, (*more, *OF_INFERENCES))}

    def _reference(self, schema: dict[str, Any]) -> dict[str, str]:
        name = next((each for each, known in self.schemas.items() if known == schema), "")
        if not name:
            name = f"Error{len(self.schemas) + 1}"
            self.schemas[name] = schema
        return {"$ref": _SCHEMAS.format(name=name)}


def _schema_of(sample: object) -> dict[str, Any]:
    """Return a schema that a document like this sample has; a null may be a text."""
    match sample:
        case dict():
            properties = {str(name): _schema_of(value) for name, value in sample.items()}
            return {"type": "object", "required": [*properties], "properties": properties}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case str():
            return {"type": "string"}
        case None:
            return {"type": ["string", "null"]}
    return {}


def _operation(operation: Operation, schemas: dict[int, Any], errors: _Errors) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "tags": [operation.tag],
        "x-meshnode-scope": str(operation.scope),
    }
    parameters = [_in_path(name) for name in _IN_PATH.findall(operation.path)]
    parameters += [_in_query(name, description) for name, description in operation.query]
    parameters += headers_of(operation.method, operation.headers, infers=operation.infers)
    if parameters:
        shown["parameters"] = parameters
    if operation.body is not None or operation.body_types != ("application/json",):
        content = _content(operation.body, operation.body_types, schemas)
        is_required = operation.body is not None and not operation.body_optional
        shown["requestBody"] = {"content": content, "required": is_required}
    content = _content(operation.answer, operation.media_types, schemas)
    good: dict[str, Any] = {"description": "Done", "content": content}
    refused = errors.inference if operation.infers else errors.responses
    answers = {**refused(operation.path, operation.errors), str(operation.status): good}
    for status in operation.also:
        refusal = answers.get(str(status))
        answers[str(status)] = good if refusal is None else _either(good, refusal)
    if operation.scope is Scope.OWNER:
        shown["description"] = "Only on the control channel of the node's own machine."
    return {**shown, "responses": dict(sorted(answers.items()))}


def _either(good: dict[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """Return a response that is one of two."""
    one, other = (each["content"]["application/json"]["schema"] for each in (good, refusal))
    content = {"application/json": {"schema": {"anyOf": [one, other]}}}
    return {"description": refusal["description"], "content": content}


def headers_of(
    method: str, own: Sequence[tuple[str, str]] = (), *, infers: bool
) -> list[dict[str, Any]]:
    """Return the headers that an operation heeds, as parameters: its own, and those of all of its kind."""
    found = [*own]
    if method == "POST":
        found.append(_IDEMPOTENCY_KEY)
    if infers:
        found += _INFERENCE_HEADERS
    return [_in_header(name, description) for name, description in found]


def _content(kind: Any, media_types: Sequence[str], schemas: dict[int, Any]) -> dict[str, Any]:
    schema = _schema(kind, schemas)
    return {
        media: {"schema": schema} if media.endswith(("/json", "+json")) else {}
        for media in media_types
    }


def _schema(kind: Any, schemas: dict[int, Any]) -> Any:
    if kind is None:
        return {}
    return kind if isinstance(kind, dict) else schemas[id(kind)]


def _operation_id(operation: Operation) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", operation.path).strip("_")
    return f"{operation.method.lower()}_{words}"


def _in_path(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 128}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name.removesuffix("*"),
        "in": "query",
        "required": name.endswith("*"),
        "description": description,
        "schema": {"type": "string"},
    }


def _in_header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "maxLength": 128}
    return {
        "name": name, "in": "header", "required": False, "description": description, "schema": schema,
    }  # fmt: skip
