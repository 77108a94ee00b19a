"""NVIDIA GPUs through the driver's management library (NVML).

`pynvml` (the package nvidia-ml-py) is imported only where the library is, so that a machine without
such a GPU pays nothing. A fact that a GPU does not tell (a Jetson has no memory of its own) is left
out; the GPU is still listed.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from meshnode.advertisement import AcceleratorLoad
from meshnode.capabilities import Accelerator

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
"""What every NVIDIA driver installs."""


class Nvidia:
    """The NVIDIA GPUs of this machine.

    Attributes:
        found: One entry for each.
        absent: Why there is none, or empty.
    """

    def __init__(self, load_nvml: Callable[[], Any] | None = None) -> None:
        """Look for the library and ask it.

        Args:
            load_nvml: Returns the module `pynvml`; raises OSError without the library.
        """
        self.found: tuple[Accelerator, ...] = ()
        self.absent = ""
        self._nvml: Any = None
        try:
            nvml = (load_nvml or _pynvml)()
        except (OSError, ImportError) as error:
            self.absent = (
                f"NVIDIA: no {LIBRARY}" if isinstance(error, OSError) else f"NVIDIA: {error}"
            )
            return
        try:
            nvml.nvmlInit()
            self.found = tuple(_describe(nvml, handle) for handle in _handles(nvml))
        except nvml.NVMLError as error:
            self.absent = f"NVIDIA: {LIBRARY} is there, but says: {error}"
            return
        self._nvml = nvml
        if not self.found:
            self.absent = f"NVIDIA: {LIBRARY} is there, but no GPU"

    def __repr__(self) -> str:
        return f"<Nvidia with {len(self.found)} GPUs>"

    def loads(self) -> tuple[AcceleratorLoad, ...]:
        """Return how busy each GPU is now; those that do not tell are left out."""
        if self._nvml is None:
            return ()
        loads = []
        with suppress(self._nvml.NVMLError):  # the driver was replaced while this runs
            for index, handle in enumerate(_handles(self._nvml)):
                with suppress(self._nvml.NVMLError):
                    busy = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                    free = self._nvml.nvmlDeviceGetMemoryInfo(handle).free
                    loads.append(AcceleratorLoad(index, busy, free))
        return tuple(loads)


def _pynvml() -> Any:
    ctypes.CDLL(LIBRARY)  # far cheaper than the package, and says at once that there is none
    import pynvml

    return pynvml


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _describe(nvml: Any, handle: Any) -> Accelerator:
    name, memory_bytes, driver, compute = "", 0, "", ""
    with suppress(nvml.NVMLError):
        name = _text(nvml.nvmlDeviceGetName(handle))
    with suppress(nvml.NVMLError):
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    with suppress(nvml.NVMLError):
        driver = _text(nvml.nvmlSystemGetDriverVersion())
    with suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        compute = f"{major}.{minor}"
    return Accelerator("cuda", name or "NVIDIA GPU", memory_bytes, driver, compute)


def _text(value: str | bytes) -> str:
    """Older versions of the package return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
