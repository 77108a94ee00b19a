"""Which versions a definition means by a name: those that were published, or deployed before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.state.deployment_history import revisions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.daemon.publications import Publications
    from meshnode.deployment_file import DeploymentSpec
    from meshnode.models.manifest import Manifest
    from meshnode.state.deployment import Deployment
    from meshnode.state.desired import DesiredState


def named_versions(
    spec: DeploymentSpec, publications: Publications, desired: DesiredState
) -> tuple[Manifest, ...]:
    """Return the versions that a definition names: of those that were published, else of those deployed before.

    Args:
        spec: The definition; its model is a name.
        publications: What was published.
        desired: Has what was deployed.

    Raises:
        InvalidRequest: if the name is another one, or the definition says what published versions say themselves.
        ModelNotFound: if there is no such version.
    """
    if spec.model != spec.name:
        raise InvalidRequest(
            f"what was published as {spec.model!r} is deployed under that name; write name = {spec.model!r}, "
            "or give the path of the model"
        )
    if spec.metrics or spec.note or spec.variants:
        raise InvalidRequest(
            f"{spec.model!r} is what was published before: it is deployed as it was published, without "
            "metrics, note and variants"
        )
    kept = [each.deployment for each in revisions(desired, spec.name) if each.deployment]
    if not spec.versions:
        try:
            newest = publications.manifests(spec.name, None)
            return kept_where_same(newest, kept[0] if kept else None)
        except ModelNotFound:
            if not kept:
                raise
            return kept[0].manifests
    published = publications.all(spec.name)
    found: list[Manifest] = []
    for version in spec.versions:
        sources = [published, *(each.manifests for each in kept)]
        of_it = ([each for each in them if each.version == version] for them in sources)
        forms = next(filter(None, of_it), None)
        if forms is None:
            known = sorted({each.version for them in sources for each in them})
            there = f"there is {', '.join(map(str, known))}" if known else "there is none"
            raise ModelNotFound(
                f"version {version} of {spec.name!r} was neither published nor deployed before; {there}"
            )
        found += forms
    return kept_where_same(found, kept[0] if kept else None)


def kept_where_same(
    manifests: Sequence[Manifest], current: Deployment | None
) -> tuple[Manifest, ...]:
    """Return versions, each as it is deployed where it is the same and the same is said of it.

    When a version was signed is no reason to write it again.

    Args:
        manifests: The versions.
        current: What is deployed under their name.
    """
    known = {(each.version, each.variant): each for each in (current.manifests if current else ())}

    def kept(manifest: Manifest) -> Manifest:
        there = known.get((manifest.version, manifest.variant))
        if there is None or there.digest != manifest.digest:
            return manifest
        old, new = there.provenance, manifest.provenance
        is_said = old is not None and (
            new is None or (old.metrics, old.note) == (new.metrics, new.note)
        )
        return structs.replace(there, exposure=manifest.exposure) if is_said else manifest

    return tuple(map(kept, manifests))
