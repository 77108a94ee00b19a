"""How the mesh's models are offered to clients: what a deployment may ask for, and what people are shown."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.execution import Route
from meshnode.models.routes import check_routes
from meshnode.models.tasks import offer_of, written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.models.manifest import Manifest
    from meshnode.node import Node
    from meshnode.state.deployment import Deployment

METHOD: Final = "POST"
"""By which a model's path is asked."""


def check_offer(deployment: Deployment, node: Node) -> None:
    """Check that a model can be offered as its deployment says.

    That is: it has what its tasks are mapped to, and no other model has its path, or a route that it is known to bring.

    Nodes that are apart may both give a path away, and a model's routes may be known only once it runs: what it is not
    asked for then, `lost_paths` tells.

    Args:
        deployment: What is to be deployed.
        node: Knows all other models.

    Raises:
        InvalidRequest: naming the task, and what it lacks.
        ModelError: naming the other model.
    """
    for manifest in deployment.manifests:
        for mapping in manifest.exposure.tasks:
            offer_of(manifest, mapping.task)
    own = {route for each in deployment.manifests for route in _routes(each)}
    if not own:
        return
    others: dict[str, tuple[Route, ...]] = {}
    deployed = chain.from_iterable(each.manifests for each in node.deployments())
    for manifest in chain(node.router.table.manifests(), deployed):
        if manifest.model != deployment.name:
            others[manifest.model] = (*others.get(manifest.model, ()), *_routes(manifest))
    routes = sorted(own, key=lambda each: (each.path, each.method))
    check_routes(deployment.name, routes, others)


def no_longer_offered(before: Deployment | None, after: Deployment) -> list[str]:
    """Return what people should know that a deployment takes away, as sentences: each one says all of its offer."""
    old, new = _offers(before), _offers(after)
    return [
        f"{after.name} is no longer offered {text}; to keep that, deploy with {option} again"
        for text, option in sorted(old.items())
        if text not in new
    ]


def _offers(deployment: Deployment | None) -> dict[str, str]:
    """Return how a deployment offers its model, as texts, each with the option of `deploy` for it."""
    found: dict[str, str] = {}
    for manifest in () if deployment is None else deployment.manifests:
        exposure = manifest.exposure
        if exposure.path:
            found[f"at {exposure.path}"] = f"--path {exposure.path}"
        for task in exposure.tasks:
            found[f"for the task {written(task)}"] = f"--task {written(task)}"
        if exposure.cache:
            found["with answers that are kept"] = "--cache"
    return found


def lost_paths(manifest: Manifest, others: Iterable[Manifest]) -> list[tuple[str, str]]:
    """Return the paths at which another model is asked instead, each with that model.

    A chosen path comes before a route of the same method; of two that are alike the model that is first by name.
    """
    path, me = manifest.exposure.path, manifest.model
    lost: dict[str, str] = {}
    for other in sorted(others, key=lambda each: each.model):
        theirs = other.exposure.path
        if other.model == me:
            continue
        if path and theirs == path and other.model < me:
            lost.setdefault(path, other.model)
        for route in manifest.execution.routes:
            is_chosen = route.method == METHOD and theirs == route.path
            if is_chosen or (other.model < me and route in other.execution.routes):
                lost.setdefault(route.path, other.model)
    return sorted(lost.items())


def offer_view(manifest: Manifest | None, others: Iterable[Manifest] = ()) -> dict[str, Any]:
    """Describe how a model is offered besides by its name; None where it does not say so itself.

    Args:
        manifest: Of the model; None if it is unknown.
        others: Of all models.
    """
    lost = [] if manifest is None else lost_paths(manifest, others)
    exposure = None if manifest is None else manifest.exposure
    return {
        "endpoint": (exposure and exposure.path) or None,
        "taken": [{"path": path, "by": model} for path, model in lost],
        "tasks": [written(task) for task in exposure.tasks] if exposure else [],
        "cache": exposure.cache if exposure else None,
    }


def _routes(manifest: Manifest) -> tuple[Route, ...]:
    path = manifest.exposure.path
    return (*manifest.execution.routes, *((Route(METHOD, path),) if path else ()))
