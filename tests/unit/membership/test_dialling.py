"""Who is dialled, when, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.effects import Dial, Effect, Persist, StartTimer
from meshnode.events import DialFailed, LinkUp, Start
from meshnode.limits import MAX_LOST_MEMBERS
from meshnode.membership import LAN, MembershipConfig, read_members
from meshnode.membership.timers import DialDue, PersistDue, ReconnectRound, SyncRound
from meshnode.types import Address, NodeState

if TYPE_CHECKING:
    from tests.unit.membership.conftest import Stage, Tools

SEED = Address("seed.example", 8471)
OTHER_SEED = Address("10.9.9.9", 8471)


def dials(effects: list[Effect]) -> list[Dial]:
    return [effect for effect in effects if isinstance(effect, Dial)]


def wait(effects: list[Effect]) -> tuple[DialDue, float]:
    """Return the only wait that begins, and its length in seconds."""
    ((timer, delay_s),) = (
        (effect.timer, effect.delay_s)
        for effect in effects
        if isinstance(effect, StartTimer) and isinstance(effect.timer, DialDue)
    )
    return timer, delay_s


def test_seeds_and_known_nodes_are_dialled_at_the_start(tools: type[Tools]) -> None:
    a, b = tools.record("a"), tools.record("b")
    stage = tools.stage(seeds=[SEED, OTHER_SEED, SEED], known=[a, b, tools.record("me")])
    effects = stage.tell(Start())
    assert dials(effects) == [
        Dial((SEED,), None),
        Dial((OTHER_SEED,), None),
        Dial(a.addresses, tools.id("a")),
        Dial(b.addresses, tools.id("b")),
    ]


def test_a_known_node_whose_record_does_not_hold_any_more_is_not_dialled(
    tools: type[Tools],
) -> None:
    stage = tools.stage(known=[tools.record("a", chain=b"revoked"), tools.record("b", name="")])
    effects = stage.tell(Start())
    assert dials(effects) == []
    assert tools.emits(effects) == [
        ("member.refused", tools.id("a")),
        ("member.refused", tools.id("b")),
    ]


def test_a_seed_is_retried_with_growing_pauses_for_ever_while_nobody_is_there(
    tools: type[Tools],
) -> None:
    stage = tools.stage(seeds=[SEED])
    stage.tell(Start())
    for failures in range(100):
        timer, delay_s = wait(stage.tell(DialFailed((SEED,), None, "refused")))
        longest = min(30.0, 2.0**failures)
        assert longest / 2 <= delay_s <= longest
        assert dials(stage.fire(timer, delay_s)) == [Dial((SEED,), None)]
        assert stage.fire(timer) == [], "a stale timer dies"


def test_a_seed_is_no_longer_wanted_once_somebody_is_there(tools: type[Tools]) -> None:
    stage = tools.stage(seeds=[SEED, OTHER_SEED])
    stage.tell(Start())
    timer, _ = wait(stage.tell(DialFailed((OTHER_SEED,), None, "refused")))
    stage.tell(LinkUp(tools.id("a"), SEED))
    stage.learn("a")
    assert stage.fire(timer, 5.0) == []
    stage.hear("a", NodeState.SUSPECT)
    assert dials(stage.hear("a", NodeState.DEAD)) == [
        Dial((SEED,), None),
        Dial((OTHER_SEED,), None),
    ]
    stage.learn("a", counter=1)
    assert stage.tell(DialFailed((SEED,), None, "refused")) == []


def test_failures_of_dials_that_nobody_asked_for_change_nothing(
    stage: Stage, tools: type[Tools]
) -> None:
    assert stage.tell(DialFailed((), None, "refused")) == []
    assert stage.tell(DialFailed((SEED,), None, "refused")) == []
    assert stage.tell(DialFailed((SEED,), tools.id("a"), "refused")) == []


def test_the_smaller_node_id_dials_at_once_and_the_greater_after_some_patience(
    tools: type[Tools],
) -> None:
    small, great = tools.sorted_names(2)
    first, second = tools.stage(small), tools.stage(great)
    assert dials(first.learn(great)) == [Dial(tools.record(great).addresses, tools.id(great))]
    effects = second.learn(small)
    assert dials(effects) == []
    timer, delay_s = wait(effects)
    assert delay_s == LAN.dial_patience_s
    assert len(dials(second.fire(timer, delay_s))) == 1


def test_the_greater_node_id_dials_at_once_whom_it_dialled_the_last_time(
    tools: type[Tools],
) -> None:
    """A box that came back cannot dial into a home, whatever its id is."""
    small, great = tools.sorted_names(2)
    stage = tools.stage(great)
    timer, delay_s = wait(stage.learn(small))
    assert len(dials(stage.fire(timer, delay_s))) == 1
    stage.link(small)
    stage.now += 60.0
    assert len(dials(stage.unlink(small))) == 1


def test_whose_call_it_answered_it_waits_for_the_next_time_too(tools: type[Tools]) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(great)
    timer, _ = wait(stage.learn(small))
    stage.link(small)
    assert stage.fire(timer, 60.0) == []
    effects = stage.unlink(small)
    assert dials(effects) == []
    assert wait(effects)[1] == LAN.dial_patience_s


def test_a_link_makes_the_waiting_dial_needless(tools: type[Tools]) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(great)
    timer, _ = wait(stage.learn(small))
    stage.link(small)
    assert stage.fire(timer, 2.0) == []
    assert dials(stage.learn(small, counter=1)) == []


def test_a_live_member_is_redialled_with_growing_pauses_until_it_is_dead(
    tools: type[Tools],
) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(small)
    stage.learn(great)
    gone = DialFailed(tools.record(great).addresses, tools.id(great), "refused")
    pauses = []
    for _ in range(4):
        timer, delay_s = wait(stage.tell(gone))
        pauses.append(delay_s)
        assert stage.tell(gone) == [], "it is not under way"
        assert len(dials(stage.fire(timer, delay_s))) == 1
    assert pauses == sorted(pauses)
    stage.hear(great, NodeState.DEAD)
    assert stage.tell(gone) == []


def test_a_wait_for_a_member_that_became_linked_without_an_event_is_dropped(
    tools: type[Tools],
) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(great)
    timer, _ = wait(stage.learn(small))
    stage.core._table.set_linked(tools.id(small), True)
    assert stage.fire(timer, 2.0) == []


def round_of(stage: Stage, tools: type[Tools]) -> list[Any]:
    """Run a round of reconnecting in which nobody answers, and return who was dialled."""
    effects = stage.fire(ReconnectRound(), 10.0)
    assert tools.timers(effects, ReconnectRound)
    for dial in dials(effects):
        assert stage.tell(DialFailed(dial.addresses, dial.expect, "refused")) == []
    return [dial.expect for dial in dials(effects)]


def test_one_dead_member_is_dialled_per_round_without_retries(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b", "alive")
    stage.link("alive")
    stage.hear("a", NodeState.DEAD)
    stage.hear("b", NodeState.DEAD)
    rounds = [round_of(stage, tools) for _ in range(20)]
    assert {len(dialled) for dialled in rounds} == {1}
    assert {dialled[0] for dialled in rounds} == {tools.id("a"), tools.id("b")}


def test_members_that_left_are_dialled_now_and_then_and_cost_the_dead_no_round(
    stage: Stage, tools: type[Tools]
) -> None:
    """A box in a cloud comes back from an upgrade; nine laptops left for the night."""
    departed = [f"departed-{index}" for index in range(10)]
    stage.learn("dead", *departed, "alive")
    stage.link("alive")
    stage.hear("dead", NodeState.DEAD)
    for name in departed:
        stage.hear(name, NodeState.LEFT)
    rounds = [round_of(stage, tools) for _ in range(3 * 60)]
    assert all(tools.id("dead") in dialled for dialled in rounds)
    assert [len(dialled) for dialled in rounds] == [1, 1, 2] * 60
    others = {node_id for dialled in rounds for node_id in dialled} - {tools.id("dead")}
    assert others == {tools.id(name) for name in departed}


def test_members_that_left_are_dialled_no_more_after_the_retention_time(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("departed", "alive")
    stage.link("alive")
    stage.hear("departed", NodeState.LEFT)
    assert any(round_of(stage, tools) for _ in range(3))
    stage.fire(SyncRound(), LAN.retention_s)
    assert not any(round_of(stage, tools) for _ in range(9))


def lose(stage: Stage, *names: str) -> None:
    """Let members die and be forgotten beside one that lives."""
    stage.learn(*names, "alive")
    stage.link("alive")
    for name in names:
        stage.hear(name, NodeState.DEAD)
    stage.fire(SyncRound(), LAN.retention_s)
    assert not [name for name in names if stage.state(name)]


def test_a_member_that_died_is_dialled_now_and_then_after_the_table_forgot_it(
    stage: Stage, tools: type[Tools]
) -> None:
    lose(stage, "a", "b")
    rounds = [round_of(stage, tools) for _ in range(3 * 20)]
    assert [len(dialled) for dialled in rounds] == [0, 0, 1] * 20
    assert {node_id for dialled in rounds for node_id in dialled} == {tools.id("a"), tools.id("b")}


def test_a_lost_member_is_so_no_more_once_it_is_back_evicted_or_known_to_have_left(
    stage: Stage, tools: type[Tools]
) -> None:
    lose(stage, "back", "evicted", "left", "lost")
    stage.learn("back", counter=1)
    stage.link("back")
    stage.core.evict(tools.id("evicted"), "it was stolen", stage.now)
    stage.hear("lost", NodeState.LEFT, signed_by="left")
    stage.hear("lost", NodeState.LEFT, epoch=0)
    stage.hear("left", NodeState.LEFT)
    assert [*stage.core._dialler.lost] == [tools.id("lost")]


def test_lost_members_are_bounded_and_the_longest_lost_goes_first(
    stage: Stage, tools: type[Tools]
) -> None:
    names = [f"n{index}" for index in range(MAX_LOST_MEMBERS + 2)]
    for name in names:
        stage.core._dialler.lose(tools.record(name))
    assert [*stage.core._dialler.lost] == [tools.id(name) for name in names[2:]]


def test_lost_members_are_on_disk_and_a_node_from_disk_that_never_came_is_lost(
    stage: Stage, tools: type[Tools]
) -> None:
    lose(stage, "a")
    (persist,) = stage.fire(PersistDue(), 2.0)
    assert isinstance(persist, Persist)
    assert [record.name for record in read_members(persist.value)] == ["alive", "a"]
    again = tools.stage(known=[tools.record("a")])
    again.tell(Start())
    again.link("alive")
    again.learn("alive")
    again.fire(SyncRound(), LAN.retention_s)
    assert [*again.core._dialler.lost] == [tools.id("a")]


def test_a_seed_that_leads_to_no_live_member_is_dialled_now_and_then(tools: type[Tools]) -> None:
    own, theirs = tools.record("me").addresses[0], tools.record("a").addresses[0]
    stage = tools.stage(seeds=[own, theirs, SEED, OTHER_SEED])
    stage.tell(Start())
    stage.tell(LinkUp(tools.id("a"), SEED))
    stage.learn("a")
    for seed in (own, theirs, OTHER_SEED):
        stage.tell(DialFailed((seed,), None, "refused"))
    seen = []
    for _ in range(3 * 3):
        for dial in dials(stage.fire(ReconnectRound(), 10.0)):
            seen.append(dial)
            assert stage.tell(DialFailed(dial.addresses, dial.expect, "refused")) == []
    assert seen == [Dial((OTHER_SEED,), None)] * 3


def test_a_dial_without_an_outcome_is_given_up_and_tried_again(tools: type[Tools]) -> None:
    stage = tools.stage(seeds=[SEED])
    stage.tell(Start())
    assert dials(stage.fire(ReconnectRound(), 10.0)) == []
    assert dials(stage.fire(ReconnectRound(), 10.0)) == [Dial((SEED,), None)]


def test_dials_under_way_are_bounded_and_the_rest_waits(tools: type[Tools]) -> None:
    names = tools.sorted_names(6)
    stage = tools.stage(names[0], config=MembershipConfig(dial_limit=2))
    effects = stage.learn(*names[1:])
    assert len(dials(effects)) == 2
    waiting = tools.timers(effects, DialDue)
    assert len(waiting) == 3
    stage.link(names[1])
    assert len(dials(stage.fire(waiting[0], 1.0))) == 1
    assert len(tools.timers(stage.fire(waiting[1]), DialDue)) == 1


def test_addresses_that_lead_to_this_machine_are_not_dialled(tools: type[Tools]) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(small)
    loopback: Any = (Address("127.0.0.1", 8471),)
    assert dials(stage.learn(great, addresses=loopback)) == []
    assert dials(stage.fire(ReconnectRound(), 10.0)) == []
    local = tools.stage(small, record=tools.record(small, addresses=loopback))
    assert dials(local.learn(great, addresses=loopback)) == [Dial(loopback, tools.id(great))]


def test_known_nodes_are_tried_slowly_beside_a_live_mesh_and_then_more_slowly(
    tools: type[Tools],
) -> None:
    stage = tools.stage(known=[tools.record("a")])
    ((dial),) = dials(stage.tell(Start()))
    stage.link("b")
    stage.learn("b")
    assert stage.tell(DialFailed(dial.addresses, dial.expect, "refused")) == []
    assert [each.expect for each in dials(stage.fire(ReconnectRound(), 10.0))] == [tools.id("a")]
    stage.tell(DialFailed(dial.addresses, dial.expect, "refused"))
    stage.fire(SyncRound(), LAN.retention_s)
    assert dials(stage.fire(ReconnectRound(), 10.0)) == []


def test_the_list_on_disk_holds_live_gone_and_known_nodes_and_is_written_once_per_burst(
    tools: type[Tools],
) -> None:
    stage = tools.stage(known=[tools.record("known"), tools.record("b")])
    stage.tell(Start())
    effects = stage.learn("a", "b", "c", "d") + stage.hear("c", NodeState.DEAD)
    effects += stage.hear("d", NodeState.LEFT)
    assert tools.timers(effects, PersistDue) == [PersistDue()]
    (persist,) = stage.fire(PersistDue(), 2.0)
    assert isinstance(persist, Persist)
    assert persist.key == "members"
    assert [record.name for record in read_members(persist.value)] == ["a", "b", "c", "d", "known"]
    assert tools.timers(stage.hear("c", NodeState.LEFT), PersistDue) == [PersistDue()]


def test_links_that_last_no_time_are_dialled_less_and_less_often(tools: type[Tools]) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(small)
    stage.learn(great)
    stage.link(great)
    for failures in range(8):
        timer, delay_s = wait(stage.unlink(great))
        longest = min(30.0, 2.0**failures)
        assert longest / 2 <= delay_s <= longest
        assert len(dials(stage.fire(timer, delay_s))) == 1
        stage.link(great)
    stage.now += 2.0
    assert len(dials(stage.unlink(great))) == 1, "it was a link; its loss is made good at once"
    stage.link(great)
    assert wait(stage.unlink(great))[1] <= 1.0
