"""Faults as verbs: what can go wrong in a scenario, for how long, and for whom.

Each verb is a frozen type with what it needs; `at_s` and `for_s` say when it happens and after how
long it is undone. A fault without `for_s` stays. What has no undoing (a crash, a leave) takes no
`for_s` where that says so; a crash with `for_s` is followed by a restart.

`nodes` is a selection as in `meshnode.sim.scenario.model`: names, globs, `region:NAME`,
`device:CLASS`, `all`. Faults of the network take two selections, `nodes` and `others`; empty `others`
are all nodes that `nodes` does not name (for `nodes = ["all"]`: all).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from meshnode.limits import MAX_CLOCK_JUMP_S
from meshnode.state.release import Verb

Seconds = Annotated[float, Meta(ge=0)]
Duration = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Selection = tuple[str, ...]


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb"
):
    """Something that happens to a mesh.

    Attributes:
        at_s: When, in seconds after the load begins.
        for_s: After how long it is undone; None for never.
    """

    can_be_undone: ClassVar[bool] = True

    at_s: Seconds = 0.0
    for_s: Duration | None = None

    @property
    def verb(self) -> str:
        """The verb's name in scenario files."""
        return str(self.__struct_config__.tag)


# What happens to nodes.


class Crash(Fault, tag="crash", frozen=True, kw_only=True):
    """The process is gone at once, with no goodbye; its kernel closes its connections. Undone: restart.

    Attributes:
        nodes: To whom.
        torn: Whether what was written last before the crash is half on disk.
    """

    nodes: Selection
    torn: bool = False


class PowerOff(Fault, tag="power-off", frozen=True, kw_only=True):
    """The machine is gone: not even its connections are closed. Undone: it boots again.

    Attributes:
        nodes: To whom.
        torn: Whether what was written last before the power failed is half on disk.
    """

    nodes: Selection
    torn: bool = False


class Restart(Fault, tag="restart", frozen=True, kw_only=True):
    """A node that crashed, left or lost its power boots again, with `torn` on half-written files."""

    can_be_undone: ClassVar[bool] = False

    nodes: Selection
    torn: bool = False


class Freeze(Fault, tag="freeze", frozen=True, kw_only=True):
    """The process stands still as after SIGSTOP, its kernel answers. Undone: thaw."""

    nodes: Selection


class Thaw(Fault, tag="thaw", frozen=True, kw_only=True):
    """A frozen process runs on."""

    can_be_undone: ClassVar[bool] = False

    nodes: Selection


class Sleep(Fault, tag="sleep", frozen=True, kw_only=True):
    """A lid closes: the process stands still, and its machine is off the network. Undone: it wakes up."""

    nodes: Selection


class SlowDown(Fault, tag="slow-down", frozen=True, kw_only=True):
    """All that the node computes takes `factor` times as long."""

    nodes: Selection
    factor: Annotated[float, Meta(gt=0, le=10_000)] = 10.0


class Leave(Fault, tag="leave", frozen=True, kw_only=True):
    """The node says goodbye and ends. Undone: it starts again."""

    nodes: Selection


class Flap(Fault, tag="flap", frozen=True, kw_only=True):
    """The node crashes and restarts again and again, until it is undone."""

    nodes: Selection
    up_s: Duration = 10.0
    down_s: Duration = 5.0


class ClockSkew(Fault, tag="clock-skew", frozen=True, kw_only=True):
    """The node's clocks run fast (or slow, if negative) by this share; 0.001 is 86 s a day."""

    nodes: Selection
    rate: Annotated[float, Meta(gt=-0.5, le=1)] = 0.001


class ClockJump(Fault, tag="clock-jump", frozen=True, kw_only=True):
    """The node's wall clock is set by so many seconds, back if negative. Undone: it is set back."""

    nodes: Selection
    by_s: Annotated[float, Meta(ge=-MAX_CLOCK_JUMP_S, le=MAX_CLOCK_JUMP_S)]


class DiskFull(Fault, tag="disk-full", frozen=True, kw_only=True):
    """Nothing more can be written to the node's disk."""

    nodes: Selection


class Drain(Fault, tag="drain-battery", frozen=True, kw_only=True):
    """The node's battery is at this charge, and it is off the mains. Undone: it is on the mains again."""

    nodes: Selection
    percent: Annotated[float, Meta(ge=0, le=100)] = 5.0


# What happens to serving.


class LyingLoad(Fault, tag="lying-load", frozen=True, kw_only=True):
    """The node reports this share of its true load; 0 claims that it is idle."""

    nodes: Selection
    share: Annotated[float, Meta(ge=0, le=100)] = 0.0


class FailRequests(Fault, tag="fail-requests", frozen=True, kw_only=True):
    """Models of the node fail this share of their requests, at once."""

    nodes: Selection
    share: Share = 1.0


