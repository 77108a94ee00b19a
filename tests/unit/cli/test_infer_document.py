"""`meshnode infer` of models that take documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

PATH = "/inference/digits"
PNG = b"\x89PNG\r\n\x1a\n rest"


@pytest.fixture(autouse=True)
def takes_documents(daemon: FakeDaemon) -> None:
    (name, answer) = ("request", "response")
    daemon.metadata = {
        "name": "digits",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": answer, "datatype": "BYTES", "shape": [1]}],
    }
    daemon.answer = {"count": 2}


def test_values_make_a_document_and_its_answer_is_readable(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    result = meshnode("infer", "digits", "prompt=a red ring", "size=64", "list=[1]")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"count": 2})
    sent: Any = daemon.sent("POST", PATH)
    assert sent == {"prompt": "a red ring", "size": 64, "list": [1]}


def test_a_file_is_sent_as_it_is_under_its_media_type(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    file = tmp_path / "street"
    file.write_bytes(PNG)
    assert meshnode("infer", "digits", str(file)).exit_code == 0
    assert daemon.headers["Content-Type"] == "image/png"
    assert daemon.requests[-1][2] == PNG
    meshnode("infer", "digits", "-", stdin=b'{"prompt": "x"}')
    assert daemon.headers["Content-Type"] == "application/json"
    assert daemon.requests[-1][2] == {"prompt": "x"}


def test_a_file_among_values_makes_a_form(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    file = tmp_path / "street.png"
    file.write_bytes(PNG)
    assert meshnode("infer", "digits", f"image=@{file}", "threshold=0.7").exit_code == 0
    assert daemon.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    text = daemon.requests[-1][2].decode("latin-1")
    assert 'name="image"; filename="street.png"\r\nContent-Type: image/png\r\n\r\n' in text
    assert 'name="threshold"\r\n\r\n0.7\r\n' in text


def test_an_output_file_asks_for_what_its_ending_tells(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    daemon.answer = PNG
    place = tmp_path / "ring.png"
    result = meshnode("infer", "digits", "prompt=ring", "--output", str(place))
    assert (result.exit_code, place.read_bytes()) == (0, PNG)
    assert daemon.headers["Accept"] == "image/png"
    shown = meshnode("infer", "digits", "prompt=ring").stdout
    assert shown == f"{len(PNG)} bytes of image/png; write them with --output FILE\n"
    unclear = meshnode("infer", "digits", "prompt=ring", "--output", str(tmp_path / "ring"))
    assert (unclear.exit_code, "by its ending" in unclear.stderr) == (2, True)


def test_a_stream_is_printed_as_it_came(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.answer, daemon.answer_type = b'{"n":1}\n{"n":2}\n', "application/x-ndjson"
    assert meshnode("infer", "digits", "stream=true").stdout == '{"n":1}\n{"n":2}\n'
    assert daemon.sent("POST", PATH) == {"stream": True}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a=1", "a=2"), "given twice"),
        (("a=1", "--version", "2"), "--version goes with models that take tensors"),
    ],
)
def test_what_cannot_be_sent_is_said(
    daemon: FakeDaemon, meshnode: Run, arguments: tuple[str, ...], reason: str
) -> None:
    result = meshnode("infer", "digits", *arguments)
    assert (result.exit_code, reason in result.stderr) == (2, True)


def test_without_an_input_it_says_how_such_a_model_is_asked(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    shown = meshnode("infer", "digits").stdout
    assert "meshnode infer digits NAME=VALUE NAME=@FILE ..." in shown
