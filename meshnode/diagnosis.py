"""Why two nodes do not meet: from what was tried to findings, each with what to do. Pure.

`meshnode doctor` tries things: it dials addresses, says a hello that comes to nothing (a *trial*), sends
datagrams both ways, asks the other node what time it is, and listens for mDNS. What it saw comes here as
observations; what goes out are checks:

| result | means |
|---|---|
| `ok` | it was tried, and works |
| `note` | it does not work, or is not as usual, and the nodes meet all the same |
| `fault` | this keeps the nodes apart, or costs them something that they should have |

An address that fails is a fault only where no other way to the node was found: devices have addresses
that lead to them from some places only. Each check has a `Code`, which docs/troubleshooting.md explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CLOCK_SKEW_S
from meshnode.membership.addresses import is_private
from meshnode.observations import (
    AddressSeen,
    CheckupSeen,
    Datagrams,
    InviteSeen,
    Multicast,
    Outcome,
    PairSeen,
    SelfSeen,
    Trial,
)
from meshnode.trust.reasons import Reason
from meshnode.types import Address, NodeState

if TYPE_CHECKING:
    from collections.abc import Sequence

CLOCK_NOTE_S: Final = 5.0
"""Clocks that differ by more are worth a word: no machine that sets its clock is off by so much."""

_HINT_EVICTED: Final = "if that was a mistake, print a new invite on an admin's node (`meshnode invite`) and join with it"
_HINT_NEW_INVITE: Final = "print a new one on a member of the mesh: meshnode invite"


class Result(StrEnum):
    """What a check means; see the table of this module."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


class Code(StrEnum):
    """What was found, as a word for programs."""

    REACHABLE = "reachable"
    LINKED = "linked"
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


# The subjects


def diagnose_pair(seen: PairSeen) -> list[Check]:
    """Say what stands between this node and another, or that nothing does."""
    if seen.evicted:
        says = f"{seen.name} is no member any more: {seen.evicted}"
        return [Check(Code.REVOKED, Result.FAULT, "membership", says, _HINT_EVICTED)]
    checks = [_twins(seen.name)] if seen.twins else []
    if seen.is_linked:
        rtt = "" if seen.rtt_s is None else f", round trip {seen.rtt_s * 1e3:.1f} ms"
        checks.append(Check(Code.LINKED, Result.OK, "link", f"a link to {seen.name} stands{rtt}"))
    is_reached = seen.is_linked or any(_works(trial) for trial in seen.trials)
    # A member whose other addresses answer does not hang: what is mute is something else there.
    is_silent = seen.checkup is None and not any(_works(trial) for trial in seen.trials)
    checks += [
        _trial(trial, seen.name, is_needed=not is_reached, is_told=is_silent)
        for trial in seen.trials
    ]
    if not seen.trials and not seen.is_linked:
        says = f"no address of {seen.name} is known, and it has dialled nobody"
        hint = f"start {seen.name} again with an invite: meshnode join -"
        checks.append(Check(Code.NO_ADDRESS, Result.FAULT, "addresses", says, hint))
    if seen.checkup is not None:
        checks += _checkup(seen.checkup, seen)
    elif seen.no_checkup:
        says = f"{seen.name} did not answer over the link: {seen.no_checkup}"
        hint = f"look at `meshnode logs` on {seen.name}; run the same version on both"
        checks.append(Check(Code.NO_CHECKUP, Result.FAULT, "link", says, hint))
    if seen.checkup is None:
        checks += _clock(seen.trials, seen.name)
    if seen.mdns is not None:
        runs = is_reached or all(trial.outcome is not Outcome.CLOSED for trial in seen.trials)
        checks += _mdns_of(seen.mdns, seen.name, is_needed=runs and not is_reached)
    return checks


def diagnose_address(seen: AddressSeen) -> list[Check]:
    """Say what answers a member of a mesh at an address."""
    trial, name = seen.trial, seen.name or _device(seen.trial)
    is_live = seen.standing in (NodeState.ALIVE, NodeState.SUSPECT)
    if not _works(trial) or is_live or not seen.has_members:
        first = _trial(trial, name, is_needed=True, is_told=seen.is_told)
    else:
        says = f"{_both(seen.name, trial.node)} answers there and is of this mesh, but this node "
        says += _STANDINGS[seen.standing]
        to_do = _HINT_UNKNOWN.format(name=name)
        first = Check(Code.UNKNOWN_MEMBER, Result.FAULT, trial.address, says, to_do)
    return [first, *_clock((trial,), name)]


