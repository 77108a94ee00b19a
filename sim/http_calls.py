"""A scenario's call as an HTTP request, and an HTTP answer as its outcome: for depths B and C.

The dialect is the Open Inference Protocol's REST, which a person types with curl too. Everything here
is pure; the stages have the connections.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from meshnode.client.infer import parse_route
from meshnode.sim.stage import OK, Outcome
from meshnode.sim.stand_in import BODY, WANTED, WORK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.sim.stage import Call


"""Statuses that are no answer of a gateway of ours: none at all, or one of a proxy before it."""

_MICROSECONDS: Final = 1_000_000
_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_F64: Final = struct.Struct("<d")
_I64: Final = struct.Struct("<q")
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A request to any gateway: what follows `http://HOST:PORT`, and the rest of it."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a gateway answered, as outcomes want it; fields as in `Outcome`."""

    code: str
    served_by: str
    attempts: int
    failed_on: tuple[tuple[str, str], ...]
    version: int


def http_call(call: Call, timeout_s: float | None = None) -> HttpCall:
    """Return a call as a request, its tensors as bytes after the JSON part, in both directions.

    Its body has the wanted size to a byte, but is no shorter than what it has to say (some 400 bytes).

    Args:
        call: What is asked.
        timeout_s: What is left of its time; None for all of it.
    """
    left_s = call.timeout_s if timeout_s is None else timeout_s
    spare = (
        call.request_bytes
        - len(_described(call.request_bytes, left_s))
        - _F64.size
        - _I64.size
        - _U32.size
    )
    length = max(0, spare)
    document = _described(length, left_s)
    # No two calls ask the same, so that a share of the inputs is a share of the calls.
    asked = str(call.number).encode()[:length].ljust(length, b".")
    data = b"".join(
        (
            document,
            _F64.pack(call.work_s),
            _I64.pack(call.response_bytes),
            _U32.pack(length),
            asked,
        )
    )
    return HttpCall(
        path=f"/v2/models/{quote(call.model, safe='')}/infer",
        headers={
            "Content-Type": "application/octet-stream",
            _HEADER_LENGTH: str(len(document)),
            **({"Mesh-Region": call.hints.region} if call.hints.region else {}),
        },
        body=data,
    )


def read_answer(status: int, headers: Mapping[str, str]) -> HttpAnswer:
    """Return what the status and the headers of an answer say; its body says no more.

    Args:
        status: The HTTP status.
        headers: By name, looked up as `Mesh-Route` and `Mesh-Error`.
    """
    told = headers.get("Mesh-Route")
    code = OK if status == 200 else headers.get("Mesh-Error") or f"http_{status}"
    if told is None:
        return HttpAnswer(code, "", 0, (), 0)
    route = parse_route(told)
    served_by = route.node if code == OK else ""
    return HttpAnswer(code, served_by, route.attempts, route.tried, route.version)


def outcome_of(answer: HttpAnswer, took_s: float, gateways: int = 1) -> Outcome:
    """Return the outcome of a call that was answered after so long by the last of so many gateways."""
    return Outcome(
        code=answer.code,
        took_s=took_s,
        served_by=answer.served_by,
        attempts=answer.attempts,
        failed_on=answer.failed_on,
        version=answer.version,
        gateways=gateways,
    )


@lru_cache(maxsize=1024)
def _described(body_bytes: int, timeout_s: float) -> bytes:
    """Return the JSON part; alike for all calls of a load, unless they are told what time is left."""
    sizes = ((WORK, _F64.size), (WANTED, _I64.size), (BODY, _U32.size + body_bytes))
    inputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": spec.shape,
            "parameters": {"binary_data_size": size},
        }
        for spec, size in sizes
    ]
    timeout = max(1, round(timeout_s * _MICROSECONDS))
    parameters = {"binary_data_output": True, "timeout": timeout}
    return msgspec.json.encode({"inputs": inputs, "parameters": parameters})
