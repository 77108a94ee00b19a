"""Triton's `config.pbtxt`: what a model's owner says about it, checked and reconciled with its file.

The text is parsed with the published protobuf messages (they come compiled inside the
`tritonclient` package), so that every valid configuration is understood and every typing error is
reported with its line. Fields that are honoured: `name`, `platform`, `backend`, `max_batch_size`,
`input`, `output`, `version_policy` and `default_model_filename`. Any other field that is set is
named in `ModelConfig.warnings`: nothing is dropped silently.

A model without a configuration, or one whose configuration names no tensors, takes them from its
file (`reconcile`). Here meshnode differs from Triton on purpose: Triton's auto-complete sets
`max_batch_size: 4` when every first dimension is dynamic, a limit that surprises people who only
have an `.onnx` file and send it 64 rows. Without a configuration nothing is limited:
`max_batch_size` stays 0 and the shapes are the file's, with their leading -1. A configuration that
leaves `max_batch_size` out means 0 too: in the message format it cannot be told from 0.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from meshnode.errors import ModelError
from meshnode.models.manifest import TensorSpec, check_relative_path
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ONNX_RUNTIME = "onnx"
ONNX_PLATFORM = "onnxruntime_onnx"
_ONNX_BACKEND = "onnxruntime"
_DEFAULT_FILENAME = "model.onnx"

_MODEL_FIELDS = frozenset({
    "name", "platform", "backend", "max_batch_size", "input", "output", "version_policy",
    "default_model_filename",
})  # fmt: skip
_TENSOR_FIELDS = frozenset({"name", "data_type", "dims", "reshape"})


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served.

    Attributes:
        latest: This many of the highest versions; 0 where `specific` or all are meant.
        specific: Exactly these versions; empty otherwise.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()

    def select(self, versions: Sequence[int]) -> tuple[int, ...]:
        """Return the versions to serve, ascending.

        Raises:
            ModelError: if a version that the policy names does not exist.
        """
        if self.specific:
            missing = sorted(set(self.specific) - set(versions))
            if missing:
                raise ModelError(
                    f"version_policy names version {missing[0]}, but the folder has "
                    f"{_list(sorted(versions)) or 'none'}"
                )
            return tuple(sorted(set(self.specific)))
        ordered = sorted(versions)
        return tuple(ordered[-self.latest :] if self.latest else ordered)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration, as far as it is honoured.

    Attributes:
        name: The name that it states, or the empty string.
        runtime: The runtime that executes it.
        platform: The name of that runtime which clients see.
        max_batch_size: 0 if the first dimension is not a batch.
        inputs: Input tensors with their full shape (a leading -1 when batching); empty if the
            file decides.
        outputs: Output tensors, likewise.
        version_policy: Which versions are served.
        default_model_filename: The file in a version's folder that the runtime opens.
        warnings: A sentence for each field that is set and has no effect here.
    """

    name: str = ""
    runtime: str = ONNX_RUNTIME
    platform: str = ONNX_PLATFORM
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    default_model_filename: str = _DEFAULT_FILENAME
    warnings: tuple[str, ...] = ()


@cache
def _messages() -> Any:
    """Return Triton's compiled messages, loaded on first use.

    The module is loaded by its location: importing it as `tritonclient.grpc.model_config_pb2`
    would run that package's `__init__`, which needs grpcio, and a node has no use for that.
    """
    package = importlib.util.find_spec("tritonclient")
    for folder in (package and package.submodule_search_locations) or ():
        spec = importlib.util.spec_from_file_location(
            "meshnode_triton_model_config", f"{folder}/grpc/model_config_pb2.py"
        )
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ModelError(
        "reading config.pbtxt needs the package tritonclient: pip install tritonclient"
    )


def parse_config(text: str, folder_name: str) -> ModelConfig:
    """Read the text of a `config.pbtxt`.

    Args:
        text: The protobuf text.
        folder_name: Name of the model's folder; the configuration's `name` must equal it if set.

    Raises:
        ModelError: with line and column where the text is not valid, or with a sentence about the
            first field that cannot be honoured.
    """
    from google.protobuf import text_format

    try:
        message = text_format.Parse(text, _messages().ModelConfig())
    except text_format.ParseError as error:
        raise ModelError(f"config.pbtxt of {folder_name!r}: {_parser_sentence(error)}") from None
    try:
        return _convert(message, folder_name)
    except ModelError as error:
        raise ModelError(f"config.pbtxt of {folder_name!r}: {error}") from None


def _parser_sentence(error: Any) -> str:
    """Say where the parser stopped and why: its own text is `line:column : 'the line': reason`."""
    line, column = error.GetLine(), error.GetColumn()
    reason = str(error)
    if line is None:
        return reason
    reason = reason.removeprefix(f"{line}:{column} : ")
    return f"line {line}, column {column}: {reason}"


def _convert(message: Any, folder_name: str) -> ModelConfig:
    if message.name and message.name != folder_name:
        raise ModelError(f"name is {message.name!r}, but the folder is {folder_name!r}")
    _check_platform(message)
    batch = message.max_batch_size
    if batch < 0:
        raise ModelError(f"max_batch_size is {batch}; it must be 0 or more")
    filename = message.default_model_filename or _DEFAULT_FILENAME
    return ModelConfig(
        name=message.name,
        max_batch_size=batch,
        inputs=tuple(_tensor("input", tensor, batch) for tensor in message.input),
        outputs=tuple(_tensor("output", tensor, batch) for tensor in message.output),
        version_policy=_version_policy(message),
        default_model_filename=check_relative_path(filename),
        warnings=tuple(_ignored(message)),
    )


