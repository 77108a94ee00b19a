"""What runs in a child process of `meshnode convert` and `meshnode optimize`.

It knows the standard library, NumPy and the frameworks of its interpreter; of meshnode only what needs no
more than those. Standard output belongs to the protocol: whatever libraries print goes to the log.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from meshnode.errors import MeshError, ModelError, UsageError

_TASKS: Final = {
    "convert": "meshnode.models.convert.steps",
    "measure": "meshnode.models.convert.measuring",
    "sample": "meshnode.models.convert.sampling",
    "optimize": "meshnode.models.optimize.steps",
}


class Teller:
    """Writes JSON lines to whoever started this process."""

    def __init__(self) -> None:
        """Take standard output; from here on it is what standard error is."""
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def progress(self, text: str) -> None:
        """Say in a few words what goes on."""
        self.tell({"progress": text})

    def tell(self, document: dict[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(document) + "\n")
        self._file.flush()


def library(name: str) -> Any:
    """Import a framework, or say that it is missing.

    Raises:
        UsageError: if it is not installed here, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be imported by {sys.executable}: {error}") from None


def main(path: str) -> NoReturn:
    """Do the job of a file and end the process."""
    teller = Teller()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    if job["confinement"] is not None:
        _confine(job["confinement"])
    try:
        step = importlib.import_module(_TASKS[job["task"]])
        answer = step.run(job, teller.progress)
    except MeshError as error:
        kind = "usage" if type(error) is UsageError else "model"
        answer = {"failed": str(error), "kind": kind}
    except ModuleNotFoundError as error:
        text = f"{error.name} cannot be imported by {sys.executable}; install it there"
        answer = {"failed": text, "kind": "usage"}
    except MemoryError:
        answer = {"failed": "there is not enough memory", "kind": "peer"}
    # A framework raises whatever it likes, and a model's own code as well.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        answer = {"failed": _sentence(error), "kind": "model"}
    teller.tell(answer)
    sys.stderr.flush()
    os._exit(0)  # frameworks' threads and exit handlers take seconds, and may hang


def _confine(confinement: dict[str, Any]) -> None:
    """Give up what the job does not need, before anything of the model is loaded."""
    from meshnode.models.workers.isolation import shut_in
    from meshnode.models.workers.readable import all_but

    # It is its owner who runs it, on files of his own that lie anywhere.
    shut_in(
        [Path(each) for each in confinement["writable"]],
        [*all_but(Path(confinement["protected"])), *map(Path, confinement["readable"])],
        listable=[Path("/")],
    )


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_SENTENCE_LENGTH]}" if text else type(error).__name__


_SENTENCE_LENGTH: Final = 500


def load_function(where: str, name: str) -> Any:
    """Import `module:name`, or the name of a Python file.

    Raises:
        ModelError: if there is no such module or name.
    """
    path = Path(where)
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ModelError(f"{where} is no Python file")
        sys.path.insert(0, str(path.parent))  # so that it can import what lies beside it
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise ModelError(f"module {where} cannot be imported: {error}") from None
    try:
        return getattr(module, name)
    except AttributeError:
        raise ModelError(f"{where} has no {name!r}") from None
