"""Requests of one sequence reach one replica, through any gateway, or are told why not."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotServing,
    Saturated,
    SequenceLost,
    SequenceMoved,
)
from meshnode.limits import MAX_CANDIDATES_SCORED, SEQUENCE_SLACK_S
from meshnode.models.execution import Execution, SequenceBatching
from meshnode.models.manifest import Manifest
from meshnode.routing.affinity import (
    Holder,
    SequencePart,
    SequenceTable,
    heir,
    sequence_hosts,
    sequence_key,
    sequence_part,
)
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.load import LinkState
from meshnode.routing.rendezvous import weight
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.routing.tries import GiveUp, Try, Wait
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from meshnode.types import Scalar

IDLE_S = 5.0
KEY_OF_7 = "2d97657ab4c30b29a79fae8e0b1e3caa"
WEIGHT_OF_7 = "a7ae7d82d221b6df"
NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]
CHAT = Manifest(
    "chat", 1, "onnx", "onnxruntime_onnx", (), (), 1, (), "model.onnx",
    Execution(repeatable=False, sequences=SequenceBatching(max_idle_us=int(IDLE_S * 1e6))),
)  # fmt: skip


class Gateway:
    """A gateway's routing, with ready replicas of a sequence model whose links are up."""

    def __init__(self, name: str = "me", *nodes: str) -> None:
        self.router = Router(NodeId(name), "eu", random.Random(name))
        for node in nodes or NAMES:
            self.announce(node)

    def announce(
        self, node: str, state: ReplicaState = ReplicaState.READY, version: int = 1
    ) -> None:
        replica = Replica(
            NodeId(node), node, "eu", "", "chat", version, state, manifest=CHAT, digest=str(version)
        )
        self.router.replica_changed(replica, 0.0)
        self.router.link_changed(NodeId(node), LinkState.UP, 0.0)

    def remove(self, node: str, version: int = 1) -> None:
        self.router.replica_removed(NodeId(node), "chat", version)

    def plan(
        self,
        sequence_id: int | str,
        *,
        start: bool = False,
        end: bool = False,
        now: float = 0.0,
        version: int | None = None,
    ) -> Any:
        part = SequencePart(sequence_id, start, end, IDLE_S)
        return self.router.plan(RoutedRequest("chat", version, 10.0, part=part), now)

    def ask(self, sequence_id: int | str, *errors: MeshError, **how: Any) -> str:
        """Ask for one request; each of the tries that `errors` names fails. Return who answered."""
        now = how.get("now", 0.0)
        attempts = self.plan(sequence_id, **how)
        for error in errors:
            step = attempts.next(now)
            assert isinstance(attempts.next(now) if isinstance(step, Wait) else step, Try)
            attempts.failed(error, now)
        step = attempts.next(now)
        if isinstance(step, GiveUp):
            raise step.error
        attempts.succeeded(now)
        return str(step.route.replica.node)

    def begin(self, sequence_id: int | str, **how: Any) -> str:
        return self.ask(sequence_id, start=True, **how)


def never_sent() -> LinkLost:
    error = LinkLost("there is no usable link to the node")
    error.nothing_ran = True
    return error


# What a request says.


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"sequence_id": 7}, (7, False, False)),
        ({"sequence_id": "a", "sequence_start": True}, ("a", True, False)),
        ({"sequence_id": -1, "sequence_end": 1}, (-1, False, True)),
    ],
)
def test_a_request_says_which_sequence_it_is_of(
    parameters: dict[str, Scalar], part: tuple[int | str, bool, bool]
) -> None:
    assert sequence_part(parameters, IDLE_S) == (*part, IDLE_S)


@pytest.mark.parametrize(
    "wrong", [{}, {"sequence_id": 0}, {"sequence_id": ""}, {"sequence_id": True}]
)
def test_without_a_valid_id_any_replica_refuses_it(wrong: dict[str, Scalar]) -> None:
    assert sequence_part({**wrong, "sequence_start": True}, IDLE_S) is None


