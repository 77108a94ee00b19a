"""`meshnode infer`: send one request and read the answer."""

import json as json_codec
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from meshnode.cli import infer_document
from meshnode.cli.answers import output_lines
from meshnode.cli.arguments import AsJson, AskedMesh, asked_region, asks_mesh, unknown_model
from meshnode.cli.inputs import Given, prepare, read_arguments, takes_image
from meshnode.cli.output import plain, print_json, print_table
from meshnode.cli.requests import example_body, metadata_of
from meshnode.client.calls import Reply, ask, model_path
from meshnode.client.hints import Hints, hinted
from meshnode.client.infer import infer_call, read_result
from meshnode.client.mesh import MeshClient
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.options import parse_duration, parse_labels


@asks_mesh
def infer(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="A file (JSON, .npy, .npz, PNG, JPEG, WebP or GIF; - for stdin), or NAME=VALUE for each input; "
            "NAME=@FILE reads the value from a file. Without any, the model's inputs are shown.",
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="A version.", show_default="the newest that is ready"),
    ] = None,
    timeout: Annotated[str, typer.Option(help="How long to wait.", metavar="DURATION")] = "30s",
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the outputs to this .npz or .json file; of a model that takes documents the answer, in the "
            "form that the file's ending tells, such as .png.",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(metavar="REGION", help="Run only in this region and those below it."),
    ] = None,
    prefer_region: Annotated[
        str | None,
        typer.Option(metavar="REGION", help="Run in this region if that is possible."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Run only on nodes with this label. Repeatable."),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Requests with the same word go to the same replica while that is not much slower.",
        ),
    ] = None,
    priority: Annotated[
        Literal["low", "normal", "high"],
        typer.Option(help="When there are too many requests, the lowest are refused first."),
    ] = "normal",
    json: AsJson = False,
) -> None:
    """Run a model on one input; any node of the mesh may serve it."""
    timeout_s = parse_duration("--timeout", timeout)
    given = read_arguments(inputs or ())
    hints = _hints(region, prefer_region, label or (), session, priority)
    with mesh.client() as client:
        try:
            metadata = client.get(model_path(name, version))
            if not given:
                _describe(metadata, as_json=json)
                return
            if infer_document.takes_documents(metadata):
                if version is not None:
                    raise ConfigError(
                        "--version goes with models that take tensors; this one takes documents"
                    )
                answer = infer_document.send(client, name, given, output or "", timeout_s, hints)
                if output is not None:
                    infer_document.write(Path(output).expanduser(), answer)
                else:
                    infer_document.show(answer, as_json=json)
                return
            form = _form_of(output)
            reply = _send(client, name, version, given, metadata, timeout_s, hints, form=form)
        except ModelNotFound as error:
            raise unknown_model(client, name, error) from None
    if output is not None:
        _write(Path(output).expanduser(), reply, form)
    elif json:
        print_json(reply.document())
    else:
        _print_answer(reply)


def _hints(
    region: str | None,
    prefer_region: str | None,
    labels: Sequence[str],
    session: str | None,
    priority: Literal["low", "normal", "high"],
) -> Hints:
    required, preferred = (
        asked_region("--region", region),
        asked_region("--prefer-region", prefer_region),
    )
    if required and preferred:
        raise ConfigError("--region and --prefer-region exclude each other; give one of them")
    return Hints(
        region=required or preferred,
        prefer=bool(preferred),
        labels=dict(parse_labels("--label", labels)),
        session=session or "",
        priority=priority,
    )


_Form = Literal["json", "npz"]


def _form_of(output: str | None) -> _Form:
    """Return what an output file shall hold."""
    if output is None or output.endswith(".json"):
        return "json"
    if output.endswith(".npz"):
        return "npz"
    raise ConfigError(f"--output {output!r} must end in .npz or .json")


def _send(
    client: MeshClient,
    name: str,
    version: int | None,
    given: Sequence[Given],
    metadata: Any,
    timeout_s: float,
    hints: Hints,
    *,
    form: _Form,
) -> Reply:
    request = prepare(given, metadata, metadata_of(metadata))
    for note in request.notes:
        typer.echo(f"note: {plain(note)}", err=True)
    document = request.document
    if form == "npz":
        parameters = {**(document.get("parameters") or {}), "binary_data_output": True}
        document = {**document, "parameters": parameters}
    call = hinted(infer_call(name, document, request.buffers, version=version), hints)
    return client.run(ask(call), timeout_s=timeout_s)


def _write(place: Path, reply: Reply, form: _Form) -> None:
    try:
        if form == "json":
            place.write_text(json_codec.dumps(reply.document()) + "\n", encoding="utf-8")
        else:
            _write_arrays(place, reply)
    except OSError as error:
        raise ConfigError(f"{str(place)!r} cannot be written: {error.strerror}") from None


def _write_arrays(place: Path, reply: Reply) -> None:
    """Write an `.npz` file: as `numpy.savez` does, but for outputs of any name."""
    import numpy as np

    with zipfile.ZipFile(place, "w") as archive:
        for name, array in read_result(reply).items():
            # Objects would have to be pickled, and then be unpickled by whoever reads the file.
            plain_array = array.astype("S") if array.dtype == object else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, plain_array, allow_pickle=False)


def _describe(metadata: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(metadata)
        return
    rows = [
        (kind, spec["name"], spec["datatype"], spec["shape"])
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for spec in metadata.get(key, ())
    ]
    print_table(("", "NAME", "TYPE", "SHAPE (-1: any size)"), rows, empty="")
    if infer_document.takes_documents(metadata):
        typer.echo("\n" + infer_document.describe(str(metadata["name"])))
        return
    example = example_body(metadata)
    cut = any("..." in data for data in example.values())
    name = plain(metadata["name"])
    typer.echo(f"\nSend data for each input{' (fill in the dots)' if cut else ''}:\n")
    typer.echo(f"  echo {_quoted(json_codec.dumps(example))} | meshnode infer {name} -")
    if takes_image(metadata_of(metadata)):
        typer.echo(f"\nor a picture:\n\n  meshnode infer {name} FILE.png")


def _quoted(text: str) -> str:
    return shlex.quote(plain(text))


def _print_answer(reply: Reply) -> None:
    response = reply.document()
    typer.echo(
        f"{plain(response['model_name'])} version {plain(response.get('model_version', '?'))}"
    )
    for output in response.get("outputs", ()):
        lines = [plain(line) for line in output_lines(output)]
        name = plain(output["name"])
        if len(lines) == 1:
            typer.echo(f"  {name}: {lines[0]}")
        else:
            typer.echo(f"  {name}:")
            for line in lines:
                typer.echo(f"    {line}")
    if route := reply.headers.get("mesh-route"):
        typer.echo(f"  route: {plain(route)}")