def _check_platform(message: Any) -> None:
    """Refuse what is not ONNX, by whichever of the three fields says so."""
    if message.platform not in ("", ONNX_PLATFORM):
        raise ModelError(
            f"platform {message.platform!r} is not supported; this node runs {ONNX_PLATFORM!r}"
        )
    if message.backend not in ("", _ONNX_BACKEND):
        raise ModelError(
            f"backend {message.backend!r} is not supported; this node runs {_ONNX_BACKEND!r}"
        )
    filename = message.default_model_filename
    if not (message.platform or message.backend) and filename and not filename.endswith(".onnx"):
        raise ModelError(
            f"default_model_filename {filename!r} is no ONNX file, and neither platform nor "
            "backend is set"
        )


def _tensor(kind: str, tensor: Any, max_batch_size: int) -> TensorSpec:
    """Return one configured tensor with its full shape: [-1] + dims when batching."""
    if not tensor.name:
        raise ModelError(f"an {kind} has no name")
    if tensor.HasField("reshape"):
        raise ModelError(
            f"{kind} {tensor.name!r} has a reshape, which is not supported; "
            "give dims as they are in the file"
        )
    type_name = _messages().DataType.Name(tensor.data_type).removeprefix("TYPE_")
    if type_name == "INVALID":
        raise ModelError(f"{kind} {tensor.name!r} has no data_type")
    for size in tensor.dims:
        if size < 1 and size != -1:
            raise ModelError(
                f"{kind} {tensor.name!r} has dimension {size}; it must be positive, or -1 for any"
            )
    datatype = DataType.BYTES if type_name == "STRING" else DataType(type_name)
    dims = tuple(tensor.dims)
    return TensorSpec(tensor.name, datatype, (-1, *dims) if max_batch_size else dims)


def _version_policy(message: Any) -> VersionPolicy:
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise ModelError("version_policy.specific must name versions of 1 or more")
        return VersionPolicy(latest=0, specific=versions)
    if choice == "latest":
        if policy.latest.num_versions < 1:
            raise ModelError("version_policy.latest.num_versions must be 1 or more")
        return VersionPolicy(latest=policy.latest.num_versions)
    return VersionPolicy()


def _ignored(message: Any) -> Iterator[str]:
    """Yield a sentence for each field that is set but not honoured."""
    for descriptor, _ in message.ListFields():
        if descriptor.name not in _MODEL_FIELDS:
            yield f"{descriptor.name} is set, but has no effect"
    for kind, tensors in (("input", message.input), ("output", message.output)):
        for tensor in tensors:
            for descriptor, _ in tensor.ListFields():
                if descriptor.name not in _TENSOR_FIELDS:
                    yield f"{descriptor.name} of {kind} {tensor.name!r} is set, but has no effect"


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's tensors, full shapes, and whether their first dimension is a limited batch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0


def reconcile(config: ModelConfig | None, file: Signature) -> Signature:
    """Combine a configuration with what the model's file says.

    As in Triton's ONNX Runtime backend: all inputs must be configured, outputs may be a subset;
    a dimension that the file fixes must be the same in the configuration, one that is dynamic in
    the file may be fixed by it. A tensor whose shape the file does not state (ONNX Runtime then
    reports no dimensions) takes the configured one.

    Args:
        config: The configuration, or None if there is none.
        file: The tensors as the file states them; its `max_batch_size` is not used.

    Raises:
        ModelError: naming both sides where they disagree.
    """
    if config is None:
        return Signature(file.inputs, file.outputs)
    inputs = _reconcile_side("input", config.inputs, file.inputs)
    outputs = _reconcile_side("output", config.outputs, file.outputs)
    if len(inputs) != len(file.inputs):
        raise ModelError(
            f"config.pbtxt has {len(inputs)} inputs ({_names(inputs)}), the file has "
            f"{len(file.inputs)} ({_names(file.inputs)})"
        )
    if config.max_batch_size:
        in_file = {spec.name: spec for spec in (*file.outputs, *file.inputs)}
        for spec in (*inputs, *outputs):
            shape = in_file[spec.name].shape
            if shape and shape[0] != -1:
                raise ModelError(
                    f"config.pbtxt has max_batch_size {config.max_batch_size}, but the first "
                    f"dimension of {spec.name!r} is fixed in the file: {list(shape)}"
                )
    return Signature(inputs, outputs, config.max_batch_size)


def _reconcile_side(
    kind: str, configured: tuple[TensorSpec, ...], in_file: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    if not configured:
        return in_file
    known = {spec.name: spec for spec in in_file}
    if len({spec.name for spec in configured}) != len(configured):
        raise ModelError(f"config.pbtxt names an {kind} twice: {_names(configured)}")
    for spec in configured:
        actual = known.get(spec.name)
        if actual is None:
            raise ModelError(
                f"config.pbtxt has {kind} {spec.name!r}, the file has {_names(in_file)}"
            )
        if actual.datatype != spec.datatype:
            raise ModelError(
                f"{kind} {spec.name!r} is {spec.datatype} in config.pbtxt, but "
                f"{actual.datatype} in the file"
            )
        if actual.shape and not _narrows(spec.shape, actual.shape):
            raise ModelError(
                f"{kind} {spec.name!r} has shape {list(spec.shape)} by config.pbtxt, but "
                f"{list(actual.shape)} in the file"
            )
    return configured


def _narrows(configured: Sequence[int], in_file: Sequence[int]) -> bool:
    """Whether a configured shape is the file's, or fixes some of its dynamic dimensions."""
    return len(configured) == len(in_file) and all(
        size in (-1, wanted) for wanted, size in zip(configured, in_file, strict=True)
    )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs) or "none"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
