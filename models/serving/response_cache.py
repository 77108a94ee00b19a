"""Answers kept by the content of their requests: one cache for all versions of a node.

The key is a hash over what the answer depends on: the version's digest (its files and settings), the
inputs' names, types, shapes and bytes, the outputs asked for and the parameters. An answer is kept for a
limited time, and least-recently-used ones go when bytes or entries exceed their limits. Only versions
whose configuration asks for it (`response_cache`) are cached: the node cannot know whether a model always
gives the same answer.

Equal requests at the same time run once: `meshnode.models.serving.single_flight`.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshnode.limits import MAX_CACHED_SHARE
from meshnode.types import ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.types import InferRequest, Scalar

ENTRY_BYTES: Final = 500
"""What an entry takes besides its tensors: its key, and the objects that hold it."""

CACHE_PARAMETER: Final = "cache"
"""Parameter of an answer that came from the cache."""

HIT: Final = "hit"
"""Its value then."""

AGE_PARAMETER: Final = "cache_age_s"
"""Parameter of such an answer that says how long ago it was made; a gateway tells it as `Age`."""

_WITHOUT_EFFECT: Final = frozenset({"timeout", "priority"})  # parameters that say when, not what


class _Entry(NamedTuple):
    part: ResponsePart
    size_bytes: int
    kept_at: float


class ResponseCache:
    """Keeps answers within limits.

    Attributes:
        hits: Look-ups that found an answer.
        misses: Runs that were made because no answer was kept.
        evictions: Answers dropped for want of room.
        size_bytes: What the answers kept take.
    """

    def __init__(self, max_bytes: int, max_entries: int, max_age_s: float) -> None:
        """Begin empty; a limit of 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._max_age_s = max_age_s
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.size_bytes = 0

    def __repr__(self) -> str:
        return f"<ResponseCache {len(self)} answers, {self.size_bytes} of {self._max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keeps_any(self) -> bool:
        """Whether its limits leave room for anything."""
        return self._max_bytes > 0 and self._max_entries > 0 and self._max_age_s > 0

    def find(self, key: bytes, now: float, max_age_s: float = math.inf) -> ResponsePart | None:
        """Return the answer kept under a key, marked as a hit and with its age, or None.

        Args:
            key: What `request_key` returned.
            now: Monotonic seconds.
            max_age_s: The greatest age that will do, in seconds.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = now - entry.kept_at
        if age_s >= self._max_age_s:
            self._drop(key)
            return None
        if age_s > max_age_s:
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        part = entry.part
        return ResponsePart(part.outputs, {**part.parameters, AGE_PARAMETER: round(age_s, 3)})

    def missed(self) -> None:
        """Count a run that no kept answer saved."""
        self.misses += 1

    def keep(self, key: bytes, part: ResponsePart, now: float) -> None:
        """Keep an answer; one that takes more than its share of the cache is not.

        Its tensors are copied: they may be views of a whole batch, or of memory that is used again.
        """
        size_bytes = ENTRY_BYTES + sum(tensor.size_bytes for tensor in part.outputs)
        if not self.keeps_any or size_bytes > MAX_CACHED_SHARE * self._max_bytes:
            return
        self._drop(key)
        copied = tuple(
            Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data))
            for tensor in part.outputs
        )
        marked = ResponsePart(copied, {**part.parameters, CACHE_PARAMETER: HIT})
        self._entries[key] = _Entry(marked, size_bytes, now)
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def clear(self) -> None:
        """Drop all answers."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry.size_bytes


def request_key(digest: str, request: InferRequest) -> bytes:
    """Return a request's key: equal for requests that must get the same answer.

    Args:
        digest: Of the version's manifest.
        request: Checked, so that its tensors fill their shapes.
    """
    inputs = sorted(request.inputs, key=lambda tensor: tensor.name)
    head = [
        digest,
        [(tensor.name, tensor.datatype, tensor.shape, tensor.size_bytes) for tensor in inputs],
        request.outputs,
        _telling(request.parameters),
    ]
    key = hashlib.sha256(msgspec.msgpack.encode(head))
    for tensor in inputs:
        key.update(tensor.data)
    return key.digest()


def _telling(parameters: Mapping[str, Scalar]) -> list[tuple[str, str, Scalar]]:
    """Return the parameters that an answer may depend on, in order; `1` and `True` differ."""
    return sorted(
        (name, type(value).__name__, value)
        for name, value in parameters.items()
        if name not in _WITHOUT_EFFECT
    )
