"""Whole conversations and files: what comes out of fixed keys, nonces and times, byte for byte.

A scenario makes its outcome from what is given alone, and both are written down: a later version
must make the same of what was given then. Bytes are hexadecimal text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.trust.chain import verify_chain
from meshnode.trust.datagrams import DatagramSeal
from meshnode.trust.hello import AcceptorHello, DiallerHello
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.pairing import ANY_MESH, Asking, Pairing, code_of, commitment_to
from meshnode.trust.pairing_hello import ApprovingHello, AskingHello
from meshnode.trust.records import MeshId, read_record
from meshnode.trust.roster import Roster
from meshnode.types import Address, NodeId, Role
from meshnode.wire import frames
from tests.vectors import people

if TYPE_CHECKING:
    from collections.abc import Callable

Plain = dict[str, Any]

_VERSIONS: Final = (1, 1)


class Scenario(NamedTuple):
    """Something that takes more than one message.

    Attributes:
        what: What it is, for people.
        given: Keys, nonces and times, as JSON.
        make: Makes the outcome, as JSON, of what was given.
    """

    what: str
    given: Plain
    make: Callable[[Plain], Plain]


def unhex(text: str) -> bytes:
    """Return the bytes that hexadecimal text stands for."""
    return bytes.fromhex(text)


def scenarios() -> dict[str, dict[str, Scenario]]:
    """Return all scenarios, by file and name."""
    return {
        "frames": _frames(),
        "handshakes": _handshakes(),
        "trust_artefacts": _artefacts(),
        "stored": _stored(),
    }


# Frames of a link

FRAMES: Final[dict[str, tuple[str, Callable[[], bytes]]]] = {
    "open": ("a whole first part, which ends the sender's half of the stream",
        lambda: frames.part_header(frames.OPEN, frames.END, 1, b"meta", 4) + b"data"),
    "open, announced": ("a first part of 1 GiB that follows in DATA frames",
        lambda: frames.announcement_frame(frames.OPEN, 3, b"meta", 1 << 30)),
    "data": ("a piece of a part", lambda: frames.part_header(frames.DATA, 0, 3, b"", 4) + b"data"),
    "window": ("64 KiB of further credit", lambda: frames.window_frame(3, 65_536)),
    "reset": ("the early end of a stream",
        lambda: frames.reset_frame(3, "cancelled", "nobody waits")),
    "ping": ("a ping", lambda: frames.token_frame(frames.PING, 2**63 + 1)),
    "pong": ("its answer", lambda: frames.token_frame(frames.PONG, 2**63 + 1)),
    "note": ("a one-way message", lambda: frames.note_frame(b"\x91\x1f")),
    "goaway": ("no new streams", lambda: frames.GOAWAY_FRAME),
}  # fmt: skip
"""What each frame is, and how it is made."""


def _frames() -> dict[str, Scenario]:
    def make(given: Plain) -> Plain:
        made = FRAMES[given["frame"]][1]()
        names = ("length", "meta_length", "type", "flags", "stream")
        header = dict(zip(names, frames.HEADER.unpack_from(made), strict=True))
        return {"header": header, "bytes": made.hex()}

    return {name: Scenario(what, {"frame": name}, make) for name, (what, _) in FRAMES.items()}


# Handshakes


def roster_of(chains: list[str]) -> Roster:
    """Return a roster with the members of these chains, the first of which says which mesh."""
    roster = Roster(MeshId(people.MESH_ID))
    for chain in chains:
        roster.add(unhex(chain))
    return roster


def dialler(given: Plain) -> DiallerHello:
    """Return the dialling side of a handshake."""
    common: Plain = {
        "identity": Identity(unhex(given["dialler_seed"])),
        "boot": given["dialler_boot"],
        "nonce": unhex(given["dialler_nonce"]),
        "certificate_hash": unhex(given["certificate_hash"]),
        "versions": tuple(given["versions"]),
    }
    if "name" in given:
        return AskingHello(
            asking=Asking(ANY_MESH, given["name"]),
            pairing_nonce=unhex(given["dialler_pairing_nonce"]),
            **common,
        )
    credential = (
        Invite.parse(given["invite"])
        if "invite" in given
        else verify_chain(unhex(given["dialler_chain"]), MeshId(given["mesh_id"]))
    )
    return DiallerHello(credential=credential, is_trial=given.get("is_trial", False), **common)


def acceptor(given: Plain) -> ApprovingHello:
    """Return the accepting side of a handshake."""
    chain = unhex(given["acceptor_chain"])
    roster = roster_of([*given["known_chains"], given["acceptor_chain"]])
    return ApprovingHello(
        identity=Identity(unhex(given["acceptor_seed"])),
        member=verify_chain(chain, MeshId(given["mesh_id"])),
        roster=roster, boot=given["acceptor_boot"], nonce=unhex(given["acceptor_nonce"]),
        certificate_hash=unhex(given["certificate_hash"]), versions=tuple(given["versions"]),
        wall_s=given["wall_s"],
    )  # fmt: skip


def continued(side: AcceptorHello, given: Plain) -> bytes:
    """Return what a member says of its own accord: it takes a request, and a person approves it."""
    if not isinstance(side, ApprovingHello) or "name" not in given:
        return b""
    if side.asked_by is not None:
        return side.take_request(unhex(given["acceptor_pairing_nonce"]))
    if side.pairing is not None and side.result is None:
        member = verify_chain(unhex(given["acceptor_chain"]), MeshId(given["mesh_id"]))
        return side.approve(member, Invite.parse(given["invite_for_it"]), given["wall_s"])
    return b""


def outcome(side: DiallerHello | AcceptorHello) -> Plain:
    """Return what a side has established."""
    result = side.result
    assert result is not None, side.failed
    pairing: Pairing | None = getattr(side, "pairing", None)
    return {
        "peer": str(result.peer.node_id),
        "peer_boot": result.peer_boot,
        "version": result.version,
        "admitted": None if result.admitted is None else str(result.admitted.node_id),
        "is_trial": result.is_trial,
        "code": None if pairing is None else pairing.code,
    }


def _converse(given: Plain) -> Plain:
    """Let both sides talk to the end; return what each said in turn, and what came of it."""
    one, other = dialler(given), acceptor(given)
    other.start()
    said = [one.start()]
    while True:
        answer = other.receive(said[-1]) if other.result is None else b""
        while more := continued(other, given):
            answer += more
        said.append(answer)
        if one.result is not None or not answer:
            break
        said.append(one.receive(answer))
        if not said[-1]:
            break
    turns = [
        {"from": ("dialler", "acceptor")[index % 2], "bytes": each.hex()}
        for index, each in enumerate(said)
        if each
    ]
    return {"turns": turns, "dialler": outcome(one), "acceptor": outcome(other)}


def _handshakes() -> dict[str, Scenario]:
    common: Plain = {
        "mesh_id": people.MESH_ID,
        "versions": list(_VERSIONS),
        "certificate_hash": people.seed_of("certificate").hex(),
        "dialler_boot": 2**63 + 5,
        "dialler_nonce": people.seed_of("dialler's nonce").hex(),
        "acceptor_seed": people.seed_of("witness").hex(),
        "acceptor_boot": 17,
        "acceptor_nonce": people.seed_of("acceptor's nonce").hex(),
        "acceptor_chain": people.WITNESS_MEMBER.chain.hex(),
        "known_chains": [people.FOUNDED.chain.hex()],
        "wall_s": people.NOW_WALL_S + 60,
    }
    founder = {
        "dialler_seed": people.seed_of("founder").hex(),
        "dialler_chain": people.FOUNDED.chain.hex(),
    }
    joiner = {"dialler_seed": people.seed_of("joiner").hex()}
    asking = {
        **joiner,
        "name": "new-laptop",
        "dialler_pairing_nonce": people.seed_of("device's pairing nonce").hex(),
        "acceptor_pairing_nonce": people.seed_of("member's pairing nonce").hex(),
        "invite_for_it": people.invite_of(
            people.WITNESS, people.WITNESS_MEMBER, Role.MEMBER, uses=1
        ).to_text(),
    }
    through = {**joiner, "invite": people.JOINER_INVITE.to_text()}
    return {
        "member": Scenario("a member dials a member", {**common, **founder}, _converse),
        "member, trial": Scenario(
            "a member asks whether its hello would be taken",
            {**common, **founder, "is_trial": True},
            _converse,
        ),
        "joiner": Scenario("a device joins with an invite", {**common, **through}, _converse),
        "joiner, trial": Scenario(
            "a device asks whether its invite would do",
            {**common, **through, "is_trial": True},
            _converse,
        ),
        "pairing": Scenario(
            "a device without an invite asks, and a person approves",
            {**common, **asking},
            _converse,
        ),
    }


# Invites, chains, datagrams, codes


def _invite(given: Plain) -> Plain:
    identity = Identity(unhex(given["inviter_seed"]))
    invite = create_invite(
        identity=identity,
        member=verify_chain(unhex(given["inviter_chain"]), MeshId(given["mesh_id"])),
        role=Role(given["role"]), ttl_s=given["ttl_s"], now_wall_s=given["wall_s"],
        seeds=[Address(*each) for each in given["seeds"]], random_seed=unhex(given["random_seed"]),
        uses=given["uses"], region=given["region"],
    )  # fmt: skip
    subject = unhex(given["joiner"])
    return {
        "line": invite.to_text(),
        "invite_id": invite.grant.invite_id,
        "expires_at": invite.expires_at,
        "proof_for_the_joiner": invite.prove(subject).hex(),
    }


def verified(given: Plain) -> Plain:
    """Verify a chain and return what it says."""
    member = verify_chain(unhex(given["chain"]), MeshId(given["mesh_id"]))
    return {
        "node_id": str(member.node_id),
        "public_key": member.public_key.hex(),
        "role": str(member.role),
        "issued_at_s": member.issued_at_s,
        "invite_key": member.invite_key.hex(),
        "records": [type(read_record(each)).__name__ for each in member.records],
        "chain": member.chain.hex(),
    }


def seal_of(given: Plain, side: str, other: str) -> DatagramSeal:
    """Return one end of the datagrams between `sender` and `receiver`."""
    seal = DatagramSeal(Identity(unhex(given[f"{side}_seed"])), given[f"{side}_boot"])
    peer = Identity(unhex(given[f"{other}_seed"])).node_id
    assert seal.set_peer_boot(peer, given[f"{other}_boot"])
    return seal


def _datagrams(given: Plain) -> Plain:
    receiver = Identity(unhex(given["receiver_seed"]))
    seal = seal_of(given, "sender", "receiver")
    sealed = [
        seal.seal(receiver.node_id, receiver.public_key, unhex(each)).hex()
        for each in given["payloads"]
    ]
    return {"sender": str(Identity(unhex(given["sender_seed"])).node_id), "sealed": sealed}


def _code(given: Plain) -> Plain:
    device_nonce = unhex(given["device_nonce"])
    commitment = commitment_to(device_nonce)
    code = code_of(
        transcript=unhex(given["transcript"]), commitment=commitment,
        member_nonce=unhex(given["member_nonce"]), device_nonce=device_nonce, name=given["name"],
    )  # fmt: skip
    return {"commitment": commitment.hex(), "code": code}


def _artefacts() -> dict[str, Scenario]:
    invite: Plain = {
        "inviter_seed": people.seed_of("founder").hex(),
        "inviter_chain": people.FOUNDED.chain.hex(),
        "mesh_id": people.MESH_ID,
        "role": "member",
        "ttl_s": 86_400,
        "wall_s": people.NOW_WALL_S,
        "seeds": [list(each) for each in people.SEEDS],
        "random_seed": people.seed_of("an invite").hex(),
        "uses": 3,
        "region": "workshop",
        "joiner": people.JOINER.public_key.hex(),
    }
    datagrams: Plain = {
        "sender_seed": people.seed_of("founder").hex(),
        "sender_boot": 2**63 + 5,
        "receiver_seed": people.seed_of("witness").hex(),
        "receiver_boot": 17,
        "payloads": ["", "9315c0", people.seed_of("payload").hex() * 40],
    }
    code: Plain = {
        "transcript": people.seed_of("transcript").hex(),
        "device_nonce": people.seed_of("device's nonce").hex(),
        "member_nonce": people.seed_of("member's nonce").hex(),
        "name": "new-laptop",
    }
    chains = {
        "founder": people.FOUNDED,
        "witnessed member": people.JOINER_MEMBER,
        "promoted member": people.PROMOTED,
        "successor": people.SUCCEEDED,
    }
    return {
        "invite": Scenario("the line that a person copies", invite, _invite),
        **{
            f"chain of a {name}": Scenario(
                "an admission chain, and what it shows",
                {"mesh_id": people.MESH_ID, "chain": member.chain.hex()},
                verified,
            )
            for name, member in chains.items()
        },
        "datagrams": Scenario("sealed datagrams, in the order of sending", datagrams, _datagrams),
        "code": Scenario("the six digits of a pairing", code, _code),
    }


# Files whose bytes are more than one message


def _stored() -> dict[str, Scenario]:
    from meshnode.membership.messages import CODEC, read_members, write_members
    from meshnode.state.desired_messages import DESIRED
    from meshnode.state.desired_store import pack, unpack
    from tests.vectors import cases

    def desired(given: Plain) -> Plain:
        entries = [DESIRED.decode(unhex(each)) for each in given["entries"]]
        stored = pack(entries, given["contact_ms"])
        assert list(unpack(stored).entries) == entries
        return {"file": stored.hex()}

    def members(given: Plain) -> Plain:
        records = [CODEC.decode(unhex(each)) for each in given["records"]]
        stored = write_members(records)
        assert list(read_members(stored)) == records
        return {"file": stored.hex()}

    def roster(given: Plain) -> Plain:
        kept = roster_of(given["chains"])
        again = Roster(kept.mesh_id)
        assert again.load(kept.to_bytes()) == []
        return {"file": kept.to_bytes().hex(), "members": [str(each.node_id) for each in again]}

    entries = [DESIRED.encode(cases.entry()).hex()]
    chains = [each.chain.hex() for each in (people.FOUNDED, people.WITNESS_MEMBER)]
    return {
        "state/desired": Scenario(
            "the desired state: magic, checksum, body",
            {"entries": entries, "contact_ms": people.NOW_WALL_S * 1000},
            desired,
        ),
        "state/members": Scenario(
            "whom to look for", {"records": [CODEC.encode(cases.member_record()).hex()]}, members
        ),
        "state/roster": Scenario("the chains that are known", {"chains": chains}, roster),
    }


def opened(given: Plain, sealed: list[str]) -> list[tuple[NodeId, str]]:
    """Open datagrams as their receiver; return the sender and the payload of each."""
    seal = seal_of(given, "receiver", "sender")
    sender = Identity(unhex(given["sender_seed"]))
    keys = {sender.node_id: sender.public_key}
    return [
        (who, payload.hex()) for who, payload in (seal.open(unhex(s), keys.get) for s in sealed)
    ]
