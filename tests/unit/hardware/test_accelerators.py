"""Every kind of accelerator, from recorded trees and a stand-in for NVIDIA's library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.advertisement import AcceleratorLoad
from meshnode.capabilities import Accelerator
from meshnode.hardware.accelerators import Accelerators, find_apple, missing_providers
from meshnode.hardware.nvidia import LIBRARY, Nvidia
from meshnode.hardware.sysfs import find_amd, find_edge_tpu, find_intel, gfx_name
from meshnode.limits import MAX_CAPABILITY_TEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

H200_BYTES = 150_754_820_096


class FakeNvml:
    """NVIDIA's library with two GPUs; what is in `silent` is not supported."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int = 2, silent: tuple[str, ...] = ()) -> None:
        self.count = count
        self.silent = silent

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda _: b"NVIDIA H200",
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=H200_BYTES, free=H200_BYTES),
            "nvmlSystemGetDriverVersion": lambda: "570.86.10",
            "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
            "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=25 * (index + 1)),
        }
        if name in self.silent:
            return self._unsupported
        return answers[name]

    def _unsupported(self, *_: object) -> None:
        raise self.NVMLError("not supported")


def test_nvidia_gpus_are_described_with_memory_driver_and_what_to_build_for() -> None:
    nvidia = Nvidia(FakeNvml)
    assert nvidia.absent == ""
    assert nvidia.found == (Accelerator("cuda", "NVIDIA H200", H200_BYTES, "570.86.10", "9.0"),) * 2
    assert nvidia.loads() == (
        AcceleratorLoad(0, 0.25, H200_BYTES),
        AcceleratorLoad(1, 0.5, H200_BYTES),
    )


def test_a_gpu_that_tells_little_is_listed_all_the_same() -> None:
    """As a Jetson does, whose GPU has no memory of its own."""
    silent = (
        "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion",
        "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetUtilizationRates",
    )  # fmt: skip
    nvidia = Nvidia(lambda: FakeNvml(1, silent))
    assert nvidia.found == (Accelerator("cuda", "NVIDIA GPU"),)
    assert nvidia.loads() == ()


def missing_library() -> Any:
    raise OSError("no such file")


def missing_package() -> Any:
    raise ImportError("No module named 'pynvml'")


@pytest.mark.parametrize(
    ("load_nvml", "absent"),
    [
        (missing_library, f"NVIDIA: no {LIBRARY}"),
        (missing_package, "NVIDIA: No module named 'pynvml'"),
        (lambda: FakeNvml(0), f"NVIDIA: {LIBRARY} is there, but no GPU"),
        (
            lambda: FakeNvml(1, ("nvmlInit",)),
            f"NVIDIA: {LIBRARY} is there, but says: not supported",
        ),
    ],
)
def test_what_is_not_there_is_told_with_the_reason(
    load_nvml: Callable[[], Any], absent: str
) -> None:
    nvidia = Nvidia(load_nvml)
    assert (nvidia.found, nvidia.absent) == ((), absent)
    assert nvidia.loads() == ()


def test_a_driver_that_is_replaced_while_the_node_runs_tells_nothing_any_more() -> None:
    fake = FakeNvml(1)
    nvidia = Nvidia(lambda: fake)
    fake.silent = ("nvmlDeviceGetCount",)
    assert nvidia.loads() == ()


MI250 = {
    "sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 64\ngfx_target_version 0\n",
    "sys/class/kfd/kfd/topology/nodes/1/properties": (
        "simd_count 416\ngfx_target_version 90010\nvendor_id 4098\ndrm_render_minor 128\nname\n"
    ),
    "sys/class/drm/renderD128/device/mem_info_vram_total": "68702699520\n",
    "sys/class/drm/renderD128/device/mem_info_vram_used": "702699520\n",
    "sys/class/drm/renderD128/device/gpu_busy_percent": "40\n",
    "sys/class/drm/renderD128/device/device": "0x740c\n",
    "sys/bus/pci/drivers/amdgpu/bind": "",
    "sys/class/drm/renderD128/device/driver": "-> ../../../../../sys/bus/pci/drivers/amdgpu",
}


