"""Which fields of a `config.pbtxt` have an effect here; every other one that is set is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Tree = dict[str, Any]  # a field's name -> its own fields; None where the field counts as a whole


def _leaves(*names: str) -> _Tree:
    return dict.fromkeys(names)


_QUEUE_POLICY: Final[_Tree] = _leaves(
    "timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size"
)

_HONOURED: Final[_Tree] = {
    **_leaves("name", "platform", "backend", "max_batch_size", "version_policy"),
    **_leaves("default_model_filename", "parameters", "response_cache"),
    "input": _leaves("name", "data_type", "dims", "reshape", "optional"),
    "output": _leaves("name", "data_type", "dims", "reshape"),
    "instance_group": _leaves("kind", "count", "gpus", "passive"),
    "optimization": {
        "graph": None,
        "execution_accelerators": {
            "gpu_execution_accelerator": _leaves("name", "parameters"),
            "cpu_execution_accelerator": _leaves("name", "parameters"),
        },
    },
    "dynamic_batching": {
        **_leaves("preferred_batch_size", "max_queue_delay_microseconds", "preserve_ordering"),
        **_leaves("priority_levels", "default_priority_level"),
        "default_queue_policy": _QUEUE_POLICY,
        "priority_queue_policy": _QUEUE_POLICY,
    },
    "sequence_batching": {
        "max_sequence_idle_microseconds": None,
        "direct": _leaves("max_queue_delay_microseconds", "minimum_slot_utilization"),
        "oldest": _leaves(
            "max_candidate_sequences", "preferred_batch_size", "max_queue_delay_microseconds"
        ),
        "control_input": {
            "name": None,
            "control": _leaves(
                "kind", "int32_false_true", "fp32_false_true", "bool_false_true", "data_type"
            ),
        },
        "state": {
            **_leaves("input_name", "output_name", "data_type", "dims"),
            "initial_state": _leaves("data_type", "dims", "zero_data", "data_file", "name"),
        },
    },
    "ensemble_scheduling": {
        "step": _leaves("model_name", "model_version", "input_map", "output_map"),
    },
    "model_warmup": {
        **_leaves("name", "batch_size", "count"),
        "inputs": _leaves("data_type", "dims", "zero_data", "random_data", "input_data_file"),
    },
    "model_transaction_policy": _leaves("decoupled"),
}


def is_honoured(name: str) -> bool:
    """Whether a field at the top, or something below it, has an effect."""
    return name in _HONOURED


def without_effect(message: Any) -> Iterator[str]:
    """Yield the path of each field that is set but has no effect, such as `input[0].format`.

    Args:
        message: A parsed `ModelConfig`.
    """
    yield from _walk(message, _HONOURED, "")


def _walk(message: Any, honoured: Mapping[str, Any], path: str) -> Iterator[str]:
    for descriptor, value in message.ListFields():
        place = f"{path}{descriptor.name}"
        if descriptor.name not in honoured:
            yield place
            continue
        below = honoured[descriptor.name]
        if below is None:
            continue
        for key, child in _children(descriptor, value):
            yield from _walk(child, below, f"{place}{key}.")


def _children(descriptor: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the messages of a field: its entries with their index or key, or the only one."""
    if descriptor.message_type.GetOptions().map_entry:
        for key in sorted(value):
            yield f"[{key!r}]", value[key]
    elif descriptor.is_repeated:
        for index, child in enumerate(value):
            yield f"[{index}]", child
    else:
        yield "", value
