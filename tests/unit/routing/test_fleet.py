"""Whole fleets in virtual time: does expected completion do what it is for?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    MakeFleet = Callable[..., Any]


def test_a_mixed_fleet_has_a_far_lower_p99_than_by_capacity_alone(mixed_fleet: MakeFleet) -> None:
    """Twenty nodes, 1:10:50, at 0.7 load: a static split waits behind slow nodes' queues."""
    by_capacity, expected = mixed_fleet(), mixed_fleet()
    by_capacity.run(0.7, 12.0, by_capacity.request_by_capacity)
    expected.run(0.7, 12.0)
    assert expected.outcome.errors == 0
    assert len(expected.outcome.latencies_s) > 10_000
    assert expected.outcome.quantile_ms(0.99) < 0.3 * by_capacity.outcome.quantile_ms(0.99)
    assert expected.outcome.tries == len(expected.outcome.latencies_s)


def test_a_frozen_node_costs_what_was_in_flight_and_then_its_probes(
    mixed_fleet: MakeFleet,
) -> None:
    """The fastest node takes requests and says nothing; each link notices after a second.

    Each gateway pays for those that it sent in that second, which its own count in flight bounds,
    and then for one probe per opening: after 1, 2, 4, 8 ... seconds.
    """
    fleet = mixed_fleet(gateways=2)
    fast = fleet.servers["node-19"]
    fast.frozen = True
    fleet.run(0.3, 6.0)
    within_first_second = fast.received
    fast.received = 0
    fleet.run(0.3, 20.0)
    assert fleet.outcome.errors == 0
    assert 0 < within_first_second <= 2 * 30
    # Openings of 4, 8 and 16 s: at most three probes in 20 s, for each of two gateways.
    assert 0 < fast.received <= 2 * 3
    assert fleet.outcome.tries - len(fleet.outcome.latencies_s) <= within_first_second + 6


def test_traffic_returns_to_a_node_that_came_back(mixed_fleet: MakeFleet) -> None:
    fleet = mixed_fleet(gateways=1)
    fast = fleet.servers["node-19"]
    fast.frozen = True
    fleet.run(0.3, 3.0)
    fast.frozen = False
    fast.received = 0
    fleet.run(0.3, 5.0)
    share = fast.received / (0.3 * fleet.capacity_per_s * 5.0)
    assert share > 0.1
