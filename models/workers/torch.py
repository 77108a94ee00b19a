"""TorchScript (`.pt`, `.pth`) and `torch.export` (`.pt2`) in a worker process.

Which argument of `forward` a tensor is, is decided as in Triton's PyTorch backend: by the argument's name,
or by a number after two underscores (`INPUT__0`), or, where there is one input only, by being the only one.
Outputs are a tensor, a sequence of tensors (in the order of the configuration, or by `OUTPUT__0`), or a
dictionary (by its keys).

What a model takes is said by its configuration, by the exported program itself, or, for a bare TorchScript
file, found by trying (`meshnode.models.workers.torch_trial`).
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Described
from meshnode.models.runtimes.reasons import clean_reason
from meshnode.models.workers.adaptor import Answer
from meshnode.models.workers.sequence_tensors import (
    kept_inputs,
    kept_outputs,
    with_kept,
    without_kept,
)
from meshnode.models.workers.torch_trial import find_signature
from meshnode.models.workers.torch_types import TORCH_TYPES, datatype_of, find_device
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from meshnode.models.workers.adaptor import Outcome, WorkerRequest, WorkerSurroundings

log = logging.getLogger(__name__)

_NUMBERED: Final = re.compile(r".*__(\d+)")


def open_adaptor(surroundings: WorkerSurroundings) -> TorchAdaptor:
    """Return the adaptor of a TorchScript or exported model."""
    return TorchAdaptor(surroundings)


class TorchAdaptor:
    """One TorchScript module or exported program; see `Adaptor`."""

    asynchronous = False
    joins_rows = True
    concurrency = 1

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        """Read nothing yet."""
        self._opening = surroundings.opening
        self._parameters = dict(self._opening.execution.parameters)
        self._device = torch.device("cpu")
        self._call: Any = None
        self._program: Any = None  # of an exported model only
        self._arguments: tuple[str, ...] = ()
        self._order: tuple[str, ...] = ()
        self._outputs: dict[str, TensorSpec] = {}
        self.device = "cpu"

    def __repr__(self) -> str:
        return f"<TorchAdaptor {self._opening.entry} on {self.device}>"

    def describe(self) -> Described:
        """Say what it takes and gives, and check the configuration against the file."""
        self._load()
        opening = self._opening
        kept = kept_inputs(opening.execution, opening.max_batch_size)
        inputs, outputs = opening.inputs, opening.outputs
        if not inputs or not outputs:
            found = self._found()
            inputs = inputs or without_kept(found[0], kept)
            outputs = outputs or without_kept(found[1], self._kept_outputs())
        taken = with_kept(inputs, kept)
        order = bind(tuple(spec.name for spec in taken), self._arguments, opening.entry)
        if self._program is not None and opening.inputs:
            by_name = {spec.name: spec for spec in taken}
            for name, actual in zip(order, exported_signature(self._program)[0], strict=False):
                check_against_program(by_name[name], actual, opening.entry)
        return Described(inputs, outputs, opening.max_batch_size, opening.execution)

    def initialise(self) -> None:
        """Load the weights onto the device."""
        described, opening = self.describe(), self._opening
        kept = kept_inputs(opening.execution, opening.max_batch_size)
        names = tuple(spec.name for spec in with_kept(described.inputs, kept))
        self._order = bind(names, self._arguments, opening.entry)
        given = with_kept(described.outputs, self._kept_outputs())
        self._outputs = {spec.name: spec for spec in given}

    def execute(self, requests: Sequence[WorkerRequest]) -> Sequence[Outcome]:
        """Run each request: a batch comes as one whose rows are joined."""
        return [self._answer(request) for request in requests]

    def stream(self, request: WorkerRequest) -> Iterator[Answer]:
        """Give the one answer."""
        yield self._run(request)

    def finalise(self) -> None:
        """Let go of the weights."""
        self._call = None

    def _kept_outputs(self) -> tuple[TensorSpec, ...]:
        return kept_outputs(self._opening.execution, self._opening.max_batch_size)

    def _load(self) -> None:
        if self._call is not None:
            return
        opening = self._opening
        torch.set_num_threads(opening.threads)
        with contextlib.suppress(RuntimeError):  # it was set before: once per process
            torch.set_num_interop_threads(1)
        path = opening.folder / opening.entry
        self._device, self.device = find_device(opening.device)
        try:
            with warnings.catch_warnings():
                # That TorchScript is deprecated is no news to who serves it.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._read(path)
        except MeshError:
            raise
        # Whatever a damaged or crafted file makes the loader raise.
        except Exception as error:  # noqa: BLE001
            raise ModelError(f"{opening.entry!r} cannot be loaded: {clean_reason(error)}") from None

    def _read(self, path: Path) -> None:
        if is_exported(path):
            self._program = torch.export.load(path)
            self._call = self._program.module().to(self._device)
            self._arguments = tuple(self._program.graph_signature.user_inputs)
            return
        self._call = torch.jit.load(str(path), map_location=self._device).eval()
        schema = self._call.forward.schema
        self._arguments = tuple(each.name for each in schema.arguments[1:])

    def _found(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if self._program is not None:
            return exported_signature(self._program)
        return find_signature(self._call, self._device, self._opening)

    def _answer(self, request: WorkerRequest) -> Outcome:
        try:
            return self._run(request)
        except MeshError as error:
            return error
        # The edge where a model's own failures are translated, whatever their class.
        except Exception as error:  # noqa: BLE001
            return InferenceFailed(f"the model failed: {_reason(error)}")

    def _run(self, request: WorkerRequest) -> Answer:
        arguments = [self._argument(name, request) for name in self._order]
        free = self._parameters.get("INFERENCE_MODE", "true").lower() == "false"
        plain = self._parameters.get("DISABLE_OPTIMIZED_EXECUTION", "false").lower() == "true"
        with (
            torch.no_grad() if free else torch.inference_mode(),
            torch.jit.optimized_execution(not plain),
        ):
            said = self._call(*arguments)
        arrays: dict[str, NDArray[Any]] = {}
        datatypes: dict[str, DataType] = {}
        for name, value in self._named(said).items():
            if request.outputs and name not in request.outputs:
                continue
            arrays[name], datatype = _array(name, value)
            if datatype is not None:
                datatypes[name] = datatype
            promised = self._outputs[name].datatype
            if datatype is not None and datatype != promised:
                raise InferenceFailed(
                    f"output {name!r} is {datatype}, but the model's configuration says {promised}"
                )
        return Answer(arrays, datatypes=datatypes)

    def _argument(self, name: str, request: WorkerRequest) -> Any:
        array = request.inputs[name]
        datatype = request.datatypes.get(name)
        if array.dtype == np.object_:  # BYTES: TorchScript's List[str]
            return [each.decode() for each in array.ravel().tolist()]
        tensor = torch.from_numpy(array)
        if datatype is DataType.BF16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self._device)

    def _named(self, said: Any) -> Mapping[str, Any]:
        """Return what `forward` returned by the outputs' names."""
        names = tuple(self._outputs)
        if isinstance(said, dict):
            values = {str(key): value for key, value in said.items()}
            missing = [name for name in names if name not in values]
            if missing:
                raise InferenceFailed(
                    f"the model answered {', '.join(map(repr, values))}, without {missing[0]!r}"
                )
            return {name: values[name] for name in names}
        if isinstance(said, torch.Tensor) or _is_strings(said):
            said = (said,)
        if not isinstance(said, list | tuple):
            raise InferenceFailed(f"the model answered {type(said).__name__}, not tensors")
        positions = _numbers(names) or tuple(range(len(names)))
        if max(positions, default=-1) >= len(said):
            raise InferenceFailed(
                f"the model answered {len(said)} tensors, its configuration names {len(names)} outputs"
            )
        return {name: said[at] for name, at in zip(names, positions, strict=True)}


