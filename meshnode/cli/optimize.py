"""`meshnode optimize`: a smaller or faster form of a model, compared with it before it is published."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.convert import choice
from meshnode.cli.converting import (
    agreement_document,
    ask_about_code,
    print_agreement,
    print_notes,
    shown_steps,
    size,
)
from meshnode.cli.output import plain, print_error, print_json, print_table
from meshnode.cli.settings import data_folder
from meshnode.errors import ConfigError
from meshnode.options import parse_duration

if TYPE_CHECKING:
    from meshnode.client.mesh import MeshClient
    from meshnode.models.optimize.optimizing import Figures, OptimizePlan, OptimizeReport

_EXIT_REFUSED = 1


@asks_mesh
def optimize(
    mesh: AskedMesh,
    model: Annotated[str, typer.Argument(help="A model folder, or an .onnx, .pt or .pth file.")],
    out: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="A model folder; gets a new version."),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the result on the mesh as a new version.")
    ] = False,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="With --publish: as a further form of the published version, such as int8.",
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", metavar="HOW", help="dynamic, static or fp16.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="FILE", help="Real inputs (.npz) for static."),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option("--prune", metavar="SHARE", help="Set this share of the weights to zero."),
    ] = None,
    schedule: Annotated[
        int,
        typer.Option("--schedule", min=1, help="Prune in so many steps, most in the first ones."),
    ] = 1,
    fine_tune: Annotated[
        str | None,
        typer.Option("--fine-tune", metavar="FILE.py:FUNCTION", help="Training between the steps."),
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="Simplify the graph and fuse its operators.")
    ] = False,
    version: Annotated[
        int | None,
        typer.Option("--version", min=1, help="Of a folder.", show_default="the highest"),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option("--sample", metavar="FILE", help="Real inputs (.npz) to compare on."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME:TYPE:SHAPE", help="An input of a PyTorch model; repeatable."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Agreement below which the result is refused.")
    ] = 0.98,
    force: Annotated[
        bool, typer.Option("--force", help="Write it although it agrees less than that.")
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long each step may take.")
    ] = "30m",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Load it although it can run its author's code.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Quantise, prune or simplify a model; report what it gains and loses; write a new version."""
    from meshnode.models.convert.isolation import Limits
    from meshnode.models.optimize.optimizing import (
        OptimizeWish,
        plan_optimization,
        working_folder,
        write_version,
    )
    from meshnode.models.optimize.optimizing import optimize as carry_out
    from meshnode.models.optimize.planning import Quantize, Treatment

    if out is not None and publish:
        raise ConfigError("-o writes the result to a folder, --publish to the mesh; choose one")
    if variant is not None and not publish:
        raise ConfigError("--variant is a form of what was published: it goes with --publish")
    if out is not None and Path(out).is_file():
        raise ConfigError(f"{out!r} is a file; -o names a model folder")
    how = None if quantize is None else choice("--quantize", quantize, Quantize)
    plan = plan_optimization(
        OptimizeWish(
            model=model,
            treatment=Treatment(how, prune, schedule, fine_tune, graph),
            version=version,
            calibration=calibration,
            sample=sample,
            inputs=tuple(inputs or ()),
            threshold=threshold,
            force=force,
        )
    )
    limits = Limits(parse_duration("--timeout", timeout), protected=data_folder(mesh.data_dir))
    ask_about_code(model, plan.code, yes=yes)
    with working_folder() as work:
        with shown_steps() as progress:
            report = carry_out(plan, Path(work), limits, progress)
        written = ""
        if not report.refused and out is not None:
            written = str(write_version(plan, Path(work), Path(out)))
        elif not report.refused and publish:
            with mesh.client() as client:
                written = _publish(client, report, Path(work), variant or "")
        if json:
            print_json(_document(report, written, published=publish))
        else:
            _print(report, written, wanted=out is not None or publish, published=publish)
    if report.refused:
        print_error(report.refused)
        raise typer.Exit(_EXIT_REFUSED)


