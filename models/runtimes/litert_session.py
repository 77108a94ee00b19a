"""One LiteRT interpreter behind the runtimes' interface: the part that needs NumPy.

Names are those of the file's signature where it has one, of its tensors otherwise. Quantised tensors
are served as the integers that they are. An input is resized to what a request brings, so every
dimension that the file leaves open is open here.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.limits import MAX_LITERT_ERRORS_LENGTH
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.reasons import NewText, clean_reason
from meshnode.models.runtimes.value_sizes import LITERT, Graph, Node, works_by_values
from meshnode.models.tensors import DTYPES, bytes_array, numpy_buffer, to_numpy
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.models.runtimes.base import Opening
    from meshnode.models.runtimes.litert import Content

log = logging.getLogger(__name__)

_DATATYPES: Final = {
    np.dtype(dtype).type: datatype
    for datatype, dtype in DTYPES.items()
    if datatype is not DataType.BYTES
} | {np.bytes_: DataType.BYTES}
_EDGE_TPU: Final = {
    "linux": "libedgetpu.so.1",
    "darwin": "libedgetpu.1.dylib",
    "win32": "edgetpu.dll",
}
"""The one delegate that is loaded by name: a library is code, so a model cannot name others."""
_SIGNATURE: Final = "serving_default"
"""The signature that exporters make first; parameter `signature` names another one."""


class LitertModel:
    """One interpreter; see `LoadedModel`. It does one run at a time.

    Attributes:
        inputs: Input tensors as the file states them.
        outputs: Output tensors as the file states them.
        device: Where it runs.
        works_by_values: Whether values in its inputs may decide how long it runs. A run cannot be ended, so such
            a one holds its interpreter until it has ended by itself.
    """

    def __init__(self, content: Content, opening: Opening) -> None:
        """Open a file.

        Args:
            content: The file's bytes, which the interpreter goes on reading.
            opening: How it is opened.

        Raises:
            ModelError: if it cannot be opened, or has tensors that cannot be served.
        """
        self._running = threading.Lock()
        self._content: Content | None = content
        self._threads = opening.threads
        self._delegates, self.device = _delegates(opening)
        self._errors = NewText()
        try:
            self._interpreter: Any = self._opened(content)
            ins = {each["index"]: each for each in self._interpreter.get_input_details()}
            outs = {each["index"]: each for each in self._interpreter.get_output_details()}
            signatures = self._interpreter._get_full_signature_list()
            self.works_by_values = works_by_values(_graph(self._interpreter, ins), LITERT)
        # RuntimeError, ValueError, and what its binding raises.
        except Exception as error:  # noqa: BLE001
            raise ModelError(f"{opening.entry!r} cannot be loaded: {clean_reason(error)}") from None
        signature = _signature(signatures, opening)
        self._ins = _named("input", ins, signature.get("inputs"))
        self._outs = _named("output", outs, signature.get("outputs"))
        self.inputs = tuple(_spec("input", name, ins[at]) for name, at in self._ins.items())
        self.outputs = tuple(_spec("output", name, outs[at]) for name, at in self._outs.items())
        self._types = {spec.name: spec.datatype for spec in self.outputs}
        # The shape that each input has in the interpreter now.
        self._shapes: dict[int, tuple[int, ...]] = {
            at: tuple(map(int, each["shape"])) for at, each in ins.items()
        }

    def __repr__(self) -> str:
        return f"<LitertModel {list(self._outs)} on {self.device}>"

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request; the outputs' data are copies of the interpreter's."""
        given = [
            (
                self._ins[tensor.name],
                bytes_array(tensor) if tensor.datatype is DataType.BYTES else to_numpy(tensor),
            )
            for tensor in inputs
        ]
        names = outputs or tuple(self._outs)
        with self._running:
            try:
                self._resize(given)
                for at, array in given:
                    self._interpreter.set_tensor(at, array)
                self._interpreter.invoke()
                arrays = [self._interpreter.get_tensor(self._outs[name]) for name in names]
            except MeshError:
                raise
            # The edge where a model's own failures are translated, whatever their class.
            except Exception as error:  # noqa: BLE001
                self._shapes = {}  # a failed run may leave it half resized
                reason = self._errors.of(error)
                self._forget_errors()
                raise InferenceFailed(f"the model failed: {reason}") from None
        return tuple(
            Tensor(name, self._types[name], array.shape, numpy_buffer(array, self._types[name]))
            for name, array in zip(names, arrays, strict=True)
        )

    def close(self) -> None:
        """Drop the interpreter, and its memory with it."""
        self._interpreter = None
        self._content = None

    def _opened(self, content: Content) -> Any:
        interpreter: Any = Interpreter(
            model_content=content.data,
            num_threads=self._threads,
            experimental_delegates=self._delegates or None,
        )
        interpreter.allocate_tensors()
        return interpreter

    def _forget_errors(self) -> None:
        """Open it again once its errors fill memory: an interpreter keeps the text of each for ever."""
        if self._errors.told > MAX_LITERT_ERRORS_LENGTH and self._content is not None:
            self._interpreter = self._opened(self._content)
            self._errors = NewText()

    def _resize(self, given: list[tuple[int, Any]]) -> None:
        changed = [(at, array.shape) for at, array in given if self._shapes.get(at) != array.shape]
        if not changed:
            return
        for at, shape in changed:
            self._interpreter.resize_tensor_input(at, shape)
        self._interpreter.allocate_tensors()
        self._shapes |= dict(changed)


