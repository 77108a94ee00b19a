"""Open Inference Protocol over REST: what a client asks before it infers.

Server and model metadata, health, readiness, and the part of Triton's model configuration that a
manifest knows. All of them answer GET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters")
"""What of Triton's extensions works here."""

# Triton's configuration names two types differently (model_config.proto).
_CONFIG_NAMES = {DataType.BYTES: "TYPE_STRING"}


def server_metadata(version: str) -> HttpResponse:
    """Answer `GET /v2`."""
    return json_response({"name": "meshnode", "version": version, "extensions": EXTENSIONS})


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


def model_config(manifest: Manifest) -> HttpResponse:
    """Answer `GET …/models/NAME/config` in the shape of Triton's model configuration."""
    return json_response(
        {
            "name": manifest.model,
            "platform": manifest.platform,
            "backend": manifest.runtime,
            "max_batch_size": manifest.max_batch_size,
            "input": [_configured(manifest, spec) for spec in manifest.inputs],
            "output": [_configured(manifest, spec) for spec in manifest.outputs],
            "default_model_filename": manifest.entry,
        }
    )


def _configured(manifest: Manifest, spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "data_type": _CONFIG_NAMES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": spec.shape[1:] if manifest.max_batch_size > 0 else spec.shape,
    }
