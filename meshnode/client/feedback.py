"""What people say of answers, and where a new version answers otherwise, as flows of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.client.calls import Call, Flow, ask, deployment_path, get_document, json_message
from meshnode.client.results import read_as
from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH: Final = "/mesh/v1/feedback"

NO_LABEL: Final = msgspec.UNSET
"""Of feedback that does not say what would have been right."""


class FeedbackResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of feedback.

    Attributes:
        request: The id of the answer that it is about.
        model: That answered.
        version: Likewise.
        counted: The metrics that counted.
        agreed: Whether the answer was the label; None where that was not compared.
        note: Why something did not count; empty if all did.
    """

    request: str
    model: str
    version: int
    counted: tuple[str, ...] = ()
    agreed: bool | None = None
    note: str = ""


class Disagreements(msgspec.Struct, frozen=True, kw_only=True):
    """Where the new version of a release answers otherwise than it should.

    Attributes:
        model: The deployment.
        version: The new version; 0 where nothing was seen of any release.
        compared: Answers of it that were compared.
        disagreed: How many of them differ.
        no_reference: Answers of it for which there was nothing to compare them with.
        reason: Why, of the last one.
        clusters: What is more common among those than among the others, the most telling first.
        examples: The last ones, newest first: what was asked, answered and expected.
        silent: Names of gateways that did not say what they saw.
    """

    model: str
    version: int = 0
    compared: int = 0
    disagreed: int = 0
    no_reference: int = 0
    reason: str = ""
    clusters: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    silent: tuple[str, ...] = ()


def feedback(request: str, metrics: Mapping[str, float], label: object) -> Flow[FeedbackResult]:
    """Say how good an answer was, or what would have been right; `MeshClient.feedback` says the rest."""
    if not request:
        raise InvalidRequest(
            "feedback needs the request_id of an answer, as its result has it; answers without one cannot be judged"
        )
    said: dict[str, Any] = {"request": request, "metrics": dict(metrics)}
    if label is not NO_LABEL:
        said["label"] = label
    # Each metric of an answer counts once, so the call may be repeated.
    reply = yield from ask(Call("POST", PATH, json_message(said)))
    return read_as(FeedbackResult, reply.document())


def disagreements(name: str) -> Flow[Disagreements]:
    """Return where the new version of a release answers otherwise than it should."""
    path = f"{deployment_path(name)}/rollout/disagreements"
    return read_as(Disagreements, (yield from get_document(path)))
