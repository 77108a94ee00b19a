"""Triton's settings in `config.pbtxt`: each becomes its part of `Execution`, or is refused with both sides."""

from __future__ import annotations

import pytest

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
    Route,
    SequenceBatching,
    SequenceState,
    Timeout,
    WarmUp,
    WarmUpInput,
)
from meshnode.models.execution_rules import check_execution
from meshnode.models.manifest import Manifest, check_manifest
from meshnode.models.repository.config import ModelConfig, parse_config
from meshnode.types import DataType

FP32 = DataType.FP32


def execution(text: str) -> Execution:
    return parse_config(text, "m").execution


def refused(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_config(text, "m")
    return str(caught.value)


def test_instance_groups() -> None:
    found = execution(
        """
        instance_group [
          { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0, 2 ] }, { kind: KIND_MODEL passive: true }
        ]
        """
    )
    assert found.instance_groups == (
        InstanceGroup(2, "cpu"),
        InstanceGroup(0, "gpu", (0, 2)),
        InstanceGroup(0, "auto", (), True),
    )


def test_dynamic_batching() -> None:
    found = execution(
        """
        max_batch_size: 16
        dynamic_batching {
          preferred_batch_size: [ 8, 4, 8 ] max_queue_delay_microseconds: 100 priority_levels: 3
          default_priority_level: 2
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }
          priority_queue_policy { key: 1 value { allow_timeout_override: true max_queue_size: 7 } }
        }
        """
    )
    assert found.batching == DynamicBatching(
        preferred_batch_sizes=(4, 8),
        max_queue_delay_us=100,
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(Timeout.DELAY, 5),
        queue_policies=((1, QueuePolicy(Timeout.REJECT, 0, True, 7)),),
    )
    assert execution("max_batch_size: 2 dynamic_batching { preserve_ordering: true }").batching == (
        DynamicBatching(preserve_ordering=True)
    )


def test_sequence_batching() -> None:
    direct = execution(
        """
        max_batch_size: 4
        sequence_batching {
          direct { max_queue_delay_microseconds: 9 minimum_slot_utilization: 0.5 }
          max_sequence_idle_microseconds: 77
          control_input {
            name: "both"
            control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ -1, 1 ] }
          }
          control_input { name: "ready" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
          control_input { name: "end" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
          control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }
          state {
            input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ -1, 2 ]
            initial_state { data_type: TYPE_FP32 dims: [ 3, 2 ] data_file: "zeros" name: "first" }
          }
        }
        """
    )
    assert direct.sequences == SequenceBatching(
        strategy="direct",
        max_idle_us=77,
        controls=(
            ControlInput("both", ControlKind.START, FP32, (-1.0, 1.0)),
            ControlInput("ready", ControlKind.READY, DataType.BOOL, (0.0, 1.0)),
            ControlInput("end", ControlKind.END, DataType.INT32, (0.0, 1.0)),
            ControlInput("id", ControlKind.CORRELATION_ID, DataType.BYTES),
        ),
        states=(SequenceState("s", "t", FP32, (3, 2), "initial_state/zeros"),),
        max_queue_delay_us=9,
        minimum_slot_utilization=0.5,
    )
    assert not direct.repeatable
    oldest = execution(
        "max_batch_size: 4 sequence_batching { oldest { max_candidate_sequences: 8 preferred_batch_size: 2 } }"
    )
    assert oldest.sequences == SequenceBatching(
        "oldest", max_candidates=8, preferred_batch_sizes=(2,)
    )


def test_an_ensemble() -> None:
    parsed = parse_config(
        """
        platform: "ensemble"
        input { name: "x" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 1 }
        ensemble_scheduling { step [
          { model_name: "a" model_version: -1 input_map { key: "i" value: "x" } output_map { key: "o" value: "t" } },
          { model_name: "b" model_version: 3 input_map { key: "i" value: "t" } output_map { key: "o" value: "y" } }
        ] }
        """,
        "m",
    )
    assert parsed.runtime == "ensemble"
    assert parsed.execution.steps == (
        EnsembleStep("a", 0, (("i", "x"),), (("o", "t"),)),
        EnsembleStep("b", 3, (("i", "t"),), (("o", "y"),)),
    )


def test_warm_up() -> None:
    found = execution(
        """
        max_batch_size: 4
        model_warmup {
          name: "w" batch_size: 3 count: 2
          inputs { key: "z" value { data_type: TYPE_INT32 dims: [ 2, 2 ] zero_data: true } }
          inputs { key: "r" value { data_type: TYPE_FP32 dims: 1 random_data: true } }
          inputs { key: "f" value { data_type: TYPE_STRING dims: 1 input_data_file: "a/raw" } }
        }
        """
    )
    assert found.warm_up == (
        WarmUp(
            "w",
            3,
            (
                WarmUpInput("f", DataType.BYTES, (1,), "file", "warmup/a/raw"),
                WarmUpInput("r", FP32, (1,), "random"),
                WarmUpInput("z", DataType.INT32, (2, 2), "zero"),
            ),
            2,
        ),
    )
    assert execution('model_warmup { name: "w" }').warm_up == (WarmUp("w", 1, ()),)


def test_all_other_settings() -> None:
    found = execution(
        """
        max_batch_size: 4
        input { name: "a" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: 6 } optional: true }
        output { name: "b" data_type: TYPE_FP32 dims: 1 }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        optimization {
          graph { level: -1 }
          execution_accelerators {
            gpu_execution_accelerator { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } }
            cpu_execution_accelerator { name: "openvino" }
          }
        }
        model_transaction_policy { decoupled: true }
        """
    )
    assert found == Execution(
        reshape=(("a", (6,)),),
        optional_inputs=("a",),
        parameters=(("intra_op_thread_count", "2"),),
        graph_level=-1,
        accelerators=(("tensorrt", (("precision_mode", "FP16"),)), ("openvino", ())),
        decoupled=True,
    )
    assert execution("response_cache { enable: true }").cache


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def test_parameters_of_meshnode_itself() -> None:
    found = execution(
        parameter("meshnode_repeatable", "false")
        + parameter("meshnode_adaptive_batching", "False")
        + parameter("meshnode_rate_limit_per_second", "2.5")
    )
    assert found == Execution(repeatable=False, adaptive=False, rate_limit=RateLimit(2.5, 2))
    burst = parameter("meshnode_rate_limit_per_second", "1") + parameter(
        "meshnode_rate_limit_burst", "9"
    )
    assert execution(burst).rate_limit == RateLimit(1.0, 9)


CONTROL = 'sequence_batching {{ control_input {{ name: "{0}" control {{ {1} }} }} }}'
BOOL = "bool_false_true: [ false, true ]"
STATE = 'sequence_batching {{ state {{ input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 {0} }} }}'
TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
STEP = 'input_map { key: "i" value: "x" } output_map { key: "o" value: "y" }'
WARM = 'model_warmup {{ name: "w" {0} }}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("instance_group { count: -1 }", "instance_group[0].count is -1; it must be 1 to"),
        ("instance_group { count: 9999 }", "instance_group[0].count is 9999"),
        ("instance_group { kind: KIND_CPU gpus: 1 }", "is not KIND_GPU, but instance_group[0].gpus names 1"),
        ("instance_group { kind: KIND_GPU gpus: [ 0, 0 ] }", "must name each GPU once"),
        ("instance_group { kind: KIND_GPU gpus: -1 }", "must name each GPU once, from 0"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "is 8, but max_batch_size is 4"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }", "is 0, but max_batch_size is 4"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level is 0, but priority_levels is 2"),
        ("dynamic_batching { default_priority_level: 1 }", "is 1, but priority_levels is not set"),
        ("dynamic_batching { priority_levels: 99999 default_priority_level: 1 }", "at most 1024"),
        (
            "dynamic_batching { priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 2 } }",
            "for level 2, but priority_levels is 1",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }",
            "preserve_ordering is set, but priority_levels is 2",
        ),
        ("dynamic_batching { } sequence_batching { }", "line 1"),
        (CONTROL.format("c", "kind: CONTROL_SEQUENCE_START"), "exactly one of"),
        (CONTROL.format("c", "int32_false_true: 1"), "has 1 values; it needs 2"),
        (CONTROL.format("", BOOL), "a control input of sequence_batching has no name"),
        (CONTROL.format("c", f"{BOOL} }} control {{ {BOOL}"), "two control inputs for the sequence's start"),
        (CONTROL.format("c", f"kind: CONTROL_SEQUENCE_CORRID {BOOL}"), "correlation id, which has no bool"),
        (CONTROL.format("c", "kind: CONTROL_SEQUENCE_CORRID"), "'c' has no data_type"),
        (STATE.format("initial_state { data_type: TYPE_INT8 dims: 1 }"), "is FP32, but its initial_state is INT8"),
        (STATE.format("initial_state { } initial_state { }"), "it can have one"),
        (
            STATE.format('initial_state { data_type: TYPE_FP32 dims: 1 data_file: "../x" }'),
            "'initial_state/../x' is not a plain relative path",
        ),
        (STATE.format("} state { input_name: 's'"), "data_type"),
        (STATE.format("} state { input_name: 's' output_name: 'u' data_type: TYPE_FP32 dims: 1"), "a state twice"),
        (
            "sequence_batching { direct { minimum_slot_utilization: 2 } }",
            "minimum_slot_utilization is 2.0; it must be 0 to 1",
        ),
        ("sequence_batching { oldest { preferred_batch_size: 5 } } max_batch_size: 4", "is 5, but max_batch_size"),
        ("sequence_batching { oldest { max_candidate_sequences: -1 } }", "max_candidate_sequences is -1"),
        ("response_cache { enable: true } sequence_batching { }", "but so is sequence_batching"),
        (
            "response_cache { enable: true } model_transaction_policy { decoupled: true }",
            "model_transaction_policy is decoupled",
        ),
        (WARM.format("batch_size: 2"), "is 2, but max_batch_size is 0"),
        (WARM.format("count: 4000000"), "count of model_warmup 'w' is 4000000"),
        (WARM.format('inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 } }'), "needs zero_data"),
        (
            WARM.format('inputs { key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true } }'),
            "has dimension -1; it must be positive",
        ),
        (
            WARM.format('inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 input_data_file: "/x" } }'),
            "is not a plain relative path",
        ),
        (
            WARM.format('inputs { key: "x" value { data_type: TYPE_INT8 dims: 1 zero_data: true } }') + TENSORS,
            "is INT8, but the model's is FP32",
        ),
        (
            f'{TENSORS} ensemble_scheduling {{ step {{ model_name: "a" {STEP} }} }} instance_group {{ }}',
            "an ensemble has no instances of its own",
        ),
        (f'ensemble_scheduling {{ step {{ model_name: "a" {STEP} }} }}', "an ensemble needs input and output"),
        (f"{TENSORS} ensemble_scheduling {{ step {{ {STEP} }} }}", "has no model_name"),
        (f'{TENSORS} ensemble_scheduling {{ step {{ model_name: "a" }} }}', "has no input_map"),
        (
            f'{TENSORS} ensemble_scheduling {{ step {{ model_name: "a" model_version: -2 {STEP} }} }}',
            "model_version of step 'a' is -2",
        ),
        (
            'input { name: "a" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: 5 } }',
            "'a' has dims [2, 3], but its reshape is [5]",
        ),
        (
            'input { name: "a" data_type: TYPE_FP32 dims: [ -1, 2 ] reshape { shape: 2 } }',
            "equally many dimensions of any size",
        ),
        (parameter("meshnode_x", "1"), "'meshnode_x' is unknown; those of meshnode are meshnode_repeatable"),
        (parameter("meshnode_repeatable", "no"), "is 'no'; it must be true or false"),
        (parameter("meshnode_rate_limit_per_second", "nan"), "must be a number above 0"),
        (parameter("meshnode_rate_limit_per_second", "many"), "must be a number above 0"),
        (parameter("meshnode_rate_limit_burst", "2"), "but not meshnode_rate_limit_per_second"),
        (parameter("k", "v" * 5000), "is longer than 4096 characters"),
        ("max_batch_size: 2000000000", "must be 0 to 1048576"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_both_sides(text: str, reason: str) -> None:
    assert reason in refused(text)


BASE = Manifest("m", 1, "onnx", "p", (), (), 0, (), "")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Execution(replicas=-1), "replicas is -1"),
        (Execution(instance_groups=(InstanceGroup(),) * 65), "instance_group has 65 entries; at most 64"),
        (Execution(instance_groups=(InstanceGroup(1, "tpu"),)), "is for 'tpu'"),
        (Execution(steps=(EnsembleStep("a", 0, (), ()),) * 200), "ensemble_scheduling.step has 200"),
        (Execution(routes=(Route("GET", "/"),) * 300), "routes has 300 entries"),
        (Execution(sequences=SequenceBatching("random")), "sequence_batching.random is no strategy"),
        (Execution(batching=DynamicBatching(), sequences=SequenceBatching()), "are both set"),
        (Execution(rate_limit=RateLimit(float("nan"))), "the rate limit must be a number"),
        (Execution(warm_up=(WarmUp("w", 1, (WarmUpInput("x", FP32, (1,), "magic"),)),)), "no data that is known"),
    ],
)  # fmt: skip
def test_settings_from_elsewhere_are_checked_like_ones_own(
    settings: Execution, reason: str
) -> None:
    manifest = Manifest("m", 1, "onnx", "p", (), (), 0, (), "", execution=settings)
    with pytest.raises(ModelError, match=reason.replace("[", r"\[")):
        check_manifest(manifest)


def test_settings_without_tensors_are_checked_as_far_as_they_go() -> None:
    check_execution(Execution(reshape=(("a", (6,)),), optional_inputs=("b",)), 0)
    config = ModelConfig()
    check_execution(config.execution, config.max_batch_size)


def test_a_model_whose_instances_are_all_passive_is_refused() -> None:
    groups = (InstanceGroup(count=1, passive=True), InstanceGroup(count=2, passive=True))
    with pytest.raises(ModelError, match="every instance_group is passive"):
        check_execution(Execution(instance_groups=groups), 0)
    check_execution(Execution(instance_groups=(*groups, InstanceGroup())), 0)
