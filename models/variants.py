"""Which of several forms of one version a node takes: fp32, fp16, int8.

Every node computes the same choice from a node's capabilities, so that placement, routing and the node
itself agree. A variant is considered where the node has its runtime and its memory; the first of these in
the node's order is taken. In a variant's name the words count: `int8-dynamic` is an int8 form.

| node | order |
|---|---|
| an accelerator that the variant fits | fp16, bf16, fp32, others, int8, int4 |
| processor only, at most `SMALL_CPUS` cores or less than `SMALL_MEMORY_BYTES` | int8, int4, fp32, others, fp16, bf16 |
| processor only, larger | fp32, others, int8, int4, fp16, bf16 |

Half precision is last on processors: most compute it by widening each number. A variant without a name is
taken for fp32, the form that a model has unless somebody made another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError
from meshnode.limits import MAX_NAME_LENGTH, MAX_VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.manifest import Manifest

SMALL_CPUS: Final = 4
"""Cores up to which a node is small: a phone, a mini-PC, a board."""

SMALL_MEMORY_BYTES: Final = 8 * 1024**3
"""Memory below which it is."""

_OTHER: Final = "other"
_ACCELERATED: Final = ("fp16", "bf16", "fp32", _OTHER, "int8", "int4")
_SMALL: Final = ("int8", "int4", "fp32", _OTHER, "fp16", "bf16")
_LARGE: Final = ("fp32", _OTHER, "int8", "int4", "fp16", "bf16")

_WORDS: Final = {
    "": "fp32", "fp32": "fp32", "float32": "fp32", "full": "fp32",
    "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "qint8": "int8", "uint8": "int8", "quantized": "int8", "quantised": "int8",
    "int4": "int4", "q4": "int4",
}  # fmt: skip
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEPARATORS: Final = re.compile(r"[._-]")


@dataclass(frozen=True, slots=True)
class Facts:
    """What matters of a node.

    Attributes:
        cpus: Processor cores.
        memory_bytes: Memory for models; 0 if it does not say.
        accelerator_bytes: Memory of its largest accelerator; 0 if it has none that counts.
        runtimes: What it can execute.
    """

    cpus: float = 1.0
    memory_bytes: int = 0
    accelerator_bytes: int = 0
    runtimes: frozenset[str] = frozenset()


def precision(variant: str) -> str:
    """Return the precision that a variant's name tells: `fp32`, `int8`, ...; `other` for none."""
    if variant.lower() in _WORDS:
        return _WORDS[variant.lower()]
    words = _SEPARATORS.split(variant.lower())
    return next((_WORDS[word] for word in words if word and word in _WORDS), _OTHER)


def choose_variant(
    candidates: Sequence[Manifest], facts: Facts, need_bytes: Callable[[int], int]
) -> Manifest | None:
    """Return the variant of one version that a node takes, or None if it can take none.

    Args:
        candidates: All variants of the version.
        facts: Of the node.
        need_bytes: Memory that a model takes while it is loaded, by the size of its files.
    """
    usable = [each for each in candidates if each.runtime in facts.runtimes]
    for orders, room_bytes in _orders(facts):
        fitting = [each for each in usable if not 0 < room_bytes < need_bytes(each.size_bytes)]
        if fitting:
            return min(
                fitting,
                key=lambda each: (orders.index(precision(each.variant)), each.variant),
            )
    return None


def _orders(facts: Facts) -> list[tuple[tuple[str, ...], int]]:
    """Return the orders to try, each with the memory that is there for it."""
    is_small = facts.cpus <= SMALL_CPUS or 0 < facts.memory_bytes < SMALL_MEMORY_BYTES
    processor = (_SMALL if is_small else _LARGE, facts.memory_bytes)
    if facts.accelerator_bytes > 0:
        return [(_ACCELERATED, facts.accelerator_bytes), processor]
    return [processor]


def why_unlike(first: Manifest, other: Manifest) -> str:
    """Return why two manifests cannot be variants of one version, or an empty text.

    A client cannot know which of them answers, so they take and give the same.
    """
    for what, mine, others in (
        ("inputs", first.inputs, other.inputs),
        ("outputs", first.outputs, other.outputs),
        ("max_batch_size", first.max_batch_size, other.max_batch_size),
    ):
        if mine != others:
            return (
                f"the variants {first.variant or 'without a name'} and "
                f"{other.variant or 'without a name'} of version {first.version} have different {what}"
            )
    return ""


def check_variants(manifests: Sequence[Manifest]) -> None:
    """Check all variants of one version.

    Raises:
        ModelError: if two have one name, a name cannot be shown, or they are not alike.
    """
    first = manifests[0]
    if len(manifests) > MAX_VARIANTS:
        raise ModelError(
            f"version {first.version} of {first.model!r} has {len(manifests)} variants; "
            f"at most {MAX_VARIANTS}"
        )
    names = [each.variant for each in manifests]
    if len(set(names)) != len(names):
        raise ModelError(f"{first.model!r} names a version twice")
    for each in manifests:
        check_variant_name(each.variant)
        reason = why_unlike(first, each)
        if reason:
            raise ModelError(f"{first.model!r}: {reason}, so clients could not tell what to send")


def check_variant_name(name: str) -> str:
    """Return a variant's name if it can be one; empty for a version's only form.

    Raises:
        ModelError: otherwise.
    """
    if name and (not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH):
        raise ModelError(
            f"{name!r} cannot be a variant's name: use letters, digits, '.', '_' or '-', such as int8"
        )
    return name
