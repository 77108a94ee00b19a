"""What a node tells the mesh about itself through its versioned state: replicas and load.

Keys of a node's own state (meshnode.state.owner): `replica/<model>/<version>` holds a
`ReplicaAdvert`, `load` holds a `NodeLoad`. Both are hints from another node, so decoding validates.
A value has its limit (`MAX_OWNER_VALUE_BYTES`); what this node writes is made to fit it: a load names the
busiest replicas only, and `require_advertisable` refuses a model that could not be described.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from meshnode.errors import MeshError, ProtocolError, TooLarge
from meshnode.limits import (
    MAX_CAPABILITY_ITEMS,
    MAX_CLAIMED_MEMORY_BYTES,
    MAX_CLAIMED_REQUESTS,
    MAX_DEMAND_MODELS,
    MAX_FETCHES_TOLD,
    MAX_LOAD_MODELS,
    MAX_MODEL_NAME_LENGTH,
    MAX_OWNER_VALUE_BYTES,
    MAX_PROFILE_BATCH,
    MAX_PROFILE_SIZES,
    MAX_REASON_BYTES,
    MAX_SHOWN_LENGTH,
)
from meshnode.models.manifest import Manifest, check_manifest
from meshnode.models.serving.profile import Profile, is_sound
from meshnode.models.variables import without_variables
from meshnode.types import ReplicaState

LOAD_KEY: Final = "load"
_REPLICA_PREFIX: Final = "replica/"


class ShownReplica(msgspec.Struct, array_like=True, frozen=True):
    """What people are shown of a replica besides; nothing is decided by it.

    Attributes:
        device: Where it runs, such as `cuda:0 (CUDAExecutionProvider)`.
        instances: How many copies are open; 0 if it does not say.
        batching: How requests are joined.
        restarted: How often its processes were started again, and why last; empty if they were not.
    """

    device: Annotated[str, msgspec.Meta(max_length=MAX_SHOWN_LENGTH)] = ""
    instances: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_REQUESTS)] = 0
    batching: Annotated[str, msgspec.Meta(max_length=MAX_SHOWN_LENGTH)] = ""
    restarted: Annotated[str, msgspec.Meta(max_length=MAX_SHOWN_LENGTH)] = ""


class ReplicaAdvert(msgspec.Struct, array_like=True, frozen=True):
    """One replica, as its node describes it.

    Attributes:
        state: Where it stands.
        reason: Why it failed, or what it is doing.
        manifest: The model version without its files: what gateways check requests against.
        digest: Digest of the whole manifest: same digest, same model.
        slots: Requests that run at once, 1 to `MAX_CLAIMED_REQUESTS`.
        deployed: Whether it follows a deployment; otherwise it lies in the node's own folder.
        service_ms: Run time of one row as measured at warm-up, in ms; 0 where not known yet.
        profile: Service time by batch size (`meshnode.models.serving.profile`), as measured at warm-up.
        shown: What people are shown of it.
    """

    state: ReplicaState
    reason: str
    manifest: Manifest
    digest: Annotated[str, msgspec.Meta(max_length=64)]
    slots: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLAIMED_REQUESTS)] = 1
    deployed: bool = False
    service_ms: float = 0.0
    profile: Profile = ()
    shown: ShownReplica = ShownReplica()


class ModelLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy one replica is: requests running and queued, slots, EWMA run time in ms, failures in a row.

    The last is negative where it is not said.
    """

    model: str
    version: int
    in_system: int
    slots: int
    service_ms: float
    failing: int = -1


class AcceleratorLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy an accelerator is: its place in the capabilities' list, use 0..1, free memory."""

    index: Annotated[int, msgspec.Meta(ge=0, le=MAX_CAPABILITY_ITEMS)]
    utilisation: Annotated[float, msgspec.Meta(ge=0, le=1)]
    memory_free_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_MEMORY_BYTES)]


