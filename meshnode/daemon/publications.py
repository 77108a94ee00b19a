"""Published versions: signed by this node, kept on its disk, known to the whole mesh."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.errors import InvalidRequest, ModelError, ModelNotFound
from meshnode.models.manifest import check_manifest
from meshnode.models.provenance import (
    Provenance,
    Said,
    Subject,
    check_provenance,
    flaw_of,
    sign,
)
from meshnode.models.variants import check_variant_name, check_variants
from meshnode.state.artifact import KEY_PREFIX, Artifact, artifacts
from meshnode.trust.identity import verify
from meshnode.trust.records import rfc3339
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.driver import Driver
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.models.manifest import Manifest
    from meshnode.node import Node
    from meshnode.trust.identity import Identity

log = logging.getLogger(__name__)


class Publications:
    """What was published in this mesh, as one of its nodes sees it."""

    def __init__(
        self,
        node: Node,
        driver: Driver,
        clock: Clock,
        identity: Identity,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """See and change it through these.

        Args:
            node: This node's cores.
            driver: Writes changes.
            clock: For when something is published.
            identity: Signs it.
            name_of: A node's name, for people.
        """
        self._node = node
        self._driver = driver
        self._clock = clock
        self._identity = identity
        self._name_of = name_of

    def __repr__(self) -> str:
        return f"<Publications of {self._node.me[:8]}>"

    def numbered(self, manifests: Sequence[Manifest], said: Said) -> tuple[Manifest, ...]:
        """Return versions with the number that their publisher gives them, if there is one.

        Raises:
            InvalidRequest: if a number is given for several versions.
        """
        if said.version is None:
            return tuple(manifests)
        if len({manifest.version for manifest in manifests}) > 1:
            raise InvalidRequest("these are several versions: they have their own numbers")
        return tuple(msgspec.structs.replace(each, version=said.version) for each in manifests)

    def forms(
        self, model: str, manifests: Sequence[Manifest], said: Said, *, numbered: bool
    ) -> tuple[Manifest, ...]:
        """Return further forms of versions that were published.

        Args:
            model: The public name.
            manifests: What the forms are.
            said: Names the variant, and may give the version's number.
            numbered: Whether they have numbers of their own; else they are forms of the newest version.

        Raises:
            InvalidRequest: if a number is given for several versions.
            ModelError: if such a version was not published, or is not alike.
        """
        variant = check_variant_name(said.variant)
        published: dict[int, list[Manifest]] = {}
        for each in self.all(model):
            published.setdefault(each.version, []).append(each)
        whole = {
            number: forms
            for number, forms in published.items()
            if any(not each.variant for each in forms)
        }
        if said.version is None and not numbered and whole:
            said = dataclasses.replace(said, version=max(whole))
        made = []
        for manifest in self.numbered(manifests, said):
            if manifest.version not in whole:
                raise ModelError(
                    f"version {manifest.version} of {model!r} was not published, so it can have no "
                    f"variant {variant!r}; publish the model itself first"
                )
            form = msgspec.structs.replace(manifest, variant=variant)
            others = [each for each in whole[form.version] if each.variant != variant]
            check_variants([*others, form])
            made.append(form)
        return tuple(made)

    def signed(self, manifests: Sequence[Manifest], said: Said) -> tuple[Manifest, ...]:
        """Return versions with who publishes them, signed by this node; those that are signed stay.

        What is in the mesh already, with the same files and the same words, keeps what it has: publishing
        or deploying it again changes nothing.

        Raises:
            ModelError: if what is said is not within its limits.
        """
        return tuple(
            each
            if each.provenance is not None and each.provenance.signature
            else self._signed(each, said)
            for each in manifests
        )

    def write(
        self, manifests: Iterable[Manifest], caller: Caller, *, replace: bool = False
    ) -> list[dict[str, Any]]:
        """Publish signed versions; return their descriptions.

        A version that was published with the same files stays as it is, unless its publisher says
        something else of it now.

        Args:
            manifests: The versions.
            caller: Who publishes them.
            replace: Put them in the place of others of their names and numbers. The variants of what is
                replaced are withdrawn: they are forms of something else.

        Raises:
            InvalidRequest: if one was published with other files, or by another node with other words.
            Forbidden: if this node's role does not allow it.
            TooLarge: if one has too many files.
            ConfigError: if it could not be written to disk.
        """
        made = [
            Artifact(manifest if replace else self._kept(manifest) or manifest)
            for manifest in manifests
        ]
        news = [each for each in made if self._node.desired.get(each.key) != each.encode()]
        former = [form for each in news for form in self._forms_of_another(each.manifest)]
        if former:
            self._driver.write(self._node.drafts.withdrawal(former, self._clock.wall_s()))
        if news:
            self._driver.write(self._node.drafts.publication(news, self._clock.wall_s()))
        for artifact in news:
            manifest = artifact.manifest
            log.info(
                "version %d of %s was published by %s", manifest.version, manifest.model, caller
            )
        authors = {
            each.key: author for each in made for _, author in self._published(each.manifest)
        }
        return [self._view(each.manifest, authors.get(each.key)) for each in made]

    def withdraw(self, model: str, version: int, caller: Caller) -> None:
        """Take a version back, with all of its variants; a deployment of it goes on.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if it was not published.
            ConfigError: if it could not be written to disk.
        """
        found = [each for each in self._of(model) if each.manifest.version == version]
        if not found:
            raise ModelNotFound(f"version {version} of {model!r} was not published in this mesh")
        self._driver.write(self._node.drafts.withdrawal(found, self._clock.wall_s()))
        log.info("version %d of %s was withdrawn by %s", version, model, caller)

    def manifests(self, model: str, version: int | None) -> tuple[Manifest, ...]:
        """Return a published version with all of its variants; the newest if None.

        Raises:
            ModelNotFound: if there is none; the message names those that there are.
        """
        found = self.all(model)
        if not found:
            raise ModelNotFound(
                f"nothing was published under the name {model!r}; give the path of a model, or see: "
                "meshnode artifacts"
            )
        numbers = sorted({manifest.version for manifest in found})
        wanted = numbers[-1] if version is None else version
        if wanted not in numbers:
            known = ", ".join(map(str, numbers))
            raise ModelNotFound(
                f"version {wanted} of {model!r} was not published; there is {known}"
            )
        return tuple(manifest for manifest in found if manifest.version == wanted)

    def all(self, model: str) -> list[Manifest]:
        """Return what was published under a name, in no order."""
        return [each.manifest for each in self._of(model)]

    def view(self) -> list[dict[str, Any]]:
        """Describe every version that was published or is deployed, by name, version and variant."""
        found: dict[tuple[str, int, str], dict[str, Any]] = {}
        for deployment in self._node.deployments():
            entry = self._node.desired.entry(deployment.key)
            author = NodeId(entry.author) if entry is not None else None
            for manifest in deployment.manifests:
                found[_order(manifest)] = self._view(manifest, author)
        for artifact, author in artifacts(self._node.desired):
            found[_order(artifact.manifest)] = self._view(artifact.manifest, author)
        return [found[order] for order in sorted(found)]

    # Inside

    def _signed(self, manifest: Manifest, said: Said) -> Manifest:
        before = manifest.provenance or Provenance()
        metrics = tuple(sorted({**dict(before.metrics), **dict(said.metrics)}.items()))
        note = said.note or before.note
        known = self._known(manifest)
        if known is not None and (known.metrics, known.note, known.label, known.created_s) == (
            metrics, note, before.label, before.created_s,
        ):  # fmt: skip
            return msgspec.structs.replace(manifest, provenance=known)
        plain = Provenance(
            published_s=self._clock.wall_s(),
            label=before.label,
            metrics=metrics,
            note=note,
            created_s=before.created_s,
        )
        made = sign(
            check_provenance(plain),
            _subject(manifest),
            self._identity.public_key,
            self._identity.sign,
        )
        return check_manifest(msgspec.structs.replace(manifest, provenance=made))

    def _published(self, manifest: Manifest) -> list[tuple[Artifact, NodeId]]:
        """Return what was published under a version's name, number and variant, and by whom."""
        key = Artifact(manifest).key
        return [each for each in artifacts(self._node.desired, key) if each[0].key == key]

    def _kept(self, manifest: Manifest) -> Manifest | None:
        """Return what a version that is published again stays; None if it is new, or its words are.

        Raises:
            InvalidRequest: if another one was published under its name and number, or by another node
                with other words.
        """
        for artifact, author in self._published(manifest):
            there, publisher = artifact.manifest, self._name_of(author)
            what = f"version {there.version} of {there.model!r}"
            if there.variant:
                what += f" ({there.variant})"
            if there.digest != manifest.digest:
                raise InvalidRequest(
                    f"{what} was published by {publisher} with other files or settings (digest "
                    f"{there.digest[:12]}…, and yours is {manifest.digest[:12]}…): take another number "
                    f"with --version, unpublish it first, or put yours in its place with --replace"
                )
            alike = manifest.exposure == there.exposure
            if alike and (not _words(manifest) or _words(manifest) == _words(there)):
                return there
            if author != self._node.me:
                raise InvalidRequest(
                    f"{what} was published by {publisher}, and only there can be changed what is said of "
                    "it and how it is offered; publish it there, or put yours in its place with --replace"
                )
        return None

    def _forms_of_another(self, manifest: Manifest) -> list[Artifact]:
        """Return the variants of what a version takes the place of, if its files are others."""
        if manifest.variant or all(
            there.manifest.digest == manifest.digest for there, _ in self._published(manifest)
        ):
            return []
        return [
            each
            for each in self._of(manifest.model)
            if each.manifest.version == manifest.version and each.manifest.variant
        ]

    def _known(self, manifest: Manifest) -> Provenance | None:
        """Return what the mesh knows of the origin of exactly this version, if it is to be believed."""
        subject = _subject(manifest)
        deployment = self._node.deployment(manifest.model)
        known = [*deployment.manifests] if deployment is not None else []
        known += [artifact.manifest for artifact in self._of(manifest.model)]
        for each in known:
            provenance = each.provenance
            if provenance is None or _subject(each) != subject:
                continue
            if flaw_of(provenance, subject, verify) is None:
                return provenance
        return None

    def _of(self, model: str) -> list[Artifact]:
        prefix = f"{KEY_PREFIX}{model}/"
        return [artifact for artifact, _ in artifacts(self._node.desired, prefix)]

    def _view(self, manifest: Manifest, holder: NodeId | None) -> dict[str, Any]:
        deployment = self._node.deployment(manifest.model)
        forms = deployment.manifests if deployment else ()
        deployed = {(each.version, each.variant, each.digest) for each in forms}
        published = self._node.desired.get(Artifact(manifest).key) is not None
        return {
            "name": manifest.model,
            "version": manifest.version,
            "variant": manifest.variant,
            "runtime": manifest.runtime,
            "digest": manifest.digest,
            "size_bytes": manifest.size_bytes,
            "files": len(manifest.files),
            "published": published,
            "deployed": (manifest.version, manifest.variant, manifest.digest) in deployed,
            "node": self._name_of(holder) if holder is not None else None,
            "node_id": holder,
            "provenance": provenance_view(manifest, manifest.digest, self._name_of),
        }


