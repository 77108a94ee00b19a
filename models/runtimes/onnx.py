"""ONNX Runtime: imported when the first model is loaded, so that an idle node stays small.

Models are opened by path, so that external data is found beside the file; ONNX Runtime itself
refuses external data that lies outside the model's folder, by path or by link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.models.config import ONNX_PLATFORM, ONNX_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshnode.models.runtimes.onnx_session import OnnxModel

_PREFERENCE = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider")
"""Accelerators, best first. TensorRT is left out: it builds an engine for minutes at first load."""
_CPU = "CPUExecutionProvider"
_FATAL = 4  # ONNX Runtime's least talkative level; what goes wrong arrives as an exception


class OnnxRuntime:
    """Loads `.onnx` files.

    Attributes:
        providers: Execution providers in order of preference, the CPU last; None until the first
            model is loaded.
    """

    name = ONNX_RUNTIME
    platform = ONNX_PLATFORM

    def __init__(self) -> None:
        self.providers: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"<OnnxRuntime providers={self.providers}>"

    def load(self, folder: Path, entry: str, *, threads: int) -> OnnxModel:
        """Open an ONNX file; see `Runtime.load`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError(f"ONNX Runtime cannot be imported: {error}") from None
        # On demand, as ONNX Runtime itself: it brings NumPy with it.
        from meshnode.models.runtimes.onnx_session import OnnxModel, clean_reason

        if self.providers is None:
            onnxruntime.set_default_logger_severity(_FATAL)
            onnxruntime.disable_telemetry_events()
            self.providers = choose_providers(onnxruntime.get_available_providers())
        path = folder / entry
        if not path.is_file():
            raise ModelError(f"{entry!r} is missing in {folder}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=list(self.providers)
            )
        # Any of a dozen classes that derive from Exception alone, and what a provider throws.
        except Exception as error:  # noqa: BLE001
            raise ModelError(f"{entry!r} cannot be loaded: {clean_reason(error)}") from None
        return OnnxModel(session)


def choose_providers(available: Sequence[str]) -> tuple[str, ...]:
    """Return the accelerators that are there, best first, and the CPU."""
    return (*(name for name in _PREFERENCE if name in available), _CPU)
