"""Capabilities: written within their limit, and read from whatever another node says."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.advertisement import AcceleratorLoad, NodeLoad, decode_load, encode
from meshnode.capabilities import (
    Accelerator,
    Capabilities,
    Cpu,
    Disk,
    Limits,
    RuntimeDetails,
    cpus_of,
    memory_of,
    paused_of,
    read,
    runtimes_of,
    shown,
)
from meshnode.errors import ProtocolError
from meshnode.limits import MAX_CAPABILITIES_BYTES, MAX_CAPABILITY_ITEMS

FULL = Capabilities(
    cpus=8,
    memory_bytes=16 * 10**9,
    os="linux",
    architecture="x86_64",
    runtimes=("onnx",),
    cpu=Cpu("Intel(R) Xeon(R) Platinum 8480+", 56, 112, 3800),
    memory_total_bytes=32 * 10**9,
    disk=Disk(10**12, 5 * 10**11),
    power="battery",
    accelerators=(Accelerator("cuda", "NVIDIA H200", 150 * 10**9, "570.86.10", "9.0"),),
    absent=("AMD ROCm: no GPU in /sys/class/kfd",),
    runtime_details={
        "onnx": RuntimeDetails("1.22.0", ("CPUExecutionProvider",), ("cpu",)),
        "torch": RuntimeDetails(missing="PyTorch is not installed"),
    },
    speed={"matmul_gflops": 900.5},
    limits=Limits(8 * 10**9, 4, 10, True, 85.0, ("--max-cpus 4: no affinity",)),
    paused="on battery",
)


def size_bytes(document: object) -> int:
    return len(msgspec.msgpack.encode(document))


def test_what_a_node_writes_others_read() -> None:
    document = FULL.to_record()
    assert size_bytes(document) <= MAX_CAPABILITIES_BYTES
    assert read(document) == FULL
    assert read(msgspec.msgpack.decode(msgspec.msgpack.encode(document))) == FULL
    assert read({}) == Capabilities()


def test_what_a_node_of_the_first_version_wrote_is_read() -> None:
    former = {"cpus": 4, "memory_bytes": 8, "os": "linux", "architecture": "arm64"}
    facts = read({**former, "runtimes": ["onnx"]})
    assert (facts.cpus, facts.memory_bytes, facts.runtimes) == (4, 8, ("onnx",))
    assert facts.power == "unknown"


def test_what_does_not_fit_goes_in_the_order_that_is_written_down() -> None:
    gpus = tuple(
        Accelerator("cuda", f"GPU {index}" + "x" * 90, 1, "1.2.3", "9.0") for index in range(32)
    )
    many = msgspec.structs.replace(
        FULL,
        accelerators=gpus[:16],
        absent=tuple(f"{index}: " + "y" * 190 for index in range(20)),
    )
    document = many.to_record()
    assert size_bytes(document) <= MAX_CAPABILITIES_BYTES
    assert "absent" not in document  # the first to go
    assert len(document["accelerators"]) == 16
    assert document["accelerators"][0]["driver"] == "1.2.3"
    more = msgspec.structs.replace(many, accelerators=gpus)
    document = more.to_record()
    assert "driver" not in document["accelerators"][0]
    assert document["runtime_details"] == {
        "onnx": {"version": "1.22.0", "devices": ["cpu"]},
        "torch": {},
    }
    assert len(document["accelerators"]) in (4, 32)
    assert size_bytes(document) <= MAX_CAPABILITIES_BYTES


@given(
    texts=st.lists(st.text(max_size=300), max_size=40),
    count=st.integers(0, 40),
)
def test_whatever_this_node_is_its_facts_fit_and_keep_what_placement_needs(
    texts: list[str], count: int
) -> None:
    filler = "".join(texts)[:300]
    facts = msgspec.structs.replace(
        FULL,
        cpu=Cpu(filler),
        accelerators=(Accelerator("cuda", filler, 1, filler, filler),) * count,
        absent=tuple(texts),
        limits=Limits(not_enforced=tuple(texts)),
        runtime_details={text: RuntimeDetails(text, tuple(texts)) for text in texts},
    )
    document = facts.to_record()
    assert size_bytes(document) <= MAX_CAPABILITIES_BYTES
    assert (cpus_of(document), memory_of(document)) == (8, 16 * 10**9)
    assert runtimes_of(document) == ("onnx",)
    assert paused_of(document) == "on battery"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)
KEYS = st.sampled_from([*Capabilities.__struct_fields__, "something_newer"])


@given(raw=st.dictionaries(KEYS, JSON))
def test_whatever_another_node_claims_reading_it_never_fails(raw: dict[str, object]) -> None:
    facts = read(raw)
    assert 0 <= facts.cpus < math.inf
    assert facts.memory_bytes >= 0
    assert len(facts.accelerators) <= MAX_CAPABILITY_ITEMS
    json.dumps(shown(raw), allow_nan=False)


def test_nonsense_counts_as_not_said() -> None:
    facts = read(
        {
            "cpus": -3,
            "memory_bytes": 1e400,
            "runtimes": "onnx",
            "power": "nuclear",
            "accelerators": [3, None, {"kind": 7, "memory_bytes": "much"}],
            "speed": {"matmul_gflops": math.nan, "invented": 3.0, "memory_gb_per_s": 12},
            "limits": {"only_on_mains": "yes", "nice": 400},
            "paused": {"reason": "x"},
            "absent": ["x" * 10_000, 7],
        }
    )
    assert (facts.cpus, facts.memory_bytes, facts.runtimes, facts.power) == (0, 0, (), "unknown")
    assert facts.accelerators == (Accelerator("unknown"),)
    assert facts.speed == {"memory_gb_per_s": 12}
    assert facts.limits == Limits(nice=19)
    assert facts.paused == ""
    assert [len(each) for each in facts.absent] == [200]


def test_what_is_shown_has_every_list_and_word() -> None:
    assert shown({}) == {
        "cpus": 0, "memory_bytes": 0, "os": "", "architecture": "", "runtimes": [],
        "power": "unknown", "accelerators": [], "absent": [],
    }  # fmt: skip


def test_a_load_tells_heat_battery_and_accelerators() -> None:
    load = NodeLoad(0.5, 10, (), 61.5, 80.0, (AcceleratorLoad(0, 0.4, 7),))
    assert decode_load(encode(load)) == load


def test_a_load_of_the_first_version_is_read() -> None:
    assert decode_load(msgspec.msgpack.encode([0.5, 10, []])) == NodeLoad(0.5, 10)


@pytest.mark.parametrize(
    "rest",
    [
        [math.nan], [-400.0], ["hot"], [None, 101.0], [None, math.nan], [None, None, [[0, 1.5, 1]]],
        [None, None, [[0, math.nan, 1]]], [None, None, [[-1, 0.5, 1]]],
        [None, None, [[0, 0.5, 1]] * 40],
    ],
)  # fmt: skip
def test_a_load_beyond_its_limits_is_refused(rest: list[object]) -> None:
    with pytest.raises(ProtocolError, match="a node's load"):
        decode_load(msgspec.msgpack.encode([0.5, 10, [], *rest]))
