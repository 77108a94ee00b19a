"""Which inferences a gateway takes: all, until answers take too long; then no more than come back in good time.

A request that is planned goes through here first, and again when it is over::

    admitted = admission.enter(model, hints, timeout_s, now)     # or Saturated: nothing was counted
    ...
    admitted.end(now, error)                                     # once, whatever became of it

Each model has its own limit (`meshnode.routing.concurrency`), and under it the priorities and callers have their
parts (`meshnode.routing.fairness`). Who is refused is told when to come back: when what is in flight now should be
worked off. A model costs memory only while it has requests in flight, or a limit that was needed of late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import DeadlineExceeded, MeshError, Saturated
from meshnode.limits import MAX_ADMITTED_MODELS
from meshnode.routing.concurrency import ConcurrencyLimit
from meshnode.routing.fairness import FairShares

if TYPE_CHECKING:
    from meshnode.types import RoutingHints

HURRY: Final = 4.0
"""A caller that gives less than this many times what a free replica takes is in a hurry."""


class _Model:
    """One model's requests at this gateway."""

    __slots__ = ("limit", "shares")

    def __init__(self) -> None:
        self.limit = ConcurrencyLimit()
        self.shares = FairShares()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        return not self.shares.in_flight and not self.limit.is_limited


class Admitted:
    """One request that came in; `end` it once."""

    __slots__ = ("_hints", "_model", "_since", "_timeout_s", "_was_heard")

    def __init__(self, model: _Model, hints: RoutingHints, timeout_s: float, since: float) -> None:
        self._model = model
        self._hints = hints
        self._timeout_s = timeout_s
        self._since = since
        self._was_heard = False

    def __repr__(self) -> str:
        return f"<Admitted since {self._since:.3f}>"

    def began(self, now: float, alone_s: float) -> None:
        """The first part of a stream is here: how long the others take is the model's business.

        Args:
            now: Monotonic seconds.
            alone_s: Seconds that it would take at a free replica.
        """
        if not self._was_heard:
            self._was_heard = True
            model = self._model
            model.limit.answered(
                now - self._since, self._timeout_s, alone_s, model.shares.in_flight, now
            )

    def end(self, now: float, error: MeshError | None = None, alone_s: float = 0.0) -> None:
        """The request is over.

        Args:
            now: Monotonic seconds.
            error: What became of it; None for an answer.
            alone_s: Seconds that it would take at a free replica.
        """
        if error is None:
            self.began(now, alone_s)
        elif self._tells_of_load(error, alone_s):
            model = self._model
            model.limit.failed(now - self._since, model.shares.in_flight, now)
        self._model.shares.leave(self._hints.caller, self._hints.priority)

    def _tells_of_load(self, error: MeshError, alone_s: float) -> bool:
        """Whether an error came of too much load.

        That a caller in a hurry was not answered, or was refused, proves nothing; nor does what was never tried.
        """
        if self._was_heard or not isinstance(error, Saturated | DeadlineExceeded):
            return False
        return alone_s > 0.0 and self._timeout_s >= HURRY * alone_s


class Admission:
    """Lets requests in, or refuses them.

    Attributes:
        refused: Requests that were refused so far.
    """

    def __init__(self) -> None:
        """Begin without requests and limits."""
        self.refused = 0
        self._models: dict[str, _Model] = {}

    def __repr__(self) -> str:
        limited = sum(each.limit.is_limited for each in self._models.values())
        return f"<Admission of {len(self._models)} models, {limited} limited>"

    def limit_of(self, model: str) -> float:
        """Return how many requests of a model may be in flight; infinite if there is no limit."""
        known = self._models.get(model)
        return known.limit.limit if known is not None else float("inf")

    def in_flight(self, model: str) -> int:
        """Return how many requests of a model came in and are not over."""
        known = self._models.get(model)
        return known.shares.in_flight if known is not None else 0

    def enter(self, model: str, hints: RoutingHints, timeout_s: float, now: float) -> Admitted:
        """Let a request in.

        Args:
            model: Its name.
            hints: Whose it is, and how urgent.
            timeout_s: Seconds that its caller gives it.
            now: Monotonic seconds.

        Raises:
            Saturated: if too much is in flight already; nothing is counted then.
        """
        known = self._models.get(model)
        if known is None:
            known = self._model(model)
        shares, limit = known.shares, known.limit
        if limit.is_limited and not shares.may_enter(
            hints.caller, hints.share, hints.priority, limit.limit
        ):
            self.refused += 1
            raise Saturated(
                f"model {model!r} has more requests than its replicas answer in time: {shares.in_flight} are in "
                "flight at this gateway; try again later, or deploy more replicas",
                limit.retry_after_s(shares.in_flight),
            )
        shares.enter(hints.caller, hints.share, hints.priority)
        return Admitted(known, hints, timeout_s, now)

    def _model(self, name: str) -> _Model:
        if len(self._models) >= MAX_ADMITTED_MODELS:
            self._models = {key: each for key, each in self._models.items() if not each.is_at_rest}
        made = self._models[name] = _Model()
        return made
