"""A deployment: the desired state of one model on the mesh, as a value under `deployment/NAME`."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import ModelError, ProtocolError, TooLarge
from meshnode.limits import (
    MAX_DEPLOYMENT_REPLICAS,
    MAX_DEPLOYMENT_VERSIONS,
    MAX_DESIRED_VALUE_BYTES,
    MAX_ENVIRONMENT_BYTES,
    MAX_ENVIRONMENT_VARIABLES,
    MAX_ORIGIN_TEXT_LENGTH,
    MAX_STANDBY_REPLICAS,
)
from meshnode.models.manifest import Manifest, check_manifest, check_model_name
from meshnode.models.variants import check_variant_name, check_variants
from meshnode.state.constraints import ANYWHERE, ESTIMATED, Constraints, Resources, flaws
from meshnode.state.release import Release, release_flaws
from meshnode.state.scaling import Scaling, scaling_flaws
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.models.exposure import ExposureChange

KEY_PREFIX: Final = "deployment/"
"""Keys of the desired state that hold deployments begin with this."""

_NODE_ID = re.compile(r"[a-z2-7]{32}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESERVED = ("MESHNODE_", "LD_", "DYLD_", "PYTHON")
_PERSON: Final = b"mesh-release"  # keeps these hashes apart from all others


NOTHING_BEFORE: Final = "none"
"""The base of what was written where there was nothing."""


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """How a revision of a deployment came about; no part of what is served.

    Attributes:
        base: Id of the revision that it was made from, `NOTHING_BEFORE` where there was none; empty where
            nobody said.
        by: Who asked for it at the node that wrote it: an API key's name and id, or a scope; empty likewise.
        restores: Id of the earlier revision that it writes anew; empty for one that is new.
        source: Digest of what its model was taken from, so that the same file applied again is known to
            change nothing; empty where nobody said.
    """

    base: str = ""
    by: str = ""
    restores: str = ""
    source: str = ""


UNKNOWN_ORIGIN: Final = Origin()
"""Of a revision of which nothing is said."""


class Removal(msgspec.Struct, array_like=True, frozen=True, tag="removed"):
    """That nothing is served under a name any more: the revisions before it stay, and can be restored.

    A version of meshnode that knows none takes it for a deployment that it cannot read, and serves none.
    """

    origin: Origin

    def encode(self) -> bytes:
        """Return the value to put into the desired state."""
        return msgspec.msgpack.encode(self)


def removal_of(value: bytes) -> Removal | None:
    """Return what a value of the desired state says, if it says that nothing is deployed."""
    if value[1 : 1 + len(_REMOVED)] != _REMOVED:  # asked of every deployment, again and again
        return None
    try:
        return _REMOVALS.decode(value)
    except (msgspec.MsgspecError, ValueError):
        return None


_REMOVALS = msgspec.msgpack.Decoder(Removal)
_REMOVED: Final = msgspec.msgpack.encode("removed")  # the tag, after the length of the array


class Deployment(msgspec.Struct, array_like=True, frozen=True, eq=False):
    """What the mesh is to serve under one public name.

    Two that ask for the same are equal, whoever wrote them and when.

    Fields are only ever added at the end (docs/ARCHITECTURE.md, the upgrade contract).

    Attributes:
        name: Public name of the model; each manifest carries it.
        manifests: The versions to serve; several of one version are its variants.
        replicas: How many nodes are to serve each of them, 1 to 1,024.
        on: The nodes that it is pinned to; empty to let placement choose.
        enabled: Whether it is served; one that is not keeps its definition and its history.
        constraints: What a node must be to serve it.
        resources: What one replica takes.
        standby: Further nodes that keep it ready but are asked only where the others cannot answer, 0 to 16:
            those of other regions first.
        env: Variables for the code of its models, (name, value), sorted by name.
        origin: How this revision of it came about.
        scaling: What the number of replicas follows; None for the fixed number `replicas`, which is otherwise
            the number to begin with.
        since_ms: When it was first deployed (milliseconds since the Unix epoch), kept through all its changes: where
            memory does not suffice for all, the older comes first. 0 for those that older versions of meshnode made.
        release: How the newest of its versions takes the place of another one; None where all are simply served.
    """

    name: str
    manifests: tuple[Manifest, ...]
    replicas: int = 1
    on: tuple[NodeId, ...] = ()
    enabled: bool = True
    constraints: Constraints = ANYWHERE
    resources: Resources = ESTIMATED
    standby: int = 0
    env: tuple[tuple[str, str], ...] = ()
    origin: Origin = UNKNOWN_ORIGIN
    scaling: Scaling | None = None
    since_ms: int = 0
    release: Release | None = None

    def __eq__(self, other: object) -> bool:
        """Whether it asks for the same."""
        if not isinstance(other, Deployment):
            return NotImplemented
        return self is other or _asked_for(self) == _asked_for(other)

    def __ne__(self, other: object) -> bool:
        """Whether it asks for something else; a struct does not derive it from equality."""
        return not self == other

    def __hash__(self) -> int:
        """Go with equality."""
        return hash(_asked_for(self))

    @property
    def key(self) -> str:
        """The deployment's key in the desired state."""
        return KEY_PREFIX + self.name

    @property
    def versions(self) -> dict[int, list[Manifest]]:
        """The variants of each version, in the order given."""
        versions: dict[int, list[Manifest]] = {}
        for manifest in self.manifests:
            versions.setdefault(manifest.version, []).append(manifest)
        return versions

    def encode(self) -> bytes:
        """Return the value to put into the desired state.

        Raises:
            ModelError: if a field is not within its limits.
            TooLarge: if the manifests list so many files that the value exceeds its limit.
        """
        check_deployment(self)
        value = msgspec.msgpack.encode(self)
        if len(value) > MAX_DESIRED_VALUE_BYTES:
            raise TooLarge(
                f"the deployment {self.name!r} takes {len(value)} bytes, at most {MAX_DESIRED_VALUE_BYTES}: "
                "its versions have too many files"
            )
        return value

    @classmethod
    def decode(cls, value: bytes) -> Deployment:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are no deployment.
            ModelError: if a field is not within its limits.
        """
        try:
            deployment = _DECODER.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"a value is not a deployment: {error}") from error
        return check_deployment(deployment)


def with_variant(
    current: Deployment | None,
    name: str,
    manifests: Iterable[Manifest],
    variant: str,
    *,
    numbered: bool,
) -> Deployment:
    """Return a deployment with one more variant of what it serves, in place of one of the same name.

    Args:
        current: What is deployed under the name now, or None.
        name: The public name.
        manifests: The variant's versions.
        variant: Its name.
        numbered: Whether those have version numbers of their own; else it is a form of the newest.

    Raises:
        ModelError: if the version itself is not deployed, or is not alike.
    """
    check_variant_name(variant)
    if current is None:
        raise ModelError(
            f"{name!r} is not deployed, so it can have no variant {variant!r}; deploy the model itself first"
        )
    served = current.versions
    added = []
    for manifest in manifests:
        version = manifest.version if numbered else max(served)
        if version not in served:
            known = ", ".join(map(str, served))
            raise ModelError(
                f"version {version} of {name!r} is not deployed, so it can have no variant {variant!r}; "
                f"deployed is {known}"
            )
        added.append(msgspec.structs.replace(manifest, version=version, variant=variant))
    replaced = {(each.version, each.variant) for each in added}
    kept = [each for each in current.manifests if (each.version, each.variant) not in replaced]
    return check_deployment(msgspec.structs.replace(current, manifests=(*kept, *added)))


def offered(deployment: Deployment, change: ExposureChange) -> Deployment:
    """Return a deployment whose models are offered as it says.

    The variants of a version are offered alike, as the version itself: clients do not know which answers.

    Raises:
        ModelError: if it asks for what is not within limits.
    """
    alike = {
        version: change.applied_to(
            next((each for each in forms if not each.variant), forms[0]).exposure
        )
        for version, forms in deployment.versions.items()
    }
    manifests = tuple(
        msgspec.structs.replace(each, exposure=alike[each.version]) for each in deployment.manifests
    )
    return msgspec.structs.replace(deployment, manifests=manifests)


def kept_variants(current: Deployment | None, manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return the variants that stay when versions are deployed again: those of unchanged versions."""
    if current is None:
        return []
    same = {(each.version, each.digest) for each in manifests}
    unchanged = {
        each.version
        for each in current.manifests
        if not each.variant and (each.version, each.digest) in same
    }
    return [each for each in current.manifests if each.variant and each.version in unchanged]