def _graph(interpreter: Any, inputs: Iterable[int]) -> Graph:
    """Return the operations of the file's first graph."""
    nodes = tuple(
        Node(each["op_name"], _names(each["inputs"]), _names(each["outputs"]))
        for each in interpreter._get_ops_details()
    )
    return Graph(_names(inputs), nodes)


def _names(tensors: Iterable[int]) -> tuple[str, ...]:
    return tuple(str(at) if at >= 0 else "" for at in tensors)


def _delegates(opening: Opening) -> tuple[list[Any], str]:
    """Return the delegates that the configuration asks for and that are there, and the device's name."""
    for name, _ in opening.execution.accelerators:
        if name != "edgetpu":
            continue
        library = _EDGE_TPU.get(sys.platform, "")
        try:
            # Looked for here first: the library's own loader writes of what is missing to stderr.
            ctypes.CDLL(library)
            return [load_delegate(library)], "edgetpu"
        except (OSError, ValueError) as error:
            log.warning(
                "model %s version %d asks for an Edge TPU, which cannot be used (%s); it runs on the "
                "processor",
                opening.model, opening.version, clean_reason(error),
            )  # fmt: skip
    return [], "cpu"


def _signature(signatures: dict[str, Any], opening: Opening) -> dict[str, Any]:
    wanted = dict(opening.execution.parameters).get("signature", "")
    if wanted and wanted not in signatures:
        known = ", ".join(map(repr, signatures)) or "none"
        raise ModelError(f"{opening.entry!r} has no signature {wanted!r}; it has {known}")
    name = wanted or (_SIGNATURE if _SIGNATURE in signatures else next(iter(signatures), ""))
    found: dict[str, Any] = signatures.get(name, {})
    return found


def _named(kind: str, tensors: dict[int, Any], signature: dict[str, int] | None) -> dict[str, int]:
    """Return the index of each tensor by its public name."""
    if not signature:
        return {str(each["name"]): at for at, each in tensors.items()}
    if not set(signature.values()) <= set(tensors):
        raise ModelError(
            f"the signature's {kind}s are not those of the file's first graph, which alone is served; "
            f"choose another one with the parameter 'signature'"
        )
    return dict(signature)


def _spec(kind: str, name: str, tensor: Any) -> TensorSpec:
    datatype = _DATATYPES.get(tensor["dtype"])
    if datatype is None:
        raise ModelError(
            f"{kind} {name!r} is {np.dtype(tensor['dtype'])}, which cannot be served; convert the "
            "model with plain types at its edge"
        )
    signature = tensor["shape_signature"]
    # The signature has the open dimensions; older files have none and fix every size.
    sizes = signature if len(signature) == len(tensor["shape"]) else tensor["shape"]
    return TensorSpec(name, datatype, tuple(-1 if size < 0 else int(size) for size in sizes))