def test_a_sequences_key_is_the_same_everywhere_and_different_for_each() -> None:
    """Gateways of other versions and platforms must compute the same: these bytes are a promise."""
    assert sequence_key("chat", 1, 7).hex() == KEY_OF_7
    assert weight(sequence_key("chat", 1, 7), NodeId("a" * 32))[0].hex() == WEIGHT_OF_7
    ids: list[tuple[str, int, int | str]] = [
        ("chat", 1, 7), ("chat", 2, 7), ("chat1", 1, 7), ("chat", 1, "7"), ("chat", 1, -7),
        ("chat", 1, 2**64 + 7), ("chat", 1, "7" * 20_000), ("chat", 1, "\udc80"), ("chat", 1, 263),
    ]  # fmt: skip
    keys = {sequence_key(*each) for each in ids}
    assert len(keys) == len(ids)
    assert {len(key) for key in keys} == {16}


# Where it goes.


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 2**63) | st.text(min_size=1), st.randoms(use_true_random=False))
def test_all_gateways_that_know_the_same_replicas_choose_the_same_one(
    sequence_id: int | str, rng: random.Random
) -> None:
    """However they heard of them, and whatever they believe about loads and round trips."""
    nodes = set()
    for name in ("one", "other", "third"):
        order = rng.sample(NAMES, len(NAMES))
        gateway = Gateway(name, *order)
        for node in order:
            gateway.router.rtt_measured(NodeId(node), rng.random())
        nodes.add(gateway.ask(sequence_id, start=name == "one"))
    assert len(nodes) == 1


def test_sequences_are_spread_evenly_and_a_new_replica_takes_its_share_only_from_the_others() -> (
    None
):
    before, after = Gateway("one", *NAMES[:4]), Gateway("two", *NAMES)
    homes = {number: (before.begin(number), after.begin(number)) for number in range(1, 2001)}
    counts = Counter(old for old, _ in homes.values())
    assert all(430 < count < 570 for count in counts.values()), counts
    assert {new for old, new in homes.values() if old != new} == {"epsilon"}
    assert 330 < sum(old != new for old, new in homes.values()) < 470


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_sequence_never_moves_whatever_happens_to_other_replicas(seed: int) -> None:
    rng = random.Random(seed)
    gateway = Gateway()
    homes = {number: gateway.begin(number) for number in range(1, 9)}
    present = set(NAMES)
    now = 0.0
    for _ in range(60):
        now += rng.choice([0.0, 0.5, 2.0])
        node = rng.choice([*NAMES, "zeta", "eta"])
        if node in present and rng.random() < 0.5:
            present.discard(node)
            gateway.remove(node)
        else:
            present.add(node)
            gateway.announce(node)
        number = rng.choice(list(homes))
        if homes[number] in present:
            assert gateway.ask(number, now=now) == homes[number]
        elif present:
            with pytest.raises(SequenceLost, match="start the sequence anew"):
                gateway.ask(number, now=now)
            homes[number] = gateway.begin(number, now=now)
            assert homes[number] in present


def test_a_sequence_whose_first_request_went_elsewhere_first_is_found_where_it_began() -> None:
    gateway = Gateway()
    home = Gateway("other").begin("a")
    for refusal in (Saturated("full"), NotServing("paused"), never_sent()):
        began = gateway.ask("a", refusal, start=True)
        assert began != home
        assert gateway.ask("a") == began
    gateway.router.link_changed(NodeId(home), LinkState.STALLED, 0.0)
    assert gateway.begin("b") == gateway.ask("b")


def test_a_gateway_that_saw_nothing_of_a_sequence_remembers_who_answered() -> None:
    gateway = Gateway("one", *NAMES[:4])
    numbers = range(1, 60)
    homes = [gateway.ask(number) for number in numbers]
    gateway.announce("epsilon")
    assert [gateway.ask(number) for number in numbers] == homes


def test_what_was_refused_is_not_remembered() -> None:
    gateway = Gateway()
    for start in (True, False):
        with pytest.raises(InvalidRequest):
            gateway.ask(7, InvalidRequest("not known here"), start=start)
        assert len(gateway.router.sequences) == 0
    with pytest.raises(Saturated):
        gateway.ask(7, *[Saturated("full")] * 3, start=True)
    assert len(gateway.router.sequences) == 0
    with pytest.raises(DeadlineExceeded):  # the next request starts it, there
        gateway.ask(7, DeadlineExceeded("it waited"), start=True)
    assert repr(gateway.router.sequences) == "<SequenceTable 1 sequences>"


