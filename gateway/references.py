"""What the answers of a new version are compared with, besides those of the old one.

| `against` | the right answer is |
|---|---|
| `""` | the old version's |
| `deployment:NAME` | that of another deployment to the same inputs |
| a URL | that of the address, which takes and gives the JSON of the Open Inference Protocol (`POST .../v2/models/M/infer`) |
| `request:NAME` | the decision that the request carries, as a parameter or a header of this name |
| `labels` | what people say later (`meshnode.gateway.feedback`) |

An address is judged as a webhook's is: public ones only, and what the node's owner allowed besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, TransferFailed
from meshnode.gateway.protocols.plain_tensors import nested
from meshnode.gateway.protocols.tensors import count_elements, pack_values
from meshnode.gateway.routed_requests import variant
from meshnode.gateway.targets import Answered
from meshnode.limits import MAX_REFERENCE_ANSWER_BYTES
from meshnode.net.outbound import ask
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.gateway.pipeline import Pipeline
    from meshnode.net.outbound import OutboundRule
    from meshnode.types import InferRequest

DEPLOYMENT: Final = "deployment:"
REQUEST: Final = "request:"

NO_DECISION: Final = msgspec.UNSET
"""Of a request that carries no decision."""


class _Output(msgspec.Struct):
    """An output as the Open Inference Protocol writes it in JSON."""

    name: str
    datatype: DataType
    shape: list[int]
    data: Any


class _Answer(msgspec.Struct):
    outputs: list[_Output]


def is_url(against: str) -> bool:
    """Whether what answers are compared with is an address."""
    return against.startswith(("http://", "https://"))


def decision_of(against: str, request: InferRequest, headers: Mapping[str, str]) -> Any:
    """Return the decision that a request carries; `NO_DECISION` if it carries none, or none is compared."""
    if not against.startswith(REQUEST):
        return NO_DECISION
    name = against.removeprefix(REQUEST)
    found = request.parameters.get(name)
    if found is None:
        text = headers.get(name.lower())
        return NO_DECISION if text is None else _value(text)
    return _value(found) if isinstance(found, str) else found


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


async def of_deployment(pipeline: Pipeline, name: str, request: InferRequest) -> tuple[Tensor, ...]:
    """Return what another deployment answers to the same inputs.

    Raises:
        MeshError: if it does not answer, or not in one part.
    """
    target = pipeline.resolve(name, None)
    version = target.manifest.version
    asked = msgspec.structs.replace(
        variant(request, version, request.timeout_s, request.trace), model=name
    )
    answered = pipeline.answer(asked, target._replace(asked=version))
    if not isinstance(answered, Answered):
        answered = await answered
    part = answered.response.single
    if part is None:
        raise InferenceFailed(f"model {name!r} answers in several parts, which cannot be compared")
    return part.outputs


async def of_url(rule: OutboundRule, url: str, request: InferRequest) -> tuple[Tensor, ...]:
    """Return what an address answers to the same inputs.

    Raises:
        MeshError: if it may not be asked, does not answer, or says something else than outputs.
    """
    body = {
        "id": request.request_id,
        "inputs": [
            {
                "name": tensor.name,
                "datatype": str(tensor.datatype),
                "shape": list(tensor.shape),
                "data": nested(tensor),
            }
            for tensor in request.inputs
        ],
        "outputs": [{"name": name} for name in request.outputs],
    }
    if not request.outputs:
        del body["outputs"]
    answer = await ask(
        rule,
        "POST",
        url,
        headers={"Content-Type": "application/json"},
        body=msgspec.json.encode(body),
        timeout_s=request.timeout_s,
        max_answer_bytes=MAX_REFERENCE_ANSWER_BYTES,
    )
    if answer.status != 200:
        raise TransferFailed(f"the address that answers are compared with said {answer.status}")
    return read_outputs(answer.body)


def read_outputs(body: bytes) -> tuple[Tensor, ...]:
    """Return the outputs of an answer in the JSON of the Open Inference Protocol.

    Raises:
        InferenceFailed: if it is none.
        InvalidRequest: if an output's data is not what its type and shape say.
    """
    try:
        answer = _answers.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InferenceFailed(
            f"the address that answers are compared with said something else than outputs: {error}"
        ) from None
    return tuple(_tensor(each) for each in answer.outputs)


def _tensor(output: _Output) -> Tensor:
    shape = tuple(output.shape)
    count_elements(output.name, shape)
    data = output.data if isinstance(output.data, list) else [output.data]
    return Tensor(
        output.name,
        output.datatype,
        shape,
        pack_values(output.name, output.datatype, shape or (1,), data),
    )


def copied(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return tensors whose bytes stay as they are, whatever becomes of the buffers that these are in."""
    return tuple(Tensor(each.name, each.datatype, each.shape, bytes(each.data)) for each in tensors)


_answers = msgspec.json.Decoder(_Answer)
