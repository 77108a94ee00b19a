"""How models behave at depth A, and who has whose files: what all virtual model servers of a world share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.sim.serving import Host
    from meshnode.types import NodeId


@dataclass(frozen=True, slots=True)
class ModelBehaviour:
    """What a model does on a device of speed 1.

    Attributes:
        service_s: Mean seconds of one run, above 0.
        spread: Standard deviation of the run time's logarithm, 0 to 1.
        slots: Runs at once.
        fetch_s: Seconds until its files are here, from one peer.
        load_s: Seconds until it is loaded.
        load_error: Why every load of it fails, or empty.
        slowness: Runs whose work the call says take so many times as long.
        fail_share: Share of its requests that fail at once.
        fails_on: The class of devices on which they do; empty for all.
    """

    service_s: float = 0.02
    spread: float = 0.2
    slots: int = 2
    fetch_s: float = 0.5
    load_s: float = 0.5
    load_error: str = ""
    slowness: float = 1.0
    fail_share: float = 0.0
    fails_on: str = ""

    def failing_on(self, device_class: str) -> float:
        """Return the share of its requests that fail on a class of devices."""
        return self.fail_share if self.fails_on in ("", device_class) else 0.0


class Library:
    """What all hosts of a world share: how models behave, and who has whose files.

    Attributes:
        behaviours: By digest; what is not named behaves as the default.
        hosts: The hosts that run now, by node.
        linked: Which peers a node could fetch from now.
        asked: Told of each request that a host is given, by model and version.
    """

    def __init__(self, linked: Callable[[NodeId], Iterable[NodeId]]) -> None:
        """Begin without models and hosts."""
        self.behaviours: dict[str, ModelBehaviour] = {}
        self.hosts: dict[NodeId, Host] = {}
        self.linked = linked
        self.asked: Callable[[str, int], None] | None = None

    def __repr__(self) -> str:
        return f"<Library of {len(self.behaviours)} models, {len(self.hosts)} hosts>"

    def behaviour(self, digest: str) -> ModelBehaviour:
        """Return how the model with these files behaves."""
        return self.behaviours.get(digest, ModelBehaviour())

    def source_of(
        self, digest: str, for_node: NodeId, holders: tuple[NodeId, ...]
    ) -> NodeId | None:
        """Return a linked peer that has the files, those named first; None if there is none."""
        linked = dict.fromkeys(self.linked(for_node))
        for node in (*(each for each in holders if each in linked), *linked):
            host = self.hosts.get(node)
            if host is not None and digest in host.files:
                return node
        return None
