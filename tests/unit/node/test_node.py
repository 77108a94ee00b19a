"""A node by itself: what it makes of its driver's events and of its peers' words."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY, ModelLoad, NodeLoad, replica_key
from meshnode.effects import (
    Effect,
    Emit,
    LoadModel,
    OfferModel,
    Persist,
    SendNote,
    StartTimer,
    UnloadModel,
)
from meshnode.errors import Forbidden, ModelNotFound, NoReplica, TooLarge, UsageError
from meshnode.events import LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import MAX_OWNER_KEYS
from meshnode.membership import LAN
from meshnode.membership.messages import CODEC, STATE_CODES, MemberRecord, Records, Rumour, pack_id
from meshnode.membership.messages import sign_record as sign_member
from meshnode.membership.timers import SyncRound
from meshnode.models.execution import Execution, SequenceBatching
from meshnode.models.exposure import Exposure
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.node import Node, NodeConfig, NodeTrust
from meshnode.node_events import LoadSampled, ReplicaChanged, ReplicaGone
from meshnode.reconcile import HANDOVER_S, RETRY_FIRST_S
from meshnode.reconcile_loop import QUIET_START_S, ReconcileDue
from meshnode.routing.affinity import sequence_hosts
from meshnode.sim.trust import Admissions, Papers
from meshnode.state.deployment import Deployment
from meshnode.state.owner_copy import OwnerCopy
from meshnode.state.owner_messages import OWNER, Hint, Mark, OwnerDeltas, OwnerHints, OwnerWants
from meshnode.types import Address, DataType, NodeId, NodeState, ReplicaState, Role
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.state.desired import Draft

WALL_S = 1_750_000_000.0
SPEC = TensorSpec("x", DataType.FP32, (-1, 4))
READY = ReplicaState.READY


def manifest(name: str = "digits", version: int = 1, content: str = "model.onnx") -> Manifest:
    files = (FileEntry(content, 10, bytes(32)),)
    return Manifest(name, version, "onnx", "onnx", (SPEC,), (SPEC,), 8, files, content)


DIGITS = manifest()


def record(papers: Papers, name: str, **changes: Any) -> MemberRecord:
    blank = MemberRecord(
        papers.identity.public_key, name, "eu", "", {}, (Address("10.0.0.1", 8471),), "",
        1, 0, 7, {"cpus": 4, "runtimes": ["onnx"]}, papers.member.chain,
    )  # fmt: skip
    return sign_member(msgspec.structs.replace(blank, **changes), papers.identity.sign)


class Stage:
    """A node that runs alone, and a peer who writes it notes."""

    def __init__(self, role: Role = Role.ADMIN, **options: Any) -> None:
        admissions = Admissions(1)
        founder = admissions.admit("founder", Role.ADMIN, WALL_S)
        papers = founder if role is Role.ADMIN else admissions.admit("me", role, WALL_S)
        self.papers = papers
        self.peer = admissions.admit("peer", Role.OPERATOR, WALL_S)
        self.peer_id = self.peer.identity.node_id
        self.third = admissions.admit("third", Role.MEMBER, WALL_S)
        for each in (self.peer, self.third):
            papers.authority.learn(each.member)
        self.now = 0.0
        self.node = Node(
            record=record(papers, "me"),
            trust=NodeTrust(papers.identity, papers.authority),
            rng=random.Random(1),
            **options,
        )
        self.timers: list[tuple[float, ReconcileDue]] = []
        self.effects = self.tell(Start())
        self._version = 0
        self.peer_epoch = 1
        self._said: dict[NodeId, OwnerCopy] = {}

    def tell(self, event: Any) -> list[Effect]:
        return self.note(self.node.handle(event, self.now, WALL_S + self.now))

    def note(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, StartTimer) and isinstance(effect.timer, ReconcileDue):
                self.timers.append((self.now + effect.delay_s, effect.timer))
        return effects

    def run_to(self, now: float) -> list[Effect]:
        """Fire the reconciler's timers up to and including this second."""
        effects: list[Effect] = []
        while due := sorted((each for each in self.timers if each[0] <= now), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now = max(self.now, due[0][0])
            effects += self.tell(TimerFired(due[0][1]))
        self.now = now
        return effects

    def deploy(self, *manifests: Manifest, **options: Any) -> list[Effect]:
        deployment = Deployment(manifests[0].model, manifests, **options)
        return self.write(self.node.drafts.deployment(deployment, WALL_S + self.now))

    def undeploy(self, name: str, wall_s: float) -> list[Effect]:
        return self.write(self.node.drafts.undeployment(name, wall_s))

    def write(self, draft: Draft) -> list[Effect]:
        """Do as a driver does whose disk takes everything."""
        durable = [] if draft.persist is None else [draft.persist]
        return self.note([*durable, *self.node.commit(draft, self.now)])

    def peer_joins(self, **changes: Any) -> list[Effect]:
        self.tell(LinkUp(self.peer_id, Address("10.0.0.2", 8471)))
        return self.tell_record(record(self.peer, "peer", **changes))

    def tell_record(self, *records: MemberRecord, rumours: Iterable[Rumour] = ()) -> list[Effect]:
        raws = tuple(msgspec.Raw(CODEC.encode(each)) for each in records)
        return self.tell(NoteReceived(self.peer_id, CODEC.encode(Records(raws, tuple(rumours)))))

    def rumour(self, state: NodeState) -> list[Effect]:
        held = self.node.membership.members[self.peer_id]
        code = STATE_CODES.index(state)
        said = Rumour(pack_id(self.peer_id), *held.incarnation, code, b"")
        return self.tell_record(rumours=[said])

    def peer_says(
        self, *values: tuple[str, bytes | None], owner: NodeId | None = None
    ) -> list[Effect]:
        owner = owner or self.peer_id
        said = self._said.setdefault(owner, OwnerCopy(owner, self.peer_epoch))
        after = said.complete
        for key, value in values:
            said.write(key, value, 1e9)
        said.seal(self.peer.identity.sign)
        return self.peer_repeats(after, said)

    def peer_repeats(self, after: int = 0, said: OwnerCopy | None = None) -> list[Effect]:
        """Let the peer say what it has said after a version."""
        deltas = (said or self._said[self.peer_id]).deltas_since(self.peer_epoch, after)
        return self.tell(NoteReceived(self.peer_id, OWNER.encode(OwnerDeltas(tuple(deltas)))))

    def peer_hints(self, value: bytes | None) -> list[Effect]:
        """Let the peer say how busy it is."""
        self._version += 1
        hint = Hint(self.peer_id, 1, self._version, LOAD_KEY, value)
        return self.tell(NoteReceived(self.peer_id, OWNER.encode(OwnerHints((hint,)))))

    def peer_serves(self, what: Manifest, state: ReplicaState = READY, **options: Any) -> None:
        said = advertisement.advert(what, state, digest=what.digest, deployed=True, **options)
        self.peer_says((replica_key(what.model, what.version), advertisement.encode(said)))

    def ready_at(self, model: str = "digits", version: int = 1) -> list[str]:
        group = self.node.router.table.group(model, version)
        return [replica.node_name for replica in group.ready] if group else []


def models(effects: list[Effect]) -> list[Effect]:
    return [each for each in effects if isinstance(each, LoadModel | UnloadModel)]


def emitted(effects: list[Effect], kind: str) -> list[Emit]:
    return [each for each in effects if isinstance(each, Emit) and each.kind == kind]


LOAD = LoadModel("digits", 1, DIGITS.digest, ())


def test_a_founder_loads_what_it_deploys_and_serves_it_when_it_is_ready() -> None:
    stage = Stage()
    effects = stage.deploy(DIGITS)
    assert models(effects) == [LOAD]
    assert isinstance(effects[0], Persist)
    assert stage.node.own["digits", 1].state is ReplicaState.FETCHING
    assert stage.ready_at() == []
    stage.tell(ReplicaChanged(DIGITS, READY, slots=3, service_ms=1.5))
    assert stage.ready_at() == ["me"]
    (replica,) = stage.node.router.table.replicas("digits", 1)
    assert (replica.slots, replica.manifest) == (3, msgspec.structs.replace(DIGITS, files=()))
    assert stage.node.deployments() == [Deployment("digits", (DIGITS,))]
    assert "1 replicas" in repr(stage.node)


def test_a_model_that_is_offered_otherwise_is_not_loaded_again() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY))
    offer = Exposure("/count-cars")
    effects = stage.deploy(msgspec.structs.replace(DIGITS, exposure=offer))
    assert models(effects) == []
    assert [each for each in effects if isinstance(each, OfferModel)] == [OfferModel("digits", 1)]
    assert stage.node.own["digits", 1].manifest.exposure == offer
    (replica,) = stage.node.router.table.replicas("digits", 1)  # as the mesh is told
    assert replica.manifest is not None
    assert replica.manifest.exposure == offer
    assert stage.ready_at() == ["me"]
    assert stage.tell(ReplicaChanged(DIGITS, READY))  # said by who still has the old manifest
    assert stage.node.own["digits", 1].manifest.exposure == offer


