"""`meshnode bake`: compile and measure models once, so that nodes start with them without doing it again."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import meshnode
from meshnode.cli.arguments import AsJson
from meshnode.cli.bake_image import image_recipe
from meshnode.cli.output import plain, print_json
from meshnode.client.applying import place_of
from meshnode.client.orders import FORMATS, orders_of
from meshnode.deployment_file import refusal
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from meshnode.models.baking.index import Index

_DOCKERFILE = "Dockerfile"


def bake(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Folders of models, models' folders, bare files, or deployment files (.toml, .yaml).",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="An archive (.tar, .tar.gz, .tgz), or a folder that does not exist yet.",
        ),
    ],
    dockerfile: Annotated[
        bool,
        typer.Option(
            "--dockerfile", help="With an archive: write the recipe of an image beside it."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Compile, warm up and measure models here, and write them for `meshnode join --models OUT`.

    Models that are code run here, as at a node.
    """
    # On demand: it brings the runtimes.
    from meshnode.models.baking.baking import Bakery
    from meshnode.models.baking.packing import is_packed, pack

    target = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100 - links are kept
    packed = is_packed(target.name)
    if dockerfile and not packed:
        raise ConfigError("--dockerfile goes with an archive: -o NAME.tar")
    recipe = target.parent / _DOCKERFILE
    if dockerfile and recipe.exists():
        raise ConfigError(f"{recipe} exists already; write the archive into another folder")
    places = list(dict.fromkeys(place for source in sources for place in _places(source)))
    bakery = Bakery(progress=lambda line: typer.echo(plain(line), err=True))
    if packed:
        if target.exists():
            raise ConfigError(f"{target} exists already; name another file, or remove it first")
        with tempfile.TemporaryDirectory(prefix="meshnode-bake-") as working:
            folder = Path(working) / "baked"
            index = bakery.bake(places, folder)
            pack(folder, target)
    else:
        index = bakery.bake(places, target)
    if dockerfile:
        recipe.write_text(image_recipe(target.name, meshnode.__version__), encoding="utf-8")
    if json:
        print_json(_document(index, target, recipe if dockerfile else None))
        return
    typer.echo(f"Baked: {target}")
    typer.echo(f"Start a node with it: meshnode join --models {target}")
    if dockerfile:
        typer.echo(f"Make an image of it: docker build -t NAME {recipe.parent}")


def _places(source: str) -> list[Path]:
    """Return the models' paths of an argument: itself, or what a deployment file names."""
    path = Path(source).expanduser()
    if path.suffix.lower() not in FORMATS or path.is_dir():
        return [path]
    orders = orders_of(path)
    if orders.told:
        raise refusal(orders.told)
    found = []
    for order in orders.orders:
        kind, place = place_of(order)
        if kind != "path":
            raise ConfigError(
                f"{path}: the model of {order.spec.name!r} is no path of this machine but {place!r}; only files "
                "that are here can be baked"
            )
        found += [Path(place), *(order.folder / each for _, each in order.spec.variants)]
    return found


def _document(index: "Index", target: Path, recipe: Path | None) -> dict[str, Any]:
    return {
        "output": str(target),
        "dockerfile": str(recipe) if recipe else None,
        "machine": {"processor": index.machine.processor, "packages": index.machine.packages},
        "models": [
            {
                "name": each.manifest.model,
                "version": each.manifest.version,
                "digest": each.manifest.digest,
                "runtime": each.manifest.runtime,
                "graphs": sorted(each.graphs),
                "cache": each.has_cache,
                "service_ms": each.measured.profile[0][1]
                if each.measured and each.measured.profile
                else None,
                "notes": list(each.notes),
            }
            for each in index.versions
        ],
    }
