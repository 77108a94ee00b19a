"""One message of every kind, with no field at its default where that can be."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from meshnode import advertisement, datafolder, key_limit, rollout, suitability
from meshnode.jobs import job as job_values
from meshnode.jobs import messages as job_messages
from meshnode.limits import PATH_TOKEN_BYTES
from meshnode.membership import messages as membership
from meshnode.models import execution, exposure
from meshnode.models import manifest as models
from meshnode.models.provenance import Provenance, Subject, sign
from meshnode.state import (
    api_keys,
    artifact,
    constraints,
    deployment,
    desired_messages,
    desired_store,
    drain,
    owner_messages,
    release,
    scaling,
    steward,
)
from meshnode.state.hybrid_clock import Stamp
from meshnode.trust import chain, hello, invite, pairing, paths, records, roster, statements, twins
from meshnode.types import Address, DataType, NodeState, ReplicaState, Role, Scope
from meshnode.wire import frames, relaying
from meshnode.wire import messages as streams
from tests.vectors import people

NOW_S: Final = people.NOW_WALL_S


class Case(NamedTuple):
    """A message to be written down.

    Attributes:
        file: The vector file, without its ending.
        name: Its name there.
        what: What it is, for people.
        message: The message.
    """

    file: str
    name: str
    what: str
    message: msgspec.Struct


def cases() -> list[Case]:
    """Return all cases, files and messages in the order in which they are written."""
    parts = {
        "streams": _streams(), "membership": _membership(), "owner_state": _owner_state(),
        "desired_state": _desired_state(), "trust": _trust(), "values": _values(), "disk": _disk(),
        "jobs": _jobs(), "relaying": _relaying(),
    }  # fmt: skip
    return [Case(file, *each) for file, part in parts.items() for each in part]


_Part = list[tuple[str, str, msgspec.Struct]]

_SHA256: Final = people.seed_of("some file")
_TOKEN: Final = people.seed_of("token")[:16]
_X: Final = streams.TensorHeader("x", "FP32", (1, 64), 256)
_LOAD: Final = streams.LoadReport(3, 2, 1.25)


def _relaying() -> _Part:
    peer = bytes(range(20))
    return [
        ("open relay", "would you relay to this member?", relaying.OpenRelay(peer)),
        ("relay ready", "yes, and its link there takes 12.5 ms", relaying.RelayReady(12.5)),
        ("begin relay", "then do", relaying.BeginRelay()),
        ("relayed link", "a member calls through this node", relaying.RelayedLink(peer)),
    ]


def _streams() -> _Part:
    reached = streams.Reached("192.0.2.7:8471", "refused", "closed")
    return [
        ("tensor header", "a tensor whose bytes follow", _X),
        ("load report, with the run", "three requests in a replica of two slots", _LOAD),
        ("infer, that may go elsewhere", "run a model with one tensor", streams.Infer(
            "digits", 3, (_X,), 1500.5, "req-1", ("y",), {"top": 5, "exact": True, "why": "test"},
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "max-age=30", elsewhere=True,
        )),
        ("infer, short, that may not go elsewhere", "as the first version wrote it without what has a default",
            streams.Infer("digits", 3, (), 30_000.0)),
        ("result, with signs of life", "an answer with one tensor", streams.Result(
            (streams.TensorHeader("y", "INT64", (1,), 8),), _LOAD, {"final": True})),
        ("failure, with the node to ask", "the replica's queue is full",
            streams.Failure("saturated", "the queue is full", _LOAD)),
        ("fetch blob, a part", "the second MiB of a file",
            streams.FetchBlob(_SHA256, 1 << 20, 1 << 20)),
        ("ask files", "tell me when you have more of two files",
            streams.AskFiles(2, 41, 2000.0)),
        ("file states", "what a node has; the states follow", streams.FileStates(42)),
        ("ask chunks", "a file's list of chunks", streams.AskChunks(_SHA256)),
        ("blob chunk", "its bytes follow", streams.BlobChunk(1 << 20, 5_000_000_000)),
        ("forward", "a caller's request for another node to answer",
            streams.Forward("POST", "/v1/keys", "dry=1", "mesh_id_secret", "req-2")),
        ("forwarded", "its answer; the body follows",
            streams.Forwarded(201, {"content-type": "application/json"})),
        ("once, a question", "may I carry this request out?", streams.Once(_SHA256, _SHA256)),
        ("once, an answer", "what it was answered; the body follows",
            streams.Once(_SHA256, _SHA256, 201, {"Content-Type": "application/json"})),
        ("infer, kept and with a place", "run a model whose stream another gateway may take up", streams.Infer(
            "story", 1, (_X,), 30_000.0, "req-3", priority=2, alive_ms=500.0,
            keep=streams.Keep("9da822665ec189fcd45e226c", "phone /mesh/v1/models/story/stream", 7),
        )),
        ("result, with signs of life", "a part of a stream that tells signs of life between its parts",
            streams.Result((), None, {}, 500.0)),
        ("resume stream", "go on with a stream that you keep", streams.ResumeStream(
            "9da822665ec189fcd45e226c", "phone /mesh/v1/models/story/stream", 41, 500.0)),
        ("resumed", "it goes on; its parts follow", streams.Resumed("story", 1, {"http_status": 200})),
        ("ask load", "say how busy your replica is", streams.AskLoad("digits", 3)),
        ("load told", "so busy it is", streams.LoadTold(streams.LoadReport(7, 4, 12.5))),
        ("failure, of a sequence that was given away", "another node has the sequence now", streams.Failure(
            "sequence_moved", "sequence 7 was given to another node", streams.LoadReport(7, 4, 12.5), 250.0,
            people.WITNESS.node_id,
        )),
        ("take sequence", "go on with a sequence in my place", streams.TakeSequence(
            "chat", 3, "9f" * 32, "caller 7",
            (streams.TensorHeader("before", DataType.FP32, (1, 2), 8),),
        )),
        ("sequence taken", "I go on with it", streams.SequenceTaken()),
        ("tell feedback", "somebody judges an answer that you may have given", streams.TellFeedback("k" * 16)),
        ("feedback told", "I gave it", streams.FeedbackTold(found=True)),
        ("ask disagreements", "where does the new version answer otherwise?", streams.AskDisagreements("digits")),
        ("disagreements told", "there", streams.DisagreementsTold(found=True)),
        ("ask statistics", "say what your replicas of a model have done",
            streams.AskStatistics("digits", 3)),
        ("statistics answer", "what they have done follows", streams.StatisticsAnswer(1)),
        ("version counts", "what one version has done", streams.VersionCounts(
            "digits", 3, 12.5, 40, 20, ((20, 4_000_000), (1, 5)), ((2, (20, 1), (20, 2), (20, 3)),))),
        ("checkup", "tell me what you see of me", streams.Checkup(_TOKEN)),
        ("reached", "how one address of the asker fared", reached),
        ("checkup answer", "what the asked node saw", streams.CheckupAnswer(
            NOW_S + 0.5, "0.1.0", (1, 1), "192.0.2.7:50123", 3, (reached,))),
        ("knock", "a checkup's datagram", streams.Knock(_TOKEN)),
        ("reset", "why a stream ends early; the meta of a RESET frame",
            frames.Reset("deadline", "the caller waits no longer")),
    ]  # fmt: skip


def member_record() -> membership.MemberRecord:
    """Return the witness's record, signed."""
    record = membership.MemberRecord(
        people.WITNESS.public_key, "bench", "workshop", "shelf-2", {"owner": "ada"},
        people.SEEDS, "192.0.2.7:8470", NOW_S, 7, 2**64 - 2,
        {"memory_bytes": 16 << 30, "cpu": {"cores": 8, "features": ["avx2", "fma"]}, "idle": None},
        people.WITNESS_MEMBER.chain,
    )  # fmt: skip
    return membership.sign_record(record, people.WITNESS.sign)


