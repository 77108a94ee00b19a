"""Where a new version answers otherwise than it should: examples, and what they have in common.

Of each release a gateway keeps the last disagreements with what was asked and answered, as far as that is small, and of
the last comparisons only what kind of request each was. What is much more common among disagreements than among
agreements is a cluster: a device class, a region, an answer, a size. An answer for which there was nothing to compare it
with is counted with the reason, and told in the log once for each reason.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import MeshError
from meshnode.gateway.protocols.plain_tensors import plain
from meshnode.limits import (
    MAX_COMPARISONS_KEPT,
    MAX_DISAGREEMENT_BYTES,
    MAX_DISAGREEMENTS,
    MAX_REFERENCE_WARNINGS,
)
from meshnode.trust.records import rfc3339
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.routing.releasing.split import LiveRelease
    from meshnode.types import InferRequest

log = logging.getLogger(__name__)

_SHOWN_VALUES: Final = 32
_SHOWN_CHARACTERS: Final = 400
_ANSWER_CHARACTERS: Final = 40
_MODELS: Final = 64


class Asked(NamedTuple):
    """A request whose answer is compared, or may be later.

    Attributes:
        request: Its id.
        rows: How many it has.
        size_bytes: Of its inputs.
        inputs: What was asked; empty where that is not kept.
    """

    request: str
    rows: int
    size_bytes: int
    inputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, request: InferRequest) -> Asked:
        """Return what a request asks."""
        size_bytes = sum(tensor.size_bytes for tensor in request.inputs)
        return cls(request.request_id, request.rows, size_bytes, request.inputs)


class Compared(NamedTuple):
    """One comparison of an answer of the new version.

    Attributes:
        asked: What was asked.
        answer: Of the new version.
        right: What it was compared with: an answer, or a decision or a label as JSON gave it.
        device: The kind of device on which the new version answered.
        node: Its name.
        region: Where that is.
        difference: In words; empty if they agree.
        at_s: Seconds since the Unix epoch.
    """

    asked: Asked
    answer: tuple[Tensor, ...]
    right: Any
    device: str
    node: str
    region: str
    difference: str
    at_s: float


class View(msgspec.Struct, frozen=True):
    """What one gateway saw of a model's last release.

    Attributes:
        revision: Which release.
        compared: Answers of the new version that were compared.
        disagreed: How many differ.
        examples: The last of those, the newest first.
        kinds: Of the last comparisons, what kind of request each was, and whether the answers agreed.
        version: The new version.
        no_reference: Its answers for which there was nothing to compare them with.
        reason: Why, of the last one.
        missed_at_s: When that was, in seconds since the Unix epoch.
    """

    revision: tuple[int, int]
    compared: int
    disagreed: int
    examples: list[dict[str, Any]]
    kinds: list[tuple[dict[str, str], bool]]
    version: int = 0
    no_reference: int = 0
    reason: str = ""
    missed_at_s: float = 0.0


class Seen(NamedTuple):
    """What other gateways saw.

    Attributes:
        views: What each saw.
        silent: Names of those that did not say.
    """

    views: Sequence[View] = ()
    silent: Sequence[str] = ()


class _OfRelease:
    """What was seen of one release."""

    def __init__(self, revision: tuple[int, int], version: int) -> None:
        self.revision = revision
        self.version = version
        self.no_reference = 0
        self.reason = ""
        self.missed_at_s = 0.0
        self.warned: set[str] = set()
        self.compared = 0
        self.disagreed = 0
        self.examples: deque[dict[str, Any]] = deque(maxlen=MAX_DISAGREEMENTS)
        self.kinds: deque[tuple[dict[str, str], bool]] = deque(maxlen=MAX_COMPARISONS_KEPT)


class Disagreements:
    """What one gateway saw, by model; of the releases that it saw last, under way or over."""

    def __init__(self) -> None:
        """Begin without any."""
        self._seen: dict[str, _OfRelease] = {}

    def __repr__(self) -> str:
        return f"<Disagreements of {', '.join(self._seen) or 'nothing'}>"

    def add(self, live: LiveRelease, compared: Compared) -> None:
        """Take note of a comparison; one of a former release is none."""
        seen = self._of(live)
        if seen is None:
            return
        seen.compared += 1
        seen.kinds.append((_kind(compared), not compared.difference))
        if compared.difference:
            seen.disagreed += 1
            seen.examples.append(_example(compared))

    def missed(self, live: LiveRelease, reason: str, at_s: float) -> None:
        """Take note of an answer of the new version for which there was nothing to compare it with.

        Args:
            live: The release.
            reason: Why, in words.
            at_s: Seconds since the Unix epoch.
        """
        seen = self._of(live)
        if seen is None:
            return
        seen.no_reference += 1
        seen.reason, seen.missed_at_s = reason[:_SHOWN_CHARACTERS], at_s
        if seen.reason not in seen.warned and len(seen.warned) < MAX_REFERENCE_WARNINGS:
            seen.warned.add(seen.reason)
            log.warning(
                "answers of %s, version %d, cannot be compared with %s: %s",
                live.model, seen.version, live.release.against, seen.reason,
            )  # fmt: skip

    def view(self, model: str) -> View | None:
        """Return what was seen of a model's last release; None if nothing was."""
        seen = self._seen.get(model)
        if seen is None:
            return None
        return View(
            seen.revision,
            seen.compared,
            seen.disagreed,
            [*reversed(seen.examples)],
            [*seen.kinds],
            seen.version,
            seen.no_reference,
            seen.reason,
            seen.missed_at_s,
        )

    def _of(self, live: LiveRelease) -> _OfRelease | None:
        """Return what was seen of a release, in place of what was of a former one; None if it is a former one itself."""
        model = live.model
        seen = self._seen.get(model)
        if seen is not None and seen.revision > live.revision:
            return None
        if seen is None or seen.revision != live.revision:
            seen = _OfRelease(live.revision, live.release.candidate)
        self._seen.pop(model, None)
        self._seen[model] = seen  # at the end: the others are older
        if len(self._seen) > _MODELS:
            del self._seen[next(iter(self._seen))]
        return seen


