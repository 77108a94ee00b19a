"""`meshnode bake`: what it takes, what it writes, and what it refuses before it begins."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode import __version__
from meshnode.cli.bake_image import BAKED_PLACE, image_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    Run = Callable[..., Result]

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


def test_an_archive_with_the_recipe_of_an_image_is_written(meshnode: Run, tmp_path: Path) -> None:
    out = tmp_path / "image" / "models.tar"
    done = meshnode("bake", str(DIGITS), "-o", str(out), "--dockerfile", "--json")
    document = json.loads(done.stdout)
    (model,) = document["models"]
    assert document["output"] == str(out)
    assert (model["name"], model["graphs"], model["notes"]) == ("digits", ["graph-cpu.onnx"], [])
    assert model["service_ms"] > 0
    with tarfile.open(out) as archive:
        assert {"digits.onnx", ".baked/index.json"} < set(archive.getnames())
        assert {each.mode for each in archive} == {0o644}
    recipe = (out.parent / "Dockerfile").read_text()
    assert document["dockerfile"] == str(out.parent / "Dockerfile")
    assert f"ADD --chown=0:0 models.tar {BAKED_PLACE}/\n" in recipe
    assert f"ARG BASE=meshnode:{__version__}\nFROM $BASE\n" in recipe


def test_a_folder_is_written_and_people_are_told_how_to_start_with_it(
    meshnode: Run, tmp_path: Path
) -> None:
    out = tmp_path / "baked"
    done = meshnode("bake", str(DIGITS), "--output", str(out))
    assert (out / ".baked" / "index.json").is_file()
    assert f"meshnode join --models {out}" in done.stdout
    assert "digits 1: graph optimised" in done.stderr


def test_a_deployment_file_names_what_is_baked(meshnode: Run, tmp_path: Path) -> None:
    file = tmp_path / "numbers.toml"
    file.write_text(f'name = "numbers"\nmodel = "{DIGITS}"\n')
    done = meshnode("bake", str(file), "-o", str(tmp_path / "baked"), "--json")
    assert [each["name"] for each in json.loads(done.stdout)["models"]] == ["digits"]


@pytest.mark.parametrize(
    ("deployment", "reason"),
    [
        ('name = "numbers"\nmodel = "published"\n', "is no path of this machine"),
        ('name = "numbers"\nmodl = "x.onnx"\n', "model"),
    ],
)
def test_a_deployment_of_something_else_is_refused(
    meshnode: Run, tmp_path: Path, deployment: str, reason: str
) -> None:
    file = tmp_path / "numbers.toml"
    file.write_text(deployment)
    done = meshnode("bake", str(file), "-o", str(tmp_path / "baked"))
    assert done.exit_code == 2
    assert reason in done.stderr
    assert not (tmp_path / "baked").exists()


def test_nothing_is_overwritten(meshnode: Run, tmp_path: Path) -> None:
    out = tmp_path / "models.tar"
    out.write_text("mine")
    assert "exists already" in meshnode("bake", str(DIGITS), "-o", str(out)).stderr
    (tmp_path / "Dockerfile").write_text("mine")
    other = tmp_path / "others.tar"
    assert (
        "exists already" in meshnode("bake", str(DIGITS), "-o", str(other), "--dockerfile").stderr
    )
    assert not other.exists()
    assert (
        "goes with an archive"
        in meshnode("bake", str(DIGITS), "-o", str(tmp_path / "x"), "--dockerfile").stderr
    )
    assert (out.read_text(), (tmp_path / "Dockerfile").read_text()) == ("mine", "mine")


def test_what_is_no_model_is_refused(meshnode: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    done = meshnode("bake", str(bad), "-o", str(tmp_path / "baked"))
    assert done.exit_code != 0
    assert "bad.onnx" in done.stderr


def test_a_name_with_a_blank_is_written_as_a_recipe_has_it() -> None:
    recipe = image_recipe("my models.tar", "1.0")
    assert f'ADD --chown=0:0 ["my models.tar", "{BAKED_PLACE}/"]\n' in recipe
