"""Definitions of deployments from a file to their replicas, as flows of calls.

Everything is checked before anything is sent: the files, the paths that they name, and the nodes and models that the
mesh must have. Then each deployment is compared with what there is, and only what differs is written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlencode

import msgspec

from meshnode.client.calls import (
    Blocking,
    Call,
    Flow,
    ask,
    deployment_path,
    get_document,
    json_message,
)
from meshnode.client.deploying import Wish, drop_upload, upload_files, wait_for
from meshnode.client.deployment_results import (
    DeploymentDiff,
    DeploymentEdit,
    DeploymentRevision,
)
from meshnode.client.results import DeploymentInfo, DeployProgress, read_as
from meshnode.client.sources import fetch, room_for_copies
from meshnode.client.uploading import find_files
from meshnode.deployment_file import (
    DeploymentSpec,
    refusal,
    source_text,
    twice,
)
from meshnode.deployment_writing import document_of
from meshnode.errors import ConfigError, MeshError, UsageError
from meshnode.limits import CLIENT_PUBLISH_TIMEOUT_S
from meshnode.models.manifest import check_model_name
from meshnode.models.repository.source_urls import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from meshnode.client.orders import Order, Orders
    from meshnode.client.uploading import Upload

MODEL_FILES: Final = (".onnx", ".pt", ".pth", ".pt2", ".tflite", ".mar")
"""Names that end like this are meant as files, whether they are there or not."""

_READ_BYTES: Final = 2**20


# Where a model is


def place_of(order: Order) -> tuple[Literal["url", "path", "name"], str]:
    """Return what a definition names as its model: a URL, a path of this machine, or what the mesh has.

    A name that is a path here, too, is that path, unless the definition says which version of the name it means.
    """
    model = order.spec.model
    if is_url(model):
        return "url", model
    place = order.folder / Path(model).expanduser()
    if not _is_name(model) or Path(model).suffix in MODEL_FILES:
        return "path", str(place)
    return ("path", str(place)) if place.exists() and not order.spec.versions else ("name", model)


def _is_name(model: str) -> bool:
    try:
        check_model_name(model)
    except MeshError:
        return False
    return True


def _flaws_here(order: Order) -> Iterator[str]:
    """Yield what is wrong with a definition on this machine."""
    spec, told = order.spec, order.found.fault
    kind, _ = place_of(order)
    paths = [(f"variants.{name}", path) for name, path in spec.variants]
    for key, model in [("model", spec.model), *paths] if kind == "path" else paths:
        if not is_url(model) and not (order.folder / Path(model).expanduser()).exists():
            yield told(key, f"{model!r} does not exist")
    if kind != "name":
        if spec.versions:
            yield told("version", "this goes with the name of what was published, not with a path")
        return
    if spec.model != spec.name:
        yield told(
            "model",
            f"{spec.model!r} is no path here, and what was published under that name is deployed under it: write "
            f"name = {spec.model!r}, or give a path",
        )
    for key in ("metrics", "note", "variants"):
        if getattr(spec, key):
            yield told(key, "what was published is deployed as it was published, without this")


def _flaws_there(
    order: Order, nodes: Sequence[Any], artifacts: Sequence[Any], deployed: Container[str]
) -> Iterator[str]:
    """Yield what is wrong with a definition in this mesh."""
    spec, told = order.spec, order.found.fault
    other = _compared_with(spec)
    if other and other not in deployed:
        yield told("release.against", f"nothing is deployed under the name {other!r}")
    for node in spec.on:
        found = [each for each in nodes if node in (each["id"], each["name"])]
        alive = [each for each in found if each["state"] in ("alive", "suspect")]
        if not found:
            known = ", ".join(sorted(str(each["name"]) for each in nodes)[:8])
            yield told("on", f"no node is called {node!r}; there are {known}")
        elif len(alive) > 1:
            yield told("on", f"several nodes are called {node!r}; name one by its id")
    if place_of(order)[0] != "name" or spec.model != spec.name:
        return
    versions = sorted({each["version"] for each in artifacts if each["name"] == spec.model})
    if not versions and not spec.versions:
        yield told("model", f"{spec.model!r} is no path here, and nothing was published or is deployed under that "
                            "name")  # fmt: skip


def _compared_with(spec: DeploymentSpec) -> str:
    """Return which other deployment's answers a new version is compared with; empty for none."""
    against = "" if spec.release is None else spec.release.against
    return against.removeprefix("deployment:") if against.startswith("deployment:") else ""


