"""Checkups: two linked nodes find out together what passes between them. For `meshnode doctor`.

::

    asking node                                    answering node
       │ Checkup(token) ────────────── link ─────────────> │
       │ Knock(token) × n ─ ─ ─ ─ ─ ─  UDP ─ ─ ─ ─ ─ ─ ─ > │  counts what arrives
       │ < ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ UDP ─ ─ Knock(token) × n
       │                                                   │  dials the addresses of the asking
       │ <──────────────────────────── link ─ CheckupAnswer │  node's own signed record (a trial)

Only members can ask, over their link, and an answer goes where the node sends its datagrams anyway:
nothing that a packet names is dialled or sent to. Datagrams of a checkup are never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from meshnode import __version__
from meshnode.errors import DeadlineExceeded, LinkLost, ProtocolError, Saturated
from meshnode.limits import (
    CHECKUP_KNOCK_INTERVAL_S,
    CHECKUP_KNOCKS,
    CHECKUP_LAST_S,
    CHECKUP_PAUSE_S,
    CHECKUP_TIMEOUT_S,
    CHECKUP_WAIT_S,
    MAX_CHECKUPS,
    MAX_MEMBER_ADDRESSES,
)
from meshnode.net.one_answer import OneAnswer, answer_message
from meshnode.net.trial import trial_hello, try_addresses
from meshnode.observations import CheckupSeen, Datagrams, Outcome, Trial
from meshnode.wire.frames import WIRE_VERSIONS
from meshnode.wire.messages import (
    KNOCKS,
    STREAMS,
    TOKEN_BYTES,
    Checkup,
    CheckupAnswer,
    Knock,
    Reached,
)

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.driver import Driver
    from meshnode.net.connection import Connection
    from meshnode.types import NodeId

_WORD_LENGTH = 100  # of what a peer says; shown in a terminal


class Checkups:
    """Asks peers for checkups, and answers theirs.

    Attributes:
        outcomes: How those ended that were answered: `ok`, or the code of an error.
    """

    def __init__(self, driver: Driver, credentials: Credentials, clock: Clock) -> None:
        """Send and dial through the driver, as this node."""
        self._driver = driver
        self._credentials = credentials
        self._clock = clock
        self._expected: dict[tuple[NodeId, bytes], _Knocks] = {}
        self._answered_at: dict[NodeId, float] = {}
        self._running = 0
        self.outcomes: Counter[str] = Counter()
        driver.on_knock = self.knocked

    def __repr__(self) -> str:
        return f"<Checkups: {self._running} answered, {len(self._expected)} expect datagrams>"

    def knocked(self, sender: NodeId, payload: bytes) -> None:
        """Count a datagram of a checkup; one that nobody waits for is dropped."""
        knock = None
        with contextlib.suppress(ProtocolError):
            knock = KNOCKS.decode(payload)
        expected = self._expected.get((sender, knock.token)) if isinstance(knock, Knock) else None
        if expected is None:
            self._driver.dropped["knock"] += 1
        else:
            expected.arrived()

    async def ask(self, peer: NodeId) -> CheckupSeen:
        """Ask a linked peer for a checkup.

        Raises:
            LinkLost: if there is no usable link, or it broke.
            DeadlineExceeded: if it did not answer in time.
            MeshError: what it answered.
        """
        connection = self._driver.hub.connection(peer)
        if connection is None:
            raise LinkLost("there is no usable link to it")
        token = self._credentials.random_bytes(TOKEN_BYTES)
        with _Expecting(self._expected, peer, token) as knocks:
            answer = OneAnswer(_checkup_answer)
            asked_at_s = self._clock.wall_s()
            stream = connection.open(STREAMS.encode(Checkup(token)), (), answer)
            knocking = asyncio.ensure_future(self._knock(peer, token))
            try:
                async with asyncio.timeout(CHECKUP_TIMEOUT_S):
                    found = await answer.answer
                    # The peer had sent all of its own before it answered.
                    await knocks.any_within(CHECKUP_LAST_S)
            except TimeoutError:
                raise DeadlineExceeded("it did not answer the checkup in time") from None
            finally:
                knocking.cancel()
                connection.cancel(stream)
        one_way_s = (connection.rtt_s or 0.0) / 2
        return _seen(found, found.wall_s - asked_at_s - one_way_s, knocks.count)

    async def answer(self, connection: Connection, stream: int, ask: Checkup) -> None:
        """Answer a peer's checkup on its stream.

        Raises:
            Saturated: if too many ask, or this one too often; nothing was tried.
        """
        assert connection.hello is not None
        peer = connection.hello.peer.node_id
        wall_s = self._clock.wall_s()
        try:
            self._admit(peer)
        except Saturated as error:
            self.outcomes[error.code] += 1
            raise
        self._running += 1
        try:
            with _Expecting(self._expected, peer, ask.token) as knocks:
                knocking = asyncio.ensure_future(self._knock(peer, ask.token))
                try:
                    trials, _ = await asyncio.gather(
                        self._dial_back(peer), knocks.any_within(CHECKUP_WAIT_S)
                    )
                    await knocking
                finally:
                    knocking.cancel()
                reached = tuple(Reached(each.address, each.outcome, each.reason) for each in trials)
                found = CheckupAnswer(
                    wall_s,
                    __version__,
                    WIRE_VERSIONS,
                    str(connection.remote),
                    knocks.count,
                    reached,
                )
        finally:
            self._running -= 1
        connection.reply(stream, STREAMS.encode(found), end=True)
        self.outcomes["ok"] += 1

    def _admit(self, peer: NodeId) -> None:
        now = self._clock.now()
        self._answered_at = {
            node: at for node, at in self._answered_at.items() if now - at < CHECKUP_PAUSE_S
        }
        if self._running >= MAX_CHECKUPS or peer in self._answered_at:
            raise Saturated("it answers checkups already; try again in a few seconds")
        self._answered_at[peer] = now

    async def _knock(self, peer: NodeId, token: bytes) -> None:
        payload = KNOCKS.encode(Knock(token))
        for _ in range(CHECKUP_KNOCKS):
            self._driver.datagrams.send(peer, payload)
            await asyncio.sleep(CHECKUP_KNOCK_INTERVAL_S)

    async def _dial_back(self, peer: NodeId) -> tuple[Trial, ...]:
        mine = self._credentials
        begin_hello = trial_hello(mine.identity, mine.member, mine.boot, peer)
        addresses = self._driver.addresses_of(peer)
        return await try_addresses(addresses, begin_hello, self._clock, self._driver.kinds)


class _Knocks:
    """The datagrams of one checkup that arrived."""

    def __init__(self) -> None:
        self.count = 0
        self._first = asyncio.Event()

    def arrived(self) -> None:
        self.count += 1
        self._first.set()

    async def any_within(self, seconds: float) -> None:
        """Wait until one has arrived, or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            pass


