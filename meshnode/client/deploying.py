"""A deployment from a path to its replicas, as a flow of calls."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.client.calls import (
    Blocking,
    Call,
    Flow,
    Pause,
    ask,
    get_document,
    json_message,
    mesh_model_path,
)
from meshnode.client.results import DeployProgress, ModelInfo, ReplicaInfo, read_as
from meshnode.client.sources import fetch, room_for_copies
from meshnode.client.uploading import UPLOADS_PATH, find_files, upload
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    MeshError,
    ModelNotFound,
    PeerError,
    ProtocolError,
)
from meshnode.limits import CLIENT_PUBLISH_TIMEOUT_S
from meshnode.models.repository.source_urls import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from meshnode.client.calls import Reply
    from meshnode.client.uploading import Upload

DEPLOYMENTS_PATH: Final = "/mesh/v1/deployments"

POLL_INTERVAL_S: Final = 0.2
"""Between looks at a deployment: below what a person notices, and cheap for the daemon."""

HOPELESS_AFTER_S: Final = 2.0
"""For which no node must have been able to take a model: one that has just joined tells what it can run
a moment later."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall be deployed.

    Attributes:
        path: A model's folder or a bare model file on this machine, or the URL of one.
        name: Public name, or None for the folder's or file's.
        replicas: How many nodes shall serve it; None for 1, or the number of `on`.
        on: Nodes that shall, by name or id.
        copies: The folder that keeps what a URL names; empty for one that is gone afterwards.
        variant: Which further form this is of what is deployed under the name; empty for the model itself.
        metrics: How good it was found to be, by name.
        note: What is said of it.
        artifact: The path is the name of what was published before.
        version: Which version of that; None for the newest.
        endpoint: A path under which it is offered besides its name, such as `/count-cars`; empty for none, None
            for what its `config.pbtxt` says.
        tasks: What it does for clients that know only tasks, such as `embedding:output=vector`; None likewise.
        cache: Whether answers are kept and reused; None likewise.
        autoscaling: What the number of replicas follows, with the keys of a deployment file; None to leave it.
        release: How a new version takes the place of the old one, likewise; None for directly.
    """

    path: str
    name: str | None = None
    replicas: int | None = None
    on: Sequence[str] = ()
    copies: str = ""
    variant: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    artifact: bool = False
    version: int | None = None
    endpoint: str | None = None
    tasks: Sequence[str] | None = None
    cache: bool | None = None
    autoscaling: Mapping[str, Any] | None = None
    release: Mapping[str, Any] | None = None

    @property
    def wanted(self) -> int:
        """How many replicas are asked for, with autoscaling to begin with."""
        if self.autoscaling is not None:
            return self.replicas or max(1, self.autoscaling.get("min", 1))
        return self.replicas or len(self.on) or 1

    def document(self) -> dict[str, Any]:
        """Return what is said of it in a request, besides where it is."""
        said: dict[str, Any] = {"replicas": self.wanted, "on": list(self.on)}
        tasks = None if self.tasks is None else list(self.tasks)
        offer = {"endpoint": self.endpoint, "tasks": tasks, "cache": self.cache}
        said |= {key: value for key, value in offer.items() if value is not None}
        if self.autoscaling is not None:
            said["autoscaling"] = dict(self.autoscaling)
        if self.release is not None:
            said["release"] = dict(self.release)
        if self.artifact:
            return {**said, "artifact": self.path, "version": self.version}
        further = {"variant": self.variant, "metrics": dict(self.metrics), "note": self.note}
        return {
            "name": self.name,
            **said,
            **{key: value for key, value in further.items() if value},
        }


def ignore(_: DeployProgress) -> None:
    """Watch no progress."""


def deploy(
    wish: Wish,
    *,
    local: bool,
    gateways: int,
    progress: Callable[[DeployProgress], object],
    clock: Callable[[], float],
    wait_s: float | None,
) -> Flow[dict[str, Any]]:
    """Deploy a model; `MeshClient.deploy` says the rest.

    Args:
        wish: What.
        local: Whether the daemon is on this machine and reads the path itself.
        gateways: How many gateways the client has.
        progress: Told of every change.
        clock: Monotonic seconds.
        wait_s: How long to wait for the replicas once the gateway has the files; None not to wait.

    Returns:
        The model's entry, as JSON.
    """
    if wish.artifact:
        entry = yield from _post(wish.document(), wait_s)
        if wait_s is None:
            return entry
        return (yield from wait_for(entry, wish.wanted, progress, clock, clock(), wait_s))
    if is_url(wish.path):
        with room_for_copies(wish.copies) as copies:
            fetched = yield Blocking(lambda: fetch(wish.path, copies, progress))
            return (
                yield from deploy(
                    replace(wish, path=str(fetched)),
                    local=local,
                    gateways=gateways,
                    progress=progress,
                    clock=clock,
                    wait_s=wait_s,
                )
            )
    began = clock()
    if local:
        place = Path(wish.path).expanduser().absolute()
        if not place.exists():
            raise ConfigError(f"{wish.path!r} does not exist; name a model folder or a model file")
        entry = yield from _post({"path": str(place), **wish.document()}, wait_s)
    else:
        begun = yield from upload_files(wish, gateways, progress)
        began = clock()
        try:
            request = {"upload": begun.id, **wish.document()}
            entry = yield from _post(request, wait_s, only=begun.gateway)
        except MeshError:
            yield from drop_upload(begun)
            raise
    if wait_s is None:
        return entry
    return (yield from wait_for(entry, wish.wanted, progress, clock, began, wait_s))


def _post(
    document: Mapping[str, Any], wait_s: float | None, only: int | None = None
) -> Flow[dict[str, Any]]:
    call = Call(
        "POST",
        DEPLOYMENTS_PATH,
        json_message(document),
        repeatable=False,
        keyed=True,
        only=only,
        timeout_s=max(wait_s or 0.0, CLIENT_PUBLISH_TIMEOUT_S),
    )
    return _entry((yield from ask(call)))


def _entry(reply: Reply) -> dict[str, Any]:
    entry = reply.document()
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ProtocolError(f"the answer of {reply.url} is no model's entry")
    return entry


def upload_files(
    wish: Wish,
    gateways: int,
    progress: Callable[[DeployProgress], object],
    only: int | None = None,
) -> Flow[Upload]:
    """Send a model's files to a gateway, this one if it is named; return the upload that has them."""
    files = yield Blocking(lambda: find_files(wish.path, wish.name))
    total_bytes = sum(each.size_bytes for each in files)

    def sent(count: int) -> None:
        progress(
            DeployProgress(
                stage="uploading",
                name=wish.name or "",
                sent_bytes=count,
                total_bytes=total_bytes,
                wanted=wish.wanted,
                text=f"{count} of {total_bytes} bytes uploaded",
            )
        )

    return (yield from upload(files, sent, gateways, only))


