"""However often its reasons change, a core has few timers running for one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.effects import Effect, StartTimer
from meshnode.events import TimerFired
from meshnode.membership.messages import DigestEntry
from meshnode.membership.timers import DialDue, MembershipTimer, RequestRound

if TYPE_CHECKING:
    from tests.unit.membership.conftest import Stage, Tools

STEP_S = 0.1

MOST = 3
"""Timers for one thing: one per kind of wait, each sooner than those that ran already."""


class Clockwork:
    """Lets a stage's timers of one kind fire when they are due, and counts those that run."""

    def __init__(self, stage: Stage, kind: type[MembershipTimer]) -> None:
        self.stage = stage
        self.kind = kind
        self.running: list[tuple[float, MembershipTimer]] = []
        self.most = 0
        self.fired = 0

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, StartTimer) and isinstance(effect.timer, self.kind):
                self.running.append((self.stage.now + effect.delay_s, effect.timer))
        self.most = max(self.most, len(self.running))

    def pass_s(self, seconds: float) -> None:
        until = self.stage.now + seconds
        while due := sorted(
            (each for each in self.running if each[0] <= until), key=lambda e: e[0]
        ):
            at, timer = due[0]
            self.running.remove(due[0])
            self.fired += 1
            self.stage.now = max(at, self.stage.now)
            self.take(self.stage.tell(TimerFired(timer)))
        self.stage.now = until


def test_a_member_that_comes_back_again_and_again_leaves_no_waits_behind(
    tools: type[Tools], stage: Stage
) -> None:
    stage.learn("a")
    stage.link("a")
    timers = Clockwork(stage, DialDue)
    for counter in range(1, 201):
        timers.take(stage.unlink("a"))
        timers.take(stage.learn("a", counter=counter))
        stage.link("a")
        timers.pass_s(STEP_S)
    assert timers.fired > 0
    assert timers.most <= MOST


def test_a_wait_on_a_timer_that_ran_already_is_as_long_as_any_other(
    tools: type[Tools], stage: Stage
) -> None:
    dialler = stage.core._dialler
    target = tools.id("a")
    timers = Clockwork(stage, DialDue)
    timers.take(stage.learn("a"))
    stage.link("a")
    timers.pass_s(10.0)
    timers.take(dialler._wait(target, 1.0, stage.now))
    timers.take(dialler._wait(target, 5.0, stage.now))
    assert len(timers.running) == 1
    timers.pass_s(4.9)
    assert target in dialler._attempts
    timers.pass_s(0.2)
    assert target not in dialler._attempts  # its wait is over, and nobody wants it: it is linked
    assert timers.running == []
    assert dialler._timers == {}


def test_records_that_are_wanted_one_after_another_take_few_timers(
    tools: type[Tools], stage: Stage
) -> None:
    stage.learn("a")
    stage.link("a")
    timers = Clockwork(stage, RequestRound)
    fetcher = stage.core._fetcher
    for number in range(100):
        said = DigestEntry(tools.raw(f"stranger {number}"), 1, 0, 0, 0)
        timers.take(fetcher.want(said, None, stage.now))
        timers.pass_s(STEP_S)
    assert timers.fired > 0
    assert timers.most <= MOST - 1
    timers.pass_s(60.0)
    assert timers.running == []