def test_a_model_of_ones_own_folder_is_offered_as_its_configuration_says() -> None:
    stage = Stage()
    stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    effects = stage.deploy(msgspec.structs.replace(DIGITS, exposure=Exposure("/count-cars")))
    assert not [each for each in effects if isinstance(each, OfferModel)]


def test_what_is_undeployed_is_unloaded_and_then_forgotten() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY))
    effects = stage.undeploy("digits", WALL_S + 1.0)
    assert models(effects) == [UnloadModel("digits", 1)]
    with pytest.raises(NoReplica, match="me: unloading"):
        stage.node.router.resolve("digits", None)
    assert models(stage.tell(ReplicaGone("digits", 1))) == []
    assert stage.node.own == {}
    assert stage.node.router.table.models() == {}
    assert models(stage.tell(ReplicaGone("digits", 1))) == []  # once more, late: nothing


def test_undeploying_says_what_is_wrong_with_the_name() -> None:
    stage = Stage()
    stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    with pytest.raises(UsageError, match="own model folder"):
        stage.undeploy("digits", WALL_S)
    with pytest.raises(ModelNotFound, match="nothing is deployed under the name 'other'"):
        stage.undeploy("other", WALL_S)


def test_what_is_deployed_is_known_though_nobody_serves_it_and_unknown_again_afterwards() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS, on=(stage.peer_id,))
    with pytest.raises(NoReplica, match="is ready: it is placed on peer"):
        stage.node.router.resolve("digits", 1)
    stage.peer_serves(DIGITS)
    assert stage.node.router.resolve("digits", None) == 1
    stage.rumour(NodeState.DEAD)
    for version in (None, 1):
        with pytest.raises(NoReplica, match=r"no node can take it \(.*peer: it is dead"):
            stage.node.router.resolve("digits", version)
    assert stage.node.router.table.manifest("digits", 1) == DIGITS
    stage.undeploy("digits", WALL_S + 1.0)
    with pytest.raises(ModelNotFound):
        stage.node.router.resolve("digits", None)


