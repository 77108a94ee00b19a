"""What makes a node a better or a worse place, whatever the model: as it says of itself, and as others see it."""

from __future__ import annotations

from typing import Final, NamedTuple


class NodeConditions(NamedTuple):
    """The conditions of a node.

    Attributes:
        labels: Those that its owner gave it.
        draining: Whether it takes no new requests, because it is about to leave.
        on_battery: Whether it runs on a battery.
        battery_percent: What is left of that; None without one, or where it is not known.
        throttled: Whether its processor is held back by its temperature.
        cost: What an hour of it costs, in the mesh's own unit; 0 for nothing, or where its owner does not say.
        memory_free_bytes: Free memory; None where it is not known.
        device: What it computes with, as `meshnode.capabilities.device_class_of` says it: nodes with the same word
            need alike more time for larger requests. Empty where it is not known.
        standby: Whether its replica of the model at hand stands by: it is asked where the others cannot answer.
    """

    labels: frozenset[tuple[str, str]] = frozenset()
    draining: bool = False
    on_battery: bool = False
    battery_percent: float | None = None
    throttled: bool = False
    cost: float = 0.0
    memory_free_bytes: int | None = None
    device: str = ""
    standby: bool = False

    @property
    def is_last_resort(self) -> bool:
        """Whether other nodes are to be used while there are any."""
        return self.on_battery or self.throttled


USUAL: Final = NodeConditions()
"""Of a node of which nothing is known."""
