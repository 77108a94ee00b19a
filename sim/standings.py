"""What stages note of releases, and how a node sees them stand, in few words: for whether nodes agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.routing.router import Router


DEPLOYED: Final = "candidate.deployed"
"""Kind of the record that a version is to take another one's place; its detail is the version."""

ASKED: Final = "candidate.asked"
"""Kind of the record that a model server was given a request for such a version; its detail likewise."""


def standings(router: Router, models: Iterable[str]) -> tuple[str, ...]:
    """Return for each of these models which version serves and how far its release has come.

    Args:
        router: Of the node.
        models: Those that were ever in a release.
    """
    return tuple(_standing(router, model) for model in sorted(models))


def _standing(router: Router, model: str) -> str:
    live = router.releases.of(model)
    try:
        serves = f"version {router.table.resolve(model, None)}"
    except MeshError:
        serves = "nothing"
    if live is None:
        return f"{model}: {serves}"
    progress = live.progress
    return f"{model}: {serves}, {progress.phase} in step {progress.step + 1}"
