"""Requests of the Open Inference Protocol, made of JSON that a person wrote. Pure.

`metadata` is what `GET /v2/models/NAME` answers, a request what `POST .../infer` takes.
"""

from __future__ import annotations

import math
from typing import Any, Final

from meshnode.client.results import ModelMetadata, read_as
from meshnode.client.shapes import describe_specs
from meshnode.client.tensors import encode_inputs
from meshnode.errors import InvalidRequest

Document = dict[str, Any]
"""A JSON object."""

_EXAMPLE_ELEMENTS: Final = 8


def build_request(document: object, metadata: Document) -> Document:
    """Make a request from a JSON document.

    Args:
        document: A whole request (`{"inputs": [...]}`), or a map from input name to data, nested or
            flat; a batch dimension may be left out. For a model with one input, its data alone.
        metadata: The model's metadata.

    Returns:
        The request.

    Raises:
        InvalidRequest: if the document is none of these, or names an input the model does not have.
    """
    specs = metadata_of(metadata).inputs
    if isinstance(document, list) and len(specs) == 1:
        document = {specs[0].name: document}
    if not isinstance(document, dict):
        raise InvalidRequest(
            "the file must hold a request with 'inputs', a map from input name to data, or, for a "
            f"model with one input, a list of its data; this model's inputs are {describe_specs(specs)}"
        )
    if _is_request(document):
        return document
    return {"inputs": encode_inputs(document, str(metadata.get("name")), specs).described}


def metadata_of(document: Document) -> ModelMetadata:
    """Return a model's metadata, typed."""
    return read_as(ModelMetadata, document)


def _is_request(document: Document) -> bool:
    inputs = document.get("inputs")
    return isinstance(inputs, list) and all(
        isinstance(item, dict) and "name" in item for item in inputs
    )


def example_body(metadata: Document) -> Document:
    """Return a small document that `build_request` takes; long inputs are cut short by `...`."""
    return {str(spec["name"]): _example(spec) for spec in metadata.get("inputs", ())}


def _example(spec: Document) -> list[Any]:
    sizes = [max(size, 1) for size in spec["shape"]]
    value: Any = {"BYTES": "text", "BOOL": True}.get(spec["datatype"], 0)
    if spec["datatype"].startswith(("FP", "BF")):
        value = 0.5
    elements = math.prod(sizes)
    if elements <= _EXAMPLE_ELEMENTS:
        return [value] * elements
    return [*[value] * _EXAMPLE_ELEMENTS, "..."]
