"""`meshnode publish`, `artifacts` and `unpublish`: versions in the mesh's store, served or not."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshnode.cli.arguments import (
    AsJson,
    AskedMesh,
    Metric,
    Note,
    asks_mesh,
    check_note,
    parse_metrics,
    parse_variant,
)
from meshnode.cli.deploy_display import Display
from meshnode.cli.output import plain, print_json, print_notes, print_table
from meshnode.client.publishing import ARTIFACTS_PATH
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.limits import MAX_VERSION
from meshnode.models.repository.source_urls import is_url
from meshnode.owner_limits import size_text

_DIGEST_SHOWN = 12


@asks_mesh
def publish(
    mesh: AskedMesh,
    path: Annotated[
        str, typer.Argument(help="A model folder (DIR/1/model.onnx) or a bare model file.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Public name of the model.", show_default="the folder's or file's"),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_VERSION,
            help="Number of the version.",
            show_default="its folder's; for a bare file the next one",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="A further form of the model, such as int8=PATH; repeatable.",
            metavar="NAME=PATH",
        ),
    ] = None,
    metric: Metric = None,
    note: Note = "",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take the place of what was published under this name and number."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Put a model into the mesh's store without serving it; deploy it later by its name."""
    metrics = parse_metrics(metric or [])
    check_note(note)
    variants = [parse_variant(text) for text in variant or []]
    for place in (path, *(place for _, place in variants)):
        if is_url(place):
            raise ConfigError(
                f"{place!r} is a URL, and what is published lies on this machine: fetch it first and publish "
                "the copy, or serve it from there with: meshnode deploy URL"
            )
        if not Path(place).expanduser().exists():
            raise ConfigError(f"{place!r} does not exist; name a model folder or a model file")
    with mesh.client() as client, Display() as display:
        made = client.run(
            client.publication(path, name, metrics, note, version, display.show, replace=replace)
        )
        for form, place in variants:
            number = _number_of_forms(made["versions"])
            further = client.publication(
                place, made["name"], None, "", number, display.show, variant=form, replace=replace
            )
            made["versions"] += client.run(further)["versions"]
    print_notes(made)
    if json:
        print_json(made)
        return
    print_artifacts(made["versions"])
    # Where a folder or file has that name, `deploy` takes that.
    option = " --published" if Path(made["name"]).exists() else ""
    typer.echo(f"Serve it with: meshnode deploy {plain(made['name'])}{option}")


@asks_mesh
def artifacts(
    mesh: AskedMesh,
    name: Annotated[
        str | None, typer.Argument(help="Only those of this model.", show_default="all")
    ] = None,
    json: AsJson = False,
) -> None:
    """List the versions in the mesh's store: who published them, when, and how good they are."""
    with mesh.client() as client:
        found = client.get(ARTIFACTS_PATH)
    if name is not None:
        found = [each for each in found if each["name"] == name]
        if not found:
            raise ModelNotFound(
                f"nothing is published or deployed under the name {name!r}; see: meshnode artifacts"
            )
    if json:
        print_json(found)
    else:
        print_artifacts(found)


@asks_mesh
def unpublish(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    json: AsJson = False,
) -> None:
    """Take a published version out of the mesh's store; where it is deployed it is still served."""
    if not name.strip():
        raise ConfigError("name the model; see: meshnode artifacts")
    with mesh.client() as client:
        answer = client.delete(f"{ARTIFACTS_PATH}/{quote(name, safe='')}/{version}")
    if json:
        print_json(answer if answer is not None else {"name": name, "version": version})
    else:
        typer.echo(f"Version {version} of {plain(name)} is no longer published.")


def print_artifacts(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print versions as a table with a line for each."""
    columns = ("MODEL", "VERSION", "STATE", "SIZE", "PUBLISHED", "BY", "METRICS", "NOTE", "DIGEST")
    rows = [_row(entry) for entry in entries]
    empty = "Nothing is published yet; publish a model with: meshnode publish PATH"
    print_table(columns, rows, empty=empty, droppable=("DIGEST", "SIZE", "NOTE"))


def _number_of_forms(versions: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the number of what was published; None for several versions, whose forms have their own."""
    numbers = {int(each["version"]) for each in versions}
    return numbers.pop() if len(numbers) == 1 else None


def _row(entry: Mapping[str, Any]) -> tuple[object, ...]:
    said = entry.get("provenance") or {}
    words = [word for word in ("published", "deployed") if entry.get(word)]
    number = str(entry["version"])
    if said.get("label"):
        number += f" ({said['label']})"
    if entry.get("variant"):
        number += f" {entry['variant']}"
    metrics = ", ".join(f"{name}={value:g}" for name, value in (said.get("metrics") or {}).items())
    publisher = said.get("publisher")
    if publisher and not said.get("verified"):
        publisher = f"not verified: {said.get('flaw')}"
    return (
        entry["name"],
        number,
        ", ".join(words),
        size_text(entry["size_bytes"]),
        said.get("published_at"),
        publisher,
        metrics or None,
        said.get("note") or None,
        entry["digest"][:_DIGEST_SHOWN],
    )
