"""Lines that strangers cause: a few, then a count."""

from __future__ import annotations

import logging

import pytest

from meshnode.limits import LOG_WINDOW_S, MAX_LOG_KINDS
from meshnode.net.log_budget import LogBudget


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wall_s(self) -> float:
        return self.time


@pytest.fixture
def budget(caplog: pytest.LogCaptureFixture) -> tuple[LogBudget, Clock]:
    caplog.set_level(logging.INFO)
    clock = Clock()
    return LogBudget(logging.getLogger("test"), clock), clock


def test_a_flood_is_a_few_lines_and_a_count(
    budget: tuple[LogBudget, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    log, clock = budget
    for index in range(1000):
        log.write(logging.WARNING, "refused", f"refused {index}")
    assert [record.getMessage() for record in caplog.records] == [
        *(f"refused {index}" for index in range(5)),
        "refused: more of these are counted, not logged",
    ]
    caplog.clear()
    clock.time = LOG_WINDOW_S
    log.write(logging.WARNING, "refused", "again")
    assert [record.getMessage() for record in caplog.records] == [
        "refused: 995 more were not logged",
        "again",
    ]


def test_kinds_do_not_take_each_others_lines(
    budget: tuple[LogBudget, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    log, clock = budget
    for _ in range(9):
        log.write(logging.INFO, "one", "one")
    log.write(logging.INFO, "two", "two")
    assert caplog.records[-1].getMessage() == "two"
    clock.time = LOG_WINDOW_S
    log.write(logging.INFO, "two", "quiet before")
    assert caplog.records[-1].getMessage() == "quiet before"
    assert repr(log) == "<LogBudget of test: 2 kinds>"


def test_the_kinds_are_bounded(budget: tuple[LogBudget, Clock]) -> None:
    log, _ = budget
    for index in range(1000):
        log.write(logging.DEBUG, f"kind {index}", "x")
    assert len(log._windows) == MAX_LOG_KINDS