def drop_upload(begun: Upload) -> Flow[None]:
    """Forget an upload that is of no use; it would also expire by itself."""
    path = f"{UPLOADS_PATH}/{begun.id}"
    with contextlib.suppress(MeshError):
        yield from ask(Call("DELETE", path, only=begun.gateway, max_tries=1, timeout_s=2.0))


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a deployment is.

    Attributes:
        ready: Replicas that serve the deployed version.
        wanted: How many shall.
        others: `node: state` of each replica that does not serve it yet, and how many replicas
            no node can take.
        failed: Why the first failed replica failed, or None.
        unplaced: How many replicas no node can take, over all versions.
        received_bytes: Of the files that nodes fetch, what has arrived.
        total_bytes: What they fetch.
    """

    ready: int
    wanted: int
    others: tuple[str, ...]
    failed: str | None
    unplaced: int = 0
    received_bytes: int = 0
    total_bytes: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether there are as many as there shall be."""
        return self.ready >= self.wanted

    @property
    def is_stuck(self) -> bool:
        """Whether some are ready, and all others wait for nodes that are not there."""
        return 0 < self.ready < self.wanted <= self.ready + self.unplaced

    def __str__(self) -> str:
        """Say it in one line."""
        return "; ".join([f"{self.ready} of {self.wanted} replicas ready", *self.others])