def test_a_placement_on_many_nodes_is_told_in_part() -> None:
    stage = Stage()
    nobody = tuple(NodeId(str(number) * 32) for number in range(2, 8))
    stage.deploy(DIGITS, on=nobody)
    with pytest.raises(NoReplica, match="not a node of this mesh; and 3 more"):
        stage.node.router.resolve("digits", None)


def test_a_restarted_node_knows_what_is_deployed_before_it_acts_on_it() -> None:
    before = Stage()
    stored = [each.value for each in before.deploy(DIGITS) if isinstance(each, Persist)]
    again = Stage(stored_desired=stored[-1], seeds=(Address("10.0.0.2", 8471),))
    assert models(again.effects) == []
    with pytest.raises(NoReplica, match="it is placed on me"):
        again.node.router.resolve("digits", None)


def test_a_plain_member_may_not_change_what_is_served() -> None:
    stage = Stage(Role.MEMBER)
    with pytest.raises(Forbidden, match="a plain member and may not change the mesh"):
        stage.deploy(DIGITS)
    assert stage.node.deployments() == []


def test_a_model_that_could_not_be_described_is_not_deployed() -> None:
    stage = Stage()
    specs = tuple(TensorSpec("i" * 50, DataType.FP32, (-1, 4)) for _ in range(300))
    with pytest.raises(TooLarge, match="the inputs and outputs of 'digits'"):
        stage.deploy(msgspec.structs.replace(DIGITS, inputs=specs))
    assert stage.node.deployments() == []


