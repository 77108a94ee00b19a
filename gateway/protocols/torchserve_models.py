"""What is served, as TorchServe's management API tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.gateway.protocols.http import HttpResponse, json_response

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.models.manifest import Manifest

_STATES = {"ready": "READY", "failed": "UNHEALTHY", "unloading": "SCALED_DOWN"}
"""TorchServe's words for where a worker stands; `LOADING` for all others."""


def listed(names: Sequence[str], start: int, limit: int) -> HttpResponse:
    """Answer `GET /models`: one page of it.

    Args:
        names: All models, sorted.
        start: Where the page begins.
        limit: How many it has at most.
    """
    page = names[start : start + limit]
    body: dict[str, Any] = {"models": [{"modelName": name, "modelUrl": name} for name in page]}
    if start + limit < len(names):
        body["nextPageToken"] = str(start + limit)
    return json_response(body)


def described(versions: Iterable[Mapping[str, Any]]) -> HttpResponse:
    """Answer `GET /models/NAME` with what `version_described` returned of each version."""
    return json_response(list(versions))


def version_described(
    name: str, version: int, manifest: Manifest | None, view: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Describe one version.

    Args:
        name: The model's.
        version: Its number.
        manifest: What it is, if that is known.
        view: The model's entry of `/mesh/v1/models`; None for one that is in the store only.
    """
    replicas = [each for each in (view or {}).get("replicas", ()) if each["version"] == version]
    wanted = (view or {}).get("wanted") or len(replicas)
    batching = manifest.execution.batching if manifest is not None else None
    return {
        "modelName": name,
        "modelVersion": str(version),
        "modelUrl": name,
        "runtime": "" if manifest is None else manifest.runtime,
        "minWorkers": wanted,
        "maxWorkers": wanted,
        "batchSize": max(1, manifest.max_batch_size) if manifest is not None else 1,
        "maxBatchDelay": 0 if batching is None else batching.max_queue_delay_us // 1000,
        "loadedAtStartup": False,
        "workers": [_worker(each) for each in replicas],
    }


def _worker(replica: Mapping[str, Any]) -> dict[str, Any]:
    device = str(replica.get("device") or "cpu")
    return {
        "id": replica["node"],
        "status": _STATES.get(str(replica["state"]), "LOADING"),
        "gpu": device.startswith(("gpu", "cuda")),
        "node": replica["node"],
        "reason": replica.get("reason") or "",
    }
