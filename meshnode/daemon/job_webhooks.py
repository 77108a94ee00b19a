"""Telling a caller's own server how a job ended, until it has heard it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import MeshError
from meshnode.gateway.jobs_api import document
from meshnode.jobs import webhooks
from meshnode.limits import MAX_WEBHOOK_ANSWER_BYTES, WEBHOOK_TIMEOUT_S
from meshnode.net.outbound import ask
from meshnode.trust.records import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.gateway.jobs_api import JobsControl
    from meshnode.jobs.job import Job, JobState
    from meshnode.net.outbound import OutboundRule

log = logging.getLogger(__name__)


async def tell(
    job: Job,
    state: JobState,
    control: JobsControl,
    rule: OutboundRule,
    clock: Clock,
    room: asyncio.Semaphore,
    is_wanted: Callable[[], bool],
) -> bool:
    """Tell a job's webhook how it ended; return whether it has heard it.

    Args:
        job: It.
        state: How it ended.
        control: Names nodes.
        rule: Where the webhook may lead.
        clock: For the timestamp.
        room: How many are told at once; not held between tries.
        is_wanted: Whether it still ended so; if not, nobody is told any more.
    """
    end, hook = state.outcome, job.webhook
    assert end is not None
    assert hook is not None
    event = webhooks.event_id(job, end)
    tries = 0
    while is_wanted():
        async with room:
            now_s = int(clock.wall_s())
            shown = document(job, state, control)
            shown.pop("webhook")
            body = msgspec.json.encode(
                {"type": f"job.{end.status}", "timestamp": rfc3339(now_s), "data": shown}
            )
            headers = webhooks.headers(hook.secret, event, now_s, body)
            status = await _posted(rule, hook.url, headers, body)
        if 200 <= status < 300:
            return True
        tries += 1
        pause_s = webhooks.pause_s(tries)
        if pause_s is None or webhooks.is_final(status):
            break
        await asyncio.sleep(pause_s)
    log.warning("the webhook of job %s was not told that it has ended: %r", job.id, hook)
    return False


async def _posted(rule: OutboundRule, url: str, headers: dict[str, str], body: bytes) -> int:
    """Post, and return the answer's status; 0 if there was none."""
    try:
        answer = await ask(
            rule,
            "POST",
            url,
            headers=headers,
            body=body,
            timeout_s=WEBHOOK_TIMEOUT_S,
            max_answer_bytes=MAX_WEBHOOK_ANSWER_BYTES,
        )
    except MeshError as error:
        log.info("a webhook could not be told: %s", error)
        return 0
    return answer.status
