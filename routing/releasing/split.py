"""The releases that this gateway follows: which of two versions answers, and what it saw of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.routing.releasing.evidence import EvidenceBook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.rollout import Progress
    from meshnode.state.release import Release


class LiveRelease:
    """A release that is under way.

    Attributes:
        model: The deployment's public name.
        revision: Which release of it.
        release: The plan.
        progress: How far it has come.
        book: What this gateway saw of both versions in the present step.
    """

    __slots__ = ("book", "model", "progress", "release", "revision")

    def __init__(
        self, model: str, revision: tuple[int, int], release: Release, progress: Progress
    ) -> None:
        self.model = model
        self.revision = revision
        self.release = release
        self.progress = progress
        self.book = EvidenceBook()
        self.book.follow(release, progress)

    def __repr__(self) -> str:
        plan = self.release
        return (
            f"<LiveRelease {self.model} {plan.baseline} -> {plan.candidate}: {self.progress.phase}>"
        )

    def is_about(self, version: int) -> bool:
        """Whether a version is one of the two."""
        return version in (self.release.baseline, self.release.candidate)


class Releases:
    """The releases under way, by model. Bounded by the deployments.

    Attributes:
        live: All of them, to be read only: on the way of every request.
    """

    def __init__(self) -> None:
        self.live: dict[str, LiveRelease] = {}

    def __repr__(self) -> str:
        return f"<Releases of {', '.join(self.live) or 'nothing'}>"

    def __iter__(self) -> Iterator[LiveRelease]:
        """Yield each."""
        return iter([*self.live.values()])

    def of(self, model: str) -> LiveRelease | None:
        """Return the release of a model that is under way, or None: one look-up."""
        return self.live.get(model)

    def follow(
        self, model: str, revision: tuple[int, int], release: Release, progress: Progress
    ) -> None:
        """Take how far a release has come; what was seen in an earlier step is forgotten.

        Args:
            model: The deployment's public name.
            revision: Which release of it.
            release: The plan.
            progress: How far it has come; it is dropped once that settles it.
        """
        if progress.is_over:
            self.live.pop(model, None)
            return
        live = self.live.get(model)
        if live is None or live.revision != revision:
            self.live[model] = LiveRelease(model, revision, release, progress)
            return
        live.release, live.progress = release, progress
        live.book.follow(release, progress)

    def drop(self, model: str) -> None:
        """Forget a model's release, if there is one."""
        self.live.pop(model, None)
