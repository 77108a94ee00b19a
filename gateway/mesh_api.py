"""`/mesh/v1`: what the command line, the client library and people ask of a node.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/status` | GET | infer | this node; its process and paths for admins only |
| `/mesh/v1/nodes` | GET | infer | all members |
| `/mesh/v1/rtt?from=A&to=B` | GET | infer | `{"from", "to", "rtt_ms", "rtt_estimated"}`; nodes by name or id |
| `/mesh/v1/models`, `/mesh/v1/models/NAME` | GET | infer | models and their replicas |
| `/mesh/v1/deployments` | POST `{"upload", "name"?, "replicas"?, "on"?}` | deploy | 202 and the model's entry |
| `/mesh/v1/deployments` | POST `{"path", "name"?, "replicas"?, "on"?}` | owner | 202 and the model's entry |
| `/mesh/v1/deployments/NAME` | DELETE | deploy | `{"name"}` |
| `/mesh/v1/uploads` | GET | admin | a list of `{"id", "piece_bytes", "expires_at", "key_id", "size_bytes", "received_bytes"}`, of this node |
| `/mesh/v1/uploads` | POST `{"files": [{"path", "size_bytes"}, ...]}` | deploy | 201 `{"id", "piece_bytes", "expires_at"}` |
| `/mesh/v1/uploads/ID` | GET | deploy | `{"id", "piece_bytes", "expires_at", "files": [{"path", "size_bytes", "received_bytes"}]}` |
| `/mesh/v1/uploads/ID` | DELETE | deploy | `{"id"}`; an admin may drop anyone's |
| `/mesh/v1/uploads/ID/INDEX?offset=N` | PUT, raw bytes | deploy | `{"received_bytes"}` of that file |
| `/mesh/v1/keys` | GET | admin | a list of keys, without their secrets |
| `/mesh/v1/keys` | POST `{"name", "scopes"?, "ttl_s"?}` | admin | 201 `{"id", "name", "scopes", "created_at", "expires_at", "key"}` |
| `/mesh/v1/keys/ID_OR_NAME` | DELETE | admin | the key as in the list; `"changed"` is false if it was revoked before |
| `/mesh/v1/doctor` | POST `{"peer"?}` | admin | `{"subject", "id", "checks"}`: what was tried between this node and a peer (name, id or address), or on this node alone |
| `/mesh/v1/shutdown` | POST `{"leave"?}` | owner | 202 `{"pid", "leave"}`; the daemon ends, and forgets its mesh if told to leave |

Who is a member, and with which role, is `trust_api`'s; devices that ask to be one are `pairing_api`'s.

A change is made by this node only where its role in the mesh allows that; else it has another node
make it, which is asked with the caller's key (`MeshControl.forward`).

*Scopes*: each includes those above it; `owner` is the control channel, whose file permissions are
its owner's. `meshnode.gateway.access` says who has which. A path of this machine can be deployed by
its owner only; everyone else uploads:

1. POST the list of files. A path is `MODEL/VERSION/FILE` (or `MODEL/config.pbtxt`), or the bare name
   of one `.onnx` file with its external data beside it; in Unicode's NFC, below no other root.
2. PUT each file, by its place in that list, in pieces of at most `piece_bytes`, one after the other.
   A piece that has arrived already is answered like a new one, so repeat it when no answer came.
   One that would leave a gap, or overlaps only partly, is refused (400) with the offset that is
   wanted; after a break, GET the upload and go on from `received_bytes`. An empty file needs no piece.
3. POST the deployment with the upload's id. What is incomplete is refused, naming the first file
   that is and what it lacks. Afterwards the upload is gone; if the deployment is refused it stays.

An upload belongs to the key that began it (`key_id` is empty for the node's owner), and ends
`expires_at`, which each piece puts off, or at once when the key is revoked. One key has at most half
of a node's places, and a large upload keeps no more of the disk than has arrived and a little: a piece
that finds the disk full is refused (503), and can be sent again when there is room. Times are RFC 3339 texts; `expires_at` of a key is null if it does not expire.

Errors are `{"error": sentence, "code": word}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from meshnode.errors import Forbidden, InvalidRequest, TooLarge
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.limits import (
    MAX_HOST_LENGTH,
    MAX_MEMBERS,
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_MODEL_NAME_LENGTH,
    MAX_REPOSITORY_PATH_LENGTH,
    UPLOAD_PIECE_BYTES,
)
from meshnode.models.manifest import Manifest, check_model_name
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from meshnode.gateway.pairing_api import JoinDeskControl
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.trust_api import TrustControl
    from meshnode.metrics import Metric
    from meshnode.types import Buffer

_OFFSET_DIGITS = len(str(MAX_MODEL_FILE_BYTES))


class MeshControl(Protocol):
    """What the daemon lets the gateway read and change.

    Entries are plain dictionaries in the shapes that docs/ documents for `/mesh/v1`.
    """

    def status(self) -> dict[str, Any]:
        """Describe this node."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Say whether the node is in its mesh, and if not, why."""
        ...

    def nodes(self) -> list[dict[str, Any]]:
        """Describe all members, this node included."""
        ...

    def rtt(self, one: str, other: str) -> dict[str, Any]:
        """Describe the round trip between two nodes, each by its name or id."""
        ...

    def models(self) -> list[dict[str, Any]]:
        """Describe all models of the mesh."""
        ...

    def model(self, name: str) -> dict[str, Any]:
        """Describe one model; ModelNotFound if there is none."""
        ...

    def manifest(self, model: str, version: int | None) -> Manifest:
        """Return what a model version (None: the newest ready) is; ModelNotFound if none is."""
        ...

    def is_model_ready(self, model: str, version: int | None) -> bool:
        """Say whether any replica is ready; ModelNotFound if there is no such model."""
        ...

    @property
    def trust(self) -> TrustControl:
        """Who belongs to the mesh."""
        ...

    @property
    def join_desk(self) -> JoinDeskControl:
        """The devices that ask this node to be admitted."""
        ...

    def forward(
        self, needed: Role, http: HttpRequest, request_id: str, upload: str | None = None
    ) -> Awaitable[HttpResponse] | None:
        """Have another node answer that has the needed role; None if this node has it."""
        ...

    def keys(self) -> list[dict[str, Any]]:
        """Describe all API keys, without their secrets."""
        ...

    def create_key(
        self, name: str, scopes: list[str], ttl_s: int | None, caller: Caller
    ) -> dict[str, Any]:
        """Make an API key and describe it, with its text, which nobody can be told again."""
        ...

    def revoke_key(self, key: str, caller: Caller) -> dict[str, Any]:
        """Revoke the API key of this id or name and describe it; NotFound if there is none."""
        ...

    async def deploy(
        self, path: str, name: str | None, replicas: int | None, on: list[str]
    ) -> dict[str, Any]:
        """Deploy a model from a path of this machine and return its entry."""
        ...

    async def deploy_upload(
        self, upload: str, name: str | None, replicas: int | None, on: list[str], caller: Caller
    ) -> dict[str, Any]:
        """Deploy a model that was uploaded, and return its entry; the upload is gone then."""
        ...

    def uploads(self) -> list[dict[str, Any]]:
        """Describe all uploads to this node."""
        ...

    async def begin_upload(self, files: list[tuple[str, int]], caller: Caller) -> dict[str, Any]:
        """Make room for files, each a path and its size in bytes; describe the upload."""
        ...

    def upload(self, upload: str, caller: Caller) -> dict[str, Any]:
        """Describe an upload; NotFound if this caller has none of this id."""
        ...

    async def take_piece(
        self, upload: str, index: int, offset: int, data: Buffer, caller: Caller
    ) -> int:
        """Append a piece to a file of an upload; return how many bytes of that file are there."""
        ...

    async def drop_upload(self, upload: str, caller: Caller) -> None:
        """Forget an upload; NotFound if this caller has none of this id."""
        ...

    async def undeploy(self, name: str, caller: Caller) -> None:
        """Withdraw a deployment; ModelNotFound if there is none."""
        ...

    async def examine(self, peer: str) -> dict[str, Any]:
        """Try what lies between this node and another; empty: this node alone."""
        ...

    def shutdown(self, leave: bool) -> dict[str, Any]:
        """End the daemon once this is answered; with `leave` it forgets its mesh."""
        ...

    def metrics(self) -> Iterable[Metric]:
        """Everything that other parts of the node count."""
        ...


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_NAME_LENGTH)]

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REPOSITORY_PATH_LENGTH)]