def standing(model: ModelInfo, versions: Collection[int], wanted: int) -> Standing:
    """Read a model's entry.

    What counts are the replicas on the nodes that are to serve it now, with the files that are meant for
    them. Others serve on until these do, and say nothing of whether these will.
    """
    replicas = [each for each in model.replicas if each.version in versions and each.placed]
    failed = [each for each in replicas if _failure(each)]
    others = [f"{each.node}: {_state(each)}" for each in replicas if not _is_ready(each)]
    fetches = [each.fetch for each in replicas if each.fetch is not None]
    if model.missing:
        why = (
            ", ".join(f"{each.node}: {each.reason}" for each in model.ineligible) or "none is left"
        )
        others.append(f"no node can take {model.missing} more ({why})")
    reasons = [f"{each.node}: {_failure(each)}" for each in failed]
    return Standing(
        ready=sum(map(_is_ready, replicas)),
        wanted=wanted,
        others=tuple(others),
        failed=reasons[0] if reasons else None,
        unplaced=model.missing * max(1, len(versions)),
        received_bytes=sum(each.received_bytes for each in fetches),
        total_bytes=sum(each.total_bytes for each in fetches),
    )


def _wanted_of(model: ModelInfo, otherwise: int) -> int:
    """Return how many nodes are to serve each version now: 0 of an autoscaled model that sleeps."""
    return otherwise if model.wanted is None else model.wanted


def _is_ready(replica: ReplicaInfo) -> bool:
    return replica.state == "ready" and replica.current


def _failure(replica: ReplicaInfo) -> str:
    """Return why a replica failed, or its replacement; empty if nothing did."""
    if replica.state == "failed" and replica.current:
        return replica.failure or replica.reason or "no reason given"
    return replica.failure


def _state(replica: ReplicaInfo) -> str:
    if replica.current:
        state = replica.state
    else:
        state = "waits for its turn" if not replica.reason else replica.reason
    return state if replica.fetch is None else f"{state} {replica.fetch}"


def wait_for(
    entry: Mapping[str, Any],
    wanted: int,
    progress: Callable[[DeployProgress], object],
    clock: Callable[[], float],
    began: float,
    wait_s: float,
) -> Flow[dict[str, Any]]:
    """Look at a deployment until each deployed version has its replicas, or its release has begun its first step.

    Raises:
        PeerError: if a replica fails, or the deployment is withdrawn or replaced, or all that could be
            placed is ready and no node can take the rest, or no node can take any.
        DeadlineExceeded: with what is missing, when the time is over.
    """
    model = read_as(ModelInfo, entry)
    told = {key: entry[key] for key in ("warnings",) if key in entry}
    if model.release is not None and model.release.outcome is None:
        begun = yield from _wait_for_release(model, progress, clock, began + wait_s)
        return {**begun, **told}
    name, versions, revision = model.name, model.deployed or model.versions, model.revision
    shown, hopeless_since = "", None
    while True:
        now = standing(model, versions, _wanted_of(model, wanted) * len(versions))
        if str(now) != shown:
            shown = str(now)
            progress(_waiting(name, now))
        if now.failed is not None:
            raise PeerError(f"{name} failed on {now.failed}")
        if now.is_ready:
            return {**entry, **told}
        if now.is_stuck:
            raise _stuck(model, now)
        if not _is_hopeless(model):
            hopeless_since = None
        elif hopeless_since is None:
            hopeless_since = clock()
        elif clock() >= hopeless_since + HOPELESS_AFTER_S:
            raise _hopeless(model)
        if clock() >= began + wait_s:
            raise DeadlineExceeded(
                f"{name} is not ready after {wait_s:g} s ({now}); it goes on in the background, "
                "see: meshnode models"
            )
        yield Pause(POLL_INTERVAL_S)
        entry = yield from _look(name, revision)
        model = read_as(ModelInfo, entry)


