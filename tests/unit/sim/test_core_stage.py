from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.sim import faults
from meshnode.sim.core_releases import files_bytes, manifest_of
from meshnode.sim.core_stage import CoreStage
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.scenario.model import Device, Model, Nodes, Path, Place, Scenario, ServiceTime
from meshnode.sim.stage import Call, Outcome

if TYPE_CHECKING:
    from meshnode.sim.faults import Fault

MODEL = Model(name="digits", service=ServiceTime(distribution="constant", mean_ms=20), load_s=0.1)
TWO_REGIONS = (
    Nodes(region="eu-west-1", count=2, name="eu"),
    Nodes(region="us-east-1", count=2, name="us"),
)


def scenario(**changes: Any) -> Scenario:
    regions = {"eu-west-1": Place(), "us-east-1": Place()}
    parts = {"name": "test", "regions": regions, "nodes": TWO_REGIONS, "models": (MODEL,)}
    return Scenario(**(parts | changes))


def started(seed: int = 1, **changes: Any) -> CoreStage:
    stage = CoreStage(scenario(**changes), seed)
    stage.start(lambda _text: None)
    return stage


class Calls:
    """Sends calls to a stage and keeps what became of them."""

    def __init__(self, stage: CoreStage) -> None:
        self.stage = stage
        self.outcomes: dict[int, Outcome] = {}
        self._count = 0

    def send(self, gateway: str = "eu-1", others: tuple[str, ...] = (), **changes: Any) -> int:
        number = self._count
        self._count += 1
        made: dict[str, Any] = {
            "number": number, "made_at_s": 0.0, "gateway": gateway, "model": "digits",
            "work_s": 0.02, "timeout_s": 10.0, "deadline_s": 10.0, "others": others,
        }  # fmt: skip
        self.stage.send(Call(**(made | changes)), self._done)
        return number

    def every(self, seconds: float, for_s: float, gateways: tuple[str, ...] = ("eu-1",)) -> None:
        for step in range(int(for_s / seconds)):
            gateway = gateways[step % len(gateways)]
            self.stage.at(self.stage.now() + step * seconds, self.send, gateway)

    def _done(self, call: Call, outcome: Outcome) -> None:
        assert call.number not in self.outcomes
        self.outcomes[call.number] = outcome

    def result(self, number: int, within_s: float = 20.0) -> Outcome:
        self.stage.run_to(self.stage.now() + within_s)
        return self.outcomes[number]

    @property
    def codes(self) -> set[str]:
        return {outcome.code for outcome in self.outcomes.values()}


def pass_s(stage: CoreStage, seconds: float) -> None:
    stage.run_to(stage.now() + seconds)


def suffer(stage: CoreStage, fault: Fault, seconds: float) -> None:
    stage.apply(fault)
    pass_s(stage, seconds)


# Playing.


def test_a_start_ends_with_all_nodes_acquainted_and_the_models_ready() -> None:
    told: list[str] = []
    stage = CoreStage(scenario(), 1)
    stage.start(told.append)
    sample = stage.sample()
    assert told == ["4 nodes find each other", "digits is loaded"]
    assert [*sample.nodes] == ["eu-1", "eu-2", "us-1", "us-2"]
    assert {
        (each.state, each.alive, each.serving, each.slots) for each in sample.nodes.values()
    } == {("up", 4, 1, 2)}


def test_a_call_takes_its_work_on_the_device_that_serves_it() -> None:
    fast = Device(speed=4.0)
    nodes = (Nodes(region="eu-west-1", device="fast", name="eu-1"),)
    calls = Calls(started(nodes=nodes, devices={"fast": fast}))
    outcome = calls.result(calls.send(work_s=0.8))
    assert outcome.code == "ok"
    assert outcome.took_s == pytest.approx(0.2 + 0.0005, abs=1e-6)
    assert (outcome.served_by, outcome.attempts, outcome.version) == ("eu-1", 1, 1)


def test_the_same_seed_gives_the_same_hash_and_another_seed_another() -> None:
    def digest(seed: int) -> str:
        stage = started(seed)
        Calls(stage).every(0.05, 3.0, ("eu-1", "us-2"))
        suffer(stage, faults.Crash(nodes=("us-1",), torn=True), 5.0)
        stage.undo(faults.Crash(nodes=("us-1",), torn=True))
        pass_s(stage, 5.0)
        return stage.trace.digest()

    assert digest(7) == digest(7) != digest(8)


