"""What both clients can do besides inference and deployment: each as a flow of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.client.calls import (
    Call,
    Flow,
    ask,
    delete_document,
    deployment_path,
    get_document,
    json_message,
    mesh_model_path,
    names_of,
    post_document,
    put_document,
    quoted_name,
)
from meshnode.client.results import (
    InviteInfo,
    KeyInfo,
    ModelInfo,
    NewKey,
    NodeInfo,
    NodeStatus,
    read_as,
)
from meshnode.client.trust_results import Approval, Eviction, JoinRequest, NodeRole, TrustInfo
from meshnode.errors import NoReplica

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS_PATH = "/mesh/v1/keys"
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


def undeploy(name: str) -> Flow[None]:
    """Withdraw a deployment."""
    yield from delete_document(deployment_path(name))


def create_key(name: str, scopes: Sequence[str], ttl_s: int | None) -> Flow[NewKey]:
    """Make an API key."""
    request = {"name": name, "scopes": names_of("scopes", scopes), "ttl_s": ttl_s}
    return read_as(NewKey, (yield from post_document(KEYS_PATH, request)))


def keys() -> Flow[list[KeyInfo]]:
    """List the API keys."""
    return read_as(list[KeyInfo], (yield from get_document(KEYS_PATH)))


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


def join_requests() -> Flow[list[JoinRequest]]:
    """List the devices that wait."""
    return read_as(list[JoinRequest], (yield from get_document(JOIN_REQUESTS_PATH)))


def approve(code: str, role: str, region: str) -> Flow[Approval]:
    """Admit the device that shows a code; never carried out twice."""
    wish = {"code": code, "role": role, "region": region}
    return read_as(Approval, (yield from post_document(f"{JOIN_REQUESTS_PATH}/approve", wish)))
