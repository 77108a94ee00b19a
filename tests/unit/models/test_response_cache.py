"""Answers kept by content, and equal requests that run once."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from meshnode.errors import DeadlineExceeded, InferenceFailed, Saturated
from meshnode.models.serving.response_cache import ENTRY_BYTES, ResponseCache, request_key
from meshnode.models.serving.single_flight import SingleFlight
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor


def part(size_bytes: int = 100, name: str = "y") -> ResponsePart:
    return ResponsePart((Tensor(name, DataType.UINT8, (size_bytes,), bytes(size_bytes)),))


def cache(
    max_bytes: int = 100_000, max_entries: int = 100, max_age_s: float = 10.0
) -> ResponseCache:
    return ResponseCache(max_bytes, max_entries, max_age_s)


A, B, C = b"a", b"b", b"c"


def test_what_was_kept_is_found_and_says_so() -> None:
    kept = cache()
    assert kept.find(A, 0.0) is None
    kept.keep(A, part(), 0.0)
    found = kept.find(A, 9.9)
    assert found is not None
    assert found.outputs == part().outputs
    assert found.parameters == {"cache": "hit", "cache_age_s": 9.9}
    assert kept.find(A, 9.9, max_age_s=9.8) is None, "too old for who asks, and kept for others"
    assert kept.find(A, 9.9, max_age_s=10.0) is not None
    assert (kept.hits, len(kept), kept.size_bytes) == (2, 1, 100 + ENTRY_BYTES)
    assert repr(kept) == f"<ResponseCache 1 answers, {100 + ENTRY_BYTES} of 100000 bytes>"


def test_an_answer_is_kept_for_a_limited_time() -> None:
    kept = cache()
    kept.keep(A, part(), 0.0)
    assert kept.find(A, 10.0) is None
    assert (len(kept), kept.size_bytes) == (0, 0)


def test_the_least_recently_used_goes_when_bytes_or_entries_run_out() -> None:
    kept = cache(max_entries=2)
    kept.keep(A, part(), 0.0)
    kept.keep(B, part(), 0.0)
    kept.find(A, 1.0)
    kept.keep(C, part(), 2.0)
    assert [kept.find(key, 3.0) is not None for key in (A, B, C)] == [True, False, True]
    assert kept.evictions == 1
    small = cache(max_bytes=10 * ENTRY_BYTES)
    for number in range(10):
        small.keep(bytes([number]), part(ENTRY_BYTES), 0.0)
    assert (len(small), small.size_bytes) == (5, 10 * ENTRY_BYTES)


def test_an_answer_that_would_drop_most_others_is_not_kept() -> None:
    kept = cache(max_bytes=10_000)
    kept.keep(A, part(2_600), 0.0)
    assert len(kept) == 0
    kept.keep(A, part(1_900), 0.0)
    assert len(kept) == 1


def test_a_limit_of_nothing_keeps_nothing() -> None:
    for limits in ((0, 10, 10.0), (10_000, 0, 10.0), (10_000, 10, 0.0)):
        kept = ResponseCache(*limits)
        assert not kept.keeps_any
        kept.keep(A, part(), 0.0)
        assert len(kept) == 0


def test_an_answer_kept_again_counts_once_and_clearing_drops_all() -> None:
    kept = cache()
    kept.keep(A, part(), 0.0)
    kept.keep(A, part(200), 0.0)
    assert kept.size_bytes == 200 + ENTRY_BYTES
    kept.clear()
    assert (len(kept), kept.size_bytes) == (0, 0)


def test_kept_tensors_are_copies() -> None:
    """The model's memory may be used again, or be a part of a whole batch's."""
    memory = bytearray(b"first")
    kept = cache()
    kept.keep(A, ResponsePart((Tensor("y", DataType.UINT8, (5,), memoryview(memory)),)), 0.0)
    memory[:] = b"other"
    found = kept.find(A, 1.0)
    assert found is not None
    assert found.outputs[0].data == b"first"


X = Tensor("x", DataType.UINT8, (2,), b"ab")
Y = Tensor("y", DataType.UINT8, (1,), b"c")
REQUEST = InferRequest("m", (X, Y), version=1, parameters={"top": 1})


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, inputs=(replace(X, data=b"ac"), Y)),
        replace(REQUEST, inputs=(replace(X, shape=(1, 2)), Y)),
        replace(REQUEST, inputs=(replace(X, datatype=DataType.INT8), Y)),
        replace(REQUEST, inputs=(replace(X, name="z"), Y)),
        # The same bytes in a row, cut elsewhere.
        replace(
            REQUEST, inputs=(replace(X, shape=(1,), data=b"a"), replace(Y, shape=(2,), data=b"bc"))
        ),
        replace(REQUEST, outputs=("y",)),
        replace(REQUEST, parameters={"top": 2}),
        replace(REQUEST, parameters={"top": True}),
        replace(REQUEST, parameters={}),
    ],
)
def test_whatever_an_answer_depends_on_makes_another_key(other: InferRequest) -> None:
    assert request_key("digest", other) != request_key("digest", REQUEST)


def test_what_it_does_not_depend_on_makes_the_same_key() -> None:
    key = request_key("digest", REQUEST)
    assert request_key("digest", replace(REQUEST, inputs=(Y, X))) == key
    assert request_key("digest", replace(REQUEST, request_id="other", timeout_s=1.0)) == key
    asked = replace(REQUEST, parameters={"top": 1, "timeout": 5, "priority": 2})
    assert request_key("digest", asked) == key
    assert request_key("other", REQUEST) != key


# Equal requests at the same time.


class Runs:
    """Counts runs, and answers them when the test says."""

    def __init__(self) -> None:
        self.flights = SingleFlight()
        self.started: list[asyncio.Future[InferResponse]] = []
        self.cancelled = 0

    async def _run(self, _left_s: float) -> InferResponse:
        answer: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        self.started.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def ask(self, key: bytes = A, timeout_s: float = 30.0) -> asyncio.Task[InferResponse]:
        return asyncio.ensure_future(self.flights.run(key, timeout_s, self._run))

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


ANSWER = InferResponse("m", 1, part())


async def test_equal_requests_run_once_and_others_by_themselves() -> None:
    runs = Runs()
    first, second, other = runs.ask(), runs.ask(), runs.ask(B)
    await runs.settle()
    assert len(runs.started) == 2
    for answer in runs.started:
        answer.set_result(ANSWER)
    assert all(each is ANSWER for each in await asyncio.gather(first, second, other))
    assert runs.flights.shared == 1
    again = runs.ask()
    await runs.settle()
    assert len(runs.started) == 3
    runs.started[2].set_result(ANSWER)
    await again
    assert repr(runs.flights) == "<SingleFlight 0 runs, 1 shared>"


async def test_a_first_caller_that_gives_up_leaves_the_run_to_the_others() -> None:
    runs = Runs()
    first, second = runs.ask(), runs.ask()
    await runs.settle()
    first.cancel()
    await runs.settle()
    runs.started[0].set_result(ANSWER)
    assert await second is ANSWER
    assert (first.cancelled(), runs.cancelled) == (True, 0)


async def test_a_run_that_nobody_waits_for_is_cancelled_and_not_joined() -> None:
    runs = Runs()
    first, second = runs.ask(), runs.ask()
    await runs.settle()
    first.cancel()
    second.cancel()
    await asyncio.sleep(0)
    late = runs.ask()
    await runs.settle()
    assert runs.cancelled == 1
    runs.started[1].set_result(ANSWER)
    assert await late is ANSWER


async def test_each_waits_until_its_own_deadline() -> None:
    runs = Runs()
    patient, hasty = runs.ask(), runs.ask(timeout_s=0.0)
    with pytest.raises(DeadlineExceeded):
        await hasty
    runs.started[0].set_result(ANSWER)
    assert await patient is ANSWER


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), Saturated("full")])
async def test_a_reason_of_the_first_caller_alone_lets_the_others_begin_anew(
    error: Exception,
) -> None:
    runs = Runs()
    first, second = runs.ask(), runs.ask()
    await runs.settle()
    runs.started[0].set_exception(error)
    with pytest.raises(type(error)):
        await first
    await runs.settle()
    runs.started[1].set_result(ANSWER)
    assert await second is ANSWER


async def test_a_failure_of_the_model_is_shared() -> None:
    runs = Runs()
    first, second = runs.ask(), runs.ask()
    await runs.settle()
    runs.started[0].set_exception(InferenceFailed("bad input"))
    for each in (first, second):
        with pytest.raises(InferenceFailed):
            await each
    assert len(runs.started) == 1