def test_bodies_take_their_time_where_the_bandwidth_is_limited() -> None:
    nodes = (
        Nodes(region="eu-west-1", name="eu-1", device="raspberry-pi"),
        Nodes(region="us-east-1", name="us-1"),
    )
    models = (Model(name="digits", on=("us-1",), load_s=0.1),)
    narrow = Path(between=("eu-west-1", "us-east-1"), bandwidth_mbps=8)
    calls = Calls(started(nodes=nodes, models=models, paths=(narrow,)))
    small = calls.result(calls.send(request_bytes=1000, response_bytes=1000))
    large = calls.result(calls.send(request_bytes=1_000_000, response_bytes=500_000))
    assert small.code == large.code == "ok"
    assert large.took_s - small.took_s == pytest.approx(1.5, abs=0.05)


def test_busy_is_the_share_of_slots_that_worked_since_the_last_sample() -> None:
    nodes = (Nodes(region="eu-west-1", name="eu-1"),)
    stage = started(nodes=nodes)
    stage.sample()
    Calls(stage).send(work_s=1.0)  # one of two slots, for one second of two
    pass_s(stage, 2.0)
    assert stage.sample().nodes["eu-1"].busy == pytest.approx(0.25, abs=0.01)
    pass_s(stage, 1.0)
    assert stage.sample().nodes["eu-1"].busy == 0.0


def test_settling_waits_for_open_calls_and_for_agreement() -> None:
    stage = started()
    calls = Calls(stage)
    calls.send(work_s=3.0)
    suffer(stage, faults.Crash(nodes=("us-2",)), 0.1)
    stage.settle(60.0)
    assert calls.codes == {"ok"}
    assert {stage.sample().nodes[name].alive for name in ("eu-1", "eu-2", "us-1")} == {3}
    stage.close()


def test_settling_says_who_disagrees_and_names_the_seed() -> None:
    stage = started()
    suffer(stage, faults.Partition(nodes=("us-*",)), 40.0)
    with pytest.raises(NotReachedError, match=r"not all nodes agree.*seed 1.*sees other nodes"):
        stage.settle(5.0)


def test_the_size_of_a_models_files_follows_from_its_memory() -> None:
    from meshnode.owner_limits import load_estimate_bytes

    for memory_gb in (0.1, 1.0, 10.0):
        need = load_estimate_bytes(files_bytes(memory_gb))
        assert need == pytest.approx(memory_gb * 1024**3, rel=0.001)
    assert manifest_of(MODEL, 1).digest != manifest_of(MODEL, 2).digest


def test_a_model_is_placed_only_where_its_memory_fits() -> None:
    nodes = (
        Nodes(region="eu-west-1", device="small", name="small"),
        Nodes(region="eu-west-1", device="large", name="large"),
    )
    devices = {"small": Device(memory_gb=1.0), "large": Device(memory_gb=8.0)}
    models = (Model(name="digits", memory_gb=4.0, load_s=0.1, replicas=2),)
    stage = started(nodes=nodes, devices=devices, models=models)
    assert stage.mesh.serving("digits") == ["large"]


# Verbs of nodes.


def test_a_crashed_node_is_down_and_boots_again_when_that_is_undone() -> None:
    stage = started()
    crash = faults.Crash(nodes=("us-1",))
    suffer(stage, crash, 20.0)
    assert stage.sample().nodes["us-1"].state == "down"
    assert stage.sample().nodes["eu-1"].alive == 3
    stage.undo(crash)
    pass_s(stage, 10.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}


def test_a_node_stays_down_while_another_fault_keeps_it_down() -> None:
    stage = started()
    crash, region = faults.Crash(nodes=("us-1",)), faults.RegionDown(region="us-east-1")
    stage.apply(crash)
    suffer(stage, region, 5.0)
    assert [stage.sample().nodes[name].state for name in ("us-1", "us-2")] == ["off", "off"]
    stage.undo(region)
    pass_s(stage, 5.0)
    assert [stage.sample().nodes[name].state for name in ("us-1", "us-2")] == ["down", "up"]
    stage.undo(crash)
    pass_s(stage, 10.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}


def test_a_restart_by_hand_overrules_what_keeps_a_node_down() -> None:
    stage = started()
    crash = faults.Crash(nodes=("us-1",), for_s=10.0)
    suffer(stage, crash, 1.0)
    suffer(stage, faults.Restart(nodes=("us-1",)), 1.0)
    assert stage.sample().nodes["us-1"].state == "up"
    boot = stage.mesh.daemon("us-1")
    stage.undo(crash)
    pass_s(stage, 1.0)
    assert stage.mesh.daemon("us-1") is boot


