"""A published version: it lies in the mesh's store and is served nowhere until it is deployed.

It is a value of the desired state, under `artifact/NAME/VERSION` or `artifact/NAME/VERSION/VARIANT`. Its
files are on the node that published it, whose id is the entry's author.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import MeshError, ModelError, ProtocolError, TooLarge
from meshnode.limits import MAX_DESIRED_VALUE_BYTES
from meshnode.models.manifest import Manifest, check_manifest
from meshnode.types import NodeId

if TYPE_CHECKING:
    from meshnode.state.desired import DesiredState

KEY_PREFIX: Final = "artifact/"
"""Keys of the desired state that hold published versions begin with this."""


class Artifact(msgspec.Struct, array_like=True, frozen=True):
    """A version that was published."""

    manifest: Manifest

    @property
    def key(self) -> str:
        """Its key in the desired state."""
        return artifact_key(self.manifest)

    def encode(self) -> bytes:
        """Return the value to put into the desired state.

        Raises:
            ModelError: if a field is not within its limits.
            TooLarge: if it has so many files that the value exceeds its limit.
        """
        manifest = check_manifest(self.manifest)
        value = msgspec.msgpack.encode(self)
        if len(value) > MAX_DESIRED_VALUE_BYTES:
            raise TooLarge(
                f"version {manifest.version} of {manifest.model!r} takes {len(value)} bytes to describe, at "
                f"most {MAX_DESIRED_VALUE_BYTES}: it has too many files"
            )
        return value

    @classmethod
    def decode(cls, key: str, value: bytes) -> Artifact:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are no artifact, or one of another key.
            ModelError: if a field is not within its limits.
        """
        try:
            artifact = _DECODER.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"a value is not an artifact: {error}") from error
        check_manifest(artifact.manifest)
        if artifact.key != key:
            raise ProtocolError(f"the value under {key!r} is another artifact")
        return artifact


_DECODER = msgspec.msgpack.Decoder(Artifact)


def artifact_key(manifest: Manifest) -> str:
    """Return the key under which a version is published."""
    key = f"{KEY_PREFIX}{manifest.model}/{manifest.version}"
    return f"{key}/{manifest.variant}" if manifest.variant else key


def check_artifact_version(text: str) -> int:
    """Return a version's number from its text.

    Raises:
        ModelError: if it is none.
    """
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 19 and int(text)):
        raise ModelError(f"{text[:40]!r} is not the number of a version")
    return int(text)


def published_by(node: NodeId, desired: DesiredState) -> list[Manifest]:
    """Return the versions that a node has published, whose files it keeps for the mesh."""
    return [artifact.manifest for artifact, author in artifacts(desired) if author == node]


def artifacts(desired: DesiredState, prefix: str = KEY_PREFIX) -> list[tuple[Artifact, NodeId]]:
    """Return the published versions whose keys begin with a prefix, each with who published it."""
    found = []
    for key, value in desired.items():
        entry = desired.entry(key) if key.startswith(prefix) else None
        if entry is not None:
            try:
                found.append((Artifact.decode(key, value), NodeId(entry.author)))
            except MeshError:  # of a newer version, or no artifact: it is left alone
                continue
    return found
