"""What a node tells the mesh about itself through its versioned state: replicas and load.

Keys of a node's own state (meshnode.state.owner): `replica/<model>/<version>` holds a
`ReplicaAdvert`, `load` holds a `NodeLoad`. Both are hints from another node, so decoding validates.
"""

from __future__ import annotations

import msgspec

from meshnode.errors import MeshError, ProtocolError
from meshnode.models.manifest import Manifest, check_manifest
from meshnode.types import ReplicaState

LOAD_KEY = "load"
_REPLICA_PREFIX = "replica/"
_MAX_REASON = 500  # characters; enough for a library's error message


class ReplicaAdvert(msgspec.Struct, array_like=True, frozen=True):
    """One replica, as its node describes it.

    Attributes:
        state: Where it stands.
        reason: Why it failed, or what it is doing.
        manifest: The model version without its files: what gateways check requests against.
        digest: Digest of the whole manifest: same digest, same model.
        slots: Requests that run at once.
        deployed: Whether it follows a deployment; otherwise it lies in the node's own folder.
        service_ms: Run time of one row as measured at warm-up, in ms; 0 where not known yet.
    """

    state: ReplicaState
    reason: str
    manifest: Manifest
    digest: str
    slots: int = 1
    deployed: bool = False
    service_ms: float = 0.0


class ModelLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy one replica is: requests running and queued, slots, EWMA run time in ms."""

    model: str
    version: int
    in_system: int
    slots: int
    service_ms: float


class NodeLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy a node is: CPU 0..1, free memory in bytes, and each of its replicas."""

    cpu: float
    memory_available_bytes: int
    models: tuple[ModelLoad, ...] = ()


_replica_decoder = msgspec.msgpack.Decoder(ReplicaAdvert)
_load_decoder = msgspec.msgpack.Decoder(NodeLoad)


def replica_key(model: str, version: int) -> str:
    """Return the state key of a replica."""
    return f"{_REPLICA_PREFIX}{model}/{version}"


def parse_replica_key(key: str) -> tuple[str, int] | None:
    """Return (model, version) of a replica's key, or None for another key."""
    if not key.startswith(_REPLICA_PREFIX):
        return None
    model, slash, version = key.removeprefix(_REPLICA_PREFIX).rpartition("/")
    return (model, int(version)) if slash and version.isascii() and version.isdigit() else None


def advert(
    manifest: Manifest,
    state: ReplicaState,
    *,
    reason: str = "",
    slots: int = 1,
    deployed: bool = False,
    service_ms: float = 0.0,
) -> ReplicaAdvert:
    """Describe a replica of our own; the list of files stays at home."""
    return ReplicaAdvert(
        state=state,
        reason=reason[:_MAX_REASON],
        manifest=msgspec.structs.replace(manifest, files=()),
        digest=manifest.digest,
        slots=slots,
        deployed=deployed,
        service_ms=service_ms,
    )


def encode(value: ReplicaAdvert | NodeLoad) -> bytes:
    """Return the value's bytes."""
    return msgspec.msgpack.encode(value)


def decode_replica(key: str, data: bytes) -> ReplicaAdvert:
    """Read another node's replica.

    Raises:
        ProtocolError: if it is malformed, beyond limits, or contradicts its key.
    """
    try:
        value = _replica_decoder.decode(data)
        check_manifest(value.manifest)
    except (msgspec.MsgspecError, MeshError) as error:
        raise ProtocolError(f"a replica's description is not valid: {error}") from error
    if parse_replica_key(key) != (value.manifest.model, value.manifest.version):
        raise ProtocolError(f"the replica under {key!r} describes another model")
    return value


def decode_load(data: bytes) -> NodeLoad:
    """Read another node's load.

    Raises:
        ProtocolError: if it is malformed.
    """
    try:
        return _load_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a node's load is not valid: {error}") from error
