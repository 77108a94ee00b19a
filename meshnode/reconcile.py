"""From what is wanted to what runs here: which versions of a model this node loads and unloads.

Every node computes the same placement from the same deployments and members, and looks after its
own part of it only. The rules, for each version of a model that is wanted or here:

==============================  ====================================  =============================
the deployment, and this node   state here                            what happens
==============================  ====================================  =============================
wants it, placed here           absent                                load
wants it, placed here           failed                                load again after a back-off
wants it, placed here           ready with other files                load them in its turn, as a replacement
wants it, placed here           fetching, loading, unloading, ready   nothing
wants it, not placed here       ready                                 unload once handed over
wants it, not placed here       failed                                unload: forget it
wants other versions only       ready                                 unload once those are served
wants other versions only       failed                                unload: forget it
there is none, or it is paused  ready, failed                         unload
any but "placed here"           fetching, loading, unloading          nothing
==============================  ====================================  =============================

What has begun finishes first: whoever fetches, loads or unloads reports how it ended, and the rules
look again. A load that nobody wants any more is unloaded then; a replica that is wanted again while
it unloads is loaded once it is gone.

*Handed over* (or *served*) means that every node of the placement is ready with the right files. A
gateway hears of one node's new replica and of another's old one in any order, so a replica is let
go only after that has held for `HANDOVER_S`: until then a gateway may know of no other.

*In its turn*: a deployment may be changed to other files under the same version. The placed nodes
then replace theirs one after the other, best-placed first, each once the one before it has been
ready for `HANDOVER_S`; if the new files fail on the first, all others keep the old ones. A replica goes on
serving its old files until the new ones are ready here (`Coming`), and if they fail it keeps them; they
are tried again after a back-off, as any load.

*Placed* means on standby too: such a replica is loaded and replaced as all others, but nobody waits for it.

*Given up*: a version that could not be loaded `GIVE_UP_AFTER` times in a row, or whose processes ended
`CRASHES` times within `CRASH_WINDOW_S`, is told to the mesh as failing here (`Reconciler.failing`), so that it is
placed elsewhere. The node is willing again after a while, longer each time, and at once for other files.

A version may have *variants* (`meshnode.models.variants`): what is wanted of this node is the one that suits
it, and a node counts as ready with any of them.

A replica from the node's own folder (`--models`) is its owner's business and is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.advertisement import ShownReplica
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.profile import Profile

RETRY_FIRST_S: Final = 5.0
"""Seconds before a failed load is tried again: a disk may have been freed by then."""

RETRY_MAX_S: Final = 300.0
"""Seconds between tries at the longest: a broken model must not keep a node busy."""

GIVE_UP_AFTER: Final = 3
"""Loads that fail in a row until a version is given up here: with the back-off, what passes by itself in a quarter of
a minute does no harm."""

CRASHES: Final = 5
"""Ends of a replica's processes within `CRASH_WINDOW_S` until its version is given up here."""

CRASH_WINDOW_S: Final = 600.0
"""Seconds: restarts wait longer and longer, so five of them take a minute or two."""

GIVE_UP_FIRST_S: Final = 300.0
"""Seconds for which a version is given up at first; a node is not asked less often than it would try by itself."""

GIVE_UP_ENDS_S: Final = 3600.0
"""Seconds for which a version is given up at most; each time doubles them until then."""

HANDOVER_S: Final = 4.0
"""Seconds for which others must have served before a replica is let go: two comparisons of states
(`OwnerConfig.sync_interval_s`), after which hardly a gateway has missed that they do."""

_DIGEST_SHOWN: Final = 12
"""Characters of a digest that tell two sets of files under one version apart."""

_IDLE: Final = (ReplicaState.READY, ReplicaState.FAILED)
"""States in which nothing is under way. What is under way finishes first."""


