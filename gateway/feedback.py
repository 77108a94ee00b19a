"""What people say of answers afterwards, and which version it is about.

A gateway remembers the answers that it gave of models in a release: by their request id and their caller, for a day, as
many as its memory has room for. Feedback names the id. Its metrics count for the version that answered; its label, which
says what would have been right, is compared with the answer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest, NotFound, TooLarge
from meshnode.gateway.disagreements import Asked
from meshnode.gateway.labels import is_right
from meshnode.gateway.references import copied
from meshnode.limits import (
    MAX_FEEDBACK_BYTES,
    MAX_FEEDBACK_METRICS,
    MAX_FEEDBACK_VALUE,
    MAX_GATE_NAME_LENGTH,
    MAX_LABELLED_ANSWER_BYTES,
    MAX_LABELLED_ANSWERS_BYTES,
    MAX_LABELLED_INPUTS_BYTES,
    MAX_REMEMBERED_ANSWERS,
    MAX_REQUEST_ID_LENGTH,
    REMEMBERED_ANSWER_S,
)
from meshnode.state.release import BUILT_IN_METRICS
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.releasing.split import LiveRelease
    from meshnode.types import Buffer, InferRequest, Tensor

LABELS: Final = "labels"
"""What `Release.against` says where answers are compared with labels."""

NO_NODE: Final = NodeId("")
"""Of an answer of which nobody says where it was made."""

_REMEMBERED_H: Final = round(REMEMBERED_ANSWER_S / 3600)


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody says of an answer.

    Attributes:
        request: The `X-Request-Id` of the answer.
        metrics: Numbers by name, such as `{"stars": 4, "clicked": true}`; true is 1, false 0.
        label: What would have been right: a value, a list of values, or values by the names of the outputs.
    """

    request: str
    metrics: dict[str, float | bool] = msgspec.field(default_factory=dict)
    label: Any = msgspec.UNSET

    @property
    def has_label(self) -> bool:
        """Whether it says what would have been right."""
        return self.label is not msgspec.UNSET


class Counted(msgspec.Struct, frozen=True):
    """What became of feedback.

    Attributes:
        request: The id that it names.
        model: That answered.
        version: Likewise.
        counted: The metrics that counted.
        agreed: Whether the answer was the label; None where that was not compared.
        note: Why something did not count; empty if all did.
    """

    request: str
    model: str
    version: int
    counted: tuple[str, ...] = ()
    agreed: bool | None = None
    note: str = ""


class _Made(NamedTuple):
    """What one version answered."""

    version: int
    device: str
    outputs: tuple[Tensor, ...] | None
    node: NodeId


class Labelled(NamedTuple):
    """An answer that was compared with a label.

    Attributes:
        version: That answered.
        device: The kind of device that it ran on.
        node: Likewise.
        asked: What was asked; its inputs are there only if they are small.
        outputs: The answer.
        label: What would have been right.
        agreed: Whether the answer is that.
    """

    version: int
    device: str
    node: NodeId
    asked: Asked
    outputs: tuple[Tensor, ...]
    label: Any
    agreed: bool


class _Given:
    """An answer that was given."""

    __slots__ = ("asked", "at", "judged", "made", "model", "others", "revision", "size_bytes")

    def __init__(
        self,
        at: float,
        model: str,
        revision: tuple[int, int],
        made: _Made,
        asked: Asked | None,
    ) -> None:
        self.at = at
        self.asked = asked
        self.model = model
        self.revision = revision
        self.made = made
        self.others: tuple[_Made, ...] = ()  # what its caller did not see
        self.size_bytes = _size_bytes(made)
        if asked is not None:
            self.size_bytes += sum(each.size_bytes for each in asked.inputs)
        self.judged: frozenset[str] = frozenset()  # what feedback has said: each counts once


class _Key(NamedTuple):
    caller: str
    request: str


