"""`meshnode convert` and `optimize` at the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp import web
from typer.testing import CliRunner

from meshnode.cli.main import app
from meshnode.examples import digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

DIGITS = str(Path(digits.__file__).parent / "digits.onnx")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="meshnode")


class Payload:
    """A pickle that would leave a trace if it were loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("pictures") / "digits.npz"
    np.savez(path, image=(load_digits().images[:300] / 16).astype(np.float32))
    return str(path)


def test_a_file_that_can_run_code_is_not_loaded_unasked(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
    result = run("convert", str(tmp_path / "m.joblib"), "-o", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "can run its author's code: a pickle runs whatever code" in result.stderr
    assert "add --yes" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_convert_prints_one_document_and_its_progress_on_stderr(tmp_path: Path) -> None:
    import joblib
    from sklearn.linear_model import LinearRegression

    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    joblib.dump(LinearRegression().fit(rows, rows @ [1, 2]), tmp_path / "line.joblib")
    result = run(
        "convert", str(tmp_path / "line.joblib"), "-o", str(tmp_path / "line"), "--yes", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["path"] == str(tmp_path / "line" / "1" / "model.onnx")
    assert found["inputs"] == [{"name": "input", "datatype": "float32", "shape": [-1, 2]}]
    assert found["agreement"]["sample"] == "random"
    assert found["agreement"]["score"] > 0.999
    assert set(found) == {
        "model", "source", "target", "quantize", "path", "size_bytes", "inputs", "outputs",
        "agreement", "latency_ms", "peak_memory_bytes", "notes",
    }  # fmt: skip
    assert "converting LinearRegression to onnx" in result.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--to", "coreml"], "--to: 'coreml' is none of onnx, torchscript, tflite"),
        (["--quantize", "int4"], "--quantize: 'int4' is none of none, dynamic, int8, fp16"),
        (["--from", "caffe"], "--from: 'caffe' is none of sklearn, keras, jax, torch"),
        (["--timeout", "soon"], "--timeout: 'soon' is not a duration"),
    ],
)
def test_a_word_that_is_not_known_is_refused_with_those_that_are(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    (tmp_path / "m.joblib").write_bytes(b"never read")
    result = run("convert", str(tmp_path / "m.joblib"), "-o", str(tmp_path / "out"), *options)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_optimize_reports_and_writes_a_version(tmp_path: Path, pictures: str) -> None:
    out = tmp_path / "digits"
    result = run("optimize", DIGITS, "-o", str(out), "--quantize", "fp16", "--sample", pictures)
    assert result.exit_code == 0, result.stderr
    assert "ORIGINAL" in result.stdout
    assert "300 rows of digits.npz" in result.stdout
    assert f"Written to {out / '1'}" in result.stdout
    assert (out / "1" / "model.onnx").exists()


def test_optimize_without_a_place_only_reports(tmp_path: Path, pictures: str) -> None:
    result = run(
        "optimize", DIGITS, "--quantize", "static", "--calibration", pictures, "--threshold", "0.9", "--json"
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["accepted"], found["path"], found["published"]) == (True, None, None)
    assert found["steps"] == ["static"]
    assert found["result"]["size_bytes"] < found["original"]["size_bytes"]


def test_a_result_that_disagrees_is_refused_unless_forced(tmp_path: Path, pictures: str) -> None:
    asked = ["optimize", DIGITS, "--prune", "0.95", "--sample", pictures, "-o", str(tmp_path / "d")]
    result = run(*asked, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["accepted"] is False
    assert "below the threshold of 98.00%" in found["refused"]
    assert not (tmp_path / "d").exists()
    forced = run(*asked, "--force")
    assert forced.exit_code == 0
    assert (tmp_path / "d" / "1" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "x", "--publish"], "choose one"),
        (["-o", DIGITS], "is a file; -o names a model folder"),
        ([], "nothing to do; ask for --quantize"),
        (["--quantize", "static"], "needs --calibration"),
        (["--quantize", "fp16", "--threshold", "2"], "not between 0 and 1"),
    ],
)
def test_what_cannot_be_optimised_is_refused_at_once(options: list[str], reason: str) -> None:
    result = run("optimize", DIGITS, *options)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_a_published_result_is_the_version_after_all_that_the_mesh_knows(
    daemon: FakeDaemon,
    meshnode: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    pictures: str,
) -> None:
    """Version 1 is served and version 6 was published, so that the result is version 7."""
    seen: list[list[str]] = []
    usual = daemon._respond

    def respond(method: str, path: str) -> web.Response:
        if path != "/mesh/v1/artifacts":
            return usual(method, path)
        if method == "GET":
            return web.json_response(
                [{"name": "digits", "version": 6}, {"name": "a", "version": 9}]
            )
        folder = Path(daemon.requests[-1][2]["path"])
        seen.append([each.relative_to(folder).as_posix() for each in folder.rglob("*.*")])
        return web.json_response({"name": "digits", "versions": [{"version": 7}]})

    monkeypatch.setattr(daemon, "_respond", respond)
    result = meshnode(
        "optimize", DIGITS, "--quantize", "fp16", "--sample", pictures, "--publish", "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert seen == [["7/model.onnx"]]
    said = daemon.sent("POST", "/mesh/v1/artifacts")
    assert said["name"] == "digits"
    assert said["metrics"] == {"agreement": 1.0}
    assert said["note"].startswith("meshnode optimize: fp16 of ")
    found = json.loads(result.stdout)
    assert (found["path"], found["published"]) == (None, "digits 7")


def test_optimize_publishes_a_variant_of_the_version_it_was_made_of(
    daemon: FakeDaemon,
    meshnode: Callable[..., Result],
    pictures: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = daemon._respond
    stored: list[dict[str, Any]] = []

    def respond(method: str, path: str) -> web.Response:
        if path != "/mesh/v1/artifacts":
            return usual(method, path)
        if method == "GET":
            return web.json_response(stored)
        return web.json_response({"name": "digits", "versions": [{"version": 6}]})

    monkeypatch.setattr(daemon, "_respond", respond)
    asked = ["optimize", DIGITS, "--quantize", "fp16", "--sample", pictures, "--variant", "fp16"]
    assert "it goes with --publish" in meshnode(*asked).stderr
    refused = meshnode(*asked, "--publish")
    assert refused.exit_code == 2
    assert "'digits' was not published, so it can have no variant" in refused.stderr
    stored += [
        {"name": "digits", "version": number, "published": number == 6, "variant": ""}
        for number in (6, 7)
    ]
    result = meshnode(*asked, "--publish", "--json")
    assert result.exit_code == 0, result.stderr
    assert daemon.sent("POST", "/mesh/v1/artifacts")["variant"] == "fp16"
    assert json.loads(result.stdout)["published"] == "digits 6 fp16"
