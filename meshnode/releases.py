"""What a node knows of all releases: how far each has come, and, as a deployment's steward, what follows.

How far a release has come is what its `Ending` in the desired state says, else its steward's word
(`meshnode.stewardship`), else what the desired state keeps of it, else that it begins. All nodes follow it alike: gateways
split requests and tell in their own states what they saw (`Evidence`), placement and the reconciler keep the versions that
are resident.

Each step of a release, and in the end its `Ending`, is written by an operator's node, so that a mesh of which all nodes are
started anew goes on where it stopped and begins nothing again: by the first in the deployment's ranking that may, at once, and
where that one does not, by the next ones after `WRITING_TURN_S` each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.deployments import ALL_RESIDENT, Resident
from meshnode.effects import Effect, Emit
from meshnode.errors import InvalidRequest, MeshError, ModelNotFound, ProtocolError, TooLarge
from meshnode.release_sight import ReleaseSight
from meshnode.rollout import Progress, evidence_key, shortened
from meshnode.routing.releasing.gates import judge
from meshnode.routing.releasing.progress import advance, begin
from meshnode.state.release import END_PREFIX, ORDER_PREFIX, STEP_PREFIX, STOP_PREFIX, Ending, Order
from meshnode.types import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.authority import Authority
    from meshnode.deployments import Deployments, Known
    from meshnode.drafts import Drafts
    from meshnode.fleet import Part
    from meshnode.membership.member import Member
    from meshnode.routing.releasing.evidence import Cells
    from meshnode.routing.releasing.gates import Judgement
    from meshnode.routing.releasing.progress import Decided
    from meshnode.routing.router import Router
    from meshnode.state.desired import DesiredState, Draft
    from meshnode.state.owner import OwnerStates
    from meshnode.state.release import Outcome, Release, Verb
    from meshnode.types import NodeId

WRITING_TURN_S: Final = 3.0
"""Seconds that each node has to write what became of a release, before the next one does: a write reaches everybody
within one."""

_STARTING: Final = "replicas of the new version start"

_NOTHING: Final = Progress((0, 0), "preparing", -1, 0, _STARTING)


def release_of(key: str) -> str:
    """Return which deployment's release a key of the desired state is about; empty for other keys."""
    for prefix in (ORDER_PREFIX, STOP_PREFIX, END_PREFIX):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return ""


class ReleaseView(NamedTuple):
    """What people are shown of a release.

    Attributes:
        release: The plan.
        revision: Which release of the deployment.
        progress: How far it has come.
        ending: How it came out; None as long as that is not settled.
        steward: Who decides; None while nobody has.
        epoch: Counts the stewards; 0 likewise.
        judgement: What the gates say of what is known here now; None where nothing is looked at.
        cells: What gateways saw of both versions in this step, by version and class of devices.
        baseline_ready: Nodes that serve the old version.
        candidate_ready: Nodes that serve the new one.
        wanted: How many are to.
        waits: Why not all of those have the new one: no room, or it fails; empty where nothing is in the way.
    """

    release: Release
    revision: tuple[int, int]
    progress: Progress
    ending: Ending | None
    steward: NodeId | None
    epoch: int
    judgement: Judgement | None
    cells: Cells
    baseline_ready: int
    candidate_ready: int
    wanted: int
    waits: str