def test_a_replica_that_cannot_be_described_is_told_to_have_failed_and_stops_nothing() -> None:
    """Nobody checks what lies in a node's own folder before it is loaded."""
    stage = Stage()
    specs = tuple(TensorSpec("i" * 50, DataType.FP32, (-1, 4)) for _ in range(300))
    wide = msgspec.structs.replace(DIGITS, inputs=specs)
    stage.tell(ReplicaChanged(wide, READY, deployed=False))
    (replica,) = stage.node.router.table.replicas("digits", 1)
    assert replica.state is ReplicaState.FAILED
    assert "take more than 16384 bytes" in replica.reason


def test_a_node_with_more_replicas_than_it_can_tell_of_says_so_and_goes_on() -> None:
    stage = Stage()
    for number in range(MAX_OWNER_KEYS):
        effects = stage.tell(ReplicaChanged(manifest(f"m{number}"), READY, deployed=False))
        assert emitted(effects, "replica.hidden") == []
    effects = stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    (hidden,) = emitted(effects, "replica.hidden")
    assert (hidden.subject, hidden.detail) == (
        "digits",
        "version 1: this node has 4096 keys already",
    )


def test_the_load_of_a_node_with_many_replicas_can_be_told() -> None:
    stage = Stage()
    many = tuple(ModelLoad("m" * 128, number, 1, 1, 1.0) for number in range(1000))
    stage.tell(LoadSampled(NodeLoad(0.5, 1000, many)))
    value = stage.node.owners.get(stage.node.me, LOAD_KEY)
    assert value is not None
    assert advertisement.decode_load(value).cpu == 0.5


# Time.


def test_a_failed_load_is_tried_again_when_its_timer_is_due_and_nothing_else_happens() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    for wait_s in (RETRY_FIRST_S, 2 * RETRY_FIRST_S):
        # A time at which adding and subtracting the wait does not give the same float again.
        stage.now += 0.1
        stage.tell(ReplicaChanged(DIGITS, ReplicaState.FAILED, "disk full"))
        assert models(stage.run_to(stage.now + wait_s - 0.01)) == []
        assert models(stage.run_to(stage.now + 0.01)) == [LOAD]


def test_a_timer_that_comes_a_rounding_early_counts_as_on_time() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, ReplicaState.FAILED, "disk full"))
    ((_, timer),) = stage.timers
    stage.now = timer.at - 1e-9
    assert models(stage.tell(TimerFired(timer))) == [LOAD]


def test_one_timer_serves_all_that_is_due_and_none_is_forgotten() -> None:
    stage = Stage()
    for number in range(3):
        model = manifest(f"m{number}")
        stage.deploy(model)
        stage.now = float(number)
        stage.tell(ReplicaChanged(model, ReplicaState.FAILED, "no"))
    assert len(stage.timers) == 1
    retried = models(stage.run_to(30.0))
    assert [each.model for each in retried if isinstance(each, LoadModel)] == ["m0", "m1", "m2"]
    assert stage.timers == []


def test_an_earlier_due_time_starts_a_timer_of_its_own_and_the_late_one_is_harmless() -> None:
    stage = Stage()
    late, soon = manifest("late"), manifest("soon")
    stage.deploy(late)
    for _ in range(2):  # due in 10 s
        stage.tell(ReplicaChanged(late, ReplicaState.FAILED, "no"))
    stage.deploy(soon)
    stage.tell(ReplicaChanged(soon, ReplicaState.FAILED, "no"))
    assert models(stage.run_to(6.0)) == [LoadModel("soon", 1, soon.digest, ())]
    assert models(stage.run_to(9.0)) == []
    assert models(stage.run_to(11.0)) == [LoadModel("late", 1, late.digest, ())]
    assert models(stage.run_to(400.0)) == []