def test_a_torn_disk_does_not_keep_a_node_from_coming_back() -> None:
    torn = set()
    for seed in range(6):
        stage = started(seed)
        pass_s(stage, 5.0)
        crash = faults.Crash(nodes=("us-1",), torn=True)
        suffer(stage, crash, 2.0)
        torn |= {each.detail.split()[1] for each in stage.trace.find("disk.torn", "us-1")}
        stage.undo(crash)
        stage.settle(60.0)
        assert stage.sample().nodes["us-1"].alive == 4
    assert torn == {"is"}


def test_a_frozen_node_is_held_for_dead_and_runs_on_when_thawed() -> None:
    stage = started()
    freeze = faults.Freeze(nodes=("us-1",))
    suffer(stage, freeze, 30.0)
    sample = stage.sample()
    assert sample.nodes["us-1"].state == "frozen"
    assert sample.nodes["eu-1"].alive == 3
    stage.undo(freeze)
    stage.settle(60.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}
    assert stage.mesh.node("us-1").membership.record.epoch == 1  # the same process


def test_a_thaw_ends_all_that_freezes() -> None:
    stage = started()
    stage.apply(faults.Freeze(nodes=("us-1",)))
    stage.apply(faults.Sleep(nodes=("us-1",)))
    suffer(stage, faults.Thaw(nodes=("us-1",)), 1.0)
    assert stage.sample().nodes["us-1"].state == "up"


def test_a_node_stays_frozen_after_its_machine_woke_up_while_it_is_stopped_too() -> None:
    stage = started()
    freeze, sleep = faults.Freeze(nodes=("us-1",)), faults.Sleep(nodes=("us-1",))
    stage.apply(freeze)
    suffer(stage, sleep, 2.0)
    assert not stage.world.is_reachable("us-1")
    stage.undo(sleep)
    assert stage.world.is_reachable("us-1")
    assert stage.world.is_frozen("us-1")
    stage.undo(freeze)
    assert not stage.world.is_frozen("us-1")


def test_a_machine_that_slept_blames_nobody_and_all_are_together_again_within_seconds() -> None:
    """Its clock counted on, its timers did not; the others had held it for dead."""
    stage = started()
    sleep = faults.Sleep(nodes=("us-1",))
    before = stage.world.clock_of("us-1").now()
    suffer(stage, sleep, 60.0)
    assert "us-1" in {each.subject for each in stage.trace.find("member.dead")}
    stage.undo(sleep)
    assert stage.world.clock_of("us-1").now() == pytest.approx(before + 60.0)
    since = len([*stage.trace.find("member.dead")])
    pass_s(stage, 12.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}
    assert len([*stage.trace.find("member.dead")]) == since


def test_a_slow_node_computes_slower_by_the_product_of_all_factors() -> None:
    nodes = (Nodes(region="eu-west-1", name="eu-1"),)
    stage = started(nodes=nodes)
    calls = Calls(stage)
    slow, slower = (
        faults.SlowDown(nodes=("eu-1",), factor=2.0),
        faults.SlowDown(nodes=("eu-1",), factor=5.0),
    )
    stage.apply(slow)
    stage.apply(slower)
    assert calls.result(calls.send(work_s=0.1)).took_s == pytest.approx(1.0, abs=0.01)
    stage.undo(slow)
    assert calls.result(calls.send(work_s=0.1)).took_s == pytest.approx(0.5, abs=0.01)
    stage.undo(slower)
    assert calls.result(calls.send(work_s=0.1)).took_s == pytest.approx(0.1, abs=0.001)


def test_a_node_whose_loop_is_overwhelmed_falls_behind() -> None:
    stage = started()
    suffer(stage, faults.SlowDown(nodes=("us-1",), factor=10_000.0), 40.0)
    suspected = {each.subject for each in stage.trace.find("member.suspect")}
    assert "us-1" in suspected


def test_a_node_that_leaves_is_gone_at_once_and_starts_again() -> None:
    stage = started()
    leave = faults.Leave(nodes=("us-1",))
    suffer(stage, leave, 3.0)
    sample = stage.sample()
    assert sample.nodes["us-1"].state == "left"
    assert sample.nodes["eu-1"].alive == 3
    assert not [*stage.trace.find("member.suspect")]
    stage.undo(leave)
    pass_s(stage, 10.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}


