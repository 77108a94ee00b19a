"""Which execution provider a model runs on, and what is said where a wish cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshnode.models.execution import Execution
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.providers import choose

EVERY = (
    "TensorrtExecutionProvider",
    "DmlExecutionProvider",
    "CUDAExecutionProvider",
    "AzureExecutionProvider",
    "OpenVINOExecutionProvider",
    "CPUExecutionProvider",
)


def opening(device: str = "auto", *accelerators: Any, cache: Path | None = None) -> Opening:
    execution = Execution(accelerators=accelerators)
    return Opening(
        folder=Path(), entry="m", device=device, threads=2, execution=execution, cache_folder=cache
    )


def devices(opening: Opening, available: tuple[str, ...] = EVERY) -> list[str]:
    return [choice.device for choice in choose(opening, available).choices]


def test_accelerators_come_first_and_the_processor_is_always_last() -> None:
    assert devices(opening()) == [
        "cuda:0 (CUDAExecutionProvider)",
        "directml:0 (DmlExecutionProvider)",
        "cpu",
    ]
    assert devices(opening(), ("CoreMLExecutionProvider", "CPUExecutionProvider")) == [
        "coreml (CoreMLExecutionProvider)",
        "cpu",
    ]
    assert devices(opening(), ("AzureExecutionProvider", "CPUExecutionProvider")) == ["cpu"]
    for choice in choose(opening(), EVERY).choices:
        assert choice.providers[-1] == ("CPUExecutionProvider", ())


def test_an_instance_group_decides_on_the_device() -> None:
    assert devices(opening("cpu")) == ["cpu"]
    first = choose(opening("gpu:3"), EVERY).choices[0]
    assert first.device == "cuda:3 (CUDAExecutionProvider)"
    assert first.providers[0] == ("CUDAExecutionProvider", (("device_id", "3"),))


def test_a_gpu_that_is_asked_for_and_missing_is_told() -> None:
    chosen = choose(opening("gpu"), ("CPUExecutionProvider",))
    assert [choice.device for choice in chosen.choices] == ["cpu"]
    assert "no provider for one here; it runs on the processor" in chosen.warnings[0]
    assert choose(opening("auto"), ("CPUExecutionProvider",)).warnings == ()


def test_tensorrt_is_used_where_it_is_asked_for_with_its_engine_kept(tmp_path: Path) -> None:
    parameters = (("precision_mode", "FP16"), ("max_workspace_size_bytes", "1000"), ("odd", "1"))
    asked = opening("auto", ("tensorrt", parameters), cache=tmp_path)
    chosen = choose(asked, EVERY)
    assert [choice.device for choice in chosen.choices][:2] == [
        "cuda:0 (TensorrtExecutionProvider)",
        "cuda:0 (CUDAExecutionProvider)",
    ]
    (name, options), *others = chosen.choices[0].providers
    assert name == "TensorrtExecutionProvider"
    assert dict(options) == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1000",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
    }
    assert [each[0] for each in others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert chosen.warnings == ("execution accelerator 'tensorrt': parameter 'odd' has no effect",)
    on_cpu = opening("cpu", ("tensorrt", ()))
    assert devices(on_cpu) == ["cpu"]


def test_a_model_cannot_name_places_on_the_disk() -> None:
    parameters = (("trt_engine_cache_path", "/etc"), ("trt_extra_plugin_lib_paths", "/x.so"))
    chosen = choose(opening("auto", ("tensorrt", parameters)), EVERY)
    options = dict(chosen.choices[0].providers[0][1])
    assert "trt_engine_cache_path" not in options
    assert "trt_extra_plugin_lib_paths" not in options
    assert len(chosen.warnings) == 2


def test_what_is_asked_for_and_missing_or_unknown_is_told() -> None:
    asked = opening("auto", ("tensorrt", ()), ("openvino", ()), ("magic", ()))
    tensorrt, openvino, magic = choose(asked, ("CPUExecutionProvider",)).warnings
    assert tensorrt.endswith("this ONNX Runtime has no TensorrtExecutionProvider")
    assert openvino.endswith("this ONNX Runtime has no OpenVINOExecutionProvider")
    assert magic == "execution accelerator 'magic' is not known to ONNX Runtime here"


def test_openvino_is_asked_for_and_keeps_to_the_threads() -> None:
    chosen = choose(opening("cpu", ("openvino", ())), EVERY)
    assert [choice.device for choice in chosen.choices] == [
        "cpu (OpenVINOExecutionProvider)",
        "cpu",
    ]
    assert dict(chosen.choices[0].providers[0][1])["num_of_threads"] == "2"


def test_cuda_s_own_parameters_are_passed_on() -> None:
    chosen = choose(opening("auto", ("cuda", (("gpu_mem_limit", "9"), ("no", "1")))), EVERY)
    assert dict(chosen.choices[0].providers[0][1]) == {"device_id": "0", "gpu_mem_limit": "9"}
    assert chosen.warnings == ("execution accelerator 'cuda': parameter 'no' has no effect",)