def _membership() -> _Part:
    record = member_record()
    raw_id = membership.pack_id(record.node_id)
    founder_id = membership.pack_id(people.FOUNDER.node_id)
    of = membership.CODE_OF
    suspect = membership.Rumour(raw_id, NOW_S, 7, of[NodeState.SUSPECT], founder_id)
    proof = people.WITNESS.sign(
        membership.leave_bytes(people.WITNESS.public_key, record.incarnation)
    )
    left = membership.Rumour(raw_id, NOW_S, 7, of[NodeState.LEFT], b"", proof)
    entry = membership.DigestEntry(raw_id, NOW_S, 7, 2**64 - 2, of[NodeState.ALIVE])
    point = (1200, -340, 5, 0, 0, 0, 0, 0, 10, 2, 150_000)
    records_ = (msgspec.Raw(membership.CODEC.encode(record)),)
    sums = tuple(people.seed_of(f"bucket {i}")[: membership.SUM_BYTES] for i in range(64))
    return [
        ("member record", "what a node says of itself, signed", record),
        ("rumour", "a suspicion, and whose", suspect),
        ("rumour of leaving", "signed by who leaves", left),
        ("digest entry", "a member and its state", entry),
        ("ping", "with a rumour and a coordinate", membership.Ping(2**64 - 1, (suspect,), point)),
        ("ack", "with a rumour and a coordinate", membership.Ack(2**64 - 1, (left,), point)),
        ("ping request", "ping another one for me",
            membership.PingRequest(9, raw_id, (suspect,))),
        ("nack", "it does not answer yet", membership.Nack(9, (suspect,))),
        ("unwanted", "close this link unless you need it", membership.Unwanted()),
        ("gossip", "rumours alone", membership.Gossip((suspect, left))),
        ("sync", "the hash of a view", membership.Sync(people.seed_of("view")[:8])),
        ("digest", "all members up to an id", membership.Digest(b"", b"\xff" * 20, (entry,))),
        ("record request", "send me these records", membership.RecordRequest((raw_id, founder_id))),
        ("records", "a record, and what to believe", membership.Records(records_, (suspect,))),
        ("summary", "a view in parts", membership.Summary(sums)),
    ]  # fmt: skip