def provenance_view(
    manifest: Manifest, digest: str, name_of: Callable[[NodeId], str]
) -> dict[str, Any] | None:
    """Describe where a version comes from; None if nothing is said of it.

    Args:
        manifest: The version.
        digest: Of its whole manifest; what others tell of a replica lacks the files.
        name_of: A node's name, for people.
    """
    said = manifest.provenance
    if said is None:
        return None
    subject = Subject(digest, manifest.model, manifest.version, manifest.variant)
    flaw = flaw_of(said, subject, verify)
    return {
        "publisher": name_of(NodeId(said.publisher)) if said.publisher else None,
        "publisher_id": said.publisher or None,
        "published_at": rfc3339(said.published_s) if said.published_s > 0 else None,
        "created_at": rfc3339(said.created_s) if said.created_s > 0 else None,
        "label": said.label,
        "metrics": dict(said.metrics),
        "note": said.note,
        "verified": flaw is None,
        "flaw": flaw,
    }


def _words(manifest: Manifest) -> tuple[object, ...]:
    """Return what is said of a version, empty if nothing is."""
    said = manifest.provenance
    return (said.metrics, said.note) if said is not None and (said.metrics or said.note) else ()


def _subject(manifest: Manifest) -> Subject:
    return Subject(manifest.digest, manifest.model, manifest.version, manifest.variant)


def _order(manifest: Manifest) -> tuple[str, int, str]:
    return (manifest.model, manifest.version, manifest.variant)
