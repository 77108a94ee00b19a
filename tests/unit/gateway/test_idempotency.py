"""A POST with an `Idempotency-Key` is carried out once, and its repetitions get the answer that there was."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    IdempotencyKeyReused,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    Saturated,
)
from meshnode.gateway import idempotency as module
from meshnode.gateway.idempotency import AnswersOnce
from meshnode.gateway.matching import Match
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.sealed_answers import Kept, Seal
from meshnode.limits import IDEMPOTENCY_TTL_S, MAX_IDEMPOTENT_ANSWER_BYTES, MAX_SEALED_BYTES
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeClock

PHONE = Caller(Scope.INFER, "k1", "phone")
TEXT = "mesh_" + "a" * 16 + "_" + "b" * 52
SEAL = Seal(TEXT, "k1", "a")


class Work:
    """What is to be done once: counts how often it is, and does what a test says."""

    def __init__(self) -> None:
        self.done = 0
        self.started = asyncio.Event()
        self.go: asyncio.Event | None = None
        self.fails: MeshError | None = None
        self.status = 201
        self.parts: list[bytes] | None = None
        self.closed = 0
        self.match = Match(self._answer, Scope.INFER, takes_body=True)

    async def _answer(self, http: HttpRequest, request_id: str) -> HttpResponse | HttpStream:
        self.done += 1
        self.started.set()
        if self.go is not None:
            await self.go.wait()
        if self.fails is not None:
            raise self.fails
        if self.parts is not None:
            return HttpStream(200, {"Content-Type": "text/event-stream"}, self._stream(self.parts))
        return HttpResponse(self.status, {"X-Of": request_id}, [b"done ", b"%d" % self.done])

    async def _stream(self, parts: list[bytes]) -> AsyncIterator[bytes]:
        try:
            for part in parts:
                if part == b"!":
                    raise InferenceFailed("it broke")
                yield part
        finally:
            self.closed += 1


class Bench:
    """One gateway's memory of keys."""

    def __init__(self, clock: FakeClock, home: Any = None) -> None:
        self.metrics = GatewayMetrics()
        self.once = AnswersOnce(clock.now, self.metrics, home)
        self.work = Work()
        self.ids = 0

    async def ask(
        self,
        key: str = "a",
        body: bytes = b"{}",
        path: str = "/x",
        caller: Caller = LOCAL,
        **headers: str,
    ) -> Any:
        self.ids += 1
        named = {"idempotency-key": key, **headers}
        if caller.key_id:
            named["authorization"] = f"Bearer {TEXT}"
        http = HttpRequest("POST", path, "", named, body, caller)
        return await self.once.answer(self.work.match, http, f"r{self.ids}")

    @property
    def counted(self) -> dict[str, float]:
        return {labels[0]: value for labels, value in self.metrics.replays.values.items()}


@pytest.fixture
def bench(clock: FakeClock) -> Bench:
    return Bench(clock)


async def test_a_repetition_gets_the_same_answer_and_says_that_it_is_one(bench: Bench) -> None:
    first = await bench.ask()
    again = await bench.ask()
    assert bench.work.done == 1
    assert (again.status, again.body) == (201, b"done 1")
    assert again.headers == {"X-Of": "r1", "Idempotent-Replayed": "true"}
    assert "Idempotent-Replayed" not in first.headers
    assert bench.counted == {"new": 1, "replayed": 1}


async def test_another_request_under_the_same_key_is_refused(bench: Bench) -> None:
    await bench.ask()
    for other in (
        {"body": b"{ }"},
        {"path": "/y"},
        {"content-type": "text/plain"},
        {"accept": "image/png"},
    ):
        with pytest.raises(IdempotencyKeyReused, match="key of its own"):
            await bench.ask(**other)
    assert bench.work.done == 1
    assert bench.counted["mismatch"] == 4


async def test_keys_belong_to_their_callers(bench: Bench) -> None:
    await bench.ask()
    await bench.ask(caller=PHONE)
    await bench.ask(caller=Caller(Scope.INFER, "k2", "phone"))
    await bench.ask(caller=Caller(Scope.OWNER))
    assert bench.work.done == 4


async def test_a_repetition_that_comes_while_the_first_runs_waits_for_it(bench: Bench) -> None:
    bench.work.go = asyncio.Event()
    asked = [asyncio.ensure_future(bench.ask()) for _ in range(5)]
    await bench.work.started.wait()
    await asyncio.sleep(0)
    assert not any(each.done() for each in asked)
    bench.work.go.set()
    answers = await asyncio.gather(*asked)
    assert bench.work.done == 1
    assert {
        b"".join(each.body) if isinstance(each.body, list) else each.body for each in answers
    } == {b"done 1"}


