"""Statements: the keys of the desired state that say who belongs to the mesh, and may do what.

| key | value | written by |
|---|---|---|
| `admission/NODE` | an admission chain of that node | any member: it proves itself |
| `revocation/NODE` | that this key is out | an admin, or the key itself |
| `role/NODE` | which role it has now | an admin |

Their values are opaque here. What distinguishes them from other keys:

- Not the last one counts, but all together (`meshnode.trust.standing`): nobody can overwrite or delete
  what somebody else has stated, nor take its place with a copy, and one that does not count today may
  do so when more is known. So `Statements` keeps them all, of each author the first few.
- They are kept for ever: no tombstone, no takeover drops them.
- They have room of their own, admissions apart from what only admins state: so a mesh that is full of
  deployments, or of admissions, can still evict.

Whoever writes to the desired state states its own admission first, so that others can check it. The
key sorts before `deployment/`, so an exchange brings the author before what it wrote.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_STATEMENTS_PER_AUTHOR
from meshnode.state.revisions import hash_of
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.state.desired_messages import Entry

ADMISSION: Final = "admission/"
REVOCATION: Final = "revocation/"
ROLE: Final = "role/"

_PREFIXES: Final = (ADMISSION, REVOCATION, ROLE)


def admission_key(node: NodeId) -> str:
    """Return the key of a node's admissions."""
    return ADMISSION + node


def revocation_key(node: NodeId) -> str:
    """Return the key of a node's evictions."""
    return REVOCATION + node


def role_key(node: NodeId) -> str:
    """Return the key of a node's roles."""
    return ROLE + node


def is_statement(key: str) -> bool:
    """Whether a key holds statements."""
    return key.startswith(_PREFIXES)


def is_urgent(key: str) -> bool:
    """Whether what a key holds may take a right away, so that everybody should hear of it at once."""
    return key.startswith((REVOCATION, ROLE))


def subject_of(key: str) -> NodeId:
    """Return whom a statement's key is about."""
    return NodeId(key.partition("/")[2])


class Statements:
    """What was stated under one key, newest first; never empty, and never changed.

    Kept are, of each author, the first `MAX_STATEMENTS_PER_AUTHOR` by stamp. (An author that is out can
    date its statements back, and push out its own this way, but nobody else's.) Equal ones all count: a
    role may be given, taken and given again. But an admission proves itself, and many may state the same:
    of those, the first is kept and that of the subject itself, which whoever knows nobody yet can check.
    """

    __slots__ = ("entries", "hash", "size_bytes")

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Keep these, or the first of them."""
        said: set[tuple[object, ...]] = set()
        by_author: Counter[str] = Counter()
        kept: list[Entry] = []
        for entry in sorted(entries, key=_order):
            what = _said(entry)
            if what in said or by_author[entry.author] >= MAX_STATEMENTS_PER_AUTHOR:
                continue
            said.add(what)
            by_author[entry.author] += 1
            kept.append(entry)
        self.entries: tuple[Entry, ...] = tuple(reversed(kept))
        self.hash = hash_of(self.entries)
        self.size_bytes = sum(entry.size_bytes for entry in self.entries)

    def __repr__(self) -> str:
        return f"<Statements of {self.newest.key!r}: {len(self.entries)}>"

    @property
    def newest(self) -> Entry:
        """The last one by stamp, which need not be one that counts."""
        return self.entries[0]

    def wants(self, entry: Entry) -> bool:
        """Whether this entry would be kept; says no to one that is here already."""
        is_known = any(entry.order == held.order for held in self.entries)
        return not is_known and entry in self.plus(entry).entries

    def plus(self, entry: Entry) -> Statements:
        """Return the statements with one more; these stay as they are."""
        return Statements((*self.entries, entry))


def _said(entry: Entry) -> tuple[object, ...]:
    """Return something that entries have in common of which the first is enough."""
    if entry.key.startswith(ADMISSION):
        return entry.author == subject_of(entry.key), entry.value
    return entry.order


def _order(entry: Entry) -> tuple[int, int, str, bytes]:
    return entry.order