class AnswerMemory:
    """The answers of one gateway that feedback may be about."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Remember none yet; `now` returns monotonic seconds."""
        self._now = now
        self._given: OrderedDict[_Key, _Given] = OrderedDict()  # the oldest first
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"<AnswerMemory of {len(self._given)} answers, {self._held_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._given)

    def keep(
        self,
        request: str,
        caller: str,
        *,
        model: str,
        revision: tuple[int, int],
        version: int,
        device: str,
        node: NodeId = NO_NODE,
        outputs: tuple[Tensor, ...] | None = None,
        asked: InferRequest | None = None,
    ) -> None:
        """Remember an answer; a later one of the same id and caller takes its place.

        Args:
            request: Its id; one without is not remembered.
            caller: The id of the API key that asked, or empty.
            model: That answered.
            revision: Of its release.
            version: That answered.
            device: The kind of device that it ran on.
            node: Likewise.
            outputs: The answer itself, where labels will be compared with it; a large one is not remembered.
            asked: What was asked, likewise; large inputs are not remembered.
        """
        if not request or len(request) > MAX_REQUEST_ID_LENGTH:
            return
        now = self._now()
        key = _Key(caller, request)
        self._forget(key)
        made = _Made(version, device, _small(outputs), node)
        kept = None if made.outputs is None or asked is None else _kept(asked)
        given = _Given(now, model, revision, made, kept)
        self._given[key] = given
        self._held_bytes += given.size_bytes
        self._make_room(now)

    def keep_mirrored(
        self,
        request: str,
        caller: str,
        *,
        version: int,
        device: str,
        outputs: tuple[Tensor, ...],
        node: NodeId = NO_NODE,
    ) -> None:
        """Remember what the other version answered to a request, besides; labels count for that as well."""
        given = self._given.get(_Key(caller, request))
        if given is None or given.others or LABELS in given.judged:
            return
        made = _Made(version, device, _small(outputs), node)
        given.others = (made,)
        given.size_bytes += _size_bytes(made)
        self._held_bytes += _size_bytes(made)
        self._make_room(self._now())

    def _make_room(self, now: float) -> None:
        while self._given and (
            len(self._given) > MAX_REMEMBERED_ANSWERS
            or self._held_bytes > MAX_LABELLED_ANSWERS_BYTES
            or next(iter(self._given.values())).at < now - REMEMBERED_ANSWER_S
        ):
            self._forget(next(iter(self._given)))

    def _forget(self, key: _Key) -> None:
        given = self._given.pop(key, None)
        if given is not None:
            self._held_bytes -= given.size_bytes

    def tell(
        self,
        feedback: Feedback,
        caller: str,
        live_of: Callable[[str], LiveRelease | None],
        labelled: Callable[[LiveRelease, Labelled], None] | None = None,
    ) -> Counted | None:
        """Count what somebody says of an answer; None if this gateway does not remember it.

        Args:
            feedback: What is said.
            caller: The id of the API key with which it comes, or empty. Who asked with a key judges with it.
            live_of: Returns the release of a model, if it is in one.
            labelled: Told of each answer that is compared with a label.

        Raises:
            InvalidRequest: if its label does not fit the answer.
        """
        given = self._given.get(_Key(caller, feedback.request)) or self._given.get(
            _Key("", feedback.request)
        )
        if given is None or given.at < self._now() - REMEMBERED_ANSWER_S:
            return None
        live = live_of(given.model)
        if live is None or live.revision != given.revision:
            note = (
                f"the release of {given.model} in which it was given is over: nothing was counted"
            )
            return Counted(feedback.request, given.model, given.made.version, note=note)
        return self._counted(feedback, given, live, labelled)

    def _counted(
        self,
        feedback: Feedback,
        given: _Given,
        live: LiveRelease,
        labelled: Callable[[LiveRelease, Labelled], None] | None,
    ) -> Counted:
        notes: list[str] = []
        agreed: bool | None = None
        release = live.release
        if feedback.has_label:
            if release.against != LABELS:
                notes.append(
                    'labels are compared in a release with against = "labels" only: the label did not count'
                )
            elif LABELS in given.judged:
                notes.append("a label was given before: this one did not count")
            elif given.made.outputs is None:
                notes.append(
                    "the answer was streamed or too large to be remembered: its label did not count"
                )
            else:
                compared = self._labelled(feedback, given, live)
                agreed = compared[0].agreed
                if labelled is not None:
                    for each in compared:
                        labelled(live, each)
        new = [name for name in feedback.metrics if f"metric {name}" not in given.judged]
        if len(new) < len(feedback.metrics):
            notes.append("what was said before of this answer did not count again")
        version, device = given.made.version, given.made.device
        for name in new:
            live.book.measured(version, device, name, float(feedback.metrics[name]))
        given.judged |= {f"metric {name}" for name in new}
        return Counted(feedback.request, given.model, version, tuple(new), agreed, "; ".join(notes))

    def _labelled(self, feedback: Feedback, given: _Given, live: LiveRelease) -> list[Labelled]:
        """Compare what was answered with a label, and count; the answer that was seen comes first."""
        asked = given.asked or Asked(feedback.request, 0, 0, ())
        answers = [
            Labelled(
                made.version,
                made.device,
                made.node,
                asked,
                made.outputs,
                feedback.label,
                self._is_right(made, feedback.label, live, was_seen=made is given.made),
            )
            for made in (given.made, *given.others)
            if made.outputs is not None
        ]
        for each in answers:
            live.book.compared(each.version, each.device, agreed=each.agreed)
        given.judged |= {LABELS}
        self._held_bytes -= given.size_bytes
        given.made, given.others, given.asked = given.made._replace(outputs=None), (), None
        given.size_bytes = 0
        return answers

    def _is_right(self, made: _Made, label: Any, live: LiveRelease, *, was_seen: bool) -> bool:
        """Compare an answer with a label; one that does not fit what nobody saw fits what was seen, and is right there."""
        try:
            return is_right(made.outputs or (), label, live.release.compare, live.release.tolerance)
        except InvalidRequest:
            if was_seen:
                raise
            return False


