"""What `meshnode doctor` saw, before it says what that means: the input of `meshnode.diagnosis`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.types import NodeState


class Outcome(StrEnum):
    """How a trial of one address ended."""

    ANSWERED = "answered"
    """A node answered, and the hello would have succeeded."""
    REFUSED = "refused"
    """A node answered, and one of both refused the other; the reason says why."""
    CLOSED = "closed"
    """The device refused the connection: nothing listens at that port, or a firewall rejects."""
    NO_ANSWER = "no_answer"
    """Nothing came back."""
    NO_ROUTE = "no_route"
    """This device's networks do not lead there."""
    BLOCKED_HERE = "blocked_here"
    """This device's own firewall does not let it out."""
    UNKNOWN_NAME = "unknown_name"
    """The host name does not exist."""
    NO_NAME_SERVER = "no_name_server"
    """Names cannot be looked up now."""
    MUTE = "mute"
    """Something took the connection and said nothing."""
    HUNG_UP = "hung_up"
    """Something took the connection and closed it without a word."""
    OTHER_PROTOCOL = "other_protocol"
    """Something else than meshnode answered."""
    NOT_DIALLED = "not_dialled"
    """The address leads to the dialling device itself, or nowhere; it was not tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How one address fared.

    Attributes:
        address: Such as `192.168.1.20:8471`.
        outcome: How it ended.
        reason: Of a refusal: the word of `Reason`.
        says: Of a refusal: its sentence.
        is_near: Whether an interface of this device is in that address's network.
        ahead_s: By how much the clock over there is ahead of ours, if it said what time it is.
        node: The id of the node that answered, which it proved; empty if none did.
    """

    address: str
    outcome: Outcome
    reason: str = ""
    says: str = ""
    is_near: bool = False
    ahead_s: float | None = None
    node: str = ""

    @property
    def port(self) -> str:
        """The port of the address."""
        return self.address.rpartition(":")[2]


@dataclass(frozen=True, slots=True)
class Datagrams:
    """Datagrams of a checkup: how many each side sent, and how many arrived."""

    sent: int
    arrived_there: int
    arrived_here: int


@dataclass(frozen=True, slots=True)
class CheckupSeen:
    """What the other node answered, over the link.

    Attributes:
        ahead_s: By how much its clock is ahead of ours.
        version: Its version of meshnode.
        datagrams: What became of the datagrams.
        reached: How it fared when it dialled the addresses of this node's record.
        seen_at: Where it sees this end of the link.
    """

    ahead_s: float
    version: str
    datagrams: Datagrams
    reached: tuple[Trial, ...] = ()
    seen_at: str = ""


class Multicast(StrEnum):
    """What mDNS brought of a node."""

    HEARD = "heard"
    SILENT = "silent"
    OFF = "off"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class PairSeen:
    """What was seen between this node and another.

    Attributes:
        name: The other node's name.
        version: This node's version of meshnode.
        is_linked: Whether a link stands.
        rtt_s: Its round trip.
        trials: Its addresses, tried from here.
        checkup: What it answered over the link; None without a link.
        no_checkup: Why it did not answer although there is a link; empty if it did.
        mdns: Whether it is heard; None where it shares no network with this node.
        evicted: Why this node takes it for no member of the mesh any more; empty if it is one.
        twins: Whether this key was seen to run twice.
        relay: The node through which the link goes, by name; empty if it is direct.
    """

    name: str
    version: str
    is_linked: bool = False
    rtt_s: float | None = None
    trials: tuple[Trial, ...] = ()
    checkup: CheckupSeen | None = None
    no_checkup: str = ""
    mdns: Multicast | None = None
    evicted: str = ""
    twins: bool = False
    relay: str = ""


@dataclass(frozen=True, slots=True)
class AddressSeen:
    """What was seen at an address that somebody typed.

    Attributes:
        trial: How it fared.
        name: Whose address it is: the node that answered, else the one member that tells others of
            this address; empty if neither is known.
        is_told: Whether a member tells others of this address.
        standing: What this node holds of the node that answered; None if it does not know it.
        has_members: Whether this node runs, and so holds anything of others.
    """

    trial: Trial
    name: str = ""
    is_told: bool = False
    standing: NodeState | None = None
    has_members: bool = True


@dataclass(frozen=True, slots=True)
class SelfSeen:
    """What was seen of this node alone.

    Attributes:
        addresses: Where it tells others that it is.
        trials: The same, dialled from here: the node should answer itself.
        is_only_here: Whether all of them are of use on this machine only.
        mdns: Whether it hears its own announcement; None where it makes none.
        mdns_error: Why mDNS is broken.
        heard: How many other nodes announce themselves.
        twins: Whether its own key was seen to run elsewhere.
    """

    addresses: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    is_only_here: bool = False
    mdns: Multicast | None = None
    mdns_error: str = ""
    heard: int = 0
    twins: bool = False


@dataclass(frozen=True, slots=True)
class InviteSeen:
    """What was seen of an invite, without using it.

    Attributes:
        mesh_id: The mesh that it leads to.
        expires_at: When it expires, in RFC 3339.
        is_expired: Whether that has passed, by this device's clock.
        own_mesh_id: The mesh that the data folder belongs to; empty if none.
        trials: Its addresses, tried with it.
    """

    mesh_id: str
    expires_at: str
    is_expired: bool
    own_mesh_id: str
    trials: tuple[Trial, ...]
