"""Child processes that do one job, with limits.

Training frameworks are large, crash, and run their models' code, so nothing of them is imported by the
command itself. A child gets its job as a JSON file, works in a folder of its own that is removed
afterwards, and tells its progress as JSON lines; whatever a library prints goes to a log, of which an
error quotes the end. It has no more memory and time than it is given, and is killed with all that it
started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

import meshnode
from meshnode.errors import MeshError, ModelError, PeerError, UsageError
from meshnode.limits import (
    CONVERT_TIMEOUT_S,
    MAX_CONVERT_LOG_BYTES,
    MAX_CONVERT_MEMORY_SHARE,
    MAX_CONVERT_PROGRESS_BYTES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Progress = Callable[[str], None]

ENVIRONMENTS_FOLDER: Final = "convert"
"""Folder of the data folder with the interpreters of `environments`, which a child may read."""

_POLL_S: Final = 0.1
_QUOTED_LINES: Final = 3
_KEPT_VARIABLES: Final = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "NUMBER_OF_PROCESSORS",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip
"""What a child sees of the environment: no keys, tokens or proxies."""

_BOOTSTRAP: Final = """
import importlib.util, json, os, sys
folder = sys.argv[1]
sys.path.extend(path for path in json.loads(sys.argv[3]) if path not in sys.path)
spec = importlib.util.spec_from_file_location(
    "meshnode", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["meshnode"] = package
spec.loader.exec_module(package)
from meshnode.models.convert.child import main
main(sys.argv[2])
"""
"""Makes this package importable in another interpreter, and nothing that is installed beside it; a child of
this very interpreter finds all that this process does."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one child.

    Attributes:
        time_s: Wall time.
        memory_bytes: Resident memory of it and what it started.
        protected: The node's data folder: where the system can enforce it (Linux with Landlock), a child
            reads nothing there and writes nowhere but in its working folder. None leaves it free.
    """

    time_s: float = CONVERT_TIMEOUT_S
    memory_bytes: int = field(
        default_factory=lambda: int(psutil.virtual_memory().total * MAX_CONVERT_MEMORY_SHARE)
    )
    protected: Path | None = None


def run_job(
    task: str,
    job: Mapping[str, Any],
    work: Path,
    *,
    limits: Limits,
    progress: Progress,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Do one job in a child process and return what it says.

    Args:
        task: What to do, of `meshnode.models.convert.child`.
        job: Its arguments, as JSON can hold them.
        work: Existing folder that the child works in.
        limits: Time and memory.
        progress: Told, in a few words, what goes on.
        python: The interpreter.
        variables: Further environment variables.

    Raises:
        ModelError: if the model cannot be opened, converted or run.
        UsageError: if the job lacks something that the caller can give.
        PeerError: if the child crashed, or was killed at a limit.
    """
    path = work / f"{task}.json"
    confinement = None
    if limits.protected is not None:
        protected = limits.protected.resolve()
        confinement = {
            "protected": str(protected),
            "writable": [str(work.resolve())],
            "readable": [str(protected / ENVIRONMENTS_FOLDER), *_named_files(job)],
        }
    told = {**job, "task": task, "confinement": confinement}
    path.write_text(json.dumps(told), encoding="utf-8")
    log = work / f"{task}.log"
    package = str(Path(meshnode.__file__).parent)
    paths = json.dumps([each for each in sys.path if each] if python == sys.executable else [])
    with log.open("wb") as log_file:
        try:
            process = subprocess.Popen(  # noqa: S603 - the interpreter is the user's own choice
                [python, "-I", "-W", "ignore", "-c", _BOOTSTRAP, package, str(path), paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=work,
                env=_environment(work, variables or {}),
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{python} cannot be started: {error.strerror}") from None
    try:
        answer = _follow(process, log, limits, progress)
    finally:
        _end(process)
    if "failed" in answer:
        raise _error(answer)
    return answer


def _named_files(job: Mapping[str, Any]) -> list[str]:
    """Return the files that the caller named, wherever they lie."""
    named = [job.get(key) for key in ("model", "file", "sample", "calibration", "weights")]
    return [each for each in named if isinstance(each, str) and Path(each).exists()]


def _environment(work: Path, variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "HOME": str(work),
        "USERPROFILE": str(work),
        "TMPDIR": str(work),
        "TEMP": str(work),
        "TMP": str(work),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        **variables,
    }


def _follow(
    process: subprocess.Popen[bytes], log: Path, limits: Limits, progress: Progress
) -> dict[str, Any]:
    """Wait for the child's answer, and hold it to its limits."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    deadline_s = time.monotonic() + limits.time_s
    answer: dict[str, Any] | None = None
    while True:
        with suppress(queue.Empty):
            line = lines.get(timeout=_POLL_S)
            if line is None:
                break
            told = _parse(line)
            if "progress" in told:
                progress(str(told["progress"]))
            elif told:
                answer = told
        _check_limits(process, log, limits, deadline_s)
    code = process.wait()
    if answer is None:
        raise PeerError(f"the child process ended {_ending(code)} without a result{_quoted(log)}")
    if "failed" in answer and answer.get("quote"):
        answer["failed"] = f"{answer['failed']}{_quoted(log)}"
    return answer


def _read_lines(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    assert process.stdout is not None
    with suppress(OSError, ValueError):  # it is closed when the child is ended
        while line := process.stdout.readline(MAX_CONVERT_PROGRESS_BYTES):
            lines.put(line)
    lines.put(None)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _check_limits(
    process: subprocess.Popen[bytes], log: Path, limits: Limits, deadline_s: float
) -> None:
    if time.monotonic() > deadline_s:
        raise PeerError(
            f"it was not done after {limits.time_s:.0f} s and was ended; give it more with --timeout"
        )
    if log.stat().st_size > MAX_CONVERT_LOG_BYTES:
        raise PeerError(f"it printed more than {MAX_CONVERT_LOG_BYTES} bytes and was ended")
    used = memory_of(process.pid)
    if used > limits.memory_bytes:
        raise PeerError(
            f"it used {used >> 20} MiB of memory, of {limits.memory_bytes >> 20} MiB allowed, and was "
            "ended; convert on a machine with more memory"
        )


def memory_of(pid: int) -> int:
    """Return the resident memory of a process and its descendants, in bytes; 0 if it is gone."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _ending(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with code {code}"


def _quoted(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_CONVERT_PROGRESS_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_QUOTED_LINES:]
    return f": {' | '.join(lines)}" if lines else ""


def _error(answer: Mapping[str, Any]) -> MeshError:
    kinds: dict[str, type[MeshError]] = {"usage": UsageError, "peer": PeerError}
    return kinds.get(str(answer.get("kind")), ModelError)(str(answer["failed"]))
