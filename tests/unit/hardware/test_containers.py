"""A container's limits count as its machine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.hardware import machine
from meshnode.hardware.containers import container_limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tree = "Callable[[dict[str, str]], Path]"

V2 = {
    "proc/self/cgroup": "0::/system.slice/docker-1.scope\n",
    "sys/fs/cgroup/system.slice/docker-1.scope/memory.max": "1073741824\n",
    "sys/fs/cgroup/system.slice/docker-1.scope/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/system.slice/memory.max": "max\n",
    "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
}
V1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/\n",
    "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "536870912\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "200000\n",
    "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(("files", "expected"), [(V2, (1024**3, 1.5)), (V1, (512 * 1024**2, 2.0))])
def test_both_versions_of_control_groups_are_read(
    tree: Callable[[dict[str, str]], Path],
    files: dict[str, str],
    expected: tuple[int, float],
) -> None:
    assert container_limits(tree(files)) == expected


def test_an_ancestors_lower_limit_counts(tree: Callable[[dict[str, str]], Path]) -> None:
    files = {**V2, "sys/fs/cgroup/system.slice/memory.max": "1000000\n"}
    assert container_limits(tree(files)).memory_bytes == 1_000_000


def test_inside_a_container_the_trees_root_is_its_group(
    tree: Callable[[dict[str, str]], Path],
) -> None:
    """Its path of the host is told, and is not there."""
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert container_limits(tree(files)) == (1_000_000_000, 0.5)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "garbage", "sys/fs/cgroup/memory.max": "much"},
        {"proc/self/cgroup": "0::/../../etc\n", "sys/fs/cgroup/cpu.max": "0 100000"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max"},
    ],
)
def test_where_nothing_is_limited_nothing_is_told(
    tree: Callable[[dict[str, str]], Path], files: dict[str, str]
) -> None:
    assert container_limits(tree(files)) == (None, None)


def test_the_machine_is_what_its_container_leaves_of_it(
    tree: Callable[[dict[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "allowed_cpus", lambda: 16)
    found = machine.this_machine(tree(V2))
    assert found.usable_cpus == 2  # a quota of one and a half is room for two at times
    assert found.memory_bytes == 1024**3


def test_the_processors_name_is_found_where_each_kind_of_machine_has_it() -> None:
    intel = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\n"
    board = "processor\t: 0\nBogoMIPS\t: 108.00\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    assert machine.cpu_name_in(intel) == "Intel(R) N100"
    assert machine.cpu_name_in(board) == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.cpu_name_in("NVIDIA Jetson Orin Nano\0") == "NVIDIA Jetson Orin Nano"
    assert machine.cpu_name_in("processor : 0\n") == ""


def test_this_machine_is_something() -> None:
    found = machine.this_machine()
    assert found.usable_cpus >= 1
    assert found.memory_bytes > 0
    assert found.cpu.logical_cores >= 1


def test_free_space_is_told_in_steps(tmp_path: Path) -> None:
    disk = machine.disk_of(tmp_path)
    assert 0 <= disk.free_bytes <= disk.total_bytes
    assert disk.free_bytes % (disk.total_bytes // 100) == 0
    assert machine.disk_of(tmp_path / "nothing").total_bytes == 0
