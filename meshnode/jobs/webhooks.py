"""Telling the end of a job to its caller's own server: form and signature, as Standard Webhooks has them.

The receiver's check: HMAC-SHA256 over `ID.TIMESTAMP.BODY` with the secret, in base64, is one of the words of the header
`webhook-signature` after `v1,`; the timestamp is a few minutes old at most; the id was not seen before.
(https://www.standardwebhooks.com; libraries for most languages check it.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_WEBHOOK_SECRET_LENGTH

if TYPE_CHECKING:
    from meshnode.jobs.job import Job, Outcome

PAUSES_S: Final = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
"""Pauses between tries to deliver a webhook: a receiver may be away for two and a half hours."""

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the public mark of such secrets
"""What the secrets begin with that stand for bytes in base64; others are taken as they are written."""


def check_secret(secret: str) -> str:
    """Return a secret that can sign.

    Raises:
        InvalidRequest: if it is too short or too long, or is no base64 after `whsec_`.
    """
    if not secret.isascii() or not secret.isprintable() or len(secret) > MAX_WEBHOOK_SECRET_LENGTH:
        raise InvalidRequest(
            f"a webhook's secret has at most {MAX_WEBHOOK_SECRET_LENGTH} printable ASCII characters"
        )
    try:
        length = len(_key(secret))
    except binascii.Error as error:
        raise InvalidRequest(f"a webhook's secret is no base64 after {SECRET_PREFIX}") from error
    if length < 16:
        raise InvalidRequest("a webhook's secret has at least 16 bytes, so that nobody guesses it")
    return secret


def make_secret(random_bytes: bytes) -> str:
    """Return a secret made of random bytes, 24 at least."""
    return SECRET_PREFIX + base64.b64encode(random_bytes).decode()


def event_id(job: Job, outcome: Outcome) -> str:
    """Return the id of what is told: the same at each try, another for another outcome."""
    return f"msg_{job.id}_{outcome.attempt}_{outcome.node[:8]}"


def headers(secret: str, event: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook.

    Args:
        secret: Signs it.
        event: Its id.
        timestamp_s: Seconds since the Unix epoch, of this try.
        body: As sent.
    """
    signed = f"{event}.{timestamp_s}.".encode() + body
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": event,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def pause_s(tries: int) -> float | None:
    """Return the seconds to wait after so many failed tries; None to give up."""
    return PAUSES_S[tries - 1] if tries <= len(PAUSES_S) else None


def is_final(status: int) -> bool:
    """Whether a receiver's answer ends the tries without success: it wants no more of these (410 Gone)."""
    return status == 410


def _key(secret: str) -> bytes:
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    return secret.encode()
