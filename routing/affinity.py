"""Which replica gets the requests of a sequence, so that all of them reach the one that holds its state.

    a request that starts a sequence   goes to the first replica in the sequence's own order of the version's
                                       ready replicas (rendezvous hashing) that can take it
    each further one                   goes where this gateway knows the sequence to be; if it has seen
                                       nothing of it, to the first in that order, whether that can take it or not

The order is the same at every gateway, and one replica more or less moves only the sequences that begin or
end at that one. So any gateway finds a sequence as long as the replicas are the same, and the gateway that saw
it begin finds it when others came meanwhile. What it remembers is bounded, and forgotten once the replica has
forgotten the sequence too.

A node that is emptied gives its sequences to others, where it can: each to the first in the sequence's order
without it (`heir`), so that any gateway finds it there too. Who asks the old replica is told where it is
(`SequenceMoved`), and asks there; once that replica is gone, the first in the order is asked.

Else a further request goes to one replica or to none: what cannot be sent there is answered with a reason, never
tried elsewhere, because nobody else has the sequence's state. That its replica is gone is told once by each
gateway that saw the sequence; then it is as unknown as one of which nothing was seen.
"""

from __future__ import annotations

from hashlib import blake2b
from heapq import nlargest
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshnode.errors import (
    LinkLost,
    MeshError,
    NoReplica,
    NotServing,
    SequenceLost,
    SequenceMoved,
    UsageError,
)
from meshnode.limits import MAX_CANDIDATES_SCORED, MAX_REMEMBERED_SEQUENCES, SEQUENCE_SLACK_S
from meshnode.routing.choice import Candidate, Candidates, Route
from meshnode.routing.eligibility import broken_rule, group_of, lacks_memory
from meshnode.routing.load import LinkState
from meshnode.routing.rendezvous import weight
from meshnode.types import NodeId, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.table import Replica
    from meshnode.types import Scalar

REASON: Final = "sequence"
"""Why a route was chosen: its replica holds the sequence, or shall hold it."""

_KEY_BYTES: Final = 16
_SHOWN_LENGTH: Final = 80  # of an id, in a message
_UP = LinkState.UP


class SequencePart(NamedTuple):
    """What a request says about its sequence.

    Attributes:
        sequence_id: Its name, neither 0 nor empty.
        start: Whether the sequence begins with this request.
        end: Whether it ends with it.
        idle_s: For how long a replica keeps the sequence when it is silent.
    """

    sequence_id: int | str
    start: bool
    end: bool
    idle_s: float


class Holder(NamedTuple):
    """Where a sequence is.

    Attributes:
        version: Of the model.
        node: Who serves it.
        node_name: Its name for people.
        until: When it is forgotten, unless it is heard of again (monotonic seconds).
    """

    version: int
    node: NodeId
    node_name: str
    until: float


class Directory(Protocol):
    """What knows the replicas: the router."""

    def candidates(self, model: str, version: int | None) -> Candidates:
        """Return who could serve now; raises ModelNotFound or NoReplica."""
        ...

    def is_draining(self, node: NodeId) -> bool:
        """Whether a node is being emptied, or is empty."""
        ...


def sequence_part(parameters: Mapping[str, Scalar], idle_s: float) -> SequencePart | None:
    """Return what the parameters of a request to a sequence model say; None without a valid `sequence_id`.

    Such a request may go to any replica: each refuses it in the same words.
    """
    sequence_id = parameters.get("sequence_id", 0)
    if isinstance(sequence_id, bool) or not isinstance(sequence_id, int | str) or not sequence_id:
        return None
    start, end = bool(parameters.get("sequence_start")), bool(parameters.get("sequence_end"))
    return SequencePart(sequence_id, start, end, idle_s)


def sequence_key(model: str, version: int, sequence_id: int | str) -> bytes:
    """Return 16 bytes that name a sequence of a model version; 7 and "7" are two sequences, as for replicas.

    Equal at every gateway, and of one length, however long the id is.
    """
    if isinstance(sequence_id, str):
        kind, name = b"text", sequence_id.encode(errors="surrogatepass")
    else:
        length = sequence_id.bit_length() // 8 + 1
        kind, name = b"number", sequence_id.to_bytes(length, "big", signed=True)
    digest = blake2b(digest_size=_KEY_BYTES)
    for field in (model.encode(errors="surrogatepass"), b"%d" % version, kind, name):
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()


def sequence_hosts(model: str, version: int, nodes: Collection[NodeId]) -> frozenset[NodeId]:
    """Return the nodes on which a version's sequences begin: all, or of many the same ones at every gateway.

    A gateway has links to `MAX_CANDIDATES_SCORED` replicas only, each to others, so that together they use
    all. Of a version with sequences all gateways must reach the same.
    """
    if len(nodes) <= MAX_CANDIDATES_SCORED:
        return frozenset(nodes)
    key = sequence_key(model, version, "")
    return frozenset(nlargest(MAX_CANDIDATES_SCORED, nodes, key=lambda node: weight(key, node)))


