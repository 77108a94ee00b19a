"""Per-owner state over a virtual network with everything that goes wrong there."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshnode.sim.network import NetworkConfig


@pytest.mark.parametrize("count", [3, 20, 50])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_every_node_comes_to_know_every_owner(make_mesh: Any, count: int, loss: float) -> None:
    mesh = make_mesh(count, seed=count, network=NetworkConfig(loss=loss, note_loss=loss))
    for name in mesh.names:
        mesh.say(name, "served", name.encode())
    mesh.world.run_until(lambda: len(mesh.view("n0")) == count and mesh.owners_agree(), 30.0)
    assert mesh.view("n1")[mesh.world.id_of("n2")] == {"served": b"n2"}


def test_a_change_reaches_most_of_fifty_nodes_by_rumour_and_all_by_sync(make_mesh: Any) -> None:
    mesh = make_mesh(50, seed=1)
    mesh.world.run_for(20.0)
    mesh.say("n7", "load", b"3")
    assert mesh.world.run_until(mesh.owners_agree, 10.0) < 3.0
    informed = sum(
        record.time_s < 21.0 for record in mesh.world.trace.find("state.changed", subject="n7")
    )
    assert informed >= 45  # a rumour with fanout 3 misses about e^-3


def test_a_quiet_mesh_exchanges_hashes_only(make_mesh: Any) -> None:
    mesh = make_mesh(20, seed=2)
    for name in mesh.names:
        mesh.say(name, "capabilities", bytes(1000))
    mesh.world.run_for(30.0)
    sent = mesh.watch_note_sizes()
    mesh.world.run_for(10.0)
    assert max(sent) <= 16
    assert len(sent) <= 20 * 10 * (1 / 2 + 1 / 5) * 1.5


def test_both_sides_of_a_partition_learn_what_the_other_wrote(make_mesh: Any) -> None:
    mesh = make_mesh(20, seed=3)
    mesh.world.run_for(5.0)
    left, right = mesh.names[:10], mesh.names[10:]
    mesh.world.partition(left, right)
    mesh.world.run_for(20.0)
    for name in mesh.names:
        mesh.say(name, "load", b"after")
    mesh.world.run_for(20.0)
    assert mesh.node("n0").owner.get(mesh.world.id_of("n15"), "load") is None
    mesh.world.heal()
    mesh.world.run_until(mesh.owners_agree, 30.0)
    assert mesh.node("n0").owner.get(mesh.world.id_of("n15"), "load") == b"after"


def test_a_restarted_owner_replaces_all_its_entries(make_mesh: Any) -> None:
    mesh = make_mesh(5, seed=4)
    mesh.say("n2", "old", b"1")
    mesh.say("n2", "both", b"1")
    mesh.world.run_for(10.0)
    mesh.world.crash("n2")
    mesh.world.run_for(1.0)
    mesh.world.restart("n2")
    mesh.say("n2", "both", b"2")
    mesh.world.run_until(
        lambda: all(mesh.view(n).get(mesh.world.id_of("n2")) == {"both": b"2"} for n in mesh.names),
        20.0,
    )


def test_a_node_restarted_without_a_word_is_not_remembered_for_what_it_said(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=4)
    mesh.say("n2", "served", b"model")
    mesh.world.run_for(5.0)
    mesh.world.crash("n2")
    mesh.world.restart("n2")
    mesh.world.run_until(lambda: mesh.view("n0").get(mesh.world.id_of("n2")) == {}, 20.0)


@pytest.mark.parametrize("away_s", [60.0, 4 * 3600.0])
def test_a_deleted_key_stays_deleted_when_a_node_returns(make_mesh: Any, away_s: float) -> None:
    """Away for four hours, it comes back when no node remembers the deletion any more."""
    mesh = make_mesh(4, seed=5)
    mesh.say("n0", "model", b"x")
    mesh.say("n0", "other", b"y")
    mesh.world.run_for(10.0)
    assert mesh.view("n3")[mesh.world.id_of("n0")] == {"model": b"x", "other": b"y"}
    mesh.world.partition(["n3"], ["n0", "n1", "n2"])
    mesh.world.run_for(20.0)
    mesh.unsay("n0", "model")
    mesh.world.run_for(away_s)
    mesh.world.heal()
    mesh.world.run_until(mesh.owners_agree, 20.0)
    mesh.world.run_for(20.0)
    for name in mesh.names:
        assert mesh.view(name)[mesh.world.id_of("n0")] == {"other": b"y"}


def test_a_forgotten_owner_comes_back_once_membership_sees_it_again(make_mesh: Any) -> None:
    """Node n1 has yet to give it up, and so knows its state all the time."""
    mesh = make_mesh(3, seed=6)
    mesh.say("n2", "load", b"1")
    mesh.world.run_for(5.0)
    n2 = mesh.world.id_of("n2")
    mesh.world.crash("n2")
    mesh.lose("n0", n2)
    mesh.world.run_for(10.0)
    assert n2 not in mesh.view("n0")
    assert n2 in mesh.view("n1")
    mesh.find("n0", n2)
    assert mesh.world.run_until(lambda: mesh.view("n0").get(n2) == {"load": b"1"}, 10.0) <= 1.0
    mesh.world.restart("n2")
    mesh.say("n2", "load", b"2")
    mesh.world.run_until(lambda: mesh.view("n0").get(n2) == {"load": b"2"}, 10.0)


def test_large_states_travel_in_notes_of_the_allowed_size(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=7)
    sizes = mesh.watch_note_sizes()
    for i in range(40):
        mesh.say("n0", f"key{i}", bytes(16 * 1024))
    mesh.world.run_until(
        lambda: len(mesh.node("n2").owner.entries(mesh.world.id_of("n0"))) == 40, 20
    )
    mesh.world.run_until(mesh.owners_agree, 20)
    assert 40_000 < max(sizes) <= 65_535


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happened_all_end_up_with_what_each_owner_says_and_nothing_comes_back(
    make_mesh: Any, seed: int
) -> None:
    """Writes, deletions, partitions, losses, restarts, members given up and found, hours of collection."""
    mesh = make_mesh(5, seed=seed, network=NetworkConfig(loss=0.1, note_loss=0.2))
    chance = random.Random(seed)
    for _ in range(60):
        name, other = chance.sample(mesh.names, 2)
        match chance.randrange(9):
            case 0 | 1 | 2:
                mesh.say(name, chance.choice("abc"), chance.randbytes(2))
            case 3 | 4:
                mesh.unsay(name, chance.choice("abc"))
            case 5:
                mesh.world.partition([name], [each for each in mesh.names if each != name])
            case 6:
                mesh.world.heal()
            case 7:
                mesh.world.crash(name)
                mesh.world.restart(name)
            case _:
                mesh.lose(name, mesh.world.id_of(other))
        mesh.world.run_for(4000.0 if chance.random() < 0.04 else chance.choice([0.01, 0.5, 3.0]))
    mesh.world.heal()
    for name in mesh.names:
        for owner in [*mesh.node(name).gone]:
            mesh.find(name, owner)
    mesh.world.run_until(mesh.owners_agree, 60.0)
    own = {
        mesh.world.id_of(name): dict(mesh.node(name).owner.entries(mesh.world.id_of(name)))
        for name in mesh.names
    }
    assert mesh.view("n0") == own
    assert not [*mesh.world.trace.find("state.refused")]
