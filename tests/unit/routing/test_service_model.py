from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.request import RoutedRequest
from meshnode.routing.service_model import LEAST_FACTOR, MOST_FACTOR, SizeModel


def asked(rows: int = 1, size_bytes: int = 0, tokens: int = 0) -> RoutedRequest:
    return RoutedRequest("m", rows=rows, size_bytes=size_bytes, tokens=tokens)


def test_a_model_learns_what_a_row_costs_and_predicts_other_batches() -> None:
    model, rng = SizeModel(), random.Random(1)
    for _ in range(60):
        rows = rng.randint(1, 64)
        model.observe(asked(rows), (5 + 2 * rows) * rng.uniform(0.9, 1.1), mean_ms=70.0)
    assert model.is_trusted
    for rows in (1, 10, 60):
        assert 70 * model.factor(asked(rows)) == pytest.approx(5 + 2 * rows, rel=0.25, abs=3)


def test_tokens_and_bytes_are_told_apart() -> None:
    model, rng = SizeModel(), random.Random(1)
    for _ in range(200):
        tokens, size_bytes = rng.randint(1, 2000), rng.randint(0, 2**20)
        model.observe(asked(1, size_bytes, tokens), 10 + tokens + size_bytes / 10_000, 1000.0)
    assert 1000 * model.factor(asked(1, 0, 1500)) == pytest.approx(1510, rel=0.05)
    assert 1000 * model.factor(asked(1, 10**6, 10)) == pytest.approx(120, rel=0.2)


def test_where_size_says_nothing_every_request_is_an_average_one() -> None:
    model, rng = SizeModel(), random.Random(1)
    for _ in range(500):
        model.observe(asked(rng.randint(1, 64)), rng.expovariate(1) * 50, 50.0)
        assert not model.is_trusted
    assert model.factor(asked(64)) == 1.0


def test_requests_that_are_all_alike_teach_nothing() -> None:
    model = SizeModel()
    for _ in range(100):
        model.observe(asked(8), 20.0, 10.0)
    assert repr(model) == "<SizeModel not trusted after 0 answers: 1, 0, 0, 0>"


def test_a_size_beyond_all_that_were_seen_counts_as_the_largest_seen() -> None:
    model = SizeModel()
    for number in range(60):
        rows = 1 + number % 8
        model.observe(asked(rows), 10.0 * rows, 45.0)
    assert model.factor(asked(10**9)) == pytest.approx(model.factor(asked(8)))


def test_another_cost_of_a_row_is_learned_within_two_hundred_answers() -> None:
    model, rng = SizeModel(), random.Random(1)
    for cost_ms in (1.0, 3.0):
        for _ in range(400):
            rows = rng.randint(1, 32)
            model.observe(asked(rows), 50.0 + cost_ms * rows, 50.0)
        expected_ms = 50.0 + cost_ms * 30
        assert 50 * model.factor(asked(30)) == pytest.approx(expected_ms, rel=0.1)


def test_what_a_size_said_is_believed_no_more_once_it_says_nothing() -> None:
    model, rng = SizeModel(), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 32)
        model.observe(asked(rows), 10.0 * rows, 160.0)
    assert model.is_trusted
    for _ in range(600):
        model.observe(asked(rng.randint(1, 32)), 100 * rng.expovariate(1), 160.0)
    assert not model.is_trusted


sizes = st.builds(asked, st.integers(0, 10**6), st.integers(0, 2**40), st.integers(0, 10**6))
times = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1e9)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(sizes, times, times), max_size=80), sizes)
def test_whatever_was_seen_a_factor_is_a_number_within_its_bounds(
    seen: list[tuple[RoutedRequest, float, float]], request: RoutedRequest
) -> None:
    model = SizeModel()
    for each, run_ms, mean_ms in seen:
        model.observe(each, run_ms, mean_ms)
    factor = model.factor(request)
    assert math.isfinite(factor)
    assert LEAST_FACTOR <= factor <= MOST_FACTOR
    assert factor == model.factor(request)
