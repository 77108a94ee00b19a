"""Deployments as definitions with their history, as coroutines; `deployment_calls` has the words."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshnode.client import applying, flows, rollouts
from meshnode.client.async_calls import AsyncCalls
from meshnode.client.calls import delete_document, deployment_path
from meshnode.client.deploying import ignore
from meshnode.client.driving import checked_timeout_s
from meshnode.client.orders import orders_of
from meshnode.client.rollouts import ignore as ignore_rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshnode.client.calls import Flow
    from meshnode.client.deployment_results import (
        DeploymentDiff,
        DeploymentEdit,
        DeploymentRevision,
    )
    from meshnode.client.orders import Orders
    from meshnode.client.results import DeploymentInfo, DeployProgress
    from meshnode.client.rollout_results import RolloutInfo
    from meshnode.state.release import Verb


class AsyncDeploymentCalls(AsyncCalls):
    """Deployments as definitions, of `AsyncMeshClient`."""

    async def apply(
        self,
        definition: str | Path | Mapping[str, Any],
        *,
        dry_run: bool = False,
        force: bool = False,
        wait: bool = True,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
    ) -> list[DeploymentEdit]:
        """Let deployments be what their definitions say; as `MeshClient.apply`."""
        wait_s = checked_timeout_s(timeout_s) if wait else None
        orders = await asyncio.to_thread(orders_of, definition)
        return await self.run(
            self.application(
                orders,
                wait_s,
                progress or ignore,
                dry_run=dry_run,
                force=force,
                retry=force,
            )
        )

    def application(
        self,
        orders: Orders,
        wait_s: float | None,
        progress: Callable[[DeployProgress], object],
        *,
        dry_run: bool = False,
        force: bool = False,
        copies: str = "",
        retry: bool = False,
    ) -> Flow[list[DeploymentEdit]]:
        """Return what `apply` does as a flow to `run`; arguments are those of `MeshClient.application`."""
        way = self._way(wait_s, progress, dry_run=dry_run, force=force, copies=copies)
        way = replace(way, retry=retry)
        return applying.apply(orders, way)

    def readiness(
        self, edit: DeploymentEdit, wait_s: float, progress: Callable[[DeployProgress], object]
    ) -> Flow[DeploymentEdit]:
        """Return how to wait for the replicas of a changed deployment; as `MeshClient.readiness`."""
        return applying.wait_until_ready(edit, self._way(wait_s, progress))

    def _way(
        self,
        wait_s: float | None,
        progress: Callable[[DeployProgress], object],
        *,
        dry_run: bool = False,
        force: bool = False,
        copies: str = "",
    ) -> applying.Way:
        return applying.Way(
            self._target.is_local,
            len(self._target.endpoints),
            progress,
            time.monotonic,
            wait_s,
            dry_run,
            force,
            copies,
        )

    async def deployments(self, *, timeout_s: float | None = None) -> list[DeploymentInfo]:
        """Return what the mesh is to serve, by name; as `MeshClient.deployments`."""
        return await self._ask(flows.deployments(), timeout_s)

    async def deployment_of(
        self, name: str, *, revision: str = "", timeout_s: float | None = None
    ) -> DeploymentInfo:
        """Return what the mesh is to serve under a name, or was in a revision; as `MeshClient.deployment_of`."""
        return await self._ask(applying.show(name, revision), timeout_s)

    async def deployment_history(
        self, name: str, *, timeout_s: float | None = None
    ) -> list[DeploymentRevision]:
        """Return the kept revisions of a deployment, newest first, also of one that was deleted; as `MeshClient.deployment_history`."""
        return await self._ask(applying.history(name), timeout_s)

    async def deployment_diff(
        self, name: str, *, before: str = "", after: str = "", timeout_s: float | None = None
    ) -> DeploymentDiff:
        """Tell in what two revisions of a deployment differ; as `MeshClient.deployment_diff`."""
        return await self._ask(applying.diff(name, before, after), timeout_s)

    async def rollback(
        self,
        name: str,
        *,
        to: str = "",
        revision: str | None = None,
        timeout_s: float | None = None,
    ) -> DeploymentEdit:
        """Write an earlier revision anew, also of a deployment that was deleted; as `MeshClient.rollback`."""
        return await self._ask(applying.rollback(name, to, revision), timeout_s)

    async def pause(
        self, name: str, *, revision: str | None = None, timeout_s: float | None = None
    ) -> DeploymentEdit:
        """Let a deployment serve nothing, and keep its definition; as `MeshClient.pause`."""
        return await self._ask(applying.change(name, revision, enabled=False), timeout_s)

    async def resume(
        self, name: str, *, revision: str | None = None, timeout_s: float | None = None
    ) -> DeploymentEdit:
        """Serve a deployment again that was paused; as `MeshClient.resume`."""
        return await self._ask(applying.change(name, revision, enabled=True), timeout_s)

    async def set_env(
        self,
        name: str,
        env: Mapping[str, str | None],
        *,
        revision: str | None = None,
        timeout_s: float | None = None,
    ) -> DeploymentEdit:
        """Set variables of a deployment's code, or take them away; as `MeshClient.set_env`."""
        return await self._ask(applying.change(name, revision, env=env), timeout_s)

    async def rollout(self, name: str, *, timeout_s: float | None = None) -> RolloutInfo:
        """Return how the release of a deployment stands, also one that has ended; as `MeshClient.rollout`."""
        return await self._ask(rollouts.show(name), timeout_s)

    async def rollout_do(
        self, name: str, verb: Verb, *, reason: str = "", timeout_s: float | None = None
    ) -> RolloutInfo:
        """Ask something of a release; as `MeshClient.rollout_do`."""
        return await self._ask(rollouts.order(name, verb, reason), timeout_s)

    async def wait_rollout(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        progress: Callable[[RolloutInfo], object] | None = None,
    ) -> RolloutInfo:
        """Wait until the release of a deployment has ended; as `MeshClient.wait_rollout`."""
        flow = self.following(name, progress or ignore_rollout, timeout_s, until_over=True)
        return await self.run(flow)

    def following(
        self,
        name: str,
        shown: Callable[[RolloutInfo], object],
        wait_s: float | None = None,
        *,
        until_over: bool = False,
    ) -> Flow[RolloutInfo]:
        """Return how to follow a release as a flow to `run`; see `meshnode.client.rollouts.follow`."""
        return rollouts.follow(name, shown, time.monotonic, wait_s, until_over=until_over)

    async def undeploy(self, name: str, *, timeout_s: float | None = None) -> None:
        """Stop serving a deployed model everywhere; as `MeshClient.undeploy`."""
        await self._ask(delete_document(deployment_path(name)), timeout_s)
