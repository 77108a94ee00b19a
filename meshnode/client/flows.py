"""What both clients can do besides inference and deployment: each as a flow of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from meshnode.client.calls import (
    Call,
    Flow,
    Message,
    StreamFlow,
    ask,
    get_document,
    json_message,
    mesh_model_path,
    names_of,
    post_document,
    put_document,
    quoted_name,
)
from meshnode.client.event_stream import MEDIA_TYPE
from meshnode.client.results import (
    DeploymentInfo,
    DrainInfo,
    InviteInfo,
    KeyInfo,
    MeshEvent,
    ModelInfo,
    NewKey,
    NodeInfo,
    NodeStatus,
    read_as,
)
from meshnode.client.routing_results import Explanation
from meshnode.client.streaming import follow
from meshnode.client.trust_results import Approval, Eviction, JoinRequest, NodeRole, TrustInfo
from meshnode.errors import NoReplica

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.client.calls import Reply
    from meshnode.client.event_stream import ServerEvent

KEYS_PATH = "/mesh/v1/keys"
DEPLOYMENTS_PATH = "/mesh/v1/deployments"
JOIN_REQUESTS_PATH = "/mesh/v1/join-requests"


def models() -> Flow[list[ModelInfo]]:
    """List the mesh's models."""
    return read_as(list[ModelInfo], (yield from get_document("/mesh/v1/models")))


def model(name: str) -> Flow[ModelInfo]:
    """Describe one model."""
    return read_as(ModelInfo, (yield from get_document(mesh_model_path(name))))


def nodes() -> Flow[list[NodeInfo]]:
    """List the mesh's nodes."""
    return read_as(list[NodeInfo], (yield from get_document("/mesh/v1/nodes")))


def status() -> Flow[NodeStatus]:
    """Describe the node that answers."""
    return read_as(NodeStatus, (yield from get_document("/mesh/v1/status")))


def ready() -> Flow[bool]:
    """Say whether some gateway is ready."""
    try:
        yield from ask(Call("GET", "/readyz", max_tries=1))
    except NoReplica:  # 503: it answers, and is not
        return False
    return True


def deployments() -> Flow[list[DeploymentInfo]]:
    """List what is deployed."""
    return read_as(list[DeploymentInfo], (yield from get_document(DEPLOYMENTS_PATH)))


def events(kinds: Sequence[str]) -> StreamFlow[MeshEvent]:
    """Emit what happens in the mesh."""
    named = names_of("kinds", kinds)
    query = f"?{urlencode({'kinds': ','.join(named)})}" if named else ""

    def read(event: ServerEvent, _head: Reply) -> MeshEvent:
        told = event.document()
        said = {name: told.pop(name, "") for name in ("id", "time")}
        told.pop("kind", None)
        return read_as(MeshEvent, {"kind": event.kind, **said, "fields": told})

    def message(_remaining_s: float) -> Message:
        return Message({"Accept": MEDIA_TYPE})

    # Another gateway goes on as well: it has learnt of the same, and tells a gap first.
    yield from follow(Call("GET", f"/mesh/v1/events{query}", message), read, anywhere=True)


def create_key(
    name: str,
    scopes: Sequence[str],
    ttl_s: int | None,
    rate: str | None = None,
    concurrency: int | None = None,
    priority: str | None = None,
    share: int | None = None,
) -> Flow[NewKey]:
    """Make an API key."""
    limits = {"rate": rate, "concurrency": concurrency, "priority": priority, "share": share}
    request = {
        "name": name,
        "scopes": names_of("scopes", scopes),
        "ttl_s": ttl_s,
        **{field: value for field, value in limits.items() if value is not None},
    }
    return read_as(NewKey, (yield from post_document(KEYS_PATH, request)))


def keys() -> Flow[list[KeyInfo]]:
    """List the API keys."""
    return read_as(list[KeyInfo], (yield from get_document(KEYS_PATH)))