_DECODER = msgspec.msgpack.Decoder(Deployment)
_ASKED_FOR: Final = tuple(
    field
    for field in Deployment.__struct_fields__
    if field not in ("origin", "since_ms", "release")
)


def _asked_for(deployment: Deployment) -> tuple[Any, ...]:
    release = deployment.release and msgspec.structs.replace(deployment.release, begun_ms=0)
    return (*(getattr(deployment, field) for field in _ASKED_FOR), release)


def release_id(deployment: Deployment) -> tuple[int, int]:
    """Return what tells a deployment's release from others: when it was asked for, and a mark of plan and files.

    Changes of the deployment that do not concern it leave it as it is. (0, 0) where there is none.
    """
    release = deployment.release
    if release is None:
        return (0, 0)
    digest = hashlib.blake2b(msgspec.msgpack.encode(release), digest_size=4, person=_PERSON)
    for each in deployment.manifests:
        if each.version in (release.baseline, release.candidate):
            digest.update(f"{each.version} {each.digest}\n".encode())
    return (release.begun_ms, int.from_bytes(digest.digest(), "big"))


def check_deployment(deployment: Deployment) -> Deployment:
    """Return a deployment if all of it is within limits.

    Raises:
        ModelError: naming the first field that is not.
    """
    name = check_model_name(deployment.name)
    if not 1 <= len(deployment.manifests) <= MAX_DEPLOYMENT_VERSIONS:
        raise ModelError(
            f"{name!r} has {len(deployment.manifests)} versions, not 1 to {MAX_DEPLOYMENT_VERSIONS}"
        )
    for manifest in deployment.manifests:
        check_manifest(manifest)
        if manifest.model != name:
            raise ModelError(f"a version of {name!r} belongs to the model {manifest.model!r}")
    for variants in deployment.versions.values():
        check_variants(variants)
    if not 1 <= deployment.replicas <= MAX_DEPLOYMENT_REPLICAS:
        raise ModelError(
            f"{name!r} wants {deployment.replicas} replicas, not 1 to {MAX_DEPLOYMENT_REPLICAS}"
        )
    if len(deployment.on) > MAX_DEPLOYMENT_REPLICAS or len(set(deployment.on)) != len(
        deployment.on
    ):
        raise ModelError(f"{name!r} is pinned to too many nodes, or to one of them twice")
    for node in deployment.on:
        if not _NODE_ID.fullmatch(node):
            raise ModelError(f"{name!r} is pinned to {node!r}, which is not the id of a node")
    flaw = (
        next(flaws(deployment.constraints, deployment.resources), "")
        or environment_flaw(deployment.env)
        or _origin_flaw(deployment.origin)
        or (next(scaling_flaws(deployment.scaling), "") if deployment.scaling else "")
        or _release_flaw(deployment)
    )
    if flaw:
        raise ModelError(f"{name!r}: {flaw}")
    if not 0 <= deployment.since_ms < 2**53:
        raise ModelError(
            f"{name!r} was first deployed at {deployment.since_ms} ms, which is no time"
        )
    if not 0 <= deployment.standby <= MAX_STANDBY_REPLICAS:
        raise ModelError(
            f"{name!r} wants {deployment.standby} replicas on standby, not 0 to {MAX_STANDBY_REPLICAS}"
        )
    return deployment