def _owner_state() -> _Part:
    owner = people.WITNESS.node_id
    alive = owner_messages.OwnerEntry("replica/digits/3", 11, b"ready")
    gone = owner_messages.OwnerEntry("replica/digits/2", 12, None)
    digest = owner_messages.entry_hash(alive.key, alive.version, b"ready")
    signature = people.WITNESS.sign(owner_messages.state_bytes(owner, NOW_S, 12, digest))
    delta = owner_messages.OwnerDelta(owner, NOW_S, 10, 12, 4, (alive, gone), digest, signature)
    mark = owner_messages.Mark(owner, NOW_S, 12)
    hint = owner_messages.Hint(owner, NOW_S, 99, "load", b"\x01\x02")
    return [
        ("owner entry", "a live key", alive),
        ("owner entry, deleted", "a tombstone", gone),
        ("owner delta", "what an owner wrote since version 10, signed", delta),
        ("mark", "how much is known of an owner", mark),
        ("hint", "a value of the moment", hint),
        ("owner root", "a hash of all marks", owner_messages.OwnerRoot(digest[:8])),
        ("owner digests", "all marks", owner_messages.OwnerDigests("a", "z", (mark,))),
        ("owner wants", "what is newer than this", owner_messages.OwnerWants((mark,))),
        ("owner deltas", "news", owner_messages.OwnerDeltas((delta,))),
        ("owner hints", "hints", owner_messages.OwnerHints((hint,))),
    ]


def entry() -> desired_messages.Entry:
    """Return a revision by the founder, signed for its mesh."""
    plain = desired_messages.Entry(
        "deployment/digits", Stamp(NOW_S * 1000, 2), people.FOUNDER.node_id, b"a value"
    )
    signature = people.FOUNDER.sign(people.MESH_ID.encode() + plain.signed_bytes)
    return msgspec.structs.replace(plain, signature=signature)