def limit_key(
    name_or_id: str,
    rate: str | None,
    concurrency: int | None,
    priority: str | None = None,
    share: int | None = None,
) -> Flow[KeyInfo]:
    """Replace the limits of an API key."""
    limits = {"rate": rate, "concurrency": concurrency, "priority": priority, "share": share}
    told = {field: value for field, value in limits.items() if value is not None}
    path = f"{KEYS_PATH}/{quoted_name(name_or_id)}"
    return read_as(KeyInfo, (yield from put_document(path, told)))


def revoke_key(name_or_id: str) -> Flow[KeyInfo]:
    """Revoke an API key; a second time changes nothing."""
    call = Call("DELETE", f"{KEYS_PATH}/{quoted_name(name_or_id)}")
    return read_as(KeyInfo, (yield from ask(call)).document())


def invite(ttl_s: int, role: str, uses: int, region: str) -> Flow[InviteInfo]:
    """Make an invite."""
    wish = {"ttl_s": ttl_s, "role": role, "uses": uses, "region": region}
    return read_as(InviteInfo, (yield from post_document("/mesh/v1/invites", wish)))


def trust() -> Flow[TrustInfo]:
    """Tell who belongs to the mesh."""
    return read_as(TrustInfo, (yield from get_document("/mesh/v1/trust")))


def evict(node: str, reason: str, with_invited: bool) -> Flow[Eviction]:
    """Evict a node; a second time changes nothing."""
    wish = {"node": node, "reason": reason, "with_invited": with_invited}
    call = Call("POST", "/mesh/v1/evictions", json_message(wish))
    return read_as(Eviction, (yield from ask(call)).document())


def set_role(node: str, role: str) -> Flow[NodeRole]:
    """Give a node a role; a second time changes nothing."""
    path = f"/mesh/v1/roles/{quoted_name(node)}"
    return read_as(NodeRole, (yield from put_document(path, {"role": role})))


def explain(
    name: str,
    *,
    version: int | None,
    rows: int,
    size_bytes: int,
    tokens: int,
    region: str,
    labels: Mapping[str, str] | None,
    session: str,
) -> Flow[Explanation]:
    """Tell where a request would go, and why; `MeshClient.explain` says the rest."""
    asked = {"version": version, "rows": rows, "bytes": size_bytes, "tokens": tokens}
    hints = {
        "Mesh-Region": region,
        "Mesh-Labels": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        "Mesh-Session": session,
    }
    headers = {header: text for header, text in hints.items() if text}
    query = urlencode({key: value for key, value in asked.items() if value is not None})
    path = f"{mesh_model_path(name)}/explain" + (f"?{query}" if query else "")
    found = yield from ask(Call("GET", path, lambda _remaining_s: Message(headers)))
    return read_as(Explanation, found.document())


def decisions() -> Flow[list[dict[str, Any]]]:
    """Return the last decisions of the gateway that answers."""
    return read_as(list[dict[str, Any]], (yield from get_document("/mesh/v1/decisions")))


def drain_state(node: str) -> Flow[DrainInfo]:
    """Tell how far a node is emptied."""
    return read_as(DrainInfo, (yield from get_document(_drain_path(node))))


def drain(node: str, force: bool, wait_s: int) -> Flow[DrainInfo]:
    """Have a node emptied; a second time changes only what differs."""
    wish = {"force": force, "wait_s": wait_s}
    return read_as(DrainInfo, (yield from put_document(_drain_path(node), wish)))


def undrain(node: str) -> Flow[DrainInfo]:
    """Take a drain back; a second time changes nothing."""
    call = Call("DELETE", _drain_path(node))
    return read_as(DrainInfo, (yield from ask(call)).document())


def _drain_path(node: str) -> str:
    return f"/mesh/v1/nodes/{quoted_name(node)}/drain"


def join_requests() -> Flow[list[JoinRequest]]:
    """List the devices that wait."""
    return read_as(list[JoinRequest], (yield from get_document(JOIN_REQUESTS_PATH)))


def approve(code: str, role: str, region: str) -> Flow[Approval]:
    """Admit the device that shows a code; never carried out twice."""
    wish = {"code": code, "role": role, "region": region}
    return read_as(Approval, (yield from post_document(f"{JOIN_REQUESTS_PATH}/approve", wish)))
