"""All policies by name, and what each one is.

| name | what it looks at |
|---|---|
| `random` | nothing |
| `weighted-random` | the replicas' capacity |
| `round-robin` | whose turn it is |
| `least-loaded` | requests per slot, own ones and reported ones |
| `p2c` | own requests at two random replicas |
| `peak-ewma` | own requests times own latencies at two random replicas |
| `prequal` | probes: requests and latency |
| `mesh` | the mesh's own: expected completion |
| `global-least-request` | true requests per slot (an oracle) |
| `size-blind` | true queues and speeds (an oracle) |
| `omniscient` | the work of every request besides, and whether it can be in time (an oracle) |
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from meshnode.errors import UsageError
from meshnode.sim.policies.oracles import (
    GlobalLeastRequest,
    Omniscient,
    Oracle,
    SizeBlind,
    Surroundings,
    Truth,
    Witness,
)
from meshnode.sim.policies.peak_ewma import PeakEwma
from meshnode.sim.policies.plain import LeastLoaded, Random, RoundRobin, TwoChoices, WeightedRandom
from meshnode.sim.policies.prequal import LatencyByCount, Prequal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.sim.policies.policy import Attendant, Policy, Regime
    from meshnode.types import NodeId

MESH: Final = "mesh"
"""The mesh's own choice."""

ORACLE: Final = "oracle"
"""On the command line: both of `ORACLES`."""

SIZE_BLIND: Final = "size-blind"
OMNISCIENT: Final = "omniscient"

ORACLES: Final = (SIZE_BLIND, OMNISCIENT)
"""What regret is measured against."""


@dataclass(frozen=True, slots=True)
class _Plain:
    """A regime whose gateways know nothing of each other."""

    make: Callable[[], Policy]
    attend: Callable[[], Attendant] | None = None
    sheds: ClassVar[bool] = True

    def for_gateway(self, node: NodeId) -> Policy:
        del node
        return self.make()

    def for_server(self, node: NodeId) -> Attendant | None:
        del node
        return self.attend() if self.attend is not None else None


@dataclass(frozen=True, slots=True)
class _Seeing:
    """A regime whose gateways all look at one truth."""

    make: type[Oracle]
    truth: Truth

    @property
    def sheds(self) -> bool:
        return not self.make.knows_lateness

    def for_gateway(self, node: NodeId) -> Policy:
        return self.make(self.truth, node)

    def for_server(self, node: NodeId) -> Attendant:
        return Witness(self.truth, node)


class _Own:
    """The mesh as it is."""

    sheds: ClassVar[bool] = True

    def for_gateway(self, node: NodeId) -> None:
        del node

    def for_server(self, node: NodeId) -> None:
        del node


_PLAIN: Final[Mapping[str, _Plain]] = {
    "random": _Plain(Random),
    "weighted-random": _Plain(WeightedRandom),
    "round-robin": _Plain(RoundRobin),
    "least-loaded": _Plain(LeastLoaded),
    "p2c": _Plain(TwoChoices),
    "peak-ewma": _Plain(PeakEwma),
    "prequal": _Plain(Prequal, LatencyByCount),
}

_SEEING: Final[Mapping[str, type[Oracle]]] = {
    "global-least-request": GlobalLeastRequest,
    SIZE_BLIND: SizeBlind,
    OMNISCIENT: Omniscient,
}

POLICIES: Final = (*_PLAIN, MESH, *_SEEING)
"""All names, in the order of tables."""

ALL_SEEING: Final = tuple(_SEEING)
"""Those that know what no gateway can know."""

WITHOUT_HOOKS: Final = ("random", "weighted-random", "round-robin", "least-loaded", "p2c")
"""Policies that need only be asked: they can stand in the router of a whole daemon (depth B)."""


def regime(name: str, surroundings: Surroundings) -> Regime:
    """Make a policy for a mesh.

    Args:
        name: One of `POLICIES`.
        surroundings: What oracles see.

    Raises:
        UsageError: if there is no such policy.
    """
    if name == MESH:
        return _Own()
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain
    return _Seeing(_SEEING[known(name)], Truth(surroundings))


def chooser(name: str) -> Policy:
    """Make a policy that needs only be asked, for one gateway; one of `WITHOUT_HOOKS`.

    Raises:
        UsageError: if the policy does not exist or needs more.
    """
    if known(name) not in WITHOUT_HOOKS:
        raise UsageError(
            f"policy {name!r} needs to see requests and servers, which only depth A lets it; "
            f"use depth A, or one of {', '.join((MESH, *WITHOUT_HOOKS))}"
        )
    return _PLAIN[name].make()


def known(name: str) -> str:
    """Return a policy's name.

    Raises:
        UsageError: if there is no such policy.
    """
    if name == ORACLE:
        raise UsageError(
            f"{ORACLE!r} is {' and '.join(ORACLES)}, for `sim compare`; here give one of them"
        )
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"there is no policy {name!r}: {meant}the policies are {', '.join(POLICIES)}, and for "
            f"`sim compare` {ORACLE}, which is {' and '.join(ORACLES)}"
        )
    return name


def parse(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of policies; `oracle` stands for both oracles.

    Raises:
        UsageError: if one does not exist, or none is named.
    """
    names: list[str] = []
    for name in (each.strip() for each in text.split(",")):
        if name:
            names += ORACLES if name == ORACLE else [known(name)]
    if not names:
        raise UsageError(f"no policy was named; the policies are {', '.join(POLICIES)}")
    return tuple(dict.fromkeys(names))
