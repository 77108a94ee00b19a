"""Membership: who is in the mesh. The core is `Membership`; its essay is in `core.py`."""

from meshnode.membership.config import LAN, WAN, MembershipConfig
from meshnode.membership.core import Membership
from meshnode.membership.member import Member
from meshnode.membership.messages import (
    MESSAGE_TYPES,
    Incarnation,
    MemberRecord,
    leave_bytes,
    read_members,
    sign_record,
)
from meshnode.membership.timers import MembershipTimer

__all__ = [
    "LAN",
    "MESSAGE_TYPES",
    "WAN",
    "Incarnation",
    "Member",
    "MemberRecord",
    "Membership",
    "MembershipConfig",
    "MembershipTimer",
    "leave_bytes",
    "read_members",
    "sign_record",
]