def _publish(client: "MeshClient", report: "OptimizeReport", work: Path, variant: str) -> str:
    """Put the result into the mesh's store, not yet served; return what it is called there."""
    from meshnode.client.publishing import ARTIFACTS_PATH
    from meshnode.models.optimize.optimizing import following_version, write_version

    plan = report.plan
    served = [each for each in client.get("/mesh/v1/models") if each["name"] == plan.name]
    stored = [each for each in client.get(ARTIFACTS_PATH) if each["name"] == plan.name]
    if variant:
        number = _published_version(plan, stored)
    else:
        taken = {int(version) for each in served for version in each["versions"]}
        taken |= {int(each["version"]) for each in stored}
        number = max(following_version(plan), *(version + 1 for version in taken), 1)
    folder = work / "publish" / plan.name
    write_version(plan, work, folder, number)
    done = "+".join(step["do"] for step in plan.steps)
    entry = client.run(
        client.publication(
            str(folder),
            name=plan.name,
            metrics={"agreement": report.agreement.score},
            note=f"meshnode optimize: {done} of {plan.file.parent.name}/{plan.file.name}",
            variant=variant,
        )
    )
    return f"{entry['name']} {number} {variant}".rstrip()


def _published_version(plan: "OptimizePlan", stored: list[dict[str, Any]]) -> int:
    """Return the number of the version that a result is a form of: the original's, or the newest."""
    numbers = [int(each["version"]) for each in stored if each["published"] and not each["variant"]]
    if not numbers:
        raise ConfigError(
            f"{plan.name!r} was not published, so it can have no variant; publish the model itself first: "
            "meshnode publish PATH"
        )
    own = plan.file.parent.name
    return int(own) if plan.folder is not None and own in map(str, numbers) else max(numbers)


def _document(report: "OptimizeReport", written: str, *, published: bool) -> dict[str, Any]:
    return {
        "model": report.plan.name,
        "file": str(report.plan.file),
        "steps": [step["do"] for step in report.plan.steps],
        "original": _figures(report.original),
        "result": _figures(report.result),
        "sparsity": report.sparsity,
        "agreement": agreement_document(report.agreement),
        "threshold": report.plan.wish.threshold,
        "accepted": not report.refused,
        "refused": report.refused or None,
        "path": None if published else written or None,
        "published": (written or None) if published else None,
        "notes": list(report.notes),
    }


def _figures(figures: "Figures") -> dict[str, Any]:
    return {
        "size_bytes": figures.size_bytes,
        "latency_ms": figures.latency_ms,
        "peak_memory_bytes": figures.peak_memory_bytes,
    }


def _print(report: "OptimizeReport", written: str, *, wanted: bool, published: bool) -> None:
    before, after = report.original, report.result
    rows = [
        ("size", size(before.size_bytes), size(after.size_bytes), _change(before.size_bytes, after.size_bytes)),
        (
            "latency, one thread",
            f"{before.latency_ms:.3g} ms",
            f"{after.latency_ms:.3g} ms",
            _change(before.latency_ms, after.latency_ms),
        ),
        (
            "peak memory",
            size(before.peak_memory_bytes),
            size(after.peak_memory_bytes),
            _change(before.peak_memory_bytes, after.peak_memory_bytes),
        ),
    ]  # fmt: skip
    print_table(["", "ORIGINAL", "RESULT", "CHANGE"], rows, empty="")
    if report.sparsity is not None:
        typer.echo(f"{report.sparsity:.1%} of the pruned weights are zero.")
    typer.echo("")
    print_agreement(report.agreement)
    print_notes(report.notes, report.agreement)
    if written:
        typer.echo(plain(f"Published as {written}" if published else f"Written to {written}"))
    elif not wanted and not report.refused:
        typer.echo("Nothing was written: name a folder with -o, or add --publish.")


def _change(before: float, after: float) -> str:
    return f"{(after - before) / before:+.0%}" if before else "-"