def _device(trial: Trial) -> str:
    return f"node {trial.node}" if trial.node else "that device"


def _both(name: str, node: str) -> str:
    return f"{name} ({node})" if name not in ("", node) else f"node {node}"


_STANDINGS: Final = {
    None: "does not know it as a member",
    NodeState.DEAD: "holds it for dead",
    NodeState.LEFT: "holds that it has left",
}

_HINT_UNKNOWN: Final = (
    "wait for half a minute and try again; if it stays so, let this node dial it: print an invite on "
    "{name} (`meshnode invite`), and here `meshnode stop`, then `meshnode join --detach -` with its line"
)


def diagnose_self(seen: SelfSeen) -> list[Check]:
    """Say what is wrong with this node by itself."""
    checks = [_twins("this node")] if seen.twins else []
    for trial in seen.trials:
        if trial.reason == Reason.SELF or trial.outcome is Outcome.ANSWERED:
            says = "this node answers at the address that it tells others"
            checks.append(Check(Code.REACHABLE, Result.OK, trial.address, says))
        elif trial.reason == Reason.TWIN:
            checks.append(_twins("this node"))
        else:
            found = _trial(trial, "this node", is_needed=False)
            hint = (
                "others are told this address: if they cannot reach it either, start the node with "
                "--advertise and one that they can (some routers lead nobody back to their own network)"
            )
            checks.append(Check(found.code, Result.NOTE, found.about, found.says, hint))
    if seen.is_only_here:
        says = f"this node tells others only {', '.join(seen.addresses)}, which leads nobody to it"
        hint = (
            "connect a network, or start it without --listen and --advertise of this machine alone"
        )
        checks.append(Check(Code.ONLY_HERE, Result.NOTE, "addresses", says, hint))
    if seen.mdns is not None:
        checks.append(_mdns_here(seen.mdns, seen))
    return checks


def diagnose_invite(seen: InviteSeen) -> list[Check]:
    """Say whether an invite would let this device in."""
    checks = []
    if seen.own_mesh_id and seen.own_mesh_id != seen.mesh_id:
        says = f"this device belongs to mesh {seen.own_mesh_id}, and the invite is for mesh {seen.mesh_id}"
        hint = "leave the other mesh first (`meshnode leave`), or join with another --data-dir"
        checks.append(Check(Code.WRONG_MESH, Result.FAULT, "invite", says, hint))
    if seen.is_expired:
        says = f"the invite expired at {seen.expires_at}, by the clock of this device"
        checks.append(Check(Code.EXPIRED, Result.FAULT, "invite", says, _HINT_NEW_INVITE))
    if not seen.trials:
        says = "the invite names no address"
        checks.append(Check(Code.NO_ADDRESS, Result.FAULT, "invite", says, _HINT_NEW_INVITE))
    works = any(trial.outcome is Outcome.ANSWERED for trial in seen.trials)
    checks += [_trial(each, "the inviting node", is_needed=not works) for each in seen.trials]
    checks += _clock(seen.trials, "the node that answered")
    if works and not has_fault(checks):
        says = f"a member would admit this device; the invite is good until {seen.expires_at}"
        checks.append(Check(Code.INVITE, Result.OK, "invite", says))
    return checks


def diagnose_stranger(trial: Trial) -> list[Check]:
    """Say what answers at an address, to a device that belongs to no mesh."""
    if trial.reason != Reason.WRONG_MESH:
        return [_trial(trial, "that device", is_needed=True), _NO_MESH]
    says = "a node of a mesh answers there"
    return [Check(Code.REACHABLE, Result.OK, trial.address, says), _NO_MESH]


def diagnose_outsider(heard: Sequence[tuple[str, str]]) -> list[Check]:
    """Say what a device that belongs to no mesh can do.

    Args:
        heard: Name and mesh of each node that announces itself on the local network.
    """
    meshes: dict[str, list[str]] = {}
    for name, mesh in heard:
        meshes.setdefault(mesh, []).append(name)
    found = [
        Check(Code.MDNS, Result.OK, "mDNS", f"mesh {mesh} is here, with {', '.join(sorted(names))}")
        for mesh, names in sorted(meshes.items())
    ]
    if not found:
        says = "no node announces itself on the local network"
        hint = _MDNS_HINT.format(name="the other node")
        found = [Check(Code.MDNS_SILENT, Result.NOTE, "mDNS", says, hint)]
    return [_NO_MESH, *found]


