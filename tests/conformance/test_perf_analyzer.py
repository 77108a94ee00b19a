"""Triton's load generator, `perf_analyzer`, against both ports of a node that does not hold the model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.table import conforms

if TYPE_CHECKING:
    from tests.conformance.conftest import ConformanceMesh

_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshnode" / "perf_analyzer"
)
FOLDER = Path(os.environ.get("MESHNODE_PERF_ANALYZER") or _CACHE)

pytestmark = pytest.mark.skipif(
    not (FOLDER / "perf_analyzer").is_file(),
    reason=f"perf_analyzer is not in {FOLDER}; .ci/perf_analyzer fetches it",
)


def measured(protocol: str, address: str, *options: str) -> tuple[float, str]:
    """Run it on `digits`; return inferences per second, and what it printed."""
    command = [
        str(FOLDER / "perf_analyzer"), "-m", "digits", "-i", protocol, "-u", address, "--shape", "image:1,8,8",
        "--concurrency-range", "2", "--measurement-mode", "count_windows", "--measurement-request-count", "50",
        "--stability-percentage", "999", "--max-trials", "3", *options,
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        env={**os.environ, "LD_LIBRARY_PATH": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, printed
    found = re.search(r"throughput: ([0-9.]+) infer/sec", printed)
    assert found is not None, printed
    return float(found[1]), printed


@conforms("OIP REST", "load tests with `perf_analyzer`, its statistics of the server too")
def test_it_measures_over_rest(mesh: ConformanceMesh) -> None:
    throughput, printed = measured("http", mesh.address)
    assert throughput > 0
    assert "Inference count" in printed  # of the server, by its statistics


@conforms("OIP gRPC", "load tests with `perf_analyzer`, its statistics of the server too")
def test_it_measures_over_grpc(mesh: ConformanceMesh) -> None:
    throughput, printed = measured("grpc", mesh.front.status["grpc"])
    assert throughput > 0
    assert "Inference count" in printed
