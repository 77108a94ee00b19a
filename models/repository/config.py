"""Triton's `config.pbtxt`: what a model's owner says about it.

The text is parsed with the published protobuf messages (they come compiled inside the
`tritonclient` package), so that every valid configuration is understood and every typing error is
reported with its line. What is honoured is in `meshnode.models.repository.config_fields`; any other field that is
set is named in `ModelConfig.warnings`, with its path: nothing is dropped silently.

A model without a configuration, or one whose configuration names no tensors, takes them from its
file (`meshnode.models.repository.signatures`). Here meshnode differs from Triton on purpose: Triton's auto-complete
sets `max_batch_size: 4` when every first dimension is dynamic, a limit that surprises people who only
have an `.onnx` file and send it 64 rows. Without a configuration nothing is limited:
`max_batch_size` stays 0 and the shapes are the file's, with their leading -1. A configuration that
leaves `max_batch_size` out means 0 too: in the message format it cannot be told from 0. One that names
tensors and no `max_batch_size` says that the first dimension is no batch, so rows of different requests
are never joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.errors import ModelError
from meshnode.models.execution import DEFAULT_EXECUTION, Execution
from meshnode.models.execution_rules import check_execution
from meshnode.models.exposure import NO_EXPOSURE, Exposure
from meshnode.models.manifest import TensorSpec, check_relative_path
from meshnode.models.repository.config_backend import ENSEMBLE_RUNTIME, ONNX_RUNTIME, runtime_of
from meshnode.models.repository.config_execution import execution_of
from meshnode.models.repository.config_exposure import exposure_of
from meshnode.models.repository.config_fields import without_effect
from meshnode.models.repository.config_messages import datatype_of, dims_of, messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ONNX_PLATFORM", "ONNX_RUNTIME", "ModelConfig", "VersionPolicy", "parse_config"]

ONNX_PLATFORM = "onnxruntime_onnx"
_FORMATS_OF_THREE = ("FORMAT_NHWC", "FORMAT_NCHW")


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
        """Return the versions to serve, ascending; what `missing` names is left out.

        Raises:
            ModelError: if no version that the policy names exists.
        """
        if self.specific:
            chosen = sorted(set(self.specific) & set(versions))
            if not chosen:
                raise ModelError(
                    f"version_policy names version {_list(self.missing(versions))}, but the folder has "
                    f"{_list(sorted(versions)) or 'none'}"
                )
            return tuple(chosen)
        ordered = sorted(versions)
        return tuple(ordered[-self.latest :] if self.latest else ordered)

    def missing(self, versions: Sequence[int]) -> tuple[int, ...]:
        """Return the versions that the policy names and that do not exist, ascending."""
        return tuple(sorted(set(self.specific) - set(versions)))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration.

    Attributes:
        name: The name that it states, or the empty string.
        runtime: The runtime that executes it; empty if what its folder holds decides.
        max_batch_size: 0 if the first dimension is not a batch.
        inputs: Input tensors with their full shape (a leading -1 when batching); empty if the
            file decides.
        outputs: Output tensors, likewise.
        version_policy: Which versions are served.
        default_model_filename: The file in a version's folder that the runtime opens; empty for the
            runtime's usual one.
        warnings: A sentence for each field that is set and has no effect here.
        execution: All settings of how it is executed.
        exposure: How it is offered to clients.
    """

    name: str = ""
    runtime: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    default_model_filename: str = ""
    warnings: tuple[str, ...] = ()
    execution: Execution = DEFAULT_EXECUTION
    exposure: Exposure = NO_EXPOSURE


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
        message = text_format.Parse(text, messages().ModelConfig())
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
    batch = message.max_batch_size
    if batch < 0:
        raise ModelError(f"max_batch_size is {batch}; it must be 0 or more")
    inputs = tuple(_tensor("input", tensor, batch) for tensor in message.input)
    outputs = tuple(_tensor("output", tensor, batch) for tensor in message.output)
    for tensor in message.input:
        _check_format(tensor)
    execution = execution_of(message)
    check_execution(execution, batch, inputs, outputs)
    filename = message.default_model_filename
    return ModelConfig(
        name=message.name,
        runtime=_runtime(message),
        max_batch_size=batch,
        inputs=inputs,
        outputs=outputs,
        version_policy=_version_policy(message),
        default_model_filename=check_relative_path(filename) if filename else "",
        warnings=tuple(_warnings(message)),
        execution=execution,
        exposure=exposure_of(message),
    )


def _runtime(message: Any) -> str:
    """Return the runtime, and see to it that an ensemble is one by all that says so."""
    runtime = runtime_of(message.platform, message.backend)
    has_steps = len(message.ensemble_scheduling.step) > 0
    if runtime == ENSEMBLE_RUNTIME and not has_steps:
        raise ModelError("platform is 'ensemble', but ensemble_scheduling has no step")
    if message.HasField("ensemble_scheduling") and runtime not in ("", ENSEMBLE_RUNTIME):
        named = message.platform or message.backend
        raise ModelError(f"ensemble_scheduling is set, but platform is {named!r}, not 'ensemble'")
    return ENSEMBLE_RUNTIME if has_steps else runtime


def _tensor(kind: str, tensor: Any, max_batch_size: int) -> TensorSpec:
    """Return one configured tensor with its full shape: [-1] + dims when batching."""
    if not tensor.name:
        raise ModelError(f"an {kind} has no name")
    what = f"{kind} {tensor.name!r}"
    datatype = datatype_of(tensor.data_type, what)
    dims = dims_of(tensor.dims, what)
    return TensorSpec(tensor.name, datatype, (-1, *dims) if max_batch_size else dims)


def _check_format(tensor: Any) -> None:
    name = type(tensor).Format.Name(tensor.format)
    if name in _FORMATS_OF_THREE and len(tensor.dims) != 3:
        raise ModelError(
            f"input {tensor.name!r} is {name}, but has {len(tensor.dims)} dims; a picture has 3"
        )


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


def _warnings(message: Any) -> Iterator[str]:
    for path in without_effect(message):
        yield f"{path} is set, but has no effect"
    if message.HasField("dynamic_batching") and not message.max_batch_size:
        yield "dynamic_batching is set, but max_batch_size is 0: no requests are joined"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
