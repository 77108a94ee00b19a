"""Deployed models in the description of the API: the paths of each, with its own input and output."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.gateway.openapi_schemas import (
    B64,
    COMPONENTS,
    DEFINITIONS,
    MovedDefinitions,
    tensor_schema,
)
from meshnode.gateway.protocols.native import EVENT_STREAM
from meshnode.models.execution import Interface
from meshnode.models.media_types import LINES
from meshnode.models.uploads import ANYTHING, Kind, uploads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.uploads import Upload

_JSON: Final = "application/json"
_BASE64: Final = {
    "type": "object",
    "required": ["b64"],
    "properties": {
        "b64": {"type": "string", "contentEncoding": "base64"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
    },
    "additionalProperties": False,
}
_PARAMETERS: Final = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_NATIVE: Final = "/mesh/v1/models/"
_BYTES: Final = "application/octet-stream"
_RESUMED: Final = (("Last-Event-ID", "Of a stream that was cut off: the last id that you saw."),)
_NOT_IN_AN_ID: Final = re.compile(r"[^A-Za-z0-9]+")
_METHODS: Final = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
_NOT_A_MODELS: Final = frozenset({"servers", "security", "callbacks"})
"""Members of an operation that a model has no say in: where calls go, and which keys go with them."""
_SHOWN_BELOW_S: Final = "Seconds until an answer must have begun"


def model_paths(
    manifest: Manifest,
    responses: Callable[[str, Sequence[int]], dict[str, Any]],
    headers_of: Callable[..., list[dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the paths of a model, and the schemas that they refer to.

    Args:
        manifest: The model.
        responses: Returns the answers besides 200 of a path, given statuses beside the usual ones.
        headers_of: Returns the headers that an operation heeds: `meshnode.gateway.openapi.headers_of`.
    """
    name = manifest.model
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    given, made = _documents(manifest, schemas)

    def post(
        path: str, summary: str, body: Any, answer: Any, own: Sequence[tuple[str, str]] = ()
    ) -> None:
        more = () if path.startswith(_NATIVE) else (415,)
        paths[path] = {
            "post": {
                "summary": f"{summary}, version {manifest.version} ({manifest.platform or manifest.runtime})",
                "operationId": f"model_{_NOT_IN_AN_ID.sub('_', path).strip('_')}",
                "tags": [f"Model {name}"],
                "x-meshnode-scope": "infer",
                "parameters": headers_of("POST", own, infers=True),
                "requestBody": {"required": True, "content": body},
                "responses": {
                    **responses(path, more),
                    "200": {"description": "Done", "content": answer},
                },
            }
        }

    body = {_JSON: {"schema": _native_body(manifest, given)}}
    answer = {_JSON: {"schema": _native_answer(manifest, made)}}
    at = f"{_NATIVE}{name}"
    post(f"{at}/infer", f"Run {name}", body, answer)
    post(f"{at}/stream", f"Run and stream {name}", body, {EVENT_STREAM: {}}, _RESUMED)
    if manifest.execution.interface is Interface.HTTP:
        paths |= _own_routes(manifest, schemas)
        return paths, schemas
    body, answer = _endpoint_body(manifest, given), _endpoint_answer(manifest, made)
    for path in filter(None, (f"/inference/{name}", manifest.exposure.path)):
        post(path, f"Ask {name}", body, answer)
    return paths, schemas


def _endpoint_body(manifest: Manifest, document: Any) -> dict[str, Any]:
    """Return what `/inference/NAME` takes, by media type: JSON, and the files that the model takes."""
    schema, uploads = document, uploads_of(manifest)
    if manifest.execution.interface is Interface.TENSORS:
        pictures = {each.name for each in uploads if each.kind is Kind.PICTURE}
        inputs: dict[str, Any] = {
            spec.name: _plain(spec, is_picture=spec.name in pictures) for spec in manifest.inputs
        }
        schema = {
            "type": "object",
            "required": _required(manifest),
            "properties": {"parameters": _PARAMETERS, "stream": {"type": "boolean"}, **inputs},
            "additionalProperties": False,
        }
    content: dict[str, Any] = {_JSON: {"schema": schema}}
    if not uploads:
        return content
    content["multipart/form-data"] = {
        "schema": {"type": "object", "properties": {each.name: _file(each) for each in uploads}}
    }
    for media in {media: None for each in uploads for media in each.media_types}:
        content.setdefault(media if media != ANYTHING else _BYTES, {})
    return content


def _file(upload: Upload) -> dict[str, Any]:
    file = {"type": "string", "format": "binary", "description": ", ".join(upload.media_types)}
    return {"type": "array", "items": file} if upload.several else file


