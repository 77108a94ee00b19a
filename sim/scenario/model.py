"""What a scenario is: places, devices, models, load, faults, and what must hold at the end.

These types are the scenario file (`meshnode.sim.scenario.reading` reads TOML into them) and at the
same time the Python API: a test may build them itself. All times of a scenario are seconds after its
load begins; before that the mesh starts and settles.

A *selection* of nodes is a tuple of strings: a node's name, a glob of names (`eu-*`), `region:NAME`,
`device:CLASS`, or `all`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from meshnode.limits import (
    MAX_NAME_LENGTH,
    MAX_SEED,
    MAX_SIMULATED_CORES,
    MAX_STANDBY_REPLICAS,
)
from meshnode.sim.faults import AnyFault
from meshnode.state.scaling import Scaling

Name = Annotated[
    str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=MAX_SIMULATED_CORES)]
Selection = tuple[str, ...]
Depth = Literal["A", "B", "C"]

DEPTHS: Final[tuple[Depth, ...]] = ("A", "B", "C")


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scenario."""


class Place(Part, frozen=True, kw_only=True):
    """Where a region is.

    Attributes:
        at: Latitude and longitude in degrees; not needed where `place` or the region's own name is one
            of the built-in data centres (`meshnode.sim.scenario.geography`).
        place: Name of a built-in data centre.
    """

    at: (
        tuple[Annotated[float, Meta(ge=-90, le=90)], Annotated[float, Meta(ge=-180, le=180)]] | None
    ) = None
    place: str | None = None


class Path(Part, frozen=True, kw_only=True):
    """What differs from the rule between two regions, or inside one if it is named twice.

    Attributes:
        between: The two regions.
        rtt_ms: Mean round trip; by default 4 ms + great-circle km / 75.
        jitter: Greatest relative deviation of one delay.
        loss: Share of packets that are lost.
        bandwidth_mbps: Megabits per second that one node can send another; None for no limit.
    """

    between: tuple[str, str]
    rtt_ms: Positive | None = None
    jitter: Share | None = None
    loss: Share | None = None
    bandwidth_mbps: Positive | None = None


class NetworkPart(Part, frozen=True, kw_only=True):
    """The network where no path says otherwise.

    Attributes:
        near_rtt_ms: Round trip between two nodes of one region.
        jitter: Greatest relative deviation of one delay from its mean.
        loss: Share of packets that are lost; on a link they come later instead.
    """

    near_rtt_ms: Positive = 0.5
    jitter: Share = 0.1
    loss: Share = 0.0


class Device(Part, frozen=True, kw_only=True):
    """A class of devices.

    Attributes:
        speed: Of its model server; 2 halves all run times.
        slots: Requests of one model that it runs at once.
        cpus: Processors that it advertises.
        memory_gb: Memory, in units of 2^30 bytes.
        battery: Whether it runs on one.
    """

    speed: Positive = 1.0
    slots: Annotated[int, Meta(ge=1, le=1024)] = 2
    cpus: Annotated[int, Meta(ge=1, le=1024)] = 4
    memory_gb: Positive = 8.0
    battery: bool = False


class Nodes(Part, frozen=True, kw_only=True):
    """Some devices of one class in one region.

    Attributes:
        region: Where.
        device: Its class: a built-in one or one of the scenario's `devices`.
        count: How many.
        name: They are called NAME-1, NAME-2 ...; by default after region and class. One alone is NAME.
        gateway: Whether they answer clients.
        nat: Whether a router lets nobody dial them: they only dial out.
    """

    region: str
    device: str = "mini-pc"
    count: Count = 1
    name: Name | None = None
    gateway: bool = True
    nat: bool = False