def _desired_state() -> _Part:
    key = desired_messages.KeyDigest("deployment/digits", people.seed_of("revisions")[:8])
    root = people.seed_of("all keys")[:8]
    return [
        ("entry", "a revision of a key, signed for one mesh", entry()),
        ("key digest", "a key and a hash of its revisions", key),
        ("desired entries", "revisions", desired_messages.DesiredEntries((entry(),))),
        ("desired root", "a hash of all keys", desired_messages.DesiredRoot(root, current=True)),
        ("desired digests", "keys and their hashes",
            desired_messages.DesiredDigests("a", "z", (key,), current=True)),
        ("desired wants", "send me these keys",
            desired_messages.DesiredWants(("deployment/digits", "key/abc"))),
    ]  # fmt: skip


def _record_of(member: Any, kind: type[records.Record]) -> records.Record:
    return next(
        record
        for record in map(records.read_record, reversed(member.records))
        if isinstance(record, kind)
    )


def _trust() -> _Part:
    nonce = people.seed_of("nonce")
    signature = people.WITNESS.sign(b"not a handshake: see handshakes.json")
    signed = people.SUCCEEDED.records[-1]
    invite_proof = people.JOINER_INVITE.prove(people.JOINER.public_key)
    member_chain = people.WITNESS_MEMBER.chain
    return [
        ("hello", "who speaks", hello.Hello(
            1, 3, nonce, people.WITNESS.public_key, people.MESH_ID, 2**64 - 2)),
        ("proof", "a member's", hello.Proof(signature, member_chain, is_trial=True)),
        ("join proof", "a joiner's", hello.JoinProof(
            signature, people.JOINER_INVITE.signed_grant, invite_proof, is_trial=True)),
        ("welcome", "with a joiner's new chain", hello.Welcome(people.JOINER_MEMBER.chain)),
        ("refusal", "with time and evidence",
            hello.Refusal("revoked", "you are out", NOW_S + 0.25, b"evidence")),
        ("passed", "a trial passed", hello.Passed(NOW_S + 0.25)),
        ("admission", "by a witness, through an invite",
            _record_of(people.JOINER_MEMBER, records.Admission)),
        ("invite grant", "for three devices, with a region",
            _record_of(people.JOINER_MEMBER, records.InviteGrant)),
        ("promotion", "of a member to admin", _record_of(people.PROMOTED, records.Promotion)),
        ("succession", "a new key", _record_of(people.SUCCEEDED, records.Succession)),
        ("signed record", "a record with its signature", signed),
        ("chain", "of a member that another one witnessed", chain.Chain(
            people.SUCCEEDED.root_public_key, people.SUCCEEDED.records)),
        ("pair request", "a device asks", pairing.PairRequest(
            signature, "new-laptop", pairing.commitment_to(nonce))),
        ("pair nonce", "the member's", pairing.PairNonce(nonce)),
        ("pair reveal", "the device's", pairing.PairReveal(nonce)),
        ("pair waiting", "four minutes yet", pairing.PairWaiting(240)),
        ("path challenge", "are you there?", paths.PathChallenge(nonce[:PATH_TOKEN_BYTES])),
        ("path response", "yes", paths.PathResponse(nonce[:PATH_TOKEN_BYTES])),
        ("twin met", "another process has your key", twins.TwinMet(2**64 - 2)),
    ]  # fmt: skip


MANIFEST: Final = models.Manifest(
    "digits", 3, "onnx", "onnxruntime_onnx",
    (models.TensorSpec("x", DataType.FP32, (-1, 64)),),
    (models.TensorSpec("y", DataType.INT64, (-1,)),),
    32, (models.FileEntry("1/model.onnx", 4321, _SHA256),), "1/model.onnx",
)  # fmt: skip