def test_a_flapping_node_goes_up_and_down_until_that_is_undone() -> None:
    stage = started()
    flap = faults.Flap(nodes=("us-1",), up_s=4.0, down_s=2.0)
    stage.apply(flap)
    pass_s(stage, 0.5)
    states = []
    for _ in range(12):
        states.append(stage.sample().nodes["us-1"].state)
        pass_s(stage, 1.0)
    assert states == [*["down"] * 2, *["up"] * 4, *["down"] * 2, *["up"] * 4]
    stage.undo(flap)
    pass_s(stage, 20.0)
    boot = stage.mesh.daemon("us-1")
    pass_s(stage, 20.0)
    assert stage.mesh.daemon("us-1") is boot


def test_clocks_that_run_wrong_or_are_set_do_not_hurt_the_mesh() -> None:
    stage = started()
    skew = faults.ClockSkew(nodes=("us-1",), rate=0.1)
    jump = faults.ClockJump(nodes=("us-2",), by_s=-86_400.0)
    stage.apply(skew)
    stage.apply(jump)
    began = stage.now()
    calls = Calls(stage)
    calls.every(0.1, 30.0, ("us-1", "us-2", "eu-1"))
    pass_s(stage, 30.0)
    clock = stage.world.clock_of("us-1")
    assert clock.now() - began == pytest.approx(33.0)
    assert stage.world.wall_s() - stage.world.clock_of("us-2").wall_s() == pytest.approx(86_400.0)
    stage.undo(skew)
    stage.undo(jump)
    assert clock.rate == 1.0
    assert stage.world.wall_s() == pytest.approx(stage.world.clock_of("us-2").wall_s())
    stage.settle(30.0)
    assert calls.codes == {"ok"}
    assert max(each.took_s for each in calls.outcomes.values()) < 1.0
    assert not [*stage.trace.find("member.dead")]


def test_a_full_disk_refuses_own_changes_and_keeps_the_rest_for_later() -> None:
    stage = started()
    full = faults.DiskFull(nodes=("eu-1",))
    stage.apply(full)
    before = dict(stage.world.disk_of("eu-1"))
    suffer(stage, faults.Release(model="digits"), 10.0)  # written by another node
    assert stage.world.disk_of("eu-1") == before
    assert stage.mesh.serving("digits", 2)
    stage.undo(full)
    pass_s(stage, 6.0)
    assert stage.world.disk_of("eu-1")["desired"] != before["desired"]


def test_a_node_with_a_full_disk_does_not_start_until_there_is_room() -> None:
    stage = started()
    full, crash = faults.DiskFull(nodes=("us-1",)), faults.Crash(nodes=("us-1",))
    stage.apply(full)
    suffer(stage, crash, 1.0)
    stage.undo(crash)
    pass_s(stage, 12.0)
    assert stage.sample().nodes["us-1"].state == "down"
    assert len([*stage.trace.find("node.start_failed", "us-1")]) == 3
    stage.undo(full)
    pass_s(stage, 6.0)
    assert stage.sample().nodes["us-1"].state == "up"


def test_a_lent_laptop_serves_nobody_while_it_runs_on_its_battery() -> None:
    nodes = (*TWO_REGIONS, Nodes(region="eu-west-1", device="book", name="book"))
    stage = started(nodes=nodes, devices={"book": Device(battery=True)})
    drain = faults.Drain(nodes=("book",))
    suffer(stage, drain, 3.0)
    assert stage.mesh.node("book").paused == "on battery"
    calls = Calls(stage)
    calls.every(0.05, 5.0)
    pass_s(stage, 8.0)
    assert calls.codes == {"ok"}
    assert "book" not in {each.served_by for each in calls.outcomes.values()}
    stage.undo(drain)
    pass_s(stage, 10.0)
    assert stage.mesh.node("book").paused == ""


# Verbs of serving.


def believed(stage: CoreStage, node: str) -> int:
    """Return what eu-1's routing has last been told of a node's requests."""
    load = stage.mesh.node("eu-1").router.book.load(stage.world.id_of(node), "digits", 1)
    return load.in_system


def test_a_lying_node_reports_a_share_of_its_load() -> None:
    models = (Model(name="digits", on=("us-1",), load_s=0.1),)
    stage = started(models=models)
    calls = Calls(stage)
    for _ in range(6):
        calls.send("us-2", work_s=30.0, timeout_s=60.0)
    pass_s(stage, 3.0)
    assert believed(stage, "us-1") == 6
    stage.apply(faults.LyingLoad(nodes=("us-1",), share=0.0))
    pass_s(stage, 3.0)
    assert believed(stage, "us-1") == 0
    assert stage.sample().nodes["us-1"].in_system == 6
    stage.undo(faults.LyingLoad(nodes=("us-1",), share=0.0))
    pass_s(stage, 3.0)
    assert believed(stage, "us-1") == 6


