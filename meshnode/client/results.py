"""What the client's calls return: typed objects, checked as they are read.

Fields may be added in later versions; what a gateway sends beyond these is ignored here, and what an
older gateway does not send has its default. `MeshClient.get` returns the documents as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from meshnode.errors import ProtocolError

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


class ReplicaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model on one node.

    Attributes:
        node: The node's name.
        node_id: Its id.
        version: The version.
        state: `fetching`, `loading`, `ready`, `failed`, `unloading`; a later version may have more.
        reason: Why it failed, or is paused; else empty.
        current: Whether it has the files that the deployment names; true without a deployment.
    """

    node: str
    node_id: str = ""
    version: int
    state: str
    reason: str = ""
    current: bool = True


class Ineligible(msgspec.Struct, frozen=True, kw_only=True):
    """A node that cannot take a replica, and why."""

    node: str
    node_id: str = ""
    reason: str = ""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the mesh.

    Attributes:
        name: Its public name.
        versions: The versions that are deployed or served.
        replicas: Where they are.
        wanted: Replicas that the deployment asks for, per version; None if it is not deployed
            but served from a node's own folder.
        deployed: The versions that the deployment asks for; empty if there is none.
        revision: Which deployment that is; empty if there is none.
        placed: Names of the nodes that are to serve it.
        missing: How many replicas no node can take.
        ineligible: Why the nodes that cannot, cannot.
    """

    name: str
    versions: tuple[int, ...] = ()
    replicas: tuple[ReplicaInfo, ...] = ()
    wanted: int | None = None
    deployed: tuple[int, ...] = ()
    revision: str = ""
    placed: tuple[str, ...] = ()
    missing: int = 0
    ineligible: tuple[Ineligible, ...] = ()

    @property
    def ready_on(self) -> tuple[str, ...]:
        """Names of the nodes on which some version is ready."""
        ready = [replica.node for replica in self.replicas if replica.state == "ready"]
        return tuple(dict.fromkeys(ready))


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
        rtt_ms: Round trip from the node that answered, in milliseconds, or None.
        rtt_estimated: Whether that is not measured, but the distance of network coordinates.
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
    rtt_ms: float | None = None
    rtt_estimated: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    load: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def machine(self) -> Capabilities:
        """Its capabilities, typed: processors, memory, accelerators, runtimes, measured speed."""
        from meshnode.capabilities import read

        return read(self.capabilities)


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The node that answered.

    Attributes:
        id: Its id.
        name: Its name.
        region: Where it says it is.
        mesh: The mesh's fingerprint.
        role: `member`, `operator` or `admin`.
        state: `running`, `paused` or `leaving`.
        paused: Why it serves nothing at present, or None.
        version: Version of meshnode.
        members: Nodes of the mesh that live.
        http: URL of its gateway as the node itself reaches it, or None.
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
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    state: str = ""


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
        stage: `uploading` its files, `waiting` for its replicas, or `ready`.
        name: The model's public name; empty while it is uploaded under none.
        sent_bytes: Bytes of files that the gateway has; 0 where nothing is uploaded.
        total_bytes: Bytes of all files.
        ready: Replicas that serve the deployed versions.
        wanted: How many shall.
        text: What is going on, for a person.
    """

    stage: Literal["uploading", "waiting", "ready"]
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
