"""Settings of the two replicated states.

Sizes that both ends of a link must agree on are no settings: they stand in `meshnode.limits`.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.limits import (
    MAX_DESIRED_TOTAL_BYTES,
    MAX_FORMER_DEPLOYMENTS,
    MAX_FORMER_REVISIONS_BYTES,
)


@dataclass(frozen=True, slots=True)
class OwnerConfig:
    """How quickly per-owner state spreads, and how long traces of it are kept.

    Attributes:
        flush_delay_s: Seconds that a node's own changes are gathered before they are pushed. Longer
            saves notes when load changes often, shorter makes routing's view younger. 0.005 to 1.
        fanout: Linked peers that a change is pushed to by its owner, and passed on to by each node
            that it was new to. A rumour with fanout f misses about e^-f of the nodes (Demers et
            al. 1987, "Epidemic algorithms", section 1.4); the sync repairs that. Signed states
            change seldom and gateways act on them at once, so it is large. 3 to 8.
        hint_fanout: The same for hints, which change often and are outdated soon. 2 to 4.
        sync_interval_s: Mean seconds between comparisons with one random linked peer: how long a
            missed change stays missing. Equal states cost one note of a few bytes. 0.5 to 30.
        tombstone_s: Seconds that a deleted key's version is kept. A node that was away for longer
            is sent a whole snapshot instead of what changed, so this trades memory for traffic,
            never correctness. 60 to 86,400; longer than `sync_interval_s` by far.
        reap_interval_s: Seconds between looks for tombstones to drop. Well below `tombstone_s`.
        hint_spacing_s: Seconds for each known owner between two pushes of this node's hints (its
            load): every node then hears `hint_fanout / hint_spacing_s` hints a second at most, however
            many nodes there are, and on a larger mesh they are older. 0.01 to 0.1.
    """

    flush_delay_s: float = 0.02
    fanout: int = 5
    hint_fanout: int = 3
    sync_interval_s: float = 2.0
    tombstone_s: float = 3600.0
    reap_interval_s: float = 60.0
    hint_spacing_s: float = 0.03


@dataclass(frozen=True, slots=True)
class DesiredConfig:
    """How the desired state spreads, and how much of its past is kept.

    Attributes:
        fanout: Linked peers that a write is pushed to, and passed on to by each node that it was
            new to. See `OwnerConfig.fanout`. 2 to 5.
        sync_interval_s: Mean seconds between comparisons with one random linked peer. 1 to 60.
        max_ahead_s: Seconds that an entry's wall clock may be ahead of ours. Larger tolerates
            worse clocks, smaller bounds how long a wrong clock's writes win over right ones.
            Well above what NTP keeps (0.1 s), below an hour (a wrong time zone): 10 to 600.
        tombstone_s: Seconds that a deletion is remembered. A node that had no contact for longer
            takes over the mesh's state instead of merging its own. A week: a laptop on holiday.
            Days; far above `max_ahead_s`.
        settle_s: Seconds that nodes which were all away for longer wait for one that was not, before they
            trust what they have together. As long as finding the mesh again takes: 30 to 600.
        history: Former revisions kept per key. Each costs up to a value's limit on every node. 0 to 64.
        deployment_history: The same of a deployment, which people compare and restore. 0 to 1,000.
        max_former_bytes: Bytes of all former revisions together; the oldest give way. The same on every node
            of a mesh, since nodes with other bounds never hold the same.
        max_total_bytes: Bytes of what counts now that this node's own writes may reach: the whole map is
            rewritten durably on each change, and lies in every node's memory. Peers' writes are taken up
            to twice that, so that racing writers never make maps differ.
    """

    fanout: int = 3
    sync_interval_s: float = 5.0
    max_ahead_s: float = 300.0
    tombstone_s: float = 7 * 86_400.0
    settle_s: float = 60.0
    history: int = 8
    deployment_history: int = MAX_FORMER_DEPLOYMENTS
    max_former_bytes: int = MAX_FORMER_REVISIONS_BYTES
    max_total_bytes: int = MAX_DESIRED_TOTAL_BYTES
