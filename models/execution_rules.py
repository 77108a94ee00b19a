"""What settings may be: their ranges, and which of them contradict each other or the model's tensors.

Checked where a configuration is read, and again where a manifest comes from another node. Messages use
the names of `config.pbtxt`, and name both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError
from meshnode.limits import (
    MAX_BATCH_ROWS,
    MAX_ENSEMBLE_STEPS,
    MAX_EXECUTION_ENTRIES,
    MAX_INSTANCES,
    MAX_MODEL_TENSORS,
    MAX_PARAMETER_LENGTH,
    MAX_PRIORITY_LEVELS,
    MAX_WARM_UP_RUNS,
)
from meshnode.models.execution import ControlKind, Execution

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.models.execution import (
        DynamicBatching,
        EnsembleStep,
        InstanceGroup,
        SequenceBatching,
        WarmUp,
    )
    from meshnode.models.manifest import TensorSpec

_DEVICES: Final = ("auto", "cpu", "gpu")


def check_execution(
    execution: Execution,
    max_batch_size: int,
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
) -> None:
    """Check settings.

    Args:
        execution: What to check.
        max_batch_size: Of the model; 0 if its first dimension is not a limited batch.
        inputs: Its tensors with full shapes; empty if only its file knows them.
        outputs: Likewise.

    Raises:
        ModelError: about the first that is wrong.
    """
    if not 0 <= max_batch_size <= MAX_BATCH_ROWS:
        raise ModelError(f"max_batch_size is {max_batch_size}; it must be 0 to {MAX_BATCH_ROWS}")
    _check_counts(execution)
    _check_instance_groups(execution.instance_groups)
    if execution.batching is not None:
        _check_batching(execution.batching, max_batch_size)
    if execution.sequences is not None:
        _check_sequences(execution.sequences, max_batch_size)
    for warm_up in execution.warm_up:
        _check_warm_up(warm_up, max_batch_size, inputs)
    _check_together(execution)
    for step in execution.steps:
        _check_step(step)
    if execution.steps:
        _check_ensemble(execution, inputs, outputs)
    _check_reshapes(execution, max_batch_size, inputs, outputs)


def _check_counts(execution: Execution) -> None:
    """Settings travel with every manifest, so there is an end to each list."""
    limits = {
        "instance_group": (len(execution.instance_groups), MAX_INSTANCES),
        "model_warmup": (len(execution.warm_up), MAX_EXECUTION_ENTRIES),
        "ensemble_scheduling.step": (len(execution.steps), MAX_ENSEMBLE_STEPS),
        "parameters": (len(execution.parameters), MAX_EXECUTION_ENTRIES),
        "execution_accelerators": (len(execution.accelerators), MAX_EXECUTION_ENTRIES),
        "reshape": (len(execution.reshape), MAX_MODEL_TENSORS),
        "optional": (len(execution.optional_inputs), MAX_MODEL_TENSORS),
        "routes": (len(execution.routes), MAX_EXECUTION_ENTRIES),
    }
    for name, (count, limit) in limits.items():
        if count > limit:
            raise ModelError(f"{name} has {count} entries; at most {limit}")
    for name, value in execution.parameters:
        if len(name) > MAX_PARAMETER_LENGTH or len(value) > MAX_PARAMETER_LENGTH:
            raise ModelError(
                f"parameter {name[:80]!r} is longer than {MAX_PARAMETER_LENGTH} characters"
            )
    if not 0 <= execution.replicas <= MAX_INSTANCES:
        raise ModelError(f"replicas is {execution.replicas}; it must be 0 to {MAX_INSTANCES}")


def _check_instance_groups(groups: Sequence[InstanceGroup]) -> None:
    for index, group in enumerate(groups):
        _check_instance_group(group, f"instance_group[{index}]")
    if groups and all(group.passive for group in groups):
        raise ModelError("every instance_group is passive, so that none would take a request")


def _check_instance_group(group: InstanceGroup, where: str) -> None:
    if not 0 <= group.count <= MAX_INSTANCES:
        raise ModelError(
            f"{where}.count is {group.count}; it must be 1 to {MAX_INSTANCES}, or left out"
        )
    if group.device not in _DEVICES:
        raise ModelError(f"{where} is for {group.device!r}; it must be one of {_DEVICES}")
    if group.gpus and group.device != "gpu":
        raise ModelError(
            f"{where}.kind is not KIND_GPU, but {where}.gpus names {_list(group.gpus)}"
        )
    if any(gpu < 0 for gpu in group.gpus) or len(set(group.gpus)) != len(group.gpus):
        raise ModelError(f"{where}.gpus is {_list(group.gpus)}; it must name each GPU once, from 0")


def _check_batching(batching: DynamicBatching, max_batch_size: int) -> None:
    _check_preferred("dynamic_batching", batching.preferred_batch_sizes, max_batch_size)
    levels = batching.priority_levels
    if not 0 <= levels <= MAX_PRIORITY_LEVELS:
        raise ModelError(
            f"dynamic_batching.priority_levels is {levels}; at most {MAX_PRIORITY_LEVELS}"
        )
    default = batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise ModelError(
            f"dynamic_batching.default_priority_level is {default}, but priority_levels is {levels}: it "
            f"must be 1 to {levels}"
        )
    if default and not levels:
        raise ModelError(
            f"dynamic_batching.default_priority_level is {default}, but priority_levels is not set"
        )
    for level, _ in batching.queue_policies:
        if not 1 <= level <= levels:
            raise ModelError(
                f"dynamic_batching.priority_queue_policy is for level {level}, but priority_levels is {levels}"
            )
    if batching.preserve_ordering and levels > 1:
        raise ModelError(
            f"dynamic_batching.preserve_ordering is set, but priority_levels is {levels}: only one level "
            "keeps an order"
        )


def _check_preferred(where: str, sizes: Sequence[int], max_batch_size: int) -> None:
    for size in sizes:
        if not 1 <= size <= max_batch_size:
            raise ModelError(
                f"{where}.preferred_batch_size is {size}, but max_batch_size is {max_batch_size}: it must "
                "be positive and no more than that"
            )


def _check_sequences(sequences: SequenceBatching, max_batch_size: int) -> None:
    where = f"sequence_batching.{sequences.strategy}"
    if sequences.strategy not in ("direct", "oldest"):
        raise ModelError(f"{where} is no strategy; it must be direct or oldest")
    _check_preferred(where, sequences.preferred_batch_sizes, max(1, max_batch_size))
    if sequences.max_candidates < 0:
        raise ModelError(f"{where}.max_candidate_sequences is {sequences.max_candidates}")
    if not 0 <= sequences.minimum_slot_utilization <= 1:
        raise ModelError(
            f"{where}.minimum_slot_utilization is {sequences.minimum_slot_utilization}; it must be 0 to 1"
        )
    names = [control.name for control in sequences.controls]
    kinds = [control.kind for control in sequences.controls]
    if not all(names):
        raise ModelError("a control input of sequence_batching has no name")
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ModelError(f"sequence_batching has two control inputs for the {_spoken(kind)}")
    states = [
        *(state.input_name for state in sequences.states),
        *(state.output_name for state in sequences.states),
    ]
    if not all(states):
        raise ModelError("a state of sequence_batching needs input_name and output_name")
    if len(set(states)) != len(states):
        raise ModelError(f"sequence_batching names a state twice: {_names(states)}")
    if len(states) > MAX_MODEL_TENSORS or len(names) > MAX_MODEL_TENSORS:
        raise ModelError(f"sequence_batching has more than {MAX_MODEL_TENSORS} controls or states")


def _check_warm_up(warm_up: WarmUp, max_batch_size: int, inputs: Sequence[TensorSpec]) -> None:
    where = f"model_warmup {warm_up.name!r}"
    largest = max(1, max_batch_size)
    if not 1 <= warm_up.batch_size <= largest:
        raise ModelError(
            f"batch_size of {where} is {warm_up.batch_size}, but max_batch_size is {max_batch_size}"
        )
    if not 1 <= warm_up.count <= MAX_WARM_UP_RUNS:
        raise ModelError(f"count of {where} is {warm_up.count}; it must be 1 to {MAX_WARM_UP_RUNS}")
    known = {spec.name: spec for spec in inputs}
    for given in warm_up.inputs:
        if given.data not in ("zero", "random", "file") or bool(given.file) != (
            given.data == "file"
        ):
            raise ModelError(f"input {given.name!r} of {where} has no data that is known")
        spec = known.get(given.name)
        if spec is not None and spec.datatype != given.datatype:
            raise ModelError(
                f"input {given.name!r} of {where} is {given.datatype}, but the model's is {spec.datatype}"
            )


def check_cache(execution: Execution) -> None:
    """Check that answers of what is executed so can be kept.

    Raises:
        ModelError: saying why they cannot.
    """
    if execution.decoupled:
        raise ModelError(
            "response_cache is enabled (by config.pbtxt or --cache), but model_transaction_policy is decoupled, as that of "
            "predictors and endpoints always is: they may answer in several parts, and only single answers are kept"
        )
    if execution.sequences is not None:
        raise ModelError(
            "response_cache is enabled, but so is sequence_batching: a sequence's answers depend on those "
            "before"
        )


def _check_together(execution: Execution) -> None:
    """Settings that exclude each other."""
    if execution.batching is not None and execution.sequences is not None:
        raise ModelError(
            "dynamic_batching and sequence_batching are both set; a model has one of them"
        )
    if execution.cache:
        check_cache(execution)
    if execution.rate_limit is not None and (
        not 0 <= execution.rate_limit.per_second < float("inf") or execution.rate_limit.burst < 1
    ):
        raise ModelError("the rate limit must be a number from 0 and a burst of 1 or more")


def _check_step(step: EnsembleStep) -> None:
    if not step.model:
        raise ModelError("a step of ensemble_scheduling has no model_name")
    if step.version < 0:
        raise ModelError(
            f"model_version of step {step.model!r} is {step.version}; it must be a version, or -1 for the newest"
        )
    if not step.input_map or not step.output_map:
        side = "output_map" if step.input_map else "input_map"
        raise ModelError(f"step {step.model!r} of ensemble_scheduling has no {side}")


def _check_ensemble(
    execution: Execution, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    if execution.instance_groups:
        raise ModelError("instance_group is set, but an ensemble has no instances of its own")
    if not inputs or not outputs:
        raise ModelError("an ensemble needs input and output: it has no file that could tell them")


def _check_reshapes(
    execution: Execution,
    max_batch_size: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    specs = {spec.name: spec for spec in (*outputs, *inputs)}
    for name, shape in execution.reshape:
        spec = specs.get(name)
        if spec is None:
            continue  # only its file knows it
        dims = spec.shape[1:] if max_batch_size else spec.shape
        if _fixed_elements(dims) != _fixed_elements(shape) or dims.count(-1) != shape.count(-1):
            raise ModelError(
                f"{name!r} has dims {list(dims)}, but its reshape is {list(shape)}: they must have equally "
                "many elements, and equally many dimensions of any size"
            )
    for name in execution.optional_inputs:
        if inputs and name not in {spec.name for spec in inputs}:
            raise ModelError(f"optional input {name!r} is none of {_names(s.name for s in inputs)}")


def _fixed_elements(dims: Iterable[int]) -> int:
    count = 1
    for size in dims:
        count *= 1 if size == -1 else size
    return count


def _spoken(kind: ControlKind) -> str:
    return "correlation id" if kind is ControlKind.CORRELATION_ID else f"sequence's {kind}"


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
