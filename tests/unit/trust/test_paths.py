"""Where members are reached when that is elsewhere than their records say."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.limits import (
    MAX_PATH_ANSWER_S,
    PATH_ANSWER_S,
    PATH_KEEPALIVE_S,
    PATH_LIFETIME_S,
    PATH_TOKEN_BYTES,
)
from meshnode.trust.datagrams import OVERHEAD_BYTES
from meshnode.trust.paths import (
    CHALLENGE_BYTES,
    KEEPALIVE,
    PATH_MESSAGES,
    PATHS,
    PathChallenge,
    PathResponse,
    Paths,
)
from meshnode.types import Address, NodeId
from meshnode.wire.codec import message_type

PEER, OTHER = NodeId("p" * 32), NodeId("o" * 32)
HOME = Address("198.51.100.2", 40_000)
MOVED = Address("198.51.100.2", 40_001)
RECORDED = Address("192.168.1.10", 8471)


def paths_of(seed: int = 1) -> Paths:
    rng = random.Random(seed)
    return Paths(lambda: rng.randbytes(PATH_TOKEN_BYTES))


def heard(
    paths: Paths,
    source: Address,
    now: float,
    *,
    size: int = 100,
    recorded: Address | None = RECORDED,
) -> bytes | None:
    """A datagram of the peer comes in; datagrams to it go to its path, else to its record."""
    used = paths.place(PEER, now) or recorded
    challenge = paths.heard(PEER, source, size, used, now)
    if challenge is None:
        return None
    message = PATHS.decode(challenge)
    assert isinstance(message, PathChallenge)
    return message.token


def answered(paths: Paths, source: Address, now: float) -> None:
    """The peer sends from a new place, is challenged there, and answers."""
    token = heard(paths, source, now)
    assert token is not None
    assert paths.answered(PEER, token, now + 0.05)


def test_a_member_behind_a_router_is_reached_once_it_has_answered() -> None:
    paths = paths_of()
    token = heard(paths, HOME, 0.0)
    assert token is not None
    assert paths.place(PEER, 0.0) is None
    assert paths.answered(PEER, token, 0.1)
    assert paths.place(PEER, 0.1) == HOME
    assert heard(paths, HOME, 1.0) is None


def test_where_the_record_is_right_nobody_is_challenged() -> None:
    paths = paths_of()
    assert heard(paths, RECORDED, 0.0) is None
    assert repr(paths) == "<Paths: 0 in use, 0 candidates>"


def test_a_router_that_forgot_its_mapping_moves_the_path() -> None:
    paths = paths_of()
    answered(paths, HOME, 0.0)
    answered(paths, MOVED, 1.0)
    assert paths.place(PEER, 1.1) == MOVED
    assert paths.moved == 2


def test_without_an_answer_the_former_path_stays() -> None:
    paths = paths_of()
    answered(paths, HOME, 0.0)
    assert heard(paths, MOVED, 1.0) is not None
    assert paths.place(PEER, 1.0) == HOME


def test_a_wrong_a_late_and_a_repeated_answer_change_nothing() -> None:
    paths = paths_of()
    assert not paths.answered(PEER, bytes(PATH_TOKEN_BYTES), 0.0)
    token = heard(paths, HOME, 0.0)
    assert token is not None
    assert not paths.answered(PEER, bytes(PATH_TOKEN_BYTES), 0.1)
    assert not paths.answered(OTHER, token, 0.1)
    assert not paths.answered(PEER, token, PATH_ANSWER_S + 0.1)
    token = heard(paths, HOME, PATH_ANSWER_S + 0.2)
    assert token is not None
    assert paths.answered(PEER, token, PATH_ANSWER_S + 0.3)
    assert not paths.answered(PEER, token, PATH_ANSWER_S + 0.4)


def test_a_path_on_which_nothing_is_heard_is_used_no_more() -> None:
    paths = paths_of()
    answered(paths, HOME, 0.0)
    assert heard(paths, HOME, PATH_LIFETIME_S) is None  # keeps it
    assert paths.place(PEER, 2 * PATH_LIFETIME_S) == HOME
    assert paths.place(PEER, 2 * PATH_LIFETIME_S + 1) is None
    assert heard(paths, HOME, 2 * PATH_LIFETIME_S + 1) is not None  # begins anew


def test_a_place_that_never_answers_is_asked_ever_less_often() -> None:
    paths = paths_of()
    asked = [tenth / 10 for tenth in range(6000) if heard(paths, HOME, tenth / 10) is not None]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[:4] == pytest.approx([2.0, 4.0, 8.0, 16.0])
    assert max(gaps) == pytest.approx(MAX_PATH_ANSWER_S)


def test_another_place_waits_until_the_first_had_its_time() -> None:
    """Else a sender with many addresses would have each of them challenged."""
    paths = paths_of()
    assert heard(paths, HOME, 0.0) is not None
    assert heard(paths, MOVED, 0.1) is None
    assert heard(paths, MOVED, PATH_ANSWER_S) is not None


def test_short_datagrams_are_challenged_when_they_have_paid_for_it() -> None:
    paths = paths_of()
    short = CHALLENGE_BYTES - 1
    assert heard(paths, HOME, 0.0, size=short) is None
    assert heard(paths, HOME, 0.1, size=short) is not None


def test_a_keepalive_is_long_enough_to_be_challenged_and_answers_nothing() -> None:
    paths = paths_of()
    assert heard(paths, HOME, 0.0, size=OVERHEAD_BYTES + len(KEEPALIVE)) is not None
    assert message_type(KEEPALIVE) in PATH_MESSAGES
    response = PATHS.decode(KEEPALIVE)
    assert isinstance(response, PathResponse)
    assert not paths.answered(PEER, response.token, 0.1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([PEER, OTHER]),
            st.sampled_from([HOME, MOVED, RECORDED]),
            st.integers(OVERHEAD_BYTES, 200),
            st.floats(0.0, 5.0),
            st.booleans(),
        ),
        max_size=200,
    )
)
def test_no_place_that_has_not_answered_gets_more_bytes_than_came_from_it(
    datagrams: list[tuple[NodeId, Address, int, float, bool]],
) -> None:
    paths = paths_of()
    now = 0.0
    came: Counter[tuple[NodeId, Address]] = Counter()
    went: Counter[tuple[NodeId, Address]] = Counter()
    for peer, source, size, pause_s, answers in datagrams:
        now += pause_s
        came[peer, source] += size
        challenge = paths.heard(peer, source, size, paths.place(peer, now) or RECORDED, now)
        if challenge is not None:
            went[peer, source] += OVERHEAD_BYTES + len(challenge)
            if answers:
                assert paths.answered(peer, PATHS.decode(challenge).token, now)
        assert all(went[key] <= came[key] for key in went)
        assert len(paths._candidates) <= 2
        assert len(paths._paths) <= 2


def test_who_is_challenged_keeps_the_mapping_to_linked_peers_alive() -> None:
    paths = paths_of()
    paths.challenged(PEER, 0.0)
    paths.challenged(OTHER, 0.0)
    paths.sent(NodeId("s" * 32), 0.0)  # one that sees this node where its record says
    assert paths.silent([PEER], PATH_KEEPALIVE_S - 1) == []
    assert paths.silent([PEER], PATH_KEEPALIVE_S) == [PEER]
    paths.sent(PEER, PATH_KEEPALIVE_S)
    assert paths.silent([PEER], PATH_KEEPALIVE_S + 1) == []
    assert paths.silent([PEER, OTHER], 3 * PATH_KEEPALIVE_S) == [PEER]  # the other had no link


def test_who_is_gone_leaves_nothing_behind() -> None:
    paths = paths_of()
    answered(paths, HOME, 0.0)
    heard(paths, MOVED, 1.0)
    paths.challenged(PEER, 1.0)
    paths.forget(PEER)
    assert paths.place(PEER, 1.0) is None
    assert paths.silent([PEER], 100.0) == []
    assert repr(paths) == "<Paths: 0 in use, 0 candidates>"
