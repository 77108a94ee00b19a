"""How a `config.pbtxt` says that a model is executed, as `Execution`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ModelError
from meshnode.models.execution import (
    ControlInput,
    ControlKind,
    DynamicBatching,
    EnsembleStep,
    Execution,
    InstanceGroup,
    QueuePolicy,
    RateLimit,
    Resumable,
    SequenceBatching,
    SequenceState,
    Timeout,
    WarmUp,
    WarmUpInput,
)
from meshnode.models.manifest import check_relative_path
from meshnode.models.repository.config_messages import datatype_of, dims_of, enum_name
from meshnode.models.uploads import UPLOAD_PARAMETER, read_uploads

if TYPE_CHECKING:
    from meshnode.types import DataType

WARM_UP_FOLDER: Final = "warmup"
"""Folder of a model, and of each of its versions' files, in which warm-up data lies."""

STATE_FOLDER: Final = "initial_state"
"""Likewise for initial states of sequences."""

_DEVICES: Final = {"KIND_AUTO": "auto", "KIND_GPU": "gpu", "KIND_CPU": "cpu", "KIND_MODEL": "auto"}
_CONTROLS: Final = {
    "CONTROL_SEQUENCE_START": ControlKind.START,
    "CONTROL_SEQUENCE_READY": ControlKind.READY,
    "CONTROL_SEQUENCE_END": ControlKind.END,
    "CONTROL_SEQUENCE_CORRID": ControlKind.CORRELATION_ID,
}
_FALSE_TRUE: Final = {
    "int32_false_true": "INT32",
    "fp32_false_true": "FP32",
    "bool_false_true": "BOOL",
}
_OUR_PREFIX: Final = "meshnode_"
_OURS: Final = (
    "repeatable", "adaptive_batching", "rate_limit_per_second", "rate_limit_burst", "path", "task", "upload",
    "resumable",
)  # fmt: skip


def execution_of(message: Any) -> Execution:
    """Return the settings of a configuration.

    Args:
        message: A parsed `ModelConfig`.

    Raises:
        ModelError: about the first field that has no meaning. What contradicts another field is found
            by `meshnode.models.execution_rules`.
    """
    parameters, ours = _parameters(message)
    sequences = _sequences(message)
    batched = message.max_batch_size > 0 or not (message.input or message.output)
    return Execution(
        instance_groups=tuple(_instance_group(group) for group in message.instance_group),
        batching=_batching(message),
        adaptive=batched and _switch(ours, "adaptive_batching"),
        sequences=sequences,
        warm_up=tuple(_warm_up(warm_up) for warm_up in message.model_warmup),
        cache=message.response_cache.enable,
        decoupled=message.model_transaction_policy.decoupled,
        repeatable=sequences is None and _switch(ours, "repeatable"),
        steps=tuple(_step(step) for step in message.ensemble_scheduling.step),
        reshape=tuple(
            (tensor.name, dims_of(tensor.reshape.shape, f"the reshape of {tensor.name!r}"))
            for tensor in (*message.input, *message.output)
            if tensor.HasField("reshape")
        ),
        optional_inputs=tuple(tensor.name for tensor in message.input if tensor.optional),
        parameters=parameters,
        graph_level=message.optimization.graph.level,
        accelerators=_accelerators(message.optimization.execution_accelerators),
        rate_limit=_rate_limit(ours),
        resumable=_resumable(ours, message),
    )


def _instance_group(group: Any) -> InstanceGroup:
    return InstanceGroup(
        count=group.count,
        device=_DEVICES[enum_name(group, "kind")],
        gpus=tuple(group.gpus),
        passive=group.passive,
    )


def _batching(message: Any) -> DynamicBatching | None:
    if not message.HasField("dynamic_batching"):
        return None
    batching = message.dynamic_batching
    return DynamicBatching(
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        max_queue_delay_us=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_queue_policy(batching.default_queue_policy),
        queue_policies=tuple(
            (level, _queue_policy(batching.priority_queue_policy[level]))
            for level in sorted(batching.priority_queue_policy)
        ),
    )


def _queue_policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        timeout=Timeout(enum_name(policy, "timeout_action").lower()),
        default_timeout_us=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _sequences(message: Any) -> SequenceBatching | None:
    if not message.HasField("sequence_batching"):
        return None
    batching = message.sequence_batching
    strategy = "oldest" if batching.HasField("oldest") else "direct"
    chosen = getattr(batching, strategy)
    return SequenceBatching(
        strategy=strategy,
        max_idle_us=batching.max_sequence_idle_microseconds or SequenceBatching().max_idle_us,
        controls=tuple(
            _control(each.name, control)
            for each in batching.control_input
            for control in each.control
        ),
        states=tuple(_state(state) for state in batching.state),
        max_candidates=batching.oldest.max_candidate_sequences,
        preferred_batch_sizes=tuple(sorted(set(batching.oldest.preferred_batch_size))),
        max_queue_delay_us=chosen.max_queue_delay_microseconds,
        minimum_slot_utilization=batching.direct.minimum_slot_utilization,
    )