def test_an_amd_gpu_is_told_from_its_compute_driver(tree: Tree) -> None:
    root = tree(MI250)
    found = find_amd(root)
    assert found.accelerators == (
        Accelerator("rocm", "AMD GPU 0x740c", 68_702_699_520, "amdgpu", "gfx90a"),
    )
    assert found.absent == ""
    accelerators = Accelerators(root, system="Linux", load_nvml=missing_library)
    assert accelerators.measurable
    assert accelerators.loads() == (AcceleratorLoad(0, 0.4, 68_000_000_000),)


def test_an_amd_gpu_that_does_not_tell_its_use_has_no_load(tree: Tree) -> None:
    files = {key: value for key, value in MI250.items() if "busy" not in key}
    accelerators = Accelerators(tree(files), system="Linux", load_nvml=missing_library)
    assert accelerators.loads() == ()


def test_an_amd_gpu_without_its_compute_driver_is_absent_with_the_reason(tree: Tree) -> None:
    found = find_amd(tree({"sys/class/drm/card0/device/vendor": "0x1002\n"}))
    assert found.accelerators == ()
    assert found.absent == ("AMD ROCm: a GPU is there, but not its compute driver (/sys/class/kfd)")


@pytest.mark.parametrize(
    ("version", "name"), [(90010, "gfx90a"), (100302, "gfx1032"), (110000, "gfx1100"), (0, "")]
)
def test_an_instruction_set_is_named_as_compilers_name_it(version: int, name: str) -> None:
    assert gfx_name(version) == name


def test_intels_gpu_and_neural_processor_are_told_by_vendor(tree: Tree) -> None:
    root = tree(
        {
            "sys/class/drm/card0/device/vendor": "0x8086\n",
            "sys/class/drm/card0/device/device": "0x7d55\n",
            "sys/bus/pci/drivers/xe/bind": "",
            "sys/class/drm/card0/device/driver": "-> ../../../../../sys/bus/pci/drivers/xe",
            "sys/class/drm/card0-DP-1/status": "connected\n",
            "sys/class/drm/card1/device/vendor": "0x10de\n",
            "sys/class/accel/accel0/device/vendor": "0x8086\n",
            "sys/class/accel/accel0/device/device": "0x7d1d\n",
        }
    )
    assert find_intel(root).accelerators == (
        Accelerator("intel-gpu", "Intel GPU 0x7d55", 0, "xe"),
        Accelerator("intel-npu", "Intel NPU 0x7d1d"),
    )


def test_edge_tpus_are_told_on_pcie_and_on_usb_before_and_after_their_firmware(tree: Tree) -> None:
    root = tree(
        {
            "dev/apex_0": "",
            "dev/apex_x": "",
            "sys/bus/usb/devices/1-1/idVendor": "1a6e\n",
            "sys/bus/usb/devices/1-1/idProduct": "089a\n",
            "sys/bus/usb/devices/2-1/idVendor": "18d1\n",
            "sys/bus/usb/devices/2-1/idProduct": "9302\n",
            "sys/bus/usb/devices/3-1/idVendor": "18d1\n",
            "sys/bus/usb/devices/3-1/idProduct": "4ee7\n",
        }
    )
    names = [each.name for each in find_edge_tpu(root).accelerators]
    assert names == ["Coral Edge TPU (PCIe)", "Coral Edge TPU (USB)", "Coral Edge TPU (USB)"]


def apple(name: str) -> str:
    return {"machdep.cpu.brand_string": "Apple M2 Pro", "hw.memsize": "17179869184"}[name]