class _Key(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    scopes: Annotated[list[str], msgspec.Meta(max_length=len(Scope))] = msgspec.field(
        default_factory=lambda: [str(Scope.INFER)]
    )
    ttl_s: int | None = None


class _File(msgspec.Struct):
    path: _Path
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_MODEL_FILE_BYTES)]


class _Upload(msgspec.Struct):
    files: Annotated[list[_File], msgspec.Meta(min_length=1, max_length=MAX_MODEL_FILES)]


class _Deployment(msgspec.Struct):
    path: _Path | None = None
    upload: _Name | None = None
    name: _Name | None = None
    replicas: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)] | None = None
    on: Annotated[list[_Name], msgspec.Meta(max_length=MAX_MEMBERS)] = []


class _Examination(msgspec.Struct):
    peer: Annotated[str, msgspec.Meta(max_length=MAX_HOST_LENGTH + 8)] = ""


class _Shutdown(msgspec.Struct):
    leave: bool = False


_FOR_ADMINS = frozenset({"pid", "data_dir", "log_file", "config_files"})


def status(control: MeshControl, caller: Caller) -> dict[str, Any]:
    """Describe this node; where it keeps its files is for those who may change it."""
    document = control.status()
    if caller.scope.allows(Scope.ADMIN):
        return document
    return {key: value for key, value in document.items() if key not in _FOR_ADMINS}