def diagnose_evicted(mesh_id: str, why: str, at: str) -> Check:
    """Say that this device was evicted: from which mesh, why, and when it learnt that."""
    says = f"this device was evicted from mesh {mesh_id}: {why} (told at {at})"
    return Check(Code.REVOKED, Result.FAULT, "membership", says, _HINT_EVICTED)


def diagnose_stopped() -> Check:
    """Say that this device's own node does not run."""
    says = "the node of this device does not run, so nobody can reach it"
    return Check(Code.NOT_RUNNING, Result.FAULT, "daemon", says, "meshnode join --detach")


_NO_MESH: Final = Check(
    Code.NO_MESH,
    Result.FAULT,
    "membership",
    "this device belongs to no mesh",
    "on a member, print an invite with `meshnode invite` and type its line here; or type `meshnode join` "
    "here, and on the member `meshnode approve` with the code that it shows",
)


# One address


def _works(trial: Trial) -> bool:
    return trial.outcome is Outcome.ANSWERED


def _trial(trial: Trial, name: str, *, is_needed: bool, is_told: bool = False) -> Check:
    """Say how an address fared.

    Args:
        trial: The address, and how it ended.
        name: Whose address it is.
        is_needed: If no better way to the node was found.
        is_told: If a member tells others of the address, and nothing else shows that it runs.
    """
    if trial.outcome is Outcome.ANSWERED:
        says = f"{name} answers there and takes this device (TCP, TLS and hello)"
        return Check(Code.REACHABLE, Result.OK, trial.address, says)
    if trial.outcome is Outcome.REFUSED:
        code, says, to_do = _refusal(trial, name)
    elif trial.outcome is Outcome.MUTE and is_told:
        says = f"the process of {name} hangs or is suspended: its device takes the connection and says "
        says += "nothing, where it answered as a member before"
        code, to_do = Code.HANGS, _HINTS[Code.HANGS].format(name=name)
    else:
        code, says, to_do = _silence(trial, name)
    result = Result.FAULT if is_needed or code in _ALWAYS_FAULTS else Result.NOTE
    return Check(code, result, trial.address, says, to_do)


def _silence(trial: Trial, name: str) -> tuple[Code, str, str]:
    """Return what it means that no node answered."""
    leads_elsewhere = _is_private(trial) and not trial.is_near
    if trial.outcome is Outcome.NO_ROUTE or (
        trial.outcome is Outcome.NO_ANSWER and leads_elsewhere
    ):
        says = (
            "that is a private address of a network that this device is not in"
            if leads_elsewhere
            else "this device's networks do not lead there"
        )
        return Code.NOT_ROUTABLE, says, _HINTS[Code.NOT_ROUTABLE].format(name=name, port=trial.port)
    code, says = _SILENCES[trial.outcome]
    return code, says, _HINTS[code].format(name=name, port=trial.port)


def _is_private(trial: Trial) -> bool:
    """Whether the address leads to different devices in different places."""
    try:
        return is_private(Address.parse(trial.address, 0))
    except ValueError:
        return False


_SILENCES: Final = {
    Outcome.CLOSED: (
        Code.PORT_CLOSED,
        "the device answers, but the port is closed (TCP connection refused)",
    ),
    Outcome.NO_ANSWER: (
        Code.NO_ANSWER,
        "no answer: a firewall drops what is sent there, nobody has the address, or the device is off",
    ),
    Outcome.BLOCKED_HERE: (
        Code.BLOCKED_HERE,
        "a firewall of this device does not let the connection out",
    ),
    Outcome.UNKNOWN_NAME: (Code.UNKNOWN_NAME, "this host name does not exist"),
    Outcome.NO_NAME_SERVER: (Code.NO_NAME_SERVER, "the name cannot be looked up now"),
    Outcome.MUTE: (
        Code.MUTE,
        "something takes the connection and says nothing: another program, or a proxy whose far end is gone",
    ),
    Outcome.HUNG_UP: (
        Code.HUNG_UP,
        "it is closed without a word: by another program, or by a node that was asked too often",
    ),
    Outcome.OTHER_PROTOCOL: (Code.OTHER_PROTOCOL, "something answers that is not meshnode"),
    Outcome.NOT_DIALLED: (
        Code.NOT_ROUTABLE,
        "that address would lead this device to itself, or nowhere, so it is not dialled",
    ),
}

