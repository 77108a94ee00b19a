"""What a diagnosis says: checks, each with what was found, what it means, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HINT_EVICTED: Final = "if that was a mistake, print a new invite on an admin's node (`meshnode invite`) and join with it"
"""What helps a device that was evicted."""

HINT_NEW_INVITE: Final = "print a new one on a member of the mesh: meshnode invite"
"""What helps where an invite is good no more."""


class Result(StrEnum):
    """What a check means; see the table of this module."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


class Code(StrEnum):
    """What was found, as a word for programs."""

    REACHABLE = "reachable"
    LINKED = "linked"
    RELAYED = "relayed"
    PORT_CLOSED = "port_closed"
    NO_ANSWER = "no_answer"
    NOT_ROUTABLE = "not_routable"
    BLOCKED_HERE = "blocked_here"
    UNKNOWN_NAME = "unknown_name"
    NO_NAME_SERVER = "no_name_server"
    MUTE = "mute"
    HANGS = "hangs"
    HUNG_UP = "hung_up"
    OTHER_PROTOCOL = "other_protocol"
    NO_ADDRESS = "no_address"
    UNKNOWN_MEMBER = "unknown_member"
    WRONG_MESH = "wrong_mesh"
    WRONG_NODE = "wrong_node"
    VERSION = "version"
    REVOKED = "revoked"
    EXPIRED = "expired"
    USED_UP = "used_up"
    TWIN = "twin"
    REFUSED = "refused"
    CLOCK = "clock"
    UDP = "udp"
    UDP_BLOCKED = "udp_blocked"
    UDP_BLOCKED_OUT = "udp_blocked_out"
    UDP_BLOCKED_IN = "udp_blocked_in"
    NO_CHECKUP = "no_checkup"
    NOT_REACHED = "not_reached"
    ONLY_HERE = "only_here"
    MDNS = "mdns"
    MDNS_SILENT = "mdns_silent"
    MDNS_BROKEN = "mdns_broken"
    INVITE = "invite"
    NO_MESH = "no_mesh"
    NOT_RUNNING = "not_running"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        code: What was found.
        result: What it means.
        about: What was tried: an address, or a word such as `UDP`.
        says: What was seen, as a sentence.
        to_do: What helps; empty where nothing has to be done.
    """

    code: Code
    result: Result
    about: str
    says: str
    to_do: str = ""


def has_fault(checks: Sequence[Check]) -> bool:
    """Whether anything was found that has to be mended."""
    return any(check.result is Result.FAULT for check in checks)
