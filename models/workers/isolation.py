"""How a worker process shuts itself in, before it opens a model.

It is the process itself that does this, as its first act, with nothing of the model's loaded and no second
thread running (Linux applies most of it to the calling thread alone). None of it can be undone.

| Linux | against |
|---|---|
| Landlock: of files only a list can be read (`readable`), nothing written outside the process's own folders | reading the node's key, other nodes', other models' files, the user's own; changing the system |
| Landlock: no ptrace, and from ABI 6 no signals, beyond its own descendants | reading the key out of the daemon's memory |
| seccomp: no limits or priorities of others, no modes of files, no Unix sockets, no memory that nobody counts (`system_calls`) | what Landlock does not cover |
| a /dev/shm of its own, with a limit, or none | memory in files that stay |
| all capabilities dropped (a node that runs as root) | everything that root may do besides reading files |
| no core dumps, `RLIMIT_DATA`, first choice of the out-of-memory killer | taking all of the disk or memory |

Elsewhere (macOS, Windows, Linux without Landlock) the process is a separate one with a memory limit that
is watched, but runs with the rights of the node's user; `not_enforced` says so.

Sources: landlock(7), seccomp(2), capabilities(7), user_namespaces(7), core(5); numbers from the kernel's
headers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.models.workers import system_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PR_CAPBSET_DROP: Final = 24
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITIES: Final = 64

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH: Final = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_ON_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_SCOPES: Final = 0b11  # abstract Unix sockets, signals
_SCOPES_ABI: Final = 6
_TRUNCATE_ABI: Final = 3

_DEVICES: Final = (
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "dri", "kfd", "dxg", "nvidia*", "nvhost*",
    "nvmap", "nvgpu*", "accel", "apex_*", "hailo*", "davinci*", "ipu*", "infiniband",
)  # fmt: skip
"""What programs read and write as a matter of course, and what accelerators are reached through. Not disks,
which a node that runs as root could read."""

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a private one is mounted there
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 2, 4, 0x4000, 1 << 19

FILES: Final = "reads only what models need, never the node's data folder, and writes only into its own folders"
MEMORY_OF_OTHERS: Final = "cannot look into other processes"
CALLS: Final = "cannot open the control socket, nor change files' modes or other processes' limits"
CAPABILITIES: Final = "has none of root's capabilities"


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def shut_in(
    writable: Iterable[Path],
    readable: Iterable[Path],
    *,
    listable: Iterable[Path] = (),
    shared_bytes: int = 0,
) -> list[str]:
    """Restrict this process for good.

    Args:
        writable: Its own folders.
        readable: What else it may read.
        listable: Folders of which it may see the names of files, all the way down.
        shared_bytes: Most that its own /dev/shm may hold; 0 for half of the machine's memory.

    Returns:
        What is enforced, as ends of a sentence that begins with "the process".
    """
    _no_core_dumps()
    if sys.platform != "linux":
        return []
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
    libc = ctypes.CDLL(None, use_errno=True)
    own_memory = _own_shared_memory(libc, shared_bytes)
    enforced = []
    dropped = _drop_capabilities(libc)
    if os.geteuid() == 0 and dropped:
        enforced.append(CAPABILITIES)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return enforced
    places = [*writable, *((_SHARED_MEMORY,) if own_memory else ())]
    if _landlock(libc, places, readable, listable):
        enforced += [FILES, MEMORY_OF_OTHERS]
    if _seccomp(libc):
        enforced.append(CALLS)
    return enforced


def limit_memory(limit_bytes: int) -> None:
    """Let allocations fail beyond so much private memory, on Linux."""
    if sys.platform == "linux" and limit_bytes:
        import resource

        with suppress(ValueError, OSError):  # a lower hard limit holds already
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def limit_files(limit_bytes: int) -> None:
    """Let writes fail beyond so many bytes of one file ("File too large"), where the system can."""
    if sys.platform != "win32" and limit_bytes:
        import resource

        with suppress(ValueError, OSError):  # a lower hard limit holds already
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def enforced_here() -> tuple[str, ...]:
    """Return what `shut_in` can enforce on this machine, without doing it."""
    if sys.platform != "linux":
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    enforced = [CAPABILITIES] if os.geteuid() == 0 else []
    if _landlock_abi(libc) > 0:
        enforced += [FILES, MEMORY_OF_OTHERS]
    known = platform.machine() in system_calls.ARCHITECTURES
    if known and Path("/proc/sys/kernel/seccomp").exists():
        enforced.append(CALLS)
    return tuple(enforced)


def not_enforced(enforced: Iterable[str]) -> tuple[str, ...]:
    """Return what is not, as sentences for the node's owner."""
    missing = [each for each in (FILES, MEMORY_OF_OTHERS, CALLS) if each not in enforced]
    return tuple(f"code of models: nothing ensures that it {each}" for each in missing)


