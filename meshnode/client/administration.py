"""What an API key needs the scope `admin` for: keys, invites, members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from meshnode.client import flows
from meshnode.client.blocking_calls import BlockingCalls
from meshnode.limits import DRAIN_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.client.results import DrainInfo, InviteInfo, KeyInfo, NewKey
    from meshnode.client.routing_results import Explanation
    from meshnode.client.trust_results import Approval, Eviction, JoinRequest, NodeRole, TrustInfo

DEFAULT_INVITE_TTL_S: Final = 24 * 3600
"""Long enough to walk to the next device, short enough to forget."""


class Administration(BlockingCalls):
    """Keys, invites and members, of `MeshClient`."""

    def create_key(
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
        """Make an API key. Its text, `key`, is told this once: the mesh keeps only a hash.

        Args:
            name: What people will call it.
            scopes: What its holder may do; `deploy` includes `infer`, `admin` both.
            ttl_s: Seconds until it expires; None for never.
            rate: How many requests it may send at each gateway, such as `10/s` or `600/min`; None for any number.
            concurrency: How many of them may run at once; None for any number.
            priority: The highest that its requests may have; None for `high`. Under overload low ones are refused first.
            share: What is its own of an overloaded gateway, beside 1 of another key; None for 1.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if the name is taken or breaks its rule.
        """
        return self._ask(
            flows.create_key(name, scopes, ttl_s, rate, concurrency, priority, share), timeout_s
        )

    def keys(self, *, timeout_s: float | None = None) -> list[KeyInfo]:
        """Return the mesh's API keys, without their secrets."""
        return self._ask(flows.keys(), timeout_s)

    def limit_key(
        self,
        name_or_id: str,
        *,
        rate: str | None = None,
        concurrency: int | None = None,
        priority: Literal["low", "normal", "high"] | None = None,
        share: int | None = None,
        timeout_s: float | None = None,
    ) -> KeyInfo:
        """Replace the limits of an API key; what is left out has none afterwards.

        Args:
            name_or_id: Which.
            rate: As for `create_key`.
            concurrency: As for `create_key`.
            priority: As for `create_key`.
            share: As for `create_key`.
            timeout_s: Seconds for the call.

        Raises:
            NotFound: if no key has this name or id.
        """
        return self._ask(flows.limit_key(name_or_id, rate, concurrency, priority, share), timeout_s)

    def revoke_key(self, name_or_id: str, *, timeout_s: float | None = None) -> KeyInfo:
        """Revoke an API key everywhere, for ever.

        Raises:
            NotFound: if no key has this name or id.
        """
        return self._ask(flows.revoke_key(name_or_id), timeout_s)

    def invite(
        self,
        *,
        ttl_s: int = DEFAULT_INVITE_TTL_S,
        role: Literal["member", "operator", "admin"] = "operator",
        uses: int = 0,
        region: str = "",
        timeout_s: float | None = None,
    ) -> InviteInfo:
        """Make an invite: the line that lets another device join.

        Args:
            ttl_s: Seconds until it expires.
            role: What whoever uses it will be: a `member` serves, an `operator` also deploys and
                invites, an `admin` also evicts and gives roles.
            uses: How many devices may join with it; 0 for any number.
            region: Where they are unless they say otherwise.
            timeout_s: Seconds for the call.
        """
        return self._ask(flows.invite(ttl_s, role, uses, region), timeout_s)

    def join_requests(self, *, timeout_s: float | None = None) -> list[JoinRequest]:
        """Return the devices that ask the node that answers to be admitted, the earliest first.

        A device waits at the node that it asked, and no other node knows of it: use a client of that
        node's gateway alone.
        """
        return self._ask(flows.join_requests(), timeout_s)

    def approve(
        self,
        code: str,
        *,
        role: Literal["member", "operator", "admin"] = "operator",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Approval:
        """Admit the device that shows this code, on the node that it asked.

        Args:
            code: Its six digits, as they are read on the device itself; spaces do not matter.
            role: What it will be, as for `invite`.
            region: Where it is unless it says otherwise.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if that is no code.
            NotFound: if no device that asks this node shows it.
            Throttled: after too many wrong ones.
        """
        return self._ask(flows.approve(code, role, region), timeout_s)

    def trust(self, *, timeout_s: float | None = None) -> TrustInfo:
        """Return who belongs to the mesh, by whose word, and who does not any more."""
        return self._ask(flows.trust(), timeout_s)

    def evict(
        self,
        node: str,
        *,
        reason: str = "",
        with_invited: bool = False,
        timeout_s: float | None = None,
    ) -> Eviction:
        """Take a node out of the mesh for ever. An API key for it must be made on an admin's node.

        Args:
            node: Its name or id.
            reason: Why, for people.
            with_invited: Evict those that it invited as well, and those that these invited.
            timeout_s: Seconds for the call.

        Raises:
            InvalidRequest: if there is no such node, or it is the one that answers.
        """
        return self._ask(flows.evict(node, reason, with_invited), timeout_s)

    def set_role(
        self,
        node: str,
        role: Literal["member", "operator", "admin"],
        *,
        timeout_s: float | None = None,
    ) -> NodeRole:
        """Give a node another role. An API key for it must be made on an admin's node.

        Raises:
            InvalidRequest: if there is no such node, or it is the last admin.
        """
        return self._ask(flows.set_role(node, role), timeout_s)

    def explain(
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
        """Tell where a request would go at the gateway that answers, and why; this needs no more than `infer`.

        Args:
            model: Public name of the model.
            version: The version that the request insists on.
            rows: Of its first input.
            size_bytes: Of all its inputs.
            tokens: That it may write at most.
            region: As `Mesh-Region` says it: `eu` for a rule, `eu;prefer` for a preference.
            labels: That its node must have.
            session: The word of its session.
            timeout_s: Seconds for the call.

        Raises:
            ModelNotFound: if the mesh has no such model.
        """
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
        return self._ask(flow, timeout_s)

    def decisions(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the last decisions of the gateway that answers, oldest first, as `meshnode explain --replay` reads them."""
        return self._ask(flows.decisions(), timeout_s)

    def drain(
        self,
        node: str,
        *,
        force: bool = False,
        wait_s: int = DRAIN_WAIT_S,
        timeout_s: float | None = None,
    ) -> DrainInfo:
        """Have a node emptied: others take over what it serves, and what it began ends there. Returns at once.

        Args:
            node: Its name or id.
            force: Give up what nobody else can take over, instead of waiting for ever.
            wait_s: For how long sequences, requests and jobs that began there may go on, in seconds.
            timeout_s: Seconds for the call; `drain_state` tells how far it is.

        Raises:
            InvalidRequest: if there is no such node.
        """
        return self._ask(flows.drain(node, force, wait_s), timeout_s)

    def drain_state(self, node: str, *, timeout_s: float | None = None) -> DrainInfo:
        """Return whether a node is to be emptied, and how far it is; this needs no more than `infer`.

        Raises:
            InvalidRequest: if there is no such node.
        """
        return self._ask(flows.drain_state(node), timeout_s)

    def undrain(self, node: str, *, timeout_s: float | None = None) -> DrainInfo:
        """Take a drain back: the node serves again.

        Raises:
            InvalidRequest: if there is no such node.
        """
        return self._ask(flows.undrain(node), timeout_s)
