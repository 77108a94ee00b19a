"""`/mesh/v1/artifacts`: versions that lie in the mesh's store, whether they are served or not.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/artifacts` | GET | infer | every version that was published or is deployed |
| `/mesh/v1/artifacts` | POST `{"upload", "name"?, "version"?, "variant"?, "metrics"?, "note"?, "replace"?}` | deploy | 201 `{"name", "versions"}` |
| `/mesh/v1/artifacts` | POST `{"path", ...}` | owner | the same |
| `/mesh/v1/artifacts/NAME/VERSION` | DELETE | deploy | `{"name", "version"}` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from meshnode.errors import Forbidden, InvalidRequest
from meshnode.gateway.mesh_api import Metrics, Note
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import (
    MAX_MODEL_NAME_LENGTH,
    MAX_NAME_LENGTH,
    MAX_REPOSITORY_PATH_LENGTH,
    MAX_VERSION,
)
from meshnode.models.manifest import check_model_name
from meshnode.models.provenance import Said
from meshnode.models.variants import check_variant_name
from meshnode.state.artifact import check_artifact_version
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from meshnode.gateway.mesh_api import MeshControl


class _Publication(msgspec.Struct, forbid_unknown_fields=True):
    path: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REPOSITORY_PATH_LENGTH)] | None
    ) = None
    upload: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_NAME_LENGTH)] | None = (
        None
    )
    name: str | None = None
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)] | None = None
    metrics: Metrics = {}
    note: Note = ""
    variant: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""
    replace: bool = False


async def publish(control: MeshControl, http: HttpRequest, request_id: str) -> HttpResponse:
    """Answer `POST /mesh/v1/artifacts`."""
    wish = decode_body(http, _Publication)
    if wish.name is not None:
        check_model_name(wish.name)
    if (wish.path is None) == (wish.upload is None):
        raise InvalidRequest("a publication names either an upload, or a path of this machine")
    metrics = tuple(sorted(wish.metrics.items()))
    said = Said(metrics, wish.note, wish.version, check_variant_name(wish.variant), wish.replace)
    if wish.upload is not None:
        elsewhere = control.forward(Role.OPERATOR, http, request_id, wish.upload)
        if elsewhere is not None:
            return await elsewhere
        made = await control.publish_upload(wish.upload, wish.name, said, http.caller)
        return json_response(made, 201)
    assert wish.path is not None
    if http.caller.scope is not Scope.OWNER:
        raise Forbidden(
            "only the owner of this node may publish a path of its machine: upload the files, as "
            "`meshnode publish --gateway URL` and the client library do"
        )
    if "\0" in wish.path:
        raise InvalidRequest("the path contains a NUL character")
    return json_response(await control.publish(wish.path, wish.name, said), 201)


def withdraw(control: MeshControl, http: HttpRequest, place: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/artifacts/NAME/VERSION`."""
    name, _, text = place.partition("/")
    version = check_artifact_version(text)
    control.withdraw(check_model_name(name), version, http.caller)
    return json_response({"name": name, "version": version})


_TAG = "Artifacts"
OPERATIONS = (
    Operation("GET", "/mesh/v1/artifacts", "Published versions", _TAG, answer={"type": "array"}),
    Operation(
        "POST", "/mesh/v1/artifacts", "Publish a version", _TAG, Scope.DEPLOY, _Publication,
        {"type": "object"}, 201,
    ),
    Operation(
        "DELETE", "/mesh/v1/artifacts/{model}/{version}", "Take a version back", _TAG, Scope.DEPLOY,
        answer={"type": "object"},
    ),
)  # fmt: skip
"""What the routes do whose answers are here."""
