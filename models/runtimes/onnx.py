"""ONNX Runtime: imported when the first model is loaded, so that an idle node stays small.

Models are opened by path, so that external data is found beside the file; ONNX Runtime itself
refuses external data that lies outside the model's folder, by path or by link. The file itself it reads; external
data it maps, so that of files that others may change (`Opening.files_stay`) this is read into memory instead.

A graph that was optimised ahead of time (`Opening.graphs`, by `meshnode bake`) is opened as it is, without optimising
it again; where it does not open, the file itself is, with a warning.

The execution provider is chosen by `meshnode.models.runtimes.providers`. One that is there but does not
start (a driver that is too old, memory that is full) is passed over with a warning, and the next is tried.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ModelError
from meshnode.limits import MAX_COMPILED_GRAPH_BYTES
from meshnode.models.repository.config import ONNX_PLATFORM, ONNX_RUNTIME
from meshnode.models.runtimes.base import Capability, Described
from meshnode.models.runtimes.onnx_file import external_files
from meshnode.models.runtimes.onnx_graph import read_facts
from meshnode.models.runtimes.providers import ACCELERATORS, CPU, CUDA, choose
from meshnode.models.runtimes.reasons import clean_reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from meshnode.models.runtimes.base import Opening
    from meshnode.models.runtimes.onnx_session import OnnxModel
    from meshnode.models.runtimes.providers import Choice

log = logging.getLogger(__name__)

_FATAL = 4  # ONNX Runtime's least talkative level; what goes wrong arrives as an exception

_SESSION_ENTRIES: Final = frozenset({
    "session.disable_prepacking", "session.dynamic_block_base", "session.force_spinning_stop",
    "session.inter_op.allow_spinning", "session.intra_op.allow_spinning",
    "session.set_denormal_as_zero", "session.use_device_allocator_for_initializers",
})  # fmt: skip
"""Configuration entries that a model may set: none of them names a place on the disk."""

_KEPT_GRAPHS: Final = frozenset({CPU, CUDA})
"""Providers whose graphs ONNX Runtime can write: others compile parts of them into what no file holds."""

_IDENTITY: Final = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01z"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01z\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX file that returns its input: to see whether a provider starts."""


class OnnxRuntime:
    """Loads `.onnx` files."""

    name = ONNX_RUNTIME
    platform = ONNX_PLATFORM
    is_code = False
    shares_instance = True

    def __init__(self) -> None:
        self._available: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"<OnnxRuntime with {self._available}>"

    def capability(self) -> Capability:
        """Say which version there is, and on what it can run: each provider is started for that."""
        try:
            onnxruntime = self._library()
        except ModelError as error:
            return Capability("", (), str(error))
        assert self._available is not None
        devices = [
            f"{word} ({provider})"
            for provider, word in ACCELERATORS.items()
            if provider in self._available and _starts(onnxruntime, provider)
        ]
        return Capability(onnxruntime.__version__, (*devices, "cpu"))

    def describe(self, opening: Opening) -> Described:
        """Open a file for its tensors; see `Runtime.describe`."""
        model = self.load(opening)
        try:
            return Described(model.inputs, model.outputs, opening.max_batch_size, opening.execution)
        finally:
            model.close()

    def load(self, opening: Opening) -> OnnxModel:
        """Open an ONNX file; see `Runtime.load`."""
        onnxruntime = self._library()
        assert self._available is not None
        entry = opening.entry
        path = opening.folder / entry
        if not path.is_file():
            raise ModelError(f"{entry!r} is missing in {opening.folder}")
        options = session_options(onnxruntime, opening)
        external = () if opening.files_stay else _external(path)
        for name, content in external:
            # Only its place in memory is taken here; the session takes a copy when it is made.
            options.add_external_initializers_from_files_in_memory(
                [name], [content], [len(content)]
            )
        size_bytes = path.stat().st_size + sum(len(content) for _, content in external)
        opener = _Opener(onnxruntime, opening, path, options, size_bytes)
        chosen = choose(opening, self._available)
        for warning in chosen.warnings:
            log.warning("model %s version %d: %s", opening.model, opening.version, warning)
        for choice in chosen.choices[:-1]:
            try:
                session = opener.open(choice)
            # Whatever a provider throws: the file may still run on the next one.
            except Exception as error:  # noqa: BLE001
                _tell_passed_over(opening, choice, clean_reason(error))
                continue
            if choice.providers[0][0] in session.get_providers():
                return _model(session, choice.device, path, options, is_baked=opener.is_baked)
            _tell_passed_over(opening, choice, "it did not start")
        try:
            session = opener.open(chosen.choices[-1])
        # Any of a dozen classes that derive from Exception alone.
        except Exception as error:  # noqa: BLE001
            raise ModelError(f"{entry!r} cannot be loaded: {clean_reason(error)}") from None
        return _model(session, chosen.choices[-1].device, path, options, is_baked=opener.is_baked)

    def _library(self) -> Any:
        """Return ONNX Runtime, imported and quiet.

        Raises:
            ModelError: if it cannot be imported.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError(f"ONNX Runtime cannot be imported: {error}") from None
        if self._available is None:
            onnxruntime.set_default_logger_severity(_FATAL)
            onnxruntime.disable_telemetry_events()
            self._available = tuple(onnxruntime.get_available_providers())
        return onnxruntime


def session_options(onnxruntime: Any, opening: Opening) -> Any:
    """Return the session's options: those that the configuration sets, and the node's own.

    Raises:
        ModelError: if a parameter's value is none that it can have.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    parameters = dict(opening.execution.parameters)
    options.intra_op_num_threads = _count(parameters, "intra_op_thread_count") or opening.threads
    options.inter_op_num_threads = _count(parameters, "inter_op_thread_count") or 1
    if _count(parameters, "execution_mode"):
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    levels = onnxruntime.GraphOptimizationLevel
    if opening.execution.graph_level < 0:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    elif opening.execution.graph_level > 0:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    if parameters.get("enable_mem_arena") == "0":
        options.enable_cpu_mem_arena = False
    if parameters.get("enable_mem_pattern") == "0":
        options.enable_mem_pattern = False
    for key, value in opening.execution.parameters:
        if key in _SESSION_ENTRIES:
            options.add_session_config_entry(key, value)
    return options