def test_a_timer_for_what_is_no_longer_due_is_harmless() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, ReplicaState.FAILED, "no"))
    soon = manifest("soon")
    stage.deploy(soon)
    stage.now = -3.0  # so that this one is due first
    stage.tell(ReplicaChanged(soon, ReplicaState.FAILED, "no"))
    assert models(stage.run_to(2.0)) == [LoadModel("soon", 1, soon.digest, ())]
    stage.undeploy("digits", WALL_S + 2.0)
    stage.tell(ReplicaGone("digits", 1))
    stage.tell(ReplicaChanged(soon, ReplicaState.FAILED, "no"))
    assert models(stage.run_to(10.0)) == []
    assert models(stage.run_to(60.0)) == [LoadModel("soon", 1, soon.digest, ())]


def test_a_node_that_has_a_mesh_to_rejoin_waits_for_news_before_it_loads() -> None:
    before = Stage()
    *_, persisted = [each for each in before.deploy(DIGITS) if isinstance(each, Persist)]
    seeds = (Address("10.0.0.2", 8471),)
    rejoining = Stage(stored_desired=persisted.value, seeds=seeds)
    assert rejoining.node.has_friends
    assert models(rejoining.effects) == []
    assert models(rejoining.run_to(QUIET_START_S - 0.01)) == []
    assert models(rejoining.tell(LoadSampled(NodeLoad(0.0, 0)))) == []
    assert models(rejoining.run_to(QUIET_START_S)) == [LOAD]
    alone = Stage(stored_desired=persisted.value)
    assert not alone.node.has_friends
    assert models(alone.effects) == [LOAD]


# What peers say.


def test_a_peers_replica_is_routed_to_once_the_peer_is_a_member() -> None:
    """What it says may arrive before its record does."""
    stage = Stage()
    stage.peer_serves(DIGITS)
    assert stage.ready_at() == []
    asked = OwnerWants((Mark(stage.peer_id, 0, 0),))
    assert SendNote(stage.peer_id, OWNER.encode(asked)) in stage.peer_joins()
    stage.peer_repeats()
    assert stage.ready_at() == ["peer"]
    stage.peer_says((replica_key("digits", 1), None))
    assert stage.ready_at() == []
    assert stage.node.router.table.models() == {}


def test_replicas_of_nodes_that_nobody_admitted_are_none() -> None:
    stage = Stage()
    stage.peer_joins()
    said = advertisement.advert(DIGITS, READY, digest=DIGITS.digest)
    invented = NodeId("a" * 32)
    stage.peer_says((replica_key("digits", 1), advertisement.encode(said)), owner=invented)
    assert stage.node.owners.get(invented, replica_key("digits", 1)) is None
    assert stage.node.router.table.models() == {}


@pytest.mark.parametrize("state", [NodeState.DEAD, NodeState.SUSPECT])
def test_a_dead_peers_replicas_go_and_a_suspects_stay(state: NodeState) -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    effects = stage.rumour(state)
    assert emitted(effects, f"member.{state}")
    assert stage.ready_at() == (["peer"] if state is NodeState.SUSPECT else [])


def test_a_peer_that_comes_back_is_asked_again_what_it_serves() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    stage.rumour(NodeState.DEAD)
    stage.tell_record(record(stage.peer, "peer", counter=1))
    assert stage.ready_at() == []
    stage.peer_repeats()
    assert stage.ready_at() == ["peer"]


def test_a_gateway_keeps_links_to_the_replicas_of_others_in_a_mesh_without_links_between_all() -> (
    None
):
    for http in ("10.0.0.1:8080", ""):  # without a gateway its owner still asks it
        large = dataclasses.replace(LAN, full_mesh_size=1, link_degree=3)
        stage = Stage(config=NodeConfig(membership=large))
        stage.node.membership.update_record(0.0, http=http)
        stage.peer_joins()
        stage.peer_serves(DIGITS)
        asked_for = stage.node.membership._linking._asked_for
        assert asked_for == frozenset({stage.peer_id})
        stage.peer_says((replica_key("digits", 1), None))
        assert stage.node.membership._linking._asked_for == frozenset()


