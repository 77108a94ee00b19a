"""Whole daemons that were broken on purpose, each caught at depth B by the invariant that its flaw offends.

The flaws are put into the real gateway, pipeline and loop code for the time of one test.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from meshnode.gateway.answering import PlainAnswer
from meshnode.gateway.pipeline import Pipeline
from meshnode.models.serving.server import ModelServer
from meshnode.sim.faults import ClockSkew, Freeze, Sleep, SlowDown
from meshnode.sim.running.playing import play
from meshnode.sim.running.timeline import failure
from tests.broken.rehearsals import rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

Patch = pytest.MonkeyPatch


class EachTenth:
    """Counts, and says which call is the tenth."""

    def __init__(self) -> None:
        self.count = 0

    def is_now(self) -> bool:
        self.count += 1
        return self.count % 10 == 0


def at_each_tenth_request(patch: Patch, flaw: Callable[[Pipeline, Any, Any], Any]) -> Scenario:
    """Let every tenth request that comes to a gateway's pipeline go another way."""
    right, tenth = Pipeline.answer, EachTenth()

    def answer(self: Pipeline, request: Any, target: Any, *rest: Any) -> Any:
        if tenth.is_now():
            return flaw(self, request, target)
        return right(self, request, target, *rest)

    patch.setattr(Pipeline, "answer", answer)
    return small()


def small(duration_s: float = 3.0, timeout_s: float = 2.0, **options: Any) -> Scenario:
    """Return a scenario of two nodes and a few calls."""
    return rehearsal(nodes=1, duration_s=duration_s, timeout_s=timeout_s, **options)


def answer_is_sent_twice(patch: Patch) -> Scenario:
    """The bytes of an answer go out twice."""
    right = PlainAnswer.prepare

    async def prepare(self: PlainAnswer, request: web.BaseRequest) -> Any:
        await request.writer.write(self._wire)
        return await right(self, request)

    patch.setattr(PlainAnswer, "prepare", prepare)
    return small()


def answer_is_repeated_later(patch: Patch) -> Scenario:
    """The bytes of an answer go out once more when its client may have asked something else already."""
    right = PlainAnswer.prepare

    async def prepare(self: PlainAnswer, request: web.BaseRequest) -> Any:
        transport = request.transport
        assert transport is not None
        asyncio.get_running_loop().call_later(0.3, transport.write, self._wire)
        return await right(self, request)

    patch.setattr(PlainAnswer, "prepare", prepare)
    return small()


def request_is_never_answered(patch: Patch) -> Scenario:
    """A request waits for what never comes, and its deadline means nothing."""

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    return at_each_tenth_request(patch, lambda _self, _request, _target: hang())


def connection_is_dropped(patch: Patch) -> Scenario:
    """A gateway closes the connection instead of answering."""
    right, tenth = PlainAnswer.prepare, EachTenth()

    async def prepare(self: PlainAnswer, request: web.BaseRequest) -> Any:
        if tenth.is_now():
            assert request.transport is not None
            request.transport.abort()
        return await right(self, request)

    patch.setattr(PlainAnswer, "prepare", prepare)
    return small()


def request_runs_twice(patch: Patch) -> Scenario:
    """A gateway has a request run twice, and answers it once."""

    async def twice(self: Pipeline, request: Any, target: Any) -> Any:
        await self._infer(request, target, self.now(), None)
        return await self._infer(request, target, self.now(), None)

    return at_each_tenth_request(patch, twice)


def request_runs_again_when_it_was_answered(patch: Patch) -> Scenario:
    """A gateway has a request run once more after its answer."""
    tasks = []

    async def again(self: Pipeline, request: Any, target: Any) -> None:
        await asyncio.sleep(0.5)
        await self._infer(request, target, self.now(), None)

    async def once(self: Pipeline, request: Any, target: Any) -> Any:
        tasks.append(asyncio.ensure_future(again(self, request, target)))
        return await self._infer(request, target, self.now(), None)

    return at_each_tenth_request(patch, once)


def callback_raises(patch: Patch) -> Scenario:
    """A call that the loop makes for a daemon raises."""

    async def broken(self: Pipeline, request: Any, target: Any) -> Any:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        return await self._infer(request, target, self.now(), None)

    return at_each_tenth_request(patch, broken)


async def _raise() -> None:
    raise KeyError("a part of the daemon")


def task_fails_unheard(patch: Patch) -> Scenario:
    """A daemon starts a task, forgets it, and it fails."""

    async def broken(self: Pipeline, request: Any, target: Any) -> Any:
        asyncio.ensure_future(_raise())  # noqa: RUF006 - that is the flaw
        return await self._infer(request, target, self.now(), None)

    return at_each_tenth_request(patch, broken)


def task_fails_and_is_kept(patch: Patch) -> Scenario:
    """A daemon keeps a task, and never looks how it ended."""
    kept = []

    async def broken(self: Pipeline, request: Any, target: Any) -> Any:
        kept.append(asyncio.ensure_future(_raise()))
        return await self._infer(request, target, self.now(), None)

    return at_each_tenth_request(patch, broken)


