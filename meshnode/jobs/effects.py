"""What a node's book of jobs (`meshnode.jobs.book`) wants done, and what it knows of each job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.jobs.job import Job, JobState
    from meshnode.types import NodeId


@dataclass(frozen=True, slots=True)
class Save:
    """Write a job's state."""

    job_id: str
    state: JobState


@dataclass(frozen=True, slots=True)
class Send:
    """Let a node have a job as it is; then call `acked` or `refused`."""

    to: NodeId
    job_id: str
    state: JobState


@dataclass(frozen=True, slots=True)
class Start:
    """Run a job; then call `finished` or `paused`."""

    job: Job
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Run a job no more; nothing needs to be called."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell a job's webhook how it ended; then call `told`."""

    job: Job
    state: JobState


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a job and its bodies."""

    job_id: str


JobEffect = Save | Send | Start | Stop | Tell | Drop


@dataclass(slots=True)
class Held:
    """A job that this node keeps.

    Attributes:
        job: What was asked.
        state: How it fares.
        acked: What other nodes are known to have of it on their disks.
        sending: Nodes to which it is on its way.
        running: The attempt that runs here; 0 for none.
        telling: Whether its webhook is being told from here.
        proposed: Whether its caller waits here for a second node to have it.
        tried: Nodes to which it was sent as a proposal, although they took no copy a moment ago.
        resumes_at_ms: Until when an attempt of this node waits for its model; 0 if it has not paused.
    """

    job: Job
    state: JobState
    acked: dict[NodeId, JobState] = field(default_factory=dict)
    sending: set[NodeId] = field(default_factory=set)
    running: int = 0
    telling: bool = False
    proposed: bool = False
    tried: set[NodeId] = field(default_factory=set)
    resumes_at_ms: int = 0

    @property
    def size_bytes(self) -> int:
        """What its bodies take."""
        end = self.state.outcome
        return self.job.body_bytes + (0 if end is None else end.result_bytes)