def test_apples_chip_shares_the_machines_memory() -> None:
    found = Accelerators(system="Darwin", read_sysctl=apple)
    assert found.found == (Accelerator("apple", "Apple M2 Pro", 16 * 1024**3),)
    assert found.absent == ("NVIDIA, AMD ROCm, Edge TPU: not looked for on macOS",)
    assert not found.measurable


@pytest.mark.parametrize(
    ("system", "answer", "absent"),
    [
        ("Linux", "", "Apple: not macOS"),
        ("Darwin", "Intel(R) Core(TM) i7", "Apple: the processor is Intel(R) Core(TM) i7, not one"),
        ("Darwin", "", "Apple: the processor is not told"),
    ],
)
def test_without_apples_chip_the_reason_is_told(system: str, answer: str, absent: str) -> None:
    found, why = find_apple(system, lambda _: answer)
    assert found == ()
    assert why.startswith(absent)


def test_an_empty_machine_names_everything_that_was_looked_for(tree: Tree) -> None:
    found = Accelerators(tree({}), system="Linux", load_nvml=missing_library)
    assert found.found == ()
    assert [each.split(":")[0] for each in found.absent] == [
        "NVIDIA", "AMD ROCm", "Intel GPU, NPU", "Edge TPU", "Apple",
    ]  # fmt: skip
    windows = Accelerators(tree({}), system="Windows", load_nvml=missing_library)
    assert windows.absent[-1] == "AMD, Intel, Edge TPU: not looked for on Windows"


ALL = (
    "CUDAExecutionProvider", "TensorrtExecutionProvider", "MIGraphXExecutionProvider",
    "ROCMExecutionProvider", "OpenVINOExecutionProvider", "CoreMLExecutionProvider",
    "DmlExecutionProvider", "CPUExecutionProvider",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "providers", "sentence"),
    [
        ("cuda", (), "ONNX Runtime: no CUDA, TensorRT; install onnxruntime-gpu"),
        ("cuda", ("CUDAExecutionProvider",), "ONNX Runtime: no TensorRT; there is CUDA"),
        ("rocm", (), "ONNX Runtime: no MIGraphX, ROCm; install AMD's onnxruntime-migraphx"),
        ("rocm", ("ROCMExecutionProvider",), "ONNX Runtime: no MIGraphX; there is ROCm"),
        ("intel-gpu", (), "ONNX Runtime: no OpenVINO; install onnxruntime-openvino"),
        ("intel-npu", (), "ONNX Runtime: no OpenVINO; install onnxruntime-openvino"),
        ("apple", (), "ONNX Runtime: no CoreML; install onnxruntime for macOS"),
        ("edgetpu", ALL, "ONNX Runtime: it has no provider for edgetpu"),
    ],
)
def test_the_providers_that_lack_for_an_accelerator_are_named(
    kind: str, providers: tuple[str, ...], sentence: str
) -> None:
    found = (Accelerator(kind, "one"), Accelerator(kind, "another"))
    assert missing_providers(found, ("CPUExecutionProvider", *providers), "Linux") == (sentence,)
    assert missing_providers(found, (), "Linux") == ()  # not asked yet
    assert kind == "edgetpu" or missing_providers(found, ALL, "Windows") == ()


def test_directml_lacks_on_windows_only() -> None:
    gpu = (Accelerator("cuda", "NVIDIA"),)
    said = missing_providers(gpu, ALL[:2], "Windows")
    assert said == ("ONNX Runtime: no DirectML; install onnxruntime-directml",)
    assert missing_providers(gpu, ALL[:2], "Linux") == ()


def test_without_an_accelerator_one_sentence_names_the_providers_that_were_looked_for() -> None:
    (sentence,) = missing_providers((), ("CPUExecutionProvider", "OpenVINOExecutionProvider"))
    assert sentence == (
        "ONNX Runtime: no CUDA, TensorRT, MIGraphX, ROCm, CoreML, DirectML, and no accelerator for "
        "them"
    )
    assert len(sentence) < MAX_CAPABILITY_TEXT_LENGTH
