"""What models have done, in the shape of Triton's statistics extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.models.serving.statistics import TIMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.models.serving.statistics import BatchStatistics, Duration, ModelStatistics


def model_statistics(counted: Iterable[ModelStatistics]) -> HttpResponse:
    """Answer `GET …/stats`."""
    return json_response({"model_stats": [_model(each) for each in counted]})


def _model(counted: ModelStatistics) -> dict[str, Any]:
    return {
        "name": counted.model,
        "version": str(counted.version),
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {name: _duration(getattr(counted, name)) for name in TIMES},
        "response_stats": {},
        "batch_stats": [_batch(each) for each in counted.batches],
        "memory_usage": [],
    }


def _batch(batch: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": batch.batch_size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