def check(orders: Orders) -> Flow[None]:
    """Check everything before anything is sent.

    Raises:
        ConfigError: with every mistake.
    """
    told = [*orders.told, *twice(each.found for each in orders.orders)]
    every = [*orders.orders, *orders.drafts]
    told += yield Blocking(lambda: [flaw for each in every for flaw in _flaws_here(each)])
    try:
        nodes = artifacts = []
        deployed = {each.spec.name for each in every}
        if any(each.spec.on for each in every):
            nodes = yield from get_document("/mesh/v1/nodes")
        if any(place_of(each)[0] == "name" for each in every):
            artifacts = yield from get_document("/mesh/v1/artifacts")
        if any(_compared_with(each.spec) for each in every):
            known = yield from get_document("/mesh/v1/deployments")
            deployed |= {str(each["name"]) for each in known}
        told += [flaw for each in every for flaw in _flaws_there(each, nodes, artifacts, deployed)]
    except MeshError:
        if not told:  # what is wrong here can be said without the mesh
            raise
    if told:
        raise refusal(told)


# Applying


@dataclass(frozen=True, slots=True)
class Way:
    """How definitions are applied.

    Attributes:
        local: Whether the daemon is on this machine and reads paths itself.
        gateways: How many gateways the client has.
        progress: Told of every change.
        clock: Monotonic seconds.
        wait_s: How long to wait for each deployment's replicas; None not to wait.
        dry_run: Only say what would change.
        force: Whatever others have changed meanwhile.
        copies: The folder that keeps what URLs name; empty for one that is gone afterwards.
        retry: Try a release once more that was rolled back.
    """

    local: bool
    gateways: int
    progress: Callable[[DeployProgress], object]
    clock: Callable[[], float]
    wait_s: float | None = None
    dry_run: bool = False
    force: bool = False
    copies: str = ""
    retry: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a definition would change.

    Attributes:
        order: The definition.
        edit: What.
        places: Where its files are on this machine, by variant; empty for what the mesh has.
        source: Digest of what they were taken from.
    """

    order: Order
    edit: DeploymentEdit
    places: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


def apply(orders: Orders, way: Way) -> Flow[list[DeploymentEdit]]:
    """Let deployments be what their definitions say; `MeshClient.apply` says the rest."""
    yield from check(orders)
    with room_for_copies(way.copies) as copies:
        plans = yield from _planned(orders, way, copies)
        if way.dry_run:
            return [plan.edit for plan in plans]
        edits = yield from _written(plans, way)
    if way.wait_s is None:
        return edits
    for at, (order, edit) in enumerate(zip(orders.orders, edits, strict=True)):
        if order.spec.enabled and edit.model is not None:
            edits[at] = yield from wait_until_ready(edit, way)
    return edits


def _planned(orders: Orders, way: Way, copies: Path) -> Flow[list[_Plan]]:
    """Have every definition compared with what there is, before any is written.

    Raises:
        UsageError: what the mesh refuses; of several, a ConfigError with all of them.
    """
    plans: list[_Plan] = []
    refused: list[tuple[Order, UsageError]] = []
    for order in orders.orders:
        try:
            plan = yield from _plan(order, way, copies)
        except UsageError as error:
            refused.append((order, error))
        else:
            plans.append(plan)
    if len(refused) == 1:
        raise refused[0][1]
    if refused:
        told = [f"{order.found.source}: {order.spec.name}: {error}" for order, error in refused]
        raise refusal(told)
    return plans


def _written(plans: Sequence[_Plan], way: Way) -> Flow[list[DeploymentEdit]]:
    edits: list[DeploymentEdit] = []
    for plan in plans:
        if not plan.edit.changed:
            edits.append(plan.edit)
            continue
        edit = yield from _send(plan, way)
        edits.append(edit)
        if len(plans) > 1:  # should a later one fail: this stays
            text = f"{edit.name}: applied, revision {edit.revision}"
            way.progress(DeployProgress(stage="waiting", name=edit.name, text=text))
    return edits


def wait_until_ready(edit: DeploymentEdit, way: Way) -> Flow[DeploymentEdit]:
    """Wait until a deployment has its replicas; raises as `MeshClient.deploy` does."""
    assert way.wait_s is not None
    if edit.model is None:
        return edit
    entry = msgspec.to_builtins(edit.model)
    wanted = 1 if edit.model.wanted is None else edit.model.wanted
    ready = yield from wait_for(entry, wanted, way.progress, way.clock, way.clock(), way.wait_s)
    return msgspec.structs.replace(edit, model=read_as(type(edit.model), ready))


def _plan(order: Order, way: Way, copies: Path) -> Flow[_Plan]:
    spec = order.spec
    asked = {"dry_run": True, "force": way.force, "retry": way.retry}
    kind, place = place_of(order)
    if kind == "name":
        edit = yield from _put(spec, asked)
        return _Plan(order, edit)
    places = {"": place, **dict(spec.variants)}
    for variant, each in places.items():
        if is_url(each):
            places[variant] = str((yield Blocking(partial(fetch, each, copies, way.progress))))
        elif variant:
            places[variant] = str(order.folder / Path(each).expanduser())
    source = yield Blocking(lambda: source_of(spec, places))
    edit = yield from _put(spec, {**asked, "source": source})
    return _Plan(order, edit, places, source)


def _send(plan: _Plan, way: Way) -> Flow[DeploymentEdit]:
    """Apply a definition, with its files if they have to come."""
    spec, places = plan.order.spec, plan.places
    said: dict[str, Any] = {"source": plan.source, "retry": way.retry}
    said |= {"force": True} if way.force else {"revision": plan.edit.revision}
    if plan.edit.files != "needed":
        return (yield from _put(spec, said))
    if way.local:
        forms = {
            name: {"path": str(Path(each).absolute())} for name, each in places.items() if name
        }
        where = {"path": str(Path(places[""]).absolute()), "variants": forms}
        return (yield from _put(spec, {**said, **where}))
    begun: dict[str, Upload] = {}
    try:
        only: int | None = None
        for variant, each in places.items():
            # All on one gateway: the definition names them together.
            wish = Wish(each, spec.name, spec.replicas)
            begun[variant] = yield from upload_files(wish, way.gateways, way.progress, only)
            only = begun[variant].gateway
        forms = {name: {"upload": each.id} for name, each in begun.items() if name}
        where = {"upload": begun[""].id, "variants": forms}
        return (yield from _put(spec, {**said, **where}, only=only))
    except MeshError:
        for upload in begun.values():
            yield from drop_upload(upload)
        raise


def _put(
    spec: DeploymentSpec, said: Mapping[str, Any], only: int | None = None
) -> Flow[DeploymentEdit]:
    document = document_of(spec)
    body = {"deployment": document, **{key: value for key, value in said.items() if value}}
    call = Call(
        "PUT",
        deployment_path(spec.name),
        json_message(body),
        repeatable=only is None,  # an upload is gone once it was taken
        keyed=only is not None,
        only=only,
        timeout_s=CLIENT_PUBLISH_TIMEOUT_S,
    )
    return read_as(DeploymentEdit, (yield from ask(call)).document())


def source_of(spec: DeploymentSpec, places: Mapping[str, str]) -> str:
    """Return a digest of all that a definition's versions are made from; it reads the files.

    What is said of them and how they are offered belong to it: what a definition takes back of these goes back to
    what the files say.
    """
    files = {
        variant: {each.path: _sha256(each.place) for each in find_files(place, spec.name)}
        for variant, place in places.items()
    }
    said = [spec.path, spec.tasks, spec.cache, spec.metrics, spec.note]
    return source_text(_digest(files), _digest(said))


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(place: Path) -> str:
    digest = hashlib.sha256()
    try:
        with place.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


# Single things


def show(name: str, revision: str) -> Flow[DeploymentInfo]:
    """Describe a deployment, as it is or was in a revision."""
    query = f"?{urlencode({'revision': revision})}" if revision else ""
    return read_as(DeploymentInfo, (yield from get_document(deployment_path(name) + query)))


def history(name: str) -> Flow[list[DeploymentRevision]]:
    """List the revisions of a deployment."""
    found = yield from get_document(f"{deployment_path(name)}/history")
    return read_as(list[DeploymentRevision], found)


def diff(name: str, before: str, after: str) -> Flow[DeploymentDiff]:
    """Tell in what two revisions of a deployment differ."""
    asked = {key: value for key, value in (("from", before), ("to", after)) if value}
    query = f"?{urlencode(asked)}" if asked else ""
    return read_as(
        DeploymentDiff, (yield from get_document(f"{deployment_path(name)}/diff{query}"))
    )


def rollback(name: str, to: str, revision: str | None) -> Flow[DeploymentEdit]:
    """Write an earlier revision anew."""
    wish = {"to": to, **_made_from(revision)}
    call = Call(
        "POST",
        f"{deployment_path(name)}/rollback",
        json_message(wish),
        repeatable=False,
        keyed=True,
        timeout_s=CLIENT_PUBLISH_TIMEOUT_S,
    )
    return read_as(DeploymentEdit, (yield from ask(call)).document())


def change(
    name: str,
    revision: str | None,
    *,
    enabled: bool | None = None,
    env: Mapping[str, str | None] | None = None,
) -> Flow[DeploymentEdit]:
    """Change single things of a deployment; a second time changes nothing."""
    wish: dict[str, Any] = {**_made_from(revision)}
    if enabled is not None:
        wish["enabled"] = enabled
    if env:
        wish["env"] = dict(env)
    call = Call("PATCH", deployment_path(name), json_message(wish))
    return read_as(DeploymentEdit, (yield from ask(call)).document())


def _made_from(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}
