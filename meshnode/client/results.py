"""What the client's calls return: typed objects, checked as they are read.

Fields may be added in later versions; what a gateway sends beyond these is ignored here, and what an
older gateway does not send has its default. `MeshClient.get` returns the documents as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from meshnode.client.rollout_results import ReleaseInfo
from meshnode.errors import ProtocolError
from meshnode.owner_limits import size_text

if TYPE_CHECKING:
    from meshnode.capabilities import Capabilities
    from meshnode.client.calls import Reply

T = TypeVar("T")


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output of a model.

    Attributes:
        name: Its name.
        datatype: Its element type in the Open Inference Protocol's words, such as `FP32`.
        shape: Its dimensions; -1 takes any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes and gives.

    Attributes:
        name: Its public name.
        versions: The versions that are ready, as text.
        platform: What kind of model it is, such as `onnxruntime_onnx`.
        inputs: Its inputs, in their order.
        outputs: Its outputs, in their order.
    """

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


class FetchInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How far a node is with fetching a version's files: bytes that are there, of all, and per second."""

    received_bytes: int = 0
    total_bytes: int = 0
    bytes_s: int = 0

    def __str__(self) -> str:
        """Say it as people read it, such as `42 % of 1200 MiB, 18 MiB/s`."""
        percent = 100 * self.received_bytes // max(1, self.total_bytes)
        rate = f", {size_text(self.bytes_s)}/s" if self.bytes_s else ""  # none is known at first
        return f"{percent} % of {size_text(self.total_bytes)}{rate}"


class ReplicaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model on one node.

    Attributes:
        node: The node's name.
        node_id: Its id.
        version: The version.
        state: `fetching`, `loading`, `ready`, `failed`, `unloading`; a later version may have more.
        reason: Why it failed, or is paused; else empty.
        current: Whether it has the files that the deployment means for its node; true without a deployment.
        placed: Whether its node is to serve it; true without a deployment.
        standby: Whether its node is to have it ready for the case that the others cannot answer.
        failure: Why the files that it is to serve could not be loaded; empty if nothing failed.
        fetch: How far its node is with fetching its files; None while it fetches none.
    """

    node: str
    node_id: str = ""
    version: int
    state: str
    reason: str = ""
    current: bool = True
    placed: bool = True
    standby: bool = False
    failure: str = ""
    fetch: FetchInfo | None = None


class Ineligible(msgspec.Struct, frozen=True, kw_only=True):
    """A node that cannot take a replica, and why; `lasting` if waiting for it changes nothing."""

    node: str
    node_id: str = ""
    reason: str = ""
    lasting: bool = False


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the mesh.

    Attributes:
        name: Its public name.
        versions: The versions that are deployed or served.
        replicas: Where they are.
        wanted: Replicas that the deployment asks for, per version; None if it is not deployed
            but served from a node's own folder.
        deployed: The versions that the deployment asks for; empty if there is none.
        release: How its release stands, in a few words; None without one.
        revision: Which deployment that is; empty if there is none.
        placed: Names of the nodes that are to serve it.
        missing: How many replicas no node can take.
        standby: Names of the nodes that have it ready for the case that those cannot answer.
        missing_standby: How many more of these no node can take.
        paused: Whether its deployment is paused, so that nobody serves it.
        ineligible: Why the nodes that cannot, cannot.
        endpoint: A path of its deployer's choice that runs it, or None.
        tasks: What it does for clients that know only tasks, as its deployment or configuration maps them.
        cache: Whether answers are kept, if its deployment says so; None leaves it to its configuration.
    """

    name: str
    versions: tuple[int, ...] = ()
    replicas: tuple[ReplicaInfo, ...] = ()
    wanted: int | None = None
    deployed: tuple[int, ...] = ()
    release: ReleaseInfo | None = None
    revision: str = ""
    placed: tuple[str, ...] = ()
    missing: int = 0
    standby: tuple[str, ...] = ()
    missing_standby: int = 0
    paused: bool = False
    ineligible: tuple[Ineligible, ...] = ()
    endpoint: str | None = None
    tasks: tuple[str, ...] = ()
    cache: bool | None = None

    @property
    def ready_on(self) -> tuple[str, ...]:
        """Names of the nodes on which some version is ready."""
        ready = [replica.node for replica in self.replicas if replica.state == "ready"]
        return tuple(dict.fromkeys(ready))


class DeployedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a deployment: its number, form, runtime, and the hash and size of its files."""

    version: int
    variant: str = ""
    runtime: str = ""
    digest: str = ""
    size_bytes: int = 0


class ScalingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the number of a deployment's replicas is decided.

    Attributes:
        steward: Name of the node that decides; None while none has.
        epoch: Counts the stewards.
        why: Why there are to be so many.
        decided_at: When that was decided, in RFC 3339.
    """

    steward: str | None = None
    epoch: int = 0
    why: str = ""
    decided_at: str | None = None


class DeploymentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the mesh is to serve under a name.

    Attributes:
        name: The public name.
        id: The same for a name for ever.
        urls: Where it can be asked.
        status: `ready`, `progressing`, `releasing`, `failed`, `paused`, or `asleep` until the next request.
        reason: Why it is not ready.
        enabled: Whether it is served.
        definition: Its definition, with the keys of a deployment file; `MeshClient.apply` takes it again.
        versions: What is deployed.
        replicas: How many nodes shall serve each version.
        on: Names of the nodes that shall; empty for whichever can.
        placed: Names of those that were chosen.
        standby_on: Names of those that keep it ready for the case that these fail.
        missing: How many replicas no node can take.
        wanted: How many nodes are to serve each version now; with autoscaling other than `replicas`.
        ready: How many do.
        scaling: Who decides how many there are, and why; None without autoscaling.
        release: How its release stands, in a few words; None without one.
        revision: Which deployment of this name it is.
        changed_at: When it was made, in RFC 3339.
        changed_by: Name of the node that signed it.
    """

    name: str
    id: str = ""
    urls: tuple[str, ...] = ()
    status: str = ""
    reason: str = ""
    enabled: bool = True
    definition: dict[str, Any] = {}
    versions: tuple[DeployedVersion, ...] = ()
    replicas: int = 1
    on: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    standby_on: tuple[str, ...] = ()
    missing: int = 0
    wanted: int = 1
    ready: int = 0
    scaling: ScalingInfo | None = None
    release: ReleaseInfo | None = None
    revision: str = ""
    changed_at: str | None = None
    changed_by: str | None = None


class MeshEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in the mesh, as the gateway that tells it learnt of it.

    Attributes:
        id: Its id, at that gateway.
        kind: `member`, `deployment`, `model`, `node`; `gap` where some may have been missed.
        time: When, in RFC 3339.
        fields: What else is said of it.
    """

    kind: str
    id: str = ""
    time: str = ""
    fields: dict[str, Any] = {}


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True, rename={"is_self": "self"}):
    """A node of the mesh.

    Attributes:
        id: 32 characters: the hash of its public key.
        name: Its name.
        state: `alive`, `suspect`, `dead` or `left`, as the gateway sees it.
        region: Where it says it is.
        zone: A place within the region, or empty.
        http: URL of its gateway as the node itself reaches it, or None.
        mesh: Where other nodes reach it, or None.
        is_self: Whether it is the node that answered.
        linked: Whether the node that answered has a link to it.
        drain: `draining` or `drained` if it is to be emptied, or None.
        rtt_ms: Round trip from the node that answered, in milliseconds, or None.
        rtt_estimated: Whether that is not measured, but the distance of network coordinates.
        path: `direct` or `relayed`, as the link to it goes; None without one.
        relay: The node through which a relayed one goes, by name.
        labels: Its owner's labels.
        capabilities: What changes slowly, as JSON; `machine` is the same, typed.
        load: What changes fast, as JSON; empty until the node has reported.
    """

    id: str
    name: str
    state: str
    region: str = ""
    zone: str = ""
    http: str | None = None
    mesh: str | None = None
    is_self: bool = False
    linked: bool = False
    drain: str | None = None
    rtt_ms: float | None = None
    rtt_estimated: bool = False
    path: str | None = None
    relay: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    load: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def machine(self) -> Capabilities:
        """Its capabilities, typed: processors, memory, accelerators, runtimes, measured speed."""
        from meshnode.capabilities import read

        return read(self.capabilities)


class DrainInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a node is to be emptied, and how far it is.

    Attributes:
        node: Its id.
        name: Its name.
        state: `serving` if it is not to be; `draining`, `drained`, or `away` while it is no live member.
        since: Since when, in RFC 3339, or empty.
        force: Whether what nobody else can take over is given up.
        wait_s: For how long what began there may go on, in seconds.
        requests: That it works on.
        sequences: That began there and have not ended.
        jobs: That other nodes do not have yet.
        replicas: Models that it still serves.
        waits_for: What it waits for, as sentences.
        blocked_by: What nobody else can take over, as sentences: waiting changes nothing.
        ended: Sequences that were ended since they took longer than they may.
    """

    node: str
    name: str
    state: str
    since: str = ""
    force: bool = False
    wait_s: int = 0
    requests: int = 0
    sequences: int = 0
    jobs: int = 0
    replicas: int = 0
    waits_for: tuple[str, ...] = ()
    blocked_by: tuple[str, ...] = ()
    ended: int = 0

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left there."""
        return self.state == "drained"


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The node that answered.

    Attributes:
        id: Its id.
        name: Its name.
        region: Where it says it is.
        mesh: The mesh's fingerprint.
        role: `member`, `operator` or `admin`.
        state: `running`, `paused`, `draining`, `drained` or `leaving`.
        paused: Why it serves nothing at present, or None.
        version: Version of meshnode.
        members: Nodes of the mesh that live.
        http: URL of its gateway as the node itself reaches it, or None.
        grpc: Where its gateway answers gRPC, `HOST:PORT`, or None.
        mesh_address: Where the mesh listens on it.
        pid: Its process; 0 if it does not say.
        started_at: When it was started, in RFC 3339, or empty.
        uptime_s: Seconds since then.
    """

    id: str
    name: str
    mesh: str
    state: str
    version: str
    region: str = ""
    role: str = ""
    paused: str | None = None
    members: int = 0
    http: str | None = None
    grpc: str | None = None
    mesh_address: str = ""
    pid: int = 0
    started_at: str = ""
    uptime_s: float = 0.0


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret.

    Attributes:
        id: Its id.
        name: What people call it.
        scopes: What its holder may do: `infer`, `deploy` (and infer), `admin` (and both).
        created_at: In RFC 3339.
        expires_at: Likewise; None if it does not expire.
        revoked_at: Likewise; None if it was not revoked.
        state: `valid`, `expired` or `revoked`; empty from a gateway that does not say.
        rate: How many requests it may send, such as `10/s`; None for any number.
        concurrency: How many of them may run at once; None for any number.
        priority: The highest that its requests may have: `low`, `normal` or `high`.
        share: What is its own of an overloaded gateway, beside 1 of another key.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    state: str = ""
    rate: str | None = None
    concurrency: int | None = None
    priority: str = "high"
    share: int = 1


class NewKey(KeyInfo, frozen=True, kw_only=True):
    """An API key that was made just now; `key` is its text, which the mesh cannot tell again."""

    key: str

    def __repr__(self) -> str:
        return f"<NewKey {self.name} ({self.id}), scopes {', '.join(self.scopes)}>"


class InviteInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An invite: the line that lets another device join. Who has it can join, so it is not shown.

    Attributes:
        invite: The line.
        expires_at: Until when it may be used, in RFC 3339.
        addresses: Where it says that the mesh is, each `HOST:PORT`; a device that reaches none of
            them cannot use it.
        invite_id: Names it in `meshnode trust show`; no secret.
        role: What whoever uses it will be.
        uses: How many devices may join with it; 0 for any number.
        region: Where they are unless they say otherwise; empty for where they say.
    """

    invite: str
    expires_at: str
    addresses: tuple[str, ...] = ()
    invite_id: str = ""
    role: str = ""
    uses: int = 0
    region: str = ""

    def __repr__(self) -> str:
        return f"<InviteInfo until {self.expires_at}>"


class DeployProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a deployment is.

    Attributes:
        stage: `fetching` what a URL names, `uploading` its files, `waiting` for its replicas, or `ready`.
        name: The model's public name; empty while it is uploaded under none.
        sent_bytes: Bytes of files that have arrived: here while fetching, at the gateway while uploading, at
            the nodes that will serve it while waiting.
        total_bytes: Bytes of all files.
        ready: Replicas that serve the deployed versions.
        wanted: How many shall.
        text: What is going on, for a person.
    """

    stage: Literal["fetching", "uploading", "waiting", "ready"]
    name: str = ""
    sent_bytes: int = 0
    total_bytes: int = 0
    ready: int = 0
    wanted: int = 0
    text: str = ""


def read_as(kind: type[T], document: object, url: str = "") -> T:
    """Return a JSON document as a typed object.

    Raises:
        ProtocolError: if it is something else.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        source = url or "the gateway"
        raise ProtocolError(
            f"the answer of {source} is not what this version of meshnode expects: {error}"
        ) from None


def reply_as(kind: type[T], reply: Reply) -> T:
    """Return a reply's JSON document as a typed object; raises as `read_as` does."""
    return read_as(kind, reply.document(), reply.url)