def rtt(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `GET /mesh/v1/rtt?from=A&to=B`."""
    fields = parse_qsl(http.query, keep_blank_values=True)
    asked = dict(fields)
    if len(fields) != 2 or asked.keys() != {"from", "to"}:
        raise InvalidRequest("two nodes are named by ?from=NODE&to=NODE, by their names or ids")
    return json_response(control.rtt(asked["from"], asked["to"]))


async def deploy(control: MeshControl, http: HttpRequest, request_id: str) -> HttpResponse:
    """Answer `POST /mesh/v1/deployments`: accepted, not yet ready."""
    wish = decode_body(http, _Deployment)
    if wish.name is not None:
        check_model_name(wish.name)
    if (wish.path is None) == (wish.upload is None):
        raise InvalidRequest("a deployment names either an upload, or a path of this machine")
    if wish.path is None:
        assert wish.upload is not None
        elsewhere = control.forward(Role.OPERATOR, http, request_id, wish.upload)
        if elsewhere is not None:
            return await elsewhere
        entry = await control.deploy_upload(
            wish.upload, wish.name, wish.replicas, wish.on, http.caller
        )
        return json_response(entry, 202)
    if http.caller.scope is not Scope.OWNER:
        raise Forbidden(
            "only the owner of this node may deploy a path of its machine: upload the files, as "
            "`meshnode deploy --gateway URL` and the client library do"
        )
    if "\0" in wish.path:
        raise InvalidRequest("the path contains a NUL character")
    return json_response(await control.deploy(wish.path, wish.name, wish.replicas, wish.on), 202)


async def undeploy(control: MeshControl, http: HttpRequest, name: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/deployments/NAME`."""
    await control.undeploy(check_model_name(name), http.caller)
    return json_response({"name": name})


async def examine(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/doctor`; that takes seconds where something does not answer."""
    return json_response(await control.examine(decode_body(http, _Examination).peer))


def shutdown(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/shutdown`: accepted; the process ends when what runs is finished."""
    return json_response(control.shutdown(decode_body(http, _Shutdown).leave), 202)


def create_key(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/keys`."""
    wish = decode_body(http, _Key)
    return json_response(control.create_key(wish.name, wish.scopes, wish.ttl_s, http.caller), 201)


async def begin_upload(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/uploads`."""
    files = [(file.path, file.size_bytes) for file in decode_body(http, _Upload).files]
    return json_response(await control.begin_upload(files, http.caller), 201)


async def take_piece(
    control: MeshControl, http: HttpRequest, upload: str, index: int
) -> HttpResponse:
    """Answer `PUT /mesh/v1/uploads/ID/INDEX?offset=N`."""
    field, _, text = http.query.partition("=")
    if field != "offset" or not text.isascii() or not text.isdigit() or len(text) > _OFFSET_DIGITS:
        raise InvalidRequest("a piece names the place of its first byte: ?offset=NUMBER")
    if len(http.body) > UPLOAD_PIECE_BYTES:
        raise TooLarge(f"a piece has at most {UPLOAD_PIECE_BYTES} bytes, not {len(http.body)}")
    received = await control.take_piece(upload, index, int(text), http.body, http.caller)
    return json_response({"received_bytes": received})


async def drop_upload(control: MeshControl, http: HttpRequest, upload: str) -> HttpResponse:
    """Answer `DELETE /mesh/v1/uploads/ID`."""
    await control.drop_upload(upload, http.caller)
    return json_response({"id": upload})
