"""People to test with: the same seeds give the same nodes, keys and chains."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from meshnode.trust.chain import VerifiedMember, admit, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.invite import create_invite
from meshnode.types import Role

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_WALL_S = 1_800_000_000.0


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@pytest.fixture(scope="session")
def now_wall_s() -> float:
    return NOW_WALL_S


@pytest.fixture(scope="session")
def identity_of() -> Callable[[str], Identity]:
    return lambda name: Identity(seed_of(name))


@pytest.fixture(scope="session")
def founder(identity_of: Callable[[str], Identity]) -> Identity:
    return identity_of("founder")


@pytest.fixture(scope="session")
def founded(founder: Identity) -> VerifiedMember:
    return found_mesh(founder, seed_of("root"), NOW_WALL_S)


@pytest.fixture(scope="session")
def admit_through() -> Callable[..., VerifiedMember]:
    """Let `inviter` invite and `witness` (by default the same node) admit `joiner`."""

    def admit_joiner(
        joiner: Identity,
        inviter: tuple[Identity, VerifiedMember],
        role: Role = Role.OPERATOR,
        witness: tuple[Identity, VerifiedMember] | None = None,
        at_wall_s: float = NOW_WALL_S,
    ) -> VerifiedMember:
        invite = create_invite(
            identity=inviter[0],
            member=inviter[1],
            role=role,
            ttl_s=3600,
            now_wall_s=at_wall_s,
            seeds=(),
            random_seed=seed_of(f"invite of {joiner.node_id} as {role}"),
        )
        witness = witness or inviter
        return admit(
            witness=witness[0],
            witness_member=witness[1],
            inviter=inviter[1],
            grant=invite.signed_grant,
            subject=joiner.public_key,
            invite_proof=invite.prove(joiner.public_key),
            now_wall_s=at_wall_s,
        )

    return admit_joiner
