"""From what a person has at hand to a request: files, pictures, arrays and `name=value`.

First everything is read, without a daemon; then, with the model's metadata, it becomes tensors. What
a file is, its first bytes say and not its name. Arrays are read without unpickling.
"""

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meshnode.cli.requests import Document, build_request
from meshnode.client.infer import infer_document
from meshnode.client.results import ModelMetadata, TensorInfo
from meshnode.client.shapes import describe_specs, fit_shape
from meshnode.client.tensors import InputTensor, encode_inputs
from meshnode.errors import ConfigError, InvalidRequest, TooLarge
from meshnode.limits import MAX_BODY_BYTES, MAX_REQUEST_TENSORS
from meshnode.types import Buffer, DataType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from meshnode.models.manifest import TensorSpec

_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")  # the second is JPEG
_NPY_START = b"\x93NUMPY"
_NPZ_START = b"PK\x03\x04"
_TAKEN = "taken are JSON, .npy, .npz, and pictures in PNG, JPEG, WebP or GIF"


@dataclass(frozen=True, slots=True)
class Given:
    """One argument of `infer`, read.

    Attributes:
        name: Of the input that it is for; empty if the whole request is meant.
        text: What followed `name=`; None if a file was named.
        content: The file's content; empty if there is none.
        label: The argument, for messages.
    """

    name: str
    text: str | None
    content: bytes
    label: str


class Prepared(NamedTuple):
    """A request: its JSON part, the bytes of the inputs that are not in it, what to tell the person."""

    document: Document
    buffers: tuple[Buffer, ...] = ()
    notes: tuple[str, ...] = ()


def read_arguments(arguments: Sequence[str]) -> list[Given]:
    """Read the files that arguments name.

    Raises:
        ConfigError: if a file cannot be read, or one of several arguments has no name.
        TooLarge: if a file, or all together, are larger than a request may be.
    """
    found = [_read_argument(argument) for argument in arguments]
    if len(found) > 1:
        for each in found:
            if not each.name:
                raise ConfigError(
                    f"{each.label!r} has no name: of several inputs each is NAME=VALUE or NAME=@FILE"
                )
    if sum(len(each.content) for each in found) > MAX_BODY_BYTES:
        raise TooLarge(f"the files are larger than a request's limit of {MAX_BODY_BYTES} bytes")
    return found


def _read_argument(argument: str) -> Given:
    name, equals, value = argument.partition("=")
    is_named = equals and name and "/" not in name and not Path(argument).exists()
    if not is_named:
        return Given("", None, _read(argument), argument)
    if value.startswith("@@"):  # a text that begins with @
        return Given(name, value[1:], b"", argument)
    if value.startswith("@"):
        return Given(name, None, _read(value[1:]), argument)
    return Given(name, value, b"", argument)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            content = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
        else:
            with Path(file).expanduser().open("rb") as stream:
                content = stream.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file!r} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BODY_BYTES:
        raise TooLarge(f"{file!r} is larger than a request's limit of {MAX_BODY_BYTES} bytes")
    return content


def prepare(given: Sequence[Given], metadata: Document, typed: ModelMetadata) -> Prepared:
    """Make a request from what was read.

    Args:
        given: The arguments.
        metadata: The model's metadata.
        typed: The same, typed.

    Raises:
        InvalidRequest: if something is not what its input takes.
    """
    if len(given) == 1 and not given[0].name:
        content = given[0].content
        if content.startswith(_NPZ_START):
            return _encode(_read_npz(content, given[0].label), typed)
        if not _is_image(content) and not content.startswith(_NPY_START):
            return Prepared(build_request(_read_json(content, given[0].label), metadata))
        return _encode({_only_input(typed).name: _value(given[0], _only_input(typed))}, typed)
    specs = {spec.name: spec for spec in typed.inputs}
    values: dict[str, Any] = {}
    for each in given:
        if each.name not in specs:
            raise InvalidRequest(
                f"model {typed.name!r} has no input {each.name!r}; its inputs are "
                f"{describe_specs(typed.inputs)}"
            )
        if each.name in values:
            raise InvalidRequest(f"input {each.name!r} is given twice")
        values[each.name] = _value(each, specs[each.name])
    return _encode(values, typed)


def _encode(values: dict[str, Any], typed: ModelMetadata) -> Prepared:
    specs = {spec.name: spec for spec in typed.inputs}
    notes: list[str] = []
    for name, value in values.items():
        if name in specs and hasattr(value, "dtype"):  # an array
            values[name] = _fitted(value, specs[name], notes)
    encoded = encode_inputs(values, typed.name, typed.inputs)
    return Prepared(infer_document(encoded), encoded.buffers, tuple(notes))


