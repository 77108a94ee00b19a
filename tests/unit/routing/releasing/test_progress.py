"""The state machine of a release: table tests, and walks at random that nothing may break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from meshnode.limits import MAX_RELEASE_REASON_LENGTH
from meshnode.rollout import Progress, shortened
from meshnode.routing.releasing.evidence import Cell
from meshnode.routing.releasing.progress import TROUBLE_LASTS_S, Decided, Ready, advance, begin
from meshnode.state.release import Gate, Order, Release, Step

if TYPE_CHECKING:
    from meshnode.rollout import Phase
    from meshnode.state.release import Verb

REVISION = (5, 0)
BEGAN_MS = 1_000_000
Cells = dict[tuple[int, str], Cell]

PLAN = Release(
    "canary",
    1,
    2,
    (Step(0.1, hold_s=10), Step(0.5, hold_s=10)),
    (Gate("errors", 0.01),),
    min_requests=20,
    max_wait_s=100,
    keep_s=30,
)
GOOD: Cells = {(1, "cpu"): Cell(400), (2, "cpu"): Cell(40)}
BAD: Cells = {(1, "cpu"): Cell(400), (2, "cpu"): Cell(40, 20)}
LITTLE: Cells = {(1, "cpu"): Cell(400), (2, "cpu"): Cell(3)}
ALL_READY = Ready(3, 3, 3)


def at(step: int, phase: Phase = "running", **fields: Any) -> Progress:
    return structs.replace(Progress(REVISION, phase, step, BEGAN_MS, "so"), **fields)


def after(
    progress: Progress,
    passed_s: float = 0.0,
    *,
    plan: Release = PLAN,
    revision: tuple[int, int] = REVISION,
    order: Order | None = None,
    ready: Ready = ALL_READY,
    trouble: str = "",
    cells: Cells | None = None,
) -> tuple[Progress, list[Decided]]:
    return advance(
        progress,
        plan,
        revision=revision,
        order=order,
        ready=ready,
        trouble=trouble,
        cells=cells or {},
        now_ms=BEGAN_MS + round(1000 * passed_s),
    )


def ordered(verb: Verb, number: int = 1, revision: tuple[int, int] = REVISION) -> Order:
    return Order(number, verb, revision, "ann", "it is time")


def place(progress: Progress) -> tuple[str, int]:
    return progress.phase, progress.step


def kinds(decided: list[Decided]) -> list[str]:
    return [each.kind for each in decided]


def test_a_good_release_goes_through_all_its_steps() -> None:
    progress = begin(REVISION, BEGAN_MS)
    course = []
    for second in range(60):
        progress, decided = after(progress, second, cells=GOOD)
        course += [(second, each.kind) for each in decided]
    assert course == [
        (0, "release.step"),
        (10, "release.step"),
        (20, "release.promoted"),
        (50, "release.done"),
    ]
    assert place(progress) == ("done", 2)


def test_nothing_changes_while_a_step_lasts() -> None:
    progress = at(0)
    assert after(progress, 9.9) == (progress, [])
    assert after(progress, 9.9)[0] is progress


def test_a_release_waits_for_replicas_and_then_pauses() -> None:
    few = Ready(3, 2, 3)
    preparing = begin(REVISION, BEGAN_MS)
    assert after(preparing, 99, ready=few) == (preparing, [])
    paused, decided = after(preparing, 100, ready=few)
    assert place(paused) == ("paused", -1)
    assert decided == [
        Decided("release.inconclusive", "2 of 3 replicas of version 2 are ready after 100 s")
    ]
    assert after(paused, 500) == (paused, [])
    resumed, decided = after(paused, 500, order=ordered("resume"))
    assert (resumed.phase, kinds(decided)) == ("preparing", ["release.resumed"])
    assert place(after(resumed, 501)[0]) == ("running", 0)


def test_no_data_is_inconclusive_it_pauses_and_never_promotes() -> None:
    assert after(at(0), 109, cells=LITTLE)[0].phase == "running"
    paused, decided = after(at(0), 110, cells=LITTLE)
    assert place(paused) == ("paused", 0)
    assert decided == [Decided("release.inconclusive", "errors: 3 of 20 answers of version 2")]
    assert after(paused, 100_000) == (paused, [])
    assert not paused.waits


def test_a_step_goes_on_only_with_enough_replicas() -> None:
    few = Ready(3, 2, 3)
    waiting, decided = after(at(1), 50, cells=GOOD, ready=few)
    assert (place(waiting), decided) == (("running", 1), [])
    paused, decided = after(waiting, 110, cells=GOOD, ready=few)
    assert paused.phase == "paused"
    assert decided == [Decided("release.inconclusive", "2 of 3 replicas of version 2 are ready")]


def test_a_step_that_waits_takes_a_promote() -> None:
    plan = structs.replace(PLAN, steps=(Step(0.1, hold_s=10, wait=True), Step(0.5)))
    paused, decided = after(at(0), 10, plan=plan, cells=GOOD)
    assert (place(paused), paused.waits, kinds(decided)) == (
        ("paused", 0),
        True,
        ["release.paused"],
    )
    assert "waits for promote" in paused.reason
    still, decided = after(paused, 20, plan=plan, order=ordered("resume"), cells=GOOD)
    assert (still.phase, kinds(decided)) == ("paused", ["release.refused"])
    onwards, decided = after(still, 30, plan=plan, order=ordered("promote", 2), cells=GOOD)
    assert (place(onwards), onwards.waits) == (("running", 1), False)
    assert "promote by ann: it is time" in decided[0].reason


@pytest.mark.parametrize(
    "progress",
    [
        at(0),
        at(1),
        at(0, "paused"),
        at(0, "paused", waits=True),
        at(1, granted=True),
    ],
)
def test_a_gate_that_fails_rolls_back_at_once_wherever_the_release_stands(
    progress: Progress,
) -> None:
    back, decided = after(progress, 1, cells=BAD)
    assert back.phase == "rolled_back"
    assert kinds(decided) == ["release.rolled_back"]
    assert back.reason == (
        "errors 50 % of version 2, 0 % of version 1, limit 1 % more (40 figures)"
    )
    assert back.share(PLAN) == 0
    assert back.resident(PLAN) == (1,)


def test_a_failure_after_the_promotion_rolls_back_too() -> None:
    back, decided = after(at(2, "keeping"), 1, cells=BAD)
    assert (back.phase, kinds(decided)) == ("rolled_back", ["release.rolled_back"])
    assert back.serving(PLAN) == 1


def test_replicas_that_fail_for_long_end_a_release_and_shortly_do_not() -> None:
    for progress in (at(-1, "preparing"), at(0), at(0, "paused"), at(2, "keeping")):
        noted, decided = after(progress, 1, trouble="out of memory", ready=Ready(3, 0, 3))
        assert (noted.troubled_ms, decided) == (BEGAN_MS + 1000, [])
        well, _ = after(noted, 2, ready=Ready(3, 0, 3))
        assert well.troubled_ms == 0
        back, decided = after(
            noted, 1 + TROUBLE_LASTS_S, trouble="out of memory", ready=Ready(3, 0, 3)
        )
        assert decided == [
            Decided("release.rolled_back", "replicas of version 2 fail: out of memory")
        ]
        assert back.phase == "rolled_back"


@pytest.mark.parametrize("verb", ["abort", "undo"])
@pytest.mark.parametrize(
    "progress",
    [
        at(-1, "preparing"),
        at(-1, "paused"),
        at(0),
        at(1),
        at(1, "paused"),
        at(1, "paused", waits=True),
        at(2, "keeping"),
        at(2, "paused"),
    ],
)
def test_abort_works_in_every_phase(progress: Progress, verb: Verb) -> None:
    back, decided = after(progress, order=ordered(verb), ready=Ready(0, 0, 3))
    assert (back.phase, back.order) == ("rolled_back", 1)
    assert decided == [Decided("release.rolled_back", f"{verb} by ann: it is time")]


@pytest.mark.parametrize("verb", ["abort", "undo", "pause", "resume", "promote"])
def test_nothing_follows_from_orders_once_it_is_over(verb: Verb) -> None:
    done, decided = after(at(2, "done"), order=ordered(verb))
    assert (done.phase, kinds(decided)) == ("done", ["release.refused"])
    assert "meshnode rollback" in decided[0].reason
    back, decided = after(at(1, "rolled_back"), order=ordered(verb))
    assert (back.phase, kinds(decided)) == ("rolled_back", ["release.refused"])
    assert after(back, 1_000, order=ordered(verb), cells=BAD) == (back, [])


@pytest.mark.parametrize(
    ("progress", "verb", "expected", "kind"),
    [
        (at(-1, "preparing"), "pause", ("paused", -1), "release.paused"),
        (at(0), "pause", ("paused", 0), "release.paused"),
        (at(2, "keeping"), "pause", ("paused", 2), "release.paused"),
        (at(0, "paused"), "pause", ("paused", 0), "release.refused"),
        (at(-1, "paused"), "resume", ("preparing", -1), "release.resumed"),
        (at(1, "paused"), "resume", ("running", 1), "release.resumed"),
        (at(2, "paused"), "resume", ("keeping", 2), "release.resumed"),
        (at(0), "resume", ("running", 0), "release.refused"),
        (at(-1, "preparing"), "promote", ("running", 0), "release.step"),
        (at(-1, "paused"), "promote", ("running", 0), "release.step"),
        (at(0), "promote", ("running", 1), "release.step"),
        (at(0, "paused"), "promote", ("running", 1), "release.step"),
        (at(1), "promote", ("keeping", 2), "release.promoted"),
        (at(2, "keeping"), "promote", ("done", 2), "release.done"),
        (at(2, "paused"), "promote", ("done", 2), "release.done"),
    ],
)
def test_what_follows_from_an_order(
    progress: Progress, verb: Verb, expected: tuple[str, int], kind: str
) -> None:
    ordered_on, decided = after(progress, 1, order=ordered(verb))
    assert place(ordered_on) == expected
    assert kinds(decided) == [kind]
    assert ordered_on.order == 1


def test_an_order_is_obeyed_once_and_only_if_it_is_about_this_revision() -> None:
    first, _ = after(at(0), order=ordered("promote"))
    assert place(first) == ("running", 1)
    assert after(first, order=ordered("promote")) == (first, [])
    assert after(at(0, order=3), order=ordered("abort", 2)) == (at(0, order=3), [])
    assert after(at(0), order=ordered("abort", 2, (4, 0))) == (at(0), [])


def test_promotion_waits_for_replicas_and_then_needs_no_gate() -> None:
    none = after(at(1), order=ordered("promote"), ready=Ready(3, 0, 3))
    assert kinds(none[1]) == ["release.refused"]
    few = Ready(3, 2, 3)
    waiting, decided = after(at(1), 1, order=ordered("promote"), ready=few)
    assert (place(waiting), waiting.granted) == (("running", 1), True)
    assert "2 of 3 replicas" in decided[0].reason
    assert after(waiting, 2, ready=few)[0].phase == "running"
    kept, decided = after(waiting, 3)
    assert (place(kept), kinds(decided)) == (("keeping", 2), ["release.promoted"])
    assert "promote by ann" in kept.reason


def test_a_sleeping_deployment_needs_no_replica() -> None:
    asleep = Ready(0, 0, 0)
    assert place(after(begin(REVISION, BEGAN_MS), ready=asleep)[0]) == ("running", 0)
    assert after(at(2, "keeping"), 30, ready=asleep)[0].phase == "done"


def test_the_old_version_is_not_let_go_while_no_replica_of_the_new_one_is_ready() -> None:
    assert after(at(2, "keeping"), 1000, ready=Ready(3, 0, 3))[0].phase == "keeping"


def test_another_revision_begins_anew() -> None:
    anew, decided = after(at(1, order=4), revision=(6, 0))
    assert anew == begin((6, 0), BEGAN_MS)
    assert decided == [Decided("release.began", "canary from version 1 to 2 in 2 steps")]


def test_a_clock_that_is_behind_ends_no_step_early() -> None:
    assert after(at(0), -3_600, cells=GOOD)[0].phase == "running"


def test_a_clock_that_was_set_back_makes_a_step_begin_its_time_anew_and_no_more() -> None:
    before, _ = after(at(0), -900.0, cells=GOOD)
    assert place(before) == ("running", 0)
    assert place(after(before, -891.0, cells=GOOD)[0]) == ("running", 0)
    assert place(after(before, -889.0, cells=GOOD)[0]) == ("running", 1)


def test_a_long_reason_is_cut_to_what_a_word_may_hold() -> None:
    order = Order(1, "abort", REVISION, "ann", "x" * 400)
    assert len(after(at(0), order=order)[0].reason) == MAX_RELEASE_REASON_LENGTH


def test_gates_are_tried_while_the_data_grows_and_not_at_every_look() -> None:
    progress = at(0)
    looks = []
    for requests in range(101):
        cells: Cells = {(1, "cpu"): Cell(1000), (2, "cpu"): Cell(requests)}
        progress, _ = after(progress, 1, cells=cells)
        progress, _ = after(progress, 1, cells=cells)
        looks.append(progress.looks)
    assert looks[9] == 0
    assert looks[10] == 1
    assert looks[100] == 12
    following, _ = after(progress, 10, cells=GOOD)
    assert (following.looks, following.seen) == (12, 0)


@pytest.mark.parametrize(
    ("progress", "share", "mirror", "serving", "resident"),
    [
        (at(-1, "preparing"), 0.0, 0.0, 1, (1, 2)),
        (at(-1, "paused"), 0.0, 0.0, 1, (1, 2)),
        (at(0), 0.1, 0.3, 1, (1, 2)),
        (at(1, "paused"), 0.5, 0.0, 1, (1, 2)),
        (at(2, "keeping"), 1.0, 0.0, 2, (2, 1)),
        (at(2, "paused"), 1.0, 0.0, 2, (2, 1)),
        (at(2, "done"), 1.0, 0.0, 2, (2,)),
        (at(0, "rolled_back"), 0.0, 0.0, 1, (1,)),
        (at(2, "rolled_back"), 0.0, 0.0, 1, (1,)),
    ],
)
def test_who_is_asked_and_who_is_kept(
    progress: Progress, share: float, mirror: float, serving: int, resident: tuple[int, ...]
) -> None:
    plan = structs.replace(PLAN, steps=(Step(0.1, 0.3), Step(0.5)))
    assert progress.share(plan) == share
    assert progress.mirror(plan) == mirror
    assert progress.serving(plan) == serving
    assert progress.resident(plan) == resident


class Rollout(RuleBasedStateMachine):
    """A release whose stewards die, whose data comes and goes, and whose operators press everything."""

    @initialize(waits=st.lists(st.booleans(), min_size=1, max_size=4))
    def began(self, waits: list[bool]) -> None:
        steps = tuple(
            Step((place + 1) / 10, hold_s=5, wait=wait) for place, wait in enumerate(waits)
        )
        self.plan = structs.replace(PLAN, steps=steps)
        self.now_ms = BEGAN_MS
        self.progress = begin(REVISION, self.now_ms)
        self.number = 0
        self.order: Order | None = None
        self.had_data: set[int] = set()
        self.last_ms = 0

    def _look(self, cells: Cells, *, trouble: str = "", ready: Ready = ALL_READY) -> None:
        before = self.progress
        obeys = self.order is not None and self.order.number > before.order
        self.progress, decided = advance(
            before,
            self.plan,
            revision=REVISION,
            order=self.order,
            ready=ready,
            trouble=trouble,
            cells=cells,
            now_ms=self.now_ms,
        )
        after, verb = self.progress, self.order.verb if obeys and self.order else ""
        assert after.step - before.step in (0, 1), "no step is skipped or repeated"
        assert len(decided) <= 1
        assert (place(after) == place(before)) or decided, "whatever changes is told"
        if after.step > max(0, before.step) and verb != "promote":
            assert before.phase == "running"
            assert not before.granted or before.step == len(self.plan.steps) - 1
            assert before.granted or cells == GOOD, "nothing is promoted without data"
            assert before.granted or not self.plan.steps[before.step].wait
        if before.phase == "paused" and after.phase not in ("paused", "rolled_back"):
            assert verb in ("resume", "promote"), "a paused release goes on by an order alone"
        if before.is_over:
            assert place(after) == place(before)
        if after.phase == "done" and before.phase != "done":
            assert before.is_promoted(self.plan)
        assert after.order == (self.number if obeys else before.order)
        assert Progress(*structs.astuple(after)) == after
        again = advance(
            after,
            self.plan,
            revision=REVISION,
            order=self.order,
            ready=ready,
            trouble=trouble,
            cells={},
            now_ms=self.now_ms,
        )[0]
        assert again.order == after.order, "an order is obeyed once"

    @rule(passed_s=st.integers(0, 40))
    def time_passes(self, passed_s: int) -> None:
        self.now_ms += 1000 * passed_s

    @rule(behind_s=st.integers(0, 5))
    def another_steward_takes_over_whose_clock_is_behind(self, behind_s: int) -> None:
        self.now_ms = max(BEGAN_MS, self.now_ms - 1000 * behind_s)

    @rule()
    def all_is_well(self) -> None:
        self._look(GOOD)

    @rule(cells=st.sampled_from([{}, LITTLE]))
    def little_is_known(self, cells: Cells) -> None:
        self._look(cells)

    @rule(ready=st.sampled_from([0, 2]))
    def replicas_are_missing(self, ready: int) -> None:
        self._look(GOOD, ready=Ready(3, ready, 3))

    @precondition(lambda self: self.progress.step >= 0 and self.progress.seen < 30)
    @rule()
    def a_gate_fails(self) -> None:
        obeys = self.order is not None and self.order.number > self.progress.order
        self._look(BAD)
        assert obeys or self.progress.is_over

    @rule()
    def replicas_fail(self) -> None:
        self._look(GOOD, trouble="out of memory")

    @rule(verb=st.sampled_from(["promote", "promote", "promote", "pause", "resume", "undo"]))
    def somebody_orders(self, verb: Verb) -> None:
        self.number += 1
        self.order = ordered(verb, self.number)

    @rule()
    def somebody_aborts(self) -> None:
        self.number += 1
        self.order = ordered("abort", self.number)
        was_done = self.progress.phase == "done"
        self._look({})
        assert self.progress.phase == ("done" if was_done else "rolled_back")

    @invariant()
    def the_answers_have_a_version_that_is_kept(self) -> None:
        if hasattr(self, "progress"):
            assert self.progress.serving(self.plan) in self.progress.resident(self.plan)
            assert 0 <= self.progress.share(self.plan) <= 1


TestRollout = Rollout.TestCase
TestRollout.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.booleans(), max_size=12))
def test_whoever_is_the_steward_a_release_has_the_same_course(deaths: list[bool]) -> None:
    """The word that a steward leaves holds all that the next one needs: nothing else is remembered."""
    course = []
    progress = begin(REVISION, BEGAN_MS)
    for second in range(60):
        if second < len(deaths) and deaths[second]:
            progress = Progress(*structs.astuple(progress))
        progress, decided = after(progress, second, cells=GOOD)
        course += kinds(decided)
    assert course == ["release.step", "release.step", "release.promoted", "release.done"]


def test_a_reason_that_is_too_long_is_cut_where_people_see_it() -> None:
    assert shortened("x" * MAX_RELEASE_REASON_LENGTH) == "x" * MAX_RELEASE_REASON_LENGTH
    cut = shortened("x" * (MAX_RELEASE_REASON_LENGTH + 1))
    assert len(cut) == MAX_RELEASE_REASON_LENGTH
    assert cut.endswith("x…")
