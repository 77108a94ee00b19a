"""Everything that computes besides the processor, what was looked for in vain, and how busy it is."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.advertisement import AcceleratorLoad
from meshnode.capabilities import Accelerator
from meshnode.hardware.machine import sysctl
from meshnode.hardware.nvidia import Nvidia
from meshnode.hardware.sysfs import amd_use, find_amd, find_edge_tpu, find_intel

if TYPE_CHECKING:
    from collections.abc import Callable

_PROVIDERS: Final = {
    "CUDAExecutionProvider": "CUDA",
    "TensorrtExecutionProvider": "TensorRT",
    "MIGraphXExecutionProvider": "MIGraphX",
    "ROCMExecutionProvider": "ROCm",
    "OpenVINOExecutionProvider": "OpenVINO",
    "CoreMLExecutionProvider": "CoreML",
    "DmlExecutionProvider": "DirectML",
}
"""The execution providers that are looked for, and what people call them."""


class _Known(NamedTuple):
    providers: tuple[str, ...]  # of ONNX Runtime for one kind of accelerator
    advice: str  # where none of them is there


_OPENVINO = _Known(("OpenVINOExecutionProvider",), "install onnxruntime-openvino")
_DIRECTML = _Known(("DmlExecutionProvider",), "install onnxruntime-directml")
_PROVIDERS_OF: Final = {
    "cuda": _Known(
        ("CUDAExecutionProvider", "TensorrtExecutionProvider"), "install onnxruntime-gpu"
    ),
    "rocm": _Known(
        ("MIGraphXExecutionProvider", "ROCMExecutionProvider"), "install AMD's onnxruntime-migraphx"
    ),
    "intel-gpu": _OPENVINO,
    "intel-npu": _OPENVINO,
    "apple": _Known(("CoreMLExecutionProvider",), "install onnxruntime for macOS"),
}


class Accelerators:
    """This machine's accelerators; looked for once, at the start.

    Attributes:
        found: Each with what is known of it; the index of a load is its place here.
        absent: What was looked for and is not there, as sentences.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        system: str | None = None,
        load_nvml: Callable[[], Any] | None = None,
        read_sysctl: Callable[[str], str] = sysctl,
    ) -> None:
        """Look for all kinds.

        Args:
            root: The root folder of the file system.
            system: As `platform.system()`; this machine's by default.
            load_nvml: As `Nvidia` takes it.
            read_sysctl: Reads a value of macOS' kernel.
        """
        system = system or platform.system()
        self._nvidia: Nvidia | None = None
        found: list[Accelerator] = []
        absent: list[str] = []
        self._amd: list[tuple[int, Path]] = []
        if system == "Darwin":
            absent.append("NVIDIA, AMD ROCm, Edge TPU: not looked for on macOS")
        else:
            self._nvidia = Nvidia(load_nvml)
            found += self._nvidia.found
            absent.append(self._nvidia.absent)
        if system == "Linux":
            for search in (find_amd, find_intel, find_edge_tpu):
                result = search(root)
                self._amd += [
                    (len(found) + index, folder)
                    for index, folder in enumerate(result.folders)
                    if folder is not None
                ]
                found += result.accelerators
                absent.append(result.absent)
        apple, why_not = find_apple(system, read_sysctl)
        found += apple
        absent.append(why_not)
        if system == "Windows":
            absent.append("AMD, Intel, Edge TPU: not looked for on Windows")
        self.found = tuple(found)
        self.absent = tuple(filter(None, absent))

    def __repr__(self) -> str:
        return f"<Accelerators: {[each.kind for each in self.found]}>"

    @property
    def measurable(self) -> bool:
        """Whether any of them tells how busy it is."""
        return bool(self._amd) or (self._nvidia is not None and bool(self._nvidia.found))

    def loads(self) -> tuple[AcceleratorLoad, ...]:
        """Return how busy those are that tell; this may take some milliseconds."""
        loads = list(self._nvidia.loads()) if self._nvidia is not None else []
        for index, folder in self._amd:
            use = amd_use(folder)
            if use is not None:
                loads.append(AcceleratorLoad(index, *use))
        return tuple(loads)


def find_apple(
    system: str, read_sysctl: Callable[[str], str]
) -> tuple[tuple[Accelerator, ...], str]:
    """Return Apple's chip with the memory that it shares with the processor, or why it is not there."""
    if system != "Darwin":
        return (), "Apple: not macOS"
    name = read_sysctl("machdep.cpu.brand_string")
    if not name.startswith("Apple"):
        return (), f"Apple: the processor is {name or 'not told'}, not one of Apple's"
    memory = read_sysctl("hw.memsize")
    return (Accelerator("apple", name, int(memory) if memory.isdigit() else 0),), ""


def missing_providers(
    found: tuple[Accelerator, ...], providers: tuple[str, ...], system: str | None = None
) -> tuple[str, ...]:
    """Return what keeps ONNX Runtime from accelerators that are there, as sentences.

    Where no accelerator is there, one sentence names the providers that were looked for.

    Args:
        found: This machine's accelerators.
        providers: The execution providers of the installed ONNX Runtime; empty where it is not known.
        system: As `platform.system()`; this machine's by default.
    """
    if not providers:
        return ()
    if not found:
        absent = [name for provider, name in _PROVIDERS.items() if provider not in providers]
        return (f"ONNX Runtime: no {', '.join(absent)}, and no accelerator for them",)
    kinds = dict.fromkeys(each.kind for each in found)
    wanted = {**{kind: _PROVIDERS_OF.get(kind) for kind in kinds}}
    if (system or platform.system()) == "Windows":
        wanted["directml"] = _DIRECTML
    sentences = []
    for kind, known in wanted.items():
        if known is None:
            sentences.append(f"ONNX Runtime: it has no provider for {kind}")
            continue
        absent = [_PROVIDERS[each] for each in known.providers if each not in providers]
        if not absent:
            continue
        there = [_PROVIDERS[each] for each in known.providers if each in providers]
        what = f"there is {there[0]}" if there else known.advice
        sentences.append(f"ONNX Runtime: no {', '.join(absent)}; {what}")
    return tuple(sentences)