class ServiceTime(Part, frozen=True, kw_only=True):
    """How long one run of a model takes on a device of speed 1; drawn anew for each request.

    Attributes:
        distribution: `constant`; `exponential`; `lognormal` with `sigma`; `pareto` with `alpha`, cut at
            1,000 means; `bimodal`: `share` of the runs take `factor` times as long as the others.
        mean_ms: The mean of the whole distribution.
        sigma: Standard deviation of the logarithm.
        alpha: The tail's exponent, above 1.
        share: Of the long runs.
        factor: Of the long runs to the short ones.
    """

    distribution: Literal["constant", "exponential", "lognormal", "pareto", "bimodal"] = "lognormal"
    mean_ms: Positive = 20.0
    sigma: Annotated[float, Meta(ge=0, le=3)] = 0.5
    alpha: Annotated[float, Meta(gt=1, le=10)] = 2.0
    share: Share = 0.1
    factor: Annotated[float, Meta(ge=1, le=1000)] = 10.0


class Autoscaling(Part, frozen=True, kw_only=True):
    """What the number of a model's replicas follows (docs/autoscaling.md).

    Attributes:
        min: The fewest replicas; at 0 it sleeps while nobody asks.
        max: The most.
        concurrency: Target: requests in flight per unit of capacity; 0 for none, as of the other targets.
        qps: Target: requests per second per unit.
        latency_ms: Target: mean time at a replica.
        queue: Target: requests that wait per unit.
        stable_window_s: Over which what is needed is averaged.
        panic_window_s: The same for bursts.
        panic_threshold: How many times the capacity a burst needs.
        tolerance: By what share need and capacity may differ.
        up_delay_s: For how long more has to be needed.
        down_delay_s: For how long less has to be needed.
        idle_s: Without a request, before it sleeps.
    """

    min: Annotated[int, Meta(ge=0)] = 1
    max: Annotated[int, Meta(ge=1)]
    concurrency: NotNegative = 0.0
    qps: NotNegative = 0.0
    latency_ms: NotNegative = 0.0
    queue: NotNegative = 0.0
    stable_window_s: Positive = 60.0
    panic_window_s: Positive = 6.0
    panic_threshold: Positive = 2.0
    tolerance: Share = 0.1
    up_delay_s: NotNegative = 0.0
    down_delay_s: NotNegative = 30.0
    idle_s: Positive = 300.0

    @property
    def scaling(self) -> Scaling:
        """As a deployment has it."""
        given = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name not in ("min", "max")
        }
        return Scaling(min_replicas=self.min, max_replicas=self.max, **given)


class Model(Part, frozen=True, kw_only=True):
    """A model on the mesh.

    Attributes:
        name: Its name.
        service: How long it runs.
        replicas: On how many nodes; None for all of `on`.
        on: Nodes that may serve it; empty for all.
        load_s: Seconds to load it.
        fetch_s: Seconds to get its files from a peer.
        memory_gb: What a replica takes.
        request_kb: Size of a request's body, in units of 1,024 bytes.
        response_kb: Size of an answer's body.
        autoscaling: What the number of replicas follows; `replicas` is the number to begin with then, by default
            the least of it, and one.
        standby: On how many further nodes it is kept ready, in case that those cannot answer.
    """

    name: Name
    service: ServiceTime = ServiceTime()
    replicas: Count | None = None
    on: Selection = ()
    load_s: NotNegative = 0.5
    fetch_s: NotNegative = 0.5
    memory_gb: NotNegative = 0.1
    request_kb: Annotated[float, Meta(gt=0, le=65_536)] = 1.0
    response_kb: Annotated[float, Meta(gt=0, le=65_536)] = 1.0
    autoscaling: Autoscaling | None = None
    standby: Annotated[int, Meta(ge=0, le=MAX_STANDBY_REPLICAS)] = 0

    @property
    def scaling(self) -> Scaling | None:
        """Its autoscaling as a deployment has it."""
        return None if self.autoscaling is None else self.autoscaling.scaling

    def begins_with(self, nodes: int) -> int:
        """Return on how many of the nodes that may serve it it is deployed."""
        usual = nodes if self.autoscaling is None else max(1, self.autoscaling.min)
        return self.replicas or usual


