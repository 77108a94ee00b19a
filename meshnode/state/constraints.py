"""What a deployment asks of the nodes that serve it, and what one replica takes of them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import (
    MAX_CLAIMED_CPUS,
    MAX_CLAIMED_MEMORY_BYTES,
    MAX_CONSTRAINT_TEXT_LENGTH,
    MAX_CONSTRAINTS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCELERATORS: Final = ("cuda", "rocm", "apple", "edgetpu", "intel-gpu", "intel-npu")
"""Kinds of accelerators that a node can have (`meshnode.capabilities.Accelerator`)."""

ANY_ACCELERATOR: Final = "any"
"""Any of them."""

_WORD: Final = re.compile(r"[^\x00-\x20\x7f]+")


class Constraints(msgspec.Struct, array_like=True, frozen=True):
    """Conditions that a node must meet to serve a deployment; without any, all nodes may.

    Attributes:
        regions: It is in one of these, or below it: `eu` covers `eu-west`.
        labels: It has all of these labels, (name, value).
        accelerator: It has one of this kind, `any` for one of whatever kind; empty for none needed.
        accelerator_memory_bytes: One of those has at least so much memory.
        memory_bytes: It may use at least so much memory.
        runtime: It has this runtime, besides what the model itself needs; empty for none.
        on_mains: It does not run on a battery.
    """

    regions: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    accelerator: str = ""
    accelerator_memory_bytes: int = 0
    memory_bytes: int = 0
    runtime: str = ""
    on_mains: bool = False


class Resources(msgspec.Struct, array_like=True, frozen=True):
    """What one replica takes; 0 leaves it to the estimate.

    Attributes:
        memory_bytes: Memory, of the accelerator where it runs on one.
        cpus: Processors, fractions included.
    """

    memory_bytes: int = 0
    cpus: float = 0.0


ANYWHERE = Constraints()
"""Of a deployment that every node may serve."""

ESTIMATED = Resources()
"""Of a deployment that leaves what a replica takes to the estimate."""


def flaws(constraints: Constraints, resources: Resources) -> Iterator[str]:
    """Yield what is wrong with them, each as a sentence about one field; nothing if all is well."""
    for name, words in (
        ("regions", constraints.regions),
        ("labels", [word for pair in constraints.labels for word in pair]),
        ("runtime", [constraints.runtime] if constraints.runtime else []),
    ):
        if len(words) > 2 * MAX_CONSTRAINTS:
            yield f"{name} has more than {MAX_CONSTRAINTS} entries"
        for word in words:
            if len(word) > MAX_CONSTRAINT_TEXT_LENGTH or not _WORD.fullmatch(word):
                yield (
                    f"{name} has {word[:60]!r}, which is not 1 to {MAX_CONSTRAINT_TEXT_LENGTH} characters without "
                    "spaces"
                )
    kinds = ("", ANY_ACCELERATOR, *ACCELERATORS)
    if constraints.accelerator not in kinds:
        yield f"accelerator {constraints.accelerator[:60]!r} is none of {', '.join(kinds[1:])}"
    if constraints.accelerator_memory_bytes and not constraints.accelerator:
        yield "accelerator_memory goes with accelerator, such as accelerator = 'any'"
    for name, size_bytes in (
        ("accelerator_memory", constraints.accelerator_memory_bytes),
        ("memory", constraints.memory_bytes),
        ("the memory of a replica", resources.memory_bytes),
    ):
        if not 0 <= size_bytes <= MAX_CLAIMED_MEMORY_BYTES:
            yield f"{name} of {size_bytes} bytes is out of range"
    if not (math.isfinite(resources.cpus) and 0.0 <= resources.cpus <= MAX_CLAIMED_CPUS):
        yield f"the cpus of a replica are {resources.cpus}, not 0 to {MAX_CLAIMED_CPUS}"
