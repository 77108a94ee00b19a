"""LiteRT (TensorFlow Lite): opens `.tflite` files in this process, one interpreter for each instance.

Such a file is data, but the interpreter is C++ that believes much of what it says: a damaged file is
found by the flatbuffer's verifier, one that is well-formed and lies (an index beyond a table) may end
the process. So a file is opened and run once in a process of its own first
(`meshnode.models.runtimes.litert_trial`), and only what survived that is opened here: the same bytes, since the
file is read into memory once. The interpreter would map a file instead, and one that is cut short or overwritten while
it is mapped ends the process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import meshnode
from meshnode.errors import ModelError
from meshnode.limits import (
    LITERT_TRIAL_TIMEOUT_S,
    MAX_LITERT_FILE_BYTES,
    MAX_RUNTIME_MESSAGE_LENGTH,
)
from meshnode.models.runtimes.base import Capability, Described

if TYPE_CHECKING:
    from meshnode.models.runtimes.base import Opening
    from meshnode.models.runtimes.litert_session import LitertModel

_MISSING: Final = "LiteRT is not installed: pip install 'meshnode[litert]'"
_BOOT: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from meshnode.models.runtimes.litert_trial import main; sys.exit(main(sys.argv[1:]))"
)
"""With -I nothing is imported from the current folder or the user's; a checkout is found all the same."""
_IDENTIFIER: Final = b"TFL3"
"""In bytes 4 to 8 of every TensorFlow Lite file."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Content:
    """A file's bytes; all interpreters of a file share them."""

    data: bytes


class LitertRuntime:
    """Loads `.tflite` files."""

    name = "litert"
    platform = "tensorflow_lite"
    is_code = False
    shares_instance = False  # an interpreter does one run at a time

    def __init__(self) -> None:
        # The SHA-256 of what survived its trial: a reload need not repeat it.
        self._tried: set[bytes] = set()
        self._contents: WeakValueDictionary[bytes, Content] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<LitertRuntime, {len(self._tried)} files tried>"

    def capability(self) -> Capability:
        """Say which version there is; see `Runtime.capability`."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return Capability("", (), _MISSING)
        from importlib.metadata import version

        return Capability(version("ai-edge-litert"))

    def describe(self, opening: Opening) -> Described:
        """Open a file for its tensors; see `Runtime.describe`."""
        model = self.load(opening)
        try:
            return Described(model.inputs, model.outputs, opening.max_batch_size, opening.execution)
        finally:
            model.close()

    def load(self, opening: Opening) -> LitertModel:
        """Open a file; see `Runtime.load`."""
        content = _checked_content(opening)
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise ModelError(_MISSING)
        # On demand: it brings NumPy and the interpreter with it.
        from meshnode.models.runtimes.litert_session import LitertModel

        digest = hashlib.sha256(content.data).digest()
        self._try_out(content, digest, opening)
        return LitertModel(self._contents.setdefault(digest, content), opening)

    def _try_out(self, content: Content, digest: bytes, opening: Opening) -> None:
        """Open and run a file in another process first.

        Raises:
            ModelError: if it fails there, or takes the process with it.
        """
        if digest in self._tried:
            return
        command = [sys.executable, "-I", "-c", _BOOT, _installed_at(), opening.entry]
        try:
            ended = subprocess.run(  # noqa: S603 - our own module, and a name as its argument
                command,
                input=content.data,
                capture_output=True,
                timeout=LITERT_TRIAL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{opening.entry!r} did not finish a first run within {LITERT_TRIAL_TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            raise ModelError(f"{opening.entry!r} could not be tried out: {error}") from None
        if ended.returncode != 0:
            raise ModelError(f"{opening.entry!r} cannot be loaded: {_why(ended)}")
        self._tried.add(digest)


def _why(ended: subprocess.CompletedProcess[bytes]) -> str:
    """Return why a trial failed: what it said, or that it crashed."""
    said = ended.stdout.decode(errors="replace").strip()
    if said and ended.returncode == 1:
        return said.rpartition(" cannot be loaded: ")[2][:MAX_RUNTIME_MESSAGE_LENGTH]
    if ended.returncode == 1:  # Python itself: the trial could not even begin
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        return f"the process that tries it out failed: {lines[-1] if lines else 'it said nothing'}"
    return "it took the process that tried it out with it; the file is damaged, or made to do that"


def _installed_at() -> str:
    return str(Path(str(meshnode.__file__)).resolve().parent.parent)


def _checked_content(opening: Opening) -> Content:
    path = opening.folder / opening.entry
    if not path.is_file():
        raise ModelError(f"{opening.entry!r} is missing in {opening.folder}")
    try:
        with path.open("rb") as stream:
            data = stream.read(8)
            if data[4:] == _IDENTIFIER:
                data += stream.read(MAX_LITERT_FILE_BYTES - len(data) + 1)
    except OSError as error:
        raise ModelError(f"{opening.entry!r} cannot be read: {error.strerror}") from None
    if data[4:8] != _IDENTIFIER:
        raise ModelError(
            f"{opening.entry!r} is no TensorFlow Lite file: it lacks the mark 'TFL3' in its head"
        )
    if len(data) > MAX_LITERT_FILE_BYTES:
        raise ModelError(
            f"{opening.entry!r} has more than {MAX_LITERT_FILE_BYTES} bytes, which no TensorFlow Lite file can have"
        )
    return Content(data)
