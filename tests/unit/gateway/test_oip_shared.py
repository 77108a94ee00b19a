"""Requests whose tensors lie in shared memory, in the protocol's JSON."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.oip_shared import SharedOip
from meshnode.types import DataType, InferResponse, ResponsePart, Tensor
from tests.unit.gateway.conftest import spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.manifest import Manifest
    from meshnode.types import Buffer


class Regions:
    """One region, `r`."""

    def __init__(self) -> None:
        self.content = bytearray(struct.pack("<8f", *range(8)))

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        assert name == "r"
        return bytes(self.content[offset : offset + size_bytes])

    def write(self, name: str, offset: int, data: Buffer) -> None:
        assert name == "r"
        self.content[offset : offset + len(data)] = data


def place(offset: Any = 0, size: Any = 16) -> dict[str, Any]:
    return {
        "shared_memory_region": "r",
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }


def asked(body: Any, tail: bytes = b"") -> Asked:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(text))} if tail else {}
    return Asked(HttpRequest("POST", "/v2/models/digits/infer", "", headers, text + tail), "digits")


def test_shared_and_sent_tensors_may_be_mixed(make_manifest: Callable[..., Manifest]) -> None:
    regions = Regions()
    dialect = SharedOip(regions)
    manifest = make_manifest(spec("x", (-1, 4)), spec("y", (-1, 4)))
    body = {
        "inputs": [
            {"name": "y", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
            {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": place(16)},
        ],
        "outputs": [{"name": "x", "parameters": place(0)}, {"name": "y", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    sent = struct.pack("<4f", 9, 9, 9, 9)
    call = dialect.decode(asked(body, sent), manifest, "r1", None)
    inputs = {each.name: bytes(each.data) for each in call.request.inputs}
    assert inputs == {"x": struct.pack("<4f", 4, 5, 6, 7), "y": sent}
    outputs = tuple(Tensor(name, DataType.FP32, (1, 4), sent) for name in ("x", "y"))
    answer = dialect.encode(
        InferResponse("digits", 1, ResponsePart(())), ResponsePart(outputs), call.form
    )
    assert isinstance(answer.body, list)
    told = json.loads(bytes(answer.body[0]))["outputs"]
    assert told[0]["parameters"] == {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    assert told[1]["parameters"] == {"binary_data_size": 16}
    assert answer.headers["Inference-Header-Content-Length"] == str(len(answer.body[0]))
    assert bytes(regions.content[:16]) == sent


def test_an_output_must_fit_its_place(manifest: Manifest) -> None:
    body = {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": place()}],
        "outputs": [{"name": "x", "parameters": place(0, 8)}],
    }
    dialect = SharedOip(Regions())
    call = dialect.decode(asked(body), manifest, "r1", None)
    part = ResponsePart((Tensor("x", DataType.FP32, (1, 4), bytes(16)),))
    with pytest.raises(InvalidRequest, match="16 bytes, and 8"):
        dialect.encode(InferResponse("digits", 1, part), part, call.form)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", {"inputs": 7}, {"inputs": [7]}, {"inputs": [{"parameters": 7}]}]
    + [
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": each}]}
        for each in (place("0"), place(-1), place(0, None), place(0, 4))
    ],
)
def test_malformed_places_are_refused(manifest: Manifest, body: Any) -> None:
    with pytest.raises(InvalidRequest):
        SharedOip(Regions()).decode(asked(body), manifest, "r1", None)