def _no_core_dumps() -> None:
    if sys.platform == "win32":
        return
    import resource

    # 1 instead of 0: it also holds where the system pipes dumps to a program (core(5)).
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that do not exist
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    return bool(libc.capset(header, bytes(24)) == 0)


# Shared memory


def _own_shared_memory(libc: ctypes.CDLL, size_bytes: int) -> bool:
    """Mount a /dev/shm that nobody else sees, which goes with the last process that sees it.

    Semaphores of `multiprocessing` lie there, so processes do not do without one. Whether the system lets a
    user who is not root do it is tried in a process of its own: it may stop half-way.
    """
    if not _SHARED_MEMORY.is_dir():
        return False
    if os.geteuid() == 0:
        return _mounts(libc, size_bytes)
    if not _is_alone_with(lambda: _enters_namespace(libc) and _mounts(libc, size_bytes)):
        return False
    return _enters_namespace(libc) and _mounts(libc, size_bytes)


def _is_alone_with(deed: Callable[[], bool]) -> bool:
    """Do something in a process of its own, and return whether it succeeded."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if deed() else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _enters_namespace(libc: ctypes.CDLL) -> bool:
    """Enter a namespace of users with this one alone, who may mount there."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        return False
    return True


def _mounts(libc: ctypes.CDLL, size_bytes: int) -> bool:
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    # Mounts of the system still arrive here; ours do not leave.
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) != 0:
        return False
    size = f"size={size_bytes}," if size_bytes else ""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    options = f"{size}mode=0700".encode()
    return bool(libc.mount(b"tmpfs", bytes(_SHARED_MEMORY), b"tmpfs", flags, options) == 0)


# Landlock


def _landlock_abi(libc: ctypes.CDLL) -> int:
    return int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _landlock(
    libc: ctypes.CDLL,
    writable: Iterable[Path],
    readable: Iterable[Path],
    listable: Iterable[Path],
) -> bool:
    abi = _landlock_abi(libc)
    if abi <= 0:
        return False
    handled = (1 << 13) - 1  # all of ABI 1
    handled |= _REFER if abi >= 2 else 0
    handled |= _TRUNCATE if abi >= _TRUNCATE_ABI else 0
    # Later fields do not exist for older kernels, which refuse a structure that is longer than theirs.
    attributes = struct.pack("QQQ", handled, 0, _SCOPES if abi >= _SCOPES_ABI else 0)
    size = 24 if abi >= _SCOPES_ABI else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for path in listable:
            _allow(libc, ruleset, path, _READ_DIR)
        for path in readable:
            _allow(libc, ruleset, path, _READ & handled)
        for path in (*writable, *_devices()):
            _allow(libc, ruleset, path, handled)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # gone, or not ours to reach
        return
    try:
        if not path.is_dir():
            access &= _ON_FILES
        rule = struct.pack("=Qi", access, descriptor)  # packed: landlock_path_beneath_attr
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _devices() -> Iterator[Path]:
    for name in _DEVICES:
        yield from Path("/dev").glob(name)


# seccomp


def _seccomp(libc: ctypes.CDLL) -> bool:
    if platform.machine() not in system_calls.ARCHITECTURES:
        return False
    program = system_calls.program(
        platform.machine(), refuses_truncate=_landlock_abi(libc) < _TRUNCATE_ABI
    )
    code = ctypes.create_string_buffer(program, len(program))
    filters = _Filter(len(program) // 8, ctypes.addressof(code))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0) == 0)
