"""Calls that a node's role does not let it answer, passed on to a node whose role does.

A gateway on a plain member takes the same calls as any other. What it may not decide itself (a
deployment, an API key, an invite, an eviction) goes over a link to a node that may, together with
the caller's API key. There the key is checked as at a gateway, and that node makes the change in
its own name: nobody signs for another, and a plain member can do no more than its callers' keys.
Questions about jobs of which a plain member is told nothing go the same way.

- Without a key nothing is passed on, not even for the owner of the node: a lent device gives its
  owner no say in the mesh.
- A call that was passed on is never passed on again, so no two nodes can play ball with it.
- The next node is asked only if the one before has certainly not begun: a link that breaks later
  ends the call with an error that says so.
- An upload stays at the node that took its first call. Its pieces go there, as does the deployment
  that uses it, for as long as this process lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from meshnode.daemon.named import name_of
from meshnode.errors import (
    DeadlineExceeded,
    Forbidden,
    LinkLost,
    MeshError,
    NotServing,
    ProtocolError,
    Saturated,
    TooLarge,
)
from meshnode.gateway.access import Approach, GatewayAccess, key_shown, require
from meshnode.gateway.jobs_api import ANSWER_HEADERS, JOBS, kept_headers
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.limits import (
    FORWARD_TIMEOUT_S,
    MAX_FORWARD_DIALS,
    MAX_FORWARDED_ANSWER_BYTES,
    MAX_FORWARDED_CALLS,
    MAX_FORWARDED_CALLS_PER_PEER,
    MAX_FORWARDED_HEADER_LENGTH,
    MAX_HEADER_LINE_BYTES,
    MAX_NODES_NAMED,
    MAX_REMEMBERED_UPLOADS,
    MAX_REQUEST_ID_LENGTH,
)
from meshnode.net.connection import peer_error
from meshnode.wire.messages import STREAMS, Failure, Forward, Forwarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.clock import Clock
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.state.api_keys import ApiKey
    from meshnode.types import NodeId, Role

log = logging.getLogger(__name__)

_PASSED: Final = frozenset({"content-type", "retry-after", "mesh-error", "www-authenticate"})
"""Headers of an answer that reach the caller; what another node may say here is not its to choose."""

_OF_RESULTS: Final = _PASSED | ANSWER_HEADERS
"""Those of a job's result, without which its body could not be read; `mesh-*` as well."""

_UPLOADS: Final = "/mesh/v1/uploads"


class Reach(Protocol):
    """How links to other nodes are come by."""

    def linked(self, node: NodeId) -> Connection | None:
        """Return the link to a node if something can be asked on it."""

    async def link(self, node: NodeId) -> Connection | None:
        """Make a link to a member; None if that fails."""

    def rtt_s(self, node: NodeId) -> float | None:
        """Return the round trip to a node in seconds, if it is known."""


