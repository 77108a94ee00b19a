"""Which execution provider of ONNX Runtime runs a model: a pure decision, with its reasons.

| provider | device | chosen |
|---|---|---|
| TensorRT | NVIDIA GPU | only where the configuration asks for it: building its engine takes minutes |
| CUDA | NVIDIA GPU | before the others, where its library and a GPU are there |
| MIGraphX, ROCm | AMD GPU | where they are there; MIGraphX is the newer one |
| CoreML | Apple GPU and Neural Engine | on Macs |
| DirectML | any GPU on Windows | on Windows |
| OpenVINO | Intel processor or GPU | only where the configuration asks for it |
| CPU | processor | always last: what the others cannot run, runs there |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.runtimes.base import Opening

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"

ACCELERATORS: Final = {
    CUDA: "cuda",
    "MIGraphXExecutionProvider": "rocm",
    "ROCMExecutionProvider": "rocm",
    "CoreMLExecutionProvider": "coreml",
    "DmlExecutionProvider": "directml",
}
"""The providers that are used unasked, best first, and the word for their devices."""

_INDEXED: Final = frozenset({"cuda", "rocm", "directml"})
"""Devices of which a machine may have several; the provider takes `device_id`."""

_TENSORRT_PARAMETERS: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "minimum_segment_size": "trt_min_subgraph_size",
    "max_partition_iterations": "trt_max_partition_iterations",
}
"""As Triton's configuration calls them, and as the provider does."""

_PRECISIONS: Final = {
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_fp16_enable": "1", "trt_int8_enable": "1"},
}

_ASKED: Final = {
    "tensorrt": (TENSORRT, "cpu"),
    "openvino": (OPENVINO, "gpu"),
    "cuda": (CUDA, "cpu"),
}
"""Execution accelerators: the provider of each, and the devices on which it does not run."""

_CUDA_PARAMETERS: Final = frozenset({
    "arena_extend_strategy", "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream", "enable_cuda_graph", "gpu_mem_limit", "prefer_nhwc", "use_tf32",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Providers to open a session with.

    Attributes:
        providers: (name, options), the CPU last.
        device: What people are shown, such as `cuda:0 (CUDAExecutionProvider)`.
    """

    providers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    device: str


@dataclass(frozen=True, slots=True)
class Choices:
    """What to try, best first, and what could not be followed.

    Attributes:
        choices: The last one is the CPU alone.
        warnings: Sentences about what was asked for and is not there.
    """

    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()


def choose(opening: Opening, available: Sequence[str]) -> Choices:
    """Return what to open a model with.

    Args:
        opening: Says which device, and which accelerators its configuration asks for.
        available: The providers that the installed ONNX Runtime was built with.
    """
    choices, warnings = _asked_for(opening, available)
    if opening.device != "cpu":
        there = [name for name in ACCELERATORS if name in available]
        choices += [_accelerator(name, opening) for name in there]
        if opening.device.startswith("gpu") and not choices:
            warnings.append(
                "a GPU is asked for, and ONNX Runtime has no provider for one here; it runs on the "
                "processor"
            )
    return Choices((*choices, Choice(((CPU, ()),), "cpu")), tuple(warnings))


def _asked_for(opening: Opening, available: Sequence[str]) -> tuple[list[Choice], list[str]]:
    """Return what the configuration's execution accelerators come to."""
    choices: list[Choice] = []
    warnings: list[str] = []
    for name, parameters in opening.execution.accelerators:
        if name not in _ASKED:
            warnings.append(f"execution accelerator {name!r} is not known to ONNX Runtime here")
            continue
        provider, other_device = _ASKED[name]
        if provider not in available:
            warnings.append(
                f"execution accelerator {name!r} is asked for, but this ONNX Runtime has no {provider}"
            )
        elif opening.device.startswith(other_device):
            continue  # another instance group's
        elif name == "tensorrt":
            choices.append(_tensorrt(opening, parameters))
        elif name == "openvino":
            choices.append(_openvino(opening))
        warnings += [
            f"execution accelerator {name!r}: parameter {key!r} has no effect"
            for key, _ in parameters
            if not _is_known(name, key)
        ]
    return choices, warnings


def _is_known(accelerator: str, key: str) -> bool:
    if accelerator == "cuda":
        return key in _CUDA_PARAMETERS
    return accelerator == "tensorrt" and (
        key == "precision_mode" or key in _TENSORRT_PARAMETERS or _is_plain_tensorrt(key)
    )


def _is_plain_tensorrt(key: str) -> bool:
    """Whether it is the provider's own word, and names nothing on the disk."""
    return key.startswith("trt_") and not any(word in key for word in ("path", "prefix", "lib"))


def _index(opening: Opening) -> str:
    return opening.device.partition(":")[2] or "0"


def _accelerator(provider: str, opening: Opening) -> Choice:
    word = ACCELERATORS[provider]
    options: list[tuple[str, str]] = []
    if word in _INDEXED:
        options.append(("device_id", _index(opening)))
        word = f"{word}:{_index(opening)}"
    if provider == CUDA:
        asked = dict(opening.execution.accelerators).get("cuda", ())
        options += [(key, value) for key, value in asked if key in _CUDA_PARAMETERS]
    return Choice(((provider, tuple(options)), (CPU, ())), f"{word} ({provider})")


def _tensorrt(opening: Opening, parameters: Sequence[tuple[str, str]]) -> Choice:
    options = {"device_id": _index(opening)}
    for key, value in parameters:
        if key == "precision_mode":
            options |= _PRECISIONS.get(value.upper(), {})
        elif key in _TENSORRT_PARAMETERS:
            options[_TENSORRT_PARAMETERS[key]] = value
        elif _is_plain_tensorrt(key):
            options[key] = value
    if opening.cache_folder is not None:  # an engine takes minutes to build
        options["trt_engine_cache_enable"] = "1"
        options["trt_engine_cache_path"] = str(opening.cache_folder)
    cuda = _accelerator(CUDA, opening).providers
    return Choice(
        ((TENSORRT, tuple(options.items())), *cuda), f"cuda:{_index(opening)} ({TENSORRT})"
    )


def _openvino(opening: Opening) -> Choice:
    options = (("device_type", "CPU"), ("num_of_threads", str(opening.threads)))
    return Choice(((OPENVINO, options), (CPU, ())), f"cpu ({OPENVINO})")
