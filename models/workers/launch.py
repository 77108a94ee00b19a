"""Starting a worker process, and ending one with all that it started. Everything here blocks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError, error_of
from meshnode.limits import (
    MAX_WORKER_PROCESSES,
    WORKER_BURIAL_S,
    WORKER_DISK_SHARE,
    WORKER_KEEPER_S,
    WORKER_MEMORY_SHARE,
    WORKER_MEMORY_SLACK_BYTES,
)
from meshnode.models.workers import output
from meshnode.models.workers.adaptor import ADAPTORS
from meshnode.models.workers.disk import DiskWatch, disk_bytes, empty_if_over
from meshnode.models.workers.environment import MARK_VARIABLE, environment_of
from meshnode.models.workers.keeper import KEEPS, descendants
from meshnode.models.workers.meeting import Meeting
from meshnode.models.workers.memory import SharedMemory
from meshnode.models.workers.protocol import (
    Reader,
    Refused,
    Start,
    Started,
    WireOpening,
    encode,
)
from meshnode.models.workers.supervision import Bounds, Reading, verdict

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    import psutil

    from meshnode.models.execution import Spelling
    from meshnode.models.runtimes.base import Opening
    from meshnode.models.workers.settings import WorkerSettings

INHERITS = sys.platform != "win32"
"""Whether a process is given its sockets; elsewhere it dials them, with a secret."""

_BOOT: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from meshnode.models.workers.child import main; main(sys.argv[1:])"
)
"""With -I nothing is imported from the current folder or the user's; a checkout is found all the same."""

_FOLDER_PREFIX: Final = "meshnode-worker-"
_LAST_LINES: Final = 3
_QUOTED_LENGTH: Final = 80
"""Characters of a model's last line in the reason why it ended, which callers read too; its log has all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, each time alike.

    Attributes:
        runtime: Its name, such as `python`.
        spelling: How the model is written.
        opening: What to open.
        settings: How processes are run here.
    """

    runtime: str
    spelling: Spelling
    opening: Opening
    settings: WorkerSettings

    @property
    def memory_limit_bytes(self) -> int:
        """Resident memory that it may take: the model's own parameter `memory_limit`, or the node's limit."""
        asked = dict(self.opening.execution.parameters).get("memory_limit", "")
        if asked:
            return memory_size(asked, "memory_limit")
        if self.settings.memory_limit_bytes is not None:
            return self.settings.memory_limit_bytes
        import psutil

        return int(psutil.virtual_memory().total * WORKER_MEMORY_SHARE)

    @property
    def disk_limit_bytes(self) -> int:
        """What it may write: the model's own parameter `disk_limit`, else a share of the disk."""
        asked = dict(self.opening.execution.parameters).get("disk_limit", "")
        most = self.settings.disk_limit_bytes
        if asked:
            wanted = memory_size(asked, "disk_limit")
        else:
            place = self.opening.cache_folder or self.settings.work_folder
            wanted = int(disk_bytes(place or Path(tempfile.gettempdir())) * WORKER_DISK_SHARE)
        return wanted if most is None else min(wanted, most)

    @property
    def bounds(self) -> Bounds:
        """What its process is held to."""
        settings = self.settings
        return Bounds(
            self.memory_limit_bytes,
            settings.silence_s,
            settings.cancel_grace_s,
            MAX_WORKER_PROCESSES,
        )


def memory_size(text: str, parameter: str = "memory_limit") -> int:
    """Read a number of bytes, perhaps with K, M or G after it.

    Args:
        text: The number.
        parameter: Whose value it is, for the message.

    Raises:
        ModelError: if it is none.
    """
    digits, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    factors = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
    if not digits.isdigit() or unit not in factors:
        raise ModelError(
            f"the model's parameter {parameter} is {text!r}; write bytes, or a number with K, M or G, "
            "such as 2G"
        )
    return int(digits) * factors[unit]


