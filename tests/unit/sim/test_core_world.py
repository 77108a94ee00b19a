from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    LoadModel,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
)
from meshnode.errors import UsageError
from meshnode.events import (
    DatagramReceived,
    DialFailed,
    Event,
    Leave,
    LinkDown,
    LinkUp,
    NoteReceived,
    Start,
    TimerFired,
)
from meshnode.sim.core_world import MAX_FROZEN_DATAGRAMS, CoreWorld, NotReachedError
from meshnode.sim.network import NetworkConfig
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from meshnode.sim.core_node import Boot

STEADY = NetworkConfig(near_rtt_s=0.01, far_rtt_s=0.1, jitter=0.0)


class Diary:
    """A core that writes down what it is told, and does nothing by itself."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.told: list[tuple[float, Event]] = []

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        self.told.append((round(now, 6), event))
        return []


class Stage:
    """A world of diaries, with a word for each thing a test does with them."""

    def __init__(self, *names: str, network: NetworkConfig = STEADY) -> None:
        self.world = CoreWorld(1, network)
        for name in names:
            self.world.add_node(name, "eu", Diary)

    def id(self, name: str) -> NodeId:
        return self.world.id_of(name)

    def do(self, name: str, *effects: Effect) -> None:
        self.world.act(name, lambda _now, _wall_s: [*effects])

    def dial(self, name: str, *targets: str, expect: str | None = None) -> None:
        addresses = tuple(self.world.address_of(target) for target in targets)
        self.do(name, Dial(addresses, self.id(expect) if expect else None))

    def note(self, name: str, to: str, payload: bytes = b"note") -> None:
        self.do(name, SendNote(self.id(to), payload))

    def datagram(self, name: str, to: str, payload: bytes = b"datagram") -> None:
        self.do(name, SendDatagram(self.id(to), payload))

    def told(self, name: str, kind: type[Event] = Event) -> list[tuple[float, Event]]:
        core = self.world.core(name)
        assert isinstance(core, Diary)
        return [(at, event) for at, event in core.told if isinstance(event, kind)]


@pytest.fixture
def linked() -> Stage:
    """Two linked nodes at second 1."""
    stage = Stage("a", "b")
    stage.dial("a", "b")
    stage.world.run_for(1.0)
    return stage


# Effects.


def test_a_core_is_started_once_with_what_it_needs() -> None:
    stage = Stage("a", "b")
    stage.world.run_for(1.0)
    assert stage.told("b") == [(0.0, Start())]
    boot = stage.world.core("b").boot
    assert (boot.node, boot.name, boot.region, boot.epoch) == (stage.id("b"), "b", "eu", 1)
    assert boot.address == Address("10.0.0.1", 8471)
    assert len({stage.id("a"), stage.id("b")}) == 2
    assert stage.world.names() == ["a", "b"]
    assert repr(stage.world) == "<CoreWorld seed 1 at 1.000 s: 2 of 2 nodes run>"


def test_timers_come_back_unchanged_when_due() -> None:
    stage = Stage("a")
    stage.do("a", StartTimer(("probe", 7), 0.25))
    stage.world.run_for(1.0)
    assert stage.told("a", TimerFired) == [(0.25, TimerFired(("probe", 7)))]


def test_datagrams_arrive_after_half_a_round_trip() -> None:
    stage = Stage("a", "b")
    stage.datagram("a", "b")
    stage.do("a", SendDatagram(NodeId("nobody"), b""))
    stage.world.run_for(1.0)
    assert stage.told("b", DatagramReceived) == [
        (0.005, DatagramReceived(stage.id("a"), b"datagram"))
    ]


def test_lost_datagrams_do_not_arrive_and_lost_notes_arrive_later() -> None:
    stage = Stage("a", "b", network=NetworkConfig(near_rtt_s=0.01, jitter=0.0, loss=1.0))
    stage.dial("a", "b")
    stage.world.run_for(1.0)
    stage.datagram("a", "b")
    stage.note("a", "b")
    stage.world.run_for(20.0)
    assert stage.told("b", DatagramReceived) == []
    # Sent again after 0.2 s, 0.4 s ... until it has been lost six times.
    assert [at for at, _ in stage.told("b", NoteReceived)] == [pytest.approx(1.005 + 0.2 * 63)]


def test_a_dial_links_both_ends_after_one_and_a_half_round_trips(linked: Stage) -> None:
    address = linked.world.address_of
    assert linked.told("a", LinkUp) == [(0.015, LinkUp(linked.id("b"), address("b")))]
    assert linked.told("b", LinkUp) == [(0.015, LinkUp(linked.id("a"), address("a")))]
    assert linked.world.links.peers(linked.id("a")) == [linked.id("b")]
    linked.dial("a", "b", expect="b")  # again: the one that dialled is told so
    linked.world.run_for(1.0)
    assert len(linked.told("a", LinkUp)) == 2
    assert len(linked.told("b", LinkUp)) == 1


def test_notes_keep_their_order_whatever_the_jitter() -> None:
    stage = Stage("a", "b", network=NetworkConfig(near_rtt_s=0.1, jitter=0.9, loss=0.2))
    stage.dial("a", "b")
    stage.world.run_for(1.0)
    for i in range(100):
        stage.note("a", "b", b"%d" % i)
    stage.note("b", "a")
    stage.do("a", SendNote(NodeId("nobody"), b""))
    stage.world.run_for(5.0)
    payloads = [e.payload for _, e in stage.told("b", NoteReceived) if isinstance(e, NoteReceived)]
    assert payloads == [b"%d" % i for i in range(100)]
    assert len(stage.told("a", NoteReceived)) == 1


def test_dropped_notes_never_arrive() -> None:
    stage = Stage("a", "b", network=NetworkConfig(note_loss=1.0))
    stage.dial("a", "b")
    stage.world.run_for(1.0)
    stage.note("a", "b")
    stage.world.run_for(1.0)
    assert stage.told("b", NoteReceived) == []


@pytest.mark.parametrize(
    ("case", "reason", "after_s"),
    [
        ("none", "no addresses were given", 0.0),
        ("nobody there", "timed out", 5.0),
        ("down", "connection refused", 0.01),
        ("itself", "that address is this node's own", 0.0),
        ("another", "another node answered", 0.015),
        ("cut", "timed out", 5.0),
        ("dies meanwhile", "broke during the handshake", 0.015),
    ],
)
def test_a_dial_that_cannot_succeed_fails_in_its_time(
    case: str, reason: str, after_s: float
) -> None:
    stage = Stage("a", "b", "c")
    addresses: tuple[Address, ...] = (stage.world.address_of("b"),)
    expect = stage.id("c") if case == "another" else None
    if case == "none":
        addresses = ()
    elif case == "nobody there":
        addresses = (Address("10.9.9.9", 1),)
    elif case == "down":
        stage.world.crash("b")
    elif case == "itself":
        addresses = (stage.world.address_of("a"),)
    elif case == "cut":
        stage.world.partition_one_way(["b"], ["a"])
    stage.do("a", Dial(addresses, expect))
    if case == "dies meanwhile":
        stage.world.run_for(0.01)
        stage.world.crash("b")
    stage.world.run_for(10.0)
    [(at, failed)] = stage.told("a", DialFailed)
    assert failed == DialFailed(addresses, expect, reason)
    assert at == pytest.approx(after_s, abs=0.001)


def test_a_dial_tries_its_addresses_in_order() -> None:
    stage = Stage("a", "b", "c")
    stage.world.crash("b")
    stage.dial("a", "b", "c")
    stage.world.run_for(1.0)
    assert [event for _, event in stage.told("a", LinkUp)] == [
        LinkUp(stage.id("c"), stage.world.address_of("c"))
    ]


def test_a_dialler_that_crashes_meanwhile_leaves_nothing_behind() -> None:
    stage = Stage("a", "b")
    stage.dial("a", "b")
    stage.world.run_for(0.01)
    stage.world.crash("a")
    stage.world.restart("a")
    stage.world.run_for(1.0)
    assert stage.told("b", LinkUp) == []
    assert stage.told("a") == [(0.01, Start())]


def test_closing_tells_this_end_at_once_and_the_other_after_what_was_sent(linked: Stage) -> None:
    linked.note("b", "a")
    linked.note("a", "b")
    linked.do(
        "a", CloseLink(linked.id("b"), "enough"), CloseLink(linked.id("b"), "no link any more")
    )
    linked.note("a", "b", b"too late")
    linked.world.run_for(1.0)
    assert linked.told("a", LinkDown) == [(1.0, LinkDown(linked.id("b"), "enough"))]
    assert linked.told("a", NoteReceived) == []
    assert [type(event) for _, event in linked.told("b")[-2:]] == [NoteReceived, LinkDown]
    assert linked.told("b", LinkDown) == [(1.005, LinkDown(linked.id("a"), "enough"))]


def test_what_is_persisted_is_given_to_the_next_boot() -> None:
    stage = Stage("a")
    stage.do("a", Persist("k", b"1"), Persist("k", b"2"), Persist("other", b""))
    stage.world.crash("a")
    stage.world.restart("a")
    boot = stage.world.core("a").boot
    assert boot.disk == {"k": b"2", "other": b""} == stage.world.disk_of("a")
    assert boot.epoch == 2


def test_emitted_events_are_recorded_with_time_and_node() -> None:
    stage = Stage("a", "b")
    stage.do("a", Emit("member.dead", "x", "why"))
    stage.world.run_for(2.0)
    stage.do("b", Emit("member.dead", "y"))
    found = list(stage.world.trace.find("member.dead"))
    assert [(r.time_s, r.node, r.subject, r.detail) for r in found] == [
        (0.0, "a", "x", "why"), (2.0, "b", "y", ""),
    ]  # fmt: skip
    assert list(stage.world.trace.find(node="b")) == found[1:]
    assert list(stage.world.trace.find(subject="x")) == found[:1]
    assert "2 records" in repr(stage.world.trace)


def test_other_effects_go_to_the_drivers_given_for_them() -> None:
    asked: list[tuple[str, object]] = []
    world = CoreWorld(
        1, on_effect={LoadModel: lambda _world, name, effect: asked.append((name, effect))}
    )
    world.add_node("a", "eu", Diary)
    load = LoadModel("digits", 1, "00", ())
    world.act("a", lambda _now, _wall_s: [load])
    assert asked == [("a", load)]
    with pytest.raises(UsageError, match="no driver carries out LoadModel"):
        Stage("a").do("a", load)


# Faults of nodes.


def test_a_crash_takes_timers_along_and_peers_hear_of_it_a_latency_later(linked: Stage) -> None:
    linked.do("a", StartTimer("t", 0.5))
    linked.note("a", "b")
    linked.world.crash("a")
    linked.world.restart("a")
    linked.world.run_for(1.0)
    assert linked.told("a") == [(1.0, Start())]
    assert [event for _, event in linked.told("b")[-2:]] == [
        NoteReceived(linked.id("a"), b"note"),
        LinkDown(linked.id("a"), "connection reset"),
    ]
    assert linked.told("b")[-1][0] == 1.005


def test_a_frozen_node_catches_up_when_thawed_and_keeps_its_links(linked: Stage) -> None:
    linked.do("a", StartTimer("t", 0.5))
    linked.world.freeze("a")
    linked.note("b", "a", b"1")
    for _ in range(MAX_FROZEN_DATAGRAMS + 9):
        linked.datagram("b", "a")
    linked.world.run_for(3.0)
    assert linked.told("a", TimerFired) == []
    linked.world.thaw("a")
    linked.world.thaw("a")  # once is enough
    linked.world.run_for(1.0)
    assert linked.told("a", TimerFired) == [(4.0, TimerFired("t"))]
    assert linked.told("a", NoteReceived) == [(4.005, NoteReceived(linked.id("b"), b"1"))]
    assert len(linked.told("a", DatagramReceived)) == MAX_FROZEN_DATAGRAMS
    linked.world.run_for(20.0)
    assert linked.told("b", LinkDown) == []


def test_a_node_frozen_for_long_loses_its_links(linked: Stage) -> None:
    linked.world.freeze("a")
    assert repr(linked.world._node("a").host).endswith("boot 1, frozen>")
    linked.world.run_for(20.0)
    assert linked.told("b", LinkDown) == [(9.0, LinkDown(linked.id("a"), "stalled"))]
    linked.world.thaw("a")
    linked.world.run_for(1.0)
    assert linked.told("a", LinkDown) == [(21.0, LinkDown(linked.id("b"), "stalled"))]


def test_a_frozen_node_can_crash_and_what_it_missed_is_lost(linked: Stage) -> None:
    linked.do("a", StartTimer("t", 0.5))
    linked.world.freeze("a")
    linked.world.run_for(1.0)
    linked.world.crash("a")
    linked.world.restart("a")
    linked.world.run_for(1.0)
    assert linked.told("a") == [(2.0, Start())]
    assert linked.told("b", LinkDown) == [(2.005, LinkDown(linked.id("a"), "connection reset"))]


def test_a_leaving_node_is_told_and_stops_after_its_grace(linked: Stage) -> None:
    linked.world.leave("a")
    assert linked.told("a")[-1] == (1.0, Leave())
    assert linked.world.running() == ["a", "b"]
    linked.world.run_for(1.0)
    assert linked.world.running() == ["b"]
    assert linked.told("b", LinkDown) == [(1.505, LinkDown(linked.id("a"), "the node left"))]
    linked.world.restart("a")
    linked.world.leave("a")
    linked.world.crash("a")  # before its grace is over
    linked.world.restart("a")
    linked.world.run_for(1.0)
    assert linked.world.running() == ["a", "b"]


# Faults of the network.


def test_a_partition_stalls_links_and_loses_datagrams_until_it_heals(linked: Stage) -> None:
    linked.world.partition(["a"], ["b"])
    linked.note("a", "b", b"waits")
    linked.datagram("a", "b")
    linked.world.run_for(5.0)
    assert linked.told("b", NoteReceived) == []
    linked.world.heal()
    linked.world.run_for(30.0)
    assert linked.told("b", NoteReceived) == [(6.005, NoteReceived(linked.id("a"), b"waits"))]
    assert linked.told("b", DatagramReceived) == []
    assert linked.told("b", LinkDown) == []


def test_a_lasting_partition_breaks_links_at_both_ends(linked: Stage) -> None:
    linked.world.partition(["a"], ["b"])
    linked.note("a", "b")
    linked.world.run_for(10.0)
    linked.world.heal()
    linked.world.run_for(1.0)
    assert linked.told("a", LinkDown) == [(9.0, LinkDown(linked.id("b"), "stalled"))]
    assert linked.told("b", LinkDown) == [(9.0, LinkDown(linked.id("a"), "stalled"))]
    assert linked.told("b", NoteReceived) == []
    assert "0 between 2 hosts" in repr(linked.world.links)


def test_one_way_partitions_lose_datagrams_one_way_and_stall_links(linked: Stage) -> None:
    linked.world.partition_one_way(["a"], ["b"])
    linked.datagram("a", "b")
    linked.datagram("b", "a")
    linked.note("b", "a")
    linked.world.run_for(1.0)
    assert linked.told("b", DatagramReceived) == []
    assert len(linked.told("a", DatagramReceived)) == 1
    assert linked.told("a", NoteReceived) == []


def test_a_stalled_link_keeps_a_bounded_number_of_notes(linked: Stage) -> None:
    linked.world.partition(["a"], ["b"])
    linked.do("a", *(SendNote(linked.id("b"), b"") for _ in range(5000)))
    linked.world.heal()
    linked.world.run_for(1.0)
    assert len(linked.told("b", NoteReceived)) == 4096


def test_what_is_held_arrives_when_released(linked: Stage) -> None:
    linked.world.hold(["a"], ["b"])
    linked.datagram("a", "b")
    linked.note("a", "b")
    linked.world.run_for(1.0)
    assert linked.told("b", DatagramReceived) == linked.told("b", NoteReceived) == []
    linked.world.release()
    linked.world.run_for(1.0)
    assert [at for at, _ in linked.told("b", DatagramReceived)] == [2.005]
    assert [at for at, _ in linked.told("b", NoteReceived)] == [2.005]


def test_a_link_closed_while_stalled_is_given_up_by_the_other_end_later(linked: Stage) -> None:
    linked.world.partition(["a"], ["b"])
    linked.do("a", CloseLink(linked.id("b"), "enough"))
    linked.world.run_for(20.0)
    assert linked.told("b", LinkDown) == [(9.0, LinkDown(linked.id("a"), "stalled"))]


def test_the_end_of_an_old_link_is_not_told_while_a_newer_one_is_up(linked: Stage) -> None:
    linked.world.partition(["a"], ["b"])
    linked.do("a", CloseLink(linked.id("b"), "enough"))
    linked.world.heal()
    linked.dial("a", "b")
    linked.world.run_for(20.0)
    assert linked.told("b", LinkDown) == []
    assert len(linked.told("b", LinkUp)) == 2


# The world itself.


def test_misuse_is_named() -> None:
    stage = Stage("a")
    with pytest.raises(UsageError, match="there is a node 'a' already"):
        stage.world.add_node("a", "eu", Diary)
    with pytest.raises(UsageError, match="there is no node 'b'"):
        stage.world.crash("b")
    with pytest.raises(UsageError, match="'a' runs already"):
        stage.world.restart("a")
    stage.world.crash("a")
    verbs: list[Callable[[str], object]] = [
        stage.world.crash, stage.world.freeze, stage.world.thaw, stage.world.leave, stage.world.core,
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(UsageError, match="'a' does not run"):
            verb("a")


def test_waiting_returns_the_time_taken_or_names_the_seed() -> None:
    stage = Stage("a")
    stage.do("a", StartTimer("t", 1.0))
    assert stage.world.run_until(lambda: bool(stage.told("a", TimerFired)), 5.0) == pytest.approx(
        1.0, abs=0.051
    )
    with pytest.raises(NotReachedError, match=r"CoreWorld\(seed=1\)"):
        stage.world.run_until(lambda: False, 2.0)


def test_a_cores_failure_tells_when_and_where_it_happened() -> None:
    class Broken(Diary):
        def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
            raise ZeroDivisionError

    world = CoreWorld(42)
    world.add_node("a", "eu", Broken)
    with pytest.raises(ZeroDivisionError) as caught:
        world.run_for(1.0)
    assert caught.value.__notes__ == ["at 0.000000 s of CoreWorld(seed=42), a handling Start()"]


class Chatter:
    """A core that keeps talking at random."""

    def __init__(self, boot: Boot) -> None:
        self.rng: random.Random = boot.rng
        self.peers: dict[NodeId, None] = {}

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        match event:
            case LinkUp(peer, _):
                self.peers[peer] = None
            case LinkDown(peer, _):
                self.peers.pop(peer, None)
            case Start() | TimerFired():
                effects: list[Effect] = [StartTimer("talk", self.rng.random())]
                effects += [Dial((Address(f"10.0.0.{self.rng.randrange(10)}", 8471),))]
                for peer in self.peers:
                    effects += [SendNote(peer, self.rng.randbytes(4)), SendDatagram(peer, b"d")]
                return effects
            case NoteReceived(sender, payload):
                return [Emit("heard", sender, payload.hex())]
            case _:
                pass
        return []


def digest_of_chatter(seed: int, loss: float = 0.1) -> str:
    world = CoreWorld(seed, NetworkConfig(loss=loss))
    for i in range(10):
        world.add_node(f"n{i}", ("eu", "us")[i % 2], Chatter)
    world.run_for(5.0)
    world.crash("n1")
    world.freeze("n2")
    world.partition(["n3", "n4"], ["n5", "n6"])
    world.run_for(12.0)
    world.thaw("n2")
    world.heal()
    world.restart("n1")
    world.run_for(3.0)
    return world.trace.digest()


def test_the_same_seed_is_the_same_trace_and_another_is_another() -> None:
    assert digest_of_chatter(1) == digest_of_chatter(1)
    assert len({digest_of_chatter(1), digest_of_chatter(2), digest_of_chatter(1, loss=0.2)}) == 3


def test_the_trace_does_not_depend_on_the_processs_hash_seed() -> None:
    script = f"import runpy; print(runpy.run_path({__file__!r})['digest_of_chatter'](1))"
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent, env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert run.stdout.strip() == digest_of_chatter(1)


def test_a_node_without_power_says_nothing_and_its_peer_gives_the_link_up_in_time(
    linked: Stage,
) -> None:
    linked.world.power_off("a")
    linked.note("b", "a")
    linked.world.run_for(STEADY.dead_after_s - 0.1)
    assert linked.told("b", LinkDown) == []
    linked.world.run_for(0.2)
    ((_, down),) = linked.told("b", LinkDown)
    assert down == LinkDown(linked.id("a"), "stalled")
    assert "a" not in linked.world.running()


def test_a_node_whose_power_is_back_boots_without_its_links_and_what_it_missed(
    linked: Stage,
) -> None:
    linked.world.power_off("a")
    linked.note("b", "a")
    linked.datagram("b", "a")
    linked.world.run_for(1.0)
    linked.world.restart("a")
    linked.world.run_for(1.0)
    assert [type(event) for _, event in linked.told("a")] == [Start]
    assert [type(event) for _, event in linked.told("b", LinkDown)] == [LinkDown]


def test_a_firewall_against_datagrams_leaves_links_alone(linked: Stage) -> None:
    linked.world.block_datagrams(["a"], ["b"])
    linked.datagram("a", "b")
    linked.note("a", "b")
    linked.datagram("b", "a")
    linked.world.run_for(1.0)
    assert linked.told("b", DatagramReceived) == []
    assert len(linked.told("b", NoteReceived)) == 1
    assert len(linked.told("a", DatagramReceived)) == 1
    linked.world.heal()
    linked.datagram("a", "b")
    linked.world.run_for(1.0)
    assert len(linked.told("b", DatagramReceived)) == 1