class Arrival(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request of a trace.

    Attributes:
        at_s: When it is made, in seconds after the load begins (its `start_s`).
        gateway: Name of the node that is asked; empty for a random one of the load's `via`.
    """

    at_s: NotNegative
    gateway: str = ""


class Load(Part, frozen=True, kw_only=True):
    """Requests that clients send.

    Attributes:
        model: For which model.
        shape: `poisson`: `rate_per_s` at random times; `constant`: evenly; `bursts`: `rate_per_s`, and
            `burst_rate_per_s` for `burst_s` of every `every_s`; `ramp`: from `rate_per_s` to
            `to_rate_per_s`; `daily`: a sine from `rate_per_s` at its lowest to `to_rate_per_s`, one day
            taking `every_s`; `trace`: the times in `file` or `arrivals`.
        rate_per_s: Requests per second, of all gateways together.
        to_rate_per_s: See `shape`.
        burst_rate_per_s: See `shape`.
        burst_s: See `shape`.
        every_s: See `shape`.
        file: One arrival per line: seconds, and after a comma optionally the gateway; its path is relative
            to the scenario's file. Reading puts what it says into `arrivals`.
        arrivals: The same in the scenario itself: `[seconds]` or `[seconds, gateway]` for each, in order.
        via: Nodes whose gateways are asked; each request goes to a random one of them.
        start_s: When it begins.
        end_s: When it ends; None for the end of the scenario.
        timeout_s: What a request may take.
        deadline_ms: An answer that comes later is no good (goodput); None for `timeout_s`.
        retry_elsewhere: Whether a client that lost its gateway asks another one, as the client library.
        region: Where it must run, as `Mesh-Region` says it: a region and those below it; empty for anywhere.
    """

    model: str
    shape: Literal["poisson", "constant", "bursts", "ramp", "daily", "trace"] = "poisson"
    rate_per_s: NotNegative = 10.0
    to_rate_per_s: NotNegative | None = None
    burst_rate_per_s: NotNegative | None = None
    burst_s: Positive | None = None
    every_s: Positive | None = None
    file: str | None = None
    arrivals: tuple[Arrival, ...] = ()
    via: Selection = ("all",)
    start_s: NotNegative = 0.0
    end_s: Positive | None = None
    timeout_s: Positive = 30.0
    deadline_ms: Positive | None = None
    retry_elsewhere: bool = True
    region: str = ""


class Expect(Part, frozen=True, kw_only=True):
    """What must hold at the end.

    Attributes:
        metric: A key of `meshnode.sim.running.result.METRICS`, such as `error_rate` or `p99_ms`.
        at_most: It must not be above.
        at_least: It must not be below.
        model: Only for requests of this model.
        after_s: Only for requests that were made after this time.
        before_s: Only for requests that were made before this time.
        via: Only for requests made at these nodes' gateways; empty for all.
        nodes: Whose share of the answers `served_share` is; for that metric alone.
    """

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    model: str | None = None
    after_s: NotNegative | None = None
    before_s: Positive | None = None
    via: Selection = ()
    nodes: Selection = ()


class Scenario(Part, frozen=True, kw_only=True):
    """A whole rehearsal.

    Attributes:
        name: A short one.
        title: One line.
        story: What happens, to whom, and what the mesh should do about it.
        depth: At which depth it is meant to run; others can be asked for.
        seed: The seed if none is asked for.
        duration_s: For how long clients send requests.
        regions: By name.
        paths: Between regions.
        network: Where no path says otherwise.
        devices: Classes of devices besides the built-in ones, or instead of them.
        nodes: Who is there.
        models: What they serve.
        load: What clients ask.
        faults: What goes wrong, and when.
        expect: What must hold at the end.
    """

    name: Name
    title: str = ""
    story: str = ""
    depth: Depth = "A"
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] = 1
    duration_s: Annotated[float, Meta(gt=0, le=604_800)] = 60.0
    regions: dict[Name, Place]
    paths: tuple[Path, ...] = ()
    network: NetworkPart = NetworkPart()
    devices: dict[Name, Device] = {}
    nodes: tuple[Nodes, ...]
    models: tuple[Model, ...] = ()
    load: tuple[Load, ...] = ()
    faults: tuple[AnyFault, ...] = ()
    expect: tuple[Expect, ...] = ()
