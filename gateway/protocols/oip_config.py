"""A model's configuration in the shape of Triton's `ModelConfig`: what its manifest says of how it is executed.

Fields that are not set are left out, as in that message's JSON. What meshnode decides by itself (how
many instances, adaptive batching) is no configuration and is not here; `meshnode models` shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.models.execution import (
    ControlInput,
    ControlKind,
    DynamicBatching,
    EnsembleStep,
    Execution,
    InstanceGroup,
    QueuePolicy,
    SequenceBatching,
    SequenceState,
    WarmUp,
)
from meshnode.types import DataType

if TYPE_CHECKING:
    from meshnode.models.manifest import Manifest, TensorSpec

_BACKENDS: Final = {
    "onnx": "onnxruntime", "torch": "pytorch", "litert": "tflite", "ensemble": "",
}  # fmt: skip
"""Names of runtimes as a `config.pbtxt` may say them; `python` is the same."""

_KINDS: Final = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_CONTROLS: Final = {
    ControlKind.START: "CONTROL_SEQUENCE_START",
    ControlKind.END: "CONTROL_SEQUENCE_END",
    ControlKind.READY: "CONTROL_SEQUENCE_READY",
    ControlKind.CORRELATION_ID: "CONTROL_SEQUENCE_CORRID",
}
_FALSE_TRUE: Final = {
    DataType.INT32: "int32_false_true", DataType.FP32: "fp32_false_true", DataType.BOOL: "bool_false_true",
}  # fmt: skip


def model_config(manifest: Manifest) -> HttpResponse:
    """Answer `GET …/models/NAME/config`."""
    execution = manifest.execution
    config: dict[str, Any] = {
        "name": manifest.model,
        "platform": manifest.platform,
        "backend": _BACKENDS.get(manifest.runtime, manifest.runtime),
        "max_batch_size": manifest.max_batch_size,
        "input": [_tensor(manifest, spec) for spec in manifest.inputs],
        "output": [_tensor(manifest, spec) for spec in manifest.outputs],
        "default_model_filename": manifest.entry,
    }
    config |= _scheduling(execution)
    if execution.instance_groups:
        config["instance_group"] = [_instance_group(each) for each in execution.instance_groups]
    if execution.warm_up:
        config["model_warmup"] = [_warm_up(each) for each in execution.warm_up]
    optimization = _optimization(execution)
    if optimization:
        config["optimization"] = optimization
    parameters = {**dict(execution.parameters), **_ours(execution)}
    if parameters:
        config["parameters"] = {
            name: {"string_value": value} for name, value in sorted(parameters.items())
        }
    if execution.cache:
        config["response_cache"] = {"enable": True}
    if execution.decoupled:
        config["model_transaction_policy"] = {"decoupled": True}
    return json_response(config)


def _tensor(manifest: Manifest, spec: TensorSpec) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": spec.name,
        "data_type": _type(spec.datatype),
        "dims": spec.shape[1:] if manifest.max_batch_size > 0 else spec.shape,
    }
    for name, shape in manifest.execution.reshape:
        if name == spec.name:
            told["reshape"] = {"shape": shape}
    if spec.name in manifest.execution.optional_inputs:
        told["optional"] = True
    return told


def _type(datatype: DataType) -> str:
    return "TYPE_STRING" if datatype is DataType.BYTES else f"TYPE_{datatype}"


def _scheduling(execution: Execution) -> dict[str, Any]:
    """Return how requests are scheduled: one of three fields, or none."""
    if execution.batching is not None:
        return {"dynamic_batching": _batching(execution.batching)}
    if execution.sequences is not None:
        return {"sequence_batching": _sequences(execution.sequences)}
    if execution.steps:
        return {"ensemble_scheduling": {"step": [_step(each) for each in execution.steps]}}
    return {}


def _batching(batching: DynamicBatching) -> dict[str, Any]:
    told: dict[str, Any] = {
        "preferred_batch_size": batching.preferred_batch_sizes,
        "max_queue_delay_microseconds": batching.max_queue_delay_us,
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "default_queue_policy": _policy(batching.default_queue_policy),
    }
    if batching.queue_policies:
        told["priority_queue_policy"] = {
            str(level): _policy(policy) for level, policy in batching.queue_policies
        }
    return told


def _policy(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": policy.timeout.upper(),
        "default_timeout_microseconds": policy.default_timeout_us,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _sequences(sequences: SequenceBatching) -> dict[str, Any]:
    chosen: dict[str, Any] = {"max_queue_delay_microseconds": sequences.max_queue_delay_us}
    if sequences.strategy == "oldest":
        chosen["max_candidate_sequences"] = sequences.max_candidates
        chosen["preferred_batch_size"] = sequences.preferred_batch_sizes
    else:
        chosen["minimum_slot_utilization"] = sequences.minimum_slot_utilization
    return {
        sequences.strategy: chosen,
        "max_sequence_idle_microseconds": sequences.max_idle_us,
        "control_input": [
            {"name": each.name, "control": [_control(each)]} for each in sequences.controls
        ],
        "state": [_state(each) for each in sequences.states],
    }


def _control(control: ControlInput) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": _CONTROLS[control.kind]}
    if control.kind is ControlKind.CORRELATION_ID:
        return told | {"data_type": _type(control.datatype)}
    if control.datatype is DataType.BOOL:
        return told | {_FALSE_TRUE[control.datatype]: [bool(each) for each in control.values]}
    return told | {_FALSE_TRUE.get(control.datatype, "fp32_false_true"): control.values}


def _state(state: SequenceState) -> dict[str, Any]:
    told: dict[str, Any] = {
        "input_name": state.input_name,
        "output_name": state.output_name,
        "data_type": _type(state.datatype),
        "dims": state.shape,
    }
    if state.initial_file:
        file = state.initial_file.removeprefix("initial_state/")
        told["initial_state"] = [
            {"data_type": _type(state.datatype), "dims": state.shape, "data_file": file}
        ]
    return told


def _step(step: EnsembleStep) -> dict[str, Any]:
    return {
        "model_name": step.model,
        "model_version": step.version or -1,
        "input_map": dict(step.input_map),
        "output_map": dict(step.output_map),
    }


def _instance_group(group: InstanceGroup) -> dict[str, Any]:
    return {
        "count": group.count,
        "kind": _KINDS.get(group.device, "KIND_AUTO"),
        "gpus": group.gpus,
        "passive": group.passive,
    }


def _warm_up(warm_up: WarmUp) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for each in warm_up.inputs:
        told: dict[str, Any] = {"data_type": _type(each.datatype), "dims": each.shape}
        if each.file:
            told["input_data_file"] = each.file.removeprefix("warmup/")
        else:
            told[f"{each.data}_data"] = True
        inputs[each.name] = told
    return {
        "name": warm_up.name,
        "batch_size": warm_up.batch_size,
        "inputs": inputs,
        "count": warm_up.count,
    }


def _optimization(execution: Execution) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if execution.graph_level:
        told["graph"] = {"level": execution.graph_level}
    if execution.accelerators:
        told["execution_accelerators"] = {
            "gpu_execution_accelerator": [
                {"name": name, "parameters": dict(parameters)}
                for name, parameters in execution.accelerators
            ]
        }
    return told


def _ours(execution: Execution) -> dict[str, str]:
    """Return meshnode's own settings as the parameters that set them."""
    told: dict[str, str] = {}
    if execution.rate_limit is not None:
        told["meshnode_rate_limit_per_second"] = f"{execution.rate_limit.per_second:g}"
        told["meshnode_rate_limit_burst"] = str(execution.rate_limit.burst)
    if not execution.repeatable and execution.sequences is None:
        told["meshnode_repeatable"] = "false"
    return told
