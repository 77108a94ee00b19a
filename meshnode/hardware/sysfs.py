"""Accelerators that Linux shows in its file trees: AMD, Intel, and Coral's Edge TPU.

Each function reads one kind below a root folder (`/`, or a recorded tree in tests) and returns what
it found together with what it looked for in vain. Nothing is guessed: a graphics card whose compute
driver is not there is no accelerator, and the sentence says so.

| kind | shown by |
|---|---|
| AMD | `/sys/class/kfd`, the compute driver's topology; memory and use in `/sys/class/drm/renderD*` |
| Intel GPU, NPU | `/sys/class/drm/card*` and `/sys/class/accel/accel*` with Intel's vendor number |
| Edge TPU | `/dev/apex_*` (PCIe), two pairs of numbers in `/sys/bus/usb/devices` (USB) |
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from meshnode.capabilities import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

_AMD = "0x1002"
_INTEL = "0x8086"
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}  # before and after its firmware is loaded
_CARD = re.compile(r"card[0-9]+")


class Found(NamedTuple):
    """What one kind of search brought.

    Attributes:
        accelerators: What is there.
        folders: For each, the folder of its device, where its use can be read; None if there is none.
        absent: What is not there and why, or empty.
    """

    accelerators: tuple[Accelerator, ...]
    folders: tuple[Path | None, ...] = ()
    absent: str = ""


def find_amd(root: Path) -> Found:
    """Find AMD GPUs that ROCm can use."""
    found: list[tuple[Accelerator, Path]] = []
    for node in listed(root / "sys/class/kfd/kfd/topology/nodes"):
        facts = _properties(text_of(node / "properties"))
        isa = gfx_name(facts.get("gfx_target_version", 0))
        if not isa:
            continue  # a processor is a node of this topology too
        device = root / f"sys/class/drm/renderD{facts.get('drm_render_minor', 0)}/device"
        memory_bytes = _integer(text_of(device / "mem_info_vram_total")) or 0
        name = text_of(device / "product_name") or f"AMD GPU {text_of(device / 'device') or isa}"
        found.append((Accelerator("rocm", name, memory_bytes, _driver(device), isa), device))
    if found:
        return Found(tuple(each for each, _ in found), tuple(folder for _, folder in found))
    if any(text_of(card / "device/vendor") == _AMD for card in _cards(root)):
        return Found(
            (), (), "AMD ROCm: a GPU is there, but not its compute driver (/sys/class/kfd)"
        )
    return Found((), (), "AMD ROCm: no GPU in /sys/class/kfd")


def find_intel(root: Path) -> Found:
    """Find Intel's GPUs and neural processors."""
    cards = [card / "device" for card in _cards(root)]
    chips = [entry / "device" for entry in listed(root / "sys/class/accel")]
    found = [_intel("intel-gpu", "Intel GPU", each) for each in cards if _is_intel(each)]
    found += [_intel("intel-npu", "Intel NPU", each) for each in chips if _is_intel(each)]
    missing = "" if found else "Intel GPU, NPU: none in /sys/class/drm and /sys/class/accel"
    return Found(tuple(found), (None,) * len(found), missing)


def find_edge_tpu(root: Path) -> Found:
    """Find Coral's Edge TPUs."""
    on_pcie = [each for each in listed(root / "dev") if re.fullmatch(r"apex_[0-9]+", each.name)]
    on_usb = [
        device
        for device in listed(root / "sys/bus/usb/devices")
        if (text_of(device / "idVendor"), text_of(device / "idProduct")) in _CORAL_USB
    ]
    found = [Accelerator("edgetpu", "Coral Edge TPU (PCIe)") for _ in on_pcie]
    found += [Accelerator("edgetpu", "Coral Edge TPU (USB)") for _ in on_usb]
    missing = "" if found else "Edge TPU: no /dev/apex_* and no Coral device on USB"
    return Found(tuple(found), (None,) * len(found), missing)


def amd_use(device: Path) -> tuple[float, int] | None:
    """Return how busy an AMD GPU is (0 to 1) and its free memory in bytes, or None."""
    busy = _integer(text_of(device / "gpu_busy_percent"))
    total = _integer(text_of(device / "mem_info_vram_total"))
    used = _integer(text_of(device / "mem_info_vram_used"))
    if busy is None or total is None or used is None:
        return None
    return min(1.0, busy / 100), max(0, total - used)


def gfx_name(version: int) -> str:
    """Return the name of an AMD instruction set, such as `gfx90a` for 90010, or an empty text.

    The kernel counts major * 10,000 + minor * 100 + stepping; names write the last two in hexadecimal.
    """
    major, rest = divmod(version, 10_000)
    minor, stepping = divmod(rest, 100)
    return f"gfx{major}{minor:x}{stepping:x}" if version > 0 else ""


def _is_intel(device: Path) -> bool:
    return text_of(device / "vendor") == _INTEL


def _intel(kind: str, what: str, device: Path) -> Accelerator:
    return Accelerator(kind, f"{what} {text_of(device / 'device')}".rstrip(), 0, _driver(device))


def _driver(device: Path) -> str:
    try:
        return (device / "driver").resolve(strict=True).name
    except OSError:
        return ""


def _cards(root: Path) -> list[Path]:
    return [each for each in listed(root / "sys/class/drm") if _CARD.fullmatch(each.name)]


def _properties(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def listed(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def text_of(path: Path) -> str:
    """Return what a file says, without white space around it; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