_HINTS: Final = {
    Code.PORT_CLOSED: "on {name}, check with `meshnode status` that its node runs and has port {port}; a "
    "firewall that rejects must let TCP and UDP {port} in",
    Code.NO_ANSWER: "check that {name} is on and has this address; let TCP and UDP {port} in there, such "
    "as with `sudo ufw allow {port}`, in a cloud in the provider's firewall too, and out on this device",
    Code.NOT_ROUTABLE: "start {name} with --advertise and an address that this device can reach, or let "
    "both join a node that both can reach",
    Code.BLOCKED_HERE: "let TCP and UDP to port {port} out on this device",
    Code.UNKNOWN_NAME: "correct the name, or its DNS record; an IP address works too",
    Code.NO_NAME_SERVER: "check this device's network and DNS server; an IP address needs neither",
    Code.MUTE: "check what listens at port {port} there; the node's own port is in its `meshnode status`",
    Code.HUNG_UP: "try again in a minute; if it goes on, check the port: the node's own is in its "
    "`meshnode status`, as mesh address",
    Code.OTHER_PROTOCOL: "check the port: the node's own is in its `meshnode status`, as mesh address",
    Code.HANGS: "on {name}, continue a process that was suspended (`fg`, or `kill -CONT` and its number); "
    "end one that hangs, and start it again: meshnode join --detach",
    Code.REFUSED: "look at `meshnode logs` on both nodes, and run the same version of meshnode on both",
}


def _refusal(trial: Trial, name: str) -> tuple[Code, str, str]:
    """Return what a refusal means; one without words or a hint of its own gets those of its code."""
    code, says, to_do = _REFUSALS.get(trial.reason, (Code.REFUSED, "", ""))
    sentence = says.format(name=name, says=trial.says) or trial.says
    hint = to_do or _HINTS[code]
    return code, sentence or _REFUSED, hint.format(name=name, port=trial.port)


_REFUSED: Final = "a node answers there, and refuses this device"


_REFUSALS: Final[dict[str, tuple[Code, str, str]]] = {
    Reason.WRONG_MESH: (
        Code.WRONG_MESH,
        "a node answers there, but it belongs to another mesh",
        "join that mesh with an invite of its own, or correct the address",
    ),
    Reason.WRONG_NODE: (
        Code.WRONG_NODE,
        "another member of the mesh answers there: {says}",
        "nothing, if {name} has an address of its own; else start it with --advertise and that",
    ),
    Reason.SELF: (
        Code.WRONG_NODE,
        "this node itself answers there",
        "start {name} with --advertise and an address of its own",
    ),
    Reason.VERSION: (Code.VERSION, "{says}", "update the older of both nodes"),
    Reason.PROTOCOL: (Code.OTHER_PROTOCOL, "what answers there speaks no hello of meshnode", ""),
    Reason.FULL: (Code.REFUSED, "", "evict nodes that do not come back: `meshnode evict`"),
    Reason.THROTTLED: (Code.REFUSED, "", "try again in a minute"),
    Reason.UNKNOWN_INVITER: (Code.REFUSED, "", _HINT_NEW_INVITE),
    Reason.EXPIRED: (Code.EXPIRED, "{says}", _HINT_NEW_INVITE),
    Reason.CLOCK: (Code.CLOCK, "{says}", "set the clocks of both devices"),
    Reason.TWIN: (
        Code.TWIN,
        "{says}",
        "stop one of both nodes, and give it a data folder of its own",
    ),
    # Words that the trust core adds; a refusal by a peer names them all the same.
    "revoked": (Code.REVOKED, "{says}", _HINT_EVICTED),
    "used_up": (Code.USED_UP, "{says}", _HINT_NEW_INVITE),
}

_ALWAYS_FAULTS: Final = frozenset({Code.VERSION, Code.REVOKED, Code.TWIN, Code.USED_UP, Code.HANGS})
"""What is no matter of one address: it is so at all of them."""


def _twins(name: str) -> Check:
    return Check(
        Code.TWIN,
        Result.FAULT,
        "identity",
        f"the key of {name} runs in two places: its data folder was copied, or is used twice",
        "stop one of both, remove its data folder, and join it anew with an invite",
    )


# Over the link


