"""A node's own models ask other models through its pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon.model_calls import ModelCalls
from meshnode.errors import ModelNotFound, NotServing
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import InferRequest, InferResponse, ResponsePart

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline

REQUEST = InferRequest("scores", ())


class OnePipeline:
    """Knows one model."""

    async def infer(self, request: InferRequest) -> Any:
        return SimpleNamespace(response=InferResponse(request.model, 3, ResponsePart(())))

    def resolve(self, model: str, version: int | None) -> Any:
        if model != "scores":
            raise ModelNotFound(f"no model {model!r}")
        return SimpleNamespace(manifest=f"the manifest of {model} {version}")


async def test_until_the_node_has_started_nobody_is_asked() -> None:
    calls = ModelCalls()
    environment = calls.environment(WorkerSettings())
    with pytest.raises(NotServing, match="still starting"):
        await environment.infer(REQUEST)
    assert environment.manifest_of("scores", None) is None


async def test_then_the_pipeline_answers() -> None:
    calls = ModelCalls()
    environment = calls.environment(WorkerSettings(allow_code=True))
    calls.pipeline = cast("Pipeline", OnePipeline())
    assert (await environment.infer(REQUEST)).version == 3
    found: object = environment.manifest_of("scores", 2)
    assert found == "the manifest of scores 2"
    assert environment.manifest_of("other", None) is None
    assert environment.workers.allow_code