EXECUTION: Final = execution.Execution(
    instance_groups=(execution.InstanceGroup(2, "gpu", (0, 1), passive=True),),
    batching=execution.DynamicBatching(
        (4, 8), 500, preserve_ordering=True, priority_levels=2, default_priority_level=1,
        default_queue_policy=execution.QueuePolicy(execution.Timeout.DELAY, 10_000, True, 64),
        queue_policies=((2, execution.QueuePolicy(max_queue_size=16)),),
    ),
    adaptive=False,
    sequences=execution.SequenceBatching(
        "oldest", 2_000_000,
        (execution.ControlInput("START", execution.ControlKind.START, DataType.FP32, (0.0, 1.0)),),
        (execution.SequenceState("state_in", "state_out", DataType.FP32, (1, 8), "initial"),),
        16, (4,), 250, 0.5,
    ),
    warm_up=(execution.WarmUp(
        "sample", 4, (execution.WarmUpInput("x", DataType.FP32, (64,), "file", "x.bin"),), 3),),
    cache=True,
    decoupled=True,
    repeatable=False,
    steps=(execution.EnsembleStep("scale", 1, (("x", "raw"),), (("y", "scaled"),)),),
    reshape=(("x", (8, 8)),),
    optional_inputs=("mask",),
    parameters=(("threads", "2"),),
    graph_level=-1,
    accelerators=(("tensorrt", (("precision_mode", "FP16"),)),),
    rate_limit=execution.RateLimit(50.0, 5),
    interface=execution.Interface.HTTP,
    spelling=execution.Spelling.PIPELINE,
    routes=(execution.Route("POST", "/items/{item_id}"),),
    replicas=2,
)  # fmt: skip

PROVENANCE: Final = sign(
    Provenance("", NOW_S + 0.5, "20260131_120000", (("accuracy", 0.97),), "from the bench",
               created_s=NOW_S - 86_400.0),
    Subject(MANIFEST.digest, "digits", 3, "int8"), people.WITNESS.public_key, people.WITNESS.sign,
)  # fmt: skip

FULL_MANIFEST: Final = msgspec.structs.replace(
    MANIFEST,
    files=(models.FileEntry("1/model.onnx", 43_210_000, _SHA256, b"\x14" + _SHA256),),
    execution=EXECUTION,
    variant="int8",
    provenance=PROVENANCE,
    exposure=exposure.Exposure(
        "/read",
        (exposure.TaskMapping(exposure.Task.CHAT, "text", "said", (("template", "plain"),)),),
        True,
    ),
)


ORIGIN: Final = deployment.Origin(
    "1800000000000.0.abcdef", "ci key 4711", "1799999999000.2.abcdef", "5e" * 32
)
DEPLOYMENT: Final = deployment.Deployment(
    "digits", (MANIFEST, msgspec.structs.replace(MANIFEST, version=4)), 2, (people.WITNESS.node_id,), enabled=False,
    constraints=constraints.Constraints(
        ("eu",), (("room", "cellar"),), "cuda", 8 << 30, 16 << 30, "onnx", on_mains=True),
    resources=constraints.Resources(2 << 30, 1.5), standby=1, env=(("MODEL_HOME", "/models"),),
    origin=ORIGIN, since_ms=NOW_S * 1000,
    scaling=scaling.Scaling(
        0, 8, 4.0, 50.0, 20.0, 2.0, 0.8, 0.7, 0.9, 90.0, 9.0, 3.0, 0.2, 5.0, 60.0, 300.0),
    release=release.Release(
        "canary", 3, 4, (release.Step(0.05, 0.5, 30.0, wait=True),),
        (release.Gate("stars", 0.2, higher_is_better=False),), 200, 900.0, 1200.0, "header:x-beta", ("yes",),
        "deployment:letters", "top", 0.01, 0.99, NOW_S * 1000),
)  # fmt: skip
RELEASE: Final = (NOW_S * 1000, 0x1A2B3C4D)
PROGRESS: Final = rollout.Progress(
    RELEASE, "paused", 0, NOW_S * 1000, "17 of 200 answers of version 4", 2, 3, 17, waits=True, granted=True,
    troubled_ms=NOW_S * 1000 - 5000,
)  # fmt: skip
EVIDENCE: Final = rollout.Evidence(
    RELEASE, 0, ("stars",),
    (rollout.CellWord(4, "cpu", 17, 1, ((160, 9), (161, 7)), 12, 11, ((0, 5, 4.2, 1.5),)),),
)  # fmt: skip