def test_after_its_last_request_a_sequence_is_forgotten() -> None:
    gateway = Gateway()
    gateway.begin(7)
    gateway.ask(7, end=True)
    assert len(gateway.router.sequences) == 0
    gateway.ask(7, start=True, end=True)
    assert len(gateway.router.sequences) == 0


def test_requests_that_are_sent_before_the_first_is_answered_follow_it() -> None:
    gateway = Gateway()
    first = gateway.plan(7, start=True)
    began = first.next(0.0).route.replica.node
    gateway.announce("zeta")
    gateway.announce("eta")
    assert gateway.ask(7) == began
    first.succeeded(0.0)


def test_a_late_answer_does_not_take_a_sequence_back_that_began_anew_elsewhere() -> None:
    gateway = Gateway()
    home = gateway.begin(7)
    late = gateway.plan(7)
    late.next(0.0)
    gateway.remove(home)
    again = gateway.begin(7)
    late.succeeded(0.1)
    assert gateway.ask(7) == again != home


def test_without_a_version_a_sequence_stays_with_the_one_on_which_it_began() -> None:
    gateway = Gateway("me", "alpha")
    gateway.begin(7)
    gateway.announce("beta", version=2)
    assert gateway.ask(7) == "alpha"
    assert gateway.begin(8) == "beta"
    gateway.remove("alpha")
    with pytest.raises(SequenceLost, match="was on alpha, which does not serve it any more"):
        gateway.ask(7)


def test_one_sequence_of_each_version_and_each_kind_of_id() -> None:
    gateway = Gateway()
    gateway.begin(7)
    gateway.begin("7")
    gateway.begin(7, version=1)
    assert len(gateway.router.sequences) == 3


# What goes wrong.


def test_a_request_whose_replica_is_gone_is_told_why_and_goes_nowhere_else() -> None:
    gateway = Gateway()
    home = gateway.begin("talk")
    gateway.announce(home, ReplicaState.LOADING)
    with pytest.raises(SequenceLost) as caught:
        gateway.ask("talk")
    assert str(caught.value) == (
        f"sequence 'talk' of model 'chat' was on {home}, which does not serve it any more (loading); "
        "nothing ran; start the sequence anew"
    )
    gateway.begin("talk")
    for node in NAMES:
        gateway.remove(node)
    with pytest.raises(SequenceLost):
        gateway.ask("talk")
    with pytest.raises(ModelNotFound):
        gateway.ask("another")


def test_that_a_replica_is_gone_is_told_once_for_the_sequence_may_have_begun_anew_elsewhere() -> (
    None
):
    gateway, other = Gateway(), Gateway("other")
    home = gateway.begin("talk")
    for each in (gateway, other):
        each.remove(home)
    again = other.begin("talk")
    with pytest.raises(SequenceLost):
        gateway.ask("talk")
    assert gateway.ask("talk") == again


@pytest.mark.parametrize("known", [True, False])
def test_a_request_whose_replica_cannot_be_reached_now_may_be_sent_again(known: bool) -> None:
    gateway = Gateway()
    home = Gateway("other").begin(7)
    if known:
        gateway.begin(7)
    gateway.router.link_changed(NodeId(home), LinkState.STALLED, 0.0)
    with pytest.raises(
        NoReplica, match=rf"is on {home}, which cannot be asked now \(link stalled\)"
    ):
        gateway.ask(7)
    gateway.router.link_changed(NodeId(home), LinkState.UP, 0.0)
    assert gateway.ask(7) == home


@pytest.mark.parametrize(
    ("error", "answer", "told"),
    [
        (LinkLost("gone"), SequenceLost, "the request may have run; start the sequence anew"),
        (NotServing("unloaded"), SequenceLost, "nothing ran; start the sequence anew"),
        (never_sent(), NoReplica, "try again in a moment"),
        (Saturated("full"), Saturated, "full"),
        (InferenceFailed("it raised"), InferenceFailed, "it raised"),
        (InvalidRequest("not known here"), InvalidRequest, "not known here"),
    ],
)
def test_a_further_request_is_tried_once_whatever_comes_of_it(
    error: MeshError, answer: type[MeshError], told: str
) -> None:
    gateway = Gateway()
    gateway.begin(7)
    with pytest.raises(answer, match=told):
        gateway.ask(7, error)


