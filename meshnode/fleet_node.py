"""A node as placement sees it: what it can take of a deployment, why it cannot, and what a replica takes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.capabilities import (
    accelerating_of,
    accelerator_bytes_of,
    accelerators_of,
    cpus_of,
    memory_of,
    on_battery_of,
    paused_of,
    runtimes_of,
    usable_of,
)
from meshnode.limits import MAX_PLACEMENT_CPUS
from meshnode.models.repository.config_backend import PYTHON_RUNTIME
from meshnode.models.variants import Facts, choose_variant
from meshnode.owner_limits import load_estimate_bytes, size_text
from meshnode.routing.packing import Budget
from meshnode.routing.placement import Charge
from meshnode.state.constraints import ANY_ACCELERATOR, ANYWHERE
from meshnode.types import NodeState, is_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from meshnode.capabilities import Accelerator
    from meshnode.deployments import Known, Target
    from meshnode.membership.member import Member
    from meshnode.models.manifest import Manifest
    from meshnode.state.constraints import Constraints
    from meshnode.state.deployment import Deployment
    from meshnode.types import NodeId

SHARING_KINDS: Final = frozenset({"apple", "intel-npu"})
"""Kinds of accelerators that have no memory of their own, but take the machine's."""


@dataclass(frozen=True, slots=True)
class FleetNode:
    """A node as placement sees it: what its record says, as far as it matters.

    Attributes:
        node_id: The node.
        region: Its region.
        weight: Its capacity relative to others.
        absent: Why it is not there or serves nobody, or empty.
        facts: What it can take.
        held_back: Runtimes that are here, but not for the code of others.
        labels: Those that its owner gave it.
        accelerators: Those that it has.
        accelerating: Runtimes that compute on them.
        on_battery: Whether it has run on a battery for a while.
    """

    node_id: NodeId
    region: str
    weight: float
    absent: str
    facts: Facts
    held_back: frozenset[str]
    labels: frozenset[tuple[str, str]]
    accelerators: tuple[Accelerator, ...]
    accelerating: frozenset[str]
    on_battery: bool

    @classmethod
    def of(cls, member: Member, *, is_draining: bool) -> FleetNode:
        """Read a member's record.

        Args:
            member: The member.
            is_draining: Whether it is to be emptied.
        """
        raw = member.record.capabilities
        paused = paused_of(raw)
        absent = f"paused: {paused}" if paused else ""
        if is_draining:
            absent = "it is being drained"
        if member.state not in (NodeState.ALIVE, NodeState.SUSPECT):
            absent = f"it is {member.state}"
        cpus = cpus_of(raw)
        runtimes = frozenset(runtimes_of(raw))
        return cls(
            member.node_id,
            member.record.region,
            min(MAX_PLACEMENT_CPUS, max(1.0, float(cpus))),
            absent,
            Facts(cpus, memory_of(raw), accelerator_bytes_of(raw), runtimes),
            # Python is on every node; another runtime that can run, but is not offered, is code too.
            frozenset({PYTHON_RUNTIME, *usable_of(raw)}) - runtimes,
            frozenset(member.record.labels.items()),
            accelerators_of(raw),
            accelerating_of(raw),
            on_battery_of(raw),
        )

    @property
    def budget(self) -> Budget:
        """What it has for replicas."""
        memories = (each.memory_bytes for each in self.accelerators)
        usable = tuple(each for each in memories if each) if self.facts.accelerator_bytes else ()
        return Budget(self.facts.memory_bytes, usable, self.facts.cpus)

    def choice(self, variants: Sequence[Target], deployment: Deployment) -> Target | None:
        """Return the variant of one version that it takes, or None."""
        if (
            len(variants) == 1
        ):  # what the choice below comes to, for what nearly all deployments are
            only, facts = variants[0], self.facts
            if only.manifest.runtime not in facts.runtimes:
                return None
            need_bytes = _need_of(deployment)(only.size_bytes)
            is_small = need_bytes <= facts.memory_bytes or not facts.memory_bytes
            return only if is_small or need_bytes <= facts.accelerator_bytes else None
        best = choose_variant(
            [each.manifest for each in variants], self.facts, _need_of(deployment)
        )
        return next((each for each in variants if each.manifest is best), None)

    def why_not(self, known: Known) -> tuple[str, list[Target]]:
        """Return why it can take none of a deployment, and else what it takes of each version."""
        if self.absent:
            return self.absent, []
        asked = known.deployment.constraints
        unmet = "" if asked is ANYWHERE or asked == ANYWHERE else "; ".join(self._unmet(asked))
        if unmet:
            return unmet, []
        targets: list[Target] = []
        # One version at a time: a node may hold one of several and still be of use.
        for variants in known.versions.values():
            best = self.choice(variants, known.deployment)
            if best is None:
                return self._why_none(variants, known.deployment), []
            targets.append(best)
        return "", targets

    def charge(self, targets: Iterable[Target], deployment: Deployment) -> Charge:
        """Return what a replica takes of it.

        Args:
            targets: What it takes of each version.
            deployment: Their deployment.
        """
        need_of, resources = _need_of(deployment), deployment.resources
        memory_bytes = accelerator_bytes = 0
        cpus = 0.0
        for each in targets:
            need_bytes = need_of(each.size_bytes)
            is_accelerated = (
                self._accelerates(each.manifest, deployment)
                and need_bytes <= self.facts.accelerator_bytes
            )
            if is_accelerated:
                accelerator_bytes += need_bytes
            if not is_accelerated or self._shares_memory:
                memory_bytes += need_bytes
            cpus += resources.cpus
        return Charge(memory_bytes, accelerator_bytes, cpus)

    @property
    def _shares_memory(self) -> bool:
        return any(each.kind in SHARING_KINDS for each in self.accelerators)

    def _accelerates(self, manifest: Manifest, deployment: Deployment) -> bool:
        """Whether a model runs on an accelerator here; code that asks for none may take either, and counts as memory."""
        if not self.facts.accelerator_bytes:
            return False
        return manifest.runtime in self.accelerating or bool(deployment.constraints.accelerator)

    def _unmet(self, asked: Constraints) -> Iterator[str]:
        """Yield the conditions that it does not meet, for people."""
        if asked.regions and not any(is_within(self.region, each) for each in asked.regions):
            yield f"it is in region {self.region}, and the deployment asks for {' or '.join(asked.regions)}"
        for name, value in asked.labels:
            if (name, value) not in self.labels:
                yield f"it has no label {name}={value}, which the deployment asks for"
        if asked.accelerator:
            yield from self._unmet_by_accelerators(asked)
        if self.facts.memory_bytes < asked.memory_bytes:
            has_bytes = self.facts.memory_bytes
            has = (
                f"may use {size_text(has_bytes)} of memory"
                if has_bytes
                else "does not say what memory it has"
            )
            yield f"it {has}, and the deployment asks for {size_text(asked.memory_bytes)}"
        if asked.runtime and asked.runtime not in self.facts.runtimes:
            yield f"it has no runtime {asked.runtime!r}, which the deployment asks for"
        if asked.on_mains and self.on_battery:
            yield "it runs on a battery, and the deployment asks for mains power"

    def _unmet_by_accelerators(self, asked: Constraints) -> Iterator[str]:
        kind = asked.accelerator
        alike = [each for each in self.accelerators if kind in (ANY_ACCELERATOR, each.kind)]
        what = "no accelerator" if kind == ANY_ACCELERATOR else f"no accelerator of kind {kind}"
        largest_bytes = max((each.memory_bytes for each in alike), default=0)
        if not alike:
            yield f"it has {what}, which the deployment asks for"
        elif largest_bytes < asked.accelerator_memory_bytes:
            has = size_text(largest_bytes) if largest_bytes else "memory of unknown size"
            yield (
                f"its accelerator has {has}, and the deployment asks for one with "
                f"{size_text(asked.accelerator_memory_bytes)}"
            )

    def _why_none(self, variants: Sequence[Target], deployment: Deployment) -> str:
        runnable = [each for each in variants if each.manifest.runtime in self.facts.runtimes]
        if not runnable:
            runtime = min(each.manifest.runtime for each in variants)
            if runtime in self.held_back:
                return (
                    "it does not allow code of others (its owner may: meshnode join --allow-code)"
                )
            return f"it has no runtime {runtime!r}"
        need_of = _need_of(deployment)
        need_bytes = min(need_of(each.size_bytes) for each in runnable)
        return (
            f"it would take about {size_text(need_bytes)} of memory, and this node has "
            f"{size_text(self.facts.memory_bytes)} for it"
        )


def _need_of(deployment: Deployment) -> Callable[[int], int]:
    """Return what says how much memory a version takes, by the size of its files."""
    said_bytes = deployment.resources.memory_bytes
    return (lambda _size_bytes: said_bytes) if said_bytes else load_estimate_bytes