def is_exported(path: Path) -> bool:
    """Whether a file is an exported program; otherwise it is TorchScript.

    Raises:
        ModelError: if it is neither.
    """
    if not path.is_file():
        raise ModelError(f"{path.name!r} is missing in {path.parent}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path.name!r} is no PyTorch archive: {clean_reason(error)}") from None
    if any(name.startswith("data/aotinductor/") for name in names):
        raise ModelError(
            f"{path.name!r} was compiled for one kind of machine (AOTInductor), which is not served; "
            "save the exported program itself with torch.export.save"
        )
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return True
    if "constants.pkl" in names:
        return False
    raise ModelError(
        f"{path.name!r} holds a pickled module or its state (torch.save), not TorchScript or an "
        "exported program; `meshnode convert` makes one of it"
    )


def bind(names: Sequence[str], arguments: Sequence[str], entry: str) -> tuple[str, ...]:
    """Return the inputs' names in the order of `forward`'s arguments.

    Raises:
        ModelError: if they cannot be told apart, naming both sides.
    """
    if set(names) <= set(arguments):
        ordered = tuple(argument for argument in arguments if argument in names)
        if ordered == tuple(arguments[: len(ordered)]):
            return ordered
    positions = _numbers(names)
    if len(names) == 1 and not positions:
        return tuple(names)
    if not positions or sorted(positions) != list(range(len(names))) or len(names) > len(arguments):
        raise ModelError(
            f"the configuration names the inputs {', '.join(map(repr, names))}, forward() of {entry!r} "
            f"takes {', '.join(map(repr, arguments))}; use these names, or numbers as in 'INPUT__0'"
        )
    return tuple(name for _, name in sorted(zip(positions, names, strict=True)))


