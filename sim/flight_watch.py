"""Watches what a gateway sends: each send is counted once, allowed, and ends once.

It takes the place of a node's `LoadBook`, its `RetryBudget`s and its requests' `Attempts` with subclasses that
behave the same and tell what they are told. That is where every gateway, virtual or real, opens and closes its sends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from meshnode.routing.attempts import Attempts
from meshnode.routing.budget import RetryBudget
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import Flight, ReplicaLoad
from meshnode.routing.load_book import LoadBook
from meshnode.routing.tries import Await, GiveUp, Try, Wait
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from meshnode.node import Node
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId
    from meshnode.wire.messages import LoadReport

BUDGET_WINDOW_S: Final = 10.0
"""Seconds over which docs/ARCHITECTURE.md compares a gateway's retries with its requests."""

_CONFIG: Final = RoutingConfig()


class FlightWatch:
    """One boot of one gateway.

    Attributes:
        open: Sends that have no end yet, with the stage second of their beginning.
    """

    def __init__(
        self,
        name: str,
        node: Node,
        now: Callable[[], float],
        broken: Callable[[str, str], NoReturn],
    ) -> None:
        """Take the place of the node's book and budget; both must be new.

        Args:
            name: The node's name.
            node: Its cores.
            now: Stage seconds.
            broken: Reports an invariant and what was seen; raises.
        """
        self.open: dict[Flight, float] = {}
        self._name = name
        self._node = node
        self._now = now
        self._broken = broken
        self._sent = 0
        self._planned = 0
        self._granted = 0
        self._requests: deque[float] = deque()  # node seconds, of one window
        self._retries: deque[float] = deque()
        self._hedges: deque[float] = deque()
        router = node.router
        router.book = _Book(self, router.book)
        router.budget = _Budget(self)
        router.hedges = _Hedges(self)
        self._right_plan = router.plan
        self._right_plan_rest = router.plan_rest
        # Methods of this one object are replaced, which mypy forbids: its class plans for unwatched nodes too.
        router.plan = self._plan  # type: ignore[method-assign]
        router.plan_rest = self._plan_rest  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<FlightWatch of {self._name}: {len(self.open)} open>"

    def starting(self, target: NodeId) -> None:
        """A request is about to be sent to a replica."""
        member = self._node.membership.members.get(target)
        if member is not None and member.state is NodeState.LEFT:
            self._broken(
                "not-to-the-left",
                f"{self._name} sends a request to {member.record.name}, which it knows to have left",
            )
        self._sent += 1
        if self._sent > self._planned + self._granted:
            self._broken(
                "attempts-within-budget",
                f"{self._name} sent {self._sent} times for {self._planned} requests and "
                f"{self._granted} granted retries and hedges",
            )

    def started(self, flight: Flight) -> None:
        """A send was counted."""
        self.open[flight] = self._now()

    def finishing(self, flight: Flight, load: ReplicaLoad) -> None:
        """A send is about to be counted as ended."""
        if self.open.pop(flight, None) is None:
            self._broken(
                "in-flight-conserved",
                f"{self._name} ended a request to {self._target(load)} a second time",
            )
        if load.outstanding < 1:
            self._broken(
                "in-flight-conserved",
                f"{self._name} counts {load.outstanding} requests to {self._target(load)} as in flight",
            )

    def tried(self, plan: _Plan, step: Try, out: tuple[Replica, ...]) -> None:
        """A request's plan says to send it there, while these replicas have it."""
        replica = step.route.replica
        where = f"{self._name} sends a request for {replica.model!r} to {replica.node_name}"
        tries = len(plan.tried) + plan.flying
        if tries > 1 + _CONFIG.max_retries + plan.fell_back:
            self._broken("attempts-within-budget", f"{where}, and that is try number {tries}")
        if any((each.node, each.version) == (replica.node, replica.version) for each in out):
            self._broken("attempts-within-budget", f"{where} beside another try there")
        if not out:
            return
        if step.route.reason != "hedge":
            self._broken("attempts-within-budget", f"{where}, though another try is out")
        manifest = self._node.router.table.manifest(replica.model, replica.version)
        if manifest is not None and not manifest.execution.repeatable:
            self._broken(
                "attempts-within-budget", f"{where} beside another try; it must not run twice"
            )

    def still_out(self, plan: Attempts, allowed: int) -> None:
        """A request has its answer, or is given up: no other try of it may be out."""
        if plan.flying > allowed:
            self._broken(
                "in-flight-conserved",
                f"{self._name} counts {plan.flying} tries of a request whose end it knows as in flight",
            )

    def planned(self, now: float) -> None:
        """A request came in, at this second of the node's clock."""
        self._planned += 1
        self._requests.append(now)
        self._forget(now)

    def granted(self, now: float) -> None:
        """A retry was granted."""
        self._granted += 1
        self._retries.append(now)
        self._forget(now)
        allowed = max(
            _CONFIG.retry_ratio * len(self._requests),
            _CONFIG.retry_floor_per_s * BUDGET_WINDOW_S,
        )
        if len(self._retries) > allowed:
            self._broken(
                "attempts-within-budget",
                f"{self._name} made {len(self._retries)} retries in {BUDGET_WINDOW_S:g} s; its "
                f"{len(self._requests)} requests allow {allowed:g}",
            )

    def hedged(self, now: float) -> None:
        """A hedge was granted."""
        self._granted += 1
        self._hedges.append(now)
        self._forget(now)
        allowed = _CONFIG.hedge_ratio * len(self._requests)
        if len(self._hedges) > allowed:
            self._broken(
                "attempts-within-budget",
                f"{self._name} sent {len(self._hedges)} hedges in {BUDGET_WINDOW_S:g} s; its "
                f"{len(self._requests)} requests allow {allowed:g}",
            )

    def fell_back(self) -> None:
        """A request goes on to the version that a release has it fall back on, which costs no budget."""
        self._granted += 1

    def look(self, longest_s: float) -> None:
        """Check that no send has been open for longer than this."""
        before = self._now() - longest_s
        for flight, since in self.open.items():
            if since < before:
                self._broken(
                    "in-flight-conserved",
                    f"{self._name} still counts a request to {self._target(flight.load)} as in flight, "
                    f"{self._now() - since:.1f} s after it was sent",
                )
            return  # the others are younger

    def quiet(self) -> None:
        """Check that nothing is counted as in flight."""
        router = self._node.router
        for model, versions in router.table.models().items():
            for version in versions:
                for replica in router.table.replicas(model, version):
                    load = router.book.load(replica.node, model, version)
                    if load.outstanding:
                        self._broken(
                            "in-flight-conserved",
                            f"{self._name} counts {load.outstanding} requests to {replica.node_name} "
                            f"as in flight with no call open",
                        )

    def _plan(self, request: RoutedRequest, now: float) -> Attempts:
        return self._watched(self._right_plan(request, now))

    def _plan_rest(self, request: RoutedRequest, now: float, tried: tuple[NodeId, ...]) -> Attempts:
        return self._watched(self._right_plan_rest(request, now, tried))

    def _watched(self, plan: Attempts) -> Attempts:
        plan.__class__ = _Plan
        return plan

    def _target(self, load: ReplicaLoad) -> str:
        """Return the name of the node that a load is of."""
        if not isinstance(load, _Load):
            return "a node"
        member = self._node.membership.members.get(load.node)
        return member.record.name if member is not None else load.node

    def _forget(self, now: float) -> None:
        before = now - BUDGET_WINDOW_S
        for times in (self._requests, self._retries, self._hedges):
            while times and times[0] <= before:
                times.popleft()