def test_a_first_request_that_may_have_run_is_not_begun_elsewhere() -> None:
    with pytest.raises(SequenceLost, match="the request may have run; start the sequence anew"):
        Gateway().ask(7, LinkLost("gone"), start=True)


def test_a_replica_whose_model_keeps_raising_is_still_asked_for_its_own_sequences() -> None:
    gateway = Gateway()
    home = gateway.begin(7)
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            gateway.ask(7, InferenceFailed("it raised"))
    assert gateway.ask(7) == home


def test_where_every_replica_keeps_raising_a_sequence_begins_on_one_of_them() -> None:
    gateway = Gateway("me", "alpha")
    for number in range(1, 4):
        with pytest.raises(InferenceFailed):
            gateway.ask(number, InferenceFailed("it raised"), start=True)
    assert gateway.begin(4) == "alpha"


def test_a_first_request_with_nobody_to_take_it_says_why() -> None:
    gateway = Gateway("me", "alpha")
    gateway.router.link_changed(NodeId("alpha"), LinkState.DOWN, 0.0)
    with pytest.raises(NoReplica, match="alpha: link down"):
        gateway.begin(7)


# What is remembered.


def holder(node: str, until: float) -> Holder:
    return Holder(1, NodeId(node), node, until)


def test_a_silent_sequence_is_forgotten_after_its_replica_has_forgotten_it() -> None:
    gateway = Gateway()
    gateway.begin(7, now=100.0)
    table = gateway.router.sequences
    forgotten_at = 100.0 + 10.0 + IDLE_S + SEQUENCE_SLACK_S  # its deadline was 10 s away
    key = sequence_key("chat", 0, 7)
    assert table.holder(key, forgotten_at - 0.1) is not None
    assert table.holder(key, forgotten_at) is None
    assert len(table) == 0


def test_a_sequence_is_remembered_as_long_as_any_of_its_requests_may_run() -> None:
    gateway = Gateway()
    gateway.begin(7)
    table, key = gateway.router.sequences, sequence_key("chat", 0, 7)
    running = gateway.router.plan(
        RoutedRequest("chat", None, 1000.0, part=SequencePart(7, False, False, IDLE_S)), 5.0
    )
    running.next(5.0)
    assert table.holder(key, 1000.0) is not None
    gateway.ask(7, now=6.0)  # with 10 s
    assert table.holder(key, 1000.0) is not None
    assert table.holder(key, 1005.0 + IDLE_S + SEQUENCE_SLACK_S) is None


