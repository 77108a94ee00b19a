from __future__ import annotations

import pytest
from msgspec import structs

from meshnode import advertisement
from meshnode.deployments import environment_warnings, known_of
from meshnode.errors import ModelError
from meshnode.models.execution import DEFAULT_EXECUTION
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.models.variables import (
    model_parameters,
    variables_in,
    with_variables,
    without_variables,
)
from meshnode.state.deployment import Deployment, check_deployment
from meshnode.types import ReplicaState

ENV = (("MODE", "fast"), ("TOKEN", "secret"))


def manifest(runtime: str = "python") -> Manifest:
    files = (FileEntry("model.py", 1, bytes(32)),)
    execution = structs.replace(DEFAULT_EXECUTION, parameters=(("memory_limit", "2G"),))
    return Manifest("m", 1, runtime, runtime, (), (), 0, files, "model.py", execution)


@pytest.mark.parametrize("runtime", ["python", "torch"])
def test_variables_travel_with_the_manifest_of_code_and_make_it_another_one(runtime: str) -> None:
    plain = manifest(runtime)
    complete = with_variables(plain, ENV)
    assert variables_in(complete.execution.parameters) == dict(ENV)
    assert model_parameters(complete.execution.parameters) == (("memory_limit", "2G"),)
    other = with_variables(plain, (("MODE", "slow"),))
    assert len({plain.digest, complete.digest, other.digest}) == 3
    assert without_variables(complete) == plain
    assert without_variables(plain) is plain
    assert with_variables(plain, ()) is plain


@pytest.mark.parametrize("runtime", ["onnx", "litert", "ensemble"])
def test_a_model_without_code_is_the_same_whatever_the_variables_and_people_are_told(
    runtime: str,
) -> None:
    plain = manifest(runtime)
    assert with_variables(plain, ENV) is plain
    (warning,) = environment_warnings(Deployment("m", (plain,), env=ENV))
    assert f"runtime {runtime} runs no code that could read it" in warning
    assert environment_warnings(Deployment("m", (plain,))) == []
    assert environment_warnings(Deployment("m", (manifest(),), env=ENV)) == []


def test_a_deployments_targets_have_its_variables_and_the_files_that_it_was_published_with() -> (
    None
):
    (before,), (after,) = (
        known_of(Deployment("m", (manifest(),), env=env)).versions[1] for env in ((), ENV)
    )
    assert before.digest == manifest().digest != after.digest == after.manifest.digest
    assert before.files == after.files


def test_what_others_are_told_of_a_replica_has_none_of_them() -> None:
    complete = with_variables(manifest(), ENV)
    told = advertisement.advert(complete, ReplicaState.READY, digest=complete.digest)
    assert b"secret" not in advertisement.encode(told)
    assert told.digest == complete.digest


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "DYLD_LIBRARY_PATH", "PYTHONPATH", "MESHNODE_WORKER", "ld_preload"]
)
def test_variables_that_change_how_the_process_is_shut_in_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is not a model's to set"):
        check_deployment(Deployment("m", (manifest(),), env=((name, "x"),)))
