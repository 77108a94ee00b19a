"""What both clients do around one call: its time, its plan, and what its tries come to."""

from __future__ import annotations

import contextlib
import math
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from meshnode.client.calls import Reply, with_key
from meshnode.client.plan import CallPlan, Failure, Gateways
from meshnode.client.replies import error_of_reply
from meshnode.errors import ConfigError, DeadlineExceeded, ProtocolError, UsageError
from meshnode.limits import MAX_CLIENT_TIMEOUT_S, MAX_TRIES_PER_GATEWAY

if TYPE_CHECKING:
    import random
    import ssl

    from meshnode.client.calls import Call, Read
    from meshnode.client.endpoints import Target

A = TypeVar("A")


def tls_context(target: Target) -> ssl.SSLContext:
    """Return TLS settings that verify the gateway's certificate and name.

    Raises:
        ConfigError: if the file of certificates cannot be used.
    """
    import ssl

    try:
        return ssl.create_default_context(cafile=target.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the file of trusted certificates {target.ca_file!r} cannot be used ({error}); it must "
            "be PEM"
        ) from None


def checked_timeout_s(timeout_s: object) -> float:
    """Return a time that a caller gave, as seconds.

    Raises:
        UsageError: if it is none in which anything could happen.
    """
    seconds = math.nan
    if not isinstance(timeout_s, bool | str | bytes):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            seconds = float(timeout_s)  # type: ignore[arg-type]
    if not 0 < seconds <= MAX_CLIENT_TIMEOUT_S:
        raise UsageError(
            f"timeout_s must be a number of seconds, above 0 and up to {MAX_CLIENT_TIMEOUT_S:.0f} (a "
            f"week), and is {timeout_s!r}"
        )
    return seconds


def keyed(call: Call) -> Call:
    """Return a call with the idempotency key that it is to have."""
    if not call.keyed:
        return call
    return replace(call, message=with_key(call.message, uuid.uuid4().hex))


def call_timeout_s(call: Call, deadline: float | None, default_s: float, now: float) -> float:
    """Return how long a call may take: its own time, cut by its flow's."""
    if deadline is None:
        return default_s if call.timeout_s is None else call.timeout_s
    left_s = deadline - now
    return left_s if call.timeout_s is None else min(left_s, call.timeout_s)


def call_plan(
    call: Call,
    gateways: Gateways,
    target: Target,
    now: float,
    deadline: float,
    rng: random.Random,
) -> CallPlan:
    """Return the plan for a call; a control channel has one gateway, which is there or is not."""
    return CallPlan(
        gateways,
        now=now,
        deadline=deadline,
        rng=rng,
        repeatable=call.repeatable,
        keyed=call.keyed,
        only=call.only,
        max_tries=1 if target.is_local else min(call.max_tries, MAX_TRIES_PER_GATEWAY),
    )


def settle(plan: CallPlan, gateway: int, outcome: A | Failure, now: float) -> A | None:
    """Tell a plan how a try ended; return the answer if the call has ended with it."""
    if isinstance(outcome, Failure):
        plan.failed(outcome, now)
        return None
    plan.answered(gateway, now)
    return outcome


def accepted(answer: A) -> A:
    """Return a reply of success, or the beginning of a stream; raise the error that a reply is."""
    if isinstance(answer, Reply) and answer.status >= 300:
        raise error_of_reply(answer)
    return answer


def read_timeout_s(read: Read, deadline: float | None, now: float) -> float:
    """Return how long a stream may be silent.

    Raises:
        DeadlineExceeded: if the time of the whole stream is over.
    """
    if deadline is None:
        return read.timeout_s
    if deadline <= now:
        raise DeadlineExceeded("the stream was not complete in time; give it a longer total_s")
    return min(read.timeout_s, deadline - now)


def interrupted() -> UsageError:
    """Return the error for a stream that was closed while somebody waited for its next value."""
    return UsageError(
        "this stream was closed while it was read: two read it at the same time, or somebody closed it; one task or "
        "thread reads a stream"
    )


def no_stream(reply: Reply) -> ProtocolError:
    """Return the error for an answer of success that is no stream."""
    return ProtocolError(f"{reply.url} answered without a stream; it is no gateway of this version")