def _numbers(names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers after two underscores, if all names have one."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    return tuple(int(each[1]) for each in found if each) if all(found) else ()


def exported_signature(program: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return what an exported program takes and gives, as it says itself.

    Raises:
        ModelError: if something is no tensor of a type that can be sent.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = [
        _exported_spec("input", str(name), values.get(name)) for name in signature.user_inputs
    ]
    keys = getattr(program.call_spec.out_spec, "context", None)
    count = len(signature.user_outputs)
    names = keys if isinstance(keys, list) and len(keys) == count else None
    outputs = [
        _exported_spec("output", str(names[at]) if names else f"OUTPUT__{at}", values.get(name))
        for at, name in enumerate(signature.user_outputs)
    ]
    return tuple(inputs), tuple(outputs)


def check_against_program(configured: TensorSpec, actual: TensorSpec, entry: str) -> None:
    """Check a configured input against the exported program's.

    Raises:
        ModelError: naming both sides, if a type, a rank or a size that the program fixes differs.
    """
    fits = len(configured.shape) == len(actual.shape) and all(
        size in (-1, wanted) for wanted, size in zip(configured.shape, actual.shape, strict=True)
    )
    if configured.datatype != actual.datatype or not fits:
        raise ModelError(
            f"input {configured.name!r} is {configured.datatype} {list(configured.shape)} in the "
            f"configuration, but {entry!r} takes {actual.datatype} {list(actual.shape)} as {actual.name!r}"
        )


def _exported_spec(kind: str, name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            f"{kind} {name!r} of the exported program is no tensor, so it cannot be served"
        )
    shape = tuple(size if type(size) is int else -1 for size in value.shape)
    return TensorSpec(name, datatype_of(name, value.dtype), shape)


def _reason(error: BaseException) -> str:
    """Return why a run failed: of TorchScript's long account the last line."""
    text = str(error)
    if "failed in the TorchScript interpreter" in text:
        text = text.strip().splitlines()[-1]
        return clean_reason(RuntimeError(text.removeprefix("RuntimeError: ")))
    return clean_reason(error)


def _is_strings(said: Any) -> bool:
    return isinstance(said, list) and bool(said) and all(isinstance(each, str) for each in said)


def _array(name: str, value: Any) -> tuple[NDArray[Any], DataType | None]:
    if _is_strings(value):
        return np.array(value, dtype=object), DataType.BYTES
    if not isinstance(value, torch.Tensor):
        raise InferenceFailed(f"the model answered {type(value).__name__} for {name!r}, no tensor")
    tensor = value.detach().cpu().contiguous()
    if tensor.dtype not in TORCH_TYPES:
        raise InferenceFailed(f"output {name!r} is {tensor.dtype}, which cannot be sent")
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), DataType.BF16
    return tensor.numpy(), TORCH_TYPES[tensor.dtype]
