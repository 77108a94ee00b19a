"""What the owner's limits make of readings of the machine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.owner_limits import (
    LOAD_COPY_BYTES,
    LOAD_OVERHEAD_BYTES,
    MAINS_STEADY_S,
    MEMORY_STEADY_S,
    POWER_STEADY_S,
    TEMPERATURE_STEADY_S,
    Decision,
    OwnerLimits,
    OwnerPolicy,
    Reading,
    SteadyPower,
    load_estimate_bytes,
    size_text,
    why_no_room,
)

MIB = 1024**2


def mains(*, on: bool | None) -> Reading:
    return Reading(0, on)


def at(temperature_c: float | None) -> Reading:
    return Reading(0, None, temperature_c)


def test_without_limits_every_reading_serves() -> None:
    policy = OwnerPolicy(OwnerLimits())
    assert policy.decide(Reading(10**12, False, 120.0), 0.0) == Decision()


def test_on_battery_the_node_pauses_at_once_and_resumes_after_steady_mains() -> None:
    policy = OwnerPolicy(OwnerLimits(only_on_mains=True))
    assert policy.decide(mains(on=False), 0.0).paused == "on battery"  # the first reading counts
    assert policy.decide(mains(on=True), 1.0).paused
    assert policy.decide(mains(on=False), 2.0).paused  # a loose plug
    assert policy.decide(mains(on=True), 3.0).paused
    assert policy.decide(mains(on=True), 3.0 + MAINS_STEADY_S - 0.1).paused
    assert not policy.decide(mains(on=True), 3.0 + MAINS_STEADY_S).paused
    assert policy.decide(mains(on=False), 60.0).paused
    assert repr(policy).endswith("on battery>")


def test_a_machine_that_does_not_tell_its_power_serves() -> None:
    policy = OwnerPolicy(OwnerLimits(only_on_mains=True))
    assert not policy.decide(mains(on=None), 0.0).paused


def test_a_reading_that_fails_once_changes_nothing() -> None:
    policy = OwnerPolicy(OwnerLimits(only_on_mains=True, max_temperature_c=80.0))
    assert policy.decide(Reading(0, False, 90.0), 0.0).paused
    assert policy.decide(Reading(0, None, None), 100.0).paused


def test_heat_pauses_at_once_and_must_be_gone_for_a_while() -> None:
    policy = OwnerPolicy(OwnerLimits(max_temperature_c=80.0))
    assert not policy.decide(at(80.0), 0.0).paused
    hot = policy.decide(at(80.4), 1.0)
    assert hot.paused == "too hot: 80 °C, and the limit is 80 °C"
    assert policy.decide(at(95.0), 2.0) == hot  # told once, not anew with each degree
    assert policy.decide(at(76.0), 10.0).paused  # within the limit, but not cool
    assert policy.decide(at(75.0), 11.0).paused
    assert policy.decide(at(70.0), 11.0 + TEMPERATURE_STEADY_S - 1).paused
    assert not policy.decide(at(70.0), 11.0 + TEMPERATURE_STEADY_S).paused


def test_both_reasons_are_named() -> None:
    policy = OwnerPolicy(OwnerLimits(only_on_mains=True, max_temperature_c=80.0))
    paused = policy.decide(Reading(0, False, 90.0), 0.0).paused
    assert paused == "on battery; too hot: 90 °C, and the limit is 80 °C"


def test_above_its_memory_limit_a_node_refuses_until_it_is_well_below() -> None:
    policy = OwnerPolicy(OwnerLimits(max_memory_bytes=100 * MIB))
    assert policy.decide(Reading(60 * MIB), 0.0) == Decision(room_bytes=40 * MIB)
    over = policy.decide(Reading(101 * MIB), 1.0)
    assert over.room_bytes == 0
    assert over.refusing == (
        "this node uses 101 MiB of memory and its owner allows 100 MiB (--max-memory); "
        "try again later"
    )
    assert policy.decide(Reading(97 * MIB), 2.0).refusing
    assert not policy.decide(Reading(94 * MIB), 3.0).refusing


def test_a_node_whose_models_fill_its_limit_does_not_refuse_for_ever() -> None:
    policy = OwnerPolicy(OwnerLimits(max_memory_bytes=100 * MIB))
    assert policy.decide(Reading(101 * MIB), 0.0).refusing
    assert policy.decide(Reading(98 * MIB), 1.0).refusing
    assert policy.decide(Reading(98 * MIB), 1.0 + MEMORY_STEADY_S - 0.1).refusing
    assert not policy.decide(Reading(98 * MIB), 1.0 + MEMORY_STEADY_S).refusing


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0.1, 20.0),
            st.sampled_from([True, False, None]),
            st.one_of(st.none(), st.floats(40.0, 120.0)),
        ),
        max_size=60,
    )
)
def test_a_node_never_resumes_faster_than_its_hysteresis(
    steps: list[tuple[float, bool | None, float | None]],
) -> None:
    """Whatever is read: a resumption means steady mains and a cool processor before it."""
    policy = OwnerPolicy(OwnerLimits(only_on_mains=True, max_temperature_c=80.0))
    now = last_battery = last_warm = 0.0
    cool_since = math.inf
    was_hot = was_on_battery = False
    for wait_s, on_mains, temperature_c in steps:
        now += wait_s
        if on_mains is False:
            last_battery, was_on_battery = now, True
        if temperature_c is not None and temperature_c > 75.0:
            last_warm, cool_since, was_hot = now, math.inf, was_hot or temperature_c > 80.0
        elif temperature_c is not None:
            cool_since = min(cool_since, now)
            # It was cool for long enough, though a battery may have kept it paused then.
            was_hot = was_hot and now - cool_since < TEMPERATURE_STEADY_S
        paused = policy.decide(Reading(0, on_mains, temperature_c), now).paused
        if on_mains is False or (temperature_c or 0.0) > 80.0:
            assert paused
        if not paused:
            assert not was_on_battery or now - last_battery >= MAINS_STEADY_S
            assert not was_hot or now - last_warm >= TEMPERATURE_STEADY_S
            was_on_battery = was_hot = False


@given(rss=st.lists(st.integers(0, 200 * MIB), max_size=60))
def test_memory_above_its_limit_is_always_refused_and_room_never_negative(rss: list[int]) -> None:
    policy = OwnerPolicy(OwnerLimits(max_memory_bytes=100 * MIB))
    for now, each in enumerate(rss):
        decision = policy.decide(Reading(each), float(now))
        assert decision.room_bytes == max(0, 100 * MIB - each)
        if each > 100 * MIB:
            assert decision.refusing
        if each < 95 * MIB:
            assert not decision.refusing


def test_a_model_takes_most_memory_while_its_file_is_read() -> None:
    assert load_estimate_bytes(0) == LOAD_OVERHEAD_BYTES
    assert load_estimate_bytes(100 * MIB) == 210 * MIB + LOAD_OVERHEAD_BYTES
    large = 10 * 1000 * MIB  # its weights lie beside the file, which is small
    assert load_estimate_bytes(large) == 11_000 * MIB + LOAD_COPY_BYTES + LOAD_OVERHEAD_BYTES


@pytest.mark.parametrize(("room_bytes", "fits"), [(250 * MIB, True), (240 * MIB, False)])
def test_a_model_that_would_not_fit_is_refused_with_the_numbers(
    room_bytes: int, fits: bool
) -> None:
    reason = why_no_room(100 * MIB, room_bytes, 300 * MIB)
    if fits:
        assert reason == ""
    else:
        assert reason == (
            "it would take about 242 MiB of memory (its files have 100 MiB); this node's owner "
            "allows 300 MiB (--max-memory), of which 240 MiB are left"
        )


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 MiB"),
        (700, "700 bytes"),
        (1740, "2 KiB"),
        (1024**2 - 1, "1 MiB"),
        (1024**2, "1 MiB"),
        (1024**3, "1 GiB"),
    ],
)
def test_a_size_is_never_shown_as_nothing(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_power_is_told_at_first_and_then_once_a_change_has_lasted() -> None:
    """A laptop that is carried to another desk keeps the replicas that ask for mains power."""
    power = SteadyPower()
    assert power.see("mains", 0.0) == "mains"
    assert power.see("battery", 10.0) == "mains"
    assert power.see("mains", 10.0 + POWER_STEADY_S / 2) == "mains"
    assert power.see("battery", 100.0) == "mains"
    assert power.see("battery", 100.0 + POWER_STEADY_S - 1) == "mains"
    assert power.see("battery", 100.0 + POWER_STEADY_S) == "battery"
    assert repr(power) == "<SteadyPower: battery>"
    assert power.see("mains", 300.0) == "battery"
    assert power.see("mains", 300.0 + POWER_STEADY_S) == "mains"
