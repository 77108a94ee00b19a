"""Where all deployments belong at once: no memory of a node is promised twice.

The deployments are placed one after the other, and each takes what it is charged from the budgets of the
nodes that it gets: their memory, the memory of their accelerators, their processors. What does not fit any
more is no option for those that follow. So the order decides who gets room that does not suffice for all:

1. deployments that are pinned to nodes, which have no other choice;
2. the older before the younger, by when they were first deployed; equal ones by name.

Both stay as they are for as long as a deployment lives, whatever is changed about it. A new one is placed last and
takes nothing from any other; one that goes leaves room that only those can move into which had wanted it. Within the
order, a deployment ranks the nodes that have room for it as if it were alone (`placement`), so a node that comes or
goes moves what it holds and, where memory is short, what had been turned away for it. docs/placement.md has measurements.

*Standby*: the nodes that come next in the ranking, so the first of them takes over for good when one of the others
goes. A ranking takes turns between regions: the next one is in a region without a replica, if there is any.

*Failing*: nodes on which a deployment could not be loaded, again and again, keep their place in its ranking but do not
count. Past `MAX_FAILED_NODES` of them nobody further down is tried: then it is not the nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from meshnode.limits import MAX_FAILED_NODES
from meshnode.routing.placement import Option, Placement, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.routing.placement import Charge
    from meshnode.types import NodeId


class Budget(NamedTuple):
    """What a node has for replicas; 0, or no accelerator, where it does not say: then nothing is counted.

    Attributes:
        memory_bytes: Memory of the machine that it may use.
        accelerators: Memory in bytes of each accelerator that it uses.
        cpus: Processors that it may use.
    """

    memory_bytes: int = 0
    accelerators: tuple[int, ...] = ()
    cpus: float = 0.0


@dataclass(frozen=True, eq=False)
class Claim:
    """A deployment that is to be placed.

    Attributes:
        name: Its name.
        replicas: How many nodes are to serve it.
        options: The nodes that could, in any order.
        standby: How many more are to have it ready.
        unfit: The nodes that could not, with the reason, by node.
        failing: Those of `options` on which it could not be loaded, with the reason.
        is_pinned: Whether it may run on named nodes only.
        since_ms: When it was first deployed, in milliseconds since the Unix epoch.
    """

    name: str
    replicas: int
    options: Sequence[Option]
    standby: int = 0
    unfit: Sequence[tuple[NodeId, str]] = ()
    failing: Mapping[NodeId, str] | None = None
    is_pinned: bool = False
    since_ms: int = 0

    @property
    def order(self) -> tuple[bool, int, str]:
        """Its turn: the smallest first."""
        return (not self.is_pinned, self.since_ms, self.name)

    @cached_property
    def ranking(self) -> list[Option]:
        """All options, best first: what holds while all have room."""
        return spread(self.options)

    @cached_property
    def ranked_ids(self) -> tuple[NodeId, ...]:
        """Their nodes."""
        return tuple(each.node_id for each in self.ranking)


def pack(claims: Iterable[Claim], budgets: Mapping[NodeId, Budget]) -> dict[str, Placement]:
    """Place all deployments.

    Args:
        claims: The deployments, in any order.
        budgets: What each node has, by node; nothing is counted for those that are not named.

    Returns:
        The placements by name: the same for the same arguments, on every node.
    """
    ledger = Ledger(budgets)
    return {
        claim.name: _place(claim, ledger) for claim in sorted(claims, key=lambda each: each.order)
    }


class Ledger:
    """What is left of the nodes' budgets."""

    def __init__(self, budgets: Mapping[NodeId, Budget]) -> None:
        """Begin with nothing promised."""
        self._budgets = budgets
        self._accounts: dict[NodeId, _Account] = {}

    def __repr__(self) -> str:
        return f"<Ledger of {len(self._budgets)} nodes, {len(self._accounts)} looked at>"

    def fits(self, node: NodeId, charge: Charge) -> bool:
        """Whether a node has room for a replica."""
        account = self._accounts.get(node) or self._opened(node)
        memory_bytes, accelerator_bytes, cpus = charge
        return (
            memory_bytes <= account.memory_bytes
            and cpus <= account.cpus
            and (not accelerator_bytes or accelerator_bytes <= account.largest_bytes)
        )

    def take(self, node: NodeId, charge: Charge) -> None:
        """Promise a replica its room, on the accelerator that has most of it."""
        account = self._accounts.get(node) or self._opened(node)
        account.memory_bytes -= charge.memory_bytes
        account.cpus -= charge.cpus
        if charge.accelerator_bytes:
            index = account.accelerators.index(account.largest_bytes)
            account.accelerators[index] -= charge.accelerator_bytes
            account.largest_bytes = max(account.accelerators)

    def why_not(self, node: NodeId, charge: Charge) -> str:
        """Say for people why a node has no room for a replica."""
        account, budget = self._opened(node), self._budgets.get(node, Budget())
        if charge.accelerator_bytes > account.largest_bytes:
            what = "of accelerator memory"
            need, left, whole = (
                charge.accelerator_bytes,
                account.largest_bytes,
                max(budget.accelerators),
            )
        elif charge.memory_bytes > account.memory_bytes:
            what = "of memory"
            need, left, whole = charge.memory_bytes, account.memory_bytes, budget.memory_bytes
        else:
            return (
                f"it would take {charge.cpus:g} cpus, and of this node's {budget.cpus:g} only {account.cpus:g} are "
                "not promised to other deployments"
            )
        return (
            f"it would take about {_size(need)} {what}, and of this node's {_size(whole)} only {_size(left)} are not "
            "promised to other deployments"
        )

    def _opened(self, node: NodeId) -> _Account:
        account = self._accounts.get(node)
        if account is None:
            account = self._accounts[node] = _Account(self._budgets.get(node, Budget()))
        return account


