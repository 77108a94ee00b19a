"""What a scenario is played on: one interface for the three depths.

A stage has the nodes of a scenario and time. The player (`meshnode.sim.running.playing`) starts it,
lets time pass, sends the calls, does the faults, and looks at it now and then; the stage tells what
became of each call. Depth A is `meshnode.sim.core_stage`, B `meshnode.sim.virtual.stage`, C
`meshnode.sim.processes.stage`.

A stage is synchronous: `run_to` returns when it is that time, and everything that is to happen until
then has happened. At depths A and B that costs what computing it costs; at C it waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from meshnode.types import NO_HINTS, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.faults import Fault
    from meshnode.sim.invariants import Invariants
    from meshnode.sim.scenario.model import Device, Scenario
    from meshnode.sim.trace import Trace


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of a scenario, as `meshnode.sim.scenario.crew` lists them.

    Attributes:
        name: Its name.
        region: Where it is.
        device_class: The name of its class.
        device: What that is.
        gateway: Whether it answers clients.
        nat: Whether nobody can dial it.
    """

    name: str
    region: str
    device_class: str
    device: Device
    gateway: bool = True
    nat: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client; drawn before the stage is asked, so that all policies get the same.

    Attributes:
        number: Counts the calls of a run, from 0.
        made_at_s: When it is made, in seconds after the load begins.
        gateway: Name of the node that is asked.
        model: What for.
        work_s: How long it runs on a device of speed 1.
        timeout_s: What it may take.
        deadline_s: An answer that takes longer is no good.
        others: Gateways that the client asks next if it loses this one.
        request_bytes: Size of its body.
        response_bytes: Size of the answer's body.
        hints: Where it may run.
    """

    number: int
    made_at_s: float
    gateway: str
    model: str
    work_s: float
    timeout_s: float
    deadline_s: float
    others: tuple[str, ...] = ()
    request_bytes: int = 1024
    response_bytes: int = 1024
    hints: RoutingHints = NO_HINTS


OK = "ok"
"""The code of an answer; all others are codes of `meshnode.errors`, or one of the two below."""

GATEWAY_LOST = "gateway_lost"
"""The client reached no gateway, or lost all that it asked."""

TIMED_OUT = "client_timeout"
"""The client gave up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call; there is exactly one.

    Attributes:
        code: `ok`, an error's code, `gateway_lost` or `client_timeout`.
        took_s: Seconds from the making of the call to its end.
        served_by: Name of the node that answered, or "".
        attempts: Sends to replicas, the one that answered included, by all gateways that were asked.
        failed_on: Node and error's code of each attempt that failed.
        version: The version that answered, or 0.
        gateways: Gateways that were asked.
    """

    code: str
    took_s: float
    served_by: str = ""
    attempts: int = 0
    failed_on: tuple[tuple[str, str], ...] = ()
    version: int = 0
    gateways: int = 1


@dataclass(frozen=True, slots=True)
class NodeSample:
    """How a node fares at one moment.

    Attributes:
        state: `up`, `frozen`, `down`, `left`, `off` (no power).
        alive: How many nodes it takes to be alive, itself included; 0 if it is not up.
        in_system: Requests that run or wait in its model server.
        busy: Share of its slots that worked since the last sample, 0 to 1.
        slots: Its slots, over all models that are ready.
        serving: Model versions that are ready.
        releases: How it sees releases stand, a line for each model that ever had one.
    """

    state: str
    alive: int = 0
    in_system: int = 0
    busy: float = 0.0
    slots: int = 0
    serving: int = 0
    releases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """How all nodes fare at one moment, by name."""

    time_s: float
    nodes: dict[str, NodeSample] = field(default_factory=dict)


class Stage(Protocol):
    """A mesh that a scenario is played on; made from the scenario, the seed and what else its depth needs.

    Attributes:
        scenario: What is played.
        seed: Decides every draw.
        trace: What happened: the hash of everything, and the events that nodes reported.
        invariants: What watches it; `now` of it is the stage's.
    """

    scenario: Scenario
    seed: int
    trace: Trace
    invariants: Invariants

    @property
    def machines(self) -> Sequence[Machine]:
        """The nodes, in the order of the scenario."""
        ...

    def start(self, progress: Callable[[str], None]) -> None:
        """Boot all nodes, wait until all know all, deploy the models, wait until they are ready.

        Args:
            progress: Told what it waits for.

        Raises:
            NotReachedError: if that does not come about; its message names the seed.
        """
        ...

    def now(self) -> float:
        """Return the stage's own seconds; `start` takes some."""
        ...

    def at(self, time_s: float, call: Callable[..., object], *args: object) -> None:
        """Call something at a time of the stage, at once if it has passed; equal times keep their order."""
        ...

    def run_to(self, time_s: float) -> None:
        """Let time pass; an invariant that breaks on the way is raised here (`InvariantBroken`)."""
        ...

    def apply(self, fault: Fault) -> None:
        """Do a fault now.

        Raises:
            UsageError: if this depth cannot do it, which `unsupported` tells before.
        """
        ...

    def undo(self, fault: Fault) -> None:
        """Undo a fault now; nothing happens to nodes that another fault keeps down."""
        ...

    def unsupported(self, fault: Fault) -> str | None:
        """Return why this depth cannot do a fault, or None."""
        ...

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Let a client make a call now; `done` is told once what became of it."""
        ...

    def sample(self) -> Sample:
        """Look at all nodes."""
        ...

    def settle(self, limit_s: float) -> None:
        """Let time pass until no call is open and all running nodes agree on who is there; then check.

        Raises:
            NotReachedError: if that does not come about.
            InvariantBroken: if something is left over (in-flight counts, timers, tasks, tables).
        """
        ...

    def close(self) -> None:
        """End all nodes and drop what they have; may be called at any time, more than once."""
        ...
