"""How a model's Python files are loaded into its process.

The model's folder becomes the package `served_model` and comes first on the module path, so that
`import helper`, `from .helper import f` and `from models.<name>.helper import f` all find the same files.
Its author's relative paths hold for reading and for writing: the current folder has a link to everything
in the model's folder, and what is written there lies in the cache folder, which survives restarts, or else
in the process's own temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import types
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import MeshError, ModelError
from meshnode.limits import MAX_RUNTIME_MESSAGE_LENGTH, MAX_WORKER_CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from meshnode.models.runtimes.base import Opening
    from meshnode.models.workers.adaptor import WorkerSurroundings

PACKAGE: Final = "served_model"
_KEPT: Final = "run"  # in the cache folder: the current folder of models that may keep things


def prepare(surroundings: WorkerSurroundings, folder: Path) -> Path:
    """Make a folder the place that modules are found in, and enter a folder that links to its files.

    Args:
        surroundings: Of the process.
        folder: Where the model's files are.

    Returns:
        The current folder.
    """
    sys.dont_write_bytecode = True
    place = surroundings.work_folder
    cache = surroundings.cache_folder
    if cache is not None:
        place = cache / _KEPT
        place.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("XDG_CACHE_HOME", str(cache))
        os.environ.setdefault("HF_HOME", str(cache / "huggingface"))
        os.environ.setdefault("POPTORCH_CACHE_DIR", str(cache / "poptorch"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    _link_all(folder, place)
    os.chdir(place)
    sys.path.insert(0, str(folder))
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    name = surroundings.opening.model
    if name.isidentifier() and not has_module(folder, "models"):
        models = types.ModuleType("models")
        models.__path__ = []
        setattr(models, name, package)
        sys.modules["models"] = models
        sys.modules[f"models.{name}"] = package
    return place


def device_of(opening: Opening) -> str:
    """Return what a model was opened for, for people; what its code really uses is its author's matter."""
    return opening.device if opening.device.startswith("gpu") else "cpu"


def concurrency_of(opening: Opening, usual: int) -> int:
    """Return how many requests a model works on at once: its parameter `concurrency`, or what is usual.

    Raises:
        ModelError: if the parameter is no number of 1 to `MAX_WORKER_CONCURRENCY`.
    """
    text = dict(opening.execution.parameters).get("concurrency", "")
    if not text:
        return usual
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WORKER_CONCURRENCY):
        raise ModelError(
            f"the model's parameter concurrency is {text!r}; write a number of 1 to "
            f"{MAX_WORKER_CONCURRENCY}"
        )
    return int(text)


def has_module(folder: Path, name: str) -> bool:
    """Whether a model's folder has a module of this name itself."""
    return (folder / f"{name}.py").exists() or (folder / name).is_dir()


def offer(folder: Path, modules: Mapping[str, ModuleType]) -> None:
    """Let imports find stand-ins, unless the model's folder has a module of that name."""
    for name, module in modules.items():
        if not has_module(folder, name.partition(".")[0]):
            sys.modules[name] = module


def load_module(folder: Path, relative: str, name: str = "") -> ModuleType:
    """Run a Python file of the model and return its module.

    Args:
        folder: Where the model's files are.
        relative: Path of the file below it.
        name: What the file sees as `__name__`; empty for its place in the package.

    Raises:
        ModelError: with what it raised, and where.
    """
    parts = relative.removesuffix(".py").split("/")
    path = folder.joinpath(*relative.split("/"))
    full = name or ".".join((PACKAGE, *parts))
    known = sys.modules.get(full)
    if known is not None and not name:
        return known
    if len(parts) > 1:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(full, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{relative!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    sys.modules.setdefault(parts[-1], module)
    try:
        spec.loader.exec_module(module)
    except MeshError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{relative} cannot be loaded: {told(error)}") from error
    return module


def told(error: BaseException) -> str:
    """Return what an exception says, and where in the model's files it was raised."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind}: {error.msg} (line {error.lineno})"
    where = ""
    trace = error.__traceback__
    folder = sys.path[0] if sys.path else ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if folder and file.startswith(folder):
            where = f" ({os.path.relpath(file, folder)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    text = str(error)[:MAX_RUNTIME_MESSAGE_LENGTH]
    return f"{kind}: {text}{where}" if text else f"{kind}{where}"


def own_classes(module: ModuleType) -> list[type]:
    """Return the classes that a module defines itself, in their order."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]


def call_or_none(function: Any, *arguments: object) -> object:
    """Call a function that may not exist."""
    return function(*arguments) if callable(function) else None


def _link_all(folder: Path, place: Path) -> None:
    """Link each entry of a folder; a link that stands for another version's file is made anew.

    Where links cannot be made (Windows without the right to) the model finds its files by `__file__`.
    """
    for entry in folder.iterdir():
        link = place / entry.name
        with contextlib.suppress(OSError):
            if link.is_symlink() and link.readlink() != entry:
                link.unlink()
            link.symlink_to(entry)
