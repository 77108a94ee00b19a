"""Every error of meshnode, in two families.

`UsageError`: the caller asked for something that cannot be; nothing was changed, and asking again
in the same way fails again. `PeerError`: another node, the network or a model misbehaved; the
call may be tried elsewhere. Foreign exceptions are translated into these once, at the edge where
they arise. Each class has a `code`: a stable word that crosses links and appears in JSON.

Each docstring says when the error happens, then on lines of their own `Changed:` (what is different
after it) and `To do:` (what helps). docs/errors.md is made of them by `make docs`.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """A defect of meshnode; also the base of all errors, each a sentence for a person.

    Changed: unknown; the log of the node that answered says what ran.
    To do: report it with the log's lines of the request.
    """

    code: ClassVar[str] = "internal"
    """A stable word for programs."""
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed on another replica."""
    nothing_ran: bool = False
    """Whether it is certain that the request was not begun, so that any request may be tried elsewhere."""
    exit_code: ClassVar[int] = 1
    """What the command line exits with."""
    mesh_route: str = ""
    """The `Mesh-Route` header of the answer, if replicas were tried before."""
    gateway: str = ""
    """In a client: URL of the gateway that answered with this error; empty if none did."""


# The caller misused us: nothing was changed.


class UsageError(MeshError):
    """The request cannot be carried out as asked, and none of the words below fits better.

    Changed: nothing.
    To do: ask differently; the same request fails again. The message says what was expected.
    """

    code = "invalid"
    exit_code = 2


class InvalidRequest(UsageError):
    """A request is malformed, or its tensors do not fit the model's inputs and outputs.

    Changed: nothing; the model did not run.
    To do: correct the request as the message says; a model's metadata lists its inputs.
    """

    code = "invalid_request"


class TooLarge(UsageError):
    """A body, frame, file or field exceeds its limit.

    Changed: nothing.
    To do: send less, or in several requests; the message names the limit, docs/limits.md its reason.
    """

    code = "too_large"


class ModelNotFound(UsageError):
    """No node of the mesh knows the model, its version or the deployment.

    Changed: nothing.
    To do: compare the name with `meshnode models`; a deployment made a moment ago takes a second to
        be known everywhere.
    """

    code = "not_found"


class UnsupportedMedia(UsageError):
    """A request's body has a media type that the model does not take, such as a picture for one that takes numbers.

    Changed: nothing; the model did not run.
    To do: send what the message names; JSON is taken by every model.
    """

    code = "unsupported_media_type"


class NotCached(UsageError):
    """A request wants a kept answer or none (`Cache-Control: only-if-cached`), and none is kept.

    Changed: nothing; the model was not run.
    To do: ask without `only-if-cached`.
    """

    code = "not_cached"


class IdempotencyKeyReused(UsageError):
    """A request has the `Idempotency-Key` of another one that its caller sent before.

    Changed: nothing; the request was not carried out.
    To do: give each request a key of its own. A repetition must be the same request, to the last byte.
    """

    code = "idempotency_key_reused"


class StaleRevision(UsageError):
    """A deployment was changed by somebody else since the revision that this change was made from.

    Changed: nothing.
    To do: look at what they changed (`meshnode history NAME`), and make the change anew from that, or force it.
    """

    code = "stale_revision"


class NotFound(UsageError):
    """No API key, upload, job or remembered answer has this name or id, or no device that asks to join has this code.

    Changed: nothing; an upload or a request to join may have expired.
    To do: list what there is (`meshnode keys list`, `meshnode approve`), or begin the upload again.
    """

    code = "unknown"


class JobUnfinished(UsageError):
    """A job's result was asked for before the job has ended.

    Changed: nothing; the job goes on.
    To do: ask for the job until its status is another than `queued` and `running`, or follow its events.
    """

    code = "job_unfinished"


class JobCancelled(UsageError):
    """A job's result was asked for, and there is none: the job was cancelled.

    Changed: nothing.
    To do: ask for the work again, as a new job.
    """

    code = "job_cancelled"


class Forbidden(UsageError):
    """The caller may not do this: wrong role, a key without the scope, or a foreign Host or Origin.

    Changed: nothing.
    To do: ask from a node or with a key that may; the message says which role or name is missing.
    """

    code = "forbidden"


class Unauthenticated(UsageError):
    """The call needs an API key, and none came with it, or one that is wrong, expired or revoked.

    Changed: nothing.
    To do: create a key on a node of the mesh with `meshnode keys create NAME`, and send it as
        `Authorization: Bearer KEY`.
    """

    code = "unauthenticated"


