"""What a folder of models that changes asks for: which versions are loaded, which unloaded, and when.

The folder is looked at again and again. Each look gives a signature per version: everything that its files
and settings are told by. The rules:

- A version is acted upon once two looks in a row see the same signature: a file that is being copied grows.
  Only the first look of all is acted upon at once, so that a node that starts serves at once.
- A version whose signature has changed since it was acted upon is loaded again. One that failed is not tried
  again until it changes.
- A version that two looks in a row do not see is unloaded, but never before another one of its model serves
  instead, if the folder has one: a broken new version does not replace one that works.
- While a model cannot be read as a whole (its configuration is wrong, or half written), what serves of it
  stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Key = tuple[str, int]
"""Model and version."""


class Changes(NamedTuple):
    """What is to be done now.

    Attributes:
        load: Versions to load, ascending.
        unload: Versions to unload.
        broken: Models that cannot be read, newly so.
        mended: Models that could not be read and now can, or are gone.
    """

    load: tuple[Key, ...] = ()
    unload: tuple[Key, ...] = ()
    broken: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()


class FolderWatch:
    """Remembers what was seen and what was acted upon; see this module's text."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._is_first = True
        self._seen: dict[Key, bytes] = {}
        self._seen_broken: dict[str, str] = {}
        self._acted: dict[Key, bytes] = {}
        self._told_broken: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<FolderWatch of {len(self._acted)} versions, {len(self._told_broken)} broken>"

    @property
    def is_settled(self) -> bool:
        """Whether another look at the same folder would change nothing."""
        return self._seen == self._acted and self._seen_broken == self._told_broken

    def look(
        self, found: Mapping[Key, bytes], broken: Mapping[str, str], serving: Collection[Key]
    ) -> Changes:
        """Take a look.

        Args:
            found: Signature of each version that can be served.
            broken: Why, for each model that cannot be read.
            serving: The versions that serve now.

        Returns:
            What to do; it is taken for done.
        """
        load = tuple(
            sorted(
                key
                for key, signature in found.items()
                if self._acted.get(key) != signature
                and (self._is_first or self._seen.get(key) == signature)
            )
        )
        unload = tuple(sorted(self._unloadable(found, broken, serving, load)))
        told = {
            name: reason
            for name, reason in broken.items()
            if self._is_first or self._seen_broken.get(name) == reason
        }
        newly = tuple(sorted(name for name in told if self._told_broken.get(name) != told[name]))
        mended = tuple(sorted(set(self._told_broken) - set(broken)))
        self._acted.update((key, found[key]) for key in load)
        for key in unload:
            del self._acted[key]
        self._told_broken.update(told)
        for name in mended:
            del self._told_broken[name]
        self._seen, self._seen_broken, self._is_first = dict(found), dict(broken), False
        return Changes(load, unload, newly, mended)

    def _unloadable(
        self,
        found: Mapping[Key, bytes],
        broken: Mapping[str, str],
        serving: Collection[Key],
        load: Collection[Key],
    ) -> Iterable[Key]:
        for key in self._acted:
            if key in found or key in self._seen or key[0] in broken:
                continue
            others = [other for other in found if other[0] == key[0]]
            if not others or any(each in serving and each not in load for each in others):
                yield key