async def test_what_failed_is_tried_again(bench: Bench) -> None:
    bench.work.fails = InferenceFailed("it broke")
    with pytest.raises(InferenceFailed):
        await bench.ask()
    bench.work.fails, bench.work.status = None, 503
    assert (await bench.ask()).status == 503
    bench.work.status = 200
    assert (await bench.ask()).status == 200
    assert (await bench.ask()).headers["Idempotent-Replayed"] == "true"
    assert bench.work.done == 3


async def test_who_waits_for_one_that_fails_carries_it_out(bench: Bench) -> None:
    bench.work.go = asyncio.Event()
    bench.work.fails = InferenceFailed("it broke")
    first = asyncio.ensure_future(bench.ask())
    await bench.work.started.wait()
    second = asyncio.ensure_future(bench.ask())
    await asyncio.sleep(0)
    bench.work.go.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(each) for each in results] == [InferenceFailed, InferenceFailed]
    assert bench.work.done == 2


async def test_work_goes_on_when_its_client_hangs_up(bench: Bench) -> None:
    bench.work.go = asyncio.Event()
    gone = asyncio.ensure_future(bench.ask())
    await bench.work.started.wait()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    again = asyncio.ensure_future(bench.ask())
    await asyncio.sleep(0)
    bench.work.go.set()
    assert (await again).body == b"done 1"
    assert bench.work.done == 1


async def test_a_stream_is_given_again_whole(bench: Bench) -> None:
    bench.work.parts = [b"data: 1\n\n", b"data: 2\n\n"]
    first = await bench.ask()
    waiting = asyncio.ensure_future(bench.ask())
    assert [part async for part in first.parts] == bench.work.parts
    again = await waiting
    assert (again.body, again.headers["Content-Type"]) == (
        b"data: 1\n\ndata: 2\n\n",
        "text/event-stream",
    )
    assert (bench.work.done, bench.work.closed) == (1, 1)


@pytest.mark.parametrize("how", ["broken", "left", "never begun"])
async def test_a_stream_that_did_not_end_is_not_given_again(bench: Bench, how: str) -> None:
    bench.work.parts = [b"1", b"!"] if how == "broken" else [b"1", b"2"]
    stream = await bench.ask()
    if how == "broken":
        with pytest.raises(InferenceFailed):
            [part async for part in stream.parts]
    elif how == "left":
        assert await anext(stream.parts) == b"1"
    await stream.parts.aclose()
    bench.work.parts = None
    assert (await bench.ask()).body == [b"done ", b"2"]
    assert repr(bench.once) == "<AnswersOnce: 0 running, 1 kept>"


async def test_a_stream_whose_client_hung_up_before_it_began_is_closed(bench: Bench) -> None:
    bench.work.parts = [b"1"]
    bench.work.go = asyncio.Event()
    gone = asyncio.ensure_future(bench.ask())
    await bench.work.started.wait()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    bench.work.go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert repr(bench.once) == "<AnswersOnce: 0 running, 0 kept>"


async def test_answers_are_forgotten_after_their_time(bench: Bench, clock: FakeClock) -> None:
    await bench.ask()
    clock.time_s += IDEMPOTENCY_TTL_S - 1
    await bench.ask()
    assert bench.work.done == 1
    clock.time_s += 1
    await bench.ask(body=b"another, for the key is free")
    assert bench.work.done == 2


async def test_memory_is_bounded_and_the_oldest_goes_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDEMPOTENCY_KEYS", 2)
    for key in "abc":
        await bench.ask(key)
    assert repr(bench.once) == "<AnswersOnce: 0 running, 2 kept>"
    await bench.ask("c")
    await bench.ask("b")
    assert bench.work.done == 3
    await bench.ask("a")
    assert bench.work.done == 4
    monkeypatch.setattr(module, "MAX_IDEMPOTENT_BYTES", 1500)
    await bench.ask("d")
    assert repr(bench.once) == "<AnswersOnce: 0 running, 1 kept>"


async def test_a_large_answer_is_not_kept_and_made_again(bench: Bench) -> None:
    bench.work.parts = [bytes(MAX_IDEMPOTENT_ANSWER_BYTES), b"and more"]
    for _ in range(2):
        stream = await bench.ask()
        assert sum([len(part) async for part in stream.parts]) > MAX_IDEMPOTENT_ANSWER_BYTES
    assert bench.work.done == 2


