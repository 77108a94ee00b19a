"""OpenAI's list of models, and the object of one: joined with TensorFlow Serving's, which has the same path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.models.tasks import offers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.models.manifest import Manifest


def model_object(name: str, manifest: Manifest | None) -> dict[str, Any]:
    """Return what OpenAI's API says of a model.

    Args:
        name: The model's.
        manifest: Of its newest version; None as long as nobody has said what the model is.
    """
    provenance = None if manifest is None else manifest.provenance
    created_s = 0.0
    if provenance is not None:
        created_s = provenance.created_s or provenance.published_s
    return {
        "id": name,
        "object": "model",
        "created": int(created_s),
        "owned_by": "meshnode" if provenance is None else provenance.publisher or "meshnode",
        "tasks": [] if manifest is None else list(offers(manifest)),
    }


def model_list(models: Iterable[tuple[str, Manifest | None]]) -> dict[str, Any]:
    """Return what OpenAI's API says of all models."""
    return {"object": "list", "data": [model_object(*model) for model in models]}