def _release_flaw(deployment: Deployment) -> str:
    """Return what is wrong with a deployment's release, or an empty text."""
    release = deployment.release
    if release is None:
        return ""
    versions = deployment.versions
    for version in (release.baseline, release.candidate):
        if version not in versions:
            return f"its release is about version {version}, which is none of its versions"
    return next(release_flaws(release), "")


def environment_flaw(env: tuple[tuple[str, str], ...]) -> str:
    """Return what is wrong with variables, or an empty text."""
    names = [name for name, _ in env]
    if len(names) > MAX_ENVIRONMENT_VARIABLES or len(set(names)) != len(names):
        return f"env has a variable twice, or more than {MAX_ENVIRONMENT_VARIABLES}"
    if sum(len(part.encode()) for pair in env for part in pair) > MAX_ENVIRONMENT_BYTES:
        return f"env takes more than {MAX_ENVIRONMENT_BYTES} bytes"
    for name, value in env:
        if not _VARIABLE.fullmatch(name):
            return (
                f"{name[:60]!r} is no name of a variable: letters, digits and _, such as MODEL_HOME"
            )
        if name.upper().startswith(_RESERVED):
            return (
                f"the variable {name} is not a model's to set: names that begin with {', '.join(_RESERVED)} change how "
                "its process is started and shut in"
            )
        if "\0" in value:
            return f"the variable {name} has a NUL in its value"
    return ""


def _origin_flaw(origin: Origin) -> str:
    """Return what is wrong with what is said of a revision, or an empty text."""
    words = (origin.base, origin.by, origin.restores, origin.source)
    if any(len(word) > MAX_ORIGIN_TEXT_LENGTH for word in words):
        return f"what is said of its origin has a word of more than {MAX_ORIGIN_TEXT_LENGTH} characters"
    return ""