async def test_no_more_run_than_a_gateway_works_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDEMPOTENT_RUNS", 1)
    bench.work.go = asyncio.Event()
    first = asyncio.ensure_future(bench.ask("a"))
    await bench.work.started.wait()
    with pytest.raises(Saturated):
        await bench.ask("b")
    bench.work.go.set()
    await first
    assert (await bench.ask("b")).status == 201


async def test_one_caller_leaves_room_for_the_runs_of_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDEMPOTENT_RUNS_PER_CALLER", 1)
    bench.work.go = asyncio.Event()
    gone = asyncio.ensure_future(bench.ask("a", caller=PHONE))
    await bench.work.started.wait()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    with pytest.raises(Saturated, match="of yours"):
        await bench.ask("b", caller=PHONE)
    bench.work.go.set()
    assert (await bench.ask("b")).status == 201
    assert (await bench.ask("b", caller=PHONE)).status == 201


@pytest.mark.parametrize("limit", ["MAX_IDEMPOTENT_BYTES", "MAX_IDEMPOTENCY_KEYS"])
async def test_whoever_has_the_most_loses_their_own_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    await bench.ask("mine")
    monkeypatch.setattr(module, limit, 8000 if limit == "MAX_IDEMPOTENT_BYTES" else 8)
    for number in range(50):
        await bench.ask(str(number), caller=PHONE)
    assert bench.work.done == 51
    assert (await bench.ask("mine")).headers["Idempotent-Replayed"] == "true"
    assert bench.work.done == 51
    await bench.ask("0", caller=PHONE)
    assert bench.work.done == 52


async def test_an_answer_is_kept_so_that_who_accepts_less_can_read_it(bench: Bench) -> None:
    asked: list[str | None] = []

    async def answer(http: HttpRequest, _request_id: str) -> HttpResponse:
        asked.append(http.headers.get("accept-encoding"))
        return HttpResponse(200, {}, b"plain")

    bench.work.match = Match(answer, Scope.INFER, takes_body=True)
    accepts: dict[str, Any] = {"accept-encoding": "gzip"}
    await bench.ask("a", **accepts)
    assert (await bench.ask("a")).body == b"plain"
    assert asked == [None]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\t", "é"])
