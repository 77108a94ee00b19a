"""What a rehearsal and the process of one of its nodes tell each other: JSON lines over pipes.

The first line that a process reads is its `Plan`; orders follow. The end of the pipe means that the
rehearsal is gone. A process writes `Ready` once, then `Fares` regularly and `Reported` as it happens.
"""

from __future__ import annotations

from typing import Final

import msgspec

from meshnode.sim.faults import AnyFault
from meshnode.sim.scenario.model import Scenario

FARES_EVERY_S: Final = 0.5
"""How often a process tells how it fares."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is to be.

    Attributes:
        scenario: The whole scenario: its geography and who is who.
        seed: Of the rehearsal.
        boot: Counts this node's boots.
        name: Of this node.
        folder: Of the rehearsal; the node's data folder is in it, under its name.
        ports: At which port each node listens for others.
        http_port: Where its gateway listens; 0 if it has none.
        invite: The invite that it joins with; empty for the founder, and for one that is a member.
        founds: Whether it founds the mesh.
        torn: Whether it lost its power while it wrote.
        keep: Whether the rehearsal's folder stays when it is over.
    """

    scenario: Scenario
    seed: int
    boot: int
    name: str
    folder: str
    ports: dict[str, int]
    http_port: int
    invite: str = ""
    founds: bool = False
    torn: bool = False
    keep: bool = False


class Order(msgspec.Struct, frozen=True, tag_field="order", kw_only=True):
    """Something that a process is told to do."""


class Lay(Order, frozen=True, tag="lay", kw_only=True):
    """Lay the rule of a network fault; sides are names of nodes.

    Attributes:
        number: Names the rule.
        fault: The fault, or None to cut everything between the sides.
        sources: One side.
        targets: The other one.
        salt: For draws of pairs.
    """

    number: int
    fault: AnyFault | None
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    salt: str = ""


class Mend(Order, frozen=True, tag="mend", kw_only=True):
    """Take a rule off again."""

    number: int


class Behave(Order, frozen=True, tag="behave", kw_only=True):
    """Be so from now on, whatever it was before.

    Attributes:
        slowness: All runs of models take this many times as long.
        fail_share: Share of the requests that fail.
        load_share: Share of the true load that is reported.
        load_age_s: Age of the reported load in seconds.
        battery_percent: Charge of the battery off the mains; None on the mains.
        is_disk_full: Whether the disk has no room.
        clock_rate: Seconds of the node's clocks in one real second.
    """

    slowness: float = 1.0
    fail_share: float = 0.0
    load_share: float = 1.0
    load_age_s: float = 0.0
    battery_percent: float | None = None
    is_disk_full: bool = False
    clock_rate: float = 1.0


class JumpClock(Order, frozen=True, tag="jump-clock", kw_only=True):
    """Set the wall clock."""

    by_s: float


class Go(Order, frozen=True, tag="go", kw_only=True):
    """Say goodbye and end."""


AnyOrder = Lay | Mend | Behave | JumpClock | Go


class Report(msgspec.Struct, frozen=True, tag_field="report", kw_only=True):
    """Something that a process tells."""


class Ready(Report, frozen=True, tag="ready", kw_only=True):
    """It is a member and answers."""

    node_id: str


class Fares(Report, frozen=True, tag="fares", kw_only=True):
    """How it fares.

    Attributes:
        alive: Nodes that it takes to be alive, itself included.
        in_system: Requests that run or wait in its model server.
        is_busy: Whether its gateway or its model server has any request, of a client or a peer.
        busy_s: Seconds of runs since it booted, over all slots.
        slots: Over all models that are ready.
        serving: Model versions that are ready.
        digest: Of the names of those that it takes to be alive: alike where views agree.
    """

    alive: int
    in_system: int
    is_busy: bool
    busy_s: float
    slots: int
    serving: tuple[tuple[str, int], ...]
    digest: str


class Reported(Report, frozen=True, tag="reported", kw_only=True):
    """Something that its cores reported; the subject is a node's name where it is a node."""

    kind: str
    subject: str
    detail: str


AnyReport = Ready | Fares | Reported

PLAN_DECODER: Final = msgspec.json.Decoder(Plan)
ORDER_DECODER: Final = msgspec.json.Decoder(AnyOrder)
REPORT_DECODER: Final = msgspec.json.Decoder(AnyReport)


def line_of(message: Plan | Order | Report) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"
