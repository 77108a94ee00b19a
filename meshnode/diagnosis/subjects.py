"""A diagnosis of each subject: two nodes, an address, this node by itself, an invite, a device without a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.diagnosis.address import address_check, twins, works
from meshnode.diagnosis.checks import HINT_EVICTED, HINT_NEW_INVITE, Check, Code, Result, has_fault
from meshnode.diagnosis.link import checkup_checks, clock, link_check
from meshnode.diagnosis.multicast import MDNS_HINT, mdns_here, mdns_of
from meshnode.observations import AddressSeen, InviteSeen, Outcome, PairSeen, SelfSeen, Trial
from meshnode.trust.reasons import Reason
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Sequence


def diagnose_pair(seen: PairSeen) -> list[Check]:
    """Say what stands between this node and another, or that nothing does."""
    if seen.evicted:
        says = f"{seen.name} is no member any more: {seen.evicted}"
        return [Check(Code.REVOKED, Result.FAULT, "membership", says, HINT_EVICTED)]
    checks = [twins(seen.name)] if seen.twins else []
    if seen.is_linked:
        rtt = "" if seen.rtt_s is None else f", round trip {seen.rtt_s * 1e3:.1f} ms"
        checks.append(link_check(seen, rtt))
    is_reached = seen.is_linked or any(works(trial) for trial in seen.trials)
    # A member whose other addresses answer does not hang: what is mute is something else there.
    is_silent = seen.checkup is None and not any(works(trial) for trial in seen.trials)
    checks += [
        address_check(trial, seen.name, is_needed=not is_reached, is_told=is_silent)
        for trial in seen.trials
    ]
    if not seen.trials and not seen.is_linked:
        says = f"no address of {seen.name} is known, and it has dialled nobody"
        hint = f"start {seen.name} again with an invite: meshnode join -"
        checks.append(Check(Code.NO_ADDRESS, Result.FAULT, "addresses", says, hint))
    if seen.checkup is not None:
        checks += checkup_checks(seen.checkup, seen)
    elif seen.no_checkup:
        says = f"{seen.name} did not answer over the link: {seen.no_checkup}"
        hint = f"look at `meshnode logs` on {seen.name}; run the same version on both"
        checks.append(Check(Code.NO_CHECKUP, Result.FAULT, "link", says, hint))
    if seen.checkup is None:
        checks += clock(seen.trials, seen.name)
    if seen.mdns is not None:
        runs = is_reached or all(trial.outcome is not Outcome.CLOSED for trial in seen.trials)
        checks += mdns_of(seen.mdns, seen.name, is_needed=runs and not is_reached)
    return checks


def diagnose_address(seen: AddressSeen) -> list[Check]:
    """Say what answers a member of a mesh at an address."""
    trial, name = seen.trial, seen.name or _device(seen.trial)
    is_live = seen.standing in (NodeState.ALIVE, NodeState.SUSPECT)
    if not works(trial) or is_live or not seen.has_members:
        first = address_check(trial, name, is_needed=True, is_told=seen.is_told)
    else:
        says = f"{_both(seen.name, trial.node)} answers there and is of this mesh, but this node "
        says += _STANDINGS[seen.standing]
        to_do = _HINT_UNKNOWN.format(name=name)
        first = Check(Code.UNKNOWN_MEMBER, Result.FAULT, trial.address, says, to_do)
    return [first, *clock((trial,), name)]


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
    checks = [twins("this node")] if seen.twins else []
    for trial in seen.trials:
        if trial.reason == Reason.SELF or trial.outcome is Outcome.ANSWERED:
            says = "this node answers at the address that it tells others"
            checks.append(Check(Code.REACHABLE, Result.OK, trial.address, says))
        elif trial.reason == Reason.TWIN:
            checks.append(twins("this node"))
        else:
            found = address_check(trial, "this node", is_needed=False)
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
        checks.append(mdns_here(seen.mdns, seen))
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
        checks.append(Check(Code.EXPIRED, Result.FAULT, "invite", says, HINT_NEW_INVITE))
    if not seen.trials:
        says = "the invite names no address"
        checks.append(Check(Code.NO_ADDRESS, Result.FAULT, "invite", says, HINT_NEW_INVITE))
    is_answered = any(trial.outcome is Outcome.ANSWERED for trial in seen.trials)
    checks += [
        address_check(each, "the inviting node", is_needed=not is_answered) for each in seen.trials
    ]
    checks += clock(seen.trials, "the node that answered")
    if is_answered and not has_fault(checks):
        says = f"a member would admit this device; the invite is good until {seen.expires_at}"
        checks.append(Check(Code.INVITE, Result.OK, "invite", says))
    return checks


def diagnose_stranger(trial: Trial) -> list[Check]:
    """Say what answers at an address, to a device that belongs to no mesh."""
    if trial.reason != Reason.WRONG_MESH:
        return [address_check(trial, "that device", is_needed=True), _NO_MESH]
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
        hint = MDNS_HINT.format(name="the other node")
        found = [Check(Code.MDNS_SILENT, Result.NOTE, "mDNS", says, hint)]
    return [_NO_MESH, *found]


def diagnose_evicted(mesh_id: str, why: str, at: str) -> Check:
    """Say that this device was evicted: from which mesh, why, and when it learnt that."""
    says = f"this device was evicted from mesh {mesh_id}: {why} (told at {at})"
    return Check(Code.REVOKED, Result.FAULT, "membership", says, HINT_EVICTED)


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