class _Expecting:
    """Datagrams with a token count while this context is open."""

    def __init__(
        self, table: dict[tuple[NodeId, bytes], _Knocks], peer: NodeId, token: bytes
    ) -> None:
        self._table = table
        self._key = (peer, token)

    def __enter__(self) -> _Knocks:
        knocks = self._table[self._key] = _Knocks()
        return knocks

    def __exit__(self, *_: object) -> None:
        self._table.pop(self._key, None)


def _checkup_answer(meta: bytes, _data: memoryview, _end: bool) -> CheckupAnswer:
    message = answer_message(meta)
    if not isinstance(message, CheckupAnswer):
        raise ProtocolError("it answered a checkup with something else")
    return message


def _seen(answer: CheckupAnswer, ahead_s: float, arrived_here: int) -> CheckupSeen:
    """Return an answer as an observation; nothing in it is trusted to be short or printable."""
    reached = [
        Trial(_word(each.address), Outcome(each.outcome), _word(each.reason))
        for each in answer.reached[:MAX_MEMBER_ADDRESSES]
        if each.outcome in set(Outcome)
    ]
    return CheckupSeen(
        ahead_s,
        _word(answer.version),
        Datagrams(CHECKUP_KNOCKS, max(0, answer.knocks), arrived_here),
        tuple(reached),
        _word(answer.seen_at),
    )


def _word(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:_WORD_LENGTH])
