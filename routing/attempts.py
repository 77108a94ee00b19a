"""The tries of one request, as a state machine without I/O.

How it works
    The pipeline asks `next` where to send the request, does so, and tells the outcome; then it
    asks again::

        attempts = router.plan(request, now)
        try:
            while True:
                step = attempts.next(now)
                if isinstance(step, GiveUp):
                    raise step.error
                if isinstance(step, Wait):
                    ...  let step.pause_s pass, and around again
                ...  send to step.route, and wait for the first byte
                ...  at attempts.beside_at: other = attempts.beside(now); if it is a try, send it, too
                attempts.first_byte(now, step)      # from here on nothing is tried again
                ...
                attempts.succeeded(now, report, step)   # at the end of the stream; or else
                attempts.failed(error, now, report, step)   # or timed_out(now, step), and around again
        finally:
            attempts.close(now)            # whatever was left open was cancelled

    idle      `next` -> flying (a try is out), or over (GiveUp)
    flying    `beside` adds a try; `failed` and `timed_out` end one: of the last -> idle
              `succeeded`, `close` -> over
    over      `next` gives the same GiveUp again; all else is a mistake of the caller

    A try is repeated only if all of this holds: the error says that another replica may succeed,
    no byte of an answer has been seen, fewer than two retries were made, time is left, there is a
    replica that was not tried, and the budget grants it. The second retry goes outside the
    regions that failed where it can, and after a pause if it was busy replicas that failed: the
    budget counts it from before the pause. Candidates are looked up anew each time, so a replica
    that became ready meanwhile counts. A request at which a model raised is tried elsewhere, too:
    if it raises wherever it goes the request is to blame, and no breaker counts it.

    A try that is slow is not given up, for its work may be about to end; another is sent beside it
    and the first answer counts. Twice it can come to that: when most answers would be here (a
    hedge, under its own budget, see `meshnode.routing.hedging`), and when the try is *late*, which
    is long after that and takes a retry from the budget. Of those that lost, a late one counts as
    failed. Where nobody else can be asked, the first one has all the time that the client gives.

    Where the model says that its requests must not run twice (`Candidates.repeatable`), the error
    must also say that nothing ran, and nothing is ever sent beside a try. Requests of a sequence go
    where `meshnode.routing.affinity` says.

    Where a link through another node (a relay) broke, the replica itself is not at fault: it may be
    asked again. If there is no other, the request waits for its new link, for `NEW_RELAY_S` at most.

    A request that a release sends to a new version names the old one to fall back on (`fallback`). That is asked next
    whatever the error is, at no cost to the budget; where no replica of the new version can take the request; and
    beside a try that is late, or has had half of the caller's time. So nobody gets an error for the sake of a release.
    What tries show of both versions goes to `meshnode.routing.releasing.witness`.

    Each try opens one flight (`Candidate.start`) and takes one breaker permit, and each way out
    of `flying` closes exactly that one: this is where in-flight counts are conserved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    LinkLost,
    MeshError,
    Saturated,
    SequenceMoved,
)
from meshnode.limits import NEW_RELAY_S
from meshnode.routing.breaker import Verdict, verdict_of
from meshnode.routing.breakers import LATE
from meshnode.routing.choice import Candidates, Route, drops
from meshnode.routing.header import mesh_route_header
from meshnode.routing.hedging import is_worth_it, utilisation
from meshnode.routing.load import OVERHEAD_MS, LinkState
from meshnode.routing.refusals import all_busy, is_conclusive, nobody_can, unknown_outcome
from meshnode.routing.releasing.witness import Witness
from meshnode.routing.tries import Await, Flying, GiveUp, Source, Try, Wait, patience_s

if TYPE_CHECKING:
    from meshnode.routing.affinity import SequenceRouting
    from meshnode.routing.breakers import Guard, Permit
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId
    from meshnode.wire.messages import LoadReport

_LINK_LOOK_S: Final = 0.05
"""Between looks whether a link is there again: little beside the time that a hello takes."""

_OK = {Verdict.SUCCESS: True, Verdict.FAILURE: False, Verdict.FATAL: False, Verdict.NEUTRAL: None}


class Attempts:
    """One request's tries.

    Attributes:
        route: The current or last try's decision; once there is an answer, that of its try.
        tried: Node name and error code of each try that failed.
        beside_at: When `beside` is to be asked (monotonic seconds); infinite for never.
    """

    __slots__ = (
        "_arm",
        "_beside_is_late",
        "_cut_off",
        "_deadline",
        "_error",
        "_fallback",
        "_final",
        "_flying",
        "_forgiven",
        "_hedged",
        "_is_forgiven",
        "_is_granted",
        "_is_rested",
        "_linked_by",
        "_raised",
        "_repeatable",
        "_request",
        "_retry_after_s",
        "_sequence",
        "_source",
        "_stands_in",
        "_streaming",
        "_tried_nodes",
        "_tried_regions",
        "_tries",
        "_witness",
        "beside_at",
        "route",
        "tried",
    )

    def __init__(
        self,
        source: Source,
        request: RoutedRequest,
        deadline: float,
        sequence: SequenceRouting | None = None,
        *,
        tried: tuple[NodeId, ...] = (),
    ) -> None:
        """Plan a request that must be answered by `deadline` (monotonic seconds).

        Args:
            source: What to draw on.
            request: What is asked for.
            deadline: Monotonic seconds.
            sequence: Chooses instead of the source for a request of a sequence.
            tried: Nodes that it must not go to.
        """
        self._source = source
        self._request = request
        self._deadline = deadline
        self._sequence = sequence
        self._flying: list[Flying] = []
        self._tries = 0
        self._hedged = False
        self._repeatable = True
        self._streaming = False
        self._is_granted = False  # the next retry, by the budget
        self._is_rested = False  # its pause is over
        self._raised: list[tuple[Guard, Permit]] = []
        self._cut_off: set[NodeId] = set()  # by relays that were lost
        self._linked_by = -math.inf  # until then their new links are waited for
        self._error: MeshError | None = None
        self._final: GiveUp | None = None
        self._retry_after_s = math.inf
        self._arm = request.version
        self._fallback = request.fallback
        self._stands_in = False  # another version, for the one that was asked first
        self._is_forgiven = False  # the last error, as another version stands in
        self._forgiven = 0
        live = source.releases.of(request.model)
        counts = live is not None and (request.is_arm or request.version is None)
        self._witness = Witness(live) if live is not None and counts else None
        self._tried_nodes = tried
        self._tried_regions: tuple[str, ...] = ()
        self._beside_is_late = False
        self.beside_at = math.inf
        self.route: Route | None = None
        self.tried: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        state = "over" if self._final else "flying" if self._flying else "idle"
        return f"<Attempts {self._request.model}: {state}, tried {list(self.tried)}>"

    @property
    def header(self) -> str:
        """The `Mesh-Route` header's value once there was a try, for answers and errors alike."""
        if self.route is None:
            return ""
        return mesh_route_header(self.route, self.tried, self._tries)

    @property
    def alone_s(self) -> float:
        """Seconds that the last try would take at a free replica; 0 if there was none."""
        if self.route is None:
            return 0.0
        candidate = self.route.candidate
        return (candidate.rtt_ms + candidate.load.service_ms) / 1000

    @property
    def flying(self) -> int:
        """How many tries are out."""
        return len(self._flying)

    # What to do.

    def next(self, now: float) -> Try | Wait | Await | GiveUp:
        """Return where to send the request, or why to give up; `Await` while another try is out."""
        if self._final is not None:
            return self._final
        error = self._why_not_again(now) if self._error is not None else None
        if self._flying:
            return self._give_up(error) if error is not None and is_conclusive(error) else Await()
        remaining_s = self._deadline - now
        if error is None and remaining_s <= 0:
            error = DeadlineExceeded("no time was left to run the request")
        if error is not None:
            self._pardon(now)
            return self._give_up(error)
        self._request = self._request._replace(timeout_s=remaining_s)
        try:
            candidates, route = self._choose(now)
        except MeshError as unknown:
            return self._give_up(self._nobody_else(unknown, now))
        if route is None and self._waits_for_link(candidates, now):
            return Wait(min(_LINK_LOOK_S, remaining_s))
        if route is None:
            return self._give_up(self._nobody_else(self._nobody(candidates, now), now))
        if self._error is not None and not isinstance(self._error, SequenceMoved):
            if not self._is_granted and not self._source.budget.take(now):
                return self._give_up(self._error)
            self._is_granted = True
            pause_s = self._pause_s(remaining_s)
            if pause_s > 0:
                self._is_rested = True
                return Wait(pause_s)
        return self._send(route, candidates, now, remaining_s)

    def beside(self, now: float) -> Try | None:
        """Return a try to send beside the one that is out, if that is allowed; else the next `beside_at` holds."""
        if self.beside_at == math.inf or not self._flying:  # the last one may have failed since
            return None
        late = self._beside_is_late
        newest = self._flying[-1]
        self._beside_next(newest, hedge=False, late=not late)
        falls_back = late and self._fall_back()
        other = self._stand_in(now) if falls_back else self._other(now)
        if other is None:
            return None
        route, candidates = other
        if not late and not self._may_hedge(newest, route, candidates, now):
            return None
        if late and not falls_back and not self._source.budget.take(now):
            return None
        self._hedged = self._hedged or not late
        route = route._replace(reason="hedge")
        return self._send(route, candidates, now, self._deadline - now)

    # What happened.

    def first_byte(self, now: float, step: Try | None = None) -> None:
        """A try's answer has begun: from now on a failure is final, and other tries have lost."""
        flying = self._one(step)
        self._answered(flying, now)
        self._streaming = True
        if self._witness is not None:
            self._witness.began(flying, now)
        self._lose(now, flying)

    def succeeded(
        self,
        now: float,
        report: LoadReport | None = None,
        step: Try | None = None,
        run_ms: float = 0.0,
        *,
        kept: bool = False,
    ) -> None:
        """A try's answer is complete (a stream: at its end).

        Args:
            now: Monotonic seconds.
            report: How busy the replica is, where it says so.
            step: The try; the only one that is out if None.
            run_ms: How long it ran, as the replica says; 0 if unknown.
            kept: Whether the replica had answered the like before, and kept the answer.
        """
        flying = self._one(step)
        if not self._streaming:
            self._answered(flying, now)
            self._lose(now, flying)
        if self._witness is not None:
            self._witness.succeeded(flying, now, run_ms, kept=kept)
        replica = self._land(flying, Verdict.SUCCESS, "", now, report, run_ms)
        self._source.answered(self._request, replica.node, now)
        if self._sequence is not None:
            self._sequence.succeeded(replica, now)
        self._final = GiveUp(MeshError("the request was answered already"))

    def failed(
        self,
        error: MeshError,
        now: float,
        report: LoadReport | None = None,
        step: Try | None = None,
    ) -> None:
        """A try ended with an error: the path's, the replica's, the model's or the caller's own.

        A deadline that passed counts against the replica only if it was given the time that
        usually suffices: a caller in a hurry proves nothing.
        """
        flying = self._one(step)
        verdict, cause = verdict_of(error), error.code
        if isinstance(error, DeadlineExceeded) and flying.is_late(now):
            verdict, cause = Verdict.FAILURE, LATE
        self._fail(flying, error, verdict, cause, now, report)

    def timed_out(self, now: float, step: Try | None = None) -> None:
        """The time for the whole request is over, and a try has not answered."""
        flying = self._one(step)
        text = f"no answer within {flying.waited_s(now):.1f} s"
        if not self._repeatable:
            text += "; the request may have run"
        self.failed(DeadlineExceeded(text), now, None, flying.step)

    def close(self, now: float) -> None:
        """End the plan: tries without an outcome were cancelled. May be called at any time."""
        self._lose(now, None)
        if self._witness is not None:
            self._witness.closed()
        if self._final is None:
            self._final = GiveUp(self._error or MeshError("the request was closed"))

    # Choosing and sending.

    def _choose(self, now: float) -> tuple[Candidates, Route | None]:
        """Choose a replica; of the version that stands in, where none of the other one can take the request."""
        try:
            candidates, route = self._choice(now)
        except MeshError:
            if not self._fall_back():
                raise
            return self._choice(now)
        if route is None and self._fall_back():
            return self._choice(now)
        return candidates, route

    def _choice(self, now: float) -> tuple[Candidates, Route | None]:
        source = self._source
        if self._sequence is not None:
            return self._sequence.choose(source, self._request, now, self._tried_nodes)
        candidates = source.candidates(self._request.model, self._request.version)
        route = source.choose(
            candidates,
            self._request,
            now,
            source.rng,
            tried=self._tried_nodes,
            avoid_regions=self._tried_regions if len(self.tried) > 1 else (),
        )
        return candidates, route

    def _other(self, now: float) -> tuple[Route, Candidates] | None:
        """Choose for a try beside those that are out: of the same version, and only a healthy replica."""
        source, replica = self._source, self._flying[-1].step.route.replica
        out = tuple(each.step.route.replica.node for each in self._flying)
        self._request = self._request._replace(timeout_s=self._deadline - now)
        try:
            candidates = source.candidates(replica.model, replica.version)
        except MeshError:
            return None
        tried = self._tried_nodes + out
        route = source.choose(candidates, self._request, now, source.rng, tried=tried)
        if route is None or route.reason in ("last-resort", "probe"):
            return None
        return route, candidates

    def _fall_back(self) -> bool:
        """Have the next try go to the version that stands in for the one that was asked, if it is served."""
        version, self._fallback = self._fallback, None
        if version is None or self._sequence is not None:
            return False
        try:
            self._source.candidates(self._request.model, version)
        except MeshError:
            return False
        self._request = self._request._replace(version=version, fallback=None)
        self._tried_nodes, self._tried_regions = (), ()
        self._stands_in = self._is_granted = self._is_rested = True
        return True

    def _stand_in(self, now: float) -> tuple[Route, Candidates] | None:
        """Choose for a try of the version that stands in: on another node than those that are out, if there is one."""
        source = self._source
        self._request = self._request._replace(timeout_s=self._deadline - now)
        try:
            candidates = source.candidates(self._request.model, self._request.version)
        except MeshError:
            return None
        out = tuple(each.step.route.replica.node for each in self._flying)
        for tried in (out, ()):
            route = source.choose(candidates, self._request, now, source.rng, tried=tried)
            if route is not None:
                return route, candidates
        return None

    def _may_hedge(self, newest: Flying, route: Route, candidates: Candidates, now: float) -> bool:
        return (
            is_worth_it(newest.waited_s(now), route.expected_ms)
            and utilisation(candidates.ready) < self._source.config.hedge_utilisation
            and self._source.hedges.take(now)
        )

    def _send(self, route: Route, candidates: Candidates, now: float, remaining_s: float) -> Try:
        chosen = route.candidate
        self._repeatable = candidates.repeatable
        self._is_granted = self._is_rested = False
        self._tries += 1
        self.route = route
        has_others = (
            self._sequence is not None
            and self._sequence.begins
            and route.candidates > 1
            and self._tries <= self._source.config.max_retries
        )
        step = Try(route, remaining_s, self._tries, has_others)
        times = self._source.answer_times(route.replica.model, route.replica.version)
        flight = chosen.start(self._request, now)
        until_late_s = patience_s(self._source.config, times, route.expected_ms)
        flying = Flying(step, flight, chosen.breaker.take(now), until_late_s, times)
        self._flying.append(flying)
        if self._sequence is not None:
            self._sequence.sent(route.replica, now)
        self._beside_next(flying, hedge=not self._hedged, late=True)
        return step

    def _beside_next(self, newest: Flying, *, hedge: bool, late: bool) -> None:
        """Set when another try may be sent beside the newest one."""
        self.beside_at = math.inf
        config = self._source.config
        alone = self._tries > config.max_retries or newest.step.route.candidates < 2
        has_stand_in = self._fallback is not None
        if (
            (alone and not has_stand_in)
            or not self._repeatable
            or self._sequence is not None
            or self._streaming
        ):
            return
        at = newest.hedge_at(config) if hedge and not alone else math.inf
        self._beside_is_late = late and at == math.inf
        if self._beside_is_late:
            at = newest.late_at
            if has_stand_in:
                at = min(at, (newest.flight.started_at + self._deadline) / 2)
        self.beside_at = at if at < self._deadline else math.inf

    def _waits_for_link(self, candidates: Candidates, now: float) -> bool:
        """Whether a replica is only missing the link to its node, and that one is being made again."""
        return now < self._linked_by and any(
            each.replica.node in self._cut_off and each.path.link is not LinkState.UP
            for each in candidates.ready
        )

    def _pause_s(self, remaining_s: float) -> float:
        """Return how long to wait before this retry: from the second busy replica on."""
        busy = sum(code == Saturated.code for _, code in self.tried)
        if busy < 2 or self._is_rested or not isinstance(self._error, Saturated):
            return 0.0
        longest_s = self._source.config.busy_pause_s * 2.0 ** (busy - 2)
        return min(remaining_s, longest_s * (0.5 + self._source.rng.random()))

    # Outcomes.

    def _one(self, step: Try | None) -> Flying:
        """Return the try that this is about; without one, the only one that is out."""
        for each in self._flying:
            if step is None or each.step is step:
                return each
        raise RuntimeError("there is no try that could have an outcome")

    def _answered(self, flying: Flying, now: float) -> None:
        self.route = flying.step.route
        expected_s = max(OVERHEAD_MS, self.route.expected_ms) / 1000
        flying.times.add(flying.waited_s(now) / expected_s)

    def _lose(self, now: float, winner: Flying | None) -> None:
        """All other tries are cancelled; one that was late lost by its own fault, if somebody won."""
        for each in [one for one in self._flying if one is not winner]:
            if winner is not None and self._witness is not None:
                self._witness.lost(each, now)
            if winner is not None and each.is_late(now):
                self._land(each, Verdict.FAILURE, LATE, now, None)
            else:
                self._land(each, Verdict.NEUTRAL, "", now, None)
        self.beside_at = math.inf

    def _fail(
        self,
        flying: Flying,
        error: MeshError,
        verdict: Verdict,
        cause: str,
        now: float,
        report: LoadReport | None,
    ) -> None:
        if self._witness is not None:
            self._witness.failed(flying, error, now)
        replica = self._land(flying, verdict, cause, now, report)
        self._error = error
        self.tried += ((replica.node_name, error.code),)
        if flying.is_relayed and isinstance(error, LinkLost) and self._sequence is None:
            self._cut_off.add(replica.node)
            self._linked_by = now + NEW_RELAY_S
        else:
            self._tried_nodes += (replica.node,)
            self._tried_regions += (replica.region,)
        if isinstance(error, Saturated):
            self._retry_after_s = min(self._retry_after_s, error.retry_after_s)
        if isinstance(error, InferenceFailed):
            self._raised.append((flying.step.route.candidate.breaker, flying.permit))
        is_over = self._streaming or isinstance(error, Cancelled) or now >= self._deadline
        self._forgive(replica, error, is_over=is_over)

    def _forgive(self, replica: Replica, error: MeshError, *, is_over: bool) -> None:
        """Fall back after an error of the version that was asked first, unless the request may not run twice."""
        if not is_over and (self._repeatable or error.nothing_ran):
            self._fall_back()
        self._is_forgiven = self._stands_in and not is_over and replica.version == self._arm
        self._forgiven += self._is_forgiven

    def _land(
        self,
        flying: Flying,
        verdict: Verdict,
        cause: str,
        now: float,
        report: LoadReport | None,
        run_ms: float = 0.0,
    ) -> Replica:
        """Close a flight, tell its replica's breaker and load, and return the replica."""
        self._flying.remove(flying)
        chosen = flying.step.route.candidate
        slowness = flying.slowness(now) if verdict is Verdict.SUCCESS else None
        counts = chosen.breaker.record(flying.permit, verdict, now, cause, slowness)
        # One lost link fails all its requests at once; it is one failure, and a stale one none.
        ok = _OK[verdict] if counts or verdict is Verdict.SUCCESS else None
        timed = verdict in (Verdict.SUCCESS, Verdict.NEUTRAL)
        flying.flight.load.finish(flying.flight, now, ok, report, run_ms, timed=timed)
        return chosen.replica

    def _why_not_again(self, now: float) -> MeshError | None:
        error = self._error
        assert error is not None
        assert self.route is not None
        if self._streaming:
            return error
        if self._is_forgiven:
            return None
        if self._sequence is not None:
            final = self._sequence.failed(error, self.route.replica, now)
            if final is not None:
                return final
        elif not self._repeatable and error.retryable and not error.nothing_ran:
            return unknown_outcome(self._request.model, self.route.replica.node_name, error)
        over = len(self.tried) - self._forgiven > self._source.config.max_retries
        if isinstance(error, InferenceFailed) and self._sequence is None:
            over = over or not self._repeatable
        else:
            over = over or not error.retryable
        return error if over else None

    def _nobody_else(self, error: MeshError, now: float) -> MeshError:
        """Return what to answer with where nobody can be asked: what the model itself said, if it did."""
        if not isinstance(self._error, InferenceFailed):
            return error
        self._pardon(now)
        return self._error

    def _pardon(self, now: float) -> None:
        """The model raised wherever the request went: it is the request, if that was twice at least."""
        if len(self._raised) > 1 and len(self._raised) == len(self.tried):
            for guard, permit in self._raised:
                guard.pardon(permit, now)

    def _nobody(self, candidates: Candidates, now: float) -> MeshError:
        if any(code == Saturated.code for _, code in self.tried):
            return all_busy(self._request.model, self._error, self._retry_after_s)
        left_out = drops(candidates, self._request, now, self._tried_nodes)
        return nobody_can(self._request.model, dict(self.tried), left_out)

    def _give_up(self, error: MeshError) -> GiveUp:
        self._final = GiveUp(error)
        self.beside_at = math.inf
        return self._final