def _count(parameters: Mapping[str, str], name: str) -> int:
    value = parameters.get(name, "0")
    if not value.isascii() or not value.isdigit():
        raise ModelError(f"parameter {name!r} is {value!r}; it must be a number from 0")
    return int(value)


def _external(path: Path) -> tuple[tuple[str, bytes], ...]:
    """Return a model's external data by its places, so that ONNX Runtime need not map it.

    What is missing, or lies outside the folder, is left to ONNX Runtime, which says so.
    """
    folder = path.parent.resolve()
    try:
        with path.open("rb") as stream:
            places = external_files(stream)
        found = {name: (folder / name).resolve() for name in places}
        return tuple(
            (name, place.read_bytes())
            for name, place in found.items()
            if place.is_relative_to(folder) and place.is_file()
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the external data of {path.name!r} cannot be read: {error}") from None
    except ModelError:
        return ()  # ONNX Runtime says what is wrong with the file


class _Opener:
    """Makes sessions of one file, from or with its optimised graph where that is wanted.

    Attributes:
        is_baked: Whether the last one was made from a graph that was there.
    """

    def __init__(
        self, onnxruntime: Any, opening: Opening, path: Path, options: Any, size_bytes: int
    ) -> None:
        self._onnxruntime = onnxruntime
        self._opening = opening
        self._path = path
        self._options = options
        self._size_bytes = size_bytes
        self.is_baked = False

    def open(self, choice: Choice) -> Any:
        """Return a session on these providers; raises whatever ONNX Runtime raises."""
        graph = self._graph(choice)
        self.is_baked = False
        if graph is None:
            return self._session(self._path, self._options, choice)
        if self._opening.writes_graphs:
            return self._written(graph, choice)
        return self._read(graph, choice)

    def _graph(self, choice: Choice) -> Path | None:
        """Return the file of the optimised graph for these providers; None if there can be none, or is none."""
        folder = self._opening.graphs
        if folder is None or any(name not in _KEPT_GRAPHS for name, _ in choice.providers):
            return None
        graph = folder / f"graph-{choice.device.partition(' ')[0].replace(':', '-')}.onnx"
        if self._opening.writes_graphs:
            return graph if self._size_bytes <= MAX_COMPILED_GRAPH_BYTES else None
        return graph if graph.is_file() else None

    def _read(self, graph: Path, choice: Choice) -> Any:
        options = session_options(self._onnxruntime, self._opening)
        options.graph_optimization_level = self._onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        opening = self._opening
        try:
            session = self._session(graph, options, choice)
        except Exception as error:  # noqa: BLE001 - whatever it is, the file itself is there
            log.warning(
                "model %s version %d: its baked graph cannot be opened, so it is optimised anew: %s",
                opening.model, opening.version, clean_reason(error),
            )  # fmt: skip
            return self._session(self._path, self._options, choice)
        self.is_baked = True
        log.info(
            "model %s version %d is opened from the graph that was baked, for %s",
            opening.model, opening.version, choice.device,
        )  # fmt: skip
        return session

    def _written(self, graph: Path, choice: Choice) -> Any:
        graph.parent.mkdir(parents=True, exist_ok=True)
        self._options.optimized_model_filepath = str(graph)
        try:
            return self._session(self._path, self._options, choice)
        except Exception as error:  # noqa: BLE001 - it may be the writing alone that failed
            graph.unlink(missing_ok=True)
            log.warning("its optimised graph cannot be kept: %s", clean_reason(error))
        finally:
            self._options.optimized_model_filepath = ""
        return self._session(self._path, self._options, choice)

    def _session(self, path: Path, options: Any, choice: Choice) -> Any:
        # Without ONNX Runtime's own fall-back, which prints to the terminal and does not say why.
        return self._onnxruntime.InferenceSession(
            str(path), options, providers=_as_taken(choice.providers), enable_fallback=0
        )


def _model(session: Any, device: str, path: Path, options: Any, *, is_baked: bool) -> OnnxModel:
    # On demand, as ONNX Runtime itself: it brings NumPy with it.
    from meshnode.models.runtimes.onnx_session import OnnxModel

    facts = read_facts(path)
    return OnnxModel(
        session,
        device,
        works_by_values=facts.works_by_values,
        value_readers=facts.value_readers,
        has_arena=options.enable_cpu_mem_arena,
        is_baked=is_baked,
    )


def _as_taken(providers: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> list[Any]:
    return [(name, dict(options)) if options else name for name, options in providers]


def _tell_passed_over(opening: Opening, choice: Choice, reason: str) -> None:
    log.warning(
        "model %s version %d cannot run on %s and goes to the next device: %s",
        opening.model, opening.version, choice.device, reason,
    )  # fmt: skip


def _starts(onnxruntime: Any, provider: str) -> bool:
    """Whether a provider that was built in finds its device and its libraries."""
    try:
        session = onnxruntime.InferenceSession(
            _IDENTITY, providers=[provider, CPU], enable_fallback=0
        )
    except Exception:  # noqa: BLE001 - whatever a provider throws: it does not start
        return False
    return provider in session.get_providers()