class _Load(ReplicaLoad):
    """The beliefs about one replica; tells of each send."""

    __slots__ = ("_watch", "node")

    def __init__(self, watch: FlightWatch, node: NodeId, slots: int, service_ms: float) -> None:
        super().__init__(slots, service_ms)
        self._watch = watch
        self.node = node

    def start(self, now: float, rtt_ms: float, service_ms: float | None = None) -> Flight:
        self._watch.starting(self.node)
        flight = super().start(now, rtt_ms, service_ms)
        self._watch.started(flight)
        return flight

    def finish(
        self,
        flight: Flight,
        now: float,
        ok: bool | None,
        report: LoadReport | None = None,
        run_ms: float = 0.0,
        *,
        timed: bool = True,
    ) -> None:
        self._watch.finishing(flight, self)
        super().finish(flight, now, ok, report, run_ms, timed=timed)


class _Book(LoadBook):
    """The beliefs about all replicas; those about a replica are a `_Load`."""

    def __init__(self, watch: FlightWatch, before: LoadBook) -> None:
        super().__init__(before._first_service_ms)
        self.watch = watch
        self._paths = before._paths

    def load(
        self, node: NodeId, model: str, version: int, slots: int = 1, profiled_ms: float = 0.0
    ) -> ReplicaLoad:
        load = super().load(node, model, version, slots, profiled_ms)
        if not isinstance(load, _Load):
            load = _Load(self.watch, node, load.slots, load.service_ms)
            self._loads[model, version][node] = load
        return load