def _values() -> _Part:
    key, _ = api_keys.make_api_key(
        "ci", (Scope.INFER, Scope.DEPLOY), 86_400, NOW_S,
        people.seed_of("id")[:10] + people.seed_of("secret"), (),
    )  # fmt: skip
    kept = statements.pack_keeps({people.WITNESS.node_id: Role.OPERATOR})
    model = advertisement.ModelLoad("digits", 3, 4, 2, 1.5)
    accelerator = advertisement.AcceleratorLoad(0, 0.5, 1 << 33)
    return [
        ("deployment, with a release", "the value of deployment/digits, each field set", DEPLOYMENT),
        ("deployment, all else default", "the value of deployment/digits, with nothing set that needs not be",
            deployment.Deployment("digits", (MANIFEST,), 2, (people.WITNESS.node_id,))),
        ("removal", "the value of deployment/digits once it is withdrawn", deployment.Removal(ORIGIN)),
        ("steward's word, with a release", "how many replicas a deployment is to have, and how far its release is",
            steward.StewardWord(
                3, 5, "112 requests/s need 11.2 units", NOW_S * 1000, (NOW_S * 1000 - 60_000, 1), 1500, PROGRESS)),
        ("release order", "the value of release-order/digits", release.Order(
            2, "promote", RELEASE, "ci key 4711", "it looks well")),
        ("release ending", "the value of release-end/digits", release.Ending(
            RELEASE, "promoted", "version 4 has proven itself", NOW_S * 1000)),
        ("release step", "the value of release-step/digits", PROGRESS),
        ("release evidence", "the value of evidence/digits: what a gateway saw", EVIDENCE),
        ("waiting requests", "requests wait for models that sleep", steward.Waiting((("digits", 3),))),
        ("suitability", "what a node cannot load, and what it has on disk", suitability.Suitability(
            (suitability.Failing("digits", 3, bytes(range(8)), "out of memory"),),
            frozenset({bytes(range(8))}))),
        ("manifest, with resumption", "a model version whose settings are the default", MANIFEST),
        ("manifest, with all settings and resumption", "a version, each setting set", FULL_MANIFEST),
        ("execution, with resumption", "how a version is executed", EXECUTION),
        ("provenance, with when it was made", "who published a version, signed for it", PROVENANCE),
        ("artifact, with resumption", "the value of artifact/digits/3/int8", artifact.Artifact(FULL_MANIFEST)),
        ("tensor spec", "an input", MANIFEST.inputs[0]),
        ("file entry, in chunks", "a large file of a model version", FULL_MANIFEST.files[0]),
        ("api key, with a share", "a key, revoked", msgspec.structs.replace(
            key, revoked_at_s=NOW_S + 60, limit=key_limit.KeyLimit(600, 60, 4))),
        ("drain", "a node is to be emptied", drain.Drain(NOW_S, force=True, wait_s=600)),
        ("drain report, forced", "how far it is", drain.DrainReport(
            drain.DrainState.DRAINING, NOW_S, 3, 2, 1, 4, ("beta loads digits",), ("own: only here",), 1,
            force=True)),
        ("revocation", "a node is evicted", statements.Revocation(
            people.JOINER.public_key, "sold", NOW_S + 50, kept, "old-laptop", 1, (bytes(range(16)),))),
        ("role change", "a member becomes admin", statements.RoleChange(
            people.JOINER.public_key, Role.ADMIN, people.PROMOTED.chain, kept, 1,
            (bytes(range(16)),))),
        ("replica, with resumption", "a replica, as its node describes it", advertisement.advert(
            MANIFEST, ReplicaState.READY, digest=MANIFEST.digest, reason="warm", slots=2,
            deployed=True, service_ms=1.5, shown=advertisement.ShownReplica(
                "cpu", 1, "off", "restarted once, last: exit code 7"))),
        ("model load, with failures", "how busy a replica is", model),
        ("accelerator load", "how busy an accelerator is", accelerator),
        ("node load, with demand", "how busy a node is", advertisement.NodeLoad(
            0.25, 8 << 30, (model,), 51.5, 88.0, (accelerator,),
            (advertisement.FetchProgress("digits", 4, 1 << 20, 5 << 20, 20_000_000),),
            True, True, (("digits", 4711),))),
    ]  # fmt: skip


