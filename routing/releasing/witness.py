"""What the tries of one request show about the two versions of a release.

Not every error is a version's fault. A lost link, a node that is busy, paused or being emptied says nothing of what runs
there. An error of the model or of its input is *doubtful* until the request is over: where another try of it succeeds
it counts against the version that raised it, and where the request fails in the same way wherever it goes it is the
request's, and counts for nobody.

A try that lost to another one took at least as long as it was waited for, which is what counts of it: versions that
are slow would seem quicker if their slowest answers were left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import DeadlineExceeded, InferenceFailed, UsageError
from meshnode.routing.breaker import Verdict, verdict_of

if TYPE_CHECKING:
    from meshnode.errors import MeshError
    from meshnode.routing.releasing.split import LiveRelease
    from meshnode.routing.tries import Flying


class Witness:
    """Of one request."""

    __slots__ = ("_doubtful", "_first_ms", "_live")

    def __init__(self, live: LiveRelease) -> None:
        """Tell the book of a release that is under way."""
        self._live = live
        self._doubtful: list[tuple[int, str, MeshError]] = []
        self._first_ms = 0.0

    def __repr__(self) -> str:
        return f"<Witness of {self._live}: {len(self._doubtful)} doubtful>"

    def began(self, flying: Flying, now: float) -> None:
        """A stream's answer has begun: clients read the rest of it as fast as they please."""
        self._first_ms = _observed_ms(flying, now)

    def succeeded(self, flying: Flying, now: float, run_ms: float, *, kept: bool) -> None:
        """A try answered to its end; a kept answer says nothing of what making it takes.

        Args:
            flying: The try.
            now: Monotonic seconds.
            run_ms: How long it ran, as the replica says; 0 if unknown.
            kept: Whether it is an answer to an earlier request.
        """
        for version, device, _ in self._doubtful:
            self._count(version, device, 0.0, failed=True)
        self._doubtful.clear()
        if not kept:
            took_ms = run_ms or self._first_ms or _observed_ms(flying, now)
            self._count(*_place(flying), took_ms, failed=False)

    def lost(self, flying: Flying, now: float) -> None:
        """Another try was quicker."""
        self._count(*_place(flying), _observed_ms(flying, now), failed=flying.is_late(now))

    def failed(self, flying: Flying, error: MeshError, now: float) -> None:
        """A try ended with an error."""
        if isinstance(error, DeadlineExceeded):
            self.lost(flying, now)
        elif isinstance(error, UsageError | InferenceFailed):
            self._doubtful.append((*_place(flying), error))
        elif verdict_of(error) is Verdict.FAILURE:
            self._count(*_place(flying), 0.0, failed=True)

    def closed(self) -> None:
        """The request is over; unless a try succeeded it failed."""
        doubtful, self._doubtful = self._doubtful, []
        if len(doubtful) != 1:
            return
        ((version, device, error),) = doubtful
        if isinstance(error, InferenceFailed):
            self._count(version, device, 0.0, failed=True)

    def _count(self, version: int, device: str, run_ms: float, *, failed: bool) -> None:
        if self._live.is_about(version):
            self._live.book.answered(version, device, run_ms, failed=failed)


def _place(flying: Flying) -> tuple[int, str]:
    candidate = flying.step.route.candidate
    return candidate.replica.version, candidate.conditions.device


def _observed_ms(flying: Flying, now: float) -> float:
    return max(0.0, 1000 * flying.waited_s(now) - flying.flight.rtt_ms)
