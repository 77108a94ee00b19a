"""Placement of all deployments at once: budgets, order, and how little moves (docs/placement.md has the whole table)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.placement import beyond_its_share, unequal_mesh
from meshnode.limits import MAX_FAILED_NODES
from meshnode.routing.packing import Budget, Claim, Ledger, pack
from meshnode.routing.placement import Charge, Option, rendezvous_score
from meshnode.types import NodeId

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from meshnode.routing.placement import Placement

GIB = 1024**3


def claim(
    name: str,
    budgets: Mapping[NodeId, Budget],
    charge: Charge = Charge(),  # noqa: B008 - immutable
    replicas: int = 1,
    **more: object,
) -> Claim:
    options = [
        Option(rendezvous_score(name, node, 1.0), node, f"region-{node[-1]}", charge)
        for node in budgets
    ]
    return Claim(name, replicas, options, **more)  # type: ignore[arg-type]


def mesh(count: int, budget: Budget) -> dict[NodeId, Budget]:
    return {NodeId(f"node-{number:02}"): budget for number in range(count)}


def test_what_is_promised_to_one_deployment_is_promised_to_no_other() -> None:
    budgets = mesh(1, Budget(10 * GIB))
    placed = pack(
        [
            claim("old", budgets, Charge(7 * GIB), since_ms=1),
            claim("new", budgets, Charge(4 * GIB), since_ms=2),
        ],
        budgets,
    )
    assert placed["old"].nodes == ("node-00",)
    assert (placed["new"].nodes, placed["new"].ranking, placed["new"].missing) == ((), (), 1)
    why = (
        "it would take about 4.0 GiB of memory, and of this node's 10.0 GiB only 3.0 GiB are not promised to other "
        "deployments"
    )
    assert placed["new"].ineligible == (("node-00", why),)


def test_the_older_deployment_keeps_its_room_whatever_it_is_called() -> None:
    budgets = mesh(1, Budget(10 * GIB))
    placed = pack(
        [
            claim("a", budgets, Charge(7 * GIB), since_ms=2),
            claim("z", budgets, Charge(7 * GIB), since_ms=1),
        ],
        budgets,
    )
    assert (placed["a"].nodes, placed["z"].nodes) == ((), ("node-00",))


def test_a_deployment_that_can_run_on_one_node_only_comes_before_those_that_have_a_choice() -> None:
    budgets = mesh(2, Budget(10 * GIB))
    free = claim("free", budgets, Charge(7 * GIB), since_ms=1)
    (home,) = pack([free], budgets)["free"].nodes
    pinned = claim("pinned", {home: budgets[home]}, Charge(7 * GIB), is_pinned=True, since_ms=2)
    placed = pack([free, pinned], budgets)
    assert placed["pinned"].nodes == (home,)
    assert {*placed["free"].nodes} == budgets.keys() - {home}


def test_each_accelerator_has_its_own_memory() -> None:
    budgets = mesh(1, Budget(GIB, (8 * GIB, 6 * GIB)))
    claims = [
        claim(f"m{number}", budgets, Charge(0, 5 * GIB), since_ms=number) for number in range(3)
    ]
    placed = pack(claims, budgets)
    assert [len(placed[f"m{number}"].nodes) for number in range(3)] == [1, 1, 0]
    ((_, reason),) = placed["m2"].ineligible
    assert reason.startswith(
        "it would take about 5.0 GiB of accelerator memory, and of this node's 8.0 GiB only 3.0"
    )


def test_processors_are_counted_where_a_deployment_says_what_it_takes() -> None:
    budgets = mesh(1, Budget(cpus=4.0))
    placed = pack(
        [
            claim("a", budgets, Charge(cpus=3.0)),
            claim("b", budgets, Charge(cpus=1.5)),
            claim("c", budgets),
        ],
        budgets,
    )
    assert [len(placed[name].nodes) for name in "abc"] == [1, 0, 1]
    ((_, reason),) = placed["b"].ineligible
    assert reason == (
        "it would take 1.5 cpus, and of this node's 4 only 1 are not promised to other deployments"
    )


def test_nothing_is_counted_of_a_node_that_does_not_say_what_it_has() -> None:
    budgets = mesh(1, Budget())
    claims = [claim(f"m{number}", budgets, Charge(GIB * 100, 0, 64.0)) for number in range(5)]
    assert all(each.nodes for each in pack(claims, budgets).values())


def test_a_standby_takes_room_as_a_replica_does() -> None:
    budgets = mesh(2, Budget(10 * GIB))
    placed = pack(
        [
            claim("old", budgets, Charge(7 * GIB), standby=1),
            claim("young", budgets, Charge(7 * GIB), since_ms=1),
        ],
        budgets,
    )
    assert len(placed["old"].hosts) == 2
    assert placed["young"].missing == 1


def test_a_node_without_room_does_not_cost_its_region_its_replica() -> None:
    budgets = {
        NodeId("a1"): Budget(GIB),
        NodeId("b1"): Budget(9 * GIB),
        NodeId("c2"): Budget(9 * GIB),
    }
    for number in range(30):
        placed = pack([claim(f"m{number}", budgets, Charge(2 * GIB), 2)], budgets)[f"m{number}"]
        assert {*placed.nodes} == {
            "b1",
            "c2",
        }  # one of region 1, though its better node may be full


def failing_claim(replicas: int, failing: int, nodes: int = 40) -> Placement:
    budgets = mesh(nodes, Budget())
    plain = claim("m", budgets, replicas=replicas)
    lost = dict.fromkeys(pack([plain], budgets)["m"].ranking[:failing], "it crashes")
    return pack([claim("m", budgets, replicas=replicas, failing=lost)], budgets)["m"]


def test_what_fails_on_a_node_is_placed_on_the_next_one() -> None:
    whole = pack([claim("m", mesh(40, Budget()))], {})["m"].ranking
    placed = failing_claim(1, 1)
    assert placed.nodes == whole[1:2]
    assert placed.ineligible == ((whole[0], "it crashes"),)


def test_what_fails_on_many_nodes_is_tried_on_no_more() -> None:
    limit = MAX_FAILED_NODES + 2
    assert failing_claim(1, limit - 1).missing == 0
    stopped = failing_claim(1, limit)
    assert (stopped.nodes, stopped.missing, len(stopped.ineligible)) == ((), 1, 40)
    reasons = {reason for _, reason in stopped.ineligible}
    assert f"it is not tried here, since it could not be loaded on {limit} other nodes" in reasons


def test_nodes_further_down_that_fail_take_nothing_from_those_that_serve() -> None:
    budgets = mesh(40, Budget())
    whole = pack([claim("m", budgets, replicas=3)], budgets)["m"].ranking
    lost = dict.fromkeys(whole[3:], "it crashes")
    assert pack([claim("m", budgets, replicas=3, failing=lost)], budgets)["m"].nodes == whole[:3]


# What holds for any mesh.

SIZES = st.sampled_from([0, 1, 2, 3, 5, 8])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[NodeId, Budget], list[Claim]]:
    memories = draw(
        st.lists(st.tuples(SIZES, st.lists(SIZES.filter(bool), max_size=2)), max_size=8)
    )
    budgets = {
        NodeId(f"n{number}{number % 3}"): Budget(memory, tuple(accelerators), 8.0)
        for number, (memory, accelerators) in enumerate(memories)
    }
    claims = []
    for number in range(draw(st.integers(0, 8))):
        on = draw(st.sets(st.sampled_from(sorted(budgets)), max_size=3)) if budgets else set()
        charge = Charge(draw(SIZES), 0, draw(st.sampled_from([0.0, 1.0, 3.0])))
        options = [
            Option(
                rendezvous_score(f"m{number}", node, 1.0),
                node,
                node[-1],
                Charge(0, charge.memory_bytes, charge.cpus) if budget.accelerators else charge,
            )
            for node, budget in budgets.items()
            if not on or node in on
        ]
        claims.append(
            Claim(
                f"m{number}",
                draw(st.integers(0, 4)),
                options,
                draw(st.integers(0, 2)),
                failing={node: "no" for node in on if draw(st.booleans())},
                is_pinned=bool(on),
                since_ms=draw(st.integers(0, 3)),
            )
        )
    return budgets, claims


@settings(max_examples=200, deadline=None, derandomize=True)
@given(worlds())
def test_no_budget_is_ever_exceeded(world: tuple[dict[NodeId, Budget], list[Claim]]) -> None:
    budgets, claims = world
    placed = pack(claims, budgets)
    for node, budget in budgets.items():
        charges = [
            option.charge
            for each in claims
            for option in each.options
            if option.node_id == node and node in placed[each.name].hosts
        ]
        if budget.memory_bytes:
            assert sum(each.memory_bytes for each in charges) <= budget.memory_bytes
        assert sum(each.cpus for each in charges) <= budget.cpus
        on_accelerators = [each.accelerator_bytes for each in charges if each.accelerator_bytes]
        assert sum(on_accelerators) <= sum(budget.accelerators)
        assert max(on_accelerators, default=0) <= max(budget.accelerators, default=0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(worlds(), st.randoms(use_true_random=False))
def test_all_nodes_place_alike_in_whatever_order_they_heard(
    world: tuple[dict[NodeId, Budget], list[Claim]], rng: random.Random
) -> None:
    budgets, claims = world
    heard = [
        Claim(
            each.name, each.replicas, rng.sample(each.options, len(each.options)), each.standby, each.unfit,
            each.failing, is_pinned=each.is_pinned, since_ms=each.since_ms,
        )
        for each in claims
    ]  # fmt: skip
    rng.shuffle(heard)
    shuffled = dict(rng.sample([*budgets.items()], len(budgets)))
    assert pack(heard, shuffled) == pack(claims, budgets)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(worlds())
def test_a_new_deployment_that_is_not_pinned_takes_nothing_from_any_other(
    world: tuple[dict[NodeId, Budget], list[Claim]],
) -> None:
    budgets, claims = world
    before = pack(claims, budgets)
    options = [Option(rendezvous_score("new", node, 1.0), node, "r", Charge(3)) for node in budgets]
    after = pack([*claims, Claim("new", 4, options, 2, since_ms=4)], budgets)
    assert {name: after[name] for name in before} == before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(worlds())
def test_what_is_placed_is_what_was_asked_for_or_what_is_missing(
    world: tuple[dict[NodeId, Budget], list[Claim]],
) -> None:
    budgets, claims = world
    for each in claims:
        made = pack(claims, budgets)[each.name]
        assert len(made.nodes) + made.missing == each.replicas
        assert len(made.standby) + made.missing_standby == each.standby
        assert len({*made.hosts}) == len(made.hosts)
        assert {*made.ranking}.isdisjoint(node for node, _ in made.ineligible)
        assert len(made.ranking) + len(made.ineligible) == len(each.options)


# How little moves.


@settings(max_examples=100, deadline=None, derandomize=True)
@given(worlds(), st.integers(0, 7))
def test_where_memory_suffices_a_node_that_comes_or_goes_moves_exactly_what_it_holds(
    world: tuple[dict[NodeId, Budget], list[Claim]], index: int
) -> None:
    budgets, claims = world
    roomy = {node: Budget(1000, (1000,), 1000.0) for node in budgets}
    claims = [
        Claim(each.name, each.replicas, each.options, 0, since_ms=each.since_ms) for each in claims
    ]
    gone = sorted(budgets)[index % len(budgets)] if budgets else None
    rest = [
        Claim(
            each.name,
            each.replicas,
            [option for option in each.options if option.node_id != gone],
            since_ms=each.since_ms,
        )
        for each in claims
    ]
    whole, without = pack(claims, roomy), pack(rest, roomy)
    for name, before in whole.items():
        assert {*before.nodes} - {*without[name].nodes} == {*before.nodes} & {gone}


@pytest.mark.parametrize(
    ("nodes", "deployments", "promised"),
    [(10, 30, 0.001), (10, 30, 0.5), (50, 100, 0.5), (50, 100, 0.7), (100, 200, 0.8)],
)
def test_a_node_that_comes_or_goes_moves_its_share_and_five_percent_at_most(
    nodes: int, deployments: int, promised: float
) -> None:
    beyond: list[float] = []
    for seed in range(3 if nodes < 100 else 1):
        sizes, wanted = unequal_mesh(nodes, deployments, promised, seed)
        some = [*sizes][:: max(1, nodes // 6)]
        beyond += [beyond_its_share(sizes, wanted, node) for node in some]
    mean = sum(beyond) / len(beyond)
    assert mean <= 0.05
    assert max(beyond) <= (0.05 if nodes > 10 else 0.1)
    assert promised > 0.01 or max(beyond) <= 0.0


def test_a_ledger_says_what_it_is() -> None:
    assert repr(Ledger(mesh(2, Budget()))) == "<Ledger of 2 nodes, 0 looked at>"