def _control(name: str, control: Any) -> ControlInput:
    what = f"control input {name!r}"
    kind = _CONTROLS[enum_name(control, "kind")]
    given = [field for field in _FALSE_TRUE if getattr(control, field)]
    if kind is ControlKind.CORRELATION_ID:
        if given:
            raise ModelError(f"{what} is a correlation id, which has no {given[0]}")
        return ControlInput(name, kind, datatype_of(control.data_type, what))
    if len(given) != 1:
        raise ModelError(
            f"{what} needs exactly one of {', '.join(_FALSE_TRUE)}; it has {len(given)}"
        )
    values = tuple(float(value) for value in getattr(control, given[0]))
    if len(values) != 2:
        raise ModelError(
            f"{given[0]} of {what} has {len(values)} values; it needs 2, for false and for true"
        )
    return ControlInput(name, kind, _datatype(_FALSE_TRUE[given[0]]), values)


def _datatype(name: str) -> DataType:
    from meshnode.types import DataType

    return DataType(name)


def _state(state: Any) -> SequenceState:
    what = f"state {state.input_name!r}"
    datatype = datatype_of(state.data_type, what)
    shape = dims_of(state.dims, what)
    if len(state.initial_state) > 1:
        raise ModelError(f"{what} has {len(state.initial_state)} initial_state; it can have one")
    file = ""
    for initial in state.initial_state:
        if datatype_of(initial.data_type, f"the initial_state of {what}") != datatype:
            raise ModelError(
                f"{what} is {datatype}, but its initial_state is "
                f"{datatype_of(initial.data_type, what)}"
            )
        if initial.data_file:
            file = check_relative_path(f"{STATE_FOLDER}/{initial.data_file}")
        # An initial state has a shape of its own: it fixes what the state leaves free.
        shape = dims_of(initial.dims, f"the initial_state of {what}", free=False) or shape
    return SequenceState(state.input_name, state.output_name, datatype, shape, file)


def _warm_up(warm_up: Any) -> WarmUp:
    return WarmUp(
        name=warm_up.name,
        batch_size=warm_up.batch_size or 1,
        inputs=tuple(
            _warm_up_input(name, warm_up.inputs[name], warm_up.name)
            for name in sorted(warm_up.inputs)
        ),
        count=warm_up.count or 1,
    )


def _warm_up_input(name: str, given: Any, warm_up: str) -> WarmUpInput:
    what = f"input {name!r} of model_warmup {warm_up!r}"
    choice = given.WhichOneof("input_data_type")
    if choice is None:
        raise ModelError(f"{what} needs zero_data, random_data or input_data_file")
    file = ""
    if choice == "input_data_file":
        file = check_relative_path(f"{WARM_UP_FOLDER}/{given.input_data_file}")
    return WarmUpInput(
        name=name,
        datatype=datatype_of(given.data_type, what),
        shape=dims_of(given.dims, what, free=False),
        data={"zero_data": "zero", "random_data": "random"}.get(choice, "file"),
        file=file,
    )


def _step(step: Any) -> EnsembleStep:
    version = step.model_version
    return EnsembleStep(
        model=step.model_name,
        version=0 if version == -1 else version,  # both mean the newest
        input_map=tuple(sorted(step.input_map.items())),
        output_map=tuple(sorted(step.output_map.items())),
    )


def _accelerators(chosen: Any) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    return tuple(
        (each.name, tuple(sorted(each.parameters.items())))
        for each in (*chosen.gpu_execution_accelerator, *chosen.cpu_execution_accelerator)
    )


def _parameters(message: Any) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """Return the parameters for the runtime or model, and those that are meshnode's own settings."""
    ours: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    for key in sorted(message.parameters):
        value = message.parameters[key].string_value
        if key == UPLOAD_PARAMETER:
            read_uploads(value)  # part of what the model takes, so it stays with its settings
            others.append((key, value))
        elif not key.startswith(_OUR_PREFIX):
            others.append((key, value))
        elif key.removeprefix(_OUR_PREFIX) in _OURS:
            ours[key.removeprefix(_OUR_PREFIX)] = value
        else:
            known = ", ".join(_OUR_PREFIX + name for name in _OURS)
            raise ModelError(f"parameter {key!r} is unknown; those of meshnode are {known}")
    return tuple(others), ours


def _switch(ours: dict[str, str], name: str) -> bool:
    value = ours.get(name, "true").lower()
    if value not in ("true", "false"):
        raise ModelError(f"parameter {_OUR_PREFIX}{name} is {value!r}; it must be true or false")
    return value == "true"


def _resumable(ours: dict[str, str], message: Any) -> Resumable:
    value = ours.get("resumable", "")
    name = f"{_OUR_PREFIX}resumable"
    try:
        resumable = Resumable(value)
    except ValueError:
        raise ModelError(f"parameter {name} is {value!r}; it must be replay or delivered") from None
    if resumable and (message.HasField("sequence_batching") or not _switch(ours, "repeatable")):
        raise ModelError(
            f"parameter {name} is set, but requests of this model must not run twice: a stream that goes on "
            "elsewhere runs again"
        )
    return resumable


def _rate_limit(ours: dict[str, str]) -> RateLimit | None:
    if "rate_limit_per_second" not in ours:
        if "rate_limit_burst" in ours:
            raise ModelError(
                f"parameter {_OUR_PREFIX}rate_limit_burst is set, but not "
                f"{_OUR_PREFIX}rate_limit_per_second"
            )
        return None
    per_second = _number(ours, "rate_limit_per_second")
    burst = _number(ours, "rate_limit_burst") if "rate_limit_burst" in ours else per_second
    return RateLimit(per_second, max(1, round(burst)))


def _number(ours: dict[str, str], name: str) -> float:
    try:
        value = float(ours[name])
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ModelError(
            f"parameter {_OUR_PREFIX}{name} is {ours[name]!r}; it must be a number above 0"
        )
    return value
