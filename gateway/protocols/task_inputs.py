"""Texts, or token numbers, as what a model takes: tensors, or a JSON document.

An input that is called like a parameter is given the parameter, as models made for other servers expect (`max_tokens`,
`temperature`, `stream`); `sampling_parameters` of BYTES gets all of them as JSON. Parameters go with the
request besides, for models that read them there.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.tensors import pack_values
from meshnode.models.execution import Interface
from meshnode.models.http_calls import STREAM, body_tensor, document_tensor
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.tasks import Offer
    from meshnode.types import Scalar

Text = str | list[int]
"""A text, or the numbers of its tokens."""

_LENGTH: Final = struct.Struct("<I")
_STREAM_NAMES: Final = frozenset({"stream", "streaming"})
_TRUE_NAMES: Final = frozenset({"exclude_input_in_output"})
_ALL_PARAMETERS: Final = "sampling_parameters"
_MASK_VALUES: Final = {"attention_mask": 1, "token_type_ids": 0}


def one_input(
    manifest: Manifest,
    offer: Offer,
    text: Text | list[dict[str, str]],
    parameters: Mapping[str, Scalar],
    *,
    stream: bool = False,
) -> tuple[Tensor, ...]:
    """Return the inputs for one text.

    Args:
        manifest: Of the model.
        offer: How it carries out the task.
        text: The text, its tokens, or, for a model that takes documents, a conversation's messages.
        parameters: What else the caller says.
        stream: Whether the answer is wanted as it is made.

    Raises:
        InvalidRequest: if the model cannot take this.
    """
    if offer.takes_documents:
        document: dict[str, Any] = {**parameters, offer.mapping.text_input: text}
        if stream:
            document[STREAM] = True
        data = msgspec.json.encode(document)
        if manifest.execution.interface is Interface.JSON:
            return (document_tensor("request", data),)
        return (body_tensor(data),)
    assert not isinstance(text, list) or all(isinstance(each, int) for each in text)
    return batch(manifest, offer, [text], parameters, stream=stream)  # type: ignore[list-item]


def parameters_for(offer: Offer, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    """Return the parameters of an inference: none for a document, which has them as its members.

    The parameters beside a document are an HTTP request's head, which is not the caller's to write here.
    """
    return {} if offer.takes_documents else parameters


def batch(
    manifest: Manifest,
    offer: Offer,
    texts: Sequence[Text],
    parameters: Mapping[str, Scalar],
    *,
    stream: bool = False,
) -> tuple[Tensor, ...]:
    """Return the inputs for several texts at once, as many as `rows_at_once` allows.

    Raises:
        InvalidRequest: if the model cannot take this.
    """
    rows = len(texts)
    inputs: list[Tensor] = []
    for spec in manifest.inputs:
        if spec.name == offer.mapping.text_input:
            inputs.append(_texts(manifest, offer, spec, texts))
            continue
        value = _value(spec, offer, parameters, stream)
        if value is None:
            if spec.name not in manifest.execution.optional_inputs:
                raise InvalidRequest(
                    f"model {manifest.model!r} also needs input {spec.name!r} ({spec.datatype}), which a text does "
                    "not give; send it as a member of the request, if it takes one value"
                )
            continue
        if spec.name in _MASK_VALUES and offer.takes_tokens:
            shape: tuple[int, ...] = (rows, len(texts[0]))
        else:
            shape = _shape(manifest, spec, rows)
        data = pack_values(spec.name, spec.datatype, shape, [value] * math.prod(shape))
        inputs.append(Tensor(spec.name, spec.datatype, shape, data))
    return tuple(inputs)


def rows_at_once(manifest: Manifest, offer: Offer, limit: int) -> int:
    """Return how many texts one inference can carry: one, unless its first dimension is the batch."""
    if offer.takes_documents or offer.takes_tokens:
        return 1  # rows of tokens have different lengths
    spec = next(spec for spec in manifest.inputs if spec.name == offer.mapping.text_input)
    if not spec.shape or spec.shape[0] != -1:
        return 1
    return min(limit, manifest.max_batch_size or limit)


def _texts(manifest: Manifest, offer: Offer, spec: TensorSpec, texts: Sequence[Text]) -> Tensor:
    if offer.takes_tokens:
        (tokens,) = texts
        if isinstance(tokens, str):
            raise InvalidRequest(
                f"model {manifest.model!r} takes the numbers of tokens, not text; send a list of integers, or put its "
                "tokenizer before it in an ensemble"
            )
        if len(spec.shape) != 2:
            raise InvalidRequest(
                f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)}; tokens need two dimensions"
            )
        shape = (1, len(tokens))
        return Tensor(
            spec.name, spec.datatype, shape, pack_values(spec.name, spec.datatype, shape, tokens)
        )
    encoded: list[bytes] = []
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(
                f"model {manifest.model!r} takes text, not the numbers of tokens: only it knows its tokens"
            )
        encoded.append(text.encode())
    data = b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
    return Tensor(spec.name, DataType.BYTES, _shape(manifest, spec, len(texts)), data)


def _shape(manifest: Manifest, spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return the shape of a tensor with one element in each row."""
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    if spec.shape[:1] == (-1,):
        shape = (rows, *shape[1:])
    if math.prod(shape) != rows:
        raise InvalidRequest(
            f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)}, which is not one value per text"
        )
    return shape


def _value(
    spec: TensorSpec, offer: Offer, parameters: Mapping[str, Scalar], stream: bool
) -> Scalar | None:
    if spec.name in parameters:
        value = parameters[spec.name]
        whole = spec.datatype not in (DataType.BOOL, DataType.BYTES)
        return int(value) if whole and isinstance(value, bool) else value
    if spec.name in _STREAM_NAMES and spec.datatype is DataType.BOOL:
        return stream
    if spec.name in _TRUE_NAMES and spec.datatype is DataType.BOOL:
        return True
    if spec.name == _ALL_PARAMETERS and spec.datatype is DataType.BYTES:
        return msgspec.json.encode(dict(parameters)).decode()
    return _MASK_VALUES.get(spec.name) if offer.takes_tokens else None