def _kept(request: InferRequest) -> Asked:
    """Return what a request asks as it is remembered: a copy, without its inputs where they are large."""
    asked = Asked.of(request)
    is_small = asked.size_bytes <= MAX_LABELLED_INPUTS_BYTES
    return asked._replace(inputs=copied(asked.inputs) if is_small else ())


def _small(outputs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    """Return an answer as it is remembered; None for none, and for a large one."""
    if outputs is None or sum(each.size_bytes for each in outputs) > MAX_LABELLED_ANSWER_BYTES:
        return None
    return copied(outputs)


def _size_bytes(made: _Made) -> int:
    return sum(each.size_bytes for each in made.outputs or ())


def read_feedback(body: Buffer) -> Feedback:
    """Return what a body says.

    Raises:
        InvalidRequest: if it is no feedback; the message says what is expected.
        TooLarge: if it is too long.
    """
    if len(body) > MAX_FEEDBACK_BYTES:
        raise TooLarge(f"feedback has {len(body)} bytes; it may have {MAX_FEEDBACK_BYTES}")
    try:
        feedback = _feedbacks.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"the body is no feedback ({error}); send "
            '{"request": ID, "metrics": {"stars": 4}}, and "label" for what would have been right'
        ) from None
    if not 0 < len(feedback.request) <= MAX_REQUEST_ID_LENGTH:
        raise InvalidRequest(
            f"request is the X-Request-Id of the answer that is meant, 1 to {MAX_REQUEST_ID_LENGTH} characters"
        )
    if not feedback.metrics and not feedback.has_label:
        raise InvalidRequest(
            "the feedback says nothing: give metrics (numbers by name), a label, or both"
        )
    if len(feedback.metrics) > MAX_FEEDBACK_METRICS:
        raise InvalidRequest(
            f"feedback has {len(feedback.metrics)} metrics; it may have {MAX_FEEDBACK_METRICS}"
        )
    for name, value in feedback.metrics.items():
        if name in BUILT_IN_METRICS:
            raise InvalidRequest(
                f"the metric {name} is measured by the gateways themselves; choose another name"
            )
        if not 0 < len(name) <= MAX_GATE_NAME_LENGTH or not name.isprintable():
            raise InvalidRequest(
                f"the name of a metric has 1 to {MAX_GATE_NAME_LENGTH} printable characters"
            )
        if not math.isfinite(value) or abs(value) > MAX_FEEDBACK_VALUE:
            raise InvalidRequest(
                f"the metric {name} is {value:g}; it is a number of at most {MAX_FEEDBACK_VALUE:g}"
            )
    return feedback


def unknown_answer(request: str) -> NotFound:
    """Return what somebody is told whose feedback is about an answer that nobody remembers."""
    return NotFound(
        f"no gateway remembers an answer {request[:MAX_REQUEST_ID_LENGTH]!r} that this caller got of a model in a "
        f"release: take the X-Request-Id of the answer as it was, send it with the same API key, within "
        f"{_REMEMBERED_H} hours (a gateway remembers its last {MAX_REMEMBERED_ANSWERS} such answers, and forgets all "
        "when it restarts); answers of models without a release, and of a version that was named, are not remembered"
    )


_feedbacks = msgspec.json.Decoder(Feedback)