def test_of_too_many_sequences_those_not_heard_of_longest_are_forgotten() -> None:
    table = SequenceTable(max_sequences=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        table.put(name, holder("alpha", 50.0), 0.0)
    assert [table.holder(name, 1.0) is not None for name in (b"a", b"b", b"c", b"d")] == [
        True, False, True, True,
    ]  # fmt: skip
    table.put(b"e", holder("alpha", 90.0), 60.0)
    assert len(table) == 1


def test_a_sequence_is_forgotten_only_where_it_is() -> None:
    table = SequenceTable()
    table.put(b"a", holder("alpha", 50.0), 0.0)
    table.forget(b"a", NodeId("beta"))
    assert len(table) == 1
    table.forget(b"a", NodeId("alpha"))
    table.forget(b"a", NodeId("alpha"))
    assert len(table) == 0


# Many replicas.


def test_of_many_replicas_all_gateways_use_the_same_ones_so_that_each_is_linked_to_them() -> None:
    many = [f"node-{number:03}" for number in range(150)]
    one, other = Gateway("one", *many), Gateway("other", *reversed(many))
    homes = [one.begin(number) for number in range(1, 400)]
    assert [other.ask(number) for number in range(1, 400)] == homes
    hosts = sequence_hosts("chat", 1, [NodeId(name) for name in many])
    assert len(hosts) == MAX_CANDIDATES_SCORED
    assert len(set(homes)) > 0.8 * MAX_CANDIDATES_SCORED
    assert set(homes) <= hosts
    few = [NodeId(name) for name in NAMES]
    assert sequence_hosts("chat", 1, few) == set(few)


def test_a_running_sequence_stays_on_a_replica_that_is_none_of_the_chosen_any_more() -> None:
    many = [f"node-{number:03}" for number in range(200)]
    gateway = Gateway("me", *many[:64])
    homes = [gateway.begin(number) for number in range(1, 50)]
    for name in many[64:]:
        gateway.announce(name)
    assert [gateway.ask(number) for number in range(1, 50)] == homes


@pytest.mark.parametrize("start", [True, False])
def test_what_does_not_fit_into_memory_begins_and_goes_on_nowhere(start: bool) -> None:
    gateway = Gateway("me", "alpha")
    gateway.begin(7)
    gateway.router.conditions_changed(NodeId("alpha"), NodeConditions(memory_free_bytes=1 << 20))
    part = SequencePart(7, start, end=False, idle_s=IDLE_S)
    large = RoutedRequest("chat", None, 10.0, size_bytes=8 << 20, part=part)
    step = gateway.router.plan(large, 1.0).next(1.0)
    assert isinstance(step, GiveUp)
    with pytest.raises(NoReplica, match="memory"):
        raise step.error


# Sequences that are given away.


def test_a_gateway_follows_a_sequence_to_where_it_was_given_and_that_costs_no_retry() -> None:
    gateway = Gateway()
    home = gateway.begin(7)
    other = next(name for name in NAMES if name != home)
    gateway.router.budget.take = lambda now: False  # type: ignore[method-assign]
    assert gateway.ask(7, SequenceMoved("given away", other)) == other
    assert gateway.ask(7) == other
    assert gateway.router.breakers.of(NodeId(home), "chat", 1).allows(0.0)


def test_a_sequence_that_is_said_to_be_with_a_stranger_is_lost() -> None:
    gateway = Gateway()
    gateway.begin(7)
    with pytest.raises(SequenceLost, match="start the sequence anew"):
        gateway.ask(7, SequenceMoved("given away", "no-such-node"))


def test_of_a_drained_node_all_gateways_ask_the_one_that_it_gave_its_sequences_to() -> None:
    knows, new = Gateway("one"), Gateway("two")
    homes = {number: knows.begin(number) for number in range(1, 100)}
    drained = NodeId("beta")
    heirs = {}
    for gateway in (knows, new):
        gateway.router.conditions_changed(drained, NodeConditions(draining=True))
    for number, home in homes.items():
        if home == drained:
            found = heir(knows.router.candidates("chat", 1), "chat", number, drained)
            assert found is not None
            heirs[number] = found.replica.node
    assert len(set(heirs.values())) == len(NAMES) - 1, "they spread over all others"
    for gateway in (knows, new):
        gateway.announce("beta", ReplicaState.PAUSED)
        assert {number: gateway.ask(number) for number in heirs} == heirs
    assert all(knows.ask(number) == home for number, home in homes.items() if home != drained)


def test_a_sequence_has_no_heir_where_nobody_else_can_have_it() -> None:
    gateway = Gateway("me", "alpha", "beta")
    candidates = gateway.router.candidates("chat", 1)
    gateway.router.link_changed(NodeId("beta"), LinkState.DOWN, 0.0)
    assert heir(candidates, "chat", 7, NodeId("alpha")) is None
    gateway.router.link_changed(NodeId("beta"), LinkState.UP, 0.0)
    gateway.router.conditions_changed(NodeId("beta"), NodeConditions(draining=True))
    assert heir(gateway.router.candidates("chat", 1), "chat", 7, NodeId("alpha")) is None


def test_a_sequence_finds_a_place_on_the_next_replica_and_waits_only_on_the_last() -> None:
    gateway = Gateway("me", "alpha", "beta", "gamma")
    attempts = gateway.plan(7, start=True)
    asked = []
    while isinstance(step := attempts.next(0.0), Try | Wait):
        if isinstance(step, Wait):
            continue
        asked.append((str(step.route.replica.node), step.has_others))
        if not step.has_others:
            attempts.succeeded(0.0)
            break
        attempts.failed(Saturated("all places are taken"), 0.0)
    assert [others for _, others in asked] == [True, True, False]
    assert {name for name, _ in asked} == {"alpha", "beta", "gamma"}
    assert gateway.ask(7) == asked[-1][0]
    later = gateway.plan(7).next(0.0)
    assert isinstance(later, Try)
    assert not later.has_others, "one that has begun has nowhere else to go"
