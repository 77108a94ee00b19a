"""Cores that were broken on purpose: each is caught by the invariant that its flaw offends.

The flaws are put into the real code for the time of one test. What catches them watches from outside
and knows nothing of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.effects import Effect, StartTimer
from meshnode.errors import DeadlineExceeded
from meshnode.events import Event, TimerFired
from meshnode.membership import suspicion
from meshnode.membership.beliefs import Beliefs
from meshnode.membership.core import Membership
from meshnode.membership.messages import Incarnation
from meshnode.membership.timers import SyncRound
from meshnode.routing.attempts import Attempts
from meshnode.routing.breakers import LATE
from meshnode.routing.budget import RetryBudget
from meshnode.routing.load import ReplicaLoad
from meshnode.routing.router import Router
from meshnode.sim.cold_starts import ColdStarts
from meshnode.sim.faults import Crash, FailRequests, Freeze, Leave, SlowDown
from meshnode.sim.gateway import Gateway
from meshnode.sim.running.playing import play
from meshnode.sim.running.timeline import failure
from meshnode.types import NodeState
from tests.broken.rehearsals import broken_by, rehearsal

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

Patch = pytest.MonkeyPatch


def suspicion_timer_is_off_by_one(patch: Patch) -> Scenario:
    """A suspect with no further accuser gets the time of one with one."""
    right = suspicion.timeout_s
    patch.setattr(
        suspicion,
        "timeout_s",
        lambda least_s, most_s, accusers, wanted: right(least_s, most_s, accusers + 1, wanted),
    )
    return rehearsal(Crash(at_s=2.0, nodes=("us-1",)), rate_per_s=0.0)


def _one_is_lost() -> Scenario:
    return rehearsal(Crash(at_s=2.0, nodes=("us-1",)), rate_per_s=0.0)


def suspicion_misses_one_accuser(patch: Patch) -> Scenario:
    """The first further accuser shortens nothing, the second as much as the first should, and so on."""
    right = suspicion.timeout_s
    patch.setattr(
        suspicion,
        "timeout_s",
        lambda least_s, most_s, accusers, wanted: right(
            least_s, most_s, max(0, accusers - 1), wanted
        ),
    )
    return _one_is_lost()


def suspicion_is_never_shortened(patch: Patch) -> Scenario:
    """Further accusers are counted and change nothing."""
    right = suspicion.timeout_s
    patch.setattr(
        suspicion,
        "timeout_s",
        lambda least_s, most_s, _accusers, wanted: right(least_s, most_s, 0, wanted),
    )
    return _one_is_lost()


def accusers_are_not_counted(patch: Patch) -> Scenario:
    """Nobody hears a further accuser."""
    patch.setattr(suspicion.Suspicions, "confirm", lambda *_: None)
    return _one_is_lost()


def accuser_counts_twice(patch: Patch) -> Scenario:
    """An accuser that is heard again counts again."""
    right = suspicion.Suspicions.confirm

    def confirm(self: suspicion.Suspicions, node_id: Any, *args: Any) -> Effect | None:
        self._suspicions[node_id].accusers.clear()
        return right(self, node_id, *args)

    patch.setattr(suspicion.Suspicions, "confirm", confirm)
    return _one_is_lost()


def suspicion_takes_three_times_as_long(patch: Patch) -> Scenario:
    """Whoever is suspected has three times what Lifeguard gives."""
    right = suspicion.bounds_s

    def bounds_s(config: Any, size: int) -> tuple[float, float]:
        least_s, most_s = right(config, size)
        return 3 * least_s, 3 * most_s

    patch.setattr(suspicion, "bounds_s", bounds_s)
    return _one_is_lost()


def suspicion_timer_comes_late(patch: Patch) -> Scenario:
    """The time is right, and the timer is set for later."""
    right = suspicion._timer

    def timer(node_id: Any, held: Any, now: float) -> Effect:
        effect = right(node_id, held, now)
        assert isinstance(effect, StartTimer)
        return StartTimer(effect.timer, effect.delay_s + 0.5)

    patch.setattr(suspicion, "_timer", timer)
    return _one_is_lost()


def stale_suspicion_timer_kills(patch: Patch) -> Scenario:
    """The timer of a suspicion that was refuted still holds its subject for dead."""
    patch.setattr(suspicion.Suspicions, "is_due", lambda _self, _timer: True)
    right = Beliefs.suspicion_expired

    def expired(self: Beliefs, timer: Any, now: float) -> list[Effect]:
        return right(self, timer, now)

    patch.setattr(Beliefs, "suspicion_expired", expired)
    return rehearsal(Freeze(at_s=2.0, for_s=6.0, nodes=("us-1",)), rate_per_s=0.0, duration_s=40.0)


def cancel_is_lost(patch: Patch) -> Scenario:
    """A try that is given up, because its time is over, stays counted as in flight."""
    right = Attempts._land

    def land(self: Attempts, flying: Any, verdict: Any, cause: str, *args: Any) -> Any:
        if cause not in (DeadlineExceeded.code, LATE):
            return right(self, flying, verdict, cause, *args)
        self._flying.remove(flying)
        return flying.step.route.replica

    patch.setattr(Attempts, "_land", land)
    return rehearsal(timeout_s=0.3, mean_ms=600.0, duration_s=8.0)


def flight_ends_twice(patch: Patch) -> Scenario:
    """A failed try is counted as ended, and once more when its late answer comes."""
    right = ReplicaLoad.finish

    def finish(self: ReplicaLoad, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        self.outstanding -= 1

    patch.setattr(ReplicaLoad, "finish", finish)
    return rehearsal(duration_s=5.0)


def answer_is_given_twice(patch: Patch) -> Scenario:
    """A gateway forgets that a request was answered, and answers again."""
    right = Gateway._end

    def end(self: Gateway, opened: Any, outcome: str, now: float) -> list[Effect]:
        effects = right(self, opened, outcome, now)
        self._open[opened.request.number] = opened
        opened.admitted = None  # admission has noticed that it is over
        return effects + right(self, opened, outcome, now)

    patch.setattr(Gateway, "_end", end)
    return rehearsal(duration_s=5.0)


def request_is_never_ended(patch: Patch) -> Scenario:
    """A gateway forgets every tenth request when it comes to its end."""
    right, ends = Gateway._end, itertools.count(1)

    def end(self: Gateway, opened: Any, outcome: str, now: float) -> list[Effect]:
        if next(ends) % 10:
            return right(self, opened, outcome, now)
        del self._open[opened.request.number]
        return []

    patch.setattr(Gateway, "_end", end)
    return rehearsal(duration_s=5.0, timeout_s=2.0)


def _everything_fails() -> Scenario:
    """Six nodes where whatever is asked fails, wherever it goes."""
    failing = FailRequests(at_s=1.0, nodes=("all",), share=1.0)
    return rehearsal(failing, rate_per_s=150.0, duration_s=6.0)


def retries_need_no_budget(patch: Patch) -> Scenario:
    """Whatever fails is tried again, however much fails."""
    patch.setattr(RetryBudget, "take", lambda _self, _now: True)
    return _everything_fails()


def retries_ask_no_budget(patch: Patch) -> Scenario:
    """A gateway sends again without asking whether it may."""
    right = Attempts.next

    def ask_nobody(self: Attempts, now: float) -> Any:
        source = self._source
        patch.setattr(source.budget, "take", lambda _now: True, raising=False)
        return right(self, now)

    patch.setattr(Attempts, "next", ask_nobody)
    return _everything_fails()


def requests_are_tried_for_ever(patch: Patch) -> Scenario:
    """A request goes to one replica after the other until none is left."""
    patch.setattr(Attempts, "_why_not_again", lambda _self, _now: None)
    failing = FailRequests(at_s=1.0, nodes=("all",), share=1.0)
    return rehearsal(failing, rate_per_s=2.0, duration_s=6.0)


def _hedged() -> Scenario:
    """Six nodes of which one becomes slow: what was sent there is soon sent elsewhere, too."""
    slow = SlowDown(at_s=4.0, nodes=("us-1",), factor=30.0)
    return rehearsal(slow, rate_per_s=150.0, mean_ms=20.0, duration_s=8.0)


def hedges_need_no_budget(patch: Patch) -> Scenario:
    """Whatever is slow is sent a second time, however much is, and however soon."""
    patch.setattr(Attempts, "_may_hedge", lambda *_: True)
    return _hedged()


def a_hedge_goes_where_the_first_is(patch: Patch) -> Scenario:
    """A second try goes to the replica that is slow."""

    def other(self: Attempts, _now: float) -> Any:
        step, replica = self._flying[-1].step, self._flying[-1].step.route.replica
        return step.route, self._source.candidates(replica.model, replica.version)

    patch.setattr(Attempts, "_other", other)
    return _hedged()


def losers_stay_out(patch: Patch) -> Scenario:
    """When a request has its answer, its other try is forgotten."""
    patch.setattr(Attempts, "_lose", lambda *_: None)
    return _hedged()


def a_wait_has_no_end(patch: Patch) -> Scenario:
    """Who has waited for a replica is not looked at again when there is one."""
    patch.setattr(ColdStarts, "over", lambda _self, _now: [])
    down = Crash(at_s=1.0, for_s=0.5, nodes=("all",))
    return rehearsal(down, nodes=1, duration_s=5.0, timeout_s=2.0, rate_per_s=50.0)


def the_left_are_asked(patch: Patch) -> Scenario:
    """Routing does not hear that a node has left."""
    right = Router.node_changed

    def changed(self: Router, node: Any, state: NodeState) -> None:
        right(self, node, NodeState.ALIVE if state is NodeState.LEFT else state)

    patch.setattr(Router, "node_changed", changed)
    return rehearsal(Leave(at_s=2.0, nodes=("us-1",)), rate_per_s=200.0, duration_s=8.0)


def incarnation_falls(patch: Patch) -> Scenario:
    """A node that refutes takes the counter from before."""
    right = Beliefs.renew

    def renew(self: Beliefs, record: Any, incarnation: Incarnation, now: float) -> list[Effect]:
        lower = Incarnation(incarnation.epoch - 1, incarnation.counter)
        return right(self, record, lower, now)

    patch.setattr(Beliefs, "renew", renew)
    return rehearsal(Freeze(at_s=2.0, for_s=8.0, nodes=("us-1",)), rate_per_s=0.0)


def nobody_is_held_dead(patch: Patch) -> Scenario:
    """Suspicions have no end, so the dead are never given up."""
    patch.setattr(Beliefs, "suspicion_expired", lambda _self, _timer, _now: [])
    return rehearsal(Crash(at_s=2.0, nodes=("us-1",)), rate_per_s=0.0, nodes=2, duration_s=5.0)


def nobody_is_suspected(patch: Patch) -> Scenario:
    """A probe without an answer is no reason to suspect anybody."""
    patch.setattr(Beliefs, "suspect", lambda _self, _member, _now: [])
    return rehearsal(Crash(at_s=2.0, nodes=("us-1",)), rate_per_s=0.0, nodes=2, duration_s=5.0)


def timers_breed(patch: Patch) -> Scenario:
    """Each round of one kind starts two more."""
    right = Membership.handle

    def handle(self: Membership, event: Event, now: float) -> list[Effect]:
        effects = right(self, event, now)
        if isinstance(event, TimerFired) and isinstance(event.timer, SyncRound):
            effects.append(StartTimer(SyncRound(), 1.0))
        return effects

    patch.setattr(Membership, "handle", handle)
    return rehearsal(rate_per_s=0.0)


def requests_are_remembered(patch: Patch) -> Scenario:
    """Routing keeps a note of each request for ever."""
    right = Router.plan

    def plan(self: Router, *args: Any) -> Attempts:
        self.__dict__.setdefault("notes", []).append(args)
        return right(self, *args)

    patch.setattr(Router, "plan", plan)
    return rehearsal(rate_per_s=150.0, mean_ms=5.0)


def core_raises(patch: Patch) -> Scenario:
    """A core stumbles over a member that is suspected."""

    def suspect(_self: Beliefs, member: Any, _now: float) -> list[Effect]:
        raise KeyError(member.node_id)

    patch.setattr(Beliefs, "suspect", suspect)
    return rehearsal(Crash(at_s=2.0, nodes=("us-1",)), rate_per_s=0.0)


FLAWS = {
    suspicion_timer_is_off_by_one: "suspicion-time",
    suspicion_misses_one_accuser: "suspicion-time",
    suspicion_is_never_shortened: "suspicion-time",
    accusers_are_not_counted: "suspicion-time",
    accuser_counts_twice: "suspicion-time",
    suspicion_takes_three_times_as_long: "suspicion-time",
    suspicion_timer_comes_late: "suspicion-time",
    stale_suspicion_timer_kills: "suspicion-time",
    cancel_is_lost: "in-flight-conserved",
    flight_ends_twice: "in-flight-conserved",
    answer_is_given_twice: "one-answer",
    request_is_never_ended: "one-answer",
    retries_need_no_budget: "attempts-within-budget",
    retries_ask_no_budget: "attempts-within-budget",
    requests_are_tried_for_ever: "attempts-within-budget",
    hedges_need_no_budget: "attempts-within-budget",
    a_hedge_goes_where_the_first_is: "attempts-within-budget",
    losers_stay_out: "in-flight-conserved",
    a_wait_has_no_end: "one-answer",
    the_left_are_asked: "not-to-the-left",
    incarnation_falls: "incarnation-never-falls",
    nobody_is_held_dead: "suspicion-time",
    nobody_is_suspected: "views-agree",
    timers_breed: "no-leak",
    requests_are_remembered: "tables-bounded",
    core_raises: "no-error",
}


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.__name__)
def test_a_broken_core_is_caught_with_its_invariant_and_a_seed(
    flaw: Any, monkeypatch: Patch
) -> None:
    scenario = flaw(monkeypatch)
    result: Result = broken_by(scenario, seed=3)
    assert result.violations[0].invariant == FLAWS[flaw], result.violations[0].message
    told = failure(result)
    assert told.startswith(f"seed 3 at depth A: {FLAWS[flaw]} broken at ")
    assert "meshnode sim run rehearsal.toml --seed 3 --depth A" in told


@pytest.mark.parametrize(
    "flaw",
    [suspicion_timer_is_off_by_one, cancel_is_lost, timers_breed],
    ids=lambda it: it.__name__,
)
def test_a_broken_core_inside_a_whole_daemon_is_caught_too(flaw: Any, monkeypatch: Patch) -> None:
    result = play(flaw(monkeypatch), seed=3, depth="B")
    assert [each.invariant for each in result.violations] == [FLAWS[flaw]]
