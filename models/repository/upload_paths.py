"""Which file names an upload may bring: checked once, before anything of it is on disk.

A name must mean the same file on every platform, whatever its file system folds, strips or reserves:

| refused | because |
|---|---|
| absolute, `..`, `.`, empty parts, backslashes, `:` and other characters that Windows reserves, NUL | it leads elsewhere |
| control, format and private characters, separators other than a blank | what people read is not what it is |
| not in NFC, or with compatibility characters (`ﬁ`, fullwidth letters) | file systems normalise some of them |
| a part that ends in a dot or a blank, or begins with a blank | Windows strips it |
| `CON`, `nul.txt`, `COM1` ... | Windows has devices of these names |
| two names that differ in case only, also of folders; a file where another name needs a folder | they are one file elsewhere |
| too long, too deep | no file system has it |
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, ModelError
from meshnode.limits import MAX_PATH_COMPONENT_LENGTH, MAX_UPLOAD_DEPTH
from meshnode.models.manifest import check_relative_path
from meshnode.models.repository.config_backend import BARE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{name}{digit}" for name in ("com", "lpt") for digit in range(10)]
)


def check_upload_paths(paths: Sequence[str]) -> str:
    """Check the names of all files of an upload.

    Args:
        paths: Relative POSIX paths, each as the client named it.

    Returns:
        Where the model is: its folder, which all paths have in common, or the bare model file.

    Raises:
        InvalidRequest: for the first name that breaks a rule, or if they are not one model.
    """
    check_names(paths)
    return _place_of_model(paths)


def check_names(paths: Sequence[str]) -> None:
    """Check the names of files that come from elsewhere, whatever they are.

    Raises:
        InvalidRequest: for the first name that breaks a rule.
    """
    spelled: dict[str, str] = {}  # every file and folder by its folded name
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        flaw = _flaw(path)
        if flaw:
            raise InvalidRequest(f"{path[:200]!r} cannot be taken under this name: {flaw}")
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            place = "/".join(parts[:depth])
            folded = unicodedata.normalize("NFC", place.casefold())
            known = spelled.setdefault(folded, place)
            if known != place:
                raise InvalidRequest(f"{place!r} and {known!r} are the same name on some systems")
            (folders if depth < len(parts) else files).add(folded)
            if folded in files and folded in folders:
                raise InvalidRequest(f"{place!r} is named as a file and as a folder")
    if len(files) != len(paths):
        raise InvalidRequest("a file is named twice")


def _place_of_model(paths: Sequence[str]) -> str:
    roots = {path.split("/", 1)[0] for path in paths}
    if len(roots) == 1 and all("/" in path for path in paths):
        return roots.pop()
    models = [path for path in paths if path.endswith(BARE_SUFFIXES)]
    if not any("/" in path for path in paths) and len(models) == 1:
        return models[0]
    raise InvalidRequest(
        "an upload is one model: files below one folder, such as digits/1/model.onnx, or one bare "
        "model file such as digits.onnx with its external data beside it"
    )


def _flaw(path: str) -> str:
    """Return why a single name is refused, or an empty string."""
    try:
        check_relative_path(path)
    except ModelError:
        return "it is not a plain relative path"
    if not path.isascii():
        if any(unicodedata.category(char)[0] in "CZ" and char != " " for char in path):
            return "it has characters that cannot be seen"
        if unicodedata.normalize("NFC", path) != path:
            return "it is not in Unicode's normal form C"
        if unicodedata.normalize("NFKC", path) != path:
            return "it has characters that stand for others"
    elif "\x7f" in path:
        return "it has characters that cannot be seen"
    parts = path.split("/")
    if len(parts) > MAX_UPLOAD_DEPTH:
        return f"it has more than {MAX_UPLOAD_DEPTH} parts"
    if any(len(part.encode()) > MAX_PATH_COMPONENT_LENGTH for part in parts):
        return f"a part has more than {MAX_PATH_COMPONENT_LENGTH} bytes"
    if any(part.endswith((".", " ")) or part.startswith(" ") for part in parts):
        return "a part begins or ends with a blank, or ends in a dot"
    if any(part.split(".", 1)[0].rstrip().casefold() in _DEVICES for part in parts):
        return "Windows has a device of that name"
    return ""
