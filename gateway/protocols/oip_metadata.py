"""Open Inference Protocol over REST: what a client asks before it infers.

Server and model metadata, health and readiness; a model's configuration is in
`meshnode.gateway.protocols.oip_config`. All of them answer GET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.gateway.protocols.http import HttpResponse, json_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

EXTENSIONS = (
    "binary_tensor_data", "classification", "generate", "logging", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "parameters", "schedule_policy", "sequence", "statistics", "trace",
)  # fmt: skip
"""What of Triton's extensions works here."""


def server_metadata(version: str, more: Sequence[str] = ()) -> HttpResponse:
    """Answer `GET /v2`; `more` are extensions that work for some callers."""
    extensions = (*EXTENSIONS, *more)
    return json_response({"name": "meshnode", "version": version, "extensions": extensions})


def live() -> HttpResponse:
    """Answer `GET /v2/health/live`: whoever can answer lives."""
    return json_response({"live": True})


def ready(is_ready: bool) -> HttpResponse:
    """Answer `GET /v2/health/ready`; not ready is 400, as in Triton."""
    return json_response({"ready": is_ready}, 200 if is_ready else 400)


def model_ready(name: str, is_ready: bool) -> HttpResponse:
    """Answer `GET …/models/NAME/ready`; not ready is 400, as in Triton."""
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 400)


def model_metadata(manifest: Manifest, versions: Sequence[int]) -> HttpResponse:
    """Answer `GET …/models/NAME`.

    Args:
        manifest: The version asked for, or the newest.
        versions: All versions that are ready. Empty where the caller asked for one.
    """
    return json_response(
        {
            "name": manifest.model,
            "versions": [str(version) for version in versions or (manifest.version,)],
            "platform": manifest.platform,
            "inputs": [_described(spec) for spec in manifest.inputs],
            "outputs": [_described(spec) for spec in manifest.outputs],
        }
    )


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
