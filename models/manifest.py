"""What a model version is: its tensors, its files and their hashes.

A `Manifest` is made once, where a model is read from disk, and then travels through the mesh
unchanged: in a deployment, in a node's list of served models, to the gateways that check requests
against it.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import InvalidRequest, ModelError
from meshnode.limits import (
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_MODEL_NAME_LENGTH,
    MAX_PATH_COMPONENT_LENGTH,
)
from meshnode.models.artifacts.chunks import is_root
from meshnode.models.execution import DEFAULT_EXECUTION, Execution
from meshnode.models.execution_rules import check_cache, check_execution
from meshnode.models.exposure import NO_EXPOSURE, Exposure, check_exposure
from meshnode.models.provenance import Provenance, check_provenance
from meshnode.types import DataType, InferRequest, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_MODEL_NAME_LENGTH - 1}}}")
_BYTES_LENGTH_BYTES = 4  # before each element of a BYTES tensor
_WINDOWS_RESERVED = frozenset('<>:"|?*\\')


class TensorSpec(msgspec.Struct, array_like=True, frozen=True):
    """One input or output of a model.

    Attributes:
        name: Its name in the model.
        datatype: Element type.
        shape: Full shape, the batch dimension included; -1 where any size is accepted.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape fits."""
        if len(shape) != len(self.shape):
            return False
        for want, got in zip(self.shape, shape, strict=True):  # a loop: on every request's path
            if got != want if want != -1 else got < 0:
                return False
        return True


class FileEntry(msgspec.Struct, array_like=True, frozen=True):
    """One file of a model version.

    Attributes:
        path: Relative POSIX path.
        size_bytes: Its length.
        sha256: Of its content, 32 bytes.
        chunks: How it is cut into chunks, and the root over their hashes (`meshnode.models.artifacts.chunks`);
            empty for a file of one chunk, and where an older version published it.
    """

    path: str
    size_bytes: int
    sha256: bytes
    chunks: bytes = b""


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """One version of one model.

    Attributes:
        model: Public name.
        version: Positive integer.
        runtime: Which runtime executes it: `onnx`, ...
        platform: The name that Open Inference Protocol clients see, such as `onnxruntime_onnx`.
        inputs: Input tensors, with the batch dimension.
        outputs: Output tensors, with the batch dimension.
        max_batch_size: 0 if the first dimension is not a batch.
        files: The version's files, sorted by path; empty for a model that never travels.
        entry: Path of the file that the runtime opens.
        execution: How it is executed.
        variant: Which of several forms of this version it is, such as `int8`; empty for the only one.
        provenance: Who published it; None where nobody said.
        exposure: How it is offered to clients.
    """

    model: str
    version: int
    runtime: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    files: tuple[FileEntry, ...]
    entry: str
    execution: Execution = DEFAULT_EXECUTION
    variant: str = ""
    provenance: Provenance | None = None
    exposure: Exposure = NO_EXPOSURE

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what is executed and how: same digest, same model.

        Name, version, variant, provenance and exposure are not part of it. Settings are only where there are any, so
        that a version without them has the digest that nodes which know no settings compute. How files
        are cut into chunks follows from their content, and schemas from the code: other versions of a library
        write them differently.
        """
        files = [(file.path, file.size_bytes, file.sha256) for file in self.files]
        fields: list[object] = [
            "", 0, self.runtime, self.platform, self.inputs, self.outputs, self.max_batch_size,
            files, self.entry,
        ]  # fmt: skip
        settings = msgspec.structs.replace(self.execution, schema="")
        if settings != DEFAULT_EXECUTION:
            fields.append(settings)
        return hashlib.sha256(msgspec.msgpack.encode(fields)).hexdigest()

    @property
    def keeps_answers(self) -> bool:
        """Whether answers may be kept and given again: what its deployment says, else its configuration.

        Never of a model whose answers have several parts, or depend on what it was asked before.
        """
        said, execution = self.exposure.cache, self.execution
        wanted = execution.cache if said is None else said
        return wanted and not execution.decoupled and execution.sequences is None

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)


