"""JSON schemas of the Open Inference Protocol over REST, for the description of the API."""

from __future__ import annotations

from typing import Any, Final

from meshnode.types import DataType

OBJECT: Final[dict[str, Any]] = {"type": "object"}
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_FLAG: Final[dict[str, Any]] = {"type": "boolean"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_SHAPE: Final[dict[str, Any]] = {"type": "array", "items": {"type": "integer"}}
_DATATYPE: Final[dict[str, Any]] = {"enum": [str(each) for each in DataType]}
_PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}


def _object(required: str, /, **members: Any) -> dict[str, Any]:
    """Return the schema of an object; `required` names those members that must be there, between spaces."""
    return {"type": "object", "required": required.split(), "properties": members}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


SERVER: Final = _object(
    "name version extensions", name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
)
LIVE: Final = _object("live", live=_FLAG)
SERVER_READY: Final = _object("ready", ready=_FLAG)
READY: Final = _object("name ready", name=_TEXT, ready=_FLAG)

_SPECIFIED: Final = _object("name datatype shape", name=_TEXT, datatype=_TEXT, shape=_SHAPE)
METADATA: Final = _object(
    "name versions platform inputs outputs",
    name=_TEXT,
    versions=_list(_TEXT),
    platform=_TEXT,
    inputs=_list(_SPECIFIED),
    outputs=_list(_SPECIFIED),
)
CONFIG: Final = _object("name input output", name=_TEXT, input=_list(OBJECT), output=_list(OBJECT))

_TIME: Final = _object("count ns", count=_COUNT, ns=_COUNT)
STATISTICS: Final = _object(
    "model_stats",
    model_stats=_list(
        _object(
            "name version inference_count execution_count inference_stats batch_stats",
            name=_TEXT,
            version=_TEXT,
            last_inference=_COUNT,
            inference_count=_COUNT,
            execution_count=_COUNT,
            inference_stats={"type": "object", "additionalProperties": _TIME},
            response_stats=OBJECT,
            batch_stats=_list(_object("batch_size", batch_size=_COUNT)),
            memory_usage=_list(OBJECT),
        )
    ),
)

_DATA: Final[dict[str, Any]] = {
    "type": "array",
    "description": "The elements, flat or nested as the shape says.",
}
_EXAMPLE: Final = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.5]}
INFER: Final = _object(
    "inputs",
    id=_TEXT,
    parameters=_PARAMETERS,
    inputs={
        **_list(
            _object(
                "name shape datatype data",
                name=_TEXT,
                shape={"type": "array", "items": {"type": "integer", "minimum": 0}},
                datatype=_DATATYPE,
                parameters=_PARAMETERS,
                data=_DATA,
            )
        ),
        "minItems": 1,
    },
    outputs=_list(_object("name", name=_TEXT, parameters=_PARAMETERS)),
) | {"examples": [{"inputs": [_EXAMPLE]}]}
"""The body of an inference whose tensors are in its JSON."""

INFERRED: Final = _object(
    "model_name model_version outputs",
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    parameters=OBJECT,
    outputs=_list(
        _object(
            "name datatype shape",
            name=_TEXT,
            datatype=_DATATYPE,
            shape=_SHAPE,
            parameters=OBJECT,
            data={"type": "array"},
        )
    ),
)

GENERATE: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Members called as the model's inputs are those, all others are parameters.",
    "properties": {"id": _TEXT, "parameters": OBJECT},
}
GENERATED: Final = _object("model_name model_version", model_name=_TEXT, model_version=_TEXT)

INDEX: Final[dict[str, Any]] = {"type": "object", "properties": {"ready": _FLAG}}
INDEXED: Final = _list(
    _object("name version state", name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
)
LOAD: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "parameters": {
            "type": "object",
            "properties": {
                "config": {"type": "string", "description": "A model configuration as JSON."},
                "replicas": {"type": "integer", "minimum": 1},
            },
            "additionalProperties": {"type": "string", "contentEncoding": "base64"},
            "description": "`file:VERSION/NAME` are files in base64.",
        }
    },
}
UNLOAD: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"parameters": {"type": "object", "properties": {"unload_dependents": _FLAG}}},
}

REGIONS: Final = _list(
    _object("name key offset byte_size", name=_TEXT, key=_TEXT, offset=_COUNT, byte_size=_COUNT)
)
"""Registered shared memory."""
