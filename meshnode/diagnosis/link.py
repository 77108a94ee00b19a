"""What a link to another node shows: datagrams, clocks, versions, and whether that node could dial this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.diagnosis.address import address_check, works
from meshnode.diagnosis.checks import Check, Code, Result
from meshnode.limits import MAX_CLOCK_SKEW_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.observations import CheckupSeen, Datagrams, PairSeen, Trial


CLOCK_NOTE_S: Final = 5.0
"""Clocks that differ by more are worth a word: no machine that sets its clock is off by so much."""


def link_check(seen: PairSeen, rtt: str) -> Check:
    """Say that a link stands, and how; `rtt` is the round trip as words after a comma, or empty."""
    if not seen.relay:
        return Check(Code.LINKED, Result.OK, "link", f"a link to {seen.name} stands{rtt}")
    return Check(
        Code.RELAYED,
        Result.NOTE,
        "link",
        f"neither of the two can dial the other; a link to {seen.name} stands through {seen.relay}{rtt}",
        "nothing; for a shorter way, let TCP and UDP in at the mesh port of one of the two, and start it "
        "with --advertise and an address that the other reaches",
    )


def checkup_checks(checkup: CheckupSeen, seen: PairSeen) -> list[Check]:
    """Say what the other node saw of this one, and how the two compare."""
    # Datagrams go directly or not at all: who is reached through a relay takes none.
    checks = [] if seen.relay else [_datagrams(checkup.datagrams, seen.name)]
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
        if works(trial):
            says = f"{name} reaches this node at {trial.address}"
            return Check(Code.REACHABLE, Result.OK, "from there", says)
    tried = "; ".join(
        f"{trial.address}: {address_check(trial, 'this node', is_needed=False).says}"
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


def clock(trials: Sequence[Trial], name: str) -> list[Check]:
    """Compare this device's clock with that of a node that answered; nothing where none told the time."""
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