def check_model_name(name: str) -> str:
    """Return the name if it can be a model's: letters, digits, `.`, `_`, `-`; at most 128.

    Raises:
        ModelError: otherwise.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ModelError(
            f"{name!r} cannot be a model's name: use 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def shown_name(name: str) -> str:
    """Return a name as a model's that cannot be one is shown: what is not allowed is written as its code point.

    A name that can be a model's is returned as it is.
    """
    if _NAME.fullmatch(name) and ".." not in name:
        return name
    shown = "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else f"_x{ord(char):x}_"
        for char in name
    ).replace("..", "._x2e_")
    # Names must begin with a letter or digit.
    return f"x_{shown}"[:MAX_MODEL_NAME_LENGTH]


def check_relative_path(path: str) -> str:
    """Return the path if it names a file below a folder on every platform.

    Raises:
        ModelError: if it is absolute, contains `.`, `..`, NUL, a backslash or a drive letter,
            or is too long.
    """
    parts = path.split("/")
    if (
        not path
        or len(path) > 4 * MAX_PATH_COMPONENT_LENGTH
        or any(part in ("", ".", "..") or len(part) > MAX_PATH_COMPONENT_LENGTH for part in parts)
        or any(ord(char) < 32 or char in _WINDOWS_RESERVED for char in path)
    ):
        raise ModelError(f"{path!r} is not a plain relative path")
    return path


def check_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest that came from elsewhere if all of it is within limits.

    Raises:
        ModelError: naming the first field that is not.
    """
    check_model_name(manifest.model)
    if not 0 < manifest.version < 2**63:
        raise ModelError(
            f"version {manifest.version} of {manifest.model!r} is not a positive integer"
        )
    if len(manifest.files) > MAX_MODEL_FILES:
        raise ModelError(
            f"{manifest.model!r} has {len(manifest.files)} files; at most {MAX_MODEL_FILES}"
        )
    for file in manifest.files:
        check_relative_path(file.path)
        if not 0 <= file.size_bytes <= MAX_MODEL_FILE_BYTES or len(file.sha256) != 32:
            raise ModelError(
                f"file {file.path!r} of {manifest.model!r} has no valid size or SHA-256"
            )
        if not is_root(file.chunks):
            raise ModelError(
                f"file {file.path!r} of {manifest.model!r} is cut into chunks in an unknown way"
            )
    if manifest.provenance is not None:
        check_provenance(manifest.provenance)
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        raise ModelError(f"{manifest.model!r} names a file twice")
    if manifest.files and manifest.entry not in paths:
        raise ModelError(f"{manifest.entry!r} is not one of the files of {manifest.model!r}")
    check_execution(manifest.execution, manifest.max_batch_size, manifest.inputs, manifest.outputs)
    check_exposure(manifest.exposure)
    if manifest.exposure.cache:
        check_cache(manifest.execution)
    return manifest


def check_form(manifest: Manifest, spec: TensorSpec, tensor: Tensor) -> None:
    """Check a tensor's type and shape, but not its data, against the input that it is for.

    Raises:
        InvalidRequest: saying what was expected.
    """
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(
            f"input {tensor.name!r} of model {manifest.model!r} is {spec.datatype}, "
            f"not {tensor.datatype}"
        )
    if not spec.accepts(tensor.shape):
        raise InvalidRequest(
            f"input {tensor.name!r} of model {manifest.model!r} has shape {list(spec.shape)} "
            f"(-1: any size), not {list(tensor.shape)}"
        )
    if 0 < manifest.max_batch_size < tensor.rows:
        raise InvalidRequest(
            f"a batch of {tensor.rows} exceeds max_batch_size {manifest.max_batch_size} of model "
            f"{manifest.model!r}"
        )


def check_request(manifest: Manifest, request: InferRequest) -> None:
    """Check a request's tensors and wanted outputs against the model.

    Raises:
        InvalidRequest: saying which tensor is wrong, and what was expected.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    seen: set[str] = set()
    for tensor in request.inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            raise InvalidRequest(
                f"model {manifest.model!r} has no input {tensor.name!r}; its inputs are "
                f"{_names(manifest.inputs)}"
            )
        if tensor.name in seen:
            raise InvalidRequest(f"input {tensor.name!r} is given twice")
        seen.add(tensor.name)
        check_form(manifest, spec, tensor)
        _check_size(tensor)
    if len(seen) != len(specs):
        optional = manifest.execution.optional_inputs
        missing = ", ".join(
            repr(name) for name in specs if name not in seen and name not in optional
        )
        if missing:
            raise InvalidRequest(
                f"model {manifest.model!r} also needs input {missing}; its inputs are "
                f"{_names(manifest.inputs)}"
            )
    if request.outputs:
        known = {spec.name for spec in manifest.outputs}
        for name in request.outputs:
            if name not in known:
                raise InvalidRequest(
                    f"model {manifest.model!r} has no output {name!r}; its outputs are "
                    f"{_names(manifest.outputs)}"
                )


def _check_size(tensor: Tensor) -> None:
    """Check that the bytes fill the shape: exactly, or for BYTES at least with each length."""
    element_bytes = tensor.datatype.size_bytes
    if element_bytes is None:
        if tensor.size_bytes < _BYTES_LENGTH_BYTES * tensor.elements:
            raise InvalidRequest(
                f"input {tensor.name!r} of shape {list(tensor.shape)} has {tensor.size_bytes} "
                f"bytes, too few for {tensor.elements} elements with their lengths"
            )
    elif tensor.size_bytes != element_bytes * tensor.elements:
        raise InvalidRequest(
            f"input {tensor.name!r} has {tensor.size_bytes} bytes, but {tensor.datatype} of "
            f"shape {list(tensor.shape)} is {element_bytes * tensor.elements}"
        )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs)
