"""Deployments, as the gateway and the client library show them."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from meshnode.deployment_changes import HIDDEN, changes, hidden, spec_of_deployment, summary
from meshnode.deployment_writing import document_of
from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.state.deployment_history import entries_of, overwritten, revision_id, revisions
from meshnode.trust.records import rfc3339
from meshnode.types import NodeId, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.daemon.model_views import ModelViews
    from meshnode.daemon.publications import Publications
    from meshnode.daemon.rollouts import Rollouts
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node
    from meshnode.state.deployment import Deployment
    from meshnode.state.deployment_history import Revision

_ID_BYTES: Final = 10  # 16 characters: among all names that a mesh can have no two alike


def deployment_id(name: str) -> str:
    """Return the id of a name's deployment; the same in every mesh, whatever becomes of it."""
    digest = hashlib.blake2b(name.encode(), digest_size=_ID_BYTES, person=b"deployment").digest()
    return base64.b32encode(digest).decode().lower()


class DeploymentViews:
    """What one node knows of the mesh's deployments, as plain dictionaries."""

    def __init__(
        self,
        node: Node,
        name_of: Callable[[NodeId], str],
        models: ModelViews,
        publications: Publications,
        http: Callable[[], str | None],
        rollouts: Rollouts,
    ) -> None:
        """Look at a node's cores.

        Args:
            node: This node.
            name_of: Gives a node's name.
            models: Describes the models that deployments serve.
            publications: What was published.
            http: Gives the URL of this node's gateway; None without one.
            rollouts: How releases stand.
        """
        self._node = node
        self._name_of = name_of
        self._models = models
        self._publications = publications
        self._http = http
        self._rollouts = rollouts

    def __repr__(self) -> str:
        return f"<DeploymentViews of {self._node.me[:8]}>"

    def all(self, caller: Caller) -> list[dict[str, Any]]:
        """Describe all deployments, by name."""
        found = sorted(self._node.deployments(), key=lambda each: each.name)
        return [self._view(deployment, caller) for deployment in found]

    def one(self, name: str, caller: Caller, revision: str = "") -> dict[str, Any]:
        """Describe the deployment of a name, as it is, or as it was in a revision.

        Args:
            name: Its name, or its id.
            caller: Who asks: who may not deploy is shown no values of variables.
            revision: The revision's id, or its beginning; empty for the one that counts.

        Raises:
            ModelNotFound: if there is none.
        """
        name = self.name_of(name)
        if not revision:
            deployment = self._node.deployment(name)
            if deployment is None:
                raise ModelNotFound(f"nothing is deployed under the name {name!r}")
            return self._view(deployment, caller)
        found = self.revision(name, revision)
        if found.deployment is None:
            raise ModelNotFound(
                f"revision {found.id} of {name!r} deletes it, so that there is nothing to show"
            )
        return {
            "name": name,
            "id": deployment_id(name),
            **self._definition(found.deployment, caller),
            "revision": found.id,
            "changed_at": rfc3339(found.entry.stamp.wall_ms / 1000),
            "changed_by": self._name_of(NodeId(found.entry.author)),
        }

    def history(self, name: str) -> list[dict[str, Any]]:
        """Describe what is kept of a deployment, newest first, also of one that was deleted.

        Raises:
            ModelNotFound: if nothing is kept of any such deployment.
        """
        name = self.name_of(name)
        found = self.told(name)
        if not found:
            raise ModelNotFound(f"nothing is, or was, deployed under the name {name!r}")
        return found

    def told(self, name: str) -> list[dict[str, Any]]:
        """Return the kept revisions of a name, newest first, each with what it changed in one line."""
        kept = revisions(self._node.desired, name)
        lost = overwritten(kept)
        formers = [*kept, None][1:]
        return [
            {
                "id": each.id,
                "at": rfc3339(each.entry.stamp.wall_ms / 1000),
                "by": each.origin.by or self._name_of(NodeId(each.entry.author)),
                "node": self._name_of(NodeId(each.entry.author)),
                "node_id": each.entry.author,
                "summary": self._summary(each, before),
                "base": each.origin.base or None,
                "restores": each.origin.restores or None,
                "overwritten_by": lost.get(each.id),
                "counts": each is kept[0],
            }
            for each, before in zip(kept, formers, strict=True)
        ]

    def _summary(self, revision: Revision, former: Revision | None) -> str:
        if revision.deployment is None and not revision.removes:
            return "this version of meshnode cannot read it"
        base = None if former is None else former.deployment
        found = changes(base, revision.deployment, self._name_of)
        said = summary(found, base, revision.deployment)
        return f"restored {revision.origin.restores}: {said}" if revision.origin.restores else said

    def diff(self, name: str, before: str, after: str, caller: Caller) -> dict[str, Any]:
        """Tell in what two revisions of a deployment differ.

        Args:
            name: Its name, or its id.
            before: A revision's id, or its beginning; empty for the one before `after`.
            after: Likewise; empty for the one that counts.
            caller: Who asks.

        Raises:
            ModelNotFound: if there is no such revision.
        """
        name = self.name_of(name)
        kept = revisions(self._node.desired, name)
        if not kept:
            raise ModelNotFound(f"nothing is, or was, deployed under the name {name!r}")
        new = _named(kept, name, after) if after else kept[0]
        older = kept[kept.index(new) + 1 :]
        old = _named(kept, name, before) if before else (older[0] if older else None)
        found = changes(old.deployment if old else None, new.deployment, self._name_of)
        shown = found if caller.scope.allows(Scope.DEPLOY) else hidden(found)
        return {
            "name": name,
            "from": old.id if old else None,
            "to": new.id,
            "changes": [each.document() for each in shown],
        }

    def revision(self, name: str, text: str) -> Revision:
        """Return the revision of an id, or of the beginning of one.

        Raises:
            ModelNotFound: if there is none.
            InvalidRequest: if there are several.
        """
        return _named(revisions(self._node.desired, name), name, text)

    def name_of(self, text: str) -> str:
        """Return the name of a deployment from that name or from its id."""
        known = (each.name for each in self._node.deployments())
        return next((name for name in known if deployment_id(name) == text), text)

    # Inside

    def _view(self, deployment: Deployment, caller: Caller) -> dict[str, Any]:
        placement = self._node.placement(deployment)
        entries = entries_of(self._node.desired, deployment.name)
        entry = entries[0] if entries else None
        status, reason = self._status(deployment)
        definition = self._definition(deployment, caller)
        resident = {each for part in self._node.parts(deployment.name) for each in part.versions}
        definition["versions"] = [
            each for each in definition["versions"] if each["version"] in resident
        ]
        return {
            "name": deployment.name,
            "id": deployment_id(deployment.name),
            "urls": self._urls(deployment),
            "status": status,
            "reason": reason,
            **definition,
            "placed": [self._name_of(node) for node in placement.nodes],
            "standby_on": [self._name_of(node) for node in placement.standby],
            "missing": placement.missing,
            **self._scaling(deployment),
            "release": self._rollouts.brief(deployment.name),
            "revision": revision_id(entry) if entry else "",
            "changed_at": rfc3339(entry.stamp.wall_ms / 1000) if entry else None,
            "changed_by": self._name_of(NodeId(entry.author)) if entry else None,
        }

    def _definition(self, deployment: Deployment, caller: Caller) -> dict[str, Any]:
        stored = {
            (each.version, each.variant): each.exposure
            for each in self._publications.all(deployment.name)
        }
        spec = document_of(spec_of_deployment(deployment, self._name_of, stored))
        if "env" in spec and not caller.scope.allows(Scope.DEPLOY):
            spec["env"] = dict.fromkeys(spec["env"], HIDDEN)
        return {
            "versions": [
                {
                    "version": manifest.version,
                    "variant": manifest.variant,
                    "runtime": manifest.runtime,
                    "digest": manifest.digest,
                    "size_bytes": manifest.size_bytes,
                }
                for manifest in deployment.manifests
            ],
            "replicas": deployment.replicas,
            "on": [self._name_of(node) for node in deployment.on],
            "enabled": deployment.enabled,
            "definition": spec,
        }

    def _scaling(self, deployment: Deployment) -> dict[str, Any]:
        """Return how many replicas there are to be now, and of autoscaling who decided so, and why."""
        seen = self._node.scaling(deployment)
        counts = {"wanted": seen.wanted, "ready": seen.ready}
        if deployment.scaling is None:
            return {**counts, "scaling": None}
        return {
            **counts,
            "scaling": {
                "steward": None if seen.steward is None else self._name_of(seen.steward),
                "epoch": seen.epoch,
                "why": seen.reason,
                "decided_at": rfc3339(seen.at_ms / 1000) if seen.steward is not None else None,
            },
        }

    def _urls(self, deployment: Deployment) -> list[str]:
        """Return where it can be asked: at this node's gateway, else at one that this node knows."""
        members = self._node.membership.members
        me = members[self._node.me].record.http
        others = (each.record.http for each in members.values() if each.live)
        told = self._http() or next(filter(None, (me, *others)), "")
        if not told:
            return []
        base = told if "://" in told else f"http://{told}"
        path = deployment.manifests[0].exposure.path
        return [*([base + path] if path else []), f"{base}/v2/models/{deployment.name}/infer"]

    def _status(self, deployment: Deployment) -> tuple[str, str]:
        """Return how a deployment stands, and why: `ready`, `progressing`, `releasing`, `failed`, `paused` or `asleep`."""
        if not deployment.enabled:
            return "paused", f"it serves nothing; to go on: meshnode resume {deployment.name}"
        scaling = self._node.scaling(deployment)
        if scaling.wanted == 0:
            return "asleep", f"the next request wakes it up; {scaling.reason}"
        model = self._models.model(deployment.name)
        release = model["release"]
        is_releasing = release is not None and release["outcome"] is None
        new = {release["candidate"]} if is_releasing else set()
        versions = [each for each in model["deployed"] if each not in new]
        placed = [
            each for each in model["replicas"] if each["placed"] and each["version"] in versions
        ]
        ready = sum(each["state"] == "ready" and each["current"] for each in placed)
        wanted = scaling.wanted * len(versions)
        waiting = [
            f"{each['node']}: {each['failure'] or each['state']}"
            for each in placed
            if each["failure"] or each["state"] != "ready" or not each["current"]
        ]
        cannot = model["ineligible"]
        if model["missing"]:
            why = (
                ", ".join(f"{each['node']}: {each['reason']}" for each in cannot)
                or "there are no more"
            )
            waiting.append(f"no node can take {model['missing']} more ({why})")
        said = "; ".join([f"{ready} of {wanted} replicas ready", *waiting])
        if ready >= wanted and not waiting:
            if is_releasing:
                return "releasing", _releasing(release)
            was_undone = release is not None and release["outcome"] == "rolled_back"
            return "ready", _undone(release) if was_undone else ""
        has_failed = any(each["failure"] for each in placed)
        is_hopeless = (
            bool(cannot) and not model["placed"] and all(each["lasting"] for each in cannot)
        )
        return "failed" if has_failed or is_hopeless else "progressing", said


def _undone(release: Mapping[str, Any]) -> str:
    """Return that a release was rolled back, and why."""
    new, old = release["candidate"], release["baseline"]
    return f"version {new} was rolled back ({release['reason']}); version {old} serves"


def _releasing(release: Mapping[str, Any]) -> str:
    """Return where a release stands, in one line."""
    step, steps = release["step"], release["steps"]
    place = f", step {step} of {steps}" if 0 < step <= steps else ""
    return (
        f"{release['strategy']} from version {release['baseline']} to {release['candidate']}, {release['phase']}{place}, "
        f"{100 * release['share']:g} % of the requests: {release['reason']}"
    )


def _named(kept: Sequence[Revision], name: str, text: str) -> Revision:
    exact = [each for each in kept if each.id == text]
    found = exact or [each for each in kept if text and each.id.startswith(text)]
    if not found:
        raise ModelNotFound(
            f"no revision {text!r} of {name!r} is kept; see: meshnode history {name}"
        )
    if len(found) > 1:
        raise InvalidRequest(f"several revisions of {name!r} begin with {text!r}: give more of it")
    return found[0]
