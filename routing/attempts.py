"""The retry plan of one request, as a state machine without I/O.

How it works
    The pipeline asks `next` where to send the request, does so, and tells the outcome; then it
    asks again::

        attempts = router.plan(model, version, timeout_s, now)
        try:
            while True:
                step = attempts.next(now)
                if isinstance(step, GiveUp):
                    raise step.error
                ...  send to step.route; wait step.first_byte_timeout_s for the first byte
                attempts.first_byte()      # from here on nothing is tried again
                ...
                attempts.succeeded(now, report)   # at the end of the stream; or else
                attempts.failed(error, now)       # or timed_out(now), and around again
        finally:
            attempts.close(now)            # whatever was left open was cancelled

    idle      `next` -> flying (a try is out), or over (GiveUp)
    flying    `failed`, `timed_out` -> idle; `succeeded`, `close` -> over
    over      `next` gives the same GiveUp again; all else is a mistake of the caller

    A try is repeated only if all of this holds: the error says that another replica may succeed,
    no byte of an answer has been seen, fewer than two retries were made, time is left, there is a
    replica that was not tried, and the budget grants it. The second retry goes outside the
    regions that failed where it can. Candidates are looked up anew each time, so a replica that
    became ready meanwhile counts.

    Each try opens one flight (`ReplicaLoad.start`) and takes one breaker permit, and each way out
    of `flying` closes exactly that one: this is where in-flight counts are conserved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshnode.errors import (
    DeadlineExceeded,
    LinkLost,
    MeshError,
    NoReplica,
    Saturated,
)
from meshnode.routing.breaker import Verdict, verdict_of
from meshnode.routing.choice import Candidates, Chooser, Route, drops
from meshnode.routing.header import mesh_route_header

if TYPE_CHECKING:
    import random

    from meshnode.routing.budget import RetryBudget
    from meshnode.routing.config import RoutingConfig
    from meshnode.routing.load import Flight
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId
    from meshnode.wire.messages import LoadReport

_OK = {Verdict.SUCCESS: True, Verdict.FAILURE: False, Verdict.FATAL: False, Verdict.NEUTRAL: None}


class Try(NamedTuple):
    """Send the request there.

    Attributes:
        route: The decision.
        first_byte_timeout_s: How long to wait for the first byte; then `timed_out`.
        remaining_s: Time left for the whole request, to be sent along.
    """

    route: Route
    first_byte_timeout_s: float
    remaining_s: float


class GiveUp(NamedTuple):
    """Answer with this error; nothing else is tried."""

    error: MeshError


class Source(Protocol):
    """What a plan draws on: the router."""

    @property
    def budget(self) -> RetryBudget:
        """The retries that are left."""
        ...

    @property
    def rng(self) -> random.Random:
        """Draws each pick."""
        ...

    @property
    def config(self) -> RoutingConfig:
        """Limits on retries."""
        ...

    @property
    def choose(self) -> Chooser:
        """Decides between candidates."""
        ...

    def candidates(self, model: str, version: int | None) -> Candidates:
        """Return who could serve now; raises ModelNotFound or NoReplica."""
        ...


class Attempts:
    """One request's tries."""

    __slots__ = (
        "_deadline",
        "_error",
        "_final",
        "_flight",
        "_may_wait_elsewhere",
        "_model",
        "_patience_s",
        "_permit",
        "_source",
        "_streaming",
        "_tried_nodes",
        "_tried_regions",
        "_tries",
        "_version",
        "route",
        "tried",
    )

    def __init__(self, source: Source, model: str, version: int | None, deadline: float) -> None:
        """Plan a request that must be answered by `deadline` (monotonic seconds)."""
        self._source = source
        self._model = model
        self._version = version
        self._deadline = deadline
        self._flight: Flight | None = None
        self._permit = 0
        self._tries = 0
        self._patience_s = 0.0
        self._may_wait_elsewhere = False
        self._streaming = False
        self._error: MeshError | None = None
        self._final: GiveUp | None = None
        self._tried_nodes: tuple[NodeId, ...] = ()
        self._tried_regions: tuple[str, ...] = ()
        self.route: Route | None = None
        """The current or last try's decision."""
        self.tried: tuple[tuple[str, str], ...] = ()
        """Node name and error code of each try that failed."""

    def __repr__(self) -> str:
        state = "flying" if self._flight else "over" if self._final else "idle"
        return f"<Attempts {self._model}: {state}, tried {list(self.tried)}>"

    @property
    def header(self) -> str:
        """The `Mesh-Route` header's value once there was a try, for answers and errors alike."""
        if self.route is None:
            return ""
        return mesh_route_header(self.route, self.tried, self._tries)

    def next(self, now: float) -> Try | GiveUp:
        """Return where to send the request, or why to give up."""
        if self._flight is not None:
            raise RuntimeError("the try before has no outcome yet")
        if self._final is not None:
            return self._final
        remaining_s = self._deadline - now
        error = self._why_not_again() if self._error is not None else None
        if error is None and remaining_s <= 0:
            error = DeadlineExceeded("no time was left to run the request")
        if error is not None:
            return self._give_up(error)
        try:
            candidates = self._source.candidates(self._model, self._version)
        except MeshError as unknown:
            return self._give_up(unknown)
        route = self._source.choose(
            candidates,
            now,
            self._source.rng,
            tried=self._tried_nodes,
            avoid_regions=self._tried_regions if len(self.tried) > 1 else (),
        )
        if route is None:
            return self._give_up(self._nobody(candidates, now))
        if self._error is not None and not self._source.budget.take(now):
            return self._give_up(self._error)
        return self._send(route, now, remaining_s)

    def first_byte(self) -> None:
        """The answer has begun: from now on a failure is final."""
        self._streaming = True

    def succeeded(self, now: float, report: LoadReport | None = None) -> None:
        """The answer is complete (a stream: at its end)."""
        self._land(Verdict.SUCCESS, "", now, report)
        self._final = GiveUp(MeshError("the request was answered already"))

    def failed(self, error: MeshError, now: float, report: LoadReport | None = None) -> None:
        """The try ended with an error: the path's, the replica's, the model's or the caller's own.

        A deadline that passed counts against the replica only if it was given the time that
        usually suffices: a caller in a hurry proves nothing.
        """
        verdict = verdict_of(error)
        if isinstance(error, DeadlineExceeded) and self._waited_s(now) >= self._patience_s:
            verdict = Verdict.FAILURE
        self._fail(error, verdict, now, report)

    def timed_out(self, now: float) -> None:
        """The time for the first byte is over: the request's own, or this try's share of it."""
        waited_s = self._waited_s(now)
        text = f"no answer within {waited_s:.1f} s"
        error = LinkLost(text) if self._may_wait_elsewhere else DeadlineExceeded(text)
        patient = self._may_wait_elsewhere or waited_s >= self._patience_s
        self._fail(error, Verdict.FAILURE if patient else Verdict.NEUTRAL, now, None)

    def close(self, now: float) -> None:
        """End the plan: a try without an outcome was cancelled. May be called at any time."""
        if self._flight is not None:
            self._land(Verdict.NEUTRAL, "", now, None)
        if self._final is None:
            self._final = GiveUp(self._error or MeshError("the request was closed"))

    def _send(self, route: Route, now: float, remaining_s: float) -> Try:
        config = self._source.config
        chosen = route.candidate
        self.route = route
        self._tries += 1
        self._flight = chosen.load.start(now, chosen.rtt_ms)
        self._permit = chosen.breaker.take(now)
        self._patience_s = max(
            config.first_byte_floor_s, config.first_byte_factor * route.expected_ms / 1000
        )
        self._may_wait_elsewhere = (
            route.candidates > 1
            and len(self.tried) < config.max_retries
            and self._patience_s < remaining_s
        )
        first_byte_s = self._patience_s if self._may_wait_elsewhere else remaining_s
        return Try(route, first_byte_s, remaining_s)

    def _fail(
        self, error: MeshError, verdict: Verdict, now: float, report: LoadReport | None
    ) -> None:
        replica = self._land(verdict, error.code, now, report)
        self._error = error
        self.tried += ((replica.node_name, error.code),)
        self._tried_nodes += (replica.node,)
        self._tried_regions += (replica.region,)

    def _waited_s(self, now: float) -> float:
        return now - self._flight.started_at if self._flight is not None else 0.0

    def _land(self, verdict: Verdict, cause: str, now: float, report: LoadReport | None) -> Replica:
        """Close the open flight, tell its replica's breaker and load, and return the replica."""
        flight, route = self._flight, self.route
        if flight is None or route is None:
            raise RuntimeError("there is no try that could have an outcome")
        self._flight = None
        counts = route.candidate.breaker.record(self._permit, verdict, now, cause)
        # One lost link fails all its requests at once; it is one failure, and a stale one none.
        ok = _OK[verdict] if counts or verdict is Verdict.SUCCESS else None
        flight.load.finish(flight, now, ok, report)
        return route.replica

    def _why_not_again(self) -> MeshError | None:
        error = self._error
        assert error is not None
        over = len(self.tried) > self._source.config.max_retries
        return error if self._streaming or over or not error.retryable else None

    def _nobody(self, candidates: Candidates, now: float) -> MeshError:
        if any(code == Saturated.code for _, code in self.tried):
            said = f" ({self._error})" if isinstance(self._error, Saturated) else ""
            return Saturated(
                f"every replica of model {self._model!r} is busy; try again later{said}"
            )
        failed = dict(self.tried)
        reasons = [
            f"{name}: {failed.get(name, reason)}"
            for name, reason in drops(candidates, now, self._tried_nodes)
        ]
        return NoReplica(
            f"no replica of model {self._model!r} can take the request: {'; '.join(reasons)}"
        )

    def _give_up(self, error: MeshError) -> GiveUp:
        self._final = GiveUp(error)
        return self._final