@dataclass(slots=True)
class Coming:
    """Other files of a version, which are fetched or loaded while the present ones serve."""

    manifest: Manifest
    state: ReplicaState
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest once."""
        self.digest = self.manifest.digest


@dataclass(slots=True)
class OwnReplica:
    """One of this node's replicas, as its driver last reported it.

    Attributes:
        manifest: What serves; while nothing does, what is to serve.
        state: Where it stands.
        deployed: Whether it follows a deployment.
        reason: Why it failed; of a ready one, what becomes or became of the files that are to replace it.
        slots: Requests that run at once.
        service_ms: Run time of one row.
        profile: Service time by batch size.
        shown: What people are shown of it.
        coming: The files that are to replace it, while they are fetched or loaded.
        digest: Of the manifest.
    """

    manifest: Manifest
    state: ReplicaState
    deployed: bool
    reason: str = ""
    slots: int = 1
    service_ms: float = 0.0
    profile: Profile = ()
    shown: ShownReplica = field(default_factory=ShownReplica)
    coming: Coming | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest once: it is a hash over the manifest."""
        self.digest = self.manifest.digest

    @property
    def to_load(self) -> Manifest:
        """What a load that is asked for now is about."""
        return self.manifest if self.coming is None else self.coming.manifest

    def begins(self, manifest: Manifest, state: ReplicaState) -> None:
        """Note that other files are on their way while these serve."""
        self.coming = Coming(manifest, state)
        self.reason = (
            f"it serves the files {_short(self.digest)} while the new ones "
            f"({_short(self.coming.digest)}) are {state}"
        )

    def failed_to_replace(self, digest: str, reason: str) -> None:
        """Note that other files could not be loaded: these serve on."""
        self.coming = None
        self.reason = (
            f"it still serves the files {_short(self.digest)}; the new ones ({_short(digest)}) "
            f"failed: {reason}"
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version that a deployment wants.

    Attributes:
        digest: Of its manifest; of several variants, of the one that suits this node.
        nodes: Where it is placed, best first.
        ready: The nodes that serve it now with exactly these files, or those of another variant.
        standby: Where it is placed besides, for the case that those nodes cannot answer.
        is_unasked: Whether it is to be served by nobody at present: it is scaled to zero.
        is_candidate: Whether a release brings it, and others serve meanwhile: nothing that goes waits for it.
    """

    digest: str
    nodes: Sequence[NodeId]
    ready: Collection[NodeId]
    standby: Sequence[NodeId] = ()
    is_unasked: bool = False
    is_candidate: bool = False

    @property
    def served(self) -> bool:
        """Whether every node of the placement serves it, and there is one, or none is wanted."""
        if not self.nodes:
            return self.is_unasked
        return all(node in self.ready for node in self.nodes)

    @property
    def hosts(self) -> tuple[NodeId, ...]:
        """All nodes that are to have it, those on standby last."""
        return (*self.nodes, *self.standby)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one model now.

    Attributes:
        load: Versions to load; one that is ready serves on until the new files are.
        unload: Versions to unload.
        look_again_at: When a plan may differ although nothing happened (monotonic seconds), or None.
    """

    load: tuple[int, ...] = ()
    unload: tuple[int, ...] = ()
    look_again_at: float | None = None


@dataclass(slots=True)
class _Failure:
    count: int = 0
    retry_at: float = float("-inf")
    crashes: tuple[float, ...] = ()  # when its processes ended, lately
    given_up: int = 0  # how often
    until: float = float("-inf")  # it is given up
    why: str = ""

    def give_up(self, now: float) -> None:
        """Leave it to other nodes for a while."""
        # The exponent is bounded: 2 to the 1,024th is no float.
        wait_s = GIVE_UP_FIRST_S * 2.0 ** min(self.given_up, 16)
        self.given_up += 1
        self.until = now + min(GIVE_UP_ENDS_S, wait_s)
        self.crashes = ()

    def is_held(self, now: float) -> bool:
        """Whether it counts although the version is ready: it is given up, or its processes ended lately."""
        return self.until > now or any(at > now - CRASH_WINDOW_S for at in self.crashes)


class Reconciler:
    """Decides loads and unloads. Tell it of failures; ask for a plan whenever something changed."""

    def __init__(self, me: NodeId) -> None:
        """`me` is the node it decides for."""
        self._me = me
        # By model, version and digest; what is no longer wanted is dropped, so deployments bound it.
        self._failures: dict[str, dict[tuple[int, str], _Failure]] = {}
        # By model and version: since when it could be let go. Bounded by this node's replicas.
        self._free_since: dict[str, dict[int, float]] = {}

    def __repr__(self) -> str:
        failures = sum(len(each) for each in self._failures.values())
        return f"<Reconciler of {self._me[:8]}, {failures} failures remembered>"

    def failed(self, manifest: Manifest, digest: str, now: float, why: str = "") -> None:
        """Note that a load failed; it is tried again later and later, while it is wanted here.

        Args:
            manifest: What was to be loaded.
            digest: Of it.
            now: Monotonic seconds.
            why: The reason, if nothing else of this version serves here: then it is given up after a few times. Files
                that were to replace others are not: those serve on, and all other nodes wait for these to succeed.
        """
        failure = self._failure(manifest, digest)
        failure.count += 1
        failure.why = why
        # The exponent is bounded: 2 to the 1,024th is no float.
        wait_s = RETRY_FIRST_S * 2.0 ** min(failure.count - 1, 16)
        failure.retry_at = now + min(RETRY_MAX_S, wait_s)
        if why and failure.count >= GIVE_UP_AFTER and failure.until <= now:
            failure.give_up(now)

    def crashed(self, manifest: Manifest, digest: str, now: float, why: str) -> None:
        """Note that a replica's processes have all ended by themselves."""
        failure = self._failure(manifest, digest)
        recent = [at for at in failure.crashes if at > now - CRASH_WINDOW_S]
        failure.crashes = (*recent, now)
        if len(failure.crashes) >= CRASHES:
            failure.why = why
            failure.give_up(now)

    def failing(self, now: float) -> list[tuple[str, int, str, str]]:
        """Return (model, version, digest, why) of what is given up here now, in no order."""
        return [
            (model, version, digest, failure.why)
            for model, failures in self._failures.items()
            for (version, digest), failure in failures.items()
            if failure.until > now
        ]

    def _failure(self, manifest: Manifest, digest: str) -> _Failure:
        failures = self._failures.setdefault(manifest.model, {})
        return failures.setdefault((manifest.version, digest), _Failure())

    def plan(
        self,
        model: str,
        wanted: Mapping[int, Wanted],
        own: Mapping[int, OwnReplica],
        now: float,
    ) -> Plan:
        """Return what to load and unload of one model now.

        Args:
            model: Its public name.
            wanted: The versions that its deployment wants; empty if there is none.
            own: This node's replicas of it, by version.
            now: Monotonic seconds.
        """
        self._forget(model, wanted, own, now)
        load: list[int] = []
        due = self._willing_again(model, wanted, now)
        free: list[int] = []
        for version, target in wanted.items():
            if self._me not in target.hosts:
                continue
            retry_at = self._when_to_load(model, version, target, own.get(version))
            if retry_at is not None and retry_at <= now:
                load.append(version)
            elif retry_at is not None:
                due.append(retry_at)
        unload: list[int] = []
        for version, replica in own.items():
            is_idle = replica.state in _IDLE and replica.coming is None
            if replica.deployed and is_idle and version not in load:
                if self._may_go_at_once(wanted.get(version), replica, bool(wanted)):
                    unload.append(version)
                elif self._is_free(version, replica, wanted):
                    retry_at = self._retry_at(model, version, wanted.get(version), now)
                    if retry_at > now:
                        due.append(retry_at)
                    else:
                        free.append(version)
        ripe, ripe_at = self._ripen(model, free, now)
        due += ripe_at
        # Of what is ripe, a version that is placed here has other files: those replace it.
        replaced = [each for each in ripe if each in wanted and self._me in wanted[each].hosts]
        gone = [version for version in ripe if version not in replaced]
        return Plan((*load, *replaced), (*unload, *gone), min(due, default=None))

    def _willing_again(self, model: str, wanted: Mapping[int, Wanted], now: float) -> list[float]:
        """Return when versions are given up no longer that are placed elsewhere for it."""
        return [
            failure.until
            for (version, _), failure in self._failures.get(model, {}).items()
            if failure.until > now and self._me not in wanted[version].hosts
        ]

    def _retry_at(self, model: str, version: int, target: Wanted | None, now: float) -> float:
        """Return when files that failed to replace others may be tried again; `now` if they did not."""
        if target is None:
            return now
        failure = self._failures.get(model, {}).get((version, target.digest))
        return now if failure is None else failure.retry_at

    def _when_to_load(
        self, model: str, version: int, target: Wanted, replica: OwnReplica | None
    ) -> float | None:
        """Return from when on a version that is placed here is to be loaded, or None for not now."""
        if replica is None:
            return float("-inf")
        if replica.state is not ReplicaState.FAILED or not replica.deployed:
            return None
        failure = self._failures.get(model, {}).get((version, target.digest))
        return failure.retry_at if failure is not None else float("-inf")

    def _may_go_at_once(
        self, target: Wanted | None, replica: OwnReplica, is_deployed: bool
    ) -> bool:
        """Whether nobody can miss a replica: none is wanted, or it failed and is not due here."""
        if replica.state is ReplicaState.FAILED:
            return target is None or self._me not in target.hosts
        return not is_deployed

    def _is_free(self, version: int, replica: OwnReplica, wanted: Mapping[int, Wanted]) -> bool:
        """Whether others serve instead of a ready replica, as things are now."""
        if replica.state is not ReplicaState.READY:
            return False
        target = wanted.get(version)
        if target is None:
            return all(each.served for each in wanted.values() if not each.is_candidate)
        if self._me not in target.hosts:
            return target.served
        if replica.digest == target.digest:
            return False
        before = target.hosts[: target.hosts.index(self._me)]
        return all(node in target.ready for node in before)

    def _ripen(self, model: str, free: list[int], now: float) -> tuple[list[int], list[float]]:
        """Return which of the free versions have been so for long enough, and when others will."""
        before = self._free_since.pop(model, {})
        since = {version: before.get(version, now) for version in free}
        ripe = [version for version in free if since[version] + HANDOVER_S <= now]
        waiting = {version: at for version, at in since.items() if version not in ripe}
        if waiting:
            self._free_since[model] = waiting
        return ripe, [at + HANDOVER_S for at in waiting.values()]

    def _forget(
        self,
        model: str,
        wanted: Mapping[int, Wanted],
        own: Mapping[int, OwnReplica],
        now: float,
    ) -> None:
        """Drop failures of what is no longer wanted, and of what has been loaded after all and does not crash."""
        kept = {
            (version, digest): failure
            for (version, digest), failure in self._failures.pop(model, {}).items()
            if version in wanted
            and wanted[version].digest == digest
            and (failure.is_held(now) or not _is_ready(own.get(version), digest))
        }
        if kept:
            self._failures[model] = kept


def why_not_replaced(reason: str, digest: str) -> str:
    """Return why files could not replace others, from what a replica says of itself; empty if it does not.

    Args:
        reason: The replica's, as `OwnReplica.failed_to_replace` words it.
        digest: Of the files that were to replace others.
    """
    return reason.partition(f"the new ones ({_short(digest)}) failed: ")[2]


def _short(digest: str) -> str:
    return digest[:_DIGEST_SHOWN]


def _is_ready(replica: OwnReplica | None, digest: str) -> bool:
    return replica is not None and replica.state is ReplicaState.READY and replica.digest == digest
