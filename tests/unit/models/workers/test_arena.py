from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshnode.models.workers.arena import ALIGNMENT_BYTES, Arena

PAGE = ALIGNMENT_BYTES


def test_the_lowest_free_region_is_lent_so_that_warm_pages_are_used_again() -> None:
    arena = Arena(10 * PAGE)
    first, second = arena.lend(1), arena.lend(PAGE + 1)
    assert (first, second) == (0, PAGE)
    assert arena.length_of(PAGE) == 2 * PAGE
    assert arena.give_back(0)
    assert arena.lend(PAGE) == 0


def test_nothing_is_lent_where_nothing_fits() -> None:
    arena = Arena(2 * PAGE)
    assert arena.lend(2 * PAGE + 1) is None
    assert arena.lend(2 * PAGE) == 0
    assert arena.lend(1) is None


def test_what_was_not_lent_cannot_be_given_back() -> None:
    arena = Arena(2 * PAGE)
    arena.lend(1)
    assert not arena.give_back(1)
    assert not arena.give_back(PAGE)
    assert arena.give_back(0)
    assert not arena.give_back(0)


def test_far_pages_that_are_free_are_dropped_once() -> None:
    arena = Arena(10 * PAGE)
    regions = [arena.lend(2 * PAGE) for _ in range(4)]
    arena.give_back(regions[3] or 0)
    arena.give_back(regions[1] or 0)
    assert arena.untouched(PAGE) == [(2 * PAGE, 2 * PAGE), (6 * PAGE, 2 * PAGE)]
    assert arena.touched_bytes == 6 * PAGE
    assert arena.untouched(8 * PAGE) == []
    assert arena.untouched(5 * PAGE) == []  # what is free lies below
    assert repr(arena) == f"<Arena 2 lent, {4 * PAGE} of {10 * PAGE} bytes>"


@given(st.lists(st.integers(min_value=-20, max_value=5 * PAGE), max_size=60))
def test_lent_regions_never_overlap_and_all_of_it_comes_together_again(steps: list[int]) -> None:
    arena = Arena(16 * PAGE)
    lent: dict[int, int] = {}
    for step in steps:
        if step > 0:
            offset = arena.lend(step)
            if offset is not None:
                length = arena.length_of(offset)
                assert length >= step
                assert offset + length <= arena.size_bytes
                for other, size in lent.items():
                    assert offset + length <= other or other + size <= offset
                lent[offset] = length
        elif lent:
            offset = sorted(lent)[step % len(lent)]
            del lent[offset]
            assert arena.give_back(offset)
        assert arena.lent_bytes == sum(lent.values())
    for offset in lent:
        assert arena.give_back(offset)
    assert arena.lend(arena.size_bytes) == 0
