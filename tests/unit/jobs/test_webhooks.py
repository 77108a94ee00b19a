"""Webhooks: their signature is what Standard Webhooks describes, and their secrets are worth signing with."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from meshnode.errors import InvalidRequest
from meshnode.jobs import webhooks
from meshnode.jobs.job import JobStatus, Outcome
from tests.unit.jobs.mesh import job


def test_the_signature_is_the_one_of_the_specifications_example() -> None:
    """The example of the Standard Webhooks' specification."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    found = webhooks.headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert found["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert found["webhook-timestamp"] == "1614265330"


def test_a_secret_without_the_prefix_is_taken_as_it_is_written() -> None:
    found = webhooks.headers("a plain long secret", "id", 1, b"{}")
    digest = hmac.new(b"a plain long secret", b"id.1.{}", hashlib.sha256).digest()
    assert found["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_made_secrets_pass_the_check() -> None:
    assert webhooks.check_secret(webhooks.make_secret(bytes(range(32)))).startswith("whsec_")


@pytest.mark.parametrize(
    "secret", ["short", "whsec_AAAA", "whsec_*", "x" * 257, "ü" * 20, "a\nb" * 10]
)
def test_a_secret_that_signs_nothing_worth_is_refused(secret: str) -> None:
    with pytest.raises(InvalidRequest, match="secret"):
        webhooks.check_secret(secret)


def test_each_outcome_has_an_id_of_its_own_and_each_try_the_same() -> None:
    one = Outcome(JobStatus.SUCCEEDED, 1, "abcdefghij", 5)
    other = Outcome(JobStatus.SUCCEEDED, 2, "abcdefghij", 5)
    ids = [webhooks.event_id(job("a"), each) for each in (one, one, other)]
    assert ids[0] == ids[1] != ids[2]


def test_tries_end_after_the_last_pause() -> None:
    assert [webhooks.pause_s(n) for n in range(1, len(webhooks.PAUSES_S) + 1)] == list(
        webhooks.PAUSES_S
    )
    assert webhooks.pause_s(len(webhooks.PAUSES_S) + 1) is None
    assert webhooks.is_final(410)
    assert not webhooks.is_final(500)