class FetchProgress(msgspec.Struct, array_like=True, frozen=True):
    """How far a node is with fetching a version's files: bytes that are here, of all, and per second."""

    model: str
    version: int
    received_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_MEMORY_BYTES)]
    total_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_MEMORY_BYTES)]
    bytes_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_MEMORY_BYTES)] = 0


class NodeLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy a node is.

    Attributes:
        cpu: 0..1, over all of its processors.
        memory_available_bytes: Free memory.
        models: Each of its replicas.
        temperature_c: Of its processor in degrees Celsius, or None where it cannot be read.
        battery_percent: Charge of its battery, or None without one.
        accelerators: Those that tell how busy they are.
        fetches: Versions whose files it is fetching.
        on_battery: Whether it runs on a battery; None where it does not say.
        held_back: Whether its processor runs slower than it could, for its temperature.
        demand: Of autoscaled models: how many requests have come to its gateway since it started.
    """

    cpu: float
    memory_available_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_CLAIMED_MEMORY_BYTES)]
    models: tuple[ModelLoad, ...] = ()
    temperature_c: Annotated[float, msgspec.Meta(ge=-273.15, le=1000)] | None = None
    battery_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    accelerators: Annotated[
        tuple[AcceleratorLoad, ...], msgspec.Meta(max_length=MAX_CAPABILITY_ITEMS)
    ] = ()
    fetches: Annotated[tuple[FetchProgress, ...], msgspec.Meta(max_length=MAX_FETCHES_TOLD)] = ()
    on_battery: bool | None = None
    held_back: bool = False
    demand: Annotated[
        tuple[
            tuple[
                Annotated[str, msgspec.Meta(max_length=MAX_MODEL_NAME_LENGTH)],
                Annotated[int, msgspec.Meta(ge=0, le=2**53)],
            ],
            ...,
        ],
        msgspec.Meta(max_length=MAX_DEMAND_MODELS),
    ] = ()


_replica_decoder = msgspec.msgpack.Decoder(ReplicaAdvert)
_load_decoder = msgspec.msgpack.Decoder(NodeLoad)


def replica_key(model: str, version: int) -> str:
    """Return the state key of a replica."""
    return f"{_REPLICA_PREFIX}{model}/{version}"


def parse_replica_key(key: str) -> tuple[str, int] | None:
    """Return (model, version) of a replica's key, or None for another key.

    Only the spelling of `replica_key` counts: `replica/m/07` would be a second key for version 7.
    """
    if not key.startswith(_REPLICA_PREFIX):
        return None
    model, _, version = key.removeprefix(_REPLICA_PREFIX).rpartition("/")
    if not (version.isascii() and version.isdigit()):
        return None
    return (model, int(version)) if replica_key(model, int(version)) == key else None


def advert(
    manifest: Manifest,
    state: ReplicaState,
    *,
    digest: str,
    reason: str = "",
    slots: int = 1,
    deployed: bool = False,
    service_ms: float = 0.0,
    profile: Profile = (),
    shown: ShownReplica = ShownReplica(),  # noqa: B008 - frozen, so one may serve all
) -> ReplicaAdvert:
    """Describe a replica of our own; the list of files stays at home."""
    # A library's message may hold what UTF-8 cannot (a file name of undecodable bytes).
    text = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
    return ReplicaAdvert(
        state=state,
        reason=text,
        manifest=msgspec.structs.replace(without_variables(manifest), files=()),
        digest=digest,
        slots=slots,
        deployed=deployed,
        service_ms=service_ms,
        profile=profile,
        shown=ShownReplica(
            shown.device[:MAX_SHOWN_LENGTH],
            shown.instances,
            shown.batching[:MAX_SHOWN_LENGTH],
            # What a model printed before it ended may hold what UTF-8 cannot.
            shown.restarted.encode(errors="replace").decode()[:MAX_SHOWN_LENGTH],
        ),
    )


def undescribed(full: ReplicaAdvert) -> ReplicaAdvert:
    """Return what is told of a replica whose description does not fit: that it cannot serve."""
    return msgspec.structs.replace(
        full,
        state=ReplicaState.FAILED,
        reason=f"its inputs and outputs take more than {MAX_OWNER_VALUE_BYTES} bytes to describe",
        manifest=msgspec.structs.replace(full.manifest, inputs=(), outputs=()),
    )


def require_advertisable(manifest: Manifest) -> None:
    """Check that a replica of this model can be described to the mesh, whatever happens to it.

    Raises:
        TooLarge: if its inputs and outputs take too many bytes.
    """
    longest = advert(
        manifest,
        ReplicaState.UNLOADING,
        digest="0" * 64,
        reason="?" * MAX_REASON_BYTES,
        slots=MAX_CLAIMED_REQUESTS,
        service_ms=1.5,
        profile=tuple((MAX_PROFILE_BATCH, 1.5) for _ in range(MAX_PROFILE_SIZES)),
        shown=ShownReplica(
            "?" * MAX_SHOWN_LENGTH,
            MAX_CLAIMED_REQUESTS,
            "?" * MAX_SHOWN_LENGTH,
            "\U0001f4a5" * MAX_SHOWN_LENGTH,  # a model may have printed it before it ended
        ),
    )
    size_bytes = len(encode(longest))
    if size_bytes > MAX_OWNER_VALUE_BYTES:
        raise TooLarge(
            f"the inputs and outputs of {manifest.model!r} take {size_bytes} bytes to describe; "
            f"at most {MAX_OWNER_VALUE_BYTES}"
        )


def encode(value: ReplicaAdvert | NodeLoad) -> bytes:
    """Return the value's bytes; of a load with many replicas the busiest are kept."""
    if isinstance(value, NodeLoad) and len(value.models) > MAX_LOAD_MODELS:
        busiest = sorted(value.models, key=lambda each: each.in_system, reverse=True)
        value = msgspec.structs.replace(value, models=tuple(busiest[:MAX_LOAD_MODELS]))
    encoded = msgspec.msgpack.encode(value)
    if isinstance(value, NodeLoad) and value.demand and len(encoded) > MAX_OWNER_VALUE_BYTES:
        busiest = sorted(value.models, key=lambda each: each.in_system, reverse=True)
        half = tuple(busiest[: MAX_LOAD_MODELS // 2])
        encoded = msgspec.msgpack.encode(msgspec.structs.replace(value, models=half))
    return encoded


def decode_replica(key: str, data: bytes) -> ReplicaAdvert:
    """Read another node's replica.

    Raises:
        ProtocolError: if it is malformed, beyond limits, or contradicts its key.
    """
    try:
        value = _replica_decoder.decode(data)
        check_manifest(value.manifest)
    except (msgspec.MsgspecError, ValueError, MeshError) as error:
        raise ProtocolError(f"a replica's description is not valid: {error}") from error
    if not math.isfinite(value.service_ms) or not is_sound(value.profile):
        raise ProtocolError("a replica's profile holds what is no time of a batch")
    if parse_replica_key(key) != (value.manifest.model, value.manifest.version):
        raise ProtocolError(f"the replica under {key!r} describes another model")
    return value


def decode_load(data: bytes) -> NodeLoad:
    """Read another node's load.

    Raises:
        ProtocolError: if it is malformed or beyond limits.
    """
    try:
        value = _load_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"a node's load is not valid: {error}") from error
    numbers = [value.cpu, value.temperature_c or 0.0, value.battery_percent or 0.0]
    numbers += [each.service_ms for each in value.models]
    numbers += [each.utilisation for each in value.accelerators]
    # JSON, in which the load is shown, has no word for these.
    if not all(map(math.isfinite, numbers)):
        raise ProtocolError("a node's load holds a number that is none")
    return value