class StaleLoad(Fault, tag="stale-load", frozen=True, kw_only=True):
    """What the node says of its load is as old as this."""

    nodes: Selection
    age_s: Duration = 5.0


class Release(Fault, tag="release-model", frozen=True, kw_only=True):
    """A new version of a model is deployed, as `meshnode deploy` and `meshnode apply` do.

    Attributes:
        model: Of which.
        node: At which node that is asked for; empty for the first that takes it.
        release: How it takes the old version's place: the table `release` of a deployment file (docs/releases.md),
            such as `{ strategy = "canary", steps = [5, 50] }`; empty for directly.
        slowness: Its runs take so many times as long as the model's `service` says.
        fail_share: Share of its requests that fail, at once.
        fails_on: The class of devices on which they do; empty for all.
        differs_share: Share of the inputs to which its answers are others than those of all other versions; always
            the same inputs.
        load_error: Why it can be loaded nowhere; empty where it can.
        memory_gb: What one of its replicas takes; None for what the model says.
    """

    can_be_undone: ClassVar[bool] = False

    model: str
    node: str = ""
    release: dict[str, Any] = {}
    slowness: Annotated[float, Meta(gt=0, le=10_000)] = 1.0
    fail_share: Share = 0.0
    fails_on: str = ""
    differs_share: Share = 0.0
    load_error: str = ""
    memory_gb: Annotated[float, Meta(ge=0)] | None = None


class OrderRelease(Fault, tag="order-release", frozen=True, kw_only=True):
    """An operator asks something of a release that is under way, as `meshnode rollout` does.

    Attributes:
        model: Of which.
        order: What.
        node: At which node; empty for the first that runs.
    """

    can_be_undone: ClassVar[bool] = False

    model: str
    order: Verb
    node: str = ""


# What happens to the network.


class NetworkFault(Fault, frozen=True, kw_only=True):
    """Something between nodes.

    Attributes:
        nodes: One side.
        others: The other side; empty for everybody else.
    """

    nodes: Selection
    others: Selection = ()


class Partition(NetworkFault, tag="partition", frozen=True, kw_only=True):
    """Nothing gets through between the two sides.

    Attributes:
        one_way: Only what `nodes` send to `others` is lost.
        share: Of the pairs of nodes that are cut, drawn at random: below 1 the partition is partial.
        datagrams_only: Only datagrams are lost, as by a firewall.
    """

    one_way: bool = False
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    datagrams_only: bool = False


class Hold(NetworkFault, tag="hold", frozen=True, kw_only=True):
    """What is sent between the two sides waits. Undone: it is delivered, late."""


class Loss(NetworkFault, tag="loss", frozen=True, kw_only=True):
    """This share of the packets between the two sides is lost."""

    share: Share


class Duplication(NetworkFault, tag="duplication", frozen=True, kw_only=True):
    """This share of the datagrams between the two sides arrives twice."""

    share: Share


class Reordering(NetworkFault, tag="reordering", frozen=True, kw_only=True):
    """This share of the datagrams between the two sides arrives up to `by_ms` later than others."""

    share: Share
    by_ms: Duration = 50.0


class Latency(NetworkFault, tag="latency", frozen=True, kw_only=True):
    """The delay between the two sides is another: times `factor`, plus `add_ms` each way.

    Attributes:
        jitter: The relative deviation from then on; None leaves it.
    """

    factor: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    add_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    jitter: Share | None = None


class Bandwidth(NetworkFault, tag="bandwidth", frozen=True, kw_only=True):
    """Each node of one side can send each of the other side so much, megabits per second."""

    mbps: Annotated[float, Meta(gt=0)]


class RegionDown(Fault, tag="region-down", frozen=True, kw_only=True):
    """All machines of a region lose their power. Undone: they boot again."""

    region: str


class GossipDelay(NetworkFault, tag="gossip-delay", frozen=True, kw_only=True):
    """Datagrams and notes between the two sides take so much longer; requests do not."""

    add_ms: Annotated[float, Meta(gt=0, le=60_000)]


AnyFault = (
    Crash | PowerOff | Restart | Freeze | Thaw | Sleep | SlowDown | Leave | Flap | ClockSkew | ClockJump
    | DiskFull | Drain | LyingLoad | FailRequests | StaleLoad | Release | OrderRelease | Partition | Hold
    | Loss | Duplication | Reordering | Latency | Bandwidth | RegionDown | GossipDelay
)  # fmt: skip
"""Every verb."""

VERBS: Final[dict[str, type[Fault]]] = {
    str(verb.__struct_config__.tag): verb for verb in AnyFault.__args__
}
"""Every verb by its name in scenario files."""
