"""What an API key needs the scope `admin` for, as coroutines; `administration` has the words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from meshnode.client import flows
from meshnode.client.administration import DEFAULT_INVITE_TTL_S
from meshnode.client.async_calls import AsyncCalls
from meshnode.limits import DRAIN_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.client.results import DrainInfo, InviteInfo, KeyInfo, NewKey
    from meshnode.client.routing_results import Explanation
    from meshnode.client.trust_results import Approval, Eviction, JoinRequest, NodeRole, TrustInfo


class AsyncAdministration(AsyncCalls):
    """Keys, invites and members, of `AsyncMeshClient`."""

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[Literal["infer", "deploy", "admin"]] = ("infer",),
        ttl_s: int | None = None,
        rate: str | None = None,
        concurrency: int | None = None,
        priority: Literal["low", "normal", "high"] | None = None,
        share: int | None = None,
        timeout_s: float | None = None,
    ) -> NewKey:
        """Make an API key; arguments and errors are those of `MeshClient.create_key`."""
        return await self._ask(
            flows.create_key(name, scopes, ttl_s, rate, concurrency, priority, share), timeout_s
        )

    async def keys(self, *, timeout_s: float | None = None) -> list[KeyInfo]:
        """Return the mesh's API keys, without their secrets."""
        return await self._ask(flows.keys(), timeout_s)

    async def limit_key(
        self,
        name_or_id: str,
        *,
        rate: str | None = None,
        concurrency: int | None = None,
        priority: Literal["low", "normal", "high"] | None = None,
        share: int | None = None,
        timeout_s: float | None = None,
    ) -> KeyInfo:
        """Replace the limits of an API key; arguments and errors are those of `MeshClient.limit_key`."""
        return await self._ask(
            flows.limit_key(name_or_id, rate, concurrency, priority, share), timeout_s
        )

    async def revoke_key(self, name_or_id: str, *, timeout_s: float | None = None) -> KeyInfo:
        """Revoke an API key everywhere, for ever; raises as `MeshClient.revoke_key` does."""
        return await self._ask(flows.revoke_key(name_or_id), timeout_s)

    async def invite(
        self,
        *,
        ttl_s: int = DEFAULT_INVITE_TTL_S,
        role: Literal["member", "operator", "admin"] = "operator",
        uses: int = 0,
        region: str = "",
        timeout_s: float | None = None,
    ) -> InviteInfo:
        """Make an invite; arguments are those of `MeshClient.invite`."""
        return await self._ask(flows.invite(ttl_s, role, uses, region), timeout_s)

    async def join_requests(self, *, timeout_s: float | None = None) -> list[JoinRequest]:
        """Return the devices that ask to be admitted, as `MeshClient.join_requests` does."""
        return await self._ask(flows.join_requests(), timeout_s)

    async def approve(
        self,
        code: str,
        *,
        role: Literal["member", "operator", "admin"] = "operator",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Approval:
        """Admit the device that shows this code; arguments and errors are those of `MeshClient.approve`."""
        return await self._ask(flows.approve(code, role, region), timeout_s)

    async def trust(self, *, timeout_s: float | None = None) -> TrustInfo:
        """Return who belongs to the mesh, by whose word, and who does not any more."""
        return await self._ask(flows.trust(), timeout_s)

    async def evict(
        self,
        node: str,
        *,
        reason: str = "",
        with_invited: bool = False,
        timeout_s: float | None = None,
    ) -> Eviction:
        """Take a node out of the mesh for ever; arguments and errors are those of `MeshClient.evict`."""
        return await self._ask(flows.evict(node, reason, with_invited), timeout_s)

    async def set_role(
        self,
        node: str,
        role: Literal["member", "operator", "admin"],
        *,
        timeout_s: float | None = None,
    ) -> NodeRole:
        """Give a node another role; raises as `MeshClient.set_role` does."""
        return await self._ask(flows.set_role(node, role), timeout_s)

    async def explain(
        self,
        model: str,
        *,
        version: int | None = None,
        rows: int = 1,
        size_bytes: int = 0,
        tokens: int = 0,
        region: str = "",
        labels: Mapping[str, str] | None = None,
        session: str = "",
        timeout_s: float | None = None,
    ) -> Explanation:
        """Tell where a request would go; arguments and errors are those of `MeshClient.explain`."""
        flow = flows.explain(
            model,
            version=version,
            rows=rows,
            size_bytes=size_bytes,
            tokens=tokens,
            region=region,
            labels=labels,
            session=session,
        )
        return await self._ask(flow, timeout_s)

    async def decisions(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the last decisions; as `MeshClient.decisions`."""
        return await self._ask(flows.decisions(), timeout_s)

    async def drain(
        self,
        node: str,
        *,
        force: bool = False,
        wait_s: int = DRAIN_WAIT_S,
        timeout_s: float | None = None,
    ) -> DrainInfo:
        """Have a node emptied; arguments and errors are those of `MeshClient.drain`."""
        return await self._ask(flows.drain(node, force, wait_s), timeout_s)

    async def drain_state(self, node: str, *, timeout_s: float | None = None) -> DrainInfo:
        """Return how far a node is emptied; raises as `MeshClient.drain_state` does."""
        return await self._ask(flows.drain_state(node), timeout_s)

    async def undrain(self, node: str, *, timeout_s: float | None = None) -> DrainInfo:
        """Take a drain back; raises as `MeshClient.undrain` does."""
        return await self._ask(flows.undrain(node), timeout_s)
