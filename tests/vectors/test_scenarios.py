"""Frozen conversations, proofs and files: this version still makes, reads and believes them.

That two nodes with other ranges of wire versions agree on the highest common one, or refuse with both
ranges, is in tests/unit/trust/test_hello.py and, over sockets, in tests/unit/net/test_trial.py.
"""

from __future__ import annotations

import pytest

from meshnode.state.desired_store import unpack
from meshnode.trust.datagrams import DatagramError
from meshnode.trust.invite import Invite
from meshnode.wire.config import LinkConfig
from meshnode.wire.events import NoteReceived
from meshnode.wire.frames import HEADER, note_frame
from meshnode.wire.link import Link
from meshnode.wire.reader import Frame, FrameReader
from tests.vectors import freeze, scenarios

FROZEN = freeze.frozen()
ALL = {
    f"{file}: {name}": (file, name)
    for file, vectors in scenarios.scenarios().items()
    for name in vectors
}
HANDSHAKES = FROZEN["handshakes"]


@pytest.mark.parametrize(("file", "name"), ALL.values(), ids=ALL.keys())
def test_what_was_given_then_makes_the_same_today(file: str, name: str) -> None:
    vector = FROZEN[file][name]
    assert scenarios.scenarios()[file][name].make(vector["given"]) == vector["made"]


@pytest.mark.parametrize("name", HANDSHAKES)
def test_each_side_answers_the_frozen_bytes_of_the_other_with_its_own(name: str) -> None:
    given, made = HANDSHAKES[name]["given"], HANDSHAKES[name]["made"]
    dialler, acceptor = scenarios.dialler(given), scenarios.acceptor(given)
    said = {"dialler": dialler.start(), "acceptor": acceptor.start()}
    for turn in made["turns"]:
        frozen = bytes.fromhex(turn["bytes"])
        assert said[turn["from"]] == frozen
        if turn["from"] == "dialler":
            said["acceptor"] = acceptor.receive(frozen)
            while more := scenarios.continued(acceptor, given):
                said["acceptor"] += more
        else:
            said["dialler"] = dialler.receive(frozen)
    assert scenarios.outcome(dialler) == made["dialler"]
    assert scenarios.outcome(acceptor) == made["acceptor"]


def test_frozen_datagrams_open_once() -> None:
    vector = FROZEN["trust_artefacts"]["datagrams"]
    given, made = vector["given"], vector["made"]
    assert scenarios.opened(given, made["sealed"]) == [
        (made["sender"], payload) for payload in given["payloads"]
    ]
    with pytest.raises(DatagramError, match="replayed"):
        scenarios.opened(given, made["sealed"][:1] * 2)


def test_a_frozen_invite_line_is_read() -> None:
    vector = FROZEN["trust_artefacts"]["invite"]
    given, made = vector["given"], vector["made"]
    invite = Invite.parse(made["line"])
    assert invite.mesh_id == given["mesh_id"]
    assert [list(seed) for seed in invite.seeds] == given["seeds"]
    assert (invite.grant.role, invite.grant.uses, invite.grant.region) == (
        given["role"], given["uses"], given["region"],
    )  # fmt: skip
    assert invite.prove(bytes.fromhex(given["joiner"])).hex() == made["proof_for_the_joiner"]


def test_a_frozen_desired_store_is_read() -> None:
    vector = FROZEN["stored"]["state/desired"]
    stored = unpack(bytes.fromhex(vector["made"]["file"]))
    assert stored.contact_ms == vector["given"]["contact_ms"]
    assert len(stored.entries) == len(vector["given"]["entries"])


@pytest.mark.parametrize("name", FROZEN["frames"])
def test_a_frozen_frame_is_cut_out_of_any_chunks(name: str) -> None:
    made = FROZEN["frames"][name]["made"]
    data = bytes.fromhex(made["bytes"])
    found: list[tuple[Frame, bytes]] = []

    def on_frame(frame: Frame, view: memoryview, at: int) -> None:
        found.append((frame, bytes(view[at : at + frame[0]])))

    reader = FrameReader(on_frame, lambda _: None)
    for at in range(len(data)):
        reader.feed(memoryview(data)[at : at + 1])
    assert found == [(tuple(made["header"].values()), data[HEADER.size :])]


def test_frames_of_an_unknown_type_and_unknown_flags_are_ignored() -> None:
    link = Link(dialler=True, now=0.0, config=LinkConfig())
    unknown = HEADER.pack(4, 0, 200, 0, 7) + b"what"
    flagged = bytearray(note_frame(b"note"))
    flagged[7] |= 0xF0
    events = link.receive(unknown + bytes(flagged), 0.0)
    assert [each.payload for each in events if isinstance(each, NoteReceived)] == [b"note"]
