"""A scenario's geography as the configuration of a `Network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.network import NetworkConfig, PathConfig
from meshnode.sim.network_faults import BYTES_PER_S_OF_MBPS
from meshnode.sim.scenario.geography import matrix

if TYPE_CHECKING:
    from meshnode.sim.scenario.model import Path, Scenario


def network_config(scenario: Scenario) -> NetworkConfig:
    """Return how the network of a scenario behaves before anything goes wrong.

    Args:
        scenario: One without mistakes.
    """
    return NetworkConfig(
        near_rtt_s=scenario.network.near_rtt_ms / 1000,
        jitter=scenario.network.jitter,
        loss=scenario.network.loss,
        paths={pair: _path(path) for pair, path in matrix(scenario).items()},
    )


def _path(path: Path) -> PathConfig:
    mbps, rtt_ms = path.bandwidth_mbps, path.rtt_ms
    return PathConfig(
        rtt_s=None if rtt_ms is None else rtt_ms / 1000,
        jitter=path.jitter,
        loss=path.loss,
        bytes_per_s=None if mbps is None else mbps * BYTES_PER_S_OF_MBPS,
    )