def test_of_many_replicas_of_a_sequence_model_it_keeps_links_to_those_that_all_gateways_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execution = Execution(sequences=SequenceBatching())
    many = [NodeId(f"{number:032x}") for number in range(200)]
    stage = Stage()
    monkeypatch.setattr(stage.node._directory, "holders", lambda *_: many)
    stage.peer_joins()
    stage.peer_serves(msgspec.structs.replace(DIGITS, execution=execution))
    assert stage.node._links.members == sequence_hosts("digits", 1, many)


def test_a_node_keeps_links_to_those_that_have_the_files_it_fetches() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    stage.deploy(DIGITS, replicas=2)
    assert stage.node.own["digits", 1].state is ReplicaState.FETCHING
    needs = stage.node._links._needed
    assert ("files", "digits", 1) in needs
    stage.tell(ReplicaChanged(DIGITS, READY))
    assert ("files", "digits", 1) not in needs


def test_a_peers_new_name_and_region_are_news_for_routing() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    stage.tell_record(record(stage.peer, "renamed", counter=1, region="us"))
    (replica,) = stage.node.router.table.replicas("digits", 1)
    assert (replica.node_name, replica.region) == ("renamed", "us")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        b"\xa1\xff",
        advertisement.encode(NodeLoad(0.0, 0)),
        advertisement.encode(advertisement.advert(manifest("other"), READY, digest=DIGITS.digest)),
        msgspec.msgpack.encode(
            ("ready", "", msgspec.structs.replace(DIGITS, files=()), "d", 2**40)
        ),
    ],
)
def test_a_peers_garbage_is_no_replica_and_takes_the_place_of_what_it_said(value: bytes) -> None:
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    stage.peer_says((replica_key("digits", 1), value), ("replica/x", value))
    stage.peer_hints(value)
    assert stage.node.router.table.models() == {}
    stage.peer_serves(DIGITS)
    assert stage.ready_at() == ["peer"]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"garbage", bytes(100), b"\x92\x14\x01"])
def test_a_garbage_note_changes_nothing(payload: bytes) -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS)
    before = repr(stage.node), stage.node.deployments()
    assert models(stage.tell(NoteReceived(stage.peer_id, payload))) == []
    assert (repr(stage.node), stage.node.deployments()) == before


def test_a_replica_for_which_the_table_has_no_room_is_not_counted_on() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.node.router.table._size = 65_536
    stage.peer_serves(DIGITS)
    assert stage.ready_at() == []
    effects = stage.deploy(DIGITS, replicas=2)
    # Not from the peer as one that serves it, which routing cannot see.
    assert models(effects) == [dataclasses.replace(LOAD, companions=(stage.peer_id,))]


def in_system(stage: Stage) -> int:
    return stage.node.router.book.load(stage.peer_id, "digits", 1).in_system


def test_a_load_is_believed_when_it_is_said_and_not_again_when_the_peer_is_suspected() -> None:
    """Else an old word by gossip would overwrite what an answer has just told."""
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(DIGITS)
    said = NodeLoad(0.5, 1000, (ModelLoad("digits", 1, 5, 2, 3.0),))
    stage.peer_hints(advertisement.encode(said))
    assert in_system(stage) == 5
    stage.now = 10.0
    stage.node.router.load_reported(stage.peer_id, "digits", 1, LoadReport(1, 2, 3.0), 10.0)
    stage.rumour(NodeState.SUSPECT)
    stage.tell_record(record(stage.peer, "renamed", counter=1))
    assert in_system(stage) == 1
    stage.peer_hints(None)
    assert in_system(stage) == 1


def test_a_nodes_own_load_counts_at_its_own_gateway_whoever_asks_it() -> None:
    """Other gateways may keep its replica busy while its own sends it nothing."""
    stage = Stage()
    stage.tell(ReplicaChanged(DIGITS, READY, deployed=False))
    stage.now = 10.0
    stage.tell(LoadSampled(NodeLoad(0.5, 1000, (ModelLoad("digits", 1, 5, 2, 3.0),))))
    load = stage.node.router.book.load(stage.node.me, "digits", 1)
    assert (load.in_system, load.reported_at) == (5, 10.0)


