"""The first phase of a connection: TLS stands, and the hello runs over it.

Most hellos take two round trips and are bounded by a few seconds. One in which a device asks to join
waits for a person in between: at the device for as long as the member says that it lives, at the member
until its owner approves the request or gives it up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.errors import HandshakeError, LinkLost, MeshError
from meshnode.limits import JOIN_SILENCE_S
from meshnode.trust.hello import AcceptorHello, DiallerHello, HelloResult
from meshnode.trust.pairing_hello import ApprovingHello, AskingHello
from meshnode.trust.reasons import Reason, TrustError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.net.connection import Connection
    from meshnode.net.link_owner import LinkOwner
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.invite import Invite
    from meshnode.trust.pairing import Pairing
    from meshnode.types import Buffer

Hello = DiallerHello | AcceptorHello


class HelloPhase:
    """Feeds a hello, bounds its time, and tells the owner when a device asks or waits."""

    def __init__(
        self,
        connection: Connection,
        owner: LinkOwner,
        hello: Hello,
        transport: asyncio.Transport,
        *,
        due: float,
        give_up: Callable[[MeshError], None],
    ) -> None:
        """Begin the hello.

        Args:
            connection: Whose first phase this is.
            owner: Told of requests to join.
            hello: Not started yet.
            transport: Where it speaks.
            due: Time of the loop by which it must have succeeded, unless it waits for a person.
            give_up: Called with the reason when time is up.
        """
        self._connection = connection
        self._owner = owner
        self._hello = hello
        self._transport = transport
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(due, self._too_late)
        self._waits = False
        self._held: bytes | None = None
        self._reminders = 0
        self._write(hello.start())

    def __repr__(self) -> str:
        return f"<HelloPhase {self._hello!r}>"

    @property
    def pairing(self) -> Pairing | None:
        """The code and whom it is with, while a device waits to be approved."""
        hello = self._hello
        return hello.pairing if isinstance(hello, AskingHello | ApprovingHello) else None

    @property
    def waits_s(self) -> int:
        """At a device: how long the member said last that it will wait yet, in seconds."""
        return self._hello.waits_s if isinstance(self._hello, AskingHello) else 0

    def receive(self, data: Buffer) -> HelloResult | None:
        """Take bytes of the peer; return what the hello established, once it has.

        Raises:
            TrustError: if it failed; the peer has been told why.
        """
        if self._held is not None:
            raise TrustError(Reason.PROTOCOL, "the peer did not wait for its welcome")
        output = self._hello.receive(data)
        result = self._hello.result
        if result is not None and self._owner.must_wait(self._connection, result):
            self._held = output  # the welcome
            return None
        self._write(output)
        if self._hello.failed is not None:
            raise self._hello.failed
        if isinstance(self._hello, AskingHello):
            self._follow_asking(self._hello)
        elif isinstance(self._hello, ApprovingHello):
            self._follow_asked(self._hello)
        return self._hello.result

    def welcome(self) -> HelloResult:
        """Send the welcome that was held back."""
        assert self._held is not None
        assert self._hello.result is not None
        self._write(self._held)
        return self._hello.result

    def remind(self, expires_in_s: float) -> None:
        """Tell the device that waits that it is waited for still."""
        self._write(self._approving.remind(expires_in_s))

    def approve(self, member: VerifiedMember, invite: Invite, now_wall_s: float) -> HelloResult:
        """Admit the device that waits.

        Raises:
            TrustError: if this node may not admit it; it waits still.
        """
        self._write(self._approving.approve(member, invite, now_wall_s))
        assert self._hello.result is not None
        return self._hello.result

    def refuse(self, error: TrustError) -> None:
        """Tell the peer whose welcome was held back, or the device that waits, that it is not taken."""
        if self._held is not None:
            self._write(self._hello.take_back(error))
        else:
            self._write(self._approving.refuse(error))

    def end(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _approving(self) -> ApprovingHello:
        assert isinstance(self._hello, ApprovingHello)
        return self._hello

    def _follow_asking(self, hello: AskingHello) -> None:
        if hello.reminders == self._reminders or hello.result is not None:
            return
        self._reminders = hello.reminders
        self._waits = True
        self.end()
        self._timer = self._loop.call_later(JOIN_SILENCE_S, self._too_late)
        self._owner.pairing_waits(self._connection)

    def _follow_asked(self, hello: ApprovingHello) -> None:
        device = hello.asked_by
        try:
            if device is not None:
                self._write(hello.take_request(self._owner.pairing_asked(self._connection, device)))
            elif hello.pairing is not None and not self._waits:
                self._waits = True
                self.end()
                self._owner.pairing_waits(self._connection)
        except TrustError as error:
            self.refuse(error)
            raise

    def _too_late(self) -> None:
        self._timer = None
        where = self._connection.remote
        if self._waits:
            self._give_up(
                LinkLost(f"{where} has been silent for too long; it, or the network, may be gone")
            )
        else:
            self._give_up(HandshakeError(f"{where} did not finish its hello in time"))

    def _write(self, data: bytes) -> None:
        if data:
            self._transport.write(data)