def heir(
    candidates: Candidates, model: str, sequence_id: int | str, me: NodeId
) -> Candidate | None:
    """Return the replica that is to have a sequence when this node gives it away; None if there is none.

    The one on which it would begin now, as seen from here.
    """
    able = [
        each
        for each in candidates.hosts
        if each.replica.node != me and each.path.link is _UP and not each.conditions.draining
    ]
    if not able:
        return None
    groups = [group_of(each.replica.region, each.conditions, RoutingHints()) for each in able]
    first = [each for each, group in zip(able, groups, strict=True) if group == min(groups)]
    key = sequence_key(model, first[0].replica.version, sequence_id)
    return max(first, key=lambda each: weight(key, each.replica.node))


class SequenceTable:
    """Where the sequences are that went through this gateway; bounded."""

    def __init__(self, max_sequences: int = MAX_REMEMBERED_SEQUENCES) -> None:
        """Remember at most so many; of more, those that were not heard of longest are forgotten."""
        self._max_sequences = max_sequences
        self._holders: dict[bytes, Holder] = {}  # the one not heard of longest is first

    def __repr__(self) -> str:
        return f"<SequenceTable {len(self._holders)} sequences>"

    def __len__(self) -> int:
        return len(self._holders)

    def holder(self, key: bytes, now: float) -> Holder | None:
        """Return where a sequence is; None if that is not known, or too long ago."""
        found = self._holders.get(key)
        if found is not None and found.until <= now:
            del self._holders[key]
            return None
        return found

    def put(self, key: bytes, holder: Holder, now: float) -> None:
        """Remember where a sequence is."""
        self._holders.pop(key, None)
        self._holders[key] = holder
        while len(self._holders) > self._max_sequences or self._first_until() <= now:
            del self._holders[next(iter(self._holders))]

    def forget(self, key: bytes, node: NodeId) -> None:
        """Forget a sequence, if it is on this node."""
        found = self._holders.get(key)
        if found is not None and found.node == node:
            del self._holders[key]

    def _first_until(self) -> float:
        return next(iter(self._holders.values())).until