def test_what_a_node_says_of_itself_follows_its_record_into_a_later_epoch() -> None:
    """Its disk was restored: the mesh remembers a life of it that it does not, and it outbids that."""
    stage = Stage()
    stage.peer_joins()
    stage.node.owners.set("replica/x/1", b"mine", 0.0)
    stage.tell_record(record(stage.papers, "me", epoch=6, boot=9))
    assert stage.node.membership.record.epoch == 6
    asked = OwnerWants((Mark(stage.node.me, 0, 0),))
    effects = stage.tell(NoteReceived(stage.peer_id, OWNER.encode(asked)))
    [payload] = [each.payload for each in effects if isinstance(each, SendNote)]
    said = OWNER.decode(payload)
    assert isinstance(said, OwnerDeltas)
    [delta] = said.deltas
    assert delta.epoch == 6
    assert [entry.value for entry in delta.entries] == [b"mine"]


def test_a_member_that_membership_forgets_is_forgotten_by_routing() -> None:
    stage = Stage(config=NodeConfig(membership=dataclasses.replace(LAN, retention_s=100.0)))
    stage.peer_joins()
    stage.tell_record(record(stage.third, "third"))  # a node that is alone forgets nobody
    stage.peer_serves(DIGITS)
    stage.node.router.rtt_measured(stage.peer_id, 0.1)
    stage.rumour(NodeState.DEAD)
    gone = stage.node.router.table._gone
    assert stage.peer_id in gone
    stage.now = 99.0
    stage.tell(TimerFired(SyncRound()))
    assert stage.peer_id in gone
    stage.now = 101.0
    stage.tell(TimerFired(SyncRound()))
    assert stage.peer_id not in stage.node.membership.members
    assert stage.peer_id not in gone
    assert stage.node.router.book.path(stage.peer_id).rtt_ms is None
    assert repr(stage.node._directory).endswith(": 0 versions are served>")
    stage.tell_record(record(stage.peer, "peer", epoch=2))
    stage.peer_epoch = 2
    stage._said.clear()
    stage.peer_serves(DIGITS)
    assert stage.ready_at() == ["peer"]
    assert repr(stage.node._directory).endswith(": 1 versions are served>")


# What peers have.


def model_placed_at(name: str) -> Manifest:
    """Return a model whose one replica belongs here (`me`) or with the peer once it has joined."""
    stage = Stage()
    stage.peer_joins()
    place = stage.node.me if name == "me" else stage.peer_id
    candidates = (manifest(f"m{number}") for number in range(100))
    return next(
        each
        for each in candidates
        if stage.node.placement(Deployment(each.model, (each,))).nodes == (place,)
    )


def test_files_come_from_those_that_serve_them_then_from_whoever_deployed_them() -> None:
    model = model_placed_at("me")
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(model, ReplicaState.LOADING)
    assert models(stage.deploy(model)) == [
        LoadModel(model.model, 1, model.digest, (stage.peer_id,))
    ]
    stage = Stage()
    stage.peer_joins()
    stage.peer_serves(model, ReplicaState.FETCHING)  # has nothing yet
    assert models(stage.deploy(model)) == [LoadModel(model.model, 1, model.digest, ())]


def test_a_replica_is_handed_over_to_a_node_with_the_right_files_only() -> None:
    stage = Stage()
    model = model_placed_at("peer")
    stage.deploy(model)
    stage.tell(ReplicaChanged(model, READY))
    stage.peer_joins()
    stage.peer_serves(manifest(model.model, 1, "other files"))
    assert models(stage.run_to(2 * HANDOVER_S)) == []
    stage.peer_serves(model)
    assert models(stage.run_to(stage.now + HANDOVER_S - 0.1)) == []
    assert models(stage.run_to(stage.now + 0.1)) == [UnloadModel(model.model, 1)]
    stage.tell(ReplicaGone(model.model, 1))
    assert stage.ready_at(model.model) == ["peer"]


