"""Statements in parts: an eviction that names more who stay than one value of the desired state holds.

An eviction must never fail because too many rest on the node: whoever is to be evicted could see to
that. So one that names more than `MAX_KEPT_PER_STATEMENT` goes out in parts, by one author, under one
key and with stamps of one millisecond, each saying how many there are. They count once all of them are
there, as one statement at the place of the first: a part alone would evict those that another one keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_KEPT_PER_STATEMENT, MAX_STATEMENTS_PER_AUTHOR
from meshnode.trust.standing import Stated
from meshnode.trust.statements import Revocation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshnode.trust.statements import Statement
    from meshnode.types import NodeId

    _Group = tuple[NodeId, NodeId, bool, int, int]

KEPT_IN_ALL_PARTS: Final = MAX_KEPT_PER_STATEMENT * MAX_STATEMENTS_PER_AUTHOR
"""Whom one statement can keep, in all its parts."""


def split(statement: Statement) -> list[Statement]:
    """Return the parts of a statement, which may keep up to `KEPT_IN_ALL_PARTS`; one alone if that is enough."""
    kept = statement.kept
    pieces = [
        kept[at : at + MAX_KEPT_PER_STATEMENT]
        for at in range(0, max(1, len(kept)), MAX_KEPT_PER_STATEMENT)
    ]
    first, *others = (
        msgspec.structs.replace(statement, kept=piece, parts=len(pieces)) for piece in pieces
    )
    return [first, *(msgspec.structs.replace(each, entries=()) for each in others)]


def joined(statements: Iterable[Stated]) -> Iterator[Stated]:
    """Yield statements, those in parts as one; those whose parts are not all there are left out."""
    groups: dict[_Group, list[Stated]] = {}
    for stated in statements:
        if stated.statement.parts == 1:
            yield stated
            continue
        is_revocation = isinstance(stated.statement, Revocation)
        group = (
            stated.author,
            stated.statement.node_id,
            is_revocation,
            stated.order[0],
            stated.statement.parts,
        )
        groups.setdefault(group, []).append(stated)
    for group, found in groups.items():
        parts = sorted(found, key=_order)[: group[-1]]
        if len(parts) == group[-1]:
            yield _one(parts)


def _one(parts: list[Stated]) -> Stated:
    first = parts[0]
    kept = tuple(kept for each in parts for kept in each.statement.kept)
    entries = tuple(digest for each in parts for digest in each.statement.entries)
    return Stated.of(
        first.order, msgspec.structs.replace(first.statement, kept=kept, entries=entries)
    )


def _order(stated: Stated) -> tuple[int, int, str, bytes]:
    return stated.order