class SequenceRouting:
    """Where one request of a sequence goes, and what its outcome means for the sequence."""

    __slots__ = ("_deadline", "_key", "_model", "_part", "_table", "_version")

    def __init__(
        self,
        table: SequenceTable,
        model: str,
        version: int | None,
        part: SequencePart,
        deadline: float,
    ) -> None:
        """Route a request.

        Args:
            table: The gateway's memory.
            model: Public name of the model.
            version: The version that the request insists on, or None; then a sequence stays with the
                version on which it began.
            part: What the request says.
            deadline: When it must be answered (monotonic seconds).
        """
        self._table = table
        self._model = model
        self._version = version
        self._part = part
        self._deadline = deadline
        self._key = sequence_key(model, version or 0, part.sequence_id)

    def __repr__(self) -> str:
        return f"<SequenceRouting of {self._what}>"

    @property
    def begins(self) -> bool:
        """Whether the sequence starts with this request."""
        return self._part.start

    def choose(
        self, directory: Directory, request: RoutedRequest, now: float, tried: Collection[NodeId]
    ) -> tuple[Candidates, Route | None]:
        """Return the candidates, and the route; None if none of them can begin the sequence.

        Raises:
            SequenceLost: if the replica that holds the sequence is gone.
            NoReplica: if it cannot be asked now; as ModelNotFound also as `directory.candidates` does.
        """
        if self._part.start:
            return self._begin(directory, request, now, tried)
        holder = self._table.holder(self._key, now)
        if holder is None:
            candidates = directory.candidates(self._model, self._version)
            chosen = self._first(candidates.hosts)
        else:
            candidates, chosen = self._held(directory, holder)
        reason = chosen.drop_reason(request, now, tried, ())
        if reason is not None and not _as_last_resort(chosen, request, tried):
            raise NoReplica(
                f"{self._what} is on {chosen.replica.node_name}, which cannot be asked now ({reason}); "
                "try again in a moment, or start the sequence anew"
            )
        return candidates, Route(
            chosen.replica, chosen.expected_ms(request, now), REASON, 1, (), chosen
        )

    def sent(self, replica: Replica, now: float) -> None:
        """The request goes there. If it starts the sequence, those that follow do so from now on."""
        if self._part.start or self._table.holder(self._key, now) is not None:
            self._remember(replica, now)

    def succeeded(self, replica: Replica, now: float) -> None:
        """The replica answered, so it holds the sequence; after the last request nobody does."""
        if self._part.end:
            self._table.forget(self._key, replica.node)
            return
        holder = self._table.holder(self._key, now)
        if holder is None or holder.node == replica.node:  # it may have begun elsewhere meanwhile
            self._remember(replica, now)

    def failed(self, error: MeshError, replica: Replica, now: float) -> MeshError | None:
        """Return what to answer with, or None if the request may be tried elsewhere.

        Args:
            error: How the try ended, before any part of an answer.
            replica: Where it was sent.
            now: Monotonic seconds.
        """
        if isinstance(error, SequenceMoved) and error.node:
            until = max(now, self._deadline) + self._part.idle_s + SEQUENCE_SLACK_S
            node = NodeId(error.node)
            self._table.put(self._key, Holder(replica.version, node, node[:8], until), now)
            return None
        if self._part.start and (error.nothing_ran or isinstance(error, UsageError)):
            self._table.forget(self._key, replica.node)
            return None if error.retryable else error
        if isinstance(error, LinkLost):
            return self._link_lost(error, replica)
        if isinstance(error, NotServing):
            return SequenceLost(
                f"{self._what} was on {replica.node_name}, which does not serve it any more ({error}); "
                "nothing ran; start the sequence anew"
            )
        return error

    @property
    def _what(self) -> str:
        return f"sequence {repr(self._part.sequence_id)[:_SHOWN_LENGTH]} of model {self._model!r}"

    def _link_lost(self, error: LinkLost, replica: Replica) -> MeshError:
        if error.nothing_ran:
            return NoReplica(
                f"{self._what} is on {replica.node_name}, which cannot be asked now ({error}); try again in "
                "a moment, or start the sequence anew"
            )
        return SequenceLost(
            f"{self._what} was on {replica.node_name}, and no answer came from there ({error}); the request "
            "may have run; start the sequence anew"
        )

    def _begin(
        self, directory: Directory, request: RoutedRequest, now: float, tried: Collection[NodeId]
    ) -> tuple[Candidates, Route | None]:
        candidates = directory.candidates(self._model, self._version)
        hosts = candidates.hosts
        able = [each for each in hosts if each.drop_reason(request, now, tried, ()) is None]
        able = able or [each for each in hosts if _as_last_resort(each, request, tried)]
        if not able:
            return candidates, None
        best = min(_group(each, request) for each in able)
        chosen = self._first([each for each in able if _group(each, request) == best])
        expected_ms = chosen.expected_ms(request, now)
        return candidates, Route(chosen.replica, expected_ms, REASON, len(able), (), chosen)

    def _held(self, directory: Directory, holder: Holder) -> tuple[Candidates, Candidate]:
        try:
            candidates = directory.candidates(self._model, holder.version)
        except MeshError as gone:
            raise self._gone(holder, str(gone)) from None
        for candidate in candidates.ready:
            if candidate.replica.node == holder.node:
                return candidates, candidate
        if directory.is_draining(holder.node):  # it gave what it had away before it went
            return candidates, self._first(candidates.hosts)
        reason = dict(candidates.excluded).get(holder.node_name, "it is gone")
        raise self._gone(holder, reason)

    def _gone(self, holder: Holder, reason: str) -> SequenceLost:
        # Told once: it may have been started anew through another gateway.
        self._table.forget(self._key, holder.node)
        return SequenceLost(
            f"{self._what} was on {holder.node_name}, which does not serve it any more ({reason}); nothing "
            "ran; start the sequence anew"
        )

    def _first(self, candidates: Collection[Candidate]) -> Candidate:
        version = next(iter(candidates)).replica.version
        key = sequence_key(self._model, version, self._part.sequence_id)
        return max(candidates, key=lambda each: weight(key, each.replica.node))

    def _remember(self, replica: Replica, now: float) -> None:
        # Its replica counts its silence from its last answer, which comes by the deadline.
        until = max(now, self._deadline) + self._part.idle_s + SEQUENCE_SLACK_S
        known = self._table.holder(self._key, now)
        if known is not None and known.node == replica.node:
            until = max(until, known.until)
        holder = Holder(replica.version, replica.node, replica.node_name, until)
        self._table.put(self._key, holder, now)


def _group(candidate: Candidate, request: RoutedRequest) -> int:
    return group_of(candidate.replica.region, candidate.conditions, request.hints)


def _as_last_resort(
    candidate: Candidate, request: RoutedRequest, tried: Collection[NodeId]
) -> bool:
    """Whether it may be asked although its breaker is open: its model raised, which says little of others."""
    return (
        not broken_rule(candidate.replica.region, candidate.conditions, request.hints)
        and candidate.path.link is _UP
        and candidate.breaker.yields
        and candidate.replica.node not in tried
        and not lacks_memory(candidate.conditions, request.size_bytes)
    )
