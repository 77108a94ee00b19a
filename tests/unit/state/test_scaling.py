"""Autoscaling as a deployment has it, and what stewards and gateways say of it."""

from __future__ import annotations

import math

import msgspec
import pytest

from meshnode.errors import ModelError, ProtocolError
from meshnode.limits import MAX_STEWARD_EPOCH
from meshnode.sim.serving import sim_manifest
from meshnode.state.deployment import Deployment
from meshnode.state.scaling import Scaling, scaling_flaws
from meshnode.state.steward import StewardWord, Waiting, deployment_of, steward_key

GOOD = Scaling(0, 5, concurrency=2)


def test_a_deployment_keeps_its_autoscaling() -> None:
    deployment = Deployment("m", (sim_manifest("m"),), scaling=GOOD)
    assert Deployment.decode(deployment.encode()).scaling == GOOD
    fixed = msgspec.structs.replace(deployment, scaling=None)
    assert Deployment.decode(fixed.encode()).scaling is None
    assert fixed != deployment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_replicas": 6}, "min is 6 and max is 5"),
        ({"min_replicas": -1}, "it takes 0 <= min <= max"),
        ({"max_replicas": 5000}, "max is 5000, not 1 to 1024"),
        ({"concurrency": 0.0}, "no target to follow"),
        ({"concurrency": -1.0}, "the target concurrency is -1"),
        ({"qps": math.nan}, "the target qps is nan"),
        ({"cpu": 70.0}, "the target cpu is 70, not above 0 and at most 1"),
        ({"stable_window_s": 0.5}, "stable_window_s is 0.5, not 2 to 3600"),
        ({"panic_window_s": 90.0}, "the window for bursts is the shorter one"),
        ({"panic_threshold": 1.0}, "panic_threshold is 1, not 1.1 to 1000"),
        ({"tolerance": 2.0}, "tolerance is 2"),
        ({"down_delay_s": math.inf}, "down_delay_s is inf"),
        ({"idle_s": 0.0}, "idle_s is 0"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(changes: dict[str, float], said: str) -> None:
    scaling = msgspec.structs.replace(GOOD, **changes)
    assert any(said in flaw for flaw in scaling_flaws(scaling))
    with pytest.raises(ModelError, match="'m': "):
        Deployment("m", (sim_manifest("m"),), scaling=scaling).encode()


def test_one_replica_that_only_sleeps_and_wakes_needs_no_target() -> None:
    assert [*scaling_flaws(Scaling(0, 1))] == []


def test_a_word_is_read_as_it_was_said() -> None:
    word = StewardWord(3, 4, "qps: 38 requests per second", 1_750_000_000_000, (1_700, 2), 1500)
    assert StewardWord.decode(word.encode()) == word
    assert deployment_of(steward_key("digits")) == "digits"
    assert deployment_of("replica/digits/1") is None


@pytest.mark.parametrize(
    "value",
    [
        b"\xc1",
        msgspec.msgpack.encode([0, 1, "", 0]),
        msgspec.msgpack.encode([MAX_STEWARD_EPOCH + 1, 1, "", 0]),
        msgspec.msgpack.encode([1, 1_000_000, "", 0]),
        msgspec.msgpack.encode([1, 1, "x" * 10_000, 0]),
    ],
)
def test_what_is_no_word_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        StewardWord.decode(value)


def test_who_waits_is_read_within_limits() -> None:
    waiting = Waiting((("digits", 3), ("faces", 1)))
    assert Waiting.decode(waiting.encode()) == waiting
    with pytest.raises(ProtocolError):
        Waiting.decode(msgspec.msgpack.encode([[["digits", -3]]]))
    with pytest.raises(ProtocolError):
        Waiting.decode(msgspec.msgpack.encode([[[f"m{number}", 1] for number in range(65)]]))
