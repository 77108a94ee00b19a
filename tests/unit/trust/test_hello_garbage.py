from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.limits import MAX_HELLO_BYTES, MAX_REFUSAL_LENGTH
from meshnode.trust.chain import Chain, VerifiedMember
from meshnode.trust.hello import (
    AcceptorHello,
    DiallerHello,
    Hello,
    JoinProof,
    Proof,
    Refusal,
    State,
    Welcome,
)
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import SignedRecord
from meshnode.trust.roster import Roster

if TYPE_CHECKING:
    from meshnode.trust.identity import Identity
    from meshnode.wire.codec import Message

Accept = Callable[[], AcceptorHello]
Dial = Callable[[], DiallerHello]
CERTIFICATE = hashlib.sha256(b"certificate").digest()


@pytest.fixture
def accept(founder: Identity, founded: VerifiedMember, now_wall_s: float) -> Accept:
    """The founder's side of fresh handshakes."""

    def start() -> AcceptorHello:
        hello = AcceptorHello(
            identity=founder, member=founded, roster=Roster(founded.mesh_id), boot=1,
            nonce=b"a" * 32, certificate_hash=CERTIFICATE, versions=(1, 3), wall_s=now_wall_s,
        )  # fmt: skip
        hello.start()
        return hello

    return start


@pytest.fixture
def dial(
    founder: Identity,
    founded: VerifiedMember,
    identity_of: Callable[[str], Identity],
    admit_through: Callable[..., VerifiedMember],
) -> Dial:
    """Another member's side of fresh handshakes, not yet started."""
    identity = identity_of("second")
    member = admit_through(identity, (founder, founded))
    return lambda: DiallerHello(
        identity=identity, credential=member, boot=2, nonce=b"d" * 32,
        certificate_hash=CERTIFICATE, versions=(1, 3),
    )  # fmt: skip


def failed(side: AcceptorHello | DiallerHello) -> TrustError:
    assert side.result is None
    assert side.failed is not None
    assert side.state is State.FAILED
    return side.failed


def frame(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n",
        bytes(4),
        (1).to_bytes(4, "big") + b"\x00",
        frame(Welcome()),
        frame(Proof(bytes(64), b"")),
        frame(JoinProof(bytes(64), SignedRecord(b"", bytes(64)), bytes(64))),
        frame(Chain(bytes(32), ())),
        frame(Hello(1, 3, b"short", bytes(32), "", 1)),
        frame(Hello(-1, 3, bytes(32), bytes(32), "", 1)),
        (MAX_HELLO_BYTES).to_bytes(4, "big"),
        b"\xff" * 4,
    ],
)
def test_what_is_no_hello_is_refused_at_once(accept: Accept, data: bytes) -> None:
    acceptor = accept()
    refusal = acceptor.receive(data)
    assert failed(acceptor).reason is Reason.PROTOCOL
    decoded = msgspec.msgpack.decode(refusal[4:], type=Refusal)
    assert decoded.reason == "protocol"
    assert acceptor.receive(b"anything") == b""


def test_a_second_hello_is_refused(accept: Accept, dial: Dial) -> None:
    acceptor = accept()
    hello = dial().start()
    acceptor.receive(hello + hello)
    assert failed(acceptor).reason is Reason.PROTOCOL


def test_nothing_may_come_before_the_start(dial: Dial) -> None:
    dialler = dial()
    dialler.receive(frame(Hello(1, 3, b"n" * 32, bytes(32), "", 1)))
    assert failed(dialler).reason is Reason.PROTOCOL


def test_all_frames_together_are_bounded(accept: Accept, dial: Dial) -> None:
    acceptor = accept()
    acceptor.receive(dial().start())
    acceptor.receive((MAX_HELLO_BYTES - 8).to_bytes(4, "big"))
    assert failed(acceptor).reason is Reason.PROTOCOL
    assert "more than" in str(acceptor.failed)


@given(chunks=st.lists(st.binary(max_size=200), max_size=8), framed=st.booleans())
@settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_no_bytes_break_a_side_or_make_a_link(
    accept: Accept, dial: Dial, chunks: list[bytes], framed: bool
) -> None:
    dialler = dial()
    dialler.start()
    for side in (accept(), dialler):
        for chunk in chunks:
            side.receive(len(chunk).to_bytes(4, "big") + chunk if framed else chunk)
        assert side.result is None


def test_a_chain_is_not_looked_at_before_the_signature_over_this_connection(
    accept: Accept, dial: Dial
) -> None:
    acceptor = accept()
    acceptor.receive(dial().start())
    acceptor.receive(frame(Proof(bytes(64), b"no chain, and costly to find out")))
    assert failed(acceptor).reason is Reason.SIGNATURE


def test_fields_that_a_newer_hello_appends_are_ignored_but_signed(
    accept: Accept, dial: Dial
) -> None:
    dialler, acceptor = dial(), accept()
    fields = [*msgspec.msgpack.decode(dialler.start()[4:]), {"new": "field"}]
    body = msgspec.msgpack.encode(fields)
    acceptor.receive(len(body).to_bytes(4, "big") + body)
    assert acceptor.state is State.AWAIT_PROOF


def test_a_refusal_with_an_unknown_reason_is_still_shown(dial: Dial) -> None:
    dialler = dial()
    dialler.start()
    assert dialler.receive(frame(Refusal("comet", "a comet fell"))) == b""
    assert failed(dialler).reason is Reason.OTHER
    assert "a comet fell" in str(dialler.failed)


def test_a_refusal_cannot_take_over_the_terminal(dial: Dial) -> None:
    dialler = dial()
    dialler.start()
    dialler.receive(frame(Refusal("other", "\x1b[2Jgone\n\u202e" + "x" * 60_000)))
    shown = str(dialler.failed)
    assert shown.isprintable()
    assert len(shown) < MAX_REFUSAL_LENGTH + 40
