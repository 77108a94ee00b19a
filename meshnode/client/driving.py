"""What both clients do around one call: its time, its plan, and what its tries come to."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from meshnode.client.plan import CallPlan, Failure, Gateways
from meshnode.client.replies import error_of_reply
from meshnode.errors import ConfigError, UsageError
from meshnode.limits import MAX_CLIENT_TIMEOUT_S, MAX_TRIES_PER_GATEWAY

if TYPE_CHECKING:
    import random
    import ssl

    from meshnode.client.calls import Call, Reply
    from meshnode.client.endpoints import Target


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
        only=call.only,
        max_tries=1 if target.is_local else min(call.max_tries, MAX_TRIES_PER_GATEWAY),
    )


def settle(plan: CallPlan, gateway: int, outcome: Reply | Failure, now: float) -> Reply | None:
    """Tell a plan how a try ended; return the reply if the call has ended with it."""
    if isinstance(outcome, Failure):
        plan.failed(outcome, now)
        return None
    plan.answered(gateway, now)
    return outcome


def accepted(reply: Reply) -> Reply:
    """Return a reply of success, or raise the error that it is."""
    if reply.status >= 300:
        raise error_of_reply(reply)
    return reply