def _checkup(checkup: CheckupSeen, seen: PairSeen) -> list[Check]:
    checks = [_datagrams(checkup.datagrams, seen.name)]
    checks += _clocks(checkup.ahead_s, seen.name)
    if checkup.version != seen.version:
        says = f"{seen.name} runs meshnode {checkup.version}, and this node {seen.version}"
        checks.append(Check(Code.VERSION, Result.NOTE, "version", says, "update the older one"))
    if checkup.reached:
        checks.append(_reached(checkup, seen.name))
    return checks


def _datagrams(datagrams: Datagrams, name: str) -> Check:
    there, here, sent = datagrams.arrived_there, datagrams.arrived_here, datagrams.sent
    if there and here:
        return Check(Code.UDP, Result.OK, "UDP", "datagrams pass both ways")
    slow = "failures are noticed late, over links only"
    if here:
        return Check(
            Code.UDP_BLOCKED_OUT,
            Result.FAULT,
            "UDP",
            f"none of {sent} datagrams reached {name}, while its own arrive here: {slow}",
            f"let UDP in on {name}, at the port of its mesh address, and out on this device",
        )
    if there:
        return Check(
            Code.UDP_BLOCKED_IN,
            Result.FAULT,
            "UDP",
            f"no datagram of {name} arrived here, while those of this node reach it: {slow}",
            f"let UDP in on this device, at its mesh port, and out on {name}",
        )
    return Check(
        Code.UDP_BLOCKED,
        Result.FAULT,
        "UDP",
        f"the link works, but datagrams pass neither way: {slow}",
        "let UDP through at the mesh ports of both devices, and on what lies between them",
    )


def _reached(checkup: CheckupSeen, name: str) -> Check:
    """Say whether the other node could dial this one."""
    for trial in checkup.reached:
        if _works(trial):
            says = f"{name} reaches this node at {trial.address}"
            return Check(Code.REACHABLE, Result.OK, "from there", says)
    tried = "; ".join(
        f"{trial.address}: {_trial(trial, 'this node', is_needed=False).says}"
        for trial in checkup.reached
    )
    return Check(
        Code.NOT_REACHED,
        Result.NOTE,
        "from there",
        f"{name} cannot dial this node ({tried}), and uses the link that stands",
        "nothing, behind a router; to be dialled, let TCP and UDP in at this node's mesh port, or start "
        "it with --advertise and an address that others reach",
    )


def _clock(trials: Sequence[Trial], name: str) -> list[Check]:
    known = [trial.ahead_s for trial in trials if trial.ahead_s is not None]
    return _clocks(known[0], name) if known else []


def _clocks(ahead_s: float, name: str) -> list[Check]:
    """Compare two clocks; nothing is said of a difference that does not matter."""
    if abs(ahead_s) <= CLOCK_NOTE_S:
        return []
    is_fault = abs(ahead_s) > MAX_CLOCK_SKEW_S
    where = "ahead of" if ahead_s > 0 else "behind"
    costs = "; changes are refused, and invites seem expired or not yet made" if is_fault else ""
    return [
        Check(
            Code.CLOCK,
            Result.FAULT if is_fault else Result.NOTE,
            "clock",
            f"the clock of {name} is {_span(abs(ahead_s))} {where} this device's{costs}",
            "let both devices set their clocks from the network, such as with "
            "`sudo timedatectl set-ntp true`",
        )
    ]


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


# Multicast


def _mdns_of(mdns: Multicast, name: str, *, is_needed: bool) -> list[Check]:
    if mdns is Multicast.HEARD:
        return [Check(Code.MDNS, Result.OK, "mDNS", f"{name} is heard on the local network")]
    if mdns is not Multicast.SILENT:
        return []  # this node's own check says it
    result = Result.FAULT if is_needed else Result.NOTE
    says = f"{name} shares a network with this device, but its mDNS announcements do not arrive"
    return [Check(Code.MDNS_SILENT, result, "mDNS", says, _MDNS_HINT.format(name=name))]


_MDNS_HINT: Final = (
    "let UDP 5353 through on both devices; check that {name} runs without --no-mdns, and that the "
    "Wi-Fi does not isolate its devices or filter multicast; an invite works without mDNS"
)


def _mdns_here(mdns: Multicast, seen: SelfSeen) -> Check:
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
            hint = _MDNS_HINT.format(name="this node")
            return Check(Code.MDNS_SILENT, Result.NOTE, "mDNS", says, hint)
