"""What people are told of changes of deployments."""

from __future__ import annotations

from typing import Any

import msgspec

from meshnode.deployment_changes import changes, described, hidden, spec_of_deployment, summary
from meshnode.deployment_file import read_document
from meshnode.deployment_writing import document_of
from meshnode.models.exposure import Exposure, Task, TaskMapping
from meshnode.models.provenance import Provenance
from meshnode.state.constraints import Constraints, Resources
from meshnode.state.deployment import Deployment
from meshnode.types import NodeId
from tests.unit.state.test_deployment import manifest

A = NodeId("a" * 32)
PLAIN = Deployment("digits", (manifest(),))
FULL = Deployment(
    "digits",
    (
        msgspec.structs.replace(
            manifest(),
            exposure=Exposure("/numbers", (TaskMapping(Task.CHAT),), cache=True),
            provenance=Provenance(metrics=(("accuracy", 0.97),), note="from the bench"),
        ),
        manifest(version=2),
    ),
    3,
    (A,),
    enabled=False,
    constraints=Constraints(
        ("eu",), (("room", "lab"),), "any", 2**30, 2**20, "onnx", on_mains=True
    ),
    resources=Resources(2**20, 0.5),
    standby=1,
    env=(("MODE", "secret"),),
)


def name_of(node: NodeId) -> str:
    return {A: "alpha"}.get(node, node)


def told(before: Deployment | None, after: Deployment | None) -> str:
    return summary(changes(before, after, name_of), before, after)


def replaced(**fields: Any) -> Deployment:
    return msgspec.structs.replace(PLAIN, **fields)


def test_everything_that_is_said_is_described() -> None:
    said = described(FULL, name_of)
    assert said["version 1"].endswith("accuracy=0.97, 'from the bench'")
    assert said["on"] == ["alpha"]
    assert said["where.labels"] == {"room": "lab"}
    assert said["resources.memory"] == "1MiB"
    assert said["env.MODE"] == "secret"
    fields = {"versions", "model", "metrics", "note", "variants", "revision", "where"}
    assert {"replicas", "enabled", "path", "tasks", "cache", "standby"} <= said.keys() - fields


def test_a_change_is_told_in_one_line() -> None:
    assert told(None, PLAIN) == "deployed version 1, 1 replica"
    assert told(PLAIN, None) == "deleted"
    assert told(PLAIN, PLAIN) == "nothing that is served"
    assert told(PLAIN, replaced(replicas=3)) == "replicas 1 → 3"
    assert told(PLAIN, replaced(enabled=False)) == "paused"
    assert told(replaced(enabled=False), PLAIN) == "resumed"
    assert (
        told(replaced(env=(("A", "1"),)), replaced(env=(("B", "1"),)))
        == "env.A taken away; env.B set"
    )
    assert told(replaced(env=(("A", "1"),)), replaced(env=(("A", "2"),))) == "env.A changed"
    assert told(PLAIN, FULL).endswith("more")
    assert "secret" not in told(PLAIN, FULL)


def test_values_of_variables_are_hidden_from_who_may_not_see_them() -> None:
    found = {each.key: each for each in hidden(changes(PLAIN, FULL, name_of))}
    assert (found["env.MODE"].before, found["env.MODE"].after) == (None, "…")
    assert found["replicas"].after == 3


def test_a_deployment_as_a_definition_is_read_again() -> None:
    spec = spec_of_deployment(FULL, name_of)
    assert (spec.versions, spec.on, spec.path, spec.tasks) == (
        (1, 2),
        ("alpha",),
        "/numbers",
        ("chat",),
    )
    one = msgspec.structs.replace(spec, replicas=1)
    assert read_document(document_of(one)) == (one, [])


def test_what_is_stored_otherwise_is_said_even_where_it_is_nothing() -> None:
    stored = {(1, ""): Exposure("/other", (TaskMapping(Task.CHAT),))}
    spec = spec_of_deployment(PLAIN, name_of, stored)
    assert (spec.path, spec.tasks) == ("", ())
    assert spec_of_deployment(PLAIN, name_of).path is None
