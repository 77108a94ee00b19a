"""`/mesh/v1`: what the command line, the client library and people ask of a node.

| path | method | scope | answer |
|---|---|---|---|
| `/mesh/v1/status` | GET | infer | this node; its process and paths for admins only |
| `/mesh/v1/nodes` | GET | infer | all members |
| `/mesh/v1/rtt?from=A&to=B` | GET | infer | `{"from", "to", "rtt_ms", "rtt_estimated"}`; nodes by name or id |
| `/mesh/v1/models`, `/mesh/v1/models/NAME` | GET | infer | models and their replicas |
| `/mesh/v1/deployments` | POST `{"upload", "name"?, "replicas"?, "on"?}` | deploy | 202 and the model's entry |
| `/mesh/v1/deployments` | POST `{"path", "name"?, "replicas"?, "on"?}` | owner | 202 and the model's entry |
| `/mesh/v1/deployments` | POST `{"artifact", "version"?, "replicas"?, "on"?}` | deploy | 202 and the model's entry |
| `/mesh/v1/deployments` and below | GET, PUT, PATCH, DELETE | | what is deployed, and its history: `deployments_api`; how a release stands: `rollout_api` |
| `/mesh/v1/artifacts` | GET, POST; `/NAME/VERSION`: DELETE | | published versions: `artifacts_api` |
| `/mesh/v1/uploads` | GET | admin | a list of `{"id", "piece_bytes", "expires_at", "key_id", "size_bytes", "received_bytes"}`, of this node |
| `/mesh/v1/uploads` | POST `{"files": [{"path", "size_bytes"}, ...]}` | deploy | 201 `{"id", "piece_bytes", "expires_at"}` |
| `/mesh/v1/uploads/ID` | GET | deploy | `{"id", "piece_bytes", "expires_at", "files": [{"path", "size_bytes", "received_bytes"}]}` |
| `/mesh/v1/uploads/ID` | DELETE | deploy | `{"id"}`; an admin may drop anyone's |
| `/mesh/v1/uploads/ID/INDEX?offset=N` | PUT, raw bytes | deploy | `{"received_bytes"}` of that file |
| `/mesh/v1/keys` | GET | admin | a list of keys, without their secrets |
| `/mesh/v1/keys` | POST `{"name", "scopes"?, "ttl_s"?, "rate"?, "concurrency"?, "priority"?, "share"?}` | admin | 201 `{"id", "name", "scopes", "created_at", "expires_at", "rate", "concurrency", "priority", "share", "key"}` |
| `/mesh/v1/keys/ID_OR_NAME` | PUT `{"rate"?, "concurrency"?, "priority"?, "share"?}` | admin | the key as in the list, and `"changed"`; what is left out has no limit from now on |
| `/mesh/v1/keys/ID_OR_NAME` | DELETE | admin | the key as in the list; `"changed"` is false if it was revoked before |
| `/mesh/v1/doctor` | POST `{"peer"?}` | admin | `{"subject", "id", "checks"}`: what was tried between this node and a peer (name, id or address), or on this node alone |
| `/mesh/v1/shutdown` | POST `{"leave"?}` | owner | 202 `{"pid", "leave"}`; the daemon ends, and forgets its mesh if told to leave |

Where a request would go, and why, is `explain_api`'s. Who is a member, and with which role, is `trust_api`'s; devices that ask to be one are `pairing_api`'s.

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

A deployment may say how its model is offered to clients (docs/protocols.md): `"endpoint"`, a path such as `/count-cars`;
`"tasks"`, what it does for clients that know only tasks, such as `["embedding:output=vector"]`; `"cache"`, whether
answers are kept. What it does not say is as the model's `config.pbtxt` says; a deployment that differs in nothing
else changes it without loading the model again.

Errors are `{"error": sentence, "code": word}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from meshnode.deployment_file import read_autoscaling, release_plan
from meshnode.errors import Forbidden, InvalidRequest, ModelError, TooLarge
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.body import decode_body
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.key_limit import NO_LIMIT, KeyLimit, read_limit
from meshnode.limits import (
    MAX_HOST_LENGTH,
    MAX_MEMBERS,
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_MODEL_NAME_LENGTH,
    MAX_NAME_LENGTH,
    MAX_NOTE_LENGTH,
    MAX_PROVENANCE_METRICS,
    MAX_REPOSITORY_PATH_LENGTH,
    MAX_ROUTE_LENGTH,
    MAX_TASK_TEXT_LENGTH,
    MAX_TASKS,
    MAX_VERSION,
    UPLOAD_PIECE_BYTES,
)
from meshnode.models.exposure import NO_CHANGE, ExposureChange, exposed_path
from meshnode.models.manifest import Manifest, check_model_name
from meshnode.models.provenance import NOTHING, Said
from meshnode.models.tasks import check_tasks, read_task
from meshnode.types import Role, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from meshnode.gateway.deployments_api import DeploymentsControl
    from meshnode.gateway.drain_api import DrainControl
    from meshnode.gateway.explain_api import RoutingControl
    from meshnode.gateway.jobs_api import JobsControl
    from meshnode.gateway.mesh_events import MeshEvents
    from meshnode.gateway.pairing_api import JoinDeskControl
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.repository_api import RepositoryControl
    from meshnode.gateway.rollout_api import RolloutControl
    from meshnode.gateway.trust_api import TrustControl
    from meshnode.metrics import Metric
    from meshnode.models.serving.statistics import ModelStatistics
    from meshnode.state.release import Release
    from meshnode.state.scaling import Scaling
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

    def health(self) -> str:
        """Return what the process does: `ok`, or `draining`, `drained` or `leaving`."""
        ...

    @property
    def drains(self) -> DrainControl:
        """The nodes that are to be emptied."""
        ...

    @property
    def routing(self) -> RoutingControl:
        """How the gateway decides about requests."""
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

    @property
    def definitions(self) -> DeploymentsControl:
        """What is deployed, as definitions with their history."""
        ...

    @property
    def rollouts(self) -> RolloutControl:
        """Releases on their way."""
        ...

    @property
    def events(self) -> MeshEvents:
        """What happens in the mesh."""
        ...

    def manifest(self, model: str, version: int | None) -> Manifest:
        """Return what a model version (None: the newest ready) is; ModelNotFound if none is."""
        ...

    def is_model_ready(self, model: str, version: int | None) -> bool:
        """Say whether any replica is ready; ModelNotFound if there is no such model."""
        ...

    async def statistics(self, model: str | None, version: int | None) -> list[ModelStatistics]:
        """Return what models have done on the whole mesh, all of them if None; ModelNotFound if there is none."""
        ...

    @property
    def repository(self) -> RepositoryControl:
        """The mesh's models as a repository that clients load from."""
        ...

    @property
    def jobs(self) -> JobsControl:
        """The mesh's jobs."""
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
        self,
        name: str,
        scopes: list[str],
        ttl_s: int | None,
        caller: Caller,
        limit: KeyLimit = NO_LIMIT,
    ) -> dict[str, Any]:
        """Make an API key and describe it, with its text, which nobody can be told again."""
        ...

    def limit_key(self, key: str, limit: KeyLimit, caller: Caller) -> dict[str, Any]:
        """Change how much the holder of a key (its id or name) may ask; NotFound if there is none."""
        ...

    def revoke_key(self, key: str, caller: Caller) -> dict[str, Any]:
        """Revoke the API key of this id or name and describe it; NotFound if there is none."""
        ...

    async def deploy(
        self,
        path: str,
        name: str | None,
        replicas: int | None,
        on: list[str],
        variant: str = "",
        said: Said = NOTHING,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a model from a path of this machine and return its entry."""
        ...

    async def deploy_upload(
        self,
        upload: str,
        name: str | None,
        replicas: int | None,
        on: list[str],
        caller: Caller,
        variant: str = "",
        said: Said = NOTHING,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a model that was uploaded, and return its entry; the upload is gone then."""
        ...

    def deploy_published(
        self,
        name: str,
        version: int | None,
        replicas: int | None,
        on: list[str],
        caller: Caller,
        offer: ExposureChange = NO_CHANGE,
        scaling: Scaling | None = None,
        release: Release | None = None,
    ) -> dict[str, Any]:
        """Deploy a version that was published (None: the newest); ModelNotFound if there is none."""
        ...

    async def publish(self, path: str, name: str | None, said: Said) -> dict[str, Any]:
        """Put a model from a path of this machine into the mesh's store; describe what was published."""
        ...

    async def publish_upload(
        self, upload: str, name: str | None, said: Said, caller: Caller
    ) -> dict[str, Any]:
        """Put a model that was uploaded into the mesh's store; the upload is gone then."""
        ...

    def artifacts(self) -> list[dict[str, Any]]:
        """Describe every version that was published or is deployed."""
        ...

    def withdraw(self, name: str, version: int, caller: Caller) -> None:
        """Take a published version back; ModelNotFound if it was not published."""
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

_Rate = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]

