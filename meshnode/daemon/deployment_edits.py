"""Changes deployments as wholes: what a file says, an earlier revision, paused, resumed, deleted.

Each change may say from which revision it was made. If somebody else has changed the deployment since, it is
refused, with who changed what. What changes nothing writes nothing, whatever it was made from.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from meshnode.daemon.deploying import one_model
from meshnode.daemon.deployment_views import deployment_id
from meshnode.daemon.named_versions import kept_where_same, named_versions
from meshnode.daemon.offering import check_offer, no_longer_offered
from meshnode.daemon.overtaken import overtaken
from meshnode.daemon.rollouts import endings_of, standing_of
from meshnode.deployment_changes import Change, asked_manifests, changes, described, summary
from meshnode.deployment_file import files_of
from meshnode.deployments import environment_warnings
from meshnode.errors import (
    InvalidRequest,
    ModelError,
    ModelNotFound,
    TransferFailed,
)
from meshnode.gateway.protocols.caller import OWNER
from meshnode.models.exposure import ExposureChange
from meshnode.models.provenance import Said
from meshnode.models.tasks import read_task
from meshnode.release_edits import released, restored
from meshnode.state.deployment import (
    Deployment,
    Origin,
    check_deployment,
    offered,
    release_id,
    with_variant,
)
from meshnode.state.deployment_history import base_of, entries_of, revisions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.deploying import Deploying
    from meshnode.daemon.deployment_views import DeploymentViews
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.model_views import ModelViews
    from meshnode.daemon.publications import Publications
    from meshnode.daemon.uploads import Uploads
    from meshnode.deployment_file import DeploymentSpec
    from meshnode.gateway.deployments_api import Definition
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.models.manifest import Manifest
    from meshnode.node import Node
    from meshnode.release_edits import Released
    from meshnode.state.deployment_history import Revision
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_UNREAD = "those of the file"
"""Stands for files that are not here."""

_CONFIGURED = "as the model's configuration says"
"""Stands for what a definition does not say."""


class DeploymentEdits:
    """The changes that one node makes to deployments; `DeploymentsControl` for the gateway."""

    def __init__(
        self,
        *,
        node: Node,
        driver: Driver,
        clock: Clock,
        artifacts: Artifacts,
        publications: Publications,
        uploads: Uploads,
        deploying: Deploying,
        models: ModelViews,
        views: DeploymentViews,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Change through these.

        Args:
            node: Its cores.
            driver: Writes what the mesh is asked for.
            clock: Says when.
            artifacts: Its files.
            publications: What was published.
            uploads: What callers send.
            deploying: Knows who may, and which number a model without one gets.
            models: How a deployed model is described.
            views: How a deployment is.
            name_of: A node's name.
        """
        self._node = node
        self._driver = driver
        self._clock = clock
        self._artifacts = artifacts
        self._publications = publications
        self._uploads = uploads
        self._deploying = deploying
        self._models = models
        self._views = views
        self._name_of = name_of
        # What a deployment was last found to be the same as, though it does not say so: by name, its revision.
        self._same: dict[str, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"<DeploymentEdits at {self._node.me[:8]}>"

    # What is asked

    def all(self, caller: Caller) -> list[dict[str, Any]]:
        """Describe all deployments; see `DeploymentViews.all`."""
        return self._views.all(caller)

    def one(self, name: str, caller: Caller, revision: str = "") -> dict[str, Any]:
        """Describe one deployment, as it is or was; see `DeploymentViews.one`."""
        return self._views.one(name, caller, revision)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Describe what is kept of a deployment; see `DeploymentViews.history`."""
        return self._views.history(name)

    def diff(self, name: str, before: str, after: str, caller: Caller) -> dict[str, Any]:
        """Tell in what two revisions differ; see `DeploymentViews.diff`."""
        return self._views.diff(name, before, after, caller)

    async def apply(self, wish: Definition, caller: Caller) -> dict[str, Any]:
        """Let a deployment be what its definition says, and nothing else.

        Returns:
            What changes, or with `dry_run` would: `changes`, and `files`, which is `needed` if that cannot be
            said without them.

        Raises:
            Forbidden: if this node's role does not allow it.
            InvalidRequest: if a node is unknown, an upload is not complete, or files are needed.
            ModelNotFound: if the model is none that the mesh has.
            ModelError: if the files hold no model, or one that cannot be served so.
            StaleRevision: if it was made from another revision than the one that counts.
            ConfigError: if it could not be written to disk.
        """
        self._deploying.require_operator()
        spec = wish.spec
        pinned = self._deploying.pinned(spec.replicas, spec.on)
        current = self._node.deployment(spec.name)
        notes: list[str] = []
        async with self._places(wish, caller) as places:
            if places:
                manifests, notes = await self._read(spec, places, current)
            elif wish.source and current is not None and self._is_same(wish, current):
                manifests = asked_manifests(current)
            elif wish.source and wish.dry_run:
                return self._without_files(wish, current, pinned)
            elif wish.source:
                raise InvalidRequest(
                    f"the files of {spec.name!r} are not what is deployed, and have to be sent with it"
                )
            else:
                manifests = named_versions(spec, self._publications, self._node.desired)
            made, found = self._made(wish, manifests, pinned, caller)
            answer = self._written(
                made, caller, self._base(wish), dry_run=wish.dry_run, is_again=found.is_again
            )
        if wish.source and not answer["changed"]:
            self._same[spec.name] = (answer["revision"], wish.source)
        notes += [*found.notes, *self._compared_with(made)]
        return {**answer, "warnings": [*notes, *answer["warnings"]]}

    async def rollback(
        self, name: str, revision: str, base: str | None, caller: Caller
    ) -> dict[str, Any]:
        """Write an earlier revision anew; without its id the last one that asked for something else.

        Raises:
            ModelNotFound: if there is no such revision.
            ModelError: if no node has its files any more.
            Forbidden, StaleRevision, ConfigError: as `apply`.
        """
        self._deploying.require_operator()
        target = self._views.revision(name, revision) if revision else self._previous(name)
        former = self._restored(name, target)
        if former is None:
            raise ModelNotFound(
                f"revision {target.id} of {name!r} serves nothing that could be restored"
            )
        origin = Origin(by=_who(caller), restores=target.id, source=former.origin.source)
        made = structs.replace(former, origin=origin)
        self._check_base(name, made, base)
        await self._obtain(made, target.id)
        return self._written(made, caller, base)

    async def change(
        self,
        name: str,
        base: str | None,
        caller: Caller,
        *,
        enabled: bool | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """Change single things of a deployment.

        Args:
            name: Its name.
            base: The revision that this is made from; None for whichever counts.
            caller: Who asks.
            enabled: Whether it is served; None to leave that.
            env: Variables to set, or with None to take away.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            ModelError: if a variable is not within limits.
            Forbidden, StaleRevision, ConfigError: as `apply`.
        """
        self._deploying.require_operator()
        current = self._node.deployment(name)
        if current is None:
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        variables = dict(current.env)
        for key, value in (env or {}).items():
            if value is None:
                variables.pop(key, None)
            else:
                variables[key] = value
        made = structs.replace(
            current,
            enabled=current.enabled if enabled is None else enabled,
            env=tuple(sorted(variables.items())),
            origin=Origin(by=_who(caller), source=current.origin.source),
        )
        return self._written(made, caller, base)

    def remove(self, name: str, base: str | None, caller: Caller) -> dict[str, Any]:
        """Take a deployment out of service; its revisions stay.

        Raises:
            ModelNotFound: if nothing is deployed under the name.
            Forbidden, StaleRevision, ConfigError: as `apply`.
        """
        self._deploying.require_operator()
        self._check_base(name, None, base)
        self._deploying.undeploy(name, caller)
        self._same.pop(name, None)
        return {"name": name, "revision": base_of(self._newest(name))}

    # Inside

    @contextlib.asynccontextmanager
    async def _places(self, wish: Definition, caller: Caller) -> AsyncIterator[dict[str, Path]]:
        """Give out where the files of a definition are, by variant; uploads are gone afterwards."""
        async with contextlib.AsyncExitStack() as stack:
            places: dict[str, Path] = {}
            for variant, (path, upload) in wish.places.items():
                if path:
                    places[variant] = Path(path)
                else:
                    held = self._uploads.complete(upload, caller)
                    places[variant] = await stack.enter_async_context(held)
            yield places

    async def _read(
        self, spec: DeploymentSpec, places: Mapping[str, Path], current: Deployment | None
    ) -> tuple[Sequence[Manifest], list[str]]:
        """Keep the files of a definition; return its versions with all their forms, and what is odd about them."""
        said = Said(spec.metrics, spec.note)
        model = await one_model(places[""], spec.name)
        numbered = self._deploying.numbered(model, await self._artifacts.publish(model))
        made = Deployment(spec.name, tuple(numbered), spec.replicas)
        notes = [*model.warnings]
        for variant, place in places.items():
            if variant:
                form = await one_model(place, spec.name)
                forms = await self._artifacts.publish(form)
                made = with_variant(made, spec.name, forms, variant, numbered=form.numbered)
                notes += form.warnings
        signed = self._publications.signed(made.manifests, said)
        return kept_where_same(signed, current), notes

    def _made(
        self,
        wish: Definition,
        asked: Sequence[Manifest],
        pinned: tuple[NodeId, ...],
        caller: Caller,
    ) -> tuple[Deployment, Released]:
        """Return the deployment that a definition and its versions make, and what becomes of their release."""
        spec = wish.spec
        current = self._node.deployment(spec.name)
        standing = standing_of(self._node.release_view(spec.name))
        found = released(spec.release, asked, current, standing, again=wish.retry)
        offer = ExposureChange(
            spec.path, None if spec.tasks is None else tuple(map(read_task, spec.tasks)), spec.cache
        )
        made = Deployment(
            spec.name,
            found.manifests,
            spec.replicas,
            pinned,
            enabled=spec.enabled,
            constraints=spec.where,
            resources=spec.resources,
            standby=spec.standby,
            env=spec.env,
            scaling=spec.scaling,
            origin=Origin(by=_who(caller), source=wish.source),
            release=found.release,
        )
        return check_deployment(offered(made, offer)), found

    def _compared_with(self, made: Deployment) -> list[str]:
        """Return what people should know of the deployment whose answers a release is compared with."""
        kind, _, other = ("" if made.release is None else made.release.against).partition(":")
        if kind != "deployment" or self._node.deployment(other) is not None:
            return []
        return [
            f"nothing is deployed under the name {other!r}, so that nothing is compared until it is"
        ]

    def _without_files(
        self, wish: Definition, current: Deployment | None, pinned: tuple[NodeId, ...]
    ) -> dict[str, Any]:
        """Return what a definition would change, as far as that is known without its files."""
        found = self._unread_changes(wish, current, pinned)
        if wish.base is not None or wish.spec.revision:
            self._check_base(wish.spec.name, None, self._base(wish))
        return {
            "name": wish.spec.name,
            "revision": base_of(self._newest(wish.spec.name)),
            "changed": True,
            "files": "needed",
            "changes": [each.document() for each in found],
            "warnings": [],
            "model": None,
        }

    def _unread_changes(
        self, wish: Definition, current: Deployment | None, pinned: tuple[NodeId, ...]
    ) -> list[Change]:
        if current is None:
            return [Change("files", None, _UNREAD)]
        made, _ = self._made(wish, asked_manifests(current), pinned, OWNER)
        found = changes(current, made, self._name_of)
        if files_of(wish.source) not in map(files_of, self._sources(current)):
            found.insert(0, Change("files", "as deployed", _UNREAD))
            if wish.spec.release is not None:
                found.append(
                    Change(
                        "release",
                        None,
                        f"{wish.spec.release.strategy}, from the version that serves",
                    )
                )
        # What a definition does not say is as the files say, which are not here.
        before = described(current, self._name_of)
        said = {"path": wish.spec.path, "tasks": wish.spec.tasks, "cache": wish.spec.cache}
        found += [
            Change(key, before[key], _CONFIGURED)
            for key, value in said.items()
            if value is None and key in before
        ]
        return found or [Change("metrics or note", "as deployed", "as the file says")]

    def _is_same(self, wish: Definition, current: Deployment) -> bool:
        """Whether a deployment was made from what a definition names."""
        return wish.source in self._sources(current)

    def _sources(self, current: Deployment) -> list[str]:
        """Return what a deployment was made from, as it says itself and as was found out here."""
        revision, found = self._same.get(current.name, ("", ""))
        is_its = revision == base_of(self._newest(current.name))
        return list(filter(None, (current.origin.source, found if is_its else "")))

    def _base(self, wish: Definition) -> str | None:
        """Return the revision that a definition was made from; None for whichever counts."""
        if wish.force:
            return None
        return wish.spec.revision or wish.base

    def _written(
        self,
        made: Deployment,
        caller: Caller,
        base: str | None,
        *,
        dry_run: bool = False,
        is_again: bool = False,
    ) -> dict[str, Any]:
        """Write a deployment if it is another than before, or its release is to begin again; say what changes."""
        check_offer(made, self._node)
        before = self._node.deployment(made.name)
        found = changes(before, made, self._name_of)
        # What people are shown is not all: the digests of files of the same version, say.
        is_new = before is None or before != made or is_again
        if is_again and not found:
            found = [Change("release", "rolled back", "once more")]
        self._check_base(made.name, made, base)
        if is_new and not dry_run:
            self._driver.write(self._node.drafts.deployment(made, self._clock.wall_s()))
            log.info(
                "the deployment %s was changed by %s: %s",
                made.name,
                caller,
                summary(found, before, made),
            )
        return {
            "name": made.name,
            "id": deployment_id(made.name),
            "new": before is None,
            "revision": base_of(self._newest(made.name)),
            "changed": is_new,
            "files": "known",
            "changes": [each.document() for each in found],
            "warnings": [*no_longer_offered(before, made), *environment_warnings(made)],
            "model": None if is_new and dry_run else self._models.model(made.name),
        }

    def _check_base(self, name: str, made: Deployment | None, base: str | None) -> None:
        """Refuse what was made from another revision than the one that counts; what changes nothing passes.

        Raises:
            StaleRevision: with who changed what since.
        """
        if base is None or (made is not None and self._node.deployment(name) == made):
            return
        if base == base_of(self._newest(name)):
            return
        raise overtaken(name, base, self._views.told(name))

    def _previous(self, name: str) -> Revision:
        """Return the last revision that asked for something else than what counts now.

        Raises:
            ModelNotFound: if there is none.
        """
        kept = revisions(self._node.desired, name)
        now = kept[0].deployment if kept else None
        for each in kept[1:]:
            if each.deployment is not None and each.deployment != now:
                return each
        raise ModelNotFound(
            f"no earlier revision of {name!r} is kept that asked for something else"
        )

    def _restored(self, name: str, target: Revision) -> Deployment | None:
        """Return what restores a revision: of a release the version that served in the end."""
        former, desired = target.deployment, self._node.desired
        if former is None or former.release is None:
            return former
        kept = revisions(desired, name)
        place = next((at for at, each in enumerate(kept) if each.id == target.id), 0)
        later = kept[place - 1].deployment if place else None
        return restored(former, later, endings_of(desired, name), release_id(former))

    async def _obtain(self, made: Deployment, revision: str) -> None:
        """Have the files of what is restored here, so that those who are to serve it can fetch them.

        Raises:
            ModelError: if no node has them any more.
        """
        current = self._node.deployment(made.name)
        here = {each.digest for each in (current.manifests if current else ())}
        for manifest in made.manifests:
            if manifest.digest in here:
                continue
            try:
                await self._artifacts.obtain(manifest)
            except TransferFailed as error:
                raise ModelError(
                    f"revision {revision} of {made.name!r} cannot be restored: the files of version "
                    f"{manifest.version} could not be fetched ({error}); apply its file with the model again"
                ) from error

    def _newest(self, name: str) -> Any:
        kept = entries_of(self._node.desired, name)
        return kept[0] if kept else None


def _who(caller: Caller) -> str:
    """Return who asks, beside the node that signs: its owner needs no words."""
    return str(caller) if caller.key_id or caller.via else ""
