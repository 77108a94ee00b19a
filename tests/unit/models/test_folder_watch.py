"""What a changing folder of models asks for, look by look."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.models.repository.folder_watch import Changes, FolderWatch, Key

A1, A2, B1 = ("a", 1), ("a", 2), ("b", 1)
NONE = Changes()


def look(watch: FolderWatch, *serving: Key, **found: str) -> Changes:
    """Look; versions are spelled `a1="signature"`, broken models `a="reason"`."""
    versions = {(k[0], int(k[1:])): v.encode() for k, v in found.items() if len(k) > 1}
    broken = {k: v for k, v in found.items() if len(k) == 1}
    return watch.look(versions, broken, serving)


def test_what_is_there_at_the_start_is_loaded_at_once() -> None:
    watch = FolderWatch()
    assert look(watch, a1="x", b="wrong") == Changes(load=(A1,), broken=("b",))
    assert watch.is_settled
    assert look(watch, A1, a1="x", b="wrong") == NONE


def test_a_new_version_is_waited_for_until_it_no_longer_grows() -> None:
    watch = FolderWatch()
    look(watch, a1="x")
    for signature in ("1", "2", "3"):
        assert look(watch, A1, a1="x", a2=signature) == NONE
    assert not watch.is_settled
    assert look(watch, A1, a1="x", a2="3") == Changes(load=(A2,))
    assert look(watch, A1, A2, a1="x", a2="3") == NONE


def test_a_version_whose_files_change_is_loaded_again_and_a_failed_one_only_then() -> None:
    watch = FolderWatch()
    look(watch, a1="x")
    assert look(watch, a1="x") == NONE  # it failed: it does not serve
    assert look(watch, a1="y") == NONE
    assert look(watch, a1="y") == Changes(load=(A1,))


def test_a_removed_version_is_unloaded_once_two_looks_miss_it() -> None:
    watch = FolderWatch()
    look(watch, a1="x", b1="x")
    assert look(watch, A1, B1, b1="x") == NONE
    assert look(watch, A1, B1, b1="x") == Changes(unload=(A1,))
    assert look(watch, B1, b1="x") == NONE
    look(watch, A1, B1, b1="x", a1="x")
    assert look(watch, B1, b1="x", a1="x") == Changes(load=(A1,))


def test_an_old_version_goes_only_when_its_successor_serves() -> None:
    """Version policy `latest 1`: the folder shows the newest version only."""
    watch = FolderWatch()
    look(watch, a1="x")
    assert look(watch, A1, a2="x") == NONE
    assert look(watch, A1, a2="x") == Changes(load=(A2,))
    assert look(watch, A1, a2="x") == NONE  # still loading, or broken: the old one stays
    assert look(watch, A1, A2, a2="x") == Changes(unload=(A1,))


def test_a_broken_configuration_leaves_what_serves() -> None:
    watch = FolderWatch()
    look(watch, a1="x")
    assert look(watch, A1, a="half") == NONE
    assert look(watch, A1, a="half written") == NONE
    assert look(watch, A1, a="half written") == Changes(broken=("a",))
    assert look(watch, A1, a="half written") == NONE
    assert look(watch, A1, a1="x") == Changes(mended=("a",))
    assert look(watch, A1, a1="x") == NONE
    assert "of 1 versions, 0 broken" in repr(watch)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.dictionaries(st.sampled_from([A1, A2, B1]), st.sampled_from([b"1", b"2"])), max_size=12
    ),
    st.sets(st.sampled_from([A1, A2, B1])),
)
def test_after_two_equal_looks_everything_that_can_serve_is_as_the_folder_is(
    folders: list[dict[Key, bytes]], defective: set[Key]
) -> None:
    """Whatever came before; and a model that served is never left without a version that serves."""
    watch = FolderWatch()
    loaded: dict[Key, bytes] = {}
    steady = 4  # the last state of the folder stays: seen, loaded, seen to serve, unloaded
    for found in [*folders, *[folders[-1] if folders else {}] * steady]:
        before = {name for name, _ in loaded}
        changes = watch.look(found, {}, set(loaded))
        for key in changes.load:
            if key not in defective:
                loaded[key] = found[key]
        for key in changes.unload:
            loaded.pop(key, None)
        lost = before - {name for name, _ in loaded}
        assert not lost & {name for name, _ in found}
    for key, signature in (folders[-1] if folders else {}).items():
        assert loaded.get(key) == signature or key in defective