def mesh_file() -> datafolder.MeshFile:
    """Return the founder's mesh file."""
    seeds = tuple((each.host, each.port) for each in people.SEEDS)
    return datafolder.MeshFile(people.MESH_ID, people.FOUNDED.chain, people.seed_of("root"), seeds)


def _jobs() -> _Part:
    asked = job_values.Job(
        "mxhxivz5e36m2czzzkdmgcuyty",
        "/v2/models/digits/infer",
        "a=1",
        (("content-type", "application/json"),),
        _SHA256,
        120,
        NOW_S * 1000,
        people.FOUNDER.node_id,
        "k" * 16,
        "phone",
        "digits",
        job_values.Webhook(
            "https://example.org/hook", "a secret of sixteen bytes", bytes(range(32))
        ),
        "req-1",
    )
    end = job_values.Outcome(
        job_values.JobStatus.FAILED,
        2,
        people.FOUNDER.node_id,
        NOW_S * 1000 + 5000,
        500,
        (("content-type", "application/json"),),
        people.seed_of("some result"),
        64,
        "it broke",
        "inference_failed",
    )
    state = job_values.JobState(
        3,
        people.FOUNDER.node_id,
        NOW_S * 1000 + 1000,
        0.25,
        end,
        job_values.Told.DELIVERED,
        ("f" * 32,),
    )
    short = job_values.Job(
        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "/inference/chat",
        "",
        (),
        _SHA256,
        0,
        NOW_S * 1000,
        people.FOUNDER.node_id,
    )
    return [
        ("keep job", "a job whose body follows", job_messages.KeepJob(asked, state)),
        ("keep job, short", "one that nobody has begun, without what has a default",
            job_messages.KeepJob(short, job_values.NEW)),
        ("tell job", "how a job fares", job_messages.TellJob(asked.id, state, asked.fingerprint)),
        ("job kept", "the body of the result is wanted", job_messages.JobKept(job_messages.WANTS_RESULT)),
        ("ask job", "how a job fares, with its result", job_messages.AskJob(asked.id, True)),
        ("job told", "how a job fares", job_messages.JobTold(asked, state)),
        ("cancel job", "nobody wants it any more", job_messages.CancelJob(asked.id)),
        ("withdraw job", "its gateway did not accept it", job_messages.CancelJob(asked.id, withdrawn=True)),
        ("list jobs", "a page of one caller's failed jobs", job_messages.ListJobs(
            "k" * 16, True, "failed", 101, NOW_S * 1000, asked.id, people.FOUNDER.node_id)),
        ("jobs listed", "one follows", job_messages.JobsListed(1)),
        ("job on disk", "what was asked", asked),
        ("job state on disk", "how it fares", state),
    ]  # fmt: skip


def _disk() -> _Part:
    chains = (people.FOUNDED.chain, people.WITNESS_MEMBER.chain)
    address = Address("2001:db8::7", 8471)
    successor = datafolder.MeshFile(people.MESH_ID, people.SUCCEEDED.chain)
    grant = people.JOINER_INVITE.grant
    seed = invite._Seed.of(address)
    return [
        ("mesh file", "the founder's", mesh_file()),
        ("successor", "what a device is to become",
            datafolder.Successor(people.seed_of("successor of the joiner"), successor)),
        ("roster", "the members that a node knows", roster._Snapshot(chains)),
        ("members", "whom a node looks for at its next start",
            membership.MemberList((member_record(),))),
        ("desired store", "the body of the stored desired state",
            desired_store.Stored((entry(),), NOW_S * 1000)),
        ("invite seed", "an address in an invite", seed),
        ("invite line", "an invite's content, without prefix and checksum", invite._Line(
            bytes.fromhex(people.MESH_ID), people.seed_of("invite"), grant.role, grant.issued_at_s,
            grant.expires_at_s, grant.issuer, people.JOINER_INVITE.signed_grant.signature,
            (seed, invite._Seed.of(people.SEEDS[2])), grant.uses, grant.region)),
    ]  # fmt: skip
