"""The plan of a release: what may not be in one, and the values beside it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_RELEASE_FEEDBACK_GATES, MAX_RELEASE_S
from meshnode.state.release import Ending, Gate, Order, Release, Step, release_flaws

PLAN = Release("canary", 1, 2, (Step(0.1), Step(0.5)), (Gate("errors", 0.01),))


def flaws(**fields: Any) -> list[str]:
    return list(release_flaws(msgspec.structs.replace(PLAN, **fields)))


def test_a_good_plan_has_no_flaw() -> None:
    assert flaws() == []
    assert flaws(split_by="header:user", only=("ann",)) == []
    assert flaws(split_by="key", gates=(Gate("latency_p99", 1.0), Gate("stars", 3.0))) == []
    assert flaws(against="labels", gates=(Gate("agreement", 0.99),)) == []


@pytest.mark.parametrize(
    ("fields", "flaw"),
    [
        ({"candidate": 1}, "they must be two"),
        ({"baseline": 0}, "they must be two"),
        ({"steps": (Step(1.5),)}, "a step's share is 1.5, not 0 to 1"),
        ({"steps": (Step(0.1, mirror=-1),)}, "a step's mirror is -1, not 0 to 1"),
        ({"steps": (Step(0.1, hold_s=2 * MAX_RELEASE_S),)}, "a step's hold_s is"),
        ({"steps": (Step(0.5), Step(0.1))}, "the shares of the steps go down"),
        ({"gates": (Gate("errors", 0.1), Gate("errors", 0.2))}, "a metric has two gates"),
        ({"gates": (Gate("", 0.1),)}, "1 to 128 bytes"),
        ({"gates": (Gate("é" * 65, 0.1),)}, "1 to 128 bytes"),
        ({"gates": (Gate("a\tb", 0.1),)}, "cannot be printed"),
        ({"gates": (Gate("stars", float("nan")),)}, "the limit of stars is nan"),
        ({"gates": (Gate("latency_p50", 0.9),)}, "at least 1"),
        ({"gates": (Gate("errors", 1.1),)}, "it is a share, at most 1"),
        (
            {"gates": tuple(Gate(f"m{n}", 1) for n in range(MAX_RELEASE_FEEDBACK_GATES + 1))},
            "of people's metrics at most 8 have gates",
        ),
        ({"gates": (Gate("agreement", 0.99),)}, "else nothing is compared"),
        ({"max_wait_s": -1.0}, "max_wait_s is -1"),
        ({"keep_s": float("inf")}, "keep_s is inf"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"confidence": 0.2}, "confidence is 0.2"),
        ({"only": ("ann",)}, "only names values of a header"),
        ({"split_by": "header:"}, "split_by is 'header:'"),
        ({"split_by": "user"}, "split_by is 'user', not key, session or header:NAME"),
    ],
)
def test_each_flaw_is_named(fields: dict[str, Any], flaw: str) -> None:
    (found,) = flaws(**fields)
    assert flaw in found


def test_orders_and_endings_are_read_as_they_were_written() -> None:
    order = Order(3, "promote", (5, 1), "ann", "it is time")
    assert Order.decode(order.encode()) == order
    ending = Ending((5, 1), "rolled_back", "errors", 1000)
    assert Ending.decode(ending.encode()) == ending


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode([0, "promote", [1, 1]])])
def test_what_is_neither_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="what is said of a release is not valid"):
        Order.decode(value)
    with pytest.raises(ProtocolError, match="what is said of a release is not valid"):
        Ending.decode(value)