def _fitted(array: "NDArray[Any]", spec: TensorInfo, notes: list[str]) -> Any:
    """Return an array as an input takes it: with its batch dimension, and its numbers in its type."""
    import numpy as np

    from meshnode.models.tensors import DTYPES

    array = array.reshape(fit_shape(list(array.shape), spec.shape))
    if array.dtype.kind not in "biuf" or spec.datatype == DataType.BYTES:
        return array
    # NumPy has no BF16: a byte is all that it holds exactly.
    target = DTYPES.get(DataType(spec.datatype), np.dtype(np.int8))
    if not np.can_cast(array.dtype, target, "safe"):
        notes.append(
            f"input {spec.name!r} is sent as {spec.datatype}, as the model takes it; the file holds "
            f"{array.dtype.name}, so digits may be lost"
        )
    return InputTensor(array, spec.datatype)


def _only_input(typed: ModelMetadata) -> TensorInfo:
    if len(typed.inputs) != 1:
        raise InvalidRequest(
            "an image or an array alone fits a model with one input; this one's inputs are "
            f"{describe_specs(typed.inputs)}: write NAME=@FILE for each"
        )
    return typed.inputs[0]


def _value(given: Given, spec: TensorInfo) -> Any:
    """Return the value of one input, as `encode_inputs` takes it."""
    is_text = spec.datatype == DataType.BYTES
    if given.text is not None:
        return _read_text(given, spec, is_text=is_text)
    if given.content.startswith(_NPY_START):
        return read_npy(given.content, given.label)
    if is_text:
        return [given.content]  # a model of BYTES reads files of any kind itself
    if _is_image(given.content):
        return image_array(given.content, spec)
    return _read_json(given.content, given.label)


def _is_image(content: bytes) -> bool:
    is_webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    return is_webp or content.startswith(_IMAGE_STARTS)


def _read_text(given: Given, spec: TensorInfo, *, is_text: bool) -> Any:
    text = given.text or ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
        if not is_text:
            raise InvalidRequest(
                f"{given.label!r}: input {spec.name!r} takes {spec.datatype}; write a number, or JSON "
                "such as [1, 2, 3], or @FILE"
            ) from None
    if is_text and not isinstance(value, list):
        return [text]
    # One value for a model that wants rows of them is the first row's.
    return value if isinstance(value, list) else [value]


def _read_json(content: bytes, label: str) -> object:
    if not content.strip():
        raise InvalidRequest(f"{_named(label)} is empty; {_TAKEN}")
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(
            f"{_named(label)} is of no form that is known, and no JSON ({why}); {_TAKEN}"
        ) from None
    return document


def _named(label: str) -> str:
    return "the standard input" if label == "-" else repr(label)


def read_npy(content: bytes, label: str) -> "NDArray[Any]":
    """Return the array of an `.npy` file.

    Raises:
        InvalidRequest: if it is damaged, or holds Python objects.
    """
    import numpy as np

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        why = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise InvalidRequest(f"{label!r} is no array that can be sent: {why[:200]}") from None
    return np.asarray(array)


def _read_npz(content: bytes, label: str) -> dict[str, Any]:
    """Return the arrays of an `.npz` file by name, unpacked no further than a request may be."""
    arrays: dict[str, Any] = {}
    left_bytes = MAX_BODY_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_REQUEST_TENSORS:
                raise InvalidRequest(f"{label!r} holds more than {MAX_REQUEST_TENSORS} arrays")
            for entry in entries:
                with archive.open(entry) as stream:
                    data = stream.read(left_bytes + 1)
                if len(data) > left_bytes:
                    raise TooLarge(
                        f"the arrays of {label!r} are larger than a request's limit of "
                        f"{MAX_BODY_BYTES} bytes"
                    )
                left_bytes -= len(data)
                arrays[entry.filename.removesuffix(".npy")] = read_npy(data, label)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise InvalidRequest(f"{label!r} is no .npz file: {error}") from None
    return arrays


def image_array(content: bytes, spec: TensorInfo) -> "NDArray[Any]":
    """Return a picture's file as a batch of one, in the size and layout of an input.

    Raises:
        InvalidRequest: if the input takes no pictures, or the picture is damaged.
    """
    from meshnode.models.images import image_to_tensor
    from meshnode.models.tensors import to_numpy

    return to_numpy(image_to_tensor(content, _tensor_spec(spec)))


def takes_image(typed: ModelMetadata) -> bool:
    """Whether a picture alone is a request for the model."""
    from meshnode.models.images import is_image

    return len(typed.inputs) == 1 and is_image(_tensor_spec(typed.inputs[0]))


def _tensor_spec(spec: TensorInfo) -> "TensorSpec":
    from meshnode.models.manifest import TensorSpec

    return TensorSpec(spec.name, DataType(spec.datatype), spec.shape)
