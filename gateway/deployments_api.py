"""`/mesh/v1/deployments`: what is deployed, as a whole, with its history.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/deployments` | GET | infer | what is deployed |
| `/mesh/v1/deployments/NAME?revision=R` | GET | infer | one deployment, as it is or was in a revision |
| `/mesh/v1/deployments/NAME/history` | GET | infer | its revisions, newest first; also of a deleted one |
| `/mesh/v1/deployments/NAME/diff?from=R&to=R` | GET | infer | in what two revisions differ; the last two if none is named |
| `/mesh/v1/deployments/NAME` | PUT `{"deployment", ...}` | deploy | 202 what changed; 200 if nothing did |
| `/mesh/v1/deployments/NAME` | PATCH `{"enabled"?, "env"?, "revision"?}` | deploy | the same |
| `/mesh/v1/deployments/NAME/rollback` | POST `{"to"?, "revision"?}` | deploy | the same |
| `/mesh/v1/deployments/NAME?revision=R` | DELETE | deploy | `{"name", "revision"}`; its history stays |

NAME is a name, or for GET an id. A revision is named by its id or the beginning of it. Who may not deploy is shown no
values of variables.

PUT replaces the whole definition: `"deployment"` is a document with the keys of a deployment file (docs/deployments.md), and
what it leaves out has its default. Its `model` is the name of what was published or deployed before, unless files come
with it: `"upload"` names an upload, `"path"` a path of this machine (for its owner only), and `"variants"` the further forms, each
as `{"upload"}` or `{"path"}`. `"source"` is a digest, made by the caller, of what the files were taken from: while a
deployment has the same one, its files need not come again. `"dry_run"` changes nothing and says what would change;
`"files": "needed"` in its answer says that the files must come.

`"revision"`, here and in the other changes, is the revision that the change was made from. If another one counts by
now, the answer is 409 with who changed what (`stale_revision`), unless `"force"` is true or nothing would change. With
`"retry"` a release that was rolled back begins once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from meshnode.deployment_file import DeploymentSpec, spec_of
from meshnode.errors import Forbidden, InvalidRequest
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import (
    MAX_ENVIRONMENT_BYTES,
    MAX_ENVIRONMENT_VARIABLES,
    MAX_MODEL_NAME_LENGTH,
    MAX_ORIGIN_TEXT_LENGTH,
    MAX_REPOSITORY_PATH_LENGTH,
    MAX_VARIANTS,
)
from meshnode.models.manifest import check_model_name
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.mesh_api import MeshControl
    from meshnode.gateway.protocols.caller import Caller


@dataclass(frozen=True, slots=True)
class Definition:
    """What a deployment is to be.

    Attributes:
        spec: What it says.
        places: Where its files are, by variant: a path of this machine, or an upload; empty without files.
        source: Digest of what they were taken from; empty where nobody said.
        base: The revision that it was made from; None for whichever counts.
        dry_run: Only say what would change.
        force: Whatever it was made from.
        retry: Try a release once more that was rolled back, though nothing else changes.
    """

    spec: DeploymentSpec
    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    source: str = ""
    base: str | None = None
    dry_run: bool = False
    force: bool = False
    retry: bool = False


class DeploymentsControl(Protocol):
    """What the daemon lets the gateway read and change of deployments."""

    def all(self, caller: Caller) -> list[dict[str, Any]]:
        """Describe all deployments."""
        ...

    def one(self, name: str, caller: Caller, revision: str = "") -> dict[str, Any]:
        """Describe one, as it is or was; ModelNotFound if there is none."""
        ...

    def history(self, name: str) -> list[dict[str, Any]]:
        """Describe its revisions; ModelNotFound if nothing is kept of it."""
        ...

    def diff(self, name: str, before: str, after: str, caller: Caller) -> dict[str, Any]:
        """Tell in what two revisions differ; empty for the last two."""
        ...

    async def apply(self, wish: Definition, caller: Caller) -> dict[str, Any]:
        """Let a deployment be what its definition says; StaleRevision if it was made from an older one."""
        ...

    async def rollback(
        self, name: str, revision: str, base: str | None, caller: Caller
    ) -> dict[str, Any]:
        """Write an earlier revision anew, the last other one if empty."""
        ...

    async def change(
        self,
        name: str,
        base: str | None,
        caller: Caller,
        *,
        enabled: bool | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """Change single things of a deployment; ModelNotFound if there is none."""
        ...

    def remove(self, name: str, base: str | None, caller: Caller) -> dict[str, Any]:
        """Take a deployment out of service; ModelNotFound if there is none."""
        ...


_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REPOSITORY_PATH_LENGTH)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_NAME_LENGTH)]
_Word = Annotated[str, msgspec.Meta(max_length=MAX_ORIGIN_TEXT_LENGTH)]
_Value = Annotated[str, msgspec.Meta(max_length=MAX_ENVIRONMENT_BYTES)]


class _Files(msgspec.Struct, forbid_unknown_fields=True):
    path: _Path | None = None
    upload: _Name | None = None


class _Definition(_Files, forbid_unknown_fields=True):
    deployment: dict[str, Any] = {}
    variants: Annotated[dict[str, _Files], msgspec.Meta(max_length=MAX_VARIANTS)] = {}
    source: _Word = ""
    revision: _Word | None = None
    dry_run: bool = False
    force: bool = False
    retry: bool = False


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool | None = None
    env: Annotated[
        dict[str, _Value | None], msgspec.Meta(max_length=MAX_ENVIRONMENT_VARIABLES)
    ] = {}
    revision: _Word | None = None


class _Rollback(msgspec.Struct, forbid_unknown_fields=True):
    to: _Word = ""
    revision: _Word | None = None


def show(control: DeploymentsControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `GET /mesh/v1/deployments/NAME`."""
    asked = _asked(http, "revision")
    return json_response(control.one(name, http.caller, asked.get("revision", "")))


