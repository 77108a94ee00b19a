"""A job: what was asked, and how it fares.

`Job` never changes. `JobState` does, at several nodes at once if they cannot hear each other, so two states of one
job can always be merged. A merge takes, of each of the two parts, the one that comes first in a fixed order:

- *the run*: the higher attempt; at the same attempt, a claimed run before an unclaimed one, then the node
  with the smaller id;
- *the outcome*: any before none; a success before a cancellation before a failure; then the earlier attempt, then the
  node with the smaller id.

An order is all that it takes: merging is commutative, associative and idempotent, so all copies end up alike,
whatever they heard first, and one result is visible.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import IntEnum, StrEnum
from typing import Final

import msgspec

from meshnode.limits import JOB_RESULT_S, MAX_JOB_AGE_S

JOB_ID: Final = re.compile(r"[a-z2-7]{26}")
"""The form of a job's id: 128 bits in base32."""

_ID_BYTES: Final = 16


class JobStatus(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_PREFERRED: Final = {JobStatus.SUCCEEDED: 0, JobStatus.CANCELLED: 1, JobStatus.FAILED: 2}
"""Which outcome counts where there are several: what was done is done, and a wish is more than a failure."""


class Told(IntEnum):
    """Whether the caller's own server was told of the outcome; the higher counts."""

    WAITING = 0
    GIVEN_UP = 1
    DELIVERED = 2


Headers = tuple[tuple[str, str], ...]
"""HTTP headers; names in lower case."""


_SAYS_HOW_TO_READ: Final = frozenset(
    {"accept", "content-encoding", "content-type", "inference-header-content-length"}
)
"""Headers of a call without which it is another one; `mesh-*` as well."""


class Webhook(msgspec.Struct, array_like=True, frozen=True):
    """Where the end of a job is told.

    Attributes:
        url: Of the caller's server.
        secret: Signs what is told. Empty in what nodes are told who do not keep the job.
        secret_digest: Of a secret that the caller gave, and of the job's id; empty if it was made for them.
    """

    url: str
    secret: str
    secret_digest: bytes = b""

    def __repr__(self) -> str:
        return f"<Webhook {self.url.partition('?')[0]}>"


class Job(msgspec.Struct, array_like=True, frozen=True):
    """What was asked. Its body is kept beside it.

    Attributes:
        id: See `JOB_ID`.
        path: Of the call, undecoded.
        query: Of the call, undecoded.
        headers: Those of the call that matter for its answer.
        body_sha256: Of the call's body.
        body_bytes: Its length.
        created_at_ms: When it was accepted, in milliseconds since the Unix epoch.
        accepted_by: The node that accepted it.
        key_id: The API key of its caller; empty where none was needed.
        key_name: Of that key.
        model: The model that it asks for, as far as its path says so.
        webhook: Where its end is told, or None.
        request_id: Of the call that made it.
    """

    id: str
    path: str
    query: str
    headers: Headers
    body_sha256: bytes
    body_bytes: int
    created_at_ms: int
    accepted_by: str
    key_id: str = ""
    key_name: str = ""
    model: str = ""
    webhook: Webhook | None = None
    request_id: str = ""

    @property
    def fingerprint(self) -> bytes:
        """What is asked, without when, where and by whom: of two jobs with one id it must be the same."""
        hook = Webhook("", "") if self.webhook is None else self.webhook
        read_by = sorted(
            f"{name}:{value}"
            for name, value in self.headers
            if name in _SAYS_HOW_TO_READ or name.startswith("mesh-")
        )
        parts = (self.path, self.query, self.key_id, *read_by, hook.url)
        text = "\0".join(parts).encode()
        return hashlib.sha256(text + b"\0" + hook.secret_digest + self.body_sha256).digest()

    @property
    def order(self) -> tuple[int, str]:
        """Which of two jobs with one id counts: the smaller."""
        return self.created_at_ms, self.accepted_by


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """How a job ended. The body of its result is kept beside it.

    Attributes:
        status: `succeeded`, `failed` or `cancelled`.
        attempt: The attempt that ended so.
        node: The node that says so.
        finished_at_ms: When.
        http_status: Of the answer as the call's path would have given it; 0 without one.
        headers: Of that answer.
        result_sha256: Of its body; empty without one.
        result_bytes: The length of that.
        error: A sentence, if it failed.
        code: A word for that, of `meshnode.errors`.
    """

    status: JobStatus
    attempt: int
    node: str
    finished_at_ms: int
    http_status: int = 0
    headers: Headers = ()
    result_sha256: bytes = b""
    result_bytes: int = 0
    error: str = ""
    code: str = ""


class JobState(msgspec.Struct, array_like=True, frozen=True):
    """How a job fares.

    Attributes:
        attempt: How often it was claimed, or given back.
        node: The node that runs it; empty if none does.
        started_at_ms: When that node began.
        progress: 0 to 1; -1 if it is not known.
        outcome: How it ended, or None.
        told: Whether its webhook was told of that outcome.
        passed: Nodes that cannot run it, and gave it back: whoever is next in the ranking does.
    """

    attempt: int = 0
    node: str = ""
    started_at_ms: int = 0
    progress: float = -1.0
    outcome: Outcome | None = None
    told: Told = Told.WAITING
    passed: tuple[str, ...] = ()

    @property
    def status(self) -> JobStatus:
        """How far it is."""
        if self.outcome is not None:
            return self.outcome.status
        return JobStatus.RUNNING if self.node else JobStatus.QUEUED

    @property
    def ended(self) -> bool:
        """Whether it has an outcome."""
        return self.outcome is not None


def digest_of_secret(job_id: str, secret: str) -> bytes:
    """Return what tells whether two calls gave the same secret for one job, and does not tell the secret."""
    return hashlib.sha256(f"meshnode webhook\0{job_id}\0{secret}".encode()).digest()


def without_secret(job: Job) -> Job:
    """Return a job as it is told to those who do not keep it: nobody else signs in its webhook's name."""
    if job.webhook is None:
        return job
    return msgspec.structs.replace(job, webhook=msgspec.structs.replace(job.webhook, secret=""))


def older(one: Job, other: Job) -> Job:
    """Return which of two jobs with one id counts."""
    return min(one, other, key=lambda job: job.order)


NEW: Final = JobState()
"""The state of a job that nobody has begun."""


def merge(one: JobState, other: JobState) -> JobState:
    """Return the state that counts where a job has two histories; see the top of this module."""
    if one == other:
        return one
    run = min(one, other, key=_run_order)
    end = min(one, other, key=_end_order)
    return msgspec.structs.replace(run, outcome=end.outcome, told=end.told)


def _run_order(state: JobState) -> tuple[int, bool, str, float, int, tuple[str, ...]]:
    return (
        -state.attempt, not state.node, state.node, -state.progress, state.started_at_ms, state.passed,
    )  # fmt: skip


def _end_order(state: JobState) -> tuple[int, bytes, int]:
    end = state.outcome
    if end is None:
        return (len(_PREFERRED), b"", -state.told)
    # Numbers of fixed length compare as bytes like numbers do; the rest breaks ties between equals only.
    place = end.attempt.to_bytes(8, "big") + end.node.encode() + msgspec.msgpack.encode(end)
    return (_PREFERRED.get(end.status, len(_PREFERRED)), place, -state.told)


def claimed(state: JobState, node: str, now_ms: int) -> JobState:
    """Return the state after a node has taken a job to run it."""
    return JobState(state.attempt + 1, node, now_ms, passed=state.passed)


def released(state: JobState, unfit: str = "") -> JobState:
    """Return the state after a node has given a job back that it does not run.

    Args:
        state: The state before.
        unfit: That node, if it cannot run it and another is to try; empty if it may have it again.
    """
    passed = state.passed if not unfit or unfit in state.passed else (*state.passed, unfit)
    return JobState(state.attempt + 1, passed=passed)


def ended(state: JobState, outcome: Outcome) -> JobState:
    """Return the state after an outcome; merged, so that a better one that is known stays."""
    return merge(state, msgspec.structs.replace(state, outcome=outcome, told=Told.WAITING))


def expires_at_ms(job: Job, state: JobState) -> int:
    """Return when a job is forgotten: in milliseconds since the Unix epoch."""
    last_ms = job.created_at_ms + 1000 * MAX_JOB_AGE_S
    if state.outcome is not None:
        last_ms = min(last_ms, state.outcome.finished_at_ms)
    return last_ms + 1000 * JOB_RESULT_S


def overdue(job: Job, now_ms: int) -> bool:
    """Whether a job has waited for so long that it fails."""
    return now_ms >= job.created_at_ms + 1000 * MAX_JOB_AGE_S


def random_id(random_bytes: bytes) -> str:
    """Return the id of a job, of at least 16 random bytes."""
    return base64.b32encode(random_bytes[:_ID_BYTES]).decode().rstrip("=").lower()


def id_of_key(key_id: str, text: str) -> str:
    """Return the id of the job that a caller means by an idempotency key: the same at every node.

    Args:
        key_id: The caller's API key; empty without one.
        text: The idempotency key.
    """
    return random_id(hashlib.sha256(f"meshnode job\0{key_id}\0{text}".encode()).digest())
