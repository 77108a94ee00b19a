"""What nodes say to each other about jobs, on a link's streams.

Opening message -> answer on the same stream:

- `KeepJob` + the call's body -> `JobKept`, or `Failure`: have a job, durably
- `TellJob` + nothing, or the result's body -> `JobKept`, or `Failure`: know how a job fares
- `AskJob` -> `JobTold` + nothing, or the result's body, or `Failure`: how a job fares
- `CancelJob` -> `JobTold`, or `Failure`
- `ListJobs` -> `JobsListed` + the jobs, or `Failure`
"""

from __future__ import annotations

from typing import Final

import msgspec

from meshnode.errors import ProtocolError
from meshnode.jobs.job import Job, JobState
from meshnode.wire.codec import Codec, Message
from meshnode.wire.messages import Failure


class KeepJob(Message, frozen=True, tag=81):
    """Keep this job; the body of its call follows as the message's data."""

    job: Job
    state: JobState


class TellJob(Message, frozen=True, tag=82):
    """A job fares so; the body of its result may follow as the message's data.

    Without it, a node that lacks it answers what it wants, and nothing has changed there.

    Attributes:
        id: The job's.
        state: How it fares.
        fingerprint: What it asks for (`Job.fingerprint`): two calls may have come with one idempotency key, and only
            those that have the job know it.
    """

    id: str
    state: JobState
    fingerprint: bytes = b""


WANTS_NOTHING: Final = 0
WANTS_JOB: Final = 1
WANTS_RESULT: Final = 2
"""What a node lacks that was told of a job."""


class JobKept(Message, frozen=True, tag=83):
    """It is on this node's disk; or this is wanted before it can be."""

    wants: int = WANTS_NOTHING


class AskJob(Message, frozen=True, tag=84):
    """Say how a job fares, with the body of its result if that is wanted."""

    id: str
    with_result: bool = False


class JobTold(Message, frozen=True, tag=85):
    """A job, and how it fares; the body of its result may follow as the message's data."""

    job: Job
    state: JobState


class CancelJob(Message, frozen=True, tag=86):
    """Nobody wants this job any more.

    Attributes:
        id: The job's.
        withdrawn: Its gateway, which asks this, did not accept it: it is forgotten, as if it had never been.
    """

    id: str
    withdrawn: bool = False


class ListJobs(Message, frozen=True, tag=87):
    """Name the jobs that you keep: the newest first.

    Attributes:
        key_id: Only those of this API key (empty: of callers without one), unless `everybody`.
        everybody: Those of all.
        status: Only those that are so; empty for all.
        limit: At most so many.
        before_ms: Only those that are older, or of the same moment with a greater id than `after`.
        after: See there.
        accepted_by: Only those that this node accepted; empty for all.
    """

    key_id: str
    everybody: bool
    status: str
    limit: int
    before_ms: int
    after: str = ""
    accepted_by: str = ""


class JobsListed(Message, frozen=True, tag=88):
    """So many jobs follow, as the message's data (`read_listed`)."""

    count: int


JOBS: Final = Codec(
    KeepJob, TellJob, JobKept, AskJob, JobTold, CancelJob, ListJobs, JobsListed, Failure
)
"""The codec of all of them."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_LIST: Final = msgspec.msgpack.Decoder(list[tuple[Job, JobState]])


def write_listed(jobs: list[tuple[Job, JobState]]) -> bytes:
    """Return jobs as they follow `JobsListed`."""
    return _ENCODER.encode(jobs)


def read_listed(data: memoryview) -> list[tuple[Job, JobState]]:
    """Return the jobs that follow `JobsListed`.

    Raises:
        ProtocolError: if they are none.
    """
    try:
        return _LIST.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"a peer listed its jobs in an unknown form: {error}") from error