def diff(control: DeploymentsControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `GET /mesh/v1/deployments/NAME/diff`."""
    asked = _asked(http, "from", "to")
    return json_response(
        control.diff(name, asked.get("from", ""), asked.get("to", ""), http.caller)
    )


async def apply(
    control: MeshControl, http: HttpRequest, request_id: str, name: str
) -> HttpResponse:
    """Answer `PUT /mesh/v1/deployments/NAME`."""
    wish = decode_body(http, _Definition)
    spec = spec_of({"name": name, **wish.deployment})
    if spec.name != name:
        raise InvalidRequest(f"the path names {name!r}, and the deployment {spec.name!r}")
    places = _places(wish, http.caller)
    if wish.dry_run and places:
        raise InvalidRequest("a dry run takes no files; leave out upload and path")
    elsewhere = control.forward(Role.OPERATOR, http, request_id, wish.upload)
    if elsewhere is not None:
        return await elsewhere
    definition = Definition(
        spec, places, wish.source, wish.revision, wish.dry_run, wish.force, wish.retry
    )
    answer = await control.definitions.apply(definition, http.caller)
    return json_response(answer, 202 if answer["changed"] and not wish.dry_run else 200)


async def change(control: DeploymentsControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `PATCH /mesh/v1/deployments/NAME`."""
    wish = decode_body(http, _Change)
    answer = await control.change(
        check_model_name(name), wish.revision, http.caller, enabled=wish.enabled, env=wish.env
    )
    return json_response(answer, 202 if answer["changed"] else 200)


async def rollback(control: DeploymentsControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `POST /mesh/v1/deployments/NAME/rollback`."""
    wish = decode_body(http, _Rollback)
    answer = await control.rollback(check_model_name(name), wish.to, wish.revision, http.caller)
    return json_response(answer, 202 if answer["changed"] else 200)


def remove(control: DeploymentsControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/deployments/NAME`."""
    base = _asked(http, "revision").get("revision")
    return json_response(control.remove(check_model_name(name), base, http.caller))


def _places(wish: _Definition, caller: Caller) -> dict[str, tuple[str, str]]:
    """Return where the files of a definition are, by variant.

    Raises:
        Forbidden: if a path is named by somebody who is not the owner of this node.
        InvalidRequest: if there are forms without the model itself, or none or both places of one.
    """
    given = {"": wish, **wish.variants} if wish.path or wish.upload or wish.variants else {}
    places: dict[str, tuple[str, str]] = {}
    for variant, files in given.items():
        if (files.path is None) == (files.upload is None):
            raise InvalidRequest(
                "files are named either by an upload, or by a path of this machine"
            )
        if files.path is not None and caller.scope is not Scope.OWNER:
            raise Forbidden(
                "only the owner of this node may deploy a path of its machine: upload the files, as `meshnode "
                "apply --gateway URL` and the client library do"
            )
        if "\0" in (files.path or ""):
            raise InvalidRequest("the path contains a NUL character")
        places[variant] = (files.path or "", files.upload or "")
    return places


def _asked(http: HttpRequest, *known: str) -> dict[str, str]:
    """Return the query of a request.

    Raises:
        InvalidRequest: if it has something else than what is known, or something twice.
    """
    fields = parse_qsl(http.query, keep_blank_values=True)
    asked = dict(fields)
    if len(fields) != len(asked) or not asked.keys() <= set(known):
        raise InvalidRequest(f"after ? this path takes {', '.join(known)}, each once")
    return asked


_TAG = "Models and deployments"
_PATH = "/mesh/v1/deployments/{model}"
_OBJECT: dict[str, Any] = {"type": "object"}
_LIST: dict[str, Any] = {"type": "array", "items": _OBJECT}
_REVISION = ("revision", "Id of a revision, or its beginning")

OPERATIONS = (
    Operation("GET", "/mesh/v1/deployments", "What is deployed", _TAG, answer=_LIST),
    Operation("GET", _PATH, "One deployment", _TAG, answer=_OBJECT, query=(_REVISION,)),
    Operation("GET", f"{_PATH}/history", "Its revisions", _TAG, answer=_LIST),
    Operation(
        "GET", f"{_PATH}/diff", "In what two revisions differ", _TAG, answer=_OBJECT,
        query=(("from", "A revision; else the one before"), ("to", "A revision; else the one that counts")),
    ),
    Operation(
        "PUT", _PATH, "Apply a definition", _TAG, Scope.DEPLOY, _Definition, _OBJECT, 202, also=(200,), errors=(409,)
    ),
    Operation(
        "PATCH", _PATH, "Pause, resume, or change variables", _TAG, Scope.DEPLOY, _Change, _OBJECT, 202,
        also=(200,), errors=(409,),
    ),
    Operation(
        "POST", f"{_PATH}/rollback", "Restore a revision", _TAG, Scope.DEPLOY, _Rollback, _OBJECT, 202,
        also=(200,), errors=(409,),
    ),
    Operation(
        "DELETE", _PATH, "Withdraw a deployment", _TAG, Scope.DEPLOY, answer=_OBJECT, errors=(409,),
        query=(("revision", "The revision that counts, as far as the caller knows"),),
    ),
)  # fmt: skip
"""What the routes do whose answers are here."""
