"""How one address fared that was tried, and what helps where it did not work."""

from __future__ import annotations

from typing import Final

from meshnode.diagnosis.checks import HINT_EVICTED, HINT_NEW_INVITE, Check, Code, Result
from meshnode.membership.addresses import is_private
from meshnode.observations import Outcome, Trial
from meshnode.trust.reasons import Reason
from meshnode.types import Address


def works(trial: Trial) -> bool:
    """Whether a node answers at an address and takes this device."""
    return trial.outcome is Outcome.ANSWERED


def address_check(trial: Trial, name: str, *, is_needed: bool, is_told: bool = False) -> Check:
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
    Reason.UNKNOWN_INVITER: (Code.REFUSED, "", HINT_NEW_INVITE),
    Reason.EXPIRED: (Code.EXPIRED, "{says}", HINT_NEW_INVITE),
    Reason.CLOCK: (Code.CLOCK, "{says}", "set the clocks of both devices"),
    Reason.TWIN: (
        Code.TWIN,
        "{says}",
        "stop one of both nodes, and give it a data folder of its own",
    ),
    # Words that the trust core adds; a refusal by a peer names them all the same.
    "revoked": (Code.REVOKED, "{says}", HINT_EVICTED),
    "used_up": (Code.USED_UP, "{says}", HINT_NEW_INVITE),
}

_ALWAYS_FAULTS: Final = frozenset({Code.VERSION, Code.REVOKED, Code.TWIN, Code.USED_UP, Code.HANGS})
"""What is no matter of one address: it is so at all of them."""


def twins(name: str) -> Check:
    """Say that a node runs in two places."""
    return Check(
        Code.TWIN,
        Result.FAULT,
        "identity",
        f"the key of {name} runs in two places: its data folder was copied, or is used twice",
        "stop one of both, remove its data folder, and join it anew with an invite",
    )
