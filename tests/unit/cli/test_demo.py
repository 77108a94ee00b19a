"""The demo as people run it: real daemons, a real model, a real kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.cli import demo as demo_module
from meshnode.cli.demo import Prediction, _class_of, _print
from meshnode.cli.demo_load import LoadReport, latency

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]


@pytest.fixture
def folder() -> Iterator[Path]:
    """The temporary folder of the demo's processes: short, for the sake of the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="mn-") as name:
        yield Path(name)


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "meshnode", "demo", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


@pytest.mark.slow
def test_the_demo_kills_a_node_and_no_request_fails(folder: Path) -> None:
    process = start(folder, "--json")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    figures: dict[str, Any] = json.loads(out)
    assert figures["failed"] == 0
    assert figures["requests"] > 100
    assert figures["correct"] >= 8
    assert figures["took_s"] < 60
    served_by = {it["served_by"] for it in figures["predictions"]}
    assert figures["gateway"] not in served_by
    assert figures["killed"] in served_by
    assert figures["dead_after_s"] is not None
    assert all(figures["latency"][part]["requests"] > 0 for part in ("before", "during", "after"))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(
    folder: Path, number: signal.Signals, code: int
) -> None:
    process = start(folder)
    deadline = time.monotonic() + 30
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert children
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    assert not any(child.is_running() for child in children)
    assert list(folder.iterdir()) == []


def test_the_result_counts_failures_and_wrong_digits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictions = [
        Prediction("1.png", 1, 1, "beta", "us-east"),
        Prediction("8.png", 3, 8, "beta", "us-east"),
    ]
    load = LoadReport(3, ("HTTP 503: x",), 1, latency([1.0]), latency([2.0]), latency([]))
    demo = demo_module
    figures = demo._figures(_node("gamma"), _node("beta"), predictions, load, None)
    _print(figures | {"took_s": 1.0}, load)
    shown = capsys.readouterr().out
    assert "1 of 2 digits, 1 wrong: not every handwriting is clear." in shown
    assert "3 requests, 1 failed; 1 were answered by the other replica" in shown
    assert "  failed: HTTP 503: x\n" in shown
    assert "Membership called beta dead not yet" in shown


def _node(name: str) -> Any:
    class Named:
        pass

    node = Named()
    node.__dict__["name"] = name
    return node


def test_the_class_is_the_label_or_the_largest_score() -> None:
    scores = {"name": "p", "datatype": "FP32", "data": [0.1, 0.7, 0.2]}
    label = {"name": "l", "datatype": "INT64", "data": [2]}
    assert _class_of({"outputs": [scores, label]}) == 2
    assert _class_of({"outputs": [scores]}) == 1