class Forwarder:
    """Passes calls on.

    Attributes:
        outcomes: How they ended: `ok`, or the code of an error.
    """

    def __init__(self, node: Node, reach: Reach, role_of: Callable[[NodeId], Role | None]) -> None:
        """Pass on from this node.

        Args:
            node: Knows who lives.
            reach: Its links.
            role_of: The role that a node has now; None if it is no member.
        """
        self._node = node
        self._reach = reach
        self._role_of = role_of
        self._uploads: OrderedDict[str, NodeId] = OrderedDict()
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Forwarder of {self._node.me[:8]}: {sum(self.outcomes.values())} calls>"

    def must_forward(self, needed: Role) -> bool:
        """Whether this node's own role does not allow what needs one."""
        role = self._role_of(self._node.me)
        return role is None or not role.allows(needed)

    def refusal(self, needed: Role) -> Forbidden:
        """Return the error for a change that this node may not make and is not asked to pass on."""
        role = self._role_of(self._node.me)
        names = ", ".join(sorted(self._name(node) for node in self._may(needed))[:MAX_NODES_NAMED])
        where = f" ({names})" if names else ""
        return Forbidden(
            f"this node is {_a(role)} of the mesh, and that needs {_a(needed)}'s node: run the command "
            f"there{where}, or send an API key along, with which this node's gateway asks one of them "
            "(`--gateway URL --key-file FILE`)"
        )

    async def forward(
        self, needed: Role, http: HttpRequest, request_id: str, upload: str | None = None
    ) -> HttpResponse:
        """Have another node answer a call, and return its answer.

        Args:
            needed: The role that the answering node must have.
            http: The call.
            request_id: For the log of both nodes.
            upload: The upload that it is about, if it is about one.

        Raises:
            Forbidden: if the call shows no API key.
            NotServing: if no node that may answer can be reached, or this call was passed on to here.
            LinkLost: if the link broke while the other node worked; it may have done it.
            DeadlineExceeded: if it did not answer in time; likewise.
        """
        if http.caller.via:
            raise NotServing(f"{self._name(self._node.me)} may not do that any more; try again")
        key = key_shown(http.headers)
        if key is None:
            raise self.refusal(needed)
        ask = Forward(http.method, http.path, http.query, key, request_id)
        try:
            response = await self._first_answer(needed, ask, http, upload)
        except MeshError as error:
            self.outcomes[error.code] += 1
            raise
        self.outcomes["ok" if response.status < 400 else "refused"] += 1
        return response

    async def _first_answer(
        self, needed: Role, ask: Forward, http: HttpRequest, upload: str | None
    ) -> HttpResponse:
        for node in self._in_order(needed, upload):
            connection = self._reach.linked(node) or await self._reach.link(node)
            if connection is None:
                continue
            try:
                response = await _asked(connection, ask, http, self._name(node))
            except NotServing:
                continue
            log.log(
                logging.DEBUG if ask.method == "GET" else logging.INFO,
                "%s %s of %s was answered by %s: %d",
                *(ask.method, ask.path, http.caller, self._name(node), response.status),
            )
            if response.status == 201 and ask.path.rstrip("/") == _UPLOADS:
                self._remember(response, node)
            return response
        names = ", ".join(map(self._name, self._may(needed))) or "none is known"
        raise NotServing(
            f"this node may not do that itself, and no node that may can be reached now ({names}); "
            "try again when one is back"
        )

    def _in_order(self, needed: Role, upload: str | None) -> list[NodeId]:
        """Return the nodes to ask: the one that has the upload; else the nearest, then some others."""
        known = None if upload is None else self._uploads.get(upload)
        if known is not None:
            return [known]
        linked: list[NodeId] = []
        others: list[NodeId] = []
        for node in self._may(needed):
            (others if self._reach.linked(node) is None else linked).append(node)
        linked.sort(key=lambda node: self._reach.rtt_s(node) or float("inf"))
        return linked + others[:MAX_FORWARD_DIALS]

    def _may(self, needed: Role) -> list[NodeId]:
        """Return the members that live and may do it."""
        found = []
        for node, member in self._node.membership.members.items():
            role = self._role_of(node)
            if member.live and node != self._node.me and role is not None and role.allows(needed):
                found.append(node)
        return found

    def _remember(self, response: HttpResponse, node: NodeId) -> None:
        try:
            body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
            upload = msgspec.json.decode(body, type=_Begun).id
        except msgspec.MsgspecError:
            return  # what answers so answers no other call about it either
        self._uploads[upload] = node
        if len(self._uploads) > MAX_REMEMBERED_UPLOADS:
            self._uploads.popitem(last=False)

    def _name(self, node: NodeId) -> str:
        return name_of(self._node.membership.members, node)


class _Begun(msgspec.Struct):
    id: str