def pipeline_raises(patch: Patch) -> Scenario:
    """A gateway meets an exception that nobody foresaw, and answers with a 500."""

    def broken(_self: Pipeline, _request: Any, _target: Any) -> Any:
        raise RuntimeError("nobody foresaw this")

    return at_each_tenth_request(patch, broken)


def peer_raises(patch: Patch) -> Scenario:
    """A node that is asked by a peer meets an exception that nobody foresaw."""
    right, tenth = ModelServer.infer, EachTenth()

    async def infer(self: ModelServer, request: Any) -> Any:
        if tenth.is_now():
            raise RuntimeError("nobody foresaw this")
        return await right(self, request)

    patch.setattr(ModelServer, "infer", infer)
    return small(rate_per_s=40.0)


FLAWS = {
    answer_is_sent_twice: "one-answer",
    answer_is_repeated_later: "one-answer",
    request_is_never_answered: "one-answer",
    connection_is_dropped: "one-answer",
    request_runs_twice: "attempts-within-budget",
    request_runs_again_when_it_was_answered: "attempts-within-budget",
    callback_raises: "no-unhandled",
    task_fails_unheard: "no-unhandled",
    task_fails_and_is_kept: "no-unhandled",
    pipeline_raises: "no-unhandled",
    peer_raises: "no-unhandled",
}


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.__name__)
def test_a_broken_daemon_is_caught_with_its_invariant_and_a_seed(
    flaw: Any, monkeypatch: Patch
) -> None:
    result: Result = play(flaw(monkeypatch), seed=3, depth="B", source="rehearsal.toml")
    assert [each.invariant for each in result.violations] == [FLAWS[flaw]], result.violations
    told = failure(result)
    assert told.startswith(f"seed 3 at depth B: {FLAWS[flaw]} broken at ")


@pytest.mark.parametrize("depth", "AB")
def test_a_call_that_is_never_answered_is_named(depth: str, monkeypatch: Patch) -> None:
    if depth == "A":
        from tests.broken.test_broken_cores import request_is_never_ended

        scenario = request_is_never_ended(monkeypatch)
    else:
        scenario = request_is_never_answered(monkeypatch)
    (broken,) = play(scenario, seed=3, depth=depth).violations
    assert broken.invariant == "one-answer"
    assert "has had call" in broken.message
    assert "has not answered it" in broken.message


@pytest.mark.parametrize("depth", "AB")
@pytest.mark.parametrize(
    "fault",
    [
        Freeze(at_s=1.0, for_s=3.0, nodes=("all",)),
        Sleep(at_s=1.0, for_s=3.0, nodes=("all",)),
        SlowDown(at_s=1.0, nodes=("all",), factor=5_000.0),
        ClockSkew(at_s=1.0, nodes=("all",), rate=-0.3),
    ],
    ids=lambda fault: fault.verb,
)
def test_gateways_that_stand_still_or_are_slow_are_not_accused(fault: Any, depth: str) -> None:
    scenario = rehearsal(fault, nodes=1, duration_s=4.0, timeout_s=1.0, mean_ms=500.0)
    result = play(scenario, seed=3, depth=depth)
    assert result.ok, failure(result)
    assert "client_timeout" in {outcome.code for _, outcome in result.calls if outcome}


@pytest.mark.parametrize("depth", "AB")
@pytest.mark.parametrize("verb", [Freeze, Sleep])
def test_a_gateway_that_stands_still_with_a_call_it_has_read_is_not_accused(
    verb: Any, depth: str
) -> None:
    made = rehearsal(
        verb(at_s=1.0, for_s=3.0, nodes=("all",)),
        nodes=1,
        duration_s=4.0,
        timeout_s=1.0,
        mean_ms=500.0,
    )
    alone = tuple(replace(load, retry_elsewhere=False) for load in made.load)
    result = play(replace(made, load=alone), seed=3, depth=depth)
    assert result.ok, failure(result)
    waited = [
        call for call, outcome in result.calls if outcome and outcome.code == "client_timeout"
    ]
    assert any(call.made_at_s < 1.0 for call in waited)


def test_contents_that_no_seed_decides_change_the_trace_hash(monkeypatch: Patch) -> None:
    scenario = small(duration_s=1.0)
    sound = [play(scenario, seed=3, depth="B").trace_hash for _ in range(2)]
    assert sound[0] == sound[1]
    right, chance = PlainAnswer.__init__, random.SystemRandom()

    def random_date(self: PlainAnswer, response: Any, request_id: str, date: str) -> None:
        right(self, response, request_id, f"{chance.randrange(10**28, 10**29)}")

    monkeypatch.setattr(PlainAnswer, "__init__", random_date)
    broken = {play(scenario, seed=3, depth="B").trace_hash for _ in range(2)}
    assert len({*broken, *sound}) == 3
