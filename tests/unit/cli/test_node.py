"""`meshnode nodes --wide` and `meshnode node show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import Result

if TYPE_CHECKING:
    from tests.unit.cli.conftest import FakeDaemon

Run = Callable[..., Result]

GIB = 1024**3
FACTS: dict[str, Any] = {
    "cpus": 8,
    "memory_bytes": 16 * GIB,
    "memory_total_bytes": 32 * GIB,
    "os": "linux",
    "architecture": "x86_64",
    "runtimes": ["onnx"],
    "cpu": {"model": "AMD Ryzen 7", "physical_cores": 8, "logical_cores": 16, "max_mhz": 4500},
    "disk": {"total_bytes": 1024 * GIB, "free_bytes": 400 * GIB},
    "power": "battery",
    "accelerators": [
        {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150 * GIB, "driver": "570"},
        {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150 * GIB, "compute": "9.0"},
    ],
    "absent": ["AMD ROCm: no GPU in /sys/class/kfd"],
    "runtime_details": {
        "onnx": {
            "version": "1.22.0", "providers": ["CPUExecutionProvider"],
            "devices": ["cuda:0 (CUDAExecutionProvider)", "cpu"],
        },
        "litert": {"missing": "LiteRT is not installed: pip install 'meshnode[litert]'"},
        "python": {"version": "3.11.7", "devices": ["cpu"]},
    },
    "speed": {"matmul_gflops": 900, "memory_gb_per_s": 40.5},
    "limits": {
        "max_memory_bytes": 16 * GIB, "max_cpus": 8, "nice": 10, "only_on_mains": True,
        "max_temperature_c": 85, "not_enforced": ["--max-cpus 8: no affinity"],
    },
    "paused": "on battery",
}  # fmt: skip
LOAD: dict[str, Any] = {
    "cpu": 0.123,
    "memory_available_bytes": 9 * GIB,
    "in_system": 1,
    "temperature_c": 61.4,
    "battery_percent": 63.0,
    "accelerators": [{"index": 1, "utilisation": 0.4, "memory_free_bytes": GIB}],
    "models": [],
}


def test_the_wide_table_shows_machines_and_how_they_fare(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.nodes[0] |= {"capabilities": FACTS, "load": LOAD}
    header, alpha, beta, _ = meshnode("nodes", "--wide").stdout.splitlines()
    assert header.split() == [
        "NAME", "STATE", "REGION", "CPU", "MEMORY", "ACCELERATORS", "POWER", "SPEED", "LOAD", "PAUSED",
    ]  # fmt: skip
    for words in (
        "8 x AMD Ryzen 7", "16 GiB, 9 GiB free", "2 x NVIDIA H200 (150 GiB)", "battery, 63 %",
        "900 GFLOPS", "12 % CPU, 1 request, 61 °C", "on battery",
    ):  # fmt: skip
        assert words in alpha
    assert beta.split()[:3] == ["beta", "alive", "us-east"]
    assert set(beta.split()[3:]) == {"-"}


def test_while_nobody_is_paused_there_is_no_column_for_it(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    assert meshnode("nodes", "--wide").stdout.splitlines()[0].split()[-1] == "LOAD"


def test_a_node_is_shown_in_sections(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.nodes[0] |= {"capabilities": FACTS, "load": LOAD}
    assert meshnode("node", "show", "alpha").stdout.splitlines() == [
        "Node",
        "  name     alpha",
        f"  id       {'a' * 32}",
        "  state    alive",
        "  paused   on battery",
        "  region   eu-west",
        "  labels   gpu=none",
        "  gateway  http://127.0.0.1:8470",
        "  mesh     192.0.2.1:8471",
        "Machine",
        "  AMD Ryzen 7",
        "  8 processors to use, of 16 (8 cores), up to 4500 MHz",
        "  16 GiB of memory to use, of 32 GiB",
        "  400 GiB of 1 TiB free on the disk of its data folder",
        "  linux, x86_64",
        "  power: battery",
        "Accelerators",
        "  NVIDIA H200, cuda, 150 GiB, driver 570",
        "  NVIDIA H200, cuda, 150 GiB, compute 9.0, 40% busy, 1 GiB free",
        "Runtimes",
        "  onnx 1.22.0: cuda:0 (CUDAExecutionProvider), cpu",
        "  litert: LiteRT is not installed: pip install 'meshnode[litert]'",
        "  python 3.11.7: cpu (own models only: --allow-code is off)",
        "Speed",
        "  900 GFLOPS on all processors",
        "  40.5 GB/s to and from memory",
        "Owner's limits",
        "  at most 16 GiB of memory",
        "  at most 8 processors",
        "  priority 10",
        "  serves on mains only",
        "  serves up to 85 °C",
        "  not enforced: --max-cpus 8: no affinity",
        "Load",
        "  12 % CPU, 1 request, 61 °C",
        "  9 GiB of memory free",
        "  battery at 63 %",
        "Replicas",
        "  digits version 1: ready",
        "Not there",
        "  AMD ROCm: no GPU in /sys/class/kfd",
    ]


def test_a_node_that_says_nothing_is_shown_too(daemon: FakeDaemon, meshnode: Run) -> None:
    shown = meshnode("node", "show", "b" * 32).stdout
    assert "name     beta" in shown
    assert "0 processors to use" not in shown
    assert "Load" not in shown


def test_nonsense_of_another_node_does_not_break_the_table(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    nonsense = {"cpus": "many", "accelerators": 7, "paused": "\x1b[2J", "speed": [1]}
    daemon.nodes[1] |= {"capabilities": nonsense, "load": {"cpu": 0.5}}
    assert "\x1b" not in meshnode("nodes", "--wide").stdout
    result = meshnode("node", "show", "beta")
    assert result.exit_code == 0
    assert "paused   ?[2J" in result.stdout


def test_as_json_a_node_has_its_replicas(daemon: FakeDaemon, meshnode: Run) -> None:
    found = json.loads(meshnode("node", "show", "beta", "--json").stdout)
    assert found["replicas"] == [
        {
            "model": "digits", "node": "beta", "node_id": "b" * 32, "version": 1,
            "state": "loading", "reason": "", "current": True,
        }
    ]  # fmt: skip
    assert {**daemon.nodes[1], "replicas": found["replicas"]} == found


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("alpah", "error: no node is called 'alpah'; did you mean 'alpha'?\n"),
        ("zzz", "error: no node is called 'zzz'; see: meshnode nodes\n"),
    ],
)
def test_an_unknown_node_is_answered_with_the_nearest(
    daemon: FakeDaemon, meshnode: Run, name: str, sentence: str
) -> None:
    result = meshnode("node", "show", name)
    assert (result.exit_code, result.stderr) == (2, sentence)


def test_of_several_nodes_of_one_name_an_id_is_asked_for(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.nodes[1]["name"] = "alpha"
    result = meshnode("node", "show", "alpha")
    assert result.exit_code == 2
    assert f"name one by its id: {'a' * 32}, {'b' * 32}" in result.stderr
    daemon.nodes[1]["state"] = "dead"
    assert meshnode("node", "show", "alpha").exit_code == 0
