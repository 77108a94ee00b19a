"""Deployments as definitions with their history, of `MeshClient`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshnode.client import applying, flows, rollouts
from meshnode.client.blocking_calls import BlockingCalls
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


class DeploymentCalls(BlockingCalls):
    """Deployments as definitions, of `MeshClient`; an API key needs the scope `deploy` to change one.

    A change may say from which revision it was made. If somebody else has changed the deployment since, it raises
    `StaleRevision`, which says who changed what.
    """

    def apply(
        self,
        definition: str | Path | Mapping[str, Any],
        *,
        dry_run: bool = False,
        force: bool = False,
        wait: bool = True,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
    ) -> list[DeploymentEdit]:
        """Let deployments be what their definitions say. What is so already is not written again.

        Args:
            definition: A deployment file (TOML or YAML), or one deployment as a dictionary with the keys of one,
                whose relative paths start from the working folder.
            dry_run: Only say what would change.
            force: Whatever others have changed meanwhile; also tries a release once more that was rolled back.
            wait: Whether to wait until the replicas are ready.
            timeout_s: Seconds to wait for those of each deployment.
            progress: Called with every change, in the thread of the call.

        Returns:
            What changed, in the order of the definitions.

        Raises:
            ConfigError: with every mistake of the definitions, before anything was sent.
            StaleRevision: if somebody else has changed the deployment since the `revision` of its definition.
            ModelError: if the files hold no model, or one that cannot be served so.
            PeerError, DeadlineExceeded: as `deploy`, while it waits.
        """
        wait_s = checked_timeout_s(timeout_s) if wait else None
        orders = orders_of(definition)
        return self.run(
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
        """Return what `apply` does as a flow to `run`.

        Args:
            orders: The definitions.
            wait_s: Seconds to wait for the replicas of each; None not to wait.
            progress: Called with every change.
            dry_run: Only say what would change.
            force: Whatever others have changed meanwhile.
            copies: The folder that keeps what URLs name; empty for one that is gone afterwards.
            retry: Try a release once more that was rolled back.
        """
        way = self._way(wait_s, progress, dry_run=dry_run, force=force, copies=copies)
        way = replace(way, retry=retry)
        return applying.apply(orders, way)

    def readiness(
        self, edit: DeploymentEdit, wait_s: float, progress: Callable[[DeployProgress], object]
    ) -> Flow[DeploymentEdit]:
        """Return how to wait for the replicas of a changed deployment, as a flow to `run`.

        Args:
            edit: What came of the change.
            wait_s: Seconds to wait.
            progress: Called with every change.
        """
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

    def deployments(self, *, timeout_s: float | None = None) -> list[DeploymentInfo]:
        """Return what the mesh is to serve, by name."""
        return self._ask(flows.deployments(), timeout_s)

    def deployment_of(
        self, name: str, *, revision: str = "", timeout_s: float | None = None
    ) -> DeploymentInfo:
        """Return what the mesh is to serve under a name, or was in a revision.

        Args:
            name: Its name, or its id.
            revision: A revision's id, or its beginning; empty for the one that counts.
            timeout_s: Seconds for the call.

        Raises:
            ModelNotFound: if nothing is deployed under it.
        """
        return self._ask(applying.show(name, revision), timeout_s)

    def deployment_history(
        self, name: str, *, timeout_s: float | None = None
    ) -> list[DeploymentRevision]:
        """Return the kept revisions of a deployment, newest first, also of one that was deleted.

        Raises:
            ModelNotFound: if nothing is kept of it.
        """
        return self._ask(applying.history(name), timeout_s)

    def deployment_diff(
        self, name: str, *, before: str = "", after: str = "", timeout_s: float | None = None
    ) -> DeploymentDiff:
        """Tell in what two revisions of a deployment differ.

        Args:
            name: Its name.
            before: A revision's id, or its beginning; empty for the one before `after`.
            after: Likewise; empty for the one that counts.
            timeout_s: Seconds for the call.

        Raises:
            ModelNotFound: if there is no such revision.
        """
        return self._ask(applying.diff(name, before, after), timeout_s)

    def rollback(
        self,
        name: str,
        *,
        to: str = "",
        revision: str | None = None,
        timeout_s: float | None = None,
    ) -> DeploymentEdit:
        """Write an earlier revision anew, also of a deployment that was deleted.

        Args:
            name: The deployment's.
            to: The revision's id, or its beginning; empty for the last one that asked for something else.
            revision: The revision that counts, as far as the caller knows; None for whichever does.
            timeout_s: Seconds for the call, in which files may have to be fetched.

        Raises:
            ModelNotFound: if there is no such revision.
            ModelError: if no node has its files any more.
            StaleRevision: if another revision counts.
        """
        return self._ask(applying.rollback(name, to, revision), timeout_s)

    def pause(
        self, name: str, *, revision: str | None = None, timeout_s: float | None = None
    ) -> DeploymentEdit:
        """Let a deployment serve nothing, and keep its definition; `resume` goes on.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            StaleRevision: if another revision than the named one counts.
        """
        return self._ask(applying.change(name, revision, enabled=False), timeout_s)

    def resume(
        self, name: str, *, revision: str | None = None, timeout_s: float | None = None
    ) -> DeploymentEdit:
        """Serve a deployment again that was paused; raises as `pause`."""
        return self._ask(applying.change(name, revision, enabled=True), timeout_s)

    def set_env(
        self,
        name: str,
        env: Mapping[str, str | None],
        *,
        revision: str | None = None,
        timeout_s: float | None = None,
    ) -> DeploymentEdit:
        """Set variables of a deployment's code, or take them away; others stay.

        Args:
            name: The deployment's.
            env: By name, each variable's value; None takes it away.
            revision: The revision that counts, as far as the caller knows; None for whichever does.
            timeout_s: Seconds for the call.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            ModelError: if a variable is not within limits.
            StaleRevision: if another revision counts.
        """
        return self._ask(applying.change(name, revision, env=env), timeout_s)

    def rollout(self, name: str, *, timeout_s: float | None = None) -> RolloutInfo:
        """Return how the release of a deployment stands, also one that has ended.

        Args:
            name: The deployment's.
            timeout_s: Seconds for the call.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            NotFound: if its versions are served directly, without a release.
        """
        return self._ask(rollouts.show(name), timeout_s)

    def rollout_do(
        self, name: str, verb: Verb, *, reason: str = "", timeout_s: float | None = None
    ) -> RolloutInfo:
        """Ask something of a release. Its steward obeys within a second or two, and says what came of it in `decisions`.

        Args:
            name: The deployment's.
            verb: `promote` (to the next step, whatever its time and its gates), `pause`, `resume`, `abort` (back to the
                old version at once, wherever it stands) or `undo` (the same after the new one has taken over).
            reason: Why, for others.
            timeout_s: Seconds for the call.

        Returns:
            How the release stands, most often before anything came of it.

        Raises:
            ModelNotFound, NotFound: as `rollout`.
            InvalidRequest: if that cannot be asked of it as it stands.
        """
        return self._ask(rollouts.order(name, verb, reason), timeout_s)

    def wait_rollout(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        progress: Callable[[RolloutInfo], object] | None = None,
    ) -> RolloutInfo:
        """Wait until the release of a deployment has ended; `outcome` says how.

        Args:
            name: The deployment's.
            timeout_s: Seconds to wait; None for as long as it takes.
            progress: Called with every change.

        Raises:
            ModelNotFound, NotFound: as `rollout`.
            PeerError: if another release took its place.
            DeadlineExceeded: if it has not ended in time; it goes on.
        """
        return self.run(
            self.following(name, progress or ignore_rollout, timeout_s, until_over=True)
        )

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

    def undeploy(self, name: str, *, timeout_s: float | None = None) -> None:
        """Stop serving a deployed model everywhere. Its history stays: `rollback` restores it.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
        """
        self._ask(delete_document(deployment_path(name)), timeout_s)