_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REPOSITORY_PATH_LENGTH)]

_Route = Annotated[str, msgspec.Meta(max_length=MAX_ROUTE_LENGTH)]

_Task = Annotated[str, msgspec.Meta(min_length=1, max_length=2 * MAX_TASK_TEXT_LENGTH)]

Metrics = Annotated[dict[str, float], msgspec.Meta(max_length=MAX_PROVENANCE_METRICS)]
"""Metrics of a version, by name."""

Note = Annotated[str, msgspec.Meta(max_length=MAX_NOTE_LENGTH)]
"""What its publisher says of a version."""


class _Key(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    scopes: Annotated[list[str], msgspec.Meta(max_length=len(Scope))] = msgspec.field(
        default_factory=lambda: [str(Scope.INFER)]
    )
    ttl_s: int | None = None
    rate: _Rate | None = None
    concurrency: int | None = None
    priority: _Word | None = None
    share: int | None = None


class _KeyLimit(msgspec.Struct, forbid_unknown_fields=True):
    rate: _Rate | None = None
    concurrency: int | None = None
    priority: _Word | None = None
    share: int | None = None


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
    variant: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)] = ""
    artifact: _Name | None = None
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)] | None = None
    metrics: Metrics = {}
    note: Note = ""
    endpoint: _Route | None = None
    tasks: Annotated[list[_Task], msgspec.Meta(max_length=MAX_TASKS)] | None = None
    cache: bool | None = None
    autoscaling: dict[str, Any] | None = None
    release: dict[str, Any] | None = None


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
    if sum(each is not None for each in (wish.path, wish.upload, wish.artifact)) != 1:
        raise InvalidRequest(
            "a deployment names either an upload, or a path of this machine, or an artifact"
        )
    said = Said(tuple(sorted(wish.metrics.items())), wish.note)
    offer = _offer(wish)
    scaling = None if wish.autoscaling is None else read_autoscaling(wish.autoscaling)
    release = None if wish.release is None else release_plan(wish.release)
    if wish.artifact is not None:
        elsewhere = control.forward(Role.OPERATOR, http, request_id)
        if elsewhere is not None:
            return await elsewhere
        name = check_model_name(wish.artifact)
        entry = control.deploy_published(
            name, wish.version, wish.replicas, wish.on, http.caller, offer, scaling, release
        )
        return json_response(entry, 202)
    if wish.path is None:
        assert wish.upload is not None
        elsewhere = control.forward(Role.OPERATOR, http, request_id, wish.upload)
        if elsewhere is not None:
            return await elsewhere
        entry = await control.deploy_upload(
            wish.upload,
            wish.name,
            wish.replicas,
            wish.on,
            http.caller,
            wish.variant,
            said,
            offer,
            scaling,
            release,
        )
        return json_response(entry, 202)
    if http.caller.scope is not Scope.OWNER:
        raise Forbidden(
            "only the owner of this node may deploy a path of its machine: upload the files, as "
            "`meshnode deploy --gateway URL` and the client library do"
        )
    if "\0" in wish.path:
        raise InvalidRequest("the path contains a NUL character")
    entry = await control.deploy(
        wish.path, wish.name, wish.replicas, wish.on, wish.variant, said, offer, scaling, release
    )
    return json_response(entry, 202)