class _Account:
    """What is left of one node's budget; infinite where it does not say what it has."""

    __slots__ = ("accelerators", "cpus", "largest_bytes", "memory_bytes")

    def __init__(self, budget: Budget) -> None:
        self.memory_bytes: float = budget.memory_bytes or math.inf
        self.cpus = budget.cpus or math.inf
        self.accelerators: list[float] = [each or math.inf for each in budget.accelerators]
        self.largest_bytes: float = max(self.accelerators, default=0)


def _place(claim: Claim, ledger: Ledger) -> Placement:
    full = [each for each in claim.options if not ledger.fits(each.node_id, each.charge)]
    ineligible = [*claim.unfit]
    if not full and not claim.failing:
        ranking, ranked_ids = claim.ranking, claim.ranked_ids
    else:
        ineligible += [(each.node_id, ledger.why_not(each.node_id, each.charge)) for each in full]
        lacking = {each.node_id for each in full}
        roomy = spread(each for each in claim.options if each.node_id not in lacking)
        ranking, failed = _without_failing(claim, roomy)
        ranked_ids = tuple(each.node_id for each in ranking)
        ineligible = sorted([*ineligible, *failed])
    last = claim.replicas + claim.standby
    for option in ranking[:last]:
        ledger.take(option.node_id, option.charge)
    nodes, standby = ranked_ids[: claim.replicas], ranked_ids[claim.replicas : last]
    return Placement(
        nodes,
        ranked_ids,
        tuple(ineligible),
        claim.replicas - len(nodes),
        standby,
        claim.standby - len(standby),
    )


def _without_failing(
    claim: Claim, ranking: list[Option]
) -> tuple[list[Option], list[tuple[NodeId, str]]]:
    """Return the options that are left to try, and the others with the reason."""
    failing = claim.failing or {}
    most = MAX_FAILED_NODES + 2 * claim.replicas
    usable: list[Option] = []
    unusable: list[tuple[NodeId, str]] = []
    failures = 0
    for option in ranking:
        reason = failing.get(option.node_id)
        if reason is not None:
            failures += 1
            unusable.append((option.node_id, reason))
        elif failures < most:
            usable.append(option)
        else:
            unusable.append(
                (
                    option.node_id,
                    f"it is not tried here, since it could not be loaded on {failures} other nodes",
                )
            )
    return usable, unusable


def _size(size_bytes: float) -> str:
    return (
        f"{size_bytes / 1024**3:.1f} GiB"
        if size_bytes >= 1024**3
        else f"{size_bytes / 1024**2:.0f} MiB"
    )
