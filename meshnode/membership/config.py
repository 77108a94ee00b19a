"""Settings of membership, with presets for a local network and for the Internet.

Every time that two nodes must agree on roughly (probe interval, suspicion) should be the same on
all nodes of a mesh: a node with a shorter suspicion than its peers declares them dead before they
would have answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from meshnode.errors import ConfigError
from meshnode.limits import MAX_DATAGRAM_BYTES

SMALL_MESH: Final = 32
"""Members up to which anti-entropy and saving keep their plain intervals (memberlist's threshold)."""


LEAST_LINK_DEGREE: Final = 3
"""Neighbours of a node: random graphs of this degree are connected with high probability."""


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """How often, how many, how long.

    Attributes:
        probe_interval_s: Period in which one member is probed, in seconds. Shorter notices a crash
            sooner and costs traffic and false alarms. Sane: 0.2-10. Not below twice
            `probe_timeout_s`; suspicion scales with it. A node in bad health stretches it.
        probe_timeout_s: Wait for a direct ack before helpers are asked, in seconds. Above the 99th
            percentile of the round trip, else helpers are asked for nothing; what remains of the
            period is the helpers' time. Sane: 0.1-5.
        indirect_probes: Helpers per unanswered probe. More tolerate more loss and cost datagrams
            only when a probe fails. Sane: 1-5.
        lifeguard: 1 if a node doubts itself before others (Lifeguard): local health, nacks, suspicions
            that wait for further accusers, suspects told first, no judgement after its own sleep. 0 is
            plain SWIM, for comparisons only: a node that stalls then declares others dead.
        suspicion_multiplier: A suspect has at least this x max(1, log10 n) x `probe_interval_s` to
            refute. Higher gives a slow node longer and lengthens every detection. Sane: 3-8.
        suspicion_max_multiplier: A suspect with one accuser has this times as long. Higher protects
            from one slow accuser, and delays detection where nobody else probes. Sane: 2-10.
        suspicion_confirmations: Further accusers that bring a suspect's time down to the least. More
            protect from several slow accusers; each takes about a `probe_interval_s`, so up to
            `suspicion_multiplier` of them delay nothing. Sane: 1-4.
        gossip_interval_s: Pause between two rounds of gossip while there are rumours, in seconds.
            Shorter spreads sooner; the total of sends stays bounded by `retransmit_multiplier`.
            Sane: 0.1-1.
        gossip_fanout: Members told per round. Sane: 2-5; 3 reaches all in about log3(n) rounds.
        gossip_to_dead_s: For this long the dead are told rumours too, in seconds, so that one that
            lives hears of its death and refutes. Longer costs datagrams to nobody. Sane: 10-120.
        retransmit_multiplier: A rumour is sent this x ceil(log10(n + 1)) times by each node, over
            gossip and probes together. Higher survives more loss. Sane: 2-6.
        push_fanout: Links over which a node passes on, at once and once, whatever changes its view.
            It carries what datagrams cannot (records) and passes where they are lost; gossip and
            anti-entropy reach the e^-fanout that it misses. Sane: 2-5.
        sync_interval_s: Period of anti-entropy with one random linked peer, in seconds; above 32
            members it stretches by ceil(log2(n / 32)) + 1. It finds what gossip missed; equal views
            cost one hash. Sane: 5-120.
        late_timer_s: A timer that comes later than this shows that this node slept, in seconds:
            nobody is judged by it. Above the driver's usual jitter (a garbage collection, a long
            synchronous step), below `probe_interval_s`.
        full_mesh_size: Up to this many live members each has a link to each. A link costs some
            30 KiB and a ping now and then; without one, a first request waits for it. Sane: 16-128.
        link_degree: Above that, each keeps links to so many neighbours, the same ones as long as the
            mesh is the same; with those that chose it, it has a few more. More make news travel in
            fewer steps and cost idle traffic. Sane: 6-20.
        link_linger_s: A link that neither end needs is closed after this, in seconds. Longer keeps
            it for whom it may be needed by again; one on which something runs stays. Sane: 10-300.
        dial_backoff_min_s: Pause after the first failed dial, in seconds; doubles per failure.
            Sane: 0.5-5.
        dial_backoff_max_s: Longest pause between dials, in seconds. How long a node that comes
            back may wait for a link. Sane: 10-120.
        dial_patience_s: How long the side with the greater NodeId waits for the other to dial, in
            seconds, before it dials too (the other may be unable to reach it: NAT). Above a
            handshake's usual time. Sane: 1-10.
        dial_timeout_s: A dial without any outcome is over after this, in seconds: a guard, so
            above the driver's own connect and handshake limits together.
        dial_limit: Dials under way at once. Each is a TLS handshake of about a millisecond of CPU
            on both sides; a higher limit forms a large mesh faster and in spikes. Sane: 8-256.
        reconnect_interval_s: Period in which one member that died is dialled (and in every third, one
            that left), in seconds, so that a healed partition or a return is noticed. Sane: 5-120.
        retention_s: How long dead and left members are remembered, in seconds. A node that was cut
            off for longer may briefly show them alive again; those that died are still dialled now and
            then, up to 64 of them, so that a longer partition heals too. Sane: an hour to a week.
        persist_delay_s: Changes to the set of known members are gathered for this long before one
            write to disk, in seconds; above 32 members it stretches as `sync_interval_s` does.
            Sane: 1-30.
        request_retry_s: A record that was asked for is asked for again, elsewhere, after this, in
            seconds. Above a round trip over a link.
        udp_blocked_after: Probes in a row that were answered, but never directly by datagram,
            before a member counts as unreachable by UDP and gets its gossip over the link. Lower
            reacts sooner and takes loss for a block. Sane: 2-10.
        max_payload_bytes: Largest datagram payload, in bytes: the network's limit less the seal.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    indirect_probes: int = 3
    lifeguard: int = 1
    suspicion_multiplier: float = 3.0
    suspicion_max_multiplier: float = 6.0
    suspicion_confirmations: int = 3
    gossip_interval_s: float = 0.2
    gossip_fanout: int = 3
    gossip_to_dead_s: float = 30.0
    retransmit_multiplier: int = 4
    push_fanout: int = 3
    sync_interval_s: float = 10.0
    late_timer_s: float = 0.5
    full_mesh_size: int = 64
    link_degree: int = 8
    link_linger_s: float = 30.0
    dial_backoff_min_s: float = 1.0
    dial_backoff_max_s: float = 30.0
    dial_patience_s: float = 2.0
    dial_timeout_s: float = 15.0
    dial_limit: int = 32
    reconnect_interval_s: float = 10.0
    retention_s: float = 86_400.0
    persist_delay_s: float = 2.0
    request_retry_s: float = 1.0
    udp_blocked_after: int = 3
    max_payload_bytes: int = 1300

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work.

        Raises:
            ConfigError: if a probe leaves helpers no time, a suspect would have less than the least
                time, or a datagram cannot carry a leave.
        """
        if self.probe_interval_s < 2 * self.probe_timeout_s:
            wanted = 2 * self.probe_timeout_s
            raise ConfigError(
                f"probe_interval_s must be at least twice probe_timeout_s ({wanted} s)"
            )
        if self.suspicion_max_multiplier < 1:
            raise ConfigError("suspicion_max_multiplier must be at least 1")
        if self.link_degree < LEAST_LINK_DEGREE:
            raise ConfigError(
                f"link_degree must be at least {LEAST_LINK_DEGREE}: with fewer links, a large mesh is "
                "likely to fall into parts that never meet"
            )
        if not 256 <= self.max_payload_bytes <= MAX_DATAGRAM_BYTES:
            raise ConfigError(f"max_payload_bytes must be 256 to {MAX_DATAGRAM_BYTES}")


def stretch(size: int) -> int:
    """Return by how much work that costs each node O(n) is spaced in a mesh of `size` members.

    memberlist's formula (util.go, pushPullScale): 1 up to 32 members, 2 up to 64, 6 at 1,000.
    """
    return 1 if size <= SMALL_MESH else math.ceil(math.log2(size / SMALL_MESH)) + 1


LAN: Final = MembershipConfig()
"""Round trips below about 50 ms; after memberlist's LAN profile, with suspicion x 3 where that has 4: news
of a suspicion also travels over links here, so a suspect hears of it sooner."""

WAN: Final = MembershipConfig(
    probe_interval_s=5.0,
    probe_timeout_s=2.5,
    suspicion_multiplier=6.0,
    gossip_interval_s=0.5,
    gossip_fanout=4,
    gossip_to_dead_s=60.0,
    sync_interval_s=30.0,
    late_timer_s=1.0,
    dial_backoff_min_s=2.0,
    dial_backoff_max_s=60.0,
    dial_patience_s=5.0,
    reconnect_interval_s=30.0,
    request_retry_s=3.0,
)
"""Round trips up to a second and loss; after memberlist's WAN profile."""