def joined(views: Sequence[View], live: LiveRelease | None = None) -> dict[str, Any]:
    """Return what several gateways saw of a model as one: of the last release that any saw.

    Args:
        views: What each saw.
        live: The model's release, if it is in one: what was seen of former ones is left out.

    Returns:
        `{"version", "compared", "disagreed", "no_reference", "reason", "examples", "clusters"}`; the version is 0 where
        nobody saw any release.
    """
    last = max((view.revision for view in views), default=None)
    if live is not None:
        last = live.revision if last is None else max(last, live.revision)
    views = [view for view in views if view.revision == last]
    examples = [example for view in views for example in view.examples]
    examples.sort(key=lambda example: str(example.get("at")), reverse=True)
    version = max((view.version for view in views), default=0)
    if live is not None and last == live.revision:
        version = live.release.candidate
    missed = max(views, key=lambda view: view.missed_at_s, default=None)
    return {
        "version": version,
        "compared": sum(view.compared for view in views),
        "disagreed": sum(view.disagreed for view in views),
        "no_reference": sum(view.no_reference for view in views),
        "reason": "" if missed is None else missed.reason,
        "examples": examples[:MAX_DISAGREEMENTS],
        "clusters": _clusters([each for view in views for each in view.kinds]),
    }


def _clusters(kinds: Sequence[tuple[dict[str, str], bool]]) -> list[dict[str, Any]]:
    """Return what is more common among disagreements than among the rest."""
    from meshnode.routing.releasing.clusters import clusters  # only where somebody asks

    found = clusters(kinds) if kinds else ()
    return [msgspec.to_builtins(each) | {"text": str(each)} for each in found]


def _kind(compared: Compared) -> dict[str, str]:
    """Return what a request was like, without its content: but for the answer, which is what people look for."""
    asked = compared.asked
    return {
        "device": compared.device,
        "node": compared.node,
        "region": compared.region,
        "rows": _bucket(asked.rows),
        "input bytes": _bucket(asked.size_bytes),
        "answer": _shown_answer(compared.right),
    }


def _bucket(number: int) -> str:
    """Return between which powers of two a number is."""
    if number < 2:
        return str(number)
    low = 1 << (number.bit_length() - 1)
    return f"{low} to {2 * low - 1}"


def _shown_answer(right: Any) -> str:
    """Return an answer in a word: the text, the number, or the place of the greatest of several numbers."""
    if not isinstance(right, tuple):
        return str(right)[:_ANSWER_CHARACTERS]
    if not right:
        return ""
    first = right[0]
    try:
        values = plain(first)
    except MeshError:
        return ""
    if len(values) == 1:
        value = values[0]
        return f"{value:.2g}" if isinstance(value, float) else str(value)[:_ANSWER_CHARACTERS]
    if first.datatype is DataType.BYTES or not values or len(values) > MAX_COMPARISONS_KEPT:
        return ""
    if first.shape and first.rows > 1:
        return ""
    return f"greatest at {max(range(len(values)), key=values.__getitem__)}"


def _example(compared: Compared) -> dict[str, Any]:
    right = compared.right
    example = {
        "at": rfc3339(compared.at_s),
        "request": compared.asked.request,
        "difference": compared.difference[:_SHOWN_CHARACTERS],
        "device": compared.device,
        "node": compared.node,
        "region": compared.region,
        "inputs": _shown(compared.asked.inputs),
        "answer": _shown(compared.answer),
        "expected": _shown(right) if isinstance(right, tuple) else str(right)[:_SHOWN_CHARACTERS],
    }
    if len(msgspec.json.encode(example)) > MAX_DISAGREEMENT_BYTES:
        example |= {"inputs": {}, "answer": {}, "expected": "too large to be shown"}
    return example


def _shown(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the beginning of each tensor's values."""
    found: dict[str, Any] = {}
    for tensor in tensors:
        try:
            values = plain(_beginning(tensor))
        except (MeshError, ValueError):
            values = []
        found[tensor.name] = {
            "shape": list(tensor.shape),
            "values": [_short(value) for value in values[:_SHOWN_VALUES]],
        }
    return found


def _beginning(tensor: Tensor) -> Tensor:
    """Return the first values of a tensor as one of its own; all of them where their lengths differ."""
    element_bytes = tensor.datatype.size_bytes
    if element_bytes is None:
        return tensor
    count = min(_SHOWN_VALUES, tensor.elements)
    data = memoryview(tensor.data).cast("B")[: count * element_bytes]
    return Tensor(tensor.name, tensor.datatype, (count,), data)


def _short(value: Any) -> Any:
    return value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value