def test_stale_load_is_what_was_true_then() -> None:
    models = (Model(name="digits", on=("us-1",), load_s=0.1),)
    stage = started(models=models)
    stale = faults.StaleLoad(nodes=("us-1",), age_s=5.0)
    suffer(stage, stale, 6.0)
    calls = Calls(stage)
    for _ in range(4):
        calls.send("us-2", work_s=60.0, timeout_s=120.0)
    pass_s(stage, 3.0)
    assert believed(stage, "us-1") == 0
    pass_s(stage, 5.0)
    assert believed(stage, "us-1") == 4


def test_models_fail_the_share_of_requests_that_they_are_told_to() -> None:
    nodes = (Nodes(region="eu-west-1", name="eu-1"),)
    stage = started(nodes=nodes)
    fail = faults.FailRequests(nodes=("eu-1",), share=0.5)
    stage.apply(fail)
    calls = Calls(stage)
    calls.every(0.05, 10.0)
    pass_s(stage, 12.0)
    failed = [each for each in calls.outcomes.values() if each.code == "inference_failed"]
    assert 60 <= len(failed) <= 140
    assert failed[0].failed_on[0] == ("eu-1", "inference_failed")
    stage.undo(fail)
    assert calls.result(calls.send()).code == "ok"


def test_a_release_brings_the_next_version_without_a_failed_call() -> None:
    stage = started()
    calls = Calls(stage)
    calls.every(0.05, 15.0, ("eu-1", "us-1"))
    pass_s(stage, 2.0)
    suffer(stage, faults.Release(model="digits"), 18.0)
    assert calls.codes == {"ok"}
    assert {each.version for each in calls.outcomes.values()} == {1, 2}
    assert stage.mesh.serving("digits", 1) == []


# Verbs of the network.