class Child:
    """A worker process. Owns its sockets, its memory and its folder until `end`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        work: socket.socket,
        side: socket.socket,
        memory: SharedMemory | None,
        folder: Path,
        last_lines: deque[str],
    ) -> None:
        """Take over what `_spawned` made."""
        self.process = process
        self.work = work
        self.side = side
        self.memory = memory
        self.folder = folder
        self._last_lines = last_lines
        self._whole: psutil.Process | None = None
        self._model = 0
        self._descendants: dict[int, psutil.Process] = {}
        self._stopped_looks = 0

    def __repr__(self) -> str:
        return f"<Child {self.process.pid} {self.process.returncode}>"

    @property
    def process_id(self) -> int:
        """Of the model's process, which on Linux is the oldest child of its keeper (`keeper`)."""
        if KEEPS and not self._model:
            with suppress(OSError, ValueError, IndexError):
                pid = self.process.pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                self._model = int(children[0])
        return self._model or self.process.pid

    def reading(self, silent_s: float, overdue_s: float = 0.0, *, search: bool = True) -> Reading:
        """Look at it and its descendants; `search` looks for new ones, which takes milliseconds."""
        import psutil

        memory_bytes = 0
        try:
            if self._whole is None or self._whole.pid != self.process_id:
                self._whole = psutil.Process(self.process_id)
            if search:
                self._find_descendants()
            family = [self._whole, *self._descendants.values()]
        except psutil.Error:
            return Reading(0, 0, silent_s, overdue_s)
        for each in family:
            try:
                if not each.is_running():
                    raise psutil.NoSuchProcess(each.pid)
                memory_bytes += each.memory_info().rss
            except psutil.Error:
                self._descendants.pop(each.pid, None)
        self._stopped_looks = self._stopped_looks + 1 if _is_stopped(self._whole) else 0
        filed_bytes = _filed_bytes(self.process_id)
        if filed_bytes:  # what of it is mapped has been counted
            mapped_bytes = sum(_mapped_bytes(each.pid) for each in family)
            memory_bytes += max(0, filed_bytes - mapped_bytes)
        processes = 1 + len(self._descendants)
        return Reading(memory_bytes, processes, silent_s, overdue_s, self._stopped_looks)

    def _find_descendants(self) -> None:
        import psutil

        found = descendants(self.process.pid)
        if found is None:
            found = [each.pid for each in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in found:
            if pid not in self._descendants and pid != self.process_id:
                with suppress(psutil.Error):
                    self._descendants[pid] = psutil.Process(pid)

    def kill(self) -> None:
        """End it and all that it started, at once."""
        import psutil

        self._kill_family()
        with suppress(psutil.Error):
            self._find_descendants()
        if sys.platform != "win32" and self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(OSError):
            self.process.kill()
        for each in self._descendants.values():
            with suppress(psutil.Error):
                each.kill()  # psutil compares start times: never another process of the same id

    def _kill_family(self) -> None:
        """Kill what its keeper is over until nothing is left: what is forked meanwhile, too.

        The keeper does the same once the model's process has ended, and says how that was.
        """
        deadline = time.monotonic() + WORKER_BURIAL_S
        while KEEPS and self.process.poll() is None and time.monotonic() < deadline:
            family = descendants(self.process.pid)
            if not family:
                if self._model:  # its keeper is about to end
                    with suppress(subprocess.TimeoutExpired):
                        self.process.wait(WORKER_KEEPER_S)
                return
            for pid in family:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)

    def end(self, grace_s: float) -> str:
        """Wait until it has ended, by force after `grace_s` seconds; let go of all it had.

        Returns:
            How it ended, as a sentence.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        if sys.platform != "win32" and self.process.returncode is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what it left behind in its group
        self.kill()
        self.process.wait()
        _kill_strays({self.folder.name})
        for each in (self.work, self.side):
            each.close()
        if self.memory is not None:
            self.memory.release()
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.how_it_ended()

    def disk_watch(self, plan: Plan) -> DiskWatch:
        """Return what looks at the folders that it may write into."""
        cache = plan.opening.cache_folder
        folders = [self.folder] if cache is None else [self.folder, cache]
        return DiskWatch(folders, plan.disk_limit_bytes)

    def how_it_ended(self) -> str:
        """Say it as a sentence, with the last that it printed."""
        code = self.process.returncode
        if code is None:
            said = "its process broke off the conversation"
        elif code < 0:
            with suppress(ValueError):
                return self._with_last_line(
                    f"its process was killed by {signal.Signals(-code).name}"
                )
            said = f"its process was killed by signal {-code}"
        else:
            said = f"its process ended with exit code {code}"
        return self._with_last_line(said)

    def _with_last_line(self, said: str) -> str:
        deadline = time.monotonic() + 0.2
        while not self._last_lines and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread that reads its output may be a moment behind
        if not self._last_lines:
            return said
        line = self._last_lines[-1]
        if len(line) > _QUOTED_LENGTH:
            line = line[: _QUOTED_LENGTH - 1] + "…"
        return f"{said}; it last printed: {line}"


def launch(
    plan: Plan, *, only_describe: bool = False, aborted: Callable[[], bool] = lambda: False
) -> tuple[Child, Started]:
    """Start a process and wait until its model is ready (or described).

    Args:
        plan: What to start.
        only_describe: Whether the process ends once the model is described.
        aborted: Asked every `watch_s` seconds whether nobody wants it any more.

    Raises:
        ModelError: if code is not allowed here, the model cannot be opened, or takes too long or too much
            memory doing so.
    """
    refused = plan.settings.why_refused(plan.opening.folder)
    if refused:
        raise ModelError(refused)
    adaptor = ADAPTORS.get((plan.runtime, plan.spelling))
    if adaptor is None:
        raise ModelError(f"this node knows no {plan.runtime} model of the kind {plan.spelling!r}")
    empty_if_over(plan.opening.cache_folder, plan.disk_limit_bytes)
    child = _spawned(plan, share=not only_describe)
    try:
        child.work.sendall(encode(_start(plan, child, adaptor, only_describe=only_describe)))
        started = _answer(plan, child, aborted)
    except BaseException:
        child.kill()
        child.end(0)
        raise
    return child, started


def _answer(plan: Plan, child: Child, aborted: Callable[[], bool]) -> Started:
    """Wait for `Started` while looking at what the process takes."""
    settings = plan.settings
    reader = Reader(from_process=True)
    written = child.disk_watch(plan)
    deadline = time.monotonic() + settings.start_timeout_s
    child.work.settimeout(settings.watch_s)
    while True:
        try:
            data = child.work.recv(65536)
        except TimeoutError:
            reason = verdict(child.reading(0.0), plan.bounds, 0.0)
            if not reason and written.is_due(now := time.monotonic()):
                reason = written.look(now)
            if not reason and time.monotonic() > deadline:
                reason = f"it was not ready within {settings.start_timeout_s:.0f} s"
            if aborted():
                reason = "it was closed while it was being opened"
            if reason:
                raise ModelError(f"the model cannot be opened: {reason}") from None
            continue
        except OSError:
            data = b""
        if not data:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(settings.stop_grace_s)
            raise ModelError(f"the model cannot be opened: {child.how_it_ended()}")
        for message in reader.feed(data):
            if isinstance(message, Started):
                child.work.settimeout(None)
                return message
            if isinstance(message, Refused):
                error = error_of(message.code, message.error)
                raise error if isinstance(error, ModelError) else ModelError(str(error))


def _start(plan: Plan, child: Child, adaptor: str, *, only_describe: bool) -> Start:
    opening, settings = plan.opening, plan.settings
    return Start(
        adaptor=adaptor,
        opening=WireOpening(
            str(opening.folder.resolve()), opening.entry, opening.model, opening.version,
            opening.threads, opening.device, opening.max_batch_size, opening.inputs, opening.outputs,
            opening.execution, opening.instance,
            str(opening.cache_folder.resolve()) if opening.cache_folder else "",
        ),
        only_describe=only_describe,
        protected=str(settings.data_folder.resolve()) if settings.data_folder else "",
        work_folder=str(child.folder),
        memory_bytes=0
        if _may_use_accelerator(opening.device)
        else plan.memory_limit_bytes + WORKER_MEMORY_SLACK_BYTES,
        shared_name=child.memory.name if child.memory else "",
        shared_bytes=child.memory.size_bytes if child.memory else 0,
        # The process ends itself only where its node did not, which has a better reason to tell.
        silence_s=settings.silence_s + 2 * settings.watch_s,
        file_bytes=plan.disk_limit_bytes,
    )  # fmt: skip


def _may_use_accelerator(device: str) -> bool:
    """Whether a limit on reserved memory would be in the way: drivers of accelerators reserve all they see."""
    if device == "cpu":
        return False
    return Path("/dev/kfd").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def _spawned(plan: Plan, *, share: bool) -> Child:
    settings, opening = plan.settings, plan.opening
    if settings.work_folder is not None:
        settings.work_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=settings.work_folder)).resolve()
    if opening.cache_folder is not None:  # its parent is out of the process's reach
        opening.cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(opening.cache_folder)  # wanted again: those of former versions go by age
    memory = SharedMemory.make(settings.shared_bytes) if share else None
    reading, writing = os.pipe()
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    environment = environment_of(os.environ, opening, folder)
    meeting = Meeting(inherits=INHERITS)
    try:
        descriptors = [*meeting.inherited, memory.descriptor if memory else -1]
        environment.update(meeting.environment)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-I", "-c", _BOOT, _installed_at(), *map(str, descriptors)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            pass_fds=() if sys.platform == "win32" else _inherited(descriptors),
        )
    except BaseException:
        os.close(reading)
        meeting.close()
        if memory is not None:
            memory.release()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(writing)
    output.follow(reading, opening.model, opening.version, last_lines.append)
    try:
        work, side = meeting.sockets(process, settings.start_timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Child(process, work, side, memory, folder, last_lines)


def _is_stopped(process: psutil.Process) -> bool:
    """Whether a process was stopped by a signal (one that a debugger holds was not)."""
    import psutil

    if os.name != "posix":
        return False
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _filed_bytes(pid: int) -> int:
    """Return what a process keeps in its own /dev/shm, in bytes; 0 where it has none."""
    if not KEEPS:
        return 0
    own = Path(f"/proc/{pid}/root/dev/shm")
    try:
        if own.stat().st_dev == Path("/dev/shm").stat().st_dev:  # noqa: S108 - the system's
            return 0
        used = os.statvfs(own)
    except OSError:
        return 0
    return (used.f_blocks - used.f_bfree) * used.f_frsize


def _mapped_bytes(pid: int) -> int:
    """Return how much shared memory a process has mapped and touched, in bytes; Linux."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssShmem:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _inherited(descriptors: Iterable[int]) -> tuple[int, ...]:
    return tuple(each for each in descriptors if each >= 0)


def _installed_at() -> str:
    import meshnode

    return str(Path(str(meshnode.__file__)).resolve().parent.parent)


def _kill_strays(marks: set[str]) -> None:
    """End what left its process's group and outlived it: it still has the variable."""
    import psutil

    for each in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if each.environ().get(MARK_VARIABLE) in marks:
                each.kill()


def sweep(work_folder: Path) -> None:
    """Remove what processes of an earlier run of this node left behind, and what of them still runs."""
    folders = list(work_folder.glob(f"{_FOLDER_PREFIX}*"))
    if folders:
        _kill_strays({folder.name for folder in folders})
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
