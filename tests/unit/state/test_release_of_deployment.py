"""A release as part of its deployment, and what operators ask and settle of it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import structs

from meshnode.errors import ModelError, ProtocolError
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.state.deployment import Deployment, release_id
from meshnode.state.release import Ending, Order, Release, Step
from meshnode.types import DataType

STEPS = (Step(0.05), Step(0.5))
PLAN = Release("canary", 1, 2, STEPS, begun_ms=1_750_000_000_000)


def manifest(version: int = 1, content: bytes = bytes(32)) -> Manifest:
    tensor = TensorSpec("x", DataType.FP32, (-1, 64))
    files = (FileEntry("m.onnx", 10, content),)
    return Manifest(
        "digits", version, "onnx", "onnxruntime_onnx", (tensor,), (tensor,), 0, files, "m.onnx"
    )


DEPLOYED = Deployment("digits", (manifest(), manifest(2)), release=PLAN)


def test_a_deployment_with_a_release_survives_its_encoding() -> None:
    assert Deployment.decode(DEPLOYED.encode()) == DEPLOYED


def test_what_an_older_meshnode_wrote_has_no_release() -> None:
    fields = msgspec.msgpack.decode(Deployment("digits", (manifest(),)).encode())
    assert Deployment.decode(msgspec.msgpack.encode(fields[:-1])).release is None


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        (structs.replace(PLAN, candidate=3), "version 3, which is none of its versions"),
        (structs.replace(PLAN, baseline=2), "they must be two"),
        (structs.replace(PLAN, steps=STEPS[::-1]), "go down"),
    ],
)
def test_a_release_that_makes_no_sense_is_neither_written_nor_read(
    release: Release, reason: str
) -> None:
    deployment = structs.replace(DEPLOYED, release=release)
    with pytest.raises(ModelError, match=reason):
        deployment.encode()
    with pytest.raises(ModelError, match=reason):
        Deployment.decode(msgspec.msgpack.encode(deployment))


def test_when_a_release_was_asked_for_is_no_part_of_what_is_asked_for() -> None:
    later = structs.replace(DEPLOYED, release=structs.replace(PLAN, begun_ms=1))
    assert later == DEPLOYED
    assert hash(later) == hash(DEPLOYED)
    assert structs.replace(DEPLOYED, release=None) != DEPLOYED


@pytest.mark.parametrize(
    "changed",
    [
        structs.replace(DEPLOYED, replicas=7),
        structs.replace(DEPLOYED, env=(("A", "b"),)),
        structs.replace(DEPLOYED, since_ms=8),
        structs.replace(DEPLOYED, manifests=(*DEPLOYED.manifests, manifest(3))),
    ],
)
def test_a_release_is_the_same_whatever_else_of_its_deployment_changes(changed: Deployment) -> None:
    assert release_id(changed) == release_id(DEPLOYED)


@pytest.mark.parametrize(
    "changed",
    [
        structs.replace(DEPLOYED, release=structs.replace(PLAN, begun_ms=1)),
        structs.replace(DEPLOYED, release=structs.replace(PLAN, steps=STEPS[:1])),
        structs.replace(DEPLOYED, manifests=(manifest(), manifest(2, b"\1" * 32))),
    ],
)
def test_another_plan_other_files_or_another_time_are_another_release(changed: Deployment) -> None:
    assert release_id(changed) != release_id(DEPLOYED)


def test_a_deployment_without_a_release_has_no_id_of_one() -> None:
    assert release_id(structs.replace(DEPLOYED, release=None)) == (0, 0)


def test_orders_and_endings_survive_their_encoding_and_garbage_is_none() -> None:
    order = Order(3, "pause", release_id(DEPLOYED), "ada", "lunch")
    ending = Ending(release_id(DEPLOYED), "promoted", "it has proven itself", 1_750_000_000_001)
    assert Order.decode(order.encode()) == order
    assert Ending.decode(ending.encode()) == ending
    with pytest.raises(ProtocolError):
        Order.decode(ending.encode()[:-1])
    with pytest.raises(ProtocolError):
        Ending.decode(b"\xc1")