def test_a_partition_parts_the_views_and_heals() -> None:
    stage = started()
    partition = faults.Partition(nodes=("us-*",))
    suffer(stage, partition, 40.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {2}
    stage.undo(partition)
    stage.settle(120.0)
    assert {each.alive for each in stage.sample().nodes.values()} == {4}


def test_what_was_held_arrives_late_when_it_is_released() -> None:
    models = (Model(name="digits", on=("us-1",), load_s=0.1),)
    stage = started(models=models)
    calls = Calls(stage)
    hold = faults.Hold(nodes=("us-*",), others=("eu-*",))
    stage.apply(hold)
    number = calls.send()
    pass_s(stage, 0.3)
    assert number not in calls.outcomes
    stage.undo(hold)
    outcome = calls.result(number)
    assert outcome.code == "ok"
    assert 0.3 < outcome.took_s < 1.0


def test_a_longer_way_is_measured_anew_and_avoided() -> None:
    models = (Model(name="digits", on=("us-1", "us-2"), load_s=0.1),)
    stage = started(models=models)
    calls = Calls(stage)
    latency = faults.Latency(nodes=("us-1",), add_ms=400)
    suffer(stage, latency, 15.0)
    calls.every(0.1, 10.0)
    pass_s(stage, 15.0)
    served = [each.served_by for each in calls.outcomes.values()]
    assert served.count("us-2") > 0.9 * len(served)


def test_gossip_that_is_delayed_does_not_delay_requests() -> None:
    models = (Model(name="digits", on=("us-1",), load_s=0.1),)
    stage = started(models=models)
    calls = Calls(stage)
    plain = calls.result(calls.send()).took_s
    stage.apply(faults.GossipDelay(nodes=("all",), add_ms=400))
    delayed = calls.result(calls.send()).took_s
    assert delayed == pytest.approx(plain, abs=0.02)


@pytest.mark.parametrize(
    "fault",
    [
        faults.Loss(nodes=("all",), share=0.2),
        faults.Duplication(nodes=("all",), share=0.5),
        faults.Reordering(nodes=("all",), share=0.5, by_ms=100),
        faults.Bandwidth(nodes=("all",), mbps=1.0),
        faults.Partition(nodes=("us-*",), datagrams_only=True),
        faults.Partition(nodes=("us-1",), others=("eu-1",)),
    ],
    ids=lambda fault: fault.verb,
)
def test_a_bad_network_costs_no_node_and_no_call(fault: Fault) -> None:
    stage = started()
    stage.apply(fault)
    calls = Calls(stage)
    calls.every(0.2, 20.0, ("eu-1", "us-2"))
    pass_s(stage, 25.0)
    stage.undo(fault)
    stage.settle(60.0)
    assert calls.codes == {"ok"}
    assert not [*stage.trace.find("member.dead")]


def test_depth_a_can_do_every_verb() -> None:
    stage = CoreStage(scenario(), 1)
    crash = faults.Crash(nodes=("us-1",))
    assert stage.unsupported(crash) is None


def test_a_node_behind_a_router_serves_through_the_links_that_it_dialled() -> None:
    nodes = (
        Nodes(region="eu-west-1", name="home", nat=True),
        Nodes(region="us-east-1", name="cloud"),
    )
    models = (Model(name="digits", on=("home",), load_s=0.1),)
    calls = Calls(started(nodes=nodes, models=models))
    outcome = calls.result(calls.send("cloud"))
    assert (outcome.code, outcome.served_by) == ("ok", "home")


# Clients.


def test_a_client_asks_the_next_gateway_when_the_first_refuses() -> None:
    stage = started()
    suffer(stage, faults.Crash(nodes=("eu-1",)), 15.0)
    calls = Calls(stage)
    outcome = calls.result(calls.send("eu-1", others=("eu-2",)))
    assert (outcome.code, outcome.gateways) == ("ok", 2)
    assert outcome.took_s < 0.1
    assert calls.result(calls.send("eu-1")).code == "gateway_lost"


def test_a_client_of_a_gateway_that_crashes_gets_its_answer_elsewhere() -> None:
    slow = ServiceTime(distribution="constant", mean_ms=2000)
    stage = started(models=(Model(name="digits", service=slow, load_s=0.1),))
    calls = Calls(stage)
    number = calls.send("eu-1", others=("us-1",), work_s=2.0, timeout_s=30.0)
    stage.at(stage.now() + 1.0, stage.apply, faults.Crash(nodes=("eu-1",)))
    outcome = calls.result(number)
    assert (outcome.code, outcome.gateways) == ("ok", 2)
    assert outcome.took_s == pytest.approx(3.2, abs=0.4)
    assert outcome.attempts == 2


def test_a_machine_that_is_off_costs_the_time_for_connecting() -> None:
    stage = started()
    suffer(stage, faults.PowerOff(nodes=("eu-1",)), 40.0)
    calls = Calls(stage)
    outcome = calls.result(calls.send("eu-1", others=("eu-2",), timeout_s=30.0))
    assert (outcome.code, outcome.gateways) == ("ok", 2)
    assert outcome.took_s == pytest.approx(5.0, abs=0.1)
    lost = calls.result(calls.send("eu-1", timeout_s=4.0))
    assert lost.code == "client_timeout"


def test_a_client_leaves_a_gateway_that_shows_no_life() -> None:
    stage = started()
    calls = Calls(stage)
    stage.apply(faults.Freeze(nodes=("eu-1",)))
    two = calls.send("eu-1", others=("us-1",), timeout_s=30.0)
    one = calls.send("eu-1", timeout_s=3.0)
    pass_s(stage, 10.0)
    assert (calls.outcomes[two].code, calls.outcomes[two].gateways) == ("ok", 2)
    assert calls.outcomes[two].took_s == pytest.approx(6.3, abs=0.4)
    assert calls.outcomes[one].code == "client_timeout"
    assert calls.outcomes[one].took_s == pytest.approx(3.25)
    stage.undo(faults.Freeze(nodes=("eu-1",)))
    stage.settle(60.0)  # nothing is left in flight for those who did not wait


def test_the_time_limit_holds_whatever_the_gateway_says() -> None:
    calls = Calls(started())
    outcome = calls.result(calls.send(work_s=30.0, timeout_s=2.0), 40.0)
    assert outcome.code in ("deadline", "client_timeout")
    assert outcome.took_s <= 2.25


def test_each_client_hears_once_of_a_gateway_that_lost_its_power_with_the_call() -> None:
    stage = started()
    calls = Calls(stage)
    number = calls.send("eu-1", work_s=2.0, timeout_s=5.0)
    stage.at(stage.now() + 1.0, stage.apply, faults.PowerOff(nodes=("eu-1",)))
    assert calls.result(number, 30.0).code in ("client_timeout", "gateway_lost")
    stage.undo(faults.PowerOff(nodes=("eu-1",)))
    stage.settle(60.0)