class ReleaseBook:
    """One node's part in all releases."""

    def __init__(
        self,
        me: NodeId,
        *,
        deployments: Deployments,
        desired: DesiredState,
        owners: OwnerStates,
        members: Mapping[NodeId, Member],
        router: Router,
        parts: Callable[[Known], list[Part]],
        drafts: Drafts,
        authority: Authority,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Begin with nothing heard.

        Args:
            me: This node.
            deployments: What is wanted.
            desired: Holds orders and endings.
            owners: What each node says about itself.
            members: All members; a live view.
            router: Follows how far releases have come, and sees both versions' answers.
            parts: Where the versions of a deployment belong; asks `resident` itself.
            drafts: Prepares endings.
            authority: Who may write them.
            name_of: A node's name.
        """
        self._me = me
        self._deployments = deployments
        self._desired = desired
        self._owners = owners
        self._members = members
        self._router = router
        self._parts = parts
        self._sight = ReleaseSight(owners, members, router.table, parts, name_of)
        self._drafts = drafts
        self._authority = authority
        # All bounded by the deployments that have a release.
        self._counting: dict[str, Progress] = {}
        self._told: set[str] = set()  # of which this node's own state has evidence
        self._due_since: dict[str, float] = {}  # since when something is to be written

    def __repr__(self) -> str:
        return f"<ReleaseBook of {self._me[:8]}: {len(self._counting)} releases>"

    # What is known

    def progress(self, known: Known) -> Progress | None:
        """Return how far a deployment's release has come; None if it has none."""
        if known.deployment.release is None:
            return None
        counting = self._counting.get(known.deployment.name)
        if counting is not None and counting.revision == known.release_id:
            return counting
        written = self._settled(known) or self._kept(known)
        return written or structs.replace(_NOTHING, revision=known.release_id)

    def resident(self, known: Known) -> Resident:
        """Return which of a deployment's versions are wanted now."""
        release, progress = known.deployment.release, self.progress(known)
        if release is None or progress is None:
            return ALL_RESIDENT
        if not progress.is_over:
            rest = frozenset(known.versions) - {release.candidate}
            return Resident(rest, release.candidate)
        gone = {release.baseline, release.candidate} - {*progress.resident(release)}
        return Resident(frozenset(known.versions) - gone)

    def is_open(self, known: Known) -> bool:
        """Whether a deployment has a release whose ending is not settled: that needs a steward."""
        return known.deployment.release is not None and self._ending(known) is None

    def order(
        self, name: str, verb: Verb, wall_s: float, *, by: str = "", reason: str = ""
    ) -> Draft:
        """Prepare to ask something of a deployment's release; its steward follows once the draft is committed.

        Args:
            name: The deployment.
            verb: What.
            wall_s: Seconds since the Unix epoch.
            by: Who asks for it.
            reason: Why.

        Raises:
            ModelNotFound: if there is no such deployment.
            InvalidRequest: if no release of it is under way; it says what to do instead.
            Forbidden, TooLarge, UsageError: as `Drafts.release_order`.
        """
        known = self._deployments.get(name)
        if known is None:
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        flaw = self._why_no_order(known, verb)
        if flaw:
            raise InvalidRequest(flaw)
        revision = known.release_id
        return self._drafts.release_order(name, verb, revision, wall_s, by=by, reason=reason)

    def _why_no_order(self, known: Known, verb: Verb) -> str:
        """Say why an operator's order would change nothing, and what to do instead; empty if it may."""
        name, release, progress = (
            known.deployment.name,
            known.deployment.release,
            self.progress(known),
        )
        if release is None or progress is None:
            return f"no release of {name!r} is under way; begin one with: meshnode apply FILE, with [release] in it"
        if not progress.is_over and not self._ending(known):
            return ""
        if progress.phase == "rolled_back":
            return (
                f"the release of {name!r} is over: it was rolled back to version {release.baseline} "
                f"({progress.reason}); begin another one with: meshnode apply"
            )
        advice = f"to have version {release.baseline} back: meshnode rollback {name}"
        if verb == "promote":
            advice = "there is nothing left to promote"
        return f"the release of {name!r} is over: version {release.candidate} serves; {advice}"

    def view(self, known: Known, wanted: int, steward: NodeId | None, epoch: int) -> ReleaseView:
        """Return what people are shown of a deployment's release; it must have one."""
        release, progress = known.deployment.release, self.progress(known)
        assert release is not None
        assert progress is not None
        cells = self._sight.cells(known.deployment.name, progress)
        watched = progress.watched_step is not None
        ready = self._sight.ready(known, wanted, progress)
        return ReleaseView(
            release,
            known.release_id,
            progress,
            self._ending(known),
            steward,
            epoch,
            judge(release, progress, cells) if watched else None,
            cells,
            ready.baseline,
            ready.candidate,
            wanted,
            "" if progress.is_over else self._sight.waits(known) or self._sight.trouble(known),
        )

    # What happened

    def follow(self, name: str, word: Progress | None) -> list[Emit]:
        """Take how far a release has come: by its ending, or its steward's word, or as it was known before.

        Returns:
            What people are to be told, if it is at another step or phase than before.
        """
        known = self._deployments.get(name)
        if known is None or known.deployment.release is None:
            if self._counting.pop(name, None) is not None:
                self._router.release_changed(name, (0, 0), None, None)
            self._due_since.pop(name, None)
            self._sight.forget(name)
            return []
        before = self._counting.get(name)
        progress = self._settled(known)
        if progress is None and word is not None and word.revision == known.release_id:
            progress = word
        if progress is None:
            progress = self.progress(known) or _NOTHING
        if progress == before:
            return []
        self._counting[name] = progress
        self._router.release_changed(name, known.release_id, known.deployment.release, progress)
        stood = before and (before.revision, before.phase, before.step)
        if before is None or stood == (progress.revision, progress.phase, progress.step):
            return []
        steps = len(known.deployment.release.steps)
        place = f", step {progress.step + 1} of {steps}" if 0 <= progress.step < steps else ""
        return [Emit("release.heard", name, f"{progress.phase}{place}: {progress.reason}")]

    # What is told and decided

    def tell_evidence(self, now: float) -> list[Effect]:
        """Tell what this node's gateway saw since the last time."""
        effects: list[Effect] = []
        told = set()
        for live in self._router.releases:
            told.add(live.model)
            if not live.book.is_dirty:
                continue
            snapshot = live.book.snapshot()
            key = evidence_key(live.model)
            if snapshot is None:
                effects += self._owners.delete(key, now)
                continue
            try:
                effects += self._owners.set(key, snapshot.encode(), now)
            except TooLarge as error:
                effects.append(Emit("steward.silent", key, str(error)))
        for name in self._told - told:
            effects += self._owners.delete(evidence_key(name), now)
        self._told = told
        return effects

    def decide(
        self, known: Known, word: Progress | None, wanted: int, now_ms: int
    ) -> tuple[Progress | None, list[Emit]]:
        """Return how far a deployment's release is after a look, and what its steward tells of that.

        Args:
            known: The deployment.
            word: What its steward's word says so far.
            wanted: How many replicas it is to have.
            now_ms: Milliseconds since the Unix epoch.
        """
        name, release = known.deployment.name, known.deployment.release
        if release is None or not self.is_open(known):
            return None, []
        before = word or self._kept(known) or begin((0, 0), now_ms)
        progress, decided = advance(
            before,
            release,
            revision=known.release_id,
            order=self._order(name, before, known.release_id),
            ready=self._sight.ready(known, wanted, before),
            trouble=self._sight.trouble(known),
            cells=self._sight.cells(name, before),
            now_ms=now_ms,
        )
        progress, decided = _with_cause(progress, decided, self._sight.waits(known))
        return progress, [Emit(each.kind, name, each.reason) for each in decided]

    def settle(self, name: str, now: float, wall_s: float) -> list[Effect]:
        """Write how far a release has come, or how it came out, if that is new and it is this node's turn."""
        known, progress = self._deployments.get(name), self._counting.get(name)
        if known is None or progress is None or not self.is_open(known) or self._is_kept(known):
            self._due_since.pop(name, None)
            return []
        due_since = self._due_since.setdefault(name, now)
        writers = self._writers(known)
        if self._me not in writers:
            return []
        if now < due_since + WRITING_TURN_S * writers.index(self._me):
            return []
        try:
            draft = self._written(known, progress, wall_s)
        except MeshError as error:
            # The next in turn may succeed; here it is tried again, but not with every look.
            self._due_since[name] = now + WRITING_TURN_S * len(writers)
            return [Emit("release.unsettled", name, str(error))]
        durable = [] if draft.persist is None else [draft.persist]
        return [*durable, *self._desired.commit(draft)]

    def _written(self, known: Known, progress: Progress, wall_s: float) -> Draft:
        name = known.deployment.name
        if not progress.is_over:
            # What was seen of a step is lost with all gateways, and so is looked at from its beginning.
            return self._drafts.release_step(name, structs.replace(progress, seen=0), wall_s)
        outcome: Outcome = "promoted" if progress.phase == "done" else "rolled_back"
        ending = Ending(known.release_id, outcome, progress.reason, max(progress.since_ms, 0))
        return self._drafts.release_ending(name, ending, wall_s)

    def _is_kept(self, known: Known) -> bool:
        """Whether the desired state says already how far a release has come that is not over."""
        progress = self._counting[known.deployment.name]
        if progress.is_over:
            return False
        kept = self._kept(known)
        return _standing(progress) == _standing(kept) if kept else not progress.since_ms

    def _writers(self, known: Known) -> list[NodeId]:
        """Return the live nodes that may write what became of a release, in turn."""
        ranking = self._parts(known)[0].placement.ranking
        roster = self._authority.roster
        live = {node for node, member in self._members.items() if member.live}
        ordered = dict.fromkeys((*(node for node in ranking if node in live), *sorted(live)))
        members = ((node, roster.get(node)) for node in ordered)
        return [node for node, member in members if member and member.role.allows(Role.OPERATOR)]

    # What is seen

    def _ending(self, known: Known) -> Ending | None:
        value = self._desired.get(END_PREFIX + known.deployment.name)
        if value is None:
            return None
        try:
            ending = Ending.decode(value)
        except ProtocolError:
            return None
        return ending if ending.revision == known.release_id else None

    def _kept(self, known: Known) -> Progress | None:
        """Return how far a release had come when that was last written."""
        value = self._desired.get(STEP_PREFIX + known.deployment.name)
        if not value:
            return None
        try:
            progress = Progress.decode(value)
        except ProtocolError:
            return None
        return progress if progress.revision == known.release_id else None

    def _settled(self, known: Known) -> Progress | None:
        ending, release = self._ending(known), known.deployment.release
        if ending is None or release is None:
            return None
        if ending.outcome == "rolled_back":
            return Progress(ending.revision, "rolled_back", -1, ending.at_ms, ending.reason)
        steps = len(release.steps)
        return Progress(ending.revision, "done", steps, ending.at_ms, ending.reason)

    def _order(self, name: str, progress: Progress, revision: tuple[int, int]) -> Order | None:
        """Return what operators asked last; that it is to stop counts whatever else they ask, before or after."""
        stop = self._read_order(STOP_PREFIX + name)
        if stop is not None and stop.revision == revision and not progress.is_over:
            return structs.replace(stop, number=max(stop.number, progress.order + 1))
        return self._read_order(ORDER_PREFIX + name)

    def _read_order(self, key: str) -> Order | None:
        value = self._desired.get(key)
        if value is None:
            return None
        try:
            return Order.decode(value)
        except ProtocolError:
            return None


def _standing(progress: Progress) -> tuple[str, int, int, int]:
    return progress.phase, progress.step, progress.since_ms, progress.order


def _with_cause(
    progress: Progress, decided: list[Decided], waits: str
) -> tuple[Progress, list[Decided]]:
    """Say of a release that waits for replicas why there are not more."""
    if progress.phase == "preparing":
        reason = waits or _STARTING
        return structs.replace(progress, reason=shortened(reason)), decided
    if not waits or not any(each.kind == "release.inconclusive" for each in decided):
        return progress, decided
    reason = shortened(f"{progress.reason}; {waits}")
    told = [
        each._replace(reason=reason) if each.kind == "release.inconclusive" else each
        for each in decided
    ]
    return structs.replace(progress, reason=reason), told