def _endpoint_answer(manifest: Manifest, document: Any) -> dict[str, Any]:
    schema = document
    if manifest.execution.interface is Interface.TENSORS:
        made = {spec.name: tensor_schema(spec) for spec in manifest.outputs}
        schema = {"type": "object", "properties": made}
    return {_JSON: {"schema": schema}, LINES: {}, EVENT_STREAM: {}, "*/*": {}}


def _plain(spec: TensorSpec, *, is_picture: bool) -> dict[str, Any]:
    """Return the schema of a tensor of a plain request: nested lists, or a picture in base64."""
    kinds = [tensor_schema(spec), B64] if is_picture else [tensor_schema(spec)]
    return {"anyOf": kinds, "description": _shown(spec)}


def _required(manifest: Manifest) -> list[str]:
    optional = manifest.execution.optional_inputs
    return [spec.name for spec in manifest.inputs if spec.name not in optional]


def _native_body(manifest: Manifest, document: Any) -> dict[str, Any]:
    inputs = {
        "type": "object",
        "required": _required(manifest),
        "properties": {spec.name: _input(manifest, spec, document) for spec in manifest.inputs},
        "additionalProperties": False,
    }
    names = [spec.name for spec in manifest.outputs]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": inputs,
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": {"enum": names}, "uniqueItems": True},
            "timeout_s": {
                "type": "number", "exclusiveMinimum": 0, "description": _SHOWN_BELOW_S,
            },
            "encoding": {"enum": ["json", "b64"]},
        },
    }  # fmt: skip


def _input(manifest: Manifest, spec: TensorSpec, document: Any) -> Any:
    if manifest.execution.interface is not Interface.TENSORS:
        return document
    return {"anyOf": [tensor_schema(spec), _BASE64], "description": _shown(spec)}


def _native_answer(manifest: Manifest, document: Any) -> dict[str, Any]:
    if manifest.execution.interface is Interface.TENSORS:
        made = {
            spec.name: {"anyOf": [tensor_schema(spec), _BASE64], "description": _shown(spec)}
            for spec in manifest.outputs
        }
    else:
        made = {spec.name: document for spec in manifest.outputs}
    return {
        "type": "object",
        "required": ["model", "version", "outputs"],
        "properties": {
            "model": {"const": manifest.model},
            "version": {"type": "integer"},
            "outputs": {"type": "object", "properties": made},
            "parameters": {"type": "object"},
        },
    }


def _shown(spec: TensorSpec) -> str:
    return f"{spec.datatype} {[*spec.shape]}; -1: any size"


def _documents(manifest: Manifest, schemas: dict[str, Any]) -> tuple[Any, Any]:
    """Return the schemas of what a model takes and gives as documents; `{}` is anything."""
    if manifest.execution.interface is not Interface.JSON:
        return {}, {}
    stated = _stated(manifest)
    return (
        _adopted(stated.get("request", {}), f"{manifest.model}.request", schemas),
        _adopted(stated.get("response", {}), f"{manifest.model}.response", schemas),
    )


def _stated(manifest: Manifest) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(manifest.execution.schema or "{}")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _adopted(schema: Any, name: str, schemas: dict[str, Any]) -> Any:
    """Return a schema whose own definitions have moved to the description's, under names that begin so."""
    if not isinstance(schema, dict):
        return {}
    moved = MovedDefinitions(schema.get("$defs"), DEFINITIONS, name)
    schemas |= moved.schemas()
    return moved.rewritten({key: value for key, value in schema.items() if key != "$defs"})


def _own_routes(manifest: Manifest, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the paths that a model with HTTP routes states, as it states them."""
    stated = _stated(manifest)
    components, paths = stated.get("components", {}), stated.get("paths", {})
    definitions = components.get("schemas") if isinstance(components, dict) else None
    moved = MovedDefinitions(definitions, COMPONENTS, manifest.model)
    schemas |= moved.schemas()
    if not isinstance(paths, dict):
        return {}
    return {
        path: _tagged(moved.rewritten(item), manifest.model)
        for path, item in paths.items()
        if isinstance(item, dict) and path.startswith("/")
    }


def _tagged(item: Mapping[str, Any], model: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        method: {
            **{key: value for key, value in operation.items() if key not in _NOT_A_MODELS},
            "tags": [f"Model {model}"],
            "operationId": f"{model}_{operation.get('operationId', method)}",
        }
        for method, operation in item.items()
        if isinstance(operation, dict) and method in _METHODS
    }
    if isinstance(item.get("parameters"), list):
        found["parameters"] = item["parameters"]
    return found