def _offer(wish: _Deployment) -> ExposureChange:
    """Return how a deployment wants its model to be offered."""
    try:
        path = None if wish.endpoint is None else exposed_path(wish.endpoint)
    except ModelError as error:
        raise InvalidRequest(f"endpoint: {error}") from None
    return ExposureChange(
        path,
        None if wish.tasks is None else check_tasks(tuple(map(read_task, wish.tasks))),
        wish.cache,
    )


async def examine(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/doctor`; that takes seconds where something does not answer."""
    return json_response(await control.examine(decode_body(http, _Examination).peer))


def shutdown(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/shutdown`: accepted; the process ends when what runs is finished."""
    return json_response(control.shutdown(decode_body(http, _Shutdown).leave), 202)


def create_key(control: MeshControl, http: HttpRequest) -> HttpResponse:
    """Answer `POST /mesh/v1/keys`."""
    wish = decode_body(http, _Key)
    limit = read_limit(wish.rate, wish.concurrency, wish.priority, wish.share)
    made = control.create_key(wish.name, wish.scopes, wish.ttl_s, http.caller, limit)
    return json_response(made, 201)


def limit_key(control: MeshControl, http: HttpRequest, key: str) -> HttpResponse:
    """Answer `PUT /mesh/v1/keys/KEY`: what is left out has no limit from now on."""
    wish = decode_body(http, _KeyLimit)
    limit = read_limit(wish.rate, wish.concurrency, wish.priority, wish.share)
    return json_response(control.limit_key(key, limit, http.caller))


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


_OBJECT: dict[str, Any] = {"type": "object"}
_LIST: dict[str, Any] = {"type": "array", "items": _OBJECT}
_DEPLOY, _ADMIN = Scope.DEPLOY, Scope.ADMIN
_MESH, _MODELS, _UPLOADS, _KEYS = "Mesh", "Models and deployments", "Uploads", "API keys"

OPERATIONS = (
    Operation("GET", "/mesh/v1/status", "This node", _MESH, answer=_OBJECT),
    Operation("GET", "/mesh/v1/nodes", "All members", _MESH, answer=_LIST),
    Operation(
        "GET", "/mesh/v1/rtt", "The round trip between two nodes", _MESH, answer=_OBJECT,
        query=(("from*", "A node's name or id"), ("to*", "The other's")),
    ),
    Operation("POST", "/mesh/v1/doctor", "Examine a connection", _MESH, _ADMIN, _Examination, _OBJECT),
    Operation("POST", "/mesh/v1/shutdown", "End the daemon", _MESH, Scope.OWNER, _Shutdown, _OBJECT, 202),
    Operation("GET", "/mesh/v1/models", "Models and their replicas", _MODELS, answer=_LIST),
    Operation("GET", "/mesh/v1/models/{model}", "One model and its replicas", _MODELS, answer=_OBJECT),
    Operation("POST", "/mesh/v1/deployments", "Deploy a model", _MODELS, _DEPLOY, _Deployment, _OBJECT, 202),
    Operation("GET", "/mesh/v1/uploads", "Uploads to this node", _UPLOADS, _ADMIN, answer=_LIST),
    Operation("POST", "/mesh/v1/uploads", "Begin an upload", _UPLOADS, _DEPLOY, _Upload, _OBJECT, 201),
    Operation("GET", "/mesh/v1/uploads/{upload}", "How far an upload is", _UPLOADS, _DEPLOY, answer=_OBJECT),
    Operation("DELETE", "/mesh/v1/uploads/{upload}", "Drop an upload", _UPLOADS, _DEPLOY, answer=_OBJECT),
    Operation(
        "PUT", "/mesh/v1/uploads/{upload}/{index}", "Send a piece of a file", _UPLOADS, _DEPLOY,
        answer=_OBJECT, query=(("offset*", "Place of its first byte"),),
        body_types=("application/octet-stream",), schema_path="/mesh/v1/uploads/u1/0",
    ),
    Operation("GET", "/mesh/v1/keys", "API keys, without their secrets", _KEYS, _ADMIN, answer=_LIST),
    Operation("POST", "/mesh/v1/keys", "Make an API key", _KEYS, _ADMIN, _Key, _OBJECT, 201),
    Operation("PUT", "/mesh/v1/keys/{key}", "Limit an API key", _KEYS, _ADMIN, _KeyLimit, _OBJECT),
    Operation("DELETE", "/mesh/v1/keys/{key}", "Revoke an API key", _KEYS, _ADMIN, answer=_OBJECT),
)  # fmt: skip
"""What the routes do whose answers are here."""
