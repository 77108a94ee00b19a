"""`meshnode convert`: a model of a training framework becomes a file that the mesh serves."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.converting import (
    agreement_document,
    ask_about_code,
    print_agreement,
    print_notes,
    shown_steps,
    size,
)
from meshnode.cli.output import plain, print_json
from meshnode.cli.settings import data_folder
from meshnode.errors import ConfigError
from meshnode.options import parse_duration

if TYPE_CHECKING:
    from meshnode.models.convert.converting import ConvertReport

Word = TypeVar("Word", bound=StrEnum)


def convert(
    model: Annotated[
        str,
        typer.Argument(help="A saved model, or FILE.py:NAME of a PyTorch class or a JAX function."),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUT", help="A model folder (gets a new version) or a file."
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="onnx, torchscript or tflite.")
    ] = "onnx",
    quantize: Annotated[
        str, typer.Option("--quantize", metavar="HOW", help="none, dynamic, int8 or fp16.")
    ] = "none",
    family: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FRAMEWORK",
            help="sklearn, keras, jax or torch.",
            show_default="what the file says",
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            "--sample", metavar="FILE", help="Real inputs (.npz) to compare on, and for int8."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME:TYPE:SHAPE",
            help="An input that the model does not describe, as image:float32:-1,3,224,224; repeatable.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="FILE", help="state_dict of a class; .npz of a function."
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option("--opset", min=7, max=30, help="ONNX operator set.", show_default="17 or 18"),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long each step may take.")
    ] = "30m",
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="FILE", help="Convert with this interpreter's libraries."),
    ] = None,
    install: Annotated[
        bool,
        typer.Option("--install", help="Install missing libraries in an environment of their own."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Load it although it can run its author's code.")
    ] = False,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Convert a scikit-learn, Keras, TensorFlow, JAX or PyTorch model, and compare the two."""
    from meshnode.models.convert.converting import ConvertWish, plan_conversion
    from meshnode.models.convert.converting import convert as carry_out
    from meshnode.models.convert.formats import Family, Quantization, Target
    from meshnode.models.convert.isolation import Limits

    plan = plan_conversion(
        ConvertWish(
            model=model,
            out=out,
            target=choice("--to", to, Target),
            quantization=choice("--quantize", quantize, Quantization),
            family=None if family is None else choice("--from", family, Family),
            sample=sample,
            inputs=tuple(inputs or ()),
            weights=weights,
            opset=opset,
            python=python,
            install=install,
        )
    )
    limits = Limits(parse_duration("--timeout", timeout), protected=data_folder(data_dir))
    ask_about_code(model, plan.code, yes=yes)
    with shown_steps() as progress:
        report = carry_out(plan, limits, progress, data_folder(data_dir))
    if json:
        print_json(_document(report))
    else:
        _print(report)


def choice(option: str, text: str, words: type[Word]) -> Word:
    """Read one of a few words.

    Raises:
        ConfigError: if it is none of them.
    """
    try:
        return words(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is none of {', '.join(words)}") from None


def _document(report: "ConvertReport") -> dict[str, Any]:
    wish = report.plan.wish
    return {
        "model": wish.model,
        "source": report.plan.source,
        "target": wish.target,
        "quantize": wish.quantization,
        "path": str(report.path),
        "size_bytes": report.size_bytes,
        "inputs": [
            {"name": name, "datatype": kind, "shape": list(shape)}
            for name, kind, shape in report.inputs
        ],
        "outputs": list(report.outputs),
        "agreement": agreement_document(report.agreement),
        "latency_ms": report.latency_ms,
        "peak_memory_bytes": report.peak_memory_bytes,
        "notes": list(report.notes),
    }


def _print(report: "ConvertReport") -> None:
    plan = report.plan
    typer.echo(
        plain(f"{report.path}: {plan.wish.target} from {plan.source}, {size(report.size_bytes)}")
    )
    for name, kind, shape in report.inputs:
        typer.echo(f"Input {plain(name)}: {kind} {list(shape)}")
    typer.echo(
        f"{report.latency_ms:.3g} ms per request with one thread, "
        f"{size(report.peak_memory_bytes)} of memory"
    )
    typer.echo("")
    print_agreement(report.agreement)
    print_notes(report.notes, report.agreement)
