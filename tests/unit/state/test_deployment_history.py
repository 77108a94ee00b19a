"""What is kept of a deployment, the same everywhere, and which revisions were overwritten unseen."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.effects import Emit, SendNote
from meshnode.state.config import DesiredConfig
from meshnode.state.deployment import (
    KEY_PREFIX,
    NOTHING_BEFORE,
    Deployment,
    Origin,
    Removal,
    removal_of,
)
from meshnode.state.deployment_history import (
    base_of,
    origin_of,
    overwritten,
    overwritten_entries,
    read_revision,
    revision_id,
    revisions,
)
from meshnode.state.desired_messages import DESIRED, DesiredEntries, DesiredRoot
from tests.unit.state.test_deployment import manifest
from tests.unit.state.test_desired import WALL_S, A, B, C, entry, give, state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.state.desired_messages import Entry

KEY = KEY_PREFIX + "digits"


def written(at: float, base: Entry | str | None, author: str = "b", replicas: int = 1) -> Entry:
    """Return an entry that was made from another one, or from a revision of this id."""
    text = base if isinstance(base, str) else base_of(base)
    made = Deployment("digits", (manifest(),), replicas, origin=Origin(text))
    return entry(KEY, made.encode(), WALL_S + at, author)


def lost(*newest_first: Entry) -> dict[str, str]:
    found = overwritten([read_revision(each) for each in newest_first])
    names = {
        revision_id(each): f"{each.stamp.wall_ms - int(WALL_S * 1000)}" for each in newest_first
    }
    return {names[one]: names[by] for one, by in found.items()}


def test_revisions_in_a_line_overwrite_nothing_unseen() -> None:
    one = written(1, None)
    two = written(2, one)
    three = written(3, two)
    assert lost(three, two, one) == {}


def test_the_one_beside_the_line_is_lost_whichever_side_wins() -> None:
    base = written(1, None)
    mine, more = written(2, base, "a"), None
    theirs = written(3, base, "c")
    assert lost(theirs, mine, base) == {"2000": "3000"}
    more = written(4, mine, "a")
    assert lost(more, theirs, mine, base) == {"3000": "4000"}


def test_who_saw_both_sides_ends_the_quarrel_but_what_was_lost_stays_told() -> None:
    base = written(1, None)
    mine, theirs = written(2, base, "a"), written(3, base, "c")
    settled = written(4, theirs)
    assert lost(settled, theirs, mine, base) == {"2000": "3000"}


def test_a_name_given_on_both_sides_is_told() -> None:
    assert lost(written(2, None, "a"), written(1, None, "c")) == {"1000": "2000"}


def test_of_what_older_versions_wrote_and_of_what_is_not_kept_nothing_is_said() -> None:
    one = written(1, "")
    two = written(2, "")
    assert lost(two, one) == {}
    assert lost(written(3, "1.0.gone"), two, one) == {}


def test_where_a_revision_is_from_is_read_without_the_rest() -> None:
    one = written(1, None)
    two = written(2, one)
    assert [origin_of(each) for each in (two, one)] == [
        read_revision(each).origin for each in (two, one)
    ]
    removal = entry(KEY, Removal(Origin(base_of(two), "ci")).encode(), WALL_S + 3)
    assert origin_of(removal) == Origin(base_of(two), "ci")
    assert origin_of(entry(KEY, b"nonsense")) == origin_of(entry(KEY, b"")) == Origin()
    theirs = written(3, one, "c")
    assert overwritten_entries((theirs, two, one)) == {revision_id(two): revision_id(theirs)}


def test_a_removal_is_no_deployment_and_a_deployment_no_removal() -> None:
    removal = Removal(Origin("1.0.b", "key ci (k)"))
    assert removal_of(removal.encode()) == removal
    named = Deployment("removed", (msgspec.structs.replace(manifest(), model="removed"),))
    assert removal_of(named.encode()) is None
    with pytest.raises(Exception, match="not a deployment"):
        Deployment.decode(removal.encode())
    found = read_revision(entry(KEY, removal.encode()))
    assert (found.removes, found.deployment, found.origin.by) == (True, None, "key ci (k)")
    assert read_revision(entry(KEY, b"nonsense")).deployment is None


def test_two_deployments_that_ask_for_the_same_are_equal_whoever_wrote_them() -> None:
    one = Deployment("digits", (manifest(),))
    other = msgspec.structs.replace(one, origin=Origin("1.0.b", "somebody"))
    assert one == other
    assert hash(one) == hash(other)
    assert (one != other) is False
    assert one != msgspec.structs.replace(one, replicas=2)
    assert one != "digits"
    assert Deployment.decode(other.encode()).origin == other.origin


def test_a_deployment_keeps_more_revisions_than_other_keys() -> None:
    core = state(config=DesiredConfig(history=2, deployment_history=20))
    for at in range(30):
        for key in (KEY, "artifact/digits/1"):
            core.commit(core.draft({key: b"%d" % at}, WALL_S + at))
    assert len(core.history(KEY)) == 20
    assert len(core.history("artifact/digits/1")) == 2


def test_the_oldest_of_all_keys_give_way_and_no_write_is_refused() -> None:
    config = DesiredConfig(max_former_bytes=3000, max_total_bytes=4000)
    core = state(config=config)
    for at in range(200):
        core.commit(core.draft({f"deployment/{at % 3}": b"x" * 200}, WALL_S + at))
    kept = {each: core.history(f"deployment/{each}") for each in range(3)}
    sizes = [one.size_bytes for entries in kept.values() for one in entries]
    assert 2500 < sum(sizes) <= 3000
    stamps = [one.stamp for entries in kept.values() for one in entries]
    newest = [entry for each in range(3) if (entry := core.entry(f"deployment/{each}"))]
    assert min(stamps).wall_ms >= int(WALL_S * 1000) + (200 - 3 - len(stamps)) * 1000
    assert core.size_bytes == sum(sizes) + sum(each.size_bytes for each in newest)


@given(st.permutations(range(40)), st.integers(0, 4000))
def test_winners_stay_whatever_the_order_and_the_others_keep_to_their_room(
    order: Sequence[int], room_bytes: int
) -> None:
    entries = [
        entry(f"deployment/{at % 4}", b"x" * (at * 7 % 90 + 1), WALL_S + at) for at in range(40)
    ]
    core = state(config=DesiredConfig(max_former_bytes=room_bytes, deployment_history=6))
    for at in order:
        give(core, DesiredEntries((entries[at],)), wall_s=WALL_S + 100)
    keys = [f"deployment/{at}" for at in range(4)]
    assert [core.entry(key) for key in keys] == entries[36:]
    kept = [core.history(key) for key in keys]
    assert sum(each.size_bytes for former in kept for each in former) <= room_bytes
    assert all(len(former) <= 6 for former in kept)


@pytest.mark.parametrize("seed", range(20))
def test_nodes_whose_room_ended_compare_and_fall_silent(seed: int) -> None:
    config = DesiredConfig(max_former_bytes=1500, deployment_history=4)
    rng = random.Random(seed)
    entries = [
        entry(f"deployment/{at % 3}", b"x" * rng.randrange(1, 200), WALL_S + at) for at in range(40)
    ]
    one, other = state(A, B, config=config), state(B, A, config=config)
    for core, share in ((one, rng.sample(entries, 30)), (other, rng.sample(entries, 30))):
        give(core, DesiredEntries(tuple(share)), wall_s=WALL_S + 100)
    cores = {A: one, B: other}
    for _ in range(6):
        notes: list[Any] = [(A, DesiredRoot(other._root_bytes(), current=True))]
        while notes:
            to, message = notes.pop(0)
            sender = B if to == A else A
            effects = give(cores[to], message, sender=sender, wall_s=WALL_S + 100)
            notes += [
                (each.to, DESIRED.decode(each.payload))
                for each in effects
                if isinstance(each, SendNote)
            ]
    assert one._root_bytes() == other._root_bytes()


def test_an_entry_that_comes_late_is_told_and_one_too_old_to_keep_is_not_passed_on() -> None:
    core = state(A, B, C, config=DesiredConfig(max_former_bytes=250))
    give(core, DesiredEntries((entry(KEY, b"n" * 100, WALL_S + 9),)), wall_s=WALL_S + 10)
    told = give(core, DesiredEntries((entry(KEY, b"o" * 100, WALL_S + 8),)), wall_s=WALL_S + 10)
    assert Emit("desired.outdated", KEY, "b") in told
    assert any(isinstance(each, SendNote) for each in told)
    told = give(core, DesiredEntries((entry(KEY, b"p" * 100, WALL_S + 1),)), wall_s=WALL_S + 10)
    assert not any(isinstance(each, SendNote) for each in told)
    assert len(core.history(KEY)) == 1


def test_revisions_are_read_newest_first_with_their_ids() -> None:
    core = state()
    for at in range(3):
        core.commit(
            core.draft({KEY: Deployment("digits", (manifest(),), at + 1).encode()}, WALL_S + at)
        )
    found = revisions(core, "digits")
    assert [each.deployment and each.deployment.replicas for each in found] == [3, 2, 1]
    assert len({each.id for each in found}) == 3
    assert revisions(core, "other") == []
    assert base_of(None) == NOTHING_BEFORE
