"""The devices that ask this node to be admitted without an invite, from their knock to the approval.

How often they may ask and how long they wait is `meshnode.trust.join_requests`; why a code of six digits
is enough is `meshnode.trust.pairing`. Here their connections are kept, reminded and closed. Nothing is
admitted but by `approve`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import InvalidRequest, LinkLost, MeshError
from meshnode.limits import JOIN_REMINDER_S, JOIN_REQUEST_TTL_S
from meshnode.net.log_budget import LogBudget
from meshnode.trust.invite import Invite
from meshnode.trust.join_requests import JoinRequests
from meshnode.trust.pairing import NONCE_BYTES, typed_code
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import rfc3339
from meshnode.types import Address, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.trust import Trust
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.trust.join_requests import JoinRequest
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_INVITE_TTL_S: Final = 60
"""How long the invite is valid through which a device is admitted: it is used at once."""

_NODES_NAMED: Final = 3
"""Nodes that may admit, named to a device that has asked one that may not."""


class JoinDesk:
    """Where devices ask to join, on one node.

    Attributes:
        requests: Who waits, and what was counted.
    """

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        """Refuse everybody until `open`."""
        self._credentials = credentials
        self._clock = clock
        self._log = LogBudget(log, clock)
        self._waiting: dict[Connection, JoinRequest] = {}
        self._timers: dict[Connection, asyncio.TimerHandle] = {}
        self._node: Node | None = None
        self._trust: Trust | None = None
        self.requests = JoinRequests()

    def __repr__(self) -> str:
        return f"<JoinDesk {self.requests!r}>"

    def open(self, node: Node, trust: Trust) -> None:
        """Take requests from now on: this node is a member."""
        self._node, self._trust = node, trust

    # For people

    def view(self) -> list[dict[str, Any]]:
        """Describe the devices that wait, the earliest first; their codes are on the devices only."""
        return [_view(request) for request in self.requests.waiting]

    def approve(self, text: str, role: Role, region: str, caller: Caller) -> dict[str, Any]:
        """Admit the device that shows this code.

        Args:
            text: The code as it was typed.
            role: What the device will be.
            region: Where it is, unless it says otherwise; may be empty.
            caller: Who approves.

        Raises:
            InvalidRequest: if that is no code, or not the code of one device alone.
            NotFound: if no device has it.
            Throttled: after too many wrong ones.
            Forbidden: if this node, or the one that made the caller's key, may not admit to that role.
            LinkLost: if the device has gone meanwhile.
            TrustError: if the mesh has no room, or this node's own admission leaves none.
        """
        code = typed_code(text)
        if code is None:
            raise InvalidRequest(
                "a code has six digits; type it exactly as the new device shows it"
            )
        now, wall_s = self._clock.now(), self._clock.wall_s()
        assert self._trust is not None
        self._trust.require_inviting(role, caller)
        try:
            request = self.requests.find(code, now, self._own_name)
        except MeshError as error:
            self._log.write(logging.WARNING, "codes", f"a code was typed by {caller}: {error}")
            raise
        connection = next(each for each, known in self._waiting.items() if known is request)
        made = self._trust.create_invite(_INVITE_TTL_S, role, 1, region, caller)
        invite = Invite.parse(made["invite"])
        del self._waiting[connection]  # it is no longer one that goes away
        try:
            connection.approve(self._credentials.member, invite, wall_s)
        except TrustError:
            self._waiting[connection] = request
            raise
        except LinkLost:
            self.requests.withdrawn(request)
            raise
        finally:
            if connection not in self._waiting:
                self._stop_timer(connection)
        self.requests.approved(request)
        log.info(
            "device %s (%s) was admitted as %s by %s",
            request.pairing.name, request.device, role, caller,
        )  # fmt: skip
        return {
            **_view(request),
            "role": str(role),
            "region": region,
            "invite_id": made["invite_id"],
        }

    # PairingUser: for the links

    def pairing_asked(self, device: NodeId, remote: Address) -> bytes:
        """Let a device go on to its code, or refuse it with the reason."""
        try:
            self._require_admitting()
            self.requests.ask(device, remote.host, self._clock.now())
        except TrustError:
            self.requests.refused()
            raise
        return self._credentials.random_bytes(NONCE_BYTES)

    def pairing_begun(self, connection: Connection) -> None:
        """Let a device wait whose code both sides know."""
        pairing = connection.pairing
        assert pairing is not None
        former = [each for each, known in self._waiting.items() if known.device == pairing.peer]
        now = self._clock.now()
        try:
            request = self.requests.add(pairing, connection.remote, now, self._clock.wall_s())
        except TrustError:
            self.requests.refused()
            raise
        self._waiting[connection] = request
        for each in former:
            each.turn_away(TrustError(Reason.UNAPPROVED, "the device has asked anew"))
        self._timers[connection] = self._after(JOIN_REMINDER_S, connection)
        self._log.write(
            logging.INFO,
            "devices that ask",
            f"device {pairing.name} ({pairing.peer}) at {connection.remote.host} asks to join: if it is "
            "yours, run `meshnode approve CODE` here, with the code that it shows",
        )

    def pairing_ended(self, connection: Connection) -> None:
        """Forget a device that waited and whose connection is gone, or is a link now."""
        request = self._waiting.pop(connection, None)
        if request is None:
            return
        self._stop_timer(connection)
        self.requests.withdrawn(request)
        self._log.write(
            logging.INFO,
            "devices that gave up",
            f"device {request.pairing.name} ({request.device}) asks no longer to join",
        )

    # Inside

    @property
    def _own_name(self) -> str:
        assert self._node is not None
        return self._node.membership.record.name

    def _require_admitting(self) -> None:
        """Pass if this node may admit; a plain member names nodes that may."""
        if self._node is None:
            raise TrustError(
                Reason.UNAPPROVED, "this node is still starting; ask again in a moment"
            )
        role = self._credentials.roster.role(self._credentials.node_id)
        if role is not None and role.allows(Role.OPERATOR):
            return
        others = ", ".join(self._admitting_nodes()) or "none is reachable at the moment"
        raise TrustError(
            Reason.ROLE,
            f"this node is a plain member, which admits nobody; ask the node of an operator: {others}",
        )

    def _admitting_nodes(self) -> Iterator[str]:
        assert self._node is not None
        role_of = self._credentials.roster.role
        count = 0
        for member in self._node.membership.members.values():
            role = role_of(member.node_id)
            if not member.live or role is None or not role.allows(Role.OPERATOR):
                continue
            if count == _NODES_NAMED:
                return
            count += 1
            where = member.record.addresses[:1]
            yield f"{member.record.name} ({Address(*where[0])})" if where else member.record.name

    def _after(self, delay_s: float, connection: Connection) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(delay_s, self._remind, connection)

    def _remind(self, connection: Connection) -> None:
        request = self._waiting.get(connection)
        if request is None:
            return
        left_s = request.expires_at - self._clock.now()
        if left_s > 0:
            connection.remind(left_s)
            self._timers[connection] = self._after(min(left_s, JOIN_REMINDER_S), connection)
            return
        del self._waiting[connection]
        self._stop_timer(connection)
        self.requests.expired(request)
        connection.turn_away(
            TrustError(
                Reason.UNAPPROVED,
                f"nobody typed the code on {self._own_name} within {JOIN_REQUEST_TTL_S / 60:.0f} minutes; "
                "ask again for another one",
            )
        )

    def _stop_timer(self, connection: Connection) -> None:
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()


def _view(request: JoinRequest) -> dict[str, Any]:
    waits_s = JOIN_REQUEST_TTL_S
    return {
        "node": request.device,
        "name": request.pairing.name,
        "address": request.remote.host,
        "asked_at": rfc3339(request.asked_wall_s),
        "expires_at": rfc3339(request.asked_wall_s + waits_s),
    }
