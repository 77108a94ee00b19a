"""`meshnode sim up`: the nodes of a scenario as real processes of this machine, to ask with curl.

What the person sees goes to stderr, the table of nodes (or JSON) to stdout. Ctrl-C lets all nodes say
goodbye; a second one kills them. Either way nothing is left: no process, no folder, no port.
"""

import json as json_codec
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import PeerError
from meshnode.limits import MAX_SEED

if TYPE_CHECKING:
    from meshnode.sim.processes.stage import ProcessStage
    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

_EXIT_DID_NOT_HOLD: Final = 1
_EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
_FOREVER_S: Final = 10 * 365 * 86_400.0


def up(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A file, or a name of `sim list`.")
    ],
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="What wires and models draw.",
            show_default="the scenario's",
        ),
    ] = None,
    play: Annotated[
        bool, typer.Option("--play", help="Play its load and faults, in real time, and judge.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Keep data folders and logs in this new folder.",
            show_default="a temporary one",
        ),
    ] = None,
    base_port: Annotated[
        int,
        typer.Option(
            "--base-port",
            metavar="PORT",
            min=0,
            max=65_535,
            help="The first gateway's port; the others follow.",
            show_default="18500, or where ports are free",
        ),
    ] = 0,
    json: AsJson = False,
) -> None:
    """Start a scenario's nodes as real processes here, with the distances between its regions."""
    from pathlib import Path

    from meshnode.cli.demo_mesh import Interrupts
    from meshnode.sim.processes.stage import ProcessStage
    from meshnode.sim.scenario.reading import read

    found = read(scenario)
    seed = found.seed if seed is None else seed
    with Interrupts() as interrupts:
        with interrupts.held():
            stage = ProcessStage(
                found, seed, base_port=base_port, keep=None if keep is None else Path(keep)
            )
        result: Result | None = None
        try:
            if play:
                result = _play(stage, found, json=json)
            else:
                _start(stage, found, json=json)
            if stage.is_started and not (result is not None and result.broken_off):
                _stay(stage)
        except KeyboardInterrupt:  # the way to end it, once it stands
            if not stage.is_started:
                raise
        finally:
            _end(stage, keep)
    if result is not None and result.broken_off:
        raise typer.Exit(_EXIT_INTERRUPTED)
    if result is not None and not result.ok:
        raise typer.Exit(_EXIT_DID_NOT_HOLD)


def _start(stage: "ProcessStage", scenario: "Scenario", *, json: bool) -> None:
    from meshnode.sim.core_world import NotReachedError

    try:
        stage.start(_say)
    except NotReachedError as error:
        raise PeerError(str(error)) from error
    _show(stage, scenario, json=json)


def _play(stage: "ProcessStage", scenario: "Scenario", *, json: bool) -> "Result":
    """Play on a stage that stays when the play is over."""
    from meshnode.sim.running.document import document
    from meshnode.sim.running.playing import play

    def progress(what: str, _share: float) -> None:
        if what:
            _say(what)

    stage.on_started = lambda: _show(stage, scenario, json=json)
    stage.stays = True
    result = play(scenario, depth="C", seed=stage.seed, progress=progress, stage=stage)
    if json:
        print_json(document(result))
    else:
        _tell(result)
    return result


def _tell(result: "Result") -> None:
    """Say in a few lines what became of a play."""
    for violation in result.violations:
        _say(f"{violation.invariant} did not hold at {violation.time_s:.1f} s: {violation.message}")
    for verdict in result.verdicts:
        expect = verdict.expect
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at most", expect.at_most), ("at least", expect.at_least))
            if limit is not None
        ]
        held = "held" if verdict.holds else "did NOT hold"
        _say(f"{expect.metric} {' and '.join(limits)}: {verdict.found:g}, which {held}")
    answered = sum(1 for _, outcome in result.calls if outcome is not None and outcome.code == "ok")
    _say(f"{len(result.calls)} calls were made, {answered} answered.")


def _stay(stage: "ProcessStage") -> None:
    """Let the nodes run until somebody has enough of it."""
    stage.rehearsal.on_gone = lambda name, how: _say(f"{name} is gone: it {how}")
    _say("Ctrl-C ends all of them.")
    stage.run_to(stage.now() + _FOREVER_S)


def _end(stage: "ProcessStage", keep: str | None) -> None:
    """Let all nodes leave; kill them if the person presses Ctrl-C again."""
    _say("The nodes leave; Ctrl-C again kills them.")
    try:
        stage.leave()
    except KeyboardInterrupt:
        stage.close(for_good=True)
    if keep is not None:
        _say(f"Their folders and logs are in {stage.rehearsal.folder}.")


def _show(stage: "ProcessStage", scenario: "Scenario", *, json: bool) -> None:
    members = [*stage.rehearsal.members.values()]
    if json:
        print_json(_document(stage, scenario))
        return
    print_table(
        ["NODE", "REGION", "DEVICE", "GATEWAY", "PID"],
        [
            (each.name, each.machine.region, each.machine.device_class, each.url, each.pid)
            for each in members
        ],
        empty="The scenario has no nodes.",
        droppable=("DEVICE",),
    )
    for one, other, rtt_ms in _distances(scenario):
        typer.echo(plain(f"{one} - {other}: {rtt_ms:g} ms round trip"))
    gateway = next((each for each in members if each.url), None)
    if gateway is None:
        return
    typer.echo(f"\nTry:\n  curl {gateway.url}/v2/health/ready -i")
    if scenario.models:
        typer.echo(f"  curl -i {gateway.url}{_path(scenario)} -d '{_example()}'")
    typer.echo(f"  kill -9 {members[-1].pid}   # and ask again")


def _path(scenario: "Scenario") -> str:
    return f"/v2/models/{scenario.models[0].name}/infer"


def _example() -> str:
    """Return a request's body: the model's mean run, and five letters back."""
    from meshnode.sim.stand_in import BODY, WANTED, WORK

    values: list[tuple[Any, Any]] = [(WORK, 0), (WANTED, 5), (BODY, "hello")]
    inputs = [
        {"name": spec.name, "datatype": str(spec.datatype), "shape": [1], "data": [value]}
        for spec, value in values
    ]
    return json_codec.dumps({"inputs": inputs}, separators=(",", ":"))


def _distances(scenario: "Scenario") -> list[tuple[str, str, float]]:
    """Return the round trips between any two regions in milliseconds."""
    from meshnode.sim.scenario.geography import matrix

    return [
        (one, other, round(path.rtt_ms or 0.0, 1))
        for (one, other), path in matrix(scenario).items()
        if one != other
    ]


def _document(stage: "ProcessStage", scenario: "Scenario") -> dict[str, Any]:
    folder = stage.rehearsal.folder
    return {
        "scenario": scenario.name,
        "seed": stage.seed,
        "folder": str(folder),
        "nodes": [
            {
                "name": each.name,
                "node_id": each.node_id,
                "region": each.machine.region,
                "device": each.machine.device_class,
                "gateway": each.url or None,
                "mesh": f"127.0.0.1:{each.mesh_port}",
                "pid": each.pid,
                "data_dir": str(folder / each.name),
            }
            for each in stage.rehearsal.members.values()
        ],
        "models": [model.name for model in scenario.models],
        "rtt_ms": [
            {"between": [one, other], "rtt_ms": rtt_ms}
            for one, other, rtt_ms in _distances(scenario)
        ],
        "example": {"path": _path(scenario), "body": _example()} if scenario.models else None,
    }


def _say(text: str) -> None:
    typer.echo(plain(text), err=True)