class ForwardServer:
    """Answers calls that other nodes pass on, by the key that comes with each.

    Attributes:
        outcomes: How they ended: `ok`, or the code of an error.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        find: Callable[[str], ApiKey | None],
        clock: Clock,
        own_name: Callable[[], str],
    ) -> None:
        """Answer by the routes of this node.

        Args:
            dispatcher: The routes.
            find: Returns the API key of an id, whatever its state, or None.
            clock: Says which keys have expired.
            own_name: Returns the name of this node.
        """
        self._dispatcher = dispatcher
        self._own_name = own_name
        self._clock = clock
        # The rule of a gateway that wants a key of everybody; wrong ones count for the asking node.
        self._access = GatewayAccess(OriginPolicy("localhost"), find, require_key=True)
        self._running: Counter[NodeId] = Counter()
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<ForwardServer: {sum(self._running.values())} calls run>"

    async def answer(
        self, asker: NodeId, name: str, ask: Forward, body: memoryview
    ) -> HttpResponse:
        """Carry a call out and return what its caller is told.

        Args:
            asker: The node that passed it on.
            name: Its name.
            ask: The call.
            body: Its body.

        Raises:
            Saturated: if too many calls run already.
        """
        if (
            self._running[asker] >= MAX_FORWARDED_CALLS_PER_PEER
            or self._running.total() >= MAX_FORWARDED_CALLS
        ):
            self.outcomes[Saturated.code] += 1
            raise Saturated(
                "this node answers as many calls of other gateways as it can; try again"
            )
        self._running[asker] += 1
        try:
            return await self._answer(asker, name, ask, body)
        except MeshError as error:
            self.outcomes[error.code] += 1
            if isinstance(error, NotServing):
                raise  # nothing was done, and another node may
            return error_response(error, self._dispatcher.error_form(ask.path))
        except HttpRefusal as refusal:
            self.outcomes["http"] += 1
            return refusal_response(refusal, self._dispatcher.error_form(ask.path))
        except Exception:
            self.outcomes["internal"] += 1
            log.exception("a call of %s failed: %s %s", name, ask.method[:8], ask.path[:200])
            form = self._dispatcher.error_form(ask.path)
            return failure_response(ask.request_id[:MAX_REQUEST_ID_LENGTH], form)
        finally:
            self._running[asker] -= 1
            if not self._running[asker]:
                del self._running[asker]

    async def _answer(
        self, asker: NodeId, name: str, ask: Forward, body: memoryview
    ) -> HttpResponse:
        if len(ask.path) + len(ask.query) > MAX_HEADER_LINE_BYTES:
            raise HttpRefusal(414, "the path of the call is too long")
        approach = Approach(asker, authorization=f"Bearer {ask.key}")
        caller = self._access.admit(approach, self._clock.now(), self._clock.wall_s())
        match = self._dispatcher.match(ask.method, ask.path)
        if not match.forwarded:
            raise Forbidden(
                "only changes of the mesh and calls about jobs are passed on from other nodes' gateways"
            )
        require(caller, match.scope)
        caller = msgspec.structs.replace(caller, via=name, via_id=asker)
        http = HttpRequest(ask.method, ask.path, ask.query, {}, body, caller)
        reply = match.answer(http, ask.request_id[:MAX_REQUEST_ID_LENGTH])
        response = reply if isinstance(reply, HttpResponse) else await reply
        assert isinstance(response, HttpResponse)  # what is passed on is answered in one piece
        if response.size_bytes > MAX_FORWARDED_ANSWER_BYTES:
            raise TooLarge(
                f"the answer has {response.size_bytes} bytes, and one gateway passes on at most "
                f"{MAX_FORWARDED_ANSWER_BYTES} of another; ask the gateway of {self._own_name()} or of another "
                "operator's node for it"
            )
        self.outcomes["ok"] += 1
        return response


class _Call:
    """One call over a link: its answer has one part."""

    def __init__(self, *, of_result: bool) -> None:
        self.answer: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        self._of_result = of_result

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        if self.answer.done():
            return
        try:
            self.answer.set_result(_answer_of(meta, data, end=end, of_result=self._of_result))
        except MeshError as error:
            self.answer.set_exception(error)

    def lost(self, error: MeshError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def _asked(
    connection: Connection, ask: Forward, http: HttpRequest, name: str
) -> HttpResponse:
    call = _Call(of_result=ask.path.startswith(f"{JOBS}/") and ask.path.endswith("/result"))
    try:
        stream = connection.open(STREAMS.encode(ask), [http.body], call)
    except LinkLost as error:  # before anything was sent
        raise NotServing(str(error)) from error
    try:
        async with asyncio.timeout(FORWARD_TIMEOUT_S):
            return await call.answer
    except TimeoutError:
        raise DeadlineExceeded(
            f"{name} did not answer within {FORWARD_TIMEOUT_S:g} s; look whether it was done before "
            "you ask again"
        ) from None
    except LinkLost as error:
        raise LinkLost(
            f"the link to {name} broke while it worked on this ({error}); look whether it was done "
            "before you ask again"
        ) from error
    finally:
        connection.cancel(stream)


def _answer_of(meta: bytes, data: memoryview, *, end: bool, of_result: bool) -> HttpResponse:
    message = STREAMS.decode(meta)
    if isinstance(message, Failure):
        raise peer_error(message.code, message.message)
    if (
        not isinstance(message, Forwarded)
        or not end
        or not 200 <= message.status <= 599
        or data.nbytes > MAX_FORWARDED_ANSWER_BYTES
    ):
        raise ProtocolError("a peer answered a call in an unknown form")
    if of_result:
        kept = kept_headers(message.headers, _OF_RESULTS)
        headers = {name.title(): value for name, value in kept if value.isprintable()}
    else:
        headers = dict(_passed(message.headers.items()))
    return HttpResponse(message.status, headers, bytes(data))


def _passed(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if (
            name.lower() in _PASSED
            and value.isprintable()
            and len(value) <= MAX_FORWARDED_HEADER_LENGTH
        ):
            yield name, value


def _a(role: Role | None) -> str:
    return "no member" if role is None else f"{'an' if role[0] in 'ao' else 'a'} {role}"
