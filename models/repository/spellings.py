"""How the author of a Python model wrote it, told from the names and texts of its files, without running any.

| spelling | entry | what makes it one |
|---|---|---|
| Triton | `model.py` | a class `TritonPythonModel` |
| pipeline | `pipeline.py` | a name `pipe` or a class `Pipeline` |
| archive | the only `*.mar`, or an unpacked one's `MAR-INF/MANIFEST.json` | its name |
| predictor | one of `PREDICTOR_FILES`, else the only file that has one | a class with `predict` or `async_predict` |

A folder is looked at in this order. Files that are not valid Python count by their names alone, so that
opening them says what is wrong with them.
"""

from __future__ import annotations

import ast
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.models.execution import Spelling

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

TRITON_FILE: Final = "model.py"
PIPELINE_FILE: Final = "pipeline.py"
ENDPOINT_FILE: Final = "endpoint.py"
PREDICTOR_FILES: Final = (
    "predictor.py", "main_entry.py", "serve_main.py", "inference_entry.py", "main.py",
)  # fmt: skip
"""Names that predictors have, the first found counts; with folders `src/` and `app/` before them."""
ARCHIVE_SUFFIX: Final = ".mar"
ARCHIVE_MANIFEST: Final = "MAR-INF/MANIFEST.json"
_FOLDERS: Final = ("", "src/", "app/")
_METHODS: Final = frozenset({"predict", "async_predict"})


class Written(NamedTuple):
    """How a Python model is written, and the file to begin with."""

    spelling: Spelling
    entry: str


def written(names: Collection[str], text_of: Callable[[str], str]) -> Written | None:
    """Say how the Python model in a folder is written; None if there is none.

    Args:
        names: Relative POSIX paths of all files.
        text_of: Returns the text of one of them; may be called for `.py` files only.
    """
    if TRITON_FILE in names and "TritonPythonModel" in _classes(text_of(TRITON_FILE), frozenset()):
        return Written(Spelling.TRITON, TRITON_FILE)
    if PIPELINE_FILE in names:
        return Written(Spelling.PIPELINE, PIPELINE_FILE)
    archives = sorted(name for name in names if name.endswith(ARCHIVE_SUFFIX) and "/" not in name)
    if len(archives) == 1:
        return Written(Spelling.ARCHIVE, archives[0])
    if ARCHIVE_MANIFEST in names:
        return Written(Spelling.ARCHIVE, ARCHIVE_MANIFEST)
    predictor = _predictor(names, text_of)
    if predictor:
        return Written(Spelling.PREDICTOR, predictor)
    if TRITON_FILE in names:
        return Written(Spelling.TRITON, TRITON_FILE)
    return None


def _predictor(names: Collection[str], text_of: Callable[[str], str]) -> str:
    usual = (folder + name for name in PREDICTOR_FILES for folder in _FOLDERS)
    for name in usual:
        if name in names and _classes(text_of(name), _METHODS):
            return name
    others = sorted(name for name in names if name.endswith(".py") and name.count("/") <= 1)
    found = [name for name in others if _classes(text_of(name), _METHODS)]
    return found[0] if len(found) == 1 else ""


def _classes(text: str, methods: frozenset[str]) -> list[str]:
    """Return the names of a file's classes that have one of these methods, or of all if none are named."""
    return [
        node.name
        for node in ast.walk(_parsed(text))
        if isinstance(node, ast.ClassDef) and (not methods or methods & set(_functions(node.body)))
    ]


def _functions(body: Iterable[ast.stmt]) -> Iterable[str]:
    return (each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def _parsed(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])