class Throttled(UsageError):
    """An API key's rate or number of requests at once is used up; or too many wrong keys or codes came.

    Changed: nothing; the request, the wrong key or the code was not looked at.
    To do: wait as long as `Retry-After` says. Instead of a wrong key, use a valid one, which passes at once.
    """

    code = "throttled"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        """Say it, and after how many seconds it is worth asking again."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(UsageError):
    """An option, a file, a port or the data folder cannot be used as it is.

    Changed: nothing; a node that was to start has not.
    To do: what the message says; it names the option, file or port and what would be accepted.
    """

    code = "config"
    lines: tuple[str, ...] = ()
    """The message in lines, where a file has several mistakes and each is told on a line of its own."""


class InviteError(UsageError):
    """An invite is damaged, expired, or belongs to another mesh than the data folder.

    Changed: nothing; no mesh was joined.
    To do: copy the whole line again, or print a new one on a member: `meshnode invite`.
    """

    code = "invite"


class ModelError(UsageError):
    """A model or its configuration cannot be published, deployed or loaded.

    Changed: nothing; what was served before is served still.
    To do: correct the file or `config.pbtxt`; where two of them disagree, the message names both.
    """

    code = "model"


# A peer, the network or a model misbehaved.


class PeerError(MeshError):
    """Another node, the daemon or the network failed, and none of the words below fits better.

    Changed: perhaps something; the message says how far it came.
    To do: look at `meshnode status`, then try again.
    """

    code = "peer"


class ProtocolError(PeerError):
    """A peer sent bytes that the protocol does not allow.

    Changed: what it sent was dropped; if it broke the link's own rules, the connection is closed.
    To do: run the same version of meshnode on both nodes; if they are the same, report it.
    """

    code = "protocol"


class HandshakeError(PeerError):
    """A peer could not prove who it is, or refused this node.

    Changed: nothing; no link exists, and no member was added.
    To do: what the message says: most often a new invite, or setting a clock.
    """

    code = "handshake"


class LinkLost(PeerError):
    """The link to the node that was asked broke, stalled or was never there.

    Changed: the request may have run; its answer is lost.
    To do: try again in a moment; `meshnode status` shows which nodes are reachable.
    """

    code = "link_lost"
    retryable = True


class OutcomeUnknown(PeerError):
    """The link to a node broke while it may have run a request that must not run twice.

    Changed: the request may have run; its answer is lost, and it was not tried elsewhere.
    To do: find out whether it ran before sending it again. Which models are so says `meshnode_repeatable`
        in their config.pbtxt.
    """

    code = "outcome_unknown"


class SequenceLost(PeerError):
    """The node that holds a sequence of requests is gone, or its link broke while it worked for the sequence.

    Changed: what the model kept of the sequence is lost to its caller; the message says whether this request
        may have run.
    To do: start the sequence anew: send its requests again from the first, which has `sequence_start`.
    """

    code = "sequence_lost"


class SequenceMoved(PeerError):
    """The node that held a sequence of requests is being emptied, and has given the sequence to another one.

    Changed: nothing ran.
    To do: nothing; the gateway asks the node that has it now. Only a sequence that moves again and again ends so.
    """

    code = "sequence_moved"
    retryable = True
    nothing_ran = True

    def __init__(self, message: str, node: str = "") -> None:
        """Make one: `node` is the id of the node that has the sequence; empty where it is not known."""
        super().__init__(message)
        self.node = node


class NotServing(PeerError):
    """The node that was asked does not serve the model, or may not make this change and reaches none that may.

    Changed: nothing ran.
    To do: try again in a moment; `meshnode models` shows who serves a model, and `meshnode trust show`
        which nodes may change the mesh.
    """

    code = "not_serving"
    retryable = True
    nothing_ran = True


class Saturated(PeerError):
    """Every queue that could take the request is full.

    Changed: nothing ran.
    To do: try again after a pause that grows; for lasting load, deploy more replicas.
    """

    code = "saturated"
    retryable = True
    nothing_ran = True

    def __init__(self, message: str = "", retry_after_s: float = 1.0) -> None:
        """Say it, and after how many seconds the backlog of now should be worked off."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoReplica(PeerError):
    """The model is known, but no replica can take the request now.

    Changed: nothing ran.
    To do: try again in a second; `meshnode models` shows whether replicas load, failed or are gone.
    """

    code = "no_replica"


class DeadlineExceeded(PeerError):
    """There was no answer within the request's deadline.

    Changed: the work was cancelled, and may have run.
    To do: give it more time, or deploy more or faster replicas if it waited in a queue.
    """

    code = "deadline"


class GatewayUnavailable(PeerError):
    """A client could reach none of its gateways, or all of them broke off or went silent.

    Changed: nothing, unless the message says that the call may have been carried out.
    To do: check the URLs and that a node runs there (`meshnode status`); give the client more of them.
    """

    code = "gateway_unavailable"


class Cancelled(PeerError):
    """The caller went away before there was an answer.

    Changed: the work was cancelled, and may have run.
    To do: nothing; whoever asked has given up.
    """

    code = "cancelled"


class InferenceFailed(PeerError):
    """The model raised while it ran this request, or its answer was not what it promises.

    Changed: nothing; other requests are not affected, and the model stays loaded.
    To do: try the model with the same inputs where it was made; the message has its own words.
    """

    code = "inference_failed"


class TransferFailed(PeerError):
    """A model's files could not be fetched or stored, or did not match their SHA-256.

    Changed: nothing that is served; what arrived of a file may be kept to resume from, unverified
        and unused.
    To do: nothing at first: it is tried again by itself. If it goes on, look at disks and links.
    """

    code = "transfer"


def _all_errors(base: type[MeshError]) -> dict[str, type[MeshError]]:
    found: dict[str, type[MeshError]] = {base.code: base}
    for child in base.__subclasses__():
        for code, error in _all_errors(child).items():
            found.setdefault(code, error)
    return found


def error_of(code: str, message: str) -> MeshError:
    """Rebuild an error that crossed a link; an unknown code becomes a plain `PeerError`."""
    return _all_errors(MeshError).get(code, PeerError)(message)
