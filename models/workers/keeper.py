"""The keeper of a model's process: the parent of all that the model starts, so that nothing of it is left.

On Linux the process that a node starts forks before it does anything else. The child becomes the model's
process; the parent keeps nothing but its eye on it. It is a subreaper: what a model forks and lets go of,
in whatever group or session and under whatever name, becomes its child. When the model's process has ended
it kills what is left and ends the same way; when the node is gone, however suddenly, it kills everything.
If the keeper itself is killed, so is the model's process (by the kernel).

A system's own parent-death signal alone would not do for the node's death: it is sent when the *thread* that
started a process ends. Sources: prctl(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG; proc(5).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from meshnode.limits import MAX_WORKER_PROCESSES, WORKER_BURIAL_S, WORKER_KEEPER_S

KEEPS: Final = sys.platform == "linux"
"""Whether processes of models have a keeper here."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def stand_guard() -> None:
    """Fork; only the child returns, to become the model's process. The parent never returns."""
    if sys.platform != "linux":
        return
    node = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    keeper = os.getpid()
    model = os.fork()
    if model:
        _keep(model, node)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(1)
    os.setsid()  # a group that it may end without its keeper


def _keep(model: int, node: int) -> None:
    assert sys.platform == "linux"
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    _let_go()
    ended: int | None = None
    while ended is None and os.getppid() == node:
        signal.sigtimedwait({signal.SIGCHLD}, WORKER_KEEPER_S)
        ended = _reap(model)
    deadline = time.monotonic() + WORKER_BURIAL_S
    while (found := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.01)
        _reap(model)
    _end_like(ended)


def _let_go() -> None:
    """Close everything: the node sees that sockets and pipes are closed when the model's process has ended."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
        if int(name) > 2:
            with suppress(OSError):
                os.close(int(name))


def _reap(model: int) -> int | None:
    """Take the status of all that has ended; return that of the model's process if it is among them."""
    ended = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == model:
                ended = status
            if pid == 0:
                break
    return ended


def _end_like(status: int | None) -> None:
    """End this process as the model's has ended, without a core dump of its own."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if status is None:
        os._exit(1)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        code += 256
    os._exit(code)


def descendants(pid: int) -> list[int] | None:
    """Return the processes that a process started, and those they did; None if the system does not tell.

    A child that has ended and waits to be reaped is none. Linux tells children per thread; going through all
    processes, as elsewhere, costs milliseconds each time.
    """
    found: list[int] = []
    waiting = [pid]
    while waiting:
        threads = Path(f"/proc/{waiting.pop()}/task")
        try:
            for thread in threads.iterdir():
                children = [int(each) for each in (thread / "children").read_text().split()]
                living = [each for each in children if not _has_ended(each)]
                found += living
                waiting += living
        except OSError:
            if not found and not (threads / str(pid) / "children").exists():
                return None
        if len(found) > 2 * MAX_WORKER_PROCESSES:
            break  # enough to know
    return found


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])
