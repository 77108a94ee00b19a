"""JSON schemas of models in the description of the API: those of tensors, and those that models state themselves.

What a model states is its author's word. It is told as far as it stays inside the description: a reference to anything
else, such as a URL, is left out, since programs that read descriptions would fetch it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from meshnode.gateway.protocols.tensors import FLOATS
from meshnode.limits import MAX_DESCRIBED_DEPTH
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.manifest import TensorSpec

COMPONENTS: Final = "#/components/schemas/"
DEFINITIONS: Final = "#/$defs/"

B64: Final = {
    "type": "object",
    "required": ["b64"],
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "additionalProperties": False,
}
"""Of bytes in JSON."""
_ELEMENT_BYTES: Final = {"anyOf": [{"type": "string"}, B64]}
_LARGEST: Final = {DataType.FP16: 65504.0, DataType.BF16: 3.3e38, DataType.FP32: 3.4e38}
_REFERENCE: Final = "$ref"
_BASES: Final = frozenset({"$id", "$schema", "$anchor", "$dynamicAnchor", "$dynamicRef", "$vocabulary"})  # fmt: skip
"""Members that change what references mean, or are references of another kind."""
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


def tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    """Return the schema of a tensor as nested lists."""
    schema: dict[str, Any] = _element(spec.datatype)
    for size in reversed(spec.shape):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def _element(datatype: DataType) -> dict[str, Any]:
    if datatype is DataType.BYTES:
        return dict(_ELEMENT_BYTES)
    if datatype is DataType.BOOL:
        return {"type": "boolean"}
    if datatype in FLOATS:
        number: dict[str, Any] = {"type": "number"}
        if datatype in _LARGEST:
            number |= {"minimum": -_LARGEST[datatype], "maximum": _LARGEST[datatype]}
        return {"anyOf": [number, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    bits = 8 * (datatype.size_bytes or 0)
    low, high = (
        (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    return {"type": "integer", "minimum": low, "maximum": high}


class MovedDefinitions:
    """Definitions that a model states, and where they have moved in the description."""

    def __init__(self, definitions: object, prefix: str, name: str) -> None:
        """Move them.

        Args:
            definitions: By name; anything else than an object is none.
            prefix: What references to them begin with, such as `#/$defs/`.
            name: What their names in the description begin with.
        """
        self._found = definitions if isinstance(definitions, dict) else {}
        self._prefix = prefix
        self._names: dict[str, str] = {}
        for each in self._found:
            found = f"{name}.{_NOT_IN_A_NAME.sub('_', each)}"
            while found in self._names.values():
                found += "_"
            self._names[each] = found

    def __repr__(self) -> str:
        return f"<MovedDefinitions {sorted(self._names.values())}>"

    def schemas(self) -> dict[str, Any]:
        """Return the definitions by their names in the description."""
        return {self._names[each]: self.rewritten(value) for each, value in self._found.items()}

    def rewritten(self, value: Any, depth: int = 0) -> Any:
        """Return a schema, or anything with schemas in it, whose references lead to where definitions are now."""
        if depth > MAX_DESCRIBED_DEPTH:
            return {}
        if isinstance(value, list):
            return [self.rewritten(each, depth + 1) for each in value]
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for key, each in value.items():
            if isinstance(each, str) and (key == _REFERENCE or key in _BASES):
                moved = self._moved(each) if key == _REFERENCE else None
                if moved is not None:
                    found[key] = moved
            elif key == "discriminator" and isinstance(each, dict):
                found[key] = self._discriminator(each)
            else:
                found[key] = self.rewritten(each, depth + 1)
        return found

    def _discriminator(self, value: Mapping[str, Any]) -> dict[str, Any]:
        mapping = value.get("mapping")
        if not isinstance(mapping, dict):
            return dict(value)
        moved = {kind: self._moved(each) for kind, each in mapping.items() if isinstance(each, str)}
        return {**value, "mapping": {kind: each for kind, each in moved.items() if each}}

    def _moved(self, reference: str) -> str | None:
        """Return where a reference leads now; None if it does not lead to one of the definitions."""
        if not reference.startswith(self._prefix):
            return None
        name, slash, rest = reference.removeprefix(self._prefix).partition("/")
        found = self._names.get(unquote(name).replace("~1", "/").replace("~0", "~"))
        return None if found is None else f"{COMPONENTS}{found}{slash}{rest}"
