"""The devices that ask this node to be admitted: how often they may, who waits, and whose code was typed.

The limits here are what makes six digits enough (`meshnode.trust.pairing`): each request that is
answered is one try at a code, whoever makes it and whether or not it is followed up.

A device has one request at a time; asking again replaces the former one, for only the holder of its
key can do so. If two that wait have the same code, which by chance happens once in ten thousand full
tables, neither is approved: one of them may have been made to collide.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, NotFound, Throttled
from meshnode.limits import (
    JOIN_REQUEST_BURST,
    JOIN_REQUEST_REFILL_S,
    JOIN_REQUEST_SOURCE_BURST,
    JOIN_REQUEST_SOURCE_REFILL_S,
    JOIN_REQUEST_TTL_S,
    MAX_JOIN_REQUESTS,
    MAX_JOIN_REQUESTS_PER_SOURCE,
    MAX_JOIN_SOURCES,
    MAX_WRONG_CODES,
    WRONG_CODE_REFILL_S,
)
from meshnode.throttle import Throttle, source_of
from meshnode.trust.pairing import shown_code
from meshnode.trust.reasons import Reason, TrustError

if TYPE_CHECKING:
    from meshnode.trust.pairing import Pairing
    from meshnode.types import Address, NodeId

EVENTS: Final = ("asked", "refused", "approved", "expired", "withdrawn")
"""What is counted of requests."""

_EVERYBODY: Final = "everybody"
_WITH_AN_INVITE: Final = "with an invite (`meshnode invite`) a device joins without asking"


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A device that waits for a person to type its code.

    Attributes:
        pairing: Who it is, as it says, and its code.
        remote: Where it asks from.
        asked_wall_s: Wall time at which it began to wait.
        expires_at: Monotonic time at which it has waited long enough.
    """

    pairing: Pairing
    remote: Address
    asked_wall_s: float
    expires_at: float

    @property
    def device(self) -> NodeId:
        """The device's id."""
        return self.pairing.peer


class JoinRequests:
    """A bounded table of requests, and what is counted about them.

    Attributes:
        events: How many were `asked`, and of those `refused`, `approved`, `expired` (nobody came) or
            `withdrawn` (the device went away, or asked anew).
        wrong_codes: Codes that were typed and fit no device.
    """

    def __init__(self) -> None:
        """Begin without requests."""
        self._waiting: dict[NodeId, JoinRequest] = {}
        self._asked = Throttle(
            burst=JOIN_REQUEST_BURST, refill_s=JOIN_REQUEST_REFILL_S, max_sources=1
        )
        self._asked_by = Throttle(
            burst=JOIN_REQUEST_SOURCE_BURST,
            refill_s=JOIN_REQUEST_SOURCE_REFILL_S,
            max_sources=MAX_JOIN_SOURCES,
        )
        self._wrong = Throttle(burst=MAX_WRONG_CODES, refill_s=WRONG_CODE_REFILL_S, max_sources=1)
        self.events: Counter[str] = Counter()
        self.wrong_codes = 0

    def __repr__(self) -> str:
        return f"<JoinRequests {len(self._waiting)} waiting, {dict(self.events)}>"

    @property
    def waiting(self) -> tuple[JoinRequest, ...]:
        """Those that wait, the earliest first."""
        return tuple(self._waiting.values())

    def ask(self, device: NodeId, host: str, now: float) -> None:
        """Count a request; it may be answered if this returns.

        Args:
            device: Who asks; it has proven that.
            host: Where from.
            now: Monotonic time.

        Raises:
            TrustError: `THROTTLED`, if there are too many.
        """
        self.events["asked"] += 1
        self._require_room(device, host)
        source = source_of(host)
        if self._asked.is_spent(
            _EVERYBODY, now
        ):  # what is refused to all is counted against nobody
            wait_s = self._asked.take(_EVERYBODY, now)
        else:
            wait_s = self._asked_by.take(source, now) or self._asked.take(_EVERYBODY, now)
        if wait_s > 0:
            raise TrustError(
                Reason.THROTTLED,
                f"too many devices asked to join lately; ask again in {math.ceil(wait_s)} s, or join "
                f"at once: {_WITH_AN_INVITE}",
            )

    def refused(self) -> None:
        """Count that a request was refused before it waited."""
        self.events["refused"] += 1

    def add(self, pairing: Pairing, remote: Address, now: float, wall_s: float) -> JoinRequest:
        """Let a device wait, from now on and for `JOIN_REQUEST_TTL_S`; a former request of it is gone.

        Raises:
            TrustError: `THROTTLED`, if there is no room any more.
        """
        self._require_room(pairing.peer, remote.host)
        if self._waiting.pop(pairing.peer, None) is not None:
            self.events["withdrawn"] += 1
        request = JoinRequest(pairing, remote, wall_s, now + JOIN_REQUEST_TTL_S)
        self._waiting[pairing.peer] = request
        return request

    def find(self, code: str, now: float, here: str) -> JoinRequest:
        """Return the request whose code was typed.

        Args:
            code: Six digits.
            now: Monotonic time.
            here: This node's name, for the message.

        Raises:
            NotFound: if none that waits has it.
            InvalidRequest: if two have it.
            Throttled: after too many wrong ones, whether or not this one is right.
        """
        if self._wrong.is_spent(_EVERYBODY, now):
            raise self._too_many_wrong(now)
        found = [
            each
            for each in self._waiting.values()
            if each.pairing.code == code and each.expires_at > now
        ]
        if not found:
            self.wrong_codes += 1
            self._wrong.take(_EVERYBODY, now)
            raise NotFound(self._no_such(code, here))
        if len(found) > 1:
            raise InvalidRequest(
                f"two devices that ask here have the code {shown_code(code)}; start both anew, for new "
                "codes"
            )
        return found[0]

    def approved(self, request: JoinRequest) -> None:
        """Take out a request that was approved."""
        self._take_out(request, "approved")

    def expired(self, request: JoinRequest) -> None:
        """Take out a request that nobody approved in its time."""
        self._take_out(request, "expired")

    def withdrawn(self, request: JoinRequest) -> None:
        """Take out a request whose device went away."""
        self._take_out(request, "withdrawn")

    def _take_out(self, request: JoinRequest, event: str) -> None:
        if self._waiting.get(request.device) is request:
            del self._waiting[request.device]
            self.events[event] += 1

    def _require_room(self, device: NodeId, host: str) -> None:
        source = source_of(host)
        others = [each for each in self._waiting.values() if each.device != device]
        same = sum(source_of(each.remote.host) == source for each in others)
        if len(others) >= MAX_JOIN_REQUESTS or same >= MAX_JOIN_REQUESTS_PER_SOURCE:
            raise TrustError(
                Reason.THROTTLED,
                "too many devices wait here to be approved; ask again when some are, or join at once: "
                f"{_WITH_AN_INVITE}",
            )

    def _too_many_wrong(self, now: float) -> Throttled:
        wait_s = math.ceil(self._wrong.take(_EVERYBODY, now))
        return Throttled(
            f"too many codes were typed that no device here has; wait {wait_s} s, then type exactly what "
            "the device shows",
            wait_s,
        )

    def _no_such(self, code: str, here: str) -> str:
        if not self._waiting:
            return (
                "no device asks this node to join at the moment: run `meshnode join` on the new device, "
                "and type the code that it shows on the node that it names"
            )
        return (
            f"no device that asks here has the code {shown_code(code)}: compare the digits, and that the "
            f"device names this node ({here}); if both are right, somebody may stand between the two: "
            "approve nothing, and join over another network or with an invite"
        )
