"""Triton's system shared memory over REST: tensors of a request and its answer that lie in regions, not in bodies.

A request that names regions is rewritten into one that has the tensors as binary data, and its answer likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols import oip
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.types import ResponsePart

if TYPE_CHECKING:
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.grpc_messages import Regions
    from meshnode.gateway.protocols.oip import AnswerForm
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, Tensor

_LENGTH: Final = "inference-header-content-length"
REGION: Final = "shared_memory_region"
"""The parameter that names a region."""


class _Place(NamedTuple):
    region: str
    offset: int
    size_bytes: int


class _Form(NamedTuple):
    plain: AnswerForm
    places: dict[str, _Place]


class SharedOip:
    """The dialect of `…/infer` for callers who may name regions."""

    def __init__(self, regions: Regions) -> None:
        """Read and write these."""
        self._regions = regions

    def __repr__(self) -> str:
        return f"<SharedOip of {self._regions!r}>"

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for; see `Dialect.decode`."""
        http = asked.http
        view = memoryview(http.body)
        text = http.headers.get(_LENGTH, str(view.nbytes))
        length = int(text) if text.isascii() and text.isdigit() and len(text) < 11 else view.nbytes
        try:
            body = msgspec.json.decode(view[:length], type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the body is no inference request: {error}") from error
        binary = self._binary(_listed(body, "inputs"), view[length:])
        places = _places(_listed(body, "outputs"))
        header = msgspec.json.encode(body)
        headers = {**http.headers, _LENGTH: str(len(header))}
        plain = msgspec.structs.replace(http, headers=headers, body=header + binary)
        oip.refuse_parts(manifest)
        request, form = oip.decode_infer(plain, manifest, manifest.version, request_id, trace)
        return Call(request, _Form(msgspec.structs.replace(form, coding=""), places))

    def encode(self, response: InferResponse, part: ResponsePart, form: _Form) -> HttpResponse:
        """Return an answer of one part, after its tensors were put where they are wanted."""
        rest = tuple(each for each in part.outputs if each.name not in form.places)
        answer = oip.encode(response, ResponsePart(rest, part.parameters), form.plain)
        pieces: list[Buffer] = [answer.body] if isinstance(answer.body, bytes) else [*answer.body]
        document = msgspec.json.decode(pieces[0])
        told = {each["name"]: each for each in document["outputs"]}
        for tensor in part.outputs:
            if tensor.name in form.places:
                told[tensor.name] = self._put(tensor, form.places[tensor.name])
        document["outputs"] = [told[tensor.name] for tensor in part.outputs]
        pieces[0] = msgspec.json.encode(document)
        headers = {**JSON_HEADERS, **answer.headers}
        if len(pieces) > 1:
            headers["Inference-Header-Content-Length"] = str(len(pieces[0]))
        return HttpResponse(200, headers, pieces)

    def _binary(self, inputs: list[dict[str, Any]], rest: memoryview) -> bytes:
        """Return the data of all inputs that have none in the JSON, which then say its length."""
        found = []
        used = 0
        for each in inputs:
            parameters = each.get("parameters") or {}
            place = _place(each.get("name"), parameters)
            if place is not None:
                data: Buffer = self._regions.read(*place)
                each["parameters"] = {"binary_data_size": len(data)}
                found.append(data)
            elif isinstance(size := parameters.get("binary_data_size"), int) and size >= 0:
                found.append(rest[used : used + size])
                used += size
        return b"".join([*found, rest[used:]])

    def _put(self, tensor: Tensor, place: _Place) -> dict[str, Any]:
        if tensor.size_bytes > place.size_bytes:
            raise InvalidRequest(
                f"output {tensor.name!r} has {tensor.size_bytes} bytes, and {place.size_bytes} of shared memory region "
                f"{place.region!r} are for it"
            )
        self._regions.write(place.region, place.offset, tensor.data)
        parameters = {REGION: place.region, "shared_memory_byte_size": tensor.size_bytes}
        if place.offset:
            parameters["shared_memory_offset"] = place.offset
        return {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": parameters,
        }


def _listed(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = body.get(name) or []
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("parameters") or {}, dict) for each in found
    ):
        raise InvalidRequest(
            f"the body is no inference request: {name} must be an array of objects"
        )
    return found


def _places(outputs: list[dict[str, Any]]) -> dict[str, _Place]:
    """Return where outputs are wanted, which are asked for as binary data."""
    places = {}
    for each in outputs:
        place = _place(each.get("name"), each.get("parameters") or {})
        if place is not None:
            places[str(each.get("name"))] = place
            each["parameters"] = {"binary_data": True}
    return places


def _place(name: object, parameters: dict[str, Any]) -> _Place | None:
    if REGION not in parameters:
        return None
    region = parameters[REGION]
    size = parameters.get("shared_memory_byte_size")
    offset = parameters.get("shared_memory_offset", 0)
    if (
        not isinstance(region, str)
        or type(size) is not int
        or type(offset) is not int
        or min(size, offset) < 0
    ):
        raise InvalidRequest(
            f"tensor {str(name)[:80]!r}: {REGION} is a text, shared_memory_byte_size and shared_memory_offset are "
            "numbers of bytes"
        )
    return _Place(region, offset, size)
