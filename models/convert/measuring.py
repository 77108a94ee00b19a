"""The task `measure` of a child process: runs a finished file for its answers, speed and memory.

Each file is measured in a process of its own, with one thread and one row (or as many as the file insists
on), so that two files are told apart by themselves and not by what ran before.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.samples import load_arrays, save_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.models.convert.steps import Progress

    Run = Callable[[Sequence[Any]], list[Any]]

_CHUNK_ROWS: Final = 64
_FEWEST_RUNS: Final = 5
_ENOUGH_RUNS: Final = 500


class Measured:
    """A file that was opened.

    Attributes:
        run: Takes arrays in the order of its inputs; returns arrays in the order of its outputs.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        rows: The first dimension that it insists on; None if any will do.
    """

    __slots__ = ("inputs", "outputs", "rows", "run")

    def __init__(
        self, run: Run, inputs: Sequence[str], outputs: Sequence[str], rows: int | None
    ) -> None:
        self.run = run
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.rows = rows


def run(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Open `job["file"]`, run the arrays of `job["arrays"]`, write the answers to `job["answers"]`."""
    progress(f"measuring {Path(job['file']).name}")
    inputs, _ = load_arrays(job["arrays"])
    runtime = job["runtime"]
    for name in _LIBRARIES[runtime]:
        library(name)
    before_bytes = _resident_bytes()
    _forget_peak()
    opened = _OPENERS[runtime](job, inputs)
    found = _run_all(opened, inputs)
    latency_ms = _latency_ms(opened, inputs, float(job.get("measure_s", 1.0)))
    save_arrays(job["answers"], (), found)
    return {
        "inputs": opened.inputs,
        "outputs": opened.outputs,
        "latency_ms": latency_ms,
        "peak_memory_bytes": max(0, _peak_bytes() - before_bytes),
        "rows": opened.rows,
    }


def _run_all(opened: Measured, inputs: Sequence[Any]) -> list[Any]:
    """Run all rows in pieces, and join the answers."""
    total = min((len(array) for array in inputs if array.ndim), default=1)
    size = opened.rows or _CHUNK_ROWS
    if opened.rows is None and total <= size:
        return opened.run(inputs)
    parts: list[list[Any]] = []
    for start in range(0, total, size):
        piece = [_take(array, start, size, pad=opened.rows is not None) for array in inputs]
        kept = min(size, total - start)
        parts.append([each[:kept] if np.ndim(each) else each for each in opened.run(piece)])
    return [
        np.concatenate(each) if np.ndim(each[0]) else each[0] for each in zip(*parts, strict=True)
    ]


def _take(array: Any, start: int, size: int, *, pad: bool) -> Any:
    if not array.ndim:
        return array
    piece = array[start : start + size]
    return np.resize(piece, (size, *array.shape[1:])) if pad and len(piece) < size else piece


def _latency_ms(opened: Measured, inputs: Sequence[Any], measure_s: float) -> float:
    """Return the median time of one run in milliseconds."""
    one = [_take(array, 0, opened.rows or 1, pad=opened.rows is not None) for array in inputs]
    with suppress(Exception):  # a first dimension that is no batch may not be 1
        opened.run(one)
        return _median_ms(opened, one, measure_s)
    return _median_ms(opened, inputs, measure_s)


def _median_ms(opened: Measured, inputs: Sequence[Any], measure_s: float) -> float:
    times: list[float] = []
    end_s = time.perf_counter() + measure_s
    while len(times) < _FEWEST_RUNS or (time.perf_counter() < end_s and len(times) < _ENOUGH_RUNS):
        start_s = time.perf_counter()
        opened.run(inputs)
        times.append(time.perf_counter() - start_s)
    return statistics.median(times) * 1000


def _open_onnx(job: Mapping[str, Any], inputs: Sequence[Any]) -> Measured:
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()
    names = _matched(job["names"], [each.name for each in wanted])
    shapes = {each.name: each.shape for each in wanted}
    outputs = [each.name for each in session.get_outputs()]

    def run_once(arrays: Sequence[Any]) -> list[Any]:
        found: list[Any] = session.run(outputs, dict(zip(names, arrays, strict=True)))
        return found

    firsts = [shapes[name][0] for name in names if shapes[name]]
    return Measured(run_once, names, outputs, _fixed_rows(firsts, inputs))


def _open_torch(job: Mapping[str, Any], inputs: Sequence[Any]) -> Measured:
    torch = library("torch")
    torch.set_num_threads(1)
    module = torch.jit.load(job["file"], map_location="cpu").eval()

    def run_once(arrays: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in arrays))
        if isinstance(found, dict):
            found = tuple(found.values())
        parts = found if isinstance(found, (tuple, list)) else (found,)
        return [part.numpy() for part in parts]

    count = len(run_once([_take(array, 0, 1, pad=False) for array in inputs]))
    names = job["expected"][:count] or [f"output_{at}" for at in range(count)]
    return Measured(run_once, job["names"], names, None)


def _open_litert(job: Mapping[str, Any], inputs: Sequence[Any]) -> Measured:
    interpreter = library("ai_edge_litert.interpreter").Interpreter(job["file"], num_threads=1)
    signatures = interpreter.get_signature_list()
    if not signatures:
        raise ModelError("the TensorFlow Lite file has no signature, so its inputs have no names")
    key, signature = next(iter(signatures.items()))
    details = interpreter.get_signature_runner(key).get_input_details()
    names = _matched(job["names"], signature["inputs"])
    firsts = [details[name]["shape_signature"][0] for name in names if len(details[name]["shape"])]
    runner = interpreter.get_signature_runner(key)

    def run_once(arrays: Sequence[Any]) -> list[Any]:
        found = runner(**dict(zip(names, arrays, strict=True)))
        return [found[name] for name in signature["outputs"]]

    rows = _fixed_rows([int(each) if each > 0 else None for each in firsts], inputs)
    return Measured(run_once, names, signature["outputs"], rows)


def _fixed_rows(firsts: Sequence[Any], inputs: Sequence[Any]) -> int | None:
    """Return the first dimension that a file insists on, where the sample has another one."""
    fixed = [size for size in firsts if isinstance(size, int) and size > 0]
    lengths = {len(array) for array in inputs if array.ndim}
    return fixed[0] if fixed and lengths != set(fixed) else None


def _matched(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return a file's input names in the order of the sample: by name, else by position."""
    if len(wanted) != len(there):
        raise ModelError(f"the result has the inputs {list(there)}, the original {list(wanted)}")
    return list(wanted) if set(wanted) == set(there) else list(there)


_OPENERS: Final[dict[str, Callable[[Mapping[str, Any], Sequence[Any]], Measured]]] = {
    "onnx": _open_onnx,
    "torchscript": _open_torch,
    "tflite": _open_litert,
}
_LIBRARIES: Final = {
    "onnx": ("onnxruntime",),
    "torchscript": ("torch",),
    "tflite": ("ai_edge_litert.interpreter",),
}
"""Imported before memory is looked at: a library's own is not the model's."""


def _resident_bytes() -> int:
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * _page_bytes()
    return _peak_bytes()


def _page_bytes() -> int:
    import resource

    return resource.getpagesize()


def _forget_peak() -> None:
    """Let the kernel count the peak from here on, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