def test_a_change_of_files_during_a_load_is_seen_to_when_the_load_is_over() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    edited = manifest(content="edited.onnx")
    stage.now = 1.0
    assert models(stage.deploy(edited)) == []
    assert models(stage.tell(ReplicaChanged(DIGITS, ReplicaState.LOADING))) == []
    assert models(stage.tell(ReplicaChanged(DIGITS, READY))) == []
    assert models(stage.run_to(1.0 + HANDOVER_S)) == [LoadModel("digits", 1, edited.digest, ())]


def test_a_replica_serves_its_old_files_until_the_new_ones_are_ready() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY, slots=3))
    edited = manifest(content="edited.onnx")
    stage.now = 1.0
    stage.deploy(edited)
    stage.run_to(1.0 + HANDOVER_S)
    own = stage.node.own["digits", 1]
    assert (own.state, own.digest, own.to_load) == (READY, DIGITS.digest, edited)
    assert "fetching" in own.reason
    stage.tell(ReplicaChanged(edited, ReplicaState.LOADING))
    assert stage.ready_at() == ["me"]
    assert stage.node.own["digits", 1].slots == 3
    stage.tell(ReplicaChanged(edited, READY, slots=5))
    own = stage.node.own["digits", 1]
    assert (own.state, own.digest, own.slots, own.coming) == (READY, edited.digest, 5, None)


def test_files_that_fail_to_load_leave_the_old_ones_serving_and_are_tried_again() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY))
    edited = manifest(content="edited.onnx")
    stage.now = 1.0
    stage.deploy(edited)
    stage.run_to(1.0 + HANDOVER_S)
    assert models(stage.tell(ReplicaChanged(edited, ReplicaState.FAILED, "damaged"))) == []
    own = stage.node.own["digits", 1]
    assert (own.state, own.digest) == (READY, DIGITS.digest)
    assert own.reason.endswith("failed: damaged")
    assert stage.ready_at() == ["me"]
    assert models(stage.run_to(stage.now + RETRY_FIRST_S + HANDOVER_S + 0.1)) == [
        LoadModel("digits", 1, edited.digest, ())
    ]


def test_old_files_that_had_to_go_first_are_told_to_be_gone() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY))
    edited = manifest(content="edited.onnx")
    stage.now = 1.0
    stage.deploy(edited)
    stage.run_to(1.0 + HANDOVER_S)
    stage.tell(ReplicaChanged(edited, ReplicaState.LOADING, replaces=False))
    assert stage.ready_at() == []
    assert stage.node.own["digits", 1].digest == edited.digest


def test_a_model_withdrawn_during_its_load_is_unloaded_when_the_load_is_over() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    assert models(stage.undeploy("digits", WALL_S + 1.0)) == []
    assert models(stage.tell(ReplicaChanged(DIGITS, READY))) == [UnloadModel("digits", 1)]


def test_a_model_wanted_again_while_it_unloads_is_loaded_when_it_is_gone() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY))
    stage.undeploy("digits", WALL_S + 1.0)
    stage.now = 2.0
    assert models(stage.deploy(DIGITS)) == []
    assert models(stage.tell(ReplicaGone("digits", 1))) == [LOAD]


def test_a_replicas_profile_is_what_routing_believes_before_the_first_request() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.tell(ReplicaChanged(DIGITS, READY, service_ms=9.0, profile=((1, 2.5), (8, 4.0))))
    [candidate] = stage.node.router.candidates("digits", 1).ready
    assert candidate.load.service_ms == 2.5


def test_nodes_serve_the_variants_that_suit_them_and_all_count_as_one() -> None:
    """This node, of one core, takes int8; the peer serves fp32; requests go to both."""
    stage = Stage()
    stage.peer_joins()
    full = msgspec.structs.replace(DIGITS, variant="fp32")
    small = msgspec.structs.replace(manifest(content="small"), variant="int8")
    effects = stage.deploy(full, small, replicas=2)
    [load] = [each for each in models(effects) if isinstance(each, LoadModel)]
    assert load.digest == small.digest
    stage.tell(ReplicaChanged(small, READY))
    stage.peer_serves(full)
    assert sorted(stage.ready_at()) == ["me", "peer"]
    labels = [each.label for each in stage.node.router.table.replicas("digits", 1)]
    assert [label.partition("variant=")[2] for label in sorted(labels)] == ["int8", "fp32"]
