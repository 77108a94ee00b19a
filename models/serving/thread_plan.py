"""How many instances a version has on this machine, and how many threads each may use.

What is promised: of one version, threads times instances on the processor never exceed the cores, unless
its configuration asks for that; then it is done, with a warning. Versions that run at the same time share
the cores: nothing is reserved for one that is idle.

| the configuration says | the version | instances × threads |
|---|---|---|
| nothing | runs on the event loop | 1 × 1 |
| nothing | is short | cores × 1: as many requests at once |
| nothing | is long | 1 × cores: one request, on all of them |
| nothing | has a process of its own | 1 × cores |
| threads T | any | cores ÷ T × T |
| N instances | is short | N × 1 |
| N instances | is long, or has processes | N × (cores ÷ N) |
| N instances, threads T | any | N × T |

Instances on an accelerator count apart: N on each, with one thread of the processor that feeds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.limits import MAX_INSTANCES
from meshnode.models.execution import InstanceGroup

if TYPE_CHECKING:
    from meshnode.models.execution import Execution

THREADS_PARAMETER = "intra_op_thread_count"
"""Parameter of a version that asks for threads per instance."""


class Kind(StrEnum):
    """What an instance is.

    SHARED: one opened model serves several runs at once, so that instances cost no memory.
    APART: each instance is opened.
    PROCESS: each instance is a process.
    """

    SHARED = "shared"
    APART = "apart"
    PROCESS = "process"


class Pace(StrEnum):
    """How long one run takes: so short that it runs inline, short, or long enough to be spread."""

    INLINE = "inline"
    SHORT = "short"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asked for.

    Attributes:
        groups: Instance groups of the configuration; empty leaves it to the node.
        threads: Threads per instance; 0 leaves it to the node.
        slots: Runs at once, each with one thread, whatever is measured; None for no such wish.
    """

    groups: tuple[InstanceGroup, ...] = ()
    threads: int = 0
    slots: int | None = None

    @classmethod
    def of(cls, execution: Execution, slots: int | None = None) -> Asked:
        """Read a version's settings.

        Raises:
            ModelError: if the number of threads is none.
        """
        groups = execution.instance_groups
        if execution.replicas and not groups:
            groups = (InstanceGroup(count=execution.replicas),)
        text = dict(execution.parameters).get(THREADS_PARAMETER, "0")
        if not text.isascii() or not text.isdigit() or len(text) > 6:
            raise ModelError(
                f"the parameter {THREADS_PARAMETER} is {text!r}; write a number of threads, "
                "or 0 to let the node decide"
            )
        return cls(groups, int(text), slots)


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """One instance to open.

    Attributes:
        device: As in `Opening`.
        threads: Threads of the processor that one run may spread over.
        slots: Runs at once.
        passive: Opened, but given no requests.
    """

    device: str
    threads: int
    slots: int = 1
    passive: bool = False


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """All instances of a version, and what its owner should know about them (or an empty text)."""

    instances: tuple[InstancePlan, ...]
    warning: str = ""


def plan(cores: int, gpus: int, kind: Kind, pace: Pace, asked: Asked) -> ThreadPlan:
    """Return the instances of a version on this machine.

    Args:
        cores: Processor cores to use, at least 1.
        gpus: Accelerators of the machine.
        kind: What an instance is.
        pace: How long a run takes, as measured.
        asked: What the configuration says.

    Raises:
        ModelError: if it asks for more than `MAX_INSTANCES`.
    """
    groups = _on_devices(asked.groups or (InstanceGroup(),), gpus)
    on_cpu = sum(group.count for group in groups if not _is_gpu(group))
    made: list[InstancePlan] = []
    threads_in_use = 0
    for group in groups:
        if _is_gpu(group):
            count, threads = group.count or 1, asked.threads or 1
        else:
            count, threads = _on_processor(cores, kind, pace, asked, group.count, on_cpu)
            threads_in_use += 0 if group.passive else count * threads
        one = InstancePlan(group.device, threads, 1, group.passive)
        if kind is Kind.SHARED:
            made.append(InstancePlan(group.device, threads, count, group.passive))
        else:
            made += [one] * min(count, MAX_INSTANCES + 1)
    if len(made) > MAX_INSTANCES:
        raise ModelError(
            f"its configuration asks for {len(made)} or more instances on this node; "
            f"at most {MAX_INSTANCES} are opened: lower `count` in instance_group"
        )
    warning = ""
    if threads_in_use > cores and asked.slots is None:
        warning = (
            f"its configuration asks for {threads_in_use} threads at once on {cores} cores, "
            "so its instances slow each other down"
        )
    return ThreadPlan(tuple(made), warning)


def _on_processor(
    cores: int, kind: Kind, pace: Pace, asked: Asked, count: int, all_counts: int
) -> tuple[int, int]:
    """Return instances and threads of each, for one group on the processor."""
    if count:
        is_short = kind is not Kind.PROCESS and pace is not Pace.LONG
        threads = 1 if is_short else max(1, cores // all_counts)
        return count, asked.threads or threads
    if asked.slots is not None and kind is not Kind.PROCESS:
        return asked.slots, 1
    if kind is Kind.PROCESS:
        return 1, asked.threads or cores
    if asked.threads:
        return max(1, cores // asked.threads), asked.threads
    if pace is Pace.LONG:
        return 1, cores
    return (1 if pace is Pace.INLINE else cores), 1


def _on_devices(groups: tuple[InstanceGroup, ...], gpus: int) -> list[InstanceGroup]:
    """Return the groups, those on accelerators once for each accelerator."""
    placed: list[InstanceGroup] = []
    for group in groups:
        if group.device != "gpu":
            placed.append(group)
            continue
        indices = group.gpus or tuple(range(gpus))
        devices = [f"gpu:{index}" for index in indices] or ["gpu"]
        placed += [InstanceGroup(group.count, device, (), group.passive) for device in devices]
    return placed


def _is_gpu(group: InstanceGroup) -> bool:
    return group.device.startswith("gpu")