async def test_what_is_no_key_is_refused(bench: Bench, key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        await bench.ask(key)
    assert bench.work.done == 0


async def test_a_large_body_is_hashed_beside_the_loop_with_the_same_result(bench: Bench) -> None:
    body = bytes(2 * 2**20)
    await bench.ask(body=body)
    assert (await bench.ask(body=body)).headers["Idempotent-Replayed"] == "true"


# The home of a key.


class FakeClaim:
    def __init__(self, answer: Kept | None) -> None:
        self.answer = answer
        self.settled: list[Kept | None] = []

    async def settle(self, answer: Kept | None) -> None:
        self.settled.append(answer)


class FakeHome:
    def __init__(self) -> None:
        self.claims: list[FakeClaim] = []
        self.answer: Kept | None = None
        self.is_gone = False

    async def claim(self, digest: bytes, fingerprint: bytes) -> FakeClaim | None:
        assert (len(digest), len(fingerprint)) == (32, 32)
        if self.is_gone:
            return None
        self.claims.append(FakeClaim(self.answer))
        return self.claims[-1]


async def test_the_home_of_a_key_is_asked_first_and_told_the_answer(clock: FakeClock) -> None:
    home = FakeHome()
    bench = Bench(clock, home)
    await bench.ask(caller=PHONE)
    (claim,) = home.claims
    (told,) = claim.settled
    assert told is not None
    assert (told.status, told.headers, b"done" in told.body) == (200, {}, False)
    assert SEAL.open(told) == Kept(201, {"X-Of": "r1"}, b"done 1")
    await bench.ask(caller=PHONE)
    assert len(home.claims) == 1, "this gateway knows it by itself now"
    bench.work.fails = InferenceFailed("it broke")
    with pytest.raises(InferenceFailed):
        await bench.ask("b", caller=PHONE)
    assert home.claims[1].settled == [None]


async def test_what_another_gateway_answered_is_given_again_here(clock: FakeClock) -> None:
    home = FakeHome()
    home.answer = SEAL.close(Kept(201, {"X-Of": "elsewhere"}, b"there"), bytes)
    bench = Bench(clock, home)
    for _ in range(2):
        answer = await bench.ask(caller=PHONE)
        assert (answer.body, answer.headers["Idempotent-Replayed"]) == (b"there", "true")
    assert (bench.work.done, len(home.claims), home.claims[0].settled) == (0, 1, [])
    assert bench.counted == {"replayed_elsewhere": 1, "replayed": 1}


async def test_without_a_home_a_gateway_answers_by_itself(clock: FakeClock) -> None:
    home = FakeHome()
    home.is_gone = True
    bench = Bench(clock, home)
    assert (await bench.ask(caller=PHONE)).status == 201
    home.is_gone = False
    await bench.ask("local", caller=LOCAL)
    assert home.claims == [], "who has no API key is somebody else at every node"


async def test_what_a_home_made_up_is_not_believed(clock: FakeClock) -> None:
    home = FakeHome()
    home.answer = Kept(200, {}, b"made up, by a node that was lent to the mesh")
    bench = Bench(clock, home)
    assert (await bench.ask(caller=PHONE)).body == [b"done ", b"1"]
    assert (await bench.ask(caller=PHONE)).headers["Idempotent-Replayed"] == "true"


async def test_what_somebody_else_sealed_here_is_forgotten(bench: Bench) -> None:
    fingerprint = await of_request()
    assert await bench.once.claim(SEAL.digest, fingerprint) is None
    bench.once.settle(SEAL.digest, Kept(200, {}, b"made up"))
    assert (await bench.ask(caller=PHONE)).body == [b"done ", b"1"]


def test_a_seal_tells_nothing_and_opens_only_what_it_closed() -> None:
    answer = Kept(201, {"Location": "/x"}, b"a new API key")
    closed = SEAL.close(answer, bytes)
    assert closed is not None
    assert SEAL.open(closed) == answer
    for other in (Seal(TEXT, "k1", "b"), Seal(TEXT[:-1] + "c", "k1", "a")):
        assert other.digest != SEAL.digest
        assert other.open(closed) is None
        assert (
            other.fingerprint(b"request") != SEAL.fingerprint(b"request")
            or other.digest != SEAL.digest
        )
    assert SEAL.open(Kept(200, {}, b"")) is None
    assert SEAL.close(Kept(200, {}, bytes(MAX_IDEMPOTENT_ANSWER_BYTES + 1)), bytes) is None
    assert SEAL.close(Kept(200, {"a": "b" * MAX_SEALED_BYTES}, b""), bytes) is None
    plain = Seal(None, "infer", "a")
    assert plain.open(answer) == plain.close(answer, bytes) == answer
    assert (plain.is_closed, repr(plain).endswith(", open>"), TEXT in repr(SEAL)) == (
        False,
        True,
        False,
    )


async def of_request() -> bytes:
    named = {"idempotency-key": "a", "authorization": f"Bearer {TEXT}"}
    http = HttpRequest("POST", "/x", "", named, b"{}", PHONE)
    assert module.seal_of(http, "a").digest == SEAL.digest
    return SEAL.fingerprint(await module._hash_of(http))


async def test_a_claim_from_elsewhere_counts_like_a_request_here(bench: Bench) -> None:
    digest, fingerprint = SEAL.digest, await of_request()
    assert await bench.once.claim(digest, fingerprint) is None
    here = asyncio.ensure_future(bench.ask(caller=PHONE))
    await asyncio.sleep(0)
    assert bench.work.done == 0
    bench.once.settle(digest, SEAL.close(Kept(200, {}, b"there"), bytes))
    assert (await here).body == b"there"
    known = await bench.once.claim(digest, fingerprint)
    assert known is not None
    with pytest.raises(IdempotencyKeyReused):
        await bench.once.claim(digest, bytes(32))
    bench.once.settle(bytes(32), None)
    await bench.once.ended(bytes(32))


# Where requests with keys go.


@pytest.mark.parametrize(
    ("method", "headers", "answers_once", "went_to"),
    [
        ("POST", {"idempotency-key": "a"}, False, "once"),
        ("POST", {"idempotency-key": "a"}, True, "match"),
        ("POST", {"idempotency-key": "a", "prefer": "wait=1, Respond-Async"}, False, "later"),
        ("POST", {}, False, "match"),
        ("PUT", {"idempotency-key": "a"}, False, "match"),
    ],
)
def test_jobs_look_after_keys_themselves_and_all_other_posts_are_answered_once(
    dispatcher: Dispatcher,
    method: str,
    headers: dict[str, str],
    answers_once: bool,
    went_to: str,
) -> None:
    def by(name: str) -> Any:
        return lambda *_: HttpResponse(200, {"By": name})

    dispatcher.respond_later, dispatcher.answer_once = by("later"), by("once")
    match = Match(by("match"), Scope.INFER, infers=True, answers_once=answers_once)
    answer = dispatcher.answer(match, HttpRequest(method, "/x", "", headers), "r1")
    assert isinstance(answer, HttpResponse)
    assert answer.headers["By"] == went_to
