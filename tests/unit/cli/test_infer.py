from __future__ import annotations

import io
import json
import shlex
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

INFER = "/v2/models/digits/infer"
ROUTE = "node=beta; region=us-east; version=1; candidates=1; attempts=1; reason=only-candidate"
DATA = [[[0.0, 0.5], [0.5, 1.0]]]


def image(kind: str, size: tuple[int, int] = (2, 2)) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", size, color=255).save(stream, kind)
    return stream.getvalue()


def test_a_map_of_data_is_sent_as_a_request_and_the_answer_is_readable(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    file = tmp_path / "input.json"
    file.write_text(json.dumps({"image": DATA}))
    result = meshnode("infer", "digits", str(file))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "digits version 1",
        "  label: 2",
        "  probabilities: 2: 75.0%, 1: 15.0%, 0: 10.0%",
        f"  route: {ROUTE}",
    ]
    assert daemon.sent("POST", INFER) == {
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [0.0, 0.5, 0.5, 1.0]}
        ],
        "parameters": {"timeout": pytest.approx(29_500_000, abs=400_000)},
    }


def test_json_is_the_responses_body(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("infer", "digits", "-", "--json", stdin=json.dumps({"image": DATA}).encode())
    assert json.loads(result.stdout) == daemon.answer


def test_a_whole_request_keeps_its_parameters(daemon: FakeDaemon, meshnode: Run) -> None:
    request = {
        "id": "x",
        "inputs": [{"name": "image"}],
        "parameters": {"timeout": 5, "priority": 1},
    }
    meshnode("infer", "digits", "-", stdin=json.dumps(request).encode())
    assert daemon.sent("POST", INFER) == request


def test_version_and_timeout_travel(daemon: FakeDaemon, meshnode: Run) -> None:
    stdin = json.dumps({"image": DATA}).encode()
    meshnode("infer", "digits", "-", "--version", "3", "--timeout", "2m", stdin=stdin)
    sent = daemon.sent("POST", "/v2/models/digits/versions/3/infer")
    assert sent["parameters"]["timeout"] == pytest.approx(119_500_000, abs=400_000)


@pytest.mark.parametrize("option", ["--region", "--prefer-region"])
def test_an_empty_region_is_no_rule_that_is_ignored(
    daemon: FakeDaemon, meshnode: Run, option: str
) -> None:
    stdin = json.dumps({"image": DATA}).encode()
    result = meshnode("infer", "digits", "-", option, "", stdin=stdin)
    assert result.exit_code == 2
    assert f"{option} is empty" in result.stderr


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_sent_in_the_models_size_as_binary_data(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "seven"  # the content tells what it is, not the name
    file.write_bytes(image(kind, size=(4, 4)))
    assert meshnode("infer", "digits", str(file)).exit_code == 0
    body = daemon.sent("POST", INFER)
    head, rest = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    assert head["inputs"] == [
        {
            "name": "image",
            "datatype": "FP32",
            "shape": [1, 2, 2],
            "parameters": {"binary_data_size": 16},
        }
    ]
    assert struct.unpack("<4f", body[rest:]) == (1.0, 1.0, 1.0, 1.0)


def test_an_image_needs_a_model_with_one_input(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.metadata = daemon.metadata | {"inputs": daemon.metadata["inputs"] * 2}
    result = meshnode("infer", "digits", "-", stdin=image("PNG"))
    assert result.exit_code == 2
    assert "fits a model with one input" in result.stderr


def test_a_damaged_image_is_refused(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("infer", "digits", "-", stdin=image("PNG")[:20])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_without_a_file_it_shows_the_inputs_and_an_example_that_works(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    result = meshnode("infer", "digits")
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["input", "image", "FP32", "[-1,", "2,", "2]"]
    assert lines[3].split() == ["output", "probabilities", "FP32", "[-1,", "3]"]
    (line,) = [line for line in lines if line.startswith("  echo ")]
    echo, example, pipe, *command = shlex.split(line)
    assert (echo, pipe, command) == ("echo", "|", ["meshnode", "infer", "digits", "-"])
    assert meshnode(*command[1:], stdin=example.encode()).exit_code == 0
    assert daemon.sent("POST", INFER)["inputs"][0]["data"] == [0.5] * 4
    assert lines[-1] == "  meshnode infer digits FILE.png"


def test_the_example_of_a_large_input_is_marked_as_cut(daemon: FakeDaemon, meshnode: Run) -> None:
    spec = {"name": "x", "datatype": "FP32", "shape": [-1, 64]}
    daemon.metadata = daemon.metadata | {"inputs": [spec]}
    shown = meshnode("infer", "digits").stdout
    assert "(fill in the dots)" in shown
    assert "FILE.png" not in shown  # it takes no picture


def test_without_a_file_json_is_the_metadata(daemon: FakeDaemon, meshnode: Run) -> None:
    assert json.loads(meshnode("infer", "digits", "--json").stdout) == daemon.metadata


def test_an_unknown_model_suggests_the_nearest(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("infer", "digts")
    assert result.exit_code == 2
    assert "has a model 'digts'; did you mean 'digits'?" in result.stderr


def test_a_model_that_is_known_but_not_here_gets_no_suggestion(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.models = [daemon.entry("other")]
    assert meshnode("infer", "other").stderr == (
        "error: no node of this mesh has a model 'other'\n"
    )


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "the standard input is empty; taken are JSON, .npy, .npz, and pictures in PNG, JPEG"),
        (b"\n", "is empty"),
        (b"hello", "of no form that is known, and no JSON (Expecting value"),
        (b"BM pixels", "taken are JSON, .npy, .npz, and pictures in PNG, JPEG, WebP or GIF"),
        (b"\xfa\xfb", "no JSON (it is no text)"),
        (b"[" * 100_000, "no JSON (maximum recursion depth"),
        (b"1", "a map from input name to data, or, for a model with one input, a list"),
        (b'{"picture": [1]}', "no input 'picture'; its inputs are 'image' (FP32 [-1, 2, 2])"),
        (b'{"image": [[1, 2], [3]]}', "different lengths"),
    ],
)
def test_an_input_that_is_no_request_is_explained(
    daemon: FakeDaemon, meshnode: Run, stdin: bytes, message: str
) -> None:
    result = meshnode("infer", "digits", "-", stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_list_alone_is_the_data_of_a_model_with_one_input(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    assert meshnode("infer", "digits", "-", stdin=json.dumps(DATA).encode()).exit_code == 0
    (sent,) = daemon.sent("POST", "/v2/models/digits/infer")["inputs"]
    assert (sent["name"], sent["shape"]) == ("image", [1, 2, 2])


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_an_unreadable_file_is_explained(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, name: str
) -> None:
    result = meshnode("infer", "digits", str(tmp_path / name))
    assert result.exit_code == 2
    assert "cannot be read:" in result.stderr
    assert daemon.requests == []


def test_a_file_over_the_limit_of_a_request_is_refused(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.cli.inputs.MAX_BODY_BYTES", 10)
    (tmp_path / "x").write_bytes(b"x" * 11)
    result = meshnode("infer", "digits", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert "limit of 10 bytes" in result.stderr


def test_a_batch_has_a_line_for_each_row(daemon: FakeDaemon, meshnode: Run) -> None:
    output: dict[str, Any] = {"name": "label", "datatype": "INT64", "shape": [2], "data": [2, 1]}
    daemon.answer = {"model_name": "digits", "outputs": [output]}
    lines = meshnode("infer", "digits", "-", stdin=b'{"image": [1,2,3,4]}').stdout.splitlines()
    assert lines[:4] == ["digits version ?", "  label:", "    2", "    1"]