def _wait_for_release(
    model: ModelInfo,
    progress: Callable[[DeployProgress], object],
    clock: Callable[[], float],
    until: float,
) -> Flow[dict[str, Any]]:
    """Look at a release until its first step has begun: the new version has its replicas.

    Raises:
        PeerError: if it is rolled back or paused before that, or its deployment is withdrawn or replaced.
        DeadlineExceeded: when the time is over.
    """
    name, revision = model.name, model.revision
    shown = ""
    while True:
        entry = yield from _look(name, revision)
        release = read_as(ModelInfo, entry).release
        if release is None or release.phase in ("running", "keeping", "done"):
            return entry
        if str(release) != shown:
            shown = str(release)
            progress(DeployProgress(stage="waiting", name=name, text=f"{name}: {release}"))
        if release.phase != "preparing" and (release.step == 0 or release.outcome is not None):
            raise PeerError(f"{name}: {release}; see: meshnode rollout status {name}")
        if release.phase != "preparing":
            return entry
        if clock() >= until:
            raise DeadlineExceeded(
                f"{name}: the release has not begun in time ({release}); it goes on in the background, see: meshnode "
                f"rollout status {name}"
            )
        yield Pause(POLL_INTERVAL_S)


def _stuck(model: ModelInfo, now: Standing) -> PeerError:
    """Return the error for a deployment that waits for more nodes than there are."""
    counts = f"{now.ready} of {now.wanted} replicas are ready"
    why = "; ".join(f"{each.node}: {each.reason}" for each in model.ineligible)
    waiting = f"{now.unplaced} wait{'s' if now.unplaced == 1 else ''} for nodes that can take them"
    fewer = _wanted_of(model, now.wanted) - model.missing
    return PeerError(
        f"{model.name}: {counts}; {waiting}{f' ({why})' if why else ''}; the deployment stays "
        f"(lower it with --replicas {fewer})"
    )


def _is_hopeless(model: ModelInfo) -> bool:
    """Whether all nodes are there, and none can take it."""
    return (
        bool(model.ineligible)
        and not model.placed
        and all(each.lasting for each in model.ineligible)
    )


def _hopeless(model: ModelInfo) -> PeerError:
    """Return the error for a deployment that no node of the mesh can take as it is."""
    why = "; ".join(f"{each.node}: {each.reason}" for each in model.ineligible)
    return PeerError(
        f"no node can take {model.name} ({why}); the deployment stays and begins once a node can, or take "
        f"it back with: meshnode undeploy {model.name}"
    )


def _waiting(name: str, now: Standing) -> DeployProgress:
    return DeployProgress(
        stage="ready" if now.is_ready else "waiting",
        name=name,
        ready=now.ready,
        wanted=now.wanted,
        sent_bytes=now.received_bytes,
        total_bytes=now.total_bytes,
        text=f"{name}: {now}",
    )


def _look(name: str, revision: str) -> Flow[dict[str, Any]]:
    """Return the model's entry; the daemon that took the deployment has it at once.

    Raises:
        PeerError: if it was withdrawn or replaced meanwhile.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(ModelNotFound):
        found = yield from get_document(mesh_model_path(name))
    if not found.get("revision"):
        raise PeerError(f"{name} was undeployed before it was ready")
    if found["revision"] != revision:
        raise PeerError(f"{name} was deployed again before it was ready; the later one counts")
    return found


def wait_ready(
    name: str,
    replicas: int | None,
    version: int | None,
    progress: Callable[[DeployProgress], object],
    clock: Callable[[], float],
    wait_s: float,
) -> Flow[ModelInfo]:
    """Wait until a model is ready; `MeshClient.wait_ready` says the rest."""
    until = clock() + wait_s
    shown = "it is not known yet"
    while True:
        model: ModelInfo | None = None
        with contextlib.suppress(ModelNotFound):
            model = read_as(ModelInfo, (yield from get_document(mesh_model_path(name))))
        if model is not None:
            versions = (model.deployed or model.versions) if version is None else (version,)
            now = standing(model, versions, replicas or _wanted_of(model, 1) * len(versions))
            if str(now) != shown:
                shown = str(now)
                progress(_waiting(name, now))
            if now.is_ready:
                return model
            if now.failed is not None:
                raise PeerError(f"{name} failed on {now.failed}")
        if clock() >= until:
            raise DeadlineExceeded(
                f"{name} is not ready after {wait_s:g} s ({shown}); see: meshnode models"
            )
        yield Pause(POLL_INTERVAL_S)
