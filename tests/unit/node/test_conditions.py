"""What makes a node a better or a worse place reaches routing: by its record, and by its load."""

from __future__ import annotations

from meshnode import advertisement
from meshnode.advertisement import NodeLoad
from meshnode.limits import MIB
from meshnode.routing.conditions import USUAL, NodeConditions
from tests.unit.node.test_node import DIGITS, Stage, record

LABELS = {"gpu": "a100", "tier": "2"}


def conditions(stage: Stage) -> NodeConditions:
    return stage.node.router.table.conditions(stage.peer_id)


def hears(stage: Stage, **fares: object) -> NodeConditions:
    load = NodeLoad(0.5, **{"memory_available_bytes": 0} | fares)  # type: ignore[arg-type]  # fields of many types
    stage.peer_hints(advertisement.encode(load))
    return conditions(stage)


def test_labels_and_cost_come_with_the_record() -> None:
    stage = Stage()
    assert conditions(stage) is USUAL
    stage.peer_joins(labels=LABELS, capabilities={"cost": 2.5})
    assert conditions(stage) == NodeConditions(labels=frozenset(LABELS.items()), cost=2.5)
    stage.tell_record(record(stage.peer, "peer", counter=1, capabilities={"cost": -7}))
    assert conditions(stage) == USUAL


def test_battery_and_heat_come_with_the_load_which_is_newer_than_the_record() -> None:
    stage = Stage()
    stage.peer_joins(capabilities={"power": "battery"})
    assert conditions(stage).on_battery
    told = hears(stage, on_battery=False, battery_percent=80.0, held_back=True)
    assert (told.on_battery, told.battery_percent, told.throttled) == (False, None, True)
    stage.tell_record(record(stage.peer, "peer", counter=1, capabilities={"power": "battery"}))
    assert not conditions(stage).on_battery
    told = hears(stage, on_battery=True, battery_percent=47.3)
    assert (told.on_battery, told.battery_percent, told.throttled) == (True, 40.0, False)


def test_a_load_of_an_older_version_says_nothing_of_the_battery() -> None:
    stage = Stage()
    stage.peer_joins(capabilities={"power": "battery"})
    assert hears(stage).on_battery


def test_memory_counts_only_where_a_request_may_not_fit() -> None:
    stage = Stage()
    stage.peer_joins()
    assert hears(stage, memory_available_bytes=1 << 30).memory_free_bytes is None
    for free, told in [(255, 128), (128, 128), (50, 32), (16, 16), (15, 0)]:
        heard = hears(stage, memory_available_bytes=free * MIB)
        assert heard.memory_free_bytes == told * MIB, "each step is twice the last"
    assert hears(stage).memory_free_bytes is None, "it does not say"


def test_a_trembling_value_does_not_rank_candidates_anew() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    hears(stage, on_battery=True, battery_percent=47.3, memory_available_bytes=50 * MIB)
    revision = stage.node.router.table.revision
    hears(stage, on_battery=True, battery_percent=46.9, memory_available_bytes=51 * MIB)
    assert stage.node.router.table.revision == revision


def test_a_draining_node_stays_so_whatever_else_it_tells() -> None:
    stage = Stage()
    stage.peer_joins()
    router = stage.node.router
    router.conditions_changed(stage.peer_id, conditions(stage)._replace(draining=True))
    assert hears(stage, held_back=True) == NodeConditions(draining=True, throttled=True)


def test_what_a_stranger_says_of_its_battery_is_not_kept() -> None:
    stage = Stage()
    stranger = NodeLoad(0.5, 0, on_battery=True)
    stage.peer_hints(advertisement.encode(stranger))
    assert conditions(stage) is USUAL
