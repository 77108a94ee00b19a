"""Waiting for replicas, as clients of model servers do: until a version is ready, or until nobody serves it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshnode.errors import DeadlineExceeded, ModelError, NoReplica
from meshnode.limits import LOAD_POLL_S, LOAD_WAIT_S, UNLOAD_WAIT_S
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.model_views import ModelViews
    from meshnode.node import Node

_SERVING: Final = (ReplicaState.READY, ReplicaState.PAUSED, ReplicaState.UNLOADING)


class ReplicaWaits:
    """Looks again and again how a model's replicas fare."""

    def __init__(self, node: Node, views: ModelViews, now: Callable[[], float]) -> None:
        """Look at what these know.

        Args:
            node: The cores of this node.
            views: How replicas fare.
            now: Monotonic seconds.
        """
        self._node = node
        self._views = views
        self._now = now

    def __repr__(self) -> str:
        return f"<ReplicaWaits at {self._node.me[:8]}>"

    async def ready(self, name: str, version: int, wanted: int = 1) -> None:
        """Wait until so many replicas of a version are ready, as it is deployed.

        Raises:
            NoReplica: if there are not as many nodes that can serve it.
            ModelError: if it cannot be loaded, with the reason of a node that tried.
            DeadlineExceeded: if it takes longer than `LOAD_WAIT_S`; it goes on loading.
        """
        until = self._now() + LOAD_WAIT_S
        while self._now() < until:
            view = self._views.model(name)
            replicas = [
                each for each in view["replicas"] if each["version"] == version and each["current"]
            ]
            ready = sum(each["state"] == ReplicaState.READY for each in replicas)
            if ready >= wanted:
                return
            if view.get("placed") and ready == len(view["placed"]):
                reasons = "; ".join(
                    f"{each['node']}: {each['reason']}" for each in view["ineligible"][:8]
                )
                raise NoReplica(
                    f"{ready} of {wanted} replicas of {name!r} version {version} are ready, and there is no other node "
                    f"for more ({reasons or 'the mesh has no more'}); they follow once nodes join that can serve it"
                )
            placed = [each for each in replicas if each["placed"]]
            if placed and all(each["failure"] for each in placed):
                first = placed[0]
                raise ModelError(
                    f"failed to load {name!r} version {version} on {first['node']}: {first['failure']}"
                )
            await asyncio.sleep(LOAD_POLL_S)
        raise DeadlineExceeded(
            f"version {version} of {name!r} is not ready after {LOAD_WAIT_S:g} s and goes on loading; its "
            "readiness is told at /v2/models/NAME/ready, and what it waits for by: meshnode models NAME"
        )

    async def gone(self, name: str, but: int | None = None) -> None:
        """Wait until no replica serves any more, of other versions than `but`, for a while."""
        until = self._now() + UNLOAD_WAIT_S
        table = self._node.router.table
        while self._now() < until:
            if not any(
                replica.state in _SERVING
                for version in table.versions(name)
                if version != but
                for replica in table.replicas(name, version)
            ):
                return
            await asyncio.sleep(LOAD_POLL_S)
