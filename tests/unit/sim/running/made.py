"""A result made by hand: three continents, a region that is lost, suspicions, errors."""

from __future__ import annotations

import random

from meshnode.sim import faults
from meshnode.sim.running.result import FaultMark, Result, Verdict, Violation
from meshnode.sim.scenario.model import Device, Expect, Load, Model, Nodes, Place, Scenario
from meshnode.sim.stage import OK, Call, Machine, NodeSample, Outcome, Sample
from meshnode.sim.trace import Record

LOST_S, BACK_S = 20.0, 40.0
RTT_S = {"eu-west": 0.0, "us-east": 0.09, "ap-northeast": 0.2}


def made_scenario(nodes: int = 4, duration_s: float = 60.0, name: str = "region-loss") -> Scenario:
    """Return a scenario of three regions with so many nodes each."""
    return Scenario(
        name=name,
        title="A region is lost",
        story="eu-west loses its power.\nThe others answer for it.",
        duration_s=duration_s,
        regions={region: Place() for region in RTT_S},
        nodes=tuple(Nodes(region=region, count=nodes, name=f"{region[:2]}") for region in RTT_S),
        models=(Model(name="digits"),),
        load=(Load(model="digits", rate_per_s=50, deadline_ms=400),),
        faults=(faults.RegionDown(region="eu-west", at_s=LOST_S, for_s=BACK_S - LOST_S),),
        expect=(Expect(metric="error_rate", at_most=0.01), Expect(metric="p99_ms", at_most=900)),
    )


def made_result(
    nodes: int = 4, duration_s: float = 60.0, rate_per_s: float = 50.0, policy: str = "mesh",
    slowness: float = 1.0, violated: bool = False,
) -> Result:  # fmt: skip
    """Return a run of it in which everything that a report shows happens."""
    rng = random.Random("made")
    scenario = made_scenario(nodes, duration_s)
    machines = tuple(
        Machine(f"{region[:2]}-{at + 1}", region, "mini-pc", Device())
        for region in RTT_S
        for at in range(nodes)
    )
    result = Result(scenario, "A", 7, policy, trace_hash="5eed" * 16, machines=machines)
    result.started_after_s, result.simulated_s, result.cpu_s = 4.2, duration_s + 5, 1.25
    result.calls = [
        _call(number, number / rate_per_s, machines, rng, slowness)
        for number in range(int(duration_s * rate_per_s))
    ]
    for at in range(int(duration_s)):
        sample = Sample(float(at))
        for machine in machines:
            lost = machine.region == "eu-west" and LOST_S <= at < BACK_S
            busy = min(1.0, max(0.0, rng.gauss(0.4 + 0.3 * (LOST_S <= at < BACK_S), 0.15)))
            sample.nodes[machine.name] = (
                NodeSample("off") if lost else NodeSample("up", len(machines), 1, busy, 2, 1)
            )
        result.samples.append(sample)
    result.marks = [
        FaultMark(LOST_S, "region-down", "eu-west loses its power"),
        FaultMark(BACK_S, "region-down", "eu-west loses its power", undone=True),
    ]
    result.events = [*_events(machines)]
    result.verdicts = [
        Verdict(scenario.expect[0], 0.004, holds=True),
        Verdict(scenario.expect[1], 1200.0, holds=not violated),
    ]
    if violated:
        result.violations = [Violation("one-answer", "call 17 was answered twice", 21.5)]
    return result


def _call(
    number: int,
    made_at_s: float,
    machines: tuple[Machine, ...],
    rng: random.Random,
    slowness: float,
) -> tuple[Call, Outcome]:
    lost = LOST_S <= made_at_s < BACK_S
    gateway = rng.choice(machines)
    able = [machine for machine in machines if not (lost and machine.region == "eu-west")]
    near = [machine for machine in able if machine.region == gateway.region]
    server = rng.choice(near or able)
    call = Call(number, made_at_s, gateway.name, "digits", 0.02, 5.0, 0.4)
    if made_at_s - LOST_S < 2 and lost and rng.random() < 0.1:
        return call, Outcome(
            "gateway_lost", 0.3, attempts=2, failed_on=((gateway.name, "link_lost"),)
        )
    took_s = slowness * rng.lognormvariate(-3.6, 0.5) + abs(
        RTT_S[gateway.region] - RTT_S[server.region]
    )
    return call, Outcome(OK, took_s * (1 + 2 * lost), server.name, 1, (), 1)


def _events(machines: tuple[Machine, ...]) -> list[Record]:
    found = []
    for at, subject in enumerate(machines):
        if subject.region != "eu-west":
            continue
        for order, observer in enumerate(machines):
            if observer.region != "eu-west":
                late_s = 1.5 + 0.05 * at + 0.02 * order
                for kind, time_s in (
                    ("member.suspect", LOST_S + late_s),
                    ("member.dead", LOST_S + late_s + 5),
                    ("member.alive", BACK_S + late_s),
                ):
                    found.append(
                        Record(time_s, observer.name, kind, subject.name, "<told> & heard")
                    )
    return sorted(found, key=lambda record: record.time_s)
