"""What multicast DNS shows: who is heard on the local network, and who should be."""

from __future__ import annotations

from typing import Final

from meshnode.diagnosis.checks import Check, Code, Result
from meshnode.observations import Multicast, SelfSeen


def mdns_of(mdns: Multicast, name: str, *, is_needed: bool) -> list[Check]:
    """Say whether a node is heard on the local network, if it has to be."""
    if mdns is Multicast.HEARD:
        return [Check(Code.MDNS, Result.OK, "mDNS", f"{name} is heard on the local network")]
    if mdns is not Multicast.SILENT:
        return []  # this node's own check says it
    result = Result.FAULT if is_needed else Result.NOTE
    says = f"{name} shares a network with this device, but its mDNS announcements do not arrive"
    return [Check(Code.MDNS_SILENT, result, "mDNS", says, MDNS_HINT.format(name=name))]


MDNS_HINT: Final = (
    "let UDP 5353 through on both devices; check that {name} runs without --no-mdns, and that the "
    "Wi-Fi does not isolate its devices or filter multicast; an invite works without mDNS"
)
"""What helps where a node, by its name, is not heard."""


def mdns_here(mdns: Multicast, seen: SelfSeen) -> Check:
    """Say whether this node is heard on the local network."""
    match mdns:
        case Multicast.HEARD:
            others = f"{seen.heard} other node{'' if seen.heard == 1 else 's'}"
            says = f"this node's announcement is heard, and {others}"
            return Check(Code.MDNS, Result.OK, "mDNS", says)
        case Multicast.OFF:
            says = "off (--no-mdns): nodes on the local network are not found by themselves"
            return Check(Code.MDNS, Result.OK, "mDNS", says)
        case Multicast.BROKEN:
            says = f"mDNS does not work here: {seen.mdns_error}"
            hint = "connect a network that takes multicast; an invite works without mDNS"
            return Check(Code.MDNS_BROKEN, Result.NOTE, "mDNS", says, hint)
        case _:
            says = "not even this node's own announcement is heard"
            hint = MDNS_HINT.format(name="this node")
            return Check(Code.MDNS_SILENT, Result.NOTE, "mDNS", says, hint)