class _Budget(RetryBudget):
    """The retries that are left; tells of each request and retry."""

    def __init__(self, watch: FlightWatch) -> None:
        super().__init__(_CONFIG.retry_ratio, _CONFIG.retry_floor_per_s)
        self._watch = watch

    def request(self, now: float) -> None:
        super().request(now)
        self._watch.planned(now)

    def take(self, now: float) -> bool:
        is_granted = super().take(now)
        if is_granted:
            self._watch.granted(now)
        return is_granted


class _Hedges(RetryBudget):
    """The hedges that are left; tells of each one."""

    def __init__(self, watch: FlightWatch) -> None:
        super().__init__(_CONFIG.hedge_ratio, 0.0)
        self._watch = watch

    def take(self, now: float) -> bool:
        is_granted = super().take(now)
        if is_granted:
            self._watch.hedged(now)
        return is_granted


class _Plan(Attempts):
    """The tries of one request; tells of each, and of its end."""

    __slots__ = ()  # so that a plan that was made can become one

    def next(self, now: float) -> Try | Wait | Await | GiveUp:
        out = self._out()
        step = super().next(now)
        if isinstance(step, Try):
            self._watch.tried(self, step, out)
        return step

    def beside(self, now: float) -> Try | None:
        out = self._out()
        step = super().beside(now)
        if step is not None:
            self._watch.tried(self, step, out)
        return step

    @property
    def fell_back(self) -> bool:
        """Whether another version stands in for the one that a release chose."""
        return self._stands_in

    def _fall_back(self) -> bool:
        falls_back = super()._fall_back()
        if falls_back:
            self._watch.fell_back()
        return falls_back

    def first_byte(self, now: float, step: Try | None = None) -> None:
        super().first_byte(now, step)
        self._watch.still_out(self, 1)

    def succeeded(
        self,
        now: float,
        report: LoadReport | None = None,
        step: Try | None = None,
        run_ms: float = 0.0,
        *,
        kept: bool = False,
    ) -> None:
        super().succeeded(now, report, step, run_ms, kept=kept)
        self._watch.still_out(self, 0)

    def close(self, now: float) -> None:
        super().close(now)
        self._watch.still_out(self, 0)

    @property
    def _watch(self) -> FlightWatch:
        book = getattr(self._source, "book", None)
        assert isinstance(book, _Book)
        return book.watch

    def _out(self) -> tuple[Replica, ...]:
        return tuple(each.step.route.replica for each in self._flying)
