"""Random conversations over two links, cut anywhere: all arrives, in order, within the window."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.wire.frames import AMOUNT, DATA, HEADER, HEADER_BYTES, MORE, OPEN, WINDOW
from meshnode.wire.link import Link, LinkConfig, PartReceived, StreamOpened, StreamReset

if TYPE_CHECKING:
    from meshnode.wire.link import LinkEvent

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 3_000), st.just(70_000))
PARTS = st.lists(SIZES, min_size=1, max_size=4)


@dataclass
class Wire:
    """Bytes on their way to one side, and the credit that its peer should still have."""

    pending: bytearray = field(default_factory=bytearray)
    sent: dict[int, int] = field(default_factory=dict)
    granted: dict[int, int] = field(default_factory=dict)


class World:
    """Two links, the bytes between them, and what each side's application was given."""

    def __init__(self, window_bytes: int, rng: random.Random) -> None:
        self.window = window_bytes
        self.rng = rng
        config = LinkConfig(window_bytes=window_bytes)
        self.links = [Link(dialler=side == 0, config=config, now=0.0) for side in (0, 1)]
        self.to = [Wire(), Wire()]
        self.answers: dict[int, list[bytes]] = {}
        self.got: list[dict[int, list[bytes]]] = [{}, {}]
        self.ended: list[set[int]] = [set(), set()]
        self.unconsumed: list[list[tuple[int, int]]] = [[], []]

    def write(self, side: int, limit_bytes: int | None) -> None:
        """Move a link's output to the wire, checking that it stays within its credit."""
        out = b"".join(self.links[side].take_output(limit_bytes))
        towards, back = self.to[1 - side], self.to[side]
        at = 0
        while at < len(out):
            length, meta, kind, flags, stream = HEADER.unpack_from(out, at)
            if kind in (OPEN, DATA) and not flags & MORE:
                towards.sent[stream] = towards.sent.get(stream, 0) + length - meta
                credit = self.window + towards.granted.get(stream, 0)
                assert towards.sent[stream] <= credit, "a sender exceeds its credit"
            elif kind == WINDOW:
                (amount,) = AMOUNT.unpack_from(out, at + HEADER_BYTES)
                back.granted[stream] = back.granted.get(stream, 0) + amount
                ahead = self.window + back.granted[stream] - back.sent.get(stream, 0)
                assert ahead <= self.window, "a receiver grants more than the window"
            at += HEADER_BYTES + length
        towards.pending += out

    def read(self, side: int, size: int) -> None:
        wire = self.to[side]
        chunk = bytes(wire.pending[:size])
        del wire.pending[:size]
        for event in self.links[side].receive(chunk, 0.0):
            self.take(side, event)

    def take(self, side: int, event: LinkEvent) -> None:
        if not isinstance(event, StreamOpened | PartReceived):
            return
        assert event.meta == str(event.data.nbytes).encode()
        self.got[side].setdefault(event.stream, []).append(event.data.tobytes())
        self.unconsumed[side].append((event.stream, event.data.nbytes))
        if event.end:
            self.ended[side].add(event.stream)
            for data, last in marked(self.answers.pop(event.stream, [])):
                self.links[side].send(
                    event.stream, str(len(data)).encode(), pieces(data, self.rng), end=last
                )

    def consume(self, side: int, count: int) -> None:
        for _ in range(min(count, len(self.unconsumed[side]))):
            self.links[side].consumed(*self.unconsumed[side].pop(0))

    def step(self) -> None:
        side = self.rng.randrange(2)
        action = self.rng.randrange(3)
        if action == 0:
            self.write(side, self.rng.choice([None, 1, 5_000]))
        elif action == 1:
            self.read(side, self.rng.choice([1, 7, 100, 5_000, 1_000_000]))
        else:
            self.consume(side, self.rng.randrange(4))

    def settle(self) -> None:
        """Let everything finish."""
        for _ in range(10_000):
            for side in (0, 1):
                self.write(side, None)
                self.read(side, 10**9)
                self.consume(side, 10**9)
            if not any(link.has_output for link in self.links) and not any(
                wire.pending for wire in self.to
            ):
                return
        raise AssertionError("the links never fall silent")


def marked(parts: list[bytes]) -> list[tuple[bytes, bool]]:
    return [(part, i == len(parts) - 1) for i, part in enumerate(parts)]


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    cut = rng.randrange(len(data) + 1)
    return [data[:cut], data[cut:]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    plans=st.lists(st.tuples(st.integers(0, 1), PARTS, PARTS), max_size=8),
    window_bytes=st.sampled_from([1, 100, 5_000, 100_000]),
    seed=st.integers(0, 2**32),
)
def test_random_conversations_arrive_equal_and_in_order(
    plans: list[tuple[int, list[int], list[int]]], window_bytes: int, seed: int
) -> None:
    bound = 40 * window_bytes + 1  # in windows, each of which takes a turn of the whole world
    plans = [(side, [s % bound for s in a], [s % bound for s in b]) for side, a, b in plans]
    rng = random.Random(seed)
    world = World(window_bytes, rng)
    expected: list[tuple[int, int, list[bytes], list[bytes]]] = []
    for side, request_sizes, answer_sizes in plans:
        request = [rng.randbytes(size) for size in request_sizes]
        answer = [rng.randbytes(size) for size in answer_sizes]
        link = world.links[side]
        first, *rest = marked(request)
        meta = str(len(first[0])).encode()
        stream = link.open_stream(meta, pieces(first[0], rng), end=first[1])
        world.answers[stream] = answer
        for data, last in rest:
            link.send(stream, str(len(data)).encode(), pieces(data, rng), end=last)
        expected.append((side, stream, request, answer))
        for _ in range(rng.randrange(30)):
            world.step()
    world.settle()
    for side, stream, request, answer in expected:
        assert world.got[1 - side][stream] == request
        assert world.got[side][stream] == answer
    assert world.ended[0] == world.ended[1] == {stream for _, stream, _, _ in expected}
    for link in world.links:
        assert link.idle
        assert link._buffered_bytes == 0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(SIZES, st.integers(0, 1), st.booleans()), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_cancelling_at_any_moment_from_either_side_leaves_nothing_behind(
    sizes: list[tuple[int, int, bool]], seed: int
) -> None:
    rng = random.Random(seed)
    world = World(1_000, rng)
    resets: list[tuple[int, int]] = []
    for size, opener, cancel in sizes:
        meta = str(size).encode()
        stream = world.links[opener].open_stream(meta, [rng.randbytes(size)])
        world.answers[stream] = [rng.randbytes(size)]
        if cancel:
            resets.append((rng.randrange(2), stream))
        for _ in range(rng.randrange(20)):
            world.step()
        if resets and rng.random() < 0.5:
            side, stream = resets.pop()
            world.links[side].reset(stream)
    for side, stream in resets:
        world.links[side].reset(stream)
    world.settle()
    for link in world.links:
        assert link.idle
        assert link._buffered_bytes == 0


def test_a_reset_is_told_to_a_side_that_knows_the_stream() -> None:
    world = World(1_000, random.Random(0))
    stream = world.links[0].open_stream(b"0", end=False)
    world.settle()
    world.links[0].reset(stream, "deadline", "too late")
    told = world.links[1].receive(b"".join(world.links[0].take_output()), 0.0)
    assert told == [StreamReset(stream, "deadline", "too late")]
