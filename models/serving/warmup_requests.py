"""The requests of a configured warm-up (`model_warmup`), made from its settings and files.

A sample of batch size B is one request with B rows, of the inputs' shapes without the batch dimension.
Its data are zeros, random, or a file: raw little-endian elements (BYTES: each with its length before it),
of one row, which is then repeated, or of all rows. Random numbers are the same each time; integers are 0 to
9, so that they may be indices. Inputs of the model's file that a sample leaves out (a sequence model's
controls and states, optional ones) are zeros.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.limits import MAX_BODY_BYTES, MAX_WARM_UP_RUNS
from meshnode.models.repository.version_files import find_file
from meshnode.types import DataType, InferRequest, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.models.execution import WarmUp, WarmUpInput
    from meshnode.models.manifest import Manifest

FOLDER = "warmup"
"""Files of warm-up inputs lie in a folder of this name in the version's files."""

_ZERO_STRING = b"\x01\x00\x00\x000"
_INTEGERS = frozenset(each for each in DataType if "INT" in each)
_FLOATS = {DataType.FP16: "<e", DataType.FP32: "<f", DataType.FP64: "<d"}


@dataclass(frozen=True, slots=True)
class WarmUpRequest:
    """A sample's request, made `count` times."""

    name: str
    request: InferRequest
    count: int


def warm_up_requests(manifest: Manifest, folder: Path) -> list[WarmUpRequest]:
    """Return the configured warm-up requests of a version; reads files, so call it in a thread.

    Args:
        manifest: With the settings.
        folder: The version's files.

    Raises:
        ModelError: if a sample does not fit the model, or its file is missing or of the wrong size.
    """
    samples = manifest.execution.warm_up
    runs = sum(max(1, sample.count) for sample in samples)
    if runs > MAX_WARM_UP_RUNS:
        raise ModelError(
            f"its model_warmup asks for {runs} requests; at most {MAX_WARM_UP_RUNS}: lower `count`"
        )
    return [_request(manifest, sample, folder) for sample in samples]


def model_file(folder: Path, path: str) -> bytes:
    """Return a small file of a version, by its relative path.

    A version of a repository folder has its model's `warmup` and `initial_state` folders beside it.

    Raises:
        ModelError: if there is none, it lies elsewhere, or is larger than any request.
    """
    place = find_file(folder, path)
    try:
        if place.stat().st_size > MAX_BODY_BYTES:
            raise ModelError(f"{path!r} is larger than any request may be ({MAX_BODY_BYTES} bytes)")
        return place.read_bytes()
    except OSError as error:
        raise ModelError(f"{path!r} cannot be read: {error.strerror or error}") from None


def _request(manifest: Manifest, sample: WarmUp, folder: Path) -> WarmUpRequest:
    rows = sample.batch_size if manifest.max_batch_size > 0 else 0
    if rows > manifest.max_batch_size > 0:
        raise ModelError(
            f"its warm-up {sample.name!r} has batch_size {rows}, above max_batch_size "
            f"{manifest.max_batch_size}"
        )
    rng = random.Random(f"{manifest.model}/{sample.name}")
    try:
        tensors = tuple(_tensor(each, rows, folder, rng) for each in sample.inputs)
    except ModelError as error:
        raise ModelError(f"its warm-up {sample.name!r}: {error}") from None
    request = InferRequest(
        manifest.model, tensors, manifest.version, request_id=f"warm-up {sample.name}"
    )
    return WarmUpRequest(sample.name, request, max(1, sample.count))


def _tensor(each: WarmUpInput, rows: int, folder: Path, rng: random.Random) -> Tensor:
    if any(size < 0 for size in each.shape):
        raise ModelError(
            f"input {each.name!r} has the shape {list(each.shape)}; write sizes, not -1"
        )
    shape = (rows, *each.shape) if rows else each.shape
    elements = 1
    for size in shape:
        elements *= size
    if elements * (each.datatype.size_bytes or len(_ZERO_STRING)) > MAX_BODY_BYTES:
        raise ModelError(
            f"input {each.name!r} of shape {list(shape)} is larger than any request may be"
        )
    if each.file:
        data = _from_file(each, elements, max(1, rows), folder)
    elif each.data == "random":
        data = _random(each.datatype, elements, rng)
    else:
        element_bytes = each.datatype.size_bytes
        data = _ZERO_STRING * elements if element_bytes is None else bytes(element_bytes * elements)
    return Tensor(each.name, each.datatype, shape, data)


def _from_file(each: WarmUpInput, elements: int, rows: int, folder: Path) -> bytes:
    path = each.file if "/" in each.file else f"{FOLDER}/{each.file}"
    data = model_file(folder, path)
    element_bytes = each.datatype.size_bytes
    if element_bytes is None:
        found = _strings_in(data, path)
        if found not in (elements, elements // rows):
            raise ModelError(
                f"{path!r} holds {found} strings; input {each.name!r} needs {elements}"
            )
        return data if found == elements else data * rows
    wanted_bytes = elements * element_bytes
    if len(data) == wanted_bytes:
        return data
    if len(data) * rows == wanted_bytes:
        return data * rows
    raise ModelError(
        f"{path!r} has {len(data)} bytes; input {each.name!r} ({each.datatype}) needs "
        f"{wanted_bytes // rows} for each row"
    )


def _strings_in(data: bytes, path: str) -> int:
    """Return how many BYTES elements a file holds."""
    count = position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        position += 4 + length
        count += 1
    if position != len(data):
        raise ModelError(
            f"{path!r} is no list of strings: each is its length (4 bytes, little-endian) and its text"
        )
    return count


def _random(datatype: DataType, elements: int, rng: random.Random) -> bytes:
    """Return random elements: 0 to 1, integers 0 to 9, strings of one digit."""
    if datatype in _FLOATS:
        pack = struct.Struct(_FLOATS[datatype]).pack
        return b"".join([pack(rng.random()) for _ in range(elements)])
    if datatype is DataType.BF16:  # the upper half of an FP32
        return b"".join([struct.pack("<f", rng.random())[2:] for _ in range(elements)])
    if datatype is DataType.BYTES:
        return b"".join([b"\x01\x00\x00\x00%d" % rng.randrange(10) for _ in range(elements)])
    if datatype in _INTEGERS:
        width = datatype.size_bytes or 1
        return b"".join([rng.randrange(10).to_bytes(width, "little") for _ in range(elements)])
    return bytes(rng.choices((0, 1), k=elements))
