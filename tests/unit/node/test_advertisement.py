from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode import advertisement
from meshnode.advertisement import (
    ModelLoad,
    NodeLoad,
    ReplicaAdvert,
    decode_load,
    decode_replica,
    encode,
    parse_replica_key,
    replica_key,
    require_advertisable,
    undescribed,
)
from meshnode.errors import ProtocolError, TooLarge
from meshnode.limits import (
    MAX_CLAIMED_REQUESTS,
    MAX_DEMAND_MODELS,
    MAX_LOAD_MODELS,
    MAX_OWNER_KEY_LENGTH,
    MAX_OWNER_VALUE_BYTES,
    MAX_REASON_BYTES,
)
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.types import DataType, ReplicaState

SPEC = TensorSpec("x", DataType.FP32, (-1, 4))
DIGITS = Manifest(
    "digits", 3, "onnx", "onnxruntime_onnx", (SPEC,), (SPEC,), 8,
    (FileEntry("model.onnx", 10, bytes(32)),), "model.onnx",
)  # fmt: skip
KEY = "replica/digits/3"


def advert(manifest: Manifest = DIGITS, reason: str = "") -> ReplicaAdvert:
    return advertisement.advert(
        manifest, ReplicaState.READY, digest=manifest.digest, reason=reason, slots=4
    )


def test_an_advert_comes_back_as_it_was_without_the_files() -> None:
    back = decode_replica(KEY, encode(advert(reason="none")))
    assert back == advert(reason="none")
    assert back.manifest.files == ()
    assert back.manifest.inputs == DIGITS.inputs
    assert back.digest == DIGITS.digest
    assert (back.state, back.slots, back.deployed) == (ReplicaState.READY, 4, False)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("replica/digits/3", ("digits", 3)),
        ("replica/with/slash/3", ("with/slash", 3)),
        ("load", None),
        ("replica/digits", None),
        ("replica/digits/", None),
        ("replica/digits/03", None),
        ("replica/digits/-3", None),
        ("replica/digits/3.0", None),
        ("replica/digits/³", None),
        ("replica/digits/٣", None),
    ],
)
def test_only_one_spelling_of_a_key_names_a_replica(
    key: str, found: tuple[str, int] | None
) -> None:
    assert parse_replica_key(key) == found


def test_the_longest_key_fits() -> None:
    assert len(replica_key("m" * 128, 2**63 - 1)) <= MAX_OWNER_KEY_LENGTH


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"slots": 0}, "slots|>= 1"),
        ({"slots": -5}, ">= 1"),
        ({"slots": MAX_CLAIMED_REQUESTS + 1}, "<= 1000000"),
        ({"digest": "d" * 65}, "64"),
        ({"state": "dancing"}, "dancing"),
        ({"manifest": msgspec.structs.replace(DIGITS, model="../etc")}, "cannot be a model's name"),
        ({"manifest": msgspec.structs.replace(DIGITS, version=0)}, "not a positive integer"),
        ({"manifest": msgspec.structs.replace(DIGITS, version=4)}, "describes another model"),
        ({"manifest": msgspec.structs.replace(DIGITS, model="other")}, "describes another model"),
    ],
)
def test_an_advert_that_cannot_be_is_refused(change: dict[str, object], why: str) -> None:
    fields = msgspec.structs.asdict(advert()) | change
    data = msgspec.msgpack.encode(tuple(fields.values()))
    with pytest.raises(ProtocolError, match=why):
        decode_replica(KEY, data)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.binary(max_size=64), cut=st.integers(0, 100))
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes, cut: int) -> None:
    whole = encode(advert())
    for garbage in (data, whole[:cut], whole[:cut] + data, b"\xa1\xff", b"\x92\xa5ready\xa1\xff"):
        if garbage == whole:
            continue
        with pytest.raises(ProtocolError):
            decode_replica(KEY, garbage)
        with pytest.raises(ProtocolError):
            decode_load(garbage)


def test_a_reason_is_cut_to_its_limit_between_characters() -> None:
    assert len(advert(reason="ü" * 1000).reason.encode()) <= MAX_REASON_BYTES
    assert advert(reason="x" + "ü" * 1000).reason == "x" + "ü" * 249


def test_a_reason_with_what_utf_8_cannot_hold_is_told_all_the_same() -> None:
    reason = "no such file: '\udcff.onnx'"
    assert decode_replica(KEY, encode(advert(reason=reason))).reason == "no such file: '?.onnx'"


def wide(inputs: int) -> Manifest:
    specs = tuple(TensorSpec("i" * 50, DataType.FP32, (-1, 4)) for _ in range(inputs))
    return msgspec.structs.replace(DIGITS, inputs=specs)


def test_a_model_that_takes_too_many_bytes_to_describe_is_refused_before_it_is_deployed() -> None:
    require_advertisable(wide(200))
    with pytest.raises(TooLarge, match=r"the inputs and outputs of 'digits' take \d+ bytes"):
        require_advertisable(wide(300))


def test_a_replica_that_cannot_be_described_can_still_be_told_of() -> None:
    full = advert(wide(300))
    assert len(encode(full)) > MAX_OWNER_VALUE_BYTES
    told = decode_replica(KEY, encode(undescribed(full)))
    assert told.state is ReplicaState.FAILED
    assert told.digest == full.digest
    assert str(MAX_OWNER_VALUE_BYTES) in told.reason


def load(*models: ModelLoad, cpu: float = 0.5) -> NodeLoad:
    return NodeLoad(cpu, 1000, models)


def test_a_load_comes_back_as_it_was() -> None:
    told = load(ModelLoad("digits", 3, 7, 2, 0.5))
    assert decode_load(encode(told)) == told


def test_a_load_with_all_that_came_to_a_gateway_fits_too() -> None:
    big = 2**63 - 1
    models = (ModelLoad("m" * 128, big, number, big, 0.5) for number in range(3000))
    demand = tuple((f"{number:0128}", 2**53) for number in range(MAX_DEMAND_MODELS))
    data = encode(msgspec.structs.replace(load(*models), demand=demand))
    assert len(data) <= MAX_OWNER_VALUE_BYTES
    assert decode_load(data).demand == demand
    assert len(decode_load(data).models) == MAX_LOAD_MODELS // 2


def test_of_a_load_with_many_replicas_the_busiest_are_told_and_fit() -> None:
    big = 2**63 - 1
    told = load(*(ModelLoad("m" * 128, big, number, big, 0.5) for number in range(3000)))
    data = encode(told)
    assert len(data) <= MAX_OWNER_VALUE_BYTES
    kept = decode_load(data).models
    assert [each.in_system for each in kept] == [*range(2999, 2999 - MAX_LOAD_MODELS, -1)]


@pytest.mark.parametrize(
    "told",
    [
        load(cpu=math.nan),
        load(cpu=math.inf),
        load(ModelLoad("digits", 3, 7, 2, math.nan)),
        NodeLoad(0.5, -1),
    ],
)
def test_a_load_with_a_number_that_is_none_is_refused(told: NodeLoad) -> None:
    with pytest.raises(ProtocolError):
        decode_load(encode(told))
