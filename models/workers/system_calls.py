"""The system calls that a model's process does without: a seccomp filter, as bytes. Pure.

Landlock (`isolation`) knows files, tracing and signals. What it does not know is here:

| calls | answer | because |
|---|---|---|
| `prlimit64`, `setpriority`, `sched_set…`, `ioprio_set`, `move_pages` on another process | EPERM | a limit of one second of processor time kills the node |
| `sched_setaffinity` on another thread | 0, and nothing happens | the same; libraries pin their own threads by number |
| `ptrace`, `process_vm_…`, `pidfd_getfd`, `kcmp`, `perf_event_open`, `bpf`, keys of the kernel | EPERM | other processes' memory and secrets, where Landlock is missing |
| `chmod`, `chown`, `setxattr`, `utime` and their kin | 0, and nothing happens | by path or by a file that is only readable they open the node's key to other users. Libraries that set modes of their own files go on |
| `socket(AF_UNIX)`, `io_uring_setup` | EACCES, ENOSYS | the control socket; pairs are made otherwise |
| System V and POSIX message queues and shared memory, `memfd_create` | ENOSYS | memory that belongs to no process and is in no count |
| `unshare`, `setns`, `clone` with namespaces, mounts | EPERM | new rights in namespaces; `clone3`, whose flags a filter cannot see, is ENOSYS, after which libraries use `clone` |

A filter sees numbers, not paths. Sources: seccomp(2), the kernel's system call tables, linux/filter.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""By machine, its name for seccomp."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24  # seccomp_data; the low halves of arguments
_FOREIGN: Final = 0x40000000  # x86's x32 calls have this bit

_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_PRETEND, _NOT_PERMITTED, _DENIED, _ABSENT = _ERROR, _ERROR | 1, _ERROR | 13, _ERROR | 38

_AF_UNIX: Final = 1
_NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_IOPRIO_WHO_PROCESS: Final = 1
_SET_ATTRIBUTES: Final = (0x40086602, 0x40046602, 0x401C5820)  # FS_IOC_SETFLAGS, …32, FSSETXATTR


class _Numbers(NamedTuple):
    """Of one machine."""

    socket: int
    clone: int
    ioctl: int
    setpriority: int
    ioprio_set: int
    sched_setaffinity: int
    truncate: int
    others: tuple[int, ...]  # allowed on the caller alone: the first argument is 0
    pretended: tuple[int, ...]
    refused: tuple[int, ...]
    absent: tuple[int, ...]


_X86_64: Final = _Numbers(
    socket=41, clone=56, ioctl=16, setpriority=141, ioprio_set=251, sched_setaffinity=203, truncate=76,
    # prlimit64, sched_setscheduler, sched_setparam, sched_setattr, migrate_pages, move_pages
    others=(302, 144, 142, 314, 256, 279),
    # chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat, setxattr ×3, removexattr ×3, utime,
    # utimes, futimesat, utimensat
    pretended=(90, 91, 92, 93, 94, 260, 268, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280),
    # ptrace, process_vm_readv, process_vm_writev, kcmp, perf_event_open, bpf, add_key, request_key,
    # keyctl, unshare, setns, mount, umount2, pivot_root, chroot
    refused=(101, 310, 311, 312, 298, 321, 248, 249, 250, 272, 308, 165, 166, 155, 161),
    # shmget, shmat, shmctl, semget, semop, semctl, semtimedop, msgget, msgsnd, msgrcv, msgctl, mq_open,
    # mq_unlink, memfd_create
    absent=(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241, 319),
)  # fmt: skip
_AARCH64: Final = _Numbers(
    socket=198, clone=220, ioctl=29, setpriority=140, ioprio_set=30, sched_setaffinity=122, truncate=45,
    others=(261, 119, 118, 274, 238, 239),
    # fchmod, fchmodat, fchownat, fchown, setxattr ×3, removexattr ×3, utimensat
    pretended=(52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 88),
    refused=(117, 270, 271, 272, 241, 280, 217, 218, 219, 97, 268, 40, 39, 41, 51),
    absent=(194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181, 279),
)  # fmt: skip
_BY_MACHINE: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}

# The same on all machines.
_PRETENDED: Final = (452, 463, 466, 469)  # fchmodat2, setxattrat, removexattrat, file_setattr
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd, process_madvise, mount_setattr,
# process_mrelease
_REFUSED: Final = (428, 429, 430, 431, 432, 433, 438, 440, 442, 448)
_MISSING: Final = (425, 435, 447)  # io_uring_setup, clone3, memfd_secret

_Line = tuple[int, int, int, int]


def program(machine: str, *, refuses_truncate: bool = False) -> bytes:
    """Return the filter for a machine.

    Args:
        machine: One of `ARCHITECTURES`, as `platform.machine` says it.
        refuses_truncate: Whether `truncate` by path is refused: Landlock before ABI 3 does not know it.
    """
    numbers = _BY_MACHINE[machine]
    lines: list[_Line] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_GIVE, 0, 0, _ABSENT),  # another machine's calls
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _FOREIGN),
        (_GIVE, 0, 0, _ABSENT),
    ]
    refused = (*numbers.refused, *_REFUSED, *((numbers.truncate,) if refuses_truncate else ()))
    lines += _answered(refused, _NOT_PERMITTED)
    lines += _answered((*numbers.pretended, *_PRETENDED), _PRETEND)
    lines += _answered((*numbers.absent, *_MISSING), _ABSENT)
    for number in numbers.others:
        lines += _unless(number, ((_FIRST, 0),), _NOT_PERMITTED)
    lines += _unless(numbers.sched_setaffinity, ((_FIRST, 0),), _PRETEND)
    lines += _unless(numbers.setpriority, ((_FIRST, 0), (_SECOND, 0)), _NOT_PERMITTED)
    own_class = ((_FIRST, _IOPRIO_WHO_PROCESS), (_SECOND, 0))
    lines += _unless(numbers.ioprio_set, own_class, _NOT_PERMITTED)
    lines += _if(numbers.socket, _FIRST, (_AF_UNIX,), _DENIED)
    lines += _if(numbers.ioctl, _SECOND, _SET_ATTRIBUTES, _NOT_PERMITTED)
    lines += _if_any_bit(numbers.clone, _NEW_NAMESPACES, _NOT_PERMITTED)
    lines.append((_GIVE, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _answered(numbers: Iterable[int], answer: int) -> list[_Line]:
    lines = []
    for number in numbers:
        lines += [(_EQUAL, 0, 1, number), (_GIVE, 0, 0, answer)]
    return lines


def _of_call(number: int, lines: list[_Line]) -> list[_Line]:
    """Do something for one call; all others jump over it."""
    return [(_EQUAL, 0, len(lines), number), *lines]


def _unless(number: int, wanted: tuple[tuple[int, int], ...], answer: int) -> list[_Line]:
    """Answer a call unless its arguments have these values."""
    lines: list[_Line] = []
    for argument, value in wanted:
        lines += [(_LOAD, 0, 0, argument), (_EQUAL, 1, 0, value), (_GIVE, 0, 0, answer)]
    return _of_call(number, [*lines, (_GIVE, 0, 0, _ALLOW)])


def _if(number: int, argument: int, values: tuple[int, ...], answer: int) -> list[_Line]:
    """Answer a call if an argument has one of these values."""
    lines: list[_Line] = [(_LOAD, 0, 0, argument)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), (_GIVE, 0, 0, answer)]
    return _of_call(number, [*lines, (_GIVE, 0, 0, _ALLOW)])


def _if_any_bit(number: int, bits: int, answer: int) -> list[_Line]:
    """Answer a call if its first argument has one of these bits."""
    lines = [
        (_LOAD, 0, 0, _FIRST), (_ANY_BIT, 0, 1, bits), (_GIVE, 0, 0, answer), (_GIVE, 0, 0, _ALLOW),
    ]  # fmt: skip
    return _of_call(number, lines)
