"""`meshnode infer`: send one request through the local daemon and read the answer."""

import json as json_codec
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, DataDir, client_of
from meshnode.cli.deploy import unknown_model
from meshnode.cli.output import plain, print_json, print_table
from meshnode.client.api import Answer, ControlClient, model_path
from meshnode.client.inference import (
    Document,
    build_request,
    describe_specs,
    example_body,
    output_lines,
)
from meshnode.config import MAX_BODY_BYTES
from meshnode.errors import ConfigError, InvalidRequest, ModelNotFound, TooLarge
from meshnode.options import parse_duration
from meshnode.types import Buffer, DataType

if TYPE_CHECKING:
    from meshnode.models.manifest import TensorSpec

_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # PNG, JPEG
_MARGIN_S = 2.0  # the daemon's own answer to a deadline comes before ours


def infer(
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    file: Annotated[
        str | None,
        typer.Argument(
            help="JSON (a request, or a map from input to data), PNG or JPEG; - for stdin. "
            "Without it, the model's inputs are shown.",
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="A version.", show_default="the newest that is ready"),
    ] = None,
    timeout: Annotated[str, typer.Option(help="How long to wait.", metavar="DURATION")] = "30s",
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Run a model on one input; any node of the mesh may serve it."""
    timeout_s = parse_duration("--timeout", timeout)
    content = None if file is None else _read(file)
    client = client_of(data_dir)
    try:
        metadata = client.get(model_path(name, version))
        if content is None:
            _describe(metadata, as_json=json)
            return
        answer = _send(client, name, content, metadata, version, timeout_s)
    except ModelNotFound as error:
        raise unknown_model(client, name, error) from None
    if json:
        print_json(answer.document)
    else:
        _print_answer(answer)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            content = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
        else:
            with Path(file).expanduser().open("rb") as stream:
                content = stream.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file!r} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BODY_BYTES:
        raise TooLarge(f"{file!r} is larger than a request's limit of {MAX_BODY_BYTES} bytes")
    return content


def _send(
    client: ControlClient,
    name: str,
    content: bytes,
    metadata: Document,
    version: int | None,
    timeout_s: float,
) -> Answer:
    binary: tuple[Buffer, ...] = ()
    if content.startswith(_IMAGE_STARTS):
        request, binary = image_request(content, metadata)
    else:
        try:
            document = json_codec.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"the input is neither JSON ({error}) nor a PNG or JPEG image"
            ) from None
        request = build_request(document, metadata)
    parameters = {"timeout": round(timeout_s * 1e6), **(request.get("parameters") or {})}
    return client.infer(
        name,
        {**request, "parameters": parameters},
        binary,
        version=version,
        timeout_s=timeout_s + _MARGIN_S,
    )


def image_request(content: bytes, metadata: Document) -> tuple[Document, tuple[Buffer, ...]]:
    """Make a request with binary data from an encoded image, for a model with one input.

    Args:
        content: A PNG or JPEG file.
        metadata: The model's metadata.

    Returns:
        The JSON part and the binary parts that follow it.

    Raises:
        InvalidRequest: if the model has several inputs, or one that an image does not fit.
    """
    from meshnode.models.images import image_to_tensor

    if len(metadata["inputs"]) != 1:
        raise InvalidRequest(
            "an image fits a model with one input; this one's inputs are "
            f"{describe_specs(metadata)}: send JSON"
        )
    tensor = image_to_tensor(content, _tensor_spec(metadata["inputs"][0]))
    described = {
        "name": tensor.name,
        "datatype": str(tensor.datatype),
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.size_bytes},
    }
    return {"inputs": [described]}, (tensor.data,)


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
    example = example_body(metadata)
    cut = any("..." in data for data in example.values())
    name = plain(metadata["name"])
    typer.echo(f"\nSend data for each input{' (fill in the dots)' if cut else ''}:\n")
    typer.echo(f"  echo {_quoted(json_codec.dumps(example))} | meshnode infer {name} -")
    if _takes_image(metadata):
        typer.echo(f"\nor a picture:\n\n  meshnode infer {name} FILE.png")


def _takes_image(metadata: Document) -> bool:
    from meshnode.models.images import is_image

    specs = metadata.get("inputs", ())
    return len(specs) == 1 and is_image(_tensor_spec(specs[0]))


def _tensor_spec(spec: Document) -> "TensorSpec":
    from meshnode.models.manifest import TensorSpec

    return TensorSpec(spec["name"], DataType(spec["datatype"]), tuple(spec["shape"]))


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(plain(text))


def _print_answer(answer: Answer) -> None:
    response = answer.document
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
    if answer.route:
        typer.echo(f"  route: {plain(answer.route)}")
